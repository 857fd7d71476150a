"""Every method on nets with complex numbers, packed sequences, sparse matrices and recurrence.

Each kind of net has a twin that computes the same function by other means: real matrices for the
Fourier transform, a slice for the packing, a dense matrix for the sparse one, a loop of linear
layers for the recurrence. Attributions are functions of the function, so those of the twins are
equal, but for rules, which may share them out in another way.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, assert_informative
from models import CLASSES, Net, targets
from registry import Row, explain, rows
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from zoo import make, randn

KEPT = 3  # words of the four


class Spectral(nn.Module):
    """A filter of frequencies between two linear layers over the words."""

    def __init__(self, twin: bool = False) -> None:
        super().__init__()
        self.twin = twin
        self.inp, self.mid, self.out = nn.Linear(3, 3), nn.Softplus(), nn.Linear(3, CLASSES)
        self.filter = nn.Parameter(torch.randn(3, 3, 2))
        every = torch.fft.rfft(torch.eye(4), dim=0)  # (frequencies, words)
        back = torch.fft.irfft(torch.eye(3) + 0j, n=4, dim=0)  # (words, frequencies)
        back_of_j = torch.fft.irfft(torch.eye(3) * 1j, n=4, dim=0)
        for name, matrix in {
            "real": every.real,
            "imag": every.imag,
            "back": back,
            "back_of_j": back_of_j,
        }.items():
            self.register_buffer(name, matrix.clone())

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.mid(self.inp(x)) - 0.5)
        if self.twin:
            re, im = self.real @ h, self.imag @ h
            a, b = self.filter.unbind(-1)
            re, im = a * re - b * im, a * im + b * re
            h = self.back @ re + self.back_of_j @ im
        else:
            z = torch.fft.rfft(h, dim=1) * torch.view_as_complex(self.filter)
            h = torch.fft.irfft(z, n=4, dim=1)
        return self.out(torch.tanh(h).mean(1))


class Packed(nn.Module):
    """An LSTM over the first words of each example."""

    def __init__(self, twin: bool = False) -> None:
        super().__init__()
        self.twin = twin
        self.inp, self.mid = nn.Linear(3, 3), nn.Softplus()
        self.rnn, self.out = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.mid(self.inp(x)) - 0.5)
        if self.twin:
            return self.out(self.rnn(h[:, :KEPT])[0].mean(1))
        lengths = torch.full((len(x),), KEPT)
        packed = pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.out(states.mean(1))


class Sparse(nn.Module):
    """One step over the edges of a graph, whose nodes the words are."""

    def __init__(self, twin: bool = False) -> None:
        super().__init__()
        self.twin = twin
        self.inp, self.mid, self.out = nn.Linear(3, 3), nn.Softplus(), nn.Linear(3, CLASSES)
        edges = torch.zeros(4, 4).fill_diagonal_(0.5)
        edges[0, 2] = edges[1, 0] = edges[3, 1] = 0.7
        self.register_buffer("edges", edges)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.mid(self.inp(x)) - 0.5)
        if self.twin:
            h = self.edges @ h
        else:
            columns = h.transpose(0, 1).reshape(4, -1)  # (nodes, examples * features)
            h = torch.sparse.mm(self.edges.to_sparse(), columns).reshape(4, len(x), 3)
            h = h.transpose(0, 1)
        return self.out(torch.tanh(h).mean(1))


class Recurrent(nn.Module):
    """A GRU, or its equations over linear layers."""

    def __init__(self, twin: bool = False) -> None:
        super().__init__()
        self.twin = twin
        self.inp, self.mid = nn.Linear(3, 3), nn.Softplus()
        self.rnn, self.out = nn.GRU(3, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.mid(self.inp(x)) - 0.5)
        if not self.twin:
            return self.out(self.rnn(h)[0].mean(1))
        rnn, s, states = self.rnn, torch.zeros_like(h[:, 0]), []
        for step in h.unbind(1):
            r, z, n = F.linear(step, rnn.weight_ih_l0, rnn.bias_ih_l0).chunk(3, 1)
            hr, hz, hn = F.linear(s, rnn.weight_hh_l0, rnn.bias_hh_l0).chunk(3, 1)
            z = torch.sigmoid(z + hz)
            s = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * s
            states.append(s)
        return self.out(torch.stack(states, 1).mean(1))


def net(kind: type[nn.Module], twin: bool = False) -> Net:
    """A net for the registry; images are the words by their numbers."""
    return Net(lambda: make(kind, twin), (4, 3), (1, 2), True, True, randn(3, 4, 3, seed=7))


def compared(r: Row, kind: type[nn.Module]) -> None:
    a, b = net(kind), net(kind, twin=True)
    x, t = a.inputs(), targets(3)
    got = explain(r, a, a.build(), x, target=t)
    expected = explain(r, b, b.build(), x, target=t)
    if r.rules:
        assert_informative(got)
        alone = explain(r, a, a.build(), x[:1], target=t[:1])
        assert got.shape[0] == 3 or r.batch_dim
        if not (r.keyed or r.mixes or r.batch_dim):
            assert_close(alone, got[:1], rtol=1e-7, atol=1e-9)
    else:
        assert_close(got, expected, rtol=1e-6, atol=1e-9)


usual = rows()


@pytest.mark.capability("complex")
@usual
def test_nets_with_complex_numbers(r: Row) -> None:
    compared(r, Spectral)


@pytest.mark.capability("packed")
@usual
def test_nets_that_pack_sequences(r: Row) -> None:
    compared(r, Packed)


@pytest.mark.capability("sparse")
@usual
def test_nets_with_sparse_matrices(r: Row) -> None:
    compared(r, Sparse)


@pytest.mark.capability("recurrent + vmap")
@rows(lambda r: not r.mixes)
def test_recurrent_nets_under_vmap(r: Row) -> None:
    a, b = net(Recurrent), net(Recurrent, twin=True)
    x, t = a.inputs(), targets(3)
    batched = explain(r, b, b.build(), x, target=t)
    model = a.build()
    mapped = torch.func.vmap(lambda x, t: explain(r, a, model, x[None], target=t))(x, t)
    if r.rules:
        assert_informative(mapped)
        return
    found = mapped.squeeze(r.batch_dim + 1).movedim(0, r.batch_dim)
    assert_close(found, batched, rtol=1e-6, atol=1e-9)
