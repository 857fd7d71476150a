"""Every argument of the attacks with every odd value: an answer, or a sentence that names it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from odd_values import ODD
from torch import Tensor
from zoo import mlp, randn

from attrfn import robust


def _stronger(inputs: Any, value: Tensor, keys: Tensor) -> Any:
    return inputs + value.reshape(-1, *[1] * (inputs.ndim - 1))


def _first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


COMMON = {"model_fn": mlp(), "inputs": randn(3, 4), "target": torch.tensor([0, 1, 2])}
BY_GRADIENT = {"objective": "margin", "targeted": False, "bounds": None, "mask": None}
RUNS = {"n_attempts": 2, "key": 0, "chunk_size": "auto"}
GIVEN: dict[str, dict[str, Any]] = {
    "fgsm": {**COMMON, **BY_GRADIENT, "epsilon": 0.1, "create_graph": False},
    "pgd": {
        **{**COMMON, **BY_GRADIENT, "radius": 0.1, "step_size": None, "norm": "linf", "key": 0},
        **{"n_steps": 1, "random_start": True, "n_restarts": 2, "chunk_size": "auto"},
    },
    "min_param_perturbation": {
        **{**COMMON, **RUNS, "attack": _stronger, "values": [0.1, 0.2]},
        **{"correct": None, "mode": "linear"},
    },
    "attack_comparator": {
        **{k: v for k, v in {**COMMON, **RUNS}.items() if k != "target"},
        **{"attacks": {"same": lambda inputs, keys: inputs}, "metric": _first},
    },
}
CELLS = [(name, argument) for name, given in GIVEN.items() for argument in given]

# With odd inputs or an odd model the functions of this file fail, and the message names those.
ALSO = {"inputs": "attack|metric", "model_fn": "model|metric"}


@pytest.mark.filterwarnings("ignore")  # torch warns of kinds of tensors that are odd
@pytest.mark.parametrize(("name", "argument"), CELLS)
def test_an_odd_value_is_taken_or_named(name: str, argument: str) -> None:
    for what, value in ODD.items():
        try:
            getattr(robust, name)(**{**GIVEN[name], argument: value()})
        except (TypeError, ValueError) as error:
            text = str(error)
            words = "|".join(filter(None, [argument, ALSO.get(argument)]))
            assert re.search(rf"\b({words})\b", text), (what, text)
            assert len(text) <= 300, (what, text)
            assert "\n" not in text, (what, text)
