"""Programs that are no model functions yet, and those without layers."""

from __future__ import annotations

import os
from typing import Any

_PROGRAMS = {
    ("torch", "ExportedProgram"): "an ExportedProgram",
    ("torch", "AOTICompiledModel"): "a package of AOTInductor",
    ("onnxruntime", "InferenceSession"): "an InferenceSession",
    ("onnx", "ModelProto"): "a ModelProto",
}
_SUFFIXES = (".pt2", ".onnx", ".pt", ".pth", ".ts")


def refuse_unloaded(value: Any, name: str) -> None:
    """Refuse a program, or the path of one, that a function shall call.

    Raises:
        TypeError: It is one.
    """
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        what = f"the path {path!r}" if str(path).endswith(_SUFFIXES) else ""
    else:
        kind = type(value)
        what = _PROGRAMS.get((kind.__module__.partition(".")[0], kind.__name__), "")
    if what:
        raise TypeError(
            f"{name} is {what}, expected a model function: attrfn.programs.load makes one of it"
        )


def refuse_without_layers(value: Any, name: str) -> None:
    """Refuse a program that only runs forward, where layers are named.

    Raises:
        ValueError: It is one.
    """
    what = getattr(value, "attrfn_without_layers", "")
    if isinstance(what, str) and what:
        raise ValueError(
            f"{name} is {what}, which only runs forward as a whole, so that it has no layers: "
            "use a perturbation method such as attrfn.feature_ablation on its inputs"
        )
