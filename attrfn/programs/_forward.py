"""Programs that give values and no derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._torch import pytree
from attrfn._torch.autodiff import in_eager_transform
from attrfn._torch.compiling import is_compiling, unreadable
from attrfn.programs._groups import State
from attrfn.programs._outputs import Outputs


class ForwardOnly:
    """A program that only runs forward, as a model function.

    Args:
        outputs: Which outputs it returns.
        state: What runs.
        contents: A text that tells it from other programs.

    Attributes:
        attrfn_without_layers: What it is, as the subject of a sentence.
    """

    attrfn_without_layers = ""

    def __init__(self, outputs: Outputs, state: State, contents: str) -> None:
        self.outputs = outputs
        self.state = state
        self.contents = contents

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            ValueError: A derivative, a transform or compiled code asks for what it cannot give.
        """
        what = self.attrfn_without_layers
        if is_compiling() or unreadable() or in_eager_transform():
            raise ValueError(
                f"{what} cannot run inside torch.func transforms, torch.compile or attrfn.compile, "
                "which know operations of torch alone: call a perturbation method, such as "
                "attrfn.feature_ablation or attrfn.kernel_shap, outside of them"
            )
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            raise ValueError(
                f"{what} only runs forward, so that it has no gradients: use a perturbation "
                "method, such as attrfn.feature_ablation, attrfn.occlusion or attrfn.kernel_shap, "
                "without create_graph"
            )
        return self.run(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs for some arguments."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        """By what it was loaded from, for worker processes."""
        if self.state.source is None:
            raise TypeError(
                f"{self.attrfn_without_layers} that was given as an object cannot be sent to "
                "another process: give its path to attrfn.programs.load"
            )
        kind: Any = type(self)
        return kind, (self.state.source, self.outputs)
