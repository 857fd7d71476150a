"""Build the package, install it away from the checkout, and use it there as a stranger would.

Run by `make package`. Nothing is fetched: the new environment sees the packages of this one, but
not the checkout, and pip says whether they are all that ``attrfn[all]`` asks for.
"""

import doctest
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PIP = ["-m", "pip", "--disable-pip-version-check"]
# Strict mypy accepts it only where it sees the types of attrfn: without them the last line would
# be no error, and its comment would be one too many.
SNIPPET = """\
import torch
from torch import Tensor

import attrfn

x = torch.ones(2, 3)
a: Tensor = attrfn.integrated_gradients(torch.sin, x, n_steps=4, target=0)
gap: Tensor = attrfn.completeness_delta(torch.sin, x, a, target=0)
attrfn.integrated_gradients(torch.sin, x, n_steps="4")  # type: ignore[arg-type]
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """The output of a command, which must succeed and sees no paths of the caller."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def built() -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it and not from the checkout."""
    for old in DIST.glob("attrfn-*"):
        old.unlink()
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", DIST)
    (sdist,) = DIST.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", DIST]
    run(sys.executable, *PIP, "wheel", *options, sdist)
    (wheel,) = DIST.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """The wheel has every file of the package, and only those; the sdist has what tests need."""
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "attrfn").rglob("*.py")}
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert inside == here | {"attrfn/py.typed"}, inside ^ here
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "Makefile", "constraints.txt"}
    assert wanted | {"tests/conftest.py", "docs/index.md"} <= names, wanted - names


def fresh(home: Path, wheel: Path) -> Path:
    """The interpreter of a new environment with the wheel, and with this one's other packages."""
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", script).strip())
    # Without the files beside it that put the checkout on the path: those are read in its own
    # environment only.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [sys.executable, *PIP, "--python", python, "install", "--no-index"]
    run(*install, "--no-deps", "--ignore-installed", wheel)
    run(*install, "attrfn[all]")
    found = run(python, "-c", "import attrfn; print(attrfn.__file__)", cwd=home).strip()
    assert Path(found).is_relative_to(site), found
    return python


def main() -> None:
    """Every step, with a line for each."""
    sdist, wheel = built()
    check_contents(sdist, wheel)
    print(f"built {sdist.name} and {wheel.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        python = fresh(home / "env", wheel)
        report = run(python, "-m", "attrfn", cwd=home)
        assert wheel.name.split("-")[1] == report.split()[1], report
        print(report, end="", flush=True)
        print(run(python.parent / "attrfn", "--version", cwd=home), end="", flush=True)
        readme = doctest.script_from_examples((ROOT / "README.md").read_text(encoding="utf-8"))
        (home / "readme.py").write_text(readme, encoding="utf-8")
        run(python, "readme.py", cwd=home)
        (home / "snippet.py").write_text(SNIPPET, encoding="utf-8")
        mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", home / "cache"]
        run(*mypy, "--python-executable", python, "snippet.py", cwd=home)
    print("the lines of the README run, and mypy sees the types")


if __name__ == "__main__":
    main()
