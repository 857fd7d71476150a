"""The pages about language models name what there is, in attrfn and in Captum."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attrfn
from attrfn import text, viz

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("language.md", "llm_migration.md")
ROOMS = {"attrfn": attrfn, "text": text, "viz": viz}
# Options of the methods that the pages pass through text.attribute.
PASSED_ON = {
    option
    for method in (attrfn.lime, attrfn.kernel_shap, attrfn.integrated_gradients, attrfn.lrp)
    for option in inspect.signature(method).parameters
}
# One heading of language.md per question of a user.
QUESTIONS = """
    Which words drove this answer?|Why "Paris" and not "London"?|Which passage was used?
    |Which words made a classifier decide? Which words of a pair?
    |A translation: source and target together|A chat|A long prompt|Image and text
    |Show, save, compare|Any model
"""


def code(page: str) -> list[str]:
    """Code in lines and in blocks, without that of other libraries."""
    whole = (DOCS / page).read_text("utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", whole, re.DOTALL | re.MULTILINE)
    blocks = [
        re.sub(r"# (Captum|inseq|ContextCite)\n.*?\n\n", "", block, flags=re.DOTALL)
        for block in blocks
    ]
    inline = re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", whole, flags=re.DOTALL | re.MULTILINE)
    )
    return blocks + inline


def found(name: str) -> Any:
    room, *path = name.split(".")
    value: Any = ROOMS[room]
    for part in path:
        value = getattr(value, part, None)
    return value


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(page: str) -> None:
    names = {
        n for c in code(page) for n in re.findall(r"\b(?:attrfn|text|viz)(?:\.[a-z_A-Z]\w*)+", c)
    }
    assert len(names) > 20
    missing = {n for n in names if found(n) is None and n != "text.md"}
    assert missing == set()


def calls(source: str) -> Iterator[tuple[str, str]]:
    """Calls of ours with the text of their arguments, without that of calls inside them."""
    for start in re.finditer(r"\b((?:attrfn|text|viz)(?:\.\w+)+)\(", source):
        depth, inner = 1, ""
        for letter in source[start.end() :]:
            depth += (letter in "([{") - (letter in ")]}")
            if not depth:
                break
            inner += letter if depth == 1 else ""
        yield start[1], inner


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    checked = 0
    for source in code(page):
        for name, given in calls(source):
            takes = set(inspect.signature(found(name)).parameters)
            if name in ("text.attribute", "text.levels"):
                takes |= PASSED_ON | set(inspect.signature(text.attribute).parameters)
            if name == "text.documents":
                takes |= {"question"}
            for option in re.findall(r"\b(\w+)=", given):
                assert option in takes, f"{name}({option}=)"
                checked += 1
    assert checked > 8


def test_every_question_has_a_recipe() -> None:
    headings = re.findall(r"^## (.*)$", (DOCS / "language.md").read_text("utf-8"), re.MULTILINE)
    wanted = [q.strip() for q in QUESTIONS.strip().split("|")]
    assert headings == ["Words to know", *wanted]


def test_names_of_captum_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")
    page = (DOCS / "llm_migration.md").read_text("utf-8").split("## From inseq")[0]
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    classes = {n for cell in cells for n in re.findall(r"`([A-Z]\w+)", cell)}
    assert len(classes) > 5
    assert {n for n in classes if not hasattr(captum, n)} == set()
    options = {n for cell in cells for n in re.findall(r"\b(\w+)=", cell)}
    takes = {
        p
        for n in [*classes, "LLMAttributionResult"]
        for member in (
            getattr(captum, n, None),
            getattr(getattr(captum, n, None), "attribute", None),
        )
        if member is not None
        for p in inspect.signature(member).parameters
    }
    assert options - takes <= {"perturbations_per_eval"}  # passed on to its methods


def test_the_api_page_has_every_name() -> None:
    listed = re.findall(
        r"^::: attrfn\.text\.(\w+)$", (DOCS / "api/text.md").read_text("utf-8"), re.MULTILINE
    )
    public = {n for n, v in vars(text).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert set(listed) == public
    assert len(listed) == len(set(listed))
