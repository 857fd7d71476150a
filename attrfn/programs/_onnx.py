"""Models of ONNX, which onnxruntime runs forward."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attrfn._torch.guard import first_line
from attrfn._torch.say import say
from attrfn.programs._extras import need
from attrfn.programs._forward import ForwardOnly
from attrfn.programs._groups import Independent, Rows, in_groups
from attrfn.programs._outputs import Outputs

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
"""The types of ONNX that NumPy and torch both have."""

_REMEDY = "export it with a dynamic batch, such as torch.onnx.export(..., dynamic_shapes=...)"


def is_session(value: Any) -> bool:
    """Whether this is an InferenceSession of onnxruntime."""
    return all(hasattr(value, name) for name in ("get_inputs", "get_outputs", "run_with_iobinding"))


def is_proto(value: Any) -> bool:
    """Whether this is a ModelProto of onnx."""
    return type(value).__name__ == "ModelProto" and hasattr(value, "SerializeToString")


class Onnx(ForwardOnly):
    """A model of ONNX as a model function: inputs by order or by name, on the CPU.

    Args:
        source: A path, a ModelProto, or an InferenceSession, which may use other providers.
        outputs: Which outputs it returns.

    Raises:
        ValueError: onnxruntime cannot read it, or an input or output is of a type that torch lacks.
    """

    attrfn_without_layers = "a model of ONNX"

    def __init__(self, source: Any, outputs: Outputs) -> None:
        super().__init__(outputs)
        self.session = source if is_session(source) else _session(source)
        self.inputs = self.session.get_inputs()
        self.names, self.several = self._names(outputs)
        self.known = Independent()
        for given in self.inputs:
            if given.type not in _TYPES:
                raise ValueError(
                    f"input {given.name!r} of the model of ONNX is of {given.type}, which NumPy "
                    f"cannot hold: convert the model to one of {', '.join(_TYPES)}"
                )

    def _names(self, outputs: Outputs) -> tuple[list[str], bool]:
        """The names of the outputs that are wanted, and whether they come as a tuple."""
        found = {out.name: out.type for out in self.session.get_outputs()}
        listed = [*found] if outputs is None else outputs
        several = not isinstance(listed, (int, str)) and (outputs is not None or len(found) > 1)
        names = []
        for one in [listed] if isinstance(listed, (int, str)) else listed:
            place = isinstance(one, int) and -len(found) <= one < len(found)
            name = [*found][one] if place else one  # type: ignore[index]
            if name not in found:
                raise ValueError(
                    f"outputs names {one!r}, and the model of ONNX has {len(found)} output(s), "
                    f"named {', '.join(found)}: expected a place or a name among these"
                )
            if found[name] not in _TYPES:  # type: ignore[index]
                raise ValueError(
                    f"output {name!r} of the model of ONNX is a {found[name]}, expected a "  # type: ignore[index]
                    "tensor of numbers: choose others with outputs=, or export the model without it"
                )
            names.append(name)
        return names, several  # type: ignore[return-value]

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs for some arguments."""
        flat = self._in_order(args, kwargs)
        rows = self._rows(flat)
        out = self._once(flat) if rows is None else in_groups(self._once, flat, rows, self.known)
        return out if self.several else out[0]

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        if len(args) == 1 and isinstance(args[0], Mapping):  # a dict of inputs by name
            args, kwargs = (), {**args[0], **kwargs}
        names = [given.name for given in self.inputs]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(names) or named.keys() != set(names):
            raise ValueError(
                f"the model of ONNX has the inputs {', '.join(names)}, got {len(args)} by place "
                f"and {', '.join(kwargs) or 'none'} by name: give each once, in this order or by "
                "name"
            )
        flat = [named[name] for name in names]
        for given, value in zip(self.inputs, flat, strict=True):
            expected = _TYPES[given.type]
            if not isinstance(value, Tensor) or value.dtype != expected:
                raise ValueError(
                    f"input {given.name!r} of the model of ONNX is {say(value)}, expected a tensor "
                    f"of {expected}: convert it with .to({expected})"
                )
        return flat

    def _rows(self, flat: list[Tensor]) -> Rows | None:
        """How many rows it takes and got, where these are not the same."""
        found: Rows | None = None
        split = []
        for given, value in zip(self.inputs, flat, strict=True):
            sizes = given.shape
            wrong = [
                i
                for i, (size, n) in enumerate(zip(sizes, value.shape, strict=False))
                if isinstance(size, int) and size > 0 and size != n
            ]
            split.append(wrong == [0] and len(sizes) == value.ndim)
            rows = Rows(sizes[0], value.shape[0], split, _REMEDY) if split[-1] else None
            if (wrong or len(sizes) != value.ndim) and (
                rows is None or (found is not None and rows[:2] != found[:2])
            ):
                raise ValueError(
                    f"input {given.name!r} of the model of ONNX has shape {tuple(value.shape)}, "
                    f"expected {tuple(sizes)}: give these sizes, or export it with dynamic ones"
                )
            found = rows or found
        return found

    def _once(self, flat: list[Tensor]) -> Any:
        feed = {
            given.name: value.detach().cpu().contiguous().numpy()
            for given, value in zip(self.inputs, flat, strict=True)
        }
        try:
            found = self.session.run(self.names, feed)
        except Exception as error:  # onnxruntime has classes of its own
            raise ValueError(f"onnxruntime failed: {first_line(error)[:250]}") from error
        device = flat[0].device if flat else None
        return tuple([torch.as_tensor(array).to(device) for array in found])


def _session(source: Any) -> Any:
    runtime = need("onnxruntime", "a model of ONNX")
    data = str(source) if isinstance(source, Path) else source.SerializeToString()
    try:
        return runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = source if isinstance(source, Path) else "the ModelProto"
        raise ValueError(
            f"onnxruntime cannot read {name} ({first_line(error)[:150]}): it is damaged, or needs "
            "a newer onnxruntime"
        ) from error
