"""Functions from methods to a method: by their formulas, in transforms, and inside each other."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import attrfn

torch.manual_seed(0)
CONV = nn.Sequential(
    *(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
).double()
NETS = [copy.deepcopy(CONV) for _ in range(3)]
for net in NETS:
    nn.init.normal_(net[0].weight)
X, POOL = torch.randn(2, 3, 6, 6).double(), torch.randn(4, 3, 6, 6).double()
GRADIENT, IG = attrfn.gradient, functools.partial(attrfn.integrated_gradients, n_steps=8)
close = torch.testing.assert_close
A = GRADIENT(CONV, X, target=1)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (attrfn.absolute(GRADIENT), A.abs()),
        (attrfn.pooled(GRADIENT, 1), A.sum(1)),
        (attrfn.pooled(GRADIENT, (-1, 2), how="norm"), A.norm(dim=(2, 3))),
        (attrfn.pooled(GRADIENT, [1], how="max"), A.abs().amax(1)),
        (attrfn.pooled(GRADIENT, 3, how="mean"), A.mean(3)),
        (attrfn.normalized(GRADIENT), A / A.abs().amax((1, 2, 3), keepdim=True)),
        (attrfn.normalized(GRADIENT, "sum"), A / A.abs().sum((1, 2, 3), keepdim=True)),
        (attrfn.normalized(GRADIENT, "norm"), A / A.flatten(1).norm(dim=1)[:, None, None, None]),
        (attrfn.average(GRADIENT, attrfn.input_x_gradient), (A + X * A) / 2),
        (attrfn.average(GRADIENT, attrfn.saliency, weights=(3, 1)), (3 * A + A.abs()) / 4),
        (attrfn.relative_to(GRADIENT, attrfn.saliency), A - A.abs()),
        (attrfn.chain(GRADIENT), A),
        (
            attrfn.chain(GRADIENT, attrfn.absolute, functools.partial(attrfn.pooled, dims=1)),
            A.abs().sum(1),
        ),
    ],
)
def test_formulas(method, expected):
    close(method(CONV, X, target=1), expected)
    rows = torch.func.vmap(lambda row: method(CONV, row[None], target=1)[0])(X)
    close(rows, expected)
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(method(CONV, x, target=1, create_graph=True).sum(), x)[0].any()


def test_zeros_stay_zeros():
    x = {"a": torch.ones(2, 3), "b": torch.ones(2, 1)}
    f = lambda x: x["a"].sum(1) * torch.tensor([1.0, 0.0]) + 0 * x["b"][:, 0]  # noqa: E731
    found = attrfn.normalized(GRADIENT)(f, x)
    close(found, {"a": torch.tensor([[1.0] * 3, [0.0] * 3]), "b": torch.zeros(2, 1)})


def test_scores_that_elements_share_are_not_summed():
    mask = torch.arange(36).reshape(6, 6)  # the channels are one feature
    ablation = functools.partial(attrfn.feature_ablation, feature_mask=mask, target=1)
    with pytest.raises(ValueError, match="how is 'sum', which would count a score once for each"):
        attrfn.pooled(ablation, 1)(CONV, X)
    found = attrfn.pooled(ablation, 1, how="mean")(CONV, X)
    close(found, ablation(CONV, X)[:, 0])
    scores = attrfn.feature_scores(attrfn.absolute(ablation)(CONV, X), mask)
    close(scores, ablation(CONV, X)[:, 0].abs().flatten(1))


@pytest.mark.parametrize(
    ("a", "b"), [(1, 3), (torch.tensor([1, 2]), 0), (torch.tensor([4, 0]), torch.tensor([0, 2]))]
)
@pytest.mark.parametrize("method", [GRADIENT, IG, attrfn.deep_lift, attrfn.feature_ablation])
def test_contrast(method, a, b):
    got = method(CONV, X, target=attrfn.contrast(a, b))
    close(got, method(CONV, X, target=a) - method(CONV, X, target=b))


@pytest.mark.parametrize("chunk_size", ["auto", 1, 3])
@pytest.mark.parametrize(
    "method",
    [IG, attrfn.deep_lift, attrfn.feature_ablation, attrfn.input_x_gradient],
)
def test_over_baselines(method, chunk_size):
    loop = torch.stack([method(CONV, X, target=1, baselines=b.expand_as(X)) for b in POOL])
    over = functools.partial(attrfn.over_baselines, method, chunk_size=chunk_size)
    close(over()(CONV, X, target=1, baselines=POOL), loop.mean(0))
    close(over(reduce=None)(CONV, X, target=1, baselines=POOL), loop)
    own = torch.stack([POOL, POOL.flip(1)], 1)  # others for each example
    targets = torch.tensor([1, 4])
    got = over()(CONV, X, target=targets, baselines=own)
    for i in range(2):
        alone = over()(CONV, X[i : i + 1], target=int(targets[i]), baselines=own[:, i])
        close(got[i : i + 1], alone)


def test_over_baselines_is_deep_lift_shap():
    got = attrfn.over_baselines(attrfn.deep_lift)(CONV, X, target=1, baselines=POOL)
    close(got, attrfn.deep_lift_shap(CONV, X, target=1, baselines=POOL))


def test_over_baselines_at_a_layer_and_under_vmap():
    method = attrfn.over_baselines(attrfn.at_layer(attrfn.deep_lift, "1"))
    expected = attrfn.layer_deep_lift_shap(CONV, X, layer="1", target=1, baselines=POOL)
    close(method(CONV, X, target=1, baselines=POOL), expected)
    rows = torch.func.vmap(lambda row: method(CONV, row[None], target=1, baselines=POOL)[0])(X)
    close(rows, expected)


@pytest.mark.parametrize("method", [GRADIENT, IG, attrfn.deep_lift, attrfn.lrp])
def test_ensemble(method):
    loop = torch.stack([method(net, X, target=1) for net in NETS])
    every = attrfn.ensemble
    close(every(method)(NETS, X, target=1), loop.mean(0))
    close(every(method, reduce="std")(NETS, X, target=1), loop.std(0))
    close(every(method, reduce=None)(tuple(NETS), X, target=1), loop)
    stacks = torch.func.stack_module_state(NETS)  # type: ignore[arg-type]
    model = functools.partial(torch.func.functional_call, CONV, stacks)
    close(every(method, stacked=True)(model, X, target=1), loop.mean(0))


def test_five_lines():
    """SmoothGrad of LRP of an ensemble at a layer; and its derivative."""
    lrp = attrfn.at_layer(attrfn.lrp, "1")
    smooth = functools.partial(attrfn.noise_tunnel, n_samples=3, stdevs=0.1)
    method = attrfn.chain(lrp, attrfn.ensemble, smooth, functools.partial(attrfn.pooled, dims=1))
    got = method(NETS, X, target=1)
    by_hand = [
        attrfn.noise_tunnel(lrp, n_samples=3, stdevs=0.1)(net, X, target=1).sum(1) for net in NETS
    ]
    close(got, torch.stack(by_hand).mean(0))
    x = X.clone().requires_grad_()
    method(NETS, x, target=1, create_graph=True).pow(2).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


@pytest.mark.compiles
def test_five_lines_compiled_and_differentiated():
    """For models in a list too, of which every one is compiled, and followed when it changes."""
    lrp = attrfn.at_layer(attrfn.lrp, "1")
    smooth = functools.partial(attrfn.noise_tunnel, n_samples=3, stdevs=0.1)
    method = attrfn.chain(lrp, attrfn.ensemble, smooth, functools.partial(attrfn.pooled, dims=1))
    nets = copy.deepcopy(NETS)
    explain = attrfn.compile(method, nets, backend="aot_eager")
    x, z = X.clone().requires_grad_(), X.clone().requires_grad_()
    for _ in range(2):
        close(explain(X, target=1), method(nets, X, target=1))
        explain(x, target=1).pow(2).sum().backward()
        method(nets, z, target=1, create_graph=True).pow(2).sum().backward()
        close(x.grad, z.grad)
        with torch.no_grad():
            nets[1][0].weight.mul_(0.5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: attrfn.ensemble(attrfn.noise_tunnel(attrfn.at_layer(m, "1"), n_samples=2)),
        lambda m: attrfn.noise_tunnel(attrfn.ensemble(attrfn.at_layer(m, "1")), n_samples=2),
        lambda m: attrfn.at_layer(attrfn.noise_tunnel(m, n_samples=2), "1"),
        lambda m: attrfn.each_output(attrfn.over_baselines(m)),
        lambda m: attrfn.over_baselines(attrfn.noise_tunnel(m, n_samples=2)),
        lambda m: attrfn.noise_tunnel(attrfn.over_baselines(m), n_samples=2),
        lambda m: attrfn.ensemble(attrfn.each_output(m)),
        lambda m: attrfn.each_output(attrfn.noise_tunnel(attrfn.at_layer(m, "1"), n_samples=2)),
    ],
)
@pytest.mark.parametrize("inner", [attrfn.input_x_gradient, attrfn.deep_lift, IG])
def test_combinators_nest(wrap, inner):
    """A row alone and vmap give what the batch gives; the target sets two outputs apart."""
    method = wrap(inner)
    listed = "ensemble" in str(wrap.__code__.co_names)
    model = NETS[:2] if listed else CONV
    options = {"target": attrfn.contrast(1, 3)}
    if "each_output" in wrap.__code__.co_names:
        options = {"target": lambda out: out[:, [1]] - out[:, [3]]}
    if "over_baselines" in wrap.__code__.co_names:
        options["baselines"] = POOL
    found = method(model, X, **options)
    for i in range(2):
        close(method(model, X[i : i + 1], **options), found[i : i + 1])
    rows = torch.func.vmap(lambda row: method(model, row[None], **options)[0])(X)
    close(rows, found)


@pytest.mark.compiles
def test_compiled():
    method = attrfn.chain(GRADIENT, attrfn.absolute, functools.partial(attrfn.pooled, dims=1))
    compiled = torch.compile(
        lambda x: method(CONV, x, target=attrfn.contrast(1, 0)), fullgraph=True
    )
    close(compiled(X), method(CONV, X, target=attrfn.contrast(1, 0)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attrfn.absolute(3), TypeError, "method is 3"),
        (lambda: attrfn.chain(GRADIENT, 3), TypeError, "wrappers has 3"),
        (lambda: attrfn.pooled(GRADIENT, 0)(CONV, X, target=1), ValueError, "dims is 0 for"),
        (lambda: attrfn.pooled(GRADIENT, 4)(CONV, X, target=1), ValueError, "dims is 4 for"),
        (lambda: attrfn.pooled(GRADIENT, "x"), TypeError, "dims is 'x'"),
        (lambda: attrfn.pooled(GRADIENT, ()), TypeError, "dims is ()"),
        (lambda: attrfn.pooled(GRADIENT, 1, how="x"), ValueError, "how is 'x'"),
        (lambda: attrfn.normalized(GRADIENT, "x"), ValueError, "how is 'x'"),
        (lambda: attrfn.average(), ValueError, "no methods"),
        (lambda: attrfn.average(GRADIENT, weights=[1, 2]), ValueError, "weights is"),
        (lambda: attrfn.average(GRADIENT, IG, weights=[1, -1]), ValueError, "weights is"),
        (lambda: attrfn.relative_to(GRADIENT, 3), TypeError, "reference is 3"),
        (lambda: attrfn.over_baselines(GRADIENT), TypeError, "with a baseline for each example"),
        (lambda: attrfn.over_baselines(attrfn.gradient_shap), TypeError, "averages over several"),
        (lambda: attrfn.over_baselines(IG, reduce="std"), ValueError, "reduce is 'std'"),
        (lambda: attrfn.ensemble(GRADIENT, reduce="x"), ValueError, "reduce is 'x'"),
        (lambda: attrfn.ensemble(GRADIENT)(CONV, X), TypeError, "a list or tuple of model"),
        (lambda: attrfn.ensemble(GRADIENT)([], X), TypeError, "a list or tuple of model"),
        (lambda: attrfn.ensemble(GRADIENT, stacked=True)(CONV, X), TypeError, "functional_call"),
        (
            lambda: attrfn.ensemble(GRADIENT, reduce="std")([CONV], X, target=1),
            ValueError,
            "1 model",
        ),
        (lambda: GRADIENT(CONV, X, target=attrfn.contrast(1, 9)), ValueError, "b 9 is out of"),
        (lambda: GRADIENT(CONV, X, target=attrfn.contrast("x", 1)), TypeError, "a is 'x'"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
