"""Models whose rows depend on each other: the same for every chunking, and said."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import randn
from torch import Tensor, nn

import attrfn

W = randn(4, 3, seed=1)
X = randn(3, 4)


def _without_statistics(later: bool) -> nn.Module:
    norm = nn.BatchNorm1d(5, track_running_stats=later)
    norm.running_mean = norm.running_var = None
    return nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double().eval()


NORM = _without_statistics(False)
MIXING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "untracked": (NORM, "holds a BatchNorm1d without running statistics"),
    "removed": (_without_statistics(True), "holds a BatchNorm1d without running statistics"),
    "in a closure": (lambda x: NORM(x), "holds a BatchNorm1d without running statistics"),
    "functional": (lambda x: F.batch_norm(x, None, None, training=True) @ W, "something else"),
    "mean": (lambda x: (x - x.mean(0)).tanh() @ W, "something else"),
    "softmax": (lambda x: x.softmax(0) @ W, "something else"),
    "contrastive": (lambda x: (F.normalize(x) @ F.normalize(x).T).exp() @ x @ W, "something else"),
    "sorted": (lambda x: x.cumsum(0).tanh() @ W, "something else"),
}
METHODS: dict[str, Callable[..., Tensor]] = {
    "integrated_gradients": attrfn.integrated_gradients,
    "gradient_shap": functools.partial(attrfn.gradient_shap, baselines=randn(5, 4, seed=2)),
    "feature_ablation": attrfn.feature_ablation,
    "shapley_values": attrfn.shapley_values,
    "kernel_shap": attrfn.kernel_shap,
    "integrated_hessians": attrfn.integrated_hessians,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("f", "why"), MIXING.values(), ids=MIXING)
def test_every_chunking_gives_the_same(f: Any, why: str, method: str) -> None:
    """The reference is a loop over the copies, each of which is a batch of its own."""
    found = []
    for size in (None, 1, 2, "auto"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found.append(METHODS[method](f, X, target=0, chunk_size=size))
        # One copy at a time needs no check, and the modules are always seen.
        if size != 1 or why != "something else":
            assert sum(why in str(w.message) for w in told) == 1
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.filterwarnings("ignore:the model holds a BatchNorm1d")
@pytest.mark.parametrize("name", ["untracked", "functional"])
def test_the_advice_of_deep_lift_is_true(name: str) -> None:
    with pytest.raises(attrfn.UnsupportedOpError, match="give the norm running statistics"):
        attrfn.deep_lift(MIXING[name][0], X, target=0)


def test_a_model_is_checked_once() -> None:
    """Two copies together and one by one, in the first call alone."""
    calls: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return x.tanh() @ W

    model = Counting()
    attrfn.integrated_gradients(model, X, target=0, n_steps=4, chunk_size=4)
    assert calls == [3, 3, 6, 12, 6]  # the last one is the check of completeness
    attrfn.feature_ablation(model, X, target=0, chunk_size=4)
    assert calls == [3, 3, 6, 12, 6, 3, 12]
