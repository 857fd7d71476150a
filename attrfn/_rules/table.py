"""Rules as data: tables from operations to what a run does at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from attrfn._rules.call import Call
from attrfn._rules.errors import refuse_training, refuse_unknown
from attrfn._rules.names import FUNCTIONS, METHODS, Spelling, exported, public_name, spellings
from attrfn._torch.compiling import is_compiling
from attrfn._torch.say import say

Apply = Callable[[Any, Call], Any]
"""From a run and a call to the call's output."""


class Op(NamedTuple):
    """What a run does at an operation.

    Attributes:
        kind: Its name in the documentation.
        apply: ``apply(run, call) -> output``.
        follows: Whether the output counts as dependent on the inputs.
        native: Whether the function itself runs, so that it may write in place.
        checked: Whether arguments that depend on the inputs without a derivative are refused.
        first_order: ``first_order(run, x) -> output``, a short cut for calls with one argument
            where one derivative is enough.
        rectifies: ``rectifies(run, call)``, whether its values are not negative, and zeros pass
            nothing back.
    """

    kind: str
    apply: Apply
    follows: bool = True
    native: bool = False
    checked: bool = True
    first_order: Callable[[Any, Any], Any] | None = None
    rectifies: Callable[[Any, Call], bool] | None = None


class Constant(NamedTuple):
    """A value that counts as a constant from here on, though it depends on the inputs."""

    value: Any


class Rules(NamedTuple):
    """Rules for operations, to be extended with ``rules | {...}`` and ``rules.allow(...)``.

    Composites of LRP also take modules as single operations with ``rules.elementwise(...)``.

    Attributes:
        name: Their name in messages.
        ops: From the name of an operation to what happens there.
        own: From a function to what happens there; wins over ``ops``.
        complete: Refuse what would break completeness: values that depend on the inputs without a
            derivative, where they meet values with one.
        strict: Refuse operations that are not in the table.
        linear: The rules of linear operations with weights (of LRP).
        baselines: The baselines of DeepLIFT's rules, for :func:`with_rules`.
        adapt: From the name and op of an added operation to the op that is put into the table;
            None puts it there unchanged.
    """

    name: str
    ops: Mapping[str, Op]
    own: Mapping[Any, Op] = {}
    complete: bool = False
    strict: bool = True
    linear: Any = None
    baselines: Any = None
    adapt: Callable[[str, Op], Op] | None = None

    def find(self, func: Any) -> tuple[Spelling, Op] | None:
        """The op of a torch function, or None."""
        # torch.compile passes methods written in Python as objects that cannot be hashed.
        if is_compiling() and getattr(func, "__name__", "") in METHODS:
            spelling = METHODS[func.__name__]
            return (spelling, self.ops[spelling.name]) if spelling.name in self.ops else None
        spelling = FUNCTIONS.get(func) or exported(func)
        op = self.own.get(func) or self.ops.get(spelling.name)
        return None if op is None else (spelling, op)

    def __or__(self, rules: Mapping[Any, str | Callable[..., Any]]) -> Rules:
        """These rules, with others for some torch functions.

        Args:
            rules: From torch functions to ``"linear"``, ``"elementwise"``, ``"product"`` or a
                function with the same arguments that is made of operations with rules. They hold
                for all spellings of the operation, also those of exported graphs.
        """
        if not isinstance(rules, Mapping):
            return NotImplemented
        return self._with({func: self._op(func, rule) for func, rule in rules.items()})

    def allow(self, *functions: Any) -> Rules:
        """These rules, with the own derivative of some torch functions.

        Args:
            functions: torch functions; all spellings of the operation are allowed, also those of
                exported graphs.
        """
        return self._with(
            dict.fromkeys(functions, Op("allowed", own_derivative, native=True, checked=False))
        )

    def elementwise(self, *names: str) -> Rules:
        """These rules of LRP, for which each named module is one elementwise operation.

        All relevance of such a module, y = f(x), passes from y to x. Activations of torch, and
        those that Python writes out in operations of one tensor, are recognised without a name.
        Compiled code cannot do this.

        Args:
            names: Qualified names of modules, with wildcards.
        """
        if self.linear is None:
            raise TypeError(
                f"{self.name} has no rules by modules: call elementwise on a composite such as "
                "attrfn.rules.attn_lrp()"
            )
        for name in names:
            if not isinstance(name, str):
                raise TypeError(
                    f"elementwise got a {type(name).__name__}, expected qualified names of modules "
                    "such as 'mlp.act'"
                )
        linear = self.linear._replace(elementwise=(*self.linear.elementwise, *names))
        return self._replace(linear=linear)

    def _with(self, found: Mapping[Any, Op]) -> Rules:
        ops, own = dict(self.ops), dict(self.own)
        for func, op in found.items():
            if not callable(func):
                raise TypeError(
                    f"rules name {say(func)}, expected a torch function such as torch.erf"
                )
            known = FUNCTIONS.get(func)
            name = getattr(func, "__name__", "") if known is None else known.name
            op = op if self.adapt is None else self.adapt(name, op)
            own[func] = op
            if known is not None:
                ops[name] = op
                continue
            others = spellings(name)
            if func in others:
                own.update({f: op for f, spelled in others.items() if spelled.pure is None})
                ops[name] = op  # by which the functions of exported graphs are known
        return self._replace(ops=ops, own=own)

    def _op(self, func: Any, rule: str | Callable[..., Any]) -> Op:
        # Each kind is taken from an operation that has it in every table.
        examples = {"linear": "sum", "elementwise": "tanh", "product": "mul"}
        if isinstance(rule, str) and rule in examples:
            return self.ops[examples[rule]]
        if not callable(rule):
            raise TypeError(
                f"the rule of {public_name(func)} is {say(rule)}, expected 'linear', "
                "'elementwise', 'product' or a function made of operations that have rules"
            )
        return Op("decomposed", decomposed(rule))


def own_derivative(run: Any, call: Call) -> Any:
    """Call the function itself, with its own derivative."""
    return call.func(*call.args, **call.kwargs)


class OfOne:
    """Affine in each argument: the function itself runs if one depends on the inputs.

    Args:
        several: What happens if several arguments depend on them.
    """

    def __init__(self, several: Apply) -> None:
        self.several = several

    def __call__(self, run: Any, call: Call) -> Any:
        """The output."""
        return own_derivative(run, call) if len(call.places) == 1 else self.several(run, call)


_SCALINGS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"})


class Evaluating:
    """Linear, and refused if an argument says that the model is being trained.

    Args:
        position: The position of that argument.
        names: Its names.
    """

    def __init__(self, position: int, *names: str) -> None:
        self.position = position
        self.names = names

    def __call__(self, run: Any, call: Call) -> Any:
        """The output."""
        training = any(call.argument(self.position, name, False) for name in self.names)
        if not training:
            return own_derivative(run, call)
        if call.name not in _SCALINGS or call.places != ((0, None),):
            refuse_training(call, run.table.name)
        # Each run of the model draws the same numbers, so that this is a product with a constant.
        drawn = call(torch.ones_like(call.values[0]))
        return run.within(torch.mul, call.values[0], drawn)


def decomposed(function: Callable[..., Any]) -> Apply:
    """An operation that is decomposed into others by a function."""

    def apply(run: Any, call: Call) -> Any:
        try:
            return run.composite(call, function)
        except NotImplementedError as error:
            refuse_unknown(call, run.table.name, str(error))

    return apply
