"""The options of DeepLIFT and its forms."""

# No annotations from the future: the types of options are read at run time, as in
# attrfn._explain.options.

from typing import Literal

from attrfn._explain.options import GraphOptions
from attrfn._rules.table import Rules
from attrfn._torch.typing import ChunkSize

DeepLiftRule = Literal["rescale", "reveal_cancel"] | Rules


class DeepLiftOptions(GraphOptions, total=False):
    """What DeepLIFT and its forms take.

    Raises:
        UnsupportedOpError: The model calls an operation that the rules do not cover.
        ValueError: The rule has an unknown name, or the model calls other operations for the
            baselines than for the inputs.
    """

    rule: DeepLiftRule
    """``"rescale"``; ``"reveal_cancel"``, which gives positive and negative contributions to an
    activation separate multipliers; or :func:`attrfn.rules.rescale` or
    :func:`attrfn.rules.reveal_cancel`, extended."""

    multiply_by_inputs: bool
    """``False`` returns the multipliers m."""


class DeepShapOptions(DeepLiftOptions, total=False):
    """What DeepSHAP and its forms take."""

    # As in ChunkOptions, but without ``batching``: copies of the batch are always folded.
    chunk_size: ChunkSize
    progress: bool
