"""The explained function on copies of a batch in which features are replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from attrfn._copies.batch import flat_rows, repeat_bound, wide
from attrfn._copies.chunks import Chunks, at_once, check_chunks, over_chunks
from attrfn._copies.memory import Peak, unmeasured_copies
from attrfn._copies.sizes import Took
from attrfn._explain.baseline import fill_baselines
from attrfn._explain.black_box import as_tensors, evaluated, fit_for, has_no_rows, on_whole
from attrfn._explain.explain import explain, repeat_chosen, vmapped
from attrfn._explain.interpolate import mix
from attrfn._explain.masked_parts import in_rows, rows_at_once
from attrfn._explain.masked_unit import outcome_in_unit
from attrfn._explain.output import Outcome, outcome
from attrfn._explain.refuse_rows import refuse_rows
from attrfn._explain.shared import mark_of, marked
from attrfn._explain.target import Chosen
from attrfn._explain.tree import call_model, each, flatten, map_tensors
from attrfn._torch.autodiff import transforming, twice_differentiable
from attrfn._torch.private import reads_values
from attrfn._torch.typing import Baselines, Leaves, ModelFn, Target, Tree
from attrfn._torch.units import active_units
from attrfn._torch.warn import warn

# Where fewer copies than this fit before anything is measured, the inputs are large, and the run on
# x is measured. Elsewhere the first chunk is measured while it runs. 16 was not tuned: a smaller
# number risks a first chunk that is too long, a larger one measures models that are so small that
# the measurement counts.
_FEW = 16
T = TypeVar("T")
Part = tuple[Leaves, Callable[[Tensor], T]]


class Masked(NamedTuple):
    """A model function and its inputs, whose features can be replaced by baselines.

    Attributes:
        model: The model function, bound to private copies.
        x: The leaves of the inputs, each (B, ...).
        x0: Those of the baselines.
        rebuild: From leaves to the inputs' tree.
        batch: B.
        chosen: The checked target.
        create_graph: Whether ``.backward()`` on the result reaches inputs and parameters.
        chunks: How copies are evaluated.
        full: f(x), (R, K...): one row per example, or a single one for the whole batch.
        per_batch: Whether the model gives one value for the whole batch.
        dtype: That of the attributions of inputs that have no floating one.
        integers: Whether the outputs are integers.
        one_copy: The bytes that a copy of the batch takes, if they have been measured.
        whole: Whether the inputs have no dimension of examples, and are one example as they are.
        rows: How many rows of a single copy of the batch run at once; None: all.
    """

    model: ModelFn
    x: Leaves
    x0: Leaves
    rebuild: Callable[[Sequence[Tensor]], Tree]
    batch: int
    chosen: Chosen
    create_graph: bool
    chunks: Chunks
    full: Tensor
    per_batch: bool
    dtype: torch.dtype
    integers: bool
    one_copy: Took | None
    whole: bool
    rows: int | None = None

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return self.x[0].device

    @property
    def empty(self) -> Tensor:
        """f(x0), (R, K...)."""
        return self.values(tuple([b.clone()[None] for b in self.x0]))[0]

    def over(self, n: int, masks: Callable[[slice], Leaves]) -> Tensor:
        """Values at ``x0 + z (x - x0)`` for n copies of the batch, (n, R, K...).

        Args:
            n: The number of copies.
            masks: From a slice of the copies to their z, per leaf (S, 1 or B, ...); booleans, or
                numbers from 0 to 1.
        """
        masks = at_once(masks, n, n * sum(t.numel() for t in self.x))
        return self.at(n, lambda i: self.mixed(masks(i)))

    def at(self, n: int, points: Callable[[slice], Leaves]) -> Tensor:
        """Values (n, R, K...) at n copies of the batch, from slices to fresh leaves (S, B, ...)."""
        if n == 0:
            return self.full[None][:0]
        found = self.collect(n, lambda i: (points(i), lambda values: ([values],)), add_lists)
        return torch.cat(found[0])

    def collect(self, n: int, part: Callable[[slice], Part[T]], merge: Callable[[T, T], T]) -> T:
        """A reduction of the values at n copies of the batch, chunk by chunk.

        Args:
            n: The number of copies, at least 1.
            part: From a slice of the copies to their points, fresh leaves (S, B, ...), and to what
                follows from the values (S, R, K...) there.
            merge: From two of those to one.
        """
        p = self._replace(rows=rows_at_once(self, n))

        def run(i: slice) -> T:
            points, finish = part(i)
            return finish(p.values(points))

        # A model with one value for the whole batch would give a single one for all folded copies.
        one_by_one = self.per_batch and self.chunks.batching != "vmap"
        chunks = self.chunks._replace(size=1) if one_by_one else self.chunks
        return over_chunks(run, merge, n, chunks, self.device, self.one_copy, self.x)

    def mixed(self, masks: Leaves) -> Leaves:
        """The points ``x0 + z (x - x0)``, (S, B, ...)."""
        return each(mix, masks, self.x, self.x0)

    def values(self, points: Leaves) -> Tensor:
        """Values at S copies of the batch (S, B, ...), as (S, R, K...) in a type to sum in."""
        return self._evaluate(points)[0]

    def _evaluate(self, points: Leaves) -> Outcome:
        copies = points[0].shape[0]
        if self.batch == 0:
            return Outcome(self.full.expand(copies, *self.full.shape), False, self.dtype)
        if (units := active_units()) is not None:
            return outcome_in_unit(self, units, points, self._evaluate)
        if self.rows is not None and copies == 1:
            return in_rows(self, points)
        per_batch, dtype, integers = False, self.dtype, False

        def rows(leaves: Leaves, copies: int) -> Tensor:
            nonlocal per_batch, dtype, integers  # not returned: vmap passes tensors only
            model = repeat_bound(self.model, self.batch, copies)
            chosen = repeat_chosen(self.chosen, self.batch, copies)
            try:
                outputs = call_model(model, self.rebuild(leaves), fresh=True)
            except RuntimeError as error:
                refuse_rows(error, self.model, self.batch, copies)
                raise
            found = outcome(outputs, chosen, self.batch, copies, "target")
            values, per_batch, dtype, integers = found
            return values

        with _graph(self.create_graph), twice_differentiable(self.create_graph):
            if self.chunks.batching == "vmap":
                values = _each_copy(lambda z: rows(z, 1), points)
            else:
                values = rows(flat_rows(points), copies)
                values = values.reshape(copies, len(values) // copies, *values.shape[1:])
        # What is selected is copied: as a view it would keep all outputs of each chunk.
        values = values.to(wide(values.dtype), copy=self.chosen is not None)
        return Outcome(values, per_batch, wide(dtype), integers)

    def check_rows(self, keys: int) -> None:
        """Refuse a key for each example where one value stands for all of them.

        Raises:
            ValueError: There are several keys, and one value for the whole batch.
        """
        if keys > 1 and self.per_batch:
            raise ValueError(
                f"key has {keys} rows, expected a single key (2,) for a model that returns one "
                "value for the whole batch"
            )

    def result(self, leaves: Sequence[Tensor]) -> Tree:
        """The inputs' tree, in the inputs' dtypes where they are floating."""
        found = [
            self._own(self.detached(self._as(t.to(x.device), x)), self.whole)
            for t, x in zip(leaves, self.x, strict=True)
        ]
        return self.rebuild(marked(found, mark_of(leaves)))

    def number(self, t: Tensor) -> Tensor:
        """Scores in the dtype of the inputs' first tensor, or of the outputs if it has integers."""
        return self._own(self.detached(self._as(t, self.x[0])))

    def _own(self, t: Tensor, whole: bool = False) -> Tensor:
        """Without the one row of a whole batch, if its values or inputs have other dimensions."""
        return t[0] if whole or (self.per_batch and self.full.ndim > 1) else t

    def _as(self, t: Tensor, x: Tensor) -> Tensor:
        """In the dtype of an input, or of the outputs if that is of integers."""
        found = t.to(x.dtype if x.is_floating_point() else self.dtype)
        # Fractions are rounded like any others, integers must not lose digits.
        if self.integers and found.dtype != t.dtype and t.numel() and not transforming():
            size = t.detach().abs().max()
            if size > 1 / torch.finfo(found.dtype).eps and bool((found != t).any()):
                warn(
                    f"the outputs are integers, and their attributions up to {float(size):g} are "
                    f"rounded to the inputs' {found.dtype}: give the inputs in torch.float64"
                )
        return found

    def detached(self, t: Tensor) -> Tensor:
        """Without a graph, unless one is wanted."""
        return t if self.create_graph or transforming() else t.detach()


def masked(
    model_fn: ModelFn,
    inputs: Tree,
    target: Target,
    baselines: Baselines,
    chunks: Chunks,
    *,
    create_graph: bool = False,
) -> Masked:
    """Check the arguments that every perturbation method has in common, and evaluate f(x).

    Raises:
        TypeError: The target or the outputs are of an unknown kind.
        ValueError: The batch sizes disagree, or the baselines do not fit.
    """
    check_chunks(chunks)
    given = as_tensors(inputs)
    inputs = fit_for(baselines, given)
    whole = (target is None or callable(target)) and has_no_rows(flatten(inputs)[0])
    inputs = map_tensors(lambda t: t[None], inputs) if whole else inputs
    model, x, rebuild, batch, chosen, *_ = explain(
        model_fn,
        inputs,
        target,
        create_graph=create_graph,
        differentiated=False,
        forward_only=not create_graph,
    )
    model = on_whole(model) if whole else model
    x0 = fill_baselines(baselines, inputs, x)
    x0 = x0 if create_graph or transforming() else tuple([t.detach() for t in x0])
    nothing = torch.zeros(0, device=x[0].device, dtype=_floating(x[0].dtype))
    p = Masked(
        *(model, x, x0, rebuild, batch, chosen, create_graph, chunks),
        full=nothing,
        per_batch=False,
        dtype=nothing.dtype,
        integers=False,
        one_copy=None,
        whole=whole,
    )
    return _with_values(p, None if inputs is given else given)


def _with_values(p: Masked, given: Tree | None) -> Masked:
    """With f(x) and what it tells; the inputs as ``given`` if they were changed to fit."""
    # Every method needs f(x). It comes first, because it tells what the copies depend on: whether
    # they can share a batch, in which type to sum them, and how much memory one takes.
    x, unmixed = p.x, tuple([t.clone()[None] for t in p.x])
    measured = p.chunks.size == "auto" and not transforming() and unmeasured_copies(x) < _FEW
    with Peak() if measured else contextlib.nullcontext() as peak:
        if given is None:
            full, per_batch, dtype, integers = p._evaluate(unmixed)
        else:
            full, per_batch, dtype, integers = evaluated(p._evaluate, unmixed, given, p.whole)
    size = sum(t.numel() * t.element_size() for t in x)
    # A copy also holds its mask and its points, which were not made in this run.
    one_copy = None if peak is None else Took(peak.bytes + 2 * size, max(peak.largest, size))
    return p._replace(
        full=full[0], per_batch=per_batch, dtype=dtype, integers=integers, one_copy=one_copy
    )


def _each_copy(rows: Callable[[Leaves], Tensor], points: Leaves) -> Tensor:
    try:
        found: Tensor = vmapped(rows)(*points)
    except RuntimeError as error:
        if not reads_values(error):
            raise
        raise ValueError(
            "batching is 'vmap', but the model reads values (as float(), .item() or if do), "
            "expected tensor operations: use chunk_size=1, which serves any Python model"
        ) from error
    return found


def _floating(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _graph(create_graph: bool) -> contextlib.AbstractContextManager[object]:
    return torch.set_grad_enabled(create_graph or (transforming() and torch.is_grad_enabled()))


def add_lists(a: tuple[list[Tensor], ...], b: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    """Each list of ``a`` followed by that of ``b``, a merge."""
    return tuple([s + t for s, t in zip(a, b, strict=True)])
