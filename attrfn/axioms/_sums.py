"""Axioms of one explanation, or of two with exchanged features: sums, zeros and symmetries."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor

from attrfn import completeness_delta
from attrfn._copies.batch import is_integer, wide
from attrfn._explain.baseline import baseline_distribution, fill_baselines
from attrfn._explain.forms import documented
from attrfn._explain.introspect import is_over_distribution
from attrfn._explain.options import Arguments
from attrfn._explain.tree import each, row_total
from attrfn._torch.autodiff import transforming
from attrfn._torch.typing import Baselines, Leaves, Method, ModelFn, Target, Tree
from attrfn.axioms._case import AxiomOptions, Case, case_of, differences, largest


@documented(AxiomOptions, Arguments, scores=None)
def completeness(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    target: Target = None,
    baselines: Baselines = None,
) -> Tensor:
    """Completeness (efficiency): attributions sum to the change of the output.

        gap = sum(A) - (f(x) - f(x0))

    For a method whose baselines are draws, f(x0) is the mean over them.

    A theorem for `shapley_values`, `shapley_value_sampling`, `kernel_shap`, `deep_lift`,
    `deep_lift_shap`, and for `integrated_gradients` up to the error of the quadrature.

    Not for `gradient`, `saliency`, `input_x_gradient`, `feature_ablation`, `lime`.

    Returns:
        One signed gap per example, (B,), in units of the output.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, x = lambda x: x[:, 0] * x[:, 1], torch.tensor([[2.0, 3.0]])
        >>> attrfn.axioms.completeness(f, x, attrfn.shapley_values)
        tensor([0.])
        >>> attrfn.axioms.completeness(f, x, attrfn.input_x_gradient)
        tensor([6.])

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017, section 3;
        Shapley, A Value for n-Person Games, 1953.
    """
    c = case_of(model_fn, inputs, method, target, baselines)
    attributions = method(model_fn, inputs, **c.options)
    options: dict[str, Any] = {
        "target": c.bound.get("target"),
        "create_graph": _graph(attributions),
    }
    if c.bound.get("feature_mask") is not None:
        options.update(
            {k: c.bound[k] for k in ("feature_mask", "n_features") if k in c.bound}, scores=method
        )
    x0 = c.bound.get("baselines")
    if not is_over_distribution(method):
        return completeness_delta(model_fn, inputs, attributions, baselines=x0, **options)
    pool = baseline_distribution(x0, inputs, c.x)
    gaps = [
        completeness_delta(model_fn, inputs, attributions, baselines=b, **options)
        for b in (c.rebuild(_draw(pool, k, c.x)) for k in range(pool[0].shape[0]))
    ]
    return torch.stack(gaps).mean(0)


def _graph(attributions: Tree) -> bool:
    leaves = optree.tree_leaves(attributions)
    return any(isinstance(t, Tensor) and t.requires_grad for t in leaves)


def _draw(pool: Leaves, k: int, x: Leaves) -> Leaves:
    return each(lambda b, t: b[k] if b.ndim > t.ndim else b[k : k + 1], pool, x)


@documented(AxiomOptions, Arguments, scores=None)
def conservation(
    model_fn: ModelFn, inputs: Tree, method: Method, *, target: Target = None
) -> Tensor:
    """Conservation: attributions sum to the output itself.

        gap = sum(A) - f(x)

    A theorem, on networks of linear layers without biases and ReLU, for `input_x_gradient` (Euler's
    theorem on homogeneous functions) and for `lrp` up to its epsilon; and wherever f(x0) = 0, for
    the methods of :func:`attrfn.axioms.completeness`. :func:`attrfn.rules.conservation` tells in
    which operation LRP loses relevance.

    Not for `gradient`, `saliency`, `feature_ablation`.

    Returns:
        One signed gap per example, (B,), in units of the output.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, x = lambda x: x.relu().sum(1), torch.tensor([[2.0, -3.0]])
        >>> attrfn.axioms.conservation(f, x, attrfn.input_x_gradient)
        tensor([0.])

    Reference:
        Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
        Relevance Propagation, 2015, equation 2.
    """
    c = case_of(model_fn, inputs, method, target)
    maps = c.maps()
    keeps = _graph(list(maps))
    p = c.explained(c.bound.get("target"), keeps)
    with torch.set_grad_enabled(keeps or (torch.is_grad_enabled() and transforming())):
        values = p.values(p.x)
    return (row_total(maps, wide) - values).to(values.dtype)


@documented(AxiomOptions, Arguments, scores=None)
def dummy(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    features: Tree,
    target: Target = None,
    baselines: Baselines = None,
) -> Tensor:
    """Dummy (null player): what the model never reads gets nothing.

        gap = max |A_k|  over the features k on which f does not depend

    A theorem for `gradient`, `saliency`, `input_x_gradient`, `integrated_gradients`, `deep_lift`,
    `lrp`, `feature_ablation`, `shapley_values`, `shapley_value_sampling`, and for `kernel_shap`
    over all coalitions.

    Not for `occlusion` with windows of several elements, and not for `rise`, which estimates from
    samples.

    Args:
        features: Where the model does not look: booleans that broadcast to the inputs, or a pytree
            prefix of those. That this is so is the caller's word.

    Returns:
        One gap per example, (B,), at least 0, in units of the attributions.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, x = lambda x: x[:, 0] ** 2, torch.tensor([[2.0, 3.0]])
        >>> unread = torch.tensor([False, True])
        >>> attrfn.axioms.dummy(f, x, attrfn.shapley_values, features=unread)
        tensor([0.])

    Reference:
        Friedman, Paths and Consistency in Additive Cost Sharing, 2004; Sundararajan, Taly and Yan,
        2017, section 2.1, as sensitivity (b).
    """
    c = case_of(model_fn, inputs, method, target, baselines)
    where = fill_baselines(features, inputs, c.x, "features")
    maps = c.maps_like_inputs()
    return largest(each(lambda a, m: a.masked_fill(m == 0, 0), maps, where))


@documented(AxiomOptions, Arguments, scores=None)
def symmetry(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    pair: tuple[int, int],
    target: Target = None,
    baselines: Baselines = None,
) -> Tensor:
    """Symmetry: features that the model treats alike exchange attributions with their values.

        gap = max |A(s(x)) - s(A(x))|,   s exchanges elements i and j

    Baselines are exchanged with the inputs. Where x_i = x_j and x0_i = x0_j, this is the axiom of
    the papers: A_i = A_j.

    A theorem for `gradient`, `saliency`, `input_x_gradient`, `integrated_gradients`, `deep_lift`,
    `feature_ablation`, `shapley_values`, and for `kernel_shap` over all coalitions. LRP has it
    where the operations treat the two alike.

    Not for `shapley_value_sampling` and `lime`, whose draws are not symmetric.

    Args:
        pair: The places i and j of two elements in an example, all tensors flat and side by side.
            That f does not change when they are exchanged is the caller's word.

    Returns:
        One gap per example, (B,), at least 0, in units of the attributions.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, x = lambda x: x[:, 0] * x[:, 1] + x[:, 2], torch.tensor([[2.0, 3.0, 1.0]])
        >>> attrfn.axioms.symmetry(f, x, attrfn.shapley_values, pair=(0, 1))
        tensor([0.])

    Reference:
        Shapley, A Value for n-Person Games, 1953; Sundararajan, Taly and Yan, 2017, section 4.
    """
    c = case_of(model_fn, inputs, method, target, baselines)
    order = _exchanged(pair, sum([t.shape[1:].numel() for t in c.x]))
    x0 = c.bound.get("baselines")
    options = {} if x0 is None else {"baselines": _exchange_baselines(c, x0, order)}
    here = _exchange(c.maps_like_inputs(), order)
    there = c.maps_like_inputs(x=_exchange(c.x, order), **options)
    return largest(differences(there, here))


def _exchanged(pair: tuple[int, int], n: int) -> list[int]:
    """The order of the elements in which two are exchanged."""
    try:
        i, j = pair
    except (TypeError, ValueError):
        raise ValueError(f"pair is {pair!r}, expected two places of elements") from None
    if not all(is_integer(k) and 0 <= k < n for k in (i, j)):
        raise ValueError(f"pair is {pair!r}, expected two ints from 0 to {n - 1}")
    order = list(range(n))
    order[i], order[j] = j, i
    return order


def _exchange(leaves: Leaves, order: list[int], rows: int = 1) -> Leaves:
    """Tensors (B, ...), or with other dimensions of rows, whose elements are reordered."""
    flat = [t.reshape(*t.shape[:rows], t.shape[rows:].numel()) for t in leaves]
    sizes = [t.shape[rows] for t in flat]
    if len({t.dtype for t in leaves}) > 1:  # float32 and its promotions hold no large integers
        flat = [t.double() for t in flat]
    mixed = torch.split(torch.cat(flat, -1)[..., order], sizes, -1)
    return tuple([m.reshape(t.shape).to(t.dtype) for m, t in zip(mixed, leaves, strict=True)])


def _exchange_baselines(c: Case, x0: Baselines, order: list[int]) -> Tree:
    if not is_over_distribution(c.method):
        return c.rebuild(_exchange(fill_baselines(x0, c.inputs, c.x), order))
    pool = baseline_distribution(x0, c.inputs, c.x)
    return c.rebuild(_exchange(pool, order, 1 + (pool[0].ndim > c.x[0].ndim)))
