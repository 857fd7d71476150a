"""Figures laid out in inches from the top left, so that texts of any length overlap nothing."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from attrfn._explain.flags import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attrfn.viz._figure import Region

Canvas: TypeAlias = "Figure | Region"

# matplotlib's own layouts divide a figure whose size is fixed before the texts are known. Here the
# texts are measured first, and the figure is made as large as they need: so no layout engine runs
# (`layout="none"`), and every function of the package places its axes itself.

# Red and blue are those of the colour map RdBu, which colour-blind readers can tell apart.
DARK, GREY, LINE = "#222222", "#666666", "#bbbbbb"
RED, BLUE = "#b2182b", "#2166ac"
ACCENT = "#00786c"  # what stands out where nothing is attributed: red and blue are signs
PIECE = re.compile(r"[^\s_/-]*[\s_/-]+|[^\s_/-]+")  # a line may end after it
LINE_HEIGHT = 1.25  # of a text line, in font sizes


def need(module: str) -> Any:
    """Import a module of the extra ``viz``, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"attrfn.viz draws with {module}, which could not be imported ({error}): "
            'pip install "attrfn[viz]"'
        ) from error


def new_figure(width: float, height: float, description: str, ax: Axes | None = None) -> Canvas:
    """An empty white figure, sizes in inches; its label is the text for screen readers.

    With ``ax`` a region of that size, which is scaled into the axes.

    Raises:
        TypeError: ``ax`` is not an axes.
    """
    # `Figure` itself, without pyplot: that has global state, and may open windows.
    need("matplotlib.figure")
    home = need("attrfn.viz._figure")
    if ax is not None:
        region: Region = home.Region(checked(ax), width, height)
        return region
    figure: Figure = home.Picture(
        figsize=(width, height), dpi=150, facecolor="white", layout="none"
    )
    figure.set_label(description)
    return figure


def checked(ax: Axes) -> Axes:
    """The axes themselves.

    Raises:
        TypeError: It is not an axes.
    """
    if not hasattr(ax, "inset_axes") or not hasattr(ax, "transAxes"):
        raise TypeError(
            f"ax is {say(ax)}, expected one matplotlib axes: give an element of what plt.subplots "
            "returns"
        )
    return ax


def finish(canvas: Canvas) -> Figure:
    """The figure of a canvas on which everything is drawn."""
    return canvas.finish() if hasattr(canvas, "finish") else canvas


def root(axes: Axes) -> Figure:
    """The figure of an axes."""
    figure: Figure = need("attrfn.viz._figure").root(axes)
    return figure


def width_of(figure: Canvas, axes: Axes) -> float:
    """The width of an axes in the inches of its canvas."""
    return float(axes.bbox.width / axes.figure.dpi / getattr(figure, "scale", 1.0))


def draw_line(figure: Canvas, x: tuple[float, float], y: tuple[float, float], colour: str) -> None:
    """A thin line outside of all axes, between two places in shares of the canvas."""
    if hasattr(figure, "line"):
        figure.line(x, y, color=colour, linewidth=0.8)
    else:
        figure.add_artist(need("matplotlib.lines").Line2D(x, y, color=colour, linewidth=0.8))


def place(figure: Canvas, left: float, top: float, width: float, height: float) -> Axes:
    """Axes of the given size, ``top`` inches under the upper edge."""
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes(
        (
            left / total_width,
            1 - (top + height) / total_height,
            width / total_width,
            height / total_height,
        ),
        facecolor="white",
    )
    return dress(axes)


def bar_beside(axes: Axes, own: bool) -> Axes:
    """Axes for a colour bar at the right: of a new figure, or inside the caller's own axes."""
    if own:
        return dress(axes.inset_axes((1.04, 0.0, 0.02, 1.0)))
    figure, box = root(axes), axes.get_position()
    width, height = figure.get_size_inches()
    return place(figure, box.x1 * width + 0.2, (1 - box.y1) * height, 0.09, box.height * height)


def dress(axes: Axes) -> Axes:
    """Axes with the quiet lines and labels that all plots have."""
    axes.grid(False)
    axes.tick_params(colors=DARK, labelsize=8, length=0, pad=3)
    for spine in axes.spines.values():
        spine.set(color=LINE, linewidth=0.6)
    return axes


def write(figure: Canvas, left: float, top: float, text: str, size: float, **style: Any) -> None:
    """Text with its upper left corner (or what ``ha`` and ``va`` say) at a place in inches."""
    total_width, total_height = figure.get_size_inches()
    look: dict[str, Any] = {"color": DARK, "va": "top", "linespacing": LINE_HEIGHT, **style}
    figure.text(
        # A dollar sign in a name is a dollar sign.
        left / total_width,
        1 - top / total_height,
        text,
        fontsize=size,
        parse_math=False,
        **look,
    )


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of the widest line."""
    # Measured from the font's outlines, which needs no renderer and no figure.
    font = need("matplotlib.font_manager").FontProperties(size=size, weight=weight)
    measure = need("matplotlib.textpath").text_to_path.get_text_width_height_descent
    return max(float(measure(line, font, False)[0]) / 72 for line in text.split("\n"))


def text_height(text: str, size: float) -> float:
    """Height in inches of all lines; an empty text has none."""
    return (text.count("\n") + 1) * size * LINE_HEIGHT / 72 if text else 0.0


def balance(text: str, width: float, size: float, weight: str = "normal") -> str:
    """``wrap`` with the same number of lines, of about equal lengths."""
    best = wrap(text, width, size, weight)
    widest = max((text_width(p.rstrip(), size, weight) for p in PIECE.findall(text)), default=0.0)
    # At half the width a text of several lines always needs more of them: no smaller share helps.
    for share in (0.9, 0.8, 0.7, 0.6, 0.5):
        # Not narrower than the widest word, so that no word is broken.
        lines = wrap(text, min(width, max(widest, share * width)), size, weight)
        if lines.count("\n") > best.count("\n"):
            break
        best = lines
    return best


def wrap(text: str, width: float, size: float, weight: str = "normal") -> str:
    """``text`` in lines of at most ``width`` inches, broken after space, ``_``, ``/``, ``-``."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in PIECE.findall(paragraph):
            if not line or text_width((line + piece).rstrip(), size, weight) <= width:
                line += piece
            else:
                lines.append(line.rstrip())
                line = piece
            # A piece wider than a whole line, such as a long identifier, is broken anywhere.
            while len(line) > 1 and text_width(line.rstrip(), size, weight) > width:
                fits = next(
                    n
                    for n in range(len(line) - 1, 0, -1)
                    if n == 1 or text_width(line[:n], size, weight) <= width
                )
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line.rstrip())
    return "\n".join(lines)
