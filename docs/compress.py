"""Reduce pictures to 256 colours, for the repository: ``compress.py FROM TO [WIDTH]``."""

import sys
from pathlib import Path

from PIL import Image


def compress(source: Path, target: Path, width: int | None = None) -> None:
    picture = Image.open(source).convert("RGB")
    if width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3)
    reduced = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    colours, corner = reduced.getpalette(), 3 * reduced.getpixel((0, 0))
    colours[corner : corner + 3] = picture.getpixel((0, 0))  # white paper stays white
    reduced.putpalette(colours)
    reduced.save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    compress(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
