"""attrfn.data.explain into a folder: nothing is lost or there twice, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import ROWS, examples, network
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import attrfn
import attrfn.data
from attrfn.data import _folder

pytest.importorskip("safetensors")

ROOT = Path(__file__).parents[1]
NET = network()
X, Y = examples()
explain = functools.partial(
    attrfn.data.explain, attrfn.integrated_gradients, NET, progress=False, target=0, n_steps=5
)
EXPECTED = attrfn.integrated_gradients(NET, X, target=0, n_steps=5)


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four batches."""
    monkeypatch.setattr(attrfn.data._run, "MOST_BATCHES", 4)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def shards(folder: Path) -> dict[str, bytes]:
    return {k: v for k, v in contents(folder).items() if k.startswith("rows-")}


def same(found: Tensor, expected: Tensor = EXPECTED) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_folder_holds_what_the_call_returns(tmp_path: Path) -> None:
    a = explain(X, out=tmp_path / "a", batch_size=6)
    assert (len(a), a.complete, a.failed) == (ROWS, True, {})
    assert a.parts() == [(0, 24), (24, 48), (48, 72), (72, 96), (96, 100)]
    in_memory = explain(X, batch_size=6)
    assert torch.equal(a[:], in_memory)
    same(a[:])
    b = attrfn.data.read(tmp_path / "a")
    assert torch.equal(b[20:50], in_memory[20:50])
    assert torch.equal(b[-1], in_memory[-1])
    assert torch.equal(torch.stack(list(b)), in_memory)
    assert torch.equal(torch.cat(list(b.shards())), in_memory)
    assert b[40:40].shape == (0, 6)
    assert torch.equal(b.index(), torch.arange(ROWS))
    b.verify()
    for how in ("mean", "mean_abs", "quantiles"):
        assert torch.equal(b.reduce(how), explain(X, reduce=how, batch_size=24))
    with pytest.raises(IndexError, match="no example 100: there are 100"):
        b[100]
    with pytest.raises(ValueError, match="step 2"):
        b[::2]


def test_trees_and_types_come_back(tmp_path: Path) -> None:
    def method(model: Any, x: Tensor) -> Any:
        return {"b": (x.float(), None), "a": [x.bfloat16()]}

    a = attrfn.data.explain(method, NET, X, out=tmp_path, progress=False, batch_size=30)
    found = attrfn.data.read(tmp_path)[:]
    assert torch.equal(found["b"][0], X.float())
    assert found["b"][1] is None
    assert torch.equal(found["a"][0], X.bfloat16())
    assert a.names() == ["b.0", "a.0"]


@pytest.mark.parametrize("loader", [False, True])
def test_what_is_done_is_not_done_again(tmp_path: Path, loader: bool) -> None:
    data = DataLoader(TensorDataset(X), batch_size=6) if loader else X
    rows: list[int] = []

    def stops(x: Tensor) -> Tensor:
        rows.append(len(x))
        if len(rows) == 9:
            raise KeyboardInterrupt
        return NET(x)

    run = functools.partial(
        attrfn.data.explain, attrfn.saliency, progress=False, batch_size=6, target=0
    )
    whole = run(NET, data)
    with pytest.raises(KeyboardInterrupt):
        run(Stops(stops), data, out=tmp_path)
    assert len(attrfn.data.read(tmp_path)) == 7 * 6  # one row has been explained alone, too
    rows[:] = [0] * 9
    found = run(Stops(stops), data, out=tmp_path)
    assert found.complete
    assert sum(rows) == ROWS - 7 * 6 + 1
    assert torch.equal(found[:], whole)


class Stops(torch.nn.Module):
    """A model that is the same to a digest whatever its function is."""

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.net = NET
        object.__setattr__(self, "_f", f)

    def forward(self, x: Tensor) -> Tensor:
        return self._f(x)


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    explain(X, out=tmp_path, batch_size=6)
    before = contents(tmp_path)
    explain(X, out=tmp_path)
    explain(DataLoader(TensorDataset(X), batch_size=6), out=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 6}, "n_steps in options was 5 and is now 6"),
        ({"target": 1}, "target in options was 0 and is now 1"),
        ({"target": Y}, "target in options was 0 and is now 'a tensor"),
        ({"key": 3}, "key was"),
        ({"data": X[:50]}, "number of examples was 100 and is now 50"),
        ({"data": [X]}, "number of examples was 100 and is now None"),
        ({"columns": {"inputs": ("x",)}, "data": {"x": X}}, "columns was None"),
        ({"resume": False}, "holds results already: pass resume=True"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    explain(X, out=tmp_path, batch_size=6)
    before = contents(tmp_path)
    given = {"data": X, "out": tmp_path, **change}
    with pytest.raises((ValueError, FileExistsError), match=message):
        explain(given.pop("data"), **given)
    assert contents(tmp_path) == before


def test_another_model_or_method_is_refused(tmp_path: Path) -> None:
    explain(X, out=tmp_path, batch_size=6)
    other = network()
    with torch.no_grad():
        other[2].bias[1] += 1e-9
    run = functools.partial(attrfn.data.explain, out=tmp_path, target=0, n_steps=5, progress=False)
    with pytest.raises(ValueError, match="whose model was"):
        run(attrfn.integrated_gradients, other, X)
    with pytest.raises(ValueError, match="whose method was"):
        run(functools.partial(attrfn.integrated_gradients, quadrature="lobatto"), NET, X)
    run(attrfn.integrated_gradients, network(), X)  # equal weights


def test_digests_see_what_changes_numbers() -> None:
    """Each pair differs; two of the same are equal."""
    digest = attrfn.data._digest.digest

    def make(scale: float) -> Any:
        return lambda x: NET(x) * scale

    def wrapped(scale: float) -> Any:
        return functools.partial(make(scale), w=torch.ones(2) * scale)

    def tunnel(s: float) -> Any:
        return attrfn.noise_tunnel(attrfn.gradient, stdevs=s)

    def dropout(p: float) -> Any:
        return torch.nn.Sequential(torch.nn.Dropout(p))

    for build in (make, wrapped, tunnel, dropout, torch.tensor, lambda v: {"a": [v]}):
        assert digest(build(0.5)) == digest(build(0.5))
        assert digest(build(0.5)) != digest(build(0.25))
    assert digest(NET) != digest(NET.double().train())
    NET.eval()
    assert digest(lambda x: x + 1) != digest(lambda x: x - 1)


def test_digests_are_those_of_another_process() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from data_cases import network\n"
        "import attrfn, torch\n"
        "from attrfn.data._digest import digest\n"
        "f = lambda x: network()(x) if 'a' in {'a', 'b', 'c'} else x\n"
        "m = attrfn.noise_tunnel(attrfn.at_layer(attrfn.saliency, '1'), stdevs=0.5)\n"
        "print(digest(f), digest(m), digest(network()))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


# --- killed, interrupted, no space ----------------------------------------------------------------

CHILD = """
import sys, torch
sys.path.insert(0, "tests")
torch.set_num_threads(1)
import attrfn, attrfn.data
from attrfn.data import _run
from data_cases import examples, network
_run.MOST_BATCHES = 2
print("ready", flush=True)
method = attrfn.shapley_value_sampling
attrfn.data.explain(method, network(), examples(2000)[0], out=sys.argv[1], target=0, n_samples=20,
                    batch_size=16, progress=False)
print("done", flush=True)
"""


def child(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def killed(folder: Path, times: int, seed: int) -> int:
    """Kill a child at random moments, then let one finish; how many kills found work half done."""
    draw, half = random.Random(seed), 0
    for _ in range(times):
        process = child(folder)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        with contextlib.suppress(FileNotFoundError):
            half += not attrfn.data.read(folder).complete
    process = child(folder)
    out, _ = process.communicate(timeout=300)
    assert out.endswith("done\n")
    return half


@pytest.mark.parametrize(
    "times", [3, pytest.param(30, marks=pytest.mark.fuzz)], ids=["3 kills", "30 kills"]
)
def test_killed_at_any_moment_nothing_is_lost_or_double(tmp_path: Path, times: int) -> None:
    process = child(tmp_path / "whole")
    process.communicate(timeout=300)
    killed(tmp_path / "killed", times, seed=times)
    whole, found = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    assert {k for k in found if not k.startswith(".")} == set(whole)
    assert found["manifest.json"] == whole["manifest.json"]
    assert found["done.jsonl"] == whole["done.jsonl"]


def test_ctrl_c_ends_after_the_batch(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A signal in the middle of a batch: this batch is written, and no more."""
    calls: list[int] = []

    def presses(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return NET(x)

    run = functools.partial(
        attrfn.data.explain, attrfn.saliency, out=tmp_path, batch_size=6, target=0, progress=False
    )
    # Processes that a shell starts in the background ignore the signal.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"18 examples are in .*: call again"):
        run(Stops(presses), X)  # the second call is that of one row alone
    assert signal.getsignal(signal.SIGINT) is before
    assert len(attrfn.data.read(tmp_path)) == 18
    found = run(Stops(NET), X)
    same(found[:], attrfn.saliency(NET, X, target=0))
    assert found.parts() == [(0, 18), (18, 24), (24, 48), (48, 72), (72, 96), (96, 100)]


@pytest.mark.parametrize("failing", [".safetensors", "done.jsonl"])
def test_a_full_disk_keeps_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    written: list[str] = []
    sync = os.fsync

    def full(place: int) -> None:
        name = os.readlink(f"/proc/self/fd/{place}")
        written.append(name)
        if failing in name and sum(failing in n for n in written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(place)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(_folder.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"rows 48 to 71 cannot be written .*No space.*free space"
    ) as e:
        explain(X, out=tmp_path, batch_size=6)
    assert e.value.errno == errno.ENOSPC
    assert not list(tmp_path.glob(".*.part"))
    kept = attrfn.data.read(tmp_path)
    assert len(kept) >= 48
    same(kept[:], EXPECTED[: len(kept)])
    monkeypatch.setattr(_folder.os, "fsync", sync)
    same(explain(X, out=tmp_path, batch_size=6)[:])


def test_examples_that_fail_are_in_the_log(tmp_path: Path) -> None:
    x = X.clone()
    x[[3, 50]] = 99

    def fragile(x: Tensor) -> Tensor:
        if bool((x == 99).any()):
            raise ValueError("too large")
        return NET(x)

    run = functools.partial(
        attrfn.data.explain, attrfn.gradient, fragile, x, target=0, out=tmp_path, progress=False
    )
    with pytest.raises(ValueError, match=r"^example 3: "):
        run(batch_size=6)
    x[3] = X[3]
    with pytest.raises(ValueError, match=r"^example 50: "):
        run(batch_size=6)
    x[3] = 99
    a = run(batch_size=6, on_error="skip")
    assert list(a.failed) == [50]
    assert "too large" in a.failed[50]
    assert a[:].isnan().any(1).nonzero().flatten().tolist() == [50]
    good = [i for i in range(ROWS) if i != 50]
    torch.testing.assert_close(a.reduce("mean"), a[:][good].mean(0))


def test_memory_that_ran_out_is_remembered(tmp_path: Path) -> None:
    rows: list[int] = []

    def small(x: Tensor) -> Tensor:
        rows.append(len(x))
        if len(x) > 4:
            raise MemoryError
        if len(rows) == 14:
            raise KeyboardInterrupt
        return NET(x)

    run = functools.partial(
        attrfn.data.explain, attrfn.saliency, out=tmp_path, batch_size=12, target=0, progress=False
    )
    with pytest.raises(KeyboardInterrupt):
        run(Stops(small), X)
    rows[:] = [0] * 20
    found = run(Stops(small), X)
    assert max(rows[21:]) == 3
    same(found[:], attrfn.saliency(NET, X, target=0))


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    folder = _folder.Folder(tmp_path)
    with folder.locked(), pytest.raises(BlockingIOError, match="another process writes"):
        explain(X, out=tmp_path)


# --- damage ---------------------------------------------------------------------------------------


def damaged(folder: Path, how: str) -> None:
    shard = sorted(folder.glob("rows-*"))[1]
    if how == "missing":
        shard.unlink()
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif how == "header":
        shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    else:
        content = bytearray(shard.read_bytes())
        content[-9] ^= 1
        shard.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["missing", "cut", "header"])
def test_a_damaged_shard_is_said_and_mended(tmp_path: Path, how: str) -> None:
    explain(X, out=tmp_path, batch_size=6)
    whole = shards(tmp_path)
    damaged(tmp_path, how)
    a = attrfn.data.read(tmp_path)
    same(a[:24], EXPECTED[:24])
    with pytest.raises(ValueError, match=r"rows-0+24-0+48.safetensors .*explain again"):
        a[20:30]
    with pytest.raises(ValueError, match="is not as it was written"):
        a.verify()
    if how == "header":
        sorted(tmp_path.glob("rows-*"))[1].unlink()
    same(explain(X, out=tmp_path)[:])
    assert shards(tmp_path) == whole


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    a = explain(X, out=tmp_path, batch_size=6)
    damaged(tmp_path, "bit")
    with pytest.raises(ValueError, match="is not as it was written"):
        a.verify()


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_line_that_a_crash_has_cut_does_not_count(tmp_path: Path, cut: int) -> None:
    explain(X, out=tmp_path, batch_size=6)
    before = contents(tmp_path)
    log = tmp_path / "done.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    assert not attrfn.data.read(tmp_path).complete
    same(explain(X, out=tmp_path)[:])
    assert contents(tmp_path) == before


def test_other_damage_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no manifest"):
        attrfn.data.read(tmp_path / "nothing")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photo.png").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"holds 'photo.png' and no manifest"):
        explain(X, out=tmp_path / "a")
    explain(X, out=tmp_path / "b", batch_size=6)
    lines = (tmp_path / "b" / "done.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "done.jsonl").write_text(lines[0] + "{\n" + "".join(lines[2:]))
    for call in (attrfn.data.read, lambda b: explain(X, out=b)):
        with pytest.raises(ValueError, match=r"done.jsonl, line 2 is damaged: delete"):
            call(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json cannot be read"):
        attrfn.data.read(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="no manifest that this version reads"):
        attrfn.data.read(tmp_path / "b")


def test_a_data_set_that_has_become_shorter(tmp_path: Path) -> None:
    """Of a stream no one knows the length before."""
    stream = [X[i : i + 6] for i in range(0, ROWS, 6)]

    def broken() -> Any:
        yield from stream[:9]
        raise OSError("connection lost")

    with pytest.raises(ValueError, match="data failed after 54 examples: connection lost"):
        explain(broken(), out=tmp_path, batch_size=6)
    assert len(attrfn.data.read(tmp_path)) == 54
    with pytest.raises(ValueError, match="data has ended after 30 examples"):
        explain(stream[:5], out=tmp_path)
    same(explain(stream, out=tmp_path)[:])


def test_a_thread_may_call_it(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(explain(X, out=tmp_path)))
    thread.start()
    thread.join()
    same(found[0][:])


# --- files ----------------------------------------------------------------------------------------


def test_a_safetensors_file_is_data(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    file = tmp_path / "x.safetensors"
    save_file({"x": X, "y": Y}, str(file))
    run = functools.partial(attrfn.data.explain, attrfn.gradient, NET, progress=False, batch_size=7)
    columns = {"inputs": "x", "target": "y"}
    same(run(file, columns=columns), attrfn.gradient(NET, X, target=Y))
    with pytest.raises(ValueError, match="columns names 'z'"):
        run(file, columns={"inputs": "z"}, target=0)
    wrong = torch.where(torch.arange(ROWS) == 17, 9, Y)
    with pytest.raises(ValueError, match=r"x.safetensors, row 17: target has values"):
        run(file, columns={"inputs": "x"}, target=wrong)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x.safetensors cannot be read.*truncated"):
        run(str(file), columns=columns)
    with pytest.raises(FileNotFoundError, match="no such file"):
        run("none.safetensors")


NAMES = ["age", "income", "height", "b", "c", "d"]


def parquet(file: Path, **more: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {n: X[:, i].numpy() for i, n in enumerate(NAMES)}
    table = pa.table({**columns, "y": Y.numpy(), "x": X.tolist(), **more})
    pytest.importorskip("pyarrow.parquet").write_table(table, str(file), row_group_size=30)


def test_a_table_is_data_and_gives_a_table(tmp_path: Path) -> None:
    parquet(tmp_path / "t.parquet")
    columns = {"inputs": NAMES, "target": "y"}
    run = functools.partial(
        attrfn.data.explain, attrfn.gradient, NET, tmp_path / "t.parquet", progress=False
    )
    expected = attrfn.gradient(NET, X, target=Y)
    same(run(columns=columns, batch_size=7), expected)
    same(run(columns={"inputs": "x", "target": "y"}, batch_size=100), expected)
    a = run(columns=columns, batch_size=7, out=tmp_path / "a")
    assert [p.suffix for p in sorted((tmp_path / "a").glob("rows-*"))] == [".parquet"] * 4
    same(a[:], expected)
    same(a[25:70], expected[25:70])
    pandas = pytest.importorskip("pandas")
    frame = attrfn.data.to_pandas(a)
    assert list(frame.columns) == NAMES
    same(torch.tensor(frame["income"].to_numpy()), expected[:, 1])
    file = attrfn.data.to_parquet(tmp_path / "a", tmp_path / "all.parquet")
    again = pandas.read_parquet(file).set_index("index")
    pandas.testing.assert_frame_equal(again, frame)
    whole = pandas.DataFrame({n: X[:, i].numpy() for i, n in enumerate(NAMES)})
    found = attrfn.data.explain(
        attrfn.gradient, NET, whole, columns={"inputs": NAMES}, target=Y, progress=False
    )
    same(found, expected)


def test_a_damaged_table_is_said(tmp_path: Path) -> None:
    parquet(tmp_path / "t.parquet", e=[None, *[1.0] * (ROWS - 1)])
    run = functools.partial(
        attrfn.data.explain, attrfn.gradient, NET, tmp_path / "t.parquet", progress=False, target=0
    )
    with pytest.raises(ValueError, match=r"columns names 'incom'.*did you mean 'income'"):
        run(columns={"inputs": ["age", "incom"]})
    with pytest.raises(ValueError, match=r"t.parquet, row 0: column .e. has an empty cell"):
        run(columns={"inputs": [*NAMES[:5], "e"]})
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"t.parquet cannot be read"):
        run(columns={"inputs": NAMES})


def test_tables_of_elements(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    method = lambda f, x: {"a": x.reshape(-1, 2, 3), "b": x[:, 0]}  # noqa: E731
    a = attrfn.data.explain(method, NET, X, out=tmp_path, progress=False)
    frame = attrfn.data.to_pandas(tmp_path)
    assert list(frame.columns) == [*[f"a[{i}, {j}]" for i in (0, 1) for j in (0, 1, 2)], "b"]
    same(torch.tensor(frame["a[1, 2]"].to_numpy()), a[:]["a"][:, 1, 2])


@pytest.mark.parametrize("package", ["safetensors", "pyarrow", "pandas"])
def test_a_missing_package_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    a = explain(X, out=tmp_path / "a")
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    calls = {
        "safetensors": lambda: explain(X, out=tmp_path / "b"),
        "pyarrow": lambda: attrfn.data.to_parquet(a, tmp_path / "c"),
        "pandas": lambda: attrfn.data.to_pandas(a),
    }
    with pytest.raises(ImportError, match=rf'needs {package}: pip install "attrfn\[data\]"'):
        calls[package]()
