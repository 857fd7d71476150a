"""What a target finds in outputs, and what messages say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def not_one_per_row(value: Tensor, rows: int, name: str, other: str = "") -> str:
    """The message for a callable target that does not return one value for each row."""
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


def complex_outputs(outputs: Tensor, giver: str, name: str) -> str:
    """The message for complex outputs, which are not one real number each."""
    return (
        f"{giver} returned {outputs.dtype}, expected real numbers: take .abs(), .real, .imag "
        f"or .angle() in {name}, such as {name}=lambda out: out.abs()[:, 0]"
    )


def main_tensor(outputs: Any) -> Any:
    """The logits, where outputs have a tensor of that name as those of transformers do."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    return logits if isinstance(logits, Tensor) else outputs


def picks(outputs: Any, chosen: Any) -> str:
    """A callable that picks from outputs that are not a tensor, as text."""
    index = chosen[0] if isinstance(chosen, tuple) and len(chosen) == 1 else 1
    index = index if isinstance(index, int) else 1
    if not isinstance(outputs, Mapping):
        return f"lambda out: out[0][:, {index}]"
    key = next((k for k, v in outputs.items() if isinstance(v, Tensor)), "logits")
    return (
        f"lambda o: o.{key}[:, {index}]"
        if hasattr(outputs, str(key))
        else (f"lambda o: o[{key!r}][:, {index}]")
    )


def shown(value: Any) -> str:
    """A value that is not too long, and its type."""
    text = repr(value) if not isinstance(value, Tensor) else ""
    kind = type(value).__name__
    return f"a {kind}" if not text or len(text) > 40 or "\n" in text else f"{text} ({kind})"


def index_text(index: tuple[Any, ...]) -> str:
    """An index as the caller gave it."""
    return str(index[0]) if len(index) == 1 else str(tuple(index))
