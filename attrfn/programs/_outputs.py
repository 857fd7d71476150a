"""Which of a program's outputs a model function returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from attrfn._torch.say import say

Outputs: TypeAlias = int | str | Sequence[int | str] | None
"""One output by its place or name, several of them (then a tuple), or all."""


def check_outputs(outputs: Any) -> None:
    """Refuse what is not a place or name.

    Raises:
        TypeError: It is neither.
    """
    parts = outputs if isinstance(outputs, (list, tuple)) else (outputs,)
    fine = all(isinstance(p, (int, str)) and not isinstance(p, bool) for p in parts)
    if outputs is not None and not (fine and parts):
        raise TypeError(
            f"outputs is {say(outputs)}, expected None (all), a place such as 0, a name such as "
            "'logits', or a list of these"
        )


def chosen(found: Any, outputs: Outputs) -> Any:
    """Some of the outputs that a program has returned.

    Raises:
        ValueError: There is no such output.
    """
    if outputs is None:
        return found
    if isinstance(outputs, (list, tuple)):
        return tuple([_one(found, one) for one in outputs])
    return _one(found, outputs)  # type: ignore[arg-type]


def _one(found: Any, which: int | str) -> Any:
    if isinstance(which, str) and isinstance(found, Mapping) and which in found:
        return found[which]
    if isinstance(which, str) and not isinstance(found, Mapping) and hasattr(found, which):
        return getattr(found, which)
    if isinstance(which, int):
        several = isinstance(found, (list, tuple))
        parts = found if several else [*found.values()] if isinstance(found, Mapping) else [found]
        if -len(parts) <= which < len(parts):
            return parts[which]
    names = f", named {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
    count = len(found) if isinstance(found, (list, tuple, Mapping)) else 1
    raise ValueError(
        f"outputs names {which!r}, and the program returns {count} output(s){names}: expected a "
        "place or a name among these"
    )


class Selected(nn.Module):
    """A module that returns some of the outputs of another one.

    Args:
        module: The other one.
        outputs: Which.
    """

    def __init__(self, module: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.module = module
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs."""
        return chosen(self.module(*args, **kwargs), self.outputs)
