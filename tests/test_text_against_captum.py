"""Ablation of prompts is that of Captum, without its cache, which is wrong in 0.9."""

from __future__ import annotations

from typing import Any

import pytest
import text_families as families
import torch
from oracles import close
from text_models import parts_of

import attrfn
from attrfn import text

attr = pytest.importorskip("captum.attr")

IDS = [5, 6, 7, 8, 9, 10]
ANSWER = [20, 21, 22]


class Numbers:
    """A tokenizer of numbers between spaces."""

    pad_token_id = 2

    def encode(self, text: str, add_special_tokens: Any = None, return_tensors: Any = None) -> Any:
        ids = [int(t) for t in text.split()]
        return torch.tensor([ids]) if return_tensors else ids

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return [str(int(i)) for i in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return int(tokens) if isinstance(tokens, str) else [int(t) for t in tokens]

    def decode(self, ids: Any, **more: Any) -> str:
        return " ".join(str(int(i)) for i in ids)

    def __call__(self, text: str, **more: Any) -> Any:
        ids = self.encode(text)
        return {"input_ids": ids, "offset_mapping": [(i, i + 1) for i in range(len(ids))]}


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("method", ["FeatureAblation", "ShapleyValues"])
def test_tokens(name: str, method: str) -> None:
    model = families.causal(name)
    tokenizer = Numbers()
    explainer = attr.LLMAttribution(getattr(attr, method)(model), tokenizer)
    ids = IDS if method == "FeatureAblation" else IDS[:3]  # Captum runs all orders, one by one
    inputs = attr.TextTokenInput(" ".join(map(str, ids)), tokenizer, baselines=3)
    theirs = explainer.attribute(inputs, target=torch.tensor(ANSWER), use_cached_outputs=False)
    ours = {"FeatureAblation": attrfn.feature_ablation, "ShapleyValues": attrfn.shapley_values}
    g = text.game(model, parts_of(ids), answer=[ANSWER], remove=text.replace(3))
    found = ours[method](g.fn, g.full)[0]
    close(found.float(), theirs.token_attr.float(), 1e-5)
    close(found.sum(0).float(), theirs.seq_attr.float(), 1e-5)


def test_templates() -> None:
    model, tokenizer = families.causal("llama"), Numbers()
    explainer = attr.LLMAttribution(attr.FeatureAblation(model), tokenizer)
    inputs = attr.TextTemplateInput("5 {} 6 {} 7", values=["8 9", "10"], baselines=["3", "3 3 3"])
    theirs = explainer.attribute(inputs, target=torch.tensor(ANSWER), use_cached_outputs=False)
    p = text.Parts(torch.tensor([IDS]), torch.tensor([-1] * 6), 2, ("8 9", "10"))
    remove = text.template(
        lambda v: f"5 {v[0]} 6 {v[1]} 7", tokenizer.encode, absent=["3", "3 3 3"]
    )
    g = text.game(model, p, answer=[ANSWER], remove=remove)
    found = attrfn.feature_ablation(g.fn, g.full)[0]
    close(found.float(), theirs.token_attr.float(), 1e-5)
