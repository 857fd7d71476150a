"""Networks whose layers have closed forms."""

from __future__ import annotations

import oracles
import torch
from oracles import randn
from torch import nn

X, X0 = randn(0, 5, 3), randn(1, 5, 3)
T = 1


def quadratic():
    """f_t = v_t'(Wx + c)^2 + d_t, whose layer methods can be done by hand."""
    return oracles.seeded(lambda: nn.Sequential(nn.Linear(3, 4), oracles.Square(), nn.Linear(4, 2)))


def parts(model):
    """W, v_T, a = W x + c and a0 = W x0 + c of the quadratic network."""
    with torch.no_grad():
        weights = model[0].weight.detach(), model[2].weight[T].detach()
        return *weights, model[0](X), model[0](X0)


def cnn():
    return oracles.seeded(lambda: oracles.Cnn(nn.Tanh))


IMAGES, IMAGES0 = randn(2, 2, 2, 8, 8), randn(3, 2, 2, 8, 8)
