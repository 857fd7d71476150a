"""Calls of text.attribute that are less common: scores, removals, dtypes, contexts, odd models."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import text_grammar
import torch
from torch import Tensor

import attrfn
from attrfn import text

FACTS = "ann red. bob blue. it rains today. cy green. bob"
BOTH = [
    (attrfn.shapley_values, {}),
    (attrfn.deep_lift, {}),
]
both = pytest.mark.parametrize(("method", "options"), BOTH, ids=["game", "embeddings"])


def explain(method: Any, model: Any = None, answer: Any = " blue.", **more: Any) -> Any:
    ours, tokenizer = text_grammar.trained()
    more = {"by": "sentence", **more}
    return text.attribute(method, model or ours, tokenizer, FACTS, answer, **more)


# --- scores --------------------------------------------------------------------------------------


def margins(logits: Tensor, answer: Tensor) -> Tensor:
    return logits.gather(-1, answer[..., None])[..., 0] - logits.mean(-1)


@both
def test_scores_of_the_user(method: Any, options: dict[str, Any]) -> None:
    found = explain(method, score=margins, **options)
    assert found.values.shape == (2, 5)
    assert found.score == "margins"
    torch.testing.assert_close(found.total, found.values.sum(0))
    one = explain(method, score=lambda logits, answer: margins(logits, answer).sum(1), **options)
    assert one.values.shape == (1, 5)
    assert one.answer == (" blue.",)
    torch.testing.assert_close(one.total, found.total, atol=1e-4, rtol=1e-4)
    whole = explain(method, score=margins, whole=True, **options)
    torch.testing.assert_close(whole.values[0], found.total, atol=1e-4, rtol=1e-4)


@both
def test_a_divergence_is_zero_for_the_whole_prompt(method: Any, options: dict[str, Any]) -> None:
    found = explain(method, score="kl", **options)
    torch.testing.assert_close(found.scores, torch.zeros(2))
    torch.testing.assert_close(found.values.sum(1), -found.empty, atol=1e-4, rtol=0)


# --- removals ------------------------------------------------------------------------------------


def test_embeddings_are_a_removal_too() -> None:
    """Shapley values and DeepLIFT then have the same ends."""
    for value in (0.0, "mean", torch.ones(32)):
        remove = text.embedding(value)
        game = explain(attrfn.shapley_values, remove=remove)
        path = explain(attrfn.deep_lift, remove=remove)
        torch.testing.assert_close(game.empty, path.empty, atol=1e-4, rtol=0)
        torch.testing.assert_close(game.scores, path.scores, atol=1e-4, rtol=0)
    ids = text.replace(3)
    game = explain(attrfn.shapley_values, remove=ids)
    path = explain(attrfn.integrated_gradients, remove=ids)
    torch.testing.assert_close(game.empty, path.empty, atol=1e-4, rtol=0)


def test_baselines_of_the_user() -> None:
    model, tokenizer = text_grammar.trained()
    base = torch.full((1, len(tokenizer(FACTS)["input_ids"]), 32), 0.1)
    found = explain(attrfn.integrated_gradients, baselines=base)
    fn = text.scorer(
        model, tokenizer(" blue.", add_special_tokens=False)["input_ids"], inputs="embeds"
    )
    torch.testing.assert_close(found.empty, fn(base)[0])
    draws = base.expand(3, -1, -1) * torch.tensor([1.0, 2, 3])[:, None, None]
    assert explain(attrfn.gradient_shap, baselines=draws).values.shape == (2, 5)


# --- answers as parts ----------------------------------------------------------------------------


def test_answer_tokens_as_parts() -> None:
    """Each matters to later tokens only; spans go on behind the prompt."""
    plain = explain(attrfn.feature_ablation, answer=" blue. ann")
    found = explain(attrfn.feature_ablation, answer=" blue. ann", answer_context=True)
    assert found.parts == (*plain.parts, " blue", ".", " ann")
    assert found.answer == plain.answer
    torch.testing.assert_close(found.values[:, :5], plain.values, atol=1e-5, rtol=1e-5)
    own = found.values[:, 5:]
    assert torch.equal(own.triu(), torch.zeros(3, 3))
    assert own[1, 0] != 0  # a full stop follows a colour
    whole = FACTS + " blue. ann"
    assert [whole[a:b] for a, b in found.spans.tolist()] == list(found.parts)
    with pytest.raises(ValueError, match="answer_context is True for gradient, which explains"):
        explain(attrfn.gradient, answer_context=True)


# --- circumstances -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_contexts(method: Any, options: dict[str, Any], context: Any) -> None:
    expected = explain(method, **options)
    with context():
        found = explain(method, **options)
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=1e-5)
    assert not found.values.requires_grad


@both
def test_parameters_that_require_gradients_and_dropout(
    method: Any, options: dict[str, Any]
) -> None:
    """The model stays as it is, and results carry no graph."""
    model = text_grammar.Grammar()
    model.load_state_dict(text_grammar.trained()[0].state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = explain(method, model.eval(), **options)
    assert not any(t.requires_grad for t in found if isinstance(t, Tensor))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(
        found.values, explain(method, **options).values, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@both
def test_dtypes(method: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = text_grammar.Grammar().to(dtype)
    model.load_state_dict(text_grammar.trained()[0].state_dict())
    expected = explain(method, score="log_odds", **options)
    found = explain(method, model.eval().requires_grad_(False), score="log_odds", **options)
    scale = float(expected.values.abs().max())
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    assert float((found.values - expected.values).abs().max()) <= tolerance * scale
    again = text.from_json(text.to_json(found))
    assert torch.equal(again.values, found.values.cpu())


class Bound(text_grammar.Grammar):
    """Takes a scale for each call, which functools.partial binds."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, *, by: float = 9.0) -> Any:
        out = super().forward(input_ids, inputs_embeds)
        out.logits = out.logits * by
        return out


@pytest.mark.parametrize("name", ["feature_ablation", "deep_lift", "gradient"])
def test_arguments_that_are_bound(name: str) -> None:
    model = Bound()
    model.load_state_dict(text_grammar.trained()[0].state_dict())
    found = explain(
        getattr(attrfn, name),
        functools.partial(model.eval(), by=1.0),
        answer=None,
        max_new_tokens=2,
    )
    expected = explain(getattr(attrfn, name), answer=None, max_new_tokens=2)
    torch.testing.assert_close(found.values, expected.values)
    assert found.answer == expected.answer


class Mixed(text_grammar.Grammar):
    """Its rows depend on each other, as those of experts with a capacity do."""

    runs = 0

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
        Mixed.runs += 1
        out = super().forward(input_ids, inputs_embeds)
        out.logits = out.logits - 2 * out.logits.mean((0, 1))
        return out


def test_rows_that_depend_on_each_other_are_found_in_each_model_once() -> None:
    for _ in range(2):
        model = Mixed().eval()
        with pytest.warns(UserWarning, match="rows depend on each other"):
            found = explain(attrfn.feature_ablation, model)
        alone = explain(attrfn.feature_ablation, model, batch=1)
        torch.testing.assert_close(found.values, alone.values, atol=1e-5, rtol=0)
    model = text_grammar.Grammar().eval()
    counts = []
    for method in (attrfn.feature_ablation, attrfn.feature_ablation, attrfn.shapley_values):
        rows = []
        hook = model.words.register_forward_hook(
            lambda m, args, out, rows=rows: rows.append(len(out))
        )
        explain(method, model)
        hook.remove()
        counts.append(sum(rows))
    assert counts[1:] == [6, 32]


def test_layers_by_module_and_by_name() -> None:
    model, _ = text_grammar.trained()
    for layer in ("before", model.before):
        a = explain(attrfn.at_layer(attrfn.integrated_gradients, layer))
        b = explain(attrfn.layer_integrated_gradients, layer=layer)
        torch.testing.assert_close(a.values, b.values)
        assert a.method == "at_layer(integrated_gradients)"
    at_words = explain(attrfn.at_layer(attrfn.integrated_gradients, model.words))
    assert torch.equal(at_words.values, explain(attrfn.integrated_gradients).values)
    with pytest.raises(ValueError, match="layer is the embedding of the tokens"):
        explain(attrfn.layer_integrated_gradients, layer="words")
    together = explain(attrfn.at_layer(attrfn.gradient, ["query", "key"]))
    alone = [explain(attrfn.at_layer(attrfn.gradient, n)).values for n in ("query", "key")]
    torch.testing.assert_close(together.values, alone[0] + alone[1], atol=1e-6, rtol=1e-5)


def test_paths_that_miss_the_change_are_told() -> None:
    """Also for several tokens, which the method explains inside of vmap."""
    for answer in (" blue", " blue."):
        with pytest.warns(UserWarning, match="n_steps=2 misses the change of the output by"):
            explain(attrfn.integrated_gradients, answer=answer, n_steps=2)
    explain(attrfn.integrated_gradients, n_steps=2, check_completeness=False)


def test_methods_made_of_methods() -> None:
    a, b = explain(attrfn.feature_ablation), explain(attrfn.shapley_values)
    both = explain(attrfn.average(attrfn.feature_ablation, attrfn.shapley_values))
    torch.testing.assert_close(both.values, (a.values + b.values) / 2)
    torch.testing.assert_close(both.total, (a.total + b.total) / 2, atol=1e-4, rtol=1e-4)
    pooled = explain(attrfn.pooled(attrfn.input_x_gradient, 2, how="sum"))
    torch.testing.assert_close(pooled.values, explain(attrfn.input_x_gradient).values)
    bound = functools.partial(attrfn.kernel_shap, n_samples=24)
    assert torch.equal(explain(bound).values, explain(attrfn.kernel_shap, n_samples=24).values)
    magnitudes = explain(attrfn.absolute(attrfn.feature_ablation))
    assert torch.equal(magnitudes.values, a.values.abs())


def test_a_layer_without_places_for_tokens_is_refused() -> None:
    class Pooled(text_grammar.Grammar):
        def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
            out = super().forward(input_ids, inputs_embeds)
            x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
            out.logits = out.logits + self.head(self.mix(x.mean(1)))[:, None]
            return out

    torch.manual_seed(0)
    for method in (attrfn.gradient, attrfn.feature_ablation):
        with pytest.raises(ValueError, match="place for each"):
            explain(attrfn.at_layer(method, "mix", call=1), Pooled().eval())


def test_parts_without_labels_are_named_by_their_tokens() -> None:
    model, tokenizer = text_grammar.trained()
    ids = torch.tensor([tokenizer(FACTS)["input_ids"]])
    mask = torch.full(ids.shape[1:], -1)
    mask[4:6], mask[-1] = 0, 1
    found = text.attribute(
        attrfn.feature_ablation,
        model,
        tokenizer,
        text.Parts(ids, mask, 2),
        [text_grammar.IDS["blue"]],
    )
    assert found.parts == (" bob blue", " bob")
    assert found.spans is None


def test_the_same_call_gives_the_same_bits() -> None:
    for method, options in (
        *BOTH,
        (attrfn.kernel_shap, {"n_samples": 20}),
        (text.retrieval(9), {}),
    ):
        a, b = explain(method, **options), explain(method, **options)
        assert torch.equal(a.values, b.values)
        assert torch.equal(a.total, b.total)


def test_pairs_of_texts() -> None:
    """token_type_ids are bound, and follow their tokens when others are deleted."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
        intermediate_size=20, initializer_range=0.3,
    )  # fmt: skip
    bert = transformers.BertForSequenceClassification(config).eval()

    def tokenizer(first: str, second: str, **options: Any) -> dict[str, Any]:
        words = [first.split(), second.split()]
        ids = [2, *range(10, 10 + len(words[0])), 3, *range(20, 20 + len(words[1])), 3]
        types = [0] * (len(words[0]) + 2) + [1] * (len(words[1]) + 1)
        spans = [(0, 0)]
        for of, ws in zip((first, second), words, strict=True):
            spans += [(of.index(w), of.index(w) + len(w)) for w in ws] + [(0, 0)]
        return {"input_ids": ids, "token_type_ids": types, "offset_mapping": spans}

    tokenizer.pad_token_id = 0
    tokenizer.decode = lambda ids: " ".join(map(str, ids))
    pair = ("one two three", "four five")
    types = torch.tensor([tokenizer(*pair)["token_type_ids"]])
    judge = text.classifier(functools.partial(bert, token_type_ids=types))
    found = text.attribute(attrfn.feature_ablation, judge, tokenizer, pair, 2, remove=text.delete())
    assert found.parts == ("one", "two", "three", "four", "five")
    ids = torch.tensor([tokenizer(*pair)["input_ids"]])
    with torch.no_grad():
        full = bert(ids, token_type_ids=types).logits.log_softmax(-1)[0, 2]
        for k, t in enumerate((1, 2, 3, 5, 6)):
            rest = [i for i in range(ids.shape[1]) if i != t]
            less = bert(ids[:, rest], token_type_ids=types[:, rest]).logits.log_softmax(-1)[0, 2]
            torch.testing.assert_close(found.values[0, k], full - less, atol=1e-5, rtol=0)


@pytest.mark.parametrize("at", ["output", "input"])
def test_perturbation_at_a_layer(at: str) -> None:
    """Ablation of what each part's tokens have there, written out with a split."""
    model, tokenizer = text_grammar.trained()
    found = explain(attrfn.at_layer(attrfn.feature_ablation, "key", at=at), answer=" blue")
    parts = text.parts(FACTS, tokenizer, by="sentence")
    fn = text.scorer(model, [[text_grammar.IDS["blue"]]], inputs="embeds")
    x = model.words(parts.ids)
    x0 = x.where((parts.mask < 0)[None, :, None], 0)
    head, tail = attrfn.split(fn, model.key, at=at)
    for k in range(parts.n):
        gone = head(x).where((parts.mask != k)[None, :, None], head(x0))
        expected = (fn(x) - tail(gone, x))[0, 0]
        torch.testing.assert_close(found.values[0, k], expected, atol=1e-4, rtol=1e-4)
    errors = explain(
        attrfn.at_layer(attrfn.kernel_shap, "key"), n_samples=24, return_stderr=True, whole=True
    )
    assert errors.stderr.shape == errors.values.shape == (1, 5)
