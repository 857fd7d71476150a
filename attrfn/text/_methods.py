"""How a method explains a text: as a game over its parts, or by embeddings and activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attrfn._explain.introspect import explains_all_outputs
from attrfn._torch.say import say
from attrfn._torch.typing import Method
from attrfn.text._adapter import Adapter
from attrfn.text._game import game
from attrfn.text._layers import by_embeddings, is_at_layer, name_of
from attrfn.text._parts_type import Game, TextAttribution
from attrfn.text._plan import Plan, outputs, result

# What a game says itself.
OWN = ("baselines", "feature_mask", "n_features")


def explained_by(method: Method, plan: Plan, options: dict[str, Any]) -> TextAttribution:
    """The values, total, scores and standard errors of a method.

    Raises:
        TypeError: It is not a method, or an option is given that the text decides.
    """
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected one such as attrfn.feature_ablation")
    if "target" in options:
        raise TypeError("target is given, expected none: the scores of the answer are explained")
    if explains_all_outputs(method) and not is_at_layer(method, options):
        return _by_game(method, plan, options)
    if plan.context:
        raise ValueError(
            f"answer_context is True for {name_of(method)}, which explains embeddings of the "
            "prompt, expected a perturbation method such as attrfn.feature_ablation"
        )
    return by_embeddings(method, plan, options)


def _by_game(method: Method, plan: Plan, options: dict[str, Any]) -> TextAttribution:
    for name in OWN:
        if name in options:
            raise TypeError(
                f"{name} is given, expected none: the parts are the features, and remove says what "
                "replaces a removed one"
            )
    played = _played(plan)
    # Values have the dtype of what is explained: that of a model in double precision.
    full = played.full.to(_dtype(plan.model))
    if plan.batch is not None:
        options = {"chunk_size": plan.batch, **options}
    if getattr(method, "takes_tokens", False):
        n = plan.answer.shape[1]
        options = {
            "tokens": played.full.new_tensor([n] if plan.other is not None else [*[1] * n, n]),
            **options,
        }
    noted = _Noted()
    found = method(_Noting(played.fn, noted), full, **options)
    values, stderr = found if isinstance(found, tuple) else (found, None)
    n = played.full.shape[1]
    if isinstance(values, Tensor) and values.ndim == 2:  # of one output
        values, stderr = values[:, None], None if stderr is None else stderr[:, None]
    if not isinstance(values, Tensor) or values.ndim != 3 or tuple(values.shape)[::2] != (1, n):
        raise ValueError(
            f"method {name_of(method)} returned {say(values)}, expected values (1, N, {n}), a "
            "number for each part: give others the function and the inputs of text.game"
        )
    seen = noted.scores
    scores = seen[1] if 1 in seen else outputs(played.fn, played.full)[0]
    errors = None if stderr is None else stderr[0]
    return result(method, plan, values[0], scores, seen.get(0), errors)


def _played(plan: Plan) -> Game:
    """The game over the parts of a text."""
    return game(
        plan.model,
        plan.parts,
        answer=plan.answer,
        foil=plan.foil,
        other=plan.other,
        score=plan.score,
        remove=plan.default() if plan.remove is None else plan.remove,
        whole=plan.other is None,
        answer_context=plan.context,
    )


def _dtype(model: Adapter) -> torch.dtype:
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.float64 if next(floating, None) == torch.float64 else torch.float32


class _Noted:
    """The scores of no part and of all; an object that private copies of a model share."""

    def __init__(self) -> None:
        self.scores: dict[int, Tensor] = {}


class _Noting(nn.Module):
    """A game that keeps the scores of all parts and of none when it is asked for them."""

    def __init__(self, played: Any, noted: _Noted) -> None:
        super().__init__()
        self.played, self.noted, self.training = played, noted, played.training

    @property
    def asks_model(self) -> Any:
        """The model whose rows these are."""
        return self.played.asks_model

    def forward(self, z: Tensor) -> Tensor:
        """The scores of the game."""
        found: Tensor = self.played(z)
        seen = self.noted.scores
        for value in {0, 1} - seen.keys():
            rows = (z == value).all(1)
            if bool(rows.any()):
                seen[value] = found[int(rows.int().argmax())].detach()
        return found
