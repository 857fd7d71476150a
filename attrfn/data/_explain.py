"""Any method over a data set."""

from __future__ import annotations

import os
from typing import Any, Literal

from attrfn._copies.batch import is_count, is_one_of
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines, Key, Method, ModelFn, Target
from attrfn.data._engines import Ray, check_engine
from attrfn.data._folder import Folder
from attrfn.data._ray import over_actors
from attrfn.data._reduce import reduction
from attrfn.data._sinks import Memory
from attrfn.data._torchrun import over_ranks
from attrfn.data._work import Call


def explain(
    method: Method,
    model_fn: ModelFn,
    data: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    target: Target = None,
    baselines: Baselines = None,
    batch_size: int | Literal["auto"] = "auto",
    key: Key = 0,
    columns: Any = None,
    reduce: Any = None,
    engine: Literal["local", "ray", "torchrun"] | Ray = "local",
    resume: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
    **options: Any,
) -> Any:
    """Explain every example of a data set, batch by batch.

        A_i = X(f, x_i, key=fold_in(key, i))    for i in 0, ..., N - 1

    The numbers of an example depend on no batch: only rounding does. With ``out`` shards are
    written while the next batches are explained; a call that was interrupted or killed goes on
    where it stopped when it is made again, and its shards are bitwise those of a call that ran
    through.

    Args:
        method: Any attribution method, such as ``attrfn.integrated_gradients`` or one made by
            ``attrfn.at_layer``.
        model_fn: The model function.
        data: A DataLoader, a map-style or iterable Dataset, a data set of Hugging Face or of Ray,
            tensors (N, ...) or a tuple or dict of them, a table of pandas, polars or Arrow, the
            path of a Parquet or safetensors file, or an iterable of batches.
        out: A folder to write to; ``None`` returns the attributions.
        target: Which scalar of each example is explained: what the method takes for one example, or
            a tensor (N,) or list with one entry for each.
        baselines: What the method takes; a tensor (N, ...) has a row for each example.
        batch_size: How many examples are explained at once; ``"auto"``: as many as the DataLoader
            or iterable gives, or as many as memory holds by a guess. If memory runs out, half as
            many.
        key: An int or a key (2,); the key of example i is made of it and of i. A noise tunnel has a
            key of its own, which all examples share.
        columns: What the parts of an example are, a dict: ``"inputs"`` a name (or place in a
            tuple), a tuple or dict of names, or a list of names (the features of a table);
            ``"target"`` or another option of the method; ``"bind"`` a dict from arguments of the
            model to names; ``"index"`` the number of an example, by which it draws in place of its
            position.
        reduce: A running statistic in place of the attributions: ``"mean"``, ``"mean_abs"``,
            ``"quantiles"``, ``quantiles``, ``top_k``, a pair ``(update, compute)`` of
            functions, or an object with ``init``, ``update`` and ``compute``.
        engine: ``"local"``: this process; ``"ray"`` or ``Ray(workers=..., gpus=...)``: actors of
            Ray; ``"torchrun"``: the ranks that ``torchrun`` has started, of which each makes this
            call and returns all.
        resume: Go on in a folder that holds results; ``False`` refuses it.
        on_error: ``"raise"`` an error with the number of the example, or ``"skip"`` it: its
            attributions are nan, and its error is recorded.
        progress: Show a bar.
        options: Options of the method.

    Returns:
        With ``out`` what ``read`` returns; else a pytree of attributions (N, ...) on the CPU,
        or what ``reduce`` computes.

    Raises:
        TypeError: An argument has a wrong type, or the method does not have an option.
        ValueError: Values or shapes disagree, or the folder belongs to another run.
        OSError: A shard cannot be written; those before are kept.

    Example:
        >>> import torch, attrfn.data
        >>> f = lambda x: (x**2).sum(1)
        >>> x = torch.arange(6.0).reshape(3, 2)
        >>> attrfn.data.explain(attrfn.gradient, f, x, batch_size=2, progress=False)
        tensor([[ 0.,  2.],
                [ 4.,  6.],
                [ 8., 10.]])
    """
    _check(method, model_fn, out, batch_size, reduce, engine, resume, on_error, progress)
    given = {"target": target, "baselines": baselines, **options}
    call = Call(method, model_fn, data, given, columns, key, on_error == "skip", progress)
    statistic = None if reduce is None else reduction(reduce)
    if engine == "torchrun":
        return over_ranks(call, out, batch_size, statistic, resume)
    if engine != "local":
        ray = engine if isinstance(engine, Ray) else Ray()
        return over_actors(call, ray, out, batch_size, statistic, resume)
    run = call.run()
    if out is None:
        sink = Memory(statistic, run.data.length)
        run.all(batch_size, sink)
        return sink.finish()
    folder = Folder(out)
    with folder.locked():
        return run.into(folder, batch_size, resume)


def _check(
    method: Any,
    model_fn: Any,
    out: Any,
    batch_size: Any,
    reduce: Any,
    engine: Any,
    resume: Any,
    on_error: Any,
    progress: Any,
) -> None:
    if not callable(method):
        raise TypeError(f"method is {say(method)}, expected a function")
    several = isinstance(model_fn, (list, tuple)) and model_fn and all(map(callable, model_fn))
    if not callable(model_fn) and not several:  # the models of an ensemble
        raise TypeError(f"model_fn is {say(model_fn)}, expected a function")
    if out is not None and not isinstance(out, (str, os.PathLike)):
        raise TypeError(f"out is {say(out)}, expected the path of a folder, or None")
    if not (is_one_of(batch_size, "auto") or is_count(batch_size)):
        raise ValueError(f"batch_size is {say(batch_size)}, expected 'auto' or at least 1")
    check_engine(engine)
    if not is_one_of(on_error, "raise", "skip"):
        raise ValueError(f"on_error is {say(on_error)}, expected 'raise' or 'skip'")
    for name, value in (("resume", resume), ("progress", progress)):
        if type(value) is not bool:
            raise TypeError(f"{name} is {say(value)}, expected True or False")
    if reduce is not None and out is not None:
        raise ValueError(
            "reduce and out are both given, expected one: attrfn.data.read(out).reduce(...) gives "
            "a statistic of what a folder holds"
        )
