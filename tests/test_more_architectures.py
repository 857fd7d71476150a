"""Further families, each with the primary methods; a sample of a third runs by default."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import optree
import pytest
import torch
import zoo
from more_families import FAMILIES, built
from torch import Tensor, nn

import attrfn

# What is refused, and what the message says.
ROUTES = {"deep_lift": (attrfn.UnsupportedOpError, "differs for the baselines; choose baselines")}
CUSTOM = (attrfn.UnsupportedOpError, "RecurrentGemmaRglru.*custom autograd.Function")
REFUSED = {
    **dict.fromkeys(["deepseek_v2", "deepseek_v3", "qwen3_moe", "olmoe", "gpt_oss"], ROUTES),
    "recurrent_gemma": {
        "vmap": (RuntimeError, "setup_context"),
        **{"deep_lift": CUSTOM, "lrp": CUSTOM, "conservation": CUSTOM},
    },
    # torch's vmap refuses a write of mapped values into a tensor that is not
    "xlstm": {"vmap": (RuntimeError, "vmap")},
}
ATTN = attrfn.rules.attn_lrp()


def tolerance(x: Tensor) -> dict[str, float]:
    return (
        {"rtol": 1e-3, "atol": 1e-5} if x.dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-9}
    )


def total(value: Any) -> Tensor:
    return value.detach().flatten(1).sum(1)


def change(model: Any, x: Tensor, x0: Tensor) -> Tensor:
    with torch.no_grad():
        return (model(x) - model(x0))[:, 1]


def close(a: Tensor, b: Tensor) -> None:
    """Nearly equal, measured by the largest entry."""
    size = b.abs().max().item()
    allowed = 1e-4 if b.dtype == torch.float32 else 1e-6
    assert size > 0
    assert (a - b).abs().max().item() <= allowed * size


def gradient(name: str) -> None:
    """Autograd's with trainable parameters; a row alone is the row in the batch."""
    model, x, _ = built(name)
    before = zoo.state(model)
    got = attrfn.gradient(model, x, target=1)
    z = x.clone().requires_grad_()
    close(got, torch.autograd.grad(model(z)[:, 1].sum(), z)[0])
    close(attrfn.gradient(model, x[1:], target=1), got[1:])
    assert zoo.same_state(model, before)


def vmap(name: str) -> None:
    model, x, _ = built(name)
    rows = torch.func.vmap(lambda row: attrfn.gradient(model, row[None], target=1)[0])(x)
    close(rows, attrfn.gradient(model, x, target=1))


def integrated_gradients(name: str) -> None:
    model, x, x0 = built(name)
    explain = functools.partial(attrfn.integrated_gradients, model, target=1, n_steps=64)
    got = explain(x, baselines=x0, chunk_size=32)
    if not FAMILIES[name].jumps:
        gap = (total(got) - change(model, x, x0)).abs() / total(got.abs())
        allowed = 1e-2 if FAMILIES[name].kinked else 1e-4
        assert (gap < allowed).all()
    close(explain(x[1:], baselines=x0[1:]), got[1:])


def deep_lift(name: str) -> None:
    model, x, x0 = built(name)
    got = attrfn.deep_lift(model, x, target=1, baselines=x0)
    gap = (total(got) - change(model, x, x0)).abs() / total(got.abs())
    assert (gap < (1e-4 if x.dtype == torch.float32 else 1e-7)).all()
    close(attrfn.deep_lift(model, x[1:], target=1, baselines=x0[1:]), got[1:])


def lrp(name: str) -> None:
    model, x, _ = built(name)
    got = attrfn.lrp(model, x, target=1, rules=ATTN)
    assert got.isfinite().all()
    close(attrfn.lrp(model, x[1:], target=1, rules=ATTN), got[1:])


def conservation(name: str) -> None:
    """The sum of what arrives and of what is lost is the output."""
    model, x, _ = built(name)
    leaks = attrfn.rules.conservation(model, x, target=1, rules=ATTN)
    arrived = total(attrfn.lrp(model, x, target=1, rules=ATTN)).sum()
    lost = sum(leak.lost for leak in leaks)
    with torch.no_grad():
        output = model(x)[:, 1].sum()
    scale = max(abs(float(arrived)), abs(float(output)), 1.0)
    family = FAMILIES[name]
    allowed = 1e-3 if family.single else 2e-4 if family.mixed else 1e-9
    assert abs(float(arrived + lost - output)) < allowed * scale


def layer(name: str) -> None:
    """The gradient at a layer by autograd's at what its hook sees."""
    model, x, _ = built(name)
    path, out = None, None
    with torch.no_grad():
        calls: dict[str, list[Any]] = {}
        handles = [
            m.register_forward_hook(lambda m, args, out, k=k: calls.setdefault(k, []).append(out))
            for k, m in model.named_modules()
            if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv1d, nn.LayerNorm))
        ]
        model(x)
        for handle in handles:
            handle.remove()
    rows = [k for k, v in calls.items() if len(v) == 1 and v[0].shape[0] == len(x)]
    path = rows[len(rows) // 2]
    got = attrfn.layer_gradient_x_activation(model, x, layer=path, target=1)
    kept: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda m, a, out: kept.append(out))
    out = model(x)[:, 1].sum()
    handle.remove()
    (g,) = torch.autograd.grad(out, kept[0])
    close(got, (kept[0] * g).detach())


def feature_ablation(name: str) -> None:
    """By hand, one group at a time; whatever the chunks are."""
    model, x, x0 = built(name)
    groups = torch.arange(x[0].numel()).reshape(x[0].shape) * 4 // x[0].numel()
    explain = functools.partial(
        attrfn.feature_ablation, model, x, target=1, baselines=x0, feature_mask=groups
    )
    got = explain()
    with torch.no_grad():
        drops = [(model(x) - model(torch.where(groups == g, x0, x)))[:, 1] for g in range(4)]
    expected = torch.stack(drops, 1).gather(1, groups.flatten().expand(len(x), -1))
    close(got, expected.reshape(x.shape))
    close(explain(chunk_size=1), got)


CHECKS = [
    gradient,
    vmap,
    integrated_gradients,
    deep_lift,
    lrp,
    conservation,
    layer,
    feature_ablation,
]
CELLS = [
    pytest.param(
        name,
        check,
        id=f"{name}-{check.__name__}",
        marks=[] if (i + j) % 3 == 0 else pytest.mark.fuzz,
    )
    for (i, name), (j, check) in itertools.product(enumerate(FAMILIES), enumerate(CHECKS))
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch, under vmap
@pytest.mark.parametrize(("name", "check"), CELLS)
def test_family(name, check):
    refused = REFUSED.get(name, {}).get(check.__name__)
    if refused is None:
        check(name)
    else:
        with pytest.raises(refused[0], match=refused[1]):
            check(name)


def test_there_are_thirty_more():
    assert len(FAMILIES) >= 30
    assert optree.tree_leaves(built("gat")[1])
