"""Any method over a distribution of baselines, and over several models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, is_one_of, repeat_bound, wide
from attrfn._copies.chunks import Chunks, add, over_chunks
from attrfn._explain.baseline import baseline_distribution, per_example
from attrfn._explain.forms import documented
from attrfn._explain.introspect import (
    is_over_distribution,
    takes_baselines,
    takes_distribution,
    wraps,
)
from attrfn._explain.method_unit import whole_or_in_units
from attrfn._explain.options import ChunkOptions
from attrfn._explain.shared import marked, scores_of
from attrfn._explain.tree import batch_size, each, flatten
from attrfn._layers.repeated import repeat_options
from attrfn._model.source import is_functional
from attrfn._torch.explanation import explained
from attrfn._torch.guard import guarded
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, ChunkSize, Leaves, Method, ModelFn, Tree

Reduce: TypeAlias = Literal["mean", "std"] | None


@documented(ChunkOptions, scores=None)
def over_baselines(
    method: Method,
    *,
    reduce: Literal["mean"] | None = "mean",
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> Method:
    """A method averaged over K baselines, a background data set.

        A = mean_k X(f, x, baselines=b_k)

    A method that is complete for one baseline is so for the mean: the attributions sum to
    f(x) - mean_k f(b_k).

    Args:
        method: A method with the option ``baselines``, of which each example has one: a path or
            perturbation method, DeepLIFT, or one of them at a layer.
        reduce: ``"mean"``, or None for the attributions of every baseline, with a leading
            dimension K.

    Returns:
        A method with the same options, whose ``baselines`` have the shape (K, ...), or (K, B, ...)
        with K for each example.

    Raises:
        TypeError: The method takes no baselines, or a distribution of them already.
        ValueError: ``reduce`` has a wrong value.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: (x**2).sum(1)
        >>> background = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> method = attrfn.over_baselines(attrfn.feature_ablation)
        >>> method(f, torch.tensor([[1.0, 3.0]]), baselines=background)
        tensor([[0.5000, 8.5000]])

    Reference:
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017.
    """
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a method such as attrfn.gradient")
    if not takes_baselines(method) or is_over_distribution(method):
        raise TypeError(
            f"method is {say(method)}, expected one with a baseline for each example, such as "
            "attrfn.integrated_gradients: this one takes none, or averages over several itself"
        )
    if reduce is not None and not is_one_of(reduce, "mean"):
        raise ValueError(f"reduce is {say(reduce)}, expected 'mean' or None (every baseline)")

    @takes_distribution
    @wraps(method)
    @guarded
    @explained
    def averaged(model_fn: ModelFn, inputs: Tree, *, baselines: Baselines, **options: Any) -> Tree:
        x, rebuild = flatten(inputs)
        batch = batch_size(x)
        pool = each(per_example, baseline_distribution(baselines, inputs, x), x)
        k, specs, dtypes = len(pool[0]), [], []

        # The method sees copies of the batch, each with a baseline of its own.
        def part(i: slice) -> Leaves:
            copies = i.stop - i.start
            rows = each(lambda t: t.repeat(copies, *[1] * (t.ndim - 1)), x)
            repeated = repeat_options(method, options, model_fn, inputs, copies)
            repeated["baselines"] = rebuild(flat_rows(each(lambda b: b[i], pool)))
            bound = repeat_bound(model_fn, batch, copies)
            found = whole_or_in_units(method, bound, rebuild(rows), repeated)
            leaves, spec = optree.tree_flatten(found)
            specs.append(spec)
            dtypes.append([a.dtype for a in leaves])
            samples = [a.reshape(copies, batch, *a.shape[1:]) for a in leaves]
            if reduce is None:
                return tuple(samples)
            return tuple([a.sum(0, dtype=wide(a.dtype)) for a in samples])

        merge = _joined if reduce is None else add
        chunks = Chunks(chunk_size, "fold", progress, "over_baselines")
        found = over_chunks(part, merge, k, chunks, x[0].device, x=x)
        if reduce is not None:
            found = tuple([(t / k).to(d) for t, d in zip(found, dtypes[-1], strict=True)])
        return optree.tree_unflatten(specs[-1], marked(found, scores_of(method)))

    averaged.loops_over_chunks = True  # type: ignore[attr-defined]
    return averaged


@documented(scores=None)
def ensemble(method: Method, *, reduce: Reduce = "mean", stacked: bool = False) -> Method:
    """A method over several models: the mean of their attributions, or how far they disagree.

        mean: mean_m X(f_m, x)        std: sqrt(sum_m (X(f_m, x) - mean)^2 / (M - 1))

    Args:
        method: Any attribution method.
        reduce: ``"mean"``, ``"std"``, or None for the attributions of every model, with a leading
            dimension M.
        stacked: The models are one module with parameters of M models, as
            ``torch.func.stack_module_state`` makes them, and run together.

    Returns:
        A method whose ``model_fn`` is a list or tuple of model functions; if ``stacked``,
        ``functools.partial(torch.func.functional_call, module, parameters)`` with a dimension M in
        front of every parameter and buffer.

    Raises:
        TypeError: The method is not callable, or (when called) the models are of another form.
        ValueError: ``reduce`` has a wrong value, or there are too few models.

    Example:
        >>> import torch, attrfn
        >>> models = [lambda x: x.sum(1), lambda x: 3 * x.sum(1)]
        >>> attrfn.ensemble(attrfn.gradient)(models, torch.ones(1, 2))
        tensor([[2., 2.]])

    Reference:
        Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep
        Ensembles, 2017.
    """
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a method such as attrfn.gradient")
    if reduce is not None and not is_one_of(reduce, "mean", "std"):
        raise ValueError(f"reduce is {say(reduce)}, expected 'mean', 'std' or None (every model)")

    @wraps(method)
    @guarded
    def every(model_fn: Any, inputs: Tree, **options: Any) -> Tree:
        specs: list[Any] = []
        run = functools.partial(_flat, method, inputs, options, specs)
        found = _of_stacked(run, model_fn) if stacked else _of_list(run, model_fn)
        if reduce == "std" and len(found[0]) < 2:
            raise ValueError("model_fn holds 1 model, expected at least 2 for reduce='std'")
        if reduce is not None:
            statistic = Tensor.mean if reduce == "mean" else Tensor.std
            found = tuple([statistic(a, 0) for a in found])
        return optree.tree_unflatten(specs[-1], marked(found, scores_of(method)))

    return every


def _flat(
    method: Method, inputs: Tree, options: dict[str, Any], specs: list[Any], model_fn: ModelFn
) -> Leaves:
    leaves, spec = optree.tree_flatten(method(model_fn, inputs, **options))
    specs.append(spec)
    return tuple(leaves)


def _of_list(run: Callable[[ModelFn], Leaves], models: Any) -> Leaves:
    if not isinstance(models, (list, tuple)) or not models:
        raise TypeError(
            f"model_fn is {say(models)}, expected a list or tuple of model functions, because the "
            "method is an ensemble: for stacked parameters give stacked=True to ensemble"
        )
    found = [run(model) for model in models]
    return each(lambda *a: torch.stack(a), *found)


def _of_stacked(run: Callable[[ModelFn], Leaves], model_fn: Any) -> Leaves:
    if not is_functional(model_fn):
        raise TypeError(
            f"model_fn is {say(model_fn)}, expected functools.partial(torch.func.functional_call, "
            "module, parameters) with stacked parameters, because of stacked=True"
        )
    module, given = model_fn.args
    dicts: Sequence[Any] = (given,) if isinstance(given, dict) else given
    stacks = {name: t for part in dicts for name, t in part.items()}

    def one(parameters: dict[str, Tensor]) -> Leaves:
        return run(functools.partial(model_fn.func, module, parameters, **model_fn.keywords))

    found: Leaves = torch.func.vmap(one, randomness="same")(stacks)
    return found


def _joined(a: Leaves, b: Leaves) -> Leaves:
    return each(lambda s, t: torch.cat([s, t]), a, b)
