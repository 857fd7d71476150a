"""Texts as a data set: the tokens of a classifier, and what stands in their place in a baseline."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import attrfn
from attrfn.cli._hub import tokenizer
from attrfn.cli._model import Loaded
from attrfn.cli._need import need
from attrfn.cli._say import note

_NO_LIMIT = 10**6  # tokenizers without a limit say a number above it


class Texts(NamedTuple):
    """Tokenised texts.

    Attributes:
        tensors: What the tokenizer returned, each (N, L), and ``baselines``.
        pieces: The tokens of each text, without padding.
    """

    tensors: dict[str, Tensor]
    pieces: list[list[str]]

    @property
    def bound(self) -> list[str]:
        """The arguments of a model beside the ids."""
        return [k for k in self.tensors if k not in ("input_ids", "baselines")]


def is_classifier(loaded: Loaded) -> bool:
    """Whether a model classifies texts."""
    name = type(loaded.model).__name__
    return loaded.folder is not None and name.endswith("ForSequenceClassification")


def embedding(model: Any, row: dict[str, Tensor]) -> str:
    """The name of the layer that embeds the tokens.

    Several modules may share its weights, as those of an encoder and a decoder do: it is the first
    of them that the model calls.

    Args:
        model: The model.
        row: The arguments of a call.
    """
    found = model.get_input_embeddings()
    named = model.named_modules(remove_duplicate=False)
    names = [n for n, m in named if m is found or getattr(m, "weight", None) is found.weight]
    arguments = {name: t for name, t in row.items() if name != "input_ids"}
    for name in names[:-1]:
        try:
            attrfn.activations(functools.partial(model, **arguments), [name])(row["input_ids"])
        except ValueError:  # it is not called
            continue
        return str(name)
    return str(names[-1])


def read_texts(path: Path, column: Any) -> list[Any] | None:
    """The texts of a file; None if the column does not hold texts."""
    if path.suffix == ".txt":
        return path.read_text(encoding="utf-8").splitlines()
    found = read_column(path, column) if isinstance(column, str) else None
    return found if found and any(isinstance(v, str) for v in found) else None


def read_column(path: Path, name: str) -> list[Any] | None:
    """A column of a table as a list; None if there is no such column or table."""
    if path.suffix == ".parquet":
        parquet = need("pyarrow.parquet", "a Parquet file")
        if name not in parquet.read_schema(path).names:
            return None
        listed: list[Any] = parquet.read_table(path, columns=[name]).column(name).to_pylist()
        return listed
    if path.suffix in (".csv", ".tsv"):
        separator = "\t" if path.suffix == ".tsv" else ","
        frame = need("pandas", "a CSV file").read_csv(path, sep=separator)
        return None if name not in frame.columns else list(frame[name])
    return None


def encode(texts: list[Any], folder: Path, limit: int | None, how: str, name: str) -> Texts:
    """Tokenise texts.

    Args:
        texts: The texts.
        folder: Whose tokenizer.
        limit: After how many tokens they are cut; None: as the tokenizer says.
        how: ``"pad"`` or ``"mask"``: which token stands for each word in a baseline.
        name: The file, for messages.

    Raises:
        ValueError: A text is missing, or there is no such token.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}, row {i}: {text!r} is not a text: fill it, or drop the row")
    if not texts:
        raise ValueError(f"{name} holds no texts, expected at least one")
    found = tokenizer(folder)
    found.padding_side = "right"  # the positions of the tokens are those of the text alone
    other = found.pad_token_id if how == "pad" else found.mask_token_id
    if other is None:
        raise ValueError(f"the tokenizer of {folder} has no mask token: give --baselines pad")
    if limit is None and found.model_max_length < _NO_LIMIT:
        limit = int(found.model_max_length)
    cut = [] if limit is None else [len(ids) > limit for ids in found(texts)["input_ids"]]
    if any(cut):
        note(f"{sum(cut)} of {len(texts)} texts are cut after {limit} tokens: see --max-length")
    options: dict[str, Any] = {} if limit is None else {"truncation": True, "max_length": limit}
    options |= {"padding": True, "return_tensors": "pt", "return_special_tokens_mask": True}
    batch = found(texts, **options)
    tensors = dict(batch)
    special = tensors.pop("special_tokens_mask").bool()
    ids, attended = tensors["input_ids"], tensors["attention_mask"].bool()
    tensors["baselines"] = torch.where(special | ~attended, ids, other)
    rows = zip(ids.tolist(), attended.tolist(), strict=True)
    kept = [[i for i, real in zip(row, mask, strict=True) if real] for row, mask in rows]
    return Texts(tensors, [found.convert_ids_to_tokens(row) for row in kept])
