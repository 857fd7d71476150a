"""The page of operations in the documentation is what its script prints."""

import runpy
from pathlib import Path

import pytest
import torch.nn.functional as F

from attrfn._rules.relevance import RELEVANCE
from attrfn._rules.rescale import DIFFERENCE

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(
    not hasattr(F, "lp_pool3d"), reason="the page is that of a torch with all operations"
)


def test_committed_page_is_what_the_script_prints() -> None:
    page = runpy.run_path(str(DOCS / "op_table.py"))["page"]()
    committed = (DOCS / "methods" / "ops.md").read_text(encoding="utf-8")
    assert committed == page, "run: python docs/op_table.py"


def test_page_has_every_operation() -> None:
    committed = (DOCS / "methods" / "ops.md").read_text(encoding="utf-8")
    for name in {*DIFFERENCE, *RELEVANCE}:
        assert f"`{name}`" in committed
