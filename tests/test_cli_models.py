"""MODEL: programs, folders of Hugging Face models, functions; and that nothing is unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cli_cases
import pytest
import torch
from cli_cases import inputs, json_of, refused, run
from torch import nn

import attrfn
import attrfn.data


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with cli_cases.at_home(tmp_path, monkeypatch):
        yield


def explain(model: str, *words: Any, code: int = 0) -> Any:
    fixed = ("explain", model, "toys:data", "--method", "gradient", "--out", "o")
    return run(*fixed, *words, code=code)


@pytest.mark.parametrize("name", ["square", "scaled", "NET", "net", "Held.inner", "any_number"])
def test_module_and_function(name: str) -> None:
    """What needs no argument is called; what does is the model."""
    import toys

    target = ("--target", "0") if name in ("NET", "net", "Held.inner") else ()
    explain(f"toys:{name}", *target)
    models = {"net": toys.NET, "Held.inner": toys.NET}
    model = models.get(name) or getattr(toys, name)
    expected = attrfn.gradient(model, inputs(), target=0 if target else None)
    torch.testing.assert_close(attrfn.data.read("o")[:], expected, rtol=0, atol=0)


REFUSED = {
    "toys:gone": "there is no 'gone'",
    "toys:sqare": "did you mean 'square'?",
    "nowhere:model": "no module 'nowhere' is in this folder or installed",
    "toys:five": "returned 5, expected a module",
    "gone.pt2": "there is no such file",
    "model": "there is no such file: give a .pt2 or .onnx file",
    "weights.pt": "a pickle, which can run any code",
    "weights.bin": "weights_only=True",
    "weights.pkl": "a pickle",
    "model.ckpt": "a pickle",
    "weights.safetensors": "weights without a model",
    "notes.md": "expected a .pt2 or .onnx file, a folder",
    "empty": "a folder without a config.json",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_is_no_model(spec: str) -> None:
    Path("empty").mkdir()
    for name in ("weights.pt", "weights.bin", "weights.pkl", "weights.safetensors", "notes.md"):
        Path(name).write_bytes(b"never read")
    assert REFUSED[spec] in refused("layers", spec)


def test_an_error_inside_a_module_is_its_own() -> None:
    Path("half.py").write_text("import a_package_that_is_gone\n", encoding="utf-8")
    assert refused("layers", "half:model") == "No module named 'a_package_that_is_gone'"


def test_a_model_in_training_mode_is_noted() -> None:
    done = run("layers", "toys:drops")
    assert "Warning: MODEL has a Dropout in training mode" in done.stderr
    assert not run("layers", "toys:net").stderr


def test_a_device_that_is_not_there() -> None:
    assert "--device is 'qpu'" in refused("layers", "toys:net", "--device", "qpu")
    assert "MODEL is no module" in refused("layers", "toys:square", "--device", "cpu")
    run("layers", "toys:net", "--device", "cpu")


# --- programs ------------------------------------------------------------------------------------


def exported(model: nn.Module, x: torch.Tensor) -> Path:
    """A program whose batch has any size."""
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, "m.pt2")
    return Path("m.pt2")


def test_a_program() -> None:
    from toys import NET

    exported(NET, inputs()[:4])
    explain("m.pt2", "--target", "1")
    torch.testing.assert_close(
        attrfn.data.read("o")[:], attrfn.gradient(NET, inputs(), target=1), rtol=0, atol=1e-12
    )


class Tells:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("opened",)


def poisoned(entry: str) -> None:
    """A program with a pickle in place of one of its files."""
    from toys import NET

    source = exported(NET, inputs()[:4])
    buffer = io.BytesIO()
    torch.save((Tells(),), buffer)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile("bad.pt2", "w") as new:
        hit = [name for name in old.namelist() if entry in name]
        assert hit, old.namelist()
        for name in old.namelist():
            new.writestr(name, buffer.getvalue() if name in hit else old.read(name))


def test_a_pickle_in_a_program_is_not_opened() -> None:
    poisoned("sample_inputs")
    said = refused("layers", "bad.pt2")
    assert re.search("holds a pickle|would have to be unpickled", said)
    assert not Path("opened").exists()
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") is None


def guarded(read: Callable[[], Any]) -> Any:
    from attrfn.cli._safe import nothing_unpickled

    with nothing_unpickled("m"):
        return read()


def test_the_guard_lets_nothing_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever unpickles, and only while it is up."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    Path("t.pt").write_bytes(pickle.dumps(Tells()))
    torch.save(Tells(), "u.pt")
    torch.save({"w": torch.ones(2)}, "w.pt")
    readers = (
        lambda: pickle.loads(Path("t.pt").read_bytes()),
        lambda: pickle.Unpickler(io.BytesIO(Path("t.pt").read_bytes())).load(),
        lambda: torch.load("u.pt", weights_only=False),
    )
    for read in readers:
        with pytest.raises(ValueError, match=r"^MODEL is 'm'.* can run any code"):
            guarded(read)
        assert not Path("opened").exists()
    assert guarded(lambda: torch.load("w.pt", weights_only=True))["w"].sum() == 2
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    pickle.loads(Path("t.pt").read_bytes())  # outside it is the user's business
    assert Path("opened").exists()


# --- Hugging Face --------------------------------------------------------------------------------


def bert(folder: str = "bert", **more: Any) -> Any:
    import tiny_transformers
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_transformers.bert_config(**more)).eval()
    model.save_pretrained(folder)
    return model


def test_a_folder_of_hugging_face() -> None:
    model = bert()
    ids = torch.tensor([[1, 15, 26, 7, 2], [1, 8, 19, 2, 5]])
    from safetensors.torch import save_file

    save_file({"ids": ids}, "ids.safetensors")
    layer = "bert.embeddings.word_embeddings"
    run(
        *("explain", "bert", "ids.safetensors", "--method", "integrated_gradients"),
        *("--layer", layer, "--target", "1", "--out", "o"),
    )
    expected = attrfn.layer_integrated_gradients(model, ids, layer=layer, target=1)
    torch.testing.assert_close(attrfn.data.read("o")[:], expected, rtol=1e-5, atol=1e-6)
    rows = json_of("layers", "bert", "--input-shape", "5", "--input-type", "int")["layers"]
    found = {row["layer"]: row for row in rows}
    assert found[layer]["output"] == [["B", 5, 16]]
    assert found["bert.encoder.layer"]["called"] is False  # a list


def test_weights_that_are_pickles_or_missing() -> None:
    bert()
    weights = Path("bert/model.safetensors")
    weights.rename("bert/pytorch_model.bin")
    assert "which holds pytorch_model.bin and no .safetensors" in refused("layers", "bert")
    Path("bert/pytorch_model.bin").unlink()
    assert "holds no weights" in refused("layers", "bert")


def test_weights_that_do_not_fit() -> None:
    """What transformers would fill with random numbers."""
    from safetensors.torch import load_file, save_file

    bert()
    state = load_file("bert/model.safetensors")
    del state["classifier.weight"]
    save_file(state, "bert/model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of its weights, such as classifier.weight" in refused("layers", "bert")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MyOwnModel"]}, "a MyOwnModel, which transformers does not have"),
        ({"architectures": None}, "names no architectures"),
        ("{", "config.json cannot be read"),
    ],
)
def test_configurations_that_do_not_do(change: Any, message: str) -> None:
    bert()
    file = Path("bert/config.json")
    config = json.loads(file.read_text())
    file.write_text(change if isinstance(change, str) else json.dumps(config | change))
    assert message in refused("layers", "bert")


def test_code_beside_the_weights_is_not_run() -> None:
    bert()
    file = Path("bert/config.json")
    config = json.loads(file.read_text())
    config |= {"auto_map": {"AutoModelForSequenceClassification": "own.Model"}}
    file.write_text(json.dumps(config))
    Path("bert/own.py").write_text("import os\nos.mkdir('opened')\n", encoding="utf-8")
    run("layers", "bert")
    assert not Path("opened").exists()


def test_programs_of_other_kinds() -> None:
    """Layers of exported programs by the nodes of the graph too; a file of torch.jit."""
    from toys import NET

    exported(NET, inputs()[:4])
    found = {r["layer"]: r for r in json_of("layers", "m.pt2", "toys:data")["layers"]}
    assert found["1"]["output"] == [["B", 8]]
    assert found["tanh"]["type"] == "operation"
    explain("m.pt2", "--target", "0", "--layer", "1")
    expected = attrfn.at_layer(attrfn.gradient, "1")(NET, inputs(), target=0)
    torch.testing.assert_close(attrfn.data.read("o")[:], expected, rtol=0, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole
        torch.jit.save(torch.jit.trace(NET, inputs()), "traced.pt")
    run("explain", "traced.pt", "toys:data", "--method", "gradient", "--target", "0", "--out", "p")
    expected = attrfn.gradient(NET, inputs(), target=0)
    torch.testing.assert_close(attrfn.data.read("p")[:], expected, rtol=0, atol=1e-12)


def test_layers_of_a_program_for_a_fixed_number_of_rows() -> None:
    """A layer has a value for the whole batch alone: all of them are called, at B = 4."""
    from toys import NET

    torch.export.save(torch.export.export(NET, (inputs()[:4],)), "four.pt2")
    expected = json_of("layers", "toys:net", "toys:data")["layers"]
    for data in (("toys:data",), ("--input-shape", "6")):
        found = {r["layer"]: r for r in json_of("layers", "four.pt2", *data)["layers"]}
        assert all(row["called"] for row in found.values())
        assert {r["layer"]: found[r["layer"]]["output"] for r in expected} == {
            r["layer"]: r["output"] for r in expected
        }
