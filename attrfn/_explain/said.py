"""What messages say of the values of a target."""

from __future__ import annotations

from torch import Tensor


def not_one_per_row(value: Tensor, rows: int, name: str, other: str = "") -> str:
    """What is said of a callable target that does not return one value for each row."""
    if value.ndim and rows and value.shape[0] == rows:
        many = value.shape[1:].numel()
        hint = f"choose one of the {many} of each row, or sum them"
    else:
        hint = "it may see several copies of the batch at once, so bind tensors of the examples "
        hint += "with functools.partial"
    return (
        f"the callable {name} returned shape {tuple(value.shape)} for {rows} row(s), expected one "
        f"value per row{other}: {hint}"
    )
