"""Targets: every kind, for outputs of one, two and four dimensions, and every wrong one."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor

import attrfn

B = 4
W = zoo.randn(3, 12, seed=1)
X = zoo.randn(B, 3, seed=2)


def out1(x: Tensor) -> Tensor:
    """(B,)"""
    return torch.tanh(x @ W[:, 0]) + (x**2).sum(1)


def out2(x: Tensor) -> Tensor:
    """(B, 5)"""
    return torch.tanh(x @ W[:, :5]) + x[:, :1] ** 2


def out4(x: Tensor) -> Tensor:
    """(B, 2, 3, 2)"""
    return (torch.tanh(x @ W) + x[:, :1] ** 2).reshape(-1, 2, 3, 2)


def pick_with(outputs: Tensor, index: Tensor) -> Tensor:
    """A callable target with one bound tensor that has a row per example."""
    return outputs.flatten(1).gather(1, index[:, None])[:, 0]


def contrast(outputs: Tensor) -> Tensor:
    return outputs[:, 3] - outputs[:, 1].exp()


def scaled(outputs: Tensor, *, by: Tensor, index: int) -> Tensor:
    return outputs[:, index] * by


def loss(outputs: Tensor) -> Tensor:
    return outputs.log_softmax(1)[:, 0].mean((1, 2))


S = slice
PER_ROW = torch.tensor([3, 0, 4, 1])
BY = zoo.randn(B, seed=3)

# name: (model, target, the scalar of each row written out by hand)
KINDS = {
    "1d_none": (out1, None, lambda o: o),
    "1d_none_column": (lambda x: out1(x)[:, None], None, lambda o: o[:, 0]),
    "1d_none_1x1x1": (lambda x: out1(x)[:, None, None, None], None, lambda o: o[:, 0, 0, 0]),
    "1d_empty_tuple": (out1, (), lambda o: o),
    "1d_list_of_empty": (out1, [()] * B, lambda o: o),
    "1d_callable": (out1, torch.sin, lambda o: o.sin()),
    "1d_partial": (out1, functools.partial(torch.mul, BY), lambda o: o * BY),
    "2d_int": (out2, 2, lambda o: o[:, 2]),
    "2d_int_negative": (out2, -1, lambda o: o[:, 4]),
    "2d_numpy": (out2, np.int64(3), lambda o: o[:, 3]),
    "2d_numpy_uint8": (out2, np.uint8(1), lambda o: o[:, 1]),
    "2d_0d": (out2, torch.tensor(3), lambda o: o[:, 3]),
    "2d_0d_negative": (out2, torch.tensor(-2), lambda o: o[:, 3]),
    "2d_one": (out2, torch.tensor([3]), lambda o: o[:, 3]),
    "2d_tensor": (out2, PER_ROW, lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_tensor_int32": (out2, PER_ROW.int(), lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_tensor_uint8": (out2, PER_ROW.to(torch.uint8), lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_tensor_negative": (out2, PER_ROW - 5, lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_tuple": (out2, (1,), lambda o: o[:, 1]),
    "2d_slice": (out2, slice(1, 3), lambda o: o[:, 1] + o[:, 2]),
    "2d_slice_in_tuple": (out2, (S(None, None, 2),), lambda o: o[:, 0] + o[:, 2] + o[:, 4]),
    "2d_list": (out2, [3, 0, 4, 1], lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_list_negative": (out2, [-2, 0, -1, 1], lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_list_numpy": (out2, list(np.array([3, 0, 4, 1])), lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_list_tuples": (out2, [(3,), (0,), (4,), (1,)], lambda o: o[range(B), [3, 0, 4, 1]]),
    "2d_list_slices": (
        out2,
        [(S(0, 2),), (S(1, 2),), (S(None),), 3],
        lambda o: torch.stack([o[0, :2].sum(), o[1, 1], o[2].sum(), o[3, 3]]),
    ),
    "2d_callable": (out2, contrast, lambda o: o[:, 3] - o[:, 1].exp()),
    "2d_callable_column": (out2, lambda o: o[:, 2:3], lambda o: o[:, 2]),
    "2d_partial": (
        out2,
        functools.partial(pick_with, index=PER_ROW),
        lambda o: o[range(B), [3, 0, 4, 1]],
    ),
    "2d_partial_mixed": (out2, functools.partial(scaled, by=BY, index=2), lambda o: o[:, 2] * BY),
    "2d_partial_nested": (
        out2,
        functools.partial(functools.partial(scaled, by=BY), index=2),
        lambda o: o[:, 2] * BY,
    ),
    "4d_tuple": (out4, (1, 2, 0), lambda o: o[:, 1, 2, 0]),
    "4d_tuple_negative": (out4, (-1, -1, -2), lambda o: o[:, 1, 2, 0]),
    "4d_tuple_numpy": (out4, tuple(np.array([1, 2, 0])), lambda o: o[:, 1, 2, 0]),
    "4d_slices": (out4, (1, S(None), S(0, 1)), lambda o: o[:, 1, :, 0].sum(1)),
    "4d_all_slices": (out4, (S(None), S(1, None), S(None)), lambda o: o[:, :, 1:].sum((1, 2, 3))),
    "4d_list": (
        out4,
        [(0, 0, 0), (1, 2, 1), (-1, 1, 0), (0, -1, -1)],
        lambda o: torch.stack([o[0, 0, 0, 0], o[1, 1, 2, 1], o[2, 1, 1, 0], o[3, 0, 2, 1]]),
    ),
    "4d_list_slices": (
        out4,
        [(0, S(None), 0), (1, 2, 1), (S(None), S(None), S(None)), (0, S(1, 3), 1)],
        lambda o: torch.stack(
            [o[0, 0, :, 0].sum(), o[1, 1, 2, 1], o[2].sum(), o[3, 0, 1:, 1].sum()]
        ),
    ),
    "4d_callable": (out4, loss, loss),
    "4d_partial": (
        out4,
        functools.partial(pick_with, index=PER_ROW + 6),
        lambda o: o.flatten(1)[range(B), [9, 6, 10, 7]],
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def by_hand(model, pick, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(pick(model(x)).sum(), x)[0]


def ig_by_hand(model, pick, x: Tensor) -> Tensor:
    """The midpoint rule of 7 nodes, one step at a time, from zeros."""
    return x * sum(by_hand(model, pick, x * ((k + 0.5) / 7)) for k in range(7)) / 7


@each_kind
def test_gradient(kind):
    model, target, pick = KINDS[kind]
    got = attrfn.gradient(model, X, target=target)
    torch.testing.assert_close(got, by_hand(model, pick, X), rtol=1e-12, atol=1e-12)


@each_kind
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_follows_the_batch_into_its_copies(kind, chunk_size):
    model, target, pick = KINDS[kind]
    got = attrfn.integrated_gradients(
        model, X, target=target, n_steps=7, quadrature="riemann_middle", chunk_size=chunk_size
    )
    torch.testing.assert_close(got, ig_by_hand(model, pick, X), rtol=1e-12, atol=1e-12)


@each_kind
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_other_batchings(kind, batching):
    model, target, pick = KINDS[kind]
    got = attrfn.integrated_gradients(
        model, X, target=target, n_steps=7, quadrature="riemann_middle", batching=batching
    )
    torch.testing.assert_close(got, ig_by_hand(model, pick, X), rtol=1e-12, atol=1e-12)


@each_kind
def test_noise_tunnel_and_delta(kind):
    """The other users of a target: copies inside a wrapped method, and the completeness gap."""
    model, target, pick = KINDS[kind]
    tunnel = attrfn.noise_tunnel(attrfn.gradient, n_samples=3, stdevs=0.0)
    expected = by_hand(model, pick, X)
    torch.testing.assert_close(tunnel(model, X, target=target), expected, rtol=1e-12, atol=1e-12)
    gap = attrfn.completeness_delta(model, X, torch.zeros_like(X), target=target)
    expected = pick(model(0 * X)) - pick(model(X))
    torch.testing.assert_close(gap, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "kind",
    [k for k, (_, t, _) in KINDS.items() if not isinstance(t, (list, functools.partial))],
)
def test_under_vmap(kind):
    """A row at a time; a (B,) tensor is mapped over, any other target is the same for all rows."""
    model, target, pick = KINDS[kind]
    mapped = isinstance(target, Tensor) and target.shape == (B,)

    def row(x: Tensor, t) -> Tensor:
        return attrfn.gradient(model, x[None], target=t)[0]

    if mapped:
        got = torch.func.vmap(row)(X, target)
    else:
        got = torch.func.vmap(lambda x: row(x, target))(X)
    torch.testing.assert_close(got, by_hand(model, pick, X), rtol=1e-12, atol=1e-12)


def test_batch_under_vmap():
    """Whole batches are mapped over, with a target per example of each."""
    xs = zoo.randn(3, B, 3, seed=5)
    targets = torch.tensor([[0, 1, 2, 3], [4, 3, -1, 0], [1, 1, 1, 1]])
    got = torch.func.vmap(lambda x, t: attrfn.integrated_gradients(out2, x, target=t, n_steps=3))(
        xs, targets
    )
    for i in range(3):
        alone = attrfn.integrated_gradients(out2, xs[i], target=targets[i], n_steps=3)
        torch.testing.assert_close(got[i], alone, rtol=1e-12, atol=1e-12)


def test_lists_under_vmap():
    """A list is no tensor, so every batch that is mapped over has the same one."""
    xs = zoo.randn(3, B, 3, seed=6)
    for target in ([3, 0, -1, 1], [(slice(0, 2),), 0, (-1,), slice(None)]):
        got = torch.func.vmap(lambda x, t=target: attrfn.gradient(out2, x, target=t))(xs)
        alone = [attrfn.gradient(out2, x, target=target) for x in xs]
        torch.testing.assert_close(got, torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_partial_under_vmap():
    """A callable that binds a mapped row."""

    def row(x: Tensor, by: Tensor) -> Tensor:
        return attrfn.gradient(
            out2, x[None], target=functools.partial(scaled, by=by[None], index=2)
        )

    expected = by_hand(out2, lambda o: o[:, 2] * BY, X)
    torch.testing.assert_close(torch.func.vmap(row)(X, BY)[:, 0], expected, rtol=1e-12, atol=1e-12)


def test_all_the_copies_of_a_callable_are_rows_of_their_own():
    """The callable sees copies * B rows and the bound tensor as many."""
    seen = []

    def target(outputs: Tensor, by: Tensor) -> Tensor:
        seen.append((tuple(outputs.shape), tuple(by.shape)))
        return outputs[:, 0] * by

    bound = functools.partial(target, by=BY)
    options = {"n_steps": 5, "chunk_size": 2, "check_completeness": False}
    attrfn.integrated_gradients(out2, X, target=bound, **options)
    assert seen == [((8, 5), (8,)), ((8, 5), (8,)), ((4, 5), (4,))]


def test_structured_outputs_need_a_callable():
    def model(x: Tensor) -> dict[str, Tensor]:
        return {"logits": out2(x), "other": x}

    got = attrfn.gradient(model, X, target=lambda o: o["logits"][:, 1])
    torch.testing.assert_close(got, by_hand(out2, lambda o: o[:, 1], X))
    with pytest.raises(
        TypeError, match=r"returned a dict, expected a tensor: give target as a cal"
    ):
        attrfn.gradient(model, X, target=1)
    with pytest.raises(
        TypeError, match=r"model_fn returned .*tuple.*, expected a tensor: give targ"
    ):
        attrfn.gradient(lambda x: (out2(x), x), X)


def test_scalar_output_of_a_batch_of_one():
    got = attrfn.gradient(lambda x: out1(x)[0], X[:1])
    torch.testing.assert_close(got, by_hand(out1, lambda o: o, X[:1]))


def test_a_float_of_the_loss_serves_as_target():
    """Targets under grad: the attribution of a callable that itself needs derivatives."""
    got = torch.func.grad(lambda w: attrfn.gradient(lambda x: x @ w, X, target=1).sum())(W)
    # d/dw sum_b sum_i w[i, 1] = B in column 1: derived by hand
    expected = torch.zeros_like(W)
    expected[:, 1] = B
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("target", [2, (2,), PER_ROW, [3, 0, 4, 1], contrast])
def test_empty_batch(target):
    if isinstance(target, (Tensor, list)):
        target = target[:0]
    assert attrfn.gradient(out2, X[:0], target=target).shape == (0, 3)
    assert attrfn.integrated_gradients(out2, X[:0], target=target).shape == (0, 3)


def test_neurons_are_targets():
    """The same kinds name a neuron; messages speak of the neuron then."""
    model = zoo.mlp()
    x = zoo.randn(3, 4)
    for neuron, pick in [
        (2, lambda a: a[:, 2]),
        (-1, lambda a: a[:, -1]),
        ((slice(0, 2),), lambda a: a[:, :2].sum(1)),
        (torch.tensor([0, 5, 1]), lambda a: a[range(3), [0, 5, 1]]),
        ([0, 5, 1], lambda a: a[range(3), [0, 5, 1]]),
        ([slice(0, 2), 5, (1,)], lambda a: torch.stack([a[0, :2].sum(), a[1, 5], a[2, 1]])),
        (lambda a: a.logsumexp(1), lambda a: a.logsumexp(1)),
    ]:
        expected = by_hand(model[:2], pick, x)
        got = attrfn.neuron_gradient(model, x, layer="1", neuron=neuron)
        torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match=r"neuron 6 is out of range .*sizes \(6,\).*-6 to 5"):
        attrfn.neuron_gradient(model, x, layer="1", neuron=6)
    with pytest.raises(
        ValueError, match=r"neuron is None, but .*shape \(3, 6\).*choose one with neu"
    ):
        attrfn.neuron_gradient(model, x, layer="1", neuron=None)
    with pytest.raises(ValueError, match=r"neuron 6 is out of range .*sizes \(6,\).*-6 to 5"):
        attrfn.neuron_conductance(model, x, layer="1", neuron=6, target=0)
    with pytest.raises(TypeError, match=r"neuron is 'a' \(str\), expected None, an int"):
        attrfn.neuron_integrated_gradients(model, x, layer="1", neuron="a")


# --- what is refused -----------------------------------------------------------------------------

WRONG_KIND = {
    "str": (
        "cat",
        r"^target is 'cat' \(str\), expected None, an int, .* or a callable of the outp",
    ),
    "float": (1.0, r"^target is 1\.0 \(float\), expected None, an int"),
    "bool": (True, r"^target is True \(bool\), expected None, an int"),
    "numpy_bool": (np.bool_(True), r"^target is .*True.* \(bool\w*\), expected None, an int"),
    "dict": ({"a": 1}, r"^target is .*\(dict\), expected None, an int"),
    "ellipsis": ((..., 1), r"^target is .*\(tuple\), expected None, an int"),
    "tuple_float": ((1.0,), r"^target is \(1\.0,\) \(tuple\), expected None, an int"),
    "tuple_none": ((None, 1), r"^target is \(None, 1\) \(tuple\), expected None, an int"),
    "tuple_bool": ((True,), r"^target is \(True,\) \(tuple\), expected None, an int"),
    "numpy_array": (np.array([3, 0, 4, 1]), r"^target is .*ndarray.*, expected None, an int"),
    "float_tensor": (PER_ROW.double(), r"^target is a tensor of torch\.float64, expected integers"),
    "bool_tensor": (PER_ROW > 1, r"^target is a tensor of torch\.bool, expected integers"),
    "complex_tensor": (PER_ROW.cfloat(), r"^target is a tensor of torch\.complex64, expected int"),
    "list_float": ([1, 2, 3.0, 0], r"^target is a list with .*3\.0.*, expected an int or a tuple"),
    "list_bool": ([1, True, 3, 0], r"^target is a list with .*True.*, expected an int or a tuple"),
    "list_str": ([1, "a", 3, 0], r"^target is a list with .*'a'.*, expected an int or a tuple"),
    "list_list": ([[1], [2], [3], [0]], r"^target is a list with .*\[1\].*, expected an int or"),
    "list_none": ([1, None, 3, 0], r"^target is a list with .*None.*, expected an int or a tuple"),
}
WRONG_VALUE = {
    "long_list": (out2, [0] * 5, r"^target is a list of 5, expected one entry for each of the 4 "),
    "short_list": (out2, [0], r"^target is a list of 1, expected one entry for each of the 4 exam"),
    "long_tensor": (out2, PER_ROW.repeat(2), r"^target .*shape \(8,\), expected \(\) or \(4,\)"),
    "tensor_2d": (
        out2,
        PER_ROW[:, None],
        r"^target .*shape \(4, 1\), expected \(\) or \(4,\).*tupl",
    ),
    "int": (out2, 5, r"^target 5 is out of range for outputs of sizes \(5,\).*-5 to 4 .*says 5"),
    "int_negative": (out2, -6, r"^target -6 is out of range for outputs of sizes \(5,\).*-5 to 4"),
    "tuple": (
        out4,
        (1, 3, 0),
        r"^target \(1, 3, 0\) is out of range .*\(2, 3, 2\).*-3 to 2 .*says 3",
    ),
    "slices": (
        out4,
        (1, S(None), 2),
        r"^target .* is out of range .*\(2, 3, 2\).*-2 to 1 .*says 2",
    ),
    "tensor": (out2, PER_ROW + 1, r"^target has values from 1 to 5, out of range .*sizes \(5,\)"),
    "tensor_low": (out2, PER_ROW - 6, r"^target has values from -6 to -2, out of range .*\(5,\)"),
    "list": (out2, [0, 1, 9, 2], r"^target has values from 0 to 9, out of range .*sizes \(5,\)"),
    "list_slices": (out2, [0, S(1), 9, 2], r"^target 9 is out of range .*sizes \(5,\).*-5 to 4"),
    "list_tuples": (
        out4,
        [(0, 0, 0), (1, 2, 2), (0, 0, 0), (0, 0, 0)],
        r"^target .* out of range for outputs of sizes \(2, 3, 2\)",
    ),
    "none_2d": (
        out2,
        None,
        r"^target is None, but .*shape \(4, 5\), that is 5 values.*with target",
    ),
    "none_4d": (out4, None, r"^target is None, but .*shape \(4, 2, 3, 2\), that is 12 values"),
    "int_1d": (out1, 0, r"^target 0 has 1 entry, but .*has 0 dimension.*use None"),
    "tensor_1d": (out1, PER_ROW, r"^target picks 1 index.* 0 dimension.*sizes \(\): use None"),
    "int_4d": (
        out4,
        1,
        r"^target 1 has 1 entry, but .*has 3 dimension.*sizes \(2, 3, 2\).*give ",
    ),
    "tensor_4d": (out4, PER_ROW, r"^target picks 1 index.* 3 dimension.*sizes \(2, 3, 2\).*tuples"),
    "short_tuple": (
        out4,
        (1, 2),
        r"^target \(1, 2\) has 2 entries, but .*3 dimension.*\(2, 3, 2\)",
    ),
    "long_tuple": (out2, (1, 2), r"^target \(1, 2\) has 2 entries, but .*1 dimension.*\(5,\)"),
    "ragged_list": (out4, [(0, 1), (0, 0, 0), 1, 2], r"^target \(0, 1\) has 2 entries, .*3 dimens"),
    "callable_2d": (out2, lambda o: o, r"^the callable target returned shape \(4, 5\) for 4 row"),
    "callable_0d": (out2, lambda o: o.sum(), r"^the callable target returned shape \(\) for 4 row"),
    "callable_short": (
        out2,
        lambda o: o[:2, 0],
        r"^the callable target returned shape \(2,\) for 4",
    ),
}


@pytest.mark.parametrize("case", WRONG_KIND)
@pytest.mark.parametrize("method", [attrfn.gradient, attrfn.integrated_gradients])
def test_wrong_kinds(case, method):
    target, message = WRONG_KIND[case]
    with pytest.raises(TypeError, match=message) as error:
        method(out2, X, target=target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", WRONG_VALUE)
def test_wrong_values(case):
    model, target, message = WRONG_VALUE[case]
    with pytest.raises(ValueError, match=message) as error:
        attrfn.gradient(model, X, target=target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", WRONG_VALUE)
def test_wrong_values_at_a_layer(case):
    """The same sentences come from a layer method and from the gap."""
    model, target, message = WRONG_VALUE[case]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return model(self.first(x))

    with pytest.raises(ValueError, match=message):
        attrfn.layer_gradient_x_activation(Net(), X, layer="first", target=target)
    with pytest.raises(ValueError, match=message):
        attrfn.completeness_delta(Net(), X, X, target=target)


def test_a_callable_that_returns_no_tensor():
    with pytest.raises(TypeError, match=r"callable target returned .*float.*, expected a tensor"):
        attrfn.gradient(out2, X, target=lambda o: 1.0)
    with pytest.raises(TypeError, match=r"callable target returned .*tuple.*, expected a tensor"):
        attrfn.gradient(out2, X, target=lambda o: (o[:, 0],))


def test_a_callable_that_closes_over_the_batch():
    """A closure does not follow the copies: the message says how to bind the tensor."""
    with pytest.raises(RuntimeError, match="size of tensor"):
        attrfn.integrated_gradients(out2, X, target=lambda o: o[:, 0] * BY)
    with pytest.raises(ValueError, match=r"returned shape \(4,\) for 200 row.*functools\.partial"):
        attrfn.integrated_gradients(out2, X, target=lambda o: o[:B, 0] * BY)
    got = attrfn.integrated_gradients(out2, X, target=lambda o: o[:, 0] * BY, chunk_size=1)
    bound = functools.partial(scaled, by=BY, index=0)
    expected = attrfn.integrated_gradients(out2, X, target=bound)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_a_model_without_a_batch_axis_in_front():
    with pytest.raises(ValueError, match=r"returned shape \(5, 4\) for 4 row.*rows in dimension 0"):
        attrfn.gradient(lambda x: out2(x).mT, X, target=0)
    with pytest.raises(ValueError, match=r"returned shape \(\) for 4 row.*rows in dimension 0"):
        attrfn.gradient(lambda x: out2(x).sum(), X)
    got = attrfn.gradient(lambda x: out2(x).mT, X, target=lambda o: o[1])
    torch.testing.assert_close(got, by_hand(out2, lambda o: o[:, 1], X))
