"""Attacks: exact values, the ball and the box, what is undefined, and what is refused."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import optree
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from models import NETS, TREES, targets
from torch import Tensor
from zoo import D, mlp, randn

import attrfn
from attrfn import robust

# The model of the exact values: logits z = x W', at x = (1, 1) z0 - z1 = -2 x0 + 3 x1 = 1.
W = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=D)
ONE = torch.ones(1, 2, dtype=D)


def logits(x: Tensor) -> Tensor:
    return x @ W.T.to(x)


def gap(x: Tensor) -> Tensor:
    """z0 - z1, by hand."""
    return -2 * x[:, 0] + 3 * x[:, 1]


def loss(f: Any, x: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(f(x), y, reduction="none")


def test_fgsm_by_hand() -> None:
    found = robust.fgsm(logits, ONE, target=0, epsilon=0.25)
    assert_close(found, torch.tensor([[1.25, 0.75]], dtype=D))
    assert gap(found).item() == -0.25
    y = torch.tensor([0])
    losses = torch.cat([loss(logits, ONE, y), loss(logits, found, y)])
    assert_close(losses, torch.tensor([0.3132617, 0.8259394], dtype=D), atol=1e-7)


@pytest.mark.parametrize("objective", ["cross_entropy", "margin"])
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_linf_by_hand(objective: Any, random_start: bool) -> None:
    options: dict[str, Any] = {"objective": objective, "random_start": random_start}
    found = robust.pgd(logits, ONE, target=0, radius=0.5, bounds=(0, 1.1), **options)
    assert_close(found, torch.tensor([[1.1, 0.5]], dtype=D))
    assert_close(gap(found), torch.tensor([-0.7], dtype=D))


def test_pgd_l2_by_hand() -> None:
    """The whole radius along (2, -3): the objective depends on z0 - z1 alone."""
    found = robust.pgd(logits, ONE, target=0, radius=0.5, norm="l2", random_start=False)
    assert_close(found, torch.tensor([[1.27735010, 0.58397485]], dtype=D), atol=1e-8)
    assert_close(gap(found), torch.tensor([1 - 0.5 * 13**0.5], dtype=D), atol=1e-12)


@pytest.mark.parametrize("mode", ["linear", "binary"])
@pytest.mark.parametrize("chunk_size", [1, 3, "auto", None])
def test_min_param_by_hand(mode: Any, chunk_size: Any) -> None:
    """FGSM flips the class at 0.2, the l2 attack at 1 / sqrt(13) = 0.277."""

    def sign(inputs: Tensor, value: Tensor, keys: Tensor) -> Tensor:
        return robust.fgsm(logits, inputs, target=0, epsilon=value)

    def l2(inputs: Tensor, value: Tensor, keys: Tensor) -> Tensor:
        return robust.pgd(
            logits, inputs, target=0, radius=value, norm="l2", random_start=False, key=keys
        )

    values = torch.arange(17, dtype=D) / 16
    search = functools.partial(
        robust.min_param_perturbation, values=values, target=0, mode=mode, chunk_size=chunk_size
    )
    found = search(logits, ONE, sign)
    assert_close(found.value, torch.tensor([0.25], dtype=D))
    assert_close(found.inputs, torch.tensor([[1.25, 0.75]], dtype=D))
    assert search(logits, ONE, l2).value.item() == 0.3125


def test_targeted_attacks_reach_the_class() -> None:
    """Two classes: towards one is away from the other."""
    for attack in (
        functools.partial(robust.fgsm, epsilon=0.25),
        functools.partial(robust.pgd, radius=0.5, norm="l2", n_restarts=2),
    ):
        away, towards = (attack(logits, ONE, target=y, targeted=bool(y)) for y in (0, 1))
        assert_close(away, towards)


def test_objectives_by_hand() -> None:
    """Each is written out and differentiated, for three classes."""
    model, x, y = mlp(), randn(6, 4, seed=3), targets(6)
    others = F.one_hot(y, 3).bool()

    def margin(out: Tensor) -> Tensor:
        return out.masked_fill(others, -torch.inf).amax(1) - out[range(6), y]

    written = {
        "cross_entropy": lambda out: -out.log_softmax(1)[range(6), y],
        "margin": margin,
        "target": lambda out: -out[range(6), y],
    }
    for name, f in written.items():
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(model(z)).sum(), z)
        expected = x + 0.1 * g.sign()
        assert_close(robust.fgsm(model, x, target=y, epsilon=0.1, objective=name), expected)  # type: ignore[arg-type]
        assert_close(robust.fgsm(model, x, epsilon=0.1, objective=f), expected)
        down = robust.fgsm(model, x, epsilon=0.1, objective=f, targeted=True)
        assert_close(down, x - 0.1 * g.sign())


@pytest.mark.parametrize("scale", [1, 40, 400, 4000])
def test_cross_entropy_does_not_vanish_where_the_model_is_certain(scale: int) -> None:
    """In float32 the gradient of log_softmax is 0, or misses z_y, from logits 17 apart on."""
    x = ONE.float()
    found = robust.fgsm(lambda x: scale * logits(x), x, target=0, epsilon=0.25)
    assert_close(found, torch.tensor([[1.25, 0.75]]))
    # Only z_y depends on the second feature, so that its part of the gradient decides.
    only = lambda x: scale * torch.stack([x[:, 1], -x[:, 0]], 1)  # noqa: E731
    assert_close(robust.fgsm(only, x, target=0, epsilon=0.25), torch.tensor([[0.75, 0.75]]))


def test_negative_logits_are_attacked_upwards() -> None:
    """A loss -log(out[y]) of logits below 0 would run the wrong way, or be nan."""
    found = robust.fgsm(lambda x: logits(x) - 100, ONE, target=0, epsilon=0.25)
    assert_close(found, torch.tensor([[1.25, 0.75]], dtype=D))


def loop_pgd(f: Any, x: Tensor, y: Tensor, radius: float, norm: str, n: int) -> Tensor:
    """One example after the other, without a random start, in plain autograd."""
    rows = []
    for a, c in zip(x, y, strict=True):
        z, best = a, (-torch.inf, a)
        for step in range(n + 1):
            z = z.detach().requires_grad_()
            value = F.cross_entropy(f(z[None]), c[None])
            if value.item() > best[0]:
                best = (value.item(), z.detach())
            if step == n:
                break
            (g,) = torch.autograd.grad(value, z)
            d = g.sign() if norm == "linf" else g / g.norm()
            d = z.detach() + 2.5 * radius / n * d - a
            d = d.clamp(-radius, radius) if norm == "linf" else d * min(1, radius / d.norm().item())
            z = a + d
        rows.append(best[1])
    return torch.stack(rows)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("net", ["mlp", "cnn", "attention"])
def test_pgd_is_the_loop_over_examples(net: str, norm: Any) -> None:
    model, x, y = NETS[net].build(), NETS[net].inputs(4), targets(4)
    options: dict[str, Any] = {"radius": 0.3, "norm": norm, "n_steps": 7}
    found = robust.pgd(model, x, target=y, random_start=False, **options)
    assert_close(found, loop_pgd(model, x, y, 0.3, norm, 7), atol=1e-9)


def trees() -> dict[str, Any]:
    x = TREES.inputs(3)
    return {
        "one": x,
        "tuple": (x[:, :2], x[:, 2:]),
        "dict": {"a": x[:, :2].reshape(3, 1, 2), "b": [x[:, 2], x[:, 3:]]},
    }


def side_by_side(tree: Any) -> Tensor:
    return torch.cat(
        [t.flatten(1) if t.ndim > 1 else t[:, None] for t in optree.tree_leaves(tree)], 1
    )


@pytest.mark.parametrize("tree", ["one", "tuple", "dict"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("start", [True, False])
def test_pgd_stays_in_ball_and_box(tree: str, norm: Any, masked: bool, start: bool) -> None:
    """Over all leaves, for a radius of each example; and its loss is at least that of x."""
    model, x, y = of_trees, trees()[tree], targets(3)
    radius = torch.tensor([0.0, 0.2, 1.5], dtype=D)
    mask = optree.tree_map(lambda t: torch.arange(t[0].numel()).reshape(t[0].shape) % 2 == 0, x)
    flat = side_by_side(x)
    low, high = flat.min().item() - 0.1, flat.max().item() + 0.1
    found = robust.pgd(
        *(model, x),
        target=y,
        radius=radius,
        norm=norm,
        n_steps=5,
        n_restarts=3,
        random_start=start,
        bounds=(low, high),
        mask=mask if masked else None,
    )
    moves = side_by_side(found) - flat
    size = moves.abs().amax(1) if norm == "linf" else moves.norm(dim=1)
    assert (size <= radius * (1 + 1e-12)).all()
    assert (size[1:] > 0.9 * radius[1:]).all() or masked or norm == "linf"
    assert (side_by_side(found) >= low).all()
    assert (side_by_side(found) <= high).all()
    before, after = (loss(lambda x: call(model, x), x, y) for x in (x, found))
    assert (after >= before - 1e-14).all()
    assert (after[1:] > before[1:]).all()
    if masked:
        stay = side_by_side(optree.tree_map(lambda m, t: m.expand(t.shape), mask, x)) == 0
        assert torch.equal(side_by_side(found)[stay], flat[stay])


FIVE = TREES.build()


def of_trees(*inputs: Any) -> Tensor:
    return FIVE(side_by_side(inputs))


def call(model: Any, x: Any) -> Tensor:
    return model(*x) if isinstance(x, tuple) else model(x)


@pytest.mark.parametrize("tree", ["tuple", "dict"])
def test_trees_are_their_features_side_by_side(tree: str) -> None:
    """The l2 norm runs over all leaves together."""
    y, x = targets(3), trees()
    for attack in (
        functools.partial(robust.fgsm, epsilon=0.2),
        functools.partial(robust.pgd, radius=0.2, norm="l2", random_start=False, n_steps=4),
    ):
        found = attack(of_trees, x[tree], target=y)
        assert optree.tree_structure(found) == optree.tree_structure(x[tree])
        assert_close(side_by_side(found), attack(of_trees, x["one"], target=y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: Any) -> None:
    """In both balls the share of the volume within a size s is (s / r)^d; d elements move."""
    seen: list[Tensor] = []

    def record(out: Tensor) -> Tensor:
        seen.append(out.detach())
        return 0 * out.sum(1)

    x, d = torch.zeros(4000, 4, dtype=D), 3
    found = robust.pgd(
        lambda x: x,
        x,
        objective=record,
        radius=2.0,
        norm=norm,
        n_steps=1,
        mask=torch.tensor([True, True, False, True]),
        key=attrfn.random.split(1, 4000),
    )
    assert torch.equal(found, x)  # x is the first of equal points
    start = seen[0]
    assert not start[:, 2].any()
    size = start.abs().amax(1) if norm == "linf" else start.norm(dim=1)
    for s in (0.5, 1.0, 1.5, 2.0):
        assert abs((size <= s).to(D).mean().item() - (s / 2) ** d) < 0.03
    assert start.mean(0).abs().max() < 0.1


def test_restarts_and_steps_only_help() -> None:
    model, x, y = NETS["cnn"].build(), NETS["cnn"].inputs(4), targets(4)
    options: dict[str, Any] = {"target": y, "radius": 1.0, "n_steps": 2, "key": 4}
    losses = [loss(model, robust.pgd(model, x, n_restarts=n, **options), y) for n in (1, 3, 9)]
    for fewer, more in itertools.pairwise(losses):
        assert (more >= fewer - 1e-12).all()
    assert (losses[2] > losses[0]).any()


def test_a_start_at_x_needs_one_walk() -> None:
    calls = []

    def f(x: Tensor) -> Tensor:
        calls.append(len(x))
        return logits(x)

    robust.pgd(f, ONE, target=0, radius=0.1, n_steps=3, n_restarts=5, random_start=False)
    assert calls == [1] * 4


def test_no_gradient_leaves_the_inputs() -> None:
    """sign(0) = 0, and the l2 step is 0 where the gradient is."""
    x = torch.zeros(2, 2, dtype=D)
    flat = lambda x: (x**2).sum(1)  # noqa: E731
    assert_close(robust.fgsm(flat, x, epsilon=1.0, objective="target"), x)
    options: dict[str, Any] = {"radius": 1.0, "norm": "l2", "random_start": False}
    assert_close(robust.pgd(flat, x, objective="target", **options), x)
    with pytest.warns(UserWarning, match="does not depend"):
        assert_close(robust.fgsm(lambda x: 0 * x.detach(), x, target=0, epsilon=1.0), x)


def test_small_gradients_count() -> None:
    """Squares of 1e-30 are 0 in float32; the steps do not see it."""
    x = torch.ones(2, 2)
    f = lambda x: 1e-30 * gap(x)  # noqa: E731
    found = robust.pgd(f, x, objective="target", radius=0.5, norm="l2", random_start=False)
    assert_close(found, torch.tensor([[1.2773501, 0.58397485]] * 2), rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_bad_example_spoils_its_row_only(norm: Any) -> None:
    model, x, y = mlp(), randn(3, 4, seed=1), targets(3)
    bad = x.clone()
    bad[1, 2] = torch.nan
    attack = functools.partial(robust.pgd, model, target=y, radius=0.2, norm=norm, n_steps=3)
    found, good = attack(bad), attack(x)
    assert_close(found[[0, 2]], good[[0, 2]])
    assert torch.equal(found[1].isnan(), bad[1].isnan())  # nothing was better than x


def test_a_batch_of_no_example_and_everything_masked() -> None:
    model, x, y = mlp(), randn(3, 4, seed=1), targets(3)
    nothing: dict[str, Any] = {"mask": torch.zeros(4, dtype=torch.bool)}
    for attack in (
        functools.partial(robust.fgsm, model, epsilon=0.2),
        functools.partial(robust.pgd, model, radius=0.2, n_steps=2),
        functools.partial(robust.pgd, model, radius=0.2, n_steps=2, norm="l2"),
    ):
        assert attack(x[:0], target=y[:0]).shape == (0, 4)
        assert torch.equal(attack(x, target=y, **nothing), x)
    empty = robust.min_param_perturbation(
        model, x[:0], lambda x, v, k: x, values=[1.0], target=y[:0]
    )
    assert empty.value.shape == empty.found.shape == (0,)
    compared = robust.attack_comparator(
        model, x[:0], {"none": lambda x: x}, metric=lambda o: o[:, 0]
    )
    assert compared["none"].mean.shape == (0,)


FGSM = functools.partial(robust.fgsm, logits, ONE)
PGD = functools.partial(robust.pgd, logits, ONE, target=0)
SEARCH = functools.partial(robust.min_param_perturbation, logits, ONE)
COMPARE = functools.partial(robust.attack_comparator, logits, ONE)


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        (lambda: FGSM(epsilon=0.1), TypeError, "target is None, expected a class"),
        (
            lambda: FGSM(target=(0, 1), epsilon=0.1),
            TypeError,
            r"target is \(0, 1\), expected a class",
        ),
        (lambda: FGSM(target=lambda o: o[:, 0], epsilon=0.1), TypeError, "objective='target'"),
        (lambda: FGSM(target=5, epsilon=0.1), ValueError, "expected -2 to 1"),
        (lambda: FGSM(target=torch.tensor([7]), epsilon=0.1), ValueError, "expected -2 to 1"),
        (lambda: FGSM(target=0, epsilon=-1), ValueError, "epsilon is -1, expected finite"),
        (
            lambda: FGSM(target=0, epsilon=torch.tensor([torch.nan])),
            ValueError,
            "epsilon is a",
        ),
        (lambda: FGSM(target=0, epsilon=True), TypeError, "epsilon is True, expected a number"),
        (lambda: FGSM(target=0, epsilon="big"), TypeError, "epsilon is 'big', expected a number"),
        (lambda: FGSM(target=0, epsilon=torch.ones(2)), ValueError, r"shape \(2,\), expected"),
        (lambda: FGSM(target=0, epsilon=1, objective="loss"), ValueError, "objective is 'loss'"),
        (lambda: FGSM(target=0, epsilon=1, bounds=(2, 3)), ValueError, "some outside bounds"),
        (lambda: FGSM(target=0, epsilon=1, bounds=1), TypeError, "bounds is 1, expected a pair"),
        (lambda: FGSM(target=0, epsilon=1, mask=torch.ones(3)), ValueError, "mask has shape"),
        (lambda: FGSM(target=0, epsilon=1, mask=0.5), ValueError, "expected booleans"),
        (lambda: FGSM(target=0, epsilon=1, targeted=1), TypeError, "targeted is 1"),
        (lambda: robust.fgsm(gap, ONE, target=0, epsilon=1), ValueError, "expected logits"),
        (lambda: robust.fgsm(logits, ONE.long(), target=0, epsilon=1), TypeError, "torch.int64"),
        (lambda: PGD(radius=0.1, norm="Linf"), ValueError, "norm is 'Linf'"),
        (lambda: PGD(radius=0.1, n_steps=0), ValueError, "n_steps is 0"),
        (lambda: PGD(radius=0.1, n_restarts=0), ValueError, "n_restarts is 0"),
        (lambda: PGD(radius=0.1, step_size=-1), ValueError, "step_size is -1, expected finite"),
        (lambda: PGD(radius=0.1, chunk_size=0), ValueError, "chunk_size is 0"),
        (lambda: PGD(radius=0.1, key=torch.zeros(3, 2).long()), ValueError, "key has shape"),
        (lambda: SEARCH(robust.fgsm, values=[], target=0), ValueError, "at least one value"),
        (lambda: SEARCH(lambda x, v, k: x, values=[1.0]), TypeError, "target is None"),
        (lambda: SEARCH(lambda x, v, k: x, values=[1.0], target=3), ValueError, "expected -2 to 1"),
        (lambda: FGSM(target=0, epsilon=10**400), ValueError, "epsilon is a int"),
        (lambda: SEARCH(len, values={1, 2}, target=0), TypeError, "list of numbers"),
        (lambda: SEARCH(3, values=[1.0], target=0), TypeError, "attack is 3, expected"),
        (lambda: SEARCH(lambda x, v, k: x[:, :1], values=[1.0], target=0), ValueError, "returned"),
        (
            lambda: SEARCH(lambda x, v, k: x, values=[1.0], target=0, mode="fast"),
            ValueError,
            "mode",
        ),
        (
            lambda: SEARCH(lambda x, v, k: x, values=[1.0], correct=lambda out: out[:, 0]),
            TypeError,
            "expected booleans",
        ),
        (
            lambda: SEARCH(lambda x, v, k: x, values=[1.0], correct=lambda out: out > 0),
            ValueError,
            "expected one value per row",
        ),
        (lambda: COMPARE([], metric=len), TypeError, r"attacks is \[\], expected a dict"),
        (lambda: COMPARE({"a": 1}, metric=len), TypeError, "attacks.'a'. is 1, expected"),
        (lambda: COMPARE({"original": len}, metric=len), ValueError, "rename it"),
        (lambda: COMPARE({}, metric=lambda out: out), ValueError, "metric returned shape"),
        (lambda: COMPARE({}, metric=lambda o: o[:, 0], n_attempts=0), ValueError, "n_attempts"),
    ],
)
def test_wrong_arguments_are_refused(run: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        run()
    assert len(str(caught.value)) <= 300
