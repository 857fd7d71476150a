"""What happens at a layer while a model runs: it is read, overwritten or watched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optree
from torch import Tensor, nn

from attrfn._explain.tree import as_dicts, clone_tensors
from attrfn._layers.leaves import complex_view, real_view
from attrfn._model.bind import Reused
from attrfn._model.classes import Forward
from attrfn._model.source import describe
from attrfn._torch.compiling import is_compiling
from attrfn._torch.dense import is_packed
from attrfn._torch.explanation import current
from attrfn._torch.marks import Marks
from attrfn._torch.typing import At, Tree


class Where(NamedTuple):
    """The layers that are probed, and how the model is bound while they are.

    Attributes:
        layers: The layers, at least one.
        at: Their ``"output"`` or ``"input"``.
        call: Which call of each, or None for all.
        many: Whether the user gave a list, so that values come as a list.
        frozen: Whether parameters are detached.
        reused: Private copies for several runs, or None where each run builds its own.
    """

    layers: tuple[nn.Module | str, ...]
    at: At
    call: int | None
    many: bool
    frozen: bool
    reused: Reused | None


class Done(BaseException):
    """Leaves the model once every layer has been read; ends in :mod:`attrfn._layers.split`.

    Not an Exception, because a model may catch those.
    """


class Probe:
    """What happens at one layer during one run: its calls are counted, read, or overwritten."""

    def __init__(
        self,
        where: Where,
        plant: Sequence[Tree] | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.at = where.at
        self.call = where.call
        self.plant = plant
        self.read: list[Tree] = []
        self.count = 0
        self.peers: list[Probe] = []
        self.marks = marks
        self.downstream = False

    @property
    def plants(self) -> bool:
        """Whether it overwrites the layer's value."""
        return self.plant is not None

    def __call__(self, run: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = self.count
        self.count = number + 1
        if self.call is not None and number != self.call:
            return run(*args, **kwargs)
        if self.plant is None:
            return self._read(run, args, kwargs)
        place = 0 if self.call is not None else number
        if self.marks is None:
            return self._write(run, args, kwargs, place)
        self.downstream = self.downstream or self.marks.on((args, kwargs))
        return self.marks.add(self._write(run, args, kwargs, place))

    def _read(self, run: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.at == "input":
            # Cloned, because the layer may write into its input, and what follows into its output.
            self.read.append(clone_tensors(arguments(args, kwargs)))
            self._leave_when_done()
            return run(*args, **kwargs)
        out = run(*args, **kwargs)
        self.read.append(clone_tensors(out))
        self._leave_when_done()
        return out

    def _leave_when_done(self) -> None:
        # The rest of the model is not needed. Compiled code drops it as dead code, and with all
        # calls wanted, only the end of the model shows that there are no more.
        if self.call is not None and not is_compiling() and all(t.read for t in self.peers):
            raise Done

    def _write(self, run: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], i: int) -> Any:
        plant = () if self.plant is None else self.plant
        if i >= len(plant):
            raise ValueError(
                f"activation holds {len(plant)} values, expected one for each call of the layer"
            )
        if self.at == "input":
            return call_with(run, merge(plant[i], arguments(args, kwargs)), args, kwargs)
        if _is_complete(plant[i]):
            one = current()
            if one is not None and one.draws:
                run(*args, **kwargs)  # what it draws, so that the rest of the model draws the same
            return clone_tensors(plant[i])
        return merge(plant[i], run(*args, **kwargs))


class LayerValue(NamedTuple):
    """A layer's value as leaves of a graph, and the value that these are copied from."""

    value: Tree
    natural: Tree


class Watch(Probe):
    """Lets the model run on from a copy of the layer's value, at which a graph starts.

    Attributes:
        apart: Whether the copy belongs to a graph that has started at another layer.
        found: What was read.
    """

    def __init__(self, where: Where, apart: bool) -> None:
        super().__init__(where)
        self.apart = apart
        self.found: list[LayerValue] = []

    def _read(self, run: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.at == "input":
            return call_with(run, self._start(arguments(args, kwargs)), args, kwargs)
        return self._start(run(*args, **kwargs))

    def _start(self, value: Tree) -> Tree:
        # Cloned, because the model may write into the value later.
        natural = of_tensors(lambda t: real_view(t.clone()), as_dicts(value))
        leaves = of_tensors(self._leaf, natural)
        self.found.append(LayerValue(leaves, natural))
        return merge(leaves, value)

    def _leaf(self, t: Tensor) -> Tensor:
        if self.apart and t.requires_grad:
            return t
        return t.detach().requires_grad_() if t.is_floating_point() else t


def of_tensors(f: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """``f`` of each tensor, None for everything else."""
    return optree.tree_map(lambda t: f(t) if isinstance(t, Tensor) else None, tree)


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
    """A layer's input: its positional arguments, or the keyword ones where there are no others."""
    if not args:
        return kwargs
    return args[0] if len(args) == 1 else args


def call_with(run: Forward, new: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a layer on another input, of the form of :func:`arguments`."""
    if not args:
        return run(**new)
    return run(*(new if len(args) > 1 else (new,)), **kwargs)


def value_of(probe: Probe, layer: nn.Module | str) -> Tree:
    """What a probe has read: one value, or all as a tuple."""
    check_called(probe, layer)
    return tuple(probe.read) if probe.call is None else probe.read[0]


def check_called(probe: Probe, layer: nn.Module | str) -> None:
    """Refuse a layer, or a call of it, that did not happen."""
    if probe.count == 0:
        raise ValueError(
            f"layer {describe(layer)} was not called while the model ran, so it has no value: "
            "choose a layer that the model calls as a module (scripted, compiled or bypassed ones "
            "are not)"
        )
    if probe.call is not None and not 0 <= probe.call < probe.count:
        raise ValueError(
            f"layer {describe(layer)} was called {probe.count} time(s), so call={probe.call} does "
            f"not exist: expected 0 to {probe.count - 1}, or None for all calls"
        )


def _is_complete(value: Tree) -> bool:
    """Whether a value can stand for a layer's output, without the layer being computed."""
    if isinstance(value, (tuple, list)):
        return all(_is_complete(v) for v in value)
    return isinstance(value, Tensor)


def merge(new: Tree, natural: Tree) -> Tree:
    """The tensors of ``new`` in the places of ``natural``; everything else stays as it is there."""
    if new is None:
        return natural
    if isinstance(new, Tensor):
        if is_packed(natural):
            return natural._replace(data=new.clone())
        parts = isinstance(natural, Tensor) and natural.is_complex() and not new.is_complex()
        return complex_view(new.clone()) if parts else new.clone()
    if isinstance(new, Mapping) and isinstance(natural, Mapping):
        foreign: Any = natural
        merged = {k: merge(new.get(k), v) for k, v in foreign.items()}
        if optree.all_leaves([foreign]):  # unknown to optree, such as the outputs of transformers
            return type(foreign)(**merged)
        if type(natural) is dict:
            return merged
        # A subclass such as defaultdict may need other arguments to be made than its items.
        filled = copy.copy(foreign)
        filled.update(merged)
        return filled
    if isinstance(new, (tuple, list)) and isinstance(natural, (tuple, list)):
        items = [merge(n, v) for n, v in zip(new, natural, strict=True)]
        return type(natural)(*items) if hasattr(natural, "_fields") else type(natural)(items)
    if optree.all_leaves([new]):
        return natural
    return optree.tree_map(merge, new, natural, none_is_leaf=True)
