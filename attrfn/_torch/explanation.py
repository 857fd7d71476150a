"""One call of a method: what holds for all runs of the model in it.

A model that draws random numbers gets the same numbers in each run, so that the runs belong to one
function, and the generators are left as they were. A model whose rows depend on each other sees
each copy of the batch alone, so that its results do not depend on how many copies are evaluated at
once. Neither is known before the model runs. So the first run that shows it ends the call, and the
method starts again.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attrfn._torch import generators
from attrfn._torch.compiling import is_compiling, unreadable
from attrfn._torch.private import is_wrapped
from attrfn._torch.warn import warn

F = TypeVar("F", bound=Callable[..., Any])


class Explanation:
    """One call of a method.

    Attributes:
        model: The model function that the user gave.
        key: The method's key, from which draws of the model follow, or None.
        one_by_one: Whether each copy of the batch has to be evaluated alone.
        outputs: Grows by what the model returns while a method asks for it; else None.
        mixes: Whether a warning has said that rows depend on each other.
        draws: Whether the model draws random numbers.
        rows: How many rows of a single copy of the batch run at once; None: all.
        rows_agree: Whether this many rows have been seen to give what they give in the batch.
        copies: Private copies of modules that later runs of this call reuse, by what they are of.
        shared: Tensors, by their id, that are as long as the batch, and that runs have shown to
            hold no rows of examples.
        targets: The targets of this call that are functions.
        ends: Called when this call is over.
        groups: The groups of processes that share the model, of torch.distributed.
        once: Whether the model frees its weights after the first backward pass.
    """

    def __init__(self, model: Any, key: Any) -> None:
        self.model = model
        self.key = key
        self.one_by_one = False
        self.mixes = False
        self.draws = False
        self.rows: int | None = None
        self.rows_agree = False
        self.copies: dict[Any, Any] = {}
        self.shared: dict[int, Tensor] = {}
        self.targets: list[Any] = []
        self.ends: list[Callable[[], None]] = []
        self.groups: list[Any] = []
        self.once = False
        self.outputs: list[Any] | None = None
        self.running = False
        self.generators: list[torch.Generator] = []
        self.start: generators.States = []
        self.naming: generators.Naming | None = None
        self.foreign = False  # another thread draws, and the model does not

    def needs_whole_batches(self) -> None:
        """Start again with each copy of the batch alone, unless that is so already."""
        if not self.one_by_one:
            self.one_by_one = True
            raise Again

    def watch(self, generator: torch.Generator) -> None:
        """Treat a generator of the model like the default ones."""
        if not any(g is generator for g in self.generators):
            self.generators.append(generator)
            if self.start:
                self.start.append(generator.get_state())

    def run(self, function: Callable[..., Any], args: Any) -> Any:
        """Run the model function, and notice whether it draws."""
        if self.draws:
            return self._same_draws(function, args)
        if not self.start:
            self.generators = [*generators.default(), *self.generators]
            self.start = generators.states(self.generators)
        self.running = True
        try:
            if self.naming is None:
                out = function(*args)
            else:
                with self.naming:
                    out = function(*args)
            if self.outputs is not None:
                self.outputs.append(out)
            return out
        finally:
            self.running = False
            if not (self.foreign or self._drew_nothing()):
                self._found()

    def _drew_nothing(self) -> bool:
        return generators.same(self.start, generators.states(self.generators))

    def _found(self) -> None:
        """Something was drawn: by which operation, or by another thread?"""
        if self.naming is None:
            self.naming = generators.Naming(self.generators)
            raise Again
        name = self.naming.name or ("a scripted module" if _has_scripted(self.model) else "")
        if not name:
            self.foreign = True
            raise Again
        generators.restore(self.generators, self.start)
        warn_draws(name)
        self.naming, self.draws, self.one_by_one = None, True, True
        raise Again

    def _same_draws(self, function: Callable[..., Any], args: Any) -> Any:
        with generators.DRAWING:
            before = generators.states(self.generators)
            if self.key is None or (isinstance(self.key, Tensor) and is_wrapped(self.key)):
                generators.restore(self.generators, self.start)
            else:
                generators.seed(self.generators, _number(self.key))
            self.running = True
            try:
                return function(*args)
            finally:
                self.running = False
                generators.restore(self.generators, before)


class Again(BaseException):
    """Starts a method again, with what its first run has shown; a model may catch Exception."""


class _Thread(threading.local):
    explanation: Explanation | None = None


_THREAD = _Thread()


def current() -> Explanation | None:
    """The call of a method that is running in this thread."""
    return None if is_compiling() else _THREAD.explanation


def explained(function: F, key: Any = None) -> F:
    """Let each call of a method be one :class:`Explanation`.

    Args:
        function: A method ``(model_fn, inputs, ..., key=...)``.
        key: The default of its key, or the key itself if it has no such option.
    """

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if is_compiling() or _THREAD.explanation is not None or not args or unreadable():
            return function(*args, **options)
        explanation = Explanation(args[0], options.get("key", key))
        if callable(target := options.get("target")):
            explanation.targets.append(target)
        _THREAD.explanation = explanation
        try:
            while True:
                try:
                    return function(*args, **options)
                except Again:
                    continue
        finally:
            _THREAD.explanation = None
            for end in explanation.ends:
                end()

    return run  # type: ignore[return-value]


def run_model(function: Callable[..., Any], args: Any) -> Any:
    """Run a model function on its arguments, with the draws that belong to this explanation."""
    if is_compiling():
        return function(*args)
    explanation = _THREAD.explanation
    if explanation is not None:
        return function(*args) if explanation.running else explanation.run(function, args)
    if unreadable():
        return function(*args)
    return _restored(function, args)


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """Runs whose draws are put back without a word: only the shape of their outputs counts."""
    surrounding, one = _THREAD.explanation, Explanation(None, None)
    _THREAD.explanation = one
    # Modules that mix rows say so in the runs that count, which start the method again.
    one.running = one.one_by_one = one.mixes = True
    try:
        with generators.unmoved():
            yield
    finally:
        _THREAD.explanation = surrounding


def _restored(function: Callable[..., Any], args: Any) -> Any:
    """A run outside of methods, such as that of one half of a model."""
    defaults = generators.default()
    before = generators.states(defaults)
    try:
        return function(*args)
    finally:
        if not generators.same(before, generators.states(defaults)):
            generators.restore(defaults, before)
            warn_draws("")


def warn_draws(name: str) -> None:
    """Warn that the model draws numbers."""
    by = f" by {name}" if name else ""
    warn(
        f"the model draws random numbers{by}: each of its runs gets the same numbers, so that the "
        "attributions are those of one draw; call model.eval(), or make the numbers an argument"
    )


def _number(key: Any) -> int:
    """A seed from a key."""
    words = key.flatten().tolist() if isinstance(key, Tensor) else [int(key)]
    found = 0
    for word in words:
        found = (found * 6364136223846793005 + int(word) + 1442695040888963407) % 2**63
    return found


def _has_scripted(model: Any) -> bool:
    while isinstance(model, functools.partial):
        model = model.func
    model = getattr(model, "__self__", model)
    return isinstance(model, nn.Module) and any(
        isinstance(m, torch.jit.ScriptModule) for m in model.modules()
    )
