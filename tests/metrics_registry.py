"""One row per metric; ``test_metrics_transforms.py`` is this table times the transforms.

``measure(row, model, x)`` runs a metric with all that it needs. Attributions are a function of the
inputs, row by row, so that the transforms see them, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
from models import NETS, Net, targets
from torch import Tensor
from zoo import randn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity
from attrfn.testing._trial import Trial

MAP, SCORES, AGAIN, PAIR = "map", "scores", "again", "pair"


class Metric(NamedTuple):
    """A metric with the options that it is tested with, and what is true of it.

    Attributes:
        name: The public name.
        kind: Its signature: ``"map"`` (attributions), ``"scores"`` (model, inputs, attributions),
            ``"again"`` (model, inputs, method) or ``"pair"`` (two maps).
        options: Options beyond those that ``measure`` adds.
        net: The net that it is tested on.
        keyed: Random, with ``key``.
        many: Whether the key may be (B, 2).
        smooth: Differentiable in the inputs, and not constant.
        compiles: As one graph.
        chunked: Evaluates copies of the batch.
    """

    name: str
    kind: str
    options: dict[str, Any]
    net: Net
    keyed: bool
    many: bool
    smooth: bool
    compiles: bool
    chunked: bool

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(similarity if self.kind == PAIR else metrics, self.name)


def metric(
    name: str,
    kind: str,
    *,
    net: str = "mlp",
    keyed: bool = False,
    many: bool = True,
    smooth: bool = True,
    compiles: bool = True,
    chunked: bool | None = None,
    **options: Any,
) -> Metric:
    chunked = kind == SCORES if chunked is None else chunked
    return Metric(name, kind, options, NETS[net], keyed, many, smooth, compiles, chunked)


def _half(x: Any) -> Any:
    """A mask with elements inside and outside in every example."""
    places = torch.arange(x.shape[1:].numel()).reshape(x.shape[1:])
    return (places % 2 == 0)[None]


_scores = functools.partial(metric, kind=SCORES)
_again = functools.partial(metric, kind=AGAIN)
_near = functools.partial(_again, keyed=True, chunked=True, n_samples=3)

METRICS = [
    _scores("removal_curve", keyed=True, first="random", n_steps=3),
    _scores("deletion", n_steps=3),
    _scores("insertion", normalize=True),
    _scores("symmetric_relevance_gain"),
    _scores("aopc"),
    _scores("comprehensiveness", fractions=(0.3, 0.6)),
    _scores("sufficiency", fractions=(0.3, 0.6)),
    _scores("road", net="cnn", keyed=True, fractions=(0.3, 0.6), noise=0.1),
    _scores("sensitivity_n", keyed=True, sizes=(1, 2), n_samples=5),
    _scores("faithfulness_correlation", keyed=True, size=2, n_samples=5),
    _scores("faithfulness_estimate"),
    _scores("monotonicity", smooth=False),
    _scores("infidelity", keyed=True, n_samples=3, normalize=True),
    _scores("effective_complexity", smooth=False, tolerance=1e-4),
    _scores("dummy_violations", smooth=False, tolerance=0.2),
    _scores("completeness_delta", chunked=False),
    _near("sensitivity_max"),
    _near("sensitivity_avg", norm=1),
    _near("local_lipschitz"),
    _near("relative_input_stability", same_prediction=False),
    _near("relative_output_stability"),
    _near("relative_representation_stability", layer="mid"),
    _again("input_invariance", shift=0.5),
    _again("random_logit", keyed=True, n_classes=3, similarity=similarity.cosine),
    _again("model_parameter_randomization", keyed=True, many=False, compiles=False,
           similarity=similarity.pearson),
    _again("efficient_mprt", keyed=True, many=False, compiles=False, smooth=False, n_bins=3),
    metric("sparseness", MAP),
    metric("complexity", MAP),
    metric("pointing_game", MAP, smooth=False, mask=_half),
    metric("relevance_mass", MAP, mask=_half, sign="absolute"),
    metric("relevance_rank", MAP, smooth=False, mask=_half),
    metric("top_k_intersection", MAP, smooth=False, mask=_half, k=3),
    metric("localization_auc", MAP, smooth=False, mask=_half),
    metric("pearson", PAIR),
    metric("spearman", PAIR, smooth=False),
    metric("cosine", PAIR),
    metric("ssim", PAIR),
]  # fmt: skip


def every(chosen: Callable[[Metric], bool] = lambda m: True) -> pytest.MarkDecorator:
    """Parametrise a test over metrics."""
    found = [pytest.param(m, id=m.name) for m in METRICS if chosen(m)]
    return pytest.mark.parametrize("m", found)


def attributions(x: Any) -> Any:
    """A smooth function of each element, other than the gradient, without ties."""
    return optree.tree_map(lambda t: torch.sin(3 * t) + 0.2 * t * t + 0.1, x)


def method(model_fn: Any, inputs: Any, *, target: Any = None) -> Any:
    """A method whose attributions no metric finds perfect: a gradient times a function of x."""
    g = attrfn.integrated_gradients(model_fn, inputs, target=target, n_steps=2)
    return optree.tree_map(lambda g, x: g + 0.3 * g * torch.cos(x), g, inputs)


def inputs_of(m: Metric, batch: int = 3, seed: int = 1) -> Tensor:
    """The inputs of a metric: images of 8 x 8 pixels where its windows need them."""
    if m.name == "ssim":
        return randn(batch, 2, 8, 8, seed=seed)
    return m.net.inputs(batch, seed)


def measure(m: Metric, model: Any, x: Any, **given: Any) -> Any:
    """The metric of the row; a target only where it takes one."""
    options = {**m.options, **given}
    target = {"target": options.pop("target", 1)}
    if m.kind == MAP:
        mask = options.pop("mask", None)
        return m.function(attributions(x), *([] if mask is None else [mask(x)]), **options)
    if m.kind == PAIR:
        return m.function(attributions(x), optree.tree_map(lambda t: 0.5 * t * t - t, x))
    if m.kind == SCORES:
        return m.function(model, x, attributions(x), **target, **options)
    return m.function(model, x, options.pop("method", method), **target, **options)


def per_example(found: Any) -> list[Tensor]:
    """The tensors of a result that have the examples in dimension 0."""
    if isinstance(found, metrics.Curve):
        return [found.values]
    return optree.tree_leaves(found)


def trial(m: Metric, **options: Any) -> Trial:
    """The metric as a method, for the checks of attrfn.testing; with other options than its own."""

    def given(x: Tensor) -> dict[str, Any]:
        key = {"key": attrfn.random.key(5)} if m.keyed else {}
        return {"target": targets(len(x)), **key, **options}

    return Trial(
        lambda model, x, **given: per_example(measure(m, model, x, **given)),
        m.net.build,
        lambda batch, seed: inputs_of(m, batch, seed),
        given,
        seed=1,
        like_inputs=False,
        graph={"create_graph": True} if m.kind == SCORES else None,
        tolerance=1e-10,
        slopes=1e-5,
        again=0.0,
    )
