"""Attributions of answers of models that are sums, pairs and tables: what they must be.

The expected numbers are those of shared/reference formulas on paper: W is 3 x 3, and the logits of
the models are its rows or sums of them.
"""

from __future__ import annotations

import functools

import pytest
import torch
from oracles import close
from text_models import Bag, Bigram, Both, CountedIds, Positions, W, parts_of
from torch import Tensor

import attrfn
from attrfn import surrogates, text

PROMPT = torch.tensor([[1, 2]])
LOGS = W.log_softmax(-1)


def f64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- scorers ------------------------------------------------------------------------------------


def test_bigram_sees_the_last_token_alone() -> None:
    """Replacing it by b changes the first score; all other entries are exactly 0."""
    f = text.scorer(Bigram(), [[0, 2, 1]])
    close(f(PROMPT), f64([LOGS[2, 0], LOGS[0, 2], LOGS[2, 1]]))
    found = attrfn.feature_ablation(f, PROMPT, baselines=0)
    expected = torch.zeros(1, 3, 2, dtype=torch.float64)
    expected[0, 0, 1] = LOGS[2, 0] - LOGS[0, 0]
    close(found, expected)
    assert float(found[0, 0, 1]) == pytest.approx(1.0, abs=1e-12)
    assert found[0, 0, 0] == 0
    assert found[0, 1:].eq(0).all()


EXACT = {
    "feature_ablation": {},
    "shapley_values": {},
    "kernel_shap": {},
    "shapley_value_sampling": {"n_samples": 2},
    "lime": {"n_samples": 8, "surrogate": surrogates.linear(), "similarity": surrogates.constant()},
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore:n_samples=")
def test_bag_with_a_foil(name: str) -> None:
    """A[j] = D[x_j] - D[b], D = W[:, a] - W[:, f] = (-1, 2, -1): (3, 0)."""
    f = text.scorer(Bag(), [[0]], foil=[[1]])
    found = getattr(attrfn, name)(f, PROMPT, baselines=0, **EXACT[name])
    close(found, f64([3, 0]), 1e-9)


def test_bag_with_a_foil_by_gradients() -> None:
    """At the embedding, whose rows are W: each row's difference of columns."""
    model = Bag()
    f = text.scorer(model, [[0]], foil=[[1]])
    for method, expected in (
        (attrfn.layer_integrated_gradients, [3, 0]),
        (attrfn.layer_deep_lift, [3, 0]),
        (attrfn.layer_gradient_x_activation, [2, -1]),
    ):
        for layer in (model.table, "table"):
            base = {} if "x_act" in method.__name__ else {"baselines": 0}
            found = method(f, PROMPT, layer=layer, target=0, **base)
            close(found.sum(-1), f64(expected))


def test_bag_of_several_tokens_at_once() -> None:
    """Each token of the answer has a row; ``whole`` adds the sum."""
    f = text.scorer(Bag(), [[0, 1]], foil=[[1, 2]], whole=True)
    d = torch.stack([W[:, 0] - W[:, 1], W[:, 1] - W[:, 2]])
    expected = d[:, [1, 2]] - d[:, [0]]
    found = attrfn.feature_ablation(f, PROMPT, baselines=0)
    close(found[0, :2], expected)
    close(found[0, 2], expected.sum(0))
    each = attrfn.each_output(attrfn.at_layer(attrfn.integrated_gradients, "table"))
    close(each(f, PROMPT, baselines=0)[0, :, :2].sum(-1), found[0])


@pytest.mark.parametrize(
    ("either", "ablation", "shapley", "interaction"), [(False, 3, 1.5, 3), (True, 0, 1.5, -3)]
)
def test_and_or(either: bool, ablation: float, shapley: float, interaction: float) -> None:
    f = text.scorer(Both(either), [[0]], score="logit")
    ids = torch.tensor([[4, 1, 5, 2]])
    close(attrfn.feature_ablation(f, ids, baselines=3).double(), f64([0, ablation, 0, ablation]))
    close(attrfn.shapley_values(f, ids, baselines=3).double(), f64([0, shapley, 0, shapley]))
    pairs = attrfn.interactions(f, ids, baselines=3).double()
    assert float(pairs[0, 1, 3]) == pytest.approx(interaction)
    assert float(pairs[0, 0, 1]) == 0


# --- games --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore:n_samples=")
def test_game_of_a_bag(name: str) -> None:
    """Replacement as the scorer has it; deletion takes W[x_j] away: D[x_j]."""
    method = functools.partial(getattr(attrfn, name), **EXACT[name])
    for remove, expected in ((text.replace(0), [3, 0]), (text.delete(), [2, -1])):
        parts = parts_of([0, 1, 2], [-1, 0, 1])
        g = text.game(Bag(), parts, answer=[[0]], foil=[[1]], remove=remove)
        close(method(g.fn, g.full.double()), f64(expected), 1e-9)


def test_deletion_moves_positions_and_unattended_does_not() -> None:
    """logit of 0 after (1, 2, 1) with weights 1, 2, 3: 2 + 2 + 6; without the first: 1 + 4."""
    parts = parts_of([1, 2, 1])
    gone = torch.tensor([[1.0, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    for remove, expected in (
        (text.delete(), [10, 1 + 2 * 2, 2 + 2 * 2, 2 + 2 * 1]),
        (text.unattended(), [10, 2 + 6, 2 + 6, 4]),
        (text.replace(0), [10, 0 + 2 + 6, 2 + 0 + 6, 2 + 2 + 0]),
    ):
        g = text.game(Positions(), parts, answer=[[0]], score="logit", remove=remove)
        close(g.fn(gone), f64(expected).T)


def test_a_template_is_built_anew() -> None:
    """Its length may change in any way, here to the number of parts that are there."""
    parts = parts_of([1, 2])
    build = text.template(lambda words: [1] + [2 for w in words if w])
    g = text.game(Bag(), parts, answer=[[0, 1]], score="logit", remove=build)
    z = torch.tensor([[1.0, 1], [0, 1], [0, 0]])
    start = W[1] + torch.tensor([[2.0], [1], [0]]) * W[2]
    close(g.fn(z), torch.stack([start[:, 0], (start + W[0])[:, 1]], 1))


def test_answer_tokens_as_parts() -> None:
    """A token of the answer matters to later ones only, by its logits in a bag: D[a_j]."""
    parts = parts_of([1, 2])
    for remove, base in ((text.delete(), 0 * W[0]), (text.replace(1), W[1])):
        g = text.game(
            Bag(), parts, answer=[[0, 1, 2]], score="logit", remove=remove, answer_context=True
        )
        assert g.full.shape == (1, 5)
        found = attrfn.feature_ablation(g.fn, g.full.double())[0]
        expected = torch.zeros(3, 5, dtype=torch.float64)
        for i, a in enumerate([0, 1, 2]):
            expected[i, :2] = (W[[1, 2]] - base)[:, a]
            for j in range(i):
                expected[i, 2 + j] = (W[j] - base)[a]
        close(found, expected)


def test_other_answers() -> None:
    """log p(a) - log p(b) of whole texts of different lengths, one number."""
    model, parts = Bag(), parts_of([0, 1, 2], [-1, 0, 1])
    g = text.game(model, parts, answer=[[0, 1]], other=[[2]])
    z = torch.tensor([[1.0, 1], [0, 1], [1, 0], [0, 0]])
    a = text.game(model, parts, answer=[[0, 1]]).fn(z).sum(1)
    b = text.game(model, parts, answer=[[2]]).fn(z).sum(1)
    close(g.fn(z), (a - b)[:, None])


def test_next_is_the_runner_up_with_all_parts() -> None:
    parts = parts_of([1, 2])
    g = text.game(Bag(), parts, answer=[[0, 1]], foil="next")
    logits = torch.stack([W[1] + W[2], W[1] + W[2] + W[0]])  # (3, 2, 1) and (3, 3, 3)
    assert g.foil is not None
    assert g.foil.tolist() == [[1, 0]]
    assert torch.equal(text.runner_up(Bag(), PROMPT, [[0, 1]]), g.foil)
    close(g.fn(g.full), (logits[[0, 1], [0, 1]] - logits[[0, 1], [1, 0]])[None])


def test_kl_is_zero_with_all_parts() -> None:
    """-KL(p at z = 1, p at z), so that what a part is worth is at least 0."""
    parts = parts_of([1, 2])
    g = text.game(Bag(), parts, answer=[[0]], score="kl", remove=text.replace(0))
    p, q = (W[1] + W[2]).softmax(-1), (W[0] + W[2]).softmax(-1)
    close(
        g.fn(torch.tensor([[1.0, 1], [0, 1]])).double(),
        f64([0, -(p * (p / q).log()).sum()]).T,
        1e-6,
    )
    assert (attrfn.feature_ablation(g.fn, g.full) > 0).all()


def test_a_prompt_of_no_matter_gives_zeros() -> None:
    """A bigram's second answer token; and parts without tokens have exactly 0."""
    parts = parts_of([0, 1, 2], [-1, 0, 2], 4)
    g = text.game(Bigram(), parts, answer=[[0, 1]])
    found = attrfn.feature_ablation(g.fn, g.full)
    assert found[0, 1].eq(0).all()
    assert found[0, :, [1, 3]].eq(0).all()
    close(attrfn.shapley_values(g.fn, g.full)[0, :, [1, 3]], torch.zeros(2, 2))


def test_the_order_of_parts_is_that_of_columns() -> None:
    ids, mask = [0, 1, 2, 2, 1], [-1, 0, 1, 2, 1]
    backwards = [-1, 2, 1, 0, 1]
    for remove in (text.delete(), text.replace(0)):
        a, b = (
            attrfn.feature_ablation(g.fn, g.full)
            for g in (
                text.game(Bag(), parts_of(ids, m), answer=[[0, 1]], remove=remove)
                for m in (mask, backwards)
            )
        )
        close(a.flip(-1), b)


# --- counts -------------------------------------------------------------------------------------


def test_n_parts_take_n_rows_and_one() -> None:
    """One forward pass serves all answer tokens; the last of them is not read."""
    counted = CountedIds(Bag())
    parts = parts_of([0, 1, 2, 1, 2, 1], [-1, 0, 0, 1, 2, 3])
    g = text.game(counted, parts, answer=[[0, 1, 2]], remove=text.replace(0))
    assert counted.log.rows == 0
    attrfn.feature_ablation(g.fn, g.full, chunk_size=None)
    counted.log.shapes.clear()  # the first run measures memory, too
    attrfn.feature_ablation(g.fn, g.full, chunk_size=None)
    assert counted.log.rows == 4 + 1
    assert counted.log.tokens == (4 + 1) * (6 + 3 - 1)


def test_budget_of_tokens() -> None:
    """No call has more tokens; the values do not depend on it."""
    parts = parts_of([0, 1, 2, 1, 2, 1], [-1, 0, 0, 1, 2, 3])
    z = torch.tensor([[(i >> k) & 1 for k in range(4)] for i in range(16)]).float()
    expected = text.game(Bag(), parts, answer=[[0, 1]]).fn(z)
    for most in (1, 7, 20, 1000):
        for pad_to in (1, 4):
            counted = CountedIds(Bag())
            g = text.game(counted, parts, answer=[[0, 1]], max_tokens=most, pad_to=pad_to)
            close(g.fn(z), expected)
            assert all(r * t <= most or r == 1 for r, t in counted.log.shapes)
            assert all(t % pad_to == 0 for _, t in counted.log.shapes)
