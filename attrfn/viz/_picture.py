"""Images and attribution maps in the form that imshow draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from attrfn.viz._canvas import DARK, need
from attrfn.viz._scale import Array, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.image import AxesImage

BATCH = {3: "(B, H, W)", 4: "(B, C, H, W)"}
SINGLE = {2: "(H, W)", 3: "(C, H, W)"}


def maps(value: Array, name: str, shapes: dict[int, str] = BATCH) -> Tensor:
    """Attributions summed over their channels, (B, H, W) or (H, W)."""
    data = numbers(value, name, shapes)
    return data.sum(-3) if data.ndim == max(shapes) else data


def pictures(value: Array, name: str, shapes: dict[int, str] = BATCH) -> Tensor:
    """Images in 0..1: three channels as (..., H, W, 3), any other number averaged to (..., H, W).

    Colours within 0..1 and integers within 0..255 keep their meaning; all else, grey images
    included, is stretched over the range of the whole batch.
    """
    data = numbers(value, name, shapes)
    if data.ndim < max(shapes):
        return stretch(data)
    if data.shape[-3] != 3:
        return stretch(data.mean(-3))
    data = data.movedim(-3, -1)
    low, high = float(data.min()), float(data.max())
    if low >= 0 and high <= 1:
        return data
    if low >= 0 and high <= 255 and bool((data == data.round()).all()):
        return data / 255
    return stretch(data)


def stretch(data: Tensor) -> Tensor:
    """``data`` moved and scaled to 0..1; a constant becomes 0."""
    low, high = data.min(), data.max()
    return (data - low) / torch.where(high > low, high - low, torch.ones_like(high))


def grey(picture: Tensor) -> Tensor:
    """One picture (H, W) or (H, W, 3) as luminance (H, W)."""
    if picture.ndim == 2:
        return picture
    # The weights of luma in ITU-R BT.601.
    return picture @ torch.tensor([0.299, 0.587, 0.114], dtype=picture.dtype)


def draw_picture(axes: Axes, picture: Tensor) -> AxesImage:
    """The picture itself, pixels sharp, black to white; the axes span its pixels."""
    height, width = picture.shape[:2]
    return axes.imshow(
        picture.numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        origin="upper",
        extent=(0, width, height, 0),
    )


def draw_map(
    axes: Axes, values: Tensor, size: tuple[int, int], cmap: Colormap, scale: Normalize
) -> AxesImage:
    """A map (h, w) of any size over the extent of an image of ``size`` (H, W)."""
    height, width = size
    return axes.imshow(
        values.numpy(),
        cmap=cmap,
        norm=scale,
        interpolation="nearest",
        origin="upper",
        extent=(0, width, height, 0),
    )


def outline_of(picture: Tensor) -> list[Any]:
    """Lines, each (n, 2), around the regions brighter than the middle of the picture's range."""
    # Large pictures are averaged to about 24 cells a side first: fewer lose the outline of a digit,
    # more draw lines around texture.
    brightness = grey(picture)
    block = max(1, round(max(brightness.shape) / 24))
    rough = functional.avg_pool2d(brightness[None, None], block, ceil_mode=True)
    # One cell more on each side, so that the lines run to the edge.
    level = functional.pad(rough, (1, 1, 1, 1), mode="replicate")[0, 0]
    low, high = float(level.min()), float(level.max())
    if high - low < 1e-6:
        return []
    rows, columns = ((torch.arange(size) - 0.5) * block for size in level.shape)
    contours = need("contourpy").contour_generator(columns.numpy(), rows.numpy(), level.numpy())
    return list(contours.lines((low + high) / 2))


def draw_outline(axes: Axes, lines: list[Any]) -> None:
    """Thin lines, which do not change the colours beside them."""
    collection = need("matplotlib.collections").LineCollection(
        lines, colors=DARK, linewidths=0.7, alpha=0.55
    )
    axes.add_collection(collection, autolim=False)


def bare(axes: Axes) -> None:
    """No ticks, the frame only."""
    axes.set(xticks=[], yticks=[])
