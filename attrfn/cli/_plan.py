"""From the words of a command line to a method, a model and data that fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

from attrfn._explain.introspect import is_over_distribution
from attrfn.cli._columns import Target
from attrfn.cli._command import UsageError
from attrfn.cli._data import Ask, Data
from attrfn.cli._method import (
    Chosen,
    check_complete,
    of_dtype,
    of_predicted,
    read_tensor,
    summed_tokens,
)
from attrfn.cli._model import Loaded, dtype_of, root_of
from attrfn.cli._rows import mean_inputs


class Plan(NamedTuple):
    """What is run on what.

    Attributes:
        chosen: The method.
        data: The data set, with the columns that the method takes.
        given: The target and the baselines, where they are not columns.
    """

    chosen: Chosen
    data: Data
    given: dict[str, Any]


def with_target(ask: Ask, target: Target) -> Ask:
    """What is asked of the data, with the column of the target.

    Raises:
        UsageError: The target is named twice.
    """
    if target.column is None:
        return ask
    if "target" in ask.columns:
        raise UsageError("--target and --columns both name the target: drop one")
    return ask._replace(columns={**ask.columns, "target": target.column})


def check_words(chosen: Chosen, target: Target, ask: Ask) -> None:
    """Refuse what can be seen to be wrong before anything is read.

    Raises:
        UsageError: The method does not take what is given, or needs what is not.
    """
    aims = (target.value is not None, target.column is not None, target.predicted)
    if any(aims) and not chosen.takes("target"):
        raise UsageError(f"--target is given, and --method {chosen.name} takes none")
    if ask.baselines and not chosen.takes("baselines"):
        raise UsageError(f"--baselines is given, and --method {chosen.name} takes none")
    check_complete(chosen, {"target", *ask.columns, *(["baselines"] if ask.baselines else [])})


def planned(
    chosen: Chosen, target: Target, ask: Ask, loaded: Loaded, data: Data, progress: bool
) -> Plan:
    """The method as it is run.

    Raises:
        UsageError: The method does not fit the data.
        ValueError: The prediction of a model in training mode is asked for.
    """
    given = {} if target.value is None else {"target": target.value}
    if data.kind == "text":
        chosen, data = _for_texts(chosen, data)
    elif ask.baselines:
        given["baselines"] = _baselines(ask.baselines, loaded, data, progress)
    if target.predicted:
        refuse_training(loaded)
        chosen = chosen._replace(method=of_predicted(chosen.method))
    if data.casts and (dtype := dtype_of(loaded.model)) is not None:
        chosen = chosen._replace(method=of_dtype(chosen.method, dtype))
    return Plan(chosen, data, given)


def refuse_training(loaded: Loaded) -> None:
    """Refuse the prediction of a model in training mode.

    Raises:
        ValueError: It is in training mode.
    """
    root = root_of(loaded.model)
    if root is not None and root.training:
        raise ValueError(
            "--target is predicted, and MODEL is in training mode: return model.eval()"
        )


def _for_texts(chosen: Chosen, data: Data) -> tuple[Chosen, Data]:
    """The method for tokens, and the columns that it takes."""
    if is_over_distribution(chosen.method):
        raise UsageError(
            f"--method {chosen.name} takes a sample of baselines, which texts do not have: choose "
            "one with a baseline for each example, such as integrated_gradients"
        )
    columns = dict(data.columns or {})
    if not chosen.takes("baselines"):
        del columns["baselines"]
    return summed_tokens(chosen, cast(str, data.layer)), data._replace(columns=columns)


def _baselines(text: str, loaded: Loaded, data: Data, progress: bool) -> Any:
    if text == "zeros":
        return 0
    if text == "mean":
        return mean_inputs(loaded.model, data, progress)
    if text in ("pad", "mask"):
        raise UsageError(f"--baselines is {text}, which is for texts: give zeros, mean or a FILE")
    return read_tensor(Path(text), "--baselines")
