"""The arguments and options that attacks share, each explained here and only here.

:mod:`attrfn._explain.forms` prints these texts under every attack, as those of
:mod:`attrfn._explain.options` under every method.
"""

from collections.abc import Callable
from typing import Any, Literal, TypedDict

from torch import Tensor

from attrfn._explain.options import GraphOptions
from attrfn._torch.typing import ChunkSize, Key, ModelFn, Target, Tree


class AttackOptions(GraphOptions, total=False):
    """What an attack by gradients takes.

    Raises:
        TypeError: An input is not a floating tensor, or another argument has a wrong type.
        ValueError: Shapes disagree, an option has a wrong value, or the inputs are outside of the
            bounds (which is not seen inside transforms).
    """

    model_fn: ModelFn
    """Called as ``model_fn(*inputs)`` when inputs is a tuple, else ``model_fn(inputs)``."""

    inputs: Tree
    """A floating tensor (B, ...) or a pytree of those."""

    target: Target
    """The class of each example, an int or an integer tensor () or (B,); for
    ``objective="target"`` any target of a method. A callable objective does not use it."""

    objective: Literal["cross_entropy", "margin", "target"] | Callable[[Any], Tensor]
    """What the attack raises. ``"cross_entropy"``: ``-log_softmax(z)[y]`` of logits z, (B, K), and
    the target y; ``"margin"``: ``max_{j != y} z_j - z_y``; ``"target"``: ``-f``, with f the scalar
    of the target; or a callable ``outputs -> (B,)``."""

    targeted: bool
    """Lower the objective in place of raising it: the target is the class to reach."""

    bounds: tuple[Tree, Tree] | None
    """The least and the greatest value of the inputs, ``(low, high)``: each a number, a tensor that
    broadcasts to the input, a pytree prefix of those, or None where there is no limit."""

    mask: Tree
    """Which elements may change: booleans, or 0 and 1, that broadcast to the inputs, or a pytree
    prefix of those. ``None``: all."""


class RandomOptions(TypedDict, total=False):
    """What a random attack takes."""

    key: Key
    """An int or a key of :mod:`attrfn.random`, (2,), or (B, 2) with one for each example."""


class SearchOptions(RandomOptions, total=False):
    """What a function that runs attacks of the user takes.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An option has a wrong value, or a function of the user returned another shape
            than its rows have.
    """

    model_fn: ModelFn
    """Called as ``model_fn(*inputs)`` when inputs is a tuple, else ``model_fn(inputs)``."""

    inputs: Tree
    """A tensor (B, ...) or a pytree of those, of any dtype."""

    n_attempts: int
    """How often an attack runs, each time with other keys."""

    chunk_size: ChunkSize
    """How many copies of the batch are attacked at once: ``"auto"`` (as many as fit into memory;
    inside a transform all), ``None`` (all) or a number."""

    progress: bool
    """Show a progress bar over the copies."""
