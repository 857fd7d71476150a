"""Packages that are imported where they are used, and the extra that has them."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, what: str, extra: str) -> Any:
    """A module of another package.

    Args:
        module: Its name.
        what: What it is needed for, as the subject of a sentence.
        extra: The extra that has it.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f'{what} needs {package}: pip install "attrfn[{extra}]"') from error
