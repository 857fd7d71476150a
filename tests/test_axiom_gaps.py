"""The gaps of attrfn.axioms: closed forms, and for which methods each axiom is a theorem.

The docstring of each axiom names the methods that have it and methods that do not; both are tried.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, finite_difference, inner, noise_like
from models import NETS, targets
from torch import Tensor, nn
from zoo import D, make, randn

import attrfn
from attrfn import axioms

COALITIONS = {"n_samples": 2**4 - 2}  # all of four features
MANY = {"n_steps": 40}
METHODS: dict[str, Callable[..., Any]] = {
    "gradient": attrfn.gradient,
    "saliency": attrfn.saliency,
    "input_x_gradient": attrfn.input_x_gradient,
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, **MANY),
    "deep_lift": attrfn.deep_lift,
    "deep_lift_shap": functools.partial(attrfn.deep_lift_shap, baselines=randn(3, 4, seed=5)),
    "guided_backprop": attrfn.guided_backprop,
    "deconvolution": attrfn.deconvolution,
    "lrp": attrfn.lrp,
    "feature_ablation": attrfn.feature_ablation,
    "feature_permutation": functools.partial(attrfn.feature_permutation, n_samples=2),
    "occlusion": functools.partial(attrfn.occlusion, window=2),
    "shapley_values": attrfn.shapley_values,
    "shapley_value_sampling": functools.partial(attrfn.shapley_value_sampling, n_samples=3),
    "kernel_shap": functools.partial(attrfn.kernel_shap, **COALITIONS),
    "lime": functools.partial(attrfn.lime, n_samples=8),
    "rise": functools.partial(attrfn.rise, n_samples=5, grid=2),
}
AXIOMS = ("completeness", "conservation", "dummy", "symmetry", "linearity")
AXIOMS += ("implementation_invariance", "scale_invariance", "sensitivity", "batch_independence")
ZERO = 1e-8  # rounding, and 40 nodes of quadrature on an analytic net


def named(axiom: str, start: str) -> list[str]:
    """The methods in the paragraph of the docstring that begins so."""
    doc = getattr(axioms, axiom).__doc__.replace("\n", " ")
    paragraph = re.search(rf" {start}(.*?)\.  ", doc)
    return re.findall(r"(?<![:`])`(\w+)`", paragraph[1]) if paragraph else []


HOLDS = [(a, m) for a in AXIOMS for m in named(a, "A theorem") if m in METHODS]
FAILS = [(a, m) for a in AXIOMS for m in named(a, "Not for") if m in METHODS]


def test_docstrings_name_what_holds_and_what_does_not() -> None:
    for axiom in AXIOMS:
        assert axiom == "batch_independence" or named(axiom, "A theorem"), axiom
    named_methods = {m for a in AXIOMS for m in named(a, "A theorem") + named(a, "Not for")}
    assert named_methods <= METHODS.keys()
    assert len(HOLDS) > 45
    assert len(FAILS) > 15


def test_the_page_says_the_same() -> None:
    """The table of docs/axioms.md, cell by cell."""
    page = (Path(__file__).parents[1] / "docs" / "axioms.md").read_text(encoding="utf-8")
    lines = page.split("### Theorems")[1].split("###")[0].splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    header, _, *table = cells
    whole = {"implementation": "implementation_invariance", "scale": "scale_invariance"}
    found = {
        (whole.get(axiom, axiom), re.findall(r"`(\w+)`", name)[0], said)
        for name, *row in table
        for axiom, said in zip(header[1:], row, strict=True)
        if said
    }
    columns = {whole.get(a, a) for a in header[1:]}
    methods = {m for _, m, _ in found}
    right = {(a, m, "yes") for a, m in HOLDS if a in columns and m in methods}
    right |= {(a, m, "no") for a, m in FAILS if a in columns and m in methods}
    assert found == right


class Pairs(nn.Module):
    """Reads elements 0 and 1 alike, 2 in another way, and 3 not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y = torch.stack([x[:, 0] * x[:, 1], x[:, 0] + x[:, 1], x[:, 2]], 1)
        return self.out(torch.tanh(self.inp(y)))


class Saturates(nn.Module):
    """1 - relu(1 - x): flat from 1 on, and the change from 0 is 1 for each element."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 - F.relu(1 - x)) @ torch.eye(4, 3, dtype=x.dtype).add(1)


class Rectified(nn.Module):
    """Linear layers around relu and tanh, and the largest of three hidden values.

    Without biases there is no tanh, and the function is homogeneous.
    """

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, 6, bias=bias), nn.Linear(6, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x.flatten(1))
        a, b, c = h[:, :3].unbind(1)
        curved = 0.0 if self.inp.bias is None else torch.tanh(h)
        return self.out(F.relu(h) + curved) + 2 * torch.maximum(torch.maximum(a, b), c)[:, None]


class Written(nn.Module):
    """The function of ``Rectified``: everything is written otherwise."""

    def __init__(self, twin: Rectified) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, x: Tensor) -> Tensor:
        inp, out, x = self.twin.inp, self.twin.out, x.flatten(1)
        h = F.linear(x, 3 * inp.weight, inp.bias) - F.linear(x, 2 * inp.weight)
        a, b, c = h[:, :3].unbind(1)
        a = a * (torch.sin(b) ** 2 + torch.cos(b) ** 2)
        h = torch.maximum(h, 0 * h) + 1 - 2 / (1 + (2 * h).exp())
        return out(h) + 2 * torch.maximum(a, torch.maximum(b, c))[:, None]


def sigmoidal() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)), seed=4)


def gap(axiom: str, name: str) -> Tensor:
    """The gap of an axiom for a method, on a net of its own."""
    method, x, t = METHODS[name], randn(3, 4, seed=1) + 0.3, targets(3)
    if name == "rise":
        x = x.reshape(3, 1, 2, 2)
    options: dict[str, Any] = {"target": t}
    takes_point = name not in ("gradient", "saliency", "lrp", "deep_lift_shap", "lime")
    if takes_point and name not in ("guided_backprop", "deconvolution", "feature_permutation"):
        options["baselines"] = 0.3 * randn(*x.shape, seed=2)
    model = NETS["mlp"].build()
    if axiom in ("dummy", "symmetry"):
        model = make(Pairs)
    if axiom == "dummy":
        unread = torch.tensor([False, False, False, True])
        options["features"] = unread.reshape(x.shape[1:])
    elif axiom == "symmetry":
        options["pair"] = (0, 1)
    elif axiom == "linearity":
        options.update(other=sigmoidal(), weights=(2.0, -1.5))
    elif axiom == "implementation_invariance":
        model, x = make(Rectified, seed=3), 2 * x
        options["other"] = Written(model)
        assert_close(options["other"](x), model(x))
    elif axiom == "scale_invariance":
        options.update(scale=torch.tensor([2.0, 0.5, 3.0, 1.5], dtype=D))
        if "baselines" in options:
            options["shift"] = 0.7
    elif axiom == "conservation":
        model = make(Rectified, False, seed=3)
        options.pop("baselines", None)
    elif axiom == "sensitivity":
        model, x = Saturates(), x.abs() + 1.5
        options.pop("baselines", None)
        options["tolerance"] = 1e-12
    if name in ("gradient", "saliency", "lrp"):
        options.pop("baselines", None)
    return getattr(axioms, axiom)(model, x, method, **options)


@pytest.mark.filterwarnings("ignore:.*met no ReLU")
@pytest.mark.parametrize(("axiom", "name"), HOLDS)
def test_theorems_hold(axiom: str, name: str) -> None:
    found = gap(axiom, name)
    loose = axiom == "conservation" and name == "lrp"  # the epsilon of LRP
    assert found.shape == (3,)
    assert found.dtype == D
    assert (found.abs() <= (1e-4 if loose else ZERO)).all()


@pytest.mark.filterwarnings("ignore:.*met no ReLU")
@pytest.mark.parametrize(("axiom", "name"), FAILS)
def test_axioms_fail_elsewhere(axiom: str, name: str) -> None:
    """So the test above could fail, on the same nets and inputs."""
    assert gap(axiom, name).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*met no ReLU")
@pytest.mark.parametrize("name", [m for m in METHODS if m not in ("rise", "feature_permutation")])
def test_rows_are_independent(name: str) -> None:
    assert (gap("batch_independence", name) <= ZERO).all()


# --- closed forms --------------------------------------------------------------------------------


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=D)


def product(x: Tensor) -> Tensor:
    return x[:, 0] * x[:, 1]


def squares(x: Tensor) -> Tensor:
    return (x**2).sum(1)


def scaled(factor: float) -> Callable[..., Any]:
    """A method that is off by a factor."""
    return lambda f, x, **o: factor * attrfn.shapley_values(f, x, **o)


CLOSED = [
    # x * gradient of x0 x1 at (2, 3) sums to 12, and the product is 6.
    (axioms.completeness, product, row(2, 3), attrfn.input_x_gradient, {}, 6.0),
    # The same with baselines (1, 1): 1 * 3 + 2 * 2 - (6 - 1).
    (axioms.completeness, product, row(2, 3), attrfn.input_x_gradient, {"baselines": 1.0}, 2.0),
    (axioms.completeness, product, row(2, 3), scaled(1.5), {}, 3.0),
    # Bound baselines count: f(x0) = 1.
    (
        axioms.completeness,
        product,
        row(2, 3),
        functools.partial(attrfn.input_x_gradient, baselines=1.0),
        {},
        2.0,
    ),
    # Draws: the mean of f over (0, 0) and (1, 1) is 1/2; the gradient sums to 5.
    (
        axioms.completeness,
        product,
        row(2, 3),
        functools.partial(attrfn.deep_lift_shap, baselines=torch.tensor([[0.0, 0], [1, 1]]).to(D)),
        {},
        0.0,
    ),
    # One feature of two elements has the score 6, which counts once.
    (
        axioms.completeness,
        product,
        row(2, 3),
        functools.partial(attrfn.feature_ablation, feature_mask=torch.zeros(1, 2).long()),
        {},
        0.0,
    ),
    (axioms.conservation, product, row(2, 3), attrfn.input_x_gradient, {}, 6.0),
    (axioms.conservation, squares, row(2, 3), attrfn.gradient, {}, 10.0 - 13),
    (axioms.dummy, squares, row(2, 3), attrfn.gradient, {"features": row(0, 1)}, 6.0),
    # A is the input: exchanged inputs give exchanged attributions; their places do not.
    (axioms.symmetry, product, row(2, 3), lambda f, x: x, {"pair": (0, 1)}, 0.0),
    (
        axioms.symmetry,
        product,
        row(2, 3),
        lambda f, x: torch.tensor([[1.0, 7.0]]).to(D) + 0 * x,
        {"pair": (0, 1)},
        6.0,
    ),
    # |2 a x| is not linear: |6 - 4 * 2 * 3| = ... at a = 1, b = -2: |2x - 4x| - |2x| + 2 |2x| = 4x.
    (
        axioms.linearity,
        squares,
        row(2, 3),
        attrfn.saliency,
        {"other": squares, "weights": (1.0, -2.0)},
        12.0,
    ),
    (
        axioms.implementation_invariance,
        squares,
        row(2, 3),
        attrfn.gradient,
        {"other": lambda x: 3 * squares(x)},
        12.0,
    ),
    # The gradient of f(z / 4) at 4 x is a quarter of 2 x: 6 - 1.5.
    (axioms.scale_invariance, squares, row(2, 3), attrfn.gradient, {"scale": 4.0}, 4.5),
    # The largest jump that the gradient misses: x_1^2 alone is saturated nowhere, x = 0 is flat.
    (axioms.sensitivity, squares, row(2, 3), lambda f, x: 0 * x, {}, 9.0),
    (
        axioms.batch_independence,
        squares,
        torch.tensor([[2.0], [3.0]]).to(D),
        lambda f, x: x - x.mean(0),
        {},
        0.5,
    ),
]


@pytest.mark.parametrize("case", CLOSED, ids=lambda c: c[0].__name__)
def test_closed_forms(case: Any) -> None:
    axiom, f, x, method, options, expected = case
    found = axiom(f, x, method, **options)
    value = torch.full((x.shape[0],), expected, dtype=D)
    assert_close(found, value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("axiom", AXIOMS)
def test_gaps_are_penalties(axiom: str) -> None:
    """Their derivative in the inputs, inside torch.func and by backward, is that of the gap."""
    x, options = randn(1 if axiom != "batch_independence" else 2, 2, seed=1), {}
    if axiom in ("linearity", "implementation_invariance"):
        options["other"] = lambda x: (x**3).sum(1)
    if axiom == "symmetry":
        options["pair"] = (0, 1)
    if axiom == "dummy":
        options["features"] = True

    def f(x: Tensor) -> Tensor:
        return (x**4).sum(1) + x[:, 0] ** 2 * x[:, 1]

    def method(f: Any, x: Tensor, **_: Any) -> Tensor:
        found = attrfn.gradient(f, x, create_graph=True)
        if axiom == "linearity":
            return found**2
        if axiom == "batch_independence":
            return found * x.mean(0)
        return 0 * found if axiom == "sensitivity" else found

    def penalty(x: Tensor) -> Tensor:
        return getattr(axioms, axiom)(f, x, method, **options).sum()

    d = noise_like(x)
    expected = finite_difference(penalty, x, d)
    assert expected.abs() > 1e-3
    assert_close(inner(torch.func.grad(penalty)(x), d), expected, rtol=1e-5)
    leaf = x.clone().requires_grad_()
    penalty(leaf).backward()
    assert_close(inner(leaf.grad, d), expected, rtol=1e-5)


def test_gaps_reach_the_parameters() -> None:
    model, x = NETS["mlp"].build(), NETS["mlp"].inputs()
    method = functools.partial(attrfn.input_x_gradient, create_graph=True)
    axioms.completeness(model, x, method, target=1).square().sum().backward()
    assert all(p.grad is not None for p in list(model.parameters())[:-1])
    detached = axioms.completeness(model, x, attrfn.input_x_gradient, target=1)
    assert not detached.requires_grad


def test_pytrees_and_vmap() -> None:
    x = {"a": randn(3, 2, seed=1), "b": randn(3, 1, 2, seed=2)}

    def f(z: Any) -> Tensor:
        return (z["a"] * z["b"][:, 0]).sum(1) + z["a"][:, 0] ** 2

    method = attrfn.shapley_values
    gaps = {
        "completeness": axioms.completeness(f, x, method),
        "symmetry": axioms.symmetry(f, x, method, pair=(1, 3)),  # a_1 b_1
        "scale": axioms.scale_invariance(f, x, method, scale={"a": 2.0, "b": 3.0}, shift=0.1),
        "sensitivity": axioms.sensitivity(f, x, method),
        "batch": axioms.batch_independence(f, x, method),
        "dummy": axioms.dummy(
            lambda z: f({**z, "b": 1 + 0 * z["b"]}), x, method, features={"a": False, "b": True}
        ),
    }
    assert all(v.shape == (3,) and (v.abs() < 1e-10).all() for v in gaps.values()), gaps
    mapped = torch.vmap(
        lambda a, b: axioms.completeness(f, {"a": a[None], "b": b[None]}, attrfn.gradient)
    )(x["a"], x["b"])
    assert_close(mapped[:, 0], axioms.completeness(f, x, attrfn.gradient))


def test_options_of_each_example_stay_with_it() -> None:
    """Baselines, targets, masks, keys and what is bound to the model."""
    x, keys = randn(3, 4, seed=1), attrfn.random.split(0, 3)
    bound = functools.partial(lambda x, w: torch.tanh(x * w) @ randn(4, 3), w=randn(3, 4, seed=7))
    method = functools.partial(
        attrfn.shapley_value_sampling,
        n_samples=2,
        key=keys,
        feature_mask=torch.tensor([[0, 0, 1, 2], [2, 1, 1, 0], [1, 2, 0, 2]]),
        n_features=3,
    )
    options = {"target": targets(3), "baselines": randn(3, 4, seed=3)}
    assert (axioms.batch_independence(bound, x, method, **options) < 1e-12).all()
    assert (axioms.completeness(bound, x, method, **options).abs() < 1e-12).all()
    pool = functools.partial(attrfn.gradient_shap, n_samples=2, baselines=randn(5, 3, 4, seed=9))
    assert (axioms.batch_independence(bound, x, pool, target=[0, 1, 2]) < 1e-12).all()


def test_wrong_arguments_are_refused() -> None:
    x = row(2, 3)
    with pytest.raises(TypeError, match="method is a Tensor, expected an attribution method"):
        axioms.completeness(squares, x, x)
    with pytest.raises(ValueError, match=r"pair is \(0, 2\), expected two ints from 0 to 1"):
        axioms.symmetry(squares, x, attrfn.gradient, pair=(0, 2))
    with pytest.raises(ValueError, match="this axiom is about elements of the inputs"):
        axioms.dummy(squares, x, lambda f, x: x[:, :1], features=True)
    with pytest.raises(ValueError, match="expected attributions with the examples in dimension 0"):
        axioms.linearity(squares, x, lambda f, x: 1.0, other=squares)
    with pytest.raises(ValueError, match="method draws its baselines"):
        axioms.scale_invariance(squares, x, METHODS["deep_lift_shap"])
    with pytest.raises(ValueError, match="scale is 0, expected a finite number other than 0"):
        axioms.scale_invariance(squares, x, attrfn.gradient, scale=0)


def test_integers_and_empty_batches() -> None:
    """Token ids beside numbers, for methods that only evaluate; and no examples at all."""
    x = (torch.tensor([[3, 2**30 + 1], [1, 4]]), randn(2, 2).float())

    def f(ids: Tensor, z: Tensor) -> Tensor:
        return (ids % 7).double().prod(1) * z.double()[:, 0] + z.double()[:, 1]

    method = attrfn.shapley_values
    assert (axioms.symmetry(f, x, method, pair=(0, 1)) < 1e-6).all()
    assert (axioms.completeness(f, x, method).abs() < 1e-6).all()
    assert (axioms.sensitivity(f, x, attrfn.feature_ablation, tolerance=1e-9) < 1e-6).all()
    assert (axioms.batch_independence(f, x, method) < 1e-6).all()
    empty = randn(0, 4)
    for axiom in ("completeness", "batch_independence", "sensitivity"):
        assert getattr(axioms, axiom)(squares, empty, attrfn.gradient).shape == (0,)
