"""Small random models of many kinds; ``mid`` cuts each of them in two.

They use operations that have second derivatives and go through vmap, so that a failure is one of
the method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrfn.testing._draw import seeded

OUTPUTS = 3


class ExampleModel(nn.Module):
    """A small model in evaluation mode, with what is needed to explain it.

    Args:
        width: The number of hidden features.
        outputs: K, for outputs (B, K); 0 for outputs (B,).

    Attributes:
        kind: Its name in messages.
        shape: The shape of one example.
        smooth: Whether it is analytic, so that attributions are differentiable.
        images: Whether inputs and ``mid`` have the form (B, C, H, W).
        relu: Whether it has a ReLU.
        neuron: The place of one neuron of ``mid``.
    """

    kind: ClassVar[str]
    shape: ClassVar[tuple[int, ...]] = (4,)
    smooth: ClassVar[bool] = True
    images: ClassVar[bool] = False
    relu: ClassVar[bool] = False
    neuron: ClassVar[Any] = 0

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width, self.outputs, self.seed = width, outputs, 0
        self.last = nn.Linear(self.build(width), max(1, outputs))

    def build(self, width: int) -> int:
        """Make the layers and return the width in front of the last one."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """From the inputs to what the last layer gets."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K) or (B,)."""
        y: Tensor = self.last(self.features(x))
        return y if self.outputs else y[:, 0]

    def __repr__(self) -> str:
        return f"{self.kind}(width={self.width}, outputs={self.outputs}, seed={self.seed})"


class Mlp(ExampleModel):
    """Two linear layers with tanh."""

    kind = "mlp"

    def build(self, width: int) -> int:
        self.inp, self.mid = nn.Linear(4, width), nn.Tanh()
        return width

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.mid(self.inp(x))
        return y


class Rectified(ExampleModel):
    """Two linear layers with ReLU."""

    kind, smooth, relu = "rectified", False, True

    def build(self, width: int) -> int:
        self.inp, self.mid = nn.Linear(4, width + 2), nn.ReLU()
        return width + 2

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.mid(self.inp(x))
        return y


class Cnn(ExampleModel):
    """A convolution of images (2, 4, 4), pooled."""

    kind, shape, images, neuron = "cnn", (2, 4, 4), True, (0, 0, 0)

    def build(self, width: int) -> int:
        self.inp, self.mid = nn.Conv2d(2, width, 3, padding=1), nn.AvgPool2d(2)
        return 4 * width

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mid(F.softplus(self.inp(x)))).flatten(1)


class RectifiedCnn(ExampleModel):
    """A convolution of images (2, 4, 4) with ReLU, after and before smooth operations."""

    kind, shape, images, neuron, relu = "rectified cnn", (2, 4, 4), True, (0, 0, 0), True
    smooth = False

    def build(self, width: int) -> int:
        self.inp, self.act = nn.Conv2d(2, width + 1, 3, padding=1), nn.ReLU()
        self.mid = nn.Conv2d(width + 1, width + 1, 3)
        return 4 * (width + 1)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mid(self.act(self.inp(x)))).flatten(1)


class Residual(ExampleModel):
    """Two blocks with skip connections."""

    kind = "residual"

    def build(self, width: int) -> int:
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.mid = nn.Softplus()
        return 4

    def features(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.one(x))
        return x + torch.sigmoid(self.two(self.mid(x)))


class Recurrent(ExampleModel):
    """A cell that is used once for each of three steps."""

    kind, shape = "recurrent", (3, 2)

    def build(self, width: int) -> int:
        self.inp, self.mid = nn.Linear(2, width), nn.Linear(width, width)
        return width

    def features(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inp(x[:, 0]))
        for step in range(1, x.shape[1]):
            h = torch.tanh(self.inp(x[:, step]) + self.mid(h))
        return h


class Attention(ExampleModel):
    """Self-attention over three tokens, with a layer norm."""

    kind, shape, neuron = "attention", (3, 2), (0, 0)

    def build(self, width: int) -> int:
        self.inp, self.norm = nn.Linear(2, width + 1), nn.LayerNorm(width + 1, eps=0.1)
        self.qkv, self.mid = nn.Linear(width + 1, 3 * width), nn.Linear(width, width)
        return width

    def features(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(self.inp(x))).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return F.gelu(self.mid(weights @ v)).mean(1)


class Reuse(ExampleModel):
    """One in-place ReLU that is used three times."""

    kind, relu, smooth = "reuse", True, False

    def build(self, width: int) -> int:
        self.inp, self.act = nn.Linear(4, width + 2), nn.ReLU(inplace=True)
        self.mid = nn.Linear(width + 2, width + 2)
        return width + 2

    def features(self, x: Tensor) -> Tensor:
        h = self.act(self.inp(x) + 0.5)
        y: Tensor = self.act(self.mid(h)) + self.act(0.5 - h)
        return y


class Functional(ExampleModel):
    """Functions and operators in place of modules."""

    kind = "functional"

    def build(self, width: int) -> int:
        self.mid, self.weight = nn.Linear(width, width), nn.Parameter(torch.randn(width, 4))
        return width

    def features(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(torch.einsum("bi,oi->bo", x, self.weight))
        return F.silu(self.mid(h)) * h + h.square()


class InPlace(ExampleModel):
    """In-place operations on hidden values."""

    kind = "in-place"

    def build(self, width: int) -> int:
        self.inp, self.mid = nn.Linear(4, width), nn.Linear(width, width)
        return width

    def features(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        h = h.add_(0.5).mul_(0.7).tanh_()
        y: Tensor = self.mid(h)
        return y.sigmoid_()


KINDS: tuple[type[ExampleModel], ...] = (
    *(Mlp, Rectified, Cnn, Residual, Recurrent, Attention),
    *(Reuse, Functional, InPlace, RectifiedCnn),
)


def example(
    kind: type[ExampleModel],
    width: int = 2,
    outputs: int = OUTPUTS,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> ExampleModel:
    """A model of a kind."""
    model = seeded(lambda: kind(width, outputs), seed, dtype)
    model.seed = seed
    return model


def kinds_where(keep: Callable[[type[ExampleModel]], bool]) -> list[type[ExampleModel]]:
    """The kinds of models of which something is true, simple ones first."""
    return [kind for kind in KINDS if keep(kind)]
