"""One call for texts on tiny families of models: every route, with generated answers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from text_families import CAUSAL, MOE, SEQ2SEQ, causal, seq2seq

import attrfn
from attrfn import text

PROMPT = "a bc d, ef g hi j"


class Letters:
    """A token for each letter, from 3 on."""

    pad_token_id, bos_token_id, eos_token_id = 2, 0, 1
    all_special_ids = (0, 1, 2)

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        found = list(re.finditer(r"\s*(?:<(\d)>|(\S))", text))
        spans = [m.span() for m in found]
        ids = [int(m[1]) if m[1] else 3 + (ord(m[2]) - 97) % 37 for m in found]
        return {"input_ids": ids, "offset_mapping": spans}

    def decode(self, ids: list[int]) -> str:
        return "".join(f"<{i}>" if i < 3 else f" {chr(94 + i)}" for i in ids)


# Without rules: see the pages of DeepLIFT and LRP.
NO_DEEP_LIFT = (*MOE, "bloom", "mamba")
NO_LRP = (*MOE, "bloom", "mamba")


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_families(name: str) -> None:
    """Ablation row by row; gradients by autograd; the answer by a loop over the model."""
    model, tokenizer = causal(name), Letters()
    parts = text.parts(PROMPT, tokenizer)
    found = text.attribute(attrfn.feature_ablation, model, tokenizer, PROMPT, max_new_tokens=3)
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < 3 and ids[-1:] != [1]:
            whole = torch.cat([parts.ids, torch.tensor([ids], dtype=torch.long)], 1)
            ids.append(int(model(input_ids=whole).logits[0, -1].argmax()))
    assert "".join(found.answer) == tokenizer.decode(ids)

    def scores(prompt: Any, **more: Any) -> Any:
        tail = torch.tensor([ids[:-1]], dtype=torch.long)
        if "x" in more:
            table = model.get_input_embeddings()
            out = model(inputs_embeds=torch.cat([more["x"], table(tail)], 1), use_cache=False)
        else:
            out = model(input_ids=torch.cat([prompt, tail], 1))
        logits = out.logits[0, parts.ids.shape[1] - 1 :].log_softmax(-1)
        return logits.gather(1, torch.tensor(ids)[:, None])[:, 0]

    tolerance = 1e-3 if name in MOE else 1e-6
    with torch.no_grad():
        full = scores(parts.ids)
        for k in range(parts.n):
            gone = torch.where(parts.mask == k, 2, parts.ids)
            lost = (full - scores(gone)).to(found.values)
            torch.testing.assert_close(
                found.values[:, k], lost, atol=10 * tolerance, rtol=tolerance
            )
    x = model.get_input_embeddings()(parts.ids).detach().requires_grad_()
    each = [torch.autograd.grad(s, x, retain_graph=True)[0][0] for s in scores(None, x=x)]
    by_hand = torch.stack([(x[0].detach() * g).sum(1) for g in each])
    expected = torch.stack([by_hand[:, parts.mask == k].sum(1) for k in range(parts.n)], 1)
    # torch warns that vmap has no rule for the matrices of experts.
    batch = 1 if name in MOE else None
    got = text.attribute(attrfn.input_x_gradient, model, tokenizer, PROMPT, ids, batch=batch)
    torch.testing.assert_close(got.values, expected, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in CAUSAL if n not in NO_DEEP_LIFT])
def test_paths_and_rules(name: str) -> None:
    model, tokenizer = causal(name), Letters()
    remove = text.replace(9)
    for method, options in (
        (attrfn.deep_lift, {}),
        (attrfn.integrated_gradients, {"n_steps": 200}),
    ):
        found = text.attribute(
            method, model, tokenizer, PROMPT, " a b", remove=remove, foil=" c d", **options
        )
        change = found.scores - found.empty
        gap = (found.values.sum(1) - change).abs().max()
        assert gap <= (1e-6 if method is attrfn.deep_lift else 0.05) * (1 + change.abs().max())
    if name not in NO_LRP:
        rules = attrfn.rules.attn_lrp()
        found = text.attribute(
            attrfn.lrp, model, tokenizer, PROMPT, " a b", score="logit", rules=rules
        )
        assert found.values.isfinite().all()


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders(name: str) -> None:
    model, tokenizer = seq2seq(name), Letters()
    parts = text.parts(PROMPT, tokenizer)
    found = text.attribute(attrfn.shapley_values, model, tokenizer, PROMPT, " a b", by="[a-g]+")
    path = text.attribute(
        attrfn.deep_lift, model, tokenizer, PROMPT, " a b", remove=text.replace(9)
    )
    for a in (found, path):
        torch.testing.assert_close(a.values.sum(1), a.scores - a.empty, atol=1e-4, rtol=1e-4)
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        out = model(input_ids=parts.ids, decoder_input_ids=torch.tensor([[start, 3]])).logits
    expected = out[0].log_softmax(-1)[[0, 1], [3, 4]]
    torch.testing.assert_close(found.scores, expected.to(found.scores), atol=1e-5, rtol=1e-5)
    made = text.attribute(attrfn.gradient, model, tokenizer, PROMPT, max_new_tokens=4)
    generated = model.generate(
        parts.ids,
        attention_mask=torch.ones_like(parts.ids),
        do_sample=False,
        max_new_tokens=4,
        forced_eos_token_id=None,  # Bart ends its answers by force
    )
    assert "".join(made.answer) == tokenizer.decode(generated[0, 1:].tolist())
