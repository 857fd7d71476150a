"""Games: what they refuse, that they change nothing, and that methods agree on them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import text_families as families
import torch
from oracles import close
from text_models import Bag, Bigram, Positions, parts_of
from torch import nn

import attrfn
from attrfn import text

PARTS = parts_of([0, 1, 2], [-1, 0, 1])
ANSWER = [[0, 1]]


class Config:
    """The configuration of a made model."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def with_config(model: nn.Module, **values: Any) -> nn.Module:
    model.config = Config(**values)  # type: ignore[assignment]
    return model


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"foil": [[1]]}, ValueError, r"foil has 1 tokens, expected 2 as the answer: .* other="),
        ({"foil": "best"}, ValueError, "foil is 'best', expected token ids, 'next' or None"),
        ({"foil": [[1, 2]], "other": [[1]]}, ValueError, "other is given with a foil"),
        ({"other": [[1]], "score": "kl"}, ValueError, "other is given with score='kl'"),
        ({"foil": [[1, 2]], "score": "kl"}, ValueError, "about no single token"),
        ({"answer": [[0], [1]]}, ValueError, r"answer has 2 rows, expected one, \(1, N\)"),
        ({"answer": []}, ValueError, "answer is .*, expected at least one token id"),
        ({"remove": "delete"}, TypeError, r"remove is 'delete', expected text\.delete\(\)"),
        ({"max_tokens": 0}, ValueError, "max_tokens is 0, expected None or an int"),
        ({"pad_to": 0}, ValueError, "pad_to is 0, expected an int of at least 1"),
        ({"score": "best"}, ValueError, "score is 'best', expected one of log_prob"),
        ({"parts": torch.ones(1, 3)}, TypeError, r"parts is .*, expected text\.Parts"),
        (
            {"parts": parts_of([1, 2], [0, 1], 1)},
            ValueError,
            r"part 1 in its mask, expected 0 to 0",
        ),
        ({"parts": parts_of([], [], 0)}, ValueError, "parts has an empty prompt"),
        (
            {"parts": parts_of([1, 2], [0])},
            ValueError,
            r"ids \(1, 2\) and a mask \(1,\), expected \(1, P\) and \(P,\)",
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"parts": PARTS, "answer": ANSWER} | options
    with pytest.raises(kind, match=message) as error:
        text.game(Bag(), **given)
    assert len(str(error.value)) <= 300


def test_an_empty_prompt_is_refused_unless_there_is_a_first_token() -> None:
    free = parts_of([1, 2])
    none = torch.zeros(1, 2)
    g = text.game(Bag(), free, answer=ANSWER)
    with pytest.raises(ValueError, match=r"remove leaves an empty prompt, .* negative id"):
        g.fn(none)
    begun = text.game(with_config(Bag(), bos_token_id=2), free, answer=ANSWER, score="logit")
    alone = text.scorer(Bag(), ANSWER, score="logit")(torch.tensor([[2]]))
    close(begun.fn(torch.cat([none, 1 - none]))[:1], alone)
    close(begun.fn(none), alone)
    fixed = text.game(Bag(), PARTS, answer=ANSWER, score="logit")
    close(fixed.fn(none), text.scorer(Bag(), ANSWER, score="logit")(torch.tensor([[0]])))
    hidden = text.game(
        with_config(Positions(), bos_token_id=2), free, answer=ANSWER, remove=text.unattended()
    )
    with pytest.raises(ValueError, match="empty prompt"):
        hidden.fn(none)
    model = families.encoder("bert", "ForSequenceClassification")
    whole = text.game(text.classifier(model), parts_of([5, 6]), answer=[[0]])
    with pytest.raises(ValueError, match="leaves the encoder no token"):
        whole.fn(none)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pad_token_id": 1, "eos_token_id": 1}, "the padding token 1 as its end of text"),
        ({"pad_token_id": 1, "eos_token_id": [0, 1]}, "the padding token 1 as its end of text"),
        ({"eos_token_id": 1}, "no padding token"),
    ],
)
def test_a_replacement_is_asked_for(config: dict[str, Any], message: str) -> None:
    """There is no neutral default where padding is the end of text."""
    model = with_config(Bag(), **config)
    with pytest.raises(ValueError, match=message):
        text.game(model, PARTS, answer=ANSWER, remove=text.replace())
    good = with_config(Bag(), pad_token_id=2, eos_token_id=1)
    a, b = (
        text.game(good, PARTS, answer=ANSWER, remove=r) for r in (text.replace(), text.replace(2))
    )
    z = torch.tensor([[1.0, 0], [0, 0]])
    assert torch.equal(a.fn(z), b.fn(z))


def test_replacements_for_each_token() -> None:
    g = text.game(
        Bag(), PARTS, answer=[[0]], score="logit", remove=text.replace(torch.tensor([2, 2, 1]))
    )
    e = text.scorer(Bag(), [[0]], score="logit")
    close(g.fn(torch.tensor([[1.0, 0], [0, 1]])), e(torch.tensor([[0, 1, 1], [0, 2, 2]])))
    wrong = text.game(Bag(), PARTS, answer=[[0]], remove=text.replace(torch.tensor([2, 2])))
    with pytest.raises(ValueError, match="id has 2 tokens, expected one, or 3 as the prompt has"):
        wrong.fn(wrong.full)


def test_models_that_cannot() -> None:
    z = torch.tensor([[1.0, 0]])
    g = text.game(Bag(), PARTS, answer=ANSWER, remove=text.unattended())
    with pytest.raises(ValueError, match="no argument attention_mask, which"):
        g.fn(z)
    g = text.game(Bag(), PARTS, answer=ANSWER, remove=text.embedding())
    with pytest.raises(ValueError, match="without get_input_embeddings"):
        g.fn(z)
    g = text.game(lambda ids: ids, PARTS, answer=ANSWER)
    with pytest.raises(ValueError, match=r"model returned .*, expected logits \(R, T, V\)"):
        g.fn(z)
    long = with_config(Bag(), max_position_embeddings=3)
    with pytest.raises(ValueError, match="has 4 tokens, expected at most 3"):
        text.game(long, PARTS, answer=ANSWER)
    few = with_config(Bag(), vocab_size=3, num_labels=2)
    for wrong in ({"answer": [[3]]}, {"answer": [[-1]]}, {"answer": [[0]], "foil": [[3]]}):
        with pytest.raises(ValueError, match=r"has ids from .*, expected 0 to 2 .*vocab_size"):
            text.game(few, PARTS, **wrong)
        with pytest.raises(ValueError, match=r"has ids from .*, expected 0 to 2 .*vocab_size"):
            text.scorer(few, **wrong)
    with pytest.raises(ValueError, match="parts has ids from 0 to 3, expected 0 to 2"):
        text.game(few, parts_of([0, 3]), answer=[[0]])
    with pytest.raises(ValueError, match=r"answer has ids from 2 to 2, expected 0 to 1"):
        text.scorer(text.classifier(few), [[2]])
    with pytest.raises(ValueError, match="target is 3, expected less than the 3 tokens"):
        text.game(text.seq2seq(families.seq2seq("t5"), target=3), PARTS, answer=ANSWER)
    with pytest.raises(ValueError, match="no decoder_start_token_id"):
        text.seq2seq(Bag())


def test_wrong_rows() -> None:
    g = text.game(Bag(), PARTS, answer=ANSWER)
    for wrong in (torch.ones(1, 3), torch.ones(2), torch.tensor([[0.5, 1.0]])):
        with pytest.raises(ValueError, match=r"expected \(R, 2\) with 1 where a part is there"):
            g.fn(wrong)
    assert g.fn(torch.ones(0, 2)).shape == (0, 2)
    for run in (
        lambda: attrfn.gradient(g.fn, g.full, target=0),
        lambda: attrfn.integrated_gradients(g.fn, g.full, target=0),
        lambda: torch.func.vmap(lambda z: attrfn.feature_ablation(g.fn, z[None]))(g.full),
    ):
        with pytest.raises(ValueError, match=r"a text\.game inside a transform, .* run eagerly"):
            run()
    compiled = torch.compile(
        lambda z: attrfn.feature_ablation(g.fn, z), fullgraph=True, backend="eager"
    )
    with pytest.raises(Exception, match=r"a text\.game inside a transform, compiled code"):
        compiled(g.full)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: text.replace(-1), "id is -1, expected a token id"),
        (lambda: text.replace("x"), "id is 'x', expected a token id"),
        (lambda: text.embedding("zero"), "value is 'zero', expected a number"),
        (lambda: text.template("x"), "expected a function from strings"),
    ],
)
def test_wrong_removals(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_wrong_templates() -> None:
    def game(build: Any, encode: Any = None, parts: Any = PARTS, **more: Any) -> Any:
        remove = text.template(build, encode, **more)
        return text.game(Bag(), parts, answer=[[0]], remove=remove)

    z = torch.zeros(1, 2)
    for g in (game(lambda w: ""), game(lambda w: []), game("".join, lambda t: [])):
        with pytest.raises(ValueError, match="expected token ids, at least one"):
            g.fn(z)
    bare = PARTS._replace(labels=())
    with pytest.raises(ValueError, match="template has 0 labels"):
        game(lambda w: [1], parts=bare).fn(z)
    with pytest.raises(ValueError, match="3 strings for absent parts"):
        game(lambda w: [1], absent=["a", "b", "c"]).fn(z)


# --- what a game is -------------------------------------------------------------------------------


def test_templates_have_strings_for_absent_parts() -> None:
    """As Captum's TextTemplateInput: values that are removed become baselines."""
    seen: list[list[str]] = []

    def build(words: list[str]) -> str:
        seen.append(words)
        return "".join(words)

    encode = {"<0><1>": [1, 2], "<0>none": [1], "none<1>": [2, 2]}.__getitem__
    remove = text.template(build, encode, absent=["none", "none"])
    g = text.game(Bag(), PARTS, answer=[[0]], score="logit", remove=remove, prefix=False)
    found = g.fn(torch.tensor([[1.0, 1], [1, 0], [0, 1]]))
    assert seen == [["<0>", "<1>"], ["<0>", "none"], ["none", "<1>"]]
    f = text.scorer(Bag(), [[0]], score="logit")
    rows = [f(torch.tensor([ids])) for ids in ([1, 2], [1], [2, 2])]
    close(found, torch.cat(rows))


def test_the_users_model_does_not_change() -> None:
    """A model that counts its calls, in training mode: the game runs copies of it."""

    class Counting(Bag):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.seen = 0, []
            self.register_buffer("total", torch.zeros(1))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.seen.append(len(ids))
            self.total += len(ids)
            return super().forward(ids)

    model = Counting().train()
    g = text.game(model, PARTS, answer=ANSWER, foil="next")
    attrfn.kernel_shap(g.fn, g.full, n_samples=2)
    text.runner_up(model, PARTS.ids, ANSWER)
    f = text.scorer(model, ANSWER)
    attrfn.feature_ablation(f, PARTS.ids, baselines=0)
    assert (model.calls, model.seen, float(model.total), model.training) == (0, [], 0.0, True)


def test_padding_of_a_prompt_is_no_text() -> None:
    """A mask that is bound hides tokens from all rows, whatever side they are on."""
    model = families.causal("gpt2")
    ids, mask = [2, 2, 0, 5, 6, 2], [0, 0, 1, 1, 1, 0]
    bound = functools.partial(model, attention_mask=torch.tensor([mask]))
    g = text.game(bound, parts_of(ids, [-1, -1, -1, 0, 1, -1], 2), answer=[[20, 21]])
    e = text.game(model, parts_of([0, 5, 6], [-1, 0, 1]), answer=[[20, 21]])
    z = torch.tensor([[1.0, 1], [0, 1], [0, 0]])
    with torch.no_grad():
        close(g.fn(z), e.fn(z), 1e-9)


def test_scorers_and_games_agree() -> None:
    """Replacement is the same by ids and by parts; lasso on log-odds is ContextCite's surrogate."""
    model, ids = families.causal("llama"), [0, 5, 6, 7, 8]
    f = text.scorer(model, [[20, 21]], score="log_odds", whole=True)
    g = text.game(
        model,
        parts_of(ids, [-1, 0, 1, 2, 3]),
        answer=[[20, 21]],
        score="log_odds",
        whole=True,
        remove=text.replace(3),
    )
    mask = torch.tensor([[-1, 0, 1, 2, 3]])
    for method in (
        attrfn.shapley_values,
        functools.partial(attrfn.lime, n_samples=40, similarity=attrfn.surrogates.constant()),
    ):
        by_ids = method(f, torch.tensor([ids]), baselines=3, feature_mask=mask)
        by_parts = method(g.fn, g.full.double())
        close(by_ids[:, :, 1:], by_parts, 1e-4)


def test_whole_answers_are_the_last_column() -> None:
    g = text.game(Bag(), PARTS, answer=ANSWER, whole=True)
    z = torch.tensor([[1.0, 1], [0, 1]])
    close(g.fn(z)[:, 2], text.game(Bag(), PARTS, answer=ANSWER).fn(z).sum(1))


def test_parts_are_masks_of_methods() -> None:
    f = text.scorer(Bigram(), [[0]])
    found = attrfn.feature_ablation(
        f, PARTS.ids, baselines=1, feature_mask=PARTS.feature_mask(), n_features=PARTS.n
    )
    assert found.shape == (1, 3)
    assert found[0, 0] == 0
