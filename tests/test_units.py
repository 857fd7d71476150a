"""attrfn.compile of methods with chunks: one pass is the graph, whatever the numbers are."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import assert_close, in_threads
from models import NETS, targets
from registry import ROWS, Row, needs, rows
from torch import Tensor, nn
from torch._dynamo import testing
from zoo import make, randn, same_state, state

import attrfn
from attrfn._explain.method_unit import loops_over_chunks

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def called(r: Row, net: Any, batch: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """Inputs, and the options that change from call to call."""
    return net.inputs(batch, seed=seed), {"target": targets(batch)} if r.target else {}


# One of each way to make rows and of each pass.
SOME = {
    "integrated_gradients",
    "deep_lift_shap",
    "feature_ablation",
    "feature_permutation",
    "shapley_value_sampling",
    "layer_gradient_shap",
    "layer_conductance",
    "neuron_conductance",
    "score_cam",
}


@rows(lambda r: loops_over_chunks(r.method) and r.name in SOME)
def test_other_numbers_compile_nothing(r: Row) -> None:
    compiles_nothing_for_other_numbers(r)


@pytest.mark.fuzz
@rows(lambda r: loops_over_chunks(r.method) and r.name not in SOME)
def test_other_numbers_compile_nothing_in_any_method(r: Row) -> None:
    compiles_nothing_for_other_numbers(r)


def compiles_nothing_for_other_numbers(r: Row) -> None:
    """Other steps or samples, examples, targets and sizes of chunks; a chunk that is shorter."""
    net = r.net
    model, given = net.build(), needs(r, net)
    counter = testing.CompileCounter()
    explain = attrfn.compile(r.method, model, backend=counter, **given)
    more = [{}, {}, {"chunk_size": 3}]
    if r.copies is not None and r.options[r.copies] <= 3:
        more = [{r.copies: 3}, {r.copies: 5}, {r.copies: 4, "chunk_size": 3}]
    first = 0
    for batch, seed, options in zip((3, 4, 3), (0, 60, 61), more, strict=True):
        x, changing = called(r, net, batch, seed)
        expected = r.method(model, x, **{**given, **changing, **options})
        assert_close(explain(x, **changing, **options), expected)
        first = first or counter.frame_count
        # The neuron's part goes back through the head by a pass of its own.
        assert counter.frame_count == first == (2 if r.name == "neuron_conductance" else 1)


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "sequence first"])
def test_other_numbers_compile_nothing_through_attention(first: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=first)
    inner = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()

    def model(x: torch.Tensor) -> torch.Tensor:
        return inner(x).mean(1) if first else inner(x.transpose(0, 1)).mean(0)

    counter = testing.CompileCounter()
    explain = attrfn.compile(attrfn.deep_lift_shap, model, backend=counter)
    for batch, k in ((5, 3), (3, 2), (4, 6)):
        x, pool = torch.randn(batch, 4, 8).double(), torch.randn(k, 4, 8).double()
        expected = attrfn.deep_lift_shap(model, x, target=1, baselines=pool)
        assert_close(explain(x, target=1, baselines=pool), expected)
        assert counter.frame_count == 1


# Those that the table has within functions of its own.
OTHERS: dict[Callable[..., Any], tuple[dict[str, Any], dict[str, Any]]] = {
    attrfn.integrated_hessians: ({"n_steps": 3}, {"n_steps": 4, "chunk_size": 5}),
    attrfn.interactions: ({}, {"feature_mask": torch.arange(8) // 3}),
    attrfn.shapley_values: ({}, {"feature_mask": torch.arange(8) // 3, "chunk_size": 3}),
    attrfn.kernel_shap: ({"n_samples": 20}, {"n_samples": 30, "chunk_size": 7}),
    attrfn.lime: ({"n_samples": 20}, {"n_samples": 30, "chunk_size": 7}),
}


@pytest.mark.filterwarnings("ignore:the sum of integrated_hessians")  # of few steps
@pytest.mark.parametrize("method", OTHERS, ids=lambda m: m.__name__)
def test_other_numbers_compile_nothing_either(method: Callable[..., Any]) -> None:
    model = make(lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)))
    counter = testing.CompileCounter()
    explain = attrfn.compile(method, model, backend=counter)
    for batch, options in zip((3, 1, 4), (*OTHERS[method], OTHERS[method][0]), strict=True):
        x, t = randn(batch, 8, seed=batch), targets(batch)
        assert_close(explain(x, target=t, **options), method(model, x, target=t, **options))
        assert counter.frame_count == 1


def test_all_methods_with_chunks_are_swept() -> None:
    """Those of the table that take a chunk_size themselves, and noise tunnels."""
    public = [f for name, f in vars(attrfn).items() if not name.startswith("_")]
    loops = {f for f in public if callable(f) and not isinstance(f, type) and _loops(f)}
    swept = {r.method for r in ROWS.values()} | set(OTHERS)
    swept |= {attrfn.noise_tunnel, attrfn.over_baselines, attrfn.each_output}  # which make methods
    assert loops <= swept
    assert loops_over_chunks(attrfn.noise_tunnel(attrfn.gradient))
    assert loops_over_chunks(attrfn.at_layer(attrfn.noise_tunnel(attrfn.gradient), "0"))
    assert loops_over_chunks(attrfn.over_baselines(attrfn.deep_lift))
    assert not loops_over_chunks(attrfn.each_output(attrfn.integrated_gradients))
    assert not loops_over_chunks(attrfn.lrp)
    assert not loops_over_chunks(lambda model, x, chunk_size=None: x)


def _loops(f: Callable[..., Any]) -> bool:
    try:
        return loops_over_chunks(f)
    except ValueError:  # no signature
        return False


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


TUNNELS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gradient": (attrfn.gradient, {}),
    "lrp": (attrfn.lrp, {}),
    "steps": (attrfn.integrated_gradients, {"n_steps": 3}),
    "layer": (attrfn.at_layer(attrfn.saliency, "0"), {}),
    "function": (lambda model, x, target: 2 * attrfn.gradient(model, x, target=target), {}),
}


@pytest.mark.parametrize("inside", TUNNELS)
def test_noise_tunnels_compile_once(inside: str) -> None:
    """The method inside is the unit, or has units of its own."""
    method, options = TUNNELS[inside]
    model, counter = make(_net), testing.CompileCounter()
    tunnel = attrfn.noise_tunnel(method, n_samples=5, stdevs=0.3, key=3, chunk_size=2)
    explain = attrfn.compile(tunnel, model, backend=counter, **options)
    for batch in (3, 4):
        x, t = randn(batch, 4, seed=batch), targets(batch)
        assert_close(explain(x, target=t), tunnel(model, x, target=t, **options))
        assert counter.frame_count == 1


def test_the_mean_over_baselines_compiles_once() -> None:
    model, counter = make(_net), testing.CompileCounter()
    method = attrfn.over_baselines(attrfn.deep_lift)
    explain = attrfn.compile(method, model, backend=counter)
    for batch, k in ((3, 2), (2, 5)):
        x, given = randn(batch, 4, seed=batch), {"target": 1, "baselines": randn(k, 4, seed=k)}
        assert_close(explain(x, **given), method(model, x, **given))
        assert counter.frame_count == 1


def test_one_row_shares_the_graph() -> None:
    """torch.compile would make another one for a size of 1."""
    model, counter = make(_net), testing.CompileCounter()
    explain = attrfn.compile(attrfn.feature_ablation, model, backend=counter)
    for batch in (1, 3, 1):
        x = randn(batch, 4, seed=batch)
        assert_close(explain(x, target=1), attrfn.feature_ablation(model, x, target=1))
        assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("method", "f"),
    [
        (attrfn.feature_ablation, lambda x: x.prod(1).sum()),
        (
            functools.partial(attrfn.gradient_shap, n_samples=1, baselines=torch.zeros(1, 3)),
            lambda x: (x**2).sum(),
        ),
    ],
    ids=["number", "sample"],
)
def test_a_model_of_one_row_is_not_given_two(method: Any, f: Any) -> None:
    x = randn(1, 3)
    assert_close(attrfn.compile(method, f, backend="eager")(x), method(f, x))


def test_one_value_for_the_batch() -> None:
    """Copies are evaluated one by one, as in eager mode."""
    f, x = lambda x: x.prod(1).sum(), randn(3, 4)
    explain = attrfn.compile(attrfn.feature_ablation, f, backend="eager")
    assert_close(explain(x), attrfn.feature_ablation(f, x))


def test_fixed_sizes_pad_the_last_chunk() -> None:
    model, counter = make(_net), testing.CompileCounter()
    options = {"n_steps": 7, "chunk_size": 3}
    explain = attrfn.compile(
        attrfn.integrated_gradients, model, backend=counter, dynamic=False, **options
    )
    x = randn(2, 4)
    expected = attrfn.integrated_gradients(model, x, target=1, **options)
    assert_close(explain(x, target=1), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["integrated_gradients", "feature_ablation", "layer_conductance"])
def test_derivatives_pass_through_units(name: str) -> None:
    """By an input that requires a gradient, and by parameters with create_graph."""
    method, layer = getattr(attrfn, name), {"layer": "0"} if "layer" in name else {}
    model = make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    options = {"target": 1, **layer}
    x = randn(2, 4)

    def grads(attribute: Callable[..., Tensor], *more: Tensor, **given: Any) -> tuple[Tensor, ...]:
        z = x.clone().requires_grad_()
        total = attribute(z, **given).square().sum()
        return torch.autograd.grad(total, (z, *more), materialize_grads=True)

    explain = attrfn.compile(method, model, backend="aot_eager", **options)
    plain = functools.partial(method, model, **options)
    for p in model.parameters():
        p.requires_grad_()
    of_parameters = tuple(model.parameters())[:1]
    expected = grads(plain, *of_parameters, create_graph=True)
    assert not explain(x).requires_grad
    assert_close(grads(explain), expected[:1])
    for found, want in zip(
        grads(explain, *of_parameters, create_graph=True), expected, strict=True
    ):
        assert_close(found, want)


def test_transforms_around_compiled_attributions() -> None:
    model, x = make(_net), randn(3, 4)
    explain = attrfn.compile(
        attrfn.integrated_gradients, model, backend="eager", n_steps=2, target=1
    )
    expected = explain(x)
    assert_close(torch.func.vmap(lambda row: explain(row[None])[0])(x), expected)
    total = functools.partial(attrfn.integrated_gradients, model, n_steps=2, target=1)
    want = torch.func.grad(lambda x: total(x).square().sum())(x)
    assert_close(torch.func.grad(lambda x: explain(x).square().sum())(x), want)


def test_threads_share_the_graphs() -> None:
    model, counter = make(_net), testing.CompileCounter()
    explain = attrfn.compile(attrfn.feature_ablation, model, backend=counter)
    explain(randn(2, 4), target=1)
    batches = [randn(3, 4, seed=i) for i in range(4)]
    found = in_threads(lambda x: explain(x, target=1), batches, times=3)
    for a, x in zip(found, batches, strict=True):
        assert_close(a, attrfn.feature_ablation(model, x, target=1))
    # One as a rule, but torch's guards may fail by chance where threads read them at once.
    assert counter.frame_count < 12  # as many as calls


@pytest.mark.parametrize("method", [attrfn.feature_ablation, attrfn.deep_lift])
def test_threads_that_meet_at_the_first_call_share_the_graph(method: Any) -> None:
    """One compiles, and the others wait.

    torch.compile alone makes a graph for each of them, and raises past its limit of 8. Its guards
    may also fail by chance where threads read them at once, so that not all share one graph.
    """
    model, counter = make(_net), testing.CompileCounter()
    explain = attrfn.compile(method, model, backend=counter)
    meeting = threading.Barrier(12)

    def work(i: int) -> Tensor:
        meeting.wait()
        return explain(randn(3, 4, seed=i), target=1)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(work, range(12)))
    for i, a in enumerate(found):
        assert_close(a, method(model, randn(3, 4, seed=i), target=1))
    assert counter.frame_count < 8


@pytest.mark.parametrize("n_steps", [1, 4])
def test_draws_of_the_model_are_those_of_eager_code(n_steps: int) -> None:
    """In training mode it runs as it is, in evaluation mode compiled.

    With one step nothing but the unit shows that it draws. torch.compile cannot trace derivatives
    of dropout where sizes are symbols, so that the graph is that of a fixed size.
    """
    explained = functools.partial(attrfn.integrated_gradients, target=0, n_steps=n_steps)
    model, x = make(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout())), randn(2, 4)
    counter = testing.CompileCounter()
    explain = attrfn.compile(explained, model, backend=counter)
    model.train()
    for _ in range(2):
        torch.manual_seed(5)
        with pytest.warns(UserWarning, match="draws random numbers"):
            found = explain(x)
        torch.manual_seed(5)
        with pytest.warns(UserWarning, match="draws random numbers"):
            assert_close(found, explained(model, x))
    model.eval()
    before = counter.frame_count
    assert_close(explain(x), explained(model, x))
    assert counter.frame_count == before + 1


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
        (5, 8),
    ),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2)),
        (3, 8, 8),
    ),
    "norms": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.GELU(), nn.LayerNorm(6)), (4, 6)),
    "up": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Upsample(scale_factor=2)),
        (3, 4, 4),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["integrated_gradients", "feature_ablation"])
def test_layers_of_real_nets_compile_once(family: str, name: str) -> None:
    build, shape = FAMILIES[family]
    model, counter = make(build).eval(), testing.CompileCounter()
    given: dict[str, Any] = {"target": lambda out: out.flatten(1).square().sum(1)}
    given |= (
        {"n_steps": 3}
        if name == "integrated_gradients"
        else {"feature_mask": torch.arange(shape[-1]) // 2}
    )
    explain = attrfn.compile(getattr(attrfn, name), model, backend=counter, **given)
    for batch in (2, 3):
        x = randn(batch, *shape)
        assert_close(explain(x), getattr(attrfn, name)(model, x, **given))
        assert counter.frame_count == 1


def test_rows_that_depend_on_each_other() -> None:
    f, x = lambda x: torch.tanh(x - x.mean(0)).sum(1), randn(3, 4)
    with pytest.warns(UserWarning, match="rows depend on each other"):
        expected = attrfn.integrated_gradients(f, x, n_steps=4)
    explain = attrfn.compile(attrfn.integrated_gradients, f, backend="eager", n_steps=4)
    with pytest.warns(UserWarning, match="rows depend on each other"):
        assert_close(explain(x), expected)


def test_errors_are_those_of_the_method() -> None:
    model = make(_net)
    explain = attrfn.compile(attrfn.integrated_gradients, model, backend="eager")
    for given in ({"target": 7}, {"target": 0, "n_steps": 0}, {"target": 0, "baselines": "x"}):
        with pytest.raises((TypeError, ValueError)) as expected:
            attrfn.integrated_gradients(model, randn(2, 4), **given)
        with pytest.raises(type(expected.value)) as found:
            explain(randn(2, 4), **given)
        assert str(found.value) == str(expected.value)

    def branches(x: Tensor) -> Tensor:
        return x.sum(1) if x.sum() > 0 else x.prod(1)

    with pytest.raises(attrfn.CompileError, match=r"feature_ablation .*\(test_units.py, line \d+"):
        attrfn.compile(attrfn.feature_ablation, branches, backend="eager")(randn(2, 3))


def test_the_model_stays_as_it_was_and_is_followed() -> None:
    model, x = make(_net), randn(2, 4)
    before = state(model)
    explain = attrfn.compile(attrfn.feature_ablation, model, backend="eager", target=0)
    explain(x)
    assert same_state(model, before)
    model[1] = nn.Tanh()
    assert_close(explain(x), attrfn.feature_ablation(model, x, target=0))


def test_progress_says_how_long_compiling_took(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = make(_net), randn(2, 4)
    for method in (attrfn.gradient, attrfn.integrated_gradients):
        explain = attrfn.compile(method, model, backend="eager", progress=True, target=0)
        explain(x)
        assert f"{method.__name__}: compiled 1 graph in " in capsys.readouterr().err
        explain(x)
        assert "compiled" not in capsys.readouterr().err


@pytest.mark.parametrize("chunks", [8, 9])
def test_many_unrolled_chunks_are_told(chunks: int, recwarn: pytest.WarningsRecorder) -> None:
    """A user's own torch.compile around a method."""
    x = randn(2, 3)

    def f(x: Tensor) -> Tensor:
        return attrfn.integrated_gradients(torch.cos, x[:, 0], n_steps=chunks, chunk_size=1)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    if chunks > 8:
        with pytest.warns(UserWarning, match="unrolls the 9 chunks of integrated_grad"):
            assert_close(compiled(x), f(x))
    else:
        assert_close(compiled(x), f(x))
    assert not recwarn.list


def test_batching_of_every_kind() -> None:
    net = NETS["mlp"]
    model, x = net.build(), net.inputs()
    for batching in ("vmap", "loop"):
        for name in ("integrated_gradients", "feature_ablation", "integrated_hessians"):
            method = getattr(attrfn, name)
            given = {"target": targets(3), "batching": batching, "chunk_size": 2}
            if name != "feature_ablation":
                given["n_steps"] = 3
            explain = attrfn.compile(method, model, backend="eager", **given)
            assert_close(explain(x), method(model, x, **given))
