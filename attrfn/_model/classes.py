"""Subclasses of modules: with an intervention around forward, and without fused paths."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import FUSED_LAYER, NESTED_TENSOR
from attrfn._torch.private_distributed import is_ddp, is_fsdp1

Forward = Callable[..., Any]
Intervention = Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]


# A subclass and not a patched forward, which torch.compile does not trace; isinstance stays true.
# The caches are bounded, because classes of the user that are made in a loop would never be freed.
@functools.lru_cache(maxsize=256)
def intervened(cls: Any) -> Any:
    """A subclass whose forward runs inside the intervention of its instance."""
    base = without_fast_path(cls)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self._attrfn_forward
        run = functools.partial(base.forward, self) if own is None else own
        intervention = self._attrfn_intervention
        return run(*args, **kwargs) if intervention is None else intervention(run, args, kwargs)

    return _subclass(base, forward)


@functools.lru_cache(maxsize=256)
def without_fast_path(cls: Any) -> Any:
    """A subclass of MultiheadAttention that does not take its fused path.

    Raises:
        ValueError: It is the class of FullyShardedDataParallel.
    """
    # The fused path runs only where query is key, so these become different objects. It hides the
    # parts from interventions. Where a mode is active, torch does not take it, and the mode should
    # see that this is self-attention.
    if issubclass(cls, nn.TransformerEncoderLayer):
        return _ordinary_if_padded(cls)
    if is_ddp(cls):
        return _without_messages(cls)
    if is_fsdp1(cls):
        raise ValueError(
            "the model holds a FullyShardedDataParallel, which keeps the weights of its modules in "
            "one flat tensor, where attrfn cannot find them: use fully_shard of "
            "torch.distributed.fsdp, or give the model before it is wrapped"
        )
    if not issubclass(cls, nn.MultiheadAttention):
        return cls

    def forward(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
        if not torch.overrides.has_torch_function((query,)):
            to_itself = key is query, value is query
            rows = self.batch_first and query.dim() == 3 and not query.is_nested
            # A compiler lays values out by itself, and this one would have a graph for each batch.
            if all(to_itself) and rows and not is_compiling():
                query = _sequence_first(query)
            key = query.view_as(query) if to_itself[0] else key
            value = query.view_as(query) if to_itself[1] else value
        return cls.forward(self, query, key, value, *args, **kw)

    return _subclass(cls, forward)


def _sequence_first(x: Tensor) -> Tensor:
    """The same values (B, L, E), in memory as attention transposes them, (L, B, E)."""
    # Elsewhere a projection is a matrix product for each of the L places. The copy wins 1.2:
    # activations of the transformer, batch 4, in benchmarks/many_layers_cost_one_pass.py.
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _ordinary_if_padded(cls: Any) -> Any:
    """A subclass of an encoder layer that takes its fused path for batches without padding only."""
    # At padded places the fused path gives other numbers, which would be another function.

    def forward(self: Any, src: Tensor, *args: Any, **kw: Any) -> Any:
        padding = args[1] if len(args) > 1 else kw.get("src_key_padding_mask")
        fused = getattr(self, FUSED_LAYER, 0)
        if padding is None or not fused:
            return cls.forward(self, src, *args, **kw)
        setattr(self, FUSED_LAYER, 0)
        try:
            return cls.forward(self, src, *args, **kw)
        finally:
            setattr(self, FUSED_LAYER, fused)

    return _subclass(cls, forward)


def _without_messages(cls: Any) -> Any:
    """A subclass of DistributedDataParallel that runs the module in it, and sends nothing."""
    # It averages gradients of parameters, of which there are none, and what it notes for that is
    # shared with the user's wrapper.

    def forward(self: Any, *args: Any, **kw: Any) -> Any:
        if self.mixed_precision is None:
            return self.module(*args, **kw)
        with self.no_sync():
            return cls.forward(self, *args, **kw)

    return _subclass(cls, forward)


def _subclass(cls: type[nn.Module], forward: Forward) -> type[nn.Module]:
    body = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return types.new_class(cls.__name__, (cls,), exec_body=lambda ns: ns.update(body))


def no_fast_path(cls: type[nn.Module], state: dict[str, Any], fused: bool) -> None:
    """Turn off the fused paths of encoders: they skip submodules, and change padded rows."""
    # Where nothing is differentiated they stay, which wins 1.1: feature_ablation of the
    # transformer, batch 16, in benchmarks/special_cases_earn_their_place.py.
    if issubclass(cls, nn.TransformerEncoderLayer) and not fused:
        state[FUSED_LAYER] = 0
    if issubclass(cls, nn.TransformerEncoder):
        state |= dict.fromkeys(NESTED_TENSOR, False)
