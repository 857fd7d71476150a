"""Every method of the library passes check_method: on a random model, or on many with ``fuzz``.

The checks themselves are those that the transform matrix runs on its nets (``registry.trial``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from registry import REGISTRY, Row

from attrfn import testing
from attrfn.testing._run import CHECKS

# What a row is not: one number for each element, or rows without each other.
LEFT_OUT = {r.name for r in REGISTRY if r.mixes or r.batch_dim or r.explains in ("output",)}
LEFT_OUT |= {r.name for r in REGISTRY if r.explains in ("pairs", "features", "example")}

# Their derivatives are not those of the attributions: coefficients of rules count as constants.
FROZEN = {r.name for r in REGISTRY if r.frozen}

# Properties that a check cannot ask of a row, with the reason.
EXCEPT: dict[str, dict[str, str]] = {
    "occlusion": {"pytrees": "a window is for inputs of its rank"},
    "rise": {"pytrees": "a mask is for images of one size"},
    "score_cam": {"pytrees": "a map masks each tensor in the tensor's size"},
    "guided_grad_cam": {"pytrees": "a map is enlarged to each tensor's size"},
    "grad_cam_plus_plus": {"pytrees": "a map is enlarged to the first tensor's size"},
    "layer_cam": {"pytrees": "likewise"},
    "shapley_values": {"pytrees": "the row groups the elements of each tree in its own way"},
    "lime_lasso": dict.fromkeys(("keys", "baselines", "targets"), "0 on small outputs"),
}


def bound(r: Row) -> Callable[..., Any]:
    """The method with the options of the row."""
    return functools.partial(r.method, **r.options) if r.options else r.method


def needs(r: Row) -> set[str]:
    """What the row needs, in the words of check_method."""
    found = {"target"} if r.target else set()
    found |= {"layer"} if r.layer else set()
    found |= {"neuron"} if r.neuron else set()
    found |= {"relu"} if r.relu else set()
    found |= {"images"} if r.spatial else set()
    found |= {"key"} if r.keyed else set()
    found |= {"pool"} if r.baselines == "pool" else set()
    found |= {"baselines"} if r.baselines == "point" else set()
    return found


def checks_of(r: Row) -> list[str]:
    """The checks that hold for a row."""
    left = set(EXCEPT.get(r.name, ()))
    left |= {"jvp", "grad", "parameters"} if r.frozen else set()
    return [name for name in CHECKS if name not in left and name != "compile"]


def check(r: Row, checks: list[str], max_examples: int) -> None:
    testing.check_method(
        bound(r),
        needs=needs(r),
        checks=checks,
        axioms=["batch_independence"],
        max_examples=max_examples,
        tolerance=1e-5,
    )


ROWS = [r for r in REGISTRY if r.name not in LEFT_OUT]


@pytest.mark.parametrize("i", range(len(ROWS)), ids=[r.name for r in ROWS])
def test_methods_pass_a_check(i: int) -> None:
    """One of each method, on one random model; test_registry.py and others run them on the nets."""
    names = checks_of(ROWS[i])
    check(ROWS[i], [names[(5 * i) % len(names)]], max_examples=1)


@pytest.mark.fuzz
@pytest.mark.parametrize("r", ROWS, ids=lambda r: r.name)
def test_methods_pass_all_checks(r: Row) -> None:
    check(r, checks_of(r), max_examples=8)
