"""Files of programs: what they hold is found out without running it, and damage is named."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from programs_cases import DYNAMIC
from test_programs import near
from torch import nn
from zoo import make, randn

import attrfn
import attrfn.programs

pytestmark = [
    pytest.mark.compiles,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


def perceptron() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))


def saved(folder: Path, name: str = "model.pt2") -> Path:
    exported = torch.export.export(perceptron(), (randn(2, 4),), dynamic_shapes=(DYNAMIC,))
    torch.export.save(exported, folder / "model.pt2")
    return (folder / "model.pt2").rename(folder / name)


def rewritten(path: Path, change: Any) -> Path:
    """The archive with other contents: ``change(name, data) -> data``."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))
    return path


class Runs:
    """What a hostile file would hold: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.pt2", "model.zip", "model"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_by_its_contents(tmp_path: Path, name: str, kind: Any) -> None:
    program = attrfn.programs.load(kind(saved(tmp_path, name)))
    x = randn(3, 4, seed=1)
    near(attrfn.gradient(program, x, target=1), attrfn.gradient(perceptron(), x, target=1))


def test_example_inputs_that_would_be_unpickled(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    bad = io.BytesIO()
    torch.save(((Runs(touched),), {}), bad)

    def change(name: str, data: bytes) -> bytes:
        return bad.getvalue() if "sample_inputs" in name else data

    path = rewritten(saved(tmp_path), change)
    with pytest.raises(ValueError, match=r"would have to be unpickled and can run any code"):
        attrfn.programs.load(path)
    assert not touched.exists()


@pytest.mark.parametrize("folder", ["weights", "constants"])
def test_tensors_that_would_be_unpickled(tmp_path: Path, folder: str) -> None:
    def change(name: str, data: bytes) -> bytes:
        if f"data/{folder}/" not in name or not name.endswith("_config.json"):
            return data
        entry = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True}
        config = json.loads(data)["config"]
        return json.dumps({"config": {**config, "x": entry}}).encode()

    path = rewritten(saved(tmp_path), change)
    with pytest.raises(ValueError, match=r"holds 'x' as a pickled tensor, which would have to be"):
        attrfn.programs.load(path)


def test_files_of_torch_save(tmp_path: Path) -> None:
    path, touched = tmp_path / "model.pt", tmp_path / "touched"
    torch.save(Runs(touched), path)
    with pytest.raises(
        ValueError, match=r"holds pickled Python objects, as torch.save writes them"
    ):
        attrfn.programs.load(path)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Runs(touched)))
    with pytest.raises(ValueError, match=r"is not a whole zip archive"):
        attrfn.programs.load(tmp_path / "model.pkl")
    assert not touched.exists()


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not there, expected the file of a program"):
        attrfn.programs.load(tmp_path / "model.pt2")
    with pytest.raises(FileNotFoundError, match=r"is a folder, expected the file of a program"):
        attrfn.programs.load(tmp_path)
    path = saved(tmp_path)
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"is not a whole zip archive") as raised:
            attrfn.programs.load(path)
        assert len(str(raised.value).replace(str(path), "")) <= 300
    path.write_bytes(data)
    rewritten(path, lambda name, data: b"{" if name.endswith("models/model.json") else data)
    with pytest.raises(ValueError, match=r"cannot read .*: it is damaged, or another version of"):
        attrfn.programs.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(ValueError, match=r"is a zip archive without a program"):
        attrfn.programs.load(path)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_scripted_modules(tmp_path: Path, how: str) -> None:
    model, x = perceptron(), randn(3, 4, seed=1)
    made = torch.jit.script(model) if how == "script" else torch.jit.trace(model, x)
    torch.jit.save(made, tmp_path / "model.pt")
    program = attrfn.programs.load(tmp_path / "model.pt")
    for method in (attrfn.gradient, attrfn.integrated_gradients, attrfn.kernel_shap):
        near(method(program, x, target=1), method(model, x, target=1))
    with pytest.raises(ValueError, match=r"is a scripted or traced module"):
        attrfn.layer_activation(program, x, layer="0")
    with pytest.raises(attrfn.UnsupportedOpError):
        attrfn.lrp(program, x, target=1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.lin(x) * y
        return h.tanh(), h.exp()


PERTURBING = {
    "feature_ablation": attrfn.feature_ablation,
    "kernel_shap": attrfn.kernel_shap,
    "shapley_value_sampling": attrfn.shapley_value_sampling,
    "lime": attrfn.lime,
}

COMPILED = """
    import sys, torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    folder = sys.argv[1]
    torch.save(model.state_dict(), f"{folder}/weights.pt")
    batch = {0: torch.export.Dim.DYNAMIC}
    for name, shapes in (("dynamic", (batch,)), ("fixed", None)):
        exported = torch.export.export(model, (torch.randn(2, 4),), dynamic_shapes=shapes)
        path = f"{folder}/{name}.pt2"
        torch._inductor.aoti_compile_and_package(exported, package_path=path)
"""


class AOTICompiledModel:
    """As a package behaves: it compares sizes if the environment says so in its first run."""

    def __init__(self, model: nn.Module, rows: int | None) -> None:
        self.model, self.rows, self.loader = model, rows, None
        self.checks: bool | None = None

    def get_metadata(self) -> dict[str, str]:
        return {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.checks is None:
            self.checks = os.environ.get("AOTI_RUNTIME_CHECK_INPUTS", "0") != "0"
        for i, expected in enumerate((self.rows, 4)):
            if self.checks and expected is not None and x.shape[i] != expected:
                raise RuntimeError(
                    f"input_handles[0]: unmatched dim value at {i}, expected: {expected}, but got: "
                    f"{x.shape[i]}"
                )
        if self.checks and x.stride() != (4, 1):
            raise RuntimeError("input_handles[0]: unmatched stride value at 0, expected: 4")
        return self.model(x if self.rows is None else x[: self.rows])


@pytest.mark.parametrize("rows", [None, 1, 2, 3, 5])
def test_packages_of_aotinductor(rows: int | None) -> None:
    """Also of a fixed number of rows, which the first run shows."""
    model, x = perceptron(), randn(3, 4, seed=1)
    before = os.environ.get("AOTI_RUNTIME_CHECK_INPUTS")
    for method in PERTURBING.values():
        program = attrfn.programs.load(AOTICompiledModel(model, rows))
        near(method(program, x, target=1), method(model, x, target=1))
    assert os.environ.get("AOTI_RUNTIME_CHECK_INPUTS") == before
    refuses(program, x)
    ran = AOTICompiledModel(model, rows)
    ran(x)
    with pytest.raises(ValueError, match=r"ran before attrfn got it, and without checks"):
        attrfn.feature_ablation(attrfn.programs.load(ran), x, target=1)


def refuses(program: Any, x: torch.Tensor) -> None:
    for method in (attrfn.gradient, attrfn.integrated_gradients, attrfn.lrp, attrfn.deep_lift):
        with pytest.raises(ValueError, match=r"^an AOTInductor package only runs forward"):
            method(program, x, target=1)
    with pytest.raises(ValueError, match=r"which only runs forward as a whole, so that it has"):
        attrfn.layer_activation(program, x, layer="0")
    with pytest.raises(ValueError, match=r"cannot run inside torch\.func transforms"):
        torch.func.vmap(lambda z: attrfn.feature_ablation(program, z[None], target=1))(x)
    with pytest.raises(
        ValueError, match=r"^an AOTInductor package does not take a tensor"
    ) as raised:
        attrfn.feature_ablation(program, torch.zeros(3, 5, dtype=x.dtype), target=1)
    assert len(str(raised.value)) <= 300
    with pytest.raises(attrfn.CompileError):
        attrfn.compile(attrfn.feature_ablation, program, backend="eager")(x, target=1)


@pytest.mark.fuzz
@pytest.mark.inductor
def test_packages_that_were_compiled(tmp_path: Path) -> None:
    """Compiled in another process; perturbation methods give what they give for the module."""
    command = [sys.executable, "-c", textwrap.dedent(COMPILED), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(3, 4)
    for name in ("dynamic", "fixed"):
        program = attrfn.programs.load(tmp_path / f"{name}.pt2")
        start = x if name == "dynamic" else x[:2]
        for method in PERTURBING.values():
            near(method(program, start, target=1), method(model, start, target=1), 1e-5)
        near(attrfn.feature_ablation(program, x, target=1),
             attrfn.feature_ablation(model, x, target=1), 1e-5)  # fmt: skip
        refuses(program, x)
        with pytest.raises(ValueError, match=r"^an AOTInductor package does not take a tensor"):
            attrfn.feature_ablation(program, x.double(), target=1)
    ran = torch._inductor.aoti_load_package(str(tmp_path / "dynamic.pt2"))
    with pytest.raises(TypeError, match=r"^model_fn is a package of AOTInductor, expected a model"):
        attrfn.feature_ablation(ran, x, target=1)
    found = attrfn.feature_ablation(attrfn.programs.load(ran), x, target=1)
    near(found, attrfn.feature_ablation(model, x, target=1), 1e-5)
