"""The program in processes of its own: killed, interrupted, resumed; the session of the docs."""

from __future__ import annotations

import doctest
import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_cases
import pytest
from cli_cases import ROOT, environment, inputs, json_of, refused, run

import attrfn
import attrfn.data

SLOW = ("explain", "toys:slow", "toys:many", "--method", "gradient", "--batch-size", "2")
DOCS = ROOT / "docs" / "command_line.md"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with cli_cases.at_home(tmp_path, monkeypatch):
        yield


def start(*words: str) -> subprocess.Popen[str]:
    """The program, which can be interrupted: a shell lets what runs behind it ignore Ctrl-C."""
    command = [sys.executable, "-m", "attrfn", *words]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, env=environment(), stdout=-1, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_a_shard(out: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not (Path(out) / "done.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def shards(out: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(out).glob("rows-*"))}


def test_killed_and_resumed_is_bitwise_the_same() -> None:
    process = start(*SLOW, "--out", "killed")
    wait_for_a_shard("killed", process)
    process.kill()
    process.communicate(timeout=60)
    done = len(attrfn.data.read("killed"))
    assert 0 < done < 1200
    assert json_of(*SLOW, "--out", "killed")["complete"] is True
    run(*SLOW, "--out", "whole")
    assert shards("killed") == shards("whole")


def test_ctrl_c_says_what_is_kept() -> None:
    process = start(*SLOW, "--out", "out", "--json")
    wait_for_a_shard("out", process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert re.search(r"^Interrupted: \d+ examples are in out: call again to go on$", stderr, re.M)
    said = json.loads(stdout)
    assert said["exit_code"] == 130
    kept = len(attrfn.data.read("out"))
    assert said["error"].startswith(f"{kept} examples")
    assert "Traceback" not in stderr
    assert json_of(*SLOW, "--out", "out")["examples"] == 1200
    page = json_of("report", "out")
    assert page["complete"] is True


def test_the_script_finds_the_modules_of_the_folder() -> None:
    """As pip makes it of ``attrfn.cli:main``: its own folder is on the path, and not the user's."""
    words = ("explain", "toys:net", "toys:data", "--method", "saliency", "--target", "1")
    code = "import sys; sys.path.remove(''); from attrfn.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--out", "o", "--progress"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 examples are in o (")
    assert "20/20" in done.stderr  # the bar
    assert "\x1b[3" not in done.stderr + done.stdout


def test_the_script_is_declared() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\nattrfn = "attrfn.cli:main"\n' in project


# --- reports -------------------------------------------------------------------------------------


def page_of(out: str, *words: Any) -> str:
    path = json_of("report", out, *words)["report"]
    text = Path(path).read_text(encoding="utf-8")
    # Nothing from elsewhere: no link, no script, and images inside the file.
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|url\(", text)
    sources = re.findall(r'(?:src|href|srcset)="([^"]*)"', text)
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    return text


def test_a_report_of_a_table() -> None:
    names = ["a", "b", "c", "d", "e", "<f>"]
    lines = [",".join(names), *[",".join(map(str, row)) for row in inputs().tolist()]]
    Path("t.csv").write_text("\n".join(lines), encoding="utf-8")
    words = ("--columns", ",".join(names), "--target", "1", "--method", "input_x_gradient")
    run("explain", "toys:net", "t.csv", *words, "--out", "o")
    page = page_of("o", "--top", 3)
    from toys import NET

    sizes = attrfn.input_x_gradient(NET, inputs(), target=1).abs()
    best = sizes.mean(0).argsort(descending=True)[:3].tolist()
    table = page.split("Most important features</h2>")[1].split("</table>")[0]
    cells = re.findall(r"<td>([^<]*)</td>", table)
    assert cells == [names[i].replace("<f>", "&lt;f&gt;") for i in best]
    assert f"{float(sizes.mean(0)[best[0]]):.4g}" in table
    top = page.split("Examples with the largest attributions</h2>")[1].split("</table>")[0]
    assert f'<td class="number">{int(sizes.sum(1).argmax())}</td>' in top
    assert "20 examples; all are explained." in page
    assert "toys:net" in page
    assert page.count("<figure>") == 1
    assert "Red raises" not in page  # of sizes, which have no sign


def test_a_report_of_failures_and_of_what_is_not_complete() -> None:
    Path("bad.py").write_text(
        "import toys\ndef data():\n    x = toys.data()\n    x[3] = 999.0\n    return x\n"
        "def all_bad():\n    return toys.data() + 999\n",
        encoding="utf-8",
    )
    words = ("--method", "gradient", "--on-error", "skip")
    run("explain", "toys:picky", "bad:data", *words, "--out", "o")
    page = page_of("o")
    assert "1 failed and count nowhere" in page
    failures = page.split("Examples that failed</h2>")[1]
    assert '<td class="number">3</td>' in failures
    assert "a value above 900" in failures
    (Path("o") / "command.json").write_text("{", encoding="utf-8")
    assert "Warning" in run("report", "o").stderr
    log = Path("o") / "done.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    assert "the run is not complete" in page_of("o")


def test_a_report_of_maps() -> None:
    Path("maps.py").write_text(
        "import torch\n"
        "def data():\n    return torch.arange(96.0).reshape(3, 2, 4, 4)\n"
        "def model(x):\n    return (x**2).flatten(1).sum(1)\n",
        encoding="utf-8",
    )
    run("explain", "maps:model", "maps:data", "--method", "gradient", "--out", "o")
    page = page_of("o", "--html", "elsewhere.html")
    assert page.count("<figure>") == 2
    assert "Red raises" in page
    assert Path("elsewhere.html").exists()
    assert not Path("o/report.html").exists()


def test_a_report_of_several_inputs() -> None:
    from safetensors.torch import save_file

    save_file({"x": inputs(), "y": inputs() + 1}, "t.safetensors")
    words = ("--method", "gradient", "--columns", "inputs=(x,y)", "--out", "o")
    run("explain", "toys:Two", "t.safetensors", *words)
    page = page_of("o")
    assert "Most important features of 0</h2>" in page
    assert "Most important features of 1</h2>" in page


def test_a_report_of_images_that_are_gone(tmp_path: Path) -> None:
    from PIL import Image

    Path("photos").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (60 * i, 10, 20)).save(f"photos/{i}.png")
    Path("seen.py").write_text(
        "def model(x):\n    return (x**2).flatten(1).sum(1)\n", encoding="utf-8"
    )
    run("explain", "seen:model", "photos", "--method", "gradient", "--out", "o")
    assert "2.png" in page_of("o")
    Path("photos").rename("moved")
    done = run("report", "o")
    assert "the report lacks what was explained" in done.stderr
    assert "2.png" not in Path("o/report.html").read_text(encoding="utf-8")


def test_what_is_no_folder_of_results() -> None:
    assert "has no manifest" in refused("report", "gone")
    Path("o").mkdir()
    (Path("o") / "manifest.json").write_text("{}", encoding="utf-8")
    assert "no manifest that this version reads" in refused("report", "o")


# --- the page ------------------------------------------------------------------------------------


def session() -> Iterator[tuple[str, str]]:
    """The commands of the page with what it shows for each."""
    text = DOCS.read_text(encoding="utf-8")
    console = text.split("```console\n")[1].split("```")[0]
    for part in console.split("$ ")[1:]:
        line, _, shown = part.partition("\n")
        yield line, shown


def test_the_session_of_the_page_runs() -> None:
    text = DOCS.read_text(encoding="utf-8")
    Path("loans.py").write_text(text.split("```python\n")[1].split("```")[0], encoding="utf-8")
    commands = list(session())
    assert len(commands) == 7
    checker = doctest.OutputChecker()
    for line, shown in commands:
        program, *words = shlex.split(line)
        if program == "python":
            runpy.run_path(words[0], run_name="__main__")
            continue
        assert program == "attrfn"
        done = run(*words)
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert not shown or checker.check_output(shown, done.stdout, options), done.stdout
    assert len(attrfn.data.read("people")) == 200


def test_the_page_names_every_command_and_exit_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name in ("explain", "layers", "check", "compare", "report", "methods"):
        assert f"`attrfn {name}" in text
    codes = re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)
    assert codes == ["0", "1", "2", "130"]


def test_every_option_of_the_page_exists() -> None:
    shown = "".join(
        run(name, "--help").stdout for name in ("explain", "layers", "check", "compare", "report")
    )
    known = set(re.findall(r"--[a-z][a-z-]*", shown + run("--help").stdout))
    named = set(re.findall(r"--[a-z][a-z-]*", DOCS.read_text(encoding="utf-8")))
    assert named - known - {"--nproc-per-node"} == set()
