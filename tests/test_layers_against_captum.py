"""Layers and neurons against Captum, float32, within 1e-5 (see ``test_against_captum.py``)."""

from __future__ import annotations

import functools

import oracles
import pytest
import torch
from captum_cases import (
    F32,
    IMAGES,
    IMAGES0,
    PAIR,
    PAIR0,
    QUADRATURES,
    TABLE,
    TABLE0,
    captum_marks_inputs,
    cnn,
    each_target,
    same,
    two_inputs,
)
from torch import nn

import attrfn

attr = pytest.importorskip("captum.attr")

captum_moves_several_layers = pytest.mark.filterwarnings(
    # Captum's word of caution for a list of layers, whatever they are.
    r"ignore:Multiple layers provided:UserWarning"
)

IDS = torch.tensor([[1, 5, 3, 0, 2], [7, 7, 4, 10, 1], [2, 0, 9, 8, 6]])
PLACES = torch.arange(5).expand(3, 5)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()


def text():
    return oracles.seeded(oracles.Attention, dtype=F32)


# ---------------------------------------------------------------------------------------------
# layers

CNN_LAYERS = pytest.mark.parametrize(
    ("layer", "at"),
    [("conv1", "output"), ("conv2", "input"), ("act2", "output"), ("fc", "input")],
)


@CNN_LAYERS
def test_layer_activation(layer, at):
    model = cnn()
    want = attr.LayerActivation(model, model.get_submodule(layer)).attribute(
        IMAGES, attribute_to_layer_input=at == "input"
    )
    same(attrfn.layer_activation(model, IMAGES, layer=layer, at=at), want)


@CNN_LAYERS
@pytest.mark.parametrize("multiply", [True, False])
def test_layer_gradient_x_activation(layer, at, multiply):
    model, target = cnn(), torch.tensor([4, 0, 2])
    want = attr.LayerGradientXActivation(
        model, model.get_submodule(layer), multiply_by_inputs=multiply
    ).attribute(IMAGES, target, attribute_to_layer_input=at == "input")
    got = attrfn.layer_gradient_x_activation(
        model, IMAGES, layer=layer, at=at, target=target, multiply_by_inputs=multiply
    )
    same(got, want)


def test_layers_of_a_list():
    model, layers = cnn(), ["conv1", "act2"]
    modules = [model.conv1, model.act2]
    same(
        attrfn.layer_activation(model, IMAGES, layer=layers),
        attr.LayerActivation(model, modules).attribute(IMAGES),
    )
    same(
        attrfn.layer_gradient_x_activation(model, IMAGES, layer=layers, target=2),
        attr.LayerGradientXActivation(model, modules).attribute(IMAGES, 2),
    )


@each_target
def test_layer_gradient_x_activation_with_every_target(make, target):
    model = make()
    name, module = list(model.named_children())[1]
    want = attr.LayerGradientXActivation(model, module).attribute(IMAGES, target)
    same(attrfn.layer_gradient_x_activation(model, IMAGES, layer=name, target=target), want)


@CNN_LAYERS
@pytest.mark.parametrize("rule", QUADRATURES)
def test_layer_integrated_gradients(layer, at, rule):
    """The straight path between the layer's values at the baselines and at the inputs."""
    model, target = cnn(), [(4,), (0,), (2,)]
    want = attr.LayerIntegratedGradients(model, model.get_submodule(layer)).attribute(
        IMAGES,
        IMAGES0,
        target=target,
        n_steps=8,
        method=QUADRATURES[rule],
        attribute_to_layer_input=at == "input",
    )
    got = attrfn.layer_integrated_gradients(
        model,
        IMAGES,
        layer=layer,
        at=at,
        target=target,
        baselines=IMAGES0,
        n_steps=8,
        quadrature=rule,
    )
    same(got, want)


@pytest.mark.parametrize("multiply", [True, False])
def test_layer_integrated_gradients_of_two_inputs(multiply):
    model = two_inputs()
    want = attr.LayerIntegratedGradients(model, model.act, multiply_by_inputs=multiply).attribute(
        PAIR, PAIR0, target=1, n_steps=8
    )
    got = attrfn.layer_integrated_gradients(
        model,
        PAIR,
        layer="act",
        target=1,
        baselines=PAIR0,
        n_steps=8,
        multiply_by_inputs=multiply,
    )
    same(got, want)


@captum_moves_several_layers
def test_layer_integrated_gradients_of_a_list_of_layers_that_meet():
    """One path for all the layers of the list, in both libraries."""
    model = two_inputs()
    want = attr.LayerIntegratedGradients(model, [model.left, model.right]).attribute(
        PAIR, PAIR0, target=1, n_steps=8
    )
    got = attrfn.layer_integrated_gradients(
        model, PAIR, layer=["left", "right"], target=1, baselines=PAIR0, n_steps=8
    )
    same(got, want)


@pytest.mark.parametrize("layer", ["words", "value", "norm"])
def test_layers_behind_token_ids(layer):
    """Captum's additional_forward_args is functools.partial here; the mask goes with the batch."""
    model, target = text(), torch.tensor([0, 2, 1])
    module, masked = model.get_submodule(layer), functools.partial(model, mask=MASK)
    ids = (IDS, PLACES)
    want = attr.LayerActivation(model, module).attribute(ids, (MASK,))
    same(attrfn.layer_activation(masked, ids, layer=layer), want)
    want = attr.LayerGradientXActivation(model, module).attribute(ids, target, (MASK,))
    same(attrfn.layer_gradient_x_activation(masked, ids, layer=layer, target=target), want)
    want = attr.LayerIntegratedGradients(model, module).attribute(
        ids, (torch.full_like(IDS, 9), PLACES), target, (MASK,), n_steps=10
    )
    got = attrfn.layer_integrated_gradients(
        masked, ids, layer=layer, target=target, baselines=(9, PLACES), n_steps=10
    )
    same(got, want)


@captum_moves_several_layers
def test_a_list_of_embeddings():
    model, ids = text(), (IDS, PLACES)
    want = attr.LayerIntegratedGradients(model, [model.words, model.places]).attribute(
        ids, (torch.zeros_like(IDS), torch.zeros_like(PLACES)), 2, (MASK,), n_steps=10
    )
    got = attrfn.layer_integrated_gradients(
        functools.partial(model, mask=MASK),
        ids,
        layer=[model.words, model.places],
        target=2,
        n_steps=10,
    )
    same(got, want)


def test_layer_gradient_shap_before_a_linear_layer():
    """Linear behind the layer: (head(x) - head(b)) w for every draw in both libraries."""
    model = cnn()
    want = attr.LayerGradientShap(model, model.act2).attribute(
        IMAGES, IMAGES0[:1], target=3, n_samples=3
    )
    got = attrfn.layer_gradient_shap(
        model, IMAGES, layer="act2", baselines=IMAGES0[:1], target=3, n_samples=3
    )
    same(got, want)


def test_layer_gradient_shap_takes_its_noise_and_its_path_at_the_layer():
    """Captum moves the inputs (noise and path) and reads the layer there; here both are at the
    layer, as for every method of ``at_layer``.

    At the square root of a: f = sum a with a = (10 + x)^0.5. Noise s = 1 in x is noise of about
    1 / (2 sqrt 10) = 0.16 in a for Captum, and noise 1 in a here.
    """

    class Root(nn.Module):
        def forward(self, x):
            return (10 + x).clamp(min=0).sqrt()

    model = nn.Sequential(Root(), nn.Flatten(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[2].weight.fill_(1.0)
    x, zero, n = torch.zeros(2000, 1), torch.zeros(1, 1), 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        captum = attr.LayerGradientShap(model, model[0]).attribute(
            x, zero, n_samples=n, stdevs=1.0, target=0
        )
    ours = attrfn.layer_gradient_shap(
        model,
        x,
        layer="0",
        baselines=zero,
        n_samples=n,
        stdevs=1.0,
        target=0,
        key=attrfn.random.split(0, 2000),
    )
    assert 0.14 < captum.std() < 0.18
    assert 0.94 < ours.std() < 1.06


@pytest.mark.parametrize(
    ("make", "x", "x0", "layer"),
    [
        (functools.partial(cnn, nn.Tanh), IMAGES, IMAGES0, "conv1"),
        (functools.partial(cnn, nn.Tanh), IMAGES, IMAGES0, "act2"),
        (two_inputs, PAIR, PAIR0, "left"),
        (two_inputs, PAIR, PAIR0, "act"),
    ],
    ids=["cnn_conv1", "cnn_act2", "pair_left", "pair_act"],
)
def test_layer_conductance(make, x, x0, layer):
    """Captum sums df/da at the left knot times the change of a to the next, an error of order 1/n:
    at n = 400 it is within 0.5 % of the largest, and extrapolated to 1/n = 0 within 1e-4. Ours is
    the exact integrand, so 25 steps give what 50 do.
    """
    model = make()
    method = attr.LayerConductance(model, model.get_submodule(layer))
    coarse, fine = (
        method.attribute(x, x0, target=1, n_steps=n, method="riemann_trapezoid") for n in (200, 400)
    )
    run = functools.partial(attrfn.layer_conductance, model, x, layer=layer, target=1, baselines=x0)
    got = run()
    size = got.abs().max()
    assert (got - fine).abs().max() < 5e-3 * size
    assert (got - (2 * fine - coarse)).abs().max() < 1e-4 * size
    same(run(n_steps=25), got)
    if layer != "left":  # the others cut the network: all neurons together explain the change
        change = oracles.values(model, x, 1) - oracles.values(model, x0, 1)
        same(got.flatten(1).sum(1), change)
        if layer == "conv1":  # Captum's left rule is exact where a linear layer follows
            assert (fine.flatten(1).sum(1) - change).abs().max() > 1e-5


@pytest.mark.parametrize("rule", QUADRATURES)
@pytest.mark.parametrize(("layer", "at"), [("conv1", "output"), ("conv2", "input")])
def test_internal_influence(layer, at, rule):
    model, target = cnn(), [4, 0, 2]
    want = attr.InternalInfluence(model, model.get_submodule(layer)).attribute(
        IMAGES,
        IMAGES0,
        target,
        n_steps=8,
        method=QUADRATURES[rule],
        attribute_to_layer_input=at == "input",
    )
    got = attrfn.internal_influence(
        model,
        IMAGES,
        layer=layer,
        at=at,
        target=target,
        baselines=IMAGES0,
        n_steps=8,
        quadrature=rule,
    )
    same(got, want)


def test_internal_influence_of_two_inputs():
    model = two_inputs()
    want = attr.InternalInfluence(model, model.left).attribute(PAIR, PAIR0, 3, n_steps=8)
    got = attrfn.internal_influence(model, PAIR, layer="left", target=3, baselines=PAIR0, n_steps=8)
    same(got, want)


@CNN_LAYERS
@pytest.mark.parametrize("relu", [False, True])
def test_layer_grad_cam(layer, at, relu):
    """At the input of ``fc``, (B, 72), there are no places to take a mean over."""
    model, target = cnn(nn.Tanh), torch.tensor([4, 0, 2])
    want = attr.LayerGradCam(model, model.get_submodule(layer)).attribute(
        IMAGES, target, attribute_to_layer_input=at == "input", relu_attributions=relu
    )
    got = attrfn.grad_cam(model, IMAGES, layer=layer, at=at, target=target, relu=relu)
    same(got, want)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
def test_layer_grad_cam_with_interpolation(mode):
    model = cnn()
    want = attr.LayerAttribution.interpolate(
        attr.LayerGradCam(model, model.act2).attribute(IMAGES, 1, relu_attributions=True),
        (8, 8),
        mode,
    )
    got = attrfn.grad_cam(model, IMAGES, layer="act2", target=1, relu=True, upsample=mode)
    same(got, want)


def test_a_reused_layer():
    """Captum's hooks keep a module's last call; here ``call`` says which, by default the first."""

    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(3, 3)

        def forward(self, x):
            return self.shared(self.shared(x).tanh()).tanh().sum(1)

    model = oracles.seeded(Reused, dtype=F32)
    activation = attr.LayerActivation(model, model.shared).attribute(TABLE)
    same(attrfn.layer_activation(model, TABLE, layer="shared", call=1), activation)
    assert (attrfn.layer_activation(model, TABLE, layer="shared") - activation).abs().max() > 0.1
    want = attr.LayerGradientXActivation(model, model.shared).attribute(TABLE)
    got = attrfn.layer_gradient_x_activation(model, TABLE, layer="shared", call=1)
    same(got, want)


# ---------------------------------------------------------------------------------------------
# neurons

NEURONS = {
    "int": ("fc", 3),
    "tuple": ("act1", (2, 4, 5)),
    "slices": ("act1", (slice(1, 3), 4, slice(2, 6))),
    "callable": ("act2", lambda a: a[:, 1].amax((1, 2))),
}
each_neuron = pytest.mark.parametrize(("layer", "neuron"), NEURONS.values(), ids=NEURONS)


@captum_marks_inputs
@each_neuron
def test_neuron_gradient(layer, neuron):
    model = cnn()
    want = attr.NeuronGradient(model, model.get_submodule(layer)).attribute(IMAGES, neuron)
    same(attrfn.neuron_gradient(model, IMAGES, layer=layer, neuron=neuron), want)


@each_neuron
@pytest.mark.parametrize("rule", QUADRATURES)
def test_neuron_integrated_gradients(layer, neuron, rule):
    model = cnn()
    want = attr.NeuronIntegratedGradients(model, model.get_submodule(layer)).attribute(
        IMAGES, neuron, IMAGES0, n_steps=8, method=QUADRATURES[rule]
    )
    got = attrfn.neuron_integrated_gradients(
        model,
        IMAGES,
        layer=layer,
        neuron=neuron,
        baselines=IMAGES0,
        n_steps=8,
        quadrature=rule,
    )
    same(got, want)


@captum_marks_inputs
def test_neurons_at_the_input_of_a_layer():
    model, neuron = cnn(), (1, 2, 0)
    want = attr.NeuronGradient(model, model.conv2).attribute(
        IMAGES, neuron, attribute_to_neuron_input=True
    )
    got = attrfn.neuron_gradient(model, IMAGES, layer="conv2", at="input", neuron=neuron)
    same(got, want)
    want = attr.NeuronConductance(model, model.conv2).attribute(
        IMAGES,
        neuron,
        target=3,
        n_steps=8,
        method="gausslegendre",
        attribute_to_neuron_input=True,
    )
    got = attrfn.neuron_conductance(
        model, IMAGES, layer="conv2", at="input", neuron=neuron, target=3, n_steps=8
    )
    same(got, want)


@captum_marks_inputs
def test_neurons_behind_two_inputs():
    model = two_inputs()
    want = attr.NeuronGradient(model, model.act).attribute(PAIR, 3)
    same(attrfn.neuron_gradient(model, PAIR, layer="act", neuron=3), want)
    want = attr.NeuronIntegratedGradients(model, model.act).attribute(PAIR, 3, PAIR0, n_steps=8)
    path = {"layer": "act", "neuron": 3, "baselines": PAIR0, "n_steps": 8}
    same(attrfn.neuron_integrated_gradients(model, PAIR, **path), want)
    want = attr.NeuronConductance(model, model.act).attribute(
        PAIR, 3, PAIR0, target=1, n_steps=8, method="gausslegendre"
    )
    same(attrfn.neuron_conductance(model, PAIR, target=1, **path), want)


@pytest.mark.parametrize(("layer", "neuron"), [("act1", (2, 4, 5)), ("flat", 30)])
@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("target", [1, [4, 0, 2], torch.tensor([3, 3, 0])], ids=type)
def test_neuron_conductance(layer, neuron, multiply, target):
    """Captum's default here (and only here) is the trapezoid, ours is Gauss and Legendre's."""
    model = cnn(nn.Tanh)
    want = attr.NeuronConductance(
        model, model.get_submodule(layer), multiply_by_inputs=multiply
    ).attribute(IMAGES, neuron, IMAGES0, target, n_steps=8, method="gausslegendre")
    got = attrfn.neuron_conductance(
        model,
        IMAGES,
        layer=layer,
        neuron=neuron,
        baselines=IMAGES0,
        target=target,
        n_steps=8,
        multiply_by_inputs=multiply,
    )
    same(got, want)


def test_neuron_conductance_of_several_neurons_adds_up():
    """Captum multiplies the summed df/dn_j with the summed dn_j/dx, which counts the flow in at one
    neuron and out at another; here each neuron's own flow is counted, so the parts add up.
    """
    model = two_inputs()
    method = attr.NeuronConductance(model, model.act)
    path = {"target": 1, "n_steps": 8}
    singles = [
        method.attribute(PAIR, j, PAIR0, method="gausslegendre", **path) for j in range(2, 5)
    ]
    want = tuple(map(sum, zip(*singles, strict=True)))
    got = attrfn.neuron_conductance(
        model, PAIR, layer="act", neuron=(slice(2, 5),), baselines=PAIR0, **path
    )
    same(got, want)
    crossed = method.attribute(PAIR, (slice(2, 5),), PAIR0, method="gausslegendre", **path)
    assert (crossed[0] - want[0]).abs().max() > 0.1


@pytest.mark.parametrize("multiply", [True, False])
def test_neuron_gradient_shap_of_a_linear_head(multiply):
    """(x - b) W_j for every draw."""
    model = oracles.seeded(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), dtype=F32
    )
    want = attr.NeuronGradientShap(model, model[0], multiply_by_inputs=multiply).attribute(
        TABLE, 3, TABLE0, n_samples=3
    )
    got = attrfn.neuron_gradient_shap(
        model,
        TABLE,
        layer="0",
        neuron=3,
        baselines=TABLE0,
        n_samples=3,
        multiply_by_inputs=multiply,
    )
    same(got, want)
