"""What was explained, read again for a report: images and texts; nothing where they are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn.cli._command import said_of
from attrfn.cli._images import Look, images, shown_scale
from attrfn.cli._say import note
from attrfn.cli._text import encode, read_texts


class Originals(NamedTuple):
    """What some examples were.

    Attributes:
        images: (k, 3, H, W), as the model got them.
        mean: What was subtracted from them.
        std: What they were divided by.
        labels: Their names by example.
        words: The tokens of texts by example.
    """

    images: Tensor | None
    mean: Any
    std: Any
    labels: dict[int, str]
    words: dict[int, list[str]]

    def name(self, i: int) -> str | None:
        """What an example was, in a line; None if that is not known."""
        return self.labels.get(i) or " ".join(self.words.get(i, ())) or None


NOTHING = Originals(None, 0.0, 1.0, {}, {})


def originals(said: dict[str, Any], examples: list[int]) -> Originals:
    """The originals of some examples, if they can still be read.

    Args:
        said: What ``attrfn explain`` has noted.
        examples: Their numbers.
    """
    reads = {"images": _images, "text": _texts}.get(str(said.get("kind")))
    if reads is None or "index" in said.get("columns", {}):
        return NOTHING
    try:
        return reads(said, examples)
    except Exception as error:
        note(f"the report lacks what was explained: {said_of(error)}", "Warning")
        return NOTHING


def _folder(said: dict[str, Any]) -> Path | None:
    return Path(said["folder"]) if said.get("folder") else None


def _images(said: dict[str, Any], examples: list[int]) -> Originals:
    given = said.get("look")
    how = None
    if given is not None:
        size, mean, std = given
        how = Look(None if size is None else tuple(size), tuple(mean), tuple(std))
    data = images(Path(said["data"]), _folder(said), how)
    shown = torch.stack([data[i]["image"] for i in examples])
    labels = {i: str(data.files[i].relative_to(data.root)) for i in examples}
    mean, std = shown_scale(_folder(said), how)
    return Originals(shown, mean, std, labels, {})


def _texts(said: dict[str, Any], examples: list[int]) -> Originals:
    path, folder = Path(said["data"]), _folder(said)
    texts = read_texts(path, said["columns"].get("inputs"))
    if texts is None or folder is None:
        return NOTHING
    chosen = [texts[i] for i in examples]
    found = encode(chosen, folder, said.get("max_length"), "pad", str(path))
    return NOTHING._replace(words=dict(zip(examples, found.pieces, strict=True)))
