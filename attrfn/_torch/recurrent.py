"""Recurrent layers decomposed into steps of simpler operations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Gate = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """The weights of one direction of one layer."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


Step = Callable[[Tensor, State, Weights], State]


def lstm_step(gate: Gate = torch.sigmoid) -> Step:
    """``c' = f c + i tanh(g)``, ``h' = o tanh(c')``."""

    def step(x: Tensor, state: State, w: Weights) -> State:
        h, c = state
        i, f, g, o = (F.linear(x, w.w_ih, w.b_ih) + F.linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
        c = gate(f) * c + gate(i) * torch.tanh(g)
        h = gate(o) * torch.tanh(c)
        return (h if w.w_hr is None else F.linear(h, w.w_hr)), c

    return step


def gru_step(gate: Gate = torch.sigmoid) -> Step:
    """``n = tanh(x_n + r h_n)``, ``h' = (1 - z) n + z h``."""

    def step(x: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        x_r, x_z, x_n = F.linear(x, w.w_ih, w.b_ih).chunk(3, -1)
        h_r, h_z, h_n = F.linear(h, w.w_hh, w.b_hh).chunk(3, -1)
        z = gate(x_z + h_z)
        n = torch.tanh(x_n + gate(x_r + h_r) * h_n)
        return (n + z * (h - n),)

    return step


def rnn_step(f: Callable[[Tensor], Tensor]) -> Step:
    """``h' = f(x_h + h_h)``."""

    def step(x: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        return (f(F.linear(x, w.w_ih, w.b_ih) + F.linear(h, w.w_hh, w.b_hh)),)

    return step


def layers(step: Step, states: int) -> Callable[..., Any]:
    """The function of ``torch`` that runs all layers: ``lstm``, ``gru``, ``rnn_tanh`` ..."""

    def run(*args: Any) -> Any:
        # A packed sequence comes as (data, batch sizes, ...), without the layout of batches.
        along: Callable[..., tuple[Tensor, State]] = _along
        batch_first = False
        if not isinstance(args[3], bool):
            input, lengths, *args_ = args
            hx, flat, has_biases, num_layers, _, _, bidirectional = args_
            along = functools.partial(_along_packed, lengths.tolist())
        else:
            input, hx, flat, has_biases, num_layers, _, _, bidirectional = args[:8]
            batch_first = bool(args[8:] and args[8])
        start: State = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        directions = 2 if bidirectional else 1
        per = len(flat) // (num_layers * directions)
        x = input.transpose(0, 1) if batch_first else input
        ends: list[State] = []
        for layer in range(num_layers):
            outs = []
            for way in range(directions):
                k = layer * directions + way
                w = _weights(flat[k * per : (k + 1) * per], has_biases)
                out, end = along(step, x, tuple([s.select(0, k) for s in start]), w, way == 1)
                outs.append(out)
                ends.append(end)
            x = torch.cat(outs, -1) if directions == 2 else outs[0]
        last = tuple([torch.stack([end[i] for end in ends]) for i in range(states)])
        return x.transpose(0, 1) if batch_first else x, *last

    return run


def cell(step: Step, states: int) -> Callable[..., Any]:
    """The function of ``torch`` that runs one step: ``lstm_cell``, ``gru_cell`` ..."""

    def run(
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state: State = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        out = step(input, state, Weights(w_ih, w_hh, b_ih, b_hh, None))
        return out if states > 1 else out[0]

    return run


def _along(
    step: Step, x: Tensor, state: State, w: Weights, backwards: bool
) -> tuple[Tensor, State]:
    times = range(len(x))
    outs = []
    for t in reversed(times) if backwards else times:
        # select and not x[t], which modes of old versions of torch do not see
        state = step(x.select(0, t), state, w)
        outs.append(state[0])
    return torch.stack(outs[::-1] if backwards else outs), state


def _along_packed(
    sizes: Sequence[int], step: Step, x: Tensor, state: State, w: Weights, backwards: bool
) -> tuple[Tensor, State]:
    """Steps of a packed sequence: the rows of step t are those that are longer than t."""
    parts = torch.split(x, list(sizes))
    outs: list[Tensor] = []
    if backwards:  # shorter rows join on the way
        start, state = state, _rows(state, 0, sizes[-1])
        for part in reversed(parts):
            n, known = len(part), len(state[0])
            joined = zip(state, _rows(start, known, n), strict=True)
            state = tuple([torch.cat(pair) for pair in joined]) if n > known else state
            state = step(part, state, w)
            outs.append(state[0])
        return torch.cat(outs[::-1]), state
    ends: list[State] = []
    for part in parts:  # and leave here
        if len(part) < len(state[0]):
            ends.append(_rows(state, len(part), len(state[0])))
            state = _rows(state, 0, len(part))
        state = step(part, state, w)
        outs.append(state[0])
    ends.append(state)
    return torch.cat(outs), tuple([torch.cat(end) for end in zip(*ends[::-1], strict=True)])


def _rows(state: State, start: int, end: int) -> State:
    return tuple([s.narrow(0, start, end - start) for s in state])


def _weights(flat: Sequence[Tensor], has_biases: bool) -> Weights:
    biases = flat[2:4] if has_biases else (None, None)
    rest = flat[4:] if has_biases else flat[2:]
    return Weights(flat[0], flat[1], biases[0], biases[1], rest[0] if rest else None)


# torch's vmap has no rule for these. Along the examples of a batch they are faster as they are.
OF_TORCH: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.lstm: layers(lstm_step(), 2),
    torch.gru: layers(gru_step(), 1),
    torch.rnn_tanh: layers(rnn_step(torch.tanh), 1),
    torch.rnn_relu: layers(rnn_step(torch.relu), 1),
    torch.lstm_cell: cell(lstm_step(), 2),
    torch.gru_cell: cell(gru_step(), 1),
    torch.rnn_tanh_cell: cell(rnn_step(torch.tanh), 1),
    torch.rnn_relu_cell: cell(rnn_step(torch.relu), 1),
}
"""The functions of torch, each as steps of simpler operations."""
