"""Operations that a rule cannot be right for, named with the line that calls them."""

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

_INSIDE = tuple(
    f"{Path(file).parent}{os.sep}"
    for file in (Path(__file__).parent, torch.__file__, optree.__file__)
)


class UnsupportedOpError(ValueError):
    """An operation on the way from the inputs to the output that the rules do not cover."""


def refuse_unknown(call: Call, rules: str, why: str = "") -> NoReturn:
    """Raise for an operation without a rule."""
    op = public_name(call.func)
    raise UnsupportedOpError(
        f"{rules} has no rule for {op}{where()}{why and f' ({why})'}: add one with "
        f"rules | {{{op}: a function of operations that have rules}}, or take its plain derivative "
        f"with rules.allow({op})"
    )


def refuse_mixed(call: Call, rules: str) -> NoReturn:
    """Raise where a value that depends on the inputs without a derivative has an effect."""
    op = public_name(call.func)
    raise UnsupportedOpError(
        f"{rules} cannot be complete at {op}{where()}: one of its arguments depends on the inputs "
        "without a derivative (a comparison, an index, .detach(), torch.no_grad() or a custom "
        f"autograd.Function made it); use an operation with a rule instead, or take it as a "
        f"constant with rules.allow({op})"
    )


def refuse_unrecorded(t: Tensor, func: Any, rules: str) -> NoReturn:
    """Raise for a tensor that something else than a torch function made of the inputs."""
    maker = t.grad_fn.name() if t.grad_fn is not None else "an unknown operation"
    what = "the output" if func is None else f"an argument of {public_name(func)}"
    raise UnsupportedOpError(
        f"{rules} did not see how {what} was made{where()}: {maker} "
        "(a custom autograd.Function, a scripted module or a function of torch.func inside the "
        "model) is no call of a torch function; write it in torch operations"
    )


def refuse_nested(call: Call, rules: str) -> NoReturn:
    """Raise for a function of torch.func inside a model that is inside another."""
    raise UnsupportedOpError(
        f"{rules} cannot follow {public_name(call.func)}{where()}, which a function of torch.func "
        "inside the model calls while another is around the method: give the method the whole "
        "batch, or write the model without torch.func"
    )


def refuse_inside(what: str, rules: str) -> NoReturn:
    """Raise for what may contain a ReLU that is no call of a torch function."""
    raise UnsupportedOpError(
        f"{rules} cannot see whether there are ReLUs inside {what}{where()}: it has a rule for max("
        "x, 0) called as a torch function only (not in a custom autograd.Function, code of "
        "torch.jit, checkpointing or nn.RNN with relu); write it in torch operations"
    )


def refuse_hidden(func: Any, rules: str, what: str) -> NoReturn:
    """Raise where torch.compile hides what was made of the inputs."""
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
    """Say that a rule for where the inputs are read had no place to stand."""
    warn(
        f"{rules} met no linear operation with weights that reads the inputs (as they are, or only "
        "moved, shifted or scaled), so its rule first= has no effect"
    )


def refuse_training(call: Call, rules: str) -> NoReturn:
    """Raise for an operation that draws random numbers or mixes rows."""
    raise UnsupportedOpError(
        f"{rules} cannot explain {public_name(call.func)} in training mode{where()}: call "
        "model.eval()"
    )


def refuse_path(call: Call, other: str | None) -> NoReturn:
    """Raise where two runs of the model differ in their operations."""
    raise ValueError(
        f"the model calls {call.name}{where()} for the inputs where it calls "
        f"{other or 'nothing'} for the baselines: its operations may not depend on values"
    )


@contextlib.contextmanager
def unwatched(rules: str) -> Iterator[None]:
    """Refuse checkpointing: it runs parts of the model again where no rule applies."""
    why = (
        f"{rules} cannot follow torch.utils.checkpoint or other hooks on saved tensors: switch "
        "checkpointing off"
    )
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(why):
            yield
    except RuntimeError as error:
        if why not in str(error):
            raise
        raise UnsupportedOpError(f"{why}{where()}") from error


def refuse_lengths() -> NoReturn:
    """Raise where a run of the model has fewer operations than another."""
    raise ValueError(
        "the model calls fewer operations for the inputs than for the baselines: its operations "
        "may not depend on values"
    )


def where() -> str:
    """The user's line and module that are running, as far as they can be known."""
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
