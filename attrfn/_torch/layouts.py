"""Gradients of batch norms whose memory layout torch's kernel on the CPU mistakes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import modes

# One image of shape (1, C, H, W) whose strides say (H, W, C), as a transposed sequence of tokens
# has them, counts as contiguous in channels-last order, whatever the stride of its first dimension.
# The kernel for the backward pass of batch norm then reads the gradient in the order of the input,
# without an error (tests/test_canaries.py). Instance norm is the batch norm of one image that has
# the channels of all rows. Tensors of three dimensions have one order only.


def flat_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a batch or instance norm, with all positions in one dimension."""
    name = "input" if "input" in kwargs else "x"
    x = args[0] if args else kwargs[name]
    # Batch norm keeps the channels-last order of an input, and its kernel for that is right.
    if x.ndim < 4 or not (func in INSTANCE_NORMS or x.is_contiguous()):
        return func(*args, **kwargs)
    # A mode with rules for norms gets the call as the model makes it, and comes back here.
    if rules_around():
        return func(*args, **kwargs)
    flat = x.flatten(2)
    out = func(flat, *args[1:], **kwargs) if args else func(**{**kwargs, name: flat})
    return out.view(x.shape) if isinstance(out, Tensor) else (out[0].view(x.shape), *out[1:])


def linear_of_rows(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of (B, T, F) as that of (B * T, F), which is what torch runs."""
    # In compiled code torch's own way makes B a constant inside of torch.func.vjp
    # (tests/test_canaries.py), so that another size of the batch would be another graph.
    plain = weight.ndim == 2 and bias is not None and bias.ndim < 2  # torch takes others, too
    if input.ndim != 3 or not plain or rules_around():
        return F.linear(input, weight, bias)
    batch, length, features = input.shape
    rows = F.linear(input.reshape(batch * length, features), weight, bias)
    return rows.reshape(batch, length, weight.shape[0])


_ATEN = torch.ops.aten
INSTANCE_NORMS = frozenset({F.instance_norm, torch.instance_norm, _ATEN.instance_norm.default})
NORMS = INSTANCE_NORMS | {
    F.batch_norm,
    torch.batch_norm,
    torch.native_batch_norm,
    _ATEN.batch_norm.default,
    _ATEN.native_batch_norm.default,
}


class HasRules(TorchFunctionMode):
    """A mode that wants to see norms and recurrent layers whole.

    It must itself run in one of the modes that rewrite them.
    """


def rules_around() -> bool:
    """Whether such a mode surrounds the one that handles a call."""
    return any(isinstance(mode, HasRules) for mode in modes())


class FlatNorms(TorchFunctionMode):
    """While active, batch and instance norms see all positions in one dimension."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in NORMS:
            return flat_norm(func, args, kwargs or {})
        if func is F.linear and is_compiling():
            return linear_of_rows(*args, **(kwargs or {}))
        if func is Tensor.unflatten:  # it calls super(), which torch.compile cannot trace
            func = torch.unflatten
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def unmistaken(values: Tensor, ends: tuple[Tensor, ...], keep: bool = False) -> Iterator[None]:
    """While active, gradients arrive at the batch norms below ``values`` in plain order.

    Args:
        values: What is differentiated.
        ends: Where the gradients end.
        keep: Leave it so, for a graph that is differentiated again.
    """
    # The graph also shows what scripted modules and C++ run, which no mode sees.
    handles = [node.register_prehook(_plain) for node in _batch_norms(values, ends)]
    try:
        yield
    finally:
        if not keep:
            for handle in handles:
                handle.remove()


def _batch_norms(values: Tensor, ends: tuple[Tensor, ...]) -> list[Node]:
    found: list[Node] = []
    stack = [] if values.grad_fn is None else [values.grad_fn]
    seen: set[Node | None] = {*stack, *[t.grad_fn for t in ends]}
    while stack:
        node = stack.pop()
        if "BatchNorm" in node.name():
            found.append(node)
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                stack.append(before)
    return found


def _plain(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    g = grads[0]
    if g is None or g.ndim < 4 or g.shape[0] != 1 or g.is_contiguous():
        return grads
    return (g.contiguous(), *grads[1:])
