"""Packages that are imported where a command needs them."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, what: str, install: str = '"attrfn[cli]"') -> Any:
    """A module of another package.

    Args:
        module: Its name.
        what: What needs it, as the subject of a sentence.
        install: What pip installs it by.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{what} needs {package}: pip install {install}") from error
