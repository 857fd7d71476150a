"""The engine of Ray: two actors give the numbers of one process, also if one of them is killed."""

from __future__ import annotations

import builtins
import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import ROWS
from engine_cases import (
    NET,
    PAIR,
    Streamed,
    X,
    Y,
    caller,
    fragile,
    results,
    said,
    same,
    sampled,
    with_bad,
)
from torch.utils.data import DataLoader, TensorDataset

import attrfn
import attrfn.data
from attrfn.data import _log, _run

pytest.importorskip("safetensors")
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

ROOT = Path(__file__).parents[1]
ENGINE = attrfn.data.Ray(workers=2)
local, by_ray = caller("local"), caller(ENGINE)
pytestmark = pytest.mark.filterwarnings(
    # Ray's own; what attrfn warns of is still an error.
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """A Ray of this machine, with two cores and little memory."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                num_cpus=2,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:  # a machine without the sockets or the memory that it needs
            pytest.skip(f"Ray does not start here: {error}")
        yield
        ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four batches."""
    monkeypatch.setattr(_run, "MOST_BATCHES", 4)


def whole(folder: Path) -> None:
    """A folder has each row once, in one log."""
    read = attrfn.data.read(folder)
    read.verify()
    assert read.complete
    assert sum(b - a for a, b in read.parts()) == len(read) == ROWS
    assert [p.name for p in folder.iterdir() if p.name.startswith((".", "done"))] in (
        ["done.jsonl", ".lock"],
        [".lock", "done.jsonl"],
    )
    names = [line["file"] for line in _log.all_lines(folder) if "file" in line]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("folder", [True, pytest.param(False, marks=pytest.mark.fuzz)])
def test_a_killed_actor_loses_nothing(tmp_path: Path, folder: bool) -> None:
    expected = local(sampled, NET, X, batch_size=4, target=0)
    marker, out = str(tmp_path / "killed"), tmp_path / "folder" if folder else None
    found = by_ray(sampled, NET, X, batch_size=4, target=0, marker=marker, out=out)
    assert (tmp_path / "killed").exists()
    same(found[:], expected)
    if out is not None:
        whole(out)


@pytest.mark.fuzz
def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """A folder that the local engine has begun, which stopped at an example."""
    bad = with_bad(50)
    run = functools.partial(attrfn.saliency, target=0)
    with pytest.raises(ValueError, match="example 50"):
        local(run, fragile, bad, batch_size=5, out=tmp_path)
    files = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("rows-*")}
    assert files
    found = said(lambda: by_ray(run, fragile, bad, batch_size=5, out=tmp_path))
    assert found.startswith("ValueError: example 50: ")
    assert found.endswith("too large")
    bad[50] = 0.5
    expected = local(run, fragile, bad, batch_size=5)
    same(by_ray(run, fragile, bad, batch_size=5, out=tmp_path)[:], expected)
    assert all((tmp_path / name).stat().st_mtime_ns == t for name, t in files.items())
    whole(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    by_ray(run, fragile, bad, batch_size=5, out=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:.*examples failed")
def test_a_data_set_of_ray(tmp_path: Path) -> None:
    """Rows are numbered by the order of the blocks, whichever is read first."""
    items = [
        {"x": x, "y": int(y), "i": i} for i, (x, y) in enumerate(zip(X.numpy(), Y, strict=True))
    ]
    data = ray.data.from_items(items, override_num_blocks=7)
    columns = {"inputs": "x", "target": "y"}
    mapped = data.map_batches(late, batch_size=None)
    for columns_, expected in (
        (columns, local(attrfn.saliency, NET, X, target=Y, batch_size=6)),
        ({**columns, "index": "i"}, local(attrfn.saliency, NET, X, target=Y, batch_size=6)),
    ):
        for run in (local, by_ray):
            same(run(attrfn.saliency, NET, mapped, columns=columns_, batch_size=6), expected)
    into = local(attrfn.saliency, NET, data, columns=columns, batch_size=6, out=tmp_path)
    same(by_ray(attrfn.saliency, NET, data, columns=columns, out=tmp_path)[:], into[:])
    assert not data.context.execution_options.preserve_order
    for run in (local, by_ray):
        with pytest.raises(ValueError, match=r"columns names 'z', which the data do not have"):
            run(attrfn.saliency, NET, data, columns={"inputs": "z"})


def late(block: dict[str, Any]) -> dict[str, Any]:
    """The first rows come last."""
    import time

    time.sleep(0.3 * (block["i"][0] == 0))
    return block


def test_what_ray_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = __import__("threading").Lock()
    given: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "TypeError: data has no rows by number, so that engine='ray'": (NET, iter([X]), {}),
        "TypeError: data has no rows by number,": (NET, DataLoader(Streamed()), {"columns": PAIR}),
        "TypeError: model_fn is ": (lambda x: NET(x) if lock else x, X, {}),
        "ValueError: engine asks for 9 CPUs and 0.0 GPUs for each worker": (
            NET,
            X,
            {"engine": attrfn.data.Ray(cpus=9)},
        ),
        "ValueError: engine asks for 1 CPUs and 0.5 GPUs": (
            NET,
            X,
            {"engine": attrfn.data.Ray(gpus=0.5)},
        ),
    }
    for expected, (model, data, options) in given.items():
        call = functools.partial(by_ray, attrfn.saliency, model, data, target=None, **options)
        found = said(functools.partial(call, batch_size=5))
        assert found.startswith(expected), found
        assert len(found) < 330
    real = builtins.__import__

    def none(name: str, *more: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ImportError
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", none)
    monkeypatch.setattr(
        attrfn._torch.extras.importlib, "import_module", lambda name: none(name) or ray
    )
    with pytest.raises(ImportError, match=r"needs ray: pip install \"attrfn\[ray\]\""):
        by_ray(attrfn.saliency, NET, X, target=0)


def test_warnings_of_workers_are_said_here() -> None:
    def batchwise(x: torch.Tensor) -> torch.Tensor:
        return x * (x.sum() + 1)

    with pytest.warns(UserWarning, match="results depend on batch_size") as caught:
        by_ray(attrfn.saliency, batchwise, X, target=0, batch_size=5)
    assert sum("results depend" in str(w.message) for w in caught) == 1


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:.*examples failed")
def test_actors_give_what_one_process_gives(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "ray").mkdir()
    same(results(ENGINE, tmp_path / "ray"), results("local", tmp_path / "local"))
    same(by_ray(attrfn.saliency, NET, X, target=0, engine="ray"), attrfn.saliency(NET, X, target=0))
    for folder in ("drawn", "skip", "unread"):
        whole(tmp_path / "ray" / folder)


def deadly(model_fn: Any, inputs: torch.Tensor) -> torch.Tensor:
    if bool((inputs == X[60]).all(1).any()):
        os._exit(1)
    return inputs


@pytest.mark.fuzz
def test_an_actor_that_always_dies_ends_the_call(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"has died at the same rows 4 times \(\w+\), as it does"
    ):
        by_ray(deadly, NET, X, batch_size=4, out=tmp_path)
    rows = [line for line in _log.all_lines(tmp_path) if "file" in line]
    assert rows


@pytest.mark.fuzz
def test_files_are_read_by_each_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file({"x": X, "y": Y}, tmp_path / "rows.safetensors")
    columns = {"inputs": "x", "target": "y"}
    monkeypatch.chdir(tmp_path)  # workers have another folder
    run = functools.partial(by_ray, attrfn.saliency, NET, "rows.safetensors", columns=columns)
    expected = local(attrfn.saliency, NET, X, target=Y, batch_size=6)
    same(run(batch_size=6), expected)
    same(run(batch_size=6, out="out")[:], expected)
    assert (tmp_path / "out" / "manifest.json").exists()
    loader = DataLoader(TensorDataset(X, Y), batch_size=6)
    mean = functools.partial(local, attrfn.saliency, NET, loader, columns=PAIR, reduce="mean")
    same(mean(engine=ENGINE), mean())
