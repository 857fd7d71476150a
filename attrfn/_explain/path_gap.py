"""Whether an integral along a path has reached the change of the output."""

from __future__ import annotations

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._copies.chunks import Chunks
from attrfn._explain.explain import Explained
from attrfn._explain.panels import takes_any_rows
from attrfn._explain.tree import row_total
from attrfn._explain.uncertain import squares
from attrfn._torch.explanation import current
from attrfn._torch.typing import Leaves
from attrfn._torch.warn import warn

_MOST_GAP = 0.05
"""As a share of the change of the output."""


def warn_of_gap(
    name: str, n_steps: int, p: Explained, x0: Leaves, parts: Leaves, chunks: Chunks
) -> None:
    """Warn where the gap of an example is more than a twentieth of the change of the output.

    Args:
        name: The method.
        n_steps: Its number of steps.
        p: The explained function at x.
        x0: The other end of the path.
        parts: The attributions, which should sum to f(x) - f(x0).
        chunks: As for the steps.
    """
    with torch.no_grad():
        first, last = _ends(p, x0, chunks)
        found = row_total(parts, wide)
        # Numbers of Python take less time than the small operations that would compare tensors.
        ends = torch.stack([first.to(found.dtype), last.to(found.dtype), found]).tolist()
        if not any(abs(s - b + a) > _MOST_GAP * abs(b - a) for a, b, s in zip(*ends, strict=True)):
            return
        # Where parts cancel, the change says little about the size of the attributions.
        change = last - first
        norm = squares(tuple([t[None] for t in parts])).sqrt()
        size = torch.maximum(change.abs(), norm.to(change.dtype))
        gap = (found - change).abs()
        rounding = 64 * torch.finfo(change.dtype).eps * torch.maximum(first.abs(), last.abs())
        wrong = (gap > _MOST_GAP * size) & (gap > rounding)
        if bool(wrong.any()):
            share = float((gap / size)[wrong].max())
            warn(
                f"{name} with n_steps={n_steps} misses the change of the output by {share:.0%}: "
                "give tolerance= in units of the output, or raise n_steps "
                "(check_completeness=False does not look)"
            )


def _ends(p: Explained, x0: Leaves, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """The outputs at both ends of the path, in one pass where copies may be folded."""
    one = current()
    # A surrounding method may compare what the model returns for its copies, in their order.
    if not takes_any_rows(chunks) or (one is not None and one.outputs is not None):
        return p.values(x0), p.values(p.x)
    both = p.values(tuple([torch.cat(t) for t in zip(x0, p.x, strict=True)]), 2)
    return both[: p.batch], both[p.batch :]
