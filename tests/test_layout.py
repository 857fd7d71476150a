"""The rooms of the library: imports run down only. Read from the source, which is not executed."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "attrfn"

# The rooms from the ground up; a file imports from its own room and from those below.
ROOMS = ("_torch", "_random", "_model", "_copies", "_explain", "_layers", "_rules")
ROOMS += ("surrogates", "_methods", "_compile")
FLOORS = {name: floor for floor, name in enumerate(ROOMS)} | {"random": ROOMS.index("_random")}
ABOVE = len(ROOMS)  # rules.py, the topic packages (viz/, metrics/, ...) and __init__.py

# The rooms that a topic package may import besides the public names.
FOR_TOPICS = ("_explain", "_copies", "_layers", "_random", "_torch")

# What the library needs is torch and optree; what the topic packages and options need besides.
ALLOWED = {"attrfn", "optree", "torch"}
EXTRAS = {
    "attrfn._torch.typing": {"typing_extensions"},  # before Python 3.11; torch depends on it
    "attrfn._copies.progress": {"tqdm"},
    "attrfn.surrogates": {"sklearn", "numpy"},
    "attrfn.viz": {"matplotlib", "numpy"},
    "attrfn.testing": {"hypothesis", "pytest"},
    "attrfn.cli": {"rich", "typer"},
}

# A method imports another one's file only where it is that method plus something: every CAM weighs
# maps, guided Grad-CAM is a CAM times guided backprop, interactions are games as Shapley values
# are, and KernelSHAP fits its design.
METHODS_ON_METHODS = {
    ("deep_lift", "deep_lift_options"),
    ("cam", "maps"),
    ("mask_cam", "maps"),
    ("guided_grad_cam", "maps"),
    ("guided_grad_cam", "cam"),
    ("guided_grad_cam", "guided"),
    ("interactions", "shapley"),
    ("kernel_shap", "kernel_design"),
    ("averages", "samples"),
    ("noise_tunnel", "samples"),
}

MOST_LINES = {"attrfn": 300, "tests": 600}
MOST_CODE = 40  # lines of a function of attrfn, without its docstring

# Functions that are longer, each with the reason.
LONGER = {
    "attrfn._copies.chunks._run": "the loop over chunks, which measures, halves and merges",
    "attrfn._model.clone.run_clone": "what is put into the clone is taken out again after its run",
    "attrfn.data._importance.importance": "an argument for each option, and the check of each",
    "attrfn.metrics._around.around": "an argument for each option, and the draws of both kinds",
    "attrfn.metrics._subsets._correlations": "one pass over the subsets of each size",
    "attrfn.text._attribute.attribute": "an argument for each option, and the check of each",
    "attrfn.text._game.game": "an argument for each option, and the check of each",
    "attrfn.text._methods._by_game": "one game, explained for tokens and in total",
}

# The files that may use private names of torch: attributes of tensors and modules, and what starts
# with an underscore in torch itself.
OF_PRIVATE_NAMES = {
    f"attrfn._torch.{n}" for n in ("private", "private_compiler", "private_distributed", "pytree")
}
ATTRIBUTES = {"_version", "_base", "_cdata", "_overloadname"}
ATTRIBUTES |= {"_modules", "_parameters", "_buffers", "_compiled_call_impl", "_orig_mod"}
TEXTS = rf"^({'|'.join(ATTRIBUTES)})$|torch\._[a-zA-Z]|_orig_mod|_dynamo|_inductor|_functorch"

FILES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(ROOT.rglob("*.py"))
}
modules = pytest.mark.parametrize("module", FILES)


def imports(module: str) -> Iterator[str]:
    """The modules that a file imports, anywhere in it, except for type checkers only."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in FILES else base


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = module.split(".")
    is_package = FILES[module].name == "__init__.py"
    parts = package[: len(package) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _runtime_nodes(node)


def own_imports(module: str) -> set[str]:
    return {i for i in imports(module) if i.split(".")[0] == "attrfn"} - {module}


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.get(parts[1], ABOVE) if len(parts) > 1 else ABOVE


def test_the_files_are_found() -> None:
    """The other tests read what this one finds."""
    assert {"attrfn", "attrfn.random", "attrfn._layers.split", "attrfn._layers.at"} <= FILES.keys()
    assert own_imports("attrfn._layers.at") >= {"attrfn._layers.split", "attrfn._torch.typing"}
    assert {floor(m) for m in FILES} == {*range(len(ROOMS)), ABOVE}


@modules
def test_arrows_run_down(module: str) -> None:
    upward = {i for i in own_imports(module) if floor(i) > floor(module)}
    assert not upward, f"{module} stands below what it imports: {upward}"


@modules
def test_only_the_package_itself_is_above_the_package(module: str) -> None:
    """``import attrfn`` inside it would be a circle; the topic packages stand on public names."""
    if floor(module) < ABOVE:
        assert "attrfn" not in own_imports(module)


@modules
def test_topic_packages_stand_on_the_mechanisms(module: str) -> None:
    """A topic package imports its own files, the rooms of FOR_TOPICS and public names."""
    parts = module.split(".")
    if floor(module) < ABOVE or module in ("attrfn", "attrfn.rules"):
        return
    home = ".".join(parts[:2])
    private = {
        i
        for i in own_imports(module)
        if "._" in i and not i.startswith(f"{home}.") and i.split(".")[1] not in FOR_TOPICS
    }
    assert not private


def test_methods_import_methods_only_where_one_is_the_other_plus_something() -> None:
    home = "attrfn._methods."
    found = {
        (module.removeprefix(home), imported.removeprefix(home))
        for module in FILES
        if module.startswith(home)
        for imported in own_imports(module)
        if imported.startswith(home)
    }
    assert found == METHODS_ON_METHODS


@pytest.mark.parametrize("folder", MOST_LINES)
def test_no_file_is_too_long(folder: str) -> None:
    top = ROOT.parent
    sizes = {
        path.relative_to(top).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted((top / folder).rglob("*.py"))
    }
    longer = {name: n for name, n in sizes.items() if n > MOST_LINES[folder]}
    assert not longer


def functions(source: str) -> Iterator[tuple[str, int]]:
    """The functions of a file, and the lines of each from ``def`` on, without its docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                lines -= (text.end_lineno or 0) - text.lineno + 1
            yield node.name, lines


@modules
def test_no_function_is_too_long(module: str) -> None:
    found = functions(FILES[module].read_text(encoding="utf-8"))
    longer = {f"{module}.{name}" for name, n in found if n > MOST_CODE}
    assert longer <= LONGER.keys()


def test_lines_of_functions_are_counted() -> None:
    """By hand: the signature counts, and inner functions too, and the docstring does not."""
    source = 'def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n'
    source += "    def g():\n        return x\n\n    return g\n"
    assert dict(functions(source)) == {"f": 7, "g": 2}


def test_no_file_imports_itself_in_a_circle() -> None:
    graph = {module: own_imports(module) & FILES.keys() for module in FILES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"imports run in a circle: {error.args[1]}") from None
    assert set(order) == set(FILES)


def private_names(module: str) -> Iterator[str]:
    """The private names of torch in the code of a file; docstrings and comments are left out."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    torchs = {"torch"}  # what a name of the file stands for that is torch's
    texts = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [a for a in node.names if a.name.split(".")[0] == "torch"]
            torchs |= {a.asname or "torch" for a in found}
            yield from (a.name for a in found if "._" in a.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            torchs |= {a.asname or a.name for a in node.names}
            names = [f"{node.module}.{a.name}" for a in node.names]
            yield from (n for n in names if "._" in n)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *parts = _chain(node)
            if node.attr in ATTRIBUTES or (root in torchs and _is_private(node.attr)):
                yield ".".join([root, *parts])
        text = getattr(node, "value", None)
        if isinstance(text, str) and id(node) not in texts and re.search(TEXTS, text):
            yield text


def _chain(node: ast.expr) -> list[str]:
    """``a.b.c`` as its parts; the first is empty where it is not a name."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@modules
def test_private_names_of_torch_are_in_one_place(module: str) -> None:
    if module not in OF_PRIVATE_NAMES:
        assert not list(private_names(module))


def test_private_names_are_found() -> None:
    """The test above looks for something."""
    found = {name for module in OF_PRIVATE_NAMES for name in private_names(module)}
    examples = ("torch._C._functorch", "torch._dynamo", "_modules")
    assert found >= {*examples, "torch.utils._pytree", "_version"}


@modules
def test_outside_imports_are_torch_and_optree(module: str) -> None:
    """Only what the core dependencies, or the extra of this package, install."""
    extras = next((EXTRAS[k] for k in EXTRAS if (module + ".").startswith(k + ".")), set())
    outside = {i.split(".")[0] for i in imports(module)} - ALLOWED - extras
    assert outside <= set(sys.stdlib_module_names)


def test_import_of_attrfn_loads_no_extra() -> None:
    """The top level imports no topic package, so that ``import attrfn`` needs torch and optree."""
    reached, waiting = set(), ["attrfn"]
    while waiting:
        module = waiting.pop()
        if module not in reached and module in FILES:
            reached.add(module)
            waiting += own_imports(module)
    topics = ("viz", "metrics", "robust", "axioms", "testing", "text", "data", "cli", "programs")
    assert not {m for m in reached if m.split(".")[1:2] in [[t] for t in topics]}


def test_init_is_explicit_exports_only() -> None:
    """``from attrfn._x import name as name`` and the version, in the order of the modules."""
    tree = ast.parse(FILES["attrfn"].read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name or (alias.asname or "").startswith("_")
        else:
            assert isinstance(node, (ast.Expr, ast.Assign))


OF_GENERATORS = {
    "attrfn._model.arguments",
    "attrfn._model.hidden",
    "attrfn._model.private_copy",
    "attrfn._torch.explanation",
    "attrfn._torch.generators",
}


@pytest.mark.parametrize("module", [m for m in FILES if floor(m) < ABOVE])
def test_nothing_forbidden_is_used(module: str) -> None:
    """No hooks on modules, no generators, no global random numbers, no dispatch modes.

    A hook on a tensor lives and dies with one derivative: that of ReLU in guided backprop has one,
    and values inside of a module whose weights have to be gathered again.
    """
    forbidden = {
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_hook",
        "Generator",
        "manual_seed",
        "TorchDispatchMode",
        "custom_op",
        "randn_like",
        "rand_like",
    }
    if module in ("attrfn._rules.graft", "attrfn._model.sharded"):
        forbidden.remove("register_hook")
    if module in OF_GENERATORS:  # of torch and the user, which are put back
        forbidden -= {"Generator", "manual_seed"}
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not forbidden & (used | names)
