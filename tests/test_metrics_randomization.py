"""Randomised parameters: the model stays, and the draws are those that were promised."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close
from models import NETS
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from zoo import make, randn

import attrfn
from attrfn import metrics
from attrfn.metrics import similarity
from attrfn.testing._state import untouched


class Everything(nn.Module):
    """A class token, tied embeddings, recurrence, attention, norms with and without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 9, bias=False)
        self.emb = nn.Embedding(9, 6, padding_idx=0)
        self.last.weight = self.emb.weight
        self.token = nn.Parameter(torch.randn(6))
        self.rnn = nn.GRU(6, 6, batch_first=True)
        self.att = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm1d(6)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = x @ self.emb.weight + self.token
        x = self.rnn(x)[0]
        x = self.norm(x + self.att(x, x, x)[0])
        x = self.bn(self.conv(x.transpose(1, 2)))
        x = x.mean(2) if scale is None else x.mean(2) * scale[:, None]
        return self.last(torch.tanh(x))

    def scores(self, x: Tensor) -> Tensor:
        return self(x).softmax(-1)


def everything() -> tuple[Everything, Tensor]:
    return make(Everything), randn(2, 4, 9)


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
def test_parameter_randomisation_leaves_the_model_bitwise(order: Any) -> None:
    model, x = everything()
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    with untouched(model, x):
        metrics.model_parameter_randomization(
            model, x, attrfn.gradient, target=1, order=order, similarity=similarity.pearson
        )
        metrics.efficient_mprt(model, x, attrfn.gradient, target=1)
    assert (np.random.get_state()[1] == before).all()


def test_layers_come_in_the_order_of_their_first_call() -> None:
    """Parameters without a call of their module follow the module around it."""
    model, x = everything()
    run = functools.partial(metrics.model_parameter_randomization, model, x, attrfn.gradient)
    found = list(run(target=1, order="bottom_up"))
    # 'last' shares its weight with 'emb', whose own call never happens.
    assert found == ["", "emb", "rnn", "att", "att.out_proj", "norm", "conv", "bn", "last"]
    assert list(run(target=1)) == found[::-1]
    assert list(run(target=1, layers=["conv", model.rnn])) == ["conv", "rnn"]
    assert list(run(target=1, layers=("rnn", "conv"), order="bottom_up")) == ["rnn", "conv"]


def test_default_draws_by_kind_of_layer() -> None:
    model, x = everything()
    seen: dict[str, Tensor] = {}

    def method(f: Any, x: Tensor) -> Tensor:
        (params,) = [f.func.attrfn_source.params] if hasattr(f, "func") else [{}]
        seen.update(params)
        return x

    metrics.efficient_mprt(model, x, method)
    bound = {"att.out_proj": 6, "conv": 18}
    assert set(dict(model.named_parameters())) < set(seen)
    for name, p in model.named_parameters():
        new = seen[name]
        assert new.shape == p.shape
        layer, _, own = name.rpartition(".")
        if layer in bound:
            assert new.abs().max() <= bound[layer] ** -0.5
            assert own == "bias" or new.abs().max() > 0.9 * bound[layer] ** -0.5
        if layer == "rnn":
            assert new.abs().max() <= 6**-0.5
        if layer in ("norm", "bn"):
            assert (new == float(own == "weight")).all()
        # A constant tensor, such as a bias of zeros, has no deviation of its own.
        assert layer in ("norm", "bn") or (p == p.flatten()[0]).all() or not torch.equal(new, p)
    assert (seen["bn.running_mean"] == 0).all()
    assert (seen["bn.running_var"] == 1).all()
    # Two tensors of one shape are not the same numbers.
    assert not torch.equal(seen["rnn.weight_ih_l0"], seen["rnn.weight_hh_l0"])
    rows = seen["emb.weight" if "emb.weight" in seen else "last.weight"]
    assert rows.shape == (9, 6)


def test_draws_do_not_depend_on_the_order_or_on_other_layers() -> None:
    """The key of a parameter is that of its index."""
    model, x = NETS["mlp"].build(), NETS["mlp"].inputs()
    drawn: dict[str, list[Tensor]] = {}

    def draw(name: str, p: Tensor, key: Tensor) -> Tensor:
        new = attrfn.random.normal(key, p.shape, dtype=p.dtype)
        drawn.setdefault(name, []).append(new)
        return new

    run = functools.partial(
        metrics.model_parameter_randomization, model, x, attrfn.gradient, target=1, draw=draw
    )
    for order in ("top_down", "bottom_up", "independent"):
        run(order=order)
    run(layers=["out"])
    for values in drawn.values():
        assert all(torch.equal(v, values[0]) for v in values)
    firsts = [v[0].flatten()[0].item() for v in drawn.values()]
    assert len(set(firsts)) == len(firsts)


def test_randomised_models_equal_deep_copies_with_the_same_tensors() -> None:
    """The oracle: a deep copy whose parameters are overwritten, stage by stage."""
    net = NETS["cnn"]
    model, x = net.build(), net.inputs()
    method = functools.partial(attrfn.integrated_gradients, n_steps=3)
    found = metrics.model_parameter_randomization(
        model, x, method, target=1, draw=lambda name, p, key: p.flip(0) + 0.1
    )
    trained = method(model, x, target=1)
    other = copy.deepcopy(model)
    for name in ("out", "inp"):
        for p in other.get_submodule(name).parameters():
            p.data = p.data.flip(0) + 0.1
        assert_close(found[name], similarity.spearman(trained, method(other, x, target=1)))
    assert list(found) == ["out", "inp"]


@pytest.mark.parametrize("kind", ["method", "bound", "functional"])
def test_other_forms_of_a_model_can_be_randomised(kind: str) -> None:
    model, x = everything()
    params = {k: 1.5 * v.detach() for k, v in model.named_parameters()}
    scale = randn(2, seed=3)
    f: Any = {
        "method": model.scores,
        "bound": functools.partial(model, scale=scale),
        "functional": functools.partial(functional_call, model, params),
    }[kind]
    method = attrfn.noise_tunnel(attrfn.gradient, n_samples=2, stdevs=0.1)
    negated = lambda name, p, key: -p  # noqa: E731
    found = metrics.model_parameter_randomization(
        f, x, method, target=1, draw=negated, layers=["conv"], similarity=similarity.pearson
    )
    other = copy.deepcopy(model)
    for name, p in other.named_parameters():
        p.data = params[name].clone() if kind == "functional" else p.data
        p.data = -p.data if name.startswith("conv") else p.data
    g: Any = {
        "method": other.scores,
        "bound": functools.partial(other, scale=scale),
        "functional": other,
    }[kind]
    expected = similarity.pearson(method(f, x, target=1), method(g, x, target=1))
    assert_close(found["conv"], expected)


def test_layer_forms_find_their_layer_in_the_randomised_model() -> None:
    """By its name, and as the module of the user's own model."""
    net = NETS["cnn"]
    model, x = net.build(), net.inputs()
    by_name = functools.partial(attrfn.layer_integrated_gradients, layer="mid", n_steps=2)
    by_module = functools.partial(attrfn.layer_integrated_gradients, layer=model.mid, n_steps=2)
    run = functools.partial(metrics.model_parameter_randomization, model, x, target=1)
    found = run(by_name)
    assert_close(run(by_module), found)
    assert_close(run(attrfn.at_layer(functools.partial(attrfn.integrated_gradients, n_steps=2),
                                     model.mid)), found)  # fmt: skip
    assert found["out"].lt(0.999).any()


@functools.cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that reads handwritten digits, six of them, and what it says."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for batch in [b for _ in range(4) for b in torch.randperm(1500).split(64)]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    x = images[1500:1530]
    return model.eval(), x, model(x).argmax(1)


def test_guided_backprop_stays_similar_where_the_gradient_does_not() -> None:
    """The finding of Adebayo et al. on a network of our own."""
    model, x, said = digits()
    assert (said == torch.tensor(load_digits().target[1500:1530])).float().mean() > 0.9
    run = functools.partial(metrics.model_parameter_randomization, model, x, target=said)
    gradient, guided = run(attrfn.gradient), run(attrfn.guided_backprop)
    first = next(iter(guided))
    assert guided[first].mean() > 0.5
    assert gradient[first].mean() < 0.3
    for layer in guided:
        assert guided[layer].mean() > gradient[layer].mean()


def test_digits_rank_methods_as_expected() -> None:
    """Integrated gradients beat the gradient and random maps on what they were made for."""
    model, x, said = digits()
    found = metrics.compare(
        model,
        x,
        {
            "random": lambda f, x, target: torch.randn(x.shape),
            "ig": functools.partial(attrfn.integrated_gradients, n_steps=16),
            "ablation": attrfn.feature_ablation,
        },
        {
            "deletion": metrics.deletion,
            "srg": metrics.symmetric_relevance_gain,
            "infidelity": metrics.infidelity,
            "faithfulness": functools.partial(metrics.faithfulness_correlation, n_samples=30),
        },
        target=said,
    )
    for metric in found.metrics:
        assert found.ranking(metric)[-1] == "random"


def test_names_are_those_of_the_model_behind_torch_compile() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.out = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x * self.scale)

    plain, x = make(Scaled), randn(3, 4)
    wrapped = torch.compile(plain, backend="eager")
    negated = {"draw": lambda name, p, key: -p, "target": 1}
    for layers in (None, ["out", ""]):
        options = {**negated, "layers": layers}
        run = functools.partial(metrics.model_parameter_randomization, **options)
        found = run(wrapped, x, attrfn.gradient)
        assert list(found) == ["out", ""]
        assert_close(found, run(plain, x, attrfn.gradient))
