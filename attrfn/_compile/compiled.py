"""Compiled attributions: one pass of the model over a chunk, or a whole method as one graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from attrfn._compile.dynamo import (
    check_options,
    parameters,
    settings,
)
from attrfn._compile.explainer import Compiled
from attrfn._compile.explainer import CompileError as CompileError
from attrfn._compile.stale import check_attributes
from attrfn._explain.flags import check_flags
from attrfn._model.uncompiled import uncompiled
from attrfn._torch.compiling import require_compiler
from attrfn._torch.guard import guarded
from attrfn._torch.private_compiler import compiler_error
from attrfn._torch.say import say
from attrfn._torch.typing import ModelFn

# Modes with CUDA graphs, whose outputs live in memory that the next call overwrites.
_OVERWRITE = ("reduce-overhead", "max-autotune")


@guarded
def compile(
    method: Callable[..., Any],
    model_fn: ModelFn,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    dynamic: bool | None = None,
    progress: bool = False,
    **options: Any,
) -> Callable[..., Any]:
    """A method and a model as a compiled function ``(inputs, **changing) -> attributions``.

    What is compiled of a method that loops over copies of the inputs (steps, samples, masked
    features) is one pass of the model over the rows of a chunk. The graph serves for all numbers of
    steps, samples, features and examples, and takes about as long to compile as the model's own
    forward and backward pass. All other methods are compiled whole, for one batch size first and
    for all sizes at the second one. The first call compiles, in seconds to minutes. Parameters are
    inputs of the graph, so that training does not recompile.

    The attributions can be differentiated if a tensor given to the call requires a gradient, with
    ``create_graph=True``, and inside transforms. Otherwise they are computed with less work.

    ``chunk_size="auto"`` is settled once for each new shape of the inputs, by a measured call of
    the model. With ``batching="vmap"`` each size is another graph. A model that draws random
    numbers runs as it is in methods with chunks, because compiled code would draw others in each
    of its runs.

    A later process compiles faster: torch keeps what inductor has compiled in the directory that
    the environment variable ``TORCHINDUCTOR_CACHE_DIR`` names.

    Args:
        method: A method of attrfn, or a function with the same arguments.
        model_fn: See :func:`gradient`; a list of model functions for an :func:`ensemble`.
        backend: What ``torch.compile`` takes.
        mode: What ``torch.compile`` takes, such as ``"max-autotune"`` or ``"reduce-overhead"``
            (CUDA graphs; the attributions are copied, so that the next call does not overwrite
            them).
        dynamic: What ``torch.compile`` takes: None compiles as said above, True for all sizes of
            all dimensions, False for each size.
        progress: Say on stderr how long each compilation took, and show the method's own progress.
        **options: Options of the method that do not change, such as ``n_steps``.

    Returns:
        A function of the inputs. Its keyword arguments are further options of the method, above
        all tensors: targets, baselines, keys. Another int target does not recompile; its range is
        checked if the model returns (B, K), and that of a tensor is not.

    Raises:
        TypeError: ``method`` or ``model_fn`` cannot be called, the method has no such option, or
            the model has an attribute whose changes compiled code would not follow.
        RuntimeError: This torch is older than 2.12.
        CompileError: (When called) torch cannot capture the method on this model in one graph.
            The method's own errors are raised unchanged.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Linear(3, 2)
        >>> explain = attrfn.compile(attrfn.integrated_gradients, model, n_steps=8, backend="eager")
        >>> explain(torch.ones(4, 3), target=1).shape
        torch.Size([4, 3])
    """
    require_compiler()
    _check_callables({"method": method, "model_fn": model_fn})
    check_attributes(uncompiled(model_fn))
    check_options(method, options)
    if dynamic is not None:
        check_flags(("dynamic",), {"dynamic": dynamic})
    how = functools.partial(settings, backend, mode)
    check_flags(("progress",), {"progress": progress})
    if progress and "progress" in parameters(method):
        options["progress"] = True
    compiled = Compiled(method, model_fn, options, how, dynamic, overwrites=mode in _OVERWRITE)
    try:
        # torch.compile refuses unknown settings here, not in the first call
        compiled.graph("given")
    except compiler_error() as error:
        raise ValueError(
            f"backend is {say(backend)}, expected a name that torch.compiler.list_backends() has, "
            "or a callable"
        ) from error
    if progress:
        return lambda inputs, **changing: compiled.timed(inputs, changing)
    return lambda inputs, **changing: compiled(inputs, changing)


def _check_callables(given: dict[str, Any]) -> None:
    for name, value in given.items():
        many = name == "model_fn" and isinstance(value, (list, tuple)) and len(value) > 0
        if not (callable(value) or (many and all(map(callable, value)))):
            raise TypeError(
                f"{name} is a {type(value).__name__}, expected something to call: "
                "attrfn.compile(attrfn.integrated_gradients, model)"
            )
