"""Time series over a background coloured by attribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import DARK, finish, new_figure, place, text_height, text_width, wrap, write
from attrfn.viz._colour import colour_bar, colour_map, norm
from attrfn.viz._scale import Array, limit, numbers, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

SHAPES = {"CT": {1: "(T,)", 2: "(C, T)"}, "TC": {1: "(T,)", 2: "(T, C)"}}
WIDTH, ROW, GAP, MARGIN, TEXT, TITLE = 6.4, 1.0, 0.12, 0.16, 9.0, 11.0
TICKS = 0.45  # room for the labels of the y axis, in inches


@checks_flags
def time_series(
    attribution: Array,
    series: Array,
    *,
    times: Array | None = None,
    names: Sequence[str] | None = None,
    outlier_percentile: float = 99.0,
    cmap: str = "RdBu_r",
    title: str = "",
    xlabel: str = "time step",
    layout: Literal["CT", "TC"] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Lines of a series, one panel per channel, over bands coloured by attribution.

    Args:
        attribution: (T,), (C, T), or (T, C) as ``layout`` says.
        series: Of the same shape.
        times: (T,) increasing positions; by default 0 to T - 1.
        names: C labels of the panels.
        outlier_percentile: Where the one colour scale of all panels ends, as a percentile of
            |attribution|; 100: at the largest value.
        cmap: Name of a diverging matplotlib colour map, negative to positive.
        title: Drawn above the panels.
        xlabel: Drawn under the panels.
        layout: "CT" or "TC": whether channels or steps come first. None expects (C, T), and refuses
            more channels than steps, which are usually (T, C).
        ax: Your axes instead of a new figure: all axes are scaled into its box.

    Returns:
        A figure with one axes per channel and, last, the colour bar.

    Raises:
        TypeError: An argument does not hold real numbers.
        ValueError: Shapes, names or options do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> series = torch.linspace(0, 6, 40).sin()
        >>> len(time_series(torch.randn(40), series).axes)
        2
    """
    values, lines = _read(attribution, series, layout)
    channels, steps = lines.shape
    labels = _labels(names, channels)
    x = _positions(times, steps)
    end = limit(values, percentile(outlier_percentile))

    left = MARGIN + max(text_width(label, TEXT) for label in labels) + TICKS
    title = wrap(title, left + WIDTH, TITLE, "bold")
    top = MARGIN + text_height(title, TITLE) + (0.1 if title else 0)
    height = channels * (ROW + GAP) - GAP
    total = top + height + 0.3 + text_height(xlabel, TEXT) + MARGIN
    figure = new_figure(left + WIDTH + 0.9, total, _describe(channels, steps), ax)
    write(figure, MARGIN, MARGIN, title, TITLE, weight="bold")
    colours, scale = colour_map(cmap), norm(end)
    for channel, label in enumerate(labels):
        y = top + channel * (ROW + GAP)
        axes = place(figure, left, y, WIDTH, ROW)
        write(figure, left - TICKS, y + ROW / 2, label, TEXT, ha="right", va="center")
        bands = _draw_panel(axes, x, lines[channel], values[channel], colours, scale)
        if channel < channels - 1:
            axes.set_xticks([])
    write(figure, left + WIDTH / 2, top + height + 0.25, xlabel, TEXT, ha="center")
    bar = place(figure, left + WIDTH + 0.12, top, 0.1, height)
    clipped = bool((values.abs() > end).any())
    colour_bar(figure, bar, bands, end, clipped=clipped, orientation="vertical", size=8)
    return finish(figure)


def _read(
    attribution: Array, series: Array, layout: Literal["CT", "TC"] | None
) -> tuple[Tensor, Tensor]:
    """The attributions and the series, (C, T)."""
    if layout not in (None, *SHAPES):
        raise ValueError(
            f"layout is {say(layout)}, expected 'CT', 'TC' or None: channels or steps come first"
        )
    forms = SHAPES[layout or "CT"]
    values, lines = numbers(attribution, "attribution", forms), numbers(series, "series", forms)
    if values.shape != lines.shape:
        raise ValueError(
            f"attribution has shape {tuple(values.shape)}, expected {tuple(lines.shape)} as series "
            "has: bring both into one layout"
        )
    if layout is None and lines.ndim == 2 and lines.shape[0] > lines.shape[1]:
        raise ValueError(
            f"series has shape {tuple(lines.shape)}, more channels than steps as (C, T): give "
            "layout='TC' if it is (T, C), else layout='CT'"
        )
    if layout == "TC" and lines.ndim == 2:
        values, lines = values.mT, lines.mT
    steps = lines.shape[-1]
    return values.reshape(-1, steps), lines.reshape(-1, steps)


def _describe(channels: int, steps: int) -> str:
    return (
        f"Time series of {channels} channels and {steps} steps; the background is red where a step "
        "raises the explained output and blue where it lowers it."
    )


def _draw_panel(
    axes: Axes, x: Tensor, line: Tensor, values: Tensor, colours: Colormap, scale: Normalize
) -> QuadMesh:
    """One channel's line over its bands, which are returned."""
    pad = 0.08 * (float(line.max() - line.min()) or 1.0)
    low, high = float(line.min()) - pad, float(line.max()) + pad
    edges = _edges(x)
    bands = axes.pcolormesh(
        edges.numpy(), [low, high], values[None].numpy(), cmap=colours, norm=scale
    )
    # A pale border keeps the line readable on the darkest bands.
    axes.plot(x.numpy(), line.numpy(), color="white", linewidth=2.8, alpha=0.7)
    axes.plot(x.numpy(), line.numpy(), color=DARK, linewidth=1.2)
    axes.set(xlim=(float(edges[0]), float(edges[-1])), ylim=(low, high))
    axes.locator_params(axis="y", nbins=4)
    return bands


def _labels(names: Sequence[str] | None, channels: int) -> list[str]:
    labels = [""] * channels if names is None else [str(name) for name in names]
    if isinstance(names, str) or len(labels) != channels:
        raise ValueError(
            f"names is {say(names)}, expected {channels} texts, one per channel of series: leave "
            "it out for panels without label"
        )
    return [wrap(label, 1.4, TEXT) for label in labels]


def _positions(times: Array | None, steps: int) -> Tensor:
    if times is None:
        return torch.arange(steps, dtype=torch.float64)
    x = numbers(times, "times", {1: "(T,)"})
    if len(x) != steps or bool((x.diff() <= 0).any()):
        raise ValueError(
            f"times has {len(x)} values, expected {steps} increasing ones, one per step of series: "
            "sort the steps first"
        )
    return x


def _edges(x: Tensor) -> Tensor:
    """Band edges halfway between the positions; the outer bands are as wide inside as outside."""
    if len(x) == 1:
        return torch.stack([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return torch.cat([2 * x[:1] - middle[:1], middle, 2 * x[-1:] - middle[-1:]])
