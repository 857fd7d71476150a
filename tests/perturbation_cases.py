"""Perturbation methods with what they need, for tests of what they refuse."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from zoo import randn

import attrfn

X = randn(3, 2, 4)

NET = zoo.mlp()


def f(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1)).sum(1)


MASKED = {
    "feature_ablation": attrfn.feature_ablation,
    "feature_permutation": attrfn.feature_permutation,
    "shapley_values": attrfn.shapley_values,
    "shapley_value_sampling": attrfn.shapley_value_sampling,
    "kernel_shap": attrfn.kernel_shap,
    "lime": attrfn.lime,
    "interactions": attrfn.interactions,
    "sampled_interactions": functools.partial(attrfn.interactions, n_samples=2),
    "integrated_hessians": attrfn.integrated_hessians,
    "neuron_feature_ablation": lambda m, x, **o: attrfn.neuron_feature_ablation(
        NET, x[:, 0], layer="1", neuron=0, **o
    ),
}
FAMILY = {
    **MASKED,
    "occlusion": functools.partial(attrfn.occlusion, window=2),
    "rise": functools.partial(attrfn.rise, n_samples=3),
}

CAMS = {"ablation_cam": attrfn.ablation_cam, "score_cam": attrfn.score_cam}

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
