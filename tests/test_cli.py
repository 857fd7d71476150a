"""The program: help, exit codes, JSON, errors, and the list of methods."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cli_cases
import pytest
import registry
import torch
from cli_cases import NAMES, environment, inputs, json_of, refused, run

import attrfn
import attrfn.cli
import attrfn.data
from attrfn.cli import _names

EXPLAIN = ("explain", "toys:net", "toys:data", "--method", "saliency")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with cli_cases.at_home(tmp_path, monkeypatch):
        yield


def test_version_and_help() -> None:
    assert run("--version").stdout == f"attrfn {attrfn.__version__}\n"
    for name in ("explain", "layers", "check", "compare", "report", "methods"):
        assert name in run("--help").stdout
        assert "--json" in run(name, "--help").stdout
    assert "explain" in run(code=2).output  # without a command: its help


def test_shells_complete_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """As typer's script for bash asks for it."""
    code = "from attrfn.cli import main; main()"
    more = {"_ATTRFN_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    more["COMP_WORDS"] = "attrfn explain --method integrated_g"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment() | more, capture_output=True, text=True
    )
    assert done.stdout.split() == ["integrated_gradients"], done.stderr
    assert "infidelity" in _names.metric_names("in")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_said_in_a_line(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as ended:
        attrfn.cli.main([])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('the command line needs pip install "attrfn[cli]"')
    assert missing in line


def test_attrfn_loads_none_of_it() -> None:
    code = "import sys, attrfn, attrfn.cli; print({'typer', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_methods_are_those_of_the_registry() -> None:
    """The registry of the tests has every method; neither list is written for the other."""
    found = {m["name"] for m in json_of("methods")["methods"]}
    rows = {r.name for r in registry.REGISTRY if r.name in r.covers}
    assert found == rows - {"completeness_delta", "split"}  # which return no attributions
    assert all(m["summary"] for m in json_of("methods")["methods"])
    shown = run("methods").stdout
    assert all(name in shown for name in found)


def test_the_options_of_every_method_are_explained() -> None:
    for name in _names.methods():
        options = _names.options_of(_names.methods()[name])
        assert options
        assert not [p["name"] for p in options if not p["text"]], name
    found = {p["name"]: p for p in json_of("methods", "integrated_gradients")["options"]}
    assert found["n_steps"]["default"] not in (None, "")
    assert "n_steps" in run("methods", "integrated_gradients").stdout
    assert "did you mean 'saliency'?" in refused("methods", "salency", code=2)


def test_explain_is_what_the_library_gives() -> None:
    from toys import NET

    words = (*EXPLAIN, "--target", 1, "--out", "out", "--batch-size", 6)
    said = json_of(*words)
    expected = attrfn.saliency(NET, inputs(), target=1)
    torch.testing.assert_close(attrfn.data.read("out")[:], expected, rtol=0, atol=0)
    assert said["examples"] == 20
    assert said["complete"] is True
    assert said["shapes"] == {"attribution": [6]}
    assert said["failed"] == {}
    assert "20 examples are in out" in run(*words).stdout  # everything is done
    assert "whose target in options was 1 and is now 2" in refused(
        *EXPLAIN, "--target", 2, "--out", "out"
    )
    assert "holds results already" in refused(*words, "--no-resume")


METHODS = {
    "integrated_gradients": ({"n_steps": 7, "target": 2}, "--option n_steps=7 --target 2"),
    "kernel_shap": (
        {"n_samples": 40, "key": 5, "target": 2},
        "--option n_samples=40 --key 5 --target 2",
    ),
    "lrp": (
        {"rules": attrfn.rules.epsilon(), "target": 0},
        "--option rules=attrfn.rules:epsilon --target 0",
    ),
    "layer_gradient_x_activation": ({"layer": "1", "target": 1}, "--layer 1 --target 1"),
    "neuron_gradient": ({"layer": "0", "neuron": 3}, "--layer 0 --option neuron=3"),
}


@pytest.mark.parametrize("name", METHODS)
def test_options_reach_the_method(name: str) -> None:
    from toys import NET

    options, words = METHODS[name]
    run("explain", "toys:net", "toys:data", "--method", name, *words.split(), "--out", "out")
    expected = attrfn.data.explain(getattr(attrfn, name), NET, inputs(), progress=False, **options)
    torch.testing.assert_close(attrfn.data.read("out")[:], expected, rtol=0, atol=0)


def test_a_layer_without_a_form_of_its_own() -> None:
    from toys import NET

    run(*EXPLAIN, "--target", 0, "--layer", "1", "--out", "out")
    expected = attrfn.at_layer(attrfn.saliency, "1")(NET, inputs(), target=0)
    torch.testing.assert_close(attrfn.data.read("out")[:], expected, rtol=0, atol=0)


def test_the_predicted_output() -> None:
    from toys import NET

    run(*EXPLAIN, "--target", "predicted", "--out", "out", "--batch-size", 3)
    expected = attrfn.saliency(NET, inputs(), target=NET(inputs()).argmax(1))
    torch.testing.assert_close(attrfn.data.read("out")[:], expected, rtol=0, atol=0)
    assert "is in training mode" in refused(
        "explain", "toys:drops", "toys:data", "--method", "saliency", "--target", "predicted",
        "--out", "other",
    )  # fmt: skip


def test_the_predicted_output_is_checked_and_compared() -> None:
    from toys import NET

    x = inputs()[:5]
    target = NET(x).argmax(1)
    words = ("--target", "predicted", "--rows", 5)
    assert json_of("check", "toys:net", "toys:data", *words)["ok"]
    method = ("--method", "saliency")
    found = json_of("compare", "toys:net", "toys:data", *method, "--metric", "deletion", *words)
    expected = attrfn.metrics.compare(
        NET, x, {"saliency": attrfn.saliency}, {"deletion": attrfn.metrics.deletion}, target=target
    )
    assert found["mean"]["saliency"]["deletion"] == pytest.approx(expected.mean().item())
    for command in (("check",), ("compare", *method)):
        words = (command[0], "toys:drops", "toys:data", *command[1:], "--target", "predicted")
        assert "is in training mode" in refused(*words)


def test_a_target_of_the_users() -> None:
    from toys import NET

    run(*EXPLAIN, "--target", "toys:first", "--out", "out")
    expected = attrfn.saliency(NET, inputs(), target=lambda y: y[:, 0] - y[:, 1])
    torch.testing.assert_close(attrfn.data.read("out")[:], expected, rtol=0, atol=0)


def test_json_is_alone_on_stdout() -> None:
    """Also where the model prints, and for errors."""
    done = run("explain", "toys:Noisy", "toys:data", "--method", "saliency", "--out", "o", "--json")
    assert json.loads(done.stdout)["examples"] == 20
    assert "the model talks" in done.stderr
    failed = json_of("layers", "gone.pt2", code=1)
    assert failed == {"error": "MODEL is 'gone.pt2', and there is no such file", "exit_code": 1}


def test_what_json_has_no_number_for() -> None:
    from attrfn.cli._say import as_json

    value = {"a": float("nan"), "b": torch.tensor([1.0, float("inf")]), 3: (Path("x"), None, True)}
    assert json.loads(as_json(value)) == {"a": None, "b": [1.0, None], "3": ["x", None, True]}


def test_an_example_that_fails() -> None:
    Path("bad.py").write_text(
        "import toys, torch\n"
        "def data():\n    x = toys.data()\n    x[[3, 11]] = 999.0\n    return x\n",
        encoding="utf-8",
    )
    words = ("explain", "toys:picky", "bad:data", "--method", "gradient", "--out", "out")
    assert re.search("example 3: .*a value above 900", refused(*words))
    done = run(*words, "--on-error", "skip")
    assert "example 3 failed" in done.stdout
    assert json_of(*words, "--on-error", "skip")["failed"].keys() == {"3", "11"}
    assert bool(attrfn.data.read("out")[3].isnan().all())


WRONG_WORDS = {
    "did you mean 'saliency'": ("--method", "salienci"),
    "attrfn methods lists them": ("--method", "zzz"),
    "needs --layer: attrfn layers MODEL lists them": ("--method", "grad_cam"),
    "needs --option neuron=VALUE": ("--method", "neuron_gradient", "--layer", "0"),
    "needs --baselines": ("--method", "deep_lift_shap"),
    "did you mean 'n_steps'": ("--method", "integrated_gradients", "--option", "n_step=3"),
    "expected NAME=VALUE": ("--method", "saliency", "--option", "n_steps"),
    "gives n_steps twice": (
        "--method", "integrated_gradients", "--option", "n_steps=3", "--option", "n_steps=4",
    ),
    "use --target": ("--method", "saliency", "--option", "target=3"),
    "takes none": ("--method", "saliency", "--baselines", "zeros"),
    "expected a number such as 3": ("--method", "saliency", "--target", "three"),
    "expected auto or a number from 1 on": ("--method", "saliency", "--batch-size", "0"),
    "expected NAME,NAME or KEY=NAME": ("--method", "saliency", "--columns", "inputs="),
    "twice": ("--method", "saliency", "--columns", "index=a", "--columns", "index=b"),
    "both name the target": (
        "--method", "saliency", "--target", "label:y", "--columns", "target=y",
    ),
    "expected 1 or 3 numbers": ("--method", "saliency", "--image-mean", "a"),
    "numbers other than 0": ("--method", "saliency", "--image-std", "0"),
    "whole numbers from 1": ("--method", "saliency", "--image-size", "0"),
    "for texts": ("--method", "integrated_gradients", "--baselines", "pad"),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG_WORDS, ids=lambda w: w.replace(" ", "_"))
def test_wrong_words_are_exit_code_2(words: str) -> None:
    said = refused("explain", "toys:net", "toys:data", "--out", "out", *WRONG_WORDS[words], code=2)
    assert words in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "toys:net", "toys:data", "--out", "o"),  # no method
        ("explain", "toys:net", "toys:data", "--method", "saliency"),  # no folder
        ("explain", "toys:net", "toys:data", "--method", "saliency", "--out", "o", "--engine", "x"),
        ("explain", "toys:net", "toys:data", "--method", "saliency", "--out", "o", "--colour"),
        ("layers",),
        ("explainn",),
    ],
)
def test_words_that_typer_refuses(words: tuple[str, ...]) -> None:
    done = run(*words, code=2)
    assert done.stdout == ""
    assert done.stderr


def test_debug_shows_the_traceback() -> None:
    assert refused("layers", "toys:broken") == "RuntimeError: the weights are gone"
    done = run("layers", "toys:broken", "--debug", code=1)
    assert "Traceback" in done.stderr
    assert "Error: RuntimeError: the weights are gone" in done.stderr


def test_tables_of_files_are_neither_cut_nor_coloured() -> None:
    shown = run("methods").stdout
    assert "\x1b" not in shown
    assert all(m["summary"] in shown for m in json_of("methods")["methods"])


def test_layers_and_their_shapes() -> None:
    found = {row["layer"]: row for row in json_of("layers", "toys:net", "toys:data")["layers"]}
    assert found["0"]["type"] == "Linear"
    assert found["0"]["parameters"] == 6 * 8 + 8
    assert [found[n]["output"] for n in "012"] == [[["B", 8]], [["B", 8]], [["B", 3]]]
    assert json_of("layers", "toys:net")["layers"][0]["output"] is None
    spare = json_of("layers", "toys:Spare", "--input-shape", "6")["layers"]
    assert {row["layer"]: row["called"] for row in spare} == {"used": True, "spare": False}
    assert "is not called" in run("layers", "toys:Spare", "--input-shape", "6").stdout
    assert "shows no layers" in refused("layers", "toys:square")
    assert "--input-shape" in refused("layers", "toys:net", "--input-shape", "6,x", code=2)
    assert "expected one" in refused(
        "layers", "toys:net", "toys:data", "--input-shape", "6", code=2
    )


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_layers_are_what_the_option_layer_takes() -> None:
    for row in json_of("layers", "toys:net", "toys:data")["layers"]:
        words = ("--method", "layer_activation", "--layer", row["layer"])
        shapes = json_of("explain", "toys:net", "toys:data", *words, "--out", f"o{row['layer']}")
        assert [["B", *shapes["shapes"]["attribution"]]] == row["output"]


def test_check() -> None:
    words = ("check", "toys:net", "toys:data", "--target", 1)
    found = json_of(*words)
    assert found["ok"] is True
    assert {"rows", "deterministic"} <= {f["name"] for f in found["findings"]}
    assert [f["name"] for f in found["layers"]] == ["0", "1", "2"]
    assert "fit for attribution" in run(*words).stdout
    bad = json_of("check", "toys:drops", "toys:data", "--target", 1, code=1)
    assert bad["ok"] is False
    assert "NOT fit" in run("check", "toys:drops", "toys:data", "--target", 1, code=1).stdout


def test_compare() -> None:
    from toys import NET

    from attrfn import metrics

    words = ("compare", "toys:net", "toys:data", "--method", "saliency", "--method", "kernel_shap")
    words += ("--metric", "sparseness", "--metric", "deletion", "--rows", "5", "--target", "2")
    found = json_of(*words, "--option", "n_samples=30")
    x = inputs()[:5]
    a = attrfn.saliency(NET, x, target=2)
    expected = metrics.sparseness(a).tolist(), metrics.deletion(NET, x, a, target=2).tolist()
    torch.testing.assert_close(found["values"]["saliency"]["sparseness"], expected[0])
    torch.testing.assert_close(found["values"]["saliency"]["deletion"], expected[1])
    assert found["best"].keys() == {"sparseness", "deletion"}
    assert "is best" in run(*words).stdout
    assert "drop it" in refused(*words, "--layer", "1", code=2)
    assert "call attrfn.metrics.random_logit" in refused(*words, "--metric", "random_logit", code=2)
    assert "did you mean 'deletion'" in refused(*words, "--metric", "deletions", code=2)
    assert "names a method twice" in refused(*words, "--method", "saliency", code=2)
    assert "none of the methods takes" in refused(*words, "--option", "n_steps=3", code=2)


def test_the_csv_of_the_documentation_names_its_columns() -> None:
    lines = [",".join([*NAMES, "y"]), *[",".join(map(str, r)) + ",1" for r in inputs().tolist()]]
    Path("t.csv").write_text("\n".join(lines), encoding="utf-8")
    said = refused("explain", "toys:net", "t.csv", "--method", "saliency", "--out", "o", code=2)
    assert "the columns a, b, c, d, e, f, y" in said
