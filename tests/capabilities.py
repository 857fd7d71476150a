"""The page docs/capabilities.md: each public method times what its tests do to it.

A test with the mark ``capability(column)`` and a row ``r`` stands for the cells of the column at
the public names that the row covers. A run of the tests compares what passed with the page;
``make capabilities`` writes the page anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "capabilities.md"

COLUMNS = {
    "eager": "the method as it is called",
    "vmap": "`torch.func.vmap` of the method over examples, or over targets",
    "jvp": "`torch.func.jvp` of the attributions with respect to the inputs",
    "grad": "`torch.func.grad` of a function of the attributions with respect to the inputs",
    "compile": "`torch.compile(fullgraph=True)`, once for all values of the inputs and parameters",
    "compile + vmap": "`torch.func.vmap` of the method inside `torch.compile(fullgraph=True)`",
    "export": "`torch.export` of the attributions, with `make_fx` before it (see below)",
    "complex": "of a net with complex numbers inside: a filter of frequencies",
    "packed": "of a net that packs its sequences for an LSTM",
    "sparse": "of a net that multiplies with a sparse matrix",
    "recurrent + vmap": "`torch.func.vmap` of the method over examples, of a net with a GRU",
}

# Columns of which the default run shows a part; `make capabilities` runs the rest.
SAMPLED = {"compile", "compile + vmap"}

CONSTANT = "the coefficients of the rules count as constants"
TOGETHER = "over targets: its examples reach each other"
ALL_ROWS = "its examples reach each other, so that none can be mapped over alone"

# Cells that are not to be had, or not as the column says, and why.
REASONS = {
    ("with_rules", "jvp"): CONSTANT,
    ("with_rules", "grad"): CONSTANT,
    ("feature_permutation", "vmap"): TOGETHER,
    ("feature_permutation", "compile + vmap"): TOGETHER,
    ("layer_feature_permutation", "vmap"): TOGETHER,
    ("layer_feature_permutation", "compile + vmap"): TOGETHER,
    ("feature_permutation", "recurrent + vmap"): ALL_ROWS,
    ("layer_feature_permutation", "recurrent + vmap"): ALL_ROWS,
}

HEAD = """\
# Capabilities

What works with each method, as the tests of this repository found it. They run every cell on small
networks with layers that are used twice, functional and in-place operations, and compare values and
derivatives with loops and with differences. Where a footnote stands, the cell is not what its
column says.

"""

ARCHITECTURES = """
## Architectures

Gradients, integrated gradients, DeepLIFT, AttnLRP, feature ablation and layers by their qualified
names are tested on tiny random models of these families of Hugging Face's `transformers`:

* encoders: albert, bert, deberta, distilbert, electra, mpnet, roberta
* decoders: bloom, gemma, gpt2, gpt_neox, llama, mamba, mistral, mixtral, opt, phi, qwen2
* encoders with decoders: bart, t5
* images: convnext, resnet, swin, vit
* sound: spectrogram (AST), wav2vec2

Two of them are refused by DeepLIFT, with the module and the operation in the message. Bloom's GELU
is a custom `autograd.Function`, which hides its operations: put `torch.nn.GELU("tanh")` in its
place. Mixtral's router picks experts by `topk`: where it picks other ones for the baselines, there
is no difference to share out. Integrated gradients of Mixtral are not complete for the same reason.

Thirty-four further families are tested in the same way: mixtures of experts (DeepSeek, Qwen3-MoE,
OLMoE, GPT-OSS), recurrences and state spaces (RWKV, xLSTM, Mamba-2, RecurrentGemma, Bamba), text
(FNet, ModernBERT, XLNet, Falcon ...), images (LeViT, SegFormer, MobileNet, Hiera, FocalNet ...),
time series, sound, and graph networks.
"""

EXPORT = """
## Export

`torch.export` cannot write down `torch.func` transforms by itself; `make_fx` can, and what it
writes are plain operations, without a trace of this library.

```python
>>> import torch, attrfn
>>> from torch.fx.experimental.proxy_tensor import make_fx
>>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
>>> explain = lambda x: attrfn.integrated_gradients(model, x, target=1, n_steps=8)
>>> x = torch.ones(5, 3)
>>> program = torch.export.export(make_fx(explain)(x), (x,))
>>> torch.allclose(program.module()(x), explain(x))
True

```

The shapes of the inputs, and a target that is a number, are fixed by it; the parameters are its
constants.
"""

Cells = Mapping[tuple[str, str], bool]


def properties(item: Any) -> Iterable[tuple[str, str]]:
    """What a test shows: pairs ("capability", "name|column"), which its report carries along."""
    row = getattr(item, "callspec", None) and item.callspec.params.get("r")
    for mark in item.iter_markers("capability"):
        for name in dict.fromkeys(row.covers):
            yield "capability", f"{name}|{mark.args[0]}"


def page(passed: Cells, names: Iterable[str]) -> str:
    """The page; a cell without a test that passed and without a reason stays empty."""
    notes: list[str] = []

    def cell(name: str, column: str) -> str:
        good = passed.get((name, column), False)
        reason = REASONS.get((name, column))
        if reason is None:
            return "✓" if good else ""
        if reason not in notes:
            notes.append(reason)
        return f"{'✓' if good else '–'} [{notes.index(reason) + 1}](#notes)"

    lines = [HEAD, f"| | {' | '.join(COLUMNS)} |\n", f"|:--{'|:-:' * len(COLUMNS)}|\n"]
    lines += [
        f"| `{name}` | {' | '.join(cell(name, column) for column in COLUMNS)} |\n"
        for name in sorted(names)
    ]
    lines += ["\n", *(f"* **{column}**: {what}.\n" for column, what in COLUMNS.items())]
    lines += ["\n## Notes\n\n", *(f"{i}. {note}.\n" for i, note in enumerate(notes, 1))]
    return "".join([*lines, ARCHITECTURES, EXPORT])


def found(text: str) -> dict[tuple[str, str], bool]:
    """The cells of a page, by their names and columns: whether they are ticked."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return {
        (name.strip().strip("`"), column): "✓" in cell
        for name, *cells in rows
        for column, cell in zip(COLUMNS, cells, strict=True)
    }


def unshown(passed: Cells, ticked: Cells) -> list[tuple[str, str]]:
    """The ticks for which no test stands any more."""
    return sorted(cell for cell, good in ticked.items() if good and cell not in passed)
