"""Metrics of a whole data set, as states that batches are added to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from attrfn._explain.said import main_tensor
from attrfn._torch.say import say
from attrfn.data._columns import BadRow


class Metric(Protocol):
    """A number of a whole data set; an object with these four functions is one."""

    def init(self) -> Any:
        """The state before any example."""

    def update(self, state: Any, outputs: Any, target: Tensor | None) -> Any:
        """The state after a batch: outputs of the model, and the targets (B,)."""

    def merge(self, a: Any, b: Any) -> Any:
        """The state after the examples of both, those of ``a`` first."""

    def compute(self, state: Any) -> Any:
        """The number."""


def metric_of(metric: Any) -> Metric:
    """The metric that an argument stands for: itself, or a function of all outputs.

    Raises:
        TypeError: It stands for none.
    """
    if isinstance(metric, type):
        raise TypeError(
            f"metric is the class {metric.__name__}, expected an object of it, such as "
            "attrfn.data.Accuracy()"
        )
    if all(callable(getattr(metric, name, None)) for name in ("init", "update", "compute")):
        found: Metric = metric
        return found
    if callable(metric):
        return _OfAll(metric)
    raise TypeError(
        f"metric is {say(metric)}, expected an object with init, update, merge and compute such as "
        "attrfn.data.Accuracy(), or a function (outputs, target) of all outputs"
    )


class _Parts:
    """A state of pairs of outputs and targets, which is kept."""

    def init(self) -> list[tuple[Tensor, Tensor | None]]:
        """No examples."""
        return []

    def merge(self, a: list[Any], b: list[Any]) -> list[Any]:
        """The examples of both."""
        return [*a, *b]


class _OfAll(_Parts):
    """A function of all outputs and targets."""

    def __init__(self, function: Callable[[Tensor, Tensor | None], Any]) -> None:
        self._function = function

    def update(self, state: list[Any], outputs: Tensor, target: Tensor | None) -> list[Any]:
        return [*state, (outputs, target)]

    def compute(self, state: list[Any]) -> Any:
        outputs, target = _joined(state)
        return self._function(outputs, target)


class _Mean:
    """A mean over the examples, with a sum and a count as its state."""

    def init(self) -> tuple[float, int]:
        """No examples."""
        return 0.0, 0

    def merge(self, a: tuple[float, int], b: tuple[float, int]) -> tuple[float, int]:
        """The examples of both."""
        return a[0] + b[0], a[1] + b[1]

    def compute(self, state: tuple[float, int]) -> float:
        """The mean."""
        return state[0] / state[1] if state[1] else float("nan")


class Accuracy(_Mean):
    """The share of examples whose greatest output is the target, or of (B,) outputs above 0.

    Example:
        >>> import torch, attrfn.data
        >>> accuracy = attrfn.data.Accuracy()
        >>> state = accuracy.update(accuracy.init(), torch.eye(3), torch.tensor([0, 1, 0]))
        >>> round(accuracy.compute(state), 4)
        0.6667
    """

    def update(
        self, state: tuple[float, int], outputs: Tensor, target: Tensor | None
    ) -> tuple[float, int]:
        """The state with a batch more."""
        target = _needed(target, "Accuracy")
        outputs = _tensor(outputs, "Accuracy")
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            said = (outputs.reshape(-1) > 0).long()
        else:
            said = outputs.argmax(1)
            _check_classes(outputs, target)
        right = said == target.to(said.device).reshape(said.shape)
        return self.merge(state, (float(right.sum()), len(outputs)))


class Loss(_Mean):
    """The mean of a loss over the examples.

    Args:
        loss: From outputs and targets to one number for each example, (B,); ``None``: the
            cross-entropy of logits (B, K).

    Example:
        >>> import torch, attrfn.data
        >>> loss = attrfn.data.Loss(lambda z, y: (z - y) ** 2)
        >>> state = loss.update(loss.init(), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
        >>> loss.compute(state)
        2.5
    """

    def __init__(self, loss: Callable[[Tensor, Tensor | None], Tensor] | None = None) -> None:
        self._loss = _cross_entropy if loss is None else loss

    def update(
        self, state: tuple[float, int], outputs: Tensor, target: Tensor | None
    ) -> tuple[float, int]:
        """The state with a batch more."""
        values: Any = self._loss(outputs, target)
        main = main_tensor(outputs)
        rows = main.shape[:1] if isinstance(main, Tensor) else None  # of a dict nothing is known
        one_each = isinstance(values, Tensor) and values.ndim == 1
        if not one_each or rows not in (None, values.shape):
            raise ValueError(
                f"loss returned {say(values)}, expected one number for each example: pass "
                "reduction='none'"
            )
        return self.merge(state, (float(values.double().sum()), len(values)))


class AUC(_Parts):
    """The area under the ROC curve: P(score of a positive > that of a negative), ties half.

    It keeps one score and one target for each example, and nothing else of the data.

    Args:
        score: From outputs to scores (B,); ``None``: outputs (B,), or of (B, 2) the second less the
            first.

    Example:
        >>> import torch, attrfn.data
        >>> auc = attrfn.data.AUC()
        >>> z, y = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])
        >>> auc.compute(auc.update(auc.init(), z, y))
        0.75
    """

    def __init__(self, score: Callable[[Tensor], Tensor] | None = None) -> None:
        self._score = _binary if score is None else score

    def update(
        self, state: list[tuple[Tensor, Tensor]], outputs: Tensor, target: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """The state with a batch more."""
        target = _needed(target, "AUC")
        outputs = _tensor(outputs, "AUC") if self._score is _binary else outputs
        return [*state, (self._score(outputs).double().cpu(), target.cpu().reshape(-1) > 0)]

    def compute(self, state: list[tuple[Tensor, Tensor]]) -> float:
        """The area; nan without a positive or a negative."""
        scores, positive = _joined(state)
        _, place, count = scores.unique(return_inverse=True, return_counts=True)
        rank = (count.cumsum(0) - (count - 1) / 2.0)[place]  # the mean rank of equal scores
        p = int(positive.sum())
        n = len(positive) - p
        if not p or not n:
            return float("nan")
        return (float(rank[positive].sum()) - p * (p + 1) / 2) / (p * n)


def _joined(state: list[Any]) -> tuple[Any, Any]:
    outputs = torch.cat([o for o, _ in state])
    return outputs, None if state[0][1] is None else torch.cat([t for _, t in state])


def _binary(outputs: Tensor) -> Tensor:
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        return outputs[:, 1] - outputs[:, 0]
    if outputs.numel() == len(outputs):
        return outputs.reshape(-1)
    raise ValueError(
        f"AUC got outputs of shape {tuple(outputs.shape)}, expected (B,) or (B, 2): give it score, "
        "a function from outputs to (B,)"
    )


def _cross_entropy(outputs: Tensor, target: Tensor | None) -> Tensor:
    outputs, target = _tensor(outputs, "Loss"), _needed(target, "Loss")
    _check_classes(outputs, target)
    found: Tensor = torch.nn.functional.cross_entropy(
        outputs, target.to(outputs.device), reduction="none"
    )
    return found


def _tensor(outputs: Any, name: str) -> Tensor:
    """The outputs, or the logits among them."""
    found = main_tensor(outputs)
    if not isinstance(found, Tensor) or found.ndim == 0:
        raise TypeError(
            f"{name} got outputs that are {say(outputs)}, expected a tensor (B, ...): give a "
            "model_fn that returns one"
        )
    return found


def _check_classes(outputs: Tensor, target: Tensor) -> None:
    """Refuse a class that there is not.

    Raises:
        BadRow: There is one.
    """
    if target.is_floating_point() or target.shape != outputs.shape[:1] or outputs.ndim != 2:
        return
    wrong = (target < 0) | (target >= outputs.shape[1])
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise BadRow(
            f"target is {int(target[row])}, expected a class from 0 to {outputs.shape[1] - 1}, "
            f"because model_fn has {outputs.shape[1]} outputs",
            row,
        )


def _needed(target: Tensor | None, name: str) -> Tensor:
    if target is None:
        raise ValueError(
            f"{name} needs targets, expected columns with 'target', or the argument target"
        )
    return target
