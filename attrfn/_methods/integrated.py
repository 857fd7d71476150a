"""Path methods: integrated gradients and expected gradients (GradientSHAP), and their axiom."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attrfn._core.baseline import baseline_distribution, fill_baselines
from attrfn._core.batch import row_sums, wide
from attrfn._core.bind import bind
from attrfn._core.chunks import Chunks, add, at_once, over_chunks
from attrfn._core.derive import transforming
from attrfn._core.explain import Explained, explain
from attrfn._core.method import takes_distribution
from attrfn._core.noise import Noise, positive
from attrfn._core.path import over_path
from attrfn._core.quadrature import Rule
from attrfn._core.target import choose
from attrfn._core.tree import batch_size, flatten
from attrfn._core.typing import Baselines, Batching, ChunkSize, Key, Leaves, ModelFn, Target, Tree
from attrfn._core.warn import warn

_MOST_DOUBLINGS = 10


def integrated_gradients(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    n_steps: int = 50,
    quadrature: str | Rule = "gauss_legendre",
    multiply_by_inputs: bool = True,
    tolerance: float | None = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Integral of the gradient along the straight path from the baseline to the input.

        A = (x - x0) * integral_0^1 df(x0 + a (x - x0))/dx da
          = (x - x0) * sum_k w_k df(x0 + a_k (x - x0))/dx

    Args:
        model_fn: See :func:`gradient`.
        inputs: See :func:`gradient`.
        target: See :func:`gradient`.
        baselines: x0, see :func:`input_x_gradient`.
        n_steps: The number of nodes a_k.
        quadrature: ``"gauss_legendre"``, ``"riemann_left"``, ``"riemann_right"``,
            ``"riemann_middle"``, ``"riemann_trapezoid"`` or a callable ``n -> (nodes, weights)``.
        multiply_by_inputs: ``False`` returns the integral without the factor (x - x0).
        tolerance: Double the steps until every example's completeness gap is below this (in units
            of the output), with no more than ``n_steps`` at once for ``chunk_size=None``; not
            inside transforms or torch.compile.
        chunk_size: How many steps are evaluated at once, which bounds the memory: ``"auto"`` (what
            memory holds; inside a transform all), ``None`` (all) or a number.
        batching: ``"fold"`` puts the steps into the batch axis; ``"vmap"`` serves models without a
            usable one; ``"loop"`` takes one step at a time.
        create_graph: See :func:`gradient`.
        progress: Show a progress bar over the chunks.

    Returns:
        Attributions like the inputs; they sum to f(x) - f(x0) (completeness).

    Raises:
        TypeError: See :func:`gradient`.
        ValueError: See :func:`gradient`; or an option is out of its range.

    Example:
        >>> import torch, attrfn
        >>> def f(x):
        ...     return x[:, 0] * x[:, 1]
        >>> attrfn.integrated_gradients(f, torch.tensor([[2.0, 3.0]])).round(decimals=4)
        tensor([[3., 3.]])

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    x0 = fill_baselines(baselines, inputs, p.x)

    def integral(n: int, chunk_size: ChunkSize) -> Leaves:
        return over_path(
            p,
            x0,
            lambda points: p.gradients(points, batching)[1],
            n_steps=n,
            quadrature=quadrature,
            chunk_size=chunk_size,
            batching=batching,
            progress=progress,
            label="integrated_gradients",
        )

    if tolerance is None:
        total = integral(n_steps, chunk_size)
    else:
        at_once = functools.partial(integral, chunk_size=chunk_size or n_steps)
        total = _refined(p, x0, at_once, n_steps, tolerance)
    if multiply_by_inputs:
        total = tuple([(x - b) * t for x, b, t in zip(p.x, x0, total, strict=True)])
    return p.result(total)


def _refined(
    p: Explained, x0: Leaves, integral: Callable[[int], Leaves], n: int, tolerance: float
) -> Leaves:
    """Double the steps until the largest completeness gap is below the tolerance."""
    if transforming():
        raise ValueError(
            "tolerance cannot be met inside a torch.func transform or torch.compile, because the "
            "number of steps depends on values: set n_steps instead"
        )
    if type(tolerance) not in (int, float) or not tolerance > 0:
        raise ValueError(
            f"tolerance is {tolerance!r}, expected a number above 0 in units of the output"
        )
    with torch.no_grad():
        change = p.values(p.x) - p.values(x0)
    for doubling in range(_MOST_DOUBLINGS + 1):
        total = integral(n * 2**doubling)
        with torch.no_grad():
            parts = [row_sums((x - b) * g) for x, b, g in zip(p.x, x0, total, strict=True)]
            gap = (torch.stack(parts).sum(0) - change).abs()
        if p.batch == 0 or float(gap.max()) <= tolerance:
            return total
        if not bool(gap.isfinite().all()):
            break
    warn(
        f"integrated_gradients missed tolerance={tolerance} with {n * 2**doubling} steps, "
        f"the largest gap is {float(gap.max()):.3g}: the model may jump along the path"
    )
    return total


@takes_distribution
def gradient_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    baselines: Baselines,
    n_samples: int = 5,
    stdevs: Tree = 0.0,
    key: Key = 0,
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Expected gradients: gradients at random points between noisy inputs and random baselines.

        A = E[(x' - b) * df(b + a (x' - b))/dx],   x' = x + s n,  b ~ baselines,  a ~ U(0, 1)

    All examples share one draw per sample, so that a row alone gives what it gives in a batch; a
    key of shape (B, 2) draws for each example on its own.

    Args:
        model_fn: See :func:`gradient`.
        inputs: See :func:`gradient`.
        target: See :func:`gradient`.
        baselines: K baselines to draw from, a tensor (K, ...) or a pytree of those like the inputs;
            (K, B, ...) holds K for each example.
        n_samples: The number of draws the mean is taken over.
        stdevs: s, the standard deviation of the noise n ~ N(0, 1) in units of the inputs: a number
            or a pytree prefix; 0 gives expected gradients.
        key: An int or a key of :mod:`attrfn.random`, (2,) or (B, 2).
        multiply_by_inputs: ``False`` leaves out the factor (x' - b).
        chunk_size: How many samples are evaluated at once, see :func:`integrated_gradients`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`gradient`.
        progress: Show a progress bar over the chunks.

    Returns:
        Attributions like the inputs; their expected sum is f(x) - E f(b).

    Raises:
        TypeError: See :func:`gradient`; or the baselines are no tensors.
        ValueError: See :func:`gradient`; or an option is out of its range.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x @ torch.tensor([1.0, 2.0])
        >>> attrfn.gradient_shap(f, torch.ones(1, 2), baselines=torch.zeros(3, 2))
        tensor([[1., 2.]])

    Reference:
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017.
        Erion et al., Improving Performance of Deep Learning Models with Axiomatic Attribution
        Priors and Expected Gradients, 2021.
    """
    p = explain(model_fn, inputs, target, create_graph=create_graph)
    pool = baseline_distribution(baselines, inputs, p.x)
    noise = Noise(key, stdevs, inputs, p.x)
    n = positive("n_samples", n_samples)
    chunks = Chunks(chunk_size, batching, progress, "gradient_shap")

    def draw(i: slice) -> Leaves:
        return (noise.uniform(i), *noise.inputs(i), *noise.choice(i, pool))

    drawn = at_once(draw, n, n * 2 * sum(t.numel() for t in p.x))

    def part(i: slice) -> Leaves:
        a, *rest = drawn(i)
        ends, starts = rest[: len(p.x)], rest[len(p.x) :]
        path = [
            (b + a.reshape(*a.shape, *[1] * (x.ndim - 1)).to(b) * (e - b)).to(x.dtype)
            for x, e, b in zip(p.x, ends, starts, strict=True)
        ]
        _, grads = p.gradients(tuple(path), batching)
        if multiply_by_inputs:
            grads = tuple([(e - b) * g for e, b, g in zip(ends, starts, grads, strict=True)])
        return tuple([g.sum(0, dtype=wide(g.dtype)) for g in grads])

    total = over_chunks(part, add, n, chunks, p.x[0].device, x=p.x)
    return p.result([t / n_samples for t in total])


def completeness_delta(
    model_fn: ModelFn,
    inputs: Tree,
    attributions: Tree,
    *,
    target: Target = None,
    baselines: Baselines = None,
    create_graph: bool = False,
) -> Tensor:
    """How far attributions are from completeness: their sum minus the change of the output.

        delta = sum(A) - (f(x) - f(x0))

    Args:
        model_fn: See :func:`gradient`.
        inputs: The explained inputs, a tensor or pytree (integers too).
        attributions: Any pytree of tensors (B, ...), also of a layer.
        target: See :func:`gradient`.
        baselines: See :func:`input_x_gradient`.
        create_graph: See :func:`gradient`.

    Returns:
        One gap per example, (B,), in units of the output.

    Raises:
        ValueError: Batch sizes disagree, or the baselines do not fit the inputs.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: (x**2).sum(1)
        >>> x = torch.ones(1, 2)
        >>> attrfn.completeness_delta(f, x, attrfn.integrated_gradients(f, x)).abs().item() < 1e-6
        True

    Reference:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017.
    """
    x, rebuild = flatten(inputs)
    batch = batch_size(x)
    scores, _ = flatten(attributions, "attributions")
    if batch_size(scores, "attributions") != batch:
        raise ValueError(
            f"attributions has {scores[0].shape[0]} examples in dimension 0, expected {batch} as "
            "in inputs"
        )
    x0 = fill_baselines(baselines, inputs, x)
    p = Explained(
        bind(model_fn, frozen=not create_graph),
        x,
        rebuild,
        batch,
        choose(target, batch),
        create_graph,
        False,
        "target",
    )
    keep = create_graph or transforming()
    with torch.set_grad_enabled(create_graph or (keep and torch.is_grad_enabled())):
        change = p.values(x) - p.values(x0)
    total = torch.stack([row_sums(s, wide(s.dtype)) for s in scores]).sum(0)
    delta = (total - change).to(change.dtype)
    return delta if keep else delta.detach()
