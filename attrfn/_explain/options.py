"""The arguments and options that several methods share, each explained here and only here.

A TypedDict is the type of ``**options`` of the forms of a method, by which mypy checks the names
and types of a call, and the text that ``help()`` and the documentation print under every method
(:mod:`attrfn._explain.forms` reads it). The docstring of a method says only what an option means
for this method alone.
"""

# This module does not import annotations from the future: an option says by its type whether it
# holds something for each example (attrfn._torch.typing.PerExample), so that types have to be
# objects at run time.

from typing import TypedDict

from attrfn._explain.quadrature import Rule
from attrfn._torch.typing import (
    At,
    Baselines,
    Batching,
    ChunkSize,
    FeatureMask,
    Key,
    Layer,
    ModelFn,
    OfLayer,
    PerExample,
    RowsOf,
    Target,
    Tree,
)


class Arguments(TypedDict):
    """What every method by derivatives takes.

    Raises:
        TypeError: An input is not a floating tensor, or the target has a wrong type.
        ValueError: Batch sizes disagree, the target does not fit the output, or an option has a
            wrong value.
    """

    model_fn: ModelFn
    """Called as ``model_fn(*inputs)`` when inputs is a tuple, else ``model_fn(inputs)``."""

    inputs: Tree
    """A floating tensor (B, ...) or a pytree of those."""

    target: Target
    """Which scalar of each example is explained: ``None`` (there is only one), an int, an integer
    tensor () or (B,), a tuple of ints and slices (slices are summed), a list with one int or tuple
    per example, or a callable ``outputs -> (B,)``."""

    baselines: Baselines
    """x0: ``None`` (zeros), a number, a tensor that broadcasts to the input (with B rows, row i is
    for example i alone), or a pytree prefix of those."""


class BlackBox(TypedDict):
    """What every perturbation method takes.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: Shapes disagree, or an option has a wrong value.
    """

    model_fn: ModelFn
    """Called as ``model_fn(*inputs)`` when inputs is a tuple, else ``model_fn(inputs)``. Tensors,
    arrays and numbers are accepted as outputs; nothing is differentiated."""

    inputs: Tree
    """A tensor or pytree of tensors of any dtype with the examples in dimension 0."""

    target: Target
    """Which scalar of each example is explained: ``None`` (all outputs: with (B, K...) of them
    attributions are (B, K..., ...)), an int, an integer tensor () or (B,), a tuple of ints and
    slices (slices are summed), a list with one int or tuple per example, or a callable
    ``outputs -> (B,)``."""

    baselines: Baselines
    """x0: ``None`` (zeros), a number, a tensor that broadcasts to the input (with B rows, row i is
    for example i alone), or a pytree prefix of those; for integers an integer, such as the id of a
    padding token."""


class AtLayer(TypedDict):
    """What says where a method looks inside a model.

    Raises:
        TypeError: The model function hides its module.
        ValueError: The layer is not part of the model or is never called.
    """

    model_fn: ModelFn
    """A module, a bound method of one, or ``functools.partial`` of either."""

    inputs: Tree
    """The model's inputs, a tensor (B, ...) or a pytree of those; integers are accepted where they
    are not differentiated."""

    layer: Layer
    """A module, its qualified name, or a list of either; then the result is a list. Methods that
    replace activations explain the layers of a list together, and refuse one that depends on
    another; the others give each what it gets alone, and share the passes."""

    at: At
    """``"output"`` or ``"input"`` of the layer."""

    call: int | None
    """Which call of a layer that the model calls several times; ``None`` takes all calls, and the
    value of the layer is then a tuple."""

    rows: RowsOf
    """Where the layer's value has the examples: ``"examples"`` (dimension 0), ``"time_first"``
    (dimension 1) or a callable that brings them to dimension 0 and only moves elements, such as
    ``lambda a: a.unflatten(0, (-1, 5))`` for 5 frames each. ``None`` finds out whether it is
    dimension 0, and works with a value of any layout, at the cost that the guide on layouts
    states."""


class AtNeuron(AtLayer):
    """What says which neuron a method explains.

    Raises:
        TypeError: The model function hides its module.
        ValueError: The layer is not part of the model or is never called, or the neuron does not
            exist.
    """

    neuron: Target
    """An int, a tuple of ints and slices (slices are summed), one of either per example, or a
    callable from the layer's activation to (B,)."""


class LayerBaselines(TypedDict):
    """What a method over a path between two activations takes."""

    baselines: Baselines
    """x0 in the space of the inputs, in any form that the method takes; the head of the model
    carries it to the layer."""


class BaselineDistribution(TypedDict):
    """What a method over a distribution of baselines takes.

    Raises:
        TypeError: The baselines are not tensors.
    """

    baselines: Baselines
    """K baselines of the inputs, a tensor (K, ...) or a pytree of those like the inputs;
    (K, B, ...) holds K for each example."""


class GraphOptions(TypedDict, total=False):
    """What every method takes."""

    create_graph: bool
    """Let ``.backward()`` on the result reach inputs and parameters. Inside a torch.func transform
    it does so without this option while grad mode is on; in code that torch.compile traces outside
    of one it then reaches the inputs alone."""


class ChunkOptions(GraphOptions, total=False):
    """What every method over copies of the batch takes."""

    chunk_size: ChunkSize
    """How many copies of the batch (steps, samples, masks, baselines) are evaluated at once:
    ``"auto"`` (as many as fit into memory; inside a transform all), ``None`` (all) or a number."""

    batching: Batching
    """``"fold"`` puts the copies into the batch axis; ``"vmap"`` serves models without a usable
    one; ``"loop"`` evaluates one copy at a time, which serves any Python model."""

    progress: bool
    """Show a progress bar over the copies."""


class StepOptions(ChunkOptions, total=False):
    """What every integral along the path of the inputs takes."""

    baselines: Baselines
    """x0: ``None`` (zeros), a number, a tensor that broadcasts to the input (with B rows, row i is
    for example i alone), or a pytree prefix of those."""

    n_steps: int
    """The number of steps of the integral."""

    quadrature: str | Rule
    """``"gauss_legendre"``, ``"riemann_left"``, ``"riemann_right"``, ``"riemann_middle"``,
    ``"riemann_trapezoid"``, ``"lobatto"`` or a callable ``n -> (nodes, weights)``."""


class PathOptions(StepOptions, total=False):
    """What integrated gradients and their forms take."""

    multiply_by_inputs: bool
    """``False`` returns the integral without the factor (x - x0)."""

    tolerance: float | None
    """Refine the integral until every example's completeness gap is below this number, in units of
    the output: after ``n_steps`` steps, parts of the path are split where they miss the change of
    the output. ``chunk_size=None`` then evaluates ``n_steps`` at once. Not inside transforms or
    torch.compile."""

    check_completeness: bool
    """Warn where the gap of an example is more than 5 % of the change of the output, which takes
    two forward passes. Not inside transforms or torch.compile, nor with a ``tolerance``."""


class SamplingOptions(ChunkOptions, total=False):
    """What expected gradients and their forms take."""

    n_samples: int
    """The number of draws that are averaged."""

    stdevs: Tree
    """s, in units of the inputs: a number or a pytree prefix of the inputs."""

    key: Key
    """An int or a key of :mod:`attrfn.random`, (2,), or (B, 2) with one for each example."""

    multiply_by_inputs: bool
    """``False`` leaves out the factor (x' - b)."""


class FeatureOptions(ChunkOptions, total=False):
    """What a method that replaces features takes."""

    feature_mask: FeatureMask
    """The feature of each element: integers that broadcast to the inputs, or a pytree prefix of
    those. Equal ids are one feature, also in different tensors; gaps between ids do not matter.
    Elements with a negative id are fixed: never replaced, no feature, attribution 0.
    ``None``: each element is a feature."""

    n_features: int | None
    """The ids are 0 to ``n_features - 1``; ``None`` counts those that occur. A number is needed
    inside torch.compile, which cannot count them. With a mask that differs between examples, a
    number gives an example alone the same draws as in a batch."""


class PerturbationOptions(FeatureOptions, total=False):
    """What a method that replaces features by baselines takes."""

    baselines: Baselines
    """x0: ``None`` (zeros), a number, a tensor that broadcasts to the input (with B rows, row i is
    for example i alone), or a pytree prefix of those; for integers an integer, such as the id of a
    padding token."""


class LayerFeatures(TypedDict):
    """What a method that replaces parts of an activation takes."""

    layer_baselines: OfLayer
    """a0, which replaces parts of the activation: ``None`` (zeros), a number, a tensor that
    broadcasts to the activation, or a pytree prefix of those."""

    layer_mask: OfLayer
    """The part that each element of the activation belongs to, in the form of ``feature_mask``."""


PER_EXAMPLE: dict[str, str] = {
    name: mark.form
    for record in (Arguments, AtNeuron, LayerFeatures, SamplingOptions, PerturbationOptions)
    for name, kind in record.__annotations__.items()
    for mark in getattr(kind, "__metadata__", ())
    if isinstance(mark, PerExample)
}
"""The options that hold something for each example, with the form in which they do."""
