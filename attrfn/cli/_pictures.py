"""The figures of a report: the most important features, mean maps, and single examples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

import attrfn.data
from attrfn import viz
from attrfn.cli._originals import Originals

IMPORTANT = "Most important features"
_MOST_ELEMENTS = 10_000  # of an example; names for more would take longer than the figure
_SHOWN = 6  # examples whose maps are drawn


class Statistics(NamedTuple):
    """What a folder says in numbers, each a list with a tensor for each leaf.

    Attributes:
        sizes: Means of absolute values.
        means: Means.
        top: The examples with the largest sums of absolute values.
        ranked: Per leaf the flat places of its largest sizes.
    """

    sizes: list[Tensor]
    means: list[Tensor]
    top: Any
    ranked: list[list[int]]

    def tables(
        self, found: attrfn.data.Attributions, seen: Originals
    ) -> dict[str, list[dict[str, object]]]:
        """The most important elements of each leaf, and the examples with the most."""
        tables: dict[str, list[dict[str, object]]] = {}
        leaves = zip(found.names(), self.sizes, self.means, self.ranked, strict=True)
        for name, size, mean, places in leaves:
            if _is_map(size) or seen.words:  # of which the figures say more
                continue
            names = element_names(found, name, size)
            tables[f"{IMPORTANT}{where_of(name, found)}"] = [
                {
                    "feature": names(i),
                    "mean size": float(size.flatten()[i]),
                    "mean": float(mean.flatten()[i]),
                }
                for i in places
            ]
        scores = zip(self.top.examples.tolist(), self.top.scores.tolist(), strict=True)
        rows = [{"example": i, "sum of sizes": s, "what": seen.name(i)} for i, s in scores]
        known = any(row["what"] for row in rows)
        tables["Examples with the largest attributions"] = [
            {k: v for k, v in row.items() if known or k != "what"} for row in rows
        ]
        return tables


def statistics(found: attrfn.data.Attributions, top: int) -> Statistics | None:
    """The statistics of a folder; None if no example has attributions."""
    if len(found) == len(found.failed):
        return None
    sizes: list[Any] = [_finite(t) for t in optree.tree_leaves(found.reduce("mean_abs"))]
    means: list[Any] = [_finite(t) for t in optree.tree_leaves(found.reduce("mean"))]
    ranked = [t.flatten().argsort(descending=True, stable=True)[:top].tolist() for t in sizes]
    return Statistics(sizes, means, found.reduce(attrfn.data.top_k(top)), ranked)


def _finite(t: Tensor) -> Tensor:
    return t.double().nan_to_num(0.0, 0.0, 0.0)


def where_of(name: str, found: attrfn.data.Attributions) -> str:
    """The name of a leaf in a caption, where there are several."""
    return "" if len(found.names()) == 1 else f" of {name}"


def element_names(found: attrfn.data.Attributions, leaf: str, like: Tensor) -> Any:
    """A function from the flat place of an element to its name."""
    table: Sequence[str] | None = found.manifest["table"]
    if table:
        return lambda i: table[i]
    if like.ndim == 0:
        return lambda i: leaf
    shape = tuple(like.shape)

    def name(i: int) -> str:
        places = torch.unravel_index(torch.tensor(i), shape)
        return f"{leaf}[{', '.join(str(int(p)) for p in places)}]"

    return name


def pictures(
    found: attrfn.data.Attributions, numbers: Statistics, seen: Originals, top: int
) -> dict[str, Any]:
    """Figures by their captions."""
    figures: dict[str, Any] = {}
    leaves: list[Any] = optree.tree_leaves(numbers.top.attributions)
    for name, size, rows in zip(found.names(), numbers.sizes, leaves, strict=True):
        where = where_of(name, found)
        if _is_map(size):
            figures[f"Mean size of the attributions{where}, over all examples"] = _mean_map(size)
            figures[f"The examples with the largest attributions{where}"] = _maps(
                rows, numbers.top.examples.tolist(), seen
            )
        elif seen.words and size.ndim == 1:
            figures["The texts with the largest attributions"] = _words(rows, numbers, seen)
        elif 0 < size.numel() <= _MOST_ELEMENTS:
            figures[f"{IMPORTANT}{where}"] = _bars(found, name, size, top)
    return figures


def _is_map(like: Tensor) -> bool:
    """Whether attributions of an example are a picture: (H, W), or channels of one."""
    return like.ndim in (2, 3) and min(like.shape[-2:]) > 1


def _bars(found: attrfn.data.Attributions, name: str, size: Tensor, top: int) -> Any:
    names = element_names(found, name, size)
    labels = [names(i) for i in range(size.numel())]
    # One row would be a sample, with signs; of several the bars are means of sizes.
    rows = size.flatten().expand(2, -1)
    return viz.bar(rows, labels, top=top, error=None, xlabel="mean size of the attribution")


def _mean_map(size: Tensor) -> Any:
    maps = size[None, None] if size.ndim == 2 else size[None]
    blank = torch.zeros(1, 1, *size.shape[-2:], dtype=size.dtype)
    return viz.image_grid(blank, {"mean size": maps}, original=False, outline=False, layout="CHW")


def _maps(rows: Tensor, examples: list[int], seen: Originals) -> Any:
    maps = _finite(rows[:_SHOWN])
    maps = maps[:, None] if maps.ndim == 3 else maps
    titles = [seen.labels.get(i, f"example {i}") for i in examples[:_SHOWN]]
    if seen.images is None:
        blank = torch.zeros(len(maps), 1, *maps.shape[-2:], dtype=maps.dtype)
        options: dict[str, Any] = {"original": False, "outline": False}
        return viz.image_grid(blank, {"attribution": maps}, titles=titles, layout="CHW", **options)
    options = {"mean": seen.mean, "std": seen.std, "overlay": True}
    shown = seen.images[:_SHOWN]
    return viz.image_grid(shown, {"attribution": maps}, titles=titles, layout="CHW", **options)


def _words(rows: Tensor, numbers: Statistics, seen: Originals) -> Any:
    """The tokens of the first texts, coloured."""
    words, values, labels = [], [], []
    for i, row in itertools.islice(zip(numbers.top.examples.tolist(), rows, strict=True), 10):
        if pieces := seen.words.get(i):
            words.append(pieces)
            values.append(_finite(row[: len(pieces)]))
            labels.append(f"example {i}")
    return viz.text(words, values, labels=labels)
