"""A call that is interrupted at any operation of torch leaves nothing behind.

Every operation counts, those of the method itself too: it raises KeyboardInterrupt, as Ctrl-C does,
or an error of torch. Afterwards the model, the tensors, the generators, the modes and the next
result are what they were.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers import assert_close
from registry import Row, rows, tensors
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from attrfn.testing._state import untouched

np = pytest.importorskip("numpy")


# Whatever leaves a context calls these; an error in there is an error of Python's `with`.
BOOKKEEPING = {torch._C._set_grad_enabled}


class Interrupts(TorchFunctionMode):
    """Counts the calls of torch's functions, and raises at one of them."""

    def __init__(self, at: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.at, self.error, self.calls = at, error, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func not in BOOKKEEPING
        if self.calls - 1 == self.at and func not in BOOKKEEPING:
            self.at = -1
            raise self.error("interrupted")
        return func(*args, **(kwargs or {}))


def process() -> tuple[Any, ...]:
    """What belongs to the process and to the thread."""
    numpy_state = np.random.get_state()
    return (
        random.getstate(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        torch.get_default_dtype(),
        torch.is_autocast_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        forward_ad._current_level,
        torch._C._functorch.peek_interpreter_stack() is None,
        torch.is_anomaly_enabled(),
        torch.jit.is_tracing(),
    )


def interrupted(r: Row, places: int | None) -> None:
    model, x, given = r.net.build(), r.net.inputs(), tensors(r, r.net)
    expected = r.method(model, x, **given)
    with Interrupts() as counts:
        r.method(model, x, **given)
    calls = counts.calls
    assert calls > 3
    # the sample: spread over the call, other places for each row
    step = 1 if places is None else max(1, calls // places)
    before = process()
    with untouched(model, x, given):
        for at in range(len(r.name) % step, calls, step):
            error = KeyboardInterrupt if at % 2 else RuntimeError
            try:
                with Interrupts(at, error):
                    got = r.method(model, x, **given)
            except error as e:
                assert str(e).endswith("interrupted")  # noqa: PT017
            else:  # there are two ways to the result, and the second was taken
                assert error is RuntimeError
                assert_close(got, expected)
            assert process() == before, at
    assert_close(r.method(model, x, **given), expected, rtol=0, atol=0)


@rows()
def test_a_call_interrupted_at_some_operations(r: Row) -> None:
    interrupted(r, 5)


@pytest.mark.fuzz
@rows()
def test_a_call_interrupted_at_any_operation(r: Row) -> None:
    interrupted(r, None)
