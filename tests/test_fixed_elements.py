"""Elements with a negative id in a feature mask are fixed: no feature, no cost, attribution 0.

The oracle of all tests: the same method on the other elements alone, with a model function that
puts the fixed ones in.
"""

from __future__ import annotations

import functools

import pytest
import torch
from oracles import close
from torch import Tensor

import attrfn
from attrfn import metrics, surrogates

X = torch.tensor(
    [[0.5, 2.0, -1.0, 3.0, 0.7], [1.5, -0.4, 2.0, 0.3, 1.0], [0.2, 0.9, 1.1, -2.0, 4]],
    dtype=torch.float64,
)
X0 = torch.tensor([0.1, -0.2, 0.3, 0.4, -0.5], dtype=torch.float64)
IDS = torch.tensor([-1, 4, 4, -7, 9])
FREE = IDS >= 0


def f(x: Tensor) -> Tensor:
    """Every element matters, and all of them together."""
    return torch.stack([x.prod(1) + x[:, 1] * x[:, 2], (x**2).sum(1) * x[:, 4]], 1)


class Free:
    """f of the elements that are not fixed."""

    def __init__(self, x: Tensor, free: Tensor = FREE) -> None:
        self.x, self.free = x, free

    def __call__(self, some: Tensor) -> Tensor:
        rows = self.x.repeat(len(some) // len(self.x), 1)
        return f(rows.clone().masked_scatter(self.free.expand(rows.shape), some))


BY_BASELINE = {
    "feature_ablation": {},
    "shapley_values": {},
    "shapley_value_sampling": {"n_samples": 3, "key": 1},
    "kernel_shap": {"n_samples": 4},
    "lime": {
        "n_samples": 30,
        "surrogate": surrogates.ridge(0.1),
        "similarity": surrogates.constant(),  # others measure distances of whole inputs
        "key": 2,
    },
}
METHODS = BY_BASELINE | {"feature_permutation": {"key": 3}}
each_method = pytest.mark.parametrize("name", METHODS)


def options(name: str, free: bool = False) -> dict[str, object]:
    base = {"baselines": X0[FREE] if free else X0} if name in BY_BASELINE else {}
    return base | METHODS[name] | {"target": 1}


def expected(name: str, x: Tensor = X) -> Tensor:
    """Zeros, and the attributions of the elements that are free."""
    method, found = getattr(attrfn, name), torch.zeros_like(x)
    found[:, FREE] = method(Free(x), x[:, FREE], feature_mask=IDS[FREE], **options(name, free=True))
    return found


@each_method
def test_like_the_free_elements_alone(name: str) -> None:
    """Also with the numbers 0 to n - 1 and n_features, and with features that have no element."""
    method, e = getattr(attrfn, name), expected(name)
    found = method(f, X, feature_mask=IDS, **options(name))
    close(found, e)
    assert found[:, ~FREE].eq(0).all()
    assert found[:, FREE].ne(0).any(0).all()
    numbered = torch.where(FREE, IDS // 5, -3)
    close(method(f, X, feature_mask=numbered, n_features=2, **options(name)), e)


@each_method
def test_compiled(name: str) -> None:
    method = getattr(attrfn, name)
    numbered = torch.where(FREE, IDS // 5, -3)

    @functools.partial(torch.compile, fullgraph=True, backend="eager")
    def compiled(x: Tensor, mask: Tensor) -> Tensor:
        return method(f, x, feature_mask=mask, n_features=2, **options(name))

    close(compiled(X, numbered), expected(name))
    none = torch.tensor([0, 1, 1, 0, 1])
    close(compiled(X, none), method(f, X, feature_mask=none, n_features=2, **options(name)))


@pytest.mark.parametrize("name", BY_BASELINE)
def test_mask_that_vmap_maps_over(name: str) -> None:
    """Each example has fixed elements of its own, and one has none."""
    method = getattr(attrfn, name)
    masks = torch.tensor([[-1, 0, 0, -1, 1], [0, 1, 1, 0, 1], [-2, -2, 0, 1, -2]])
    call = functools.partial(method, f, n_features=2, **options(name))
    found = torch.func.vmap(lambda x, m: call(x[None], feature_mask=m)[0])(X, masks)
    rows = [call(x[None], feature_mask=m) for x, m in zip(X, masks, strict=True)]
    close(found, torch.cat(rows))
    assert found[masks < 0].eq(0).all()
    close(call(X, feature_mask=masks), torch.cat(rows))


@each_method
def test_all_are_fixed(name: str) -> None:
    if name == "kernel_shap":  # it warns that few samples cannot determine no feature, or does not
        assert attrfn.kernel_shap(f, X, feature_mask=-1, target=0).eq(0).all()
        return
    found = getattr(attrfn, name)(f, X, feature_mask=torch.tensor(-1), **options(name))
    assert found.shape == X.shape
    assert found.eq(0).all()


@each_method
def test_fixed_elements_cost_nothing(name: str) -> None:
    """The rows of the model are those of the free elements alone."""

    def count(free: bool) -> int:
        rows = 0

        def model(x: Tensor) -> Tensor:
            nonlocal rows
            rows += len(x)
            return Free(X)(x) if free else f(x)

        x, mask = (X[:, FREE], IDS[FREE]) if free else (X, IDS)
        more = options(name, free) | {"chunk_size": None}
        getattr(attrfn, name)(model, x, feature_mask=mask, **more)  # the first one measures, too
        rows = 0
        getattr(attrfn, name)(model, x, feature_mask=mask, **more)
        return rows

    assert count(free=False) == count(free=True)


def test_several_tensors_and_integers() -> None:
    """A whole tensor is fixed by one number; ids of tokens stay what they are."""
    table = torch.tensor([0.0, 1.0, 5.0, 7.0])

    def g(d: dict[str, Tensor]) -> Tensor:
        return table[d["ids"]].prod(1) * d["x"].sum(1)

    inputs = {"ids": torch.tensor([[1, 2, 3]]), "x": torch.tensor([[2.0, 3.0]])}
    mask = {"ids": torch.tensor([-1, 0, 1]), "x": -1}
    found = attrfn.shapley_values(g, inputs, feature_mask=mask, baselines={"ids": 1, "x": 9.0})
    # 5 p q with p from 1 to 5 and q from 1 to 7: 5 * ((5 - 1) * 1 + (35 - 7)) / 2, and so on
    close(found["ids"], torch.tensor([[0.0, 80.0, 90.0]]))
    assert found["x"].eq(0).all()


def test_interactions() -> None:
    """Matrices of the free features, exact and sampled, and of the Hessians."""
    more = {"feature_mask": IDS, "baselines": X0, "target": 1}
    alone = {"feature_mask": IDS[FREE], "baselines": X0[FREE], "target": 1}
    for method in (
        attrfn.interactions,
        functools.partial(attrfn.interactions, n_samples=3),
        attrfn.integrated_hessians,
    ):
        if method is attrfn.integrated_hessians:  # its points have no rows in front: each is x
            e = torch.cat([method(Free(x[None]), x[None, FREE], **alone) for x in X])
        else:
            e = method(Free(X), X[:, FREE], **alone)
        close(method(f, X, **more), e)
        assert e.shape == (3, 2, 2)


NET = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


@pytest.mark.parametrize("form", ["layer_feature_ablation", "layer_feature_permutation"])
def test_layers(form: str) -> None:
    x = torch.linspace(-1, 2, 9).reshape(3, 3)
    found = getattr(attrfn, form)(NET, x, layer="1", target=0, layer_mask=IDS)
    method = getattr(attrfn, form.removeprefix("layer_"))
    close(found, method(NET[2], NET[:2](x), target=0, feature_mask=IDS))
    assert found[:, ~FREE].eq(0).all()


def test_features_score_and_sum() -> None:
    """``feature_scores`` leaves fixed elements out, and completeness keeps them in x0."""
    found = attrfn.shapley_values(f, X, feature_mask=IDS, baselines=X0, target=1)
    close(attrfn.feature_scores(found, IDS), found[:, [1, 4]])
    both = attrfn.feature_scores(torch.ones_like(X), IDS, scores="divided")
    close(both, X.new_tensor([[2.0, 1.0]] * 3))
    delta = attrfn.completeness_delta(f, X, found, feature_mask=IDS, baselines=X0, target=1)
    close(delta, X.new_zeros(3))


def test_metrics_replace_no_fixed_element() -> None:
    a = attrfn.feature_ablation(f, X, feature_mask=IDS, baselines=X0, target=1)
    a = a + (~FREE) * 100  # what attributions of fixed elements are does not matter
    more = {"feature_mask": IDS, "baselines": X0, "target": 1}
    alone = {"feature_mask": IDS[FREE], "baselines": X0[FREE], "target": 1}
    for metric in (
        metrics.deletion,
        metrics.insertion,
        metrics.faithfulness_estimate,
        metrics.monotonicity,
        functools.partial(metrics.removal_curve, pool="mean"),
        functools.partial(metrics.infidelity, n_samples=5),
        functools.partial(metrics.sensitivity_n, sizes=(1,), n_samples=5),
    ):
        found, e = metric(f, X, a, **more), metric(Free(X), X[:, FREE], a[:, FREE], **alone)
        for one, other in zip(
            *(r if isinstance(r, tuple) else (r,) for r in (found, e)), strict=True
        ):
            close(one, other)


def test_imputers_keep_fixed_elements() -> None:
    def imputer(x: Tensor, gone: Tensor, key: Tensor) -> Tensor:
        assert not gone[:, ~FREE].any()
        return torch.where(gone, X0, x)

    a = attrfn.feature_ablation(f, X, feature_mask=IDS, baselines=X0, target=1)
    found = metrics.removal_curve(f, X, a, imputer=imputer, feature_mask=IDS, target=1)
    e = metrics.removal_curve(f, X, a, baselines=X0, feature_mask=IDS, target=1)
    close(found.values, e.values)


def test_derivatives_with_respect_to_fixed_elements() -> None:
    """``create_graph``: what a method returns depends on fixed elements, as the model does."""

    def g(x: Tensor) -> Tensor:
        return x.prod(1)

    x = X[:1].clone().requires_grad_()
    a = attrfn.feature_ablation(g, x, feature_mask=IDS, create_graph=True)
    (grad,) = torch.autograd.grad(a[0, 4], x)
    close(grad[0, 0], X[0, 1:].prod())
