"""Axioms that explain other rows: single features that change, and examples alone."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, pick_bound, repeat_bound, split_rows, wide
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.forms import documented
from attrfn._explain.introspect import is_over_distribution
from attrfn._explain.options import PER_EXAMPLE, Arguments
from attrfn._explain.tree import each
from attrfn._layers.repeated import repeat_options
from attrfn._torch.typing import Baselines, ChunkSize, Leaves, Method, ModelFn, Target, Tree
from attrfn.axioms._case import AxiomOptions, Case, case_of, differences, largest


@documented(AxiomOptions, Arguments, scores=None)
def sensitivity(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    tolerance: float = 0.0,
    target: Target = None,
    baselines: Baselines = None,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> Tensor:
    """Sensitivity (a): the only feature that differs gets something, if the output differs.

        gap = max |f(x^k) - f(x0)|  over the k with |A_k(f, x^k, x0)| <= tolerance

    x^k is x0 with element k of x. The method explains as many rows per example as there are
    elements.

    A theorem for `integrated_gradients` up to the error of the quadrature, `deep_lift`,
    `feature_ablation`, `shapley_values`, `shapley_value_sampling`, `kernel_shap`: each gives
    element k all of the change.

    Not for `gradient`, `saliency`, `input_x_gradient`, which are 0 where the output saturates.

    Args:
        tolerance: What counts as no attribution.
        chunk_size: How many elements are explained at once: ``"auto"``, ``None`` (all) or a number.
        progress: Show a progress bar over the elements.

    Returns:
        One gap per example, (B,), at least 0, in units of the output.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, x = lambda x: 1 - (1 - x[:, 0]).relu(), torch.tensor([[2.0]])
        >>> attrfn.axioms.sensitivity(f, x, attrfn.gradient)
        tensor([1.])
        >>> attrfn.axioms.sensitivity(f, x, attrfn.integrated_gradients)
        tensor([0.])

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017, section 2.1.
    """
    c = case_of(model_fn, inputs, method, target, baselines)
    if is_over_distribution(method):
        raise ValueError(
            "method draws its baselines from a pool, expected one that takes a baseline per example"
        )
    x0 = fill_baselines(c.bound.get("baselines"), inputs, c.x)
    p = c.explained(c.bound.get("target"), c.keeps_graph)
    base = p.values(x0)
    n = sum([t.shape[1:].numel() for t in c.x])

    def part(i: slice) -> Tensor:
        chosen = _only(c.x, i)
        points = each(lambda m, t, b: torch.where(m, t, b), chosen, c.x, x0)
        rows, copies = flat_rows(points), i.stop - i.start
        change = p.values(rows, copies).reshape(copies, c.batch) - base
        maps = _copies(c, rows, copies)
        scores = [_row_sums(a * m) for a, m in zip(maps, chosen, strict=True)]
        return change.abs().masked_fill(torch.stack(scores).sum(0).abs() > tolerance, 0)

    chunks = Chunks(chunk_size, "fold", progress, "sensitivity")
    table = over_chunks(part, lambda s, t: torch.cat([s, t]), n, chunks, c.x[0].device, x=c.x)
    return table.amax(0)


def _row_sums(t: Tensor) -> Tensor:
    return t.reshape(*t.shape[:2], t.shape[2:].numel()).sum(-1)


def _only(x: Leaves, i: slice) -> Leaves:
    """Booleans (S, 1, ...) that are true at element k of the example for copy k."""
    places = torch.arange(i.start, i.stop, device=x[0].device)
    found, start = [], 0
    for t in x:
        size = t.shape[1:].numel()
        own = torch.arange(start, start + size, device=t.device).reshape(1, 1, *t.shape[1:])
        found.append(places.reshape(-1, *[1] * t.ndim) == own)
        start += size
    return tuple(found)


def _copies(c: Case, rows: Leaves, copies: int) -> Leaves:
    """Attributions of several copies of the batch, (S, B, ...) each."""
    options = repeat_options(c.method, c.options, c.model_fn, c.inputs, copies)
    model = repeat_bound(c.model_fn, c.batch, copies)
    repeated = c._replace(options=options)
    found = repeated.maps_like_inputs(model, rows)
    return split_rows(tuple([t.to(wide(t.dtype)) for t in found]), copies)


@documented(AxiomOptions, Arguments, scores=None)
def batch_independence(
    model_fn: ModelFn,
    inputs: Tree,
    method: Method,
    *,
    target: Target = None,
    baselines: Baselines = None,
) -> Tensor:
    """Batch independence: an example is explained alike alone and among others.

        gap_i = max |A(x)_i - A(x_i)|

    What has a row per example in the target, in what is bound to the model and in the options of
    the method stays with its example. A batch of one has no gap.

    A theorem, for models whose rows are independent, for all methods of the library but feature
    permutation, which takes its values from other examples and explains none alone. Random methods
    with one key draw the same for all examples.

    Returns:
        One gap per example, (B,), at least 0, in units of the attributions.

    Example:
        >>> import torch, attrfn, attrfn.axioms
        >>> f, x = lambda x: (x**2).sum(1), torch.tensor([[2.0], [3.0]])
        >>> attrfn.axioms.batch_independence(f, x, attrfn.gradient)
        tensor([0., 0.])
        >>> mixed = lambda f, x: attrfn.gradient(f, x) - attrfn.gradient(f, x).mean(0)
        >>> attrfn.axioms.batch_independence(f, x, mixed)
        tensor([1., 1.])

    Reference:
        Row i of a batch is what row i gives alone: the first rule of this library.
    """
    c = case_of(model_fn, inputs, method, target, baselines)
    together, gaps = c.maps(), []
    for i in range(c.batch):
        one = slice(i, i + 1)
        alone = Case(
            pick_bound(model_fn, c.batch, torch.tensor([i])),
            c.rebuild([t[one] for t in c.x]),
            c.method,
            _options_of(c, i),
            tuple([t[one] for t in c.x]),
            c.rebuild,
            1,
            c.keeps_graph,
        )
        gaps.append(largest(differences(tuple([t[one] for t in together]), alone.maps())))
    return torch.cat(gaps) if gaps else largest(together)


def _row(t: Any, batch: int, i: int, dim: int = 0) -> Any:
    if not isinstance(t, Tensor) or t.ndim <= dim or t.shape[dim] != batch:
        return t
    return t.narrow(dim, i, 1)


def _options_of(c: Case, i: int) -> dict[str, Any]:
    """The options of the method for one example; a form tells which have rows."""
    found = {}
    ranks = {t.ndim for t in c.x}
    for name, value in c.bound.items():
        form = PER_EXAMPLE.get(name)
        if form == "index":
            found[name] = value[i : i + 1] if isinstance(value, list) else _index_of(value, c, i)
        elif form == "key":
            found[name] = value[i : i + 1] if getattr(value, "ndim", 0) == 2 else value
        elif form is not None and value is not None:
            dim = int(name == "baselines" and is_over_distribution(c.method))
            found[name] = optree.tree_map(
                lambda t, dim=dim: _row(t, c.batch, i, dim) if _rank(t) - dim in ranks else t,
                value,
                none_is_leaf=True,
            )
    return found


def _index_of(value: Any, c: Case, i: int) -> Any:
    return pick_bound(_row(value, c.batch, i), c.batch, torch.tensor([i]))


def _rank(t: Any) -> int:
    return t.ndim if isinstance(t, Tensor) else -1
