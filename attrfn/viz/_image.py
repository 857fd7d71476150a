"""One image under its attribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import balance, new_figure, place, text_height, write
from attrfn.viz._colour import Side, colour_bar, colour_map, norm
from attrfn.viz._picture import (
    Channels,
    Layout,
    bare,
    draw_map,
    draw_outline,
    draw_picture,
    grey,
    maps,
    outline_of,
    pictures,
    shapes,
)
from attrfn.viz._scale import Array, limit, percentile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sign = Literal["all", "positive", "negative", "absolute"]
SIDES: dict[str, Side] = {
    "all": "both",
    "positive": "upper",
    "negative": "lower",
    "absolute": "upper",
}
WIDTH, MARGIN, TITLE = 3.6, 0.16, 11.0


@checks_flags
def image_overlay(
    image: Array,
    attribution: Array,
    *,
    alpha: float = 0.9,
    sign: Sign = "all",
    outlier_percentile: float = 99.0,
    cmap: str | None = None,
    title: str = "",
    layout: Layout | None = None,
    channels: Channels = "mean",
) -> Figure:
    """One image in grey with its attribution over it, and the colour bar at the side.

    The colours fade towards zero, so the image shows through where nothing is attributed.

    Args:
        image: (C, H, W), or (H, W, C) as ``layout`` says, or (H, W).
        attribution: (C, h, w), or (h, w, C) as ``layout`` says, or (h, w); a map of another size
            than the image's is stretched over it.
        alpha: Opacity of the strongest attributions, 0 to 1. At 1 nothing fades: the heat map
            alone, with a thin contour of the image.
        sign: The values to draw: "all", only "positive" or "negative" ones, or "absolute" ones.
        outlier_percentile: Where the scale ends, as a percentile of the drawn values; 100: at the
            largest value.
        cmap: Name of a diverging matplotlib colour map; one-sided scales take its half. By default
            "RdBu_r", and "PuOr" for absolute values, which have no sign to show.
        title: Drawn above the image.
        layout: "CHW" or "HWC": whether the channels of both come first or last. A shape that
            fits the other layout only is refused. None expects "CHW", and refuses images with more
            channels than columns, which mostly are "HWC".
        channels: What becomes of the channels of an attribution. "mean" is right for scores that
            channels share and has the colours of a sum for others; "sum" is for attributions that
            are divided among the channels, when the numbers of the scale shall be their sums.

    Returns:
        A figure with two axes: the image and the colour bar.

    Raises:
        TypeError: An argument holds no real numbers.
        ValueError: Shapes or options do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> figure = image_overlay(torch.rand(3, 32, 32), torch.randn(3, 32, 32), sign="positive")
        >>> len(figure.axes)
        2
    """
    _check(sign, alpha)
    at = percentile(outlier_percentile)
    form = shapes(layout, batch=False)
    picture = pictures(image, "image", form)
    rows, cols = picture.shape[:2]
    values = _with_sign(maps(attribution, "attribution", form, (rows, cols), channels), sign)
    side = SIDES[sign]
    end = limit(values, at)
    colours = colour_map(
        cmap or ("PuOr" if sign == "absolute" else "RdBu_r"), side, None if alpha == 1 else alpha
    )

    height = WIDTH * min(max(rows / cols, 0.15), 1.6)  # bounded: strips stay visible
    title = balance(title, WIDTH, TITLE, "bold")
    top = MARGIN + text_height(title, TITLE) + (0.06 if title else 0)
    figure = new_figure(
        MARGIN + WIDTH + 0.85,
        top + height + MARGIN,
        f"Image with its attribution ({sign} values) drawn over it as colours.",
    )
    write(figure, MARGIN, MARGIN, title, TITLE, weight="bold")
    axes = place(figure, MARGIN, top, WIDTH, height)
    if alpha < 1:
        # Grey, because colours mean attributions; pale, because dark ones must show on it.
        draw_picture(axes, 0.35 + 0.65 * grey(picture))
    mappable = draw_map(axes, values, (rows, cols), colours, norm(end, side))
    if alpha == 1:
        draw_outline(axes, outline_of(picture))
    bare(axes)
    bar = place(figure, MARGIN + WIDTH + 0.1, top, 0.11, height)
    clipped = bool((values.abs() > end).any())
    colour_bar(figure, bar, mappable, end, clipped=clipped, orientation="vertical", size=8)
    return figure


def _check(sign: Sign, alpha: float) -> None:
    if sign not in SIDES:
        raise ValueError(
            f"sign is {say(sign)}, expected one of {sorted(SIDES)}: 'all' draws both signs"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha is {alpha}, expected a number from 0 to 1: 1 draws the heat map alone"
        )


def _with_sign(values: Tensor, sign: Sign) -> Tensor:
    """The values of a sign; zero, which is drawn as nothing, in place of the others."""
    if sign == "positive":
        return values.clamp(min=0)
    if sign == "negative":
        return values.clamp(max=0)
    return values.abs() if sign == "absolute" else values
