"""One feature's attributions against its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import (
    ACCENT,
    DARK,
    GREY,
    LINE,
    bar_beside,
    checked,
    dress,
    finish,
    new_figure,
    place,
    root,
    text_height,
    wrap,
    write,
)
from attrfn.viz._colour import colour_map
from attrfn.viz._rows import features, inputs_of
from attrfn.viz._scale import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, MARGIN, TEXT, TITLE = 4.2, 2.9, 0.16, 9.0, 11.0


@checks_flags
def dependence(
    attributions: Array,
    values: Array,
    names: Sequence[str],
    *,
    feature: str | int,
    colour: str | int | None = None,
    cmap: str = "viridis",
    title: str = "",
    ylabel: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A dot per sample: the feature's value along x, its attribution along y.

    A line means that the model uses the feature alone; dots of one value at several heights mean
    that other features change what it counts. ``colour`` shows whether a certain one does.

    Args:
        attributions: (B, F).
        values: (B, F), the inputs that were explained.
        names: F texts.
        feature: The feature that is drawn, by its name or index.
        colour: A second feature, whose values give the dots their colours.
        cmap: Name of a sequential matplotlib colour map, low to high values.
        title: Drawn above the plot.
        ylabel: Drawn at the left; by default it names the feature.
        ax: Your axes to draw in instead of a new figure.

    Returns:
        A figure with one axes, and a second one, the colour bar, with ``colour``.

    Raises:
        TypeError: An argument does not hold real numbers, or ``ax`` is not an axes.
        ValueError: Shapes or names do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 2)
        >>> figure = dependence(x * x.flip(1), x, ["a", "b"], feature="a", colour="b")
        >>> figure.axes[0].get_xlabel(), len(figure.axes)
        ('value of a', 2)
    """
    data = features(attributions, names)
    shown = inputs_of(values, data)
    texts = [str(name) for name in names]
    one = _index(feature, texts, "feature")
    second = None if colour is None else _index(colour, texts, "colour")
    colours = colour_map(cmap)
    axes = _axes(title, bar=second is not None, ax=ax, description=f"Attributions of {texts[one]}.")
    axes.axhline(0, color=DARK, linewidth=0.8, zorder=1.5)
    dots = axes.scatter(
        shown[:, one].numpy(),
        data[:, one].numpy(),
        s=14,
        alpha=0.85,
        linewidths=0,
        zorder=2,
        **({"color": ACCENT} if second is None else {"c": shown[:, second], "cmap": colours}),
    )
    style: dict[str, Any] = {"fontsize": TEXT, "color": DARK, "parse_math": False}
    axes.set_xlabel(wrap(f"value of {texts[one]}", WIDTH, TEXT), **style)
    label = f"attribution of {texts[one]}" if ylabel is None else ylabel
    axes.set_ylabel(wrap(label, HEIGHT, TEXT), **style)
    if second is not None:
        bar = bar_beside(axes, own=ax is not None)
        root(axes).colorbar(dots, cax=bar).outline.set(edgecolor=LINE, linewidth=0.5)
        bar.set_ylabel(f"value of {texts[second]}", fontsize=8, color=GREY, parse_math=False)
    return root(axes)


def _index(feature: str | int, names: list[str], argument: str) -> int:
    if isinstance(feature, str) and names.count(feature) == 1:
        return names.index(feature)
    whole = isinstance(feature, int) and not isinstance(feature, bool)
    if whole and -len(names) <= feature < len(names):  # type: ignore[operator]
        return int(feature) % len(names)
    raise ValueError(
        f"{argument} is {say(feature)}, expected one of names or an index below {len(names)}: "
        "write names as they are given, or an index where two are equal"
    )


def _axes(title: str, bar: bool, ax: Axes | None, description: str) -> Axes:
    if ax is None:
        title = wrap(title, WIDTH + 0.5, TITLE, "bold")
        top = MARGIN + text_height(title, TITLE) + 0.1
        figure = new_figure(
            0.85 + WIDTH + (0.95 if bar else 0) + MARGIN, top + HEIGHT + 0.55, description
        )
        write(figure, MARGIN, MARGIN, title, TITLE, weight="bold")
        axes = place(figure, 0.85, top, WIDTH, HEIGHT)
        finish(figure)
    else:
        axes = dress(checked(ax))
        axes.set_title(title, loc="left", parse_math=False)
    axes.spines[["right", "top"]].set_visible(False)
    axes.grid(color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return axes
