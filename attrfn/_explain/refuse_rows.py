"""Errors of a model on copies of the batch that the rule for bound tensors may have caused."""

from __future__ import annotations

from attrfn._copies.batch import bound_tensors, unmarked_rows
from attrfn._model.bound import rows_of
from attrfn._torch.typing import ModelFn


def refuse_rows(error: RuntimeError, bound: ModelFn, batch: int, copies: int) -> None:
    """Name the rule by which tensors were repeated, if that may be why copies of a batch failed.

    Raises:
        ValueError: A bound tensor without a mark has as many rows as the batch, or as much in
            another dimension, and sizes did not fit.
    """
    if copies == 1 or "size" not in str(error):
        return
    if found := unmarked_rows(bound, batch):
        names = " and ".join(dict.fromkeys([name for name, _ in found if name])) or "what"
        raise ValueError(
            f"the model failed on {copies} copies of the batch, where {names} functools.partial "
            f"binds was repeated, because its {batch} rows are as many as the examples: if they "
            "are not rows of examples, bind attrfn.shared(tensor), or use chunk_size=1"
        ) from error
    for name, t in bound_tensors(bound):
        if rows_of(t) is None and batch in t.shape[1:]:
            dim = t.shape.index(batch, 1)
            raise ValueError(
                f"the model failed on {copies} copies of the batch, where {name or 'what'} "
                f"functools.partial binds, of shape {tuple(t.shape)}, stayed as it is: if "
                f"dimension {dim} is that of the examples, bind "
                f"attrfn.per_example(tensor, dim={dim})"
            ) from error
