"""Parameters of private copies: they share the user's memory until the model writes into them.

A copy of all weights would cost time and memory, and most models never write into a weight. So a
parameter is a tensor of a class whose methods that write, such as ``clamp_``, first give it memory
of its own; ``.data`` and ``.detach()``, through which models write, do so as well. A function of
torch that writes, such as ``torch.clamp_(weight)``, is not a method. It is noticed after the run by
the tensor's version, and is an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._torch.private import (
    base,
    is_wrapped,
    no_overrides,
    no_transforms,
    plain_function,
    version,
)

_HARMLESS = {"requires_grad_", "detach_", "share_memory_", "rename_"}
_WRITERS = [
    name
    for name in dir(Tensor)
    if (name.endswith("_") and not name.startswith("_") and name not in _HARMLESS)
    or name in {"__setitem__", "numpy", "__array__"}
    or (name.startswith("__i") and name not in {"__init__", "__init_subclass__", "__invert__"})
]
_VIEWS = {
    *("__getitem__", "view", "reshape", "flatten", "t", "transpose", "permute", "unsqueeze"),
    *("squeeze", "narrow", "select", "diagonal", "view_as", "chunk", "split", "unbind", "swapaxes"),
    *("unflatten", "movedim", "as_strided", "expand", "expand_as", "tensor_split", "ravel"),
}
_MOST_VIEWS = 100
_KINDS = (Tensor, nn.Parameter)


class ParameterWrittenError(RuntimeError):
    """A run has changed a parameter, or would."""


class Shared(Tensor):
    """A parameter, or a view of one, that a private copy shares with the user's module.

    Attributes:
        root: The parameter of which this is a view, or None for a parameter.
        views: The views of a parameter that were made by its methods.
        owned: Whether the parameter has memory of its own.
        linked: Whether it is part of the graph of the user's parameter.
    """

    # torch runs Parameter's functions with the same setting: operations cost what they cost with
    # plain tensors, and return those.
    __torch_function__ = plain_function  # type: ignore[assignment]
    _is_param = True  # isinstance(..., nn.Parameter), as in the user's module

    # On the class, because most parameters keep these values, and to set them takes time.
    root: Shared | None = None
    views: list[weakref.ref[Shared]] | None = None
    owned: bool = False
    linked: bool = False

    def __new__(cls, data: Tensor, requires_grad: bool = True) -> Any:
        """One of the same class, as hooks make it that bring the weights of a module."""
        if requires_grad:
            return nn.Parameter(data)
        new: Any = Tensor.data.__get__(data)  # type: ignore[attr-defined]
        new.__class__ = Brought
        return new

    def detach(self) -> Tensor:
        """A tensor without a graph, which may be written into."""
        return _apart(self)

    @property
    def data(self) -> Tensor:
        """The same; of a parameter that is in a graph, its version counts the writes."""
        return _apart(self)

    @data.setter
    def data(self, new: Tensor) -> None:
        if is_wrapped(new):  # torch would end the process
            raise ParameterWrittenError(
                "the model sets .data of a parameter inside a torch.func transform, which torch "
                "cannot do: let the model compute a new tensor"
            )
        _root(self).owned = True  # it has other memory from now on
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A plain tensor."""
        return Tensor.clone(self)

    def __hash__(self) -> int:
        """By identity, as tensors are."""
        return id(self)


class Brought(Shared):
    """A parameter that a hook has put into a private copy; its memory may be the user's."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """A parameter in another place, too, by which the hook knows it."""
        out = Tensor.to(self, *args, **kwargs)
        return out if out is self else Brought(out, requires_grad=False)


def shares(p: Tensor) -> bool:
    """Whether a parameter can be shared in this way."""
    return type(p) in _KINDS and p.layout is torch.strided and not p.is_inference()


def shared(p: Tensor, *, linked: bool) -> Shared:
    """A parameter for a private copy, linked to the graph of the user's or without a graph."""
    # .data has a version that counts alone, so that the user's stays if the memory is its own.
    new: Any = p.view_as(p) if linked else p.data
    new.__class__ = Shared  # as_subclass and _make_subclass take twice as long
    if linked:
        new.linked = True
    shared_now: Shared = new
    return shared_now


def refuse_writes(parameters: list[Shared], written: list[int]) -> None:
    """Refuse what a run wrote into the user's parameters past their methods.

    Args:
        parameters: All shared ones.
        written: Their versions when they were made.

    Raises:
        RuntimeError: It did.
    """
    if list(map(version, parameters)) == written:
        return
    for p, before in zip(parameters, written, strict=True):
        if not p.owned and version(p) != before:
            raise ParameterWrittenError(
                f"model_fn has written into its parameter of shape {tuple(p.shape)} by a function "
                "such as torch.clamp_ or with out=, so the parameter has changed: write "
                "w.clamp_(...) in its place, or let the model compute a new tensor"
            )


def _root(p: Shared) -> Shared:
    return p if p.root is None else p.root


def _apart(p: Shared) -> Tensor:
    root = _root(p)
    if root.linked:
        known: Tensor = _view(p, Tensor.detach(p))
        return known
    _own(p)
    return Tensor.detach(p)


def _own(p: Shared) -> None:
    """Give a parameter memory of its own, before a write into it or into a view of it.

    Raises:
        RuntimeError: The parameter is part of a graph.
    """
    root = _root(p)
    if root.owned:
        return
    if root.linked:
        raise ParameterWrittenError(
            f"the model writes into a parameter of shape {tuple(root.shape)} while it runs, which "
            "would change the user's where derivatives reach the parameters: leave create_graph "
            "and with_rules out, or let the model compute a new tensor"
        )
    with no_overrides(), no_transforms(), torch.inference_mode(False), torch.no_grad():
        old = Tensor.data.__get__(root)  # type: ignore[attr-defined]
        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=old.device)
        new.copy_(old)
        Tensor.data.__set__(root, new)  # type: ignore[attr-defined]
        root.owned = True
        for view in [v for ref in root.views or () if (v := ref()) is not None]:
            place = view.storage_offset() - old.storage_offset()
            Tensor.data.__set__(  # type: ignore[attr-defined]
                view, new.as_strided(view.shape, view.stride(), place)
            )


def _view(p: Shared, out: Any) -> Any:
    """The result of a method, known as a view of the parameter if it is one."""
    root = p if p.root is None else p.root
    if root.owned:
        return out
    for t in out if isinstance(out, (tuple, list)) else (out,):
        if type(t) is Tensor and (root.linked or base(t) is not None):
            t.__class__ = Shared
            t.root = root  # type: ignore[attr-defined]
            _remember(root, t)
    return out


def _remember(root: Shared, view: Any) -> None:
    if root.views is None:
        root.views = []
    elif len(root.views) > _MOST_VIEWS:  # most died with an earlier run
        root.views = [ref for ref in root.views if ref() is not None]
    root.views.append(weakref.ref(view))


def _writing(name: str) -> Callable[..., Any]:
    write = getattr(Tensor, name)

    def method(self: Shared, *args: Any, **kwargs: Any) -> Any:
        _own(self)
        return write(self, *args, **kwargs)

    return method


def _viewing(name: str) -> Callable[..., Any]:
    make = getattr(Tensor, name)

    def method(self: Shared, *args: Any, **kwargs: Any) -> Any:
        return _view(self, make(self, *args, **kwargs))

    return method


def _property(name: str) -> property:
    make = getattr(Tensor, name).__get__
    return property(lambda self: _view(self, make(self)))


for _name in _WRITERS:
    setattr(Shared, _name, _writing(_name))
for _name in _VIEWS:
    setattr(Shared, _name, _viewing(_name))
for _name in ("T", "mT", "H", "mH"):
    setattr(Shared, _name, _property(_name))
