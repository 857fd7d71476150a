"""One call of a torch function, as a function of those of its tensors that depend on the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from attrfn._torch import pytree

# One level of lists is enough: it covers torch.cat, torch.stack and the weights of torch.lstm. A
# general pytree would make each call slower, and rules ask Python at every call.
Place = tuple[int | str, int | None]
"""Where a tensor is among the arguments: its position or keyword, and the index in a list there."""

FIRST: tuple[Place, ...] = ((0, None),)
"""The first positional argument alone."""


class Call(NamedTuple):
    """A call of a torch function.

    Attributes:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        places: The places of the tensors that depend on the inputs.
        name: The operation, the same for all its spellings.
        in_place: Whether the function always writes its first argument.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: tuple[Place, ...]
    name: str
    in_place: bool = False

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The tensors that depend on the inputs."""
        if self.places == FIRST:  # most calls, and this is asked several times for each
            return (self.args[0],)
        return tuple([at(self.args, self.kwargs, place) for place in self.places])

    def __call__(self, *values: Tensor) -> Any:
        """The function's value for other tensors in these places."""
        args, kwargs = self.filled(values)
        return self.func(*args, **kwargs)

    def filled(self, values: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments, with other tensors in these places."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for (key, j), value in zip(self.places, values, strict=True):
            holder: Any = args if isinstance(key, int) else kwargs
            if j is None:
                holder[key] = value
            else:
                items = list(holder[key])
                items[j] = value
                holder[key] = tuple(items) if isinstance(holder[key], tuple) else items
        return args, kwargs

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that may be given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)


def tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[Place, Tensor]]:
    """The tensors among some arguments, including those in lists, with their places."""
    found: list[tuple[Place, Tensor]] = []
    # This runs for every call of the model: two loops are faster than one over a chain of both.
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            found.append(((i, None), value))
        elif isinstance(value, (tuple, list)):
            found += [((i, j), t) for j, t in enumerate(value) if isinstance(t, Tensor)]
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            found.append(((key, None), value))
        elif isinstance(value, (tuple, list)):
            found += [((key, j), t) for j, t in enumerate(value) if isinstance(t, Tensor)]
    return found


def at(args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> Tensor:
    """The tensor at a place."""
    key, j = place
    value: Any = args[key] if isinstance(key, int) else kwargs[key]
    found: Tensor = value if j is None else value[j]
    return found


def members(value: Any) -> Iterator[Tensor]:
    """The tensors of an output, as from ``pytree.tree_leaves``, but faster for tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from members(item)
    elif value is not None and not isinstance(value, (int, float, str)):
        yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
