"""Whether copies of a batch may be evaluated together: not where rows depend on each other."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attrfn._copies.batch import unmarked_rows
from attrfn._copies.memory import out_of_memory
from attrfn._model.hidden import hidden_modules
from attrfn._torch import pytree
from attrfn._torch.autodiff import transforming
from attrfn._torch.compiling import makes_fakes
from attrfn._torch.explanation import Again, Explanation, current
from attrfn._torch.units import using
from attrfn._torch.warn import warn

# Of each model, or of the code of a function: in which modes it has been checked. A model whose
# rows depend on each other is not kept: each call of a method finds it again, and says so.
_CHECKED: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def check_bound(run: Callable[[int], object], batch: int, what: Any) -> None:
    """Check that copies may be evaluated together where bound tensors count as rows for their size.

    It is for what :func:`check_rows` does not see: runs outside of chunks, or inside of transforms.

    Args:
        run: From a number of copies of the batch to what a function of theirs returns.
        batch: The number of examples.
        what: What tells the function from others of the same model.
    """
    one = current()
    if one is None or one.one_by_one or transforming() or makes_fakes() or not _unsure(one, batch):
        return

    def evaluate(i: slice) -> None:
        value = run(i.stop - i.start)
        if one.outputs is not None:
            one.outputs.append(value)

    with using(None):
        check_rows(one, evaluate, 2, batch, what)


def check_rows(
    one: Explanation,
    evaluate: Callable[[slice], object],
    n: int,
    batch: int,
    what: Any = None,
) -> None:
    """Evaluate two of n copies together and one by one, once for each model.

    Where the model returns something else, the method starts again: without the rows of bound
    tensors that are as long as the batch by chance, or else with each copy alone.
    """
    # Batch norms are found as modules, in every call. Other ways to mix rows, such as
    # x - x.mean(0), a softmax over the batch or F.batch_norm, show in the outputs alone. The copies
    # are from the middle, because the first ones of a path are hardly different.
    anchors, way = _places(one.model)
    unsure = _unsure(one, batch)
    if unsure:
        way = (way, what, batch, *[(name, t.shape) for name, t in unsure])
    i = n // 2 - 1

    def together() -> list[Any]:
        return _outputs(one, evaluate, [slice(i, i + 2)], anchors, way)

    agree, apart = False, []
    try:
        apart = _outputs(one, evaluate, [slice(i, i + 1), slice(i + 1, i + 2)], anchors, way)
        agree = _all_agree(together(), apart, anchors)
    except Exception as error:
        # Memory ran out, so that one copy at a time is what will run; or the model fails with a few
        # copies, as one does whose number of steps depends on the batch. If it fails with all of
        # them too, that run says so.
        if not (unsure and apart) or out_of_memory(error):
            return
    if not agree:
        share_by_runs(one, unsure, lambda: _all_agree(together(), apart, anchors))
        warn(_mixing(unsure))
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


def _mixing(unsure: list[tuple[str, Tensor]]) -> str:
    """The message where copies give something else together than alone."""
    if unsure:
        names = " and ".join(dict.fromkeys([name or "what" for name, _ in unsure]))
        return (
            f"the model returns something else for a batch alone than for copies of it with the "
            f"rows of {names} that functools.partial binds, so each copy is evaluated alone: mark "
            "what is bound with attrfn.per_example(tensor, dim) or attrfn.shared(tensor)"
        )
    return (
        "the model returns something else for a batch alone than for several copies of it "
        "together, so its rows depend on each other (as in a mean over the batch): each "
        "copy is evaluated alone, and the batch is explained as a whole"
    )


def _unsure(one: Explanation, batch: int) -> list[tuple[str, Tensor]]:
    """The bound tensors that count as rows for their size alone, with their names."""
    found = [pair for f in (one.model, *one.targets) for pair in unmarked_rows(f, batch)]
    return list({id(t): (name, t) for name, t in found}.values()) if batch else []


def share_by_runs(
    one: Explanation, unsure: list[tuple[str, Tensor]], agrees: Callable[[], bool]
) -> None:
    """Start again without the rows of some bound tensors, if runs agree without them.

    Args:
        one: The call of a method.
        unsure: The tensors, with their names.
        agrees: Whether runs on copies of the batch, together and one by one, agree now.
    """
    before, found = one.shared, False
    for some in (unsure, *([pair] for pair in unsure if len(unsure) > 1)):
        one.shared = {**before, **{id(t): t for _, t in some}}
        try:
            found = bool(some) and agrees()
        except Exception:  # sizes do not fit
            found = False
        finally:
            one.shared = one.shared if found else before
        if found:
            names = " and ".join(dict.fromkeys([name or "what" for name, _ in some]))
            warn(
                f"{names} that functools.partial binds has as many rows as there are examples, and "
                "a run with two copies of the batch shows that they are not rows of examples: bind "
                "attrfn.shared(tensor), which says so in compiled code and transforms, too"
            )
            raise Again


def _places(model: Any) -> tuple[list[Any], Any]:
    """The parts by which a model function is recognised, and its code and modes."""
    # A game or a score of attrfn.text is made for each call, and its rows are those of the
    # model that it asks.
    while isinstance(model, functools.partial) or hasattr(model, "asks_model"):
        model = model.func if isinstance(model, functools.partial) else model.asks_model
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


def _coarsest(anchors: list[Any]) -> float:
    """The rounding of the weights, which outputs in a finer type have, too."""
    modules = [a for a in anchors if isinstance(a, nn.Module)]
    kinds = {p.dtype for m in modules for p in m.parameters() if p.is_floating_point()}
    return max([float(torch.finfo(dtype).eps) for dtype in kinds], default=0.0)


def _all_agree(together: list[Any], apart: list[Any], anchors: list[Any]) -> bool:
    """Whether runs on two copies together gave what those on one after the other gave."""
    half = len(together)
    if len(apart) != 2 * half:  # other chunks, which tell nothing
        return True
    eps = _coarsest(anchors) if half else 0.0
    pairs = zip(together, apart[:half], apart[half:], strict=True)
    return all(agree(*pair, eps) for pair in pairs)


def agree(together: Any, first: Any, second: Any, eps: float = 0.0) -> bool:
    """Whether outputs are equal up to rounding, which depends on the size of a batch.

    Args:
        together: What the model returns for two copies.
        first: What it returns for the first of them alone.
        second: What it returns for the second.
        eps: The relative rounding of what the model computes, if it exceeds that of the outputs.
    """
    for both, a, b in zip(_tensors(together), _tensors(first), _tensors(second), strict=True):
        if a.ndim == 0 or len(both) != len(a) + len(b):
            continue
        apart = torch.cat([a, b])
        scale = apart.abs().nan_to_num(0.0, 0.0, 0.0).amax()
        near = (both - apart).abs() <= max(torch.finfo(both.dtype).eps, eps) ** 0.5 * scale
        if not bool((near | (both == apart) | apart.isnan()).all()):
            return False
    return True


def _tensors(value: Any) -> Iterator[Tensor]:
    for t in pytree.tree_leaves(value):
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) and t.numel():
            yield t.detach()
