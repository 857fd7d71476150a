"""make_fx and torch.export write attributions down as plain operations."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from models import targets
from registry import Row, explain, primary_rows
from test_compile import small
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from zoo import same_state, state

import attrfn


@pytest.mark.capability("export")
@primary_rows
def test_exported_program_gives_the_attributions(r: Row) -> None:
    """Of other inputs and targets than it was written down with; the model stays as it was."""
    net = r.net
    model, x, t = net.build(), net.inputs(2), targets(2)
    before = state(model)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return explain(r, net, model, x, target=t, **small(r))

    program = torch.export.export(make_fx(f)(x, t), (x, t))
    assert same_state(model, before)
    x, t = net.inputs(2, seed=60), (t + 1) % 3
    assert_close(program.module()(x, t), f(x, t))


def test_features_must_be_numbered() -> None:
    """To count the different ids is to read them."""
    mask = torch.tensor([0, 1, 1])
    model = torch.nn.Linear(3, 2)

    def f(x: Tensor) -> Tensor:
        return attrfn.feature_ablation(model, x, target=0, feature_mask=mask.clone())

    with pytest.raises(ValueError, match=r"inside torch\.compile or a tracer"):
        make_fx(f)(torch.ones(2, 3))


def test_fake_tensors_leave_nothing_behind() -> None:
    """A table that is kept for later calls holds numbers, also if it was made among fakes."""
    model = torch.nn.Linear(11, 2)

    def f(x: Tensor) -> Tensor:
        return attrfn.kernel_shap(model, x, target=0, n_samples=22)

    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = f(torch.ones(3, 11))
        for method in (attrfn.integrated_gradients, attrfn.gradient_shap, attrfn.feature_ablation):
            more = {"baselines": torch.zeros(2, 11)} if method is attrfn.gradient_shap else {}
            assert method(model, torch.ones(3, 11), target=0, **more).shape == (3, 11)
    assert fake.shape == (3, 11)
    assert f(torch.ones(3, 11)).isfinite().all()
