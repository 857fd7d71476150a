"""``infidelity`` and ``sensitivity_max`` against Captum's, on cases where those are right."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from helpers import assert_close
from models import NETS
from torch import Tensor
from zoo import randn

import attrfn
from attrfn import metrics

SAMPLES = 6


class Moves:
    """The same perturbations for both: one table (S, B, ...), which Captum sees example by example.

    Captum repeats each example for all samples, (B * S, ...); here copies of the batch come one
    after the other, and their keys say which sample a row is of.
    """

    def __init__(self, *moves: Tensor) -> None:
        self.moves = moves
        keys = attrfn._random.keys.sample_keys(attrfn.random.key(0)[None], slice(0, SAMPLES), 0)
        self.samples = [tuple(k) for k in keys[:, 0].tolist()]

    def here(self, inputs: Any, keys: Tensor) -> tuple[Tensor, ...]:
        batch = self.moves[0].shape[1]
        samples = [self.samples.index(tuple(k)) for k in keys.tolist()]
        rows = [i % batch for i in range(len(samples))]
        return tuple(m[samples, rows] for m in self.moves)

    def there(self) -> tuple[Tensor, ...]:
        return tuple(m.transpose(0, 1).flatten(0, 1) for m in self.moves)


def captums(f: Any, x: Any, a: Any, moves: Moves, multiply: bool, **options: Any) -> Tensor:
    if multiply:

        @infidelity_perturb_func_decorator(True)
        def perturb(*inputs: Any) -> Any:
            # with baselines the decorator passes inputs and baselines, and takes x - I
            inputs = inputs[0] if isinstance(inputs[0], tuple) else inputs[:1]
            points = tuple(x - i for x, i in zip(inputs, moves.there(), strict=True))
            return points if len(points) > 1 else points[0]

    else:

        def perturb(*inputs: Any) -> Any:
            inputs = inputs[0] if isinstance(inputs[0], tuple) else inputs[:1]
            points = tuple(x - i for x, i in zip(inputs, moves.there(), strict=True))
            given = moves.there()
            return (given, points) if len(points) > 1 else (given[0], points[0])

    return infidelity(f, perturb, x, a, n_perturb_samples=SAMPLES, **options)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("net", ["mlp", "cnn", "attention"])
def test_infidelity(net: str, multiply: bool, normalize: bool) -> None:
    model, x = NETS[net].build(), NETS[net].inputs()
    target = torch.tensor([0, 2, 1])
    method = attrfn.integrated_gradients if multiply else attrfn.gradient
    a = method(model, x, target=target)
    moves = Moves(0.1 * randn(SAMPLES, *x.shape, seed=7))
    found = metrics.infidelity(
        model,
        x,
        a,
        target=target,
        perturb=lambda x, keys: moves.here(x, keys)[0],
        multiply_by_inputs=multiply,
        n_samples=SAMPLES,
        normalize=normalize,
    )
    expected = captums(model, x, a, moves, multiply, target=target, normalize=normalize)
    assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_infidelity_of_two_inputs() -> None:
    """The dot product runs over both tensors."""

    def f(a: Tensor, b: Tensor) -> Tensor:
        return (torch.sin(a).sum(1) * b.flatten(1).sum(1)).exp()

    x = randn(3, 4), randn(3, 2, 2, seed=1)
    a = attrfn.gradient(f, x)
    moves = Moves(0.1 * randn(SAMPLES, 3, 4, seed=7), 0.1 * randn(SAMPLES, 3, 2, 2, seed=8))
    found = metrics.infidelity(
        f, x, a, perturb=moves.here, multiply_by_inputs=False, n_samples=SAMPLES
    )
    assert_close(found, captums(f, x, a, moves, False), rtol=1e-6, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("name", ["saliency", "integrated_gradients"])
@pytest.mark.parametrize("net", ["mlp", "cnn", "attention"])
@pytest.mark.parametrize(("order", "norm"), [("fro", 2), (1, 1), (math.inf, math.inf)])
def test_sensitivity_max(net: str, name: str, order: Any, norm: float) -> None:
    """Captum's norms are of vectors for all orders but "nuc"."""
    model, x = NETS[net].build(), NETS[net].inputs()
    target = torch.tensor([0, 2, 1])
    moves = Moves(0.05 * randn(SAMPLES, *x.shape, seed=7))
    method, explain = {
        "saliency": (attrfn.saliency, Saliency(model).attribute),
        "integrated_gradients": (
            functools.partial(attrfn.integrated_gradients, n_steps=5),
            functools.partial(IntegratedGradients(model).attribute, n_steps=5),
        ),
    }[name]
    found = metrics.sensitivity_max(
        model,
        x,
        method,
        target=target,
        perturb=lambda x, keys: x + moves.here(x, keys)[0],
        n_samples=SAMPLES,
        norm=norm,
    )
    expected = sensitivity_max(
        explain,
        x,
        lambda x, radius: x + moves.there()[0],
        n_perturb_samples=SAMPLES,
        norm_ord=order,
        target=target,
    )
    assert_close(found, expected, rtol=1e-6, atol=1e-12)
