"""The same quantities from Captum, float32, within 1e-5 (absolute plus relative).

Where the two libraries mean different things on purpose, the test's docstring says so and the test
asserts both sides: what Captum gives, and what this library gives in its place.
"""

from __future__ import annotations

import functools

import oracles
import pytest
import torch
from oracles import close, randn
from torch import nn

import attrfn

attr = pytest.importorskip("captum.attr")

captum_marks_inputs = pytest.mark.filterwarnings(
    # Captum's plain gradients call requires_grad_() on the user's tensors, and say so.
    r"ignore:Input Tensor \d+ did not already require gradients:UserWarning"
)
captum_moves_several_layers = pytest.mark.filterwarnings(
    # Captum's word of caution for a list of layers, whatever they are.
    r"ignore:Multiple layers provided:UserWarning"
)

F32 = torch.float32
same = functools.partial(close, tolerance=1e-5)

IMAGES, IMAGES0 = (randn(seed, 3, 2, 8, 8, dtype=F32) for seed in (0, 1))
PAIR, PAIR0 = (
    (randn(seed, 4, 3, dtype=F32), randn(seed + 1, 4, 2, 2, dtype=F32)) for seed in (2, 4)
)
IDS = torch.tensor([[1, 5, 3, 0, 2], [7, 7, 4, 10, 1], [2, 0, 9, 8, 6]])
PLACES = torch.arange(5).expand(3, 5)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()

QUADRATURES = {
    "gauss_legendre": "gausslegendre",
    "riemann_left": "riemann_left",
    "riemann_right": "riemann_right",
    "riemann_middle": "riemann_middle",
}
"""Our names and Captum's; the trapezoid has a test of its own."""


def cnn(activation=nn.ReLU):
    return oracles.seeded(lambda: oracles.Cnn(activation), dtype=F32)


def two_inputs():
    return oracles.seeded(oracles.TwoInputs, dtype=F32)


def text():
    return oracles.seeded(oracles.Attention, dtype=F32)


def grid():
    """Outputs (B, 3, 4), which Captum takes with tuples as targets."""
    return oracles.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 12), nn.Unflatten(1, (3, 4))
        ),
        dtype=F32,
    )


TARGETS = {
    "int": (cnn, 3),
    "tensor": (cnn, torch.tensor([4, 0, 2])),
    "list": (cnn, [4, 0, 2]),
    "tuple": (grid, (2, 1)),
    "list_of_tuples": (grid, [(2, 1), (0, 3), (1, 0)]),
}
each_target = pytest.mark.parametrize(("make", "target"), TARGETS.values(), ids=TARGETS)


# ---------------------------------------------------------------------------------------------
# inputs


@captum_marks_inputs
@each_target
def test_saliency(make, target):
    model = make()
    same(
        attrfn.saliency(model, IMAGES, target=target),
        attr.Saliency(model).attribute(IMAGES, target=target),
    )
    signed = attr.Saliency(model).attribute(IMAGES, target=target, abs=False)
    assert (signed < 0).any()
    same(attrfn.saliency(model, IMAGES, target=target, absolute=False), signed)
    same(attrfn.gradient(model, IMAGES, target=target), signed)


@captum_marks_inputs
@each_target
def test_input_x_gradient(make, target):
    model = make()
    same(
        attrfn.input_x_gradient(model, IMAGES, target=target),
        attr.InputXGradient(model).attribute(IMAGES, target=target),
    )


@captum_marks_inputs
def test_gradients_of_two_inputs():
    model, target = two_inputs(), torch.tensor([0, 3, 1, 2])
    same(
        attrfn.saliency(model, PAIR, target=target),
        attr.Saliency(model).attribute(PAIR, target=target),
    )
    same(
        attrfn.input_x_gradient(model, PAIR, target=target),
        attr.InputXGradient(model).attribute(PAIR, target=target),
    )


@captum_marks_inputs
def test_gradients_of_a_model_without_a_target():
    def f(x):
        return (x**3).flatten(1).sum(1)

    same(attrfn.saliency(f, IMAGES), attr.Saliency(f).attribute(IMAGES))


@each_target
@pytest.mark.parametrize("rule", QUADRATURES)
def test_integrated_gradients(make, target, rule):
    model = make()
    want = attr.IntegratedGradients(model).attribute(
        IMAGES, IMAGES0, target=target, n_steps=12, method=QUADRATURES[rule]
    )
    got = attrfn.integrated_gradients(
        model, IMAGES, baselines=IMAGES0, target=target, n_steps=12, quadrature=rule
    )
    same(got, want)


def test_integrated_gradients_with_the_defaults_of_both():
    model = cnn()
    want = attr.IntegratedGradients(model).attribute(IMAGES, target=1)
    same(attrfn.integrated_gradients(model, IMAGES, target=1), want)


def test_integrated_gradients_by_trapezoids():
    """Captum weighs n nodes, n - 1 panels apart, with 1/n (1/2n at the ends): the weights sum to
    (n - 1)/n and its attributions are too small by that factor. Ours sum to 1.
    """
    model, n = cnn(), 10
    want = attr.IntegratedGradients(model).attribute(
        IMAGES, target=1, n_steps=n, method="riemann_trapezoid"
    )
    got = attrfn.integrated_gradients(
        model, IMAGES, target=1, n_steps=n, quadrature="riemann_trapezoid"
    )
    same(got * (n - 1) / n, want)
    constant = attrfn.integrated_gradients(
        lambda x: x[:, 0], torch.ones(1, 1), n_steps=n, quadrature="riemann_trapezoid"
    )
    same(constant, torch.ones(1, 1))


@pytest.mark.parametrize(
    "baselines",
    [None, 0.5, (0, 1.5), (PAIR0[0][:1], 0.25), PAIR0],
    ids=["none", "scalar", "scalars", "row_and_scalar", "tensors"],
)
@pytest.mark.parametrize("multiply", [True, False])
def test_integrated_gradients_of_two_inputs(baselines, multiply):
    """A lone scalar is one value for both inputs here; Captum wants a tuple of two."""
    model, target = two_inputs(), [(0,), (3,), (1,), (2,)]
    captum_baselines = (baselines,) * 2 if isinstance(baselines, float) else baselines
    want = attr.IntegratedGradients(model, multiply_by_inputs=multiply).attribute(
        PAIR, captum_baselines, target=target, n_steps=8
    )
    got = attrfn.integrated_gradients(
        model, PAIR, baselines=baselines, target=target, n_steps=8, multiply_by_inputs=multiply
    )
    same(got, want)


def test_completeness_delta_is_captums_convergence_delta():
    model, target = cnn(), [4, 0, 2]
    method = attr.IntegratedGradients(model)
    found, want = method.attribute(
        IMAGES, IMAGES0, target, n_steps=2, method="riemann_left", return_convergence_delta=True
    )
    assert want.abs().min() > 1e-3
    got = attrfn.completeness_delta(model, IMAGES, found, target=target, baselines=IMAGES0)
    same(got, want)


LINEAR = oracles.seeded(lambda: nn.Linear(3, 4), dtype=F32)
TABLE, TABLE0 = randn(6, 5, 3, dtype=F32), randn(7, 1, 3, dtype=F32)


@pytest.mark.parametrize("multiply", [True, False])
def test_gradient_shap_of_a_linear_model_from_one_baseline(multiply):
    """The one case in which no draw matters: (x - b) w."""
    want = attr.GradientShap(LINEAR, multiply_by_inputs=multiply).attribute(
        TABLE, TABLE0, target=2, n_samples=4
    )
    got = attrfn.gradient_shap(
        LINEAR, TABLE, baselines=TABLE0, target=2, n_samples=4, multiply_by_inputs=multiply
    )
    same(got, want)


def test_gradient_shap_agrees_in_distribution():
    """20000 draws each on a quadratic with a pool and noise: two means with their standard errors.

    Captum draws for each example, this library once for all of them; the distribution is the same.
    """
    n, pool = 20_000, randn(8, 6, 3, dtype=F32)

    def f(x):
        return (x**2).sum(1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = attr.GradientShap(f).attribute(TABLE, pool, n_samples=n, stdevs=0.5)
    got = attrfn.gradient_shap(f, TABLE, baselines=pool, n_samples=n, stdevs=0.5, key=1)
    one_draw = {
        "baselines": pool,
        "n_samples": 1,
        "stdevs": 0.5,
        "key": attrfn.random.split(2, 4000),
    }
    for i, x in enumerate(TABLE):
        spread = attrfn.gradient_shap(f, x.expand(4000, 3), **one_draw).std(0)
        assert ((got - want)[i].abs() < 5 * spread * (2 / n) ** 0.5).all()


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_where_no_draw_matters(kind):
    """A linear model's gradient is the same at every noisy input."""
    want = attr.NoiseTunnel(attr.Saliency(LINEAR)).attribute(
        TABLE, nt_type=kind, nt_samples=6, stdevs=0.7, target=1
    )
    method = attrfn.noise_tunnel(attrfn.saliency, kind=kind, n_samples=6, stdevs=0.7)
    same(method(LINEAR, TABLE, target=1), want)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_agrees_in_distribution(kind):
    """20000 draws each on a cubic. Both take the variance over n, not n - 1."""
    n = 20_000

    def f(x):
        return (x**3).sum(1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = attr.NoiseTunnel(attr.InputXGradient(f)).attribute(
            TABLE, nt_type=kind, nt_samples=n, stdevs=0.3
        )
    options = {"n_samples": n, "stdevs": 0.3, "key": 1}
    got = attrfn.noise_tunnel(attrfn.input_x_gradient, kind=kind, **options)(f, TABLE)
    a = attrfn.noise_tunnel(attrfn.input_x_gradient, kind="samples", **options)(f, TABLE)
    a = {"smoothgrad": a, "smoothgrad_sq": a**2, "vargrad": (a - a.mean(0)) ** 2}[kind]
    gap = (got - want).abs() / (a.std(0) * (2 / n) ** 0.5)
    assert gap.max() < 5


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
