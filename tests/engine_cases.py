"""What the tests of the engines share: calls whose results do not depend on the engine."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from data_cases import ROWS, examples, network
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import attrfn
import attrfn.data

NET = network()
X, Y = examples()
PAIR = {"inputs": 0, "target": 1}
FATAL = 60  # the example at which a process dies


def sampled(
    model_fn: Any, inputs: Tensor, *, target: Any = None, key: Any = 0, marker: str | None = None
) -> Tensor:
    """Shapley values by sampling; kills the process once, at an example in the middle."""
    if marker is not None and bool((inputs == X[FATAL]).all(1).any()):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return attrfn.shapley_value_sampling(model_fn, inputs, target=target, n_samples=3, key=key)


def tree(model_fn: Any, inputs: Tensor) -> Any:
    return {"b": (inputs.float(), None), "a": [inputs.bfloat16()]}


class Broken(Dataset):
    """Examples of which some cannot be read."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i in self.bad:
            raise OSError("broken picture")
        return X[i], Y[i]


class Streamed(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


def fragile(x: Tensor) -> Tensor:
    if bool((x == 99).any()):
        raise ValueError("too large")
    return NET(x)


def largest(state: Tensor | None, attributions: Tensor) -> Tensor:
    top = attributions.abs().amax(0)
    return top if state is None else torch.maximum(state, top)


def said(call: Callable[[], object]) -> str:
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def with_bad(*places: int) -> Tensor:
    x = X.clone()
    x[list(places)] = 99
    return x


def caller(engine: Any) -> Callable[..., Any]:
    return functools.partial(attrfn.data.explain, progress=False, engine=engine)


def results(engine: Any, folder: Path) -> dict[str, Any]:
    """Calls of all kinds with data whose rows have numbers."""
    run = caller(engine)
    saliency = functools.partial(run, attrfn.saliency, NET)
    pairs = TensorDataset(X, Y)
    raising = functools.partial(run, attrfn.saliency, target=0, batch_size=5)
    skipping = functools.partial(run, attrfn.saliency, batch_size=5, on_error="skip")
    found = {
        "drawn": run(sampled, NET, X, batch_size=4, target=0),
        "auto": saliency(X, target=0),
        "targets": saliency(X, target=Y, batch_size=7),
        "data set": saliency(pairs, columns=PAIR, batch_size=7),
        "loader": saliency(DataLoader(pairs, batch_size=6, drop_last=True), columns=PAIR),
        "few": saliency(X[:3], target=0, batch_size=2),
        "tree": run(tree, NET, X, batch_size=9),
        "mean": saliency(X, target=0, batch_size=4, reduce="mean"),
        "quantiles": saliency(X, target=0, batch_size=4, reduce=attrfn.data.quantiles(size=8)),
        "top": saliency(X, target=0, batch_size=4, reduce=attrfn.data.top_k(5)),
        "pair": saliency(X, target=0, batch_size=4, reduce=(largest, lambda state: state)),
        "no examples": said(lambda: saliency(X[:0], target=0)),
        "fails": said(lambda: raising(fragile, with_bad(17, 90))),
        "cannot be read": said(lambda: saliency(Broken(50), columns=PAIR)),
        "all fail": said(lambda: skipping(fragile, with_bad(*range(ROWS)), target=0)),
    }
    into = run(sampled, NET, X, batch_size=4, target=0, out=folder / "drawn")
    found["folder"] = into[:], into.complete, into.manifest
    bad = (7, 30, 31, 32, 33, 34, 99)
    into = skipping(fragile, with_bad(*bad), target=0, out=folder / "skip")
    found["skip"] = into[:], into.failed
    into = skipping(NET, Broken(*bad), columns=PAIR, out=folder / "unread")
    found["unread"] = into[:], into.failed
    into = run(attrfn.saliency, NET, X, target=0, out=folder / "drawn2", reduce=None)
    found["auto folder"] = into[:]
    return found


def streams(engine: Any, folder: Path) -> dict[str, Any]:
    """Calls with data that are read from the start."""
    run = functools.partial(caller(engine), attrfn.saliency, NET)
    parts = [X[i : i + 6] for i in range(0, ROWS, 6)]
    found = {
        "batches": run(parts, target=0),
        "generator": run((part for part in parts), target=0, batch_size=8),
        "stream": run(Streamed(), columns=PAIR, batch_size=4),
        "loader": run(DataLoader(Streamed(), batch_size=5), columns=PAIR),
        "mean": run(parts, target=0, reduce="mean"),
    }
    into = run(iter(parts), target=0, batch_size=4, out=folder / "stream")
    found["folder"] = into[:], into.complete
    x = with_bad(7, *range(30, 36), 99)
    bad = [x[i : i + 6] for i in range(0, ROWS, 6)]
    skipping = functools.partial(caller(engine), attrfn.saliency, fragile, bad, target=0)
    found["skip"] = skipping(on_error="skip")
    found["fails"] = said(skipping)
    return found


def same(found: Any, expected: Any) -> None:
    """Bitwise, in nested results."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            same(found[name], expected[name])
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected
