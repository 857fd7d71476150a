"""attrfn.compile: one graph for all batch sizes, parameters and targets; clear refusals."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import targets
from registry import ROWS, Row, needs, primary, rows
from test_compile import small
from torch import SymInt, Tensor, nn
from torch._dynamo import testing
from zoo import make, randn, same_state, state

import attrfn
from attrfn._compile import dynamo
from attrfn._explain.method_unit import loops_over_chunks

pytestmark = pytest.mark.usefixtures("fresh_compiler")

# Each way to make rows: steps, noise, masks, coalitions, shuffles, layers, maps, runs by rules.
SIZED = [
    "gradient",
    "gradient_shap",
    "smoothgrad",
    "deep_lift_shap",
    "lrp",
    "occlusion",
    "feature_permutation",
    "kernel_shap",
    "layer_conductance",
    "layer_feature_ablation",
    "neuron_gradient",
    "score_cam",
]


@rows(lambda r: r.name in SIZED and not loops_over_chunks(r.method))  # see test_units.py
def test_a_third_batch_size_compiles_nothing(r: Row) -> None:
    """Sizes that no layer has, because some methods look for the batch in an activation's shape."""
    net = r.net
    model, options = net.build(), {**needs(r, net), **small(r)}
    counter = testing.CompileCounter()
    explain = attrfn.compile(r.method, model, backend=counter, **options)
    for batch in (7, 8, 11, 9):
        x, changing = net.inputs(batch), {"target": targets(batch)} if r.target else {}
        assert_close(explain(x, **changing), r.method(model, x, **options, **changing))
        assert counter.frame_count <= 2


def compiled_whole(r: Row) -> bool:
    return r.name in primary() and r.name not in SIZED and not loops_over_chunks(r.method)


@rows(lambda r: compiled_whole(r) and len(r.name) % 3 == 0)
def test_other_methods_compile_once(r: Row) -> None:
    compiles_once(r)


@pytest.mark.fuzz
@rows(lambda r: compiled_whole(r) and len(r.name) % 3 != 0)
def test_every_other_method_compiles_once(r: Row) -> None:
    """test_compile.py compiles these methods in the default run, too."""
    compiles_once(r)


def compiles_once(r: Row) -> None:
    """Other inputs and targets use the same graph."""
    net = r.net
    model, options = net.build(), {**needs(r, net), **small(r)}
    counter = testing.CompileCounter()
    explain = attrfn.compile(r.method, model, backend=counter, **options)
    for seed in (0, 60):
        x, changing = net.inputs(seed=seed), {"target": targets(3)} if r.target else {}
        assert_close(explain(x, **changing), r.method(model, x, **options, **changing))
        assert counter.frame_count == 1


def test_all_sized_methods_exist() -> None:
    assert set(SIZED) <= set(ROWS)


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_targets_and_training_compile_nothing() -> None:
    model, x = make(_linear), randn(3, 4)
    model.requires_grad_()
    counter = testing.CompileCounter()
    explain = attrfn.compile(attrfn.integrated_gradients, model, backend=counter, n_steps=4)
    for target in (0, 2, 1):
        assert_close(
            explain(x, target=target),
            attrfn.integrated_gradients(model, x, target=target, n_steps=4),
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = explain(x, target=1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        after = explain(x, target=1)
        assert_close(after, attrfn.integrated_gradients(model, x, target=1, n_steps=4))
    assert not torch.allclose(before, after)
    assert counter.frame_count == 1


def test_changing_options_win_over_fixed_ones() -> None:
    model, x = make(_linear), randn(3, 4)
    explain = attrfn.compile(attrfn.deep_lift, model, backend="eager", target=0, baselines=0.1)
    b = randn(4, seed=2)
    expected = attrfn.deep_lift(model, x, target=1, baselines=b)
    assert_close(explain(x, target=1, baselines=b), expected)


def test_trees_and_keys() -> None:
    def model(inputs: dict[str, Tensor]) -> Tensor:
        return (inputs["a"] * inputs["b"]).sum(1)

    inputs = {"a": randn(3, 4), "b": randn(3, 4, seed=2)}
    pool = {"a": randn(5, 4, seed=3), "b": randn(5, 4, seed=4)}
    options = {"baselines": pool, "n_samples": 2}
    explain = attrfn.compile(attrfn.gradient_shap, model, backend="eager", **options)
    for seed in (1, 2):
        key = attrfn.random.key(seed)
        expected = attrfn.gradient_shap(model, inputs, key=key, **options)
        assert_close(explain(inputs, key=key), expected)


def test_any_number_of_functions_is_compiled() -> None:
    """Each has its own count of compilations, of which torch.compile allows eight."""
    x = randn(3, 4)
    for i in range(20):
        method = (attrfn.gradient, attrfn.saliency)[i % 2]
        explain = attrfn.compile(method, torch.sin, backend="eager")
        assert_close(explain(x[:, 0]), method(torch.sin, x[:, 0]))


def test_functions_do_not_learn_sizes_from_each_other() -> None:
    """What another compiled function has seen makes no size of this one unknown to the graph."""
    model = make(_linear)
    for batch in (2, 3, 4):
        backend = testing.EagerAndRecordGraphs()
        attrfn.compile(attrfn.gradient, model, backend=backend)(randn(batch, 4), target=1)
        values = [n.meta.get("example_value") for n in backend.graphs[0].graph.nodes]
        assert not any(isinstance(value, SymInt) for value in values)


def test_too_many_compilations_are_told_with_what_changes() -> None:
    explain = attrfn.compile(attrfn.gradient, lambda x: x.sum(1), backend="eager", dynamic=False)
    for batch in range(1, 9):
        explain(torch.ones(batch, 2))
    with pytest.raises(
        attrfn.CompileError,
        match=r"gradient of this model was compiled 8 times, .*'inputs' size mismatch",
    ):
        explain(torch.ones(9, 2))


@pytest.mark.inductor
@pytest.mark.parametrize("mode", [None, "default"])
def test_every_graph_is_guarded_on_what_may_change_only(
    mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the second, which is made for other settings of autograd."""
    left_out, needed = [], dynamo.needed_guards

    def watched(guards: Sequence[Any]) -> list[bool]:
        keep = needed(guards)
        left_out.append(len(guards) - sum(keep))
        return keep

    monkeypatch.setattr(dynamo, "needed_guards", watched)
    model, x = make(_linear), randn(3, 4)
    explain = attrfn.compile(attrfn.gradient, model, target=1, mode=mode)
    explain(x)
    explain(x.clone().requires_grad_())
    assert len(left_out) == 2
    assert min(left_out) > 50


@pytest.mark.inductor
def test_modes_of_torch_compile_are_passed_on() -> None:
    model, x = make(_linear), randn(3, 4)
    explain = attrfn.compile(attrfn.saliency, model, mode="max-autotune-no-cudagraphs")
    assert_close(explain(x, target=1), attrfn.saliency(model, x, target=1))
    with pytest.raises(RuntimeError, match="Unrecognized mode"):
        attrfn.compile(attrfn.saliency, model, mode="fastest")
    given = dynamo.settings("inductor", "reduce-overhead", None)
    assert given["options"] == {"guard_filter_fn": dynamo.needed_guards, "triton.cudagraphs": True}
    with pytest.raises(ValueError, match="mode is 'reduce-overhead' and backend is 'eager', which"):
        dynamo.settings("eager", "reduce-overhead", None)


def test_model_stays_as_it_was() -> None:
    model = make(_linear)
    before = state(model)
    attrfn.compile(attrfn.deep_lift, model, backend="eager")(randn(2, 4), target=0)
    assert same_state(model, before)


def test_model_that_branches_on_values_is_refused_with_its_line() -> None:
    def model(x: Tensor) -> Tensor:
        return x.sum(1) if x.sum() > 0 else x.prod(1)

    with pytest.raises(
        attrfn.CompileError,
        match=r"gradient of this model.* branching \(test_compiled.py, line \d+\); call gradient",
    ):
        attrfn.compile(attrfn.gradient, model, backend="eager")(randn(2, 3))


def test_errors_of_the_method_are_told() -> None:
    explain = attrfn.compile(attrfn.deep_lift, lambda x: torch.igamma(x, x), backend="eager")
    with pytest.raises(attrfn.UnsupportedOpError, match=r"deep_lift has no rule for torch\.igamma"):
        explain(randn(2, 3).exp(), target=0)


@pytest.mark.parametrize(
    ("method", "fixed"),
    [(attrfn.gradient, {}), (attrfn.gradient, {"target": None}), (attrfn.saliency, {"target": 3})],
)
def test_errors_of_the_method_have_numbers(method: Any, fixed: dict[str, Any]) -> None:
    model, x = make(_linear), randn(4, 4)
    with pytest.raises(ValueError, match=r"\(4, 3\)|\(3,\)") as expected:
        method(model, x, **fixed)
    with pytest.raises(ValueError, match="target") as found:
        attrfn.compile(method, model, backend="eager", dynamic=True, **fixed)(x)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("target", [3, -4])
@pytest.mark.parametrize("method", [attrfn.gradient, attrfn.feature_ablation])
def test_an_int_target_keeps_its_range(method: Any, target: int) -> None:
    model = make(_linear)
    explain = attrfn.compile(method, model, backend="eager")
    assert_close(explain(randn(2, 4), target=-1), method(model, randn(2, 4), target=2))
    with pytest.raises(ValueError, match=f"target {target} is out of range for outputs of sizes"):
        explain(randn(3, 4), target=target)


def test_an_unknown_option_is_named_at_once() -> None:
    message = r"n_step is not an option of integrated_gradients, expected .* did you mean 'n_steps'"
    with pytest.raises(TypeError, match=message):
        attrfn.compile(attrfn.integrated_gradients, torch.sin, n_step=3)
    with pytest.raises(TypeError, match=message):
        attrfn.compile(attrfn.integrated_gradients, torch.sin)(randn(3), n_step=3)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_call_does_not_overwrite_the_last_result(mode: str) -> None:
    """As CUDA graphs do, whose outputs lie at the same place each time."""

    def graphs(module: Any, example: Any, mode: str) -> Any:
        places: list[Tensor] = []

        def run(*args: Any) -> Any:
            found = module(*args)
            places[:] = places or [t.clone() for t in found]
            return tuple([place.detach().copy_(t) for place, t in zip(places, found, strict=True)])

        return run

    explain = attrfn.compile(attrfn.gradient, lambda x: x**2, backend=graphs, mode=mode)
    first = explain(torch.ones(3))
    explain(torch.zeros(3))
    assert_close(first, torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("method", "model", "message"),
    [
        ("gradient", nn.Linear(1, 1), "method is a str"),
        (attrfn.gradient, torch.ones(2), "model_fn is a Tensor"),
    ],
)
def test_what_cannot_be_called_is_refused(method: object, model: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        attrfn.compile(method, model)  # type: ignore[arg-type]


OLD = r"torch \S+ cannot compile attributions: use torch >= 2\.12"


@pytest.fixture
def _old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrfn._torch.compiling._COMPILES", False)


@pytest.mark.usefixtures("_old")
@pytest.mark.parametrize("model", [nn.Linear(2, 1), torch.sin])
def test_old_torch_is_refused_at_once(model: Any) -> None:
    with pytest.raises(RuntimeError, match=f"^{OLD}"):
        attrfn.compile(attrfn.gradient, model, backend="eager")


@pytest.mark.usefixtures("_old")
@pytest.mark.parametrize("method", [attrfn.gradient, attrfn.feature_ablation, "with_rules"])
@pytest.mark.parametrize("module", [True, False])
def test_old_torch_is_refused_inside_compiled_code(method: Any, module: bool) -> None:
    model = nn.Linear(2, 1) if module else _squares
    run = _ruled if method == "with_rules" else method
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match=OLD):
        torch.compile(run, backend="eager", fullgraph=True)(model, randn(3, 2).float())
    run(model, randn(3, 2).float())


def _squares(x: Tensor) -> Tensor:
    return (x**2).sum(1)


def _ruled(model: Any, x: Tensor) -> Tensor:
    f: Tensor = attrfn.with_rules(model, attrfn.rules.rescale())(x)
    return f


def test_an_int_target_goes_where_the_inputs_are() -> None:
    """Elsewhere it would keep inductor from CUDA graphs."""
    devices: list[torch.device] = []

    def backend(module: Any, example: list[Any]) -> Any:
        devices.extend(t.device for t in example if isinstance(t, Tensor))
        return module

    model = nn.Linear(4, 3, device="meta")
    found = attrfn.compile(attrfn.gradient, model, backend=backend)(
        torch.ones(2, 4, device="meta"), target=1
    )
    assert found.shape == (2, 4)
    assert {d.type for d in devices} == {"meta"}


RULES = {
    "guided_backprop": attrfn.guided_backprop,
    "deconvolution": attrfn.deconvolution,
    "lrp": functools.partial(attrfn.lrp, rules=attrfn.rules.epsilon(0.1)),
    "layer_lrp": functools.partial(attrfn.layer_lrp, layer="0"),
    "deep_lift": attrfn.deep_lift,
}
by_rules = pytest.mark.parametrize("method", RULES.values(), ids=RULES)


def _rectified() -> nn.Module:
    return make(
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
        )
    )


@by_rules
def test_what_nobody_differentiates_is_computed_in_one_pass(method: Any) -> None:
    """At least one run of the model less, but for DeepLIFT; and no graph."""
    x, model, runs = randn(2, 4), _rectified(), []
    for needed in (True, False):
        seen = testing.EagerAndRecordGraphs()
        explain = attrfn.compile(method, model, backend=seen)
        found = explain(x.clone().requires_grad_(needed), target=1)
        assert found.requires_grad == needed
        assert_close(found.detach(), method(model, x, target=1))
        text = seen.graphs[0].print_readable(print_output=False)
        runs.append(text.count("torch._C._nn.linear("))
    least = 0 if method is attrfn.deep_lift else 2 if method is RULES["layer_lrp"] else 3
    assert runs[0] - runs[1] >= least


@pytest.mark.parametrize("method", [RULES["guided_backprop"], RULES["lrp"]], ids=["guided", "lrp"])
def test_derivatives_of_compiled_rules_are_right(method: Any) -> None:
    """By an input that requires a gradient, of a function of one's own, of an attribution."""
    model, x = _rectified(), randn(2, 4)

    def size(x: Tensor) -> Tensor:
        return method(model, x, target=1).square().sum()

    want = torch.func.grad(size)(x)
    z = x.clone().requires_grad_()
    explain = attrfn.compile(method, model, backend="eager")
    assert_close(torch.autograd.grad(explain(z, target=1).square().sum(), z)[0], want)

    def own(model_fn: Any, x: Tensor) -> Tensor:
        return torch.func.grad(size)(x)

    assert_close(attrfn.compile(own, model, backend="eager")(x), want)
    rows = attrfn.compile(
        attrfn.gradient,
        lambda x: method(model, x, target=1).square().flatten(1).sum(1),
        backend="eager",
    )
    assert_close(rows(x), want)
