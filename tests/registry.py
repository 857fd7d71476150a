"""One row per method; the transform matrix is this table times the files ``test_<transform>.py``.

A new method needs one row here. ``explain(row, net)`` runs it with all that it needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from made_methods import (
    against_another,
    at_layer,
    at_neuron,
    delta_of_squares,
    edited,
    gradient_by,
    grouped,
    of_each,
    of_features,
    of_two,
    there_and_back,
    tunnel,
    with_layer,
    with_rows,
)
from models import NETS, RECTIFIED, Net, targets

import attrfn
from attrfn.testing._trial import Trial

Given = Any  # of explain: an option that the caller may leave to the row
UNSET: Given = object()


class Row(NamedTuple):
    """A method with the options it is tested with, and what is true of it.

    Attributes:
        name: The row's name, by which tests are called.
        method: ``method(model_fn, inputs, **options) -> attributions``.
        options: Options beyond those that ``explain`` adds.
        covers: The public names of attrfn that the row exercises.
        explains: What the result is like: ``"input"``, ``"layer"`` (the layer's activation),
            ``"layer input"``, ``"map"`` (a class activation map of the layer), ``"features"`` (one
            number for each), ``"pairs"`` (a matrix of the features), ``"output"`` or ``"example"``
            (one number per example).
        target: Takes a target.
        layer: Takes a layer.
        neuron: Takes a neuron.
        baselines: None, ``"point"`` (one per example) or ``"pool"`` (K to draw from).
        keyed: Random, with ``key``.
        noisy: Adds noise, with ``stdevs``.
        copies: The option that says how many copies of the batch are evaluated, or None.
        chunked: Takes ``chunk_size``.
        batching: Takes ``batching``.
        create_graph: Takes ``create_graph`` (what does not is always differentiable).
        gradient: The attributions are of first order, so that their derivative is of second.
        complete: Over all entries they sum to f(x) - f(x0) (of the neuron: n(x) - n(x0)), where
            the layer cuts the network; ``n_steps`` makes it exact.
        batch_dim: The dimension of the examples in the result.
        mixes: The examples reach each other.
        warns: How a warning begins that is right on some of the nets.
        images: Needs inputs of the form (B, C, *spatial).
        relu: Has a rule for ReLU, and so needs a net that has one.
        rules: Has rules for all operations, so that equal functions written in different ones can
            get different attributions.
        frozen: The rules' coefficients count as constants, so that the derivative of the result is
            not that of the attributions.
    """

    name: str
    method: Callable[..., Any]
    options: dict[str, Any]
    covers: tuple[str, ...]
    explains: str
    target: bool
    layer: bool
    neuron: bool
    baselines: str | None
    keyed: bool
    noisy: bool
    copies: str | None
    chunked: bool
    batching: bool
    create_graph: bool
    gradient: bool
    complete: bool
    batch_dim: int
    mixes: bool
    warns: str
    images: bool
    relu: bool
    rules: bool
    frozen: bool

    @property
    def spatial(self) -> bool:
        """Whether it needs a net with a layer, or inputs, of the form (B, C, *spatial)."""
        return self.images or self.explains == "map"

    @property
    def net(self) -> Net:
        """The net that the row is tested on where one is enough."""
        return RECTIFIED["relu"] if self.relu else NETS["cnn" if self.spatial else "mlp"]


def row(
    name: str,
    method: Callable[..., Any] | None = None,
    covers: Iterable[str] = (),
    *,
    explains: str = "input",
    target: bool = True,
    layer: bool = False,
    neuron: bool = False,
    baselines: str | None = None,
    keyed: bool = False,
    noisy: bool = False,
    copies: str | None = None,
    chunked: bool | None = None,
    batching: bool = False,
    create_graph: bool = True,
    gradient: bool = True,
    complete: bool = False,
    batch_dim: int = 0,
    mixes: bool = False,
    warns: str = "",
    images: bool = False,
    relu: bool = False,
    rules: bool = False,
    frozen: bool = False,
    **options: Any,
) -> Row:
    """A row; the method is by default the public function of the row's name."""
    covers = (name, *covers) if hasattr(attrfn, name) else tuple(covers)
    method = method or getattr(attrfn, name)
    if copies is not None:
        options = {copies: 3, **options}
    return Row(
        name,
        method,
        options,
        covers,
        explains,
        target,
        layer,
        neuron,
        baselines,
        keyed,
        noisy,
        copies,
        copies is not None if chunked is None else chunked,
        batching,
        create_graph,
        gradient,
        complete,
        batch_dim,
        mixes,
        ".*met no ReLU" if relu else warns,  # on the nets without one
        images,
        relu,
        rules,
        frozen,
    )


_layer = functools.partial(row, explains="layer", layer=True)
_neuron = functools.partial(row, target=False, layer=True, neuron=True)
_cam = functools.partial(row, explains="map", layer=True)
_path = {"copies": "n_steps", "batching": True, "baselines": "point"}
_shap = {"copies": "n_samples", "batching": True, "baselines": "pool", "keyed": True, "noisy": True}
_noisy = {"copies": "n_samples", "keyed": True, "noisy": True}

_complete = {"rules": True, "baselines": "point", "complete": True}
_over_pool = {"rules": True, "baselines": "pool", "chunked": True}

_perturbing = functools.partial(row, chunked=True, batching=True, gradient=False)
_sampling = {"copies": "n_samples", "keyed": True}

LRP_RULES = {
    "gamma": attrfn.rules.gamma(),
    "epsilon_plus_flat": attrfn.rules.epsilon_plus_flat(),
    "epsilon_gamma_box": attrfn.rules.epsilon_gamma_box(-4.0, 4.0),
    "attn_lrp": attrfn.rules.attn_lrp(),
    "cp_lrp": attrfn.rules.cp_lrp(),
}

REGISTRY = [
    # inputs
    row("gradient"),
    row("saliency"),
    row("input_x_gradient", baselines="point"),
    row("integrated_gradients", complete=True, **_path),
    row("gradient_shap", stdevs=0.2, **_shap),
    row("smoothgrad", tunnel(attrfn.gradient), ["noise_tunnel"], **_noisy),
    row("smoothgrad_sq", tunnel(attrfn.gradient, "smoothgrad_sq"), ["noise_tunnel"], **_noisy),
    row("vargrad", tunnel(attrfn.saliency, "vargrad"), ["noise_tunnel"], **_noisy),
    row(
        "noisy_samples",
        tunnel(attrfn.input_x_gradient, "samples"),
        ["noise_tunnel"],
        baselines="point",
        batch_dim=1,
        **_noisy,
    ),
    row(
        "noisy_drawn_baselines",
        tunnel(
            functools.partial(attrfn.integrated_gradients, n_steps=2, chunk_size=1),
            draw_baselines=True,
        ),
        ["noise_tunnel"],
        baselines="pool",
        **_noisy,
    ),
    row("each_gradient", of_each(attrfn.gradient), ["each_output"]),
    row(
        "each_rescale",
        of_each(attrfn.deep_lift),
        ["each_output"],
        **_complete,
    ),
    row(
        "chained",
        attrfn.chain(
            attrfn.average(attrfn.gradient, attrfn.absolute(attrfn.gradient)),
            functools.partial(
                attrfn.relative_to, reference=attrfn.normalized(attrfn.input_x_gradient)
            ),
        ),
        ["absolute", "average", "chain", "normalized", "relative_to"],
    ),
    row("contrasted", against_another(attrfn.gradient), ["contrast", "pooled"]),
    row("ensemble_of_gradients", of_two(attrfn.gradient), ["ensemble"]),
    row(
        "gradient_times_background",
        attrfn.over_baselines(attrfn.input_x_gradient),
        ["over_baselines"],
        baselines="pool",
        chunked=False,
    ),
    row("contrasted_noise", against_another(tunnel(attrfn.gradient)), ["contrast"], **_noisy),
    row(
        "contrasted_background",
        against_another(attrfn.over_baselines(attrfn.input_x_gradient)),
        ["contrast", "over_baselines"],
        baselines="pool",
        chunked=False,
    ),
    row("contrasted_ensemble", against_another(of_two(attrfn.gradient)), ["contrast"]),
    row(
        "each_of_a_background",
        of_each(attrfn.over_baselines(attrfn.input_x_gradient)),
        ["each_output", "over_baselines"],
        baselines="pool",
        chunked=False,
    ),
    row("rows_of_a_model", with_rows(attrfn.gradient), ["per_example", "shared"]),
    row(
        "rows_of_a_model_on_a_path",
        with_rows(attrfn.integrated_gradients),
        ["per_example", "shared"],
        complete=True,
        **_path,
    ),
    row(
        "completeness_delta",
        delta_of_squares,
        ["completeness_delta"],
        explains="example",
        baselines="point",
        gradient=False,
    ),
    row(
        "scores_of_features",
        of_features(attrfn.input_x_gradient),
        ["feature_scores"],
        explains="features",
        baselines="point",
    ),
    # rules
    row("guided_backprop", relu=True),
    row("deconvolution", relu=True),
    row("deep_lift", **_complete),
    row(
        "reveal_cancel",
        functools.partial(attrfn.deep_lift, rule="reveal_cancel"),
        ["deep_lift"],
        **_complete,
    ),
    row(
        "multipliers",
        functools.partial(attrfn.deep_lift, multiply_by_inputs=False),
        ["deep_lift"],
        **{**_complete, "complete": False},
    ),
    row("deep_lift_shap", **_over_pool),
    row("lrp", rules=True),
    *[
        row(
            f"lrp_{name}",
            functools.partial(attrfn.lrp, rules=rules),
            ["lrp"],
            rules=True,
            warns=".*rule first= has no effect",  # on nets that begin with a ReLU
        )
        for name, rules in LRP_RULES.items()
    ],
    row(
        "with_rescale",
        gradient_by(attrfn.rules.rescale),
        ["with_rules"],
        baselines="point",
        rules=True,
        frozen=True,
    ),
    row(
        "with_attn_lrp",
        gradient_by(attrfn.rules.attn_lrp),
        ["with_rules"],
        rules=True,
        frozen=True,
    ),
    # perturbation
    _perturbing("feature_ablation", baselines="point"),
    _perturbing("occlusion", baselines="point", window=2, stride=1),
    _perturbing("feature_permutation", mixes=True, **_sampling),
    _perturbing(
        "shapley_values", grouped(attrfn.shapley_values), baselines="point", complete=False
    ),
    _perturbing("shapley_value_sampling", baselines="point", **_sampling),
    _perturbing(
        "antithetic_sampling",
        functools.partial(attrfn.shapley_value_sampling, antithetic=True),
        ["shapley_value_sampling"],
        baselines="point",
        **_sampling,
    ),
    _perturbing(
        "kernel_shap",
        grouped(attrfn.kernel_shap, 4),
        baselines="point",
        **{**_sampling, "n_samples": 7},
    ),
    _perturbing(
        "lime",
        grouped(functools.partial(attrfn.lime, surrogate=attrfn.surrogates.ridge(0.1))),
        baselines="point",
        **{**_sampling, "n_samples": 6},
    ),
    _perturbing(
        "lime_lasso",
        grouped(attrfn.lime),
        ["lime"],
        baselines="point",
        **{**_sampling, "n_samples": 6},
    ),
    _perturbing("rise", baselines="point", images=True, grid=2, **_sampling),
    _perturbing(
        "exact_interactions",
        grouped(attrfn.interactions),
        ["interactions"],
        explains="pairs",
        baselines="point",
    ),
    _perturbing(
        "interactions",
        grouped(functools.partial(attrfn.interactions, index="shapley")),
        explains="pairs",
        baselines="point",
        **_sampling,
    ),
    row(
        "integrated_hessians",
        grouped(attrfn.integrated_hessians),
        explains="pairs",
        warns="the sum of integrated_hessians",  # a net of ReLU, or three steps
        **_path,
    ),
    # layers
    row(
        "split",
        there_and_back,
        ["split", "Split"],
        explains="output",
        target=False,
        layer=True,
        create_graph=False,
        gradient=False,
    ),
    row("edited", edited(attrfn.gradient), ["intervene", "Site"], layer=True),
    row("read_with_a_layer", with_layer(attrfn.gradient), ["activations"], layer=True),
    _layer("layer_activation", target=False, gradient=False),
    _layer("layer_saliency", at_layer(attrfn.saliency), ["at_layer"]),
    _layer(
        "layer_input_x_gradient_at_input",
        at_layer(attrfn.input_x_gradient, at="input"),
        ["at_layer"],
        explains="layer input",
        baselines="point",
    ),
    _layer("layer_smoothgrad", at_layer(tunnel(attrfn.gradient)), ["at_layer"], **_noisy),
    _layer("noisy_layer_saliency", tunnel(at_layer(attrfn.saliency)), ["at_layer"], **_noisy),
    _layer(
        "ensemble_of_noisy_layers",
        of_two(tunnel(at_layer(attrfn.gradient))),
        ["ensemble", "noise_tunnel", "at_layer"],
        **_noisy,
    ),
    _layer("layer_gradient_x_activation"),
    _layer("layer_integrated_gradients", complete=True, **_path),
    _layer("layer_gradient_shap", stdevs=0.2, **_shap),
    _layer("layer_conductance", complete=True, **_path),
    _layer("layer_deep_lift", **_complete),
    _layer("layer_deep_lift_shap", **_over_pool),
    _layer("layer_lrp", rules=True),
    _layer("layer_feature_ablation", chunked=True, batching=True, gradient=False),
    _layer("layer_feature_permutation", mixes=True, batching=True, gradient=False, **_sampling),
    _layer("internal_influence", **_path),
    # neurons
    _neuron("neuron_gradient"),
    _neuron("neuron_saliency", at_neuron(attrfn.saliency), ["at_neuron"]),
    _neuron("neuron_smoothgrad", at_neuron(tunnel(attrfn.gradient)), ["at_neuron"], **_noisy),
    _neuron("noisy_neuron_saliency", tunnel(at_neuron(attrfn.saliency)), ["at_neuron"], **_noisy),
    _neuron("neuron_integrated_gradients", complete=True, **_path),
    _neuron("neuron_gradient_shap", stdevs=0.2, **_shap),
    _neuron("neuron_conductance", **{**_path, "target": True}),
    _neuron("neuron_deep_lift", **_complete),
    _neuron("neuron_deep_lift_shap", **_over_pool),
    _neuron(
        "neuron_feature_ablation", baselines="point", chunked=True, batching=True, gradient=False
    ),
    _neuron("neuron_guided_backprop", relu=True),
    _neuron("neuron_deconvolution", relu=True),
    # class activation maps
    row("guided_grad_cam", layer=True, relu=True, images=True),
    _cam("grad_cam"),
    _cam("hires_cam"),
    _cam("grad_cam_plus_plus", upsample="area"),
    _cam("xgrad_cam", relu=True),
    _cam("layer_cam", upsample="nearest"),
    _cam("eigen_cam", target=False, gradient=False),
    _cam("ablation_cam", chunked=True, batching=True, gradient=False),
    _cam("score_cam", images=True, baselines="point", chunked=True, batching=True, gradient=False),
]

ROWS = {r.name: r for r in REGISTRY}


def explain(
    r: Row,
    net: Net,
    model_fn: Any = None,
    inputs: Any = None,
    *,
    target: Given = UNSET,
    **options: Any,
) -> Any:
    """Run a row on a net: what it takes and is not given, it gets.

    Args:
        r: The row.
        net: The net whose layer, neuron and baselines are used.
        model_fn: The model function (default: the net's model).
        inputs: Its inputs (default: the net's inputs, three examples).
        target: The target (default: one class per example); ignored by a row without target.
        **options: What else the method gets, over the row's own options.
    """
    model_fn = net.build() if model_fn is None else model_fn
    inputs = net.inputs() if inputs is None else inputs
    given = {**needs(r, net), **options}
    if r.target:
        given["target"] = targets(inputs.shape[0]) if target is UNSET else target
    return r.method(model_fn, inputs, **given)


def needs(r: Row, net: Net) -> dict[str, Any]:
    """The options that a row is tested with on a net, without a target."""
    given = dict(r.options)
    if r.layer:
        given["layer"] = "mid"
    if r.neuron:
        given["neuron"] = net.neuron
    if r.baselines == "point":
        given["baselines"] = 0.1
    if r.baselines == "pool":
        given["baselines"] = net.pool
    return given


def tensors(r: Row, net: Net, batch: int = 3) -> dict[str, Any]:
    """All that the row needs, with tensors wherever an option can be one."""
    given = needs(r, net)
    if r.baselines == "point":
        given["baselines"] = 0.1 + 0.2 * net.inputs(batch, seed=5)
    if r.target:
        given["target"] = targets(batch)
    if r.keyed:
        given["key"] = attrfn.random.key(4)
    if r.noisy:
        given["stdevs"] = torch.tensor(0.2, dtype=torch.float64)
    return given


def trial(r: Row, net: Net, batch: int = 3, **options: Any) -> Trial:
    """The row on a net, for the checks of attrfn.testing; with other options than its own."""
    return Trial(
        r.method,
        net.build,
        net.inputs,
        lambda x: {**tensors(r, net, len(x)), **options},
        batch=batch,
        seed=1,
        dim=r.batch_dim,
        of_rows=frozenset(
            ["target", "key"] if r.baselines == "pool" else ["target", "key", "baselines"]
        ),
        like_inputs=r.explains == "input",
        graph={"create_graph": True} if r.create_graph else {},
        informative=r.name != "lime_lasso",  # a lasso of a few samples can be 0
        tolerance=1e-11,
        slopes=1e-6,
        again=0.0,
    )


def rows(keep: Callable[[Row], bool] = lambda r: True) -> Any:
    """Parametrise a test over the rows, as ``r``."""
    kept = [pytest.param(r, id=r.name, marks=_marks(r)) for r in REGISTRY if keep(r)]
    return pytest.mark.parametrize("r", kept)


def primary() -> list[str]:
    """The first row of each public name, its own before those of others."""
    first = {name: r.name for r in reversed(REGISTRY) for name in r.covers}
    return sorted({name if name in ROWS else first[name] for name in first})


def _marks(r: Row) -> list[Any]:
    return [pytest.mark.filterwarnings(f"ignore:{r.warns}")] if r.warns else []


# Each public name once, where a test takes seconds for a row.
primary_rows = rows(lambda r: r.name in primary())


def rows_and_nets(keep: Callable[[Row, Net], bool] = lambda r, net: True) -> Any:
    """Parametrise a test over the rows times the nets on which they make sense, as ``r, net``."""
    cells = [
        pytest.param(r, net, id=f"{r.name}-{name}", marks=_marks(r))
        for r in REGISTRY
        for name, net in (RECTIFIED if r.relu else NETS).items()
        if (net.spatial or not r.spatial) and keep(r, net)
    ]
    return pytest.mark.parametrize(("r", "net"), cells)
