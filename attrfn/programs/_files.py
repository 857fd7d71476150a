"""What a file holds, found out without running any of it, and how it is read."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from attrfn._torch.guard import first_line
from attrfn._torch.private_compiler import load_package

Kind: TypeAlias = Literal["exported", "package", "script", "onnx"]

# The folders of the archive of torch.export.save and of AOTInductor.
_PACKAGES = "data/aotinductor/"
_PROGRAMS = "models/"
_TENSORS = ("data/weights/", "data/constants/")
_EXAMPLES = "data/sample_inputs/"
_OBJECTS = ("custom_obj", "opaque_obj")
_OLD = "serialized_exported_program.json"


def kind_of(path: Path) -> Kind:
    """What a file holds, by its contents.

    Raises:
        OSError: There is no such file.
        ValueError: It is damaged, or of no known kind.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise FileNotFoundError(f"{path} is {what}, expected the file of a program")
    if not zipfile.is_zipfile(path):
        if path.suffix == ".onnx":
            return "onnx"
        raise ValueError(
            f"{path} is not a whole zip archive, as the files of torch.export.save, torch.jit.save "
            "and AOTInductor are, and does not end in .onnx: it is damaged or of another kind"
        )
    names = set(_names(path))
    if any(name.startswith(_PROGRAMS) for name in names) or _OLD in names:
        return "exported"
    if any(name.startswith(_PACKAGES) for name in names):
        return "package"
    if any(name.startswith("code/") for name in names):
        return "script"
    if "data.pkl" in names:
        raise ValueError(
            f"{path} holds pickled Python objects, as torch.save writes them, and attrfn unpickles "
            "nothing: save the model with torch.export.save, or its state_dict with safetensors"
        )
    raise ValueError(
        f"{path} is a zip archive without a program, expected a file of torch.export.save, "
        "torch.jit.save or AOTInductor"
    )


def _names(path: Path) -> Iterator[str]:
    """The files in an archive, without the folder around them all."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    around = f"{tops.pop()}/" if len(tops) == 1 else ""
    for name in names:
        yield name.removeprefix(around)


def exported(path: Path, trusted: bool) -> Any:
    """The ExportedProgram of a file.

    Raises:
        ValueError: It holds pickled objects and is not trusted, or torch cannot read it.
    """
    if not trusted:
        try:
            found = next(_pickled(path), None)
        except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from error
        if found is not None:
            raise ValueError(
                f"{path} holds {found}, which would have to be unpickled and can run any code: "
                "export the model again with plain tensors, or give trusted=True if you trust the "
                "source of the file"
            )
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path)
        with path.open("rb") as file:  # by its name torch would not know it
            return torch.export.load(io.BytesIO(file.read()))
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"torch {torch.__version__} cannot read {path} ({first_line(error)[:120]}): it is damaged, "
        "or another version of torch wrote it"
    )


def _pickled(path: Path) -> Iterator[str]:
    """What torch.export.load would unpickle without limits."""
    with zipfile.ZipFile(path) as archive:
        for full, name in zip(archive.namelist(), _names(path), strict=True):
            if name == _OLD:
                yield "a program of a format before torch 2.8"
            elif name.startswith(_TENSORS):
                yield from _in_payload(archive, full, name)
            elif name.startswith(_EXAMPLES) and not _is_plain(archive.read(full)):
                yield f"example inputs ({name}) that are no plain tensors"


def _in_payload(archive: zipfile.ZipFile, full: str, name: str) -> Iterator[str]:
    if name.endswith(".pt"):
        yield f"weights of an old format ({name})"
    if not name.endswith(".json"):
        return
    for tensor, entry in json.loads(archive.read(full))["config"].items():
        if entry.get("use_pickle"):
            yield f"{tensor!r} as a pickled tensor"
        if str(entry.get("path_name", "")).startswith(_OBJECTS):
            yield f"{tensor!r} as a pickled object"


def _is_plain(data: bytes) -> bool:
    """Whether torch reads some bytes as tensors and containers alone."""
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # whatever the unpickler does not like
        return not data
    return True


def package(path: Path) -> Any:
    """The AOTInductor package of a file.

    Raises:
        ValueError: torch cannot load it.
    """
    try:
        return load_package(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def script(path: Path) -> torch.jit.ScriptModule:
    """The scripted module of a file.

    Raises:
        ValueError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole
            jit: Any = torch.jit  # without types
            found: torch.jit.ScriptModule = jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise _unreadable(path, error) from error
    return found


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
