"""Passages: by the number of runs, level by level, and left out one by one."""

from __future__ import annotations

from typing import Any

import pytest
import text_grammar
import torch
from torch import Tensor

import attrfn
from attrfn import surrogates, text

# 14 passages; two facts matter, and one pair only together.
N = 14


def v(z: Tensor) -> Tensor:
    """Two outputs: of one token, and of three."""
    one = 3 * z[:, 2] - 2 * z[:, 9] + 4 * z[:, 4] * z[:, 5]
    return torch.stack([one, 3 * one], 1)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_few_parts_get_exact_values(n: int) -> None:
    model = lambda z: (z * torch.arange(1.0, n + 1)).prod(1, keepdim=True)  # noqa: E731
    full = torch.ones(1, n)
    expected = attrfn.shapley_values(model, full).reshape(1, 1, n)
    assert torch.equal(text.retrieval()(model, full), expected)
    assert torch.equal(text.retrieval(2**n)(model, full), expected) or n == 1


def test_many_runs_are_kernel_shap_and_few_a_lasso() -> None:
    full = torch.ones(1, N)
    many = text.retrieval(60, key=3)(v, full)
    assert torch.equal(many, attrfn.kernel_shap(v, full, n_samples=60, key=3))
    default = text.retrieval()(v, full)
    assert torch.equal(default, attrfn.kernel_shap(v, full, n_samples=64))
    few = text.retrieval(2 * N - 1, key=3)(v, full)
    assert set(few[0, 0].abs().topk(4).indices.tolist()) == {2, 4, 5, 9}


def test_lasso_is_context_cites() -> None:
    """Columns of unit variance, the mean over N tokens, alpha 0.01: text.md, section 4."""
    tokens = torch.tensor([1, 3])
    found = text.retrieval(24, key=1)(v, torch.ones(1, N), tokens=tokens)
    seen: list[Tensor] = []

    def keep(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        seen.extend([z, y])
        return surrogates.linear()(z, y, w)

    attrfn.lime(
        v, torch.ones(1, N), n_samples=24, key=1, surrogate=keep, similarity=surrogates.constant()
    )
    z, y = seen[0].double(), seen[1].double()
    for k, n in enumerate(tokens.tolist()):
        fit = surrogates.lasso(0.01)((z - 0.5) / 0.5, y[..., k : k + 1] / n, torch.ones(24, 1))
        # back to columns of zeros and ones, and to the sum
        torch.testing.assert_close(found[0, k].double(), fit[0, 0] / 0.5 * n, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0, 1], 3 * found[0, 0], atol=1e-5, rtol=1e-5)


def test_wrong_runs() -> None:
    for runs in (1, 0, 2.5, "x", True):
        with pytest.raises(ValueError, match=r"runs is .*, expected None or a number of at"):
            text.retrieval(runs)


# --- the made grammar ----------------------------------------------------------------------------

PASSAGES = [
    "ann red. it rains today. birds sing so.",
    "we walk and. bob blue. birds sing.",
    "cy green. dora pink.",
    "so we walk. eli teal.",
]


def handbook() -> Any:
    _, tokenizer = text_grammar.trained()
    return text.documents("{documents} {q}", PASSAGES, tokenizer, q="bob")


@pytest.mark.parametrize("runs", [None, 7, 12])
def test_the_passage_is_found(runs: int | None) -> None:
    model, tokenizer = text_grammar.trained()
    found = text.attribute(text.retrieval(runs), model, tokenizer, handbook(), " blue.")
    assert found.total.argmax() == 1
    assert found.parts == tuple(PASSAGES)
    assert found.method == "retrieval"
    assert found.values.shape == (2, 4)


def test_levels() -> None:
    """The passage, the sentence, the word; the answer is generated once."""
    model, tokenizer = text_grammar.trained()
    found = text.levels(
        text.retrieval(), model, tokenizer, handbook(), max_new_tokens=1, score="log_odds"
    )
    assert [r.parts for r in found] == [
        tuple(PASSAGES),
        ("we walk and.", "bob blue.", "birds sing."),
        ("bob", "blue", "."),
    ]
    assert [r.parts[int(r.total.argmax())] for r in found[:2]] == [PASSAGES[1], "bob blue."]
    assert {r.answer for r in found} == {(" blue",)}
    prompt = handbook().text
    for r in found:
        assert [prompt[a:b] for a, b in r.spans.tolist()] == list(r.parts)
        assert torch.equal(r.scores, found[0].scores)


def test_levels_of_a_text_and_of_several_parts() -> None:
    model, tokenizer = text_grammar.trained()
    remove = [text.delete(), text.replace(3)]
    found = text.levels(
        attrfn.feature_ablation, model, tokenizer, handbook().text, " blue", best=2, remove=remove
    )
    assert len(found) == 2
    assert found[1].parts == ("bob", "blue", ".", "bob")
    # the game of the second level is that of those parts, the rest fixed
    spans = found[1].spans.tolist()
    parts = text.parts(handbook().text, tokenizer, by=spans)
    alone = text.attribute(
        attrfn.feature_ablation, model, tokenizer, parts, " blue", remove=text.replace(3)
    )
    assert torch.equal(alone.values, found[1].values)


def test_wrong_levels() -> None:
    model, tokenizer = text_grammar.trained()
    for options, message in (
        ({"by": []}, "by is empty, expected the parts of at least one level"),
        ({"best": 0}, "best is 0, expected a number of parts"),
        ({"remove": [text.delete()]}, "remove has 1 entries, expected one for each of 3 levels"),
    ):
        with pytest.raises(ValueError, match=message):
            text.levels(attrfn.feature_ablation, model, tokenizer, handbook(), " blue", **options)
    foreign = handbook()._replace(ids=handbook().ids.flip(1))
    with pytest.raises(ValueError, match="tokens the tokenizer does not make of their text"):
        text.levels(attrfn.feature_ablation, model, tokenizer, foreign, " blue")


def test_leave_one_out() -> None:
    model, _ = text_grammar.trained()
    game = text.game(model, handbook(), answer=[[text_grammar.IDS["blue"], 3]])
    found = text.leave_one_out(game)
    z = torch.cat([torch.ones(1, 4), 1 - torch.eye(4)])
    scores = game.fn(z)
    torch.testing.assert_close(found[0], (scores[0] - scores[1:]).T)
    torch.testing.assert_close(found, attrfn.feature_ablation(game.fn, game.full))
    torch.testing.assert_close(found, text.leave_one_out(game, chunk_size=2))


def test_leave_one_out_shares_what_lies_before_each_part() -> None:
    """Counted: the prompt and the answer once, then for each part what follows it."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=50, intermediate_size=20, max_position_embeddings=2000, **sizes
    )
    model = transformers.LlamaForCausalLM(config).eval()
    length, n, answer, lead = 40, 20, [[1, 2]], 100
    mask = torch.cat([torch.full((lead,), -1), torch.arange(n).repeat_interleave(length)])
    ids = torch.randint(50, (1, len(mask)), generator=torch.Generator().manual_seed(0))
    parts = text.Parts(ids, mask, n)
    plain = text.leave_one_out(text.game(model, parts, answer=answer, prefix=False))
    counted: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda module, args: counted.append(args[0].shape[0] * args[0].shape[1])
    )
    game = text.game(model, parts, answer=answer)
    prepared = sum(counted)
    found = text.leave_one_out(game)
    hook.remove()
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    whole = len(mask) + 1
    after = [whole - lead - (k + 1) * length for k in range(n)]  # without part k
    floor = whole - lead + sum(after)
    assert sum(counted) - prepared <= 1.15 * floor
    assert floor < 0.55 * n * (whole - length)
