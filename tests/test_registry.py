"""The table is whole: every public method has a row, and every row explains something."""

from __future__ import annotations

import inspect

import capabilities
import models
import pytest
import torch
from helpers import assert_informative
from registry import REGISTRY, ROWS, Row, explain, needs, rows, rows_and_nets, trial

import attrfn
from attrfn.testing import _values as checks


def public() -> set[str]:
    """Every public function and class but `compile`, which takes methods (see test_compiled.py)."""
    return {
        name
        for name, v in vars(attrfn).items()
        if callable(v) and not name.startswith("_") and name != "compile"
        if not (isinstance(v, type) and issubclass(v, Exception))
    }


def test_every_public_callable_has_a_row() -> None:
    assert public() == {name for r in REGISTRY for name in r.covers}


def test_page_of_capabilities_is_whole() -> None:
    """Each public callable times each column: ticked, or with a reason (see conftest.py)."""
    page = capabilities.PAGE.read_text(encoding="utf-8")
    ticked = capabilities.found(page)
    assert {name for name, _ in ticked} == public()
    assert {cell for cell, good in ticked.items() if not good} <= capabilities.REASONS.keys()
    assert page == capabilities.page(ticked, public()), "run: make capabilities"


def test_ticks_without_a_test_are_noticed() -> None:
    """As conftest.py compares them after a run of all tests."""
    ticked = {("a", "vmap"): True, ("b", "vmap"): True, ("c", "vmap"): False}
    assert capabilities.unshown({("a", "vmap"): True}, ticked) == [("b", "vmap")]


def test_names_of_rows_are_unique() -> None:
    assert len(ROWS) == len(REGISTRY)


@rows(lambda r: r.name in r.covers)
def test_row_says_which_options_the_method_takes(r: Row) -> None:
    takes = inspect.signature(getattr(attrfn, r.name)).parameters
    said = {
        "target": r.target,
        "layer": r.layer,
        "neuron": r.neuron,
        "baselines": r.baselines is not None,
        "key": r.keyed,
        "stdevs": r.noisy,
        "chunk_size": r.chunked,
        "batching": r.batching,
        "create_graph": r.create_graph,
    }
    assert said == {name: name in takes for name in said}


@rows()
def test_options_are_keyword_only(r: Row) -> None:
    for name in r.covers:
        kinds = [p.kind for p in inspect.signature(getattr(attrfn, name)).parameters.values()]
        positional = sum(k is inspect.Parameter.POSITIONAL_OR_KEYWORD for k in kinds)
        assert positional <= 3
        assert inspect.Parameter.VAR_POSITIONAL not in kinds


@pytest.mark.capability("eager")
@rows_and_nets()
def test_row_explains_something(r: Row, net: models.Net) -> None:
    """Twice the same, bit for bit, whatever the global generator."""
    checks.result(trial(r, net)._replace(informative=False))
    result = explain(r, net)
    assert_informative(result)
    assert result.dtype == torch.float64
    if r.explains == "map":
        assert result.shape[:2] == (3, 1)
        return
    model, x = net.build(), net.inputs()
    if r.explains == "pairs":
        assert result.shape == (3, 3, 3)
        return
    like = {
        "input": x.shape,
        "layer": attrfn.layer_activation(model, x, layer="mid").shape,
        "layer input": attrfn.layer_activation(model, x, layer="mid", at="input").shape,
        "example": (3,),
        "features": (3, 3),
        "output": (3, models.CLASSES),
    }
    assert result.shape[r.batch_dim :] == like[r.explains]


@rows(lambda r: r.keyed)
def test_key_decides_the_random_rows(r: Row) -> None:
    checks.keys(trial(r, r.net))


@rows(lambda r: not r.keyed)
def test_other_rows_take_no_key(r: Row) -> None:
    assert "key" not in needs(r, r.net)


@rows(lambda r: r.baselines is not None)
def test_baselines_matter(r: Row) -> None:
    checks.baselines(trial(r, r.net))


@rows(lambda r: r.target)
def test_targets_matter_and_can_be_one_for_each_example(r: Row) -> None:
    checks.targets(trial(r, r.net))
