"""The memory layout of a gradient or a result changes no value, and no view fails for it."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from layout_ops import OPERATIONS, orders, received, stored
from torch import Tensor, nn
from zoo import randn

import attrfn
from attrfn._torch.layouts import linear_of_rows


def differences(f, x: Tensor) -> Tensor:
    """The gradient of a sum of rows by central differences."""
    eps = 1e-6
    steps = eps * torch.eye(x.numel(), dtype=x.dtype).unflatten(1, x.shape)
    with torch.no_grad():
        return torch.stack([(f(x + s) - f(x - s)).sum() / (2 * eps) for s in steps]).view_as(x)


def check(name: str, layouts, dtypes) -> None:
    case = OPERATIONS[name]
    for batch in (1, 2):
        x = randn(batch, *case.row, seed=13)
        out = case.f(x, *case.parameters)
        found = layouts(out.ndim)
        for layout in found:
            expected = differences(lambda z: received(case.f(z, *case.parameters), layout), x)  # noqa: B023
            for dtype in dtypes:
                for trainable in (False, True) if case.parameters else (False,):
                    parameters = [
                        p.to(dtype, copy=True).requires_grad_(trainable) for p in case.parameters
                    ]

                    def model(z: Tensor, p=parameters, layout=layout) -> Tensor:
                        return received(case.f(z, *p), layout)

                    got = attrfn.gradient(model, x.to(dtype))
                    tolerance = 1e-6 if dtype == torch.float64 else 1e-3
                    torch.testing.assert_close(
                        got.double(),
                        expected,
                        rtol=tolerance,
                        atol=tolerance,
                        msg=lambda m: f"{batch}, {layout}, {trainable}: {m}",  # noqa: B023
                    )


def some(n: int) -> list:
    """Contiguous, channels last, one transposed row, reversed; expanded; sliced."""
    last = (0, *range(2, n), 1)
    first = (*range(2, n), 0, 1)
    return [*dict.fromkeys([tuple(range(n)), last, first, tuple(range(n))[::-1]]), *VIEWS]


VIEWS = ["expanded", "sliced"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gradient_is_right_in_any_layout(name):
    check(name, some, [torch.float32])


@pytest.mark.fuzz
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gradient_is_right_in_every_layout(name):
    check(name, lambda n: [*orders(n), *VIEWS], [torch.float32, torch.float64])


class Tokens(nn.Module):
    """A norm of images, then a layer on their pixels as tokens, as LeViT and XCiT have them."""

    def __init__(self, norm: nn.Module, functional: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.out = nn.Linear(3, 2)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        if self.functional:
            y = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)
        else:
            y = n(x)
        return self.out(y.flatten(2).transpose(1, 2).tanh()).mean(1)


def tokens(kind: str) -> Tokens:
    norm = {
        "batch": nn.BatchNorm2d(3),
        "function": nn.BatchNorm2d(3),
        "instance": nn.InstanceNorm2d(3, affine=True),
        "running": nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    }[kind]
    model = Tokens(norm, kind == "function").double().eval()
    with torch.no_grad():
        for i, p in enumerate([*model.parameters(), *model.buffers()]):
            if p.is_floating_point():
                p.copy_(randn(*p.shape, seed=i).abs() + 0.3)
    return model


IMAGES = randn(3, 3, 2, 2)
METHODS = {
    "gradient": attrfn.gradient,
    "create_graph": functools.partial(attrfn.gradient, create_graph=True),
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, n_steps=4),
    "one step at a time": functools.partial(attrfn.integrated_gradients, n_steps=4, chunk_size=1),
    "batched by vmap": functools.partial(attrfn.integrated_gradients, n_steps=4, batching="vmap"),
    "deep_lift": attrfn.deep_lift,
    "lrp": attrfn.lrp,
    "guided_backprop": attrfn.guided_backprop,
    "integrated_hessians": functools.partial(attrfn.integrated_hessians, n_steps=3),
    "layer": functools.partial(attrfn.layer_gradient_x_activation, layer="norm"),
    "conductance": functools.partial(attrfn.layer_conductance, layer="norm", n_steps=3),
    "neuron": lambda m, x, target: attrfn.neuron_gradient(m, x, layer="out", neuron=(1, target)),
}
KINDS = ["batch", "function", "instance", "running"]


@pytest.mark.filterwarnings("ignore:guided_backprop met no ReLU")
@pytest.mark.filterwarnings("ignore:the sum of integrated_hessians")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_the_row_in_a_batch(kind, method):
    if kind == "function" and method in ("layer", "conductance"):
        pytest.skip("the model does not call its norm")
    run, model = METHODS[method], tokens(kind)
    whole = run(model, IMAGES, target=0)
    alone = torch.cat([run(model, IMAGES[i : i + 1], target=0) for i in range(3)])
    torch.testing.assert_close(alone, whole)
    rows = torch.func.vmap(lambda row: run(model, row[None], target=0)[0])(IMAGES)
    torch.testing.assert_close(rows, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_tokens_is_that_of_the_differences(kind):
    model = tokens(kind)
    for batch in (1, 3):
        x = IMAGES[:batch]
        expected = differences(lambda z: model(z)[:, 0], x)
        torch.testing.assert_close(attrfn.gradient(model, x, target=0), expected, rtol=0, atol=1e-8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            scripted = torch.jit.script(model)
        for _ in range(3):  # torch optimises a scripted module in its first runs
            got = attrfn.gradient(scripted, x, target=0)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


@pytest.mark.compiles
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_gradient_of_one_row(kind, backend):
    model = tokens(kind)

    @functools.partial(torch.compile, backend=backend, fullgraph=True)
    def compiled(x: Tensor) -> Tensor:
        return attrfn.gradient(model, x, target=0)

    expected = attrfn.gradient(model, IMAGES, target=0)[:1]
    torch.testing.assert_close(compiled(IMAGES[:1]), expected)


def test_the_graph_of_the_user_keeps_no_hook():
    """A batch norm upstream of a constant of the model belongs to the graph of the user."""
    norm = nn.BatchNorm2d(3).double().eval()
    upstream = norm(IMAGES[:1])
    attrfn.gradient(lambda x: (x * upstream).flatten(1).sum(1), IMAGES[:1])
    arrived = []
    handle = upstream.grad_fn.register_prehook(lambda g: arrived.append(g[0].stride()))
    weights = stored(randn(1, 3, 2, 2), (2, 3, 0, 1))
    (upstream * weights).sum().backward()
    handle.remove()
    assert arrived == [weights.stride()]
    assert all(p.grad is not None for p in norm.parameters())


# --- Results ------------------------------------------------------------------------------------

RESULTS = ["layer_norm", "glu", "attention", "causal attention", "group_norm 2d", "group_norm 3d"]
RESULTS += [f"instance_norm {d}" for d in ("1d", "2d", "3d")]
RESULTS += [f"batch_norm {d}" for d in ("1d", "2d", "3d")]
RESULTS += ["instance_norm of running statistics 2d"]


def steps(y: Tensor) -> list[int]:
    """The strides that have a meaning."""
    return [s for s, n in zip(y.stride(), y.shape, strict=True) if n > 1]


@pytest.mark.parametrize("method", ["create_graph", "deep_lift", "lrp"])
@pytest.mark.parametrize("name", RESULTS)
def test_what_is_written_out_has_the_layout_of_the_operation(name, method):
    """Two rows, because the layout of one is ambiguous."""
    case = OPERATIONS[name]
    x = randn(2, *case.row, seed=14)
    for order in orders(x.ndim):
        if order[0] != 0:
            continue
        seen: list[list[int]] = []

        def model(z: Tensor, order=order, seen=seen) -> Tensor:
            y = case.f(stored(z, order), *case.parameters)
            seen.append(steps(y))
            return y.square().flatten(1).sum(1)

        expected = steps(case.f(stored(x, order), *case.parameters))
        METHODS[method](model, x)
        width = len(expected)
        # DeepLIFT's runs hold the baselines in further rows; the steps within a row are the same.
        assert seen
        assert all(s[-width:][1:] == expected[1:] for s in seen), (order, seen, expected)


class Views(nn.Module):
    """Views of a norm of transposed features, and of attention, as Idefics3 takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2))
        y = y.view(len(x), -1).view(len(x), 6, 2, 2).transpose(1, 2)  # 2 heads
        y = F.scaled_dot_product_attention(y, y, y).transpose(1, 2).view(len(x), 6, 4)
        return self.out(y).mean(1)


@pytest.mark.parametrize(
    "method",
    [
        METHODS["create_graph"],
        attrfn.integrated_hessians,
        attrfn.deep_lift,
        functools.partial(attrfn.layer_conductance, layer="norm"),
    ],
    ids=["create_graph", "integrated_hessians", "deep_lift", "layer_conductance"],
)
def test_views_of_what_is_written_out(method):
    model = Views().double().eval()
    x = randn(2, 4, 6)
    model(x)
    method(model, x, target=0)


@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (3, 5), (3, 1), (2, 3, 5)])
@pytest.mark.parametrize("weight", [(5, 4), (0, 4), (4,)])
@pytest.mark.parametrize("batch", [2, 1, 0])
def test_a_linear_layer_of_rows_is_that_of_torch(batch, weight, bias):
    """Whatever shapes torch takes."""
    x, w = randn(batch, 3, 4), randn(*weight, seed=1)
    b = None if bias is None else randn(*(bias or (1,)), seed=2).reshape(bias)
    try:
        expected = F.linear(x, w, b)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            linear_of_rows(x, w, b)
    else:
        torch.testing.assert_close(linear_of_rows(x, w, b), expected)
