"""Networks of the size that people explain, with random weights: what is timed is their shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# expansion, kernel, stride, channels, blocks of EfficientNet-Lite0
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def _unit(a: int, b: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution with batch norm and ReLU6."""
    conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(b), nn.ReLU6()]


class _Block(nn.Module):
    """An inverted residual block."""

    def __init__(self, a: int, b: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = a * expansion
        self.layers = nn.Sequential(
            *(_unit(a, wide, 1) if expansion > 1 else []),
            *_unit(wide, wide, kernel, stride, wide),
            *_unit(wide, b, 1)[:2],
        )
        self.residual = stride == 1 and a == b

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNet(nn.Module):
    """The layers of EfficientNet-Lite0: 49 convolutions, most of them depthwise or 1 x 1."""

    shape = (3, 224, 224)
    layer = "head.0"

    def __init__(self, stages: int = len(_STAGES)) -> None:
        super().__init__()
        blocks: list[nn.Module] = [*_unit(3, 32, 3, 2)]
        a = 32
        for expansion, kernel, stride, b, n in _STAGES[:stages]:
            for i in range(n):
                blocks.append(_Block(a, b, expansion, kernel, stride if i == 0 else 1))
                a = b
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_unit(a, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classes = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.head(self.features(x)))


def _encoder(width: int, heads: int, depth: int, norm_first: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


class VisionTransformer(nn.Module):
    """The layers of ViT-S/16: twelve of width 384 on 197 tokens."""

    shape = (3, 224, 224)
    layer = "encoder.layers.6"

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 384, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 384))
        self.places = nn.Parameter(0.02 * torch.randn(1, 197, 384))
        self.encoder = _encoder(384, 6, depth, norm_first=True)
        self.norm = nn.LayerNorm(384)
        self.classes = nn.Linear(384, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.classes(self.norm(self.encoder(tokens))[:, 0])


class Encoder(nn.Module):
    """Six layers of BERT's width on 128 embedded tokens."""

    shape = (128, 768)
    layer = "encoder.layers.3"

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.encoder = _encoder(768, 12, depth, norm_first=False)
        self.classes = nn.Linear(768, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.encoder(x)[:, 0])


class _Bottleneck(nn.Module):
    """Three convolutions around a shortcut."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *self.unit(inside, width, 1),
            nn.ReLU(inplace=True),
            *self.unit(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *self.unit(width, out, 1),
        )
        same = stride == 1 and inside == out
        self.shortcut = nn.Sequential(*([] if same else self.unit(inside, out, 1, stride)))
        self.last = nn.ReLU(inplace=True)

    @staticmethod
    def unit(a: int, b: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(b)]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """The layers of ResNet-50: 16 bottlenecks, 25 million parameters."""

    shape = (3, 224, 224)
    layer = "stages.3"

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)),
            *(nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        )
        inside, stages = width, []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(_Bottleneck(inside, width << i, 2 if i and not j else 1))
                inside = 4 * (width << i)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classes = nn.Linear(inside, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.head(self.stages(self.stem(x))))


def _double(a: int, b: int) -> nn.Sequential:
    """Two 3 x 3 x 3 convolutions."""
    first, second = nn.Conv3d(a, b, 3, padding=1), nn.Conv3d(b, b, 3, padding=1)
    return nn.Sequential(
        first, nn.InstanceNorm3d(b), nn.LeakyReLU(), second, nn.InstanceNorm3d(b), nn.LeakyReLU()
    )


class UNet3d(nn.Module):
    """A U-Net of three levels on a volume, with one number for each of two classes."""

    shape = (1, 32, 32, 32)
    layer = "bottom"

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_double(1, 16), _double(16, 32)])
        self.bottom = _double(32, 64)
        self.up = nn.ModuleList(
            [nn.ConvTranspose3d(64, 32, 2, 2), nn.ConvTranspose3d(32, 16, 2, 2)]
        )
        self.join = nn.ModuleList([_double(64, 32), _double(32, 16)])
        self.classes = nn.Conv3d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
            x = nn.functional.max_pool3d(x, 2)
        x = self.bottom(x)
        for up, join, beside in zip(self.up, self.join, reversed(kept), strict=True):
            x = join(torch.cat([up(x), beside], 1))
        return self.classes(x).mean((2, 3, 4))


class Lstm(nn.Module):
    """Two layers of 256 units on 64 steps of 64 features."""

    shape = (64, 64)
    layer = "lstm"

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 256, 2, batch_first=True)
        self.classes = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.lstm(x)[0][:, -1])


REAL = {
    "EfficientNet": EfficientNet,
    "ResNet": ResNet,
    "ViT": VisionTransformer,
    "BERT": Encoder,
    "U-Net 3d": UNet3d,
    "LSTM": Lstm,
}
