"""Models of ONNX, which onnxruntime runs forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._torch.extras import need
from attrfn._torch.guard import first_line
from attrfn._torch.say import say
from attrfn.programs._files import hash_of
from attrfn.programs._forward import ForwardOnly
from attrfn.programs._groups import Rows, State, in_groups
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

_REMEDY = "export it with a dynamic batch, as dynamic_shapes= of torch.onnx.export says it"


class Input(NamedTuple):
    """What a model expects of one input.

    Attributes:
        name: Its name.
        sizes: Its sizes; a dynamic one is not an int.
        dtype: Its type.
    """

    name: str
    sizes: tuple[Any, ...]
    dtype: torch.dtype

    def fixed(self, value: Tensor) -> bool:
        """Whether a tensor fits, but for its number of rows.

        Raises:
            ValueError: It does not fit.
        """
        pairs = list(zip(self.sizes, value.shape, strict=False))
        wrong = [i for i, (n, m) in enumerate(pairs) if isinstance(n, int) and n > 0 and n != m]
        if value.ndim != len(self.sizes) or wrong not in ([], [0]):
            raise ValueError(
                f"input {self.name!r} of the model of ONNX has shape {tuple(value.shape)}, "
                f"expected ({', '.join(map(str, self.sizes))}): give these sizes, or export it "
                "with dynamic ones"
            )
        return wrong == [0]


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
        ImportError: onnxruntime is not installed.
        ValueError: onnxruntime cannot read it, or an input or output is of a type that torch lacks.
    """

    attrfn_without_layers = "a model of ONNX"

    def __init__(self, source: Any, outputs: Outputs) -> None:
        session = source if is_session(source) else _session(source)
        state = State(session, None if session is source else source)
        self.inputs = [_input(given) for given in session.get_inputs()]
        found = {out.name: out.type for out in session.get_outputs()}
        self.names = _names(found, outputs)
        self.alone = isinstance(outputs, (int, str)) or (outputs is None and len(found) == 1)
        contents = hash_of(source) if isinstance(source, Path) else repr((self.inputs, found))
        super().__init__(outputs, state, contents)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs for some arguments."""
        flat = self._in_order(args, kwargs)
        split = [given.fixed(value) for given, value in zip(self.inputs, flat, strict=True)]
        pairs = {
            (one.sizes[0], len(value))
            for one, value, other in zip(self.inputs, flat, split, strict=True)
            if other
        }
        if len(pairs) > 1:
            raise ValueError(
                "the inputs of the model of ONNX have different numbers of rows, got "
                f"{', '.join(f'{n} for {m}' for m, n in sorted(pairs))}: give each a row for each "
                "example"
            )
        if not pairs:
            out = self._once(flat)
        else:
            fixed, given = pairs.pop()
            rows = Rows(fixed, given, split, _REMEDY)
            out = in_groups(self._once, flat, rows, self.state)
        return out[0] if self.alone else out

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        if args and isinstance(args[0], Mapping):  # a dict of inputs by name
            args, kwargs = args[1:], {**args[0], **kwargs}
        names = [given.name for given in self.inputs]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(names) or named.keys() != set(names):
            raise ValueError(
                f"the model of ONNX has the inputs {', '.join(names)}, got {len(args)} by place "
                f"and {', '.join(kwargs) or 'none'} by name: give each once, in this order or by "
                "name"
            )
        for given in self.inputs:
            value = named[given.name]
            if not isinstance(value, Tensor) or value.dtype != given.dtype:
                raise ValueError(
                    f"input {given.name!r} of the model of ONNX is {say(value)}, expected a tensor "
                    f"of {given.dtype}: convert it with .to({given.dtype})"
                )
        return [named[name] for name in names]

    def _once(self, flat: list[Tensor]) -> tuple[Tensor, ...]:
        feed = {
            given.name: value.detach().cpu().contiguous().numpy()
            for given, value in zip(self.inputs, flat, strict=True)
        }
        try:
            found = self.state.model.run(self.names, feed)
        except Exception as error:  # onnxruntime has classes of its own
            raise ValueError(f"onnxruntime failed: {first_line(error)[:250]}") from error
        device = flat[0].device if flat else None
        return tuple([torch.as_tensor(array).to(device) for array in found])


def _input(given: Any) -> Input:
    if given.type not in _TYPES:
        raise ValueError(
            f"input {given.name!r} of the model of ONNX is of {given.type}, expected one of "
            f"{', '.join(_TYPES)}: convert the model"
        )
    return Input(given.name, tuple(given.shape), _TYPES[given.type])


def _names(found: Mapping[str, str], outputs: Outputs) -> list[str]:
    """The names of the outputs that are wanted, from the types of all.

    Raises:
        ValueError: There is no such output, or it is not a tensor of numbers.
    """
    wanted: Sequence[int | str] = [*found]
    if outputs is not None:
        wanted = [outputs] if isinstance(outputs, (int, str)) else outputs
    names: list[str] = []
    for one in wanted:
        there = isinstance(one, int) and -len(found) <= one < len(found)
        name = [*found][one] if isinstance(one, int) and there else str(one)
        if name not in found:
            raise ValueError(
                f"outputs names {one!r}, and the model of ONNX has {len(found)} output(s), named "
                f"{', '.join(found)}: expected a place or a name among these"
            )
        if found[name] not in _TYPES:
            raise ValueError(
                f"output {name!r} of the model of ONNX is a {found[name]}, expected a tensor of "
                "numbers: choose others with outputs=, or export the model without it"
            )
        names.append(name)
    return names


def _session(source: Any) -> Any:
    runtime = need("onnxruntime", "a model of ONNX", "onnx")
    data = str(source) if isinstance(source, Path) else source.SerializeToString()
    try:
        return runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = source if isinstance(source, Path) else "the ModelProto"
        raise ValueError(
            f"onnxruntime cannot read {name} ({first_line(error)[:150]}): it is damaged, or needs "
            "a newer onnxruntime"
        ) from error
