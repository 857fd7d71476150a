"""One image under its attribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import (
    GREY,
    balance,
    checked,
    dress,
    need,
    new_figure,
    place,
    root,
    text_height,
    write,
)
from attrfn.viz._colour import Side, colour_bar, colour_map, norm
from attrfn.viz._picture import (
    Channels,
    Layout,
    bare,
    draw_map,
    draw_outline,
    draw_picture,
    maps,
    outline_of,
    pale,
    pictures,
    shapes,
)
from attrfn.viz._scale import Array, limit, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Sign = Literal["all", "positive", "negative", "absolute"]
Background = Literal["colour", "grey"]
SIDES: dict[str, Side] = {
    "all": "both",
    "positive": "upper",
    "negative": "lower",
    "absolute": "upper",
}
WIDTH, MARGIN, TITLE = 3.6, 0.16, 11.0
WORDS = {
    "both": "lowers the output  \N{EN DASH}  raises the output",
    "upper": "raises the output",
    "lower": "lowers the output",
    "size": "size of the attribution",
}


class _Look(NamedTuple):
    """How a map is drawn over its image."""

    side: Side
    background: Background
    alpha: float
    colours: Colormap
    words: str


@checks_flags
def image(
    image: Array,
    attribution: Array,
    *,
    sign: Sign = "all",
    alpha: float | None = None,
    background: Background | None = None,
    smooth: bool = True,
    mean: Array | None = None,
    std: Array | None = None,
    outlier_percentile: float = 99.0,
    cmap: str | None = None,
    title: str = "",
    layout: Layout | None = None,
    channels: Channels = "mean",
    ax: Axes | None = None,
) -> Figure:
    """One image with its attribution over it, and the colour bar at the side.

    Image and attribution are taken as the model and the method have them: channels first, also in a
    batch of one; a photograph as files have it, colours last, is known by its shape. The colours
    fade towards zero, so the image shows through where nothing is attributed; under them the
    image is pale and grey, since colours mean attributions. A map without negative values, such as
    a rectified Grad-CAM, is drawn half opaque over the image in its colours: what glows raises the
    output, what is dark does not.

    Args:
        image: (C, H, W), or (H, W, C) as ``layout`` says, or (H, W); the first two also as a batch
            of one.
        attribution: (C, h, w), or (h, w, C) as ``layout`` says, or (h, w), or a batch of one; a map
            whose size is not the image's is stretched over it.
        sign: The values to draw: "all", only "positive" or "negative" ones, or "absolute" ones.
        alpha: Opacity of the strongest attributions, 0 to 1. At 1 nothing fades: the heat map
            alone, with a thin contour of the image. None is 0.9, and 0.5 for a map without negative
            values.
        background: "colour" or "grey". None is "colour" under a map without negative values, else
            "grey".
        smooth: Whether a coarser map is interpolated to the size of the image; False shows its
            cells.
        mean: What was subtracted from the image to normalise it: a number or one per channel.
        std: What the image was divided by after that.
        outlier_percentile: Where the scale ends, as a percentile of the drawn values; 100: at the
            largest value.
        cmap: Name of a matplotlib colour map; of a diverging one, one-sided scales take a half. By
            default "RdBu_r", "PuOr" for absolute values, which have no sign to show, and "inferno"
            for a map without negative values over colours.
        title: Drawn above the image.
        layout: "CHW" or "HWC": whether the channels of both come first or last. A shape that
            fits the other layout only is refused. None expects "CHW", takes three or four colours
            last where no image has so many channels, and refuses other doubtful shapes.
        channels: What becomes of the channels of an attribution. "mean" is right for scores that
            channels share and has the colours of a sum for others; "sum" is for attributions that
            are divided among the channels, if the numbers of the scale should be their sums.
        ax: Your axes to draw in instead of a new figure.

    Returns:
        A figure with two axes: the image and the colour bar. With ``ax`` its figure.

    Raises:
        TypeError: An argument does not hold real numbers, or ``ax`` is not an axes.
        ValueError: Shapes or options do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 3, 32, 32)  # as a model takes it
        >>> figure = image(x, torch.randn(1, 3, 32, 32), mean=0.5, std=0.25)
        >>> len(figure.axes)
        2
    """
    _check(sign, alpha, background)
    at = percentile(outlier_percentile)
    form = shapes(layout, batch=False)
    picture = pictures(_alone(image, "image"), "image", form, mean, std)
    size = picture.shape[0], picture.shape[1]
    values = maps(_alone(attribution, "attribution"), "attribution", form, size, channels)
    look = _look(values, sign, alpha, background, cmap)
    values = _with_sign(values, sign)
    end = limit(values, at)
    axes, bar = _axes(size, title, sign, ax)
    if look.alpha < 1:
        draw_picture(axes, pale(picture) if look.background == "grey" else picture)
    mappable = draw_map(axes, values, size, look.colours, norm(end, look.side), smooth)
    if look.alpha == 1:
        draw_outline(axes, outline_of(picture))
    bare(axes)
    clipped = bool((values.abs() > end).any())
    figure = root(axes)
    colour_bar(figure, bar, mappable, end, clipped=clipped, orientation="vertical", size=8)
    if end:
        bar.set_ylabel(look.words, fontsize=7, color=GREY, labelpad=2)
    return figure


image_overlay = image
"""The former name of ``image``."""


def _look(
    values: Tensor,
    sign: Sign,
    alpha: float | None,
    background: Background | None,
    cmap: str | None,
) -> _Look:
    """The options, where they are None by the signs of the values."""
    rectified = sign == "all" and not bool((values < 0).any()) and bool((values > 0).any())
    side: Side = "upper" if rectified else SIDES[sign]
    background = background or ("colour" if rectified else "grey")
    glows = rectified and background == "colour"
    cmap = cmap or ("inferno" if glows else "PuOr" if sign == "absolute" else "RdBu_r")
    alpha = alpha if alpha is not None else (0.5 if glows else 0.9)
    colours = colour_map(cmap, side, None if alpha == 1 else alpha, fades=not glows)
    return _Look(side, background, alpha, colours, WORDS["size" if sign == "absolute" else side])


def _axes(size: tuple[int, int], title: str, sign: Sign, ax: Axes | None) -> tuple[Axes, Axes]:
    """The axes of the image and of the colour bar, in a new figure or in ``ax``."""
    rows, cols = size
    if ax is not None:
        need("matplotlib.figure")
        bar = dress(checked(ax).inset_axes((1.03, 0.0, 0.035, 1.0)))
        if title:
            ax.set_title(title, parse_math=False)
        return dress(ax), bar
    height = WIDTH * min(max(rows / cols, 0.15), 1.6)  # bounded: strips stay visible
    title = balance(title, WIDTH, TITLE, "bold")
    top = MARGIN + text_height(title, TITLE) + (0.06 if title else 0)
    figure = new_figure(
        MARGIN + WIDTH + 1.0,
        top + height + MARGIN,
        f"Image with its attribution ({sign} values) drawn over it as colours.",
    )
    write(figure, MARGIN, MARGIN, title, TITLE, weight="bold")
    axes = place(figure, MARGIN, top, WIDTH, height)
    return axes, place(figure, MARGIN + WIDTH + 0.1, top, 0.11, height)


def _check(sign: Sign, alpha: float | None, background: Background | None) -> None:
    if sign not in SIDES:
        raise ValueError(
            f"sign is {say(sign)}, expected one of {sorted(SIDES)}: 'all' draws both signs"
        )
    if background not in (None, "colour", "grey"):
        raise ValueError(
            f"background is {say(background)}, expected 'colour', 'grey' or None: None chooses by "
            "the signs that are drawn"
        )
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha is {alpha}, expected a number from 0 to 1 or None: 1 draws the heat map alone"
        )


def _alone(value: Any, name: str) -> Array:
    """The example of a batch of one; all else as it is.

    Raises:
        ValueError: The batch holds several.
    """
    shape: tuple[int, ...] = tuple(getattr(value, "shape", ()))
    if len(shape) == 4 and shape[0] > 1:
        raise ValueError(
            f"{name} has shape {tuple(shape)}, expected one image: index it, or draw several with "
            "viz.image_grid"
        )
    found: Array = value[0] if len(shape) == 4 and shape[0] == 1 else value
    return found


def _with_sign(values: Tensor, sign: Sign) -> Tensor:
    """The values of a sign; zero, which is drawn as nothing, in place of the others."""
    if sign == "positive":
        return values.clamp(min=0)
    if sign == "negative":
        return values.clamp(max=0)
    return values.abs() if sign == "absolute" else values
