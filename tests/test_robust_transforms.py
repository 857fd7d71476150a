"""Every attack under every transform: rows alone, vmap, chunks, keys, derivatives, dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
from helpers import assert_close, finite_difference, in_threads, inner, noise_like
from models import NETS, targets
from test_purity import Remembers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import grad, jacrev, jvp, vmap
from zoo import D, make, mlp, randn

import attrfn
from attrfn import robust
from attrfn.testing._state import untouched


class Row(NamedTuple):
    """An attack, ``run(model, x, y, **options)``, and what is true of it."""

    run: Callable[..., Any]
    keyed: bool = False
    chunked: bool = False


def _pushed(inputs: Any, value: Tensor, keys: Tensor, *, model: Any, y: Tensor) -> Any:
    """A step along the gradient, with noise by the key: succeeds in some attempts only."""
    noise = attrfn.random.normal(keys, inputs.shape[1:], dtype=D)
    moved = inputs + 0.3 * value.reshape(-1, *[1] * (inputs.ndim - 1)) * noise
    return robust.fgsm(model, moved, target=y, epsilon=value)


VALUES = torch.linspace(0, 2, 6, dtype=D)


def _search(model: Any, x: Any, y: Tensor, **options: Any) -> Any:
    attack = functools.partial(_pushed, model=model, y=y)
    return tuple(
        robust.min_param_perturbation(
            *(model, x, attack), values=VALUES, target=y, n_attempts=2, **options
        )
    )


def _class_score(outputs: Tensor, *, y: Tensor) -> Tensor:
    return outputs.gather(1, y[:, None])[:, 0]


def _compare(model: Any, x: Any, y: Tensor, **options: Any) -> Any:
    attacks = {
        "noise": lambda inputs, keys: inputs + attrfn.random.normal(keys, x.shape[1:], dtype=D),
        "fgsm": functools.partial(robust.fgsm, model, target=y, epsilon=0.2),
        "pgd": functools.partial(robust.pgd, model, target=y, radius=0.2, n_steps=2),
    }
    metric = functools.partial(_class_score, y=y)
    found = robust.attack_comparator(model, x, attacks, metric=metric, n_attempts=3, **options)
    return {name: tuple(numbers) for name, numbers in found.items()}


def _fgsm(model: Any, x: Any, y: Tensor, **options: Any) -> Any:
    return robust.fgsm(model, x, target=y, epsilon=0.1, **options)


def _pgd(norm: Any, model: Any, x: Any, y: Tensor, **options: Any) -> Any:
    return robust.pgd(
        *(model, x),
        **{"target": y, "radius": 0.5, "norm": norm, "n_steps": 2, "n_restarts": 3, **options},
    )


ROWS = {
    "fgsm": Row(_fgsm),
    # Shorter steps than those by default, which end in the corners of the ball whatever the start.
    "pgd linf": Row(functools.partial(_pgd, "linf", step_size=0.1), keyed=True, chunked=True),
    "pgd l2": Row(functools.partial(_pgd, "l2"), keyed=True, chunked=True),
    "linear search": Row(_search, keyed=True, chunked=True),
    "binary search": Row(functools.partial(_search, mode="binary"), keyed=True, chunked=True),
    "comparator": Row(_compare, keyed=True, chunked=True),
}


def every(chosen: Callable[[Row], bool] = lambda r: True) -> pytest.MarkDecorator:
    found = [pytest.param(r, id=name) for name, r in ROWS.items() if chosen(r)]
    return pytest.mark.parametrize("r", found)


def case(net: str = "sharp", batch: int = 3) -> tuple[Any, Tensor, Tensor]:
    """A model, inputs and the classes that it gives them, which are not all the same."""
    model = make(Sharp) if net == "sharp" else NETS[net].build()
    x = randn(batch, 4, seed=1) if net == "sharp" else NETS[net].inputs(batch)
    return model, x, model(x).argmax(1)


class Sharp(nn.Module):
    """Two layers with large weights, so that steps of 0.5 change its mind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.last(torch.tanh(2 * self.first(x)))


def at(found: Any, i: Any) -> Any:
    return optree.tree_map(lambda t: t[i], found)


def close(got: Any, expected: Any, **how: Any) -> None:
    """Equal, nan where nan."""
    pairs = zip(optree.tree_leaves(got), optree.tree_leaves(expected), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, equal_nan=True, **{"rtol": 1e-9, "atol": 1e-11, **how})


@every()
@pytest.mark.parametrize("net", ["sharp", "cnn"])
def test_rows_are_those_of_the_example_alone(r: Row, net: str) -> None:
    model, x, y = case(net)
    batch = r.run(model, x, y)
    for i in range(3):
        close(r.run(model, x[i : i + 1], y[i : i + 1]), at(batch, slice(i, i + 1)))


@every()
def test_results_say_something(r: Row) -> None:
    """Without this the comparisons of this file could be of inputs that stay."""
    model, x, y = case(batch=8)
    found = r.run(model, x, y)
    first = optree.tree_leaves(found)[0]
    assert not torch.equal(first, x)
    for t in optree.tree_leaves(found):
        assert t.shape[0] == 8
        assert t.unique().numel() > 1 or t.dtype == torch.bool


@every()
def test_vmap_over_examples_is_the_batch(r: Row) -> None:
    model, x, y = case()
    mapped = vmap(lambda x, y: r.run(model, x[None], y[None]))(x, y)
    close(optree.tree_map(lambda t: t.squeeze(1), mapped), r.run(model, x, y))


@every(lambda r: r.keyed)
def test_vmap_over_keys_is_the_loop(r: Row) -> None:
    model, x, y = case()
    keys = attrfn.random.split(3, 3)
    mapped = vmap(lambda k: r.run(model, x, y, key=k))(keys)
    for i in range(3):
        close(at(mapped, i), r.run(model, x, y, key=keys[i]))


@every(lambda r: r.keyed)
def test_a_key_for_each_example(r: Row) -> None:
    model, x, _ = case(batch=1)
    x = x.repeat(6, 1)
    y, keys = model(x).argmax(1), attrfn.random.split(3, 6)
    many = r.run(model, x, y, key=keys)
    for i in range(6):
        close(r.run(model, x[:1], y[:1], key=keys[i]), at(many, slice(i, i + 1)))
    assert any(t.unique(dim=0).shape[0] > 1 for t in optree.tree_leaves(many))


@every(lambda r: r.keyed)
def test_only_the_key_changes_the_draws(r: Row) -> None:
    model, x, y = case()
    torch.manual_seed(1)
    first = r.run(model, x, y, key=5)
    torch.manual_seed(2)
    close(r.run(model, x, y, key=5), first, rtol=0, atol=0)
    leaves = optree.tree_leaves(r.run(model, x, y, key=6))
    same = [torch.equal(a, b) for a, b in zip(leaves, optree.tree_leaves(first), strict=True)]
    assert not all(same)


@every(lambda r: r.chunked)
@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_chunks_give_the_same_numbers(r: Row, chunk_size: Any) -> None:
    model, x, y = case("cnn")
    keys = attrfn.random.split(0, 3)
    close(r.run(model, x, y, key=keys, chunk_size=chunk_size), r.run(model, x, y, key=keys))


@every()
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_attacks_are_the_eager_ones(r: Row) -> None:
    """torch.compile(fullgraph=True), with other inputs and no second graph."""
    model, _, _ = case()
    counter = CompileCounter()
    compiled = torch.compile(lambda x, y: r.run(model, x, y), backend=counter, fullgraph=True)
    for seed in (1, 2):
        x = randn(3, 4, seed=seed)
        y = model(x).argmax(1)
        close(compiled(x, y), r.run(model, x, y))
    assert counter.frame_count == 1


def test_fgsm_passes_gradients_to_inputs_and_epsilon() -> None:
    """x' = x + eps sign(g), and a sign has no derivative."""
    model, x, y = case()
    epsilon = torch.tensor([0.1, 0.2, 0.3], dtype=D)
    sign = (robust.fgsm(model, x, target=y, epsilon=1.0) - x).round()
    weights = noise_like(x)

    def total(x: Tensor, epsilon: Tensor, **options: Any) -> Tensor:
        return inner(robust.fgsm(model, x, target=y, epsilon=epsilon, **options), weights)

    close(grad(total, argnums=(0, 1))(x, epsilon), (weights, (weights * sign).sum(1)))
    z, e = x.clone().requires_grad_(), epsilon.clone().requires_grad_()
    total(z, e, create_graph=True).backward()
    close((z.grad, e.grad), (weights, (weights * sign).sum(1)))
    assert not robust.fgsm(model, z, target=y, epsilon=e).requires_grad
    assert not robust.pgd(model, z, target=y, radius=e, n_steps=1).requires_grad


def test_derivatives_of_l2_steps_match_finite_differences() -> None:
    """Inside transforms the whole walk is differentiated, second derivatives included."""
    model, x, y = case()
    direction = noise_like(x)

    def f(x: Tensor) -> Tensor:
        return robust.pgd(model, x, target=y, radius=0.4, norm="l2", n_steps=3)

    expected = finite_difference(f, x, direction, 1e-6)
    assert_close(jvp(f, (x,), (direction,))[1], expected, rtol=1e-5, atol=1e-6)
    rows = torch.einsum("ijij->ij", jacrev(f)(x)[:, :, :, :])
    assert torch.isfinite(rows).all()


@every()
def test_nothing_of_the_users_changes(r: Row) -> None:
    model, x, y = case()
    with untouched(model, x, y):
        for t in optree.tree_leaves(r.run(model, x, y)):
            t.logical_not_() if t.dtype == torch.bool else t.add_(1)


@every()
def test_a_model_that_writes_into_itself_stays(r: Row) -> None:
    model, x, y = make(Remembers), randn(3, 4, seed=1), targets(3)
    with untouched(model, x):
        r.run(model, x, y)
    assert model.seen == []


@every(lambda r: r.run is not _compare)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_change_nothing(r: Row, mode: Any) -> None:
    model, x, y = case()
    expected = r.run(model, x, y)
    with mode():
        found = r.run(model, x, y)
    close(found, expected)


@every()
def test_threads_share_a_model(r: Row) -> None:
    model, x, y = case()
    expected = r.run(model, x, y)
    for values in in_threads(lambda _: r.run(model, x, y), range(4)):
        close(values, expected)


@pytest.mark.parametrize("name", ["fgsm", "pgd linf", "pgd l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_type_of_the_inputs(name: str, dtype: torch.dtype) -> None:
    model, x, y = case()
    found = ROWS[name].run(model.to(dtype), x.to(dtype), y)
    assert found.dtype == dtype
    moves = (found - x.to(dtype)).float()
    size = moves.norm(dim=1) if name == "pgd l2" else moves.abs().amax(1)
    # x + d is rounded to the type.
    assert (size <= (0.1 if name == "fgsm" else 0.5) + 8 * torch.finfo(dtype).eps).all()
    assert (size > 0).all()


def _gated(x: Tensor, gate: Tensor, *, model: Any) -> Tensor:
    return model(x * gate)


@every()
def test_bound_tensors_follow_the_copies(r: Row) -> None:
    """A tensor with a row for each example that the model binds."""
    net, x, _ = case()
    gate = randn(3, 4, seed=7).abs()

    def model(i: slice) -> Any:
        return functools.partial(_gated, gate=gate[i], model=net)

    y = model(slice(0, 3))(x).argmax(1)
    batch = r.run(model(slice(0, 3)), x, y)
    for i in range(3):
        row = slice(i, i + 1)
        close(r.run(model(row), x[row], y[row]), at(batch, row))


def test_trees_go_through_the_search_and_the_comparator() -> None:
    """A dict gives what its features side by side give."""
    net, x, y = case()
    tree = {"a": x[:, :1], "b": [x[:, 1:]]}

    def model(x: Any) -> Tensor:
        return net(torch.cat([x["a"], *x["b"]], 1) if isinstance(x, dict) else x)

    def attack(inputs: Any, value: Tensor, keys: Tensor, *, y: Tensor) -> Any:
        return robust.fgsm(model, inputs, target=y, epsilon=value)

    search = functools.partial(
        robust.min_param_perturbation, attack=functools.partial(attack, y=y), values=VALUES
    )
    found, flat = search(model, tree, target=y), search(model, x, target=y)
    assert optree.tree_structure(found.inputs) == optree.tree_structure(tree)
    close((torch.cat([found.inputs["a"], *found.inputs["b"]], 1), *found[1:]), tuple(flat))
    attacks = {"fgsm": functools.partial(robust.fgsm, model, target=y, epsilon=0.5)}
    compare = functools.partial(
        robust.attack_comparator, attacks=attacks, metric=lambda out: out[:, 0]
    )
    close(tuple(compare(model, tree)["fgsm"]), tuple(compare(model, x)["fgsm"]))


@pytest.mark.parametrize("name", ["pgd linf", "linear search", "comparator"])
def test_progress_goes_to_stderr(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, x, y = case()
    plain = ROWS[name].run(model, x, y)
    close(ROWS[name].run(model, x, y, progress=True), plain)
    shown = capsys.readouterr()
    assert not shown.out
    assert {"pgd linf": "pgd", "linear search": "min_param", "comparator": "fgsm"}[
        name
    ] in shown.err


def loop_search(model: Any, x: Tensor, y: Tensor, attempts: int, key: int) -> tuple[Any, ...]:
    """One example, value and attempt after the other."""
    found: list[tuple[Tensor, float, bool]] = []
    keys = [attrfn.random.fold_in(attrfn.random.fold_in(key, 0), a) for a in range(attempts)]
    for i in range(len(x)):
        row, label = x[i : i + 1], y[i : i + 1]
        result = (row, float("nan"), False)
        for v in VALUES:
            moved = [_pushed(row, v[None], k[None], model=model, y=label) for k in keys]
            wrong = [m for m in moved if (model(m).argmax(1) != label).all()]
            if wrong:
                result = (wrong[0], v.item(), True)
                break
        found.append(result)
    rows, values, flags = zip(*found, strict=True)
    return torch.cat(rows), torch.tensor(values, dtype=D), torch.tensor(flags)


def test_the_search_is_the_loop() -> None:
    model, x, y = case(batch=12)
    found = _search(model, x, y, key=3)
    assert len(found[1].unique()) > 2
    close(found, loop_search(model, x, y, 2, 3))


def test_both_searches_agree_where_strength_helps() -> None:
    """A linear model: what FGSM does grows with epsilon, for 1 to 9 values."""
    w = randn(3, 4, seed=5)
    f = lambda x: x @ w.T  # noqa: E731
    x = randn(20, 4, seed=6)
    y = f(x).argmax(1)
    attack = functools.partial(_steps, f=f, y=y)
    for n in range(1, 10):
        values = torch.linspace(0, 1.0, n, dtype=D)
        search = functools.partial(
            robust.min_param_perturbation, f, x, attack, values=values, target=y
        )
        close(tuple(search(mode="binary")), tuple(search()))
    assert 0 < int(search().found.sum()) < 20  # and some are not found
    lost = ~search().found
    assert torch.equal(search().inputs[lost], x[lost])
    assert search().value[lost].isnan().all()


def _steps(inputs: Tensor, value: Tensor, keys: Tensor, *, f: Any, y: Tensor) -> Tensor:
    # The margin to one fixed class: what the attack does is then monotone in the value.
    other = (y + 1) % 3
    pair = lambda out: out.gather(1, other[:, None])[:, 0] - out.gather(1, y[:, None])[:, 0]  # noqa: E731
    return robust.fgsm(f, inputs, epsilon=value, objective=pair)


def test_other_values_and_functions() -> None:
    """Integer values, integer inputs, a numpy model and a callable in place of argmax."""
    x = torch.tensor([[3, 5, 7], [1, 1, 1]])

    def clipped(inputs: Tensor, value: Tensor, keys: Tensor) -> Tensor:
        return inputs.clamp(max=9 - value[:, None])

    found = robust.min_param_perturbation(
        lambda x: x.numpy().sum(1), x, clipped, values=range(9), correct=lambda out: out > 11
    )
    assert found.value.tolist() == [5.0, 0.0]  # 3 + 4 + 4 = 11; and 3 is too little anyway
    assert found.inputs.tolist() == [[3, 4, 4], [1, 1, 1]]
    assert found.value.dtype == D
    classes = torch.eye(3)[:, [1, 2, 0]].numpy()  # argmax of row i is the class after i
    moved = robust.min_param_perturbation(
        lambda x: classes[x[:, 0].numpy()], x % 3, lambda x, v, k: x + 0 * x, values=[1], target=2
    )
    assert moved.found.tolist() == [int(classes[i].argmax()) != 2 for i in (0, 1)]


def test_the_comparator_is_the_loop() -> None:
    model, x, y = case()
    found = _compare(model, x, y, key=4)
    keys = [attrfn.random.fold_in(attrfn.random.fold_in(4, 0), a) for a in range(3)]
    noisy = [model(x + attrfn.random.normal(k, x.shape[1:], dtype=D))[range(3), y] for k in keys]
    table = torch.stack(noisy)
    close(found["noise"], (table.mean(0), table.amin(0), table.amax(0)))
    walks = [robust.pgd(model, x, target=y, radius=0.2, n_steps=2, key=k) for k in keys]
    table = torch.stack([model(z)[range(3), y] for z in walks])
    close(found["pgd"], (table.mean(0), table.amin(0), table.amax(0)))
    plain = model(x)[range(3), y]
    close(found["original"], (plain,) * 3)


def test_attacks_without_keys_run_once() -> None:
    calls = []

    def attack(inputs: Tensor, epsilon: float = 0.1) -> Tensor:
        calls.append(epsilon)
        return inputs + epsilon

    model, x, _ = case()
    bound = functools.partial(robust.pgd, model, target=0, radius=0.1, n_steps=1, key=3)
    found = robust.attack_comparator(
        model, x, {"add": attack, "pgd": bound}, metric=lambda out: out[:, 0], n_attempts=5
    )
    assert calls == [0.1]
    close(found["add"].mean, model(x + 0.1)[:, 0])
    close(found["pgd"].max, found["pgd"].min)


# --- against Captum, on the cases where it is right -----------------------------------------------


def _cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(outputs, y, reduction="none")


captum = pytest.importorskip("captum.robust")
warns = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")


@warns
@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_captums(targeted: bool) -> None:
    """With a loss of logits; Captum's default wants probabilities. One mask for all examples."""
    model, x, y = mlp(), randn(5, 4, seed=1), targets(5)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=D)
    bounds = (-1.0, 1.5)
    x = x.clamp(*bounds)
    attack = captum.FGSM(model, _cross_entropy, *bounds)
    expected = attack.perturb(x, 0.2, y, targeted=targeted, mask=mask.expand(5, 4))
    found = robust.fgsm(
        model, x, target=y, epsilon=0.2, targeted=targeted, mask=mask, bounds=bounds
    )
    close(found, expected.detach())


@warns
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_linf_is_captums(targeted: bool) -> None:
    """Small steps, so that the last point, which Captum returns, is the best."""
    model, x, y = mlp(), randn(5, 4, seed=1), targets(5)
    attack = captum.PGD(model, _cross_entropy)
    expected = attack.perturb(x, 0.2, 0.06, 4, y, targeted=targeted)
    found = robust.pgd(
        *(model, x), target=y, radius=0.2, step_size=0.06, n_steps=4, random_start=False,
        targeted=targeted,
    )  # fmt: skip
    close(found, expected.detach())


@warns
def test_the_search_is_captums_for_each_example() -> None:
    """Captum gives one value for a batch, so that it gets one example at a time."""
    model, x, y = case(batch=6)
    attack = captum.FGSM(model, _cross_entropy)

    def ours(inputs: Tensor, value: Tensor, keys: Tensor, *, y: Tensor) -> Tensor:
        return robust.fgsm(model, inputs, target=y, epsilon=value)

    values = torch.arange(0, 2, 0.125, dtype=D)
    found = robust.min_param_perturbation(
        model, x, functools.partial(ours, y=y), values=values, target=y
    )
    assert found.found.any()
    for i in range(6):
        search = captum.MinParamPerturbation(model, attack, "epsilon", 0.0, 2.0, 0.125)
        row, label = x[i : i + 1], int(y[i])
        inputs, value = search.evaluate(row, target=label, attack_kwargs={"target": y[i : i + 1]})
        assert (value is not None) == found.found[i].item()
        if value is not None:
            assert value == found.value[i].item()
            close(found.inputs[i : i + 1], inputs.detach())
