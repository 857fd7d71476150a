"""Expected gradients (GradientSHAP), of inputs, layers and neurons."""

from __future__ import annotations

from attrfn._copies.batch import wide
from attrfn._copies.chunks import Chunks, add, at_once, over_chunks
from attrfn._explain.baseline import baseline_distribution
from attrfn._explain.explain import explain
from attrfn._explain.introspect import takes_distribution
from attrfn._explain.noise import Noise, positive
from attrfn._layers.at import at_layer, at_neuron
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Key,
    Layer,
    Leaves,
    ModelFn,
    Target,
    Tree,
)


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


@takes_distribution
def layer_gradient_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    baselines: Baselines,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    n_samples: int = 5,
    stdevs: Tree = 0.0,
    key: Key = 0,
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Expected gradients of a layer, between its activation and those of random baselines.

        A = E[(a' - c) * df(c + s (a' - c))/da],   a' = head(x) + noise,  c = head(b)

    This is ``at_layer(gradient_shap, layer)``: noise and path live at the layer.

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: See :func:`layer_activation`.
        layer: See :func:`at_layer`.
        baselines: See :func:`gradient_shap`, in the space of the inputs.
        target: See :func:`gradient`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        n_samples: See :func:`gradient_shap`.
        stdevs: See :func:`gradient_shap`, in units of the layer.
        key: See :func:`gradient_shap`.
        multiply_by_inputs: See :func:`gradient_shap`.
        chunk_size: See :func:`gradient_shap`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`gradient`.
        progress: See :func:`integrated_gradients`.

    Returns:
        Attributions like the layer's activation.

    Raises:
        TypeError: See :func:`gradient_shap`.
        ValueError: See :func:`gradient_shap`; or the layer is never called.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.layer_gradient_shap(model, x, layer="1", target=0, baselines=pool).shape
        torch.Size([5, 4])

    Reference:
        Erion et al., Improving Performance of Deep Learning Models with Axiomatic Attribution
        Priors and Expected Gradients, 2021.
    """
    return at_layer(gradient_shap, layer, at=at, call=call)(
        model_fn,
        inputs,
        target=target,
        baselines=baselines,
        n_samples=n_samples,
        stdevs=stdevs,
        key=key,
        multiply_by_inputs=multiply_by_inputs,
        chunk_size=chunk_size,
        batching=batching,
        create_graph=create_graph,
        progress=progress,
    )


@takes_distribution
def neuron_gradient_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines,
    at: At = "output",
    call: int | None = 0,
    n_samples: int = 5,
    stdevs: Tree = 0.0,
    key: Key = 0,
    multiply_by_inputs: bool = True,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Expected gradients of a neuron with respect to the inputs.

        A = E[(x' - b) * dn(b + s (x' - b))/dx],   n = neuron of head(x)

    Args:
        model_fn: See :func:`layer_activation`.
        inputs: Floating tensors, see :func:`gradient`.
        layer: See :func:`layer_activation`.
        neuron: See :func:`neuron_gradient`.
        baselines: See :func:`gradient_shap`.
        at: See :func:`layer_activation`.
        call: See :func:`layer_activation`.
        n_samples: See :func:`gradient_shap`.
        stdevs: See :func:`gradient_shap`.
        key: See :func:`gradient_shap`.
        multiply_by_inputs: See :func:`gradient_shap`.
        chunk_size: See :func:`gradient_shap`.
        batching: See :func:`integrated_gradients`.
        create_graph: See :func:`gradient`.
        progress: See :func:`integrated_gradients`.

    Returns:
        Attributions like the inputs; their expected sum is n(x) - E n(b).

    Raises:
        TypeError: See :func:`neuron_gradient` and :func:`gradient_shap`.
        ValueError: See :func:`neuron_gradient` and :func:`gradient_shap`.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.neuron_gradient_shap(model, x, layer="1", neuron=2, baselines=pool).shape
        torch.Size([5, 3])

    Reference:
        Erion et al., Improving Performance of Deep Learning Models with Axiomatic Attribution
        Priors and Expected Gradients, 2021.
    """
    return at_neuron(gradient_shap, layer, neuron, at=at, call=call)(
        model_fn,
        inputs,
        baselines=baselines,
        n_samples=n_samples,
        stdevs=stdevs,
        key=key,
        multiply_by_inputs=multiply_by_inputs,
        chunk_size=chunk_size,
        batching=batching,
        create_graph=create_graph,
        progress=progress,
    )
