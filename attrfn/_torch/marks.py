"""Follow what is computed from marked tensors, by operations and not by values."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._torch import pytree


class Marks(TorchFunctionMode):
    """While active, what an operation makes of a marked tensor is marked (in this thread)."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
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
        return any(id(leaf) in self.marked for leaf in pytree.tree_leaves(value))
