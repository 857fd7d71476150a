"""Whether copies of a batch may be evaluated together: not where rows depend on each other."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._model.hidden import hidden_modules
from attrfn._torch import pytree
from attrfn._torch.explanation import Explanation
from attrfn._torch.warn import warn

# Of each model, or of the code of a function: in which modes it has been checked. A model whose
# rows depend on each other is not kept: each call of a method finds it again, and says so.
_CHECKED: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def check_rows(one: Explanation, evaluate: Callable[[slice], object], n: int) -> None:
    """Evaluate two of n copies together and one by one, once for each model.

    Where the model returns something else, the method starts again, with each copy alone.
    """
    # Batch norms are found as modules, in every call. Other ways to mix rows, such as
    # x - x.mean(0), a softmax over the batch or F.batch_norm, show in the outputs alone. The copies
    # are from the middle, because the first ones of a path are hardly different.
    anchors, way = _places(one.model)
    i = n // 2 - 1
    try:
        apart = _outputs(one, evaluate, [slice(i, i + 1), slice(i + 1, i + 2)], anchors, way)
        together = _outputs(one, evaluate, [slice(i, i + 2)], anchors, way)
    except Exception:
        # Memory ran out, so that one copy at a time is what will run; or the model fails with a few
        # copies, as one does whose number of steps depends on the batch. If it fails with all of
        # them too, that run says so.
        return
    if len(apart) == 2 * len(together):
        half = len(together)
        pairs = zip(together, apart[:half], apart[half:], strict=True)
        if not all(_agree(*pair) for pair in pairs):
            warn(
                "the model returns something else for a batch alone than for several copies of it "
                "together, so its rows depend on each other (as in a mean over the batch): each "
                "copy is evaluated alone, and the batch is explained as a whole"
            )
            one.needs_whole_batches()
    for a in anchors:
        _CHECKED.setdefault(a, set()).add(way)


def _outputs(
    one: Explanation,
    evaluate: Callable[[slice], object],
    slices: list[slice],
    anchors: list[Any],
    way: Any,
) -> list[Any]:
    """What the model returns in the runs for some slices; nothing if it has been checked."""
    # A method inside a method, as in a noise tunnel, checks the model with copies of its own.
    surrounding, one.outputs = one.outputs, []
    try:
        for i in slices:
            if _known(anchors, way):
                return []
            evaluate(i)
        return [] if _known(anchors, way) else one.outputs
    finally:
        one.outputs = surrounding


def _places(model: Any) -> tuple[list[Any], Any]:
    """What a model function is made of, by which it is known again, and its code and modes."""
    while isinstance(model, functools.partial):
        model = model.func
    code = None
    if isinstance(model, types.MethodType) and isinstance(model.__self__, nn.Module):
        model, code = model.__self__, model.__func__.__code__
    if isinstance(model, nn.Module):
        return [model], (code, model.training)
    modules = list(hidden_modules(model))
    code = getattr(model, "__code__", model)
    if isinstance(code, (list, tuple)):  # the models of an ensemble
        code = tuple(map(id, modules))
    if not modules:
        try:
            weakref.ref(code)
            hash(code)
        except TypeError:
            return [], None  # it is checked in each call
    return modules or [code], (code, *[m.training for m in modules])


def _known(anchors: list[Any], way: Any) -> bool:
    return bool(anchors) and all(way in _CHECKED.get(a, ()) for a in anchors)


def _agree(together: Any, first: Any, second: Any) -> bool:
    """Whether outputs are equal up to rounding, which depends on the size of a batch."""
    for both, a, b in zip(_tensors(together), _tensors(first), _tensors(second), strict=True):
        if a.ndim == 0 or len(both) != len(a) + len(b):
            continue
        apart = torch.cat([a, b])
        scale = apart.abs().nan_to_num(0.0, 0.0, 0.0).amax()
        near = (both - apart).abs() <= torch.finfo(both.dtype).eps ** 0.5 * scale
        if not bool((near | (both == apart) | apart.isnan()).all()):
            return False
    return True


def _tensors(value: Any) -> Iterator[Tensor]:
    for t in pytree.tree_leaves(value):
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) and t.numel():
            yield t.detach()
