"""Images by methods: one figure to compare explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import (
    DARK,
    GREY,
    Canvas,
    balance,
    finish,
    new_figure,
    place,
    text_height,
    text_width,
    wrap,
    write,
)
from attrfn.viz._colour import colour_bar, colour_map, norm
from attrfn.viz._picture import (
    Channels,
    Layout,
    Shapes,
    bare,
    draw_map,
    draw_outline,
    draw_picture,
    image_titles,
    maps,
    outline_of,
    pale,
    pictures,
    shapes,
)
from attrfn.viz._scale import Array, limit, percentile, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

NAME, NOTE, LABEL, TITLE = 9.0, 7.5, 9.0, 12.0  # font sizes
CELL, GAP_X, GAP_Y, MARGIN, BAR = 1.25, 0.14, 0.1, 0.16, 0.07  # inches


class _Plan(NamedTuple):
    """Places in inches, and the texts as they are broken into lines."""

    names: list[str]
    notes: list[str]
    labels: list[str]
    title: str
    left: float
    top: float
    bottom: float
    right: float
    cell: float
    note: float

    def column(self, i: int) -> float:
        """Where a column begins."""
        return self.left + i * (CELL + GAP_X)


@checks_flags
def image_grid(
    images: Array,
    attributions: Mapping[str, Array],
    *,
    titles: Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
    title: str = "",
    outlier_percentile: float = 99.0,
    cmap: str = "RdBu_r",
    original: bool = True,
    outline: bool = True,
    overlay: bool = False,
    mean: Array | None = None,
    std: Array | None = None,
    layout: Layout | None = None,
    channels: Channels | Mapping[str, Channels] = "mean",
    ax: Axes | None = None,
) -> Figure:
    """A grid of images (rows) by methods (columns), one colour scale per method.

    A column's scale runs from -v to v, where v is the given percentile of |attribution| over all
    its rows, written under it; larger values take the end colours. Maps that are never negative
    are drawn on the same zero-centred scale, so a colour means the same everywhere.

    Args:
        images: (B, C, H, W), or (B, H, W, C) as ``layout`` says, or (B, H, W). Three channels are
            drawn in colour, others averaged.
        attributions: Method name -> (B, C, h, w), or (B, h, w, C) as ``layout`` says, or (B, h, w).
            A map whose size is not the image's (a CAM) is stretched over it.
        titles: One label per image, drawn at the left of its row.
        notes: Method name -> a second line under the name, such as "3.1 ms, gap 1e-6".
        title: Drawn above everything.
        outlier_percentile: Where the scales end, above 0; 100: at the largest value.
        cmap: Name of a diverging matplotlib colour map, negative to positive.
        original: Whether the first column shows the images.
        outline: Whether to draw a thin contour of the image over each map.
        overlay: Whether to draw each map over its image in pale grey, fading towards zero, as by
            :func:`attrfn.viz.image`, without the contour.
        mean: What was subtracted from the images to normalise them: a number or one per channel.
        std: What the images were divided by after that.
        layout: "CHW" or "HWC": whether the channels of all of them come first or last. A shape that
            fits the other layout only is refused. None expects "CHW", takes three or four colours
            last where no image has so many channels, and refuses other doubtful shapes.
        channels: What becomes of the channels of attributions, or a mapping from method names to
            that. "mean" is right for scores that channels share and has the colours of a sum for
            others; "sum" is for attributions that are divided among the channels, if the numbers
            of the scale should be their sums.
        ax: Your axes instead of a new figure: all axes are scaled into its box.

    Returns:
        A figure with axes in row-major order (images, then methods, per row), followed by one
        colour bar per method.

    Raises:
        TypeError: ``attributions`` is not a mapping, or an argument does not hold real numbers.
        ValueError: Shapes, batch sizes, names or options do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 1, 8, 8)
        >>> figure = image_grid(images, {"gradient": torch.randn(2, 1, 8, 8)}, titles=["3", "8"])
        >>> [axes.get_title() for axes in figure.axes]
        ['image', 'gradient', '', '', '']
    """
    form = shapes(layout, batch=True)
    shown = pictures(images, "images", form, mean, std)
    size = (shown.shape[1], shown.shape[2])
    columns = _columns(attributions, form, len(shown), size, channels)
    names, under = ["image"] * original + list(columns), [""] * original + _notes(notes, columns)
    plan = _plan(shown, names, under, titles, title)
    at = percentile(outlier_percentile)
    colours = colour_map(cmap, alpha=0.9 if overlay else None)
    limits = [limit(values, at) for values in columns.values()]
    note = wrap(_end(columns, limits, at), plan.right - plan.left, NOTE)
    height = plan.bottom + BAR + 0.3 + text_height(note, NOTE)
    what = _describe(len(shown), columns, original)
    figure = new_figure(plan.right + MARGIN, height, what, ax)
    write(figure, MARGIN, MARGIN, plan.title, TITLE, weight="bold")
    write(figure, plan.left, plan.bottom + BAR + 0.2, note, NOTE, color=GREY)
    for row, picture in enumerate(shown):
        row_maps = [values[row] for values in columns.values()]
        cells = _cells(figure, plan, row)
        _draw_row(cells, picture, row_maps, limits, colours, original, outline, overlay)
    _write_names(figure, plan)
    _draw_bars(figure, plan, columns, limits, int(original))
    return finish(figure)


def _plan(
    shown: Tensor, names: list[str], notes: list[str], titles: Sequence[str] | None, title: str
) -> _Plan:
    """A figure that is as large as its texts need."""
    height, width = shown.shape[1:3]
    cell = CELL * min(max(height / width, 0.15), 1.6)  # bounded: strips stay visible
    labels = [] if titles is None else image_titles(titles, len(shown))
    labels = [wrap(label, 1.5, LABEL) for label in labels]
    names = [balance(name, CELL, NAME, "bold") for name in names]
    notes = [balance(note, CELL, NOTE) for note in notes]
    left = MARGIN + max((text_width(label, LABEL) + 0.12 for label in labels if label), default=0)
    right = left + len(names) * (CELL + GAP_X) - GAP_X
    title = wrap(title, right - MARGIN, TITLE, "bold")
    note = max(text_height(text, NOTE) for text in notes)
    top = MARGIN + max(text_height(name, NAME) for name in names) + note + 0.06
    top += text_height(title, TITLE) + (0.12 if title else 0)
    bottom = top + len(shown) * (cell + GAP_Y)
    return _Plan(names, notes, labels, title, left, top, bottom, right, cell, note)


def _cells(figure: Canvas, plan: _Plan, row: int) -> list[Axes]:
    """The axes of a row, with its label at their left."""
    y = plan.top + row * (plan.cell + GAP_Y)
    if plan.labels:
        x, middle = plan.left - 0.12, y + plan.cell / 2
        write(figure, x, middle, plan.labels[row], LABEL, ha="right", va="center")
    columns = range(len(plan.names))
    return [place(figure, plan.column(i), y, CELL, plan.cell) for i in columns]


def _draw_row(
    cells: list[Axes],
    picture: Tensor,
    row_maps: list[Tensor],
    limits: list[float],
    colours: Colormap,
    original: bool,
    outline: bool,
    overlay: bool,
) -> None:
    """One image, if it is to be shown, and its maps."""
    size = (picture.shape[0], picture.shape[1])
    lines = outline_of(picture) if outline and not overlay else []
    if original:
        draw_picture(cells[0], picture)
    for axes, values, end in zip(cells[original:], row_maps, limits, strict=True):
        if overlay:
            draw_picture(axes, pale(picture))
        draw_map(axes, values, size, colours, norm(end), smooth=overlay)
        draw_outline(axes, lines)
    for axes in cells:
        bare(axes)


def _write_names(figure: Canvas, plan: _Plan) -> None:
    """The names over the columns, and under each its note."""
    # A name is the title of the column's first axes, so that those who read the axes find it there.
    for column, (name, note) in enumerate(zip(plan.names, plan.notes, strict=True)):
        x = plan.column(column) + CELL / 2
        figure.axes[column].set_title(
            name,
            loc="center",
            color=DARK,
            fontsize=NAME,
            weight="bold",
            pad=72 * (plan.note + 0.06),  # in points
            parse_math=False,
        )
        write(figure, x, plan.top - 0.04 - plan.note, note, NOTE, ha="center", color=GREY)


def _draw_bars(
    figure: Canvas, plan: _Plan, columns: Mapping[str, Tensor], limits: list[float], first: int
) -> None:
    """A colour bar under each column of maps."""
    for i, (values, end) in enumerate(zip(columns.values(), limits, strict=True), first):
        axes = place(figure, plan.column(i), plan.bottom, CELL, BAR)
        clipped = bool((values.abs() > end).any())
        colour_bar(figure, axes, figure.axes[i].images[-1], end, clipped=clipped)


def _columns(
    attributions: Mapping[str, Array],
    form: Shapes,
    batch: int,
    size: tuple[int, int],
    channels: Channels | Mapping[str, Channels],
) -> dict[str, Tensor]:
    if not isinstance(attributions, Mapping):
        raise TypeError(
            f"attributions is a {type(attributions).__name__}, expected a mapping from method "
            "names to maps: write {'gradient': maps}"
        )
    if not attributions:
        raise ValueError(
            "attributions is empty, expected at least one method: write {'gradient': maps}"
        )
    per_name = isinstance(channels, Mapping)
    unknown = [name for name in channels if name not in attributions] if per_name else []
    if unknown:
        raise ValueError(
            f"channels has {unknown}, expected names among {list(attributions)}: use the names of "
            "attributions"
        )
    columns = {}
    for name, value in attributions.items():
        own = channels.get(name, "mean") if isinstance(channels, Mapping) else channels
        columns[name] = maps(value, f"attributions[{name!r}]", form, size, own)
        if len(columns[name]) != batch:
            raise ValueError(
                f"attributions[{name!r}] has {len(columns[name])} examples, expected {batch} as "
                "images has: explain and draw the same batch"
            )
    return columns


def _notes(notes: Mapping[str, str] | None, columns: Mapping[str, Tensor]) -> list[str]:
    notes = notes or {}
    unknown = [name for name in notes if name not in columns]
    if unknown:
        raise ValueError(
            f"notes has {say(unknown)}, expected names among {list(columns)}: use the names of "
            "attributions"
        )
    return [str(notes.get(name, "")) for name in columns]


def _end(columns: Mapping[str, Tensor], limits: list[float], at: float) -> str:
    """Where the scales end, if some values lie beyond."""
    beyond = any(
        bool((values.abs() > end).any())
        for values, end in zip(columns.values(), limits, strict=True)
    )
    return f"Scales end at percentile {plain(at)} of the column's sizes." if beyond else ""


def _describe(batch: int, columns: Mapping[str, Tensor], original: bool) -> str:
    first = "the image and then " if original else ""
    return (
        f"Grid of {batch} images (rows); each row shows {first}its attribution maps by "
        f"{'; '.join(columns)}. Red raises the explained output, blue lowers it, white is zero."
    )
