"""Several processes share a data set: numbers are those of one, also if one of them is killed."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import ROWS
from engine_cases import NET, X, Y, caller, fragile, results, same, sampled, streams, with_bad
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import attrfn
import attrfn.data
from attrfn.data import _folder, _log, _run, _work

pytest.importorskip("safetensors")

ROOT = Path(__file__).parents[1]
local = caller("local")
DRAWN = functools.partial(local, sampled, NET, X, batch_size=4, target=0)
START = """
import sys, torch
sys.path.insert(0, "tests")
torch.set_num_threads(1)
import attrfn, attrfn.data
from pathlib import Path
from engine_cases import *
attrfn.data._run.MOST_BATCHES = 4
out, rank = Path(sys.argv[1]), __import__("os").environ["RANK"]
run = caller("torchrun")
"""


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four batches."""
    monkeypatch.setattr(_run, "MOST_BATCHES", 4)


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def started(code: str, size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Ranks of a script, without anything that looks after them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    command = [sys.executable, "-W", "ignore", "-c", START + code, *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**where, RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """What ranks return and say."""
    return [(p.returncode, said) for p in processes for said in [p.communicate(timeout=200)[1]]]


def ranks(code: str, size: int, out: Path) -> list[Any]:
    """What ranks put into ``found``."""
    for returned, error in ended(started(code + SAVE, size, out)):
        assert returned == 0, error
    return [torch.load(out / f"found-{i}.pt", weights_only=False) for i in range(size)]


SAVE = "\ntorch.save(found, out / f'found-{rank}.pt')\n"


@pytest.mark.filterwarnings("ignore:.*examples failed")
def test_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "ranks").mkdir()
    code = "found = results('torchrun', out), streams('torchrun', out)"
    found = ranks(code, 2, tmp_path / "ranks")
    expected = results("local", tmp_path / "local"), streams("local", tmp_path / "local")
    for one in found:
        same(one, expected)
    for folder in ("drawn", "skip", "stream"):
        read = attrfn.data.read(tmp_path / "ranks" / folder)
        read.verify()
        assert sum(b - a for a, b in read.parts()) == len(read) == ROWS
        assert not list(read.path.glob("done-*"))
        assert not list(read.path.glob(".*.part"))


@pytest.mark.fuzz
def test_more_ranks_than_rows_and_one_rank(tmp_path: Path) -> None:
    code = """
found = {
    "few": run(attrfn.saliency, NET, X[:2], target=0, batch_size=2),
    "folder": run(attrfn.saliency, NET, X[:2], target=0, batch_size=2, out=out / "few")[:],
}
"""
    expected = local(attrfn.saliency, NET, X[:2], target=0)
    for size in (1, 3):
        (tmp_path / str(size)).mkdir()
        for found in ranks(code, size, tmp_path / str(size)):
            same(found, {"few": expected, "folder": expected})


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=pytest.mark.fuzz)])
def test_a_killed_rank_loses_nothing(tmp_path: Path, size: int) -> None:
    """The other one says so; a call with another number of ranks does the rest."""
    code = """
run(sampled, NET, X, batch_size=4, target=0, marker=str(out / "killed"), out=out / "folder")
print("done", flush=True)
"""
    first = ended(started(code, 2, tmp_path))
    assert sorted(returned for returned, _ in first) == [-9, 1]
    assert "one of which has ended" in first[0][1] + first[1][1]
    folder = tmp_path / "folder"
    rows = [line for line in _log.all_lines(folder) if "file" in line]
    assert 0 < sum(line["stop"] - line["start"] for line in rows) < ROWS
    files = {p.name: p.stat().st_mtime_ns for p in folder.glob("rows-*")}
    for returned, error in ended(started(code, size, tmp_path)):
        assert returned == 0, error
    found = attrfn.data.read(folder)
    found.verify()
    same(found[:], DRAWN())
    assert found.complete
    kept = {line["file"] for line in rows}
    assert all((folder / f).stat().st_mtime_ns == files[f] for f in kept)  # not written again
    names = [line["file"] for line in _log.all_lines(folder) if "file" in line]
    assert len(names) == len(set(names))
    # The local engine finds that there is nothing to do.
    same(DRAWN(out=folder, marker=str(tmp_path / "killed"))[:], DRAWN())


@pytest.mark.fuzz
def test_torchrun_starts_killed_ranks_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    call = "run(sampled, NET, X, batch_size=4, target=0, marker=str(out / 'killed'), out=out / 'f')"
    script.write_text(START + f"found = {call}[:]\n" + SAVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", str(script), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    for rank in range(2):
        same(torch.load(tmp_path / f"found-{rank}.pt"), DRAWN())


def test_what_ranks_refuse(tmp_path: Path) -> None:
    """All ranks raise the same; a process group of the user is left as it is."""
    code = """
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DistributedSampler
dist.init_process_group("gloo")
other = network()
with torch.no_grad():
    other[0].weight += int(rank)
saliency = functools.partial(run, attrfn.saliency, target=0, batch_size=4)
half = [X[: 40 + 4 * int(rank)]]
divided = DataLoader(TensorDataset(X), sampler=DistributedSampler(TensorDataset(X), shuffle=False))
(out / "other").mkdir(exist_ok=True)
(out / "other" / "file").write_text("")
found = [
    said(lambda: saliency(other, X)),
    said(lambda: saliency(NET, X, key=int(rank))),
    said(lambda: saliency(NET, X[: 40 + int(rank)])),
    said(lambda: saliency(NET, half)),
    said(lambda: saliency(NET, half, out=out / "half")),
    said(lambda: saliency(NET, divided)),
    said(lambda: saliency(NET, X, out=out / "other")),
    said(lambda: saliency(NET, X if rank == "0" else "no.parquet")),
    said(lambda: saliency(torch.nn.parallel.DistributedDataParallel(network()), X)),
    said(lambda: saliency(fully_shard(network()), X)),
    said(lambda: saliency(NET, X)),
]
ends = said(lambda: run(attrfn.saliency, fragile, with_bad(50), target=0, batch_size=5,
                        out=out / "fails"))
found = found, ends
assert dist.is_initialized()
dist.destroy_process_group()
"""
    expected = [
        "ValueError: rank 1 has another model than rank 0",
        "ValueError: rank 1 has another key than rank 0",
        "ValueError: rank 1 has another length than rank 0, 41 and 40",
        "ValueError: the ranks have read [40, 44] examples",
        "ValueError: the ranks have read [40, 44] examples",
        "ValueError: data is a DataLoader with a DistributedSampler",
        "FileExistsError: out is ",
        "FileNotFoundError: data is ",
        "ValueError: model_fn has a DistributedDataParallel",
        "ValueError: model_fn has parameters of the type DTensor",
        "nothing",
    ]
    all_found = ranks(code, 2, tmp_path)
    for found, _ in all_found:
        assert [text[: len(e)] for text, e in zip(found, expected, strict=True)] == expected
        assert all(len(text) < 320 for text in found)
    # An error of one rank, which has a folder, is raised at once; the others say so at the end.
    waits, fails = sorted(ends for _, ends in all_found)
    assert waits.startswith("RuntimeError: rank ")
    assert "one of which has ended" in waits
    assert fails.startswith("ValueError: example 50: ")
    with pytest.raises(ValueError, match=r"^example 50: "):
        local(
            attrfn.saliency, fragile, with_bad(50), target=0, batch_size=5, out=tmp_path / "fails"
        )


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_process_alone_is_told_how_to_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(other, "0")
    monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=f"{name} is not set in the environment: start"):
        caller("torchrun")(attrfn.saliency, NET, X, target=0)


def test_engines_that_are_none() -> None:
    for engine in ("spark", None, 3, attrfn.data.Ray):
        with pytest.raises(ValueError, match=r"^engine is .*, expected 'local', 'ray', "):
            caller(engine)(attrfn.saliency, NET, X, target=0)
    for bad in ({"workers": 0}, {"workers": 1.5}, {"cpus": 0}, {"gpus": 1.5}, {"gpus": -1}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))} is "):
            attrfn.data.Ray(**bad)
    assert attrfn.data.Ray(gpus=0.5) == attrfn.data.Ray(None, 1, 0.5)


def test_loaders_are_read_by_number() -> None:
    """As the loader itself puts examples together, with the method for several at once too."""

    class Several(TensorDataset):
        def __getitems__(self, places: list[int]) -> Any:
            return [self[i] for i in places]

    def together(items: list[Any]) -> Any:
        return {
            "x": torch.stack([x for x, _ in items]) * 2,
            "y": torch.stack([y for _, y in items]),
        }

    columns = attrfn.data._columns.Columns({"inputs": "x", "target": "y"}, None)
    for kind in (TensorDataset, Several):
        loader = DataLoader(kind(X, Y), batch_size=6, collate_fn=together, drop_last=True)
        found = _work.divisible(loader, columns)
        assert isinstance(found, attrfn.data._indexed.Indexed)
        assert (found.length, found.batch) == (96, 6)
        batch = found.read(90, 200)
        assert batch is not None
        assert batch.rows is not None
        same(batch.rows.inputs, X[90:96] * 2)
    shared = DataLoader(TensorDataset(X, Y), sampler=DistributedSampler(X, 2, 0, shuffle=False))
    with pytest.raises(ValueError, match="DistributedSampler"):
        _work.divisible(shared, columns)


@pytest.mark.parametrize(
    "gaps", [[(0, 100)], [(3, 40), (48, 49), (90, 97)], [(10, 20), (60, None)]]
)
@pytest.mark.parametrize(("size", "rows"), [(4, 16), (5, 20), (7, 7), (6, 20)])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_parts_are_whole_batches(gaps: Any, size: int, rows: int, workers: int) -> None:
    """Their batches are those of the whole, each once."""
    plan = _run.Plan({}, gaps, size, rows, size, [])
    known = [(a, 100 if b is None else b) for a, b in gaps]
    step = _work.part_rows(plan, workers)
    found = []
    for start, stop in _work.parts(plan, step):
        if start >= known[-1][1]:
            break
        found.append((start, min(stop, known[-1][1])))
    data = _run.Run(NET, _held(), _options(), False, False)
    whole = [(b.start, b.size) for b in data.read(known, size, rows)]
    assert [(b.start, b.size) for b in data.read(found, size, rows)] == whole
    assert sum(size for _, size in whole) == sum(b - a for a, b in known)
    if gaps[-1][1] is not None and step > size:
        assert len(found) >= workers


def _held() -> Any:
    return attrfn.data._kinds.source(X, attrfn.data._columns.Columns(None, None))


def _options() -> Any:
    columns = attrfn.data._columns.Columns(None, None)
    return attrfn.data._options.Options(attrfn.saliency, {}, columns, 0, ROWS)


# --- folders with several logs --------------------------------------------------------------------


def test_logs_of_several_writers_become_one(tmp_path: Path) -> None:
    """Whenever a process ends: the merged lines are there once, and reading sees all before."""
    whole = DRAWN(out=tmp_path)
    log = tmp_path / "done.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0])
    (tmp_path / "done-1.jsonl").write_bytes(b"".join(lines[0:2]))
    (tmp_path / "done-0.jsonl").write_bytes(b"".join(lines[2:-1]) + b'{"start": 1')
    (tmp_path / ".rows-0-1.safetensors.1.part").write_bytes(b"")
    same(attrfn.data.read(tmp_path)[:], whole[:])
    assert not attrfn.data.read(tmp_path).complete
    DRAWN(out=tmp_path)
    assert sorted(log.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert not list(tmp_path.glob("done-*"))
    assert not list(tmp_path.glob(".*.part"))


def test_the_first_manifest_stays(tmp_path: Path) -> None:
    form = {"form": 0, "dtypes": ["float32"], "shapes": [[3]]}
    first, second = (_work.Part(tmp_path, name) for name in "ab")
    first.begin({"format": 1, **form, "n": 1})
    second.begin({"format": 1, **form, "n": 2})
    assert first.manifest == second.manifest == _log.read_json(tmp_path / "manifest.json")
    assert first.manifest["n"] == 1
    with pytest.raises(ValueError, match=r"the shapes .*: bring all rows into one form"):
        _work.Part(tmp_path, "c").begin({"format": 1, **form, "shapes": [[4]]})
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_shards_that_are_not_here_are_missed(tmp_path: Path) -> None:
    DRAWN(out=tmp_path)
    folder = _folder.Folder(tmp_path)
    folder.lines, _ = _log.read_log(tmp_path / "done.jsonl")
    _work.check_whole(folder, ROWS)
    with pytest.raises(OSError, match=r"lacks the rows 100 to 119, .* all machines share"):
        _work.check_whole(folder, 120)


def test_devices_of_ranks_do_not_differ() -> None:
    digest = attrfn.data._digest.digest
    assert digest(torch.device("cuda:0")) == digest(torch.device("cuda:1"))
    assert digest(torch.device("cuda:0")) != digest(torch.device("cpu"))


def test_errors_cross_processes() -> None:
    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")

    error = ValueError("row 3")
    assert _work.portable(error) is error
    odd = _work.portable(Odd(1, 2))
    assert type(odd) is RuntimeError
    assert str(odd) == "Odd: 1 and 2"
