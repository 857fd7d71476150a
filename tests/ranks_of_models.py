"""One of two processes that run models together: ``python ranks_of_models.py FOLDER RANK``.

Writes what it found into FOLDER/RANK.json. The tests are in test_models_that_do_not_fit_ranks.py.
"""

from __future__ import annotations

import datetime
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import big_models
import torch
import torch.distributed as dist
from big_models import Broken, close, expected, inputs, llama, logit, methods
from tiny_transformers import Embedded
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import attrfn

SPLIT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def whole_layers(model: nn.Module, mesh: Any) -> nn.Module:
    """Each layer is gathered before it runs, as in the usual recipe."""
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def at_once(model: nn.Module, mesh: Any) -> nn.Module:
    """All weights are gathered together."""
    return fully_shard(model, mesh=mesh)


def parts_of_layers(model: nn.Module, mesh: Any) -> nn.Module:
    """Finer than the layers that are explained; some weights are not trained."""
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.requires_grad_(False)
        fully_shard(layer.mlp, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard([model.model.norm, model.lm_head], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def checkpointed(model: nn.Module, mesh: Any) -> nn.Module:
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return whole_layers(model, mesh).train()


def tensor_parallel(model: nn.Module, mesh: Any) -> nn.Module:
    for layer in model.model.layers:
        plan: dict[str, Any] = {
            f"{'mlp' if 'gate' in n or 'up' in n else 'self_attn'}.{n}": ColwiseParallel()
            for n in SPLIT
        }
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        parallelize_module(layer, mesh, plan)
    return model


def transformers_plan(model: nn.Module, mesh: Any) -> nn.Module:
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    plan = {}
    for i in range(len(model.model.layers)):
        for name in (*SPLIT, "o_proj", "down_proj"):
            part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            style = "colwise" if name in SPLIT else "rowwise"
            plan |= {f"model.layers.{i}.{part}.{name}{end}": style for end in ("", ".weight")}
    return apply_tensor_parallelism(model, mesh, plan)


def replicated(model: nn.Module, mesh: Any) -> nn.Module:
    return DistributedDataParallel(model)


KINDS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    f.__name__: f
    for f in (
        whole_layers,
        at_once,
        parts_of_layers,
        checkpointed,
        tensor_parallel,
        transformers_plan,
        replicated,
    )
}


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def compared(model: nn.Module, name: str, run: Callable[..., Any]) -> str:
    """Empty where a method gives what it gives for the plain model, and leaves all as it was."""
    x, x0 = inputs()
    before = big_models.state(model)
    try:
        close(run(model, x, x0), expected()[name])
    except Exception as error:
        return said(error) + "".join(traceback.format_exception(error)[-4:])
    changed = [k for k, v in big_models.state(model).items() if v != before.get(k)]
    return f"changed: {changed[:3]}" if changed else ""


FEW = ("gradient", "layer_integrated_gradients", "neuron_gradient", "deep_lift", "attn_lrp")
WITH_ALL = ("whole_layers", "tensor_parallel")


def refused(model: nn.Module, kind: str) -> dict[str, str]:
    """What the calls say that such a model cannot answer."""
    x = inputs()[0]

    def mapped() -> Any:
        return torch.func.vmap(lambda t: attrfn.gradient(model, t[None], target=logit)[0])(x)

    def again() -> Any:
        return attrfn.gradient(model, x.clone().requires_grad_(), target=logit, create_graph=True)

    def compiled() -> Any:
        def f(t: Any) -> Any:
            return attrfn.gradient(model, t, target=logit)

        return torch.compile(f, backend="eager", fullgraph=True)(x)

    found = {}
    for call in (mapped, again, compiled) if kind in WITH_ALL else (mapped, again):
        try:
            call()
            found[call.__name__] = ""
        except Exception as error:
            found[call.__name__] = said(error)
    return found


def tried(kind: str, mesh: Any) -> dict[str, Any]:
    inner = KINDS[kind](llama(), mesh)
    model = Embedded(inner)
    model.training = inner.training
    parts = "model.module.model.layers.0" if kind == "replicated" else big_models.LAYER
    runs = methods(parts, f"{parts}.mlp")
    with torch.no_grad():  # FSDP finds out which module is the root
        model(inputs()[0])
    if kind in ("whole_layers", "at_once", "parts_of_layers", "checkpointed"):
        inner.reshard()
    before = big_models.state(model)
    names = runs if kind in WITH_ALL else FEW
    found: dict[str, Any] = {name: compared(model, name, runs[name]) for name in names}
    hidden = attrfn.gradient(lambda t: model(t), inputs()[0], target=logit)
    close(hidden, expected()["gradient"])
    big_models.raising(model, inputs()[0], f"{parts}.mlp")
    changed = [k for k, v in big_models.state(model).items() if v != before.get(k)]
    found["raising"] = f"changed: {changed[:3]}" if changed else ""
    found["after raising"] = compared(model, "gradient", runs["gradient"])
    found["refused"] = refused(model, kind)
    found["after refusals"] = compared(model, "feature_ablation", runs["feature_ablation"])
    found["training"] = trained(inner) if kind in ("whole_layers", "replicated") else ""
    return found


def trained(inner: nn.Module) -> str:
    """Whether the model can still be trained: its gradients are those of the plain model."""
    x, plain = inputs()[0], llama()
    for model in (inner, plain):
        logit(model(inputs_embeds=x)).sum().backward()
    mine = dict(getattr(inner, "module", inner).named_parameters())
    for name, p in plain.named_parameters():
        got: Any = mine[name].grad
        if p.grad is None or got is None:
            continue
        got = got.full_tensor() if hasattr(got, "full_tensor") else got
        if not torch.allclose(got, p.grad, atol=1e-7):
            return f"the gradient of {name} differs"
    return ""


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.out = nn.Linear(6, 5)

    def forward(self, x: Any) -> Any:
        return self.out(self.inner(self.lstm(x)[0][:, -1]).tanh())


OTHERS: dict[str, Callable[..., Any]] = {
    "gradient": lambda f, x: attrfn.gradient(f, x, target=1),
    "all outputs": lambda f, x: attrfn.each_output(attrfn.input_x_gradient)(f, x),
    "neuron": lambda f, x: attrfn.at_neuron(attrfn.gradient, "inner.0", 2)(f, x),
    "neuron's input": lambda f, x: attrfn.at_neuron(attrfn.gradient, "inner.2", 2, at="input")(
        f, x
    ),
    "at input": lambda f, x: attrfn.layer_integrated_gradients(
        f, x, layer="inner", at="input", target=2
    ),
    "guided_backprop": lambda f, x: attrfn.guided_backprop(f, x, target=2),
    "halves": lambda f, x: by_hand(f, x),
}


def by_hand(model: nn.Module, x: Any) -> Any:
    """The gradient through both halves of a split, which the user takes."""
    head, tail = attrfn.split(model, "inner.1")
    z = x.clone().requires_grad_()
    return torch.autograd.grad(tail(head(z), z)[:, 1].sum(), z)[0]


def others(mesh: Any) -> dict[str, str]:
    """A model of another kind: its list of weights, values inside of sharded modules."""
    torch.manual_seed(0)
    plain, model = Recurrent().double(), Recurrent().double()
    model.load_state_dict(plain.state_dict())
    for part in (model.lstm, model.inner, model):
        fully_shard(part, mesh=mesh)
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    found = {}
    for name, run in OTHERS.items():
        try:
            close(run(model, x), run(plain, x), 1e-12)
            found[name] = ""
        except Exception as error:
            found[name] = said(error) + traceback.format_exc()
    try:
        attrfn.integrated_hessians(model, x, target=2, n_steps=2)
        found["second"] = "not refused"
    except ValueError as error:
        found["second"] = "" if "no second derivative" in str(error) else said(error)
    return found


def old_kind() -> str:
    model = FullyShardedDataParallel(nn.Linear(3, 2), device_id=torch.device("cpu"))
    try:
        attrfn.gradient(model, torch.ones(1, 3), target=0)
    except ValueError as error:
        return str(error)
    return ""


def unequal_memory(model: nn.Module, rank: int) -> str:
    """Processes with different free memory take chunks of one size, or one would wait for ever."""
    from attrfn._copies import memory

    memory._free_on_cpu = lambda: 2**30 if rank else 2**19
    x = inputs()
    try:
        got = attrfn.integrated_gradients(
            model, x[0], baselines=x[1], n_steps=40, chunk_size="auto", target=logit
        )
    except Exception as error:
        return said(error)
    want = attrfn.integrated_gradients(
        Embedded(llama()).eval(), x[0], baselines=x[1], n_steps=40, target=logit
    )
    close(got, want)
    return ""


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    mesh = init_device_mesh("cpu", (2,))
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    found: dict[str, Any] = {}
    for kind in sys.argv[3:] or KINDS:
        try:
            found[kind] = tried(kind, mesh)
        except Exception as error:
            found[kind] = {"setup": said(error) + traceback.format_exc()}
        (folder / f"{rank}.json").write_text(json.dumps(found, indent=1))
    if not sys.argv[3:]:
        found["old kind"] = old_kind()
        found["others"] = others(mesh)
        found["memory"] = unequal_memory(Embedded(whole_layers(llama(), mesh)).eval(), rank)
    (folder / f"{rank}.json").write_text(json.dumps(found, indent=1))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    assert issubclass(Broken, Exception)
    main(Path(sys.argv[1]), int(sys.argv[2]))
