"""Which tensors of a layer's value have the examples in dimension 0, and which only look so."""

from __future__ import annotations

import contextlib
import functools
import weakref
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrfn._copies.batch import binds_rows, flip_bound, repeat_bound, repeat_rows
from attrfn._copies.rows import check_bound
from attrfn._explain.tree import as_dicts, flatten
from attrfn._layers.leaves import real_view
from attrfn._layers.split import Split, layers_of
from attrfn._model.source import describe, source
from attrfn._torch import pytree
from attrfn._torch.autodiff import transforming, twice_differentiable
from attrfn._torch.compiling import is_compiling
from attrfn._torch.dense import is_packed
from attrfn._torch.typing import At, Layer, ModelFn, Tree


class Place(NamedTuple):
    """Where a layer is: the model, and what tells its layers apart.

    Attributes:
        module: The model.
        layers: The layers, as the user gave them.
        at: ``"output"`` or ``"input"``.
        call: Which call.
        bound: What is bound to the model.
    """

    module: nn.Module
    layers: tuple[nn.Module | str, ...]
    at: At
    call: int | None
    bound: Any

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the place from others in the model."""
        names = [layer if isinstance(layer, str) else id(layer) for layer in self.layers]
        return (*names, self.at, self.call, self.module.training)


def place_of(model_fn: ModelFn, layer: Layer, at: At, call: int | None) -> Place:
    """The place of a layer in a model whose module is visible."""
    src: Any = source(model_fn)
    return Place(src.module, layers_of(layer), at, call, (src.args, src.kwargs))


# Operations whose result has a size, or an order, that depends on values. Behind one of these the
# rows may be tokens that were routed to an expert, as many as there are examples by chance.
_ROUTING = frozenset(
    [
        *("argsort", "argwhere", "bincount", "item", "masked_select", "msort", "multinomial"),
        *("nonzero", "numpy", "randperm", "repeat_interleave", "sort", "tolist", "topk"),
        *("unique", "unique_consecutive", "unique_dim", "__bool__", "__int__", "__index__"),
    ]
)


# What runs have told of a model's layers, as long as the model lives. To run the head again in each
# call would cost a small method half as much again.
_told: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[bool]]] = weakref.WeakKeyDictionary()
_MOST_TOLD = 64  # of each model


def with_examples(
    value: Tree, halves: Split, inputs: Tree, batch: int, layer: Layer, place: Place
) -> Tree:
    """The tensors of a layer's value that can be explained; None elsewhere.

    Raises:
        ValueError: A layer has none.
    """
    named = layers_of(layer)
    if not isinstance(value, Tensor) and any(map(is_packed, optree.tree_leaves(value, is_packed))):
        raise ValueError(
            f"layer {describe(named[0])} has a PackedSequence as its {place.at}, whose rows are "
            "steps of several examples: choose a layer before it is packed or after it is padded"
        )
    check_bound(functools.partial(_head_of_copies, halves, inputs), batch, place.key)
    many = isinstance(layer, (list, tuple))
    looked = activation = explainable(value, batch)
    if batch and optree.tree_leaves(activation):
        activation = _that_follow(activation, halves, inputs, batch, place)
    both = zip(looked, activation, strict=True) if many else [(looked, activation)]
    for one, (before, after) in zip(named, both, strict=True):
        if optree.tree_leaves(after):
            continue
        what = (
            f"{batch} rows that are not the {batch} examples, such as tokens or positions"
            if optree.tree_leaves(before)
            else f"no floating tensor with the {batch} example(s) in dimension 0 to explain"
        )
        other = "output" if place.at == "input" else "input"
        raise ValueError(
            f"layer {describe(one)} gives {what}: choose another layer, or at={other!r}"
        )
    return activation


def _head_of_copies(halves: Split, inputs: Tree, copies: int) -> Tree:
    x, rebuild = flatten(inputs)
    many = halves._replace(head=repeat_bound(halves.head, len(x[0]), copies))
    return read(many, rebuild(repeat_rows(x, copies)), False)


def _that_follow(activation: Tree, halves: Split, inputs: Tree, batch: int, place: Place) -> Tree:
    """The tensors of an activation whose dimension 0 follows that of the inputs.

    A state (layers, B, H), time before batch, embeddings of positions or tokens of an expert look
    like B examples where the sizes happen to be equal. Sizes do not tell them apart, but a batch of
    another size does: the head runs again, on two examples or on the whole batch twice. Where rows
    are chosen by values, it also runs on the examples in reverse order.
    """
    if is_compiling():  # which drops this run, because only a size of it counts
        return _at_twice_the_size(activation, halves, inputs, batch)
    told = _told.setdefault(place.module, {})
    key = (*place.key, _sizes((inputs, activation, place.bound)), transforming())
    if key in told:
        return _kept(told[key], activation)
    with _Routes() as routes:
        follow = _at_another_size(activation, halves, inputs, batch)
    if not routes.found or transforming():
        if len(told) >= _MOST_TOLD:
            told.clear()
        told[key] = [t is not None for t in optree.tree_leaves(follow, none_is_leaf=True)]
        return follow
    if not optree.tree_leaves(follow) or batch == 1:
        return follow
    back = optree.tree_map(lambda t: t.flip(0), inputs)
    flipped = halves._replace(head=flip_bound(halves.head, batch))
    return _where(_is_reversed, follow, explainable(read(flipped, back, False), batch))


def _sizes(tree: Tree) -> tuple[Any, ...]:
    return tuple([t.shape for t in optree.tree_leaves(tree) if isinstance(t, Tensor)])


def _kept(follow: list[bool], activation: Tree) -> Tree:
    """The tensors of an activation in the places that follow; None elsewhere."""
    leaves, spec = optree.tree_flatten(activation, none_is_leaf=True)
    return optree.tree_unflatten(
        spec, [t if f else None for t, f in zip(leaves, follow, strict=True)]
    )


class _Routes(TorchFunctionMode):
    """While active, whether the model chooses rows by values of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        # Tensors that were made of none, such as positions: what is chosen by them does not depend
        # on the inputs. Transformers ask whether their positions are those of packed sequences.
        self.free: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        kwargs = kwargs or {}
        if self.found:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        free = all(id(t) in self.free for t in given)
        self.found = not free and (
            name in _ROUTING
            or (name == "where" and len(args) == 1 and not kwargs)
            or (name == "__getitem__" and _holds_booleans(args[1]))
        )
        out = func(*args, **kwargs)
        if free:
            self.free.update({id(t): t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)})
        elif _may_write(name) or "out" in kwargs:  # into one of them, or a view of it
            self.free.clear()
        return out


def _may_write(name: str) -> bool:
    """Whether a function of this name may write into its first argument."""
    dunder = name.startswith("__")
    return name.startswith(("__i", "__set")) if dunder else name.endswith("_")


def _holds_booleans(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in parts)


def _at_another_size(activation: Tree, halves: Split, inputs: Tree, batch: int) -> Tree:
    # Two examples cost least. A model that needs this number of examples, or tensors that have one
    # row for each of them, fails there and gets the batch twice.
    if batch > 2 and not binds_rows(halves.head, batch):
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            two = optree.tree_map(lambda t: t[:2], inputs)
            return like(explainable(read(halves, two, False), 2), activation)
    return _at_twice_the_size(activation, halves, inputs, batch)


def _at_twice_the_size(activation: Tree, halves: Split, inputs: Tree, batch: int) -> Tree:
    twice = optree.tree_map(lambda t: torch.cat([t, t]), inputs)
    doubled = halves._replace(head=repeat_bound(halves.head, batch, 2))
    return like(explainable(read(doubled, twice, False), 2 * batch), activation)


def _is_reversed(a: Tensor, b: Tensor | None) -> bool:
    """Whether one tensor has the rows of another in reverse order, up to rounding."""
    if b is None or a.shape != b.shape:
        return False
    near = torch.finfo(a.dtype).eps ** 0.5
    scale = float(a.detach().abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
    return torch.allclose(a.detach().flip(0), b, rtol=0, atol=near * scale, equal_nan=True)


def _where(test: Any, activation: Tree, other: Tree) -> Tree:
    """The tensors of an activation of which a test with those of another tree is true."""

    def kept(mine: Any, theirs: Any) -> Any:
        return mine if mine is not None and test(mine, theirs) else None

    return optree.tree_map(kept, activation, other, none_is_leaf=True)


def read(halves: Split, inputs: Tree, create_graph: bool) -> Tree:
    """The head's value, with a graph only if ``create_graph`` or a transform needs one."""
    graph = create_graph or (transforming() and torch.is_grad_enabled())
    with torch.set_grad_enabled(graph), twice_differentiable(create_graph):
        return halves.head(inputs)


def explainable(value: Tree, batch: int) -> Tree:
    """The floating tensors of a value that have the examples in dimension 0; None elsewhere.

    Of complex ones it has the parts.
    """

    def or_none(leaf: Any) -> Tensor | None:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != batch:
            return None
        return real_view(leaf) if leaf.is_floating_point() or leaf.is_complex() else None

    return optree.tree_map(or_none, as_dicts(value))


def like(activation: Tree, value: Tree) -> Tree:
    """The tensors of a value in the places where the activation has one; None elsewhere."""

    def view(mine: Any, other: Any) -> Any:
        return None if mine is None or other is None else real_view(other)

    return optree.tree_map(view, activation, as_dicts(value), none_is_leaf=True)
