"""Feature importance: what a metric of a whole data set owes to each feature."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal

import optree
import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import is_count, is_one_of
from attrfn._copies.progress import steps
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.explain import explain
from attrfn._explain.features import Features, features
from attrfn._explain.introspect import explains_all_outputs
from attrfn._explain.noise import count_of
from attrfn._explain.tree import call_model, each, flatten
from attrfn._random.keys import as_key
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, FeatureMask, Key, Leaves, Method, ModelFn, Tree
from attrfn.data._ahead import ahead
from attrfn.data._bound import bound_to, shared_by_all
from attrfn.data._columns import Columns
from attrfn.data._digest import device_of, dtype_of
from attrfn.data._kinds import source
from attrfn.data._metrics import Metric, metric_of
from attrfn.data._options import moved, parameters_of, permutes
from attrfn.data._sources import Batch, Source

# Coalitions whose metric is followed in one pass over the data.
_AT_ONCE = 1024
_WITHOUT_A_SIZE = 64


def importance(
    method: Method,
    model_fn: ModelFn,
    data: Any,
    *,
    metric: Any,
    target: Tensor | Sequence[int] | None = None,
    baselines: Baselines = None,
    feature_mask: FeatureMask = None,
    batch_size: int | Literal["auto"] = "auto",
    key: Key = 0,
    columns: Any = None,
    progress: bool = True,
    **options: Any,
) -> Tree:
    """What a metric of a whole data set owes to each feature.

        A = X(v),    v(z) = metric over all i of f(x_i with the features where z = 0 replaced)

    X is a game method: with ``attrfn.feature_ablation`` A_k is what the metric loses without
    feature k, with ``attrfn.shapley_values`` the Shapley value. With ``attrfn.feature_permutation``
    feature k comes from another example of the data set, by one permutation of all examples for
    each sample. The data are read once for up to 1024 coalitions, and never kept.

    Args:
        method: A method that replaces features: ``attrfn.feature_ablation``,
            ``feature_permutation``, ``shapley_values``, ``shapley_value_sampling``,
            ``kernel_shap``, ``lime`` or ``interactions``.
        model_fn: The model function.
        data: What ``explain`` takes; for a permutation it needs rows by number, so no stream.
        metric: ``Accuracy``, ``AUC``, ``Loss``, an object with ``init``, ``update``,
            ``merge`` and ``compute``, or a function ``(outputs, target)`` of all outputs, which are
            then kept.
        target: One target for each example, (N,), if it is no column.
        baselines: x0, what replaces features: ``None`` (zeros), a number, or a tensor or pytree
            that broadcasts to one example.
        feature_mask: The feature of each element, the same for all examples; ``None``: each element
            is one.
        batch_size: How many examples run at once.
        key: An int or a key (2,).
        columns: As in ``explain``.
        progress: Show a bar.
        options: Options of the method.

    Returns:
        A pytree like one example, every element with the importance of its feature; of
        ``interactions`` the matrix of the features.

    Raises:
        TypeError: The method replaces no features, or ``metric`` is none.
        ValueError: Values or shapes disagree.

    Example:
        >>> import torch, attrfn.data
        >>> x, y = torch.tensor([[1.0, 9.0], [-1.0, 9.0]]), torch.tensor([1, 0])
        >>> accuracy = attrfn.data.Accuracy()
        >>> f = lambda x: x[:, 0]
        >>> attrfn.data.importance(
        ...     attrfn.feature_ablation, f, x, metric=accuracy, target=y, progress=False
        ... )
        tensor([0.5000, 0.0000])

    Reference:
        Breiman, Random Forests, 2001.
        Covert, Lundberg and Lee, Understanding Global Feature Contributions With Additive
        Importance Measures, 2020, https://arxiv.org/abs/2004.00668.
    """
    given: Any = method
    if not callable(given) or not explains_all_outputs(_innermost(method)):
        raise TypeError(
            f"method is {say(method)}, expected one that replaces features, such as "
            "attrfn.feature_ablation or attrfn.shapley_values"
        )
    if not (is_one_of(batch_size, "auto") or is_count(batch_size)):
        raise ValueError(f"batch_size is {say(batch_size)}, expected 'auto' or at least 1")
    read_columns = Columns(columns, ["target"])
    read_columns.dtype = dtype_of(model_fn)
    found = source(data, read_columns)
    target = None if target is None else torch.as_tensor(target)
    if target is not None and found.length not in (None, len(target)):
        raise ValueError(f"target has {len(target)} entries, expected {found.length}, as data has")
    size = (found.batch or _WITHOUT_A_SIZE) if is_one_of(batch_size, "auto") else int(batch_size)
    game = _Game(model_fn, found, metric_of(metric), size, target, progress)
    game.begin(baselines, feature_mask)
    if permutes(method):
        bound = method.keywords if isinstance(method, functools.partial) else {}
        return game.elements(_permuted(game, as_key(key), **{**bound, **options}))
    names = parameters_of(method)
    if names is not None and "key" in names:
        options["key"] = key
    one = torch.ones(1, game.features.n, dtype=torch.float64)

    def run(values: Callable[[Tensor], Tensor]) -> Tree:
        return method(lambda z: values(z).to(z), one, **options)

    # The first run writes down which coalitions the method asks for, so that one pass over the data
    # serves them all; a sum is a game without interactions, of which no method is uncertain.
    asked: dict[tuple[bool, ...], None] = {}

    def noted(z: Tensor) -> Tensor:
        asked.update(dict.fromkeys(_keys(z)))
        return z.sum(1)

    run(noted)
    values = game.values(list(asked))

    def looked_up(z: Tensor) -> Tensor:
        rows = _keys(z)
        values.update(game.values([r for r in dict.fromkeys(rows) if r not in values]))
        return torch.tensor([values[r] for r in rows], dtype=torch.float64)

    return optree.tree_map(game.elements, run(looked_up))


def _permuted(game: _Game, key: Tensor, n_samples: int = 1, **options: Any) -> Tensor:
    """The importance of each feature by permutation, (1, F)."""
    if options:
        raise TypeError(
            f"{next(iter(options))} is not an option of a permutation of a data set: it takes "
            "n_samples"
        )
    n, length = game.features.n, game.data.length
    if length is None:
        raise TypeError(
            "data has no rows by number, so that no row can take a feature of another: give a "
            "Dataset, tensors or a file"
        )
    if length < 2:
        raise ValueError(f"data has {length} example(s), expected at least 2 to shuffle them")
    every = (True,) * n
    full = game.values([every])[every]
    without = [tuple(i != k for i in range(n)) for k in range(n)]
    total = torch.zeros(n, dtype=torch.float64)
    for s in range(count_of("n_samples", n_samples)):
        order = random.permutation(random.fold_in(key, s), length)
        found = game.values(without, order)
        total += torch.tensor([found[w] for w in without], dtype=torch.float64)
    return (full - total / n_samples)[None]


class _Game:
    """The metric of the data set as a function of the features that are kept."""

    def __init__(
        self,
        model_fn: ModelFn,
        data: Source,
        metric: Metric,
        size: int,
        target: Tensor | None,
        progress: bool,
    ) -> None:
        self.model_fn = shared_by_all(model_fn, data.length)
        self.data = data
        self.metric = metric
        self.size = size
        self.target = target
        self.progress = progress
        self.device = device_of(model_fn)
        self.features: Features
        self._inputs: Tree

    def begin(self, baselines: Baselines, mask: FeatureMask) -> None:
        """Find out what the features are, on the first example."""
        first = self.data.first()
        if first is None or not len(first):
            raise ValueError("data has no examples, expected at least one")
        if not self.data.again:
            raise TypeError(
                "data can be read only once, expected a data set that can be read several times: "
                "give a Dataset, a DataLoader, a list of batches or tensors"
            )
        self._inputs = optree.tree_map(lambda t: t[:1], first.inputs)
        x, _ = flatten(self._inputs)
        self.features = features(mask, self._inputs, x, None)
        self._x0 = moved(fill_baselines(baselines, self._inputs, x), self.device)

    def elements(self, scores: Tensor) -> Tree:
        """Scores (1, F) for the elements of an example; others as they are, without the row."""
        if scores.shape != (1, self.features.n):
            return scores[0]
        leaves = self.features.elements(scores.float())
        return flatten(self._inputs)[1]([t[0] for t in leaves])

    def values(
        self, coalitions: list[tuple[bool, ...]], order: Tensor | None = None
    ) -> dict[tuple[bool, ...], float]:
        """The metric for each coalition.

        Args:
            coalitions: Which features are kept.
            order: The example from which the others come; None: baselines.
        """
        found: dict[tuple[bool, ...], float] = {}
        for i in range(0, len(coalitions), _AT_ONCE):
            group = coalitions[i : i + _AT_ONCE]
            z = torch.tensor(group, dtype=torch.bool)[:, None]
            masks = moved(self.features.masks(z), self.device)
            states = [self.metric.init() for _ in group]
            for batch in self._batches():
                self._update(states, batch, masks, order)
            numbers = [torch.as_tensor(self.metric.compute(s)).double() for s in states]
            if any(v.numel() != 1 for v in numbers):
                raise ValueError(
                    f"metric gave a tensor of shape {tuple(numbers[0].shape)}, expected one number"
                )
            found.update({g: float(v) for g, v in zip(group, numbers, strict=True)})
        return found

    def _update(self, states: list[Any], batch: Batch, masks: Leaves, order: Tensor | None) -> None:
        """Add a batch to the state of each coalition."""
        assert batch.rows is not None
        rows = moved(batch.rows.tree(), self.device)
        inputs, options, bound, _ = rows
        target = options.get("target")
        if target is None and self.target is not None:
            target = self.target[batch.places]
        x, rebuild = flatten(inputs)
        other = self._x0
        if order is not None:
            other, _ = flatten(moved(self.data.at(order[batch.places]).inputs, self.device))
        model = bound_to(self.model_fn, bound, batch.size)
        p = explain(
            model, inputs, None, create_graph=False, differentiated=False, forward_only=True
        )
        with torch.no_grad():
            for i in range(len(states)):
                kept = each(lambda m, t, b, i=i: torch.where(m[i], t, b), masks, x, other)
                outputs = call_model(p.model, rebuild(kept), fresh=True)
                states[i] = self.metric.update(states[i], outputs, target)

    def _batches(self) -> Iterator[Batch]:
        data, label = self.data.fresh(), "importance"
        found = _read(data, self.size)
        shown = self.progress and data.length is not None
        batches = ahead(found) if data.slow else found
        bar = steps(data.length or 0, label, shown, ("example", "examples"))
        with bar as advance, contextlib.closing(batches):
            for batch in batches:
                yield batch
                advance(batch.size)


def _read(data: Source, size: int) -> Generator[Batch, None, None]:
    start = 0
    while (batch := data.read(start, start + size)) is not None:
        yield batch
        start += batch.size


def _keys(z: Tensor) -> list[tuple[bool, ...]]:
    return [tuple(row) for row in (z > 0.5).tolist()]


def _innermost(method: Any) -> Any:
    while isinstance(method, functools.partial):
        method = method.func
    return method
