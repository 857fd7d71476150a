"""The tables of operations: names that torch has, and the page that is printed from them."""

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from attrfn._rules import names, ops
from attrfn._rules.relevance import RELEVANCE
from attrfn._rules.rescale import DIFFERENCE

DOCS = Path(__file__).parents[1] / "docs"

all_operations = pytest.mark.skipif(
    not hasattr(F, "lp_pool3d"), reason="the page is that of a torch with all operations"
)
KINDS = ("STRUCTURE", "PRODUCTS", "ELEMENTWISE", "CONSTANT", "NORMS", "OTHERS", "SELECTIONS")
OF_THEM = ("MOVES", "THROUGH_ZERO", "SOFTMAX", "DROPOUTS")
LISTED = {name for kind in KINDS for name in getattr(ops, kind).split()}


@all_operations
def test_committed_page_is_what_the_script_prints() -> None:
    page = runpy.run_path(str(DOCS / "op_table.py"))["page"]()
    committed = (DOCS / "methods" / "ops.md").read_text(encoding="utf-8")
    assert committed == page, "run: python docs/op_table.py"


@all_operations
def test_page_has_every_operation() -> None:
    committed = (DOCS / "methods" / "ops.md").read_text(encoding="utf-8")
    for name in {*DIFFERENCE, *RELEVANCE}:
        assert f"`{name}`" in committed


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_name_is_refused_with_the_import(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, kind, f"{getattr(ops, kind)} sofmax")
    with pytest.raises(ImportError, match=r"^'sofmax' is not an operation of torch "):
        names._all()


def test_a_later_torch_may_have_dropped_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "NORMS", f"{ops.NORMS} gone")
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert names._all() == names.FUNCTIONS


def test_an_older_torch_may_lack_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "NORMS", f"{ops.NORMS} newer")
    monkeypatch.setattr(ops, "SINCE", {**ops.SINCE, "newer": ops.NEWEST})
    monkeypatch.setattr(torch, "__version__", "2.0.1")
    assert names._all() == names.FUNCTIONS


def test_names_of_other_lists_are_in_the_tables() -> None:
    """Checked here and not with the import, since they stand nowhere alone."""
    lists = [getattr(ops, kind).split() for kind in OF_THEM]
    lists += [ops.PATTERNED, ops.SIDE_BY_SIDE, ops.HOLOMORPHIC, ops.STEPS, ops.SINCE]
    known = {*LISTED, *ops.ATTRIBUTES_OF_STRUCTURE}
    assert {name for of_kind in lists for name in of_kind} <= known
    assert {*DIFFERENCE, *RELEVANCE} <= known


def test_operations_of_exported_graphs_are_those_of_aten() -> None:
    assert ops.IN_EXPORTED_GRAPHS <= LISTED
    assert not {name for name in ops.IN_EXPORTED_GRAPHS if not hasattr(torch.ops.aten, name)}


def test_methods_that_leave_torch_are_those_of_tensors() -> None:
    assert not {name for name in ops.READS if not hasattr(torch.Tensor, name)}
