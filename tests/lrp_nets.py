"""Networks for the tests of LRP."""

from __future__ import annotations

import pytest
import torch
from oracles import close
from torch import nn

import attrfn


def filled(model):
    """The i-th parameter is 0.5 sin(0.37 k + 1 + i), k = 0, 1, 2 ..."""
    model = model.double().eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            k = torch.arange(p.numel(), dtype=torch.float64)
            p.copy_((0.5 * torch.sin(0.37 * k + 1 + i)).reshape(p.shape))
    return model


def picture():
    return torch.cos(0.7 * torch.arange(16, dtype=torch.float64)).reshape(1, 1, 4, 4)


def conv_net():
    return filled(
        nn.Sequential(
            *(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        )
    )


def both(f, x, **options):
    """In one pass, and in two."""
    got = attrfn.lrp(f, x, **options)
    close(attrfn.lrp(f, x, create_graph=True, **options), got)
    return got


has_rms_norm = pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="torch has it since 2.4")
