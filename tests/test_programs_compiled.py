"""Modules and functions of torch.compile are explained as what they were compiled from."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from programs_cases import MODELS
from test_programs import near
from test_programs_exported import METHODS
from torch import Tensor, nn
from zoo import make, randn

import attrfn

pytestmark = [
    pytest.mark.compiles,
    # Raised by torch while it traces a function of a tensor with a graph.
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    ),
]

WEIGHT = randn(4, 3, seed=7)
X = randn(3, 4, seed=1)


def function(x: Tensor, mask: Tensor | None = None) -> Tensor:
    return torch.relu((x if mask is None else x * mask).tanh() @ WEIGHT).square()


@pytest.fixture(params=[pytest.param("eager", marks=pytest.mark.fuzz), "aot_eager"])
def compiled(request: pytest.FixtureRequest, fresh_compiler: None) -> Any:
    return torch.compile(function, backend=request.param)


@pytest.mark.parametrize("name", METHODS)
def test_functions(name: str, compiled: Any) -> None:
    near(METHODS[name](compiled, X, target=1), METHODS[name](function, X, target=1))
    mask = randn(3, 4, seed=2)
    found, want = (
        METHODS[name](functools.partial(f, mask=mask), X, target=1) for f in (compiled, function)
    )
    near(found, want)


def test_functions_inside_transforms(compiled: Any) -> None:
    mask = randn(3, 4, seed=2)
    for f in (attrfn.gradient, attrfn.integrated_gradients, attrfn.feature_ablation):

        def one(z: Tensor, m: Tensor, model: Any, f: Any = f) -> Tensor:
            return f(functools.partial(model, mask=m[None]), z[None], target=1)[0]

        found, want = (
            torch.func.vmap(functools.partial(one, model=model))(X, mask)
            for model in (compiled, function)
        )
        near(found, want)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        found, want = (
            transform(lambda z, m=model: attrfn.gradient(m, z, target=1))(X)
            for model in (compiled, function)
        )
        near(found, want)
    for batching in ("vmap", "loop"):
        options = {"target": 1, "n_steps": 5, "batching": batching}
        near(
            attrfn.integrated_gradients(compiled, X, **options),
            attrfn.integrated_gradients(function, X, **options),
        )
    pairs = [attrfn.integrated_hessians(f, X, target=1, n_steps=4) for f in (compiled, function)]
    near(pairs[0], pairs[1])


def test_second_derivatives_of_functions(compiled: Any) -> None:
    found = []
    for f in (compiled, function):
        x = X.clone().requires_grad_()
        attrfn.gradient(f, x, target=1, create_graph=True).square().sum().backward()
        found.append(x.grad)
    near(found[0], found[1])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", MODELS)
def test_modules(name: str) -> None:
    """Also a compiled part of a module, and a module that was compiled in place."""
    build, shape = MODELS[name]
    model, x = build(), randn(3, *shape, seed=1)
    in_place = build()
    in_place.compile(backend="eager")
    outer = nn.Sequential(torch.compile(build(), backend="eager"))
    layer = next(name for name, m in model.named_modules() if isinstance(m, nn.Linear))
    for compiled, place in (
        (torch.compile(model, backend="eager"), layer),
        (in_place, layer),
        (outer, f"0.{layer}"),
    ):
        for method in (attrfn.gradient, attrfn.deep_lift, attrfn.kernel_shap):
            near(method(compiled, x, target=1), method(model, x, target=1))
        near(
            attrfn.layer_gradient_x_activation(compiled, x, target=1, layer=place),
            attrfn.layer_gradient_x_activation(model, x, target=1, layer=layer),
        )


def test_layers_of_functions() -> None:
    compiled = torch.compile(make(nn.Linear, 4, 3).forward, backend="eager")
    with pytest.raises(TypeError, match=r"no module can be found in it"):
        attrfn.layer_activation(compiled, X, layer="0")
