"""Sites: places in a model where a value is read or edited, and what one run has seen of them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from attrfn._copies.batch import is_one_of
from attrfn._model.source import (
    by_path,
    describe,
    find,
    layer_of_program,
    shown,
    unwrapped_name,
)
from attrfn._torch.compiling import is_compiling
from attrfn._torch.say import say
from attrfn._torch.typing import At, Tree

_NO_MODULE = (
    "for a value between modules, such as attention scores, give the input or the output of the "
    "module next to it"
)


class Site(NamedTuple):
    """A place in a model: a layer, its output or its input, and one of its calls.

    Wherever a site is expected, a bare module or name stands for its output in its first call.

    Attributes:
        layer: A module of the model, or its qualified name.
        at: ``"output"`` of the layer or its ``"input"`` (positional arguments, a tuple if there are
            several; the dict of keyword arguments if there are no positional ones).
        call: Which call of a layer that is used several times; ``None`` takes all of them.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> x = torch.randn(5, 3)
        >>> before = attrfn.Site("1", at="input")
        >>> out, found = attrfn.activations(model, ["0", before])(x)
        >>> torch.equal(found["0"], found[before])
        True
    """

    layer: nn.Module | str
    at: At = "output"
    call: int | None = 0


Key = nn.Module | str | Site


def as_site(key: Any) -> Site:
    """The site that a key stands for."""
    return key if isinstance(key, Site) else Site(key)


def keys_of(sites: Any) -> tuple[Any, ...]:
    """The keys in an argument ``sites``, which may be a single one."""
    if isinstance(sites, (Site, str, nn.Module)):
        return (sites,)
    try:
        return tuple(dict.fromkeys(sites))
    except TypeError as error:
        raise TypeError(
            f"sites is {shown(sites)}, expected a list of layers (modules or their names) or "
            "attrfn.Site"
        ) from error


class Sites(NamedTuple):
    """Checked sites of a model.

    Attributes:
        keys: As the user gave them.
        sites: What the keys stand for.
        modules: The module of each.
    """

    keys: tuple[Any, ...]
    sites: tuple[Site, ...]
    modules: tuple[nn.Module, ...]

    def place(self, key: Any) -> int | None:
        """The place of a key, or of one that stands for the same site."""
        wanted = as_site(key)
        for i, site in enumerate(self.sites):
            named = wanted.layer is self.modules[i] or (
                isinstance(wanted.layer, str) and wanted.layer == site.layer
            )
            if named and wanted.at == site.at and wanted.call == site.call:
                return i
        return None


def check_sites(root: nn.Module, keys: Sequence[Any]) -> Sites:
    """Find the sites of some keys in a model.

    Raises:
        TypeError: A key is not a layer.
        ValueError: The model has no such layer, or ``at`` or ``call`` is none.
    """
    sites = tuple(map(as_site, keys))
    return Sites(tuple(keys), sites, tuple([_module(root, site) for site in sites]))


def _module(root: nn.Module, site: Site) -> nn.Module:
    if not is_one_of(site.at, "input", "output"):
        raise ValueError(f"a site has at={say(site.at)}, expected 'input' or 'output'")
    call = site.call
    if call is not None and (type(call) is not int or call < 0):
        raise ValueError(
            f"a site has call={say(call)}, expected None (all calls) or an int of at least 0"
        )
    if isinstance(site.layer, nn.Module):
        return find(root, site.layer)
    if not isinstance(site.layer, str):
        raise TypeError(
            f"sites holds {shown(site.layer)}, expected a module of the model, its qualified name "
            f"or attrfn.Site: {_NO_MODULE}"
        )
    module = layer_of_program(root, site.layer)
    if module is None and not is_compiling():
        module = by_path(root, site.layer)
    if module is None:
        named = root.named_modules(remove_duplicate=False)
        names = {unwrapped_name(name): m for name, m in named}
        module = names.get(unwrapped_name(site.layer))
    if module is None:
        near = difflib.get_close_matches(site.layer, names, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}" if near else "see named_modules()"
        raise ValueError(
            f"site {say(site.layer)} is not a module of {type(root).__name__}: {hint}; {_NO_MODULE}"
        )
    return module


class Seen(Mapping[Any, Tree]):
    """The sites that one run has passed so far, and their values after editing; read-only.

    A key is found as it was given, or by another name of the same site.
    """

    def __init__(self, sites: Sites) -> None:
        self._sites = sites
        self._found: dict[int, Any] = {}

    def __getitem__(self, key: Any) -> Tree:
        """The value of a site; of all calls a tuple."""
        i = self._sites.place(key)
        if i is None or i not in self._found:
            why = "is none of the sites" if i is None else "has not been passed yet in this run"
            raise KeyError(f"site {described(as_site(key))} {why}")
        value = self._found[i]
        return tuple(value.values()) if self._sites.sites[i].call is None else value

    def __iter__(self) -> Iterator[Any]:
        """The keys in the order in which the run passed them."""
        return iter([self._sites.keys[i] for i in self._found])

    def __len__(self) -> int:
        """How many sites were passed."""
        return len(self._found)

    def __repr__(self) -> str:
        """The keys."""
        return f"Seen({', '.join([repr(key) for key in self])})"

    def note(self, i: int, number: int, value: Tree) -> None:
        """Note the value of a site in a call."""
        if self._sites.sites[i].call is None:
            self._found.setdefault(i, {})[number] = value
        else:
            self._found[i] = value


def described(site: Site) -> str:
    """A site as messages name it."""
    more = [] if site.at == "output" else [f"at={site.at!r}"]
    more += [] if site.call == 0 else [f"call={site.call}"]
    named = describe(site.layer)
    return f"{named} ({', '.join(more)})" if more else named


def check_passed(site: Site, calls: int) -> None:
    """Refuse a site that a whole run has not passed.

    Raises:
        ValueError: The layer, or this call of it, did not happen.
    """
    if calls == 0:
        raise ValueError(
            f"site {described(site)} was not passed, because the model did not call this module: "
            f"choose one that it calls (scripted or bypassed ones are not); {_NO_MODULE}"
        )
    if site.call is not None and site.call >= calls:
        raise ValueError(
            f"site {described(site)} was not passed, because the model called the layer {calls} "
            f"time(s): expected call=0 to {calls - 1}, or None for all calls"
        )


def check_edit(key: Any, edit: Any) -> None:
    """Refuse what is not a function of (value, seen).

    Raises:
        TypeError: It is something else.
    """
    if edit is None:
        return
    if not callable(edit):
        raise TypeError(
            f"the edit at {described(as_site(key))} is {shown(edit)}, expected a function of "
            "(value, seen) that returns the new value, or None to record the value alone"
        )
    if not is_compiling():
        _check_takes_two(key, edit)


def _check_takes_two(key: Any, edit: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(edit.forward if isinstance(edit, nn.Module) else edit)
    except (TypeError, ValueError):  # of functions in C
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"the edit at {described(as_site(key))} does not take two arguments, expected a "
            "function of (value, seen), such as lambda a, seen: 2 * a"
        ) from error
