"""Pages of methods: each says when to use the method, when it misleads and what it costs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("gradients", "layers", "perturbation", "rules")
SAYS = ("When to use", "When it misleads", "Cost:")
# Sections of a method, by its page; the others explain arguments and mechanisms.
SECTIONS = {
    "gradients": """Gradient and saliency|Input times gradient|Integrated gradients|Gradient SHAP
        |Noise tunnel|Guided backpropagation and deconvolution""",
    "layers": "Layers|Neurons|Class activation maps",
    "perturbation": """Feature ablation|Occlusion|Feature permutation|Shapley values
        |Sampled Shapley values|KernelSHAP|LIME|RISE|Ablation-CAM|Score-CAM|Interactions
        |Integrated Hessians|Layers and neurons""",
    "rules": "DeepLIFT|DeepSHAP|Layer-wise relevance propagation",
}
CASES = [
    (page, name.strip()) for page, names in SECTIONS.items() for name in names.strip().split("|")
]


def text_of(page: str) -> str:
    return (DOCS / "methods" / f"{page}.md").read_text("utf-8")


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text_of(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("page", "name"), CASES)
def test_every_method_has_what_a_reader_needs(page: str, name: str) -> None:
    body = sections(page)[name]
    for said in SAYS:
        assert said in body, f"{page}.md, {name}: no {said!r}"
    assert "```math" in body
    assert re.search(r"https://(arxiv\.org|doi\.org)", body), "no paper"
    if name != "Input times gradient":  # the picture above it shows it, too
        assert "](../images/" in body, "no picture"


def test_sections_that_give_advice_are_all_checked() -> None:
    """A new method's section has to be listed above."""
    for page in PAGES:
        advising = {n for n, body in sections(page).items() if "When to use" in body}
        assert advising <= {name for p, name in CASES if p == page}


def test_names_of_captum_are_found_on_the_pages_of_methods() -> None:
    """Whoever searches the site for a class of Captum finds ours."""
    table = (DOCS / "captum.md").read_text("utf-8").split("## Methods")[1].split("## Options")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    classes = {name for cell in cells for name in re.findall(r"`([A-Z]\w+)[`(]", cell)}
    everything = "".join(text_of(page) for page in PAGES)
    elsewhere = {"FGSM", "PGD", "MinParamPerturbation", "AttackComparator", "TokenReferenceBase"}
    elsewhere |= {"DataLoaderAttribution"}
    assert len(classes) > 40
    # The layer and neuron forms of DeepLIFT and LRP are named by the method.
    forms = {name for name in classes if re.match(r"(Layer|Neuron)(Deep|LRP|Guided|Deconv)", name)}
    assert {c for c in classes - elsewhere - forms if f"`{c}`" not in everything} == set()


@pytest.mark.parametrize("page", PAGES)
def test_formulas_can_be_typeset(page: str) -> None:
    converter = pytest.importorskip("latex2mathml.converter")
    formulas = re.findall(r"^```math\n(.*?)\n```$", text_of(page), re.MULTILINE | re.DOTALL)
    assert formulas
    for formula in formulas:
        made = converter.convert(" ".join(formula.split()), display="block")
        assert "\\" not in re.sub(r"<[^>]*>", "", made), f"not understood: {made}"


def test_tables_of_html_stay_whole() -> None:
    """No row of a table is broken off by a formula or a list inside it."""
    for path in DOCS.rglob("*.md"):
        lines = path.read_text("utf-8").splitlines()
        for before, line in itertools.pairwise(lines):
            if re.match(r"^\|[-| ]+\|$", line):
                assert before.count("|") == line.count("|"), f"{path.name}: {before}"
