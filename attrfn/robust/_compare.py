"""What several attacks do to a number of the outputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import wide
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.forms import documented
from attrfn._torch.precision import widest
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Key, ModelFn, Tree
from attrfn.robust._options import SearchOptions
from attrfn.robust._rows import Attempted, attempted


class Attempts(NamedTuple):
    """A number of the outputs over the attempts of an attack, for each example.

    Attributes:
        mean: Its mean, (B,).
        min: Its least value, (B,).
        max: Its greatest value, (B,).
    """

    mean: Tensor
    min: Tensor
    max: Tensor


@documented(SearchOptions, scores=None)
def attack_comparator(
    model_fn: ModelFn,
    inputs: Tree,
    attacks: Mapping[str, Callable[..., Tree]],
    *,
    metric: Callable[[Any], Tensor],
    n_attempts: int = 1,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> dict[str, Attempts]:
    """What attacks do to a number of the outputs, example by example.

        m_a = metric(f(attack(x, key_a))),   a = 1 ... n_attempts

    Every attack has the keys of the others. Means over several batches are the caller's.

    Args:
        attacks: By name, functions of rows, those of several copies of the batch:
            ``attack(inputs, keys) -> inputs`` with a key for each row, (R, 2), or
            ``attack(inputs) -> inputs``, which is run once. One with an option ``key``, as
            ``partial(pgd, model, target=y, radius=0.1)``, gets the keys there. Tensors with a row
            for each example that ``functools.partial`` binds follow the copies.
        metric: ``metric(outputs) -> (R,)``, a number for each row; ``functools.partial`` binds
            labels.

    Returns:
        Mean, minimum and maximum over the attempts, for ``"original"``, which is x itself, and for
        each name.

    Example:
        >>> import functools, torch
        >>> from attrfn import robust
        >>> w = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> def f(x):
        ...     return x @ w.T
        >>> attacks = {"fgsm": functools.partial(robust.fgsm, f, target=0, epsilon=0.25)}
        >>> found = robust.attack_comparator(
        ...     f, torch.ones(1, 2), attacks, metric=lambda out: out[:, 0] - out[:, 1]
        ... )
        >>> found["original"].mean, found["fgsm"].mean
        (tensor([1.]), tensor([-0.2500]))
    """
    _check_functions(attacks)
    if "original" in attacks:
        raise ValueError("attacks has 'original', which names the inputs themselves: rename it")
    if not callable(metric):
        raise TypeError(f"metric is {say(metric)}, expected metric(outputs) -> (B,)")
    a = attempted(model_fn, inputs, n_attempts, key)
    runs = {"original": (_same, False)} | {k: _by_keys(f) for k, f in attacks.items()}
    return {
        name: _over_attempts(
            a,
            attack,
            metric,
            n_attempts if keyed else 1,
            Chunks(chunk_size, "fold", progress, name),
        )
        for name, (attack, keyed) in runs.items()
    }


def _check_functions(attacks: object) -> None:
    if not isinstance(attacks, Mapping):
        raise TypeError(f"attacks is {say(attacks)}, expected a dict of functions")
    for name, attack in attacks.items():
        if not callable(attack):
            raise TypeError(
                f"attacks[{say(name)}] is {say(attack)}, expected attack(inputs, keys) -> inputs"
            )


def _over_attempts(
    a: Attempted, attack: Callable[..., Tree], metric: Any, attempts: int, chunks: Chunks
) -> Attempts:
    """Mean, minimum and maximum of the metric, chunk by chunk."""
    if a.p.batch == 0:
        nothing = a.p.x[0].new_zeros(0)
        return Attempts(*[nothing if nothing.is_floating_point() else nothing.float()] * 3)

    def part(i: slice) -> Attempts:
        found = a.numbers(metric, "metric", a.moved(attack, a.keys_of(i)))
        if found.is_complex():
            raise TypeError(f"metric returned {found.dtype}, expected real numbers")
        kind = wide(found.dtype) if found.is_floating_point() else widest(found.device)
        found = found.to(kind)
        return Attempts(found.sum(0), found.amin(0), found.amax(0))

    found = over_chunks(part, _both, attempts, chunks, a.p.x[0].device, x=a.p.x)
    return Attempts(*[a.result(t) for t in found._replace(mean=found.mean / attempts)])


def _both(a: Attempts, b: Attempts) -> Attempts:
    return Attempts(a.mean + b.mean, torch.minimum(a.min, b.min), torch.maximum(a.max, b.max))


def _same(inputs: Tree, keys: Tensor) -> Tree:
    """No attack at all."""
    return inputs


def _by_keys(attack: Callable[..., Tree]) -> tuple[Callable[..., Tree], bool]:
    """An attack as a function of inputs and keys, and whether it uses the keys."""
    try:
        parameters = inspect.signature(attack).parameters
    except (AttributeError, ValueError):
        return attack, True  # builtins have no signature, nor do functions made in compiled code
    if "key" in parameters:
        bound = attack.keywords if isinstance(attack, functools.partial) else {}
        if "key" not in bound:
            return functools.partial(_with_option, attack), True
    # A second argument that has a default, as epsilon may, is not for keys.
    elif any(_is_for_keys(p) for p in list(parameters.values())[1:]):
        return attack, True
    return functools.partial(_without_keys, attack), False


def _is_for_keys(p: inspect.Parameter) -> bool:
    by_place = p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    return by_place and (p.default is p.empty or p.name == "keys")


def _with_option(attack: Any, inputs: Tree, keys: Tensor) -> Tree:
    return attack(inputs, key=keys)


def _without_keys(attack: Any, inputs: Tree, keys: Tensor) -> Tree:
    return attack(inputs)
