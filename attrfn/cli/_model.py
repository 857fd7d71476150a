"""MODEL: a program, a folder of a Hugging Face model, or a function of the user's."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

from attrfn import programs
from attrfn._torch.say import say
from attrfn.cli._hub import folder_model
from attrfn.cli._locate import is_reference, locate, needs_nothing
from attrfn.cli._safe import nothing_unpickled
from attrfn.cli._say import note

PROGRAMS = {".pt2", ".onnx"}
PICKLES = {".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"}
_EXPECTED = "a .pt2 or .onnx file, a folder of a Hugging Face model, or module:function"
# Modules that draw random numbers or mix examples in training mode.
_NOISY = ("Dropout", "BatchNorm", "SyncBatchNorm")


class Loaded(NamedTuple):
    """A model.

    Attributes:
        model: What methods take.
        folder: Where it comes from, for a Hugging Face model.
    """

    model: Any
    folder: Path | None = None


def load_model(spec: str, device: str | None = None) -> Loaded:
    """The model that an argument stands for.

    Args:
        spec: The argument.
        device: Where it goes to; None: it stays.

    Raises:
        ValueError: It stands for none, or would have to be unpickled.
        FileNotFoundError: There is no such file.
    """
    path = Path(spec)
    if path.is_dir():
        loaded = Loaded(folder_model(path), path)
    elif path.suffix in PROGRAMS or _is_script(path):
        loaded = Loaded(_program(path, spec))
    elif path.exists() or not is_reference(spec):
        raise _refused(path, spec)
    else:
        loaded = Loaded(_built(spec))
    _warn_of_training(loaded.model)
    return loaded if device is None else loaded._replace(model=_moved(loaded.model, device))


def root_of(model: Any) -> nn.Module | None:
    """The module that a model function shows; None if it shows none."""
    while isinstance(model, functools.partial):
        model = model.func
    model = model.__self__ if isinstance(model, MethodType) else model
    return model if isinstance(model, nn.Module) else None


def dtype_of(model: Any) -> torch.dtype | None:
    """The type of the parameters of a module; None where there are none."""
    root = root_of(model)
    found = [] if root is None else [p.dtype for p in root.parameters() if p.is_floating_point()]
    return found[0] if found else None


def _is_script(path: Path) -> bool:
    """Whether a file is one of ``torch.jit.save``, whose code is not pickled."""
    if path.suffix.lower() not in PICKLES or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _program(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"MODEL is {spec!r}, and there is no such file")
    with nothing_unpickled(spec):
        return programs.load(path)


def _refused(path: Path, spec: str) -> Exception:
    """Why a file, or what is none, cannot be the model."""
    if path.suffix.lower() in PICKLES:
        return ValueError(
            f"MODEL is {spec!r}, a pickle, which can run any code when it is read: read its "
            "weights with torch.load(weights_only=True) in a function that builds the model, and "
            "give module:function, or export the model to a .pt2"
        )
    if path.suffix == ".safetensors":
        return ValueError(
            f"MODEL is {spec!r}, weights without a model: write a function that builds the model "
            "and loads them with safetensors.torch.load_file, and give module:function"
        )
    if not path.exists():
        return FileNotFoundError(f"MODEL is {spec!r}, and there is no such file: give {_EXPECTED}")
    return ValueError(f"MODEL is {spec!r}, expected {_EXPECTED}")


def _built(spec: str) -> Any:
    """What ``module:function`` is, or what it returns where it needs no argument."""
    found = locate(spec, "MODEL")
    made = found() if needs_nothing(found) else found
    if not callable(made):
        where = "returned" if needs_nothing(found) else "is"
        raise TypeError(
            f"MODEL {spec} {where} {say(made)}, expected a module or a function of the inputs"
        )
    return made


def _moved(model: Any, device: str) -> Any:
    root = root_of(model)
    if root is None:
        raise ValueError(f"--device is {device!r}, and MODEL is no module: move it in its function")
    try:
        root.to(device)
    except (RuntimeError, AssertionError) as error:
        text = str(error).split("\n")[0]
        raise ValueError(f"--device is {device!r}, where MODEL cannot go: {text}") from error
    return model


def _warn_of_training(model: Any) -> None:
    root = root_of(model)
    modules = [] if root is None else [m for m in root.modules() if m.training]
    noisy = [type(m).__name__ for m in modules if type(m).__name__.startswith(_NOISY)]
    if noisy:
        note(f"MODEL has a {noisy[0]} in training mode: return model.eval()", "Warning")
