"""How strong an attack has to be, for each example."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._explain.forms import documented
from attrfn._explain.target import IndexPerExample
from attrfn._explain.tree import each
from attrfn._torch.guard import called, refuse_unusual
from attrfn._torch.precision import widest
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Key, Leaves, ModelFn, Target, Tree
from attrfn.robust._objective import index_of, label_of
from attrfn.robust._options import SearchOptions
from attrfn.robust._rows import Attempted, attempted

Strengthened = Callable[[Tree, Tensor, Tensor], Tree]
Correct = Callable[[Any], Tensor]


class MinParam(NamedTuple):
    """The weakest attack that succeeds, for each example.

    Attributes:
        inputs: What it makes of the inputs; the inputs themselves where none succeeds.
        value: Its strength, (B,); nan where none succeeds.
        found: Whether one succeeds, booleans (B,).
    """

    inputs: Tree
    value: Tensor
    found: Tensor


@documented(SearchOptions, scores=None)
def min_param_perturbation(
    model_fn: ModelFn,
    inputs: Tree,
    attack: Strengthened,
    *,
    values: Any,
    target: Target = None,
    correct: Correct | None = None,
    mode: Literal["linear", "binary"] = "linear",
    n_attempts: int = 1,
    key: Key = 0,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
) -> MinParam:
    """The first of several strengths at which an attack makes each example incorrect.

        v = min {v_k : not correct(f(attack(x, v_k)))}

    ``"linear"`` tries all K values; ``"binary"`` tries about log2(K) of them, with a bracket for
    each example, and is right where stronger attacks succeed wherever weaker ones do. An attempt
    has the same key at every value. An example that is incorrect anyway has the first value.

    Args:
        attack: ``attack(inputs, value, keys) -> inputs``, of rows: those of several copies of the
            batch, with the strength, (R,), and the key, (R, 2), of each row. Tensors with a row for
            each example that ``functools.partial`` binds follow the copies.
        values: The strengths from the weakest to the strongest, a tensor (K,) or a list of numbers.
        target: The right class of each example, an int or an integer tensor () or (B,).
        correct: ``correct(outputs) -> (R,)``, booleans, in place of ``argmax == target``; the
            target is then not used.
        mode: ``"linear"`` or ``"binary"``.

    Returns:
        The changed inputs, the values and whether one was found.

    Example:
        >>> import torch
        >>> from attrfn import robust
        >>> w = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> def f(x):
        ...     return x @ w.T
        >>> def attack(inputs, value, keys):
        ...     return robust.fgsm(f, inputs, target=0, epsilon=value)
        >>> values = torch.arange(16) / 16
        >>> robust.min_param_perturbation(f, torch.ones(1, 2), attack, values=values, target=0)
        MinParam(inputs=tensor([[1.2500, 0.7500]]), value=tensor([0.2500]), found=tensor([True]))
    """
    if not is_one_of(mode, "linear", "binary"):
        raise ValueError(f"mode is {say(mode)}, expected 'linear' or 'binary'")
    if not callable(attack):
        raise TypeError(f"attack is {say(attack)}, expected attack(inputs, value, keys) -> inputs")
    a = attempted(model_fn, inputs, n_attempts, key)
    strengths = _strengths(values, a.p.x)
    if correct is None:
        label = label_of(target, a.p.batch, "the default of correct")
        correct = functools.partial(_is_class, label=label)
    chunks = Chunks(chunk_size, "fold", progress, "min_param_perturbation")
    search = _linear if mode == "linear" else _binary
    nothing = torch.zeros(a.p.batch, dtype=torch.bool, device=a.p.x[0].device)
    found = _First(nothing, strengths.new_zeros(a.p.batch), a.p.x)
    if a.p.batch:
        found = search(a, functools.partial(_tried, a, attack, correct), found, strengths, chunks)
    value = found.value
    value = value if value.is_floating_point() else value.to(widest(value.device))
    return MinParam(
        a.p.rebuild([a.result(t.clone()) for t in found.z]),
        a.result(value.masked_fill(~found.found, torch.nan)),
        found.found,
    )


class _First(NamedTuple):
    """The first success so far: whether there is one, (B,), its value, (B,), and its inputs."""

    found: Tensor
    value: Tensor
    z: Leaves


_Try = Callable[[Tensor, Tensor], _First]


def _tried(
    a: Attempted, attack: Strengthened, correct: Correct, values: Tensor, keys: Tensor
) -> _First:
    """The first success among copies with the values (S, B) and the keys (S, B, 2)."""
    z = a.moved(attack, values, keys)
    right = a.numbers(correct, "correct", z)
    if right.dtype != torch.bool:
        raise TypeError(f"correct returned {right.dtype}, expected booleans")
    first = (~right).to(torch.uint8).argmax(0)  # of equal ones the first
    examples = torch.arange(a.p.batch, device=first.device)

    def chosen(t: Tensor) -> Tensor:
        return t[first.to(t.device), examples.to(t.device)]

    return _First(~right.all(0), chosen(values), tuple(map(chosen, z)))


def _earlier(a: _First, b: _First) -> _First:
    """For each example the first of two, if it is a success, and the second where it is one."""
    later = ~a.found & b.found

    def chosen(s: Tensor, t: Tensor) -> Tensor:
        return torch.where(later.to(s.device).reshape(-1, *[1] * (s.ndim - 1)), t, s)

    return _First(a.found | b.found, chosen(a.value, b.value), each(chosen, a.z, b.z))


def _linear(a: Attempted, tried: _Try, nothing: _First, values: Tensor, chunks: Chunks) -> _First:
    attempts = a.keys.shape[0]

    def part(i: slice) -> _First:
        copy = torch.arange(i.start, i.stop, device=values.device)
        strength = values[copy // attempts]
        return tried(strength[:, None].expand(-1, a.p.batch), a.keys_of(copy % attempts))

    copies = values.shape[0] * attempts
    return _earlier(nothing, over_chunks(part, _earlier, copies, chunks, values.device, x=a.p.x))


def _binary(a: Attempted, tried: _Try, nothing: _First, values: Tensor, chunks: Chunks) -> _First:
    # The first success is at low or after it, and before high; high = K says that there is none.
    low = torch.zeros(a.p.batch, dtype=torch.int64, device=values.device)
    high = torch.full_like(low, values.shape[0])
    best = nothing
    for _ in range(values.shape[0].bit_length()):
        middle = (low + high) // 2
        strength = values[middle.clamp(max=values.shape[0] - 1)]

        def part(i: slice, strength: Tensor = strength) -> _First:
            return tried(strength.expand(i.stop - i.start, -1), a.keys_of(i))

        new = over_chunks(part, _earlier, a.keys.shape[0], chunks, values.device, x=a.p.x)
        new = new._replace(found=new.found & (low < high))
        best = _earlier(best._replace(found=best.found & ~new.found), new)
        low, high = (
            torch.where(new.found | (low >= high), low, middle + 1),
            torch.where(new.found, middle, high),
        )
    return best


def _strengths(given: Any, x: Leaves) -> Tensor:
    """The values of the search, (K,)."""
    if isinstance(given, Tensor):
        refuse_unusual(given, "values")
        values = given
    else:
        values = called("values", _as_tensor, given, x)
    if values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"values has {values.dtype}, expected real numbers")
    if values.ndim != 1 or values.shape[0] == 0:
        raise ValueError(
            f"values has shape {tuple(values.shape)}, expected (K,) with at least one value"
        )
    return values.to(x[0].device)


def _as_tensor(given: Any, x: Leaves) -> Tensor:
    """Numbers as a tensor: fractions in the type of the inputs."""
    if isinstance(given, (Set, Mapping, str, bytes)):
        raise TypeError(f"values is {say(given)}, expected a tensor (K,) or a list of numbers")
    values = torch.as_tensor(given if hasattr(given, "__array__") else list(given))
    if hasattr(given, "__array__") or not values.is_floating_point():
        return values
    kinds = [t.dtype for t in x if t.is_floating_point()]
    return torch.as_tensor(list(given), dtype=kinds[0] if kinds else None)


def _is_class(outputs: Any, *, label: IndexPerExample) -> Tensor:
    """Whether the largest output is that of the class; an output that is nan is never right."""
    if not isinstance(outputs, Tensor) and hasattr(outputs, "__array__"):
        outputs = torch.as_tensor(outputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the model returned {shape}, expected (B, K) with at least two classes: pass correct "
            "for other outputs"
        )
    y = index_of(label, outputs)[:, 0]
    return (outputs.argmax(1) == y) & ~outputs.isnan().any(1)
