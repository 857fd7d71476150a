"""Nothing of the user's changes: model, inputs, options, random numbers; also after an error."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import optree
import pytest
import torch
from helpers import assert_close, assert_informative
from models import NETS, Net, TrainedBatchNorm
from registry import Row, explain, rows, rows_and_nets, tensors, trial
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn.testing import _state
from attrfn.testing import _values as checks
from attrfn.testing._state import Blown, Fuse, untouched


@rows_and_nets()
def test_model_inputs_and_options_stay(r: Row, net: Net) -> None:
    """Half of the parameters frozen, some gradients accumulated before, inputs with and without."""
    _state.purity(trial(r, net))


@rows_and_nets()
def test_model_that_raises_half_way_stays(r: Row, net: Net) -> None:
    _state.exceptions(trial(r, net))


@rows_and_nets()
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_runs_where_gradients_are_switched_off(r: Row, net: Net, mode: Any) -> None:
    checks.no_grad(trial(r, net), mode)


@rows()
def test_transforms_leave_no_trace(r: Row) -> None:
    model, x, given = r.net.build(), r.net.inputs(), tensors(r, r.net)
    with untouched(model, x, given):
        torch.func.grad(lambda x: r.method(model, x, **given).sum())(x)
        torch.func.vmap(lambda t: r.method(model, x + t, **given))(torch.arange(2))


@rows()
def test_transform_of_a_model_that_raises_stays(r: Row) -> None:
    model, x, given = r.net.build(), r.net.inputs(), tensors(r, r.net)
    model.mid.register_forward_pre_hook(Fuse(1))
    with untouched(model, x, given), pytest.raises(Blown):
        torch.func.vmap(lambda t: r.method(model, x + t, **given))(torch.arange(2))


@rows(lambda r: r.create_graph)
def test_create_graph_where_gradients_are_switched_off(r: Row) -> None:
    """The explicit option wins over no_grad for what needs a derivative, without an error."""
    model, x, given = r.net.build().requires_grad_(), r.net.inputs(), tensors(r, r.net)
    expected = r.method(model, x, **given)
    with torch.no_grad():
        found = r.method(model, x, **given, create_graph=True)
    assert_close(found.detach(), expected)


@rows()
def test_tensors_made_in_inference_mode(r: Row) -> None:
    """Predict and explain in one block, and explain later what was predicted there."""
    model, x, given = r.net.build(), r.net.inputs(), tensors(r, r.net)
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
    x, given = r.net.inputs(), tensors(r, r.net)
    warns = pytest.warns(UserWarning, match=r"training mode and holds BatchNorm1d.*model\.eval")
    with untouched(model, x, given), warns:
        found = r.method(model, x, **given)
    assert model.mid.num_batches_tracked == 0
    assert_informative(found)


@rows(refuses_training)
def test_batch_norm_in_training_mode_is_refused_by_rules(r: Row) -> None:
    model = make(TrainedBatchNorm).train()
    x, given = r.net.inputs(), tensors(r, r.net)
    refused = pytest.raises(
        attrfn.UnsupportedOpError, match=r"statistics of the batch.*model\.eval\(\)"
    )
    with untouched(model, x, given), warnings.catch_warnings(), refused:
        warnings.filterwarnings("ignore", "the model is in training mode")
        r.method(model, x, **given)


@rows(lambda r: r.net is NETS["cnn"])
def test_batch_norm_in_training_mode_warns_for_maps(r: Row) -> None:
    net = NETS["norm"]
    model, x, given = net.build().train(), net.inputs(), tensors(r, net)
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
    return not r.frozen and r.name not in ("lrp_gamma", "read_with_a_layer")


@rows(lambda r: r.net is NETS["mlp"] and survives_overwriting(r))
def test_model_that_writes_into_itself_and_its_argument_stays(r: Row) -> None:
    model, x, given = make(Remembers), r.net.inputs(), tensors(r, r.net)
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

    model, x, given = make(Takes), r.net.inputs(), tensors(r, r.net)
    if r.baselines == "pool":
        given["baselines"] = r.net.pool
    bound = {"scale": randn(3, seed=40), "state": {"shift": randn(3, 5, seed=41)}}
    kept = copy.deepcopy(bound)
    with untouched(model, x, given, bound):
        r.method(functools.partial(model, **bound), x, **given)
    assert_close(bound, kept, rtol=0, atol=0)


@rows()
def test_functional_call_on_the_users_model_stays(r: Row) -> None:
    model, x, given = r.net.build(), r.net.inputs(), tensors(r, r.net)
    params = {k: 1.1 * p.detach() for k, p in model.named_parameters()}
    with untouched(model, x, given, params):
        r.method(functools.partial(torch.func.functional_call, model, params), x, **given)
