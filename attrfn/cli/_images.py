"""A folder of images as a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from attrfn.cli._command import UsageError
from attrfn.cli._hub import image_processor
from attrfn.cli._need import need

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class Look(NamedTuple):
    """How images become inputs, where no preprocessor's file says it.

    Attributes:
        size: Height and width, None: as they are.
        mean: What is subtracted from colours of 0 to 1.
        std: What they are divided by after that.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def look(size: str | None, mean: str | None, std: str | None) -> Look | None:
    """The options --image-size, --image-mean and --image-std; None without any.

    Raises:
        UsageError: One of them is not a number.
    """
    if size is None and mean is None and std is None:
        return None
    parts = _numbers("--image-size", size or "", (1, 2)) if size else []
    if any(n < 1 or n != int(n) for n in parts):
        raise UsageError(f"--image-size is {size!r}, expected whole numbers from 1 on")
    found = None if not parts else (int(parts[0]), int(parts[-1]))
    scale = _numbers("--image-std", std, (1, 3)) if std else [1.0]
    if not all(scale):
        raise UsageError(f"--image-std is {std!r}, expected numbers other than 0")
    return Look(found, tuple(_numbers("--image-mean", mean or "0", (1, 3))), tuple(scale))


def _numbers(name: str, text: str, counts: tuple[int, ...]) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in counts:
        shown = " or ".join(map(str, counts))
        raise UsageError(f"{name} is {text!r}, expected {shown} numbers with commas between them")
    return found


class Images(Dataset[dict[str, Any]]):
    """The images of a folder and of those in it, in the order of their paths.

    An example is a dict of ``image`` (3, H, W) and, where all images lie in folders, ``folder``,
    the number of its folder in their alphabetical order.

    Args:
        root: The folder.
        prepare: From an image of Pillow in RGB to a tensor.
        one_size: Whether all images must have the size of the first one.
    """

    def __init__(
        self, root: Path, prepare: Callable[[Any], Tensor], one_size: bool = False
    ) -> None:
        self.root = root
        self.one_size = one_size
        found = (p for p in root.rglob("*") if p.suffix.lower() in ENDINGS)
        self.files = sorted(p for p in found if p.is_file())
        if not self.files:
            raise ValueError(f"DATA is {str(root)!r}, a folder without images: give another one")
        self._prepare = prepare
        names = [p.relative_to(root).parts[0] for p in self.files if p.parent != root]
        self.folders = sorted(set(names)) if len(names) == len(self.files) else []
        need("PIL", "a folder of images")

    @functools.cached_property
    def _first(self) -> dict[str, Any]:
        return self[0]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """An image, prepared."""
        file = self.files[i]
        image = need("PIL.Image", "a folder of images")
        try:
            with image.open(file) as opened:
                if opened.mode[0] in "IF":  # which convert would cut off at 255
                    raise ValueError(f"it has the mode {opened.mode}: save it with 8 bits a colour")
                turned = need("PIL.ImageOps", "a folder of images").exif_transpose(opened)
                found = {"image": self._prepare(turned.convert("RGB"))}
            if i and self.one_size:
                _check_size(found["image"], self._first["image"])
        except Exception as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{file.relative_to(self.root)}: {text}") from error
        if self.folders:
            found["folder"] = torch.tensor(self.folders.index(file.relative_to(self.root).parts[0]))
        return found


def images(root: Path, folder: Path | None, given: Look | None) -> Images:
    """The images as the model of a folder takes them.

    Raises:
        UsageError: The model's folder says how, and so do options.
    """
    processor = image_processor(folder)
    if processor is not None and given is not None:
        raise UsageError(
            "--image-size, --image-mean and --image-std are given, but the model's "
            "preprocessor_config.json says how images are prepared: drop them"
        )
    if processor is None:
        how = given or Look()
        return Images(root, lambda image: _prepared(image, how), one_size=how.size is None)
    return Images(root, lambda image: processor(image, return_tensors="pt")["pixel_values"][0])


def _prepared(image: Any, how: Look) -> Tensor:
    numpy = need("numpy", "a folder of images")
    if how.size is not None:
        height, width = how.size
        image = image.resize((width, height), need("PIL.Image", "images").Resampling.BILINEAR)
    colours = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(t)[:, None, None] for t in (how.mean, how.std))
    return (colours - mean) / std


def _check_size(found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        sizes = [" x ".join(map(str, t.shape[1:])) for t in (found, expected)]
        raise ValueError(f"it is {sizes[0]} and the first one {sizes[1]}: give --image-size")


def shown_scale(folder: Path | None, given: Look | None) -> tuple[Any, Any]:
    """What was subtracted from images and what they were divided by, for pictures of them."""
    processor = image_processor(folder)
    if processor is None:
        how = given or Look()
        return torch.tensor(how.mean), torch.tensor(how.std)
    if not getattr(processor, "do_normalize", False):
        return 0.0, 1.0
    return torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
