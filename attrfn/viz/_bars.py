"""Mean attributions of named features, with their uncertainty over samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn.viz._canvas import ACCENT, BLUE, DARK, RED, text_width
from attrfn.viz._rows import MARGIN, features, frame, order, with_values
from attrfn.viz._scale import Array, numbers
from attrfn.viz._scale import signed as with_sign

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS = {"std": "standard deviation", "stderr": "standard error"}


@checks_flags
def bar(
    attributions: Array,
    names: Sequence[str],
    *,
    top: int = 10,
    error: Literal["std", "stderr"] | Array | None = "stderr",
    values: Array | None = None,
    rest: bool = True,
    signed: bool = False,
    title: str = "",
    xlabel: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Horizontal bars: one sample's attributions, or the mean size of those of several.

    Features are sorted by mean |attribution|. The bars of several samples are those means: how much
    a feature matters, whatever its sign. With ``signed`` they are means of the attributions, where
    a feature that helps some samples and hurts others has a short bar. The label under the plot
    says which; the numbers are at the right.

    Args:
        attributions: (B, F), or (F,) for one sample, whose signs are always drawn.
        names: F texts.
        top: How many features are drawn.
        error: Error bars: "std" or "stderr" of the mean over the B samples (none for one sample),
            a tensor (F,) of half-widths, such as the standard errors that a sampling method
            estimates, or None.
        values: The features' values, (F,) or (B, F), whose means are written after the names.
        rest: Whether a last, paler bar sums the features that are not among the top.
        signed: Whether bars of several samples are means of signed attributions, not of sizes.
        title: Drawn above the plot.
        xlabel: Drawn under the plot; by default it says what bars and error bars are.
        ax: Your axes to draw in instead of a new figure.

    Returns:
        A figure with one axes.

    Raises:
        TypeError: An argument does not hold real numbers.
        ValueError: Shapes, names or options do not fit, or values are not finite.

    Example:
        >>> import torch
        >>> figure = bar(torch.tensor([[1.0, -3.0], [1.0, 2.0]]), ["age", "income"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['income', 'age']
    """
    data = features(attributions, names)
    count, size = data.shape
    sizes = count > 1 and not signed
    data = data.abs() if sizes else data
    half, error_name = _half_widths(data, error)
    chosen = order(data, top)
    labels = with_values(data, names, values, chosen)
    means = data.mean(0)[chosen].tolist()
    errors = None if half is None else half[chosen].tolist()
    others = [i for i in range(size) if i not in set(chosen)]
    if rest and others:
        total = data[:, others].sum(1, keepdim=True)
        labels.append(f"{len(others)} other feature{'s' * (len(others) > 1)}, summed")
        means.append(float(total.mean()))
        if errors is not None:
            # Given half-widths of features tell nothing of a sum's: features may be correlated.
            half_total = _half_widths(total, error)[0] if isinstance(error, str) else None
            errors.append(float("nan") if half_total is None else float(half_total))
    if xlabel is None:
        what = "|attribution|" if sizes else "attribution"
        xlabel = f"mean {what} over {count} samples" if count > 1 else "attribution"
        xlabel += f" (\N{PLUS-MINUS SIGN} {error_name})" if half is not None else ""
    paler = len(labels) - len(chosen)
    return _draw(labels, means, errors, title, xlabel, paler, _colours(means, sizes), ax)


def _draw(
    labels: list[str],
    means: list[float],
    errors: list[float] | None,
    title: str,
    xlabel: str,
    paler: int,
    colours: list[str],
    ax: Axes | None,
) -> Figure:
    """The figure, of which the last bars are paler."""
    texts = measured(means, errors or [0.0] * len(means))
    # Sizes have no sign to write.
    texts = [text.removeprefix("+") for text in texts] if ACCENT in colours else texts
    figure, axes = frame(
        labels,
        title=title,
        xlabel=xlabel,
        right=0.15 + max(text_width(text, 8) for text in texts) + MARGIN,
        description=f"Bar plot, {xlabel}: "
        + "; ".join(f"{label} {text}" for label, text in zip(labels, texts, strict=True)),
        ax=ax,
    )
    rows = range(len(labels))
    bars = axes.barh(rows, means, height=0.68, color=colours)
    for patch in bars[len(labels) - paler :]:
        patch.set_alpha(0.45)
    if errors is not None:
        axes.errorbar(
            means, rows, xerr=errors, fmt="none", ecolor=DARK, elinewidth=1, capsize=2.5, capthick=1
        )
    # x in widths of the axes, y in rows: the numbers line up whatever the data's range is.
    side = axes.get_yaxis_transform()
    for row, text in enumerate(texts):
        axes.text(1.02, row, text, transform=side, fontsize=8, va="center", color=DARK)
    return figure


def _colours(means: list[float], sizes: bool) -> list[str]:
    return [ACCENT if sizes else BLUE if mean < 0 else RED for mean in means]


def measured(means: list[float], errors: list[float]) -> list[str]:
    """Means with errors, -0.53 +- 0.18: as many decimals as two digits of most errors have."""
    # One number of decimals for all rows makes a readable column. Errors of very different sizes
    # (the least and the greatest number of decimals more than one apart) get the least plus one.
    decimals = [1 - math.floor(math.log10(error)) for error in errors if error > 0]
    plus = " \N{PLUS-MINUS SIGN} "
    if not decimals:
        return [with_sign(mean, 3) for mean in means]
    shown = max(0, min(max(decimals), min(decimals) + 1))
    # Beyond these widths a column of decimals is harder to read than powers of ten.
    if shown > 5 or max(map(abs, means)) >= 1e5:
        return [
            with_sign(mean, 3) + (f"{plus}{with_sign(error)[1:]}" if error > 0 else "")
            for mean, error in zip(means, errors, strict=True)
        ]
    return [
        (f"{mean:+.{shown}f}" + (f"{plus}{error:.{shown}f}" if error >= 0 else "")).replace(
            "-", "\N{MINUS SIGN}"
        )
        for mean, error in zip(means, errors, strict=True)
    ]


def _half_widths(
    data: Tensor, error: Literal["std", "stderr"] | Array | None
) -> tuple[Tensor | None, str]:
    """Half-widths (F,) and their name."""
    if error is None:
        return None, ""
    if isinstance(error, str):
        if error not in ERRORS:
            raise ValueError(
                f"error is {say(error)}, expected 'std', 'stderr', a tensor or None: None draws no "
                "error bars"
            )
        if len(data) == 1:
            return None, ""
        std = data.std(0)
        return std / len(data) ** 0.5 if error == "stderr" else std, ERRORS[error]
    half = numbers(error, "error", {1: "(F,)"})
    if half.shape != data.shape[1:] or bool((half < 0).any()):
        raise ValueError(
            f"error has shape {tuple(half.shape)} and minimum {float(half.min()):.3g}, expected "
            f"{tuple(data.shape[1:])} and no negative value: give half-widths of the error bars"
        )
    return half, "error"
