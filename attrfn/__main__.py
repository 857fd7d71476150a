"""``python -m attrfn``: what is installed and found here; with arguments, the command line."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

import torch

import attrfn
from attrfn._torch.compiling import require_compiler

# The (first) package of each extra for users, as pyproject.toml has them; a test compares the two.
EXTRAS = {
    "viz": "matplotlib",
    "data": "safetensors",
    "cli": "typer",
    "onnx": "onnxruntime",
    "progress": "tqdm",
    "ray": "ray",
    "surrogates": "scikit-learn",
    "testing": "hypothesis",
}


def installed(package: str) -> str | None:
    """The version of a package, or None; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> Iterator[str]:
    """A line for each extra."""
    for extra, package in EXTRAS.items():
        found = installed(package)
        missing = f'{package} is missing: pip install "attrfn[{extra}]"'
        yield f"{extra:11} {package} {found}" if found else f"{extra:11} {missing}"


def devices() -> str:
    """The CPU and the accelerators that torch can use."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    mps = ["mps"] * torch.backends.mps.is_available()
    xpu = ["xpu"] * (hasattr(torch, "xpu") and torch.xpu.is_available())
    return ", ".join([f"cpu ({torch.get_num_threads()} threads)", *cuda, *mps, *xpu])


def compiler() -> str | None:
    """The path of the C++ compiler that torch.compile calls, or None."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX", default))


def compiling() -> str:
    """Whether ``attrfn.compile`` can work, and if not, what is missing."""
    try:
        require_compiler()
    except RuntimeError as error:
        return f"no: {error}"
    found = compiler()
    return f"yes, with {found}" if found else "no C++ compiler is found: install one, or set CXX"


def report() -> str:
    """All lines."""
    lines = [
        f"attrfn      {attrfn.__version__}",
        f"Python      {platform.python_version()}, {platform.platform()}",
        f"torch       {torch.__version__}",
        f"optree      {installed('optree')}",
        *extras(),
        f"devices     {devices()}",
        f"compile     {compiling()}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from attrfn.cli import main

        main()
    print(report())
