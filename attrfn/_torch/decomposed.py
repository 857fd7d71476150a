"""Fused operations as compositions of simple ones, for second derivatives."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._torch import pytree
from attrfn._torch.compiling import is_compiling
from attrfn._torch.layouts import NORMS, flat_norm, linear_of_rows, rules_around
from attrfn._torch.private import ASKS_FOR_MODES, is_mapped, modes
from attrfn._torch.recurrent import OF_TORCH


class Decomposed(TorchFunctionMode):
    """While active, attention, layer norm and glu run as compositions (in this thread only).

    Under vmap recurrent layers do, too.
    """

    # Fused attention has no second derivative on the CPU. glu has no third
    # derivative, and torch's third derivative of layer norm is wrong without an error
    # (tests/test_canaries.py). torch.nn.attention.sdpa_kernel would decompose attention, too, but
    # it switches the whole process.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func is F.layer_norm:
            return layer_norm(*args, **kwargs)
        if func is F.glu:
            return glu(*args, **kwargs)
        if (
            func in OF_TORCH
            and not rules_around()
            and any(map(is_mapped, pytree.tree_leaves(args)))
        ):
            return OF_TORCH[func](*args, **kwargs)
        if func in NORMS:
            return flat_norm(func, args, kwargs)
        if func is F.linear and is_compiling():
            return linear_of_rows(*args, **kwargs)
        # torch.compile cannot enter the method, because it calls super().
        if func is Tensor.unflatten:
            return torch.unflatten(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            # torch suspends a mode while it handles a call; the operations inside need it.
            with self:
                return _visible_multi_head_attention(*args, **kwargs)
        return func(*args, **kwargs)


def is_decomposing() -> bool:
    """Whether the operations of this thread run as compositions, for second derivatives."""
    return any(isinstance(mode, Decomposed) for mode in modes())


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(Q K^T * scale + mask) V``; a row whose keys are all masked gives zero.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        attn_mask = causal if attn_mask is None else attn_mask
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        closed = ~attn_mask if attn_mask.dtype == torch.bool else torch.isneginf(attn_mask)
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(closed, -torch.inf)
        else:
            scores = scores + attn_mask
        # A softmax over -inf alone is nan, and so is its gradient: such rows are 0 before it, too.
        empty = closed.all(-1, keepdim=True)
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    return _ordered_like(query, weights @ value, key, value, attn_mask, dropout_p)


def _ordered_like(
    query: Tensor, out: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float
) -> Tensor:
    """Attention's result in the memory layout of torch's: a view of it may need that."""
    # The fused kernel keeps the order of the query's dimensions; what it does not take is
    # contiguous. These are its conditions.
    if (
        query.is_contiguous()
        or query.ndim != 4
        or dropout_p > 0.0
        or (mask is not None and mask.requires_grad)
        or any(t.stride(-1) != 1 for t in (query, key, value))
    ):
        return out
    strides = torch.empty_like(query, device="meta").stride()
    order: list[int] = []  # from the largest stride; torch.compile cannot sort by symbolic sizes
    for d in range(4):
        order.insert(len([o for o in order if strides[o] >= strides[d]]), d)
    back = [order.index(d) for d in range(4)]
    return out.permute(order).contiguous().permute(back)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimensions.

    Reference:
        Ba, Kiros and Hinton, Layer Normalization, 2016.
    """
    dims = tuple(range(-len(normalized_shape), 0))
    # The result is contiguous, as the fused kernel's is: a view of it may need that.
    x = input.contiguous()
    # The fused kernel takes the statistics of half precision in float32.
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    centred = x - x.mean(dims, keepdim=True)
    out = (centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)).to(input.dtype)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """``a * sigmoid(b)`` of the two halves.

    Reference:
        Dauphin, Fan, Auli and Grangier, Language Modeling with Gated Convolutional Networks, 2017.
    """
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def visible_to_modes(func: Any) -> Any:
    """A function of torch.nn.functional whose operations are visible to a mode.

    torch hands such a function to a mode as one call, and a mode does not see inside it.
    """
    # The same code runs here with other globals: has_torch_function says no, so the function does
    # not hand itself over, and the mode sees each operation that it calls.
    hidden = {name: _not_overridden for name in vars(F) if name.startswith(ASKS_FOR_MODES)}
    return types.FunctionType(
        func.__code__, {**vars(F), **hidden}, func.__name__, func.__defaults__, func.__closure__
    )


def _not_overridden(*args: Any, **kwargs: Any) -> bool:
    return False


_visible_multi_head_attention = visible_to_modes(F.multi_head_attention_forward)
