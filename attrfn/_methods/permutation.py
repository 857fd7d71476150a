"""Permutation: what the output loses when a feature comes from another example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrfn import random
from attrfn._copies.chunks import Chunks
from attrfn._explain.features import features
from attrfn._explain.forms import documented, form_of
from attrfn._explain.introspect import of_examples
from attrfn._explain.masked import masked
from attrfn._explain.noise import count_of
from attrfn._explain.options import AtLayer, BlackBox, ChunkOptions, FeatureOptions, LayerFeatures
from attrfn._explain.tree import each, flatten
from attrfn._explain.uncertain import is_sample, warn_uncertain
from attrfn._layers.located import locate
from attrfn._random.keys import row_keys, sample_keys
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import called
from attrfn._torch.say import say
from attrfn._torch.typing import (
    At,
    Batching,
    ChunkSize,
    Key,
    Layer,
    Leaves,
    ModelFn,
    OfLayer,
    RowsOf,
    Target,
    Tree,
    Unpack,
)

Permute = Callable[[Tensor, int], Tensor]


class PermutationOptions(ChunkOptions, total=False):
    """What feature permutation and its layer form take."""

    n_features: int | None
    """The ids of the mask are 0 to ``n_features - 1``; ``None`` counts those that occur. A number
    is needed inside torch.compile, which cannot count them."""

    n_samples: int
    """The number of shuffles of each feature that are averaged."""

    key: Key
    """An int or a key of :mod:`attrfn.random`, (2,)."""

    permute: Permute | None
    """From keys (S, 2) and the number B of examples to S permutations of them, (S, B), such as
    ``lambda keys, b: torch.arange(b).roll(1).expand(len(keys), b)``; ``None`` draws them."""


@of_examples
@documented(BlackBox, PermutationOptions, FeatureOptions, scores="shared")
def feature_permutation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    feature_mask: Tree = None,
    n_features: int | None = None,
    n_samples: int = 1,
    key: Key = 0,
    permute: Permute | None = None,
    chunk_size: ChunkSize = "auto",
    batching: Batching = "fold",
    create_graph: bool = False,
    progress: bool = False,
) -> Tree:
    """Feature permutation: what the output loses when a feature is shuffled among the examples.

        A_k = f(x) - mean_s f(x with feature k of row b := that of row pi_sk(b))

    In this method alone the attributions of an example depend on the other examples. With a model
    that returns the loss of the batch, -A is the permutation importance. A random permutation may
    leave rows where they are, or all of them, so that a single draw of few rows may be 0; two rows
    are always exchanged.

    Args:
        inputs: A tensor or pytree of tensors of any dtype with at least two examples in dimension
            0.
        feature_mask: The feature of each element: integers that broadcast to the inputs, or a
            pytree prefix of those; the same for all examples.

    Returns:
        Attributions like the inputs; every element has the score of its feature.

    Raises:
        ValueError: There are less than two examples.

    Example:
        >>> import torch, attrfn
        >>> swap = lambda keys, batch: torch.tensor([1, 0]).expand(len(keys), 2)
        >>> x = torch.tensor([[1.0, 2.0], [5.0, 3.0]])
        >>> attrfn.feature_permutation(lambda x: x.sum(1), x, permute=swap)
        tensor([[-4., -1.],
                [ 4.,  1.]])

    Reference:
        Breiman, Random Forests, 2001.
        Fisher, Rudin and Dominici, All Models are Wrong, but Many are Useful: Learning a Variable's
        Importance by Studying an Entire Class of Prediction Models Simultaneously, 2019.
    """
    chunks = Chunks(chunk_size, batching, progress, "feature_permutation", backward=False)
    p = masked(model_fn, inputs, target, None, chunks, create_graph=create_graph)
    these = features(feature_mask, inputs, p.x, n_features)
    n = these.n
    copies = count_of("n_samples", n_samples) * n
    _check(p.batch, key, these.ids, permute)
    words = row_keys(key, p.batch, p.device)
    ids = torch.arange(n, device=p.device)

    # Copy s n + k shuffles feature k for the s-th time. Each copy draws its own permutation: with
    # one for all features, their scores would share its luck.
    def points(i: slice) -> Leaves:
        order = _order(permute, sample_keys(words, i, 0)[:, 0], p.batch)
        moved = torch.arange(i.start, i.stop, device=p.device) % n
        masks = these.masks((moved[:, None] == ids)[:, None], fixed=False)
        return each(lambda z, x: torch.where(z, x[order], x), masks, p.x)

    shuffled = p.at(copies, points)
    shuffled = shuffled.reshape(n_samples, n, *shuffled.shape[1:])
    scores = (p.full - shuffled.mean(0)).movedim(0, -1)
    if is_sample(shuffled):
        stderr = shuffled.std(0).movedim(0, -1) / n_samples**0.5
        warn_uncertain("feature_permutation", scores, stderr, f"n_samples={n_samples}", p.full)
    return p.result(these.elements(scores))


def _order(permute: Permute | None, keys: Tensor, batch: int) -> Tensor:
    """A permutation of the examples for each key, (S, B)."""
    if permute is not None:
        order: Any = called("permute", permute, keys, batch)
        _check_order(order, (len(keys), batch))
        return order  # type: ignore[no-any-return]
    if batch == 2:
        # Of the two permutations one is the identity, which says nothing.
        return torch.arange(1, -1, -1, device=keys.device).expand(len(keys), 2)
    return random.permutation(keys, batch)


def _check_order(order: Any, shape: tuple[int, int]) -> None:
    if not isinstance(order, Tensor) or order.shape != shape:
        what = f"shape {tuple(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise ValueError(
            f"permute returned {what}, expected a tensor {shape}: one permutation of the examples "
            "for each key"
        )
    if order.is_floating_point() or order.dtype == torch.bool:
        raise TypeError(
            f"permute returned {order.dtype}, expected integers, the examples in another order"
        )
    if not transforming() and not 0 <= int(order.min()) <= int(order.max()) < shape[1]:
        raise ValueError(
            f"permute returned numbers from {int(order.min())} to {int(order.max())}, expected "
            f"those of the examples, 0 to {shape[1] - 1}"
        )


def _check(batch: int, key: Key, ids: tuple[Tensor | int, ...], permute: Permute | None) -> None:
    if batch == 1:
        raise ValueError(
            "inputs has 1 example, expected at least 2 to shuffle features among them: "
            "use feature_ablation for a single one"
        )
    if isinstance(key, Tensor) and key.ndim > 1:
        raise ValueError(
            f"key has shape {tuple(key.shape)}, expected (2,): a permutation moves all examples"
        )
    if any(isinstance(i, Tensor) and i.shape[0] != 1 for i in ids):
        raise ValueError(
            "feature_mask has a row for each example, expected one for all of them, because a "
            "feature moves from example to example"
        )
    if permute is not None and not callable(permute):
        raise TypeError(f"permute is {say(permute)}, expected a callable (keys, batch) -> (S, B)")


@form_of(feature_permutation, AtLayer, LayerFeatures)
def layer_feature_permutation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    layer_mask: OfLayer = None,
    at: At = "output",
    call: int | None = 0,
    rows: RowsOf = None,
    **options: Unpack[PermutationOptions],
) -> Tree:
    """Feature permutation of a layer: parts of the activation shuffled among the examples.

        A_k = f(x) - mean_s tail(a with part k of row b := that of row pi_sk(b), x),   a = head(x)

    Args:
        layer_mask: The part that each element of the activation belongs to, the same for all
            examples.

    Returns:
        Attributions like the activation; every element has the score of its part.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> attrfn.layer_feature_permutation(model, x, layer="0", target=1).shape
        torch.Size([5, 4])

    Reference:
        Breiman, Random Forests, 2001.
    """
    here = locate(
        model_fn,
        inputs,
        layer,
        at=at,
        call=call,
        rows=rows,
        create_graph=options.get("create_graph", False),
    )
    # Checked here under the name that the user gave, which is feature_mask at the layer.
    leaves, _ = flatten(here.activation)
    mask = here.option(layer_mask, "layer_mask")
    features(mask, here.activation, leaves, options.get("n_features"), "layer_mask")
    return here.explained(feature_permutation, {"target": target, "feature_mask": mask, **options})
