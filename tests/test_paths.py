"""Writes into slices, indices and masks of values, branches of Python, packed sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import close, randn, seeded
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import attrfn
from attrfn import UnsupportedOpError, rules

X, X0 = randn(0, 3, 4), randn(1, 3, 4)
MIX = seeded(lambda: nn.Linear(4, 4))


def zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


# ---------------------------------------------------------------------------------------------
# writes into slices: each as a function that writes nothing


def setitem(x: Tensor) -> Tensor:
    t = zeros(x)
    t[:, :2] = x[:, 2:]
    return t


def copied(x: Tensor) -> Tensor:
    t = zeros(x)
    t[:, :2].copy_(x[:, 2:])
    return t


def view_of_a_view(x: Tensor) -> Tensor:
    t = zeros(x)
    t[:, 1:][:, :2].copy_(x[:, 2:])
    return t


def narrowed(x: Tensor) -> Tensor:
    t = zeros(x)
    t.narrow(1, 0, 2).add_(x[:, 2:])
    return t


def transposed(x: Tensor) -> Tensor:
    t = zeros(x)
    t.mT[:2].copy_(x[:, 2:].mT)
    return t


def other_view(x: Tensor) -> Tensor:
    t = zeros(x)
    a, b = t[:, :2], t[:, 1:]
    a.copy_(x[:, 2:])
    return torch.cat([b, b[:, :1]], 1)


def zeroed(x: Tensor) -> Tensor:
    t = x * 2
    t[:, :2].zero_()
    return t


def filled(x: Tensor) -> Tensor:
    t = x * 2
    t[:, 1].fill_(3.0)
    return t


def masked(x: Tensor) -> Tensor:
    t = x * 2
    t[:, :2].masked_fill_(torch.tensor([True, False]), 5.0)
    return t


def rectified(x: Tensor) -> Tensor:
    t = x * 2
    F.relu(t[:, :2], inplace=True)
    return t


def scaled(x: Tensor) -> Tensor:
    t = x * 2
    t[:, :2] *= x[:, 2:]
    return t


def by_columns(x: Tensor) -> Tensor:
    t = zeros(x)
    for i in range(4):
        t.select(1, i).copy_(x.select(1, i).tanh())
    return t


def put(x: Tensor) -> Tensor:
    t = zeros(x)
    t[:, torch.tensor([0, 2])] = x[:, :2]
    t[:, :2].index_add_(1, torch.tensor([0, 1]), x[:, 2:])
    return t


WRITES: dict[str, tuple[Any, Any]] = {
    "setitem": (setitem, lambda x: F.pad(x[:, 2:], (0, 2))),
    "copy_": (copied, lambda x: F.pad(x[:, 2:], (0, 2))),
    "view of a view": (view_of_a_view, lambda x: F.pad(x[:, 2:], (1, 1))),
    "narrow": (narrowed, lambda x: F.pad(x[:, 2:], (0, 2))),
    "transposed": (transposed, lambda x: F.pad(x[:, 2:], (0, 2))),
    "other view": (other_view, lambda x: F.pad(x[:, 3:], (0, 3)) + F.pad(x[:, 3:], (3, 0))),
    "zero_": (zeroed, lambda x: F.pad(2 * x[:, 2:], (2, 0))),
    "fill_": (filled, lambda x: x * torch.tensor([2, 0, 2, 2]) + torch.tensor([0, 3, 0, 0])),
    "masked_fill_": (masked, lambda x: F.pad(2 * x[:, 1:], (1, 0), value=5.0)),
    "relu in place": (rectified, lambda x: torch.cat([(2 * x[:, :2]).relu(), 2 * x[:, 2:]], 1)),
    "mul_": (scaled, lambda x: torch.cat([2 * x[:, :2] * x[:, 2:], 2 * x[:, 2:]], 1)),
    "columns": (by_columns, lambda x: x.tanh()),
    "indices": (
        put,
        lambda x: torch.stack([x[:, 0] + x[:, 2], x[:, 3], x[:, 1], x[:, 1] * 0], 1),
    ),
}  # fmt: skip
each_write = pytest.mark.parametrize("name", WRITES)


@each_write
def test_writes_are_followed(name: str) -> None:
    write, pure = WRITES[name]
    f, g = [lambda x, h=h: MIX(h(MIX(x))).sum(1) for h in (write, pure)]
    close(f(X), g(X))
    for rule in ("rescale", "reveal_cancel"):
        got = attrfn.deep_lift(f, X, baselines=X0, rule=rule)
        close(got.sum(1), (f(X) - f(X0)).detach())
    options: dict[str, Any] = {"baselines": X0}
    want = attrfn.deep_lift(g, X, **options)
    close(attrfn.deep_lift(f, X, **options), want)
    close(attrfn.deep_lift(f, X, create_graph=True, **options).detach(), want)
    for composite in (rules.epsilon_plus(), rules.attn_lrp()):
        want = attrfn.lrp(g, X, rules=composite)
        close(attrfn.lrp(f, X, rules=composite), want)
        close(attrfn.lrp(f, X, rules=composite, create_graph=True).detach(), want)


@each_write
def test_writes_are_followed_in_transforms(name: str) -> None:
    write, pure = WRITES[name]
    f, g = [lambda x, h=h: MIX(h(MIX(x))).sum(1) for h in (write, pure)]
    for method in (attrfn.lrp, lambda f, x: attrfn.deep_lift(f, x, baselines=0.3)):
        close(vmap(lambda row, m=method: m(f, row[None])[0])(X), method(g, X))


# ---------------------------------------------------------------------------------------------
# paths


def masked_rows(x: Tensor) -> Tensor:
    h = MIX(x)
    mask = h > 0
    rows = torch.arange(len(x))[:, None].expand(h.shape)[mask]
    return h.new_zeros(len(x)).index_add(0, rows, h[mask].tanh())


def branch(x: Tensor) -> Tensor:
    return MIX(x).tanh().sum(1) if x.sum() > 0 else MIX(2 * x).tanh().sum(1)


def chosen(x: Tensor) -> Tensor:
    layers = [MIX, lambda x: MIX(3 * x)]
    return layers[int((x.sum() > 0).long().tolist())](x).sum(1)


PATHS: dict[str, Any] = {
    "boolean index": masked_rows,
    "mask": lambda x: (x.tanh() * (x > 0)).sum(1),
    "mask as numbers": lambda x: (x.tanh() * (x > 0).double()).sum(1),
    "where": lambda x: torch.where(x > 0, x.exp(), x.tanh()).sum(1),
    "masked_fill": lambda x: x.exp().masked_fill(x > 0, 2.0).sum(1),
    "gather": lambda x: x.exp().gather(1, x.argmax(1, keepdim=True)).sum(1),
    "one hot": lambda x: (x.exp() * F.one_hot(x.argmax(1), 4)).sum(1),
    "row of a table": lambda x: (x.exp() * MIX.weight[x.argmax(1)]).sum(1),
    "sign, detached": lambda x: (x * x.sign().detach()).sum(1),
    "branch": branch,
    "index of Python": chosen,
    "all": lambda x: x.exp().sum(1) if bool((x > -9).all()) else x.sum(1),
}
each_path = pytest.mark.parametrize("name", PATHS)


def by_with_rules(f: Any, x: Tensor, baselines: Tensor) -> Tensor:
    return (x - baselines) * attrfn.gradient(attrfn.with_rules(f, rules.rescale(baselines)), x)


@each_path
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_same_path_is_complete(name: str, create_graph: bool) -> None:
    """Baselines that are half the inputs have the same signs and the same order."""
    f, near = PATHS[name], X / 2 if name != "boolean index" else X * 0.9999
    change = (f(X) - f(near)).detach()
    got = attrfn.deep_lift(f, X, baselines=near, create_graph=create_graph)
    close(got.sum(1).detach(), change)
    close(by_with_rules(f, X, near).sum(1), change)
    assert attrfn.lrp(f, X).isfinite().all()


@each_path
def test_another_path_is_refused(name: str) -> None:
    if name == "all":
        pytest.skip("takes one path")
    f, far = PATHS[name], -X
    for method in (
        lambda: attrfn.deep_lift(f, X, baselines=far),
        lambda: attrfn.deep_lift(f, X, baselines=far, create_graph=True),
        lambda: by_with_rules(f, X, far),
    ):
        with pytest.raises(UnsupportedOpError, match=r"choose baselines") as caught:
            method()
        assert "test_paths.py, line" in str(caught.value)
        assert len(str(caught.value)) <= 300


def test_allow_leads_to_a_result() -> None:
    """Where the mask picks other numbers of values, too."""
    allowed = rules.rescale().allow(torch.Tensor.__getitem__)
    got = attrfn.deep_lift(masked_rows, X, baselines=-X, rule=allowed)
    assert got.shape == X.shape


# ---------------------------------------------------------------------------------------------
# packed sequences

LENGTHS = torch.tensor([5, 3, 4])


class Packed(nn.Module):
    def __init__(self, cell: Any, packed: bool = True, last: bool = False, **options: Any) -> None:
        super().__init__()
        self.rnn = cell(4, 6, batch_first=True, **options)
        self.packed, self.last = packed, last

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
            out, state = self.rnn(packed)
            out = pad_packed_sequence(out, batch_first=True)[0]
        else:  # one row after the other
            found = [self.rnn(row[None, :n]) for row, n in zip(x, LENGTHS.tolist(), strict=True)]
            out = torch.cat([F.pad(o, (0, 0, 0, 5 - o.shape[1])) for o, _ in found])
            states = [s[0] if isinstance(s, tuple) else s for _, s in found]
            state = torch.cat(states, 1)
        state = state[0] if isinstance(state, tuple) else state
        return state.transpose(0, 1).flatten(1) if self.last else out.sum(1)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"num_layers": 2}, {"bias": False}]
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences(cell: Any, last: bool, options: dict[str, Any]) -> None:
    """As the same layers on each row alone, without padding."""
    x, x0 = randn(0, 3, 5, 4), randn(1, 3, 5, 4)
    f, g = [seeded(lambda p=p: Packed(cell, p, last, **options)) for p in (True, False)]
    close(f(x), g(x))
    got = attrfn.deep_lift(f, x, baselines=x0, target=1)
    close(got.flatten(1).sum(1), (f(x) - f(x0))[:, 1].detach())
    close(got, attrfn.deep_lift(g, x, baselines=x0, target=1))
    close(attrfn.lrp(f, x, target=1), attrfn.lrp(g, x, target=1))


# ---------------------------------------------------------------------------------------------
# messages

MATRIX = lambda x: x[:, :, None] * x[:, None] + torch.eye(4)  # noqa: E731
UNKNOWN: dict[str, Any] = {
    "renorm": lambda x: torch.renorm(x, 2, 0, 1.0),
    "polygamma": lambda x: torch.polygamma(1, x),
    "mvlgamma": lambda x: torch.mvlgamma(x + 3, 2),
    "det": lambda x: torch.linalg.det(MATRIX(x)),
    "logdet": lambda x: torch.logdet(MATRIX(x)),
    "svdvals": lambda x: torch.linalg.svdvals(MATRIX(x)),
    "eigvalsh": lambda x: torch.linalg.eigvalsh(MATRIX(x)),
    "cholesky": lambda x: torch.linalg.cholesky(MATRIX(x)),
    "qr": lambda x: torch.linalg.qr(MATRIX(x))[1],
    "pinv": lambda x: torch.linalg.pinv(MATRIX(x)),
    "matrix_exp": lambda x: torch.matrix_exp(MATRIX(x)),
    "matrix_power": lambda x: torch.linalg.matrix_power(MATRIX(x), 3),
    "nuclear norm": lambda x: torch.linalg.matrix_norm(MATRIX(x), "nuc"),
    "aminmax": lambda x: x.aminmax(dim=1)[0],
    "weights of a norm": lambda x: F.layer_norm(x, (4,), x[0]),
    "mask": lambda x: x.exp() * (x > 0.6),
    "detach": lambda x: x * x.exp().detach(),
    "where": lambda x: torch.where(x > 0.6, x, x.exp()),
    "argmax": lambda x: x.gather(1, x.argmax(1, True)),
    "boolean index": lambda x: masked_rows(x)[:, None] * x,
}


@pytest.mark.parametrize("method", ["deep_lift", "lrp"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_advice_leads_to_a_result(name: str, method: str) -> None:
    """What a refusal names works at once: ``allow``, and ``"linear"`` where it is offered."""
    x, x0 = randn(2, 3, 4).abs() + 0.1, randn(3, 3, 4).abs() + 0.1
    f = lambda x: UNKNOWN[name](x).reshape(3, -1).sum(1)  # noqa: E731

    def run(table: Any) -> Tensor:
        if method == "lrp":
            return attrfn.lrp(f, x, rules=table)
        return attrfn.deep_lift(f, x, baselines=x0, rule=table)

    table = rules.epsilon_plus() if method == "lrp" else rules.rescale()
    try:
        assert run(table).shape == x.shape
    except UnsupportedOpError as error:
        message = str(error)
    else:
        return  # has a rule
    assert len(message) <= 300
    op = message.partition("rules.allow(")[2].partition(")")[0]
    assert run(table.allow(eval(op))).shape == x.shape
    if "rules | {" in message:
        assert f"rules | {{{op}: 'linear'}}" in message
        assert run(table | {eval(op): "linear"}).shape == x.shape
