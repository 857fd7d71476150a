"""Models whose right attributions are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attrfn.testing._draw import normal, seeded


class Game(nn.Module):
    """The multilinear extension of a game of n players: inputs 0 or 1 say who plays.

        f(x) = sum_S v(S) prod_{k in S} x_k prod_{k not in S} (1 - x_k)

    At x = 1 with baselines 0, the attributions of Shapley methods and of integrated gradients are
    the Shapley values (Owen, Multilinear Extensions of Games, 1972).

    Attributes:
        values: v, (2^n,), where player k is bit k.
        n: The number of players.
    """

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.n = int(math.log2(values.numel()))

    def forward(self, x: Tensor) -> Tensor:
        """One value for each row of players, (B, n) to (B,)."""
        v = self.values.to(x).expand(x.shape[0], -1)
        for k in range(self.n):
            share = x[:, k, None]
            v = v.reshape(x.shape[0], -1, 2)
            v = (1 - share) * v[..., 0] + share * v[..., 1]
        return v[:, 0]

    @property
    def inputs(self) -> Tensor:
        """All players, (1, n)."""
        return self.values.new_ones(1, self.n)

    @property
    def shapley(self) -> Tensor:
        """The Shapley values, (n,): marginal contributions weighted over all coalitions."""
        n, found = self.n, []
        for k in range(n):
            total = self.values.new_zeros(())
            for s in range(2**n):
                if not s >> k & 1:
                    size = bin(s).count("1")
                    weight = 1 / (n * math.comb(n - 1, size))
                    total = total + weight * (self.values[s | 1 << k] - self.values[s])
            found.append(total)
        return torch.stack(found)

    def __repr__(self) -> str:
        return f"Game({[round(v, 4) for v in self.values.tolist()]})"


class Additive(nn.Module):
    """A sum of functions of one element each.

        f(x) = c + sum_k (a_k x_k + b_k tanh(x_k))

    The attribution of element k by every method of Shapley values, by feature ablation, integrated
    gradients and DeepLIFT is the change of its own term.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        super().__init__()
        self.n, self.seed = n, seed
        self.a = nn.Parameter(normal(n, seed=2 * seed + 1))
        self.b = nn.Parameter(normal(n, seed=2 * seed + 2))

    def terms(self, x: Tensor) -> Tensor:
        """The term of each element, (B, n)."""
        return self.a * x + self.b * torch.tanh(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n) to (B,)."""
        return self.terms(x).sum(1) + 0.5

    def attributions(self, x: Tensor, x0: Tensor | float = 0.0) -> Tensor:
        """The right attributions, (B, n)."""
        base = torch.as_tensor(x0, dtype=x.dtype, device=x.device).expand_as(x)
        return (self.terms(x) - self.terms(base)).detach()

    def __repr__(self) -> str:
        return f"Additive(n={self.n}, seed={self.seed})"


class Treats(nn.Module):
    """Reads some elements of the flat inputs alike, others apart, and some not at all.

    Args:
        n: The number of elements.
        alike: Those that may change places.
        unread: Those on which the output does not depend.
        seed: That of the weights.
        outputs: K, for outputs (B, K); 0 for outputs (B,).
    """

    def __init__(
        self,
        n: int,
        alike: tuple[int, ...] = (),
        unread: tuple[int, ...] = (),
        seed: int = 0,
        outputs: int = 0,
    ) -> None:
        super().__init__()
        self.n, self.alike, self.unread, self.seed, self.outputs = n, alike, unread, seed, outputs
        self.apart = tuple([k for k in range(n) if k not in (*alike, *unread)])
        width = len(self.apart) + (2 if alike else 0)
        layers = seeded(
            lambda: nn.Sequential(nn.Linear(width, 3), nn.Linear(3, max(1, outputs))), seed
        )
        self.inp, self.out = layers
        self.mid = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """(B, n), or inputs of n elements each, to (B,) or (B, K)."""
        x = x.flatten(1)
        read = [x[:, k] for k in self.apart]
        if self.alike:
            product, total = x[:, self.alike[0]], x[:, self.alike[0]]
            for k in self.alike[1:]:
                product, total = product * x[:, k], total + x[:, k]
            read += [product, total]
        y: Tensor = self.out(self.mid(self.inp(torch.stack(read, 1))))
        return y if self.outputs else y[:, 0]

    def __repr__(self) -> str:
        return f"Treats(n={self.n}, alike={self.alike}, unread={self.unread}, seed={self.seed})"
