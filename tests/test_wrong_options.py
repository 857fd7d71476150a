"""Every option of every public method refuses wrong values, in one sentence that names the option.

The methods are those of the registry and their options those of their signatures; the wrong values
are in ``wrong_options.py``. A run of the tests takes a sample of the grid, ``make fuzz`` all of it.
"""

from __future__ import annotations

import re

import pytest
import wrong_options
from test_registry import public
from wrong_options import BEGINS, WRONG, Cell, call, cells, options

METHODS = sorted(public())
LONGEST = 300

# Cells that fail today: another exception, no name of the option, or no exception at all. The table
# may only shrink: a cell that has become good fails here until it is struck out. A new method fails
# in the cells of the options that it shares, so that their number grows with each.
EVERY = " ".join(METHODS)
WITHOUT_LAYER = """
completeness_delta deconvolution deep_lift deep_lift_shap feature_ablation feature_permutation
gradient gradient_shap guided_backprop guided_grad_cam input_x_gradient integrated_gradients
integrated_hessians interactions kernel_shap lime lrp occlusion rise saliency
shapley_value_sampling shapley_values with_rules
"""
KNOWN = {
    # Called, whatever it is.
    **{("model_fn", what): WITHOUT_LAYER for what in ("none", "int", "string")},
    **{("method", what): EVERY for what in ("none", "int", "string")},
    **{("reshape", what): EVERY for what in ("int", "string")},
    # Left to the model.
    **{("inputs", what): "layer_activation" for what in ("none", "0-d", "lengths")},
    # Left to torch.
    **{("interpolate_mode", what): EVERY for what in ("int", "no such")},
    ("neuron", "none"): "neuron_feature_ablation",
}
KNOWN_CELLS = 102  # of the grid, in KNOWN: more only by the cells of a new method

CELLS = list(cells(METHODS))


def known(cell: Cell) -> bool:
    return cell.name in KNOWN.get((cell.option, cell.what), "").split()


def complaint(cell: Cell) -> str:
    """What is wrong with the answer to a wrong value; empty if it is as it should be."""
    try:
        call(cell)
    except (TypeError, ValueError) as error:
        message = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "no exception"
    name = "model(_fn)?" if cell.option == "model_fn" else cell.option
    if not re.search(rf"\b{name}\b", message):
        return f"no {cell.option} in: {message}"
    if "\n" in message or len(message) > LONGEST:
        return f"{len(message)} characters, {message.count(chr(10)) + 1} lines: {message}"
    begin = BEGINS.get(cell.option, "").format(repr(WRONG[cell.option][cell.what]))
    return "" if message.startswith(begin) else f"not {begin!r} first: {message}"


@pytest.mark.parametrize(
    "cell",
    [pytest.param(c, id=str(c), marks=[] if c.sample else [pytest.mark.fuzz]) for c in CELLS],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_value(cell: Cell) -> None:
    found = complaint(cell)
    if known(cell):
        assert found, "refused as it should be: strike it out of KNOWN"
    else:
        assert not found


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_wrong_values(name: str) -> None:
    missing = [option for option in options(name) if option not in WRONG]
    assert not missing, "give them a line in wrong_options.WRONG"


def test_tables_name_what_there_is() -> None:
    """No option, value or method that is not in the grid; and no more known cells than before."""
    grid = {(c.option, c.what) for c in CELLS}
    assert grid == {(option, what) for option in WRONG for what in WRONG[option]}
    assert KNOWN.keys() <= grid
    assert BEGINS.keys() <= WRONG.keys()
    assert sum(map(known, CELLS)) == KNOWN_CELLS


def test_the_sample_has_every_option_and_value() -> None:
    sample = [c for c in CELLS if c.sample]
    assert {(c.name, c.option) for c in sample} == {(c.name, c.option) for c in CELLS}
    assert {(c.option, c.what) for c in sample} == {(c.option, c.what) for c in CELLS}
    assert len(sample) < len(CELLS) / 3
    assert wrong_options.FIELDS.keys() <= set(METHODS)
