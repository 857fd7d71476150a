"""Expected gradients (GradientSHAP), of inputs, layers and neurons."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._copies.chunks import Chunks, add, at_once, over_chunks
from attrfn._explain.baseline import baseline_distribution
from attrfn._explain.explain import explain
from attrfn._explain.forms import documented, form_of
from attrfn._explain.introspect import takes_distribution
from attrfn._explain.noise import Noise, count_of
from attrfn._explain.options import (
    Arguments,
    AtLayer,
    AtNeuron,
    BaselineDistribution,
    SamplingOptions,
)
from attrfn._explain.tree import each
from attrfn._explain.uncertain import squares, warn_of_spread
from attrfn._layers.at import at_layer, at_neuron
from attrfn._torch.autodiff import transforming
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    Key,
    Layer,
    Leaves,
    ModelFn,
    RowsOf,
    Target,
    Tree,
    Unpack,
)


@takes_distribution
@documented(BaselineDistribution, Arguments, SamplingOptions)
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
    key of shape (B, 2) draws for each example separately.

    Args:
        stdevs: s, the standard deviation of the noise n ~ N(0, 1) in units of the inputs: a number
            or a pytree prefix; 0 gives expected gradients.

    Returns:
        Attributions like the inputs; their expected sum is f(x) - E f(b).

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
    n = count_of("n_samples", n_samples)
    chunks = Chunks(chunk_size, batching, progress, "gradient_shap")
    draws = _draws(noise, pool, p.x, n)

    def part(i: slice) -> Leaves:
        a, ends, starts = draws(i)
        _, grads = p.gradients(_between(a, ends, starts, p.x), batching)
        if multiply_by_inputs:
            grads = each(lambda x, x0, g: (x - x0) * g, ends, starts, grads)
        sums = each(lambda g: g.sum(0, dtype=wide(g.dtype)), grads)
        return (*sums, squares(grads)) if checked else sums

    checked = p.batch > 0 and n > 1 and not transforming()
    total = over_chunks(part, add, n, chunks, p.x[0].device, x=p.x)
    means = tuple([t / n for t in total[: len(p.x)]])
    if checked:
        warn_of_spread("gradient_shap", means, total[-1], n)
    return p.result(means)


def _draws(
    noise: Noise, pool: Leaves, x: Leaves, n: int
) -> Callable[[slice], tuple[Tensor, Leaves, Leaves]]:
    """From some samples to their places a on the line, noisy inputs x' and baselines b."""
    # Draws take the same number of small operations for one sample as for many, so that those that
    # fit into a small table are made in one go: the numbers of all samples, and if the inputs are
    # small, too, all that follows from them.
    numbers = at_once(lambda i: noise.numbers(i, len(pool[0])), n, n * len(noise.keys) * 2 * len(x))

    def draw(i: slice) -> Leaves:
        a, chosen, *keys = numbers(i)
        return (a, *noise.around(i.stop - i.start, keys), *noise.rows(chosen, pool))

    drawn = at_once(draw, n, n * 2 * sum(t.numel() for t in x))

    def taken(i: slice) -> tuple[Tensor, Leaves, Leaves]:
        a, *pairs = drawn(i)
        return a, tuple(pairs[: len(x)]), tuple(pairs[len(x) :])

    return taken


def _between(a: Tensor, ends: Leaves, starts: Leaves, x: Leaves) -> Leaves:
    """The points ``b + a (x' - b)``."""

    def point(end: Tensor, start: Tensor, x: Tensor) -> Tensor:
        place = a.reshape(*a.shape, *[1] * (x.ndim - 1)).to(start)
        return (start + place * (end - start)).to(x.dtype)

    return each(point, ends, starts, x)


@form_of(gradient_shap, AtLayer)
def layer_gradient_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    baselines: Baselines,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[SamplingOptions],
) -> Tree:
    """Expected gradients of a layer, between its activation and those of random baselines.

        A = E[(a' - c) * df(c + s (a' - c))/da],   a' = head(x) + noise,  c = head(b)

    This is ``at_layer(gradient_shap, layer)``: noise is added, and the path runs, at the layer.

    Args:
        stdevs: s, in units of the layer: a number or a pytree prefix of the activation.

    Returns:
        Attributions like the layer's activation.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.layer_gradient_shap(model, x, layer="1", target=0, baselines=pool).shape
        torch.Size([5, 4])
    """
    return at_layer(gradient_shap, layer, at=at, call=call, rows=rows)(
        model_fn, inputs, target=target, baselines=baselines, **options
    )


@form_of(gradient_shap, AtNeuron)
def neuron_gradient_shap(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    neuron: Target,
    baselines: Baselines,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[SamplingOptions],
) -> Tree:
    """Expected gradients of a neuron with respect to the inputs.

        A = E[(x' - b) * dn(b + s (x' - b))/dx],   n = neuron of head(x)

    Returns:
        Attributions like the inputs; their expected sum is n(x) - E n(b).

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x, pool = torch.randn(5, 3), torch.randn(20, 3)
        >>> attrfn.neuron_gradient_shap(model, x, layer="1", neuron=2, baselines=pool).shape
        torch.Size([5, 3])
    """
    return at_neuron(gradient_shap, layer, neuron, at=at, call=call, rows=rows)(
        model_fn, inputs, baselines=baselines, **options
    )
