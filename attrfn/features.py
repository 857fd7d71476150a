"""Features of more than one element: patches and superpixels of images, words of several tokens.

Each function returns ids for the option ``feature_mask`` of perturbation methods, for
:func:`attrfn.feature_scores`, and for metrics.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._explain.flags import checks_flags, say
from attrfn._explain.noise import count_of

__all__ = ["Words", "patches", "superpixels", "words"]

ROUNDS = 10  # of superpixels; more move few pixels
SPECIAL = re.compile(r"\[[A-Z_0-9]+\]|</?[a-zA-Z_|]+[^>]*>")
# What begins a word: the space of SentencePiece; a space and a line of byte-level BPE.
STARTS = ("\u2581", "\u0120", "\u010a")
# The letters of byte-level BPE: bytes that print stand for themselves, others follow from 256 on.
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
BYTES = {chr(b): b for b in PRINTED} | {chr(256 + i): b for i, b in enumerate(OTHERS)}


class Words(NamedTuple):
    """Words, and the word of each token."""

    texts: list[str]
    mask: Tensor


@checks_flags
def patches(height: int, width: int, size: int | tuple[int, int]) -> Tensor:
    """Squares of an image, row by row: ids for ``feature_mask``.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        size: Side of a patch, or its height and width. Patches at the lower and right edges are
            smaller where the size does not divide that of the image.

    Returns:
        Integers (height, width), which broadcast to images (B, C, height, width).

    Raises:
        ValueError: A number is not a positive int.

    Example:
        >>> patches(4, 6, 3)
        tensor([[0, 0, 0, 1, 1, 1],
                [0, 0, 0, 1, 1, 1],
                [0, 0, 0, 1, 1, 1],
                [2, 2, 2, 3, 3, 3]])
    """
    rows, columns = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    for value, name in ((height, "height"), (width, "width"), (rows, "size"), (columns, "size")):
        count_of(name, value)
    across = -(-width // columns)
    down = torch.arange(height).div(rows, rounding_mode="floor")
    return down[:, None] * across + torch.arange(width).div(columns, rounding_mode="floor")


@checks_flags
def superpixels(image: Tensor, n: int = 100, *, compactness: float = 1.0) -> Tensor:
    """Regions of similar colour and place: ids for ``feature_mask``.

    Each pixel joins one of the nine nearest centres of a grid, the one with the least

        |colour - colour of the centre|^2 / variance + compactness^2 |place - place|^2 / side^2

    and each centre then moves to the mean of its pixels, ten times. A region may have several
    parts. The same image gives the same regions.

    Args:
        image: (C, H, W), or (1, C, H, W), normalised or not.
        n: About how many regions.
        compactness: The weight of places: larger values make regions more square.

    Returns:
        Integers (H, W), which broadcast to images (B, C, H, W); ids from 0 without gaps.

    Raises:
        TypeError: The image is not a tensor of real numbers.
        ValueError: Its shape does not fit, its values are not finite, or an option is out of range.

    Reference:
        Achanta, Shaji, Smith, Lucchi, Fua and Süsstrunk, "SLIC superpixels compared to
        state-of-the-art superpixel methods", 2012, https://doi.org/10.1109/TPAMI.2012.120.

    Example:
        >>> image = torch.zeros(3, 8, 8)
        >>> image[:, :, 3:] = 1.0
        >>> regions = superpixels(image, 2)
        >>> regions[:, 2].max() < regions[:, 3].min()
        tensor(True)
    """
    count_of("n", n)
    if not 0 < compactness < float("inf"):
        raise ValueError(f"compactness is {say(compactness)}, expected a number above 0")
    data = _checked(image)
    height, width = data.shape[1:]
    rows = min(height, max(1, round((n * height / width) ** 0.5)))
    columns = min(width, max(1, round(n / rows)))
    y, x = torch.arange(height) * rows / height, torch.arange(width) * columns / width
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")).double() * float(compactness)
    scale = data.std(correction=0)
    colours = data / torch.where(scale > 0, scale, torch.ones_like(scale))
    points = torch.cat([colours, places]).flatten(1).T
    near = _neighbours(y.long(), x.long(), rows, columns)
    ids = near[:, 4]  # the cell of the grid that holds the pixel
    for _ in range(ROUNDS):
        centres = _means(points, ids, rows * columns)
        distances = (points[:, None] - centres[near]).square().sum(2)
        ids = near.gather(1, distances.argmin(1, keepdim=True))[:, 0]
    found: Tensor = torch.unique(ids, return_inverse=True)[1]
    return found.reshape(height, width).to(image.device)


def _checked(image: Any) -> Tensor:
    if not isinstance(image, Tensor) or image.is_complex():
        raise TypeError(
            f"image is {say(image)}, expected a tensor (C, H, W) of real numbers: convert it with "
            "torch.as_tensor"
        )
    data = image.detach().cpu().double()
    data = data[0] if data.ndim == 4 and len(data) == 1 else data
    if data.ndim != 3 or data.numel() == 0 or not bool(data.isfinite().all()):
        raise ValueError(
            f"image has shape {tuple(image.shape)}, expected (C, H, W) with finite values: give "
            "one image, channels first"
        )
    return data


def _neighbours(y: Tensor, x: Tensor, rows: int, columns: int) -> Tensor:
    """The nine cells around that of each pixel, (H W, 9); cells at the edge are repeated."""
    steps = torch.arange(-1, 2)
    down = (y[:, None] + steps).clamp(0, rows - 1)[:, None, :, None]
    across = (x[:, None] + steps).clamp(0, columns - 1)[None, :, None, :]
    return (down * columns + across).reshape(-1, 9)


def _means(points: Tensor, ids: Tensor, n: int) -> Tensor:
    """The mean point of each id; an id without points is far away from all."""
    counts = torch.bincount(ids, minlength=n)
    sums = torch.zeros(n, points.shape[1], dtype=points.dtype).index_add(0, ids, points)
    return torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), float("inf"))


@checks_flags
def words(tokens: Sequence[str]) -> Words:
    """Words of one text, from the pieces of a tokenizer.

    Marks of four kinds of tokenizers are known: "##" before a piece that continues a word
    (WordPiece, as BERT has it), the sign for a space before a piece that begins one (SentencePiece;
    byte-level BPE, as GPT-2 and RoBERTa have it), and "</w>" after a piece that ends one (CLIP).
    Special tokens such as [CLS], <s> and padding, and signs without letters or digits, stay alone.

    Args:
        tokens: The pieces, as ``tokenizer.convert_ids_to_tokens`` returns them.

    Returns:
        ``texts``, and ``mask``, integers (T,): the word of each token. It is a ``feature_mask`` of
        token ids (B, T); of embeddings (B, T, D) ``mask[:, None]`` is one.

    Raises:
        TypeError: The tokens are not a list of texts.

    Example:
        >>> tokens = ["[CLS]", "un", "##believ", "##able", "!", "[SEP]"]
        >>> texts, mask = words(tokens)
        >>> texts, mask.tolist()
        (['[CLS]', 'unbelievable', '!', '[SEP]'], [0, 1, 1, 1, 2, 3])
    """
    if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, str) for token in tokens):
        raise TypeError(
            f"tokens is {say(tokens)}, expected a list of texts: give what "
            "tokenizer.convert_ids_to_tokens returns"
        )
    ids, groups, before = list[int](), list[list[str]](), None
    continues = _style(tokens)
    for token in tokens:
        joins = before is not None and continues(before, token)
        if joins and not _alone(before or "") and not _alone(token):
            groups[-1].append(token)
        else:
            groups.append([token])
        ids.append(len(groups) - 1)
        before = token
    return Words([_text(group) for group in groups], torch.tensor(ids, dtype=torch.long))


def _style(tokens: Sequence[str]) -> Callable[[str, str], bool]:
    """``continues(token before, token)`` of the tokenizer that wrote the tokens."""
    if any(token.startswith("##") for token in tokens):
        return lambda before, token: token.startswith("##")
    if any(token.startswith(STARTS) for token in tokens):
        return lambda before, token: not token.startswith(STARTS)
    if any(token.endswith("</w>") for token in tokens):
        return lambda before, token: not before.endswith("</w>")
    return lambda before, token: False


def _alone(token: str) -> bool:
    """Whether a token is a special one, or has neither letters nor digits."""
    if SPECIAL.fullmatch(token):
        return True
    # U+FFFD stands for half of a character, which tells nothing.
    return not any(c.isalnum() or c == "\ufffd" for c in _text([token]))


def _text(pieces: list[str]) -> str:
    """The pieces of a word as a reader writes it."""
    if len(pieces) == 1 and SPECIAL.fullmatch(pieces[0]):
        return pieces[0]
    text = "".join(piece.removeprefix("##").removesuffix("</w>") for piece in pieces)
    if not text.isascii() and all(c in BYTES for c in text):
        text = bytes(BYTES[c] for c in text).decode("utf-8", "replace")
    return text.strip("\u2581 ") or text
