"""Models that write into their parameters while they run: the user's stay."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from zoo import make, randn

import attrfn


def _views(model: nn.Module) -> None:
    whole = model.w
    first, row = whole.chunk(2)[0], whole[1]
    row.mul_(0.5)
    whole.T[0].zero_()
    assert torch.equal(first[1], whole[1])  # views follow
    assert torch.equal(row, whole[1])


WRITES: dict[str, Callable[[Any], Any]] = {
    "method": lambda m: m.w.clamp_(-0.3, 0.3),
    "data": lambda m: m.w.data.mul_(0.5),
    "data is set": lambda m: setattr(m.w, "data", m.w.data * 0.5),
    "of a child": lambda m: m.lin.weight.data.clamp_(0),
    "item": lambda m: m.w.__setitem__(0, 0.0),
    "operator": lambda m: m.w.__imul__(0.5),
    "view": lambda m: m.w[0].zero_(),
    "views": _views,
    "flat": lambda m: m.w.view(-1)[:4].zero_(),
    "all": lambda m: [p.mul_(0.9) for p in m.parameters()],
    "data of all": lambda m: [p.data.mul_(0.9) for p in m.parameters()],
    "init": lambda m: nn.init.constant_(m.w, 0.1),
    "detached": lambda m: m.w.detach().mul_(0.5),
    "numpy": lambda m: m.w.detach().numpy().__imul__(0.5),
    "copy": lambda m: m.w.copy_(m.w * 0.5),
    "without a gradient": lambda m: m.fixed.data.mul_(0.5),
    "vector": lambda m: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(m.parameters()) * 0.5, m.parameters()
    ),
}
RULES = attrfn.rules.rescale(baselines=-1.0)
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "function": lambda m: torch.clamp_(m.w, -0.3, 0.3),
    "out": lambda m: torch.mul(m.w, 0.5, out=m.w),
    "relu": lambda m: nn.functional.relu(m.w, inplace=True),
}


class Writes(nn.Module):
    def __init__(self, write: Callable[[Any], Any]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 5))
        self.fixed = nn.Parameter(torch.randn(4, 5), requires_grad=False)
        self.lin = nn.Linear(5, 3)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self)
        return self.lin((x @ self.w + x @ self.fixed).tanh())


def state(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.detach().clone(), t._version, t.data_ptr()) for t in tensors]


def same(model: nn.Module, before: list[Any]) -> bool:
    now = state(model)
    return all(torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(now, before, strict=True))


@pytest.mark.parametrize("kind", WRITES)
def test_each_run_starts_from_the_users_parameters(kind: str) -> None:
    model, x = make(Writes, WRITES[kind]), randn(3, 4)
    before = state(model)

    def fresh(x: Tensor) -> Tensor:
        return copy.deepcopy(model)(x)

    for method in (
        attrfn.gradient,
        functools.partial(attrfn.integrated_gradients, n_steps=5),
        attrfn.feature_ablation,
        attrfn.deep_lift,
    ):
        if kind == "views" and method is attrfn.deep_lift:
            continue  # torch refuses views of trainable parameters that no_grad made and changed
        found = method(model, x, target=1)
        assert_close(found, method(fresh, x, target=1))
        assert_close(method(model, x, target=1), found)
        if method not in (attrfn.gradient, attrfn.deep_lift):
            assert_close(method(model, x, target=1, chunk_size=1), found)
        assert same(model, before)
    layer = functools.partial(attrfn.layer_conductance, layer="lin", at="input", n_steps=4)
    assert_close(layer(model, x, target=1, chunk_size=1), layer(model, x, target=1))
    if kind != "views":
        attrfn.lrp(model, x, target=1)
    assert same(model, before)


@pytest.mark.parametrize("kind", WRITES)
def test_derivatives_are_right_or_refused(kind: str) -> None:
    model, x = make(Writes, WRITES[kind]), randn(3, 4)
    before = state(model)
    expected = attrfn.gradient(model, x, target=1)
    for explain in (
        lambda: attrfn.gradient(model, x, target=1, create_graph=True),
        lambda: torch.func.vmap(lambda r: attrfn.gradient(model, r[None], target=1)[0])(x),
        lambda: attrfn.gradient(attrfn.with_rules(model, RULES), x, target=1),
    ):
        try:
            found = explain()
        except RuntimeError:
            pass
        else:
            assert found.shape == expected.shape
        assert same(model, before)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_is_noticed_late_is_an_error(kind: str) -> None:
    model, x = make(Writes, FUNCTIONS[kind]), randn(3, 4)
    with pytest.raises(RuntimeError, match=r"model_fn has written into its parameter of shape"):
        attrfn.gradient(model, x, target=1)


class Words(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], tied: bool) -> None:
        super().__init__()
        self.head = nn.Linear(5, 9, bias=False) if tied else nn.Linear(5, 3)
        self.words = kind(9, 5, max_norm=0.5)
        with torch.no_grad():
            self.words.weight.mul_(3)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        e = self.words(ids)
        return self.head((e if e.ndim == 2 else e.mean(1)).tanh())


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_max_norm(kind: Callable[..., nn.Module]) -> None:
    model = make(Words, kind, False)
    ids = torch.tensor([[1, 2, 3], [4, 5, 1]])
    before = state(model)
    ablate = functools.partial(attrfn.feature_ablation, target=1, baselines=0)
    found = ablate(model, ids)
    assert same(model, before)
    assert_close(found, ablate(model, ids, chunk_size=1))
    full = copy.deepcopy(model)(ids)
    for i in range(3):
        changed = ids.clone()
        changed[:, i] = 0
        difference = (full - copy.deepcopy(model)(changed))[:, 1].detach()
        assert_close(found[:, i].to(full.dtype), difference)
    at = functools.partial(attrfn.layer_gradient_x_activation, layer="words", target=1)
    assert_close(at(model, ids, create_graph=True).detach(), at(model, ids))
    attrfn.layer_lrp(model, ids, layer="words", target=1)
    attrfn.split(model, "words")[0](ids)
    assert same(model, before)
    with pytest.raises(ValueError, match="max_norm rescales"):
        ablate(lambda i: model(i), ids)
    assert same(model, before)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_max_norm_of_tied_weights_is_refused(kind: Callable[..., nn.Module]) -> None:
    model = make(Words, kind, True)
    before = state(model)
    with pytest.raises(ValueError, match="weights that another module uses"):
        attrfn.feature_ablation(model, torch.tensor([[1, 2], [4, 5]]), target=1, baselines=0)
    assert same(model, before)


NET = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def through_a_global(x: Tensor) -> Tensor:
    return NET(x)


class Predictor:
    def __init__(self, net: nn.Module) -> None:
        self.nets = [net]

    def __call__(self, x: Tensor) -> Tensor:
        return self.nets[0](x)

    def predict(self, x: Tensor) -> Tensor:
        return self.nets[0](x)


def hiding(net: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    table = {"net": net}
    return {
        "lambda": lambda x: net(x),
        "global": through_a_global,
        "function of a function": lambda x: through_a_global(x),
        "dict": lambda x: table["net"](x),
        "default": lambda x, net=net: net(x),
        "object": Predictor(net),
        "method": Predictor(net).predict,
        "partial": functools.partial(lambda net, x: net(x), net),
    }


@pytest.mark.parametrize("way", hiding(NET))
def test_hidden_statistics(way: str) -> None:
    f, x, before = hiding(NET)[way], randn(4, 4).float(), state(NET)
    try:
        NET.train()
        for method in (attrfn.gradient, attrfn.feature_ablation, attrfn.deep_lift):
            with pytest.raises(ValueError, match="BatchNorm1d through a closure"):
                method(f, x, target=1)
        assert same(NET, before)
        NET.eval()
        attrfn.gradient(f, x, target=1)
        assert same(NET, before)
    finally:
        NET.eval()


def test_hidden_dropout_warns() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    with pytest.warns(UserWarning, match=r"draws random numbers by torch\.nn\.functional\.dropout"):
        attrfn.gradient(lambda x: net(x), randn(4, 4).float(), target=1)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_statistics() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)))
    x = randn(4, 4).float()
    for f in (nn.Sequential(scripted, nn.Linear(5, 3)), scripted, lambda x: scripted(x)):
        scripted.train()
        before = state(scripted)
        with pytest.raises(ValueError, match="may write into its buffers"):
            attrfn.gradient(f, x, target=1)
        assert same(scripted, before)
        scripted.eval()
        attrfn.gradient(f, x, target=1)
        assert same(scripted, before)
