"""``--method``, ``--layer`` and ``--option``: what is run with what."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

import attrfn
from attrfn._torch.typing import Method, ModelFn, Tree
from attrfn.cli._command import UsageError
from attrfn.cli._locate import is_reference, locate, needs_nothing
from attrfn.cli._names import methods, pick
from attrfn.cli._need import need

_WORDS = {"true": True, "false": False, "none": None}
_ELSEWHERE = {"target": "--target", "baselines": "--baselines", "key": "--key", "layer": "--layer"}


class Chosen(NamedTuple):
    """A method.

    Attributes:
        name: As the command line has it.
        method: The method.
        options: Its options.
        late: The options that files hold, read once all else is known to be right.
    """

    name: str
    method: Method
    options: dict[str, Any]

    def takes(self, option: str) -> bool:
        """Whether the method has an option."""
        return option in inspect.signature(self.method).parameters


def choose(name: str, layer: str | None, items: Iterable[str] | None) -> Chosen:
    """A method of the library or of the user's, at a layer if one is given.

    Raises:
        UsageError: There is no such method or option, or one is missing.
    """
    method = locate(name, "--method") if is_reference(name) else None
    if method is None:
        method = methods()[pick("--method", name, methods(), "attrfn methods")]
    if not callable(method):
        raise UsageError(f"--method is {name!r}, which is not a function")
    options = parse_options(items)
    if layer is not None:
        method, options = _at(name, method, layer, options)
    known = [k for k in inspect.signature(method).parameters if k not in ("model_fn", "inputs")]
    for option in options:
        if option in _ELSEWHERE and not (option == "layer" and layer is not None):
            raise UsageError(f"--option gives {option}: use {_ELSEWHERE[option]}")
        if option not in known:
            offered = [k for k in known if k not in _ELSEWHERE]
            pick(f"--option of {name}", option, offered, f"attrfn methods {name}")
    return Chosen(name, method, options)


def _at(
    name: str, method: Method, layer: str, options: dict[str, Any]
) -> tuple[Method, dict[str, Any]]:
    """The method at a layer: as it is, its form for layers, or moved there."""
    form = method if _has(method, "layer") else methods().get(f"layer_{name}")
    if form is not None:
        return form, {**options, "layer": layer}
    return attrfn.at_layer(method, layer), options


def _has(method: Method, option: str) -> bool:
    return option in inspect.signature(method).parameters


def check_complete(chosen: Chosen, given: Iterable[str]) -> None:
    """Refuse a call in which something is missing.

    Raises:
        UsageError: An option without a default is not given.
    """
    for name, p in inspect.signature(chosen.method).parameters.items():
        needed = p.kind is p.KEYWORD_ONLY and p.default is p.empty
        if not needed or name in chosen.options or name in given:
            continue
        if name == "layer":
            raise UsageError(
                f"--method {chosen.name} needs --layer: attrfn layers MODEL lists them"
            )
        raise UsageError(
            f"--method {chosen.name} needs {_ELSEWHERE.get(name, f'--option {name}=VALUE')}"
        )


def parse_options(items: Iterable[str] | None) -> dict[str, Any]:
    """The arguments of ``--option``.

    Raises:
        UsageError: One of them is not of the form NAME=VALUE, or is given twice.
    """
    found: dict[str, Any] = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise UsageError(f"--option is {item!r}, expected NAME=VALUE, such as n_steps=50")
        if name in found:
            raise UsageError(f"--option gives {name} twice")
        found[name] = _value(text.strip())
    return found


def _value(text: str) -> Any:
    """A Python literal, a word, the tensor of a file, or what ``module:function`` gives."""
    if text.startswith("@"):
        return read_tensor(Path(text[1:]), "--option")
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if is_reference(text):
        found = locate(text, "--option")
        return found() if needs_nothing(found) else found
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read_tensor(path: Path, what: str) -> Tensor:
    """The tensor of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} names {str(path)!r}, and there is no such file")
    if path.suffix == ".npy":
        array = need("numpy", "a file of numpy").load(path, allow_pickle=False)
        return torch.from_numpy(array)
    if path.suffix == ".safetensors":
        found: dict[str, Tensor] = need("safetensors.torch", "a safetensors file").load_file(path)
        if len(found) == 1:
            return next(iter(found.values()))
        raise ValueError(f"{path} holds {len(found)} tensors, expected one")
    raise ValueError(f"{what} names {str(path)!r}, expected a .npy or .safetensors file")


def summed_tokens(chosen: Chosen, layer: str) -> Chosen:
    """A method for texts: it takes token ids, and gives a number for each token.

    What is divided among elements is asked at the layer that embeds the tokens and summed there;
    what features share, such as occlusion, is asked for the tokens themselves.
    """
    if "layer" in chosen.options or hasattr(chosen.method, "moved_to"):
        return chosen
    if getattr(chosen.method, "scores", None) != "divided":
        return chosen
    method, options = _at(chosen.name, chosen.method, layer, chosen.options)
    return Chosen(chosen.name, attrfn.pooled(method, -1), options)


def as_dtype(tree: Tree, dtype: torch.dtype | None) -> Tree:
    """A tree whose floating tensors have a type; None: their own."""
    if dtype is None:
        return tree

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return optree.tree_map(cast, tree)


def of_dtype(method: Method, dtype: torch.dtype) -> Method:
    """The same method, for floating inputs and baselines of any type."""

    @functools.wraps(method)
    def explained(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        if "baselines" in options:
            options["baselines"] = as_dtype(options["baselines"], dtype)
        return method(model_fn, as_dtype(inputs, dtype), **options)

    return explained


def of_predicted(method: Method) -> Method:
    """The same method, whose target is the largest output of each example."""

    @functools.wraps(method)
    def explained(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        return method(model_fn, inputs, target=largest(model_fn, inputs), **options)

    return explained


def largest(model_fn: ModelFn, inputs: Tree) -> Tensor:
    """The number of the largest output of each example."""
    with torch.no_grad():
        outputs = model_fn(*inputs) if isinstance(inputs, tuple) else model_fn(inputs)
    found = getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor) or found.ndim != 2:
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"--target is predicted, and the model returned {came}, expected (B, classes): give "
            "--target a number or module:function"
        )
    return found.argmax(1)


def partly(method: Method, options: Mapping[str, Any]) -> Method:
    """The method with options bound."""
    return functools.partial(method, **options) if options else method
