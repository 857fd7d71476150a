"""``attrfn.layouts``, the option ``rows``, and methods of methods at layers of another layout."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layout_nets import FRAMES, LAID, NODES, Graph, Packed, Video
from test_rows_of_layers import ROUTES, Experts, routed
from torch import Tensor, nn
from torch.nn.utils import rnn
from zoo import make, randn

import attrfn
from attrfn import layouts

CLOSE: Any = {"rtol": 1e-9, "atol": 1e-12}
close = functools.partial(torch.testing.assert_close, **CLOSE)


# --- attrfn.layouts -------------------------------------------------------------------------------


def test_frames() -> None:
    a = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(layouts.frames(3)(a)[1, :, 2], a[5])


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_tokens(skip: int) -> None:
    a = randn(2, skip + 6, 5)
    for sizes in ((2, 3), (2, None), (None, 3)):
        images = layouts.tokens(*sizes, skip=skip)(a)
        assert images.shape == (2, 5, 2, 3)
        assert torch.equal(images[1, :, 1, 2], a[1, skip + 5])
    assert layouts.tokens(skip=skip)(randn(2, skip + 9, 5)).shape == (2, 5, 3, 3)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("sizes", [(4, 6), (3, 5)])
def test_windows_are_cut_and_put_together(sizes: tuple[int, int], shift: int) -> None:
    """Cut as Swin does: padded below and on the right, rolled up and left, then cut."""
    image = randn(2, 3, *sizes)
    padded = nn.functional.pad(image, (0, sizes[1] % 2, 0, sizes[0] % 2)).roll(
        (-shift, -shift), (2, 3)
    )
    parts = padded.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1)
    for cut in (parts.reshape(-1, 2, 2, 3), parts.reshape(-1, 4, 3)):
        assert torch.equal(layouts.windows(*sizes, 2, shift=shift)(cut), image)


def test_padded_and_channels_last() -> None:
    rows = [randn(3, 2), randn(1, 2, seed=1)]
    packed = rnn.pack_sequence(rows)
    for value in (packed, (packed, randn(1, 2, 2))):
        found = layouts.padded(value)
        assert torch.equal(found[0], rows[0])
        assert torch.equal(found[1], nn.functional.pad(rows[1], (0, 0, 0, 2)))
    assert layouts.channels_last(randn(2, 3, 4, 5)).shape == (2, 5, 3, 4)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"^n is 0, expected an int of at least 1", lambda: layouts.frames(0)),
        (ValueError, r"^height is 'a', expected", lambda: layouts.tokens("a")),  # type: ignore[arg-type]
        (ValueError, r"^skip is -1, expected", lambda: layouts.tokens(skip=-1)),
        (
            ValueError,
            r"^shift is 2, expected an int from 0 to 1",
            lambda: layouts.windows(4, 4, 2, shift=2),
        ),
        (
            ValueError,
            r"shape \(5, 2\), expected \(B \* 3, C, ...\)",
            lambda: layouts.frames(3)(randn(5, 2)),
        ),
        (
            ValueError,
            r"shape \(2, 8, 2\), expected \(B, 0 \+",
            lambda: layouts.tokens()(randn(2, 8, 2)),
        ),
        (
            ValueError,
            r"shape \(2, 6, 2\), expected \(B, 1 \+ 2 \* 3, C\)",
            lambda: layouts.tokens(2, 3, skip=1)(randn(2, 6, 2)),
        ),
        (
            ValueError,
            r"shape \(5, 4, 2\), expected \(B \* 4, 2 \* 2",
            lambda: layouts.windows(4, 4, 2)(randn(5, 4, 2)),
        ),
        (
            ValueError,
            r"shape \(5, 4\), expected \(B, ..., C\)",
            lambda: layouts.channels_last(randn(5, 4)),
        ),
        (
            TypeError,
            r"expected a PackedSequence or a tuple with one$",
            lambda: layouts.padded(randn(5, 4)),
        ),
    ],
)
def test_what_does_not_fit(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda a: a[:, :1].unflatten(0, (-1, FRAMES)), "^rows drops, repeats or changes elements"),
        (lambda a: 2 * a.unflatten(0, (-1, FRAMES)), "^rows drops, repeats or changes elements"),
        (lambda a: a.repeat(1, 2, 1, 1).unflatten(0, (-1, FRAMES)), "^rows drops, repeats or cha"),
        (lambda a: a, r"^rows returned a tensor of shape .* for 2 example"),
        (lambda a: None, r"^rows returned None for 2 example"),
        (lambda a: a.sum(), r"^rows returns no tensor of the layer's value"),
        ("time_first", r"^layer 'mid' gives no floating tensor with 2 example\(s\) in dimension 1"),
        ("examples", r"^layer 'mid' gives no floating tensor with 2 example\(s\) in dimension 0"),
    ],
)
def test_rows_that_are_none(rows: Any, message: str) -> None:
    model, x = make(Video), LAID["frames"].inputs(2)
    with pytest.raises(ValueError, match=message):
        attrfn.layer_integrated_gradients(model, x, layer="mid", target=1, rows=rows)


def test_copies_of_a_value_whose_number_of_examples_is_written_out() -> None:
    """Such a function serves one copy at a time."""
    model, x = make(Video), LAID["frames"].inputs()
    options: Any = {"layer": "mid", "target": 1, "n_steps": 3}
    found = [
        attrfn.layer_integrated_gradients(model, x, **options, rows=rows, check_completeness=False)
        for rows in (lambda a: a.unflatten(0, (3, FRAMES)), lambda a: a.unflatten(0, (-1, FRAMES)))
    ]
    close(*found)


RUNS: list[int] = []


class Counting(nn.Module):
    """A model that counts its runs from a layer on, and the examples in each."""

    def __init__(self) -> None:
        super().__init__()
        self.mid, self.out = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.mid(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        RUNS.append(len(x))
        return self.out(h).sum(1)


def test_what_it_costs_not_to_name_the_layout() -> None:
    """Copies one by one in place of together, and for ablation B times as many of them."""
    model, x = make(Counting), randn(3, 4, 2)
    rows = lambda a: a.unflatten(0, (-1, 4))  # noqa: E731

    def runs(method: Callable[..., Any], **options: Any) -> list[int]:
        method(model, x, layer="mid", target=1, **options)  # which tells of the layer
        RUNS.clear()
        method(model, x, layer="mid", target=1, **options)
        return [n // 3 for n in RUNS]

    steps = functools.partial(
        attrfn.layer_integrated_gradients, n_steps=5, check_completeness=False, chunk_size=None
    )
    assert runs(steps, rows=rows) == [5]
    assert runs(steps) == [1] * 5
    ablation = functools.partial(attrfn.layer_feature_ablation, chunk_size=None)
    assert runs(ablation, rows=rows) == [1, 12]
    assert runs(ablation) == [1] * (1 + 3 * 12)
    assert runs(attrfn.layer_gradient_x_activation) == [1]


# --- what is told of a layer ----------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [1, 2, 3])
def test_edges_of_a_whole_batch(graphs: int) -> None:
    """Edges (2, E) that are bound for all nodes, with two graphs as many as there are rows."""

    class Whole(Graph):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:  # type: ignore[override]
            h = torch.tanh(self._at(self.mid(x.flatten(0, 1)), edges))
            return self.out(self._at(self.last(h), edges).unflatten(0, (-1, NODES)).sum(1))

        def _at(self, h: Tensor, edges: Tensor) -> Tensor:
            return h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])

    within = torch.tensor([[0, 1, 2, 0], [1, 0, 0, 2]])
    edges = torch.cat([within + NODES * i for i in range(graphs)], 1)
    model, x = make(Whole), randn(graphs, NODES, 4)
    bound = functools.partial(model, edges=edges)
    for method in (
        attrfn.layer_gradient_x_activation,
        functools.partial(attrfn.layer_integrated_gradients, n_steps=3, check_completeness=False),
        functools.partial(attrfn.layer_conductance, n_steps=3),
        attrfn.layer_feature_ablation,
        attrfn.layer_lrp,
        attrfn.layer_deep_lift,
    ):
        found = method(bound, x, layer="mid", target=1)
        alone = [
            method(functools.partial(model, edges=within), x[i : i + 1], layer="mid", target=1)
            for i in range(graphs)
        ]
        close(found, torch.cat(alone))


def test_a_list_of_layers_of_several_layouts() -> None:
    """Each in its own shape, together or behind each other."""
    model, x = make(Video), LAID["frames"].inputs()
    layers = ["mid", "there", "out"]
    for method in (attrfn.layer_gradient_x_activation, attrfn.layer_lrp):
        found = method(model, x, layer=layers, target=1)
        for name, a in zip(layers, found, strict=True):
            close(a, method(model, x, layer=name, target=1))
    for method in (attrfn.layer_conductance, attrfn.internal_influence):
        found = method(model, x, layer=layers, target=1, n_steps=3)
        for name, a in zip(layers, found, strict=True):
            close(a, method(model, x, layer=name, target=1, n_steps=3))
    maps = attrfn.grad_cam(model, x, layer=["mid"], target=1, reshape=layouts.frames(FRAMES))
    assert [m.shape for m in maps] == [(3, 1, FRAMES, 2, 2)]


def test_layers_of_two_layouts_together() -> None:
    """A path through both at once: the attributions sum to the change of the output."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(1)
            return self.out(torch.tanh(first) * torch.tanh(self.b(x.sum(1))))

    model, x = make(Two), randn(3, 4, 2)
    found = attrfn.layer_integrated_gradients(model, x, layer=["a", "b"], target=1, n_steps=40)
    assert [a.shape for a in found] == [(12, 3), (3, 3)]
    total = found[0].unflatten(0, (3, 4)).sum((1, 2)) + found[1].sum(1)
    torch.testing.assert_close(total, (model(x) - model(0 * x))[:, 1])


@pytest.mark.parametrize("at", ["input", "output"])
def test_all_calls_and_inputs(at: Any) -> None:
    """A layer on frames that runs twice; each call against autograd with a hook."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mid, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.mid(torch.tanh(self.mid(x.flatten(0, 1)))))
            return self.out(h.unflatten(0, x.shape[:2])).sum(1)

    model, x = make(Twice), randn(2, 4, 3)
    values: list[Tensor] = []
    z = x.clone().requires_grad_()
    hook = model.mid.register_forward_hook(
        lambda m, i, out: values.append(i[0] if at == "input" else out)
    )
    outputs = model(z)
    hook.remove()
    grads = torch.autograd.grad(outputs[:, 1].sum(), values)
    options: Any = {"layer": "mid", "target": 1, "at": at, "call": None}
    found = attrfn.layer_gradient_x_activation(model, x, **options)
    for a, v, g in zip(found, values, grads, strict=True):
        close(a, (v * g).detach())


# --- neurons that are one number for the batch ----------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        (attrfn.neuron_gradient, {}),
        (attrfn.neuron_integrated_gradients, {"n_steps": 4, "baselines": 0.1}),
        (attrfn.neuron_deep_lift, {}),
        (attrfn.neuron_deep_lift_shap, {"baselines": 0.3 * randn(2, NODES, 4, seed=3)}),
        (
            attrfn.neuron_gradient_shap,
            {"baselines": 0.3 * randn(2, NODES, 4, seed=3), "n_samples": 3},
        ),
        (attrfn.neuron_conductance, {"n_steps": 4, "target": 1}),
    ],
)
@pytest.mark.filterwarnings("ignore:neuron_integrated_gradients")
def test_a_neuron_of_all_rows(method: Any, options: dict[str, Any], batch: int) -> None:
    """The sum over the rows; each example has its part, as by one number for each."""
    laid = LAID["nodes"]
    x, model = laid.inputs(batch), laid.build()
    each = method(model, x, layer="mid", neuron=lambda a: laid.move(a)[..., 2].sum(1), **options)
    total = method(model, x, layer="mid", neuron=lambda a: a[:, 2].sum(), **options)
    close(total, each)


def test_a_neuron_of_an_expert() -> None:
    """Unit 2 at the tokens that go there, against autograd."""
    model = make(lambda: Experts(ROUTES["nonzero"]))
    x = routed((1, 1), (0, 0), (1, 0))
    z = x.clone().requires_grad_()
    rows = ROUTES["nonzero"](z.flatten(0, 1), 1)
    (expected,) = torch.autograd.grad(model.experts[1](z.flatten(0, 1)[rows])[:, 2].sum(), z)
    found = attrfn.neuron_gradient(model, x, layer="experts.1", neuron=lambda a: a[:, 2].sum())
    close(found, expected)
    with pytest.raises(ValueError, match=r"^layer 'experts\.1' does not have the examples in dim"):
        attrfn.neuron_gradient(model, x, layer="experts.1", neuron=2)


# --- methods of methods ---------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["frames", "time first", "packed", "nodes"])
def test_noise_and_averages_at_a_layer(net: str) -> None:
    """Each copy of the inputs alone, because copies are not rows of the result."""
    laid, x = LAID[net], LAID[net].inputs()
    model = laid.build()
    at = {layer: attrfn.at_layer(attrfn.input_x_gradient, layer) for layer in ("mid", "there")}
    makers: dict[str, Callable[[Any], Any]] = {
        "noise": lambda m: attrfn.noise_tunnel(m, n_samples=4, stdevs=0.1),
        "variance": lambda m: attrfn.noise_tunnel(m, kind="vargrad", n_samples=4, stdevs=0.1),
        "each": lambda m: attrfn.each_output(m, chunk_size=1),
        "baselines": attrfn.over_baselines,
        "average": lambda m: attrfn.average(m, attrfn.absolute(m)),
        "relative": lambda m: attrfn.relative_to(m, attrfn.absolute(m)),
    }
    for name, maker in makers.items():
        options: Any = {} if name == "each" else {"target": 1}
        options |= {"baselines": 0.3 * x[:2].flip(-1)} if name == "baselines" else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*standard errors")
            found = laid.tensor(maker(at["mid"])(model, x, **options))
            expected = maker(at["there"])(model, x, **options)
        if name == "each":  # outputs stand behind the first dimension
            parts = [laid.back(expected[:, k]) for k in range(3)]
            close(found, torch.stack(parts, 1))
        else:
            close(found, laid.back(expected))


@pytest.mark.parametrize("net", ["frames", "time first", "packed"])
def test_what_asks_for_examples_in_dimension_0(net: str) -> None:
    laid, x = LAID[net], LAID[net].inputs()
    model = laid.build()
    method = attrfn.at_layer(attrfn.input_x_gradient, "mid")
    found = laid.tensor(method(model, x, target=1))
    for call in (
        lambda: attrfn.normalized(method)(model, x, target=1),
        lambda: attrfn.completeness_delta(model, x, found, target=1),
        lambda: attrfn.feature_scores(found, None),
    ):
        with pytest.raises(ValueError, match=r"^attributions has the layout of a layer"):
            call()


def test_noise_at_an_expert_is_refused() -> None:
    """Its tokens are others in other copies, even where they are as many."""
    model = make(lambda: Experts(ROUTES["nonzero"]))
    x = 0.1 * routed((1, 1), (0, 0), (1, 0))
    noisy = attrfn.noise_tunnel(attrfn.at_layer(attrfn.gradient, "experts.1"), n_samples=8)
    with pytest.raises(ValueError, match=r"^the model chooses the rows of layer by values"):
        noisy(model, x, target=1)


def test_derivatives_of_attributions_at_frames() -> None:
    """With create_graph they lead to the inputs and parameters, as at the identity behind."""
    laid, x = LAID["frames"], LAID["frames"].inputs()
    grads = []
    for layer in ("mid", "there"):
        model, z = laid.build(), x.clone().requires_grad_()
        found = attrfn.layer_gradient_x_activation(
            model, z, layer=layer, target=1, create_graph=True
        )
        grads.append(torch.autograd.grad((found**2).sum(), [z, model.gru.weight_ih_l0]))
    for a, b in zip(*grads, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "deep_lift", "lrp"])
@pytest.mark.parametrize("net", ["frames", "time first", "nodes", "windows"])
def test_vmap(net: str, name: str) -> None:
    laid, x = LAID[net], LAID[net].inputs()
    model, options = laid.build(), {"n_steps": 2} if name == "integrated_gradients" else {}
    method = attrfn.at_layer(getattr(attrfn, name), "mid")

    def one(x: Tensor) -> Tensor:
        return laid.move(method(model, x[None], target=1, **options))[0]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*misses the change of the output")
        whole = laid.move(method(model, x, target=1, **options))
    close(torch.func.vmap(one)(x), whole)


@pytest.mark.parametrize(("net", "named"), [("nodes", False), ("windows", True)])
def test_compiled(net: str, named: bool) -> None:
    laid, x = LAID[net], LAID[net].inputs()
    model = laid.build()
    rows = {"rows": laid.rows} if named else {}

    def run(x: Tensor) -> Tensor:
        return attrfn.layer_integrated_gradients(
            model, x, layer="mid", target=1, n_steps=1, check_completeness=False, **rows
        )

    close(torch.compile(run, fullgraph=True, backend="aot_eager")(x), run(x))


@pytest.mark.parametrize("named", [False, True])
def test_compiled_by_attrfn(named: bool) -> None:
    """The passes of such a layer run, and are not compiled one by one."""
    laid, x = LAID["nodes"], LAID["nodes"].inputs()
    rows = {"rows": laid.rows} if named else {}
    options: Any = {"layer": "mid", "target": 1, "n_steps": 2, "check_completeness": False}
    compiled = attrfn.compile(
        attrfn.layer_integrated_gradients,
        laid.build(),
        backend="aot_eager",
        **{k: v for k, v in (options | rows).items() if k != "target"},
    )
    expected = attrfn.layer_integrated_gradients(laid.build(), x, **options, **rows)
    close(compiled(x, target=1), expected)


def test_packed_layer_of_one_sequence() -> None:
    """All lengths equal, and one example."""
    model = functools.partial(make(Packed), lengths=torch.tensor([3]))
    x = randn(1, 3, 4)
    found = attrfn.layer_integrated_gradients(
        model, x, layer="mid", target=1, n_steps=30, check_completeness=False
    )
    change = (model(x) - model(0 * x))[:, 1].sum().detach()
    # The last GRU and the sum read the sequence alone, so that the layer cuts the network.
    torch.testing.assert_close(found[0].data.sum(), change, rtol=1e-2, atol=0)
