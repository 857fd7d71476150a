"""Decompositions of operations into simpler ones, which have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attrfn._torch.decomposed import attention as attention
from attrfn._torch.decomposed import glu as glu
from attrfn._torch.decomposed import visible_to_modes as visible_to_modes


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Self-attention without masks in few calls; in all other cases torch's own code.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017.
    """
    # torch's code makes many small calls, each of which the mode handles in Python. The common case
    # of an encoder without masks needs few.
    masks = (key_padding_mask, attn_mask, bias_k, bias_v, options.get("static_k"))
    if (
        not (query is key is value and query.dim() == 3)
        or any(t is not None for t in (*masks, options.get("static_v")))
        or (add_zero_attn or need_weights or (training and dropout_p > 0.0))
        or (options.get("use_separate_proj_weight") or options.get("is_causal"))
        or in_proj_weight is None
    ):
        return _torch_attention(  # type: ignore[no-any-return]
            *(query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias),
            *(bias_k, bias_v, add_zero_attn, dropout_p, out_proj_weight, out_proj_bias),
            *(training, key_padding_mask, need_weights, attn_mask),
            **options,
        )
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias
    return _self_attention(query, num_heads, *weights), None


def _self_attention(
    x: Tensor, n: int, weight: Tensor, bias: Tensor | None, last: Tensor, last_bias: Tensor | None
) -> Tensor:
    # Few calls win 1.1: deep_lift of the transformer, batch 1, in
    # benchmarks/special_cases_earn_their_place.py.
    length, batch, width = x.shape
    rows = F.linear(x, weight, bias)
    heads = rows.view(length, batch, 3, n, width // n).permute(2, 1, 3, 0, 4)
    q, k, v = heads.unbind(0)
    out = F.scaled_dot_product_attention(q, k, v)
    out = out.permute(2, 0, 1, 3).reshape(length, batch, width)
    return F.linear(out, last, last_bias)


_torch_attention = visible_to_modes(F.multi_head_attention_forward)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Layer norm over the channels of each group and all positions."""
    groups = input.reshape(input.shape[0], num_groups, -1)
    out = F.layer_norm(groups, groups.shape[2:], eps=eps).reshape(input.shape)
    out = _per_channel(out, weight, bias)
    # The fused kernel keeps the channels-last order of an input: a view may need it.
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.ndim)
    if order is None or input.is_contiguous() or not input.is_contiguous(memory_format=order):
        return out
    return out.contiguous(memory_format=order)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool | None = None,
) -> Tensor:
    """Layer norm over all positions of each channel."""
    if cudnn_enabled is not None:  # torch.instance_norm and aten take weight and bias first
        weight, bias, running_mean, running_var = running_mean, running_var, weight, bias
    input = input.contiguous()  # and so is the result, as that of the fused kernel
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return group_norm(input, input.shape[1], weight, bias, eps)


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def softmin(input: Tensor, dim: int | None = None, *_: Any, **options: Any) -> Tensor:
    """``softmax(-x)``."""
    return F.softmax(-input, dim, dtype=options.get("dtype"))


def addcdiv(input: Tensor, a: Tensor, b: Tensor, *, value: float = 1.0) -> Tensor:
    """``x + value * a / b``."""
    return input + value * (a / b)


def maximum_of(input: Tensor, dim: Any = None, keepdim: bool = False, **other: Any) -> Any:
    """``max`` of all, along a dimension, or of two tensors."""
    return _extreme(torch.amax, torch.maximum, input, dim, keepdim, **other)


def minimum_of(input: Tensor, dim: Any = None, keepdim: bool = False, **other: Any) -> Any:
    """``min`` of all, along a dimension, or of two tensors."""
    return _extreme(torch.amin, torch.minimum, input, dim, keepdim, **other)


def _extreme(
    along: Callable[..., Tensor],
    of_two: Callable[..., Tensor],
    input: Tensor,
    dim: Any,
    keepdim: bool,
    other: Tensor | None = None,
) -> Any:
    other = dim if isinstance(dim, Tensor) else other
    if other is not None:
        return of_two(input, other)
    if dim is None:
        return along(input.reshape(-1), 0)
    values = along(input, dim, keepdim)
    return values, values


def one_by_one(along: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reduction along several dimensions, one after the other."""

    def reduce(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        dims = sorted({d % input.ndim for d in dims or range(input.ndim)}, reverse=True)
        for d in dims:
            input = along(input, d, True)
        return (
            input
            if keepdim
            else input.reshape([n for d, n in enumerate(input.shape) if d not in dims])
        )

    return reduce


def moments(root: bool, mean: bool) -> Callable[..., Any]:
    """``var``, ``std``, ``var_mean`` and ``std_mean``."""

    def of(
        input: Tensor,
        dim: Any = None,
        unbiased: bool | None = None,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Any:
        if isinstance(dim, bool):  # var(unbiased)
            dim, unbiased = None, dim
        dims = _dims(input, dim)
        n = torch.Size([input.shape[d] for d in dims]).numel()
        less = correction if correction is not None else 0 if unbiased is False else 1
        average = input.mean(dims, keepdim=True)
        centred = input - average
        centred = centred.abs() if centred.is_complex() else centred
        found = centred.square().sum(dims, keepdim=keepdim) / max(n - less, 0)
        found = found.sqrt() if root else found
        return (found, input.mean(dims, keepdim=keepdim)) if mean else found

    return of


def vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """``sum(|x|^p)^(1/p)``; the maximum of |x| for p = inf."""
    x = x if dtype is None else x.to(dtype)
    x = x.abs() if x.is_complex() else x
    dims = _dims(x, dim)
    if ord == float("inf"):
        return torch.amax(x.abs(), dims, keepdim)
    if ord == -float("inf"):
        return torch.amin(x.abs(), dims, keepdim)
    if ord == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    if ord == 2:
        return x.square().sum(dims, keepdim=keepdim).sqrt()
    return x.abs().pow(ord).sum(dims, keepdim=keepdim).pow(1 / ord)


def norm(
    input: Tensor,
    p: Any = "fro",
    dim: Any = None,
    keepdim: bool = False,
    *_: Any,
    dtype: Any = None,
) -> Tensor:
    """``torch.norm`` and ``torch.linalg.norm`` where they are norms of vectors."""
    if p in (None, "fro"):
        p = 2
    elif isinstance(p, str) or (dim is not None and not isinstance(dim, int) and len(dim) > 1):
        raise NotImplementedError(f"a matrix norm of order {p!r} has no rule")
    return vector_norm(input, p, dim, keepdim, dtype=dtype)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """``x1 . x2 / (max(|x1|, eps) max(|x2|, eps))``."""
    a, b = (vector_norm(x, 2, dim, True).clamp(min=eps) for x in (x1, x2))
    return ((x1 / a) * (x2 / b)).sum(dim)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """``|x1 - x2 + eps|_p``."""
    return vector_norm(x1 - x2 + eps, p, -1, keepdim)


def _dims(x: Tensor, dim: Any) -> tuple[int, ...]:
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(x.ndim))
    return tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
