"""Errors for operations that rules do not cover, with the line that calls the operation."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import optree
import torch
from torch import Tensor, nn

from attrfn._rules.call import Call
from attrfn._rules.names import public_name
from attrfn._torch.compiling import is_compiling
from attrfn._torch.warn import warn

# Frames in these folders are skipped when `where` looks for the user's line.
_INSIDE = tuple(
    f"{Path(file).parent}{os.sep}"
    for file in (Path(__file__).parent, torch.__file__, optree.__file__)
)

_LONGEST = 300  # characters of a message


class UnsupportedOpError(ValueError):
    """An operation on the way from the inputs to the output that the rules do not cover."""


def refuse_unknown(call: Call, rules: str, why: str = "") -> NoReturn:
    """Raise for an operation without a rule."""
    op = public_name(call.func)
    start = f"{rules} has no rule for {op}{where()}{why and f' ({why})'}: add one with "
    add, end = f"rules | {{{op}: 'linear'}}", f", or take its own derivative with rules.allow({op})"
    more = " (or 'elementwise', 'product' or a function of operations with rules)"
    whole = start + add + more + end
    raise UnsupportedOpError(whole if len(whole) <= _LONGEST else start + add + end)


def refuse_mixed(call: Call, rules: str) -> NoReturn:
    """Raise where a value without a derivative meets one with a derivative."""
    op = public_name(call.func)
    raise UnsupportedOpError(
        f"{rules} cannot be complete at {op}{where()}: one of its arguments depends on the inputs "
        "without a derivative (a comparison, an index, .detach(), torch.no_grad() or a custom "
        f"autograd.Function made it); use an operation with a rule instead, or take it as a "
        f"constant with rules.allow({op})"
    )


def refuse_route(op: str, line: str, rules: str) -> NoReturn:
    """Raise where a model takes another path for the baselines than for the inputs."""
    raise UnsupportedOpError(
        f"{rules} cannot be complete at {op}{line}: a value without a derivative (a mask, an "
        "index, .detach(), no_grad, a custom Function) differs for the baselines; choose baselines "
        f"with the same path, or take it as constant: rules.allow({op})"
    )


def refuse_branch(op: str, line: str, rules: str) -> NoReturn:
    """Raise where Python reads another value at the baselines."""
    raise UnsupportedOpError(
        f"{rules} cannot be complete at {op}{line}: Python reads another value for the baselines, "
        "and the model may take another path there; choose baselines for which it reads the same"
    )


def refuse_unrecorded(t: Tensor, func: Any, rules: str) -> NoReturn:
    """Raise for a tensor that was made from the inputs, but not by a call of a torch function."""
    maker = t.grad_fn.name() if t.grad_fn is not None else "an unknown operation"
    what = "the output" if func is None else f"an argument of {public_name(func)}"
    raise UnsupportedOpError(
        f"{rules} did not see how {what} was made{where()}: {maker} "
        "comes from a custom autograd.Function, scripted code or torch.func inside the model, "
        "which hides operations: write it in torch operations, or for LRP name its module in "
        "rules.elementwise(...) if it is an activation"
    )


def refuse_nested(call: Call, rules: str) -> NoReturn:
    """Raise for a function of torch.func that the model calls while another surrounds it."""
    raise UnsupportedOpError(
        f"{rules} cannot follow {public_name(call.func)}{where()}, which a function of torch.func "
        "inside the model calls while another surrounds the method: give the method the whole "
        "batch, or write the model without torch.func"
    )


def refuse_inside(what: str, rules: str) -> NoReturn:
    """Raise for code that may contain a ReLU that is not a call of a torch function."""
    raise UnsupportedOpError(
        f"{rules} cannot see whether there are ReLUs inside {what}{where()}: it has a rule for max("
        "x, 0) called as a torch function only (not in a custom autograd.Function, code of "
        "torch.jit or nn.RNN with relu); write it in torch operations"
    )


def refuse_hidden(func: Any, rules: str, what: str) -> NoReturn:
    """Raise where torch.compile hides how a tensor was made."""
    raise UnsupportedOpError(
        f"{rules} {what} cannot follow an argument of {public_name(func)} under torch.compile: "
        "write .unbind() for unpacking, .transpose() for .T or .mT, and torch.cat() for F.pad() or "
        "torch.split()"
    )


def refuse_constant(rules: str) -> NoReturn:
    """Raise for an output that depends on the inputs without a derivative."""
    raise UnsupportedOpError(
        f"{rules} cannot be complete: the explained output depends on the inputs without a "
        "derivative; look for .detach(), torch.no_grad(), argmax, a comparison or an operation "
        "that torch cannot differentiate"
    )


def warn_unread(rules: str) -> None:
    """Warn that no operation took the rule for where the inputs are read."""
    warn(
        f"{rules} met no linear operation with weights that reads the inputs (unchanged, or only "
        "moved, shifted or scaled), so its rule first= has no effect"
    )


def refuse_training(call: Call, rules: str) -> NoReturn:
    """Raise for an operation that draws random numbers or mixes rows."""
    op = public_name(call.func)
    if "norm" in call.name:
        raise UnsupportedOpError(
            f"{rules} cannot explain {op} with the statistics of the batch{where()}, which make "
            "rows depend on each other: call model.eval(), and give the norm running statistics if "
            "it has none"
        )
    raise UnsupportedOpError(
        f"{rules} cannot explain {op} with training=True{where()}, which draws random numbers: "
        "call model.eval(), or pass training=False"
    )


def refuse_audit(gap: float, whole: float) -> NoReturn:
    """Raise where an audit does not account for all relevance."""
    raise ValueError(
        f"conservation cannot account for {gap:.3g} of the relevance {whole:.3g}, which passed an "
        "operation that it does not see, or is not finite: look for such values, and write custom "
        "code in torch operations"
    )


def refuse_path(call: Call, other: str | None) -> NoReturn:
    """Raise where two runs of the model call different operations."""
    raise ValueError(
        f"the model calls {call.name}{where()} for the inputs where it calls "
        f"{other or 'nothing'} for the baselines, so it takes another path there: choose baselines "
        "with the same path"
    )


@contextlib.contextmanager
def unwatched(rules: str) -> Iterator[None]:
    """Refuse hooks on saved tensors."""
    # What they do when the backward pass reads a tensor, such as to run a part of the model again,
    # no mode sees and no rule covers. Checkpointing needs them, but not in such runs, see
    # `attrfn._torch.checkpointing`.
    why = (
        f"{rules} cannot follow hooks on saved tensors, which may run parts of the model again: "
        "leave the context of torch.autograd.graph.saved_tensors_hooks"
    )
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(why):
            yield
    except RuntimeError as error:
        if why not in str(error):
            raise
        raise UnsupportedOpError(f"{why}{where()}") from error


def refuse_lengths() -> NoReturn:
    """Raise where the replay calls fewer operations than the recorded run."""
    raise ValueError(
        "the model calls fewer operations for the inputs than for the baselines, so it takes "
        "another path there: choose baselines with the same path"
    )


def where() -> str:
    """The user's module and line that are running, where the stack shows them."""
    if is_compiling():
        return ""
    frame: Any = sys._getframe(1)
    module, line = "", ""
    while frame is not None:
        owner = frame.f_locals.get("self")
        if not module and isinstance(owner, nn.Module):
            module = f" in {type(owner).__name__}"
        if not line and not frame.f_code.co_filename.startswith(_INSIDE):
            line = f" ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
        frame = frame.f_back
    return module + line
