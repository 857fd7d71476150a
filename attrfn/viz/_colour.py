"""Zero-centred colour scales and the bars that explain them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrfn._explain.flags import say
from attrfn.viz._canvas import DARK, LINE, need, text_width
from attrfn.viz._scale import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

Side = Literal["both", "upper", "lower"]


def norm(limit: float, side: Side = "both") -> Normalize:
    """The scale from -limit (or 0) to limit (or 0); a limit of 0 is drawn as 1."""
    end = limit or 1.0
    low, high = (0.0 if side == "upper" else -end), (0.0 if side == "lower" else end)
    scale: Normalize = need("matplotlib.colors").Normalize(low, high)
    return scale


def colour_map(name: str, side: Side = "both", alpha: float | None = None) -> Colormap:
    """A named map, its upper or lower half, opaque or fading with ``alpha`` towards zero.

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
    positions = [low + (high - low) * i / 510 for i in range(511)]
    colours = [list(maps[name](position)) for position in positions]
    if alpha is not None:
        for colour, position in zip(colours, positions, strict=True):
            # Full opacity from two thirds of the scale on, so that middle values are seen as well.
            colour[3] = alpha * min(1.0, abs(2 * position - 1) * 1.5)
    listed: Colormap = need("matplotlib.colors").ListedColormap(colours)
    return listed


def colour_bar(
    figure: Figure,
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
        room = axes.get_position().width * figure.get_size_inches()[0] - 0.2
        labels[1] = labels[1] if sum(text_width(text, size) for text in labels) < room else ""
    bar.set_ticks(ticks, labels=labels)
    axes.tick_params(labelsize=size, length=2, width=0.5, pad=2, color=LINE, labelcolor=DARK)
    if orientation == "horizontal" and limit:
        # Labels at the ends must not run over the edge into the next column's.
        for label, tick in zip(axes.get_xticklabels(), ticks, strict=True):
            label.set_horizontalalignment(
                "left" if tick == low else "right" if tick == high else "center"
            )
