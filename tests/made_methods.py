"""Methods that are made by other functions, as functions of their options."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

import attrfn
from attrfn._explain.target import choose, select


def tunnel(
    method: Callable[..., Any], kind: str = "smoothgrad", draw_baselines: bool = False
) -> Callable[..., Any]:
    """A noise tunnel whose own options are given with the call."""

    def noisy(
        model_fn: Any,
        inputs: Any,
        *,
        n_samples: int = 3,
        stdevs: Any = 0.3,
        key: Any = 0,
        chunk_size: int | None = None,
        **options: Any,
    ) -> Any:
        return attrfn.noise_tunnel(
            method,
            kind=kind,  # type: ignore[arg-type]
            n_samples=n_samples,
            stdevs=stdevs,
            key=key,
            chunk_size=chunk_size,
            draw_baselines=draw_baselines,
        )(model_fn, inputs, **options)

    return noisy


def of_each(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method for each output, of which the target is the only one."""

    def first(model_fn: Any, inputs: Any, *, target: Any = None, **options: Any) -> Any:
        target = torch.tensor(target) if isinstance(target, list) else target
        chosen = functools.partial(_only, target=target)
        found = attrfn.each_output(method, n=1)(model_fn, inputs, target=chosen, **options)
        return optree.tree_map(lambda a: a[:, 0], found)

    return first


def _only(outputs: Any, target: Any) -> Tensor:
    rows = len(outputs)
    return select(outputs, choose(target, rows), rows)[:, None]


def against_another(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the target against the one before it; through a pool of a single entry."""

    def with_entry(model_fn: Any, inputs: Any, **options: Any) -> Any:
        return optree.tree_map(lambda a: a[..., None], method(model_fn, inputs, **options))

    def contrasted(model_fn: Any, inputs: Any, *, target: Any = None, **options: Any) -> Any:
        if target is not None and not callable(target):
            options["target"] = attrfn.contrast(target, _before(target))
        else:
            options["target"] = target
        return attrfn.pooled(with_entry, -1)(model_fn, inputs, **options)

    return contrasted


def _before(target: Any) -> Any:
    """The index before an index, the last one for the first."""
    if isinstance(target, list):
        return [_before(t) for t in target]
    if isinstance(target, tuple):
        return (*target[:-1], _before(target[-1]))
    return target if isinstance(target, slice) else target - 1


def of_two(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an ensemble of a model and itself."""

    def both(model_fn: Any, inputs: Any, **options: Any) -> Any:
        return attrfn.ensemble(method)([model_fn, model_fn], inputs, **options)

    return both


def with_rows(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a model that binds a factor for each example, and a table for all of them."""

    def bound(model_fn: Any, inputs: Any, **options: Any) -> Any:
        x = optree.tree_leaves(inputs)[0]
        own = attrfn.per_example(torch.ones(1, x.shape[0], device=x.device, dtype=x.dtype), dim=1)
        table = [attrfn.shared(torch.ones(3, device=x.device, dtype=x.dtype))]
        bind: Any = functools.partial
        if isinstance(model_fn, torch.nn.Module) and not torch.compiler.is_compiling():
            bind = types.MethodType  # in which methods find the module
        run = bind(_scaled, model_fn)
        return method(functools.partial(run, own=own, table=table), inputs, **options)

    return bound


def _scaled(model_fn: Any, *inputs: Any, own: Tensor, table: list[Tensor]) -> Tensor:
    outputs: Tensor = model_fn(*inputs)
    factor = own[0].to(outputs.dtype).reshape(-1, *[1] * (outputs.ndim - 1))
    return outputs * factor * table[0].mean()


def at_layer(method: Callable[..., Any], **where: Any) -> Callable[..., Any]:
    """A method at the layer that is given with the call."""

    def moved(model_fn: Any, inputs: Any, *, layer: Any, **options: Any) -> Any:
        return attrfn.at_layer(method, layer, **where)(model_fn, inputs, **options)

    return moved


def at_neuron(method: Callable[..., Any], **where: Any) -> Callable[..., Any]:
    """A method at the layer and neuron that are given with the call."""

    def moved(model_fn: Any, inputs: Any, *, layer: Any, neuron: Any, **options: Any) -> Any:
        return attrfn.at_neuron(method, layer, neuron, **where)(model_fn, inputs, **options)

    return moved


def edited(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the model that an edit at the layer's input and one at its output change."""

    def of_edited(model_fn: Any, inputs: Any, *, layer: Any, **options: Any) -> Any:
        before = attrfn.Site(layer, at="input")

        def larger(a: Tensor, seen: Any) -> Tensor:
            size = seen[before].reshape(len(a), -1).mean(1)
            return a * 1.5 + 0.1 * size.reshape(-1, *[1] * (a.ndim - 1))

        edits = {before: lambda a, seen: 1.1 * a, layer: larger}
        return method(attrfn.intervene(model_fn, edits), inputs, **options)

    return of_edited


def with_layer(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the model's output times the mean square of a layer, in one pass."""

    def of_both(
        model_fn: Any, inputs: Any, *, layer: Any, target: Any = None, **options: Any
    ) -> Any:
        def product(found: Any) -> Tensor:
            outputs, values = found
            rows = len(outputs)
            size = (values[layer] ** 2).reshape(rows, -1).mean(1)
            return select(outputs, choose(target, rows), rows) * (1 + size)

        read = attrfn.activations(model_fn, [layer])
        return method(read, inputs, target=product, **options)

    return of_both


def groups(inputs: Any, n: int = 3) -> Any:
    """A mask of n features, to which the elements of the inputs belong in turn."""
    leaves, spec = optree.tree_flatten(inputs)
    sizes = [0, *(x.shape[1:].numel() for x in leaves)]
    starts = [sum(sizes[: i + 1]) for i in range(len(leaves))]
    masks = [
        (torch.arange(i, i + x.shape[1:].numel()) % n).reshape(x.shape[1:])
        for i, x in zip(starts, leaves, strict=True)
    ]
    return optree.tree_unflatten(spec, masks)


def grouped(method: Callable[..., Any], n: int = 3) -> Callable[..., Any]:
    """A perturbation method on n features, to which the elements of the inputs belong in turn."""

    def of_groups(model_fn: Any, inputs: Any, **options: Any) -> Any:
        mask = groups(inputs, n)
        return method(model_fn, inputs, feature_mask=mask, n_features=n, **options)

    return of_groups


def of_features(method: Callable[..., Any], n: int = 3) -> Callable[..., Any]:
    """The scores of n features by a method whose attributions are divided."""

    def scores(model_fn: Any, inputs: Any, **options: Any) -> Tensor:
        found = method(model_fn, inputs, **options)
        return attrfn.feature_scores(found, groups(inputs, n), n_features=n, scores=method)

    return scores


def delta_of_squares(model_fn: Any, inputs: Any, **options: Any) -> Tensor:
    """The completeness gap of x^2, which depends on the inputs in two ways."""
    squares = attrfn.gradient(_cubes, inputs, create_graph=True)
    return attrfn.completeness_delta(model_fn, inputs, squares, **options)


def _cubes(*inputs: Any) -> Tensor:
    """sum(x^3) / 3 of each example: its gradient is x^2."""
    cubes = [(x**3 / 3).reshape(x.shape[0], -1).sum(1) for x in optree.tree_leaves(inputs)]
    return torch.stack(cubes).sum(0)


def gradient_by(rules: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of the model function with rules; baselines go to the rules."""

    def ruled(model_fn: Any, inputs: Any, **options: Any) -> Any:
        to_rules = {k: options.pop(k) for k in ("baselines",) if k in options}
        f = attrfn.with_rules(model_fn, rules(**to_rules))
        return attrfn.gradient(f, inputs, **options)

    return ruled


def there_and_back(model_fn: Any, inputs: Any, *, layer: Any) -> Tensor:
    """The tail of the head, which is the model."""
    head, tail = attrfn.split(model_fn, layer)
    return tail(head(inputs), inputs)
