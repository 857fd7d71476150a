"""DATA: a file, a folder of images, or a function of the user's."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from attrfn.cli._columns import as_places, with_inputs
from attrfn.cli._command import UsageError
from attrfn.cli._images import ENDINGS, Look, images
from attrfn.cli._locate import is_reference, locate, needs_nothing
from attrfn.cli._model import PICKLES, Loaded, dtype_of
from attrfn.cli._need import need
from attrfn.cli._text import embedding, encode, is_classifier, read_column, read_texts

_TABLES = (".csv", ".tsv", ".parquet")
_KINDS = (*_TABLES, ".safetensors", ".npy", ".npz", ".txt")


class Ask(NamedTuple):
    """What the command line says of the data.

    Attributes:
        spec: The argument DATA.
        columns: Those of ``--columns`` and ``--target label:``.
        baselines: ``--baselines``.
        max_length: ``--max-length``.
        look: How images are prepared.
    """

    spec: str
    columns: dict[str, Any]
    baselines: str | None = None
    max_length: int | None = None
    look: Look | None = None


class Data(NamedTuple):
    """A data set.

    Attributes:
        source: What ``attrfn.data.explain`` takes.
        columns: What it takes as ``columns``.
        kind: ``"text"``, ``"images"`` or ``"numbers"``.
        layer: The layer that embeds the tokens of texts.
        casts: Whether floating inputs are still to become those of the model's type.
    """

    source: Any
    columns: dict[str, Any] | None
    kind: str = "numbers"
    layer: str | None = None
    casts: bool = False


def open_data(ask: Ask, loaded: Loaded) -> Data:
    """The data set that an argument stands for.

    Raises:
        ValueError: It stands for none, or would have to be unpickled.
        FileNotFoundError: There is no such file.
        UsageError: An option does not fit it.
    """
    path = Path(ask.spec)
    if path.is_dir():
        return _folder(path, ask, loaded)
    if not path.is_file():
        return _written(path, ask)
    _check_kind(path, ask.spec)
    if is_classifier(loaded) and ask.columns.get("inputs", "") != "input_ids":
        texts = read_texts(path, ask.columns.get("inputs"))
        if texts is not None:
            return _texts(texts, path, ask, loaded)
    if path.suffix == ".txt":
        raise ValueError(
            f"DATA is {ask.spec!r}, a text, which only a Hugging Face ...ForSequenceClassification "
            "explains here: for language models see attrfn.text.attribute"
        )
    if path.suffix in _TABLES:
        return _table(path, ask)
    columns = dict(ask.columns) or None
    if path.suffix == ".safetensors":
        return Data(str(path), columns, casts=True)
    found = _arrays(path, dtype_of(loaded.model))
    if columns is None and isinstance(found, dict):
        if len(found) != 1:
            raise UsageError(
                f"DATA is {ask.spec!r}, which holds {_some(list(found))}: say with --columns "
                "inputs=NAME which of them are inputs"
            )
        found = next(iter(found.values()))
    return Data(found, columns)


def _check_kind(path: Path, spec: str) -> None:
    """Refuse files that hold no data set.

    Raises:
        ValueError: A file would have to be unpickled, is one image, or is of no known kind.
    """
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"DATA is {spec!r}, a pickle, which can run any code when it is read: save tensors "
            "with safetensors.torch.save_file, arrays with numpy.save"
        )
    if path.suffix.lower() in ENDINGS:
        raise ValueError(f"DATA is {spec!r}, one image: give the folder that holds the images")
    if path.suffix not in _KINDS:
        raise ValueError(
            f"DATA is {spec!r}, expected a folder of images, or a file that ends in "
            f"{', '.join(_KINDS)}"
        )


def _written(path: Path, ask: Ask) -> Data:
    """What a function of the user's returns."""
    if not is_reference(ask.spec):
        raise FileNotFoundError(
            f"DATA is {ask.spec!r}, and there is no such file: give a file, a folder of images or "
            "module:function"
        )
    found = locate(ask.spec, "DATA")
    columns = as_places(ask.columns) or None
    return Data(found() if needs_nothing(found) else found, columns)


def _folder(path: Path, ask: Ask, loaded: Loaded) -> Data:
    found = images(path, loaded.folder, ask.look)
    columns = with_inputs(ask.columns, "image")
    if columns.get("target") == "folder" and not found.folders:
        raise ValueError(
            f"DATA is {ask.spec!r}, whose images are not all in folders, expected a folder for "
            "each label: give --target a number"
        )
    casts = dtype_of(loaded.model) not in (None, torch.float32)  # the type that images have
    return Data(found, columns, "images", casts=casts)


def _table(path: Path, ask: Ask) -> Data:
    """A table, of which only the columns needed are read."""
    if "inputs" not in ask.columns:
        raise UsageError(
            f"DATA is {ask.spec!r}, a table with the columns {_some(_header(path))}: say with "
            "--columns NAME,NAME which of them are inputs"
        )
    if path.suffix == ".parquet":
        return Data(str(path), ask.columns, casts=True)
    frame = _read_csv(path)
    for name in _leaves(ask.columns):
        if name in frame.columns:
            _check_numbers(path, name, frame[name])
    # All of the names, so that a message about one that is missing can list them.
    return Data({str(name): _numbers(frame[name]) for name in frame.columns}, ask.columns)


def _read_csv(path: Path, **options: Any) -> Any:
    """A table of pandas.

    Raises:
        ValueError: It cannot be read, or has no rows.
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    pandas = need("pandas", "a CSV file")
    try:
        found = pandas.read_csv(path, sep=separator, **options)
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"{path} cannot be read: {text}: write it as UTF-8 with a line of names"
        ) from error
    if not options and not len(found):
        raise ValueError(f"{path} has no rows, expected at least one")
    return found


def _check_numbers(path: Path, name: str, column: Any) -> None:
    """Refuse a column with a cell that is empty or holds no number.

    Raises:
        ValueError: With the row.
    """
    empty = column.isna().to_numpy()
    wrong = need("pandas", "a CSV file").to_numeric(column, errors="coerce").isna().to_numpy()
    if not wrong.any():
        return
    row = int(wrong.argmax())
    what = "is empty" if empty[row] else f"holds {column[row]!r}"
    raise ValueError(
        f"{path}, row {row}: column {name!r} {what}, expected a number: repair it, or drop the row"
    )


def _numbers(column: Any) -> Any:
    """An array; booleans, such as labels, as 0 and 1."""
    array = column.to_numpy()
    return array.astype(int) if array.dtype == bool else array


def _leaves(columns: Any) -> list[str]:
    if isinstance(columns, dict):
        columns = list(columns.values())
    if isinstance(columns, (list, tuple)):
        return [name for part in columns for name in _leaves(part)]
    return [columns]


def _header(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(need("pyarrow.parquet", "a Parquet file").read_schema(path).names)
    return list(_read_csv(path, nrows=0).columns)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _arrays(path: Path, dtype: torch.dtype | None) -> Any:
    """A file of numpy: floating numbers become those of the model."""
    numpy = need("numpy", "a file of numpy")
    try:
        # Mapped into memory; copied where it is written to.
        mode = "c" if path.suffix == ".npy" else None
        found = numpy.load(path, mmap_mode=mode, allow_pickle=False)
        if path.suffix == ".npy":
            return _tensor(found, dtype)
        return {name: _tensor(found[name], dtype) for name in found.files}
    except Exception as error:
        text = " ".join(str(error).split())
        if "pickle" in text or "Python objects" in text:
            raise ValueError(
                f"{path} holds Python objects, which would have to be unpickled, and that can run "
                "any code: save numbers, as in array.astype(float)"
            ) from error
        raise ValueError(
            f"{path} cannot be read: {text}: it may be damaged, so write it again"
        ) from error


def _tensor(array: Any, dtype: torch.dtype | None) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    found = torch.from_numpy(array)
    return found.to(dtype) if dtype is not None and found.is_floating_point() else found


def _texts(texts: list[Any], path: Path, ask: Ask, loaded: Loaded) -> Data:
    """Texts as tokens, with a baseline for each."""
    how = ask.baselines or "pad"
    if how not in ("pad", "mask"):
        raise UsageError(f"--baselines is {how!r}, expected pad or mask, since DATA holds texts")
    if other := [k for k in ask.columns if k not in ("inputs", "target")]:
        raise UsageError(f"--columns gives {other[0]!r}, which texts do not have: drop it")
    tensors = encode(texts, cast(Path, loaded.folder), ask.max_length, how, str(path))
    takes = inspect.signature(loaded.model.forward).parameters
    bind = {k: k for k in tensors.bound if k in takes}
    columns = {"inputs": "input_ids", "bind": bind, "baselines": "baselines"}
    found = dict(tensors.tensors)
    if (label := ask.columns.get("target")) is not None:
        found["target"] = _labels(path, label, loaded)
        columns["target"] = "target"
    row = {k: found[k][:1] for k in ("input_ids", *bind)}
    return Data(found, columns, "text", embedding(loaded.model, row))


def _labels(path: Path, name: str, loaded: Loaded) -> Tensor:
    """A column of labels as numbers: those of the model's configuration, where they are texts."""
    values = read_column(path, name)
    if values is None:
        raise ValueError(f"--target names the column {name!r}, which {path} does not have")
    numbers = getattr(loaded.model.config, "label2id", None) or {}
    found = [numbers.get(v, v) if isinstance(v, str) else v for v in values]
    for i, v in enumerate(found):
        if not hasattr(v, "__index__"):
            raise ValueError(
                f"{path}, row {i}: the label is {v!r}, expected a whole number or one of "
                f"{_some([str(k) for k in numbers])}"
            )
    return torch.tensor([int(v) for v in found])
