"""Files of the library: whole, or as they were."""

import ast
import os
import stat
from pathlib import Path

import pytest

import attrfn
from attrfn import viz
from attrfn._torch import files

ROOT = Path(attrfn.__file__).parent
WRITES = {"open", "write_text", "write_bytes", "save", "savefig", "mkstemp", "NamedTemporaryFile"}


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("where", ["title", "text", "caption", "cell", "figure"])
def test_a_text_that_cannot_be_encoded_leaves_the_file(tmp_path: Path, where: str) -> None:
    file, bad = tmp_path / "r.html", "before \ud83d after"
    viz.report(file, title="old")
    old = file.read_bytes()
    given = {
        "title": {"title": bad},
        "text": {"title": "t", "text": bad},
        "caption": {"title": "t", "tables": {bad: [{"a": 1}]}},
        "cell": {"title": "t", "tables": {"c": [{"a": bad}]}},
        "figure": {"title": "t", "figures": {"c": viz.text([bad], [1.0])}},
    }[where]
    with pytest.raises(ValueError, match=r"the report holds '\\ud83d' in .*before") as error:
        viz.report(file, **given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert file.read_bytes() == old
    assert listing(tmp_path) == ["r.html"]


@pytest.mark.parametrize("fails", ["write", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_while_writing_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, error: BaseException
) -> None:
    file = tmp_path / "r.html"
    viz.report(file, title="old")
    old = file.read_bytes()

    def refuse(*args: object, **options: object) -> None:
        raise error

    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *exception: object) -> None: ...

        write = refuse

    if fails == "write":
        monkeypatch.setattr(files.Path, "open", lambda self, mode: (self.touch(), Full())[1])
    else:
        monkeypatch.setattr(files.Path, "replace", refuse)
    with pytest.raises(type(error)):
        viz.report(file, title="new")
    monkeypatch.undo()
    assert file.read_bytes() == old
    assert listing(tmp_path) == ["r.html"]


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "r.html", tmp_path / "link.html"
    viz.report(file, title="old")
    file.chmod(0o640)
    link.symlink_to(file)
    assert viz.report(link, title="new") == link
    assert link.is_symlink()
    assert "new" in file.read_text("utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert listing(tmp_path) == ["link.html", "r.html"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    file = viz.report(tmp_path / ("n" * 200 + ".html"), title="t")
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_devices_are_written_and_not_replaced(tmp_path: Path) -> None:
    viz.report(os.devnull, title="t")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(IsADirectoryError):
        viz.report(tmp_path, title="t")


def test_nothing_else_in_the_library_writes_files() -> None:
    """A new place that does goes through ``attrfn/_torch/files.py``.

    Folders of shards append to a log and wait for the disk, in one file of their own.
    """
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in WRITES:
                    found.add((path.relative_to(ROOT).as_posix(), name))
    into_memory = {("viz/_report.py", "savefig"), ("viz/_figure.py", "savefig")}
    shards = {("data/_folder.py", "open"), ("data/_run.py", "open"), ("data/_shards.py", "save")}
    own = {("_torch/files.py", "open"), ("_torch/files.py", "write_bytes")}
    into_memory |= {("programs/_exported.py", "save")}
    read = {("programs/_files.py", "open"), ("cli/_images.py", "open")}
    assert found == own | into_memory | shards | read
