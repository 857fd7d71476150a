"""Exported models of Hugging Face: ids, masks by name, outputs by name, layers by path and node."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import tiny_transformers as tiny
import torch
from programs_cases import DYNAMIC, through_a_file
from test_programs import near

import attrfn
import attrfn.programs

pytestmark = pytest.mark.compiles


def logits(model: Any) -> Any:
    """The module with a tensor as its output."""

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *args: Any, **named: Any) -> Any:
            return self.inner(*args, **named).logits

    return Logits().eval()


@functools.cache
def bert() -> Any:
    given = {"input_ids": tiny.IDS, "attention_mask": tiny.LENGTHS}
    exported = torch.export.export(
        tiny.bert(), (), given, dynamic_shapes=dict.fromkeys(given, DYNAMIC), strict=False
    )
    through_a_file(exported)
    return attrfn.programs.load(exported, outputs="logits")


def bound(model: Any) -> Any:
    return functools.partial(model, attention_mask=tiny.LENGTHS)


def test_layers_of_ids() -> None:
    program, model = bert(), logits(tiny.bert())
    layer = "bert.embeddings.word_embeddings"
    for method in (
        attrfn.layer_gradient_x_activation,
        attrfn.layer_integrated_gradients,
        attrfn.layer_deep_lift,
        functools.partial(attrfn.layer_lrp, rules=attrfn.rules.attn_lrp()),
    ):
        more = {"baselines": tiny.BASE} if "lrp" not in str(method) else {}
        if method is attrfn.layer_gradient_x_activation:
            more = {}
        found = method(bound(program), tiny.IDS, target=1, layer=layer, **more)
        near(found, method(bound(model), tiny.IDS, target=1, layer=f"inner.{layer}", **more))


def test_words_that_are_replaced() -> None:
    program, model = bert(), logits(tiny.bert())
    for method in (attrfn.feature_ablation, attrfn.shapley_value_sampling):
        options = {"target": 1, "baselines": tiny.MASK}
        near(method(bound(program), tiny.IDS, **options), method(bound(model), tiny.IDS, **options))


@pytest.mark.fuzz
def test_an_image_model() -> None:
    model = tiny.vit()
    x = tiny.randn(2, 2, 12, 12)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: DYNAMIC[0]},), strict=False)
    program = attrfn.programs.load(exported, outputs=0)
    for method in (attrfn.integrated_gradients, attrfn.deep_lift, attrfn.lrp):
        near(method(program, x, target=1), method(logits(model), x, target=1))
