"""What can go wrong with a folder, and what is read of it."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import ROWS, examples, network
from data_kinds import FEATURES

import attrfn
import attrfn.data
from attrfn.data import _folder, _log, _run, _shards

pytest.importorskip("safetensors")

ROOT = Path(__file__).parents[1]
NET = network()
X, Y = examples()
explain = functools.partial(
    attrfn.data.explain, attrfn.gradient, NET, progress=False, target=0, batch_size=6
)
EXPECTED = attrfn.gradient(NET, X, target=0)


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four batches."""
    monkeypatch.setattr(_run, "MOST_BATCHES", 4)


def same(found: torch.Tensor, expected: torch.Tensor = EXPECTED) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def test_a_manifest_of_another_run_is_said(tmp_path: Path) -> None:
    explain(X, out=tmp_path / "a")
    explain(X, out=tmp_path / "b", target=1)
    own = (tmp_path / "a" / "manifest.json").read_bytes()
    other = (tmp_path / "b" / "manifest.json").read_bytes()
    (tmp_path / "a" / "manifest.json").write_bytes(other)
    message = r"manifest.json is of another run than the shards .*restore"
    with pytest.raises(ValueError, match=message):
        attrfn.data.read(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        explain(X, out=tmp_path / "a", target=1)
    with pytest.raises(ValueError, match="target in options was 1 and is now 0"):
        explain(X, out=tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_bytes(own)
    same(explain(X, out=tmp_path / "a")[:])


# --- what cannot be written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "turn", "message", "rows"),
    [
        ("manifest.json", 1, r"the manifest cannot be written to .*manifest.json", None),
        (".safetensors", 1, r"rows 0 to 23 cannot be written to", 0),
        ("done.jsonl", 6, r"the last line cannot be written to .*done.jsonl", ROWS),
    ],
)
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, turn: int, message: str, rows: Any
) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    sync, times = os.fsync, []

    def full(place: int) -> None:
        times.extend([1] if name in os.readlink(f"/proc/self/fd/{place}") else [])
        if len(times) == turn and name in os.readlink(f"/proc/self/fd/{place}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(place)

    monkeypatch.setattr(_folder.os, "fsync", full)
    with pytest.raises(OSError, match=f"{message}.*No space.*free space and call again") as caught:
        explain(X, out=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(_folder.os, "fsync", sync)
    assert not list(tmp_path.glob(".*.part"))
    if rows is not None:
        assert len(attrfn.data.read(tmp_path)) == rows
    found = explain(X, out=tmp_path)
    assert found.complete
    same(found[:])


FULL = """
import resource, signal, sys
sys.path.insert(0, "tests")
import attrfn, attrfn.data
from attrfn.data import _run
from data_cases import examples, network
_run.MOST_BATCHES = 4
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
try:
    attrfn.data.explain(attrfn.gradient, network(), examples(400)[0], out=sys.argv[1], target=0,
                        batch_size=2, progress=False)
except OSError as error:
    print(error)
"""


def test_a_system_that_lets_no_file_grow(tmp_path: Path) -> None:
    """A log that has reached the limit: its last line is cut by the system."""
    pytest.importorskip("resource")
    run = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path)]
    out = subprocess.run(run, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "cannot be written to" in out.stdout, out.stderr
    assert "(File too large); all shards before are kept: mend it and call again" in out.stdout
    assert (tmp_path / "done.jsonl").stat().st_size == 6000
    kept = attrfn.data.read(tmp_path)
    x = examples(400)[0]
    assert 0 < len(kept) < 400
    same(kept[:], attrfn.gradient(NET, x[: len(kept)], target=0))
    found = explain(x, out=tmp_path, batch_size=2)
    assert found.complete
    same(found[:], attrfn.gradient(NET, x, target=0))


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for out in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(FileExistsError, match=r"out is .*, where a file is, expected a folder"):
            explain(X, out=out)


def test_a_file_system_without_locks_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    same(explain(X, out=tmp_path)[:])


# --- Ctrl-C ---------------------------------------------------------------------------------------

SLOW = """
import sys, time
sys.path.insert(0, "tests")
import attrfn, attrfn.data
from torch.utils.data import DataLoader, Dataset
from data_cases import examples, network

class Slow(Dataset):
    x = examples(400)[0]
    def __len__(self):
        return 400
    def __getitem__(self, i):
        time.sleep(0.02)
        return self.x[i]

try:
    attrfn.data.explain(attrfn.gradient, network(), DataLoader(Slow(), 4, num_workers=2), target=0,
                        out=sys.argv[1], progress=False)
except KeyboardInterrupt as error:
    print("interrupted:", error)
"""


def test_ctrl_c_reaches_the_workers_of_a_loader_too(tmp_path: Path) -> None:
    """As a terminal sends it: to all processes of the group, while one waits for the others."""
    run = [sys.executable, "-W", "ignore", "-c", SLOW, str(tmp_path)]
    process = subprocess.Popen(
        run,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    kept = attrfn.data.read(tmp_path)
    assert f"interrupted: {len(kept)} examples are in {tmp_path}: call again" in out
    x = examples(400)[0]
    assert 0 < len(kept) < 400
    assert len(kept) % 4 == 0
    found = explain(x, out=tmp_path, batch_size=4)
    assert found.complete
    same(found[:], attrfn.gradient(NET, x, target=0))


# --- what is read ---------------------------------------------------------------------------------


def test_an_index_is_an_int_or_a_slice(tmp_path: Path) -> None:
    a = explain(X, out=tmp_path)
    for i in ("income", 1.5, torch.tensor([1, 2]), [0, 1], None):
        with pytest.raises(TypeError, match=r"the index is .*, expected an int or a slice"):
            a[i]


def test_numbers_are_read_without_attributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = explain(
        {"x": X, "i": torch.arange(ROWS) + 7}, out=tmp_path, columns={"inputs": "x", "index": "i"}
    )
    names: list[str] = []
    read = _shards.Shard._of_tensors

    def noted(self: Any, name: str, start: int, stop: int) -> Any:
        names.append(name)
        return read(self, name, start, stop)

    monkeypatch.setattr(_shards.Shard, "_of_tensors", noted)
    assert torch.equal(a.index(), torch.arange(ROWS) + 7)
    assert set(names) == {"index"}


def table(folder: Path) -> Any:
    pytest.importorskip("pyarrow")
    data = {name: X[:, i] for i, name in enumerate(FEATURES)}
    return explain(data, out=folder, batch_size=2, columns={"inputs": FEATURES})


def test_few_tables_are_in_memory_at_once(tmp_path: Path) -> None:
    a = table(tmp_path)
    assert len(a.parts()) == 13
    same(torch.stack(list(a)))
    held = [shard for _, _, shard, _ in a._shards if shard._file is not None]
    assert 0 < len(held) <= 4
    same(a[:])


@pytest.mark.parametrize("how", ["missing", "cut", "end"])
def test_a_damaged_shard_of_a_table_is_said_and_mended(tmp_path: Path, how: str) -> None:
    table(tmp_path)
    shard = sorted(tmp_path.glob("rows-*.parquet"))[1]
    content = shard.read_bytes()
    if how == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content[:-40] if how == "cut" else content[:-8] + b"\xff" * 8)
    a = attrfn.data.read(tmp_path)
    same(a[:8], EXPECTED[:8])
    with pytest.raises(ValueError, match=r"rows-0+8-0+16.parquet .*explain again"):
        a[5:12]
    shard.unlink(missing_ok=True)
    same(table(tmp_path)[:])
    assert shard.read_bytes() == content


def test_a_table_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    a = explain(X, out=tmp_path / "a")
    with pytest.raises(OSError, match=r"the table cannot be written to .*none.x.parquet"):
        attrfn.data.to_parquet(a, tmp_path / "none" / "x.parquet")
    file = attrfn.data.to_parquet(a, tmp_path / "x.parquet")
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(attrfn.data._tables.os, "replace", full)
    with pytest.raises(OSError, match=r"No space left .*free space"):
        attrfn.data.to_parquet(a, file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.parquet"]


def test_shards_are_files_that_the_library_reads() -> None:
    """Of every type, with sizes that leave the next tensor at an odd place."""
    load = pytest.importorskip("safetensors.torch").load
    types = [*_shards._TYPES, torch.float8_e4m3fn]
    leaves = [torch.randint(0, 2, (3, 5)).to(t) for t in types] + [
        torch.zeros(3, 0),
        X[:3].T[::2].T,
    ]
    for some in (leaves, [t for t in leaves if t.dtype in _shards._TYPES]):
        found = load(b"".join(_shards.pack(some, torch.arange(3), None)))
        assert torch.equal(found.pop("index"), torch.arange(3))
        for i, t in enumerate(some):
            assert found[str(i)].dtype == t.dtype
            assert torch.equal(found[str(i)].float(), t.float())


def test_lines_of_the_log_tell_the_run(tmp_path: Path) -> None:
    explain(X, out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "done.jsonl").read_text().splitlines()]
    assert {line["run"] for line in lines} == {_log.run_of(tmp_path)}


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["mean", "mean_abs", attrfn.data.quantiles(size=16), attrfn.data.top_k(3)]
)
def test_a_statistic_takes_memory_that_does_not_grow(how: Any) -> None:
    """Saved with all bytes that its tensors hold on to, after ten batches and after a thousand."""
    method = attrfn.data._reduce.reduction(how)
    state, sizes = method.init(), []
    for i in range(1000):
        index = torch.arange(64 * i, 64 * i + 64)
        state = method.update(state, {"a": torch.randn(64, 5)}, index)
        if i in (9, 999):
            file = io.BytesIO()
            torch.save(state, file)
            sizes.append(len(file.getvalue()))
    assert sizes[1] < 3 * sizes[0]
    assert sizes[1] < 64 * 1000  # a twentieth of what came


@pytest.mark.parametrize("how", [attrfn.data.quantiles, attrfn.data.top_k])
def test_a_class_is_no_statistic(how: Any) -> None:
    with pytest.raises(TypeError, match=f"reduce is the class {how.__name__}, expected an object"):
        explain(X, reduce=how)
