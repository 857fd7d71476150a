"""The pages of the metrics name what there is, and the better end that the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from metrics_registry import METRICS

from attrfn import metrics
from attrfn.metrics import similarity

DOCS = Path(__file__).parents[1] / "docs"
NAMES = {m.name for m in METRICS} | {"compare", "Comparison", "Curve"}

# The classes of Quantus 0.6.
QUANTUS = """
    AUC AttributionLocalisation AvgSensitivity BatchSufficiency Completeness Complexity
    Consistency Continuity EffectiveComplexity EfficientMPRT FaithfulnessCorrelation
    FaithfulnessEstimate Focus IROF Infidelity InputInvariance LocalLipschitzEstimate MPRT
    MaxSensitivity ModelParameterRandomisation Monotonicity MonotonicityCorrelation
    NonSensitivity PixelFlipping PointingGame ROAD RandomLogit RegionPerturbation
    RelativeInputStability RelativeOutputStability RelativeRepresentationStability
    RelevanceMassAccuracy RelevanceRankAccuracy Selectivity SensitivityN SmoothMPRT Sparseness
    Sufficiency TopKIntersection
"""


def rows(page: str) -> list[list[str]]:
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_name_every_metric_and_its_better_end() -> None:
    table = {c[0].strip("` "): c for c in rows("metrics.md") if re.fullmatch(r"`\w+`", c[0])}
    assert set(table) == NAMES - {"compare", "Comparison", "Curve"} - set(similarity.__all__)
    for name, cells in table.items():
        end = getattr(getattr(metrics, name), "better", None)
        assert cells[3] == (end or ""), name


def test_the_api_page_has_every_name() -> None:
    text = (DOCS / "api" / "metrics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: attrfn\.metrics\.(\w+)$", text, re.MULTILINE))
    assert listed == NAMES - set(similarity.__all__) - {"completeness_delta"} | {"similarity"}


@pytest.mark.parametrize("name", QUANTUS.split())
def test_every_class_of_quantus_is_mapped(name: str) -> None:
    """To names that exist, with options that they have, or to a reason."""
    (found,) = [c for c in rows("quantus.md") if re.search(rf"`{name}(\(|`)", c[0])]
    calls = re.findall(r"\b([a-z_]+)\b(?=[(`])", found[1])
    ours = [n for n in calls if n not in ("noise_tunnel", "sum")]
    assert ours or found[1] == "not there"
    assert all(hasattr(metrics, n) for n in ours)
