"""Models with a layer ``mid`` of another layout, and behind it an identity ``there`` of rows.

``there`` gets the value of ``mid`` with the examples in dimension 0 and gives it back, so that a
method at ``there``, which other tests check, says what it has to find at ``mid``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from zoo import make, randn

from attrfn import layouts

FRAMES, NODES, STEPS, SIDE, WINDOW = 4, 3, 3, 4, 2


class Laid(NamedTuple):
    """A model whose layer ``mid`` has another layout.

    Attributes:
        build: Makes the model function.
        shape: The shape of one example.
        rows: The layout of ``mid``, for the option of this name; None if it cannot be named.
        move: From the value of ``mid`` to that of ``there``.
        back: From what is found at ``there`` to the tensor of ``mid``.
        tensor: The tensor that is explained in a value of ``mid``.
        reshape: From the value of ``mid`` to images, and the same for ``there``.
        neuron: A neuron of ``there``.
    """

    build: Callable[[], Any]
    shape: tuple[int, ...]
    rows: Any
    move: Callable[[Any], Tensor]
    back: Callable[[Tensor], Tensor]
    tensor: Callable[[Any], Tensor]
    reshape: tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor]]
    neuron: Any

    def inputs(self, batch: int = 3, seed: int = 1) -> Tensor:
        return randn(batch, *self.shape, seed=seed)


class Video(nn.Module):
    """A CNN on frames that are folded into the batch, and a GRU over them."""

    def __init__(self) -> None:
        super().__init__()
        self.mid, self.there = nn.Conv2d(2, 3, 3), nn.Identity()
        self.act, self.gru = nn.ReLU(), nn.GRU(12, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.there(self.mid(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, FRAMES)))
        return self.out(self.gru(self.act(a).flatten(2))[0][:, -1])


class Outputs(nn.LSTM):
    """An LSTM that returns its outputs alone."""

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, hx)[0]


class Steps(nn.Module):
    """An LSTM with time first, as many steps as there are examples."""

    def __init__(self, cell: type[nn.LSTM] = nn.LSTM) -> None:
        super().__init__()
        self.inp, self.mid, self.there = nn.Linear(4, 4), cell(4, 5), nn.Identity()
        self.act, self.out = nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        value = self.mid(torch.tanh(self.inp(x)).transpose(0, 1))
        steps = value if isinstance(value, Tensor) else value[0]
        a = self.there(steps.transpose(0, 1)).transpose(0, 1)
        return self.out(self.act(a + a.flip(0) ** 2).sum(0))


class Packed(nn.Module):
    """A layer that returns a PackedSequence, and one that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.mid, self.there = nn.GRU(4, 5, batch_first=True), nn.Identity()
        self.last, self.act = nn.GRU(5, 4, batch_first=True), nn.ReLU()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        options: Any = {"batch_first": True, "enforce_sorted": False}
        value, _ = self.mid(rnn.pack_padded_sequence(x, lengths, **options))
        a = self.there(rnn.pad_packed_sequence(value, batch_first=True)[0])
        last, _ = self.last(rnn.pack_padded_sequence(a, lengths, **options))
        return self.out(self.act(rnn.pad_packed_sequence(last, batch_first=True)[0]).sum(1))


class Graph(nn.Module):
    """A graph network; the nodes of all graphs are the rows of its hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mid, self.there, self.last = nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 5)
        self.act, self.out = nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.there(self.mid(x.flatten(0, 1)).unflatten(0, (-1, NODES))).flatten(0, 1)
        h = self._passed(torch.tanh(self._passed(h, edges)), edges)
        return self.out(self.act(self.last(h)).unflatten(0, (-1, NODES)).sum(1))

    def _passed(self, h: Tensor, edges: Tensor) -> Tensor:
        """Sums over the edges of each graph."""
        graphs = len(h) // NODES
        shift = torch.arange(graphs).repeat_interleave(edges.shape[1]) * NODES
        source, target = edges.repeat(1, graphs) + shift
        return h + torch.zeros_like(h).index_add(0, target, h[source])


class Windowed(nn.Module):
    """A layer on the windows of an image, which are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mid, self.there = nn.Conv2d(2, 3, 1), nn.Linear(3, 3), nn.Identity()
        self.act, self.out = nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = SIDE // WINDOW
        h = self.inp(x).unflatten(3, (n, WINDOW)).unflatten(2, (n, WINDOW))
        h = h.permute(0, 2, 4, 3, 5, 1).reshape(-1, WINDOW * WINDOW, 3)
        h = self.mid(torch.softmax(h @ h.mT, -1) @ h)
        a = self.there(layouts.windows(SIDE, SIDE, WINDOW)(h))
        return self.out((self.act(a) ** 2).mean((2, 3)))


def _in_windows(a: Tensor) -> Tensor:
    n = SIDE // WINDOW
    a = a.unflatten(3, (n, WINDOW)).unflatten(2, (n, WINDOW))
    return a.permute(0, 2, 4, 3, 5, 1).reshape(-1, WINDOW * WINDOW, a.shape[1])


def _lengths(batch: int) -> Tensor:
    return torch.tensor([2, STEPS, 1, 2])[:batch]


def packed(batch: int) -> Any:
    """The model of packed sequences for some examples."""
    return functools.partial(make(Packed), lengths=_lengths(batch))


def _steps_of(a: Tensor) -> Tensor:
    """The data of a packed sequence, from padded rows."""
    return rnn.pack_padded_sequence(
        a, _lengths(len(a)), batch_first=True, enforce_sorted=False
    ).data


_as_is: Callable[[Any], Any] = lambda a: a  # noqa: E731
_first: Callable[[Any], Any] = lambda a: a[0]  # noqa: E731
_map: Callable[[Tensor], Tensor] = lambda a: a.mT  # noqa: E731
_frames: Callable[[Tensor], Tensor] = lambda a: a.unflatten(0, (-1, FRAMES))  # noqa: E731
_nodes: Callable[[Tensor], Tensor] = lambda a: a.unflatten(0, (-1, NODES))  # noqa: E731
_flat: Callable[[Tensor], Tensor] = lambda a: a.flatten(0, 1)  # noqa: E731
_images = layouts.windows(SIDE, SIDE, WINDOW)

LAID = {
    "frames": Laid(
        *(functools.partial(make, Video), (2, FRAMES, 4, 4), _frames, _frames, _flat, _as_is),
        (layouts.frames(FRAMES), lambda a: a.transpose(1, 2)),
        (1, 2, 0, 1),
    ),
    "time first": Laid(
        *(functools.partial(make, Steps, Outputs), (STEPS, 4), "time_first"),
        *(lambda v: v.transpose(0, 1), lambda a: a.transpose(0, 1), _as_is),
        (lambda v: v.permute(1, 2, 0), _map),
        (1, 3),
    ),
    "time first, with states": Laid(
        *(functools.partial(make, Steps), (STEPS, 4), lambda v: v[0].transpose(0, 1)),
        *(lambda v: v[0].transpose(0, 1), lambda a: a.transpose(0, 1), _first),
        (lambda v: v[0].permute(1, 2, 0), _map),
        (1, 3),
    ),
    "packed": Laid(
        *(functools.partial(packed, 3), (STEPS, 4), layouts.padded, layouts.padded, _steps_of),
        lambda v: v[0].data,
        (lambda v: layouts.padded(v).mT, _map),
        (0, 3),
    ),
    "nodes": Laid(
        lambda: functools.partial(make(Graph), edges=torch.tensor([[0, 1, 2, 0], [1, 0, 0, 2]])),
        *((NODES, 4), _nodes, _nodes, _flat, _as_is),
        (lambda a: _nodes(a).mT, _map),
        (1, 3),
    ),
    "windows": Laid(
        *(functools.partial(make, Windowed), (2, SIDE, SIDE), _images, _images, _in_windows),
        *(_as_is, (_images, _as_is), (1, 2, 3)),
    ),
}
