"""One call for texts: known attributions, closed forms, properties and parity."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import text_grammar
import torch
from text_tokenizers import Bytes, spaced, trained
from torch import Tensor

import attrfn
from attrfn import text

# --- the made grammar ----------------------------------------------------------------------------

FACTS = "ann red. bob blue. it rains today. cy green. bob"
ATTN = {"rules": attrfn.rules.attn_lrp()}

GAMES: dict[str, tuple[Any, dict[str, Any]]] = {
    "feature_ablation": (attrfn.feature_ablation, {}),
    "shapley_values": (attrfn.shapley_values, {}),
    "shapley_value_sampling": (attrfn.shapley_value_sampling, {"n_samples": 20}),
    "kernel_shap": (attrfn.kernel_shap, {"n_samples": 60}),
    "lime": (attrfn.lime, {"n_samples": 200}),
    "occlusion": (attrfn.occlusion, {"window": 1}),
    "retrieval": (text.retrieval(16), {}),
}
EMBEDDINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "integrated_gradients": (attrfn.integrated_gradients, {"n_steps": 40}),
    "deep_lift": (attrfn.deep_lift, {}),
    "gradient_shap": (attrfn.gradient_shap, {"n_samples": 20}),
    "lrp": (attrfn.lrp, ATTN),
    "layer": (attrfn.at_layer(attrfn.integrated_gradients, "words"), {"n_steps": 40}),
    "named layer": (attrfn.layer_integrated_gradients, {"layer": "before", "n_steps": 40}),
}
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient": (attrfn.gradient, {}),
    "saliency": (attrfn.saliency, {}),
    "input_x_gradient": (attrfn.input_x_gradient, {}),
    "noise_tunnel": (attrfn.noise_tunnel(attrfn.gradient, n_samples=3), {}),
    "each_output": (attrfn.each_output(attrfn.gradient), {}),
    "tunnel at a layer": (attrfn.noise_tunnel(attrfn.at_layer(attrfn.gradient, "mix.0")), {}),
    "ablation at a layer": (attrfn.at_layer(attrfn.feature_ablation, "before"), {}),
}
ALL = GAMES | EMBEDDINGS | OTHERS


def explain(name: str, prompt: Any = FACTS, answer: Any = " blue.", **more: Any) -> Any:
    method, options = ALL[name]
    model, tokenizer = text_grammar.trained()
    return text.attribute(method, model, tokenizer, prompt, answer, **{**options, **more})


@pytest.mark.parametrize("name", GAMES | EMBEDDINGS)
def test_the_fact_that_the_answer_needs_is_found(name: str) -> None:
    """ "bob blue." alone says so; the last word asks for it."""
    found = explain(name, by="sentence", score="log_odds")
    assert found.parts == ("ann red.", "bob blue.", "it rains today.", "cy green.", "bob")
    assert found.answer == (" blue", ".")
    assert set(found.values[0].topk(2).indices.tolist()) == {1, 4}
    facts = found.values[0, :4]
    assert facts.argmax() == 1
    assert facts[1] > 1.5 * facts[[0, 2, 3]].abs().max()


@pytest.mark.parametrize("name", ["feature_ablation", "integrated_gradients"])
def test_words_that_an_answer_needs(name: str) -> None:
    found = explain(name, foil=" red.")
    best = found.values[0].topk(2).indices.tolist()
    assert sorted(found.parts[k] for k in best) in (["blue", "bob"], ["bob", "bob"])
    # at the second place answer and foil are the same
    assert torch.equal(found.values[1], torch.zeros(len(found.parts)))


def test_the_answer_is_generated_greedily() -> None:
    """Compared with a loop over the model."""
    model, tokenizer = text_grammar.trained()
    ids = tokenizer(FACTS)["input_ids"]
    expected: list[int] = []
    while len(expected) < 5 and expected[-1:] != [text_grammar.IDS["blue"]]:
        logits = model(torch.tensor([ids + expected])).logits
        expected.append(int(logits[0, -1].argmax()))
    assert explain("gradient", answer=None, max_new_tokens=1).answer == (" blue",)
    found = explain("gradient", answer=None, max_new_tokens=3)
    assert found.answer[: len(expected)] == tuple(f" {text_grammar.WORDS[i]}" for i in expected)
    assert len(found.answer) == 3


# --- a bag of words: closed forms ----------------------------------------------------------------

V = 6
BAG = torch.tensor([[(7 * i + 3 * j * j) % 11 - 5.0 for j in range(V)] for i in range(V)])


def letters(text: str, **options: Any) -> dict[str, Any]:
    """Letters a to f; a space belongs to the letter after it."""
    places = [i for i, c in enumerate(text) if c != " "]
    spans = [(i - (text[i - 1 : i] == " "), i + 1) for i in places]
    return {"input_ids": [ord(text[i]) - 97 for i in places], "offset_mapping": spans}


letters.decode = lambda ids: "".join(f" {chr(97 + i)}" for i in ids)
letters.pad_token_id = 0


class Bag(torch.nn.Module):
    """logits at t = the sum of the rows of the tokens up to t."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(V, V, _weight=BAG.clone())
        self.rows = self.tokens = 0

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def forward(self, ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        x = self.table(ids) if inputs_embeds is None else inputs_embeds
        COUNT["rows"] += len(x)
        COUNT["tokens"] += x.shape[0] * x.shape[1]
        return x.cumsum(1)


COUNT = {"rows": 0, "tokens": 0}
EXACT = ("feature_ablation", "shapley_values", "kernel_shap", "occlusion", "deep_lift")
EXACT += ("integrated_gradients", "input_x_gradient")


@pytest.mark.parametrize("name", EXACT)
def test_bag_of_words(name: str) -> None:
    """A[i, k] = D[x_k] - D[b], D = W[:, a_i] - W[:, f_i]: reference/text.md, section 7."""
    method, options = ALL[name]
    ids, answer, foil, pad = [3, 1, 4, 3], [2, 5], [0, 1], 0
    remove = text.replace(pad)
    found = text.attribute(
        method, Bag(), letters, "d b e d", " c f", foil=" a b", remove=remove, **options
    )
    difference = BAG[:, answer] - BAG[:, foil]
    expected = (difference[ids] - difference[pad]).T
    torch.testing.assert_close(found.values, expected, atol=2e-4, rtol=0)
    assert found.parts == ("d", "b", "e", "d")  # equal words are parts of their own
    torch.testing.assert_close(found.total, expected.sum(0), atol=4e-4, rtol=0)
    # later scores see earlier answer tokens, in both
    before = torch.stack([torch.zeros(V), BAG[answer[0]]])
    sums = BAG[ids].sum(0) + before
    scores = sums.gather(1, torch.tensor(answer)[:, None]) - sums.gather(
        1, torch.tensor(foil)[:, None]
    )
    torch.testing.assert_close(found.scores, scores[:, 0])


@pytest.mark.parametrize("n", [1, 4])
def test_ablation_runs_each_part_once(n: int) -> None:
    prompt, model = " ".join("dbed"[:n]), Bag()
    for _ in range(2):  # a first call also looks whether the model's rows are independent
        COUNT.update(rows=0, tokens=0)
        text.attribute(attrfn.feature_ablation, model, letters, prompt, " c f")
    assert COUNT["rows"] == n + 1
    assert COUNT["tokens"] == (n + 1) * (n + 1)


def test_gradients_take_one_forward_for_all_tokens() -> None:
    """One for the scores, and one in which vmap passes all cotangents back."""
    model = Bag()
    for _ in range(2):
        COUNT.update(rows=0, tokens=0)
        text.attribute(attrfn.gradient, model, letters, "d b e d", " c f b")
    assert COUNT["rows"] == 2


def test_a_model_that_ignores_the_prompt_gives_zeros() -> None:
    fixed = torch.arange(float(V))

    class Deaf(Bag):
        def forward(self, ids: Any = None, inputs_embeds: Any = None) -> Tensor:
            x = self.table(ids) if inputs_embeds is None else inputs_embeds
            return x * 0 + fixed

    for method in (
        attrfn.feature_ablation,
        attrfn.shapley_values,
        attrfn.gradient,
        attrfn.deep_lift,
    ):
        found = text.attribute(method, Deaf(), letters, "d b", " c")
        assert torch.equal(found.values, torch.zeros(1, 2))


def test_padding_of_the_batch_changes_nothing() -> None:
    expected = text.attribute(attrfn.shapley_values, Bag(), letters, "d b e", " c f")
    for batch in (1, 3):
        found = text.attribute(attrfn.shapley_values, Bag(), letters, "d b e", " c f", batch=batch)
        torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=0)


# --- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("score", ["log_prob", "log_odds", "prob", "logit", "entropy"])
def test_totals(name: str, score: str) -> None:
    """The total is what the whole answer's score gives when it is explained alone."""
    found = explain(name, score=score, by="sentence")
    n = len(found.parts)
    assert found.values.shape == (2, n)
    assert found.total.shape == (n,)
    assert found.scores.shape == (2,)
    if name != "each_output":
        alone = explain(name, score=score, by="sentence", whole=True)
        assert alone.answer == (" blue.",)
        assert alone.values.shape == (1, n)
        scale = float(alone.values.abs().max()) + 1e-9
        torch.testing.assert_close(found.total, alone.total, atol=2e-3 * scale, rtol=0)
    if score in ("log_prob", "logit") and name not in ("saliency", "lime", "retrieval"):
        scale = float(found.values.abs().max()) + 1e-9
        torch.testing.assert_close(found.total, found.values.sum(0), atol=2e-3 * scale, rtol=0)


@pytest.mark.parametrize("name", ["shapley_values", "kernel_shap", "deep_lift"])
@pytest.mark.parametrize("score", ["log_prob", "log_odds", "prob"])
def test_completeness(name: str, score: str) -> None:
    found = explain(name, score=score, by="sentence")
    torch.testing.assert_close(
        found.values.sum(1), found.scores - found.empty, atol=1e-4, rtol=1e-4
    )


def test_answers_and_foils_swapped_change_the_sign() -> None:
    a = explain("shapley_values", answer=" blue", foil=" red", by="sentence")
    b = explain("shapley_values", answer=" red", foil=" blue", by="sentence")
    torch.testing.assert_close(a.values, -b.values, atol=1e-4, rtol=0)
    logit = explain("shapley_values", answer=" blue", foil=" red", by="sentence", score="logit")
    torch.testing.assert_close(a.values, logit.values, atol=1e-4, rtol=0)
    # of one token it is also the difference of whole answers
    other = explain("shapley_values", answer=" blue", other=" red", by="sentence")
    torch.testing.assert_close(a.values, other.values, atol=1e-4, rtol=0)


def test_other_answers_of_another_length() -> None:
    """log p(a) - log p(b), by two explanations."""
    found = explain("shapley_values", other=" red", by="sentence")
    a = explain("shapley_values", by="sentence", whole=True)
    b = explain("shapley_values", answer=" red", by="sentence", whole=True)
    torch.testing.assert_close(found.total, a.total - b.total, atol=1e-4, rtol=0)
    path = explain("deep_lift", other=" red", by="sentence")
    a, b = explain("deep_lift", by="sentence"), explain("deep_lift", answer=" red", by="sentence")
    torch.testing.assert_close(path.total, a.total - b.total, atol=1e-3, rtol=0)


def test_the_runner_up_is_a_foil() -> None:
    model, tokenizer = text_grammar.trained()
    logits = model(torch.tensor([tokenizer(FACTS)["input_ids"]])).logits[0, -1]
    first, second = logits.topk(2).indices.tolist()
    by_name = explain("feature_ablation", answer=[first], foil="next")
    by_ids = explain("feature_ablation", answer=[first], foil=[second])
    assert torch.equal(by_name.values, by_ids.values)


def test_reversed_parts_reverse_the_columns() -> None:
    spans = [(0, 8), (9, 18), (19, 34)]
    for name in ("feature_ablation", "integrated_gradients"):
        there = explain(name, by=spans)
        back = explain(name, by=spans[::-1])
        assert back.parts == there.parts[::-1]
        torch.testing.assert_close(back.values, there.values.flip(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["feature_ablation", "shapley_values", "gradient", "deep_lift"])
def test_parts_without_tokens_give_zero(name: str) -> None:
    found = explain(name, by=[(0, 8), (9, 9), (9, 18)])
    assert found.values[:, 1].tolist() == [0, 0]


def test_standard_errors() -> None:
    found = explain("kernel_shap", by="sentence", n_samples=24, return_stderr=True)
    assert found.stderr.shape == found.values.shape
    whole = explain("kernel_shap", by="sentence", n_samples=24, return_stderr=True, whole=True)
    assert whole.stderr.shape == (1, 5)


def test_fixed_tokens_stay() -> None:
    """Deletion of all parts leaves the frame."""
    model, tokenizer = text_grammar.trained()
    parts = text.parts(FACTS, tokenizer, by="sentence", keep=["it"])
    found = text.attribute(attrfn.shapley_values, model, tokenizer, parts, " blue")
    bare = torch.tensor([[1, *tokenizer("it", add_special_tokens=False)["input_ids"]]])
    logits = model(bare).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(found.empty[0], logits[text_grammar.IDS["blue"]])


def test_prompts_of_all_kinds() -> None:
    model, tokenizer = text_grammar.trained()
    by_text = explain("feature_ablation")
    by_parts = explain("feature_ablation", prompt=text.parts(FACTS, tokenizer))
    assert torch.equal(by_text.values, by_parts.values)

    class Chat(text_grammar.Tokenizer):
        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            return " ".join(m["content"] for m in messages)

    messages = [
        {"role": "system", "content": "ann red."},
        {"role": "user", "content": "bob blue. bob"},
    ]
    found = text.attribute(attrfn.feature_ablation, model, Chat(), messages, " blue", by="sentence")
    assert found.parts == ("bob blue.", "bob")
    ids = text.attribute(
        attrfn.feature_ablation, model, Chat(), messages, [text_grammar.IDS["blue"]]
    )
    assert ids.answer == (" blue",)


@pytest.mark.parametrize("prompt", ["😀 שלום", "مرحبا 👩‍👩‍👧 é!"])
def test_texts_of_all_scripts(prompt: str) -> None:
    table = torch.randn(258, 258, generator=torch.Generator().manual_seed(0))
    found = text.attribute(
        attrfn.feature_ablation, lambda ids: table[ids].cumsum(1), Bytes(), prompt, " 😀é"
    )
    assert found.parts == text.parts(prompt, Bytes()).labels
    assert "".join(found.answer) == " 😀é"
    assert found.answer == (" ", "", "", "", "😀", "", "é")
    again = text.from_json(text.to_json(found))
    assert again.parts == found.parts
    assert torch.equal(again.values, found.values)


def test_transformers_is_not_imported() -> None:
    """By the package: a fresh process has it only if the user does."""
    others = "{'transformers', 'tokenizers', 'pandas'}"
    code = f"import sys, attrfn.text; assert not {others} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is refused -----------------------------------------------------------------------------

Prompt = functools.partial(text.attribute, attrfn.feature_ablation, Bag())
WRONG: dict[str, tuple[Any, str]] = {
    "empty prompt": (
        lambda: Prompt(letters, " ", " c"),
        "text is ' ', which has no part to explain",
    ),
    "no text": (lambda: Prompt(letters, 3, " c"), "prompt is 3, expected a text, the messages"),
    "empty answer": (
        lambda: Prompt(letters, "a b", ""),
        "answer is '', expected at least one token",
    ),
    "answer": (
        lambda: Prompt(letters, "a b", 3.5),
        "answer is 3.5, expected a text or its token ids",
    ),
    "foil": (
        lambda: Prompt(letters, "a b", " c", foil=" c d"),
        r"foil has 2 tokens \[' c', ' d'\] and the answer 1, expected as many: give other=",
    ),
    "score": (lambda: Prompt(letters, "a b", " c", score="x"), "score is 'x', expected one of"),
    "target": (lambda: Prompt(letters, "a b", " c", target=0), "target is given, expected none"),
    "mask": (
        lambda: Prompt(letters, "a b", " c", baselines=0),
        "baselines is given, expected none",
    ),
    "method": (
        lambda: text.attribute(3, Bag(), letters, "a b", " c"),
        "method is 3, expected one such as",
    ),
    "interactions": (
        lambda: text.attribute(attrfn.interactions, Bag(), letters, "a b", " c"),
        r"method interactions returned .*expected values \(1, N, 2\)",
    ),
    "gradient": (
        lambda: text.attribute(
            attrfn.gradient, Bag(), letters, "a b", " c", remove=text.replace(0)
        ),
        "remove is given for gradient, which removes nothing",
    ),
    "deletion": (
        lambda: text.attribute(attrfn.deep_lift, Bag(), letters, "a b", " c", remove=text.delete()),
        "remove is delete for deep_lift, which starts from embeddings",
    ),
    "layer": (
        lambda: text.attribute(attrfn.at_layer(attrfn.gradient, "x"), Bag(), letters, "a b", " c"),
        "layer is 'x', which the model lacks, expected a module or a name such as",
    ),
    "no embedding": (
        lambda: text.attribute(attrfn.gradient, lambda ids: BAG[ids], letters, "a b", " c"),
        "without get_input_embeddings",
    ),
    "no logits": (
        lambda: text.attribute(attrfn.feature_ablation, lambda ids: {"a": 1}, letters, "a", " c"),
        "without .logits, expected logits",
    ),
    "tokens": (lambda: Prompt(letters, "a b", max_new_tokens=0), "max_new_tokens is 0, expected"),
    "no offsets": (
        lambda: Prompt(lambda text, **o: {"input_ids": [1]}, "a b", " c"),
        "tokenizer gives no offsets",
    ),
    "batch": (lambda: Prompt(letters, "a b", " c", batch=0), "batch is 0, expected None or a"),
    "foil and other": (
        lambda: Prompt(letters, "a b", " c", foil=" d", other=" e"),
        "other is given with a foil, expected one of them",
    ),
    "other and entropy": (
        lambda: text.attribute(
            attrfn.gradient, Bag(), letters, "a b", " c", other=" e", score="entropy"
        ),
        "other is given with score='entropy', expected one of them",
    ),
    "hessians": (
        lambda: text.attribute(attrfn.integrated_hessians, Bag(), letters, "a b", " c"),
        r"method integrated_hessians returned .*it gives no number for a part",
    ),
    "overlap": (lambda: Prompt(letters, "a b", " c", by=[(0, 2), (1, 3)]), "which overlap"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert len(str(caught.value)) <= 300


def test_padding_that_ends_texts_is_no_replacement() -> None:
    tokenizer = spaced(pad=0)
    tokenizer.eos_token_id = 0
    model = lambda ids: torch.nn.functional.one_hot(ids, 50).float().cumsum(1)  # noqa: E731
    with pytest.raises(ValueError, match="0 as padding and as end of text, which is not a neutral"):
        text.attribute(attrfn.feature_ablation, model, tokenizer, "a b", " c")
    del tokenizer.pad_token_id
    with pytest.raises(ValueError, match="no padding token, which is not a neutral repl"):
        text.attribute(attrfn.feature_ablation, model, tokenizer, "a b", " c", by="token")
    text.attribute(attrfn.feature_ablation, model, tokenizer, "A b. C d.", " c", by="sentence")


def test_answers_that_become_other_tokens_are_told() -> None:
    bpe = trained("bpe")
    model = lambda ids: torch.nn.functional.one_hot(ids, len(bpe)).float().cumsum(1)  # noqa: E731
    ablate = functools.partial(text.attribute, attrfn.feature_ablation, model, bpe)
    found = ablate("the cat is", " a")
    assert found.answer == (" a",)
    with pytest.warns(
        UserWarning, match="answer 'lievable' and the end of the prompt become other"
    ):
        ablate("the cat is unbe", "lievable")
    ids = (
        bpe("c", add_special_tokens=False)["input_ids"]
        + bpe("at", add_special_tokens=False)["input_ids"]
    )
    with pytest.warns(UserWarning, match=r"answer has the ids .* the ids given are explained"):
        assert "".join(ablate("the ", ids).answer) == "cat"


# --- parity --------------------------------------------------------------------------------------


@functools.cache
def gpt2() -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    size = len(trained("bpe"))
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=2,
        eos_token_id=3, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval()


def captum_of(inputs: Any, answer: list[int]) -> Any:
    captum = pytest.importorskip("captum.attr")
    ours = captum.LLMAttribution(captum.FeatureAblation(gpt2()), trained("bpe"))
    return ours.attribute(inputs(captum), target=torch.tensor(answer), use_cached_outputs=False)


def test_templates_are_captums() -> None:
    bpe, frame = trained("bpe"), "a {} sat on the {} and a {}"
    answer = bpe(" ran.", add_special_tokens=False)["input_ids"]
    expected = captum_of(lambda c: c.TextTemplateInput(frame, ["cat", "mat", "dog"]), answer)
    parts = text.documents(frame, ["cat", "mat", "dog"], bpe)
    remove = text.template(lambda words: frame.format(*words), lambda t: bpe(t)["input_ids"])
    found = text.attribute(attrfn.feature_ablation, gpt2(), bpe, parts, answer, remove=remove)
    torch.testing.assert_close(found.values, expected.token_attr, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.total, expected.seq_attr, atol=1e-5, rtol=0)


def test_replacement_is_captums() -> None:
    bpe = trained("bpe")
    answer = bpe(" ran.", add_special_tokens=False)["input_ids"]
    expected = captum_of(lambda c: c.TextTokenInput("the black cat sat", bpe, baselines=5), answer)
    found = text.attribute(
        attrfn.feature_ablation, gpt2(), bpe, "the black cat sat", answer, by="token",
        remove=text.replace(5),
    )  # fmt: skip
    torch.testing.assert_close(found.values, expected.token_attr[:, 1:], atol=1e-5, rtol=0)


def test_generation_is_that_of_transformers() -> None:
    bpe = trained("bpe")
    ids = torch.tensor([bpe("the black cat")["input_ids"]])
    expected = gpt2().generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
    )
    found = text.attribute(attrfn.gradient, gpt2(), bpe, "the black cat", max_new_tokens=12)
    assert "".join(found.answer) == bpe.decode(expected[0, ids.shape[1] :])


def test_prompts_longer_than_the_model() -> None:
    bpe = trained("bpe")
    for answer in (" a", None):
        with pytest.raises(
            ValueError, match="expected at most 40, the model's max_position_embeddings"
        ):
            text.attribute(
                attrfn.feature_ablation, gpt2(), bpe, "cat " * 39, answer, max_new_tokens=2
            )
