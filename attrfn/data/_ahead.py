"""Threads that read ahead and write behind, in order; and Ctrl-C, which ends after a batch."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_AHEAD = 2  # items that wait: one that is ready, and one for a slow moment


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, made by a thread while the caller works on those before."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def run() -> None:
        try:
            for item in items:
                if not _put(waiting, ("item", item), stopped):
                    return
            _put(waiting, ("end", None), stopped)
        except BaseException as error:  # raised where the items are used
            _put(waiting, ("error", error), stopped)

    thread = threading.Thread(target=run, name="attrfn.data reads", daemon=True)
    thread.start()
    patience: float | None = None
    try:
        while True:
            kind, value = waiting.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    except KeyboardInterrupt:  # while it waits for a read that may never end
        patience = 1.0
        raise
    finally:
        stopped.set()
        thread.join(patience)


def _put(waiting: queue.Queue[Any], item: Any, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=0.05)
            return True
    return False


class Behind:
    """Calls a function for one item after the other in a thread.

    Args:
        function: What is called. Once it has raised, nothing more is.
    """

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function
        self._waiting: queue.Queue[Any] = queue.Queue(1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="attrfn.data writes", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._function(item)
                except BaseException as error:  # raised by put or close
                    self._error = error

    @property
    def failed(self) -> bool:
        """Whether the function has raised."""
        return self._error is not None

    def put(self, item: Any) -> None:
        """Give an item; waits where one is waiting already."""
        self._raise()
        self._waiting.put(item)

    def close(self) -> None:
        """Wait until all is done."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


class Interrupt:
    """Whether Ctrl-C has been pressed; pressed again, it ends the process as always."""

    def __init__(self) -> None:
        self._pressed = False

    def press(self) -> None:
        """Note it."""
        self._pressed = True

    def is_pressed(self) -> bool:
        """Whether it has been pressed."""
        return self._pressed


@contextlib.contextmanager
def delayed_interrupt() -> Iterator[Interrupt]:
    """Let Ctrl-C wait until it is asked for, in the main thread."""
    state = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # the user's own, who knows what to do
        yield state
        return

    def press(number: int, frame: Any) -> None:
        if state.is_pressed():
            raise KeyboardInterrupt
        state.press()
        print("\nends after this batch; Ctrl-C again: at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, press)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, before)
