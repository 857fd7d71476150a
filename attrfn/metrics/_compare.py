"""Compare: several methods on one model, measured by several metrics."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.progress import steps
from attrfn._explain.forms import documented
from attrfn._explain.introspect import is_over_distribution
from attrfn._explain.options import Arguments
from attrfn._explain.tree import batch_size, flatten
from attrfn._torch.typing import Baselines, Key, Method, ModelFn, Target, Tree
from attrfn.metrics._direction import End, better_end

Metric = Callable[..., Tensor]


class Comparison(NamedTuple):
    """What ``compare`` found: ``values[method][metric]`` is one number per example, (B,).

    Attributes:
        values: From the names of methods to those of metrics to numbers (B,).
        better: From the names of metrics to ``"higher"``, ``"lower"`` or None.
    """

    values: dict[str, dict[str, Tensor]]
    better: dict[str, End | None]

    @property
    def methods(self) -> list[str]:
        """The names of the methods, in the order of the rows of ``mean``."""
        return list(self.values)

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics, in the order of the columns of ``mean``."""
        return list(self.better)

    def mean(self) -> Tensor:
        """Means over the examples for which a metric is defined, (methods, metrics)."""
        return self._table(lambda t: t.cpu().double().nanmean())

    def undefined(self) -> Tensor:
        """How many examples are nan, (methods, metrics)."""
        return self._table(lambda t: t.isnan().sum())

    def ranking(self, metric: str) -> list[str]:
        """The methods by their means of a metric, the best first; undefined ones are last.

        Raises:
            ValueError: The metric is unknown, or neither of its ends is better.
        """
        if metric not in self.better:
            raise ValueError(f"metric is {metric!r}, expected one of {', '.join(self.better)}")
        end = self.better[metric]
        if end is None:
            raise ValueError(
                f"metric {metric!r} does not say which end is better: set its attribute better to "
                "'higher' or 'lower'"
            )
        column = self.mean()[:, self.metrics.index(metric)]
        worst = -torch.inf if end == "higher" else torch.inf
        column = column.masked_fill(column.isnan(), worst)
        order = column.argsort(dim=0, descending=end == "higher", stable=True)
        return [self.methods[i] for i in order.tolist()]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with a row per method and example and a column per metric.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas: Any = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        columns = {
            metric: torch.cat([of[metric] for of in self.values.values()]).tolist()
            for metric in self.better
        }
        rows = next(iter(next(iter(self.values.values())).values())).shape[0]
        index = pandas.MultiIndex.from_product(
            [self.methods, range(rows)], names=["method", "example"]
        )
        return pandas.DataFrame(columns, index=index)

    def _table(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        rows = [torch.stack([f(t).cpu() for t in of.values()]) for of in self.values.values()]
        return torch.stack(rows)


@documented(Arguments)
def compare(
    model_fn: ModelFn,
    inputs: Tree,
    methods: Mapping[str, Method],
    metrics: Mapping[str, Metric],
    *,
    target: Target = None,
    baselines: Baselines = None,
    key: Key = 0,
    progress: bool = False,
) -> Comparison:
    """Measure several methods on one model by several metrics.

    The attributions of each method are computed once. A metric is called by the names of its
    parameters: ``metric(attributions)``, ``metric(model_fn, inputs, attributions)`` or
    ``metric(model_fn, inputs, method)``. Options are bound with ``functools.partial``, as in
    ``partial(attrfn.metrics.deletion, n_steps=20)``, and hold before those of this call.

    Args:
        methods: Attribution methods by name.
        metrics: Metrics by name, which return one number per example, (B,).
        target: For all methods and metrics that take one.
        baselines: For all metrics, and all methods, that take baselines of each example.
        key: For all methods and metrics that take one.
        progress: Show a progress bar over the metrics of all methods.

    Returns:
        The numbers, their means, ranking and table.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: Methods or metrics are empty, or a metric returns another shape.

    Example:
        >>> import torch, attrfn
        >>> from attrfn import metrics
        >>> f, x = lambda x: (x**2).sum(1), torch.tensor([[3.0, 4.0], [1.0, 2.0]])
        >>> found = metrics.compare(
        ...     f,
        ...     x,
        ...     {"gradient": attrfn.gradient, "ig": attrfn.integrated_gradients},
        ...     {"sparseness": metrics.sparseness, "deletion": metrics.deletion},
        ... )
        >>> found.values["ig"]["deletion"]
        tensor([10.7500,  1.7500])
        >>> found.ranking("sparseness")
        ['ig', 'gradient']
    """
    for name, given in (("methods", methods), ("metrics", metrics)):
        _check_functions(name, given)
    batch = batch_size(flatten(inputs)[0])
    common = {"target": target, "baselines": baselines, "key": key}
    values: dict[str, dict[str, Tensor]] = {}
    with steps(len(methods) * len(metrics), "compare", progress) as advance:
        for name, method in methods.items():
            bound = functools.partial(method, **_taken(method, _for_method(method, common)))
            attributions = bound(model_fn, inputs)
            values[name] = {}
            for metric_name, metric in metrics.items():
                given = {"model_fn": model_fn, "inputs": inputs, "attributions": attributions}
                found = _measured(metric, metric_name, {**given, "method": bound}, common)
                if not isinstance(found, Tensor) or found.shape != (batch,):
                    raise ValueError(_not_per_example(metric_name, found, batch))
                values[name][metric_name] = found.detach()
                advance(1)
    return Comparison(values, {name: better_end(metric) for name, metric in metrics.items()})


def _check_functions(name: str, given: object) -> None:
    if not isinstance(given, Mapping) or not all(map(callable, given.values())):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a dict of functions")
    if not given:
        raise ValueError(f"{name} is empty, expected at least one")


def _measured(
    metric: Metric, name: str, arguments: dict[str, Any], common: dict[str, Any]
) -> object:
    """The metric of a method, called by the names of its parameters."""
    names = list(inspect.signature(metric).parameters)
    options = _taken(metric, common)
    if "method" in names:
        # The method has the target bound already, and would get it twice.
        order = ("model_fn", "inputs", "method")
        again: functools.partial[Any] = arguments["method"]
        rest = {k: v for k, v in again.keywords.items() if k != "target"}
        arguments = {**arguments, "method": functools.partial(again.func, *again.args, **rest)}
    elif "model_fn" in names:
        order = ("model_fn", "inputs", "attributions")
    elif "attributions" in names:
        order = ("attributions",)  # type: ignore[assignment]
    else:
        raise TypeError(
            f"metric {name!r} takes {', '.join(names) or 'nothing'}, expected parameters named "
            "(attributions), (model_fn, inputs, attributions) or (model_fn, inputs, method)"
        )
    return metric(*[arguments[k] for k in order], **options)


def _for_method(method: Method, common: dict[str, Any]) -> dict[str, Any]:
    """Baselines of each example are not draws of a distribution."""
    if is_over_distribution(method):
        return {k: v for k, v in common.items() if k != "baselines"}
    return common


def _taken(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that a function takes and does not have bound."""
    bound = function.keywords if isinstance(function, functools.partial) else {}
    takes = inspect.signature(function).parameters
    names = set(takes)
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        names.add("target")
    return {k: v for k, v in options.items() if v is not None and k in names and k not in bound}


def _not_per_example(name: str, found: object, batch: int) -> str:
    shape = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    return (
        f"metric {name!r} returned {shape}, expected one number for each of the {batch} examples: "
        "wrap it in a function that reduces what it returns"
    )
