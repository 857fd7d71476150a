"""Every metric under every transform: rows alone, vmap, chunks, keys, derivatives, dtypes."""

from __future__ import annotations

import functools
from typing import Any

import optree
import pytest
import torch
from helpers import assert_close, inner, noise_like
from metrics_registry import (
    AGAIN,
    MAP,
    METRICS,
    PAIR,
    SCORES,
    Metric,
    attributions,
    every,
    inputs_of,
    measure,
    per_example,
    trial,
)
from models import TREES, targets
from test_purity import Remembers
from torch.func import grad, vmap
from zoo import D, make, randn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity
from attrfn.testing import _slopes as slopes
from attrfn.testing import _state
from attrfn.testing import _values as checks
from attrfn.testing._state import untouched


def test_the_table_has_every_metric() -> None:
    """A metric that comes needs a row."""
    public = {n for n in dir(metrics) if not n.startswith("_") and n.islower()}
    others = {"compare", "similarity"}
    assert {m.name for m in METRICS} == (public - others) | set(similarity.__all__)


@every()
def test_rows_are_those_of_the_example_alone(m: Metric) -> None:
    checks.row_alone(trial(m))


@every()
def test_results_say_something(m: Metric) -> None:
    """Without this the comparisons of this file could be of zeros and nan."""
    x = inputs_of(m, batch=8)
    for found in per_example(measure(m, m.net.build(), x)):
        assert torch.isfinite(found).all()
        assert found.numel() == 8 or found.shape[0] == 8
        assert found.unique().numel() > 1


@every()
def test_vmap_over_examples_is_the_batch(m: Metric) -> None:
    checks.vmap(trial(m), whole=("target",))


@every(lambda m: m.keyed)
def test_vmap_over_keys_is_the_loop(m: Metric) -> None:
    model, x, keys = m.net.build(), inputs_of(m), attrfn.random.split(3, 3)
    mapped = vmap(lambda k: per_example(measure(m, model, x, key=k)))(keys)
    for i in range(3):
        assert_close([v[i] for v in mapped], per_example(measure(m, model, x, key=keys[i])))


@every(lambda m: m.keyed and m.many)
def test_a_key_for_each_example(m: Metric) -> None:
    """Row i with key i is the example alone with that key; examples draw on their own."""
    model, keys = m.net.build(), attrfn.random.split(3, 8)
    x = inputs_of(m, batch=1).repeat(8, *[1] * (inputs_of(m).ndim - 1))
    many = per_example(measure(m, model, x, key=keys))
    for i in range(8):
        alone = per_example(measure(m, model, x[i : i + 1], key=keys[i]))
        assert_close(alone, [b[i : i + 1] for b in many])
    assert any(b.flatten(1).unique(dim=0).shape[0] > 1 if b.ndim > 1 else len(b.unique()) > 1
               for b in many)  # fmt: skip


@every(lambda m: m.keyed)
def test_only_the_key_changes_the_draws(m: Metric) -> None:
    checks.keys(trial(m))
    checks.result(trial(m))


@every(lambda m: m.chunked)
def test_chunks_give_the_same_numbers(m: Metric) -> None:
    keys = {"key": attrfn.random.split(0, 3)} if m.keyed else {}
    checks.chunks(trial(m, **keys), (1, 2, None, "auto"))


@every(lambda m: m.kind == SCORES and m.chunked)
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_every_batching_gives_the_same_numbers(m: Metric, batching: Any) -> None:
    checks.chunks(trial(m), (1, None), batching=batching)


@every(lambda m: m.smooth)
def test_derivatives_by_the_inputs_match_finite_differences(m: Metric) -> None:
    """By torch.func, and by ``backward`` where there is a ``create_graph``."""
    slopes.jvp(trial(m))
    slopes.grad(trial(m))


@every(lambda m: m.smooth and m.kind == SCORES)
def test_create_graph_reaches_inputs_attributions_and_parameters(m: Metric) -> None:
    model, x, t = m.net.build().requires_grad_(), inputs_of(m), targets(3)
    z = x.clone().requires_grad_()
    found = per_example(measure(m, model, z, target=t, create_graph=True))
    weights = noise_like(found, 30)
    inner(found, weights).backward()
    expected = grad(lambda x: inner(per_example(measure(m, model, x, target=t)), weights))(x)
    assert z.grad is not None
    assert_close(z.grad, expected)
    if m.options.get("multiply_by_inputs", True):
        assert any(p.grad is not None and (p.grad != 0).any() for p in model.parameters())
    plain = per_example(measure(m, model, z, target=t))
    assert not any(v.requires_grad for v in plain)


@every(lambda m: m.smooth and m.kind == AGAIN and m.name != "input_invariance")
def test_a_method_with_a_graph_gives_results_with_one(m: Metric) -> None:
    """``partial(method, create_graph=True)`` differentiates the outputs in the quotients, too."""
    model, x, t = m.net.build(), inputs_of(m), targets(3)
    z = x.clone().requires_grad_()
    bound = functools.partial(attrfn.integrated_gradients, n_steps=2, create_graph=True)
    found = per_example(measure(m, model, z, target=t, method=bound))
    weights = noise_like(found, 30)
    inner(found, weights).backward()
    plain = functools.partial(attrfn.integrated_gradients, n_steps=2)
    expected = grad(
        lambda x: inner(per_example(measure(m, model, x, target=t, method=plain)), weights)
    )(x)
    assert z.grad is not None
    assert_close(z.grad, expected)


# One metric of each signature and each reduction; each of the others takes seconds, too.
COMPILED = {"deletion", "infidelity", "sensitivity_n", "sensitivity_max", "input_invariance"}
COMPILED |= {"complexity", "localization_auc", "spearman", "ssim"}
compiled = pytest.mark.parametrize(
    "m",
    [
        pytest.param(m, id=m.name, marks=() if m.name in COMPILED else pytest.mark.fuzz)
        for m in METRICS
        if m.compiles
    ],
)


@compiled
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_metrics_are_the_eager_ones(m: Metric) -> None:
    """torch.compile(fullgraph=True), with other inputs and no second graph."""
    checks.compile(trial(m)._replace(tolerance=1e-8))


def _side_by_side(m: Metric) -> tuple[Any, Any]:
    """Trees of five features and the same features as one tensor."""
    x = TREES.inputs(3)
    return {"a": x[:, :2].reshape(3, 1, 2), "b": (x[:, 2:4], x[:, 4:])}, x


@every(lambda m: m.name not in ("road", "ssim"))
def test_trees_are_their_features_side_by_side(m: Metric) -> None:
    """A dict of tensors of several ranks gives what one tensor gives."""
    model = TREES.build()
    tree, flat = _side_by_side(m)

    def found(x: Any) -> Any:
        options = dict(m.options)
        if "mask" in options:
            inside = torch.tensor([True, False, True, False, True])
            parts = {"a": inside[:2].reshape(1, 1, 2), "b": (inside[None, 2:4], inside[4:])}
            options["mask"] = lambda t: parts if isinstance(t, dict) else inside[None]
        plain = m._replace(options=options)
        # Noise has a stream for each tensor, so that the draws differ.
        quiet = {"radius": 0.0, "perturb": _scaled} if "n_samples" in m.options else {}
        quiet = quiet if m.kind == AGAIN else {}
        return per_example(measure(plain, model, x, **quiet))

    assert_close(found(tree), found(flat))


def _scaled(inputs: Any, keys: Any) -> Any:
    return optree.tree_map(lambda t: 1.1 * t, inputs)


@every(lambda m: m.kind in (MAP, PAIR) or m.kind == SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_type_of_the_inputs(m: Metric, dtype: torch.dtype) -> None:
    model, x = m.net.build(), inputs_of(m)
    expected = per_example(measure(m, model, x.to(dtype).to(D)))
    found = per_example(measure(m, model.to(dtype), x.to(dtype)))
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == dtype
        # Steps of the order may change where scores are rounded; float32 has enough digits.
        close = dtype == torch.float32
        assert f.shape == e.shape
        assert not close or torch.allclose(f.to(D), e, rtol=1e-3, atol=1e-4)


@every(lambda m: m.kind == AGAIN)
def test_metrics_that_explain_again_have_the_type_of_the_inputs(m: Metric) -> None:
    model, x = m.net.build(), inputs_of(m)
    expected = per_example(measure(m, model, x.float().to(D)))
    found = per_example(measure(m, model.float(), x.float()))
    assert all(f.dtype == torch.float32 for f in found)
    if m.name != "efficient_mprt" and "randomization" not in m.name:  # other draws of parameters
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f.to(D), e, rtol=2e-2, atol=1e-3)


@every()
def test_nothing_of_the_users_changes(m: Metric) -> None:
    _state.purity(trial(m)._replace(graph=None))


@every(lambda m: m.kind in (SCORES, AGAIN) and m.name != "road")
def test_a_model_that_writes_into_itself_stays(m: Metric) -> None:
    model, x = make(Remembers), randn(3, 4, seed=1)
    with untouched(model, x):
        measure(m, model, x)
    assert model.seen == []


@every()
def test_a_model_that_raises_stays(m: Metric) -> None:
    _state.exceptions(trial(m))


@every(lambda m: m.kind in (SCORES, AGAIN))
def test_threads_share_a_model(m: Metric) -> None:
    _state.threads(trial(m))


@every()
def test_a_batch_of_no_example(m: Metric) -> None:
    model, x = m.net.build(), inputs_of(m)[:0]
    for found in per_example(measure(m, model, x, target=1)):
        assert found.shape[0] == 0


@every(lambda m: m.kind in (SCORES, MAP, PAIR))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_attributions_that_are_not_finite_spoil_their_row_only(m: Metric, bad: float) -> None:
    model, x = m.net.build(), inputs_of(m)

    def with_bad(x: Any) -> Any:
        a = attributions(x).clone()
        a[1].view(-1)[2] = bad
        return a

    good = per_example(measure(m, model, x))
    if m.kind == SCORES:
        found = m.function(model, x, with_bad(x), target=1, **m.options)
    elif m.kind == MAP:
        options = dict(m.options)
        mask = options.pop("mask", None)
        found = m.function(with_bad(x), *([] if mask is None else [mask(x)]), **options)
    else:
        found = m.function(with_bad(x), 0.5 * x * x - x)
    for f, g in zip(per_example(found), good, strict=True):
        if m.name == "completeness_delta":  # a sum says what it is
            assert not torch.isfinite(f[1])
        else:
            assert f[1].isnan().all()
        assert_close(f[[0, 2]], g[[0, 2]])
