"""Linear operations with weights: their input, weights and bias; batch norm folded into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.nn.grad as gradients
from torch import Tensor

from attrfn._rules.call import Call, Place, at, tensors
from attrfn._torch.compiling import is_compiling

CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc"
DENSE = (
    "linear matmul __matmul__ __rmatmul__ linalg_matmul mm bmm mv dot inner vdot tensordot einsum "
    "addmm addmv addbmm baddbmm linalg_vecdot"
)
ADDENDS: dict[str, tuple[Place, Place]] = {
    **dict.fromkeys(("linear", *CONVOLUTIONS.split()), ((2, None), ("bias", None))),
    **dict.fromkeys(("addmm", "addmv", "addbmm", "baddbmm"), ((0, None), ("input", None))),
    "grouped_mm": ((3, None), ("bias", None)),
}
"""Where an operation may have its bias: by position and by name."""

_OF_INPUT: dict[str, Any] = {
    name: getattr(gradients, f"{name}_input") for name in ("conv1d", "conv2d", "conv3d")
}
"""The gradients of convolutions by their inputs."""

_SUMS = ("addmm", "addmv", "addbmm", "baddbmm")


class Weighted(NamedTuple):
    """A linear operation as a function of its input, its weights and its bias.

    Attributes:
        call: The call.
        input: Where its input is among the arguments.
        weight: Where its weights are.
        bias: Where its bias is, or None.
        rectified: Whether no element of the input is negative, and zeros pass nothing back.
    """

    call: Call
    input: Place
    weight: Place
    bias: Place | None
    rectified: bool = False

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """The operation's value."""
        places, values = [self.input, self.weight], [x, w]
        if self.bias is not None:
            if b is None and self.call.name in _SUMS:  # the others take None for a bias
                b = torch.zeros_like(self.tensor_at(self.bias), dtype=w.dtype)
            places.append(self.bias)
            values.append(b)  # type: ignore[arg-type]
        out: Tensor = self.call._replace(places=tuple(places))(*values)
        return out

    def transposed(self, shape: torch.Size) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The pullback ``(w, c) -> J^T c`` to an input of some shape, if it has a closed form."""
        name, call = self.call.name, self.call
        if self.input not in ((0, None), ("input", None)):
            return None
        dims = self.tensor_at(self.weight).ndim
        if name == "linear" and dims == 2:
            return lambda w, c: c.to(w.dtype) @ w
        padding = call.argument(4, "padding", 0)
        if name not in _OF_INPUT or len(shape) != dims or isinstance(padding, str):
            return None
        stride, dilation = call.argument(3, "stride", 1), call.argument(5, "dilation", 1)
        options = stride, padding, dilation, call.argument(6, "groups", 1)
        return lambda w, c: _OF_INPUT[name](shape, w, c.to(w.dtype), *options)

    def tensor_at(self, place: Place) -> Tensor:
        """The tensor at a place."""
        return at(self.call.args, self.call.kwargs, place)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The input, the weights and the bias."""
        bias = None if self.bias is None else self.tensor_at(self.bias)
        return self.tensor_at(self.input), as_numbers(self.tensor_at(self.weight)), bias

    def with_bias(self) -> Weighted:
        """The same with a place for a bias, of ``linear`` and convolutions."""
        place: Place = (2, None) if len(self.call.args) > 2 else ("bias", None)
        return self._replace(bias=place)


class RealView(NamedTuple):
    """A linear operation of complex numbers as one of their real and imaginary parts.

    With parts in a last dimension of the input and the bias, and in two first dimensions of the
    weights, (a, b) and ((c, -d), (d, c)), it is a linear operation with real weights, for which the
    rules of real numbers hold.

    Attributes:
        of: The operation.
        rectified: See :class:`Weighted`; of parts nothing is known.
    """

    of: Weighted
    rectified: bool = False

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """The operation's value, with the parts in the last dimension."""
        parts = []
        for k in (0, 1):
            bias = None if b is None else b[..., k]
            re, im = x[..., 0], x[..., 1]
            parts.append(self.of(re, w[k, 0], bias) + self.of(im, w[k, 1], None))
        return torch.stack(parts, -1)

    @staticmethod
    def weights(w: Tensor) -> Tensor:
        """Complex weights as real ones."""
        return torch.stack([torch.stack([w.real, -w.imag]), torch.stack([w.imag, w.real])])


def as_numbers(w: Tensor) -> Tensor:
    """Weights of a quantised class, which has few operations, as ordinary numbers."""
    if is_compiling() or type(w).dequantize is Tensor.dequantize:
        return w
    return w.dequantize()


def parts(t: Tensor) -> Tensor:
    """The real and imaginary parts of complex numbers in a new last dimension."""
    return torch.view_as_real(t.resolve_conj())


def weighted(call: Call) -> Weighted | None:
    """A linear operation by its input, weights and bias; None if it has no weights."""
    # Which factor is the input is known from the marks only: x @ w and w @ x are one function. So
    # two factors are required, of which one depends on the inputs.
    found = [
        place
        for place, t in tensors(call.args, call.kwargs)
        if t.is_floating_point() or t.is_complex()  # others say where groups of rows end
    ]
    addends = [place for place in found if place in ADDENDS.get(call.name, ())]
    factors = [place for place in found if place not in addends]
    if len(factors) != 2 or len(call.places) != 1 or call.places[0] not in factors:
        return None
    input = call.places[0]
    weight = factors[1] if factors[0] == input else factors[0]
    if at(call.args, call.kwargs, weight).layout != torch.strided:
        return None  # a sparse matrix has no parts by sign
    return _unscaled(Weighted(call, input, weight, addends[0] if addends else None))


def _unscaled(op: Weighted) -> Weighted:
    """``beta b + alpha x w`` of ``addmm`` and the like, with beta and alpha moved into b and w."""
    beta, alpha = (op.call.kwargs.get(name, 1) for name in ("beta", "alpha"))
    if op.call.name not in _SUMS or op.bias is None or (beta == 1 and alpha == 1):
        return op
    places = (op.weight, op.bias)
    scaled = op.tensor_at(op.weight) * alpha, op.tensor_at(op.bias) * beta
    args, kwargs = op.call._replace(places=places).filled(scaled)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("beta", "alpha")}
    return op._replace(call=op.call._replace(args=tuple(args), kwargs=kwargs))


def folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weights and bias of a linear operation and the batch norm after it, as one operation."""
    scale = torch.rsqrt(var + eps)
    scale = scale if gain is None else gain * scale
    offset = -mean * scale if shift is None else shift - mean * scale
    shape = [1, -1] if transposed else [-1]
    w = weight * scale.reshape(shape + [1] * (weight.ndim - len(shape)))
    return w, offset if bias is None else bias * scale + offset


def statistics(norm: Call) -> tuple[Any, ...]:
    """Mean, variance, gain, shift and epsilon of a call of batch norm."""
    names = ("running_mean", "running_var", "weight", "bias")
    a, b, c, d = (norm.argument(i + 1, name) for i, name in enumerate(names))
    eps = norm.argument(7, "eps", 1e-5)
    if norm.func is F.batch_norm:
        return a, b, c, d, eps
    return c, d, a, b, eps  # torch.batch_norm and aten take weight and bias first
