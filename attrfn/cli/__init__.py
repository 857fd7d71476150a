"""The command line, ``attrfn`` (extra ``cli``: typer and rich).

``attrfn explain``, ``layers``, ``check``, ``compare``, ``report`` and ``methods`` do from a shell
what the functions of the library do. ``python -m attrfn`` with arguments is the same program.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and end with its exit code.

    Args:
        args: The words after the name of the program; ``None``: those of this process.

    Raises:
        SystemExit: Always: 0 fine, 1 an error of the model or the data, 2 a wrong command line,
            130 interrupted.

    Example:
        >>> try:
        ...     main(["--version"])
        ... except SystemExit as end:
        ...     print(end.code)
        attrfn ...
        0
    """
    try:
        for package in ("rich", "typer"):
            importlib.import_module(package)
    except ImportError as error:
        print(f'attrfn: {error}; the command line needs pip install "attrfn[cli]"', file=sys.stderr)
        sys.exit(1)
    from attrfn.cli._app import app

    app(None if args is None else list(args), prog_name="attrfn")
    sys.exit(0)
