"""Images and attribution maps in the form that imshow draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from attrfn._explain.flags import say
from attrfn.viz._canvas import DARK, need
from attrfn.viz._scale import Array, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.image import AxesImage

Layout = Literal["CHW", "HWC"]
Channels = Literal["mean", "sum"]

CHANNELS = (1, 3, 4)  # of images: grey, colours, colours and opacity
COLOURS = (3, 4)


class Shapes(NamedTuple):
    """The shapes of one image or of a batch, without and with channels."""

    batch: str
    layout: Layout
    told: bool

    @property
    def words(self) -> dict[int, str]:
        """The allowed numbers of dimensions, each with its shape in words."""
        size = 2 + bool(self.batch)
        return {size: f"({self.batch}H, W)", size + 1: f"({self.batch}{', '.join(self.layout)})"}


def shapes(layout: Layout | None, *, batch: bool) -> Shapes:
    """The shapes that images and maps may have; None expects "CHW" with a doubt.

    Raises:
        ValueError: The layout is not known.
    """
    if layout not in (None, "CHW", "HWC"):
        raise ValueError(
            f"layout is {say(layout)}, expected 'CHW', 'HWC' or None: the channels come "
            "first or last"
        )
    return Shapes("B, " * batch, layout or "CHW", layout is not None)


def image_titles(titles: Sequence[str] | None, batch: int) -> list[str]:
    """One label per image, all empty without titles.

    Raises:
        ValueError: There are not as many titles as images.
    """
    found = [""] * batch if titles is None else [str(text) for text in titles]
    if isinstance(titles, str) or len(found) != batch:
        raise ValueError(
            f"titles is {say(titles)}, expected a sequence of {batch} texts, one per image: "
            "give an empty text to an image without label"
        )
    return found


def maps(
    value: Array, name: str, form: Shapes, size: tuple[int, int], channels: Channels = "mean"
) -> Tensor:
    """Attributions without their channels, (B, H, W) or (H, W).

    Args:
        value: The attributions.
        name: How messages call them.
        form: The shapes that they may have.
        size: The height and width of the image, whose proportions tell layouts apart.
        channels: What becomes of the channels.

    Raises:
        ValueError: The shape is that of another layout, or ``channels`` is not known.
    """
    if channels not in ("mean", "sum"):
        raise ValueError(
            f"channels is {say(channels)}, expected 'mean' or 'sum': 'sum' is for attributions "
            "that are divided among the channels"
        )
    data = numbers(value, name, form.words)
    if data.ndim < max(form.words):
        return data
    first, last = _sizes(data, form), _sizes(data, form, other=True)
    turned = not _alike(first, size) and _alike(last, size)
    if turned and (form.told or data.shape[-1] not in COLOURS):
        _refuse(
            data,
            name,
            form,
            f"a map of {first[0]} x {first[1]} on an image of {size[0]} x {size[1]}",
        )
    data = data if form.layout == "CHW" and not turned else data.movedim(-1, -3)
    return data.sum(-3) if channels == "sum" else data.mean(-3)


def _sizes(data: Tensor, form: Shapes, other: bool = False) -> tuple[int, int]:
    """Height and width in the layout, or in the other one."""
    height, width = data.shape[-2:] if (form.layout == "CHW") != other else data.shape[-3:-1]
    return height, width


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] * other[1] == one[1] * other[0]


def _refuse(data: Tensor, name: str, form: Shapes, what: str) -> NoReturn:
    other = "HWC" if form.layout == "CHW" else "CHW"
    raise ValueError(
        f"{name} has shape {tuple(data.shape)}, which as {form.words[max(form.words)]} is {what}: "
        f"give layout={other!r}, which holds for images and maps alike, or move or average the "
        "channels"
    )


def pictures(
    value: Array,
    name: str,
    form: Shapes,
    mean: Array | None = None,
    std: Array | None = None,
) -> Tensor:
    """Images in 0..1: three channels as (..., H, W, 3), any other number averaged to (..., H, W).

    Colours within 0..1 and integers within 0..255 keep their meaning; all else, grey images
    included, is stretched over the range of the whole batch. With ``mean`` or ``std`` the images
    are those that were normalised by them: what lies outside 0..1 then is cut off.

    Raises:
        ValueError: The shape is that of an image in another layout, or the numbers of channels of
            the image, ``mean`` and ``std`` differ.
    """
    data = numbers(value, name, form.words)
    told = mean is not None or std is not None
    if data.ndim < max(form.words):
        data = _denormalised(data, name, mean, std, 1)
        return data.clamp(0, 1) if told else stretch(data)
    first, last = data.shape[-3], data.shape[-1]
    own, other = (first, last) if form.layout == "CHW" else (last, first)
    if not form.told and own not in CHANNELS and other in COLOURS:
        # A photograph as image files have it, which nothing else has the shape of.
        data, own = data.movedim(-1, -3), other
    if own not in CHANNELS and other in CHANNELS:
        height, width = _sizes(data, form)
        _refuse(data, name, form, f"an image of {height} x {width} with {own} channels")
    if not form.told and own not in CHANNELS and own > other:
        raise ValueError(
            f"{name} has shape {tuple(data.shape)}, more channels than columns as "
            f"{form.words[max(form.words)]}: give layout='HWC' if the channels come last, else "
            "layout='CHW'"
        )
    data = data if form.layout == "CHW" else data.movedim(-1, -3)
    data = _denormalised(data, name, mean, std, data.shape[-3])
    if told:
        data = data.clamp(0, 1)
        return data.movedim(-3, -1) if data.shape[-3] == 3 else data.mean(-3)
    if data.shape[-3] != 3:
        return stretch(data.mean(-3))
    data = data.movedim(-3, -1)
    low, high = float(data.min()), float(data.max())
    if low >= 0 and high <= 1:
        return data
    if low >= 0 and high <= 255 and bool((data == data.round()).all()):
        return data / 255
    return stretch(data)


def _denormalised(
    data: Tensor, name: str, mean: Array | None, std: Array | None, channels: int
) -> Tensor:
    """``std * data + mean``, each one number or one per channel."""
    for values, which in ((std, "std"), (mean, "mean")):
        if values is None:
            continue
        own = numbers(values, which, {0: "()", 1: "(C,)"})
        if own.numel() not in (1, channels):
            raise ValueError(
                f"{which} has {own.numel()} numbers, expected 1 or {channels} as {name} has "
                "channels: give what the image was normalised by"
            )
        own = own.reshape(-1, 1, 1) if own.ndim and data.ndim > 2 else own
        data = data * own if which == "std" else data + own
    return data


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


def pale(picture: Tensor) -> Tensor:
    """A picture in grey, because colours mean attributions; pale, so that dark ones show on it."""
    return 0.35 + 0.65 * grey(picture)


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
    axes: Axes,
    values: Tensor,
    size: tuple[int, int],
    cmap: Colormap,
    scale: Normalize,
    smooth: bool = False,
) -> AxesImage:
    """A map (h, w) of any size over the extent of an image of ``size`` (H, W)."""
    height, width = size
    if smooth and tuple(values.shape) != (height, width):
        shape = (max(height, values.shape[0]), max(width, values.shape[1]))
        values = functional.interpolate(values[None, None], shape, mode="bilinear")[0, 0]
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
    """Thin lines, which do not change the colours next to them."""
    collection = need("matplotlib.collections").LineCollection(
        lines, colors=DARK, linewidths=0.7, alpha=0.55
    )
    axes.add_collection(collection, autolim=False)


def bare(axes: Axes) -> None:
    """No ticks, the frame only."""
    axes.set(xticks=[], yticks=[])
