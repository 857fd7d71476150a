"""Nothing of the user's changes: model, inputs, options, random numbers; also after an error."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optree
import pytest
import torch
from helpers import assert_close, assert_informative
from models import NETS, Blown, Fuse, Net, TrainedBatchNorm, targets
from registry import Row, explain, needs, rows, rows_and_nets
from torch import Tensor, nn
from zoo import make, randn, same_state, state

import attrfn


@contextmanager
def untouched(model: nn.Module, *trees: Any) -> Iterator[None]:
    """The model, tensors in the trees, the global random numbers and modes are as before."""
    before = state(model)
    hooks = _hooks(model)
    tensors = [t for t in optree.tree_leaves(trees) if isinstance(t, Tensor)]
    copies = [(t.detach().clone(), t.requires_grad, t.grad) for t in tensors]
    versions = [None if t.is_inference() else t._version for t in tensors]
    random = torch.get_rng_state()
    modes = _modes()
    yield
    assert same_state(model, before)
    assert _hooks(model) == hooks
    for t, (value, requires_grad, gradient), version in zip(tensors, copies, versions, strict=True):
        assert torch.equal(t, value)
        assert t.requires_grad == requires_grad
        assert t.grad is gradient
        assert t.is_inference() or t._version == version
    assert torch.equal(torch.get_rng_state(), random)
    assert _modes() == modes


def _hooks(model: nn.Module) -> dict[str, Any]:
    return {
        f"{name}.{key}": list(value.items())
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hooks" in key
    }


def _modes() -> tuple[Any, ...]:
    stack = torch.overrides._get_current_function_mode_stack()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), list(stack)


def options(r: Row, net: Net) -> dict[str, Any]:
    """All that the row needs, with tensors wherever an option can be one."""
    given = needs(r, net)
    if r.baselines == "point":
        given["baselines"] = 0.3 * net.inputs(3, seed=5)
    if r.target:
        given["target"] = targets(3)
    if r.keyed:
        given["key"] = attrfn.random.key(4)
    if r.noisy:
        given["stdevs"] = torch.tensor(0.2, dtype=torch.float64)
    return given


@rows_and_nets()
def test_model_inputs_and_options_stay(r: Row, net: Net) -> None:
    model, x, given = net.build(), net.inputs(), options(r, net)
    with untouched(model, x, given):
        r.method(model, x, **given)


@rows()
def test_mixed_requires_grad_flags_and_gradients_stay(r: Row) -> None:
    """Half of the parameters frozen, some gradients accumulated before."""
    model, x, given = r.net.build(), r.net.inputs().requires_grad_(), options(r, r.net)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
        p.grad = torch.ones_like(p) if i % 4 == 0 else None
    with untouched(model, x, given):
        r.method(model, x, **given)
        if r.create_graph:
            r.method(model, x, **given, create_graph=True)


@rows()
def test_result_shares_no_memory_with_the_users_tensors(r: Row) -> None:
    model, x, given = r.net.build(), r.net.inputs(), options(r, r.net)
    with untouched(model, x, given):
        for leaf in optree.tree_leaves(r.method(model, x, **given)):
            leaf.add_(1)


@rows()
def test_transforms_leave_no_trace(r: Row) -> None:
    model, x, given = r.net.build(), r.net.inputs(), options(r, r.net)
    with untouched(model, x, given):
        torch.func.grad(lambda x: r.method(model, x, **given).sum())(x)
        torch.func.vmap(lambda t: r.method(model, x + t, **given))(torch.arange(2))


@rows_and_nets()
def test_model_that_raises_half_way_stays(r: Row, net: Net) -> None:
    model, x, given = net.build(), net.inputs(), options(r, net)
    fuse = Fuse()
    model.mid.register_forward_pre_hook(fuse)
    r.method(model, x, **given)  # the first call for a model also looks at its rows
    fuse.calls = 0
    expected = r.method(model, x, **given)
    calls, fuse.calls = fuse.calls, 0
    assert calls > 0
    with untouched(model, x, given):
        for fuse.at in range(calls):
            fuse.calls = 0
            with pytest.raises(Blown):
                r.method(model, x, **given)
    fuse.at = -1
    assert_close(r.method(model, x, **given), expected, rtol=0, atol=0)


@rows()
def test_transform_of_a_model_that_raises_stays(r: Row) -> None:
    model, x, given = r.net.build(), r.net.inputs(), options(r, r.net)
    model.mid.register_forward_pre_hook(Fuse(0))
    with untouched(model, x, given), pytest.raises(Blown):
        torch.func.vmap(lambda t: r.method(model, x + t, **given))(torch.arange(2))


@rows_and_nets()
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_runs_where_gradients_are_switched_off(r: Row, net: Net, mode: Any) -> None:
    model, x, given = net.build(), net.inputs(), options(r, net)
    expected = r.method(model, x, **given)
    with mode(), untouched(model, x, given):
        found = r.method(model, x, **given)
    assert_close(found, expected)


@rows(lambda r: r.create_graph)
def test_create_graph_where_gradients_are_switched_off(r: Row) -> None:
    """The explicit option wins over no_grad for what needs a derivative, without an error."""
    model, x, given = r.net.build().requires_grad_(), r.net.inputs(), options(r, r.net)
    expected = r.method(model, x, **given)
    with torch.no_grad():
        found = r.method(model, x, **given, create_graph=True)
    assert_close(found.detach(), expected)


@rows()
def test_tensors_made_in_inference_mode(r: Row) -> None:
    """Predict and explain in one block, and explain later what was predicted there."""
    model, x, given = r.net.build(), r.net.inputs(), options(r, r.net)
    expected = r.method(model, x, **given)
    with torch.inference_mode():
        x, given = optree.tree_map(_clone, (x, given))
        with untouched(model, x, given):
            found = r.method(model, x, **given)
    assert_close(found, expected)
    with untouched(model, x, given):
        found = r.method(model, x, **given)
    assert_close(found, expected)


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def refuses_training(r: Row) -> bool:
    """Rules refuse statistics of the batch, unless the layer lies behind them."""
    return r.rules and (r.neuron or not r.layer)


@rows(lambda r: r.net is NETS["mlp"] and not refuses_training(r))
def test_batch_norm_in_training_mode_warns_and_stays(r: Row) -> None:
    """Rows that depend on each other are said to, and running statistics do not move."""
    model = make(TrainedBatchNorm).train()
    x, given = r.net.inputs(), options(r, r.net)
    warns = pytest.warns(UserWarning, match=r"training mode and holds BatchNorm1d.*model\.eval")
    with untouched(model, x, given), warns:
        found = r.method(model, x, **given)
    assert model.mid.num_batches_tracked == 0
    assert_informative(found)


@rows(refuses_training)
def test_batch_norm_in_training_mode_is_refused_by_rules(r: Row) -> None:
    model = make(TrainedBatchNorm).train()
    x, given = r.net.inputs(), options(r, r.net)
    refused = pytest.raises(
        attrfn.UnsupportedOpError, match=r"statistics of the batch.*model\.eval\(\)"
    )
    with untouched(model, x, given), warnings.catch_warnings(), refused:
        warnings.filterwarnings("ignore", "the model is in training mode")
        r.method(model, x, **given)


@rows(lambda r: r.net is NETS["cnn"])
def test_batch_norm_in_training_mode_warns_for_maps(r: Row) -> None:
    net = NETS["norm"]
    model, x, given = net.build().train(), net.inputs(), options(r, net)
    model.drop.eval()
    warns = pytest.warns(UserWarning, match="training mode and holds BatchNorm2d")
    with untouched(model, x, given), warns:
        r.method(model, x, **given)


@rows(lambda r: r.net is NETS["cnn"])
def test_evaluation_mode_does_not_warn(r: Row) -> None:
    """Warnings are errors here, so running is the test; the flags of single modules count."""
    net = NETS["norm"]
    model = net.build().train()
    model.mid.eval()
    model.drop.eval()
    assert model.training
    assert_informative(explain(r, net, model))


class Remembers(nn.Module):
    """Writes attributes, a container, a buffer and its own argument while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 5)
        self.mid = nn.Tanh()
        self.out = nn.Linear(5, 3)
        self.last: Any = None
        self.seen: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        h = self.mid(self.inp(x))
        self.last = h
        self.seen.append(h)
        self.cache["h"] = h
        self.count += 1
        self.mean = self.mean * 0.9
        self.mean.add_(1.0)
        y = self.out(h)
        x.zero_()
        return y


def survives_overwriting(r: Row) -> bool:
    """Not the gradient of a model with its own parameters, and not rules that need x again."""
    return not r.frozen and r.name != "lrp_gamma"


@rows(lambda r: r.net is NETS["mlp"] and survives_overwriting(r))
def test_model_that_writes_into_itself_and_its_argument_stays(r: Row) -> None:
    model, x, given = make(Remembers), r.net.inputs(), options(r, r.net)
    with untouched(model, x, given):
        r.method(model, x, **given)
    assert model.last is None
    assert model.seen == []
    assert model.cache == {}


@rows(lambda r: r.net is NETS["mlp"])
def test_bound_arguments_stay(r: Row) -> None:
    """Tensors bound with functools.partial."""

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.mid, self.out = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)

        def forward(self, x: Tensor, scale: Tensor, state: dict[str, Tensor]) -> Tensor:
            return self.out(self.mid(self.inp(x) * scale[:, None] + state["shift"]))

    model, x, given = make(Takes), r.net.inputs(), options(r, r.net)
    if r.baselines == "pool":
        given["baselines"] = r.net.pool
    bound = {"scale": randn(3, seed=40), "state": {"shift": randn(3, 5, seed=41)}}
    kept = copy.deepcopy(bound)
    with untouched(model, x, given, bound):
        r.method(functools.partial(model, **bound), x, **given)
    assert_close(bound, kept, rtol=0, atol=0)


@rows()
def test_functional_call_on_the_users_model_stays(r: Row) -> None:
    model, x, given = r.net.build(), r.net.inputs(), options(r, r.net)
    params = {k: 1.1 * p.detach() for k, p in model.named_parameters()}
    with untouched(model, x, given, params):
        r.method(functools.partial(torch.func.functional_call, model, params), x, **given)


@rows(lambda r: r.keyed)
def test_random_rows_ignore_the_global_generator(r: Row) -> None:
    torch.manual_seed(1)
    one = explain(r, r.net)
    torch.manual_seed(2)
    assert_close(explain(r, r.net), one, rtol=0, atol=0)
