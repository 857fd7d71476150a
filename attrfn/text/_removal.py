"""What a model sees where parts of a prompt are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import is_integer
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn.text._calls import of_config
from attrfn.text._rows import Rows, Text, in_place, packed


class Removal(NamedTuple):
    """How parts are removed.

    Attributes:
        name: The name of the function that made it.
        rows: From the text and z (R, n) to rows.
        value: The replacement: token ids, an embedding, or None.
    """

    name: str
    rows: Callable[[Text, Tensor, Any], Rows]
    value: Any = None


def delete() -> Removal:
    """Remove tokens, so that those after them move up: the answer without this passage.

    Neighbours are joined as they are: pieces that a tokenizer would merge stay apart.

    Example:
        >>> from attrfn import text
        >>> text.delete().name
        'delete'
    """

    def rows(text: Text, z: Tensor, value: Any) -> Rows:
        kept = text.kept(z)
        return _nonempty(text, packed(text, kept), kept)

    return Removal("delete", rows)


def replace(id: int | Tensor | None = None) -> Removal:
    """Replace each token, so that the length of the text stays.

    Args:
        id: The token that stands for a removed one, or one for each prompt token, (P,); None is the
            model's padding token, which must not be its end of text as well.

    Example:
        >>> from attrfn import text
        >>> text.replace(220).value
        220
    """
    tensor = isinstance(id, Tensor) and not id.is_floating_point() and id.ndim <= 2
    if not (id is None or tensor or (is_integer(id) and id >= 0)):
        raise TypeError(f"id is {say(id)}, expected a token id, one for each prompt token or None")

    def rows(text: Text, z: Tensor, value: Any) -> Rows:
        new = torch.as_tensor(value, device=text.ids.device).reshape(-1)
        if new.numel() not in (1, text.prompt):
            raise ValueError(
                f"id has {new.numel()} tokens, expected one, or {text.prompt} as the prompt has"
            )
        if new.numel() > 1:
            new = torch.cat([new, text.ids[text.prompt :]])
        whole = in_place(text, len(z))
        return whole._replace(ids=text.ids.where(text.kept(z), new.to(text.ids)))

    return Removal("replace", rows, id)


def unattended() -> Removal:
    """Hide tokens from all others by the attention mask; positions stay.

    An answer token is predicted after the last token before it that remains. Models that find
    positions from the attention mask alone (ALiBi) move them.

    Example:
        >>> from attrfn import text
        >>> text.unattended().name
        'unattended'
    """

    def rows(text: Text, z: Tensor, value: Any) -> Rows:
        kept = text.kept(z)
        whole = in_place(text, len(z))._replace(attend=kept)
        if text.predicts:
            places = torch.arange(kept.shape[1], device=kept.device)
            last = places.where(kept, -1).cummax(1).values[:, text.at]
            whole = whole._replace(at=last.clamp(min=text.source - 1))
        return _nonempty(text, whole, kept)

    return Removal("unattended", rows)


def embedding(value: float | str | Tensor = 0.0) -> Removal:
    """Replace embeddings: the baseline of gradient and path methods, as a removal.

    Args:
        value: A number, an embedding (D,), or "mean" for that of the whole table.

    Example:
        >>> from attrfn import text
        >>> text.embedding("mean").value
        'mean'
    """
    if not (isinstance(value, (int, float, Tensor)) or value == "mean"):
        raise TypeError(f"value is {say(value)}, expected a number, an embedding (D,) or 'mean'")

    def rows(text: Text, z: Tensor, value: Any) -> Rows:
        return in_place(text, len(z))._replace(blank=~text.kept(z))

    return Removal("embedding", rows, value)


def template(
    build: Callable[[list[str]], Any],
    encode: Callable[[str], Any] | None = None,
    *,
    absent: str | Sequence[str] = "",
) -> Removal:
    """Build the prompt from the remaining parts, and tokenise it again.

    Args:
        build: From a list of n strings, the labels of the parts, to a prompt; or, without
            ``encode``, to token ids.
        encode: From a prompt to token ids, such as ``lambda text: tokenizer(text).input_ids``.
        absent: What replaces a removed part in the list, or one string for each part.

    Example:
        >>> from attrfn import text
        >>> text.template(lambda words: " ".join(w for w in words if w), len).name
        'template'
    """
    given: tuple[object, ...] = (build, encode)
    if not callable(given[0]) or not (given[1] is None or callable(given[1])):
        raise TypeError(
            f"build is {say(build)} and encode {say(encode)}, expected a function from strings to "
            "a prompt, and one from a prompt to token ids"
        )

    def rows(text: Text, z: Tensor, value: Any) -> Rows:
        if text.source not in (0, text.prompt) or bool((text.part >= text.n).any()):
            raise ValueError(
                "remove is template, which builds whole prompts, expected another removal for the "
                "tokens of a target or an answer"
            )
        gone = [absent] * text.n if isinstance(absent, str) else list(absent)
        if len(text.labels) != text.n or len(gone) != text.n:
            raise ValueError(
                f"template has {len(text.labels)} labels and {len(gone)} strings for absent parts, "
                f"expected {text.n} of each: parts with labels, and one string or {text.n}"
            )
        found = []
        for there in z.bool().tolist():
            words = [a if y else b for a, b, y in zip(text.labels, gone, there, strict=True)]
            found.append(_encoded(called("build", build, words), encode, text))
        return _after(text, found)

    return Removal("template", rows)


def _encoded(prompt: Any, encode: Callable[[str], Any] | None, text: Text) -> Tensor:
    ids = prompt if encode is None else called("encode", encode, prompt)
    try:
        found = torch.as_tensor(ids, device=text.ids.device).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.numel() and found.is_floating_point():
        found = found[:0]
    if not found.numel():
        raise ValueError(
            f"template made {say(ids)} of {say(prompt)}, expected token ids, at least one: give "
            "encode=, and a text that is not empty"
        )
    return found.to(text.ids)


def _after(text: Text, prompts: list[Tensor]) -> Rows:
    """Rows of prompts, each with the answer after it."""
    answer = text.ids[text.prompt :]
    sizes = text.ids.new_tensor([len(p) for p in prompts])
    rows = [torch.cat([p, answer]) for p in prompts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    at = (sizes - text.prompt)[:, None] + text.at
    source = sizes if text.source else torch.zeros_like(sizes)
    return Rows(ids, sizes + len(answer), at, None, source)


def _nonempty(text: Text, rows: Rows, kept: Tensor) -> Rows:
    """Refuse rows without a token to predict from, or begin them with the model's first token."""
    if text.source or not text.predicts:
        read = kept[:, : text.source or text.prompt]
        if bool((~read.any(1)).any()):
            raise ValueError(f"remove leaves the encoder no token, {_ADVICE}")
        return rows
    empty = rows.at[:, :1] < 0
    if not bool(empty.any()):
        return rows
    if text.bos is None or rows.attend is not None:
        raise ValueError(f"remove leaves an empty prompt, {_ADVICE}, or use text.replace")
    first = torch.full_like(rows.ids[:, :1], text.bos)
    return rows._replace(
        ids=_begun(rows.ids, first, empty),
        length=rows.length + empty[:, 0],
        at=rows.at + empty,
        place=None if rows.place is None else _begun(rows.place, rows.place[:, :1], empty),
    )


_ADVICE = "expected at least one: keep a token fixed, by a negative id in parts.mask"


def _begun(t: Tensor, first: Tensor, empty: Tensor) -> Tensor:
    """Rows that begin with another element where they are empty, (R, T + 1)."""
    return torch.cat([first, t], 1).where(empty, torch.cat([t, t[:, -1:]], 1))


def chosen(remove: object, model: Any) -> Removal:
    """A checked removal, with the model's padding token where none is named.

    Raises:
        TypeError: It is not a removal.
        ValueError: The padding token is the end of text, or there is none.
    """
    if not isinstance(remove, Removal):
        raise TypeError(
            f"remove is {say(remove)}, expected text.delete(), replace(id), template(build, "
            "encode), unattended() or embedding(value)"
        )
    if remove.name != "replace" or remove.value is not None:
        return remove
    pad, ends = of_config(model, "pad_token_id"), of_config(model, "eos_token_id")
    if pad is None or pad in (ends if isinstance(ends, (list, tuple)) else [ends]):
        what = "no padding token" if pad is None else f"the padding token {pad} as its end of text"
        raise ValueError(
            f"id is None, and the model has {what}, which is not a neutral replacement: give a "
            "token, such as that of a space, text.replace(id)"
        )
    return remove._replace(value=pad)
