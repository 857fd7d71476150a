"""Deletion and insertion: what the model says while features go or come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import (
    ACCENT,
    DARK,
    GREY,
    LINE,
    Canvas,
    finish,
    new_figure,
    place,
    text_height,
    text_width,
    wrap,
    write,
)
from attrfn.viz._scale import numbers, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attrfn.metrics import Curve

TEXT, SMALL, TITLE = 9.0, 8.0, 12.0  # font sizes
WIDTH, HEIGHT, MARGIN, GAP, LINES = 3.1, 2.5, 0.16, 0.2, 0.2  # inches
# The colours of Okabe and Ito, which colour-blind readers can tell apart, without the yellow, which
# is too pale for lines; after each round of them another dash.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
DASHES = ("-", "--", ":", "-.")
KINDS = {
    "deletion": ("share of features deleted", "lower is better"),
    "insertion": ("share of features inserted", "higher is better"),
}


class Line(NamedTuple):
    """A curve over examples: fractions, mean and both ends of the band, (S + 1,), and its area."""

    x: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    area: float
    left_out: int


@checks_flags
def curves(
    deletion: Curve | Mapping[str, Curve] | None = None,
    insertion: Curve | Mapping[str, Curve] | None = None,
    *,
    band: tuple[float, float] = (25.0, 75.0),
    title: str = "",
    ylabel: str = "explained output",
    ax: Axes | None = None,
) -> Figure:
    """Removal curves of one or several methods: the mean and a band over the examples.

    A panel for deletion, one for insertion, on one y axis. The areas under the mean curves are
    given with the names: they are the means of :func:`attrfn.metrics.deletion` and
    :func:`attrfn.metrics.insertion` with the same options.

    Args:
        deletion: What :func:`attrfn.metrics.removal_curve` returns, or a mapping from the names of
            methods to that.
        insertion: The same with ``insert=True``.
        band: The percentiles that bound the band; ``(0, 100)`` covers all examples.
        title: Drawn above the panels.
        ylabel: What the model's value is.
        ax: Your axes instead of a new figure: all axes are scaled into its box.

    Returns:
        A figure with one axes per panel and, last, the legend. Examples with a value that is not
        finite are left out, and the legend says how many.

    Raises:
        TypeError: An argument is not a curve.
        ValueError: There are no curves or examples, or shapes or ``band`` do not fit.

    Example:
        >>> import torch, attrfn
        >>> from attrfn import metrics
        >>> f, x = lambda x: (x**2).sum(1), torch.rand(10, 5)
        >>> a = attrfn.integrated_gradients(f, x)
        >>> figure = curves(
        ...     metrics.removal_curve(f, x, a), metrics.removal_curve(f, x, a, insert=True)
        ... )
        >>> [axes.get_xlabel() for axes in figure.axes[:2]]
        ['share of features deleted', 'share of features inserted']
    """
    low, high = _band(band)
    given = {"deletion": deletion, "insertion": insertion}
    panels = {
        kind: _lines(kind, value, low, high) for kind, value in given.items() if value is not None
    }
    if not panels:
        raise ValueError("deletion and insertion are both None, expected at least one curve")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = _looks(names)
    left = MARGIN + 0.25 + 0.5
    right = left + len(panels) * (WIDTH + GAP)
    labels = {name: wrap(name, 2.0, TEXT) for name in names}
    side = 0.35 + max(text_width(label, TEXT) for label in labels.values()) + 0.15
    full = right + side + 0.75 * len(panels) + MARGIN
    title = wrap(title, full - 2 * MARGIN, TITLE, "bold")
    top = MARGIN + text_height(title, TITLE) + (0.12 if title else 0) + 0.28
    notes = _notes(panels, low, high, full - left - MARGIN)
    heights = [max(LINES, text_height(label, TEXT) + 0.06) for label in labels.values()]
    height = max(HEIGHT, 0.3 + sum(heights))
    bottom = top + height + 0.5
    total = bottom + text_height(notes, SMALL) + MARGIN
    figure = new_figure(full, total, _describe(panels, low, high), ax)
    write(figure, MARGIN, MARGIN, title, TITLE, weight="bold")
    for i, (kind, lines) in enumerate(panels.items()):
        x = left + i * (WIDTH + GAP)
        _draw_panel(figure, (x, top, WIDTH, height), kind, lines, looks)
    _share_axis(figure, len(panels))
    figure.axes[0].set_ylabel(ylabel, fontsize=TEXT, color=DARK, parse_math=False)
    _write_legend(figure, panels, labels, looks, heights, right, top, side)
    write(figure, left, bottom, notes, SMALL, color=GREY)
    return finish(figure)


def _band(band: Any) -> tuple[float, float]:
    if not isinstance(band, (tuple, list)) or len(band) != 2 or not 0 <= band[0] < band[1] <= 100:
        raise ValueError(
            f"band is {say(band)}, expected two percentiles (low, high) with 0 <= low < high <= 100"
        )
    return float(band[0]), float(band[1])


def _lines(
    kind: str, given: Curve | Mapping[str, Curve], low: float, high: float
) -> dict[str, Line]:
    several = isinstance(given, Mapping)
    found: Mapping[str, Curve] = given if isinstance(given, Mapping) else {"": given}
    if not found:
        raise ValueError(f"{kind} is empty, expected at least one curve")
    return {
        str(name): _line(f"{kind}[{name!r}]" if several else kind, curve, low, high)
        for name, curve in found.items()
    }


def _line(name: str, curve: Curve, low: float, high: float) -> Line:
    parts = getattr(curve, "fractions", None), getattr(curve, "values", None)
    if not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(
            f"{name} is a {type(curve).__name__}, expected a Curve: give what "
            "attrfn.metrics.removal_curve returns"
        )
    x = numbers(curve.fractions, f"{name}.fractions", {1: "(S + 1,)"})
    values = numbers(curve.values, f"{name}.values", {2: "(B, S + 1)"}, finite=False)
    if values.shape[1] != len(x):
        raise ValueError(
            f"{name} has {len(x)} fractions and {values.shape[1]} values per example, expected as "
            "many of both: give what attrfn.metrics.removal_curve returns"
        )
    kept = values[values.isfinite().all(1)]
    if not len(kept):
        raise ValueError(
            f"{name} has no example whose values are all finite, expected at least one: find where "
            "nan arises, as with normalize=True where the output is 0"
        )
    ends = torch.quantile(kept, torch.tensor([low / 100, high / 100], dtype=torch.float64), dim=0)
    mean = kept.mean(0)
    area = float(torch.trapezoid(mean, x))
    return Line(x, mean, ends[0], ends[1], area, len(values) - len(kept))


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each method."""
    return {
        name: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, name in enumerate(names)
    }


def _draw_panel(
    figure: Canvas,
    box: tuple[float, float, float, float],
    kind: str,
    lines: Mapping[str, Line],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    """The curves of one kind in a box, with what they are and which of them are better."""
    x, top, width, _ = box
    axes = place(figure, *box)
    _draw(axes, lines, looks)
    share, better = KINDS[kind]
    axes.set_xlabel(share, fontsize=TEXT, color=DARK)
    write(figure, x, top - 0.1, kind, TEXT + 1, weight="bold", va="baseline")
    write(figure, x + width, top - 0.1, better, SMALL, ha="right", va="baseline", color=ACCENT)


def _draw(axes: Axes, lines: Mapping[str, Line], looks: Mapping[str, tuple[str, str]]) -> None:
    """The bands of all methods, then their means over them."""
    # Many bands over each other must leave the lines to be seen.
    alpha = 0.22 if len(lines) == 1 else max(0.05, 0.4 / len(lines))
    for name, line in lines.items():
        axes.fill_between(
            line.x.numpy(),
            line.low.numpy(),
            line.high.numpy(),
            color=looks[name][0],
            alpha=alpha,
            linewidth=0,
        )
    for name, line in lines.items():
        colour, dash = looks[name]
        axes.plot(line.x.numpy(), line.mean.numpy(), color=colour, linestyle=dash, linewidth=1.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5", "0.75", "1"])
    # The outer labels must not run into the next panel's.
    first, *_, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)


def _share_axis(figure: Canvas, panels: int) -> None:
    """One y axis for all panels, labelled at the first."""
    ends = [axes.get_ylim() for axes in figure.axes]
    for axes in figure.axes:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
        axes.locator_params(axis="y", nbins=6)
    for axes in figure.axes[1:panels]:
        axes.tick_params(axis="y", labelleft=False)


def _write_legend(
    figure: Canvas,
    panels: Mapping[str, Mapping[str, Line]],
    labels: Mapping[str, str],
    looks: Mapping[str, tuple[str, str]],
    heights: list[float],
    left: float,
    top: float,
    side: float,
) -> None:
    """A row for each method: its line, its name and the areas under its curves."""
    axes = place(figure, left, top + 0.3, 0.28, sum(heights))
    axes.set(xlim=(0, 1), ylim=(sum(heights), 0))
    axes.axis("off")
    ends = [left + side + 0.75 * i + 0.6 for i in range(len(panels))]
    for kind, x in zip(panels, ends, strict=True):
        write(figure, x, top, f"area,\n{kind}", SMALL, ha="right", color=GREY)
    y = 0.0
    for (name, label), height in zip(labels.items(), heights, strict=True):
        middle = y + height / 2
        colour, dash = looks[name]
        axes.plot([0, 1], [middle, middle], color=colour, linestyle=dash, linewidth=1.8)
        write(figure, left + 0.36, top + 0.3 + middle, label, TEXT, va="center")
        for lines, x in zip(panels.values(), ends, strict=True):
            area = plain(lines[name].area, 3) if name in lines else "\N{EN DASH}"
            write(figure, x, top + 0.3 + middle, area, TEXT, ha="right", va="center")
        y += height


def _notes(panels: Mapping[str, Mapping[str, Line]], low: float, high: float, width: float) -> str:
    """What the bands are, and which examples are not drawn."""
    notes = [f"Lines: mean over examples; bands: percentiles {plain(low)} to {plain(high)}."]
    for kind, lines in panels.items():
        left_out = {name: line.left_out for name, line in lines.items() if line.left_out}
        of = ", ".join(f"{n} of {name}" if name else str(n) for name, n in left_out.items())
        notes += [f"Without {kind} curves that are not finite: {of}."] if of else []
    return "\n".join(wrap(note, width, SMALL) for note in notes)


def _describe(panels: Mapping[str, Mapping[str, Line]], low: float, high: float) -> str:
    areas = "; ".join(
        f"area of {kind}{f' by {name}' if name else ''} {line.area:.3g}"
        for kind, lines in panels.items()
        for name, line in lines.items()
    )
    return (
        f"The output while features go or come, mean and percentiles {low:g} to {high:g} over the "
        f"examples; {areas}."
    )
