"""Feature importance: what a metric of a whole data set owes to each feature."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import optree
import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.batch import is_count, is_one_of
from attrfn._explain.introspect import explains_all_outputs
from attrfn._explain.noise import count_of
from attrfn._random.keys import as_key
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, FeatureMask, Key, Method, ModelFn, Tree
from attrfn.data._columns import Columns
from attrfn.data._digest import dtype_of
from attrfn.data._game import Coalition, Game
from attrfn.data._kinds import source
from attrfn.data._metrics import metric_of
from attrfn.data._options import parameters_of, permutes

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
    _check(method, batch_size)
    read_columns = Columns(columns, ["target"])
    read_columns.dtype = dtype_of(model_fn)
    if target is not None and "target" in read_columns.options:
        raise ValueError("target is given twice, as an argument and in columns: drop one")
    found = source(data, read_columns)
    target = None if target is None else torch.as_tensor(target)
    if target is not None and found.length not in (None, len(target)):
        raise ValueError(f"target has {len(target)} entries, expected {found.length}, as data has")
    size = (found.batch or _WITHOUT_A_SIZE) if is_one_of(batch_size, "auto") else int(batch_size)
    game = Game(model_fn, found, metric_of(metric), size, target, progress)
    game.begin(baselines, feature_mask)
    if permutes(method):
        bound = method.keywords if isinstance(method, functools.partial) else {}
        return game.elements(_permuted(game, as_key(key), **{**bound, **options}))
    names = parameters_of(method)
    if names is not None and "key" in names:
        options["key"] = key
    return _played(method, game, options)


def _check(method: Any, batch_size: Any) -> None:
    if not callable(method) or not explains_all_outputs(_innermost(method)):
        raise TypeError(
            f"method is {say(method)}, expected one that replaces features, such as "
            "attrfn.feature_ablation or attrfn.shapley_values"
        )
    if not (is_one_of(batch_size, "auto") or is_count(batch_size)):
        raise ValueError(f"batch_size is {say(batch_size)}, expected 'auto' or at least 1")


def _played(method: Method, game: Game, options: dict[str, Any]) -> Tree:
    """What a method says of the game."""
    one = torch.ones(1, game.features.n, dtype=torch.float64)
    # The first run writes down which coalitions the method asks for, so that one pass over the data
    # serves them all; a sum is a game without interactions, of which no method is uncertain.
    asked: dict[Coalition, None] = {}

    def noted(z: Tensor) -> Tensor:
        asked.update(dict.fromkeys(_keys(z)))
        return z.sum(1).to(z)

    method(noted, one, **options)
    values = game.values(list(asked))

    def looked_up(z: Tensor) -> Tensor:
        rows = _keys(z)
        values.update(game.values([r for r in dict.fromkeys(rows) if r not in values]))
        return torch.tensor([values[r] for r in rows], dtype=torch.float64).to(z)

    return optree.tree_map(game.elements, method(looked_up, one, **options))


def _permuted(game: Game, key: Tensor, n_samples: int = 1, **options: Any) -> Tensor:
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


def _keys(z: Tensor) -> list[Coalition]:
    return [tuple(row) for row in (z > 0.5).tolist()]


def _innermost(method: Any) -> Any:
    while isinstance(method, functools.partial):
        method = method.func
    return method
