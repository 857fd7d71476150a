"""Every kind of data set: the same numbers, and the same errors with the row."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import ROWS, examples, network
from data_kinds import KINDS, NAMED, PAIR, TABLE, HuggingFace, Named, Pairs, Row, Streamed, batches
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

import attrfn
import attrfn.data

for package in ("pandas", "pyarrow", "safetensors"):
    pytest.importorskip(package)

NET = network()
X, Y = examples()
EXPECTED = attrfn.gradient(NET, X, target=Y)
explain = functools.partial(attrfn.data.explain, attrfn.gradient, NET, progress=False)


def rows(**changes: Any) -> list[Row]:
    """The examples, of which number 17 has other parts."""
    found: list[Row] = [{"x": x, "y": int(y)} for x, y in zip(X, Y, strict=True)]
    found[17] |= changes
    return found


def refused(data: Any, message: str, **options: Any) -> None:
    """One sentence of at most 300 characters that names the row."""
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        explain(data, batch_size=6, **options)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_what_one_call_gives(kind: str, tmp_path: Path) -> None:
    """What is not named may be of any kind, such as parts of unequal lengths and None."""
    data, columns = KINDS[kind](rows(), tmp_path)
    found = explain(data, columns=columns, batch_size=6)
    torch.testing.assert_close(found, EXPECTED, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_out_of_range_is_named_by_its_row(kind: str, tmp_path: Path) -> None:
    data, columns = KINDS[kind](rows(y=9), tmp_path)
    refused(data, r"(row|example) 17: target has values from 9 to 9", columns=columns)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    data, columns = KINDS[kind](rows(), tmp_path)
    missing = 7 if columns is PAIR else "yy"
    refused(
        data,
        f"columns names {missing!r}, which the data do not have",
        columns={**columns, "target": missing},
    )


def of_rows(kind: str, given: list[Any]) -> Any:
    """The kinds that are made of single examples."""
    kinds = {
        "map-style": Named,
        "iterable data set": Streamed,
        "loader": lambda rows: DataLoader(Named(rows), 9, collate_fn=together),
        "Hugging Face": HuggingFace,
    }
    return kinds[kind](given)


def together(items: list[Row]) -> dict[str, Any]:
    return {"x": torch.stack([i["x"] for i in items]), "y": [i["y"] for i in items]}


@pytest.mark.parametrize("kind", ["map-style", "iterable data set", "loader", "Hugging Face"])
@pytest.mark.parametrize("bad", ["cat", None])
def test_what_is_no_number_is_named_by_its_row(kind: str, bad: Any) -> None:
    refused(of_rows(kind, rows(y=bad)), "example 17: column 'y' holds", columns=NAMED)


@pytest.mark.parametrize("kind", ["map-style", "iterable data set", "Hugging Face"])
def test_an_example_of_another_shape_is_named_by_its_row(kind: str) -> None:
    data = of_rows(kind, rows(x=X[17, :4]))
    refused(data, r"example 17: rows are|example 17: column 'x' holds", columns=NAMED)
    with pytest.warns(UserWarning, match="1 of the examples failed, the first is 17"):
        found = explain(data, columns=NAMED, batch_size=6, on_error="skip")
    good = [i for i in range(ROWS) if i != 17]
    torch.testing.assert_close(found[good], EXPECTED[good], rtol=1e-12, atol=1e-14)
    assert bool(found[17].isnan().all())


@pytest.mark.parametrize(
    ("kind", "workers"), [("map-style", 0), ("Hugging Face", 0), ("loader", 0), ("loader", 2)]
)
def test_an_example_that_cannot_be_read_is_named_or_left_out(kind: str, workers: int) -> None:
    given: list[Any] = rows()
    given[17] = OSError("broken picture")
    data = of_rows(kind, given)
    if kind == "loader":
        data = DataLoader(Named(given), 9, collate_fn=together, num_workers=workers)
    refused(data, "^example 17 cannot be read: broken picture: .*skip'$", columns=NAMED)
    with pytest.warns(UserWarning, match="1 of the examples failed, the first is 17"):
        found = explain(data, columns=NAMED, batch_size=6, on_error="skip")
    good = [i for i in range(ROWS) if i != 17]
    torch.testing.assert_close(found[good], EXPECTED[good], rtol=1e-12, atol=1e-14)


def test_an_example_that_fails_is_read_once() -> None:
    given: list[Any] = rows()
    given[17] = OSError("broken picture")
    data = Named(given)
    with pytest.warns(UserWarning, match="the first is 17"):
        explain(data, columns=NAMED, batch_size=50, on_error="skip")
    assert sorted(data.read) == sorted([0, *range(ROWS)])  # the first tells how large rows are


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (
            {"x": X[9:18, :3], "y": Y[9:18]},
            r"example 9: rows are \(3,\) float64.*, expected .*\(6,\)",
        ),
        ({"x": X[9:18].float(), "y": Y[9:18]}, r"example 9: rows are \(6,\) float32.*, expected"),
        ({"x": X[9:18]}, r"examples from 9 on: columns names 'y', which the data do not have"),
        ((X[9:18], Y[9:18]), r"examples from 9 on: columns names 'x'.*the places 0 to 1"),
        (
            {"x": X[9:18], "y": Y[9:12]},
            r"examples from 9 on: data has tensors of shapes \(9, 6\), \(3,\)",
        ),
        ({"x": X[9:18], "y": list("abcdefghi")}, r"example 9: column 'y' holds 'a'"),
        ({"x": X[9:18], "y": [0] * 4 + [None] * 5}, r"example 13: column 'y' holds None"),
        (X[9:18], r"examples from 9 on: columns names 'x'.*a batch is a tensor"),
        ({"x": 3.0, "y": Y[9:18]}, r"examples from 9 on: data has tensors of shapes"),
    ],
)
def test_batches_of_another_structure_are_named(later: Any, message: str) -> None:
    data = [{"x": X[:9], "y": Y[:9]}, later]
    refused(data, message, columns=NAMED)
    refused(DataLoader(data, batch_size=None), message, columns=NAMED)  # type: ignore[arg-type]


def test_trees_of_another_structure_are_named() -> None:
    model = lambda d: NET(d["a"] + d.get("b", 0))  # noqa: E731
    run = functools.partial(attrfn.data.explain, attrfn.gradient, model, progress=False, target=0)
    data = [({"a": X[:9], "b": X[:9]},), ({"a": X[9:18]},)]
    with pytest.raises(ValueError, match=r"example 9: rows are a \(6,\) float64, .* b \(6,\)"):
        run(data)


def test_columns_of_arrays() -> None:
    """As pandas and the formats of Hugging Face have them."""
    import pandas

    arrays = [x.numpy() for x in X]
    for data in ({"x": arrays, "y": Y}, pandas.DataFrame({"x": arrays, "y": Y.numpy()})):
        found = explain(data, columns=NAMED, batch_size=6)
        torch.testing.assert_close(found, EXPECTED, rtol=1e-12, atol=1e-14)
    arrays[17] = arrays[17][:4]
    for data in ({"x": arrays, "y": Y}, pandas.DataFrame({"x": arrays, "y": Y.numpy()})):
        refused(data, "example 17: column 'x' holds", columns=NAMED)


def test_lists_of_single_examples_are_refused() -> None:
    refused(
        [{"x": x, "y": int(y)} for x, y in zip(X, Y, strict=True)], "as a Dataset", columns=NAMED
    )


def test_a_stream_that_breaks_says_where() -> None:
    class Breaks(IterableDataset):
        def __iter__(self) -> Iterator[Row]:
            yield from rows()[:40]
            raise OSError("connection lost")

    refused(Breaks(), "data failed after 40 examples: connection lost", columns=NAMED)


class Grows(Named):
    """A data set to which someone writes while it is read."""

    def __init__(self, by: int) -> None:
        super().__init__(rows())
        self.by = by

    def __getitem__(self, i: int) -> Row:
        if i == 50:
            self.rows = [*self.rows, *self.rows[: self.by]] if self.by > 0 else self.rows[: self.by]
        return super().__getitem__(i)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("by", [-20, 20])
def test_a_length_that_changes_is_said(tmp_path: Path, by: int, on_error: str) -> None:
    message = f"data had 100 examples and has {100 + by} now, expected a data set that stays"
    refused(Grows(by), message, columns=NAMED, out=tmp_path, on_error=on_error)
    kept = attrfn.data.read(tmp_path)
    torch.testing.assert_close(kept[:], EXPECTED[: len(kept)], rtol=1e-12, atol=1e-14)
    assert len(kept) >= 78


def test_loaders_whose_order_changes_are_refused() -> None:
    class Shuffled(torch.utils.data.RandomSampler):
        """A subclass shuffles, too."""

    data = Named(rows())
    share = DistributedSampler(data, num_replicas=2, rank=0)
    for loader, what in (
        (DataLoader(data, sampler=Shuffled(data)), "Shuffled"),
        (DataLoader(data, sampler=share), "DistributedSampler"),
        (DataLoader(data, num_workers=1, in_order=False), "in_order=False"),
    ):
        refused(loader, f"data is a DataLoader with (a )?{what}, whose order", columns=NAMED)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_without_loading_what_is_done(tmp_path: Path, workers: int) -> None:
    """Only the first batch, which says how large a batch is, is loaded again."""
    given: list[Any] = rows()
    given[80] = OSError("broken picture")
    run = functools.partial(explain, columns=NAMED, out=tmp_path)
    with pytest.raises(ValueError, match="example 80"):
        run(DataLoader(Named(given), 10, collate_fn=together))
    data = Named(rows())
    found = run(DataLoader(data, 10, collate_fn=together, num_workers=workers))
    assert found.complete
    torch.testing.assert_close(found[:], EXPECTED, rtol=1e-12, atol=1e-14)
    if not workers:  # whose reads are their own
        assert data.read == [*range(10), *range(80, 100)]


def test_an_empty_cell_is_named_by_its_row(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {n: X[:, i].tolist() for i, n in enumerate(TABLE["inputs"])}
    lists: Any = X.tolist()
    columns["income"][42] = None
    lists[43][2] = None
    table = pyarrow.table({**columns, "y": Y.tolist(), "x": lists})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=30)
    message = "t.parquet, row 42: column 'income' has an empty cell, expected a number: fill it in"
    refused(tmp_path / "t.parquet", message, columns=TABLE)
    refused(tmp_path / "t.parquet", "t.parquet, row 43: column 'x' has an empty", columns=NAMED)
    with pytest.warns(UserWarning, match="1 of the examples failed, the first is 42"):
        explain(tmp_path / "t.parquet", columns=TABLE, on_error="skip", batch_size=9)


def test_columns_of_lists_of_lists_and_categories(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    x = X.reshape(ROWS, 2, 3)
    kinds = pyarrow.array(Y.tolist()).dictionary_encode()
    parquet.write_table(pyarrow.table({"x": x.tolist(), "y": kinds}), tmp_path / "t.parquet")
    model = lambda x: NET(x.flatten(1))  # noqa: E731
    found = attrfn.data.explain(
        attrfn.gradient, model, tmp_path / "t.parquet", columns=NAMED, progress=False
    )
    torch.testing.assert_close(found.flatten(1), EXPECTED, rtol=1e-12, atol=1e-14)


def test_a_damaged_part_of_a_file_is_named(tmp_path: Path) -> None:
    """Bytes of the second row group are overwritten; the end of the file is whole."""
    import pyarrow
    from pyarrow import parquet

    data = {n: X[:, i].numpy() for i, n in enumerate(TABLE["inputs"])}
    file = tmp_path / "t.parquet"
    parquet.write_table(
        pyarrow.table({**data, "y": Y.numpy()}), file, row_group_size=30, compression="zstd"
    )
    meta = parquet.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    start = meta.dictionary_page_offset or meta.data_page_offset
    content[start : start + meta.total_compressed_size] = b"\xff" * meta.total_compressed_size
    file.write_bytes(bytes(content))
    refused(file, "t.parquet, row 30 cannot be read: .*damaged", columns=TABLE, out=tmp_path / "a")
    kept = attrfn.data.read(tmp_path / "a")
    torch.testing.assert_close(kept[:], EXPECTED[:30], rtol=1e-12, atol=1e-14)


def test_streams_of_examples_have_batches_by_their_size(tmp_path: Path) -> None:
    found = explain(Streamed(rows() * 20), columns=NAMED, out=tmp_path)
    assert found.manifest["batch_size"] == 4096
    assert len(found) == 20 * ROWS


def test_a_bar_shows_how_many_where_no_one_knows_the_length(capsys: Any) -> None:
    attrfn.data.explain(attrfn.gradient, NET, (b["x"] for b in batches(rows())), target=0)
    shown = capsys.readouterr().err
    assert "100" in shown
    assert "left" not in shown


def test_the_order_of_reading_by_number_is_that_of_the_file() -> None:
    """A permutation reads each part of a file once, and gives the rows as they were asked for."""
    data = Named(rows())
    found = attrfn.data._kinds.source(data, attrfn.data._columns.Columns(NAMED, None))
    places = list(range(ROWS))
    random.Random(0).shuffle(places)
    got: Tensor = found.at(torch.tensor(places)).inputs
    assert torch.equal(got, X[places])
    assert data.read == sorted(places)


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        ({"x": X}, {"inputs": []}, r"columns\['inputs'\] is \[\], expected names of columns"),
        ({"x": X}, {"inputs": None}, r"columns\['inputs'\] is None, expected names of columns"),
        ({"x": X, "y": ["a"] * ROWS}, NAMED, "example 0: column 'y' holds 'a'"),
        (
            {"x": [*X[:50].tolist(), [1.0]]},
            {"inputs": "x"},
            r"example 50: column 'x' holds \[1.0\]",
        ),
        ({"a": X[:, 0], "b": X[:50, 1]}, {"inputs": ["a", "b"]}, r"column 'b' has shape \(50,\)"),
        (Pairs(rows()), None, "data has examples of 3 parts"),
        ([X[:9].tolist()], None, "data has examples of 9 parts"),
    ],
)
def test_wrong_data(data: Any, columns: Any, message: str) -> None:
    refused(data, message, columns=columns)


def test_a_data_set_without_a_length_is_refused_with_the_remedy() -> None:
    class Endless:
        def __getitem__(self, i: int) -> Tensor:
            return X[0]

    refused(Endless(), "expected a DataLoader.*: give it a __len__")
