"""The circuit of a small transformer: which edges between its parts carry the answer.

Two layers of attention learn to recall: after pairs of a key and a value comes one of the keys, and
the answer is its value. What they have to do is known. The first layer tells each value the key in
front of it; the second compares the last key with that, and copies the value. So five edges matter:
from the embedding to the first layer's values, from there to the second layer's keys, from the
embedding to its queries and values, and from it to the output.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.func import grad, vmap

import attrfn
from attrfn import Site

PAIRS, WORDS, WIDTH = 4, 8, 32
WRITERS = ["embed", "layers.0", "layers.1"]
READERS = [
    *[Site(f"layers.{i}.{part}", at="input") for i in (0, 1) for part in "qkv"],
    Site("out", at="input"),
]
BEFORE = [[1, 0, 0]] * 3 + [[1, 1, 0]] * 3 + [[1, 1, 1]]  # which writers a reader has before it
KNOWN = [(2, 0), (5, 0), (3, 0), (4, 1), (6, 2)]  # (reader, writer)


class Attention(nn.Module):
    """One head, in which positions are added to what is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
        self.places = nn.Parameter(torch.randn(2 * PAIRS + 1, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        at = x + self.places
        qkv = self.q(at), self.k(at), self.v(x)
        return self.o(F.scaled_dot_product_attention(*qkv, is_causal=True))


class Recall(nn.Module):
    """Two layers of attention around a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2 * WORDS, WIDTH)
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens)
        for layer in self.layers:
            stream = stream + layer(stream)
        return self.out(stream)[:, -1]


def sequences(n: int) -> tuple[Tensor, Tensor]:
    """key, value, key, value ..., and one of the keys; the answer is its value."""
    keys, values = [torch.rand(n, WORDS).argsort(1)[:, :PAIRS] for _ in range(2)]
    asked = torch.randint(PAIRS, (n, 1))
    pairs = torch.stack([keys, values + WORDS], 2).flatten(1)
    return torch.cat([pairs, keys.gather(1, asked)], 1), values.gather(1, asked)[:, 0]


def trained(steps: int = 400) -> Recall:
    model = Recall()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        x, y = sequences(128)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    print(f"loss {F.cross_entropy(model(x), y):.3f} after {steps} steps")
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    out = parser.parse_args().out
    out.mkdir(exist_ok=True, parents=True)
    torch.manual_seed(0)
    model = trained()
    (x, y), (other, wrong) = sequences(256), sequences(256)
    x, y, other, wrong = [t[y != wrong] for t in (x, y, other, wrong)]
    there = attrfn.activations(model, WRITERS, frozen=True)(other)[1]

    def run(keep: Tensor) -> Tensor:
        """The model in which an edge that is not kept carries what it carries in the other run."""

        def read(v: int, value: Tensor, seen: dict[str, Tensor]) -> Tensor:
            for u, writer in enumerate(WRITERS):
                if BEFORE[v][u]:
                    value = value + (1 - keep[v, u]) * (there[writer] - seen[writer])
            return value

        edits = dict.fromkeys(WRITERS) | {s: partial(read, v) for v, s in enumerate(READERS)}
        logits = attrfn.intervene(model, edits, frozen=True)(x)
        return (logits.gather(1, y[:, None]) - logits.gather(1, wrong[:, None])).mean()

    edges = torch.tensor(BEFORE, dtype=torch.float32)
    one_by_one = torch.eye(edges.numel()).reshape(-1, *edges.shape)[edges.flatten() == 1]
    known = sum(one for one in one_by_one if tuple(one.nonzero()[0].tolist()) in KNOWN)
    whole, none, circuit = run(edges), run(0 * edges), run(known)
    print(f"margin of the right answer {whole:.2f}, with every edge of the other run {none:.2f}")

    # The share of the margin that goes with each edge: exactly, and by the gradient of the masks
    # on the way from none to all, whose shares of all edges sum to one.
    lost = (whole - vmap(run)(edges - one_by_one)) / (whole - none)
    exact = (lost[:, None, None] * one_by_one).sum(0)
    way = torch.linspace(0.05, 0.95, 10)
    by_gradient = vmap(lambda s: grad(run)(s * edges))(way).mean(0) * edges / (whole - none)
    share = (circuit - none) / (whole - none)
    print(f"{len(KNOWN)} of {len(one_by_one)} edges keep {share:.0%} of the margin")
    order = by_gradient.flatten().argsort(descending=True).tolist()
    found = {divmod(i, 3) for i in order[: len(KNOWN)]} & set(KNOWN)
    print(f"of the {len(KNOWN)} strongest edges by gradients {len(found)} are these")
    if share < 0.8 or len(found) < len(KNOWN):
        raise SystemExit("the circuit that is known to be right was not found")
    draw(out / "circuit.png", edges, exact, by_gradient)
    print(f"wrote {out / 'circuit.png'}")


def draw(path: Path, edges: Tensor, *tables: Tensor) -> None:
    """The shares of all edges; the known ones in frames."""
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    titles = ("one edge patched", "gradients along the masks")
    for ax, title, table in zip(figure.subplots(1, 2, sharey=True), titles, tables, strict=True):
        shown = table.masked_fill(edges == 0, float("nan"))
        picture = ax.imshow(shown, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for v, u in KNOWN:
            ax.add_patch(Rectangle((u - 0.5, v - 0.5), 1, 1, fill=False, edgecolor="black"))
        ax.set_title(title)
        ax.set_xticks(range(3), ["embedding", "layer 1", "layer 2"])
        ax.set_yticks(range(7), [*[f"layer {i} {p}" for i in (1, 2) for p in "qkv"], "output"])
    figure.colorbar(picture, ax=figure.axes, label="share of the margin")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
