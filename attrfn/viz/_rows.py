"""Plots with one row per feature: their checks, order and frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attrfn.viz._canvas import (
    DARK,
    LINE,
    checked,
    dress,
    finish,
    new_figure,
    place,
    root,
    text_height,
    text_width,
    wrap,
    write,
)
from attrfn.viz._scale import Array, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, TITLE = 9.0, 11.0
PLOT, ROW, MARGIN, NAME = 4.2, 0.29, 0.16, 2.2  # inches
SHAPES = {1: "(F,)", 2: "(B, F)"}


def features(attributions: Array, names: Sequence[str]) -> Tensor:
    """The attributions as (B, F), where (F,) is one sample; they agree with the names."""
    data = numbers(attributions, "attributions", SHAPES)
    data = data[None] if data.ndim == 1 else data
    if isinstance(names, str) or len(names) != data.shape[1]:
        raise ValueError(
            f"names has {len(names)} entries, expected {data.shape[1]}, one text per feature of "
            "attributions: flatten both in the same order"
        )
    return data


def inputs_of(values: Array, data: Tensor) -> Tensor:
    """The inputs that were explained, (B, F) as the attributions.

    Raises:
        ValueError: They have another shape.
    """
    found = numbers(values, "values", SHAPES)
    found = found[None] if found.ndim == 1 else found
    if found.shape != data.shape:
        raise ValueError(
            f"values has shape {tuple(found.shape)}, expected {tuple(data.shape)} as attributions "
            "has: give the inputs that were explained"
        )
    return found


def order(data: Tensor, top: int) -> list[int]:
    """The ``top`` features of largest mean |attribution|, largest first; ties keep their order."""
    if top < 1:
        raise ValueError(f"top is {top}, expected at least 1: it is the number of rows to draw")
    return torch.argsort(data.abs().mean(0), descending=True, stable=True)[:top].tolist()


def with_values(
    data: Tensor, names: Sequence[str], values: Array | None, chosen: list[int]
) -> list[str]:
    """The names of the chosen features, with their mean values if those are given."""
    labels = [str(names[i]) for i in chosen]
    if values is None:
        return labels
    shown = numbers(values, "values", SHAPES)
    if shown.shape not in (data.shape, data.shape[1:]):
        raise ValueError(
            f"values has shape {tuple(shown.shape)}, expected {tuple(data.shape[1:])} or "
            f"{tuple(data.shape)}: give the inputs that were explained"
        )
    shown = shown if shown.ndim == 1 else shown.mean(0)
    return [f"{label} = {shown[i]:.4g}" for label, i in zip(labels, chosen, strict=True)]


def swarm(places: Tensor, bins: int) -> Tensor:
    """Offsets within -0.4..0.4 for dots: the k-th dot of a bin goes k/2 dots to one side or other.

    Args:
        places: Where the dots are along the axis, (N,), 0 to 1.
        bins: How many dots have room along the axis.
    """
    binned = (places * (bins - 1)).round().long()
    rank = torch.zeros(len(places), dtype=torch.long)
    for b in set(binned.tolist()):
        inside = binned == b
        rank[inside] = torch.arange(int(inside.sum()))
    offsets = (rank + 1).div(2, rounding_mode="floor") * (1 - 2 * (rank % 2))
    # Rows with few dots keep them together: half a row is at least five dots high.
    step = 0.4 / max(float(offsets.abs().max()), 5.0)
    return offsets * step


def frame(
    labels: Sequence[str],
    *,
    title: str,
    xlabel: str,
    right: float,
    description: str,
    ax: Axes | None = None,
    zero: bool = True,
) -> tuple[Figure, Axes]:
    """A figure with one row per label, first on top at y = 0, and a line at x = 0.

    Args:
        labels: Texts at the left of the rows.
        title: Drawn above the plot.
        xlabel: Drawn under the plot.
        right: Inches to leave at the right of the plot.
        description: The figure's text for screen readers.
        ax: The axes to use, whose place and size then stay.
        zero: Whether there is a line at x = 0.
    """
    labels = [wrap(label, NAME, TEXT) for label in labels]
    if ax is None:
        figure, axes = _new(labels, title, xlabel, right, description)
    else:
        axes = dress(checked(ax))
        figure = root(axes)
        axes.set_title(title, loc="left", parse_math=False)
        axes.set_xlabel(xlabel, fontsize=TEXT, color=DARK, parse_math=False)
    # Downwards, so that row 0 is on top.
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels=labels, fontsize=TEXT, parse_math=False)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x", color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    if zero:
        # The reference of every attribution: over the grid, under bars and dots.
        axes.axvline(0, color=DARK, linewidth=0.8, zorder=1.5)
    return figure, axes


def _new(
    labels: list[str], title: str, xlabel: str, right: float, description: str
) -> tuple[Figure, Axes]:
    """A figure that has room for the labels, the plot and its title."""
    left = MARGIN + max(text_width(label, TEXT) for label in labels) + 0.1
    row = max(ROW, max(text_height(label, TEXT) for label in labels) + 0.06)
    width = left + PLOT + right
    title = wrap(title, width - 2 * MARGIN, TITLE, "bold")
    xlabel = wrap(xlabel, PLOT, TEXT)
    top = MARGIN + text_height(title, TITLE) + (0.1 if title else 0)
    height = len(labels) * row
    bottom = 0.25 + text_height(xlabel, TEXT) + MARGIN
    figure = new_figure(width, top + height + bottom, description)
    write(figure, MARGIN, MARGIN, title, TITLE, weight="bold")
    axes = place(figure, left, top, PLOT, height)
    write(figure, left + PLOT / 2, top + height + 0.25, xlabel, TEXT, ha="center")
    return finish(figure), axes
