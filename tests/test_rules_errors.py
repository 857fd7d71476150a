"""What the rules refuse: the message, the repair, and that nothing is left behind."""

from __future__ import annotations

import gc
import re
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracles import close, randn, seeded
from torch import nn
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

import attrfn
from attrfn import UnsupportedOpError, rules

X, X0 = randn(0, 3, 4).abs() + 0.1, randn(1, 3, 4).abs() + 0.1
METHODS = {
    "deep_lift": lambda f, x, **o: attrfn.deep_lift(f, x, baselines=X0, **o),
    "reveal_cancel": lambda f, x, **o: attrfn.deep_lift(
        f, x, baselines=X0, rule="reveal_cancel", **o
    ),
    "lrp": attrfn.lrp,
}
by_method = pytest.mark.parametrize("method", METHODS)
complete = pytest.mark.parametrize("method", ["deep_lift", "reveal_cancel"])
graph = pytest.mark.parametrize("create_graph", [False, True])


def sums(f):
    return lambda x: f(x).flatten(1).sum(1)


# ---------------------------------------------------------------------------------------------
# operations without a rule

UNKNOWN = {
    "torch.renorm": lambda x: torch.renorm(x, 2, 0, 1.0),
    "torch.Tensor.renorm": lambda x: x.renorm(2, 0, 1.0),
    "torch.polygamma": lambda x: torch.polygamma(1, x),
    "torch.cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x, dim=1),
    "torch.linalg.matrix_exp": lambda x: torch.linalg.matrix_exp(x.reshape(-1, 2, 2)),
}


@graph
@by_method
@pytest.mark.parametrize("op", UNKNOWN)
def test_unknown_operations(op, method, create_graph):
    """The message names the operation and the line."""
    with pytest.raises(UnsupportedOpError) as caught:
        METHODS[method](sums(UNKNOWN[op]), X, create_graph=create_graph)
    message = str(caught.value)
    assert f"has no rule for {op}" in message
    assert f"({__file__.rpartition('/')[2]}, line " in message
    line = int(re.search(r"line (\d+)\)", message)[1])
    with open(__file__, encoding="utf-8") as lines:
        assert op.rpartition(".")[2] in lines.readlines()[line - 1]
    assert f"rules.allow({op})" in message


def test_the_error_is_a_value_error():
    assert issubclass(UnsupportedOpError, ValueError)


class Scans(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), nn.Sigmoid()

    def forward(self, x):
        return self.act(self.lin(x)).renorm(2, 0, 1.0)


@by_method
def test_the_module_is_named(method):
    with pytest.raises(UnsupportedOpError, match=r"torch.Tensor.renorm in Scans \(test_rules_err"):
        METHODS[method](nn.Sequential(seeded(Scans), nn.Linear(4, 2).double()), X, target=0)


def test_unknown_operations_on_constants_are_no_matter():
    c = torch.ones(4, dtype=torch.float64)

    def f(x):
        return (x * c.cumprod(0) * torch.sort(c)[0]).sum(1)

    for method in METHODS.values():
        assert method(f, X).shape == X.shape


@graph
def test_allow_takes_the_derivative(create_graph):
    """X -> prod with its plain derivative: A = (x - x0) times the gradient."""

    def f(x):
        return torch.prod(x, 1)

    options = {"baselines": X0, "create_graph": create_graph}
    for base in (rules.rescale(), rules.reveal_cancel()):
        for allowed in (base.allow(torch.prod), base.allow(torch.Tensor.prod)):
            got = attrfn.deep_lift(f, X, rule=allowed, **options)
            close(got, attrfn.input_x_gradient(f, X, baselines=X0))
            got = attrfn.deep_lift(lambda x: x.prod(1), X, rule=allowed, **options)
            close(got, attrfn.input_x_gradient(f, X, baselines=X0))
    got = attrfn.lrp(f, X, rules=rules.epsilon_plus().allow(torch.prod), create_graph=create_graph)
    close(got, attrfn.input_x_gradient(f, X))


@graph
def test_rules_for_operations_that_read_the_inputs(create_graph):
    """What is added to a composite with a rule for the first layer gets the inputs as others do."""
    first = rules.composite(first=rules.flat())
    options = {"create_graph": create_graph}
    for f, added in (
        (lambda x: torch.prod(x, 1), lambda r: r.allow(torch.prod)),
        (lambda x: torch.prod(x, 1), lambda r: r | {torch.prod: product}),
        (lambda x: torch.cumprod(x, 1).sum(1), lambda r: r | {torch.cumprod: "elementwise"}),
        (lambda x: torch.renorm(x, 1, 0, 1e9)[:, 0], lambda r: r | {torch.renorm: "linear"}),
        (lambda x: torch.relu(x).sum(1), lambda r: r | {F.relu: "elementwise"}),
    ):
        want = attrfn.lrp(f, X, rules=added(rules.composite()))
        with pytest.warns(UserWarning, match=r"first= has no effect"):
            got = attrfn.lrp(f, X, rules=added(first), **options)
        close(got.detach(), want, 1e-9)


def product(x, dim):
    out = x.select(dim, 0)
    for i in range(1, x.shape[dim]):
        out = out * x.select(dim, i)
    return out


def distance(x, y, *_, **__):
    return (x - y).square().sum(-1, keepdim=True).sqrt()


@graph
def test_a_rule_written_out_repairs_it(create_graph):
    def f(x):
        return torch.prod(x, 1)

    for base in (rules.rescale(), rules.reveal_cancel()):
        repaired = base | {torch.prod: product}
        got = attrfn.deep_lift(f, X, rule=repaired, baselines=X0, create_graph=create_graph)
        close(got.sum(1), f(X) - f(X0))
        want = attrfn.deep_lift(lambda x: product(x, 1), X, rule=base, baselines=X0)
        close(got, want)
    repaired = rules.epsilon_plus() | {torch.prod: product}
    got = attrfn.lrp(f, X, rules=repaired, create_graph=create_graph)
    close(got, attrfn.lrp(lambda x: product(x, 1), X))
    close(got.sum(1), f(X))


@graph
def test_rules_by_kind(create_graph):
    """``"elementwise"``, ``"linear"`` and ``"product"``."""
    options = {"baselines": X0, "create_graph": create_graph}

    def trigamma(x):
        return torch.polygamma(1, x)

    def f(x):
        return torch.polygamma(1, x).sum(1)

    got = attrfn.deep_lift(f, X, rule=rules.rescale() | {torch.polygamma: "elementwise"}, **options)
    close(got, trigamma(X) - trigamma(X0), 1e-9)
    with pytest.raises(UnsupportedOpError):
        attrfn.deep_lift(f, X, **options)  # the rules themselves are as they were

    def g(x):
        return torch.renorm(x, 1, 0, 1e9).sum(1)

    got = attrfn.deep_lift(g, X, rule=rules.rescale() | {torch.renorm: "linear"}, **options)
    close(got, X - X0)


EXTENDED = {
    "prod": (torch.prod, lambda x: torch.prod(x, 1), product),
    "method": (torch.Tensor.prod, lambda x: x.prod(1), product),
    "of a space": (
        torch.special.polygamma,
        lambda x: torch.special.polygamma(1, x).sum(1),
        "elementwise",
    ),
    "cdist": (torch.cdist, lambda x: torch.cdist(x[:, None], X0[:1, None])[:, 0, 0], distance),
    "of a loss": (
        F.smooth_l1_loss,
        lambda x: F.smooth_l1_loss(x, X0, reduction="none").sum(1),
        lambda x, t, *_, **__: torch.where(X > 9, x, (x - t).square() / 2),
    ),
}


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", EXTENDED)
def test_rules_for_operations_of_exported_models(name):
    """What is said of a torch function holds for the aten overloads of the same one."""
    func, f, rule = EXTENDED[name]
    exported = torch.export.export(Calls(f), (X,), strict=False).module()
    for base in (rules.rescale(), rules.reveal_cancel()):
        for table in (base | {func: rule}, base.allow(func)):
            want = attrfn.deep_lift(f, X, rule=table, baselines=X0)
            close(attrfn.deep_lift(exported, X, rule=table, baselines=X0), want)
    for table in (rules.attn_lrp() | {func: rule}, rules.attn_lrp().allow(func)):
        close(attrfn.lrp(exported, X, rules=table), attrfn.lrp(f, X, rules=table))


def test_functions_that_share_a_name_share_no_rule():
    """A function of the user's is not the one of torch that is called like it."""

    def renorm(x, dim):
        return torch.renorm(x, 2, dim, 1.0)

    with pytest.raises(UnsupportedOpError, match=r"no rule for torch.renorm"):
        attrfn.deep_lift(lambda x: renorm(x, 0)[:, 0], X, rule=rules.rescale() | {renorm: product})


def test_rules_can_be_changed_for_known_operations():
    """Here relu gets the slope of the identity."""
    changed = rules.rescale() | {F.relu: lambda x, inplace=False: x * 1.0}
    x, x0 = randn(5, 3, 4), randn(6, 3, 4)
    for f in (F.relu, torch.relu, torch.Tensor.relu):
        got = attrfn.deep_lift(sums(f), x, baselines=x0, rule=changed)
        close(got, x - x0)


# ---------------------------------------------------------------------------------------------
# values that depend on the inputs without a derivative


def no_grad(x):
    with torch.no_grad():
        scale = x.exp().sum(1, keepdim=True)
    return x / scale


CUT = {
    "where": lambda x: torch.where(x > 0.5, x.exp(), x),
    "masked product": lambda x: x * (x > 0.5),
    "detach": lambda x: x * x.exp().detach(),
    "data": lambda x: x * x.exp().data,
    "no_grad": no_grad,
    "argmax": lambda x: x.gather(1, x.argmax(1, keepdim=True)) * 2,
    "one hot": lambda x: x * F.one_hot(x.argmax(1), 4),
    "sort": lambda x: torch.sort(x, 1)[1] * x,
    "topk": lambda x: x[:, :2] * x.topk(2, 1).indices,
    "item": lambda x: x * x.max().item(),
    "float": lambda x: x * float(x.exp().max().detach()),
    "tolist": lambda x: x * torch.tensor([row[0] for row in x.tolist()]).double()[:, None],
    "numpy": lambda x: x * torch.as_tensor(x.detach().numpy())[:, :1],
}


@graph
@complete
@pytest.mark.parametrize("name", CUT)
def test_values_without_a_derivative(name, method, create_graph):
    """What would break completeness is refused, with the line."""
    with pytest.raises(UnsupportedOpError, match=rf"\({__file__.rpartition('/')[2]}, line \d+\)"):
        METHODS[method](sums(CUT[name]), X, create_graph=create_graph)


@graph
def test_allowed_cuts_count_as_constants(create_graph):
    """LRP does not mind; DeepLIFT with ``allow`` takes what is cut as a constant."""

    def f(x):
        return (x * x.exp().detach()).sum(1)

    got = attrfn.deep_lift(
        f, X, baselines=X0, rule=rules.rescale().allow(torch.mul), create_graph=create_graph
    )
    close(got, (X - X0) * X.exp())
    close(attrfn.lrp(f, X, create_graph=create_graph), X * X.exp())


def test_cuts_without_effect_are_no_matter():
    """What is computed without a derivative and not used for the output is nobody's business."""

    def f(x):
        with torch.no_grad():
            x.exp().sum().log()
        assert (x.detach() == x).all()
        return x.tanh().sum(1)

    for method in METHODS.values():
        assert method(f, X).shape == X.shape


# ---------------------------------------------------------------------------------------------
# what no mode sees


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


class NewStyle(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


@graph
@by_method
@pytest.mark.parametrize("function", [OldStyle, NewStyle])
@pytest.mark.parametrize("last", [False, True], ids=["inside", "at the end"])
@pytest.mark.parametrize("first", [False, True], ids=["behind a layer", "on the inputs"])
def test_custom_functions(function, method, first, last, create_graph):
    layer = seeded(lambda: nn.Linear(4, 4))

    def f(x):
        y = function.apply(x if first else layer(x))
        return y if last else y.tanh()

    with pytest.raises(UnsupportedOpError, match=r"custom autograd.Function|without a derivative"):
        METHODS[method](f, X, target=0, create_graph=create_graph)


@by_method
@pytest.mark.parametrize("last", [False, True])
def test_custom_functions_under_vmap(method, last):
    layer = seeded(lambda: nn.Linear(4, 4))

    def f(x):
        y = NewStyle.apply(layer(x))
        return (y if last else y.tanh()).sum(1)

    def one(x, x0):
        if method == "lrp":
            return attrfn.lrp(f, x[None])[0]
        rule = "rescale" if method == "deep_lift" else method
        return attrfn.deep_lift(f, x[None], baselines=x0[None], rule=rule)[0]

    with pytest.raises(UnsupportedOpError):
        vmap(one)(X, X0)


@graph
@by_method
def test_checkpointing(method, create_graph):
    """What would be computed again in the backward pass, without rules, is computed once."""

    def f(x):
        return (x.tanh() * x).sum(1) * 2

    want = METHODS[method](f, X, create_graph=create_graph)
    for reentrant in (False, True):

        def g(x, reentrant=reentrant):
            return checkpoint(lambda t: (t.tanh() * t).sum(1), x, use_reentrant=reentrant) * 2

        torch.testing.assert_close(METHODS[method](g, X, create_graph=create_graph), want)


@by_method
def test_other_hooks_on_saved_tensors(method):
    """They may do anything to what the backward pass reads."""

    def f(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return (x.tanh() * x).sum(1)

    with pytest.raises(UnsupportedOpError, match="hooks on saved tensors"):
        METHODS[method](f, X)


@by_method
def test_functions_of_torch_func_inside_the_model(method):
    def f(x):
        return vmap(lambda t: t.tanh() * t)(x).sum(1)

    with pytest.raises(UnsupportedOpError, match=r"torch.func inside the model"):
        METHODS[method](f, X)


@by_method
def test_scripted_modules(method):
    class Scripted(nn.Module):
        def forward(self, x):
            return x.tanh() * x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.trace(Scripted(), torch.ones(3, 4).double())
    for f in (lambda x: scripted(x), lambda x: scripted(x.exp()).sum(1)):
        with pytest.raises(UnsupportedOpError):
            METHODS[method](f, X, target=(0,) if f(X).ndim > 1 else None)


# ---------------------------------------------------------------------------------------------
# training mode

TRAINING = {
    "alpha_dropout": nn.AlphaDropout(0.5),
    "batch_norm": nn.BatchNorm1d(4),
}


@pytest.mark.filterwarnings("ignore:the model is in training mode:UserWarning")
@graph
@by_method
@pytest.mark.parametrize("name", TRAINING)
def test_training_mode(name, method, create_graph):
    layers = [nn.Linear(4, 4), TRAINING[name], nn.Tanh()]
    model = nn.Sequential(*layers).double().train()
    with pytest.raises(UnsupportedOpError, match=r"cannot explain.*call\s+model.eval\(\)"):
        METHODS[method](model, X, target=0, create_graph=create_graph)
    assert METHODS[method](model.eval(), X, target=0).shape == X.shape


@pytest.mark.filterwarnings("ignore:the model is in training mode")
@by_method
def test_dropout_of_nothing_is_no_matter(method):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.Tanh()).double().train()
    assert METHODS[method](model, X, target=0).shape == X.shape


# ---------------------------------------------------------------------------------------------
# nothing is left behind


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.lin = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.calls = []

    def forward(self, x):
        h = self.lin(self.norm(x))
        torch.rand(1)
        return h.renorm(2, 0, 1.0)


@pytest.mark.filterwarnings("ignore:the model draws random numbers")
@graph
@by_method
def test_model_and_random_numbers_are_as_before(method, create_graph):
    model = seeded(Fails)
    model.lin.weight.grad = torch.ones_like(model.lin.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, torch_state = X.clone(), torch.get_rng_state()
    with pytest.raises(UnsupportedOpError):
        METHODS[method](model, x, target=0, create_graph=create_graph)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.lin.weight.grad, torch.ones_like(model.lin.weight))
    assert not model._forward_hooks
    assert not model.lin._forward_hooks
    assert model.lin.weight.requires_grad
    assert torch.equal(x, X)
    assert not x.requires_grad
    assert torch.overrides._get_current_function_mode_stack() == []
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.is_grad_enabled()


class Held:
    """Something that a rule of the user's refers to."""


def test_tables_are_not_kept():
    """What runs remember lives as long as the table."""
    held = Held()
    repaired = rules.rescale() | {torch.prod: lambda x, dim, held=held: product(x, dim)}
    box = torch.full((4,), -9.0, dtype=torch.float64)
    first = rules.composite(first=rules.z_box(box, 9.0))
    attrfn.deep_lift(lambda x: torch.prod(x, 1), X, rule=repaired, baselines=X0)
    attrfn.lrp(lambda x: F.linear(x, torch.ones(1, 4).double()), X, rules=first)
    alive = weakref.ref(held), weakref.ref(box)
    del held, box, repaired, first
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
