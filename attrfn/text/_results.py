"""Results as other results: merged, selected and normalised; and as a table."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from attrfn._explain.flags import checks_flags
from attrfn._torch.say import say
from attrfn.text._parts_type import TextAttribution

Groups: TypeAlias = "Sequence[Sequence[int]] | Mapping[str, Sequence[int]] | None"
Which: TypeAlias = "int | slice | Sequence[int] | None"
Reduce = Literal["sum", "mean", "max", "min", "absmax"]
How = Literal["l1", "l2", "max", "sum", "change"]


def _absmax(t: Tensor, dim: int) -> Tensor:
    return t.gather(dim, t.abs().argmax(dim, keepdim=True)).squeeze(dim)


REDUCE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sum": lambda t, dim: t.sum(dim),
    "mean": lambda t, dim: t.mean(dim),
    "max": lambda t, dim: t.amax(dim),
    "min": lambda t, dim: t.amin(dim),
    "absmax": _absmax,
}

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda t: t.abs().sum(-1, keepdim=True),
    "l2": lambda t: t.norm(dim=-1, keepdim=True),
    "max": lambda t: t.abs().amax(-1, keepdim=True),
    "sum": lambda t: t.sum(-1, keepdim=True),
}


@checks_flags
def merge(
    result: TextAttribution,
    groups: Groups = None,
    answer_groups: Groups = None,
    reduce: Reduce = "sum",
) -> TextAttribution:
    """A result with parts, or answer tokens, taken together.

    Args:
        result: What :func:`attribute` returned.
        groups: The parts of each group, by number, each in one group; with names of the groups in
            a mapping. None leaves parts as they are.
        answer_groups: The same for the answer's tokens.
        reduce: "sum", "mean", "max", "min" or "absmax" (the value of greatest magnitude).

    Returns:
        Values (groups of the answer, groups of parts), in the order of the groups. ``total`` stays
        that of the whole answer. Standard errors are None, because errors of parts are not
        independent.

    Raises:
        TypeError: Groups are not lists of numbers.
        ValueError: A number is out of range, twice there or left out, or ``reduce`` is unknown.

    Example:
        >>> import torch, attrfn.text as text
        >>> values, scores = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([7.0])
        >>> a = text.TextAttribution(values, values[0], scores, None, ("a", "b", "c"), ("x",))
        >>> b = text.merge(a, {"both": [0, 2], "b": [1]})
        >>> b.parts, b.values
        (('both', 'b'), tensor([[5., 2.]]))
    """
    if reduce not in REDUCE:
        raise ValueError(f"reduce is {say(reduce)}, expected one of {', '.join(REDUCE)}")
    take = REDUCE[reduce]

    def over(t: Tensor, these: list[list[int]] | None, dim: int) -> Tensor:
        if these is None:
            return t
        return torch.stack([take(t.index_select(dim, _index(g, t)), dim) for g in these], dim)

    columns, names = _groups(groups, len(result.parts), "groups")
    rows, row_names = _groups(answer_groups, len(result.answer), "answer_groups")
    values = over(over(result.values, columns, 1), rows, 0)
    spans = result.spans
    if columns is not None and spans is not None:
        ends = [spans[g] for g in columns]
        spans = torch.stack([torch.stack([e[:, 0].amin(), e[:, 1].amax()]) for e in ends])
    parts, answer = result.parts, result.answer
    if columns is not None:
        parts = names or tuple([_label(result, g) for g in columns])
    if rows is not None:
        answer = row_names or tuple(["".join(result.answer[i] for i in g) for g in rows])
    return result._replace(
        values=values,
        total=over(result.total, columns, 0),
        scores=over(result.scores, rows, 0),
        empty=None if result.empty is None else over(result.empty, rows, 0),
        parts=parts,
        answer=answer,
        spans=spans,
        stderr=result.stderr if columns is None and rows is None else None,
    )


def _index(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device)


def _groups(
    groups: Groups, n: int, name: str
) -> tuple[list[list[int]] | None, tuple[str, ...] | None]:
    """Groups as lists, and their names."""
    if groups is None:
        return None, None
    names = tuple(map(str, groups)) if isinstance(groups, Mapping) else None
    try:
        found = [
            [int(i) for i in g]
            for g in (groups.values() if isinstance(groups, Mapping) else groups)
        ]
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} is {say(groups)}, expected lists of numbers such as [[0, 1], [2]], or a "
            "mapping from names to them"
        ) from None
    flat = sorted(i for g in found for i in g)
    if flat != list(range(n)) or not all(found):
        raise ValueError(
            f"{name} has the numbers {say(flat)} in groups, expected each of 0 to {n - 1} once and "
            "no empty group: use select to leave some out"
        )
    return found, names


def _label(result: TextAttribution, group: Sequence[int]) -> str:
    """The texts of a group: neighbours as they are, others with a space between them."""
    spans = None if result.spans is None else result.spans.tolist()
    text, end = "", None
    for i in group:
        near = spans is not None and end == spans[i][0]
        text += ("" if near or not text else " ") + result.parts[i]
        end = None if spans is None else spans[i][1]
    return text


@checks_flags
def select(result: TextAttribution, answer: Which = None, parts: Which = None) -> TextAttribution:
    """Some answer tokens and some parts of a result.

    Args:
        result: What :func:`attribute` returned.
        answer: Which tokens of the answer: a slice, a number or a list of numbers.
        parts: Which parts.

    Returns:
        The result of those. Where some of the answer is left out, ``total`` is the sum of the rows
        that remain, or nan if it was not their sum before: then explain that answer itself.

    Raises:
        TypeError: It is neither of those.
        IndexError: A number is out of range.

    Example:
        >>> import torch, attrfn.text as text
        >>> values, scores = torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([3.0, 12.0])
        >>> a = text.TextAttribution(values, values.sum(0), scores, None, ("a", "b"), ("x", "y"))
        >>> text.select(a, answer=1).total
        tensor([4., 8.])
    """
    rows, columns = (
        _chosen(answer, len(result.answer), "answer"),
        _chosen(parts, len(result.parts), "parts"),
    )
    i, j = _index(rows, result.values), _index(columns, result.values)
    total = result.total
    if rows != list(range(len(result.answer))):
        summed = torch.allclose(result.values.sum(0), total, rtol=1e-4, atol=_rounding(result))
        total = result.values[i].sum(0) if summed else torch.full_like(total, torch.nan)
    return result._replace(
        values=result.values[i][:, j],
        total=total[j],
        scores=result.scores[i],
        empty=None if result.empty is None else result.empty[i],
        parts=tuple([result.parts[k] for k in columns]),
        answer=tuple([result.answer[k] for k in rows]),
        spans=None if result.spans is None else result.spans[j.to(result.spans.device)],
        stderr=None if result.stderr is None else result.stderr[i][:, j],
    )


def _rounding(result: TextAttribution) -> float:
    """What rounding of the sum over the rows may make."""
    size = float(result.values.abs().sum(0).max()) if result.values.numel() else 0.0
    return 1e-5 * size


def _chosen(which: Which, n: int, name: str) -> list[int]:
    if which is None:
        return list(range(n))
    if isinstance(which, slice):
        return list(range(n))[which]
    numbers = [which] if isinstance(which, int) else which
    try:
        found = [range(n)[int(i)] for i in numbers]
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} is {say(which)}, expected a slice, a number or a list of numbers"
        ) from None
    except IndexError:
        raise IndexError(f"{name} is {say(which)}, expected numbers below {n}") from None
    return found


@checks_flags
def normalise(result: TextAttribution, how: How = "l1") -> TextAttribution:
    """A result whose rows, and total, have the same size.

    Args:
        result: What :func:`attribute` returned.
        how: What becomes 1: "l1", the sum of magnitudes; "l2", the root of the sum of squares;
            "max", the greatest magnitude; "sum", the sum, which may be near 0; "change", what the
            score changes from no part to all, as shares of it (needs ``empty``).

    Returns:
        The result with other values, total and standard errors; a row of zeros stays as it is.

    Raises:
        ValueError: ``how`` is unknown, or "change" of a result that has no ``empty``.

    Example:
        >>> import torch, attrfn.text as text
        >>> values, scores = torch.tensor([[1.0, -3.0]]), torch.tensor([3.0])
        >>> a = text.TextAttribution(values, values[0], scores, None, ("a", "b"), ("x",))
        >>> text.normalise(a).values
        tensor([[ 0.2500, -0.7500]])
    """
    if how == "change":
        if result.empty is None:
            raise ValueError(
                "how is 'change' for a result without empty, the score without parts, expected a "
                "method that runs it, such as kernel_shap: take how='sum'"
            )
        change = (result.scores - result.empty)[:, None]
        # If a total is not the sum of the rows, the change of the whole is not known.
        whole = result.total.sum(-1, keepdim=True)
        sizes = (change, whole)
    elif how in NORMS:
        sizes = (NORMS[how](result.values), NORMS[how](result.total))
    else:
        raise ValueError(f"how is {say(how)}, expected one of {', '.join(NORMS)}, change")
    by, by_total = (torch.where(s == 0, torch.ones_like(s), s) for s in sizes)
    return result._replace(
        values=result.values / by,
        total=result.total / by_total,
        stderr=None if result.stderr is None else result.stderr / by.abs(),
    )


@checks_flags
def frame(result: TextAttribution) -> Any:
    """The values as a pandas.DataFrame: a row for each answer token, a column for each part.

    Equal words have columns of their own, in the order of the parts.

    Args:
        result: What :func:`attribute` returned.

    Returns:
        The table.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError(
            "frame needs pandas, which is not installed: pip install pandas"
        ) from error
    values = result.values.detach().cpu()
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    index, columns = (
        pandas.Index(result.answer, name="answer"),
        pandas.Index(result.parts, name="part"),
    )
    return pandas.DataFrame(values.numpy(), index=index, columns=columns)
