"""Pytrees (optree) as flat tuples of tensors, which is what torch.func takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import row_sums
from attrfn._explain.said import main_tensor
from attrfn._model.arguments import compiled_arguments, own_arguments
from attrfn._torch import pytree
from attrfn._torch.autodiff import (
    gradients_allowed,
    in_inference,
    twice_differentiable,
)
from attrfn._torch.compiling import is_compiling
from attrfn._torch.explanation import run_model, unnoticed
from attrfn._torch.inference import AsNoGrad, is_as_no_grad
from attrfn._torch.typing import Leaves, ModelFn, Tree


def flatten(tree: Tree, name: str = "inputs") -> tuple[Leaves, Callable[[Sequence[Any]], Tree]]:
    """The tensors of a tree and the function that puts others in their places.

    Args:
        tree: A tensor or a tuple, list, dict, namedtuple, or dataclass registered with optree, of
            tensors; ``None`` stands for nothing.
        name: The argument's name for messages.

    Returns:
        The leaves, and ``rebuild(leaves) -> tree``.

    Raises:
        TypeError: A leaf is not a tensor.
        ValueError: The tree has no leaf, or its leaves disagree about the batch size.
    """
    leaves, spec = optree.tree_flatten(tree)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{name} has a leaf of type {type(leaf).__name__}, expected tensors only: make it "
                "one with torch.tensor, or bind it with functools.partial(model, ...) if it is not "
                "to be explained"
            )
        if leaf.layout != torch.strided:
            raise TypeError(f"{name} holds a tensor of {leaf.layout}, expected dense tensors")

    def rebuild(new: Sequence[Any]) -> Tree:
        return optree.tree_unflatten(spec, new)

    return tuple(leaves), rebuild


def batch_size(leaves: Leaves, name: str = "inputs") -> int:
    """The common size of dimension 0."""
    if not leaves:
        raise ValueError(
            f"{name} holds no tensor, expected at least one with the examples in dimension 0"
        )
    for leaf in leaves:
        if leaf.is_complex():
            raise TypeError(
                f"{name} has a tensor of {leaf.dtype}, expected real numbers: give "
                "torch.view_as_real(x), and a model that begins with torch.view_as_complex"
            )
        if leaf.ndim == 0:
            raise ValueError(
                f"{name} has a 0-d tensor, expected the examples in dimension 0 of every tensor: "
                "add it with x[None]"
            )
        if leaf.shape[0] != leaves[0].shape[0]:
            raise ValueError(
                f"{name} has tensors with {leaves[0].shape[0]} and {leaf.shape[0]} examples in "
                "dimension 0, expected the same number in all: bind tensors that are not explained "
                "with functools.partial(model, ...)"
            )
    return leaves[0].shape[0]


def require_floating(leaves: Leaves) -> None:
    """Refuse integer inputs with advice.

    Raises:
        TypeError: A leaf is not a floating tensor.
    """
    for t in leaves:
        if not t.is_floating_point():
            raise TypeError(
                f"inputs has a tensor of {t.dtype}, expected floating point, because a gradient "
                "with respect to integers does not exist: explain the embedding layer instead, "
                "as in attrfn.at_layer(method, 'embedding')(model, inputs), or use a perturbation "
                "method"
            )


def call_model(model_fn: ModelFn, inputs: Tree, *, fresh: bool = False) -> Any:
    """``model_fn(*inputs)`` for a tuple, else ``model_fn(inputs)``, on copies of the tensors.

    Tensors that were made for this call (``fresh``) are not copied.
    """
    # The model may write into its inputs. A tensor made in inference mode is copied in any case:
    # the call leaves that mode, and autograd takes no inference tensors.
    fresh = fresh and not in_inference()
    if not is_arguments(inputs):
        inputs = (inputs,)
    with twice_differentiable(False), gradients_allowed():
        bound, given = own_bound(model_fn), inputs if fresh else clone_tensors(inputs)
        try:
            if is_as_no_grad():
                with AsNoGrad():
                    return run_model(bound, given)
            return run_model(bound, given)
        except RuntimeError as error:
            if "Can't call numpy() on Tensor that requires grad" not in str(error):
                raise
            raise TypeError(
                "model_fn turns tensors into NumPy arrays, which no gradient passes, expected "
                "operations of torch: use a perturbation method, such as attrfn.kernel_shap or "
                "attrfn.feature_ablation, which explains any Python model"
            ) from error


def output_width(model_fn: ModelFn, inputs: Tree) -> int | None:
    """The number of outputs of each example, if they are a tensor (B, K)."""
    leaves, rebuild = flatten(inputs)
    with unnoticed():
        outputs = main_tensor(call_model(model_fn, rebuild([t.detach() for t in leaves])))
    return outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else None


def each(f: Callable[..., Tensor], *leaves: Leaves) -> Leaves:
    """``f`` of the tensors of several trees, leaf by leaf."""
    return tuple([f(*tensors) for tensors in zip(*leaves, strict=True)])


def row_total(
    leaves: Leaves, precision: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype
) -> Tensor:
    """The sum over all elements of each row, over all leaves: (R, ...) each to (R,)."""
    return torch.stack([row_sums(t, precision(t.dtype)) for t in leaves]).sum(0)


def is_arguments(inputs: Tree) -> bool:
    """Whether the model takes each entry as one argument: a tuple that is not a namedtuple."""
    return isinstance(inputs, tuple) and not hasattr(inputs, "_fields")


def own_bound(bound: Any) -> Any:
    """A partial with private copies of its arguments, so that a run starts from the user's."""
    if is_compiling():
        return compiled_arguments(bound)
    return own_arguments(bound)


def clone_tensors(tree: Tree) -> Tree:
    """The same tree with a clone of every tensor, so that in-place operations stay inside."""
    return map_tensors(Tensor.clone, tree)


def map_tensors(f: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The same tree with ``f`` of every tensor."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return f(value)
        # optree takes for a leaf what is registered with torch alone, as transformers' outputs are
        return pytree.tree_map_only(Tensor, f, value)

    return optree.tree_map(leaf, tree)


def as_dicts(tree: Tree) -> Tree:
    """Mappings that optree does not know, such as the outputs of transformers, as dicts."""

    def open_up(leaf: Any) -> Any:
        if not isinstance(leaf, Mapping):
            return leaf
        return {k: as_dicts(v) for k, v in leaf.items()}

    return optree.tree_map(open_up, tree)
