"""Results of texts: merged, selected, normalised, as tables, as JSON and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attrfn import text

PARTS = ("Un", "believ", "able", ":", "the", "the", "cat")
SPANS = torch.tensor([[0, 2], [2, 8], [8, 12], [12, 13], [14, 17], [18, 21], [22, 25]])


def result(dtype: torch.dtype = torch.float32, **more: Any) -> text.TextAttribution:
    values = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = {
        "values": values,
        "total": values.sum(0),
        "scores": torch.tensor([-0.1, -2.5, -1e-9]).to(dtype),
        "empty": torch.tensor([-3.0, -4.0, -5.0]).to(dtype),
        "parts": PARTS,
        "answer": (" yes", ",", " é"),
        "spans": SPANS,
        "score": "log_prob",
        "method": "lime",
        "stderr": values.abs(),
    }
    return text.TextAttribution(**{**given, **more})


def same(a: text.TextAttribution, b: text.TextAttribution) -> None:
    for name, x, y in zip(a._fields, a, b, strict=True):
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype, name
            assert torch.equal(x.nan_to_num(7), y.nan_to_num(7)), name
            assert torch.equal(x.isnan(), y.isnan()), name
        else:
            assert x == y, name


# --- merge ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min", "absmax"])
def test_merge(reduce: str) -> None:
    """Written out, group by group."""
    a = result()
    groups, answers = [[0, 1, 2], [3], [4, 6], [5]], [[0, 1], [2]]
    b = text.merge(a, groups, answers, reduce)
    take = {
        "sum": lambda t: t.sum(),
        "mean": lambda t: t.mean(),
        "max": lambda t: t.max(),
        "min": lambda t: t.min(),
        "absmax": lambda t: t[t.abs().argmax()],
    }[reduce]
    for k, g in enumerate(groups):
        torch.testing.assert_close(b.total[k], take(a.total[g]))
        for i, h in enumerate(answers):
            rows = torch.stack([take(a.values[r, g]) for r in h])
            torch.testing.assert_close(b.values[i, k], take(rows))
    assert b.parts == ("Unbelievable", ":", "the cat", "the")
    assert b.answer == (" yes,", " é")
    assert b.spans.tolist() == [[0, 12], [12, 13], [14, 25], [18, 21]]
    assert b.stderr is None


def test_merged_sums_are_complete() -> None:
    a = result()
    b = text.merge(a, {"word": [2, 0, 1], "rest": [3, 4, 5, 6]})
    assert b.parts == ("word", "rest")
    torch.testing.assert_close(b.values.sum(1), a.values.sum(1))
    torch.testing.assert_close(b.total.sum(), a.total.sum())
    same(text.merge(a), a)
    assert text.merge(a._replace(spans=None), [[0, 1], [2, 3, 4, 5, 6]]).parts[0] == "Un believ"


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (
            [[0, 1]],
            ValueError,
            r"groups has the numbers \[0, 1\] in groups, expected each of 0 to 6",
        ),
        ([[0, 0], [1, 2, 3, 4, 5, 6]], ValueError, "expected each of 0 to 6 once"),
        ([[], [0, 1, 2, 3, 4, 5, 6]], ValueError, "no empty group"),
        ([0, 1], TypeError, r"groups is \[0, 1\], expected lists of numbers"),
    ],
)
def test_wrong_groups(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        text.merge(result(), groups)
    with pytest.raises(ValueError, match="reduce is 'x', expected one of sum, mean"):
        text.merge(result(), reduce="x")


# --- select --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "which", [slice(1, 3), [1, 2], range(1, 3), torch.tensor([1, 2]), [-2, -1]]
)
def test_select(which: Any) -> None:
    a = result()
    b = text.select(a, answer=which, parts=[6, 0])
    assert torch.equal(b.values, a.values[1:][:, [6, 0]])
    torch.testing.assert_close(b.total, a.values[1:].sum(0)[[6, 0]])
    assert torch.equal(b.scores, a.scores[1:])
    assert torch.equal(b.empty, a.empty[1:])
    assert torch.equal(b.stderr, a.stderr[1:][:, [6, 0]])
    assert b.parts == ("cat", "Un")
    assert b.answer == (",", " é")
    assert b.spans.tolist() == [[22, 25], [0, 2]]
    same(text.select(a), a)
    assert text.select(a, answer=0).values.shape == (1, 7)


def test_a_total_that_is_no_sum_is_unknown_for_a_slice() -> None:
    a = result(total=result().values.abs().sum(0))
    assert text.select(a, answer=[0, 1]).total.isnan().all()
    assert torch.equal(text.select(a, parts=[1]).total, a.total[[1]])


def test_wrong_selections() -> None:
    with pytest.raises(TypeError, match="answer is 'x', expected a slice"):
        text.select(result(), answer="x")
    with pytest.raises(IndexError, match=r"parts is \[7\], expected numbers below 7"):
        text.select(result(), parts=[7])


# --- normalise -----------------------------------------------------------------------------------

SIZES = {
    "l1": lambda t: t.abs().sum(1),
    "l2": lambda t: t.square().sum(1).sqrt(),
    "max": lambda t: t.abs().amax(1),
    "sum": lambda t: t.sum(1),
}


@pytest.mark.parametrize("how", SIZES)
def test_normalise(how: Any) -> None:
    a = result()
    b = text.normalise(a, how)
    torch.testing.assert_close(SIZES[how](b.values), torch.ones(3))
    torch.testing.assert_close(SIZES[how](b.total[None]), torch.ones(1))
    torch.testing.assert_close(b.values * SIZES[how](a.values)[:, None], a.values)
    zeros = a._replace(values=a.values * 0, total=a.total * 0)
    same(text.normalise(zeros, how)._replace(stderr=a.stderr), zeros)


def test_shares_of_the_change() -> None:
    a = result(values=torch.tensor([[1.0, 3.0]]), total=torch.tensor([1.0, 3.0]), stderr=None)
    a = a._replace(scores=torch.tensor([5.0]), empty=torch.tensor([1.0]))
    assert text.normalise(a, "change").values.tolist() == [[0.25, 0.75]]
    assert text.normalise(a, "change").total.tolist() == [0.25, 0.75]
    with pytest.raises(ValueError, match="how is 'change' for a result without empty"):
        text.normalise(a._replace(empty=None), "change")
    with pytest.raises(ValueError, match="how is 'x', expected one of l1, l2, max, sum, change"):
        text.normalise(a, "x")


# --- tables, JSON and files ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_frame(dtype: torch.dtype) -> None:
    pytest.importorskip("pandas")
    a = result(dtype)
    table = text.frame(a)
    assert tuple(table.columns) == PARTS
    assert tuple(table.index) == a.answer
    assert table.to_numpy().tolist() == a.values.tolist()


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_json_is_exact(dtype: torch.dtype) -> None:
    odd = torch.tensor([[0.1, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e38]]).to(dtype)
    for a in (
        result(dtype),
        result(dtype, values=odd, total=odd[0], empty=None, spans=None, stderr=None),
        result(
            dtype, parts=('"', "\\", "</script>", "\ud83d", "שלום", "😀", "\x00\u2028"), answer=()
        ),
        result(dtype, values=odd[:0], scores=odd[0, :0]),
    ):
        written = text.to_json(a)
        same(text.from_json(written), a)
        assert written.isascii()
        strict = json.loads(written, parse_constant=lambda name: pytest.fail(name))
        assert strict["format"] == "attrfn.text.TextAttribution"
        assert text.to_json(text.from_json(written)) == written
    zero = text.from_json(text.to_json(result(dtype, values=odd))).values[0, 1]
    assert zero.signbit()


def test_json_of_what_carries_a_graph() -> None:
    a = result(values=torch.randn(3, 7, requires_grad=True))
    assert torch.equal(text.from_json(text.to_json(a)).values, a.values.detach())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{", "text is not JSON"),
        ("[1]", "text is JSON of something else"),
        ('{"format": "attrfn.text.TextAttribution"}', "text lacks a part of a result"),
        (None, "text is not JSON"),
    ],
)
def test_json_of_something_else(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text.from_json(written)
    with pytest.raises(TypeError, match=r"result is 3, expected what text\.attribute returns"):
        text.to_json(3)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written beside and renamed: an exception leaves the old file, and nothing else."""
    path = tmp_path / "é.json"
    assert text.save(result(), path) == path
    same(text.load(path), result())
    old = path.read_bytes()

    def refuse(self: Path, target: Path) -> None:
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="full"):
        text.save(text.normalise(result()), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
