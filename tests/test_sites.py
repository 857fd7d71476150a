"""Sites: values read, edited and differentiated at many layers in one pass.

Numbers with a comment "sheet" are worked out by hand for the small nets of this file.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
import zoo
from helpers import assert_close, in_threads
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from zoo import make, randn

import attrfn
from attrfn import Site, activations, intervene
from attrfn._layers.at_sites import gradients
from attrfn._torch import pytree

D = torch.float64


def equal(got: Any, expected: Any) -> None:
    """The same tree, bit for bit."""
    a, spec = pytree.tree_flatten(got)
    b, other = pytree.tree_flatten(expected)
    assert spec == other
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q) if isinstance(p, Tensor) else p is q or p == q


class Takes(nn.Module):
    """Hands on its input, so that it is a site of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def column(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=D).T


# --- values --------------------------------------------------------------------------------------


def test_values_are_those_of_the_model_bit_for_bit() -> None:
    model, x = zoo.cnn(), randn(2, 2, 8, 8)
    names = [str(i) for i in range(8)]
    outputs, found = activations(model, names)(x)
    equal(outputs, model(x))
    assert list(found) == names
    h = x.clone()
    for name in names:
        h = model[int(name)](h.clone())
        equal(found[name], h)


def test_keys_are_as_given_and_in_the_given_order() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    keys = ["2", Site("1", at="input"), model[0], Site(model[1]), "0"]
    _, found = activations(model, keys)(x)
    assert list(found) == keys
    h = model[0](x)
    expected = [model[2](h.tanh()), h, h, h.tanh(), h]
    equal(list(found.values()), expected)


def test_a_site_alone_and_no_site() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    equal(activations(model, "0")(x)[1], {"0": model[0](x)})
    equal(activations(model, Site("1", "input"))(x)[1], {Site("1", "input"): model[0](x)})
    equal(activations(model, [])(x), (model(x), {}))
    equal(intervene(model, {})(x), model(x))


def test_several_calls() -> None:
    model, x = make(zoo.Residual), randn(3, 4)
    act = "blocks.1.act"
    keys = [
        Site(act, call=None),
        Site(act, call=1),
        Site(act, "input", 0),
        Site(act, "input", None),
    ]
    _, found = activations(model, keys)(x)
    one = model.blocks[1].one(h := model.blocks[0](model.stem(x)))
    two = model.blocks[1].two(one.relu()) + h
    equal(list(found.values()), [(one.relu(), two.relu()), two.relu(), one, (one, two)])


class Structured(nn.Module):
    """Calls its parts by keywords, and gets a tuple, a dict and a dataclass of them."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named, self.record = Pair(), Named(), Record()
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, none, number = self.pair(x, scale=2.0)
        b = self.named(first=a, second=x)
        c = self.record(b["sum"])
        assert none is None
        assert number == 3
        c.value.add_(0)  # a later write, through the object
        return self.last(c.value * c.scale + b["inner"][0])


class Pair(nn.Module):
    def forward(self, x: Tensor, scale: float) -> Any:
        return x * scale, None, 3


class Named(nn.Module):
    def forward(self, *, first: Tensor, second: Tensor) -> Any:
        return {"sum": first + second, "inner": (second.sin(),), "flag": True}


@dataclasses.dataclass
class Out:
    """A dataclass that no library knows."""

    value: Tensor
    scale: float


class Record(nn.Module):
    def forward(self, x: Tensor) -> Out:
        return Out(x.cos(), 0.5)


def test_values_of_any_structure_are_read() -> None:
    model, x = make(Structured), randn(3, 4)
    keys = ["pair", Site("pair", "input"), Site("named", "input"), "named", "record"]
    outputs, found = activations(model, keys)(x)
    equal(outputs, model(x))
    equal(found["pair"], (2 * x, None, 3))
    equal(found[keys[1]], x)
    equal(found[keys[2]], {"first": 2 * x, "second": x})
    equal(found["named"], {"sum": 2 * x + x, "inner": (x.sin(),), "flag": True})
    assert isinstance(found["record"], Out)
    equal(found["record"].value, (2 * x + x).cos())


def test_values_of_any_structure_are_edited() -> None:
    model, x = make(Structured), randn(3, 4)
    edited = intervene(
        model,
        {
            "pair": lambda v, seen: (v[0] + 1, None, v[2]),
            Site("named", "input"): lambda v, seen: {**v, "second": v["second"] * 2},
            "named": lambda v, seen: {
                "sum": None,
                "inner": (v["inner"][0] + seen["pair"][0],),
                "flag": None,
            },
            "record": lambda v, seen: dataclasses.replace(v, value=v.value * 3),
        },
    )
    a = 2 * x + 1
    c = (a + 2 * x).cos() * 3
    equal(edited(x), model.last(c * 0.5 + ((2 * x).sin() + a)))


def test_the_model_and_the_inputs_stay_as_they_are() -> None:
    model, x = zoo.cnn().train(), randn(2, 2, 8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    given, bound = x.clone(), torch.ones(2, 4, 8, 8, dtype=D)

    def write(other: Tensor, value: Tensor, seen: Any) -> Tensor:
        other.mul_(2)
        return value.add_(other)

    edited = intervene(model, {"0": functools.partial(write, bound), "1": lambda a, s: a.zero_()})
    with pytest.warns(UserWarning, match="training mode"):
        edited(x)
    equal(x, given)
    equal(bound, torch.ones(2, 4, 8, 8, dtype=D))
    equal(dict(model.state_dict()), before)
    assert not any(m._forward_hooks for m in model.modules())


# --- edits ---------------------------------------------------------------------------------------


def test_edits_see_those_before_them() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    passed = []

    def last(a: Tensor, seen: Any) -> Tensor:
        passed.extend(seen)
        return a + seen["0"].sum(1, keepdim=True) + seen[Site(model[1])].sum(1, keepdim=True)

    edited = intervene(model, {"2": last, "1": None, "0": lambda a, seen: 2 * a})
    h = 2 * model[0](x)
    expected = model[2](h.tanh()) + h.sum(1, keepdim=True) + h.tanh().sum(1, keepdim=True)
    equal(edited(x), expected)
    assert passed == ["0", "1"]


def test_two_names_of_one_place_are_applied_one_after_the_other() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    edited = intervene(model, {"0": lambda a, s: a + 1, model[0]: lambda a, s: a * 2})
    equal(edited(x), model[2](((model[0](x) + 1) * 2).tanh()))
    other = intervene(model, {model[0]: lambda a, s: a * 2, "0": lambda a, s: a + 1})
    equal(other(x), model[2]((model[0](x) * 2 + 1).tanh()))


def test_an_edit_of_all_calls() -> None:
    model, x = make(zoo.Residual), randn(3, 4)
    act, seen_before = "blocks.1.act", []

    def twice(a: Tensor, seen: Any) -> Tensor:
        seen_before.append(len(seen.get(Site(act, call=None), ())))
        return 2 * a

    edited = intervene(model, {Site(act, call=None): twice})
    h = model.blocks[0](model.stem(x))
    one = 2 * model.blocks[1].one(h).relu()
    equal(edited(x), model.out(2 * (model.blocks[1].two(one) + h).relu()))
    assert seen_before == [0, 1]


def test_rows_that_are_bound_to_an_edit_follow_the_batch() -> None:
    model, x, other = zoo.mlp(), randn(3, 4), randn(3, 6, seed=1)
    mixed = {"0": functools.partial(lambda t, a, seen: a * t, other)}
    edited = intervene(model, mixed)

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.model[2]((self.model[0](x) * t).tanh())

    plain = functools.partial(Alone(), t=other)
    for method, options in (
        (attrfn.integrated_gradients, {"n_steps": 5}),
        (attrfn.feature_ablation, {}),
        (attrfn.kernel_shap, {}),
        (attrfn.integrated_gradients, {"n_steps": 5, "batching": "vmap", "chunk_size": 2}),
    ):
        assert_close(method(edited, x, target=1, **options), method(plain, x, target=1, **options))


def test_edits_follow_parameters() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    params = {k: v.detach() * 2 for k, v in model.named_parameters()}
    edits = {"0": lambda a, seen: a + 1}
    bound = functools.partial(functional_call, model, params)
    twice = make(lambda: zoo.mlp())
    with torch.no_grad():
        for p in twice.parameters():
            p.mul_(2)
    equal(intervene(bound, edits)(x), intervene(twice, edits)(x))
    equal(activations(bound, ["1"])(x), activations(twice, ["1"])(x))

    def of(p: dict[str, Tensor]) -> Tensor:
        return intervene(functools.partial(functional_call, model, p), edits)(x).sum()

    got = torch.func.grad(of)(params)
    of_twice = intervene(twice, edits)(x).sum()
    expected = torch.autograd.grad(of_twice, list(twice.parameters()))
    assert_close(list(got.values()), list(expected))


def test_frozen_records_no_graph() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    edits = {"0": lambda a, seen: a + 1}
    assert intervene(model, edits)(x).requires_grad
    assert not intervene(model, edits, frozen=True)(x).requires_grad
    assert not activations(model, ["0"], frozen=True)(x)[1]["0"].requires_grad
    intervene(model, edits)(x).sum().backward()
    assert model[0].weight.grad is not None


# --- composition ---------------------------------------------------------------------------------


def plus_one(a: Tensor, seen: Any) -> Tensor:
    return a + 1


@pytest.mark.parametrize("layer", ["0", "1", "2", ""])
@pytest.mark.parametrize("at", ["output", "input"])
def test_split_of_an_edited_model(layer: str, at: Any) -> None:
    model, x = zoo.mlp(), randn(3, 4)
    edits = {Site("0", "input"): plus_one, "0": lambda a, s: a * 2, Site("1", "input"): plus_one}
    edits |= {"1": lambda a, seen: a + seen["0"]}
    edited = intervene(model, edits)
    first = x + 1
    zero = model[0](first) * 2
    one = (zero + 1).tanh() + zero
    values = {"0": (first, zero), "1": (zero + 1, one), "2": (one, model[2](one))}
    head, tail = attrfn.split(edited, layer, at=at)
    equal(tail(head(x), x), edited(x))
    equal(edited(x), model[2](one))
    if layer:
        equal(head(x), values[layer][at == "output"])
        equal(activations(edited, [Site(layer, at)])(x)[1][Site(layer, at)], head(x))


def test_what_is_planted_is_what_later_edits_see() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    edited = intervene(model, {"0": None, "1": lambda a, seen: a + seen["0"]})
    _, tail = attrfn.split(edited, "0")
    planted = randn(3, 6, seed=4)
    equal(tail(planted, x), model[2](planted.tanh() + planted))
    got = attrfn.layer_integrated_gradients(edited, x, layer="0", target=1)
    h = model[0](x)
    plain = lambda a: model[2](a.tanh() + a)  # noqa: E731
    start = model[0](torch.zeros_like(x))
    expected = attrfn.integrated_gradients(plain, h, target=1, baselines=start)
    assert_close(got, expected.detach())


def test_intervening_twice() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    first = intervene(model, {"0": lambda a, s: a * 2})
    second = intervene(first, {"0": plus_one, "2": lambda a, seen: a + seen["0"][:, :3]})
    h = model[0](x) * 2 + 1
    equal(second(x), model[2](h.tanh()) + h[:, :3])
    inputs = intervene(first, {Site("0", "input"): plus_one})
    equal(inputs(x), first(x + 1))
    third = intervene(inputs, {Site("0", "input"): lambda a, s: a * 3})
    equal(third(x), first((x + 1) * 3))


def test_bound_arguments_before_and_after() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.mlp()

        def forward(self, x: Tensor, scale: Tensor, *, shift: Tensor) -> Tensor:
            return self.inner(x) * scale + shift

    model, x = make(Two), randn(3, 4)
    scale, shift = randn(3, 1, seed=2), randn(3, 1, seed=3)
    edits = {"inner.0": plus_one}
    expected = model.inner[2]((model.inner[0](x) + 1).tanh()) * scale + shift
    equal(intervene(model, edits)(x, scale, shift=shift), expected)
    equal(functools.partial(intervene(model, edits), shift=shift)(x, scale), expected)
    before = intervene(functools.partial(model, shift=shift), edits)
    equal(before(x, scale), expected)
    twice = intervene(functools.partial(before, scale=scale), {"inner.1": None})
    equal(twice(x), expected)
    assert_close(
        attrfn.integrated_gradients(twice, x, target=1, n_steps=3),
        attrfn.integrated_gradients(functools.partial(before, scale=scale), x, target=1, n_steps=3),
    )


RULES = [
    attrfn.rules.composite(dense=attrfn.rules.epsilon()),
    attrfn.rules.epsilon_plus(),
    attrfn.rules.attn_lrp(),
]


@pytest.mark.parametrize("rules", RULES, ids=lambda r: r.name)
def test_rules_compose_with_an_intervention(rules: Any) -> None:
    """RelP: relevance at all sites at once is the gradient by rules of what is added there."""
    model, x = make(zoo.Residual), randn(3, 4)
    layers = ["stem", "blocks.0", "blocks.1.one", "blocks.1"]
    _, values = activations(model, layers)(x)

    def of(*d: Tensor) -> Tensor:
        edits = {
            k: functools.partial(lambda t, a, seen: a + t, t)
            for k, t in zip(layers, d, strict=True)
        }
        return intervene(model, edits)(x)[:, 1]

    ruled = attrfn.with_rules(of, rules)
    zeros = tuple(torch.zeros_like(values[k]) for k in layers)
    grads = torch.func.vjp(ruled, *zeros)[1](torch.ones(3, dtype=D))
    for k, g in zip(layers, grads, strict=True):
        assert_close(
            (values[k] * g).detach(), attrfn.layer_lrp(model, x, layer=k, target=1, rules=rules)
        )


def test_rules_by_name_on_an_edited_model() -> None:
    model, x = zoo.mlp(act=nn.ReLU), randn(3, 4)
    rules = attrfn.rules.composite(dense=attrfn.rules.epsilon(), names={"0": attrfn.rules.gamma()})
    edited = intervene(model, {"0": lambda a, s: a * 2})
    doubled = make(lambda: zoo.mlp(act=nn.ReLU))
    with torch.no_grad():
        doubled[0].weight.mul_(2)
        doubled[0].bias.mul_(2)
    assert_close(
        attrfn.lrp(edited, x, target=1, rules=rules),
        attrfn.lrp(doubled, x, target=1, rules=rules),
        rtol=1e-4,  # epsilon
    )


def test_a_model_and_its_edited_one_in_one_method() -> None:
    """Both have private copies in the same call of a method, with and without edits."""
    model, x = zoo.mlp(), randn(3, 4)
    edited = intervene(model, {"0": lambda a, s: a * 2})

    def difference(model_fn: Any, inputs: Any, **options: Any) -> Tensor:
        both = [attrfn.input_x_gradient(f, inputs, **options) for f in (model_fn, edited)]
        return both[0] - both[1]

    tunnel = attrfn.noise_tunnel(difference, n_samples=3, stdevs=0.0, chunk_size=1)
    expected = attrfn.input_x_gradient(model, x, target=1)
    expected = expected - attrfn.input_x_gradient(edited, x, target=1)
    assert_close(tunnel(model, x, target=1), expected)
    found = attrfn.ensemble(attrfn.gradient, reduce=None)([model, edited, model], x, target=1)
    assert_close(found[0], found[2])
    assert_close(found[1], attrfn.gradient(edited, x, target=1))
    assert not torch.allclose(found[0], found[1])


# --- transforms ----------------------------------------------------------------------------------

EDITS = {"0": lambda a, seen: a * 2, "1": lambda a, seen: a + seen["0"]}


def by_hand(model: Any, x: Tensor) -> Tensor:
    h = model[0](x) * 2
    return model[2](h.tanh() + h)


def test_vmap_grad_and_jvp() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    edited = intervene(model, EDITS)
    assert_close(vmap(lambda x: edited(x[None])[0])(x), edited(x))
    assert_close(jacrev(edited)(x), jacrev(lambda x: by_hand(model, x))(x))
    t = randn(3, 4, seed=5)
    got = torch.func.jvp(edited, (x,), (t,))
    assert_close(got, torch.func.jvp(lambda x: by_hand(model, x), (x,), (t,)))
    out, found = vmap(lambda x: activations(model, ["0", "1"])(x[None]))(x)
    assert_close(found["1"][:, 0], model[0](x).tanh())
    assert_close(out[:, 0], model(x))


def test_vmap_over_the_strength_of_an_edit() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    strengths = torch.linspace(-1, 1, 5, dtype=D)

    def at(s: Tensor) -> Tensor:
        return intervene(model, {"0": lambda a, seen: a + s})(x)

    expected = [model[2]((model[0](x) + s).tanh()) for s in strengths]
    assert_close(vmap(at)(strengths), torch.stack(expected))
    assert_close(jacrev(at)(strengths[0]), torch.func.jacfwd(at)(strengths[0]))


def test_compiled() -> None:
    model, x = zoo.mlp(), randn(3, 4)
    compiled = functools.partial(torch.compile, fullgraph=True, backend="eager")
    keys = ["0", Site("1", "input"), Site("1", call=None), model[2]]
    assert_close(compiled(intervene(model, EDITS))(x), by_hand(model, x))
    out, found = compiled(activations(model, keys))(x)
    assert list(found) == keys
    assert_close((out, list(found.values())), (model(x), [*_values(model, x)]))
    inside = compiled(lambda x: activations(intervene(model, EDITS), ["0", "1"])(x))(x)
    h = model[0](x) * 2
    assert_close(inside, (by_hand(model, x), {"0": h, "1": h.tanh() + h}))
    other = randn(3, 6, seed=1)
    edited = intervene(model, {"0": functools.partial(lambda t, a, s: a * t, other)})
    explain = lambda x: attrfn.gradient(edited, x, target=1)  # noqa: E731
    assert_close(compiled(explain)(x), explain(x))


def _values(model: Any, x: Tensor) -> Any:
    h = model[0](x)
    return h, h, (h.tanh(),), model[2](h.tanh())


def test_threads() -> None:
    model = make(zoo.Residual)
    batches = [randn(3, 4, seed=i) for i in range(8)]

    def run(x: Tensor) -> Any:
        edited = intervene(model, {"stem": lambda a, s: a + x.sum(), "blocks.0": None})
        return activations(edited, ["stem", "blocks.1"])(x), gradients(edited, x, ["stem"], 1)

    expected = [run(x) for x in batches]
    equal(in_threads(run, batches, times=10), expected)
