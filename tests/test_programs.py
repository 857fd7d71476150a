"""Exported programs are explained as the modules that they were exported from.

Expected values are those of the module itself.
"""

from __future__ import annotations

import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optree
import pytest
import torch
from models import NETS, RECTIFIED, Net
from programs_cases import MODELS, program_of_model, program_of_net
from registry import Row, explain, rows, rows_and_nets
from torch import Tensor

import attrfn

pytestmark = [
    pytest.mark.compiles,
    # Raised by torch inside run_decompositions.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # And by nn.LSTM, which sets its list of weights while it is exported.
    pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat:UserWarning"),
]


def near(found: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    for a, b in zip(optree.tree_leaves(found), optree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def named(net: Net) -> str:
    known = {**NETS, **RECTIFIED}
    return next(name for name in known if known[name] is net)


def compared(r: Row, name: str, **more: Any) -> None:
    model, program, net = program_of_net(name)
    near(explain(r, net, program, **more), explain(r, net, model, **more))


@rows()
def test_every_method(r: Row) -> None:
    compared(r, named(r.net))


@rows(lambda r: r.layer or r.rules or r.neuron)
@pytest.mark.parametrize(
    "name", ["attention", *[pytest.param(n, marks=pytest.mark.fuzz) for n in ("norm", "reuse")]]
)
def test_layers_and_rules_of_other_nets(r: Row, name: str) -> None:
    net = NETS[name]
    if (r.spatial and not net.spatial) or r.relu:
        pytest.skip("the row needs another net")
    compared(r, name)


@pytest.mark.fuzz
@rows_and_nets()
def test_every_method_on_every_net(r: Row, net: Net) -> None:

    compared(r, named(net))


LAYERS = {
    "encoder": ["inp", "encoder", "encoder.layers.0", "encoder.layers.0.linear1", "out"],
    "recurrent": ["rnn", "out"],
    "blocks": ["inp", "block", "block.0", "block.1"],
}
BY_LAYER = [
    attrfn.layer_activation,
    attrfn.layer_gradient_x_activation,
    attrfn.layer_integrated_gradients,
    attrfn.layer_conductance,
    attrfn.layer_deep_lift,
    attrfn.layer_lrp,
]


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(name: str, decompose: bool) -> None:
    model, program, x = program_of_model(name, decompose)
    assert torch.equal(program(x), model(x)) or decompose
    near(program(x), model(x))
    for method in (
        attrfn.gradient,
        attrfn.integrated_gradients,
        attrfn.feature_ablation,
        attrfn.deep_lift,
        attrfn.lrp,
        attrfn.guided_backprop,
    ):
        # There is no ReLU; and a decomposed LSTM is products, which LRP treats otherwise.
        left_out = (attrfn.guided_backprop, *([attrfn.lrp] if decompose else []))
        if name != "recurrent" or method not in left_out:
            near(method(program, x, target=1), method(model, x, target=1))


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_layers_by_the_path_of_the_module(name: str, decompose: bool) -> None:
    model, program, x = program_of_model(name, decompose)
    first = lambda v: v[0] if isinstance(v, tuple) else v  # noqa: E731
    for layer in LAYERS[name]:
        for method in BY_LAYER:
            more = {} if method is attrfn.layer_activation else {"target": 1}
            found = first(method(program, x, layer=layer, **more))
            near(found, first(method(model, x, layer=layer, **more)))


def test_calls_of_a_module_that_runs_twice() -> None:
    model, program, x = program_of_model("blocks")
    for call in (0, 1):
        for at in ("input", "output"):
            for layer in ("block", "block.0", "block.1"):
                options = {"at": at, "call": call}
                method = attrfn.at_layer(attrfn.gradient, layer, **options)
                near(method(program, x, target=1), method(model, x, target=1))
    both = attrfn.layer_activation(program, x, layer="block", call=None)
    near(both, attrfn.layer_activation(model, x, layer="block", call=None))
    with pytest.raises(ValueError, match=r"was called 2 time\(s\), so call=2 does not exist"):
        attrfn.layer_activation(program, x, layer="block.1", call=2)


def test_layers_by_the_name_of_a_node() -> None:
    """The node of a module's last operation has the module's value."""
    model, program, x = program_of_model("blocks")
    assert {"linear", "relu", "add", "relu_1", "tanh"} <= set(program.node_names)
    for node, layer, call in (("relu", "block", 0), ("relu_1", "block", 1), ("linear", "inp", 0)):
        for method in BY_LAYER:
            more = {} if method is attrfn.layer_activation else {"target": 1}
            found = method(program, x, layer=node, **more)
            near(found, method(model, x, layer=layer, call=call, **more))
    # The function between has no module: d out / d tanh is the transposed weight.
    weight = model.inp.weight
    found = attrfn.at_layer(attrfn.gradient, "tanh")(program, x, target=1)
    near(found, weight.t()[1].detach().expand(3, -1))
    values = attrfn.activations(program, ["relu_1", "tanh"])(x)[1]
    near(values["tanh"], torch.tanh(values["relu_1"]))


def test_cams_by_module_and_node() -> None:
    model, program, net = program_of_net("cnn")
    x = net.inputs()
    want = attrfn.grad_cam(model, x, target=1, layer="mid", upsample="nearest")
    for layer in ("mid", "avg_pool2d"):
        near(attrfn.grad_cam(program, x, target=1, layer=layer, upsample="nearest"), want)


def test_rules_by_the_names_of_modules() -> None:
    model, program, net = program_of_net("cnn")
    rules = attrfn.rules.composite(attrfn.rules.epsilon(), names={"inp": attrfn.rules.z_plus()})
    x = net.inputs()
    near(attrfn.lrp(program, x, target=1, rules=rules), attrfn.lrp(model, x, target=1, rules=rules))


def test_transforms() -> None:
    """vmap over grad, jvp, and .backward() through attributions."""
    model, program, x = program_of_model("encoder")
    for f in (attrfn.gradient, attrfn.integrated_gradients):

        def one(z: Tensor, model: Any, f: Any = f) -> Tensor:
            return f(model, z[None], target=1)[0]

        want = torch.func.vmap(lambda z, one=one: one(z, model))(x)
        near(torch.func.vmap(lambda z, one=one: one(z, program))(x), want)
    tangent = torch.ones_like(x)
    outs = [
        torch.func.jvp(lambda z, m=m: attrfn.gradient(m, z, target=1), (x,), (tangent,))
        for m in (model, program)
    ]
    near(outs[1], outs[0])
    grads = []
    for m in (model, program):
        z = x.clone().requires_grad_()
        attrfn.gradient(m, z, target=1, create_graph=True).square().sum().backward()
        grads.append(z.grad)
    near(grads[1], grads[0])


def test_other_parameters() -> None:
    """functional_call takes the names of the module's parameters."""

    model, program, x = program_of_model("blocks")
    others = {k: p.detach() * 0.5 for k, p in model.named_parameters()}
    assert set(others) <= {name for name, _ in program.named_parameters()}
    found = [
        attrfn.gradient(functools.partial(torch.func.functional_call, m, others), x, target=1)
        for m in (model, program)
    ]
    near(found[1], found[0])


def test_compiled_attributions() -> None:
    model, program, x = program_of_model("blocks")
    method = attrfn.compile(attrfn.gradient, program, backend="eager")
    near(method(x, target=1), attrfn.gradient(model, x, target=1))
    layer = attrfn.compile(attrfn.layer_activation, program, layer="relu_1", backend="eager")
    near(layer(x), attrfn.layer_activation(model, x, layer="block", call=1))


def test_threads_and_other_processes(tmp_path: Any) -> None:

    model, program, x = program_of_model("blocks")
    want = attrfn.layer_gradient_x_activation(model, x, target=1, layer="block")
    layers = ["relu", "block", "relu", "block"] * 8

    def run(layer: str) -> Tensor:
        return attrfn.layer_gradient_x_activation(program, x, target=1, layer=layer)

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(run, layers):
            near(found, want)
    for again in (pickle.loads(pickle.dumps(program)), copy.deepcopy(program)):
        near(attrfn.gradient(again, x, target=1), attrfn.gradient(model, x, target=1))
