"""Perturbation methods with what they need, for tests of what they refuse."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import pytest
import torch
import zoo
from registry import REGISTRY, Row
from torch import Tensor
from zoo import randn

import attrfn

X = randn(3, 2, 4)

NET = zoo.mlp()


def f(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1)).sum(1)


def _of(r: Row) -> Any:
    """The public method; of the row's options those that it cannot do without, or not quickly."""
    method = getattr(attrfn, r.name)
    if r.neuron:
        return lambda m, x, **o: method(NET, x[:, 0], layer="1", neuron=0, **o)
    needed = {k: v for k, v in r.options.items() if k in ("window", "grid")}
    return functools.partial(method, **needed, **({"n_samples": 3} if r.images else {}))


def takes(r: Row, option: str) -> bool:
    return option in inspect.signature(getattr(attrfn, r.name)).parameters


PERTURBING = [
    r
    for r in REGISTRY
    if r.name in r.covers and r.chunked and not r.gradient and r.explains in ("input", "pairs")
]
MASKED = {
    r.name: _of(r)
    for r in REGISTRY
    if r.name in r.covers and takes(r, "feature_mask") and not takes(r, "attributions")
}
MASKED["sampled_interactions"] = functools.partial(attrfn.interactions, n_samples=2)
FAMILY = {**MASKED, **{r.name: _of(r) for r in PERTURBING if r.name not in MASKED}}

CAMS = {
    r.name: r.method for r in REGISTRY if r.name in r.covers and takes(r, "upsample") and r.batching
}

family = pytest.mark.parametrize("method", FAMILY.values(), ids=FAMILY)


def refused(
    kind: type[Exception] | tuple[type[Exception], ...],
    name: str,
    got: object,
    what: Any,
    *args: Any,
    **options: Any,
) -> None:
    """One line that begins with the argument, then has what came, then what was expected."""
    pattern = rf"^{re.escape(name)}\b.*{re.escape(str(got))}.*\bexpected\b"
    with pytest.raises(kind, match=pattern) as error:
        what(*args, **options)
    assert "\n" not in str(error.value)


PLAIN = [m for name, m in FAMILY.items() if name not in ("integrated_hessians",)]
PLAIN.remove(MASKED["neuron_feature_ablation"])
