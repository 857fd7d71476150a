"""Which operations of an exported graph belong to which call of which module."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch import SymBool, SymFloat, SymInt, Tensor, fx

from attrfn._torch import pytree

_NUMBERS = (int, SymInt, SymBool, SymFloat)
Stack = tuple[tuple[str, str], ...]
"""The modules around an operation, from the outermost: the key of a call, and a module's path."""


class Region:
    """One call of a module: its operations and the calls inside it.

    Attributes:
        path: The qualified name of the module; empty for the model.
        steps: Nodes and regions, in order.
        inputs: Values from elsewhere, in the order in which they are used.
        outputs: Values that are used elsewhere.
        number: Which call of the module it is.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps: list[fx.Node | Region] = []
        self.inputs: list[fx.Node] = []
        self.outputs: list[fx.Node] = []
        self.number = 0

    def nodes(self) -> Iterator[fx.Node]:
        """All operations, also those of the calls inside."""
        for step in self.steps:
            if isinstance(step, Region):
                yield from step.nodes()
            else:
                yield step

    def regions(self) -> Iterator[Region]:
        """This call and those inside, in the order in which they begin."""
        yield self
        for step in self.steps:
            if isinstance(step, Region):
                yield from step.regions()


def regions_of(graph: fx.Graph) -> tuple[Region, set[str]]:
    """The calls of a graph, and the paths of modules whose operations are not together."""
    root = Region("")
    early = _early(graph)
    root.steps += [*early]
    around: Stack = ()
    now = [root]  # the calls around the node, one more than there are modules around it
    closed: set[Stack] = set()
    torn: set[str] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node in early:
            continue
        stack = _stack(node)
        stack = around if stack is None else stack  # it stays with the node before it
        depth = len(_common(stack, around))
        closed |= {around[: i + 1] for i in range(depth, len(around))}
        del now[depth + 1 :]
        for i in range(depth, len(stack)):
            path = stack[i][1]
            if stack[: i + 1] in closed:
                torn.add(path)
            now.append(Region(path))
            now[-2].steps.append(now[-1])
        now[-1].steps.append(node)
        around = stack
    _number(root)
    for region in root.regions():
        _set_borders(region)
    return root, torn


def _common(a: Stack, b: Stack) -> Stack:
    """The modules that are around both."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return tuple([entry for entry, _ in pairs])


def _early(graph: fx.Graph) -> dict[fx.Node, None]:
    """Sizes of inputs, and what is computed of them: they belong to no module."""
    # Export writes them where they are first needed, though each is a number for the whole run.
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), _NUMBERS):
            given = [n for n in node.all_input_nodes if n.op != "placeholder"]
            if node.all_input_nodes and all(n in found for n in given):
                found[node] = None
    return found


def _stack(node: fx.Node) -> Stack | None:
    """The modules around an operation, and around all that it runs; None if it does not say."""
    given = node.args[0] if node.target is operator.getitem else None
    if isinstance(given, fx.Node) and any(True for _ in bodies(given)):
        return _stack(given)  # a result of such an operation, whose module is inside it
    stack = _modules_around(node)
    # A region without gradients is one operation with a graph, and may hold several modules.
    for body in bodies(node):
        for inner in body.graph.nodes:
            other = _modules_around(inner) if inner.op == "call_function" else None
            if stack is not None and other is not None:
                stack = _common(stack, other)
    return stack


def bodies(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The graphs that an operation runs, such as the branches of a condition."""
    for given in node.all_input_nodes:
        if given.op == "get_attr":
            value: Any = node.graph.owning_module
            for name in str(given.target).split("."):
                value = getattr(value, name)
            if isinstance(value, fx.GraphModule):
                yield value


def _modules_around(node: fx.Node) -> Stack | None:
    """The modules around a node without the model itself; None if the graph does not say."""
    entries = node.meta.get("nn_module_stack")
    if not entries:
        return None
    found: list[tuple[str, str]] = []
    for key, (path, _) in entries.items():
        path = path.partition("@")[0]
        if path and (not found or found[-1][1] != path):
            found.append((key, path))
    return tuple(found)


def _number(root: Region) -> None:
    calls: dict[str, int] = {}
    for region in root.regions():
        region.number = calls.get(region.path, 0)
        calls[region.path] = region.number + 1


def _set_borders(region: Region) -> None:
    inside = dict.fromkeys(region.nodes())
    used: dict[fx.Node, None] = {}
    for node in inside:
        used.update(dict.fromkeys(node.all_input_nodes))
    region.inputs = [n for n in used if n not in inside and n.op != "get_attr"]
    region.outputs = [n for n in inside if any(user not in inside for user in n.users)]


def is_tensor(node: fx.Node) -> bool:
    """Whether the value of a node is a tensor, or holds one."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))


def in_order(nodes: Sequence[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Values that are tensors, which a layer's input consists of, and the others."""
    return [n for n in nodes if is_tensor(n)], [n for n in nodes if not is_tensor(n)]


def calls_of(root: Region) -> dict[str, int]:
    """How often each module runs, by its path."""
    found: dict[str, int] = {}
    for region in root.regions():
        found[region.path] = max(found.get(region.path, 0), region.number + 1)
    return found
