"""The inputs of an exported program: their structure, and the sizes that it was exported for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from attrfn._torch import pytree
from attrfn._torch.guard import first_line
from attrfn._torch.say import say
from attrfn.programs._groups import Rows

_DYNAMIC = "with this dimension dynamic, as dynamic_shapes= of torch.export.export says it"


class Leaf(NamedTuple):
    """What a program expects of one input.

    Attributes:
        name: Its name.
        shape: Its sizes; a text stands for a dynamic one, and equal texts for equal sizes. None of
            an input that is not a tensor.
        value: The value of an input that is not a tensor.
    """

    name: str
    shape: tuple[int | str, ...] | None
    value: Any = None


class Signature:
    """The inputs of a program.

    Args:
        spec: The structure of ``(args, kwargs)``.
        leaves: What is expected of each leaf.
        names: The names of the arguments, first those that come by place; None if unknown.
        ranges: The least and largest size of a dynamic one.
        guards: A function of all leaves that asserts what the program needs besides.
    """

    def __init__(
        self,
        spec: Any,
        leaves: Sequence[Leaf],
        names: Sequence[str] | None,
        ranges: Mapping[str, tuple[int | None, int | None]],
        guards: Callable[..., Any] | None,
    ) -> None:
        self.spec = spec
        self.leaves = tuple(leaves)
        by_place, by_name = pytree.children(spec)
        self.places = len(pytree.children(by_place))
        self.keywords = list(by_name.context)
        fits = names is not None and len(names) == self.places + len(self.keywords)
        known = list(names) if names is not None and fits else None
        self.names = self.keywords if known is None and not self.places else known
        self.ranges = dict(ranges)
        self.guards = guards

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The leaves of some arguments.

        Raises:
            ValueError: They have another structure.
        """
        given = pytree.in_order_of(self._arranged(args, kwargs), self.spec)
        leaves, spec = pytree.tree_flatten(given)
        if spec != self.spec:
            names = [*(self.names or [f"argument {i}" for i in range(self.places)])]
            by_name = f" and {', '.join(self.keywords)} by name" if self.keywords else ""
            raise ValueError(
                f"the program got {len(args)} argument(s) by place and {[*kwargs]} by name, in a "
                f"structure that it was not exported for: it takes "
                f"{', '.join(names[: self.places])}{by_name}, {len(self.leaves)} leaves in all"
            )
        return leaves

    def _arranged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """By place what was exported so, and by name the rest."""
        if self.names is None or (len(args) == self.places and [*kwargs] == self.keywords):
            return args, kwargs
        named = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(named) or named.keys() != set(self.names):
            return args, kwargs
        placed = tuple([named[name] for name in self.names[: self.places]])
        return placed, {name: named[name] for name in self.keywords}

    def rows(self, flat: Sequence[Any]) -> Rows | None:
        """How many rows the program takes and got, where it takes a fixed number alone."""
        found: tuple[int, int] | None = None
        split = []
        for leaf, value in zip(self.leaves, flat, strict=True):
            split.append(False)
            if not leaf.shape or not isinstance(value, Tensor) or value.ndim != len(leaf.shape):
                continue
            fixed, given = leaf.shape[0], value.shape[0]
            if not isinstance(fixed, int) or fixed == given or fixed == 0:
                continue
            if found not in (None, (fixed, given)):
                return None  # which check() refuses
            found, split[-1] = (fixed, given), True
        return None if found is None else Rows(*found, split)

    def check(self, flat: Sequence[Any]) -> None:
        """Refuse inputs for which the program was not exported.

        Raises:
            ValueError: A size, or a value that is not a tensor, is another one.
        """
        known: dict[str, int] = {}
        for leaf, value in zip(self.leaves, flat, strict=True):
            if leaf.shape is None:
                _check_value(leaf, value)
            else:
                self._check_shape(leaf, leaf.shape, value, known)
        if self.guards is None:
            return
        try:
            self.guards(*flat)
        except AssertionError as error:
            raise ValueError(
                f"the program does not hold for these inputs ({first_line(error)[:120]}): export "
                "it with example inputs like these, or with other dynamic_shapes"
            ) from error

    def _check_shape(
        self, leaf: Leaf, shape: tuple[int | str, ...], value: Any, known: dict[str, int]
    ) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"input {leaf.name!r} of the program is {say(value)}, expected a tensor of "
                f"{len(shape)} dimension(s)"
            )
        fits = value.ndim == len(shape)
        for size, expected in zip(value.shape, shape, strict=False):
            if isinstance(expected, int):
                fits = fits and size == expected
                continue
            low, high = self.ranges.get(expected, (None, None))
            fits = fits and known.setdefault(expected, size) == size
            fits = fits and (low is None or size >= low) and (high is None or size <= high)
        if not fits:
            raise ValueError(
                f"input {leaf.name!r} of the program has shape {tuple(value.shape)}, and it was "
                f"exported for ({', '.join(map(str, shape))}): give these sizes, or export it "
                f"{_DYNAMIC}"
            )


def _check_value(leaf: Leaf, value: Any) -> None:
    if isinstance(value, Tensor) or not (value is leaf.value or value == leaf.value):
        raise ValueError(
            f"input {leaf.name!r} of the program is {say(value)}, and it was exported for "
            f"{say(leaf.value)}, which it holds as a constant: give that, or export it again"
        )


def signature_of(exported: Any, module: Any, guards: Callable[..., Any] | None) -> Signature:
    """The inputs of an ExportedProgram.

    Args:
        exported: The program.
        module: Its graph module.
        guards: A function of all leaves that asserts what the program needs besides.
    """
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    call = exported.module_call_graph[0].signature
    names = getattr(call, "forward_arg_names", None)
    ranges = {str(size): (_bound(r.lower, 3), _bound(r.upper, 0))
              for size, r in exported.range_constraints.items()}  # fmt: skip
    return Signature(exported.call_spec.in_spec, [*map(_leaf, places)], names, ranges, guards)


def _leaf(node: Any) -> Leaf:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return Leaf(node.name, None, value)
    shape: Any = value.shape
    sizes = [size if isinstance(size, int) else str(size.node.expr) for size in shape]
    return Leaf(node.name, tuple(sizes))


def _bound(number: Any, least: int) -> int | None:
    """A limit of a size; None if there is none. torch writes 2 for sizes that may be 0 and 1."""
    if not getattr(number, "is_Integer", False) or int(number) < least:
        return None
    return int(number)
