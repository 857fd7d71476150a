"""Ablation: what the output loses when a feature is replaced, one feature or window at a time."""

from __future__ import annotations

import torch

from attrfn._core.chunks import Chunks
from attrfn._core.features import features
from attrfn._core.masked import masked
from attrfn._core.typing import Baselines, Batching, ChunkSize, Leaves, ModelFn, Target, Tree
from attrfn._core.windows import Window, windows


def feature_ablation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Feature ablation: what the output loses when a feature is replaced by its baseline.

        A_k = f(x) - f(x with feature k := x0)

    Works with any model function, also one that is no torch code: tensors, arrays and numbers are
    taken as outputs, and ``chunk_size=1`` shows it one copy of the batch at a time.

    Args:
        model_fn: Called as ``model_fn(*inputs)`` for a tuple, else ``model_fn(inputs)``; it need
            not be differentiable.
        inputs: A tensor or pytree of tensors of any dtype with the examples in dimension 0.
        target: Which output is explained, see :func:`gradient`; ``None`` explains all of them.
        baselines: x0, see :func:`input_x_gradient`; for integers an integer, such as a padding id.
        feature_mask: The feature of each element: integers that broadcast to the inputs, or a
            pytree prefix of those. Equal ids are one feature, in different tensors too; gaps do not
            matter. ``None``: each element is a feature.
        n_features: The ids are 0 to ``n_features - 1``. Needed inside torch.compile, where the ids
            of a ``feature_mask`` cannot be counted; and where a mask that differs from example to
            example shall give an example alone the draws that it gets in a batch.
        chunk_size: How many copies of the batch are evaluated at once: ``"auto"`` (what memory
            holds), ``None`` (all) or a number; see :func:`integrated_gradients`.
        batching: See :func:`integrated_gradients`.
        create_graph: Let ``.backward()`` reach through the attributions to inputs and parameters;
            inside transforms and torch.compile it always can.
        progress: Show a progress bar over the copies.

    Returns:
        Attributions like the inputs; every element has the score of its feature. One value for the
        whole batch gives (1, ...), outputs (B, K...) without a target give (B, K..., ...).

    Raises:
        TypeError: An argument is of no known kind.
        ValueError: Shapes disagree, or an option is out of its range.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]
        >>> attrfn.feature_ablation(f, torch.tensor([[2.0, 3.0, 4.0]]))
        tensor([[6., 6., 4.]])
        >>> attrfn.feature_ablation(
        ...     f, torch.tensor([[2.0, 3.0, 4.0]]), feature_mask=torch.tensor([0, 1, 1])
        ... )
        tensor([[ 6., 10., 10.]])

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    chunks = Chunks(chunk_size, batching, progress, "feature_ablation")
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    these = features(feature_mask, inputs, p.x, n_features)
    ids = torch.arange(these.n, device=p.device)
    ablated = p.over(these.n, lambda i: these.masks((ids[i, None] != ids)[:, None]))
    return p.result(these.elements((p.full - ablated).movedim(0, -1)))


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
        model_fn: See :func:`feature_ablation`.
        inputs: See :func:`feature_ablation`; each of several tensors is occluded on its own.
        window: The window's size in each dimension behind the batch, such as (3, 8, 8) for images
            (B, 3, H, W); an int for the same in all dimensions; or a pytree prefix of those.
        stride: The steps of the window in the same form; None is 1. The last window of a dimension
            is cut off at the border.
        target: See :func:`feature_ablation`.
        baselines: See :func:`feature_ablation`.
        chunk_size: See :func:`feature_ablation`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`feature_ablation`.
        progress: See :func:`feature_ablation`.

    Returns:
        Attributions like the inputs, see :func:`feature_ablation`.

    Raises:
        TypeError: See :func:`feature_ablation`; or a window is no int or tuple of ints.
        ValueError: See :func:`feature_ablation`; or a window does not fit its input, or a stride
            leaves gaps between windows.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x.sum(1)
        >>> attrfn.occlusion(f, torch.tensor([[1.0, 2.0, 4.0]]), window=2)
        tensor([[3.0000, 4.5000, 6.0000]])

    Reference:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    chunks = Chunks(chunk_size, batching, progress, "occlusion")
    p = masked(model_fn, inputs, target, baselines, chunks, create_graph=create_graph)
    grids = windows(window, stride, inputs, p.x)
    ends = [sum(g.n for g in grids[: k + 1]) for k in range(len(grids))]
    each = [(g, end - g.n, end) for g, end in zip(grids, ends, strict=True)]

    def masks(i: slice) -> Leaves:
        at = torch.arange(i.start, i.stop, device=p.device)
        return tuple([~g.cover(at - start)[:, None] for g, start, _ in each])

    lost = (p.full - p.over(ends[-1], masks)).movedim(0, -1)
    return p.result([g.mean(lost[..., start:end]) for g, start, end in each])
