"""Tokenizers of all styles, tiny: written out here, or made in code by the library tokenizers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

CORPUS = [
    "the capital of France is Paris. The capital of England is London, isn't it?",
    "a black cat sat on the mat; a white dog ran. cats and dogs were believable",
    'he said: "numbers like 3.14 and 1,000 aren\'t words!" unbelievable, unbelievably',
] * 3


class Written:
    """A tokenizer of pieces that a function finds, with ids in order of first use."""

    def __init__(self, cut: Callable[[str], list[tuple[int, int, str]]], **marks: int) -> None:
        self.cut, self.texts = cut, list[str]()
        for name in marks:
            self.texts.append(f"<{name}>")
            setattr(self, f"{name}_token_id", len(self.texts) - 1)
        self.all_special_ids = list(range(len(marks)))
        self.start = hasattr(self, "bos_token_id")

    def id(self, piece: str) -> int:
        if piece not in self.texts:
            self.texts.append(piece)
        return self.texts.index(piece)

    def __call__(
        self, text: str, return_offsets_mapping: bool = False, add_special_tokens: bool = True
    ) -> dict[str, Any]:
        marks = re.compile("|".join(re.escape(self.texts[i]) for i in self.all_special_ids) or "$^")
        found: list[tuple[int, int, str]] = []
        at = 0
        for m in [*marks.finditer(text), None]:
            end = m.start() if m else len(text)
            found += [(a + at, b + at, piece) for a, b, piece in self.cut(text[at:end])]
            if m:
                found.append((m.start(), m.end(), m[0]))
                at = m.end()
        if self.start and add_special_tokens:
            found.insert(0, (0, 0, "<bos>"))
        out: dict[str, Any] = {"input_ids": [self.id(piece) for _, _, piece in found]}
        if return_offsets_mapping:
            out["offset_mapping"] = [(a, b) for a, b, _ in found]
        return out

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i] for i in ids)


def _spaced(text: str) -> list[tuple[int, int, str]]:
    return [(m.start(), m.end(), m[0]) for m in re.finditer(r"\s*\w+|\s*[^\w\s]|\s+", text)]


def _alone(text: str) -> list[tuple[int, int, str]]:
    return [(m.start(), m.end(), m[0]) for m in re.finditer(r"\w+|[^\w\s]|\s", text)]


def spaced(**marks: int) -> Written:
    """A space belongs to the token after it, and so do the offsets."""
    return Written(_spaced, **(marks or {"pad": 0}))


def alone(**marks: int) -> Written:
    """Spaces are tokens."""
    return Written(_alone, **(marks or {"pad": 0}))


class Bytes:
    """One token for each byte; those of one character share its span."""

    pad_token_id, eos_token_id = 256, 257
    all_special_ids = (256, 257)

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        spans = [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]
        return {"input_ids": list(text.encode()), "offset_mapping": spans}

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def _trained(model: str) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    marks = ["<pad>", "<unk>", "<s>", "</s>"]
    if model == "bpe":
        found = tokenizers.Tokenizer(models.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=marks, initial_alphabet=letters, show_progress=False
        )
    elif model == "trimmed":  # as RoBERTa has it
        found = _trained("bpe")
        found.post_processor = processors.ByteLevel(trim_offsets=True)
        return found
    elif model == "wordpiece":
        found = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        found.normalizer = normalizers.BertNormalizer()
        found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        found.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=marks, show_progress=False
        )
    else:
        found = tokenizers.Tokenizer(models.Unigram())
        found.pre_tokenizer = pre_tokenizers.Metaspace()
        found.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=marks, unk_token="<unk>", show_progress=False
        )
    found.train_from_iterator(CORPUS, trainer)
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if model == "wordpiece" else "<s> $A",
        special_tokens=[("<s>", found.token_to_id("<s>")), ("</s>", found.token_to_id("</s>"))],
    )
    return found


TRAINED = ("bpe", "trimmed", "wordpiece", "unigram")


@functools.cache
def trained(model: str) -> Any:
    """A tokenizer of the library transformers, trained on a few sentences."""
    import pytest

    pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=_trained(model),
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )
