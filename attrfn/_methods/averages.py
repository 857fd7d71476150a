"""Any method over a distribution of baselines, and over several models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, is_one_of, repeat_rows
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.baseline import baseline_distribution, per_example
from attrfn._explain.forms import documented
from attrfn._explain.introspect import (
    is_over_distribution,
    takes_baselines,
    takes_distribution,
    wraps,
)
from attrfn._explain.options import ChunkOptions
from attrfn._explain.tree import batch_size, each, flatten
from attrfn._methods.samples import Samples, of_copies, samples_of, statistic
from attrfn._model.source import is_functional
from attrfn._torch.explanation import explained
from attrfn._torch.guard import guarded
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, ChunkSize, Leaves, Method, ModelFn, Tree

T = TypeVar("T")
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
    _check_over_baselines(method, reduce)

    @takes_distribution
    @wraps(method)
    @guarded
    @explained
    def averaged(model_fn: ModelFn, inputs: Tree, *, baselines: Baselines, **options: Any) -> Tree:
        x, rebuild = flatten(inputs)
        batch_size(x)
        pool = each(per_example, baseline_distribution(baselines, inputs, x), x)

        alone: list[bool] = []

        def part(i: slice) -> Samples:  # copies of the batch, each with a baseline of its own
            copies = i.stop - i.start
            own = {"baselines": rebuild(flat_rows(each(lambda b: b[i], pool)))}
            rows = rebuild(repeat_rows(x, copies))
            return of_copies(method, model_fn, inputs, options, copies, rows, alone, **own)

        chunks = Chunks(chunk_size, "fold", progress, "over_baselines")
        n = len(pool[0])
        loop = functools.partial(over_chunks, n=n, chunks=chunks, device=x[0].device, x=x)
        return statistic("all" if reduce is None else reduce, n, part, loop)

    averaged.loops_over_chunks = True  # type: ignore[attr-defined]
    return averaged


def _check_over_baselines(method: Any, reduce: object) -> None:
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a method such as attrfn.gradient")
    if not takes_baselines(method) or is_over_distribution(method):
        raise TypeError(
            f"method is {say(method)}, expected one with a baseline for each example, such as "
            "attrfn.integrated_gradients: this one takes none, or averages over several itself"
        )
    if reduce is not None and not is_one_of(reduce, "mean"):
        raise ValueError(f"reduce is {say(reduce)}, expected 'mean' or None (every baseline)")


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
        models = _stack(model_fn) if stacked else _listed(model_fn)
        if reduce == "std" and models.n < 2:
            raise ValueError("model_fn holds 1 model, expected at least 2 for reduce='std'")

        def part(i: slice) -> Samples:
            return models.samples(i, method, inputs, options)

        return statistic("all" if reduce is None else reduce, models.n, part, models.loop)

    return every


class _Listed(NamedTuple):
    """Models that run one after the other."""

    models: Sequence[ModelFn]

    @property
    def n(self) -> int:
        return len(self.models)

    def loop(self, part: Callable[[slice], T], merge: Callable[[T, T], T]) -> T:
        return functools.reduce(merge, (part(slice(i, i + 1)) for i in range(self.n)))

    def samples(self, i: slice, method: Method, inputs: Tree, options: dict[str, Any]) -> Samples:
        one = samples_of(method, method(self.models[i.start], inputs, **options))
        return one._replace(leaves=each(lambda a: a[None], one.leaves))


class _Stacked(NamedTuple):
    """A module with the stacked parameters of models, which run together."""

    model_fn: Any
    stacks: dict[str, Tensor]

    @property
    def n(self) -> int:
        return len(next(iter(self.stacks.values())))

    def loop(self, part: Callable[[slice], T], merge: Callable[[T, T], T]) -> T:
        return part(slice(0, self.n))

    def samples(self, i: slice, method: Method, inputs: Tree, options: dict[str, Any]) -> Samples:
        f, module = self.model_fn.func, self.model_fn.args[0]
        forms: list[Samples] = []

        def one(parameters: dict[str, Tensor]) -> Leaves:
            model = functools.partial(f, module, parameters, **self.model_fn.keywords)
            forms.append(samples_of(method, method(model, inputs, **options)))
            return forms[-1].leaves

        found: Leaves = torch.func.vmap(one, randomness="same")(self.stacks)
        return forms[-1]._replace(leaves=found)


def _listed(models: Any) -> _Listed:
    if not isinstance(models, (list, tuple)) or not models:
        raise TypeError(
            f"model_fn is {say(models)}, expected a list or tuple of model functions, because the "
            "method is an ensemble: for stacked parameters give stacked=True to ensemble"
        )
    return _Listed(models)


def _stack(model_fn: Any) -> _Stacked:
    if not is_functional(model_fn):
        raise TypeError(
            f"model_fn is {say(model_fn)}, expected functools.partial(torch.func.functional_call, "
            "module, parameters) with stacked parameters, because of stacked=True"
        )
    given = model_fn.args[1]
    dicts: Sequence[Any] = (given,) if isinstance(given, dict) else given
    return _Stacked(model_fn, {name: t for part in dicts for name, t in part.items()})
