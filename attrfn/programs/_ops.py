"""Operations of exported graphs in the forms that transforms, rules and second derivatives know."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from attrfn._torch.private import OpOverload, overload_name


def _size(x: Tensor, dim: int) -> int:
    return x.shape[dim]  # torch.func.vmap has no rule for the operation


def _count(x: Tensor) -> int:
    return x.numel()


def _stride(x: Tensor, dim: int) -> int:
    return x.stride(dim)


def _same_kind(
    x: Tensor,
    size: Any = None,
    stride: Any = None,
    dtype: Any = None,
    *,
    device: Any = None,
    **_: Any,
) -> None:
    """What the model relied on when it was exported: ``x.to(dtype)`` may have been left out."""
    for what, expected in (("dtype", dtype), ("device", device)):
        came = getattr(x, what)
        same = came.type == expected.type if what == "device" and expected else came == expected
        if expected is not None and not same:
            raise ValueError(
                f"the program was exported for a tensor of {what} {expected} where it has {came} "
                "now: give inputs of the types and devices with which it was exported"
            )


def _scalar(condition: Any, message: str = "") -> None:
    if not condition:
        raise ValueError(
            f"the program was exported for other sizes ({message[:150]}): give the sizes with "
            "which it was exported, or export it with these"
        )


def _nothing(*_: Any, **__: Any) -> None:
    """For ranges of sizes, which the signature of the program compares."""


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    n = len(stride)
    if transposed:
        up = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
        return up(x, weight, bias, stride, padding, output_padding, groups, dilation)
    across: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    return across(x, weight, bias, stride, padding, dilation, groups)


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float,
    eps: float, *_: Any,
) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def _fixed_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps), None, None


def _layer_norm(
    x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    return F.layer_norm(x, shape, weight, bias, eps)


def _layer_norm_of_three(x: Tensor, *args: Any) -> tuple[Tensor, None, None]:
    return _layer_norm(x, *args), None, None


def _group_norm_of_three(
    x: Tensor, weight: Any, bias: Any, n: int, c: int, hxw: int, group: int, eps: float
) -> tuple[Tensor, None, None]:
    return F.group_norm(x, group, weight, bias, eps), None, None


def _softmax(x: Tensor, dim: int, to_float: bool) -> Tensor:
    return torch.softmax(x, dim, dtype=torch.float32 if to_float else None)


def _log_softmax(x: Tensor, dim: int, to_float: bool) -> Tensor:
    return torch.log_softmax(x, dim, dtype=torch.float32 if to_float else None)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, *_: Any,
    attn_mask: Any = None, scale: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    """The fused kernels, which have no second derivative and no forward mode."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, causal, scale=scale)
    return out, *[None] * 8


def _biased_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Any, _: Any, dropout: float = 0.0, causal: bool = False,
    *, scale: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    return _attention(q, k, v, dropout, causal, attn_mask=bias, scale=scale)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    return F.glu(x, dim)


def _copy(to: Tensor, value: Tensor) -> Tensor:
    # An operation in place has written it already, and a second write would be one too many for
    # a backward pass.
    return to if value is to else to.copy_(value)


PLAIN: dict[str, Callable[..., Any]] = {
    "sym_size.int": _size,
    "sym_numel.default": _count,
    "sym_stride.int": _stride,
    "_assert_tensor_metadata.default": _same_kind,
    "_assert_scalar.default": _scalar,
    "sym_constrain_range.default": _nothing,
    "sym_constrain_range_for_size.default": _nothing,
    "scaled_dot_product_attention.default": F.scaled_dot_product_attention,
    "linear.default": F.linear,
    "glu.default": _glu,
    "layer_norm.default": _layer_norm,
    "batch_norm.default": _batch_norm,
    "copy_.default": _copy,
    "lstm.input": torch.lstm,
    "gru.input": torch.gru,
    "rnn_tanh.input": torch.rnn_tanh,
    "rnn_relu.input": torch.rnn_relu,
    "lstm_cell.default": torch.lstm_cell,
    "gru_cell.default": torch.gru_cell,
    "rnn_tanh_cell.default": torch.rnn_tanh_cell,
    "rnn_relu_cell.default": torch.rnn_relu_cell,
    # of decomposed programs
    "convolution.default": _convolution,
    "native_layer_norm.default": _layer_norm_of_three,
    "native_group_norm.default": _group_norm_of_three,
    "_native_batch_norm_legit_no_training.default": _fixed_batch_norm,
    "_softmax.default": _softmax,
    "_log_softmax.default": _log_softmax,
    "_adaptive_avg_pool2d.default": F.adaptive_avg_pool2d,
    "_adaptive_avg_pool3d.default": F.adaptive_avg_pool3d,
    "_unsafe_view.default": torch.reshape,
    "_scaled_dot_product_flash_attention_for_cpu.default": _attention,
    "_scaled_dot_product_flash_attention.default": _attention,
    "_scaled_dot_product_efficient_attention.default": _biased_attention,
}
"""By the name of an operation of aten what runs in its place, with the same values."""

_TRAINED = {
    "batch_norm": 5,
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "_native_batch_norm_legit_functional": 5,
    "_batch_norm_with_update": None,
    "_batch_norm_with_update_functional": None,
}
"""Batch norms, and where they say that they take the statistics of the batch; None: always."""

_DRAWING = {"dropout": 2, "native_dropout": 2, "feature_dropout": 2, "alpha_dropout": 2}


def name_of(target: Any) -> str:
    """The name of an operation of aten; empty for other functions."""
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return ""
    return f"{target.overloadpacket.__name__}.{overload_name(target)}"


def plain(target: Any) -> Callable[..., Any]:
    """What runs for a function of an exported graph."""
    found: Callable[..., Any] = PLAIN.get(name_of(target), target)
    return found


def mixes(node: Any) -> bool:
    """Whether a node is a batch norm that takes the statistics of the batch."""
    return _says_so(node, _TRAINED)


def draws(node: Any) -> bool:
    """Whether a node is a dropout that is on."""
    return _says_so(node, _DRAWING)


def _says_so(node: Any, table: dict[str, Any]) -> bool:
    name, _, overload = name_of(node.target).partition(".")
    if name.removesuffix("_") not in table or overload == "no_stats":
        return False
    place = table[name.removesuffix("_")]
    return place is None or (len(node.args) > place and node.args[place] is True)


def plain_graph(module: fx.GraphModule) -> fx.GraphModule:
    """The graph that an operation runs, such as a branch of a condition, in the same forms."""
    new = copy.deepcopy(module)
    for inner in new.modules():
        if isinstance(inner, fx.GraphModule):
            for node in inner.graph.nodes:
                if node.op == "call_function":
                    node.target = plain(node.target)
            inner.recompile()
    return new


def written_input(node: fx.Node) -> Any:
    """What a node writes into an input of the program, which stays as it was; else None."""
    writes = name_of(node.target) == "copy_.default"
    given: Any = node.args[0] if writes else None
    return node.args[1] if isinstance(given, fx.Node) and given.op == "placeholder" else None
