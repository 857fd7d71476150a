"""Every sample's attributions of named features, coloured by the features' values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attrfn._explain.flags import checks_flags
from attrfn.viz._canvas import DARK, GREY, LINE, bar_beside
from attrfn.viz._colour import colour_map
from attrfn.viz._rows import MARGIN, features, frame, inputs_of, order, swarm
from attrfn.viz._scale import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

BINS = 90  # along x: a dot is about as wide as one of them


@checks_flags
def strip(
    attributions: Array,
    values: Array,
    names: Sequence[str],
    *,
    top: int = 10,
    cmap: str = "viridis",
    title: str = "",
    xlabel: str = "attribution",
    ax: Axes | None = None,
) -> Figure:
    """One dot per sample and feature: attribution along x, the feature's value as colour.

    Dots of equal attribution are stacked side by side (a "beeswarm"), without random jitter.
    Colours run, per feature, from the 5th to the 95th percentile of its values.

    Args:
        attributions: (B, F).
        values: (B, F), the inputs that were explained.
        names: F texts.
        top: How many features are drawn, those of largest mean |attribution|.
        cmap: Name of a sequential matplotlib colour map, low to high values.
        title: Drawn above the plot.
        xlabel: Drawn under the plot.
        ax: Your axes to draw in instead of a new figure.

    Returns:
        A figure with two axes: the dots and the colour bar.

    Raises:
        TypeError: An argument does not hold real numbers.
        ValueError: Shapes, names or options do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 3)
        >>> figure = strip(x * torch.tensor([1.0, -2.0, 0.1]), x, ["a", "b", "c"], top=2)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['b', 'a']
    """
    data = features(attributions, names)
    shown = inputs_of(values, data)
    chosen = order(data, top)
    colours = colour_map(cmap)
    figure, axes = frame(
        [str(names[i]) for i in chosen],
        title=title,
        xlabel=xlabel,
        right=0.75 + MARGIN,
        description=_describe([str(names[i]) for i in chosen], xlabel),
        ax=ax,
    )
    span = float(data[:, chosen].abs().max()) or 1.0
    for row, i in enumerate(chosen):
        axes.axhline(row, color=LINE, linewidth=0.4, zorder=0.5)
        dots = axes.scatter(
            data[:, i].numpy(),
            (row + swarm((data[:, i] / span + 1) / 2, BINS)).numpy(),
            c=_relative(shown[:, i]).numpy(),
            cmap=colours,
            vmin=0,
            vmax=1,
            s=9,
            linewidths=0,
            alpha=0.9,
            zorder=2,
        )
    _value_bar(figure, axes, dots, own=ax is not None)
    return figure


def _describe(names: list[str], xlabel: str) -> str:
    return (
        f"One dot per sample, {xlabel} along x, the feature's value as colour, for the features "
        f"{', '.join(names)}."
    )


def _value_bar(figure: Figure, axes: Axes, dots: PathCollection, own: bool) -> None:
    """The colour bar of the features' values, at the right of the plot, or of the caller's own."""
    # Without numbers: each feature has its own range.
    bar = bar_beside(axes, own)
    figure.colorbar(dots, cax=bar, ticks=[0, 1]).outline.set(edgecolor=LINE, linewidth=0.5)
    bar.set_yticks([0, 1], labels=["low", "high"])
    bar.tick_params(labelsize=8, length=0, pad=3, labelcolor=DARK)
    bar.set_ylabel("feature value", fontsize=8, color=GREY, labelpad=-8)


def _relative(values: Tensor) -> Tensor:
    """Values as 0..1 between their 5th and 95th percentile; a constant is 0.5."""
    # Percentiles, because one outlier would give all other dots the same colour. A feature of few
    # distinct values may have them equal; then its range is taken.
    ranked = values.sort().values
    last = len(values) - 1
    low, high = ranked[round(0.05 * last)], ranked[round(0.95 * last)]
    if low == high:
        low, high = ranked[0], ranked[-1]
    if low == high:
        return torch.full_like(values, 0.5)
    return ((values - low) / (high - low)).clamp(0, 1)
