"""The table of DeepLIFT: the rescale rule, the product rule, and operations made of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from attrfn._rules import (
    decompositions,
    difference,
    functions,
    grouped,
    linalg,
    losses,
    many_factors,
    maxima,
    norm,
    ops,
    sampling,
    selections,
    softmax,
)
from attrfn._rules.call import Call
from attrfn._rules.errors import refuse_unknown
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Rule, Run
from attrfn._rules.table import Evaluating, OfOne, Op, Rules, decomposed, own_derivative
from attrfn._torch import recurrent


def ruled(rule: Rule) -> Callable[[Any, Call], Any]:
    """An operation with a rule."""
    return lambda run, call: run.primitive(call, rule)


def inside(function: Callable[..., Any]) -> Callable[[Any, Call], Any]:
    """An operation of which torch's own Python code runs under the rules."""
    return lambda run, call: run.within(function, *call.args, **call.kwargs)


def _division(run: Record | Replay, call: Call) -> Any:
    if call.kwargs.get("rounding_mode") is not None:
        return run.primitive(call, difference.elementwise)
    if len(call.places) == 2:
        return run.primitive(call, difference.ratio)
    numerator = ((1 if call.name.startswith("__r") else 0, None),)
    return own_derivative(run, call) if call.places == numerator else _inverse(run, call)


def _inverse(run: Record | Replay, call: Call) -> Any:
    """``1 / s``; a product with it is a quotient, see :func:`attrfn._rules.difference.ratio`."""
    out = run.primitive(call, difference.elementwise)
    if call.name in ("rsqrt", "reciprocal"):
        run.inverse.put(out)
    return out


def _multiplication(run: Record | Replay, call: Call) -> Any:
    inverse = [bool(run.inverse.get(v)) for v in call.values]
    if len(inverse) == 2 and any(inverse) and not all(inverse):
        return run.primitive(call, difference.times_inverse(inverse.index(True)))
    return run.primitive(call, difference.product)


def _of_complex(other: Callable[[Any, Call], Any]) -> Callable[[Any, Call], Any]:
    """An elementwise function, for complex numbers with another rule."""

    def apply(run: Record | Replay, call: Call) -> Any:
        if call.values[0].is_complex():
            return other(run, call)
        return run.primitive(call, difference.elementwise)

    return apply


def _grouped_product(several: Callable[[Any, Call], Any]) -> Callable[[Any, Call], Any]:
    """A product of matrices by groups; where the groups end is not a factor."""

    def apply(run: Record | Replay, call: Call) -> Any:
        places = tuple(
            [p for p, v in zip(call.places, call.values, strict=True) if v.is_floating_point()]
        )
        return several(run, call._replace(places=places))

    return apply


def _of_dense(run: Run, call: Call) -> Any:
    """A product with a sparse matrix, which may not depend on the inputs."""
    sparse = 1 if call.name == "sparse_addmm" else 0
    if any(key == sparse for key, _ in call.places):
        refuse_unknown(call, run.table.name, "its sparse matrix depends on the inputs")
    return own_derivative(run, call)


def _only_input(run: Run, call: Call) -> Any:
    if call.places not in (((0, None),), (("input", None),)):
        refuse_unknown(
            call, run.table.name, "another argument than the input depends on the inputs"
        )
    return own_derivative(run, call)


def _along(function: Callable[..., Any]) -> Callable[[Any, Call], Any]:
    """``amax`` or ``amin``: the rule along one dimension; several are taken one by one."""
    many = decomposed(decompositions.one_by_one(function))

    def apply(run: Record | Replay, call: Call) -> Any:
        dim = call.argument(1, "dim", ())
        single = not isinstance(dim, (tuple, list)) or len(dim) == 1
        return run.primitive(call, maxima.amax) if single else many(run, call)

    return apply


def all_of(text: str, op: Op) -> dict[str, Op]:
    """One op for each of some names."""
    return dict.fromkeys(text.split(), op)


MAX_POOLS = (
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices"
)

COMMON: dict[str, Op] = {
    "T": Op("linear", own_derivative, native=True),
    **all_of(ops.CONSTANT, Op("constant", own_derivative, follows=False)),
    **all_of(ops.STRUCTURE, Op("linear", own_derivative, native=True)),
    **all_of(ops.DROPOUTS, Op("linear (evaluation mode)", Evaluating(2, "training", "train"))),
    "batch_norm": Op("linear (evaluation mode)", Evaluating(5, "training")),
    "istft": Op("linear in the input", _only_input),
    **all_of("sparse_mm sparse_addmm", Op("linear in the dense matrix", _of_dense)),
}
"""Operations that are linear or constant for every rule."""

DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "group_norm": decompositions.group_norm,
    "instance_norm": decompositions.instance_norm,
    "scaled_dot_product_attention": decompositions.attention,
    "glu": decompositions.glu,
    "softmin": decompositions.softmin,
    "lstm": recurrent.layers(recurrent.lstm_step(), 2),
    "gru": recurrent.layers(recurrent.gru_step(), 1),
    "rnn_tanh": recurrent.layers(recurrent.rnn_step(torch.tanh), 1),
    "rnn_relu": recurrent.layers(recurrent.rnn_step(torch.relu), 1),
    "lstm_cell": recurrent.cell(recurrent.lstm_step(), 2),
    "gru_cell": recurrent.cell(recurrent.gru_step(), 1),
    "rnn_tanh_cell": recurrent.cell(recurrent.rnn_step(torch.tanh), 1),
    "rnn_relu_cell": recurrent.cell(recurrent.rnn_step(torch.relu), 1),
    "max": decompositions.maximum_of,
    "min": decompositions.minimum_of,
    "var": decompositions.moments(root=False, mean=False),
    "std": decompositions.moments(root=True, mean=False),
    "var_mean": decompositions.moments(root=False, mean=True),
    "std_mean": decompositions.moments(root=True, mean=True),
    "norm": decompositions.norm,
    "linalg_norm": decompositions.norm,
    "linalg_vector_norm": decompositions.vector_norm,
    "cosine_similarity": decompositions.cosine_similarity,
    "pairwise_distance": decompositions.pairwise_distance,
    "mse_loss": losses.mse_loss,
    "l1_loss": losses.l1_loss,
    "cross_entropy": losses.cross_entropy,
    "binary_cross_entropy_with_logits": losses.binary_cross_entropy_with_logits,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "smooth_l1_loss": losses.smooth_l1_loss,
    "huber_loss": losses.huber_loss,
    "kl_div": losses.kl_div,
    "polar": functions.polar,
    "cdist": functions.cdist,
    "addcdiv": decompositions.addcdiv,
}
"""Operations with a decomposition into simpler ones."""

DECOMPOSED_BY_TORCH: dict[str, Callable[..., Any]] = {
    "multi_head_attention_forward": decompositions.multi_head_attention_forward,
    **{
        name: decompositions.visible_to_modes(getattr(F, name))
        for name in (
            *("normalize", "local_response_norm", "lp_pool1d", "lp_pool2d", "lp_pool3d"),
            "gumbel_softmax",
        )
        if hasattr(F, name)
    },
}
"""Operations that torch itself writes in Python as simpler ones."""

DIFFERENCE: dict[str, Op] = {
    **COMMON,
    **{name: Op("decomposed", inside(f)) for name, f in DECOMPOSED_BY_TORCH.items()},
    "layer_norm": Op("normalisation", ruled(norm.normalised(centred=True))),
    "rms_norm": Op("normalisation", ruled(norm.normalised(centred=False))),
    **{name: Op("decomposed", decomposed(f)) for name, f in DECOMPOSITIONS.items()},
    **all_of(ops.PRODUCTS, Op("product", OfOne(ruled(difference.product)))),
    **all_of(ops.ELEMENTWISE, Op("elementwise", ruled(difference.elementwise))),
    **all_of("mul multiply __rmul__", Op("product", OfOne(_multiplication))),
    **all_of("div divide true_divide __rdiv__ __rtruediv__", Op("quotient", _division)),
    **all_of("rsqrt reciprocal", Op("elementwise", _inverse)),
    **all_of("abs absolute", Op("elementwise", _of_complex(ruled(difference.modulus)))),
    "angle": Op("elementwise", _of_complex(decomposed(functions.angle))),
    "softsign": Op("elementwise", _of_complex(decomposed(functions.softsign))),
    **all_of("softmax special_softmax", Op("softmax", ruled(softmax.softmax))),
    **all_of("log_softmax special_log_softmax", Op("softmax", ruled(softmax.log_softmax))),
    **all_of("logsumexp special_logsumexp", Op("softmax", ruled(softmax.logsumexp))),
    **all_of(MAX_POOLS, Op("maximum", ruled(maxima.max_pool))),
    "amax": Op("maximum", _along(torch.amax)),
    "amin": Op("maximum", _along(torch.amin)),
    **all_of("cummax cummin", Op("maximum", ruled(selections.running))),
    **all_of("scatter_reduce index_reduce", Op("maximum of groups", grouped.reduce)),
    **all_of("sort msort kthvalue median", Op("order", ruled(selections.ordered))),
    "topk": Op("order", selections.topk),
    "quantile": Op("decomposed", decomposed(functions.quantile)),
    "logcumsumexp": Op("decomposed", decomposed(functions.logcumsumexp)),
    "prod": Op("product", ruled(many_factors.prod)),
    "cumprod": Op("decomposed", decomposed(many_factors.cumprod)),
    "stft": Op("product", OfOne(ruled(difference.product))),
    "grouped_mm": Op("product", _grouped_product(OfOne(ruled(difference.product)))),
    "grid_sample": Op("sampling", sampling.grid_sample),
    **all_of("linalg_inv inverse", Op("inverse", ruled(linalg.inverse))),
    **all_of("linalg_solve linalg_solve_triangular", Op("inverse", linalg.solve)),
}

RESCALE = Rules("deep_lift", DIFFERENCE, complete=True)
