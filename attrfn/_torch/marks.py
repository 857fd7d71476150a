"""Follow dependence on marked tensors through operations, whatever their values."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._torch import pytree
from attrfn._torch.ranks import carried


class Marks(TorchFunctionMode):
    """While active, the results of operations on marked tensors are marked (in this thread).

    ``requires_grad`` would not do: a tensor that is being trained requires a gradient and does not
    depend on the inputs, and a tensor inside vmap may depend on them and require none.
    """

    def __init__(self) -> None:
        super().__init__()
        # By id, because == of tensors compares values. The tensors are held, so that no new one
        # gets the id of one that is gone.
        self.marked: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        return self.add(out) if self.on((args, kwargs)) else out

    def add(self, value: Any) -> Any:
        """Mark the tensors of a value and return it."""
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                self.marked[id(leaf)] = leaf
        return value

    def on(self, value: Any) -> bool:
        """Whether a value holds a marked tensor."""
        return any(
            id(leaf) in self.marked or (isinstance(leaf, Tensor) and self._carried(leaf))
            for leaf in pytree.tree_leaves(value)
        )

    def _carried(self, t: Tensor) -> bool:
        return t.grad_fn is not None and carried(t, self.marked.values()) is not None
