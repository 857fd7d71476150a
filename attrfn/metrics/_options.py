"""The arguments and options that several metrics share, each explained here and only here.

:mod:`attrfn._explain.forms` prints these texts under every metric, as those of
:mod:`attrfn._explain.options` under every method.
"""

from collections.abc import Callable
from typing import Literal, TypedDict

from torch import Tensor

from attrfn._explain.options import PerturbationOptions
from attrfn._torch.typing import ChunkSize, Key, Method, Target, Tree


class ScoreOptions(PerturbationOptions, total=False):
    """What a metric that replaces features takes.

    Raises:
        ValueError: The model gives several values per example, or one for the whole batch.
    """

    target: Target
    """Which scalar of each example f is: ``None`` (there is only one), an int, an integer tensor ()
    or (B,), a tuple of ints and slices (slices are summed), a list with one int or tuple per
    example, or a callable ``outputs -> (B,)``, such as
    ``lambda out: out.softmax(-1)[:, 3]`` for a probability."""

    pool: Literal["sum", "mean"]
    """How a feature of several elements gets its score: ``"sum"`` suits attributions that sum to
    the change of the output, ``"mean"`` those where every element has the score of its feature, as
    of ``feature_ablation``, Shapley values, LIME, RISE and class activation maps."""


class Scores(TypedDict):
    """What a metric that replaces features measures."""

    attributions: Tree
    """A tree like the inputs, of tensors with as many dimensions, whose sizes are those of the
    inputs, or 1 after the examples."""

    key: Key
    """An int or a key of :mod:`attrfn.random`, (2,), or (B, 2) with one for each example."""


class AgainOptions(TypedDict, total=False):
    """What a metric that explains again takes."""

    target: Target
    """The method's target."""

    key: Key
    """An int or a key of :mod:`attrfn.random`, (2,), or (B, 2) with one for each example. A random
    method is not given this key: its own is the same for all copies."""

    chunk_size: ChunkSize
    """How many copies of the batch are explained at once: ``"auto"`` (as many as fit into memory;
    inside a transform all), ``None`` (all) or a number."""

    progress: bool
    """Show a progress bar over the copies."""


class Explained(TypedDict):
    """What a metric that explains again measures."""

    inputs: Tree
    """A floating tensor (B, ...) or a pytree of those."""

    method: Method
    """An attribution method; its own options are bound with
    ``functools.partial(method, n_steps=20)``. What has a row per example among them follows the
    copies of the batch."""


class SampleOptions(AgainOptions, total=False):
    """What a metric over samples around the inputs takes."""

    radius: float
    """r of the uniform noise, in units of the inputs."""

    n_samples: int
    """The number of samples."""

    perturb: Callable[[Tree, Tensor], Tree] | None
    """``perturb(inputs, keys) -> inputs``, the samples, of rows by their keys (R, 2), in place of
    the uniform noise. The rows are those of several copies of the batch."""


class ChangeOptions(SampleOptions, total=False):
    """What a metric of the change of attributions takes."""

    norm: float
    """Which norm, a number of at least 1, or ``math.inf``."""

    normalize: bool
    """Divide by the norm of the attributions; nan where that is 0."""


class RelativeOptions(SampleOptions, total=False):
    """What a metric of relative stability takes."""

    eps: float
    """The least denominator, above 0."""

    same_prediction: bool
    """Leave out samples whose largest output is not that of x."""


class Localized(TypedDict, total=False):
    """What a metric of attributions and a mask takes.

    Raises:
        TypeError: The mask does not hold booleans or integers.
        ValueError: The mask does not broadcast to the attributions.
    """

    attributions: Tree
    """A tensor (B, ...) or a pytree of those."""

    mask: Tree
    """Where the object is: booleans (or integers, of which 0 is outside) that broadcast to the
    attributions, or a pytree prefix of those. Attributions are first summed over the dimensions,
    after the examples, in which only the mask has size 1: a mask (B, 1, H, W) pools channels."""

    sign: Literal["signed", "positive", "absolute"]
    """Which part of the attributions counts, once they are pooled."""
