"""Several methods by several metrics: a dot per example, and the mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    balance,
    finish,
    need,
    new_figure,
    place,
    text_height,
    text_width,
    wrap,
    write,
)
from attrfn.viz._rows import swarm
from attrfn.viz._scale import numbers, percentile, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attrfn.metrics import Comparison

NAME, NUMBER, TITLE = 9.0, 7.5, 12.0  # font sizes
COLUMN, ROW, MARGIN, GAP = 0.86, 0.92, 0.16, 0.16  # inches
BINS = 26  # along y: a dot is about as high as one of them
ENDS = {
    "higher": "\N{BLACK UP-POINTING TRIANGLE} better",
    "lower": "\N{BLACK DOWN-POINTING TRIANGLE} better",
}


class Row(NamedTuple):
    """A metric: its numbers (methods, examples), their means, the better end, the y axis."""

    name: str
    values: Tensor
    means: list[float]
    better: str | None
    low: float
    high: float
    log: bool

    @property
    def best(self) -> list[int]:
        """The methods with the best mean, none where neither end is better."""
        known = [m for m in self.means if m == m]
        if self.better is None or not known:
            return []
        best = max(known) if self.better == "higher" else min(known)
        return [i for i, mean in enumerate(self.means) if mean == best]

    @property
    def undefined(self) -> list[int]:
        """How many examples are nan, for each method."""
        return self.values.isnan().sum(1).tolist()


@checks_flags
def compare(
    comparison: Comparison,
    *,
    outlier_percentile: float = 99.0,
    log: Collection[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """One row per metric, one column per method: a dot per example and a line at the mean.

    All methods of a row share its axis, whose better end is labelled. Under each column is the
    mean over the examples for which the metric is defined, and how many are not; the best mean is
    in colour. Values beyond the axis are triangles at its end.

    Args:
        comparison: What :func:`attrfn.metrics.compare` returns.
        outlier_percentile: How much of a row's values its axis covers, from the 100 - p-th to the
            p-th percentile, and all means; 100: all values.
        log: Names of metrics with a logarithmic axis, whose values are all above 0.
        title: Drawn above everything.
        ax: Your axes instead of a new figure: all axes are scaled into its box.

    Returns:
        A figure with one axes per metric.

    Raises:
        TypeError: ``comparison`` is not a comparison.
        ValueError: A name in ``log`` is not a metric, a value on a logarithmic axis is not above
            0, or the comparison is empty.

    Example:
        >>> import torch, attrfn
        >>> from attrfn import metrics
        >>> found = metrics.compare(
        ...     lambda x: (x**3).sum(1),
        ...     torch.randn(20, 5),
        ...     {"gradient": attrfn.gradient, "ig": attrfn.integrated_gradients},
        ...     {"deletion": metrics.deletion, "sparseness": metrics.sparseness},
        ... )
        >>> len(compare(found).axes)
        2
    """
    methods, table = _checked(comparison)
    at = percentile(outlier_percentile)
    logs = _logs(log, table)
    rows = [
        _row(name, values, comparison.better[name], at, name in logs)
        for name, values in table.items()
    ]
    names = [balance(name, COLUMN - 0.06, NUMBER + 0.5, "bold") for name in methods]
    labels = [balance(row.name, 1.4, NAME) for row in rows]
    left = MARGIN + max(text_width(label, NAME) for label in labels) + 0.65
    plot = len(names) * COLUMN
    full = left + plot + 0.65 + MARGIN
    title = wrap(title, full - 2 * MARGIN, TITLE, "bold")
    head = max(text_height(name, NUMBER + 0.5) for name in names)
    top = MARGIN + text_height(title, TITLE) + (0.12 if title else 0) + head + 0.08
    under = [text_height("0\n0" if any(row.undefined) else "0", NUMBER) + 0.05 for row in rows]
    height = len(rows) * (ROW + GAP) - GAP + sum(under)
    figure = new_figure(full, top + height + MARGIN, _describe(rows, methods), ax)
    write(figure, MARGIN, MARGIN, title, TITLE, weight="bold")
    for column, name in enumerate(names):
        x = left + (column + 0.5) * COLUMN
        write(figure, x, top - 0.08, name, NUMBER + 0.5, ha="center", va="bottom", weight="bold")
    y = top
    for row, label, below in zip(rows, labels, under, strict=True):
        axes = place(figure, left, y, plot, ROW)
        _draw(axes, row)
        write(figure, left - 0.65, y + ROW / 2, label, NAME, ha="right", va="center")
        _write_end(figure, row, left + plot + 0.08, y)
        _write_means(figure, row, left, y + ROW + 0.05)
        y += ROW + below + GAP
    return finish(figure)


def _logs(log: str | Collection[str], table: Mapping[str, Tensor]) -> list[str]:
    """The metrics with a logarithmic axis."""
    found = [log] if isinstance(log, str) else list(log)
    unknown = [name for name in found if name not in table]
    if unknown:
        raise ValueError(
            f"log has {say(unknown)}, expected names among {list(table)}: use the names of metrics"
        )
    return found


def _checked(comparison: Comparison) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the methods, and the values of each metric, (methods, examples)."""
    values, better = (getattr(comparison, name, None) for name in ("values", "better"))
    if not isinstance(values, Mapping) or not isinstance(better, Mapping):
        raise TypeError(
            f"comparison is a {type(comparison).__name__}, expected what attrfn.metrics.compare "
            "returns"
        )
    if not values or not better:
        raise ValueError("comparison is empty, expected at least one method and one metric")
    table = {}
    for metric in better:
        found = [
            numbers(of[metric], f"values[{method!r}][{metric!r}]", {1: "(B,)"}, finite=False)
            for method, of in values.items()
        ]
        if len({len(f) for f in found}) > 1:
            raise ValueError(
                f"comparison has {say([len(f) for f in found])} examples of {metric!r}, expected "
                "the same number for all methods: measure all on the same inputs"
            )
        table[metric] = torch.stack(found)
    return list(values), table


def _row(name: str, values: Tensor, better: str | None, at: float, log: bool) -> Row:
    means = values.nanmean(1)
    finite = values[values.isfinite()].sort().values
    if log and bool((finite <= 0).any()):
        raise ValueError(
            f"log has {name!r}, which has values down to {float(finite[0]):.3g}, expected values "
            "above 0: leave its axis linear"
        )
    if not len(finite):
        return Row(name, values, means.tolist(), better, 0.1, 1.0, log)
    last, shown = len(finite) - 1, means[means.isfinite()]
    first = round((1 - at / 100) * last)
    low = float(torch.cat([finite[first : first + 1], shown]).min())
    high = float(torch.cat([finite[last - first :][:1], shown]).max())
    if log:
        room = (high / low) ** 0.07 if high > low else 2.0
        return Row(name, values, means.tolist(), better, low / room, high * room, log)
    pad = 0.07 * (high - low) or 0.5 * abs(high) or 0.5
    return Row(name, values, means.tolist(), better, low - pad, high + pad, log)


def _draw(axes: Axes, row: Row) -> None:
    """Dots, triangles and means of one metric, a column per method."""
    columns = len(row.means)
    if row.log:
        axes.set_yscale("log")
        axes.minorticks_off()
    else:
        axes.locator_params(axis="y", nbins=4)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(row.low, row.high), xticks=[])
    axes.yaxis.set_major_formatter(need("matplotlib.ticker").FuncFormatter(lambda v, _: plain(v)))
    axes.tick_params(labelsize=NUMBER, labelcolor=GREY)
    axes.grid(axis="y", color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    for column in range(1, columns):
        axes.axvline(column - 0.5, color=LINE, linewidth=0.4, zorder=0.5)
    for column, (values, mean) in enumerate(zip(row.values, row.means, strict=True)):
        _draw_column(axes, row, column, values, mean)


def _draw_column(axes: Axes, row: Row, column: int, values: Tensor, mean: float) -> None:
    colour = ACCENT if column in row.best else "#7d8794"
    inside = values[(values >= row.low) & (values <= row.high)]
    look: dict[str, Any] = {"linewidths": 0, "color": colour, "clip_on": False, "zorder": 2}
    if len(inside):
        scale = torch.log if row.log else torch.clone
        ends = scale(torch.tensor([row.low, row.high], dtype=torch.float64))
        places = (scale(inside) - ends[0]) / (ends[1] - ends[0])
        x = column + swarm(places, BINS)
        axes.scatter(x.numpy(), inside.numpy(), s=8, alpha=0.55, **look)
    for mark, end, beyond in (("^", row.high, values > row.high), ("v", row.low, values < row.low)):
        if bool(beyond.any()):
            axes.scatter([column], [end], s=16, marker=mark, **look)
    if row.low <= mean <= row.high:
        line = ACCENT if column in row.best else DARK
        axes.hlines(mean, column - 0.42, column + 0.42, colors=line, linewidth=1.6, zorder=3)


def _write_end(figure: Canvas, row: Row, x: float, y: float) -> None:
    """The label of the better end, at that end of the axis."""
    if row.better == "higher":
        write(figure, x, y, ENDS["higher"], NUMBER, color=ACCENT)
    elif row.better == "lower":
        write(figure, x, y + ROW, ENDS["lower"], NUMBER, color=ACCENT, va="bottom")


def _write_means(figure: Canvas, row: Row, left: float, y: float) -> None:
    """The mean under each column, and how many examples are undefined."""
    for column, (mean, undefined) in enumerate(zip(row.means, row.undefined, strict=True)):
        x = left + (column + 0.5) * COLUMN
        best = column in row.best
        look = {"color": ACCENT, "weight": "bold"} if best else {"color": GREY}
        text = plain(mean, 3) if mean == mean else "undefined"
        write(figure, x, y, text, NUMBER, ha="center", **look)
        if undefined:
            text = f"{undefined} undefined" if mean == mean else "everywhere"
            below = y + text_height("0", NUMBER)
            write(figure, x, below, text, NUMBER - 0.5, ha="center", color=GREY)


def _describe(rows: list[Row], methods: list[str]) -> str:
    best = "; ".join(
        f"{row.name}: {' and '.join(methods[i] for i in row.best)}" for row in rows if row.best
    )
    return (
        f"{len(methods)} methods (columns) by {len(rows)} metrics (rows), a dot per example and a "
        f"line at the mean. Best means: {best or 'none'}."
    )
