"""Search for ReLUs that no mode sees, in the modules of a model and in the graph that it made.

Guided backpropagation and deconvolution have a rule for ReLU only and leave all other operations as
they are. So a ReLU that is not a call of a torch function would keep its own derivative unnoticed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._model.source import source
from attrfn._rules.errors import refuse_inside
from attrfn._torch import pytree
from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import (
    MODULES,
    NODE_OF_CPP,
    NODE_OF_CUSTOM_OP,
    NODE_OF_RELU,
    NODE_OF_SCRIPT,
    PythonNode,
    function_of,
    slots,
)
from attrfn._torch.private_distributed import MOVES
from attrfn._torch.typing import ModelFn

# The functions of `relu` and `graft`, which are rules themselves.
_OF_RULES = frozenset(["_Guided", "_Deconv", "_Positive"])
_SUSPECT = frozenset([NODE_OF_RELU, NODE_OF_CPP])


def refuse_scripted(model_fn: ModelFn, rules: str) -> None:
    """Raise for a model that contains scripted or traced modules."""
    src = None if is_compiling() else source(model_fn)
    if src is None or not _has_scripted(src.module):
        return
    for name, module in src.module.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            refuse_inside(f"the scripted module {name!r}" if name else "a scripted module", rules)


def _has_scripted(root: nn.Module) -> bool:
    """Whether a module is or contains a scripted one."""
    # `nn.Module.modules` gives the same answer, more slowly: it tracks names and duplicates.
    todo: list[nn.Module | None] = [root]
    while todo:
        module = todo.pop()
        if isinstance(module, torch.jit.ScriptModule):
            return True
        if module is not None:
            todo.extend(slots(module, MODULES).values())
    return False


def refuse_hidden_relus(
    outputs: Any, inputs: Iterable[Tensor], known: Collection[Any] | None, rules: str
) -> None:
    """Raise for a node between inputs and outputs that may contain a ReLU unknown to the run.

    Args:
        outputs: The model's outputs.
        inputs: Its inputs.
        known: The nodes of all ReLUs that had a rule; None where nodes cannot be told apart.
        rules: The name of the rules in messages.
    """
    # A ReLU inside code that is not a call of a torch function leaves only its node in the graph.
    # Suspect nodes are rare, so the second search, from one back to the inputs, seldom runs.
    roots = {t.grad_fn for t in inputs}
    leaves = [outputs] if isinstance(outputs, Tensor) else pytree.tree_leaves(outputs)
    for node in graph([t.grad_fn for t in leaves if isinstance(t, Tensor)], roots):
        kind = type(node)
        if kind.__name__ not in _SUSPECT and not issubclass(kind, PythonNode):
            continue
        what = _opaque(node, known)
        if what and any(earlier in roots for earlier in graph([node], roots)):
            refuse_inside(what, rules)


def _opaque(node: Any, known: Collection[Any] | None) -> str:
    """A name for a node that may contain an unknown ReLU; empty for all others."""
    name = node.name()
    if isinstance(node, PythonNode):
        # an operation of torch.library is a call that the mode sees
        harmless = function_of(name) in _OF_RULES or name.startswith(NODE_OF_CUSTOM_OP)
        harmless = harmless or name in MOVES
        return "" if harmless else f"the custom autograd.Function of {name}"
    if name.endswith(NODE_OF_SCRIPT):
        return "a scripted module or function"
    if name == NODE_OF_RELU and known is not None and node not in known:
        return "a traced module or function, or a fused operation"
    return ""


def graph(nodes: Iterable[Any], roots: Collection[Any]) -> Iterator[Any]:
    """All nodes that lead to some nodes, up to the roots."""
    todo, visited = list(nodes), {None}
    while todo:
        node = todo.pop()
        if node in visited:
            continue
        visited.add(node)
        yield node
        if node not in roots:
            todo.extend([parent for parent, _ in node.next_functions])
