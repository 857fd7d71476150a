"""Prefixes that texts share, computed once. All that attrfn knows of key-value caches is here.

A cache is what a model returns as ``past_key_values``, an object with a list of ``layers``. A layer
of the class DynamicLayer has the tensors ``keys`` and ``values`` (1, heads, T, D) and replaces them
when it grows; it can be cut. Of another layer it is only known that the cache has
``batch_repeat_interleave``.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._torch.warn import warn
from attrfn.text._adapter import Adapter
from attrfn.text._kinds import Causal
from attrfn.text._rows import Rows

# Cached and uncached logits differ by rounding. A cache that is wrong differs by percents: 13 % is
# the worst that was seen, 0.2 % the least.
_TOLERANCE = 1e-4


class Prefix(NamedTuple):
    """The state of a model after some tokens.

    Attributes:
        cache: Of one row.
        size: The number of tokens.
        cuts: Whether it can be cut.
    """

    cache: Any
    size: int
    cuts: bool

    def common(self, shared: Tensor) -> Tensor:
        """How many tokens it saves rows that share ``shared`` tokens with it, (R,)."""
        if self.cuts:
            return shared.clamp(max=self.size)
        return (shared >= self.size) * shared.new_tensor(self.size)

    def past(self, size: int, rows: int) -> dict[str, Any]:
        """Arguments that let a model go on after the first ``size`` tokens, for some rows."""
        if not self.cuts:
            cache = copy.deepcopy(self.cache)  # models write into it
            cache.batch_repeat_interleave(rows)
        else:
            cache = copy.copy(self.cache)
            cache.layers = [_cut(layer, size, rows) for layer in self.cache.layers]
        return {"past_key_values": cache, "use_cache": True}


def _cut(layer: Any, size: int, rows: int) -> Any:
    new = copy.copy(layer)
    new.keys = layer.keys[:, :, :size].expand(rows, -1, -1, -1)
    new.values = layer.values[:, :, :size].expand(rows, -1, -1, -1)
    return new


def _cuts(layer: Any, size: int) -> bool:
    if type(layer).__name__ != "DynamicLayer":
        return False
    pair = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return all(isinstance(t, Tensor) and t.ndim == 4 and t.shape[2] == size for t in pair)


def prefix_of(adapter: Adapter, ids: Tensor, before: Prefix | None = None) -> Prefix | None:
    """The state of a model after the tokens (T,), or None where it returns none.

    Args:
        adapter: The model.
        ids: The tokens.
        before: The state after the first of them.
    """
    if not isinstance(adapter, Causal) or not {"past_key_values", "use_cache"} <= adapter.names:
        return None
    skip = 0 if before is None else before.size
    more: dict[str, Any] = {"use_cache": True} if before is None else before.past(skip, 1)
    if adapter.keeps:
        more["logits_to_keep"] = 1
    cache = getattr(adapter.call({"input_ids": ids[None, skip:]}, more), "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list) or not layers:
        return None
    return Prefix(cache, len(ids), all(_cuts(layer, len(ids)) for layer in layers))


def agrees(adapter: Causal, prefix: Prefix, rows: Rows, value: Any, skip: int) -> bool:
    """Whether rows have the same logits with the prefix as without; warns if not."""
    try:
        with torch.no_grad():
            cached = adapter.of_rows(rows, value, {}, prefix.past(skip, len(rows.ids)), skip)
            plain = adapter.of_rows(rows, value, {})
    except Exception as error:  # whatever a cache of another version does
        warn(
            f"the model's cache cannot share a prefix ({type(error).__name__}), so that "
            "text.game computes prefixes again in each row: prefix=False says so"
        )
        return False
    if bool(plain.isnan().any()):  # no text at all for some token; told where the row is asked for
        return False
    tolerance = max(_TOLERANCE, 8 * torch.finfo(plain.dtype).eps)
    gap, scale = (cached - plain).abs().max(), plain.abs().max()
    if bool(gap <= tolerance * scale):
        return True
    warn(
        f"logits with a shared prefix differ by {float(gap):.3g} of {float(scale):.3g} from those "
        "without, so that text.game computes prefixes again in each row: prefix=False says so"
    )
    return False
