"""Whether a model chooses rows by values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attrfn._layers.leaves import real_view
from attrfn._torch import pytree

# Operations whose result has a size, or an order, that depends on values. After one of these the
# rows may be tokens that were routed to an expert, as many as there are examples by chance.
_ROUTING = frozenset(
    [
        *("argsort", "argwhere", "bincount", "item", "masked_select", "msort", "multinomial"),
        *("nonzero", "numpy", "randperm", "repeat_interleave", "sort", "tolist", "topk"),
        *("unique", "unique_consecutive", "unique_dim", "__bool__", "__int__", "__index__"),
    ]
)


class Routes(TorchFunctionMode):
    """While active, whether the model chooses rows by values, and which.

    Attributes:
        found: Whether it does.
        taken: The integers and booleans that the choice is made of, in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self.taken: list[Any] = []
        # Tensors made of no other, such as positions: what is chosen by them does not depend
        # on the inputs. Transformers ask whether their positions are those of packed sequences.
        self.free: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        free = all(id(t) in self.free for t in given)
        out = func(*args, **kwargs)
        if free:
            self.free.update({id(t): t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)})
            return out
        if _may_write(name) or "out" in kwargs:  # into one of them, or a view of it
            self.free.clear()
        if name in _ROUTING or (name == "where" and len(args) == 1 and not kwargs):
            self._note(out)
        elif name == "__getitem__" and (masks := _booleans(args[1])):
            self._note(masks)
        return out

    def _note(self, value: Any) -> None:
        self.found = True
        for v in pytree.tree_leaves(value):
            if isinstance(v, Tensor):
                if not v.is_floating_point() and not v.is_complex():
                    self.taken.append(v.detach())
            elif isinstance(v, int):  # or a bool
                self.taken.append(v)

    def begins(self, other: Routes) -> bool:
        """Whether another run made the same choices, and perhaps more after them."""
        return len(self.taken) <= len(other.taken) and all(map(_same, self.taken, other.taken))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and bool(a == b)


def _may_write(name: str) -> bool:
    """Whether a function of this name may write into its first argument."""
    dunder = name.startswith("__")
    return name.startswith(("__i", "__set")) if dunder else name.endswith("_")


def _booleans(index: Any) -> list[Tensor]:
    parts = index if isinstance(index, tuple) else (index,)
    return [i for i in parts if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]


def is_reversed(a: Tensor, b: Any) -> bool:
    """Whether one tensor has the rows of another in reverse order, up to rounding."""
    if not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    a, b = real_view(a.detach()), real_view(b.detach())
    if not a.is_floating_point():
        return torch.equal(a.flip(0), b)
    near = torch.finfo(a.dtype).eps ** 0.5
    scale = float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
    return torch.allclose(a.flip(0), b, rtol=0, atol=near * scale, equal_nan=True)
