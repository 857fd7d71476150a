"""What happens at the sites of a model in one run: values are recorded and edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from attrfn._layers.probe import arguments
from attrfn._layers.sites import Seen, Site, Sites, check_passed, described
from attrfn._layers.values import changes, clone_value, opened
from attrfn._model.classes import Forward, Intervention
from attrfn._torch.compiling import is_compiling
from attrfn._torch.guard import fail, first_line, is_plain
from attrfn._torch.typing import Tree

Edit = Callable[[Tree, Seen], Tree]


class Silent:
    """An edit of the library's own: it gets the value itself, and nothing is noted."""

    def __call__(self, natural: Tree, site: Site) -> Tree:
        """The value with which the model goes on."""
        return natural


class Recorder:
    """Takes what one run has seen, for a caller that wants it."""

    def __init__(self) -> None:
        self.seen: Any = None


class Plan(NamedTuple):
    """Sites of a model at which each run applies edits (see :mod:`attrfn._model.edits`)."""

    sites: Sites

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that need an intervention."""
        return self.sites.modules

    def begin(self, edits: Any) -> tuple[list[tuple[nn.Module, Tap]], Callable[[], None]]:
        """What runs around the modules in one run, and the check at its end.

        Args:
            edits: One for each site, or a recorder.
        """
        seen = Seen(self.sites)
        if isinstance(edits, Recorder):
            edits.seen, edits = seen, (None,) * len(self.sites.keys)
        taps: list[tuple[nn.Module, Tap]] = []
        for i, module in enumerate(self.sites.modules):
            tap = next((tap for m, tap in taps if m is module), None)
            if tap is None:
                tap = Tap(self.sites, edits, seen)
                taps.append((module, tap))
            (tap.inputs if self.sites.sites[i].at == "input" else tap.outputs).append(i)

        def check() -> None:
            for _, tap in taps:
                for i in (*tap.inputs, *tap.outputs):
                    check_passed(self.sites.sites[i], tap.count)

        return taps, check


class Tap:
    """What happens at one module in one run.

    Attributes:
        inputs: The sites at its input, in order.
        outputs: The sites at its output.
        count: How often it was called.
    """

    def __init__(self, sites: Sites, edits: Sequence[Any], seen: Seen) -> None:
        self.sites = sites
        self.edits = edits
        self.seen = seen
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.count = 0

    def __call__(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        between: Intervention | None = None,
    ) -> Any:
        """Run the module.

        Args:
            forward: Its forward.
            args: Positional arguments.
            kwargs: Keyword arguments.
            between: What else happens at this module, to the values after these edits.
        """
        number = self.count
        self.count = number + 1
        for i in self._now(self.inputs, number):
            new = self._edited(i, number, arguments(args, kwargs))
            args, kwargs = _with_arguments(new, args, kwargs)
        if between is None:
            return self._leave(number, forward(*args, **kwargs))

        # What is between may plant other values, which are then those that the run has seen.
        def inside(*args: Any, **kwargs: Any) -> Any:
            self._note(self.inputs, number, arguments(args, kwargs))
            return self._leave(number, forward(*args, **kwargs))

        out = between(inside, args, kwargs)
        self._note(self.outputs, number, out)
        return out

    def _applied(self, i: int, value: Tree) -> Tree:
        """What an edit returns; its errors name the site."""
        edit = self.edits[i]
        if is_compiling():
            return edit(value, self.seen)
        try:
            return edit(value, self.seen)
        except Exception as error:
            if is_plain(error):
                place = described(self.sites.sites[i])
                fail(error, f"the edit at {place} failed: {first_line(error)}")
            raise

    def _now(self, sites: list[int], number: int) -> list[int]:
        return [i for i in sites if self.sites.sites[i].call in (None, number)]

    def _leave(self, number: int, out: Any) -> Any:
        for i in self._now(self.outputs, number):
            out = self._edited(i, number, out)
        return out

    def _note(self, sites: list[int], number: int, value: Any) -> None:
        for i in self._now(sites, number):
            self.seen.note(i, number, clone_value(value))

    def _edited(self, i: int, number: int, natural: Tree) -> Tree:
        """The value with which the model goes on; what was seen is noted."""
        edit = self.edits[i]
        if isinstance(edit, Silent):
            return edit(natural, self.sites.sites[i])
        if edit is None:
            # Cloned, because the model may write into the value later.
            self.seen.note(i, number, clone_value(natural))
            return natural
        new = self._applied(i, clone_value(natural))
        try:
            found = changes(new, natural)
        except ValueError as error:
            site = self.sites.sites[i]
            raise ValueError(f"the edit at {described(site)} returned {error}") from error
        tensors, rebuild = opened(natural)
        pairs = list(zip(found, tensors, strict=True))
        self.seen.note(i, number, rebuild([t.clone() if n is None else n for n, t in pairs]))
        return rebuild([t if n is None else n.clone() for n, t in pairs])


def _with_arguments(
    new: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with another input, of the form of :func:`arguments`."""
    if not args:
        return (), new
    return tuple(new) if len(args) > 1 else (new,), kwargs
