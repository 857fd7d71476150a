"""``attrfn layers``: what a model is made of, and what ``--layer`` takes."""

import functools
from typing import Any

import optree
import torch
from torch import Tensor

import attrfn
from attrfn._explain.tree import as_dicts
from attrfn._torch.typing import ModelFn, Tree
from attrfn.cli import _options as o
from attrfn.cli._columns import parse_columns
from attrfn.cli._command import Answer, UsageError, command
from attrfn.cli._data import Ask, open_data
from attrfn.cli._images import look
from attrfn.cli._model import dtype_of, load_model, root_of
from attrfn.cli._rows import first_rows
from attrfn.cli._say import line, table

_ROWS = 2  # so that a dimension of examples shows


@command
def layers(
    model: o.Model,
    data: o.MaybeData = None,
    input_shape: o.InputShape = None,
    input_type: o.InputType = "float",
    columns: o.Columns = None,
    max_length: o.MaxLength = None,
    image_size: o.ImageSize = None,
    device: o.Device = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> Answer:
    """List the layers of a model: what --layer takes.

    With DATA or --input-shape also the shapes of their outputs, for B examples.
    """
    if data is not None and input_shape is not None:
        raise UsageError("DATA and --input-shape are both given, expected one")
    shape = None if input_shape is None else _shape(input_shape)
    kind = _kind(input_type)
    ask = Ask(data or "", parse_columns(columns), None, max_length, look(image_size, None, None))
    loaded = load_model(model, device)
    model_fn, inputs = loaded.model, None
    if shape is not None:
        dtype = torch.int64 if kind == "int" else dtype_of(loaded.model) or torch.float32
        inputs = torch.zeros(_ROWS, *shape, dtype=dtype, device=device)
    if data is not None:
        batch = first_rows(loaded.model, open_data(ask, loaded), _ROWS)
        model_fn, inputs = batch.model_fn, batch.inputs
    return _answer(layer_rows(model_fn, inputs), inputs is not None)


def _shape(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--input-shape is {text!r}, expected whole numbers such as 3,224,224")
    return [int(part) for part in parts]


def _kind(text: str) -> str:
    if text not in ("float", "int"):
        raise UsageError(f"--input-type is {text!r}, expected float or int")
    return text


def layer_rows(model_fn: ModelFn, inputs: Tree) -> list[dict[str, Any]]:
    """A row for each layer, in the order of the model.

    Raises:
        ValueError: The model shows no modules.
    """
    root = root_of(model_fn)
    named: dict[str, Any] = {}
    if root is not None:
        named = {name: m for name, m in root.named_modules() if name}
        for name in getattr(root, "node_names", ()):  # the operations of an exported program
            named.setdefault(name, None)
    if what := getattr(model_fn, "attrfn_without_layers", ""):  # a program that only runs forward
        raise ValueError(f"MODEL is {what}, which has no layers")
    if not named:
        raise ValueError("MODEL shows no layers: give the module itself, not a function around it")
    rows, values = 0, {}
    if inputs is not None:
        args = _enough(model_fn, inputs if isinstance(inputs, tuple) else (inputs,))
        tree: Any = args
        leaves: list[Any] = optree.tree_leaves(tree)
        rows = len(leaves[0])
        with torch.no_grad():
            model_fn(*args)  # what is wrong with the inputs is said once, and by the model
            values = _values(model_fn, args, list(named))
    return [
        {
            "layer": name,
            "type": "operation" if module is None else type(module).__name__,
            "parameters": 0 if module is None else sum(p.numel() for p in module.parameters()),
            "output": _shapes(values[name], rows) if name in values else None,
            "called": name in values if inputs is not None else None,
        }
        for name, module in named.items()
    ]


def _enough(model_fn: ModelFn, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs, over and over where a program takes a fixed number of rows."""
    fixed = getattr(model_fn, "attrfn_rows", lambda *args: None)(*args)
    if fixed is None:
        return args

    def filled(t: Tensor) -> Tensor:
        return t[torch.arange(fixed, device=t.device) % len(t)]

    tree: Any = args
    found: Any = optree.tree_map(filled, tree)
    return tuple(found)


def _values(model_fn: ModelFn, args: tuple[Any, ...], names: list[str]) -> dict[str, Any]:
    """What the layers that are called return, of one run."""
    found: dict[str, Any] = {}

    def note(name: str, value: Any, seen: Any) -> Any:
        found.setdefault(name, value)
        return value

    known = [name for name in names if _has(model_fn, name)]
    edits: dict[Any, Any] = {name: functools.partial(note, name) for name in known}
    try:
        attrfn.intervene(model_fn, edits)(*args)
    except ValueError as error:
        if "was not passed" not in str(error):  # what the run ends with where one is not called
            raise
    return found


def _has(model_fn: ModelFn, name: str) -> bool:
    """Whether a layer has a value: not all modules of an exported program have one."""
    try:
        attrfn.intervene(model_fn, {name: None})
    except ValueError:
        return False
    return True


def _shapes(value: Any, rows: int) -> list[list[int | str]]:
    """Shapes of tensors, with B for the examples."""
    leaves: list[Any] = optree.tree_leaves(as_dicts(value))
    return [
        [("B" if i == 0 and n == rows > 1 else n) for i, n in enumerate(t.shape)]
        for t in leaves
        if isinstance(t, Tensor)
    ]


def _answer(rows: list[dict[str, Any]], known: bool) -> Answer:
    def show() -> None:
        columns = ["--layer", "type", "parameters", *(["output"] if known else [])]
        table("", columns, [_cells(row, known) for row in rows])
        line(f"{len(rows):,} layers; a layer counts the parameters of those in it")

    return Answer({"layers": rows}, show)


def _cells(row: dict[str, Any], known: bool) -> list[Any]:
    cells = [row["layer"], row["type"], row["parameters"]]
    if not known:
        return cells
    shapes = [f"({', '.join(map(str, s))}{',' * (len(s) == 1)})" for s in row["output"] or ()]
    return [*cells, " ".join(shapes) if row["called"] else "is not called"]
