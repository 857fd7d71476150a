"""Figures that notebooks show, and parts of the caller's figure that are laid out like a whole one.

This file imports matplotlib; the others reach it by :func:`attrfn.viz._canvas.new_figure` alone.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text


class Picture(Figure):
    """A figure that shows itself in notebooks, without ``%matplotlib inline`` and pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the pixels of the size on the page, for dense screens.
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=192)
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height}


class Region:
    """The inside of an axes of the caller, with those methods of a figure that layouts use.

    A layout has its own size in inches; here it is scaled, texts included, into the box of the
    axes, without a change of its proportions.
    """

    def __init__(self, host: Axes, width: float, height: float) -> None:
        host.set_axis_off()
        whole = root(host)
        if whole.get_layout_engine() is not None:
            whole.draw_without_rendering()  # the box of the axes is known after that
        box, dpi = host.get_window_extent(), host.figure.dpi
        across, along = box.width / dpi, box.height / dpi
        self.host, self.axes = host, list[Axes]()
        self.size = (width, height)
        self.scale = min(across / width, along / height)
        self.part = (self.scale * width / across, self.scale * height / along)

    def get_size_inches(self) -> tuple[float, float]:
        """The size that the layout has asked for."""
        return self.size

    def _at(self, x: float, y: float) -> tuple[float, float]:
        # Centred from side to side, and at the upper edge.
        return (1 - self.part[0]) / 2 + x * self.part[0], 1 - (1 - y) * self.part[1]

    def add_axes(self, rect: tuple[float, float, float, float], **options: Any) -> Axes:
        """Axes at a place in shares of the region."""
        left, bottom, width, height = rect
        place = (*self._at(left, bottom), width * self.part[0], height * self.part[1])
        axes = self.host.inset_axes(place, **options)
        self.axes.append(axes)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> Text:
        """A text at a place in shares of the region."""
        return self.host.text(*self._at(x, y), text, transform=self.host.transAxes, **style)

    def line(self, x: tuple[float, float], y: tuple[float, float], **style: Any) -> None:
        """A line between two places in shares of the region."""
        (x0, y0), (x1, y1) = self._at(x[0], y[0]), self._at(x[1], y[1])
        self.host.plot((x0, x1), (y0, y1), transform=self.host.transAxes, clip_on=False, **style)

    def colorbar(self, mappable: Any, **options: Any) -> Any:
        """As of the figure."""
        return self.host.figure.colorbar(mappable, **options)

    def finish(self) -> Figure:
        """Scale the texts as the places are; the figure of the axes."""
        texts = list(self.host.texts)
        for axes in self.axes:
            texts += axes.findobj(Text)
        for text, points in [(t, t.get_fontsize()) for t in dict.fromkeys(texts)]:
            text.set_fontsize(self.scale * float(points))
        for axes in self.axes:
            for axis in (axes.xaxis, axes.yaxis):
                # Ticks that are made while drawing have the size of the axis.
                size: Any = axis.get_tick_params().get("labelsize")
                if isinstance(size, (int, float)):
                    axis.set_tick_params(labelsize=self.scale * size)
        return root(self.host)


def root(axes: Axes) -> Figure:
    """The figure of an axes, which may be in a figure of that figure."""
    figure: Figure = axes.figure.canvas.figure
    return figure
