"""Maps of a model that loses its weights layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import (
    DARK,
    GREY,
    LINE,
    Canvas,
    balance,
    draw_line,
    finish,
    new_figure,
    place,
    text_height,
    text_width,
    wrap,
    write,
)
from attrfn.viz._colour import colour_map, norm
from attrfn.viz._picture import (
    Channels,
    Layout,
    Shapes,
    bare,
    draw_map,
    draw_outline,
    draw_picture,
    image_titles,
    outline_of,
    pictures,
    shapes,
)
from attrfn.viz._picture import maps as maps_of
from attrfn.viz._scale import Array, limit, numbers, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

NAME, NOTE, LABEL, TITLE = 9.0, 7.5, 9.0, 12.0  # font sizes
CELL, GAP_X, GAP_Y, MARGIN = 1.0, 0.1, 0.1, 0.16  # inches


class Row(NamedTuple):
    """An example by a method: the label, the picture, the maps, and their similarities as text."""

    label: str
    picture: Tensor
    maps: list[Tensor]
    notes: list[str]


class _Plan(NamedTuple):
    """Places in inches, and the texts as they are broken into lines."""

    names: list[str]
    title: str
    left: float
    right: float
    line: float
    top: float
    cell: float
    step: float


@checks_flags
def sanity(
    images: Array,
    maps: Mapping[str, Mapping[str, Array]],
    *,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
    titles: Sequence[str] | None = None,
    title: str = "",
    outlier_percentile: float = 99.0,
    cmap: str = "RdBu_r",
    outline: bool = True,
    layout: Layout | None = None,
    channels: Channels = "mean",
    ax: Axes | None = None,
) -> Figure:
    """Maps of the trained model, then of the model with ever more layers drawn at random.

    One row per method and image, one column per layer. A map that stays as it was does not show
    what the model has learned. Each map has its own colour scale, since the outputs of a random
    model are of another size.

    Args:
        images: (B, C, H, W), or (B, H, W, C) as ``layout`` says, or (B, H, W).
        maps: Method name -> column name -> maps like those of :func:`attrfn.viz.image_grid`. The
            first column is the trained model; the others are what
            :func:`attrfn.metrics.model_parameter_randomization` returns if its ``similarity`` is
            ``lambda trained, drawn: drawn``. All methods have the same columns.
        similarity: ``similarity(trained, drawn) -> (B,)``, such as
            :func:`attrfn.metrics.similarity.spearman`: written under each map.
        titles: One label per image, drawn at the left of its rows.
        title: Drawn above everything.
        outlier_percentile: Where the scales end, as a percentile of |map|; 100: at the largest.
        cmap: Name of a diverging matplotlib colour map, negative to positive.
        outline: Whether to draw a thin contour of the image over each map.
        layout: "CHW" or "HWC": whether the channels of all of them come first or last.
        channels: What becomes of the channels of maps, "mean" or "sum".
        ax: Your axes instead of a new figure: all axes are scaled into its box.

    Returns:
        A figure with axes in row-major order: per row the image, then the maps.

    Raises:
        TypeError: ``maps`` is not a mapping of mappings, or an argument does not hold real numbers.
        ValueError: Shapes, batch sizes, columns or options do not fit, or values are not finite.

    Example:
        >>> import torch, attrfn
        >>> from attrfn import metrics
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 1)
        ... )
        >>> x = torch.rand(2, 1, 8, 8)
        >>> drawn = metrics.model_parameter_randomization(
        ...     model, x, attrfn.gradient, similarity=lambda trained, drawn: drawn
        ... )
        >>> maps = {"gradient": {"trained": attrfn.gradient(model, x), **drawn}}
        >>> figure = sanity(x, maps, similarity=metrics.similarity.spearman)
        >>> [axes.get_title() for axes in figure.axes[:4]]
        ['image', 'trained', '2', '0']
    """
    form = shapes(layout, batch=True)
    shown = pictures(images, "images", form)
    columns = _columns(maps)
    labels = image_titles(titles, len(shown))
    rows = [
        row
        for method, of in maps.items()
        for row in _rows(method, of, shown, labels, form, channels, similarity)
    ]
    at = percentile(outlier_percentile)
    colours = colour_map(cmap)

    plan = _plan(shown, ["image", *columns], rows, title, similarity is not None)
    note = balance(_note(similarity), plan.right - plan.left, NOTE)
    bottom = plan.top + len(rows) * plan.step
    height = bottom + text_height(note, NOTE) + MARGIN
    what = _describe(list(maps), columns, len(shown))
    figure = new_figure(plan.right + MARGIN, height, what, ax)
    write(figure, MARGIN, MARGIN, plan.title, TITLE, weight="bold")
    _write_span(figure, plan.left + 2 * (CELL + GAP_X), plan.right, plan.line)
    for i, row in enumerate(rows):
        _draw_row(figure, plan, plan.top + i * plan.step, row, colours, at, outline)
    for axes, name in zip(figure.axes[: len(plan.names)], plan.names, strict=True):
        axes.set_title(name, color=DARK, fontsize=NAME, weight="bold", pad=4, parse_math=False)
    write(figure, plan.left, bottom, note, NOTE, color=GREY)
    return finish(figure)


def _plan(shown: Tensor, names: list[str], rows: list[Row], title: str, notes: bool) -> _Plan:
    """A figure that is as large as its texts need."""
    height, width = shown.shape[1:3]
    cell = CELL * min(max(height / width, 0.15), 1.6)  # bounded: strips stay visible
    names = [balance(name, CELL, NAME, "bold") for name in names]
    left = MARGIN + max(text_width(row.label, LABEL) for row in rows) + 0.12
    right = left + len(names) * (CELL + GAP_X) - GAP_X
    title = wrap(title, right - MARGIN, TITLE, "bold")
    top = MARGIN + text_height(title, TITLE) + (0.12 if title else 0)
    line = top + text_height("0", NOTE) + 0.05
    top = line + 0.05 + max(text_height(name, NAME) for name in names) + 0.06
    step = cell + GAP_Y + (text_height("0", NOTE) + 0.02 if notes else 0)
    return _Plan(names, title, left, right, line, top, cell, step)


def _draw_row(
    figure: Canvas, plan: _Plan, y: float, row: Row, colours: Colormap, at: float, outline: bool
) -> None:
    """The label and the picture of a row, and its maps with their similarities."""
    label = plan.left - 0.12, y + plan.cell / 2
    write(figure, *label, row.label, LABEL, ha="right", va="center")
    size = (row.picture.shape[0], row.picture.shape[1])
    lines = outline_of(row.picture) if outline else []
    for column in range(len(plan.names)):
        x = plan.left + column * (CELL + GAP_X)
        axes = place(figure, x, y, CELL, plan.cell)
        if column == 0:
            draw_picture(axes, row.picture)
        else:
            values, text = row.maps[column - 1], row.notes[column - 1]
            draw_map(axes, values, size, colours, norm(limit(values, at)))
            draw_outline(axes, lines)
            under = x + CELL / 2, y + plan.cell + 0.03
            write(figure, *under, text, NOTE, ha="center", color=GREY)
        bare(axes)


def _columns(maps: object) -> list[str]:
    """The names of the columns, which all methods share."""
    if not isinstance(maps, Mapping) or not all(isinstance(of, Mapping) for of in maps.values()):
        raise TypeError(
            f"maps is {say(maps)}, expected a mapping from method names to mappings from column "
            "names to maps: write {'gradient': {'trained': maps, **randomised}}"
        )
    keys = [list(of) for of in maps.values()]
    if not keys or len(keys[0]) < 2:
        raise ValueError(
            "maps has fewer than two columns, expected at least one method with maps of the "
            "trained model and of a layer: write {'gradient': {'trained': maps, **randomised}}"
        )
    for method, found in zip(maps, keys, strict=True):
        if found != keys[0]:
            raise ValueError(
                f"maps[{method!r}] has columns {say(found)}, expected {say(keys[0])} as the first "
                "method has: randomise the same layers in the same order"
            )
    return [str(name) for name in keys[0]]


def _rows(
    method: str,
    of: Mapping[str, Array],
    shown: Tensor,
    labels: list[str],
    form: Shapes,
    channels: Channels,
    similarity: Callable[[Tensor, Tensor], Tensor] | None,
) -> list[Row]:
    """A row per image of one method."""
    size = (shown.shape[1], shown.shape[2])
    names = [f"maps[{method!r}][{column!r}]" for column in of]
    drawn = [maps_of(m, n, form, size, channels) for m, n in zip(of.values(), names, strict=True)]
    for found, name in zip(drawn, names, strict=True):
        if len(found) != len(shown):
            raise ValueError(
                f"{name} has {len(found)} examples, expected {len(shown)} as images has: explain "
                "and draw the same batch"
            )
    whole = [numbers(m, n, form.words) for m, n in zip(of.values(), names, strict=True)]
    notes = [[""] * len(shown)]
    for values in whole[1:]:
        notes.append(_similarities(similarity, whole[0], values))
    return [
        Row(
            "\n".join(wrap(t, 1.5, LABEL) for t in (str(method), label) if t),
            shown[i],
            [values[i] for values in drawn],
            [column[i] for column in notes],
        )
        for i, label in enumerate(labels)
    ]


def _similarities(
    similarity: Callable[[Tensor, Tensor], Tensor] | None, trained: Tensor, drawn: Tensor
) -> list[str]:
    if similarity is None:
        return [""] * len(trained)
    found: Any = similarity(trained, drawn)
    if not isinstance(found, Tensor) or found.shape != trained.shape[:1]:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"similarity returned {shape}, expected one number for each of the {len(trained)} "
            "examples: give a function (a, b) -> (B,)"
        )
    return [_text(value) for value in found.tolist()]


def _text(value: float) -> str:
    if value != value:
        return "undefined"
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")


def _write_span(figure: Canvas, left: float, right: float, y: float) -> None:
    """A line over the columns of the layers, which says what they are."""
    write(figure, left, y - 0.03, "drawn at random, layer by layer", NOTE, color=GREY, va="bottom")
    width, height = figure.get_size_inches()
    draw_line(figure, (left / width, right / width), (1 - y / height,) * 2, LINE)


def _note(similarity: Callable[[Tensor, Tensor], Tensor] | None) -> str:
    note = "Red raises the output, blue lowers it; each map has its own scale."
    if similarity is None:
        return note
    name = getattr(similarity, "__name__", "similarity")
    name = name.replace("_", " ") if name.isidentifier() else "similarity"
    return f"Under a map: {name} with that of the trained model. {note}"


def _describe(methods: list[str], columns: list[str], batch: int) -> str:
    return (
        f"Maps of {batch} images by {'; '.join(map(str, methods))} (rows), of the model as "
        f"{columns[0]}, then with the layers {'; '.join(columns[1:])} drawn at random (columns). "
        "Red raises the explained output, blue lowers it, white is zero."
    )
