"""Prompts that are built from pieces: chats by their template, and documents in a frame."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from typing import Any

from attrfn._explain.flags import checks_flags
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn.text._from_text import By, Keep, cuts, of_tokens, pairs
from attrfn.text._parts_type import Parts
from attrfn.text._segment import Span
from attrfn.text._tokens import tokens_of

# The separator of documents if the template has one place for all.
BETWEEN = "\n\n"


@checks_flags
def chat_parts(
    messages: Sequence[Any],
    tokenizer: Any,
    *,
    by: By = "sentence",
    roles: Sequence[str] = ("user",),
    keep: Keep = (),
    add_generation_prompt: bool = True,
) -> Parts:
    """The parts of a chat: those of the messages; what the chat template adds is fixed.

    Args:
        messages: Mappings with ``role`` and ``content``, a text or a list of ``{"type": "text",
            "text": ...}``.
        tokenizer: One with offsets and ``apply_chat_template``.
        by: As of :func:`parts`, for each message; spans are those of the only message explained.
        roles: Whose messages have parts; the others are fixed.
        keep: What stays fixed, as of :func:`parts`; spans are those of the whole prompt.
        add_generation_prompt: Whether the prompt ends where the answer begins.

    Returns:
        The parts; ``text`` is what the template makes of the messages, and its tokens have no
        second mark of the beginning.

    Raises:
        TypeError: A message is not such a mapping, or the tokenizer has no template.
        ValueError: No message has one of the roles, or the template does not print a message that
            has one as it is.

    Example:
        >>> import attrfn.text as text
        >>> class Chat:
        ...     def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        ...         return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<bot>"
        ...
        ...     def __call__(self, text, **options):
        ...         spans = [(i, i + 1) for i in range(len(text))]
        ...         return {"input_ids": [ord(c) for c in text], "offset_mapping": spans}
        >>> found = text.chat_parts([{"role": "user", "content": "Hi. Who?"}], Chat())
        >>> found.text, found.labels
        ('<user>Hi. Who?<bot>', ('Hi.', 'Who?'))
    """
    chat = [_message(m) for m in messages]
    if not hasattr(tokenizer, "apply_chat_template"):
        raise TypeError(f"tokenizer is {say(tokenizer)}, expected one with apply_chat_template")

    def render(these: list[dict[str, Any]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                these, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    roles = (roles,) if isinstance(roles, str) else tuple(roles)
    text = called("tokenizer", render, chat)
    inside = [span for span in _places(chat, text, render, roles) if span[0] < span[1]]
    if not inside:
        said = ", ".join(dict.fromkeys(m["role"] for m in chat))
        raise ValueError(f"roles is {roles!r}, of which no message has a text, expected of {said}")
    if not cuts(by):
        if len(inside) > 1:
            raise ValueError(
                f"by is spans for {len(inside)} messages, expected one: give a function of the text"
            )
        by = [(a + inside[0][0], b + inside[0][0]) for a, b in pairs(by)]
    return of_tokens(text, tokens_of(text, tokenizer, special=False), by, keep, inside)


def _message(message: Any) -> dict[str, Any]:
    if not hasattr(message, "keys") or not isinstance(message.get("role"), str):
        raise TypeError(
            f"messages has {say(message)}, expected mappings such as "
            "{'role': 'user', 'content': 'Hello'}"
        )
    return dict(message)


def _texts(message: dict[str, Any]) -> list[str]:
    """The texts of a message's content."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        return [c["text"] for c in content if isinstance(c, dict) and "text" in c]
    return [] if content is None else [str(content)]


def _with_texts(message: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    content, rest = message.get("content"), iter(texts)
    if isinstance(content, (list, tuple)):
        new = [
            {**c, "text": next(rest)} if isinstance(c, dict) and "text" in c else c for c in content
        ]
        return {**message, "content": new}
    return message if content is None else {**message, "content": next(rest)}


def _places(
    chat: list[dict[str, Any]], text: str, render: Any, roles: tuple[str, ...]
) -> list[Span]:
    """Where the texts of messages of some roles are in the prompt, found without a search.

    A message such as "user" may also occur in the template. So the template is shown messages that
    occur nowhere else, and what it prints between them is what it prints between the real ones.
    """
    texts = [_texts(m) if m["role"] in roles else [] for m in chat]
    signs = [[_sign(i, k) for k in range(len(of))] for i, of in enumerate(texts)]
    shown = [_with_texts(m, s) if s else m for m, s in zip(chat, signs, strict=True)]
    frame = called("tokenizer", render, shown)
    pairs = zip(itertools.chain(*signs), itertools.chain(*texts), strict=True)
    flat = [(sign, content) for sign, content in pairs if sign in frame]
    found: list[Span] = []
    at, rest = 0, frame
    for k, (sign, content) in enumerate(flat):
        before, _, rest = rest.partition(sign)
        at += len(before)
        after = rest.partition(flat[k + 1][0])[0] if k + 1 < len(flat) else rest
        fits = [c for c in _variants(content) if text.startswith(c + after, at)]
        if not text.startswith(before, at - len(before)) or not fits or sign in rest:
            raise ValueError(
                f"the chat template does not print the message {say(content)} once and as it is, "
                "so that its place is unknown: give parts(text, tokenizer, by=spans, encoding=...)"
            )
        found.append((at, at + len(fits[0])))
        at = found[-1][1]
    return found


def _sign(message: int, k: int) -> str:
    """A text of letters that no message holds: of the private use area of Unicode."""
    return f"\ue0f1{chr(0xE100 + message)}{chr(0xE100 + k)}\ue0f2"


def _variants(content: str) -> list[str]:
    return [content, content.strip(), content.rstrip(), content.lstrip()]


@checks_flags
def documents(
    template: str, documents: Sequence[str], tokenizer: Any, *, keep: Keep = (), **fields: Any
) -> Parts:
    r"""The parts of a prompt with documents: one for each, the rest of the template is fixed.

    Args:
        template: A text with ``{documents}`` for all, separated by empty lines, or
            with ``{}`` for each; and with places such as ``{question}`` for the fields. Braces that
            are to be printed are doubled.
        documents: Their texts.
        tokenizer: One with offsets, as of :func:`parts`.
        keep: What stays fixed, as of :func:`parts`.
        **fields: What fills the other places of the template.

    Returns:
        The parts, one for each document, in their order; an empty one has no token.

    Raises:
        TypeError: The documents are not texts.
        ValueError: The template has no place for them, or fields and places differ.

    Example:
        >>> import attrfn.text as text
        >>> def tokenizer(text, **options):
        ...     spans = [(i, i + 1) for i in range(len(text))]
        ...     return {"input_ids": [ord(c) for c in text], "offset_mapping": spans}
        >>> found = text.documents("{documents}? {q}", ["one", "two"], tokenizer, q="Why")
        >>> found.text, found.labels, found.mask.tolist()[:5]
        ('one\n\ntwo? Why', ('one', 'two'), [0, 0, 0, 1, 1])
    """
    if isinstance(documents, str) or not all(isinstance(d, str) for d in documents):
        raise TypeError(f"documents is {say(documents)}, expected a list of texts")
    if not documents:
        raise ValueError("documents is empty, expected at least one text")
    text, spans = _filled(template, list(documents), fields)
    found = of_tokens(text, tokens_of(text, tokenizer), spans, keep)
    return found._replace(by="document")


def _filled(template: str, texts: list[str], fields: dict[str, Any]) -> tuple[str, list[Span]]:
    formatter = string.Formatter()
    pieces = list(formatter.parse(template))
    names = [name for _, name, _, _ in pieces if name is not None]
    numbered = [n for n in names if n == "" or n.isdigit()]
    together = names.count("documents")
    if (together, len(numbered)) not in ((1, 0), (0, len(texts))):
        raise ValueError(
            f"template has {together} places {{documents}} and {len(numbered)} places {{}}, "
            f"expected {{documents}} once or {{}} for each of the {len(texts)} documents"
        )
    known = set(names) - set(numbered) - {"documents"}
    if known != fields.keys():
        raise ValueError(
            f"template has the places {sorted(known)} and the fields are {sorted(fields)}, "
            "expected a field for each place: give it as a keyword"
        )
    text, spans, automatic = "", dict[int, Span](), 0
    for literal, name, form, how in pieces:
        text += literal
        if name in fields:
            text += formatter.format_field(formatter.convert_field(fields[name], how), form or "")
        elif name is not None:
            numbers = list(range(len(texts))) if name == "documents" else [int(name or automatic)]
            automatic += name == ""
            for k in numbers:
                text += BETWEEN if k and name == "documents" else ""
                spans[k] = (len(text), len(text) + len(texts[k]))
                text += texts[k]
    return text, [spans[k] for k in range(len(texts))]
