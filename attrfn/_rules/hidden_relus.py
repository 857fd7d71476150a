"""ReLUs that no mode sees, looked for where a model is about to run and in the graph that it made.

Guided backpropagation and deconvolution have a rule for ReLU alone and leave all other operations
as they are. So a ReLU that is no call of a torch function would keep its derivative unnoticed.
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
from attrfn._torch.typing import ModelFn

_OWN = frozenset(["_Guided", "_Deconv", "_Positive"])
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
    """Whether a module is or contains one: ``modules()`` finds the same out, more slowly."""
    todo: list[nn.Module | None] = [root]
    while todo:
        module = todo.pop()
        if isinstance(module, torch.jit.ScriptModule):
            return True
        if module is not None:
            todo.extend(slots(module, MODULES).values())
    return False


def refuse_hidden_relus(
    outputs: Any, inputs: Iterable[Tensor], seen: Collection[Any] | None, rules: str
) -> None:
    """Raise for what can contain a ReLU that the run did not see, between inputs and outputs.

    Args:
        outputs: What the model returned.
        inputs: What it got.
        seen: The nodes of all ReLUs that the run saw, or None where they cannot be told apart.
        rules: What messages call the rules.
    """
    roots = {t.grad_fn for t in inputs}
    leaves = [outputs] if isinstance(outputs, Tensor) else pytree.tree_leaves(outputs)
    for node in graph([t.grad_fn for t in leaves if isinstance(t, Tensor)], roots):
        kind = type(node)
        if kind.__name__ not in _SUSPECT and not issubclass(kind, PythonNode):
            continue
        what = _opaque(node, seen)
        if what and any(behind in roots for behind in graph([node], roots)):
            refuse_inside(what, rules)


def _opaque(node: Any, seen: Collection[Any] | None) -> str:
    """What a node can be that contains a ReLU which nobody saw; else nothing."""
    name = node.name()
    if isinstance(node, PythonNode):
        # an operation of torch.library is a call that the mode sees
        known = function_of(name) in _OWN or name.startswith(NODE_OF_CUSTOM_OP)
        return "" if known else f"the custom autograd.Function of {name}"
    if name.endswith(NODE_OF_SCRIPT):
        return "a scripted module or function"
    if name == NODE_OF_RELU and seen is not None and node not in seen:
        return "a traced module or function, or a fused operation"
    return ""


def graph(nodes: Iterable[Any], roots: Collection[Any]) -> Iterator[Any]:
    """All nodes that lead to some nodes, not further than the roots."""
    todo, met = list(nodes), {None}
    while todo:
        node = todo.pop()
        if node in met:
            continue
        met.add(node)
        yield node
        if node not in roots:
            todo.extend([parent for parent, _ in node.next_functions])
