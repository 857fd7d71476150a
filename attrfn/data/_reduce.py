"""Running statistics of attributions, in memory that does not grow with the data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import is_count, row_sums
from attrfn._torch.say import say
from attrfn._torch.typing import Tree
from attrfn.data._sketch import quantiles


class Reduce(Protocol):
    """A running statistic of attributions; an object with these four functions is one."""

    def init(self) -> Any:
        """The state before any example."""

    def update(self, state: Any, attributions: Tree, index: Tensor) -> Any:
        """The state after a batch: its attributions, and the numbers of its examples (B,)."""

    def merge(self, a: Any, b: Any) -> Any:
        """The state after the examples of both, those of ``a`` first."""

    def compute(self, state: Any) -> Any:
        """The statistic."""


def reduction(how: Any) -> Reduce:
    """The statistic that an argument ``reduce`` stands for.

    Raises:
        TypeError: It stands for none.
    """
    if isinstance(how, str) and how in _NAMED:
        return cast(Reduce, _NAMED[how]())
    if isinstance(how, tuple) and len(how) == 2 and all(map(callable, how)):
        return _Pair(*how)
    if isinstance(how, type):
        raise TypeError(
            f"reduce is the class {how.__name__}, expected an object of it, such as "
            "attrfn.data.quantiles()"
        )
    if all(callable(getattr(how, name, None)) for name in ("init", "update", "compute")):
        return cast(Reduce, how)
    raise TypeError(
        f"reduce is {say(how)}, expected 'mean', 'mean_abs', attrfn.data.quantiles(...), "
        "attrfn.data.top_k(...), or a pair (update, compute) of functions"
    )


class _Pair:
    """A pair of functions: ``update(state, attributions)``, ``None`` first, and ``compute``."""

    def __init__(self, update: Callable[..., Any], compute: Callable[[Any], Any]) -> None:
        self._update = update
        self.compute = compute

    def init(self) -> None:
        return None

    def update(self, state: Any, attributions: Tree, index: Tensor) -> Any:
        return self._update(state, attributions)

    def merge(self, a: Any, b: Any) -> Any:
        raise TypeError("reduce is a pair of functions, which has no merge: give an object with it")


class _Mean:
    """The mean of f of the attributions, summed in float64."""

    def __init__(self, f: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        self._f = f

    def init(self) -> Any:
        return None

    def update(self, state: Any, attributions: Tree, index: Tensor) -> Any:
        sums = optree.tree_map(lambda t: self._f(t).sum(0, dtype=torch.float64), attributions)
        like = optree.tree_map(lambda t: t[:0], attributions)
        return self.merge(state, (len(index), sums, like))

    def merge(self, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return a or b
        return a[0] + b[0], optree.tree_map(torch.add, a[1], b[1]), a[2]

    def compute(self, state: Any) -> Any:
        if state is None:
            raise ValueError("data has no examples, expected at least one to take a mean of")
        n, sums, like = state
        return optree.tree_map(lambda s, t: (s / n).to(t.dtype), sums, like)


class top_k:
    """The examples with the greatest scores, a statistic for ``reduce``.

    It gives ``Top(examples, scores, attributions)``, the greatest first. Of equal scores the
    earlier example comes first.

    Args:
        k: How many.
        score: From the attributions of a batch to (B,); ``None``: the sum of their sizes.

    Raises:
        ValueError: ``k`` is not a count.

    Example:
        >>> import torch, attrfn.data
        >>> x = torch.tensor([[1.0], [5.0], [3.0]])
        >>> top = attrfn.data.top_k(2)
        >>> f = lambda x: (x**2).sum(1) / 2
        >>> attrfn.data.explain(attrfn.gradient, f, x, reduce=top, progress=False).examples
        tensor([1, 2])
    """

    def __init__(self, k: int, score: Callable[[Tree], Tensor] | None = None) -> None:
        if not is_count(k):
            raise ValueError(f"k is {say(k)}, expected a number of examples, at least 1")
        self.k = k
        self.score = _size if score is None else score

    def init(self) -> Any:
        """No examples."""
        return None

    def update(self, state: Any, attributions: Tree, index: Tensor) -> Any:
        """The best of both."""
        scores: Any = self.score(attributions)
        if not isinstance(scores, Tensor) or scores.shape != index.shape:
            raise ValueError(
                f"score returned {say(scores)}, expected a tensor of shape {tuple(index.shape)}"
            )
        return self.merge(state, Top(index, scores, attributions))

    def merge(self, a: Any, b: Any) -> Any:
        """The best of both, the earlier one of equal ones."""
        if a is not None and b is not None:
            b = optree.tree_map(lambda s, t: torch.cat([s, t]), a, b)
        b = a if b is None else b
        if b is None:
            return None
        order = b.scores.sort(descending=True, stable=True).indices[: self.k]
        return optree.tree_map(lambda t: t[order], b)

    def compute(self, state: Any) -> Any:
        """The best."""
        if state is None:
            raise ValueError("data has no examples, expected at least one to choose from")
        return state


class Top(NamedTuple):
    """The examples with the greatest scores, the greatest first.

    Attributes:
        examples: Their numbers, (k,).
        scores: Their scores, (k,).
        attributions: Their attributions, each (k, ...).
    """

    examples: Tensor
    scores: Tensor
    attributions: Tree


def _size(tree: Tree) -> Tensor:
    leaves: list[Any] = optree.tree_leaves(tree)
    return torch.stack([row_sums(t.double().abs()) for t in leaves]).sum(0)


_NAMED: dict[str, Callable[[], Any]] = {
    "mean": _Mean,
    "mean_abs": lambda: _Mean(torch.abs),
    "quantiles": quantiles,
}
