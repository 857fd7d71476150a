"""Files that are whole or as they were before."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, text: str, name: str) -> None:
    """Write a text as UTF-8: an exception leaves an existing file as it was.

    The new file is written next to the old one, then renamed. Links are followed, and permissions
    stay. Where no file can be renamed to (a pipe, a device), the text is written directly.

    Args:
        path: The file, in a folder that exists.
        text: What to write.
        name: What the text is, for messages.

    Raises:
        ValueError: UTF-8 cannot encode the text.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise ValueError(
            f"{name} holds {text[error.start]!r} in {around!r}, which UTF-8 cannot encode: replace "
            "the character in the text that you give"
        ) from None
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with new.open("xb") as file:
            file.write(data)
        if target.exists():
            new.chmod(target.stat().st_mode & 0o7777)
        new.replace(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
