"""From the output at the baseline to the output at the input, one feature after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from attrfn._explain.flags import checks_flags
from attrfn.viz._canvas import BLUE, DARK, GREY, RED, text_width
from attrfn.viz._rows import MARGIN, features, frame, order, with_values
from attrfn.viz._scale import Array, numbers, plain, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

START, END = "at the baseline, f(x0)", "at the input, f(x)"
MISSED = "not attributed"


@checks_flags
def waterfall(
    attributions: Array,
    names: Sequence[str],
    *,
    start: Array,
    end: Array | None = None,
    values: Array | None = None,
    top: int = 10,
    title: str = "",
    xlabel: str = "model output",
    ax: Axes | None = None,
) -> Figure:
    """The way from f(x0) to f(x): each feature moves the output by its attribution.

    The first row is the output at the baseline, the last one the output at the input. Between them
    are the features, from the largest |attribution| to the smallest, each starting where the one
    above ended. What the attributions miss of the way has its own row, in grey: it is large where
    a method is not complete.

    Args:
        attributions: (F,), or (1, F), of one sample.
        names: F texts.
        start: f(x0), one number: the explained output at the baselines.
        end: f(x), one number. None: where the attributions end.
        values: (F,) or (1, F), the feature's values, written after the names.
        top: How many features are drawn; one row sums the others.
        title: Drawn above the plot.
        xlabel: Drawn under the plot.
        ax: Your axes to draw in instead of a new figure.

    Returns:
        A figure with one axes.

    Raises:
        TypeError: An argument does not hold real numbers, or ``ax`` is not an axes.
        ValueError: Shapes, names or options do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> figure = waterfall(torch.tensor([2.0, -0.5]), ["age", "income"], start=1.0, end=2.5)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['at the baseline, f(x0)', 'age', 'income', 'at the input, f(x)']
    """
    data = features(attributions, names)
    if len(data) != 1:
        raise ValueError(
            f"attributions has {len(data)} samples, expected one: index it, or draw the mean of "
            "several with viz.bar"
        )
    labels, steps = _steps(data, names, values, top)
    first = _number(start, "start")
    last = first + float(data.sum()) if end is None else _number(end, "end")
    missed = last - first - float(data.sum())
    # Rounding of a method in float32 is not worth a row.
    if abs(missed) > 1e-4 * max(abs(first), abs(last), float(data.abs().max())):
        labels, steps = [*labels, MISSED], [*steps, missed]
    return _draw(labels, steps, first, last, title, xlabel, ax)


def _steps(
    data: Tensor, names: Sequence[str], values: Array | None, top: int
) -> tuple[list[str], list[float]]:
    """Labels and attributions of the rows: the top features, then the sum of the others."""
    chosen = order(data, top)
    labels = with_values(data, names, values, chosen)
    steps = data[0, chosen].tolist()
    others = [i for i in range(data.shape[1]) if i not in set(chosen)]
    if others:
        labels.append(f"{len(others)} other feature{'s' * (len(others) > 1)}, summed")
        steps.append(float(data[0, others].sum()))
    return labels, steps


def _number(value: Array, name: str) -> float:
    shapes = {0: "()", 1: "(1,)"}
    found = numbers(value, name, shapes)
    if found.numel() != 1:
        raise ValueError(
            f"{name} has {found.numel()} values, expected one number, the model's output for the "
            "sample: index it"
        )
    return float(found.reshape(()))


def _draw(
    labels: list[str],
    steps: list[float],
    first: float,
    last: float,
    title: str,
    xlabel: str,
    ax: Axes | None,
) -> Figure:
    texts = [plain(first, 4), *(signed(step, 3) for step in steps), plain(last, 4)]
    rows = [START, *labels, END]
    figure, axes = frame(
        rows,
        title=title,
        xlabel=xlabel,
        right=0.15 + max(text_width(text, 8) for text in texts) + MARGIN,
        description=f"Waterfall plot, {xlabel}: "
        + "; ".join(f"{row} {text}" for row, text in zip(rows, texts, strict=True)),
        ax=ax,
        zero=False,
    )
    at = first
    for row, (label, step) in enumerate(zip(labels, steps, strict=True), 1):
        colour = GREY if label == MISSED else BLUE if step < 0 else RED
        axes.barh(row, step, left=at, height=0.68, color=colour)
        # From the end of the row above to this one.
        axes.plot([at, at], [row - 1, row], color=DARK, linewidth=0.6, zorder=0.9)
        at += step
    bottom = len(rows) - 1
    axes.plot([at, at], [bottom - 1, bottom], color=DARK, linewidth=0.6, zorder=0.9)
    axes.plot([first, last], [0, bottom], "o", color=DARK, markersize=5)
    axes.use_sticky_edges = False
    axes.margins(x=0.05, tight=True)
    axes.autoscale_view(scaley=False)
    side = axes.get_yaxis_transform()
    for row, text in enumerate(texts):
        axes.text(1.02, row, text, transform=side, fontsize=8, va="center", color=DARK)
    return figure
