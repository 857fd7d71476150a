"""The module that a model function calls, and its layers by name."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attrfn._torch.compiling import is_compiling
from attrfn._torch.private import COMPILED_MODULE, MODULES, slots
from attrfn._torch.private_distributed import CHECKPOINTED_MODULE
from attrfn._torch.say import say
from attrfn._torch.typing import ModelFn


class Source(NamedTuple):
    """A module and how a model function calls it.

    Attributes:
        module: The module.
        params: Tensors in place of its parameters and buffers, by qualified name.
        method: The function called with the module as self; ``None`` for the module itself.
        args: Bound positional arguments.
        kwargs: Bound keyword arguments.
        around: Layers with the interventions that run around their forward.
        edits: Plans of edits (see :mod:`attrfn._model.edits`); what each needs in a run is one of
            the first bound arguments.
    """

    module: nn.Module
    params: Mapping[str, Tensor] | None
    method: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    around: tuple[tuple[nn.Module | str, Any], ...] = ()
    edits: tuple[Any, ...] = ()


def source(model_fn: ModelFn) -> Source | None:
    """The module in functools.partial, bound methods and partial(functional_call, module, params).

    None for any other function: nothing tells which modules a closure or a lambda calls.
    """
    if isinstance(model_fn, nn.Module):
        return Source(model_fn, None, None, (), {})
    if isinstance(model_fn, types.MethodType) and isinstance(model_fn.__self__, nn.Module):
        return Source(model_fn.__self__, None, model_fn.__func__, (), {})
    if isinstance(found := getattr(model_fn, "attrfn_source", None), Source):
        return found
    if not isinstance(model_fn, functools.partial):
        return None
    args, kwargs = model_fn.args, model_fn.keywords
    if is_functional(model_fn):
        given = (args[1],) if isinstance(args[1], Mapping) else args[1]
        params = {name: t for part in given for name, t in part.items()}
        return Source(args[0], params, None, (), dict(kwargs.get("kwargs") or {}))
    inner = source(model_fn.func)
    if inner is None:
        return None
    return inner._replace(args=(*inner.args, *args), kwargs={**inner.kwargs, **kwargs})


def is_functional(model_fn: ModelFn) -> bool:
    """Whether this is ``functools.partial(torch.func.functional_call, module, params)``."""
    if not isinstance(model_fn, functools.partial) or len(model_fn.args) != 2:
        return False
    module, params = model_fn.args
    dicts = params if isinstance(params, (tuple, list)) else (params,)
    return (
        isinstance(module, nn.Module)
        and all(isinstance(d, Mapping) for d in dicts)
        # By name, because torch.compile cannot compare the function itself.
        and getattr(model_fn.func, "__name__", "") == functional_call.__name__
    )


def inside(root: nn.Module) -> nn.Module:
    """The module whose names of layers hold: a wrapper may say that they are those of a part."""
    inner = getattr(root, "attrfn_inside", None)
    return inner if isinstance(inner, nn.Module) else root


def find(root: nn.Module, layer: nn.Module | str) -> nn.Module:
    """The module that a layer argument names.

    Raises:
        TypeError: It is neither a module nor a name.
        ValueError: The model has no module of this name.
    """
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"layer is {shown(layer)}, expected a module of the model, its qualified name, or a "
            "list of either"
        )
    if (own := layer_of_program(root, layer)) is not None:
        return own
    if not is_compiling() and (direct := by_path(root, layer)) is not None:
        return direct
    # A module may have several names (reuse, ties), and each of them is right.
    names = {unwrapped_name(name): m for name, m in root.named_modules(remove_duplicate=False)}
    names = {unwrapped_name(name): m for name, m in inside(root).named_modules()} | names
    wanted = unwrapped_name(layer)
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see named_modules()"
        raise ValueError(f"layer {say(layer)} is not part of {type(root).__name__}: {hint}")
    found: nn.Module = names[wanted]
    return found


def layer_of_program(root: nn.Module, name: str) -> nn.Module | None:
    """What an exported program has by a name beside its modules: a node of its graph.

    Raises:
        ValueError: It is the name of a module that has no value in the program, or the program is
            bare, as ``exported.module()`` returns it, whose modules never run.
    """
    bare = isinstance(root, torch.fx.GraphModule) and "range_constraints" in root.__dict__
    if bare and name:  # the program as a whole runs
        raise ValueError(
            f"layer {say(name)} is named in what ExportedProgram.module() returns, whose layers "
            "never run: give attrfn.programs.load(exported_program), which has them"
        )
    named = getattr(type(root), "attrfn_layer", None)
    found: nn.Module | None = None if named is None else named(root, name)
    return found


def by_path(root: nn.Module, name: str) -> nn.Module | None:
    """The module at a qualified name; None if a wrapper is on the way, or there is none."""
    module: Any = root
    for part in name.split(".") if name else ():
        members: Any = slots(module, MODULES)
        module = members.get(part) if isinstance(members, dict) else None
        if module is None:
            return None
    found: nn.Module = module
    return found


def foreign(root: nn.Module, layer: nn.Module | str) -> ValueError:
    """The error for a module that the walk over the model did not meet."""
    if isinstance(find(root, layer), torch.jit.ScriptModule):
        return ValueError(
            f"layer {describe(layer)} is a scripted or traced module, or a part of one, whose "
            "calls cannot be watched: take the model as it was before torch.jit.script or trace"
        )
    return ValueError(
        f"layer {describe(layer)} is not part of {type(root).__name__}: give one of its modules or "
        "the qualified name of one"
    )


def describe(layer: Any) -> str:
    """A layer as messages name it."""
    return repr(layer) if isinstance(layer, str) else type(layer).__name__


def shown(value: Any) -> str:
    """A wrong value as messages name it."""
    if value is None or isinstance(value, type):
        return f"the class {value.__name__}" if value else "None"
    kind = type(value).__name__
    text = "" if callable(value) or isinstance(value, Tensor) else repr(value)
    return f"{text} ({kind})" if 0 < len(text) <= 40 and "\n" not in text else f"a {kind}"


def unwrapped_name(name: str) -> str:
    """A qualified name without the wrappers of torch.compile and of checkpointing."""
    return name.replace(f"{COMPILED_MODULE}.", "").replace(f"{CHECKPOINTED_MODULE}.", "")
