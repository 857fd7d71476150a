"""Arguments of the rules: what is refused, in one sentence."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from oracles import close, randn, seeded
from torch import nn
from torch.func import vmap

import attrfn
from attrfn import rules

X, X0 = randn(0, 3, 4).abs() + 0.1, randn(1, 3, 4).abs() + 0.1

complete = pytest.mark.parametrize("method", ["deep_lift", "reveal_cancel"])
graph = pytest.mark.parametrize("create_graph", [False, True])


# ---------------------------------------------------------------------------------------------
# paths

PATHS = {
    "other operation": lambda x: x.exp().sum(1) if x.sum() > 0 else x.tanh().sum(1),
    "more": lambda x: x.exp().sum(1) if x.sum() > 0 else x.exp().tanh().sum(1),
    "fewer": lambda x: x.exp().tanh().sum(1) if x.sum() > 0 else x.exp().sum(1),
}


@graph
@complete
@pytest.mark.parametrize("name", PATHS)
def test_paths_that_depend_on_values(name, method, create_graph):
    rule = "rescale" if method == "deep_lift" else method
    with pytest.raises(ValueError, match=r"its operations may not depend on values|path"):
        attrfn.deep_lift(PATHS[name], X, baselines=-X, rule=rule, create_graph=create_graph)


# ---------------------------------------------------------------------------------------------
# arguments


@pytest.mark.parametrize("rule", ["rescal", "linear", None, 3, "", rules.guided(), rules.deconv()])
def test_bad_rules_of_deep_lift(rule):
    for method in (attrfn.deep_lift, attrfn.deep_lift_shap):
        with pytest.raises((TypeError, ValueError), match=r"rule is .*expected 'rescale'"):
            method(lambda x: x.sum(1), X, baselines=X0, rule=rule)


def test_rules_of_lrp_are_none_of_deep_lift():
    with pytest.raises(ValueError, match=r"rule is epsilon_plus, expected 'rescale'"):
        attrfn.deep_lift(lambda x: x.sum(1), X, rule=rules.epsilon_plus())


@pytest.mark.parametrize(
    "given", ["epsilon", 3, rules.epsilon, rules.rescale(), rules.guided(), {"conv": "gamma"}]
)
def test_bad_rules_of_lrp(given):
    for run in (
        lambda: attrfn.lrp(lambda x: x.sum(1), X, rules=given),
        lambda: rules.conservation(lambda x: x.sum(1), X, rules=given),
        lambda: attrfn.layer_lrp(nn.Linear(4, 2).double(), X, layer="", target=0, rules=given),
    ):
        with pytest.raises(TypeError, match=r"rules is .*expected a composite"):
            run()


@pytest.mark.parametrize("given", ["lrp", None, rules.epsilon(), 3])
def test_bad_rules_of_with_rules(given):
    with pytest.raises(TypeError, match=r"rules is a .*expected one of attrfn.rules"):
        attrfn.with_rules(lambda x: x.sum(1), given)


FIRST = {"z_box": rules.z_box(-1, 1), "flat": rules.flat(), "w_square": rules.w_square()}


@pytest.mark.parametrize("name", FIRST)
def test_rules_for_inputs_stand_nowhere_else(name):
    rule = FIRST[name]
    for make in (
        lambda: rules.composite(rule),
        lambda: rules.composite(conv=rule),
        lambda: rules.composite(names={"0": rule}),
    ):
        with pytest.raises(ValueError, match=rf"is {name}.*give it as first"):
            make()
    with pytest.raises(ValueError, match=rf"{name}.*composite\(first="):
        attrfn.lrp(lambda x: x.sum(1), X, rules=rule)


@pytest.mark.parametrize(
    "options", [{"dense": "epsilon"}, {"conv": 0.1}, {"first": "flat"}, {"names": {"a": None}}]
)
def test_composites_are_made_of_rules(options):
    with pytest.raises(TypeError, match=r"expected a rule such as attrfn.rules.epsilon\(\)"):
        rules.composite(**options)


def test_unknown_treatment_of_softmax():
    with pytest.raises(ValueError, match=r"softmax is 'cp', expected 'derivative' or 'constant'"):
        rules.composite(softmax="cp")


def test_names_of_unknown_modules():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    for pattern in ("2", "head", "features.*"):
        with pytest.raises(ValueError, match=rf"the module {re.escape(repr(pattern))}"):
            attrfn.lrp(model, X, target=0, rules=rules.composite(names={pattern: rules.gamma()}))
    with pytest.raises(ValueError, match="no module can be found in model_fn"):
        attrfn.lrp(lambda x: x, X, target=0, rules=rules.composite(names={"0": rules.gamma()}))


class Parts(nn.Module):
    """A list that is no module of its own, attention that reads parameters, a head for training."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head, self.aux = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        h = self.layers[1](self.layers[0](x).relu())[:, None]
        return self.head(self.attend(h, h, h)[0][:, 0])


def named(*patterns):
    return rules.composite(names=dict.fromkeys(patterns, rules.gamma()))


@graph
@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("pattern", ["layers", "aux", "attend.out_proj", "*proj", "l*s"])
def test_names_of_modules_that_do_not_run(pattern, transformed, create_graph):
    """A rule by name is not dropped: what it would say is not what the result is."""
    model = seeded(Parts)
    name = {"*proj": "attend.out_proj", "l*s": "layers"}.get(pattern, pattern)

    def explain(x):
        return attrfn.lrp(
            model, x, target=0, rules=named(pattern, "head"), create_graph=create_graph
        )

    with pytest.raises(ValueError, match=rf"module '{re.escape(name)}', whose forward does not"):
        vmap(lambda x: explain(x[None]))(X) if transformed else explain(X)
    for run in (rules.conservation, lambda f, x, rules, **_: attrfn.with_rules(f, rules)(x)):
        with pytest.raises(ValueError, match=rf"module '{re.escape(name)}'"):
            run(model, X, target=0, rules=named(pattern))


def test_patterns_may_match_modules_that_do_not_run():
    """As long as others of the pattern run, or the one around them has the same rule."""
    model = seeded(Parts)
    for patterns in (
        ["*"],
        ["layers*"],
        ["attend*"],
        ["head", "*"],
        ["attend.out_proj", "attend*"],
    ):
        assert attrfn.lrp(model, X, target=0, rules=named(*patterns)).shape == X.shape
    exact = rules.composite(names={"*": rules.gamma(), "attend.out_proj": rules.z_plus()})
    with pytest.raises(ValueError, match=r"module 'attend.out_proj', whose forward does not run"):
        attrfn.lrp(model, X, target=0, rules=exact)


def test_names_of_modules_of_exported_models():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    exported = torch.export.export(model, (X,)).module()
    for patterns in (["0"], ["*", "0"], ["[02]"]):
        composite = rules.composite(names={p: rules.gamma(i + 1) for i, p in enumerate(patterns)})
        assert attrfn.lrp(model, X, target=0, rules=composite).shape == X.shape
        with pytest.raises(ValueError, match=r"layer '0' is named in .* attrfn.programs.load"):
            attrfn.lrp(exported, X, target=0, rules=composite)


def test_names_of_modules_under_compile():
    model = seeded(Parts)
    torch._dynamo.reset()
    for patterns in (["layers.*", "head"], ["*"]):
        explain = functools.partial(attrfn.lrp, model, target=0, rules=named(*patterns))
        close(torch.compile(explain, backend="aot_eager", fullgraph=True)(X), explain(X))
    with pytest.raises(Exception, match=r"whose forward does not run|Observed exception"):
        torch.compile(
            lambda x: attrfn.lrp(model, x, target=0, rules=named("attend.out_proj")),
            backend="aot_eager",
            fullgraph=True,
        )(X)
    torch._dynamo.reset()


@pytest.mark.parametrize("rule", ["elementwize", 3, None])
def test_bad_rules_of_operations(rule):
    with pytest.raises(TypeError, match=r"the rule of torch.prod is"):
        _ = rules.rescale() | {torch.prod: rule}


def test_bad_operations():
    with pytest.raises(TypeError, match=r"rules name 'prod', expected a torch function"):
        rules.rescale().allow("prod")
    with pytest.raises(TypeError, match=r"rules name 'prod', expected a torch function"):
        _ = rules.rescale() | {"prod": "linear"}
    with pytest.raises(TypeError, match=r"unsupported operand"):
        _ = rules.rescale() | 3


def test_conservation_reads_values():
    with pytest.raises(ValueError, match=r"conservation reads values"):
        vmap(lambda x: rules.conservation(lambda x: x.sum(1), x[None])[0].received)(X)
