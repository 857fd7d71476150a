"""The tree of modules of an exported program, whose modules run operations of its graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from attrfn._torch.private import BUFFERS, MODULES, PARAMETERS, slots
from attrfn.programs._code import CALL
from attrfn.programs._ops import plain_graph

_FOREIGN = "attrfn_of_another_module_"
_NODES = threading.Lock()


class Node(nn.Module):
    """One operation of a program, so that methods find it as they find a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return self.function(*args, **kwargs)


class Scope(nn.Module):
    """A module of the original model, which runs the operations that it ran in each of its calls.

    Attributes:
        attrfn_bodies: One function for each call.
        attrfn_nodes: The operations that some method has named; None if there are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attrfn_bodies: tuple[Callable[..., Any], ...] = ()
        self.attrfn_nodes: dict[str, Node] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        return self.attrfn_bodies[kwargs.pop(CALL, 0)](self, *args, **kwargs)


def tapped(scope: Scope, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run an operation, as a module if a method has named it."""
    nodes = scope.attrfn_nodes
    if nodes is None or name not in nodes:
        return function(*args, **kwargs)
    return nodes[name](*args, **kwargs)


class Reach:
    """Expressions for attributes and modules, as one scope names them.

    Args:
        root: The program.
        scope: The module in which the expression stands.
        path: Its qualified name.
        holder: The graph module, which has all tensors under their names.
    """

    def __init__(self, root: Scope, scope: Scope, path: str, holder: nn.Module) -> None:
        self.root = root
        self.scope = scope
        self.start = f"{path}." if path else ""
        self.holder = holder

    def __call__(self, what: fx.Node | str) -> str:
        """An expression in ``self``."""
        target = what if isinstance(what, str) else str(what.target)
        if isinstance(what, str):
            value: Any = scope_at(self.root, what)
        else:
            value = _attribute(self.holder, target)
            if isinstance(value, fx.GraphModule):
                value = plain_graph(value)
            path, _, name = target.rpartition(".")
            put(scope_at(self.root, path), name, value)
        if target.startswith(self.start):
            names = target.removeprefix(self.start).split(".")
        else:  # a tied weight, or a module that another one calls
            names = [_FOREIGN + target.replace(".", "_")]
            put(self.scope, names[0], value)
        text = "self"
        for name in names:
            text = f"getattr({text}, {name!r})"
        return text


def _attribute(module: Any, target: str) -> Any:
    for name in target.split("."):
        module = getattr(module, name)
    return module


def put(scope: nn.Module, name: str, value: Any) -> None:
    """Register an attribute, as what it is."""
    if hasattr(scope, name):
        return
    if isinstance(value, nn.Parameter):
        scope.register_parameter(name, value)
    elif isinstance(value, Tensor):
        scope.register_buffer(name, value, persistent=False)
    elif isinstance(value, nn.Module):
        scope.add_module(name, value)
    else:
        setattr(scope, name, value)


def tie(holder: nn.Module) -> None:
    """Make one object of tensors that share their memory, which a file may hold as several."""
    known: dict[Any, Tensor] = {}
    for module in holder.modules():
        for kind in (PARAMETERS, BUFFERS):
            members = slots(module, kind)
            for name, t in members.items():
                if t is not None and t.layout is torch.strided and t.data_ptr():
                    place = kind, t.data_ptr(), t.shape, t.stride(), t.dtype
                    members[name] = known.setdefault(place, t)


def copy_state(holder: nn.Module, root: Scope) -> None:
    """All parameters and buffers under their names, also those that no operation uses."""
    for name, value in (
        *holder.named_parameters(remove_duplicate=False),
        *holder.named_buffers(remove_duplicate=False),
    ):
        path, _, leaf = name.rpartition(".")
        put(scope_at(root, path), leaf, value)


def scope_at(root: Scope, path: str) -> Scope:
    """The module of a path, made if there is none."""
    scope = root
    for name in path.split(".") if path else ():
        inner: Any = slots(scope, MODULES).get(name)
        if inner is None:
            inner = Scope()
            inner.training = root.training
            scope.add_module(name, inner)
        scope = inner
    return scope


def module_at(root: nn.Module, path: str) -> nn.Module | None:
    """The module of a path; None if there is none."""
    module: Any = root
    for name in path.split("."):
        module = slots(module, MODULES).get(name) if module is not None else None
    found: nn.Module | None = module
    return found


def node_at(scope: Scope, name: str, function: Callable[..., Any]) -> Node:
    """An operation as a module, the same in each call."""
    with _NODES:
        nodes = scope.attrfn_nodes or {}
        if name not in nodes:
            # Another dict, because another thread may be copying this one.
            scope.attrfn_nodes = nodes = {**nodes, name: Node(function)}
        return nodes[name]


def watched(root: nn.Module) -> bool:
    """Whether a method reads or overwrites a module or an operation below a module in this run."""
    for module in root.modules():
        nodes = (module.attrfn_nodes or {}).values() if isinstance(module, Scope) else ()
        if any(one.__dict__.get("_attrfn_intervention") is not None for one in (module, *nodes)):
            return True
    return False
