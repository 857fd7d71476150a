"""Model functions from files and loaded programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attrfn._explain.flags import check_flags
from attrfn._torch.private_compiler import is_package
from attrfn._torch.say import say
from attrfn._torch.typing import ModelFn
from attrfn.programs import _files
from attrfn.programs._exported import Program
from attrfn.programs._onnx import Onnx, is_proto, is_session
from attrfn.programs._outputs import Outputs, Selected, check_outputs
from attrfn.programs._package import Package


def load(program: Any, *, outputs: Outputs = None, trusted: bool = False) -> ModelFn:
    """The model function of a program: of a file, or of an object that was loaded already.

    | program | gives | works with |
    |---|---|---|
    | `ExportedProgram`, `.pt2` of `torch.export.save` | :class:`Program` | every method |
    | `AOTICompiledModel`, `.pt2` of AOTInductor | a callable | perturbation methods |
    | `InferenceSession`, `ModelProto`, `.onnx` | a callable | perturbation methods |
    | `ScriptModule`, file of `torch.jit.save` | the module | methods without layers and rules |
    | other modules, also of `torch.compile` | the module | every method |

    What the file of an exported program holds as tensors is read as tensors. Objects that would
    have to be unpickled are refused unless the file is ``trusted``. A file is still a program:
    torch evaluates the sizes in it, and AOTInductor packages are machine code. Load only files
    whose source you trust.

    Args:
        program: The path of a file, or a loaded program.
        outputs: The output that the model function returns, by its place or name; a list of these
            for a tuple of outputs; ``None`` for what the program returns.
        trusted: Whether objects in the file of an exported program may be unpickled, which can run
            any code.

    Returns:
        A model function.

    Raises:
        OSError: There is no such file.
        TypeError: The program, or an option, is of no known kind.
        ValueError: The file is damaged, of another kind, or holds pickled objects.
        ImportError: The program is of ONNX, and onnxruntime is not installed.

    Example:
        >>> import tempfile, torch, attrfn, attrfn.programs
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh()).eval()
        >>> x = torch.randn(2, 3)
        >>> batch = {0: torch.export.Dim.DYNAMIC}
        >>> exported = torch.export.export(model, (x,), dynamic_shapes=(batch,))
        >>> path = f"{tempfile.mkdtemp()}/model.pt2"
        >>> torch.export.save(exported, path)
        >>> program = attrfn.programs.load(path)
        >>> torch.equal(
        ...     attrfn.integrated_gradients(program, x, target=1),
        ...     attrfn.integrated_gradients(model, x, target=1),
        ... )
        True
        >>> attrfn.layer_activation(program, x, layer="0").shape
        torch.Size([2, 4])
    """
    check_outputs(outputs)
    check_flags(("trusted",), {"trusted": trusted})
    if isinstance(program, (str, os.PathLike)):
        return _from_file(Path(program), outputs, trusted)
    if isinstance(program, torch.export.ExportedProgram):
        return Program(program, outputs)
    if is_package(program):
        return Package(program, outputs)
    if is_session(program) or is_proto(program):
        return Onnx(program, outputs)
    if isinstance(program, torch.fx.GraphModule):
        raise TypeError(
            "program is a graph module, expected the ExportedProgram that it is of, which knows "
            "the layers: give that in place of exported.module()"
        )
    if isinstance(program, nn.Module):
        return program if outputs is None else Selected(program, outputs)
    raise TypeError(
        f"program is {say(program)}, expected the path of a .pt2, .onnx or torch.jit file, an "
        "ExportedProgram, an AOTInductor package, an InferenceSession or a module"
    )


def _from_file(path: Path, outputs: Outputs, trusted: bool) -> ModelFn:
    kind = _files.kind_of(path)
    if kind == "onnx":
        return Onnx(path, outputs)
    if kind == "package":
        return Package(path, outputs)
    if kind == "script":
        return load(_files.script(path), outputs=outputs)
    return Program(_files.exported(path, trusted), outputs)
