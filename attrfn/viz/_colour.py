"""Zero-centred colour scales and the bars that explain them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrfn._explain.flags import say
from attrfn.viz._canvas import DARK, LINE, Canvas, need, text_width, width_of
from attrfn.viz._scale import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize

Side = Literal["both", "upper", "lower"]
DIVERGING = {
    *("PiYG", "PRGn", "BrBG", "PuOr", "RdGy", "RdBu", "RdYlBu", "RdYlGn", "Spectral"),
    *("coolwarm", "bwr", "seismic", "berlin", "managua", "vanimo"),
}


def norm(limit: float, side: Side = "both") -> Normalize:
    """The scale from -limit (or 0) to limit (or 0); a limit of 0 is drawn as 1."""
    end = limit or 1.0
    low, high = (0.0 if side == "upper" else -end), (0.0 if side == "lower" else end)
    scale: Normalize = need("matplotlib.colors").Normalize(low, high)
    return scale


def colour_map(
    name: str, side: Side = "both", alpha: float | None = None, fades: bool = True
) -> Colormap:
    """A named map, opaque or fading with ``alpha`` towards zero; one side takes half of some.

    Args:
        name: Of a map of matplotlib. Of those that diverge from the middle one side is a half.
        side: The side of zero that is drawn.
        alpha: The opacity, None for an opaque map.
        fades: Whether the opacity falls to 0 towards zero.

    Raises:
        ValueError: matplotlib has no map of this name.
    """
    maps = need("matplotlib").colormaps
    if name not in maps:
        raise ValueError(
            f"cmap is {say(name)}, expected the name of a matplotlib colour map: 'RdBu_r' "
            "diverges from white, 'viridis' goes from dark to bright"
        )
    # 511 entries: an odd number, so that the middle one is exactly zero's colour.
    low, high = (0.5 if side == "upper" else 0.0), (0.5 if side == "lower" else 1.0)
    if name.removesuffix("_r") not in DIVERGING:
        low, high = (1.0, 0.0) if side == "lower" else (0.0, 1.0)
    colours = [list(maps[name](low + (high - low) * i / 510)) for i in range(511)]
    zero = {"both": 255, "upper": 0, "lower": 510}[side]
    if alpha is not None:
        for i, colour in enumerate(colours):
            # Full opacity from two thirds of the scale on, so that middle values are seen as well.
            share = abs(i - zero) / max(zero, 510 - zero)
            colour[3] = alpha * (min(1.0, 1.5 * share) if fades else 1.0)
    listed: Colormap = need("matplotlib.colors").ListedColormap(colours)
    return listed


def colour_bar(
    figure: Canvas,
    axes: Axes,
    mappable: ScalarMappable,
    limit: float,
    *,
    clipped: bool = False,
    orientation: Literal["horizontal", "vertical"] = "horizontal",
    size: float = 7,
) -> None:
    """Fill ``axes`` with the bar of ``mappable``: its ends and zero are labelled.

    Args:
        figure: The figure of ``axes``.
        axes: The axes to fill.
        mappable: The drawn map.
        limit: Where the scale ends; 0 labels the zero only.
        clipped: Whether some values lie beyond the ends; the labels there then say so.
        orientation: The direction of the bar.
        size: Font size of the labels.
    """
    low, high = mappable.get_clim()
    ticks = [tick for tick in (-limit, 0.0, limit) if (low or 0) <= tick <= (high or 0)]
    ticks = ticks if limit else [0.0]
    bar = figure.colorbar(mappable, cax=axes, orientation=orientation, ticks=ticks)
    bar.outline.set(edgecolor=LINE, linewidth=0.5)
    beyond = {True: "\N{GREATER-THAN OR EQUAL TO}", False: "\N{LESS-THAN OR EQUAL TO}"}
    labels = [
        (f"{beyond[tick > 0]}\N{THIN SPACE}" if clipped and tick else "") + signed(tick)
        for tick in ticks
    ]
    if not limit:
        labels = ["0 everywhere"]
    elif orientation == "horizontal" and 0 in ticks[1:-1]:
        # Where its label has no room, zero is still in the middle of the bar.
        room = width_of(figure, axes) - 0.2
        labels[1] = labels[1] if sum(text_width(text, size) for text in labels) < room else ""
    bar.set_ticks(ticks, labels=labels)
    axes.tick_params(labelsize=size, length=2, width=0.5, pad=2, color=LINE, labelcolor=DARK)
    if orientation == "horizontal" and limit:
        # Labels at the ends must not run over the edge into the next column's.
        for label, tick in zip(axes.get_xticklabels(), ticks, strict=True):
            label.set_horizontalalignment(
                "left" if tick == low else "right" if tick == high else "center"
            )
