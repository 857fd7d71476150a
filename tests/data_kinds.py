"""One data set as every kind of ``data`` that attrfn.data takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

Row = dict[str, Any]
"""An example: "x", the six inputs, and "y", the target."""

FEATURES = ["age", "income", "height", "b", "c", "d"]
NAMED = {"inputs": "x", "target": "y"}
PAIR = {"inputs": 0, "target": 1}
TABLE = {"inputs": FEATURES, "target": "y"}


class Named(Dataset):
    """Examples that are dicts, with a part that no batch could be made of.

    Args:
        rows: The examples; one that is an error is raised.
    """

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Row:
        self.read.append(i)
        if i >= len(self.rows):
            raise IndexError(i)
        if isinstance(self.rows[i], Exception):
            raise self.rows[i]
        return {**self.rows[i], "boxes": torch.zeros(i % 3), "text": None}


class Pairs(Named):
    def __getitem__(self, i: int) -> Any:
        row = super().__getitem__(i)
        return row["x"], row["y"], row["text"]


class Streamed(IterableDataset):
    def __init__(self, rows: list[Any]) -> None:
        self.data = Named(rows)

    def __iter__(self) -> Iterator[Row]:
        return (self.data[i] for i in range(len(self.data)))


class HuggingFace:
    """As ``datasets.Dataset`` behaves: slices are dicts of lists."""

    def __init__(self, rows: list[Any], names: tuple[str, ...] = ("x", "y", "text")) -> None:
        self.rows, self.column_names = rows, names

    def __len__(self) -> int:
        return len(self.rows)

    def select_columns(self, names: list[str]) -> HuggingFace:
        return HuggingFace(self.rows, tuple(names))

    def __getitem__(self, i: slice) -> dict[str, Any]:
        rows = self.rows[i]
        for row in rows:
            if isinstance(row, Exception):
                raise row
        return {name: [row.get(name) for row in rows] for name in self.column_names}


class HuggingFaceStream:
    """As ``datasets.IterableDataset`` without torch: it has columns, and no length."""

    column_names = None

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        return iter(Streamed(self.rows))


def stacked(rows: list[Row]) -> dict[str, Tensor]:
    return {"x": torch.stack([r["x"] for r in rows]), "y": torch.tensor([r["y"] for r in rows])}


def batches(rows: list[Row], size: int = 9) -> Iterator[dict[str, Tensor]]:
    return (stacked(rows[i : i + size]) for i in range(0, len(rows), size))


def columns_of(rows: list[Row]) -> dict[str, Any]:
    whole = stacked(rows)
    features = {n: whole["x"][:, i].numpy() for i, n in enumerate(FEATURES)}
    return {**features, "y": whole["y"].numpy()}


def frame(rows: list[Row]) -> Any:
    import pandas

    return pandas.DataFrame(columns_of(rows))


def arrow(rows: list[Row]) -> Any:
    import pyarrow

    return pyarrow.table(columns_of(rows))


def parquet(rows: list[Row], folder: Path) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow(rows), folder / "x.parquet", row_group_size=30)
    return folder / "x.parquet"


def safetensors(rows: list[Row], folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(stacked(rows), str(folder / "x.safetensors"))
    return folder / "x.safetensors"


def only(rows: list[Row]) -> list[Any]:
    """What a collate function of one's own makes of examples."""
    whole = stacked(rows)
    return [whole["x"], whole["y"]]


KINDS: dict[str, Callable[[list[Row], Path], tuple[Any, Any]]] = {
    "dict": lambda rows, _: (stacked(rows), NAMED),
    "tuple": lambda rows, _: (tuple(stacked(rows).values()), PAIR),
    "map-style": lambda rows, _: (Named(rows), NAMED),
    "map-style of tuples": lambda rows, _: (Pairs(rows), PAIR),
    "subset": lambda rows, _: (Subset(Named(rows[::-1]), range(len(rows))[::-1]), NAMED),
    "loader": lambda rows, _: (DataLoader(Named(rows), 9, collate_fn=stacked), NAMED),
    "loader with workers": lambda rows, _: (
        DataLoader(Named(rows), 9, collate_fn=only, num_workers=2),
        PAIR,
    ),
    "iterable data set": lambda rows, _: (Streamed(rows), NAMED),
    "loader of a stream": lambda rows, _: (DataLoader(Streamed(rows), 9, collate_fn=only), PAIR),
    "loader of batches": lambda rows, _: (
        DataLoader(list(batches(rows)), batch_size=None),  # type: ignore[arg-type]
        NAMED,
    ),
    "generator": lambda rows, _: (batches(rows), NAMED),
    "list of batches": lambda rows, _: (list(batches(rows)), NAMED),
    "Hugging Face": lambda rows, _: (HuggingFace(rows), NAMED),
    "stream of Hugging Face": lambda rows, _: (HuggingFaceStream(rows), NAMED),
    "pandas": lambda rows, _: (frame(rows), TABLE),
    "chunks of pandas": lambda rows, _: ((frame(rows[i : i + 9]) for i in range(0, 100, 9)), TABLE),
    "Arrow": lambda rows, _: (arrow(rows), TABLE),
    "batches of Arrow": lambda rows, _: (arrow(rows).to_batches(max_chunksize=9), TABLE),
    "Parquet": lambda rows, folder: (parquet(rows, folder), TABLE),
    "safetensors": lambda rows, folder: (safetensors(rows, folder), NAMED),
}
