"""Values that came from marked tensors, and were only carried between processes on the way."""

from __future__ import annotations

from torch import Tensor

from attrfn._rules.tags import Tags
from attrfn._torch.ranks import carried


def moved_here(t: Tensor, marked: Tags, raw: Tags) -> bool:
    """Whether an unmarked tensor holds the values of a marked one, as the graph tells.

    Args:
        t: A tensor with a graph.
        marked: The marks; compiled code has none by which a tensor is found.
        raw: The marks of inputs that were only moved, to which this one is added.
    """
    if marked.compiling:
        return False
    before = carried(t, (m for m, _ in marked.known.values()))
    if before is not None and raw.get(before):
        raw.put(t)
    return before is not None
