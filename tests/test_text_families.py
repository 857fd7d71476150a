"""Scorers and games on families of models: causal ones, encoder-decoders, encoders."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import text_families as families
import torch
from oracles import close
from text_models import Counted, parts_of
from torch import Tensor

import attrfn
from attrfn import rules, text

IDS = [0, 5, 6, 7, 8, 9, 10, 11, 12, 13]
MASK = [-1, -1, -1, 0, 1, 1, 2, 3, -1, 4]
ANSWER = [[20, 21, 22]]
Z = torch.tensor([[1.0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
REMOVALS = {
    "delete": text.delete(),
    "replace": text.replace(3),
    "unattended": text.unattended(),
    "embedding": text.embedding("mean"),
}
# Deeper than rounding of float64: some layers of some models are in float32.
NEAR = 1e-5
# What rules cannot do, by the operation that they name.
NO_DEEP_LIFT = {
    "mixtral": "topk|MixtralExperts",
    "qwen3_moe": "topk|Qwen3MoeExperts",
    "bloom": "BloomGelu",
}
each_causal = pytest.mark.parametrize("name", families.CAUSAL)
each_removal = pytest.mark.parametrize("removal", REMOVALS)


def parts() -> text.Parts:
    return parts_of(IDS, MASK, 5)


def alone(model: Any, row: list[int], removal: str) -> Tensor:
    """The scores of one row, with no packing, cache, mask or logits that are left out."""
    there = torch.tensor([m < 0 or row[m] > 0 for m in MASK])
    ids = torch.tensor([IDS])
    if removal == "delete":
        ids = ids[:, there]
    if removal == "replace":
        ids = ids.where(there, 3)
    tail = torch.tensor([ANSWER[0][:-1]])
    with torch.no_grad():
        if removal == "embedding":
            table = model.get_input_embeddings()
            e = table(torch.cat([ids, tail], 1))
            mean = table(torch.arange(40)).mean(0)
            e[:, : len(IDS)] = e[:, : len(IDS)].where(there[:, None], mean)
            logits = model(inputs_embeds=e).logits
        else:
            logits = model(torch.cat([ids, tail], 1)).logits
        return logits[:, -3:].log_softmax(-1).gather(2, torch.tensor(ANSWER)[..., None])[..., 0]


@each_causal
@pytest.mark.parametrize("removal", ["delete", "replace", "embedding"])
def test_rows_are_each_text_alone(name: str, removal: str) -> None:
    """With a prefix that is computed once and without, packed and in small calls."""
    model = families.causal(name)
    expected = torch.cat([alone(model, row, removal) for row in Z.int().tolist()])
    for more in ({}, {"prefix": False, "max_tokens": 25}):
        g = text.game(model, parts(), answer=ANSWER, remove=REMOVALS[removal], **more)
        with torch.no_grad():
            close(g.fn(Z), expected, NEAR)


# Mamba hides what is masked by zeros, which its state sees; the others that are left out have
# windows of four tokens, all of which may be gone.
@pytest.mark.parametrize(
    "name", [n for n in families.CAUSAL if n not in ("mamba", "gemma2", "bloom", "falcon")]
)
def test_hidden_tokens_are_not_seen(name: str) -> None:
    """``unattended`` does not depend on which tokens are hidden."""
    model = families.causal(name)
    other = [i if m < 0 else i + 20 for i, m in zip(IDS, MASK, strict=True)]
    found = []
    for ids in (IDS, other):
        for prefix in (True, False):
            p = parts_of(ids, MASK, 5)
            g = text.game(model, p, answer=ANSWER, remove=text.unattended(), prefix=prefix)
            with torch.no_grad():
                found.append(g.fn(Z))
    close(found[0], found[1], NEAR)
    close(found[2], found[3], NEAR)
    close(found[0][-1], found[2][-1], NEAR)
    assert (found[0][:-1] - found[2][:-1]).abs().min() > NEAR


def test_unattended_is_deletion_with_the_positions_kept() -> None:
    model = families.causal("llama")
    g = text.game(model, parts(), answer=ANSWER, remove=text.unattended())
    there = torch.tensor([m < 0 or bool(Z[2, m]) for m in MASK])
    positions = torch.arange(len(IDS))[None, there]
    f = text.scorer(model, ANSWER, position_ids=torch.cat([positions], 1))
    # the last part is gone, so that the answer's positions go on from those of the whole prompt
    with torch.no_grad():
        tail = torch.tensor([ANSWER[0][:-1]])
        ids = torch.cat([torch.tensor([IDS])[:, there], tail], 1)
        places = torch.cat([positions, torch.tensor([[10, 11]])], 1)
        logits = model(input_ids=ids, position_ids=places).logits[:, -3:]
        e = logits.log_softmax(-1).gather(2, torch.tensor(ANSWER)[..., None])[..., 0]
        close(g.fn(Z[2:3]), e, NEAR)
    assert f is not None


@each_causal
def test_gradient_methods_of_scorers(name: str) -> None:
    """At the embedding, each token of the answer: sums are the change of the score."""
    model = families.causal(name)
    layer = model.get_input_embeddings()
    f = text.scorer(model, ANSWER)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        change = (f(ids) - f(torch.full_like(ids, 3)))[0, 1]
    assert change.abs() > 1e-3
    options = {"layer": layer, "target": 1}
    a = attrfn.layer_gradient_x_activation(f, ids, **options)
    assert a.isfinite().all()
    assert a[:, len(IDS) + 1 :].eq(0).all()  # row 1 sees the answer's first token, no later one
    assert a[:, : len(IDS)].abs().sum() > 0
    with warnings.catch_warnings():  # the sum is not close with few steps of random models
        warnings.simplefilter("ignore")
        attrfn.layer_integrated_gradients(f, ids, n_steps=2, baselines=3, **options)
    if name in NO_DEEP_LIFT:
        with pytest.raises(attrfn.UnsupportedOpError, match=NO_DEEP_LIFT[name]):
            attrfn.layer_deep_lift(f, ids, baselines=3, **options)
        return
    a = attrfn.layer_deep_lift(f, ids, baselines=3, **options)
    close(a.sum().to(change), change, 1e-4)
    r = attrfn.layer_lrp(f, ids, rules=rules.attn_lrp(), **options)
    assert r.isfinite().all()


@each_causal
def test_ablation_of_scorers(name: str) -> None:
    """Perturbation methods on ids: as many forward passes, and fixed tokens."""
    model = families.causal(name)
    f, ids = text.scorer(model, ANSWER), torch.tensor([IDS])
    found = attrfn.feature_ablation(f, ids, baselines=3, feature_mask=torch.tensor([MASK]))
    g = text.game(model, parts(), answer=ANSWER, remove=text.replace(3))
    by_part = attrfn.feature_ablation(g.fn, g.full)
    fixed = torch.tensor(MASK) < 0
    assert found[0][:, fixed].eq(0).all()
    close(found[0][:, ~fixed].float(), by_part[0][:, [0, 1, 1, 2, 3, 4]].float(), NEAR)


# --- prefixes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.CAUSAL)
@each_removal
def test_prefixes_are_known(name: str, removal: str) -> None:
    """All but Mamba, whose state is no cache, keep the three fixed tokens; nothing warns."""
    if (name, removal) == ("gemma2", "unattended"):
        pytest.skip("a window of four tokens that are all hidden gives nan, which is refused")
    model = families.causal(name)
    g = text.game(model, parts(), answer=ANSWER, remove=REMOVALS[removal])
    first = g.fn.known.first
    assert (first is None) == (name == "mamba" or removal == "embedding")
    assert first is None or first.size == 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_tokens_are_those_of_the_formula(name: str) -> None:
    """q + (n + 1) (P - q + N - 1) with a prefix of q tokens, which the game computes itself."""
    model = Counted(families.causal(name)).eval()
    q, n, size = 6, 4, 10
    p = parts_of(IDS, [-1] * q + list(range(n)), n)
    g = text.game(model, p, answer=ANSWER, remove=text.replace(3))
    assert model.log.shapes[0] == (1, q)
    model.log.shapes.clear()
    with torch.no_grad():
        g.fn(torch.ones(n + 1, n) - torch.eye(n + 1, n))
    assert (model.log.rows, model.log.tokens) == (n + 1, (n + 1) * (size - q + 3 - 1))


def test_what_comes_before_the_first_change_is_shared() -> None:
    """Leaving parts out one by one: part k runs from its own first token, but for whole calls."""
    model = Counted(families.causal("llama")).eval()
    size, n = 60, 56
    ids = [5 + i % 30 for i in range(size)]
    p = parts_of(ids, [-1] * (size - n) + list(range(n)), n)
    g = text.game(model, p, answer=[[20]], remove=text.replace(3))
    plain = text.game(model, p, answer=[[20]], remove=text.replace(3), prefix=False)
    model.log.shapes.clear()
    z = 1 - torch.eye(n)
    with torch.no_grad():
        found = g.fn(z)
        tokens = model.log.tokens
        close(found, plain.fn(z), NEAR)
    own = sum(size - (size - n) - k for k in range(n)) + size
    assert tokens < 1.5 * own
    assert tokens < 0.6 * n * size
    # the same rows take the same way again, and give the same bits
    with torch.no_grad():
        assert torch.equal(found, g.fn(z))


def test_a_wrong_cache_is_found() -> None:
    """A model whose cache loses a token: a warning, and the values are right."""

    class Wrong(Counted):
        def forward(self, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
            if past_key_values is not None:
                for layer in past_key_values.layers:
                    layer.values = layer.values * 1.01
            return self.model(input_ids=input_ids, past_key_values=past_key_values, **more)

        forward.__signature__ = __import__("inspect").signature(Counted.forward)

    model = Wrong(families.causal("llama")).eval()
    with pytest.warns(UserWarning, match=r"differ by .* prefix=False says so"):
        g = text.game(model, parts(), answer=ANSWER)
    e = text.game(families.causal("llama"), parts(), answer=ANSWER, prefix=False)
    with torch.no_grad():
        close(g.fn(Z), e.fn(Z), NEAR)

    class Broken(Wrong):
        def forward(self, past_key_values: Any = None, **more: Any) -> Any:
            if past_key_values is not None:
                raise KeyError("another version")
            return super().forward(past_key_values=past_key_values, **more)

        forward.__signature__ = Wrong.forward.__signature__

    with pytest.warns(UserWarning, match=r"cannot share a prefix \(KeyError\)"):
        text.game(Broken(families.causal("llama")).eval(), parts(), answer=ANSWER)


def test_weights_that_change_are_noticed() -> None:
    """A step of an optimiser, or other tensors: the prefix is computed anew, and checked."""
    model = families.zoo.make(
        families.transformers.LlamaForCausalLM,
        families.transformers.LlamaConfig(**families.LLAMA),
    )
    g = text.game(model, parts(), answer=ANSWER)
    before = attrfn.feature_ablation(g.fn, g.full)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    after = attrfn.feature_ablation(g.fn, g.full)
    fresh = text.game(model, parts(), answer=ANSWER, prefix=False)
    close(after, attrfn.feature_ablation(fresh.fn, fresh.full), NEAR)
    assert (after - before).abs().max() > 100 * NEAR
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        -model.model.layers[0].mlp.up_proj.weight
    )
    again = attrfn.feature_ablation(g.fn, g.full)
    close(again, attrfn.feature_ablation(fresh.fn, fresh.full), NEAR)
    assert (again - after).abs().max() > 100 * NEAR


def test_a_model_that_gives_all_logits_in_any_case() -> None:
    """It takes ``logits_to_keep`` and ignores it."""

    class All(Counted):
        def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **more: Any) -> Any:
            return self.model(input_ids=input_ids)

    expected = text.game(families.causal("llama"), parts(), answer=ANSWER)
    g = text.game(All(families.causal("llama")).eval(), parts(), answer=ANSWER)
    f = text.scorer(All(families.causal("llama")).eval(), ANSWER)
    with torch.no_grad():
        close(g.fn(Z), expected.fn(Z), NEAR)
        close(f(torch.tensor([IDS])), expected.fn(Z[:1]), NEAR)


def test_what_a_partial_binds_reaches_all_rows() -> None:
    """Flags, and tensors with one row; token types follow their tokens, in games and scorers."""

    class Shifted(Counted):
        def forward(self, input_ids: Any = None, shift: Any = 0, scale: Any = 1.0) -> Any:
            out = self.model(input_ids=input_ids)
            return out.logits * scale + shift

    net = Shifted(families.causal("llama")).eval()
    shift = torch.linspace(-2, 2, 40)[None, None]
    bound = functools.partial(net, shift=shift, scale=1.5)
    g = text.game(bound, parts(), answer=ANSWER)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        close(g.fn(Z[:1]), text.scorer(bound, ANSWER)(ids), NEAR)
        there = torch.tensor([m < 0 or bool(Z[2, m]) for m in MASK])
        close(g.fn(Z[2:3]), text.scorer(bound, ANSWER)(ids[:, there]), NEAR)
        plain = text.scorer(families.causal("llama"), ANSWER)(ids)
        assert (g.fn(Z[:1]) - plain).abs().max() > NEAR
    places = torch.arange(len(IDS))[None]
    model = families.causal("llama")
    same = text.game(functools.partial(model, position_ids=places), parts(), answer=ANSWER)
    with torch.no_grad():
        close(same.fn(Z), text.game(model, parts(), answer=ANSWER).fn(Z), NEAR)
    with pytest.raises(ValueError, match="position_ids that do not count from 0"):
        text.game(functools.partial(model, position_ids=places + 1), parts(), answer=ANSWER)


def test_gradients_of_the_weights_go_through_the_prefix() -> None:
    """Where a graph of the weights is wanted, no prefix is taken from before."""
    model = families.causal("llama")
    grads = []
    for prefix in (True, False):
        g = text.game(model, parts(), answer=ANSWER, prefix=prefix)
        a = attrfn.feature_ablation(g.fn, g.full, create_graph=True)
        weight = model.model.layers[0].mlp.up_proj.weight
        grads.append(torch.autograd.grad(a.sum(), weight)[0])
    close(*grads, 1e-9)


# --- encoder-decoders and encoders ----------------------------------------------------------------


@pytest.mark.parametrize("name", families.SEQ2SEQ)
@each_removal
def test_source_and_target_together(name: str, removal: str) -> None:
    """Parts of the source and of what the decoder begins with: each row is the text alone."""
    model = families.seq2seq(name)
    start, target = model.config.decoder_start_token_id, 3
    p = parts_of(IDS, [-1, 0, 0, 1, 1, 2, -1, 3, 4, -1], 5)
    mask = p.mask.tolist()
    g = text.game(text.seq2seq(model, target=target), p, answer=ANSWER, remove=REMOVALS[removal])
    with torch.no_grad():
        found = g.fn(Z)
    table = model.get_input_embeddings()
    for row, scores in zip(Z.int().tolist(), found, strict=True):
        there = torch.tensor([m < 0 or row[m] > 0 for m in mask])
        ids, decoder = torch.tensor([IDS]), torch.tensor([[start, *IDS[-target:]]])
        seen = torch.cat([torch.tensor([True]), there[-target:]])
        source: dict[str, Any] = {}
        if removal == "replace":
            ids, decoder = ids.where(there, 3), decoder.where(seen, 3)
        if removal == "unattended":
            source["attention_mask"] = there[None, :-target].long()
            more = torch.cat([seen, torch.tensor([True, True])])
            source["decoder_attention_mask"] = more[None].long()
        ids = ids[:, :-target]
        if removal == "delete":
            ids, decoder = ids[:, there[:-target]], decoder[:, seen]
        decoder = torch.cat([decoder, torch.tensor([ANSWER[0][:-1]])], 1)
        if removal == "embedding":
            mean = table(torch.arange(40)).mean(0)
            source["inputs_embeds"] = table(ids).where(there[:-target, None], mean)
            blank = torch.nn.functional.pad(~seen, (0, 2))
            source["decoder_inputs_embeds"] = table(decoder).where(~blank[:, None], mean)
        else:
            source |= {"input_ids": ids, "decoder_input_ids": decoder}
        with torch.no_grad():
            logits = model(**source).logits
        if removal == "unattended":  # the last token of the target is fixed, and so attended
            assert seen[-1]
        e = logits[:, -3:].log_softmax(-1).gather(2, torch.tensor(ANSWER)[..., None])[0, :, 0]
        close(scores, e, NEAR)


@pytest.mark.parametrize("name", families.ENCODERS)
@each_removal
def test_pairs_of_texts(name: str, removal: str) -> None:
    """A classifier of two texts, whose token types follow their tokens."""
    model = families.encoder(name, "ForSequenceClassification")
    types = torch.tensor([[0] * 6 + [1] * 4])
    more = {"token_type_ids": types} if name == "bert" else {}
    bound = _bind(model, more)
    g = text.game(text.classifier(bound), parts(), answer=[[0, 2]], remove=REMOVALS[removal])
    with torch.no_grad():
        found = g.fn(Z)
    for row, scores in zip(Z.int().tolist(), found, strict=True):
        there = torch.tensor([m < 0 or row[m] > 0 for m in MASK])
        ids, own = torch.tensor([IDS]), dict(more)
        if removal == "delete":
            ids, own = ids[:, there], {k: v[:, there] for k, v in more.items()}
        given: dict[str, Any] = {"input_ids": ids}
        if removal == "replace":
            given = {"input_ids": ids.where(there, 3)}
        if removal == "unattended":
            given["attention_mask"] = there[None].long()
        if removal == "embedding":
            table = model.get_input_embeddings()
            given = {"inputs_embeds": table(ids).where(there[:, None], table.weight.mean(0))}
        with torch.no_grad():
            logits = model(**given, **own).logits
        close(scores, logits.log_softmax(-1)[0, [0, 2]], NEAR)


def _bind(model: Any, more: dict[str, Tensor]) -> Any:

    return functools.partial(model, **more) if more else model


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_masked_words_keep_their_places(name: str) -> None:
    """The masked tokens move up with the others that are left."""
    model = families.encoder(name, "ForMaskedLM")
    positions = [2, 8]
    g = text.game(text.masked(model, positions), parts(), answer=[[20, 21]])
    with torch.no_grad():
        found = g.fn(Z)
    for row, scores in zip(Z.int().tolist(), found, strict=True):
        there = torch.tensor([m < 0 or row[m] > 0 for m in MASK])
        at = (there.long().cumsum(0) - 1)[positions]
        with torch.no_grad():
            logits = model(torch.tensor([IDS])[:, there]).logits[0, at]
        close(scores, logits.log_softmax(-1)[[0, 1], [20, 21]], NEAR)
    with pytest.raises(ValueError, match="masked tokens among its parts"):
        text.game(text.masked(model, [3]), parts(), answer=[[20]])
