"""The parameters of a model layer by layer, and the model with other ones."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from attrfn._copies.batch import binds_rows
from attrfn._explain.tree import batch_size, call_model, flatten
from attrfn._model.bind import Bare, bind_source
from attrfn._model.source import Source, find, shown, source, unwrapped_name
from attrfn._torch.typing import ModelFn, Tree


class Parameters(NamedTuple):
    """A model, and which layer owns which of its parameters.

    Attributes:
        src: The model.
        layers: The modules that own parameters directly, by qualified name, in the order of their
            first call.
        tensors: The parameters by qualified name; tied ones have one name.
        owned: The names of the parameters of each layer.
    """

    src: Source
    layers: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    owned: dict[str, list[str]]

    def replaced(self, new: Mapping[str, Tensor]) -> ModelFn:
        """The model function with other parameters and buffers; the model stays as it is."""
        bare = self.src._replace(params={**(self.src.params or {}), **new}, args=(), kwargs={})
        # What is bound for each example has to stay visible, so that it follows the batch.
        return functools.partial(Bare(bare), *self.src.args, **self.src.kwargs)

    def name_of(self, layer: nn.Module | str) -> str:
        """The name of a layer.

        Raises:
            ValueError: It is not a module of the model, or owns no parameter.
        """
        module = self.layers.get(layer) if isinstance(layer, str) else None
        module = find(self.src.module, layer) if module is None else module
        for name, owner in self.layers.items():
            if owner is module:
                return name
        raise ValueError(
            f"layer {shown(layer)} owns no parameter of the model: choose among "
            f"{', '.join(map(repr, self.layers))}"
        )


def parameters_of(model_fn: ModelFn, inputs: Tree) -> Parameters:
    """The parameters of a model by layers, which are ordered by one run on the inputs.

    Raises:
        TypeError: The model function hides its module.
    """
    src = source(model_fn)
    if src is None:
        raise TypeError(
            f"model_fn is {shown(model_fn)}, and no module can be found in it: give a "
            "torch.nn.Module, a bound method of one or functools.partial of either"
        )
    given = src.params or {}
    tensors = {name: given.get(name, p) for name, p in src.module.named_parameters()}
    names = {id(p): name for name, p in src.module.named_parameters()}
    modules = _named_modules(src.module)
    owned = {k: [names[id(p)] for p in m.parameters(recurse=False)] for k, m in modules.items()}
    order = _by_first_call(src, inputs, modules, [name for name in owned if owned[name]])
    layers = {name: modules[name] for name in order}
    return Parameters(src, layers, tensors, {name: owned[name] for name in order})


def _run_briefly(model: ModelFn, inputs: Tree) -> None:
    """Run a model on two of the examples, or on all where it does not take two alone."""
    batch = batch_size(flatten(inputs)[0])
    if batch > 2 and not binds_rows(model, batch):
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            call_model(model, optree.tree_map(lambda t: t[:2], inputs))
            return
    call_model(model, inputs)


def _named_modules(root: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, without the wrapper that torch.compile puts around one."""
    found = {}
    for name, module in root.named_modules():
        found[unwrapped_name(f"{name}.").removesuffix(".")] = module
    return found


def _by_first_call(
    src: Source, inputs: Tree, modules: dict[str, nn.Module], names: list[str]
) -> list[str]:
    """Names of modules in the order of their first call.

    A module whose parameters are used without a call comes right after the module around it.
    """
    called: dict[str, int] = {}

    def noting(name: str) -> Callable[..., Any]:
        def note(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            called.setdefault(name, len(called))
            return run(*args, **kwargs)

        return note

    every = list(modules.values())
    model = bind_source(src, every, [noting(name) for name in modules], frozen=True)
    with torch.no_grad():
        _run_briefly(model, inputs)

    def place(name: str) -> tuple[int, int]:
        around = name
        while around and around not in called:
            around = around.rpartition(".")[0]
        return called.get(around, -1), names.index(name)

    return sorted(names, key=place)
