"""Occlusion: what the output loses when a sliding window is replaced."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from attrfn._copies.batch import is_integer
from attrfn._copies.chunks import Chunks
from attrfn._explain.baseline import prefix_entries
from attrfn._explain.forms import documented
from attrfn._explain.introspect import of_examples
from attrfn._explain.masked import masked
from attrfn._explain.options import BlackBox, ChunkOptions
from attrfn._explain.shared import marked
from attrfn._torch.precision import full_precision
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, Batching, ChunkSize, Leaves, ModelFn, Target, Tree


@of_examples
@documented(BlackBox, ChunkOptions, scores="shared")
def occlusion(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    window: Window,
    stride: Window = None,
    target: Target = None,
    baselines: Baselines = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Occlusion: what the output loses when a sliding window is replaced by the baseline.

        A_j = mean_{w covers j} (f(x) - f(x with window w := x0))

    Args:
        inputs: A tensor or pytree of tensors of any dtype with the examples in dimension 0; windows
            slide over one tensor at a time.
        window: The window's size in each dimension after the batch, such as (3, 8, 8) for images
            (B, 3, H, W); an int for the same size in all dimensions; or a pytree prefix of those.
        stride: The steps of the window in the same form; None is 1. The last window of a dimension
            is cut off at the border.

    Returns:
        Attributions like the inputs.

    Raises:
        TypeError: A window is neither an int nor a tuple of ints.
        ValueError: A window does not fit its input, or a stride leaves gaps between windows.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x.sum(1)
        >>> attrfn.occlusion(f, torch.tensor([[1.0, 2.0, 4.0]]), window=2)
        tensor([[3.0000, 4.5000, 6.0000]])

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    chunks = Chunks(chunk_size, batching, progress, "occlusion", backward=False)
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    grids = windows(window, stride, inputs, p.x)
    # Windows of all tensors are numbered in a row, so that chunks need not end with a tensor; a
    # number of another tensor covers nothing.
    ends = [sum(g.n for g in grids[: k + 1]) for k in range(len(grids))]
    spans = [(g, end - g.n, end) for g, end in zip(grids, ends, strict=True)]

    def masks(i: slice) -> Leaves:
        at = torch.arange(i.start, i.stop, device=p.device)
        return tuple([~g.cover(at - start)[:, None] for g, start, _ in spans])

    lost = (p.full - p.over(ends[-1], masks)).movedim(0, -1)
    found = [g.mean(lost[..., start:end]) for g, start, end in spans]
    shared = any(g.n < math.prod(g.sizes) for g in grids)
    return p.result(marked(found, "shared" if shared else "divided"))


Window: TypeAlias = Any


class Windows(NamedTuple):
    """The windows of one tensor, numbered in row-major order of their positions.

    Attributes:
        sizes: The tensor's sizes after the batch.
        covered: Per dimension whether the interval at each position covers each coordinate,
            (positions, size): a window is a product of intervals.
    """

    sizes: tuple[int, ...]
    covered: tuple[Tensor, ...]

    @property
    def n(self) -> int:
        """The number of windows, 0 for an empty tensor."""
        return math.prod([len(c) for c in self.covered]) if math.prod(self.sizes) else 0

    def cover(self, numbers: Tensor) -> Tensor:
        """Which elements the windows with these numbers cover, (S, *sizes); out of range none."""
        # The digits of a number, row-major, are the positions in each dimension. Their intervals
        # are multiplied as they broadcast: no window is ever written by index.
        inside = (numbers >= 0) & (numbers < self.n)
        mask = inside.reshape(-1, *[1] * len(self.sizes))
        windows_left = self.n
        for d, covered in enumerate(self.covered):
            windows_left = windows_left // max(len(covered), 1)
            interval = covered[numbers // max(windows_left, 1) % len(covered)]
            dims_left = len(self.sizes) - d - 1
            shape = (len(interval), *[1] * d, self.sizes[d], *[1] * dims_left)
            mask = mask & interval.reshape(shape)
        return mask

    @full_precision
    def mean(self, values: Tensor) -> Tensor:
        """Each element's mean over the windows that cover it: (..., n) -> (..., *sizes)."""
        # Windows are products of intervals, so that the sum over those that cover an element is one
        # matrix product for each dimension, and never a mask of all windows times all elements.
        lead = values.shape[:-1]
        if self.n == 0:
            return values.new_zeros((*lead, *self.sizes))
        total = values.reshape(*lead, *[len(c) for c in self.covered])
        for covered in self.covered:
            share = covered.to(values)
            total = torch.tensordot(total, share / share.sum(0), ([len(lead)], [0]))
        return total


def windows(window: Window, stride: Window, inputs: Tree, x: Leaves) -> list[Windows]:
    """The windows of each leaf of the inputs.

    Raises:
        TypeError: A window or stride is neither an int nor a tuple of ints.
        ValueError: It does not fit the input, or the stride leaves gaps.
    """
    sizes = [_per_leaf(window, inputs, x, "window"), _per_leaf(stride, inputs, x, "stride")]
    return [_windows(w, s, t) for w, s, t in zip(*sizes, x, strict=True)]


def _windows(window: Any, stride: Any, x: Tensor) -> Windows:
    sizes = tuple(x.shape[1:])
    if window is None:
        raise TypeError("window is None, expected the window's size in each dimension")
    window = _sizes(window, x, "window")
    stride = _sizes(1 if stride is None else stride, x, "stride")
    for size, w, step in zip(sizes, window, stride, strict=True):
        if w > size > 0:
            raise ValueError(
                f"window is {window} for inputs of shape {tuple(x.shape)}, expected at most the "
                f"input's sizes {sizes} after the batch"
            )
        if step > w and w < size:
            raise ValueError(
                f"stride is {stride} with window {window}, expected at most the window's size, "
                "because elements between the windows would have no attribution"
            )
    dims = zip(sizes, window, stride, strict=True)
    return Windows(sizes, tuple([_intervals(*dim, x.device) for dim in dims]))


def _intervals(size: int, window: int, stride: int, device: torch.device) -> Tensor:
    """Which coordinates the interval at each position covers, (positions, size)."""
    positions = 1 + max(0, math.ceil((size - window) / stride))
    start = torch.arange(positions, device=device)[:, None] * stride
    at = torch.arange(size, device=device)
    return (at >= start) & (at < start + window)


def _sizes(value: Any, x: Tensor, name: str) -> tuple[int, ...]:
    dims = x.ndim - 1
    value = (value,) * dims if is_integer(value) else value
    if not isinstance(value, (tuple, list)) or not all(map(is_integer, value)):
        raise TypeError(f"{name} is {say(value)}, expected an int or a tuple of {dims} ints")
    if len(value) != dims:
        raise ValueError(
            f"{name} is {say(tuple(value))} for inputs of shape {tuple(x.shape)}, expected {dims} "
            "int(s), one for each dimension after the batch"
        )
    if any(v < 1 for v in value):
        raise ValueError(f"{name} is {say(tuple(value))}, expected ints of at least 1")
    return tuple(map(int, value))


def _per_leaf(value: Any, inputs: Tree, x: Leaves, name: str) -> list[Any]:
    """A prefix tree of ints and tuples of ints with one entry per leaf of the inputs."""
    if value is None or _is_sizes(value):
        return [value] * len(x)
    try:
        return prefix_entries(value, inputs, is_leaf=_is_sizes)
    except (ValueError, TypeError):
        raise ValueError(
            f"{name} is a tree unlike the inputs, expected an int, a tuple of ints, "
            "or a prefix of the inputs' tree with those"
        ) from None


def _is_sizes(value: Any) -> bool:
    return is_integer(value) or (
        isinstance(value, (tuple, list)) and len(value) > 0 and all(map(is_integer, value))
    )
