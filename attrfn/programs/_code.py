"""Calls of modules as Python functions, written from the nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from attrfn.programs._ops import plain, written_input
from attrfn.programs._regions import Region, in_order, is_tensor

CALL = "attrfn_call"
"""The argument that says which call of a module this is, where it has several."""

_LITERALS = (bool, int, str, type(None), type(...))


def written(
    region: Region,
    given: tuple[Sequence[fx.Node], Sequence[fx.Node]],
    reach: Callable[[Any], str],
    tapped: Callable[..., Any],
    calls: Mapping[str, int],
    returned: Any,
) -> Callable[..., Any]:
    """A function of a module and the inputs of a region, which runs the region.

    Args:
        region: The call.
        given: Its arguments by place, and those by name.
        reach: From a node of an attribute, or the path of a module, to an expression in ``self``.
        tapped: ``tapped(module, name, function, *args, **kwargs)`` runs an operation.
        calls: How often each module runs.
        returned: The nodes that it returns, with constants between them.
    """
    writer = _Writer(reach, tapped)
    by_place, by_name = given
    writer.variables.update({n: argument_name(i) for i, n in enumerate(by_name)})
    arguments = ["self", *map(writer.variable, (*by_place, *by_name))]
    dead = _dead_after(region.steps, {*_nodes(returned)})
    for step, nodes in zip(region.steps, dead, strict=True):
        if isinstance(step, Region):
            writer.call(step, calls[step.path])
        else:
            writer.operation(step)
        if nodes:  # freed, as in the module
            writer.lines.append(f"del {', '.join(map(writer.variable, nodes))}")
    writer.lines.append(f"return {writer.text(returned)}")
    return writer.function(arguments, region.path)


def _dead_after(steps: Sequence[Any], kept: set[fx.Node]) -> list[list[fx.Node]]:
    """The nodes that nothing needs after each step."""
    last: dict[fx.Node, int] = {}
    for i, step in enumerate(steps):
        used = step.inputs if isinstance(step, Region) else step.all_input_nodes
        made = step.outputs if isinstance(step, Region) else [step]
        last |= dict.fromkeys([n for n in (*used, *made) if n.op != "get_attr"], i)
    dead: list[list[fx.Node]] = [[] for _ in steps]
    for node, i in last.items():
        if node not in kept:
            dead[i].append(node)
    return dead


class _Writer:
    """The lines of one function, and the objects that they name."""

    def __init__(self, reach: Callable[[Any], str], tapped: Callable[..., Any]) -> None:
        self.reach = reach
        self.lines: list[str] = []
        self.objects: dict[str, Any] = {"tapped": tapped}
        self.names: dict[int, str] = {}
        self.variables: dict[fx.Node, str] = {}

    def variable(self, node: fx.Node) -> str:
        """The variable that holds the value of a node."""
        # Names of nodes come from a file, and must not become code.
        return self.variables.setdefault(node, f"v{len(self.variables)}")

    def object(self, value: Any) -> str:
        """A global name of an object."""
        name = self.names.setdefault(id(value), f"o{len(self.names)}")
        self.objects[name] = value
        return name

    def text(self, value: Any) -> str:
        """An expression for an argument of a node."""
        if isinstance(value, fx.Node):
            return self.reach(value) if value.op == "get_attr" else self.variable(value)
        if isinstance(value, (list, tuple)):
            parts = "".join([f"{self.text(v)}, " for v in value])
            return f"[{parts}]" if isinstance(value, list) else f"({parts})"
        if isinstance(value, dict):
            return "{" + "".join([f"{k!r}: {self.text(v)}, " for k, v in value.items()]) + "}"
        if isinstance(value, slice):
            return (
                f"slice({self.text(value.start)}, {self.text(value.stop)}, {self.text(value.step)})"
            )
        if type(value) in _LITERALS or (type(value) is float and math.isfinite(value)):
            return repr(value)
        return self.object(value)

    def operation(self, node: fx.Node) -> None:
        """Run an operation."""
        if (value := written_input(node)) is not None:
            self.lines.append(f"{self.variable(node)} = {self.text(value)}")
            return
        function: Any = plain(node.target)
        parts = [self.object(function), *map(self.text, node.args)]
        if is_tensor(node):
            parts = ["self", repr(node.name), *parts]
        named = [f"{self.keyword(k)}={self.text(v)}" for k, v in node.kwargs.items()]
        if is_tensor(node):
            text = f"tapped({', '.join([*parts, *named])})"
        else:
            text = f"{parts[0]}({', '.join([*parts[1:], *named])})"
        self.lines.append(f"{self.variable(node)} = {text}")

    def keyword(self, name: str) -> str:
        """The name of an argument, which comes from a file."""
        if not name.isidentifier():
            raise ValueError(f"the program has an argument {name!r}, which is no name")
        return name

    def call(self, region: Region, times: int) -> None:
        """Run a module inside."""
        tensors, others = in_order(region.inputs)
        parts = [*map(self.variable, tensors)]
        parts += [f"{argument_name(i)}={self.variable(n)}" for i, n in enumerate(others)]
        if times > 1:
            parts.append(f"{CALL}={region.number}")
        text = f"{self.reach(region.path)}({', '.join(parts)})"
        if region.outputs:
            text = f"{', '.join(map(self.variable, region.outputs))} = {text}"
        self.lines.append(text)

    def function(self, arguments: Iterable[str], path: str) -> Callable[..., Any]:
        """The function that the lines make."""
        body = "".join([f"    {line}\n" for line in self.lines])
        source = f"def run({', '.join(arguments)}):\n{body}"
        namespace = dict(self.objects)
        exec(compile(source, f"<{path or 'exported program'}>", "exec"), namespace)
        found: Callable[..., Any] = namespace["run"]
        return found


def argument_name(i: int) -> str:
    """The name of an input of a call that is not a tensor."""
    return f"number_{i}"


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, lambda n: found.append(n))
    return found
