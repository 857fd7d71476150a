"""Splits: what is refused, with the layers that there are."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
import zoo
from splits import RESIDUAL_ACT, equal
from torch import Tensor, nn
from zoo import randn

import attrfn

# --- what is refused -----------------------------------------------------------------------------


def test_layers_that_do_not_exist():
    model = zoo.make(zoo.Residual)
    x = randn(3, 4)
    for wrong, message in [
        (
            "blocks.1.atc",
            r"layer 'blocks\.1\.atc' is not part of Residual: did you mean 'blocks\.1\.act'",
        ),
        ("block", r"layer 'block' is not part of Residual: did you mean 'blocks"),
        ("stm", r"layer 'stm' is not part of Residual: did you mean 'stem'"),
        ("qqqqqqqq", r"layer 'qqqqqqqq' is not part of Residual: see named_modules\(\)"),
        (
            nn.Linear(2, 2),
            r"layer Linear is not part of Residual: give one of its modules or the qual",
        ),
        (["stem", "ot"], r"layer 'ot' is not part of Residual: did you mean 'out'"),
    ]:
        with pytest.raises(ValueError, match=message):
            attrfn.split(model, wrong).head(x)
        with pytest.raises(ValueError, match=message):
            attrfn.layer_integrated_gradients(model, x, layer=wrong, target=0)
        with pytest.raises(ValueError, match=message):
            attrfn.neuron_gradient(model, x, layer=wrong, neuron=0)


@pytest.mark.parametrize("wrong", [3, None, 1.5, nn.Linear, ["stem", 3]])
def test_layers_of_the_wrong_type(wrong):
    model = zoo.make(zoo.Residual)
    with pytest.raises(
        TypeError, match=r"^layer is .+, expected a module of the model, its qualified name"
    ):
        attrfn.split(model, wrong).head(randn(3, 4))
    with pytest.raises(
        TypeError, match=r"^layer is .+, expected a module of the model, its qualified name"
    ):
        attrfn.layer_activation(model, randn(3, 4), layer=wrong)


def test_empty_list_of_layers():
    with pytest.raises(ValueError, match=r"^layer is an empty list, expected at least one layer"):
        attrfn.split(zoo.mlp(), [])
    with pytest.raises(ValueError, match=r"^layer is an empty list, expected at least one layer"):
        attrfn.layer_integrated_gradients(zoo.mlp(), randn(3, 4), layer=[], target=0)


@pytest.mark.parametrize("at", ["inputs", None, 0, "Output"])
def test_wrong_at(at):
    with pytest.raises(ValueError, match=rf"^at is {at!r}, expected 'input' or 'output'"):
        attrfn.split(zoo.mlp(), "1", at=at)
    with pytest.raises(ValueError, match=rf"^at is {at!r}, expected 'input' or 'output'"):
        attrfn.grad_cam(zoo.mlp(), randn(3, 4), layer="1", at=at, target=0)


@pytest.mark.parametrize("wrong", [-1, 1.0, "0", True])
def test_wrong_call(wrong):
    with pytest.raises(ValueError, match=rf"^call is {wrong!r}, expected None .*int of at least 0"):
        attrfn.split(zoo.mlp(), "1", call=wrong)
    with pytest.raises(ValueError, match=rf"^call is {wrong!r}, expected None .*int of at least 0"):
        attrfn.layer_conductance(zoo.mlp(), randn(3, 4), layer="1", call=wrong, target=0)


class Skips(nn.Module):
    """A layer that is never called, one whose weight is used directly, and one in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.direct = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.used(x), self.direct.weight, self.direct.bias)


def test_layers_that_are_not_called():
    model, x = zoo.make(Skips), randn(3, 4)
    for layer in ("unused", "direct", model.unused):
        for run in (
            lambda h: h.head(x),
            lambda h: h.tail(randn(3, 5), x),
        ):
            with pytest.raises(
                ValueError, match=r"^layer .* was not called while the model ran, so"
            ):
                run(attrfn.split(model, layer))
        with pytest.raises(ValueError, match=r"was not called while the model ran"):
            attrfn.layer_activation(model, x, layer=["used", layer])


def test_calls_that_do_not_happen():
    model, x = zoo.make(zoo.Residual), randn(3, 4)
    message = (
        r"^layer 'blocks\.1\.act' was called 2 time\(s\), so call=2 does not exist: expected 0 to 1"
    )
    with pytest.raises(ValueError, match=message):
        attrfn.split(model, RESIDUAL_ACT, call=2).head(x)
    with pytest.raises(ValueError, match=message):
        attrfn.split(model, RESIDUAL_ACT, call=2).tail(randn(3, 5), x)
    with pytest.raises(
        ValueError, match=r"^layer 'stem' was called 1 time\(s\), so call=1 does not"
    ):
        attrfn.layer_conductance(model, x, layer="stem", call=1, target=0)


# torch deprecates scripting, but scripted models are around for a while.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_layers():
    model, x = zoo.mlp(), randn(3, 4)
    scripted = torch.jit.script(model)
    with pytest.raises(ValueError, match=r"layer '1' is a scripted or traced module"):
        attrfn.split(scripted, "1").head(x)
    mixed = nn.Sequential(scripted, nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match=r"layer '0\.1' is a scripted or traced module"):
        attrfn.split(mixed, "0.1").head(x)
    with pytest.raises(ValueError, match=r"layer '0' is a scripted or traced module"):
        attrfn.split(mixed, "0").head(x)
    # but the model can be explained, and its other layers
    equal(attrfn.gradient(scripted, x, target=1), attrfn.gradient(model, x, target=1))
    equal(attrfn.split(mixed, "1").head(x), mixed(x))


class Boxed:
    """Callable, but its module cannot be seen."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


def test_functions_that_hide_their_module():
    model, x = zoo.mlp(), randn(3, 4)
    for hidden in (lambda x: model(x), Boxed(model), functools.partial(lambda m, x: m(x), model)):
        message = (
            r"^model(_fn)? is a \w+, and no module can be found in it: give a torch\.nn\.Module, .*"
            "wrap the function"
        )
        with pytest.raises(TypeError, match=message):
            attrfn.split(hidden, "1")
        with pytest.raises(TypeError, match=message):
            attrfn.layer_gradient_x_activation(hidden, x, layer="1", target=0)
        with pytest.raises(TypeError, match=message):
            attrfn.neuron_integrated_gradients(hidden, x, layer="1", neuron=0)
        equal(attrfn.gradient(hidden, x, target=0), attrfn.gradient(model, x, target=0))


def test_layers_with_nothing_to_explain():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids, self.size, self.words = Ids(), Size(), nn.Embedding(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.words(self.ids(x)).mean(1) * self.size(x)

    model, x = zoo.make(Net), randn(3, 4)
    message = r"gives no floating tensor with the 3 example\(s\) in dimension 0 to explain: choose"
    with pytest.raises(ValueError, match=r"^layer 'ids' " + message):
        attrfn.layer_integrated_gradients(model, x, layer="ids", target=0)
    with pytest.raises(ValueError, match=r"^layer 'size' " + message):
        attrfn.layer_gradient_x_activation(model, x, layer="size", target=0)
    equal(attrfn.layer_activation(model, x, layer="ids"), (x > 0).long())


class Ids(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).long()


class Size(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(float(x.shape[1]))
