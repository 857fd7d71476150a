"""Wrong values for the options of every public method: one table for all methods.

``cells`` makes the grid of methods, options and values from the signatures; ``call`` makes one call
of it on the net and with the other options that the method's row of the registry has.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from models import CLASSES, targets
from registry import ROWS, Row, needs, primary
from torch import nn

import attrfn

NAN = float("nan")
FLOATS = torch.ones(2)
COUNTS = {"none": None, "zero": 0, "negative": -1, "fraction": 2.5, "string": "5", "bool": True}
FLAGS = {
    "string": "False",
    "int": 1,
    "none": None,
    "array": np.True_,
    "tensor": torch.tensor(True),
}
FLAG_OPTIONS = (
    *("absolute", "antithetic", "create_graph", "draw_baselines", "frozen"),
    *(
        "check_completeness",
        "multiply_by_inputs",
        "per_baseline",
        "per_channel",
        "progress",
        "relu",
    ),
    *("return_input_shape", "return_stderr"),
)
NOT_CALLABLE = {"int": 3, "string": "a"}
MASKS = {
    "string": "a",
    "floats": torch.zeros(1),
    "shape": torch.zeros(7, 5, dtype=torch.long),
    "tree": {"a": torch.zeros(1, dtype=torch.long)},
}
VALUES = {
    "string": "zero",
    "shape": torch.zeros(7, 5, dtype=torch.float64),
    "tree": {"a": 0.0},
    "object": object(),
}

ALGEBRA = (
    *("each_output", "over_baselines", "ensemble", "average", "relative_to", "absolute"),
    *("normalized", "pooled", "chain", "contrast"),
)
WRONG: dict[str, dict[str, Any]] = {
    "n": {"zero": 0, "fraction": 1.5, "string": "a", "bool": True},
    "reduce": {"int": 1, "no such": "sum"},
    "stacked": FLAGS,
    "weights": {"two": (1, 2), "zero": (0,), "string": "a", "int": 1, "texts": ("a",)},
    "methods": {},
    "wrappers": {},
    "reference": {"none": None, "int": 3},
    "how": {"none": None, "no such": "size"},
    "dims": {"none": None, "examples": 0, "too large": 9, "string": "a", "nothing": ()},
    "a": {"none": None, "string": "a", "too large": 99},
    "b": {"none": None, "string": "a", "too large": 99},
    "model_fn": {"none": None, "int": 3, "string": "model"},
    "model": {"none": None, "int": 3, "string": "model"},
    "method": {"none": None, "int": 3, "string": "gradient"},
    "inputs": {
        "none": None,
        "string": "x",
        "list of floats": [1.0, 2.0],
        "array": np.ones((3, 4)),
        "0-d": torch.tensor(1.0),
        "lengths": (torch.ones(3, 4), torch.ones(2, 4)),
    },
    "attributions": {
        "none": None,
        "list of floats": [1.0],
        "length": torch.ones(2, 4),
        "0-d": torch.tensor(1.0),
    },
    "target": {
        "too large": CLASSES,
        "too small": -CLASSES - 1,
        "string": "cat",
        "float": 1.5,
        "empty": slice(CLASSES, CLASSES + 5),
        "empty in a list": [slice(1, 1), 0, 1],
        "floats": torch.ones(3),
        "length": torch.tensor([0, 1]),
        "list too long": [0, 1, 0, 1],
    },
    "sites": {"none": None, "int": 1, "no such": ["nope"], "number in a list": [3]},
    "edits": {"none": None, "list": ["mid"], "no such": {"nope": None}, "number": {"mid": 3}},
    "value": {"int": 1, "string": "a"},
    "dim": {"none": None, "fraction": 0.5, "string": "a", "too large": 9},
    "layer": {"none": None, "int": 1, "class": nn.Linear, "no such": "nope", "other's": nn.Tanh()},
    "neuron": {
        "none": None,
        "string": "a",
        "float": 1.5,
        "too large": 99,
        "too many": (0,) * 9,
        "empty": slice(50, 60),
    },
    "at": {"none": None, "int": 1, "no such": "out"},
    "rows": {"int": 1, "no such": "batch_first", "bool": True},
    "call": {"negative": -1, "too large": 9, "fraction": 0.5, "string": "0", "bool": True},
    "baselines": VALUES,
    "layer_baselines": VALUES,
    "feature_mask": MASKS,
    "layer_mask": MASKS,
    "n_features": {"negative": -1, "fraction": 2.5, "string": "a", "bool": True},
    "n_samples": COUNTS,
    "n_steps": COUNTS,
    "chunk_size": {what: v for what, v in COUNTS.items() if v is not None},
    **dict.fromkeys(FLAG_OPTIONS, FLAGS),
    "batching": {"none": None, "int": 1, "no such": "folded"},
    "key": {
        "none": None,
        "float": 1.5,
        "string": "7",
        "bool": True,
        "floats": FLOATS,
        "shape": torch.zeros(3, dtype=torch.long),
        "length": torch.zeros(4, 2, dtype=torch.long),
    },
    "stdevs": {"none": None, "string": "1", "bool": True, "negative": -0.1, "nan": NAN, **VALUES},
    "tolerance": {"zero": 0, "negative": -0.1, "nan": NAN, "string": "a"},
    "quadrature": {"none": None, "int": 3, "no such": "simpson"},
    "upsample": {"int": 3, "no such": "cubic"},
    "interpolate_mode": {"int": 3, "no such": "cubic"},
    "reshape": NOT_CALLABLE,
    "rule": {"none": None, "int": 3, "no such": "nope"},
    "rules": {"int": 3, "string": "epsilon"},
    "scores": {"int": 3, "no such": "parts", "matrix": attrfn.interactions, "callable": len},
    "permute": NOT_CALLABLE,
    "index": {"none": None, "int": 3, "no such": "banzhaf"},
    "surrogate": NOT_CALLABLE,
    "similarity": NOT_CALLABLE,
    "perturb": NOT_CALLABLE,
    "transform": NOT_CALLABLE,
    "kind": {"none": None, "int": 3, "no such": "mean"},
    "window": {"zero": 0, "fraction": 1.5, "string": "a", "length": (1,) * 9, "too large": 99},
    "stride": {"zero": 0, "fraction": 1.5, "string": "a", "length": (1,) * 9},
    "grid": COUNTS,
    "p": {"zero": 0.0, "above one": 1.5, "negative": -0.1, "string": "a", "nan": NAN},
}
"""By option and by what is wrong with the value."""

RIGHT = {("feature_scores", "attributions", "length")}
RIGHT |= {
    (name, "n_samples", "none")
    for name in ("interactions", "kernel_shap", "lime", "shapley_value_sampling")
}
TAKE_ARRAYS = [
    "completeness_delta",
    "feature_ablation",
    "feature_permutation",
    "interactions",
    "kernel_shap",
    "lime",
]
TAKE_ARRAYS += ["neuron_feature_ablation", "occlusion", "rise", "shapley_value_sampling"]
TAKE_ARRAYS += ["shapley_values"]
RIGHT |= {(name, "inputs", "array") for name in TAKE_ARRAYS}
"""Cells whose value is right for that method."""

FIELDS = {"Split": ("head", "tail"), "Site": ("layer", "at", "call")}
"""Of a class: what it holds, which no one passes in, or what is wrong only where it is used."""

BEGINS = {
    **{flag: f"{flag} is {{}}, expected True or False" for flag in FLAG_OPTIONS},
    "at": "at is {}, expected 'input' or 'output'",
    "batching": "batching is {}, expected 'fold', 'vm",
    "chunk_size": "chunk_size is {}, expected None (all at once), ",
    "grid": "grid is {}, expected an int of at least ",
    "index": "index is {}, expected ",
    "kind": "kind is {}, expected 'smoothgrad', 'smoothgrad_sq', ",
    "n_features": "n_features is {}, expected ",
    "n_samples": "n_samples is {}, expected an int of at least ",
    "n_steps": "n_steps is {}, expected an int of at least ",
    "quadrature": "quadrature is {}, expected one of gauss_legendre, riemann_left, ",
    "rows": "rows is {}, expected None, 'examples', 'time_first' or a callable",
    "rule": "rule is {}, expected ",
    "tolerance": "tolerance is {}, expected a number above 0 in units of the output",
    "upsample": "upsample is {}, expected ",
}
"""How messages begin, with the value in the place of {}, where all methods say the same."""


class Cell(NamedTuple):
    """One wrong value of one option of one method; ``sample`` tells whether every run has it."""

    name: str
    option: str
    what: str
    sample: bool

    def __str__(self) -> str:
        return f"{self.name}-{self.option}-{self.what}"


def options(name: str) -> list[str]:
    """The parameters of a public callable, by its signature."""
    found = inspect.signature(getattr(attrfn, name)).parameters
    return [option for option in found if option not in FIELDS.get(name, ())]


def cells(names: list[str]) -> Iterator[Cell]:
    """The grid; its sample has every option of every method, and every value of every option.

    The methods that have an option take turns at its values.
    """
    having = Counter(option for name in names for option in options(name))
    turn: Counter[str] = Counter()
    for name in names:
        for option in options(name):
            values = list(WRONG.get(option, {}))
            wrong = [what for what in values if (name, option, what) not in RIGHT]
            m, n = turn[option], having[option]
            own = values[m % len(values)] if values else None
            own = wrong[m % len(wrong)] if own not in wrong and wrong else own
            for k, what in enumerate(values):
                if what in wrong:
                    yield Cell(name, option, what, what == own or k % n == m)
            turn[option] += 1


def call(cell: Cell) -> None:
    """Call the method with the wrong value, and with right ones for all else."""
    r, wrong = row_of(cell.name), {cell.option: WRONG[cell.option][cell.what]}
    if cell.name in _MADE:
        _MADE[cell.name](r, wrong)
        return
    method = getattr(attrfn, cell.name)
    given = {**given_to(r, method), **wrong}
    model, x = given.pop("model_fn"), given.pop("inputs")
    first = [given.pop("attributions")] if "attributions" in given else []
    method(model, x, *first, **given)


def row_of(name: str) -> Row:
    return (
        ROWS[name] if name in ROWS else next(ROWS[r] for r in primary() if name in ROWS[r].covers)
    )


def given_to(r: Row, method: Callable[..., Any]) -> dict[str, Any]:
    takes = inspect.signature(method).parameters
    given = {k: v for k, v in needs(r, r.net).items() if k in takes}
    x = r.net.inputs()
    given |= {"model_fn": r.net.build(), "inputs": x}
    if "target" in takes:
        given["target"] = targets(len(x))
    if "feature_mask" in takes:
        given["feature_mask"] = torch.arange(x[0].numel()).reshape(x.shape[1:]) % 3
    if "attributions" in takes:  # with a feature_mask they are equal within each feature
        given["attributions"] = torch.zeros_like(x)
    if "scores" in takes:
        given["scores"] = "shared"
    return given


def _feature_scores(r: Row, wrong: dict[str, Any]) -> None:
    given = given_to(r, attrfn.feature_scores) | wrong
    del given["model_fn"], given["inputs"]
    attrfn.feature_scores(**given)


def _tunnel(r: Row, wrong: dict[str, Any]) -> None:
    given = {"method": functools.partial(attrfn.integrated_gradients, n_steps=2), "n_samples": 2}
    given |= wrong
    baselines = r.net.pool if given.get("draw_baselines") else None
    tunnel = attrfn.noise_tunnel(given.pop("method"), **given)
    tunnel(r.net.build(), r.net.inputs(), target=0, baselines=baselines)


def _made_by(name: str) -> Callable[[Row, dict[str, Any]], None]:
    """What shows a wrong option of a function from methods to a method."""

    def run(r: Row, wrong: dict[str, Any]) -> None:
        model, x = r.net.build(), r.net.inputs()
        if name == "contrast":
            attrfn.gradient(model, x, target=attrfn.contrast(**{"a": 1, "b": 0, **wrong}))
            return
        given: dict[str, Any] = {"method": attrfn.input_x_gradient, **wrong}
        options = {} if name == "each_output" else {"target": 0}
        if name == "average":
            made = attrfn.average(given.pop("method"), **given)
        elif name == "chain":
            made = attrfn.chain(given["method"], attrfn.absolute)
        else:
            needed = {"pooled": {"dims": 1}, "relative_to": {"reference": attrfn.gradient}}
            made = getattr(attrfn, name)(**needed.get(name, {}) | given)
        if name == "over_baselines":
            options["baselines"] = r.net.pool
        made([model, model] if name == "ensemble" else model, x, **options)

    return run


def _at_layer(r: Row, wrong: dict[str, Any]) -> None:
    given = {"method": attrfn.gradient, "layer": "mid", **wrong}
    attrfn.at_layer(**given)(r.net.build(), r.net.inputs(), target=0)


def _at_neuron(r: Row, wrong: dict[str, Any]) -> None:
    given = {"method": attrfn.gradient, "layer": "mid", "neuron": r.net.neuron, **wrong}
    attrfn.at_neuron(**given)(r.net.build(), r.net.inputs())


def _activations(r: Row, wrong: dict[str, Any]) -> None:
    given = {"model": r.net.build(), "sites": ["mid"], **wrong}
    attrfn.activations(**given)(r.net.inputs())


def _intervene(r: Row, wrong: dict[str, Any]) -> None:
    given = {"model": r.net.build(), "edits": {"mid": None}, **wrong}
    attrfn.intervene(**given)(r.net.inputs())


def _marked(mark: Callable[..., Any]) -> Callable[[Row, dict[str, Any]], None]:
    return lambda r, wrong: mark(**{"value": torch.ones(3), **wrong})


def _split(r: Row, wrong: dict[str, Any]) -> None:
    head, tail = attrfn.split(**{"model": r.net.build(), "layer": "mid", **wrong})
    x = r.net.inputs()
    tail(head(x), x)


def _with_rules(r: Row, wrong: dict[str, Any]) -> None:
    given = {"model_fn": r.net.build(), "rules": attrfn.rules.rescale(), **wrong}
    attrfn.gradient(attrfn.with_rules(**given), r.net.inputs(), target=0)


_MADE = {
    "feature_scores": _feature_scores,
    "noise_tunnel": _tunnel,
    **{name: _made_by(name) for name in ALGEBRA},
    "at_layer": _at_layer,
    "at_neuron": _at_neuron,
    "split": _split,
    "activations": _activations,
    "intervene": _intervene,
    "shared": _marked(attrfn.shared),
    "per_example": _marked(attrfn.per_example),
    "with_rules": _with_rules,
}
"""What makes a method or a function, and what shows a wrong option of it."""
