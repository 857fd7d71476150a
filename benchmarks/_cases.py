"""Every method of the library and its counterpart in Captum, for benchmarks that run them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from captum import attr
from torch import Tensor, nn

import attrfn

STEPS = 32
SAMPLES = 8
COALITIONS = 128
GROUPS = 16
LAYERS = {"MLP": "layers.1", "CNN": "features.4", "transformer": "encoder.layers.0"}
HEADS = {
    "MLP": lambda model: model.layers[:2],
    "CNN": lambda model: model.features[:5],
    "transformer": lambda model: model.encoder.layers[0],
}
NEURONS = {"MLP": (3,), "CNN": (2, 4, 4), "transformer": (3, 4)}
IMAGES = ("CNN",)
EVERYWHERE = ("MLP", "CNN", "transformer")
Run = Callable[[], Any]


class Bench(NamedTuple):
    """What a case is run on.

    Attributes:
        name: The model's.
        model: It.
        x: Inputs, B rows.
        target: A class for each row.
        others: Other inputs, as many rows.
        layer: The name of a layer.
    """

    name: str
    model: nn.Module
    x: Tensor
    target: Tensor
    others: Tensor
    layer: str

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.layer)

    @property
    def mask(self) -> Tensor:
        """16 features: equal parts of the columns, squares of 8 x 8 pixels, pairs of tokens."""
        if self.name == "CNN":
            ids = torch.arange(16).reshape(4, 4)
            ids = ids.repeat_interleave(8, 0).repeat_interleave(8, 1)
        elif self.name == "transformer":
            ids = torch.arange(32)[:, None] // 2
        else:
            ids = torch.arange(784) // 49
        return ids.to(self.x.device)

    @property
    def window(self) -> tuple[int, ...]:
        """A window of the same features."""
        return {"MLP": (49,), "CNN": (3, 8, 8), "transformer": (2, 64)}[self.name]


Options = Callable[[Bench], Mapping[str, Any]]


class Case(NamedTuple):
    """A method and what it is compared with.

    Attributes:
        method: The method.
        options: Its options on a Bench.
        rows: How many rows the model has to see, as a multiple of the batch.
        backward: Whether each of those rows needs a backward pass, too.
        target: Whether it takes a target.
        captum: From a Bench and the arguments of its tuning to Captum's run.
        tunings: The arguments to choose the best of; the first are Captum's defaults.
        models: Where it is run.
        own: Whether its own arithmetic can be told from the model's (not of rules, which change
            the model's, nor of what stops at a layer).
        agrees: On which models Captum computes the same numbers.
        tangent: Whether its formula has the derivative of the layer along the path, too: counted
            as its own arithmetic, at the price of one more pass up to the layer.
    """

    method: Callable[..., Any]
    options: Options
    rows: int
    backward: bool = True
    target: bool = True
    captum: Callable[..., Run] | None = None
    tunings: tuple[Mapping[str, Any], ...] = ({},)
    models: tuple[str, ...] = EVERYWHERE
    own: bool = True
    agrees: tuple[str, ...] = ()
    tangent: bool = False


def nothing(b: Bench) -> Mapping[str, Any]:
    return {}


def fixed(**options: Any) -> Options:
    return lambda b: options


def both(*parts: Options) -> Options:
    return lambda b: {name: value for part in parts for name, value in part(b).items()}


def at_layer(b: Bench) -> Mapping[str, Any]:
    return {"layer": b.layer}


def at_neuron(b: Bench) -> Mapping[str, Any]:
    return {"layer": b.layer, "neuron": NEURONS[b.name]}


def captums_neuron(b: Bench) -> Mapping[str, Any]:
    return {"neuron_selector": NEURONS[b.name]}


def grouped(b: Bench) -> Mapping[str, Any]:
    return {"feature_mask": b.mask, "n_features": GROUPS}


def captums_groups(b: Bench) -> Mapping[str, Any]:
    return {"feature_mask": b.mask.expand_as(b.x[:1])}


def halves(b: Bench) -> Mapping[str, Any]:
    """Half as many features, for what looks at all of their coalitions."""
    return {"feature_mask": b.mask // 2, "n_features": GROUPS // 2}


def sliding(b: Bench) -> Mapping[str, Any]:
    return {"window": b.window, "stride": b.window}


def captums_sliding(b: Bench) -> Mapping[str, Any]:
    return {"sliding_window_shapes": b.window, "strides": b.window}


def pool(b: Bench) -> Mapping[str, Any]:
    return {"baselines": b.others}


def layer_groups(b: Bench) -> Mapping[str, Any]:
    """The layer's activations in 16 features: runs of units, channels or tokens."""
    axes = {"MLP": (512,), "CNN": (64, 1, 1), "transformer": (32, 1)}[b.name]
    ids = torch.arange(axes[0], device=b.x.device) // (axes[0] // GROUPS)
    return {"layer_mask": ids.reshape(axes), "n_features": GROUPS}


def captums_layer_groups(b: Bench) -> Mapping[str, Any]:
    shape = {"MLP": (512,), "CNN": (64, 16, 16), "transformer": (32, 64)}[b.name]
    return {"layer_mask": layer_groups(b)["layer_mask"].expand(1, *shape)}


def captum(
    method: type, options: Options = nothing, *, layer: bool = False, target: bool = True
) -> Callable[..., Run]:
    def run(b: Bench, **tuning: Any) -> Run:
        made = method(b.model, b.module) if layer else method(b.model)
        given = {**options(b), **tuning, **({"target": b.target} if target else {})}
        return lambda: made.attribute(b.x, **given)

    return run


def captums_tunnel(b: Bench, **tuning: Any) -> Run:
    made = attr.NoiseTunnel(attr.Saliency(b.model))
    given = {"nt_samples": SAMPLES, "stdevs": 0.1, "abs": False, "target": b.target}
    return lambda: made.attribute(b.x, **given, **tuning)


def captums_rows(method: type) -> Callable[..., Run]:
    """Captum's surrogate models, which explain one row after the other."""

    def run(b: Bench, **tuning: Any) -> Run:
        made = method(b.model)
        given = {**captums_groups(b), "n_samples": COALITIONS, **tuning}
        return lambda: torch.cat(
            [
                made.attribute(x[None], target=int(t), **given)
                for x, t in zip(b.x, b.target, strict=True)
            ]
        )

    return run


def inner(*sizes: int) -> tuple[Mapping[str, Any], ...]:
    return ({}, *({"internal_batch_size": size} for size in sizes))


def evals(*counts: int) -> tuple[Mapping[str, Any], ...]:
    return ({}, *({"perturbations_per_eval": n} for n in counts))


STEP = fixed(n_steps=STEPS)
NOISY = fixed(n_samples=SAMPLES, stdevs=0.1)
EPSILON = fixed(rules=attrfn.rules.epsilon())

CASES: dict[str, Case] = {
    "gradient": Case(
        attrfn.gradient,
        nothing,
        1,
        captum=captum(attr.Saliency, fixed(abs=False)),
        agrees=EVERYWHERE,
    ),
    "saliency": Case(attrfn.saliency, nothing, 1, captum=captum(attr.Saliency), agrees=EVERYWHERE),
    "input_x_gradient": Case(
        attrfn.input_x_gradient, nothing, 1, captum=captum(attr.InputXGradient), agrees=EVERYWHERE
    ),
    "integrated_gradients": Case(
        attrfn.integrated_gradients,
        STEP,
        STEPS,
        captum=captum(attr.IntegratedGradients, STEP),
        tunings=inner(64, 128),
        agrees=EVERYWHERE,
    ),
    "gradient_shap": Case(
        attrfn.gradient_shap,
        both(pool, NOISY),
        SAMPLES,
        captum=captum(attr.GradientShap, both(pool, NOISY)),
    ),
    "smoothgrad": Case(
        attrfn.noise_tunnel(attrfn.gradient, n_samples=SAMPLES, stdevs=0.1),
        nothing,
        SAMPLES,
        captum=captums_tunnel,
        tunings=({}, {"nt_samples_batch_size": 2}),
    ),
    "integrated_hessians": Case(
        attrfn.integrated_hessians, both(grouped, fixed(n_steps=8)), 8 * (1 + GROUPS), own=False
    ),
    "guided_backprop": Case(
        attrfn.guided_backprop,
        nothing,
        1,
        captum=captum(attr.GuidedBackprop),
        own=False,
        agrees=("MLP", "CNN"),
    ),
    "deconvolution": Case(
        attrfn.deconvolution,
        nothing,
        1,
        captum=captum(attr.Deconvolution),
        own=False,
        agrees=("MLP", "CNN"),
    ),
    "deep_lift": Case(
        attrfn.deep_lift, nothing, 2, captum=captum(attr.DeepLift), own=False, agrees=("MLP",)
    ),
    "deep_lift_shap": Case(
        attrfn.deep_lift_shap,
        pool,
        2 * 8,
        captum=captum(attr.DeepLiftShap, pool),
        own=False,
        agrees=("MLP",),
    ),
    "lrp": Case(attrfn.lrp, EPSILON, 1, captum=captum(attr.LRP), own=False, agrees=("MLP", "CNN")),
    "feature_ablation": Case(
        attrfn.feature_ablation,
        grouped,
        GROUPS + 1,
        captum=captum(attr.FeatureAblation, captums_groups),
        tunings=evals(4, 16),
        agrees=EVERYWHERE,
        backward=False,
    ),
    "occlusion": Case(
        attrfn.occlusion,
        sliding,
        GROUPS + 1,
        captum=captum(attr.Occlusion, captums_sliding),
        tunings=evals(4, 16),
        agrees=EVERYWHERE,
        backward=False,
    ),
    "feature_permutation": Case(
        attrfn.feature_permutation,
        grouped,
        GROUPS + 1,
        captum=captum(attr.FeaturePermutation, captums_groups),
        tunings=evals(4, 16),
        backward=False,
    ),
    # Captum's goes through all n! orders of the features instead of the 2^n coalitions.
    "shapley_values": Case(attrfn.shapley_values, halves, 2 ** (GROUPS // 2), backward=False),
    "shapley_value_sampling": Case(
        attrfn.shapley_value_sampling,
        both(grouped, fixed(n_samples=SAMPLES)),
        SAMPLES * (GROUPS - 1) + 2,
        captum=captum(attr.ShapleyValueSampling, both(captums_groups, fixed(n_samples=SAMPLES))),
        tunings=evals(4, 16),
        backward=False,
    ),
    "kernel_shap": Case(
        attrfn.kernel_shap,
        both(grouped, fixed(n_samples=COALITIONS)),
        COALITIONS + 2,
        captum=captums_rows(attr.KernelShap),
        tunings=evals(16, 128),
        backward=False,
    ),
    "lime": Case(
        attrfn.lime,
        both(grouped, fixed(n_samples=COALITIONS)),
        COALITIONS + 1,
        captum=captums_rows(attr.Lime),
        tunings=evals(16, 128),
        backward=False,
    ),
    "rise": Case(
        attrfn.rise, fixed(n_samples=COALITIONS, grid=4), COALITIONS, models=IMAGES, backward=False
    ),
    "interactions": Case(
        attrfn.interactions,
        both(grouped, fixed(n_samples=2, index="shapley")),
        2 * (16 * 17 // 2 - 1) + 2,  # per ordering a coalition for i <= j, x itself known; x and x0
        backward=False,
    ),
    "layer_activation": Case(
        attrfn.layer_activation,
        at_layer,
        1,
        target=False,
        captum=captum(attr.LayerActivation, layer=True, target=False),
        own=False,
        agrees=EVERYWHERE,
        backward=False,
    ),
    "layer_gradient_x_activation": Case(
        attrfn.layer_gradient_x_activation,
        at_layer,
        1,
        captum=captum(attr.LayerGradientXActivation, layer=True),
        agrees=EVERYWHERE,
    ),
    "layer_integrated_gradients": Case(
        attrfn.layer_integrated_gradients,
        both(at_layer, STEP),
        STEPS,
        captum=captum(attr.LayerIntegratedGradients, STEP, layer=True),
        tunings=inner(64, 128),
        agrees=EVERYWHERE,
    ),
    "layer_conductance": Case(
        attrfn.layer_conductance,
        both(at_layer, STEP),
        STEPS,
        captum=captum(attr.LayerConductance, STEP, layer=True),
        tunings=inner(64, 128),
        tangent=True,
    ),
    "internal_influence": Case(
        attrfn.internal_influence,
        both(at_layer, STEP),
        STEPS,
        captum=captum(attr.InternalInfluence, STEP, layer=True),
        tunings=inner(64, 128),
        agrees=EVERYWHERE,
    ),
    "layer_gradient_shap": Case(
        attrfn.layer_gradient_shap,
        both(at_layer, pool, NOISY),
        SAMPLES,
        captum=captum(attr.LayerGradientShap, both(pool, NOISY), layer=True),
    ),
    "layer_deep_lift": Case(
        attrfn.layer_deep_lift,
        at_layer,
        2,
        captum=captum(attr.LayerDeepLift, layer=True),
        own=False,
        agrees=("MLP",),
    ),
    "layer_deep_lift_shap": Case(
        attrfn.layer_deep_lift_shap,
        both(at_layer, pool),
        2 * 8,
        captum=captum(attr.LayerDeepLiftShap, pool, layer=True),
        own=False,
        agrees=("MLP",),
    ),
    "layer_lrp": Case(
        attrfn.layer_lrp,
        both(at_layer, EPSILON),
        1,
        captum=captum(attr.LayerLRP, layer=True),
        own=False,
        agrees=("MLP", "CNN"),
    ),
    "layer_feature_ablation": Case(
        attrfn.layer_feature_ablation,
        both(at_layer, layer_groups),
        GROUPS + 1,
        captum=captum(attr.LayerFeatureAblation, captums_layer_groups, layer=True),
        tunings=evals(4, 16),
        own=False,
        agrees=EVERYWHERE,
        backward=False,
    ),
    "layer_feature_permutation": Case(
        attrfn.layer_feature_permutation,
        both(at_layer, layer_groups),
        GROUPS + 1,
        own=False,
        backward=False,
    ),
    "neuron_gradient": Case(
        attrfn.neuron_gradient,
        at_neuron,
        1,
        captum=captum(attr.NeuronGradient, captums_neuron, layer=True, target=False),
        agrees=EVERYWHERE,
        target=False,
        own=False,
    ),
    "neuron_integrated_gradients": Case(
        attrfn.neuron_integrated_gradients,
        both(at_neuron, STEP),
        STEPS,
        captum=captum(
            attr.NeuronIntegratedGradients, both(captums_neuron, STEP), layer=True, target=False
        ),
        tunings=inner(64, 128),
        agrees=EVERYWHERE,
        target=False,
        own=False,
    ),
    "neuron_gradient_shap": Case(
        attrfn.neuron_gradient_shap,
        both(at_neuron, pool, NOISY),
        SAMPLES,
        captum=captum(
            attr.NeuronGradientShap, both(captums_neuron, pool, NOISY), layer=True, target=False
        ),
        target=False,
        own=False,
    ),
    "neuron_conductance": Case(
        attrfn.neuron_conductance,
        both(at_neuron, STEP),
        STEPS,
        captum=captum(attr.NeuronConductance, both(captums_neuron, STEP), layer=True),
        tunings=inner(64, 128),
        own=False,
    ),
    "neuron_deep_lift": Case(
        attrfn.neuron_deep_lift,
        at_neuron,
        2,
        captum=captum(attr.NeuronDeepLift, captums_neuron, layer=True, target=False),
        agrees=("MLP",),
        target=False,
        own=False,
    ),
    "neuron_deep_lift_shap": Case(
        attrfn.neuron_deep_lift_shap,
        both(at_neuron, pool),
        2 * 8,
        captum=captum(
            attr.NeuronDeepLiftShap, both(captums_neuron, pool), layer=True, target=False
        ),
        agrees=("MLP",),
        target=False,
        own=False,
    ),
    "neuron_feature_ablation": Case(
        attrfn.neuron_feature_ablation,
        both(at_neuron, grouped),
        GROUPS + 1,
        captum=captum(
            attr.NeuronFeatureAblation,
            both(captums_neuron, captums_groups),
            layer=True,
            target=False,
        ),
        tunings=evals(4, 16),
        agrees=EVERYWHERE,
        backward=False,
        target=False,
        own=False,
    ),
    "neuron_guided_backprop": Case(
        attrfn.neuron_guided_backprop,
        at_neuron,
        1,
        captum=captum(attr.NeuronGuidedBackprop, captums_neuron, layer=True, target=False),
        agrees=("MLP", "CNN"),
        target=False,
        own=False,
    ),
    "neuron_deconvolution": Case(
        attrfn.neuron_deconvolution,
        at_neuron,
        1,
        captum=captum(attr.NeuronDeconvolution, captums_neuron, layer=True, target=False),
        agrees=("MLP", "CNN"),
        target=False,
        own=False,
    ),
    "guided_grad_cam": Case(
        attrfn.guided_grad_cam,
        at_layer,
        2,
        captum=captum(attr.GuidedGradCam, layer=True),
        models=IMAGES,
        own=False,
    ),
    "grad_cam": Case(
        attrfn.grad_cam,
        at_layer,
        1,
        captum=captum(attr.LayerGradCam, layer=True),
        models=IMAGES,
        agrees=IMAGES,
    ),
    "hires_cam": Case(attrfn.hires_cam, at_layer, 1, models=IMAGES),
    "grad_cam_plus_plus": Case(attrfn.grad_cam_plus_plus, at_layer, 1, models=IMAGES),
    "xgrad_cam": Case(attrfn.xgrad_cam, at_layer, 1, models=IMAGES),
    "layer_cam": Case(attrfn.layer_cam, at_layer, 1, models=IMAGES),
    "eigen_cam": Case(
        attrfn.eigen_cam, at_layer, 1, target=False, models=IMAGES, own=False, backward=False
    ),
    "ablation_cam": Case(
        attrfn.ablation_cam, at_layer, 65, models=IMAGES, own=False, backward=False
    ),
    "score_cam": Case(attrfn.score_cam, at_layer, 66, models=IMAGES, own=False, backward=False),
}
