"""Chains of operations that are one function of one tensor, element by element.

An activation that Python writes out, such as ``0.5 * x * (1 + tanh(a * (x + b * x ** 3)))``, is one
function y = f(x), whose relevance goes to x as that of ``gelu`` does. Operation by operation it
would be shared among its factors, and the number 1 would take a part away. So LRP notes of each
value from which others it was made, and gives it the derivative y / x where two things show that
the operations belong together:

    a product, quotient or the like of two functions of one tensor: of the nearest such tensor
    a number added to a curved function of a tensor, as in ``1 + exp(x)``, and what is made of that

A number or a parameter that is added to a plain value is a bias, and stays one; what is added to a
power, such as a standard deviation, keeps a divisor from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from attrfn._rules import ops
from attrfn._rules.call import FIRST, Call, tensors
from attrfn._rules.run import Run
from attrfn._rules.table import Constant, Op

_SUMS = "add sub subtract rsub __radd__ __rsub__"
_SCALES = (
    "mul multiply __rmul__ div divide true_divide neg negative positive clone contiguous to "
    "type type_as float double half bfloat16"
)
_DIVISIONS = "rsqrt reciprocal __rdiv__ __rtruediv__"
_POWER_NAMES = "sqrt square pow float_power abs absolute clamp clip clamp_min maximum fmax"
_POWERS = frozenset(_POWER_NAMES.split())
_THROUGH = frozenset(ops.THROUGH_ZERO.split())
KINDS = {
    **dict.fromkeys(ops.ELEMENTWISE.split(), "curve"),
    **dict.fromkeys(_SUMS.split(), "sum"),
    **dict.fromkeys(_SCALES.split(), "scale"),
    **dict.fromkeys(_DIVISIONS.split(), "division"),
}


class Node(NamedTuple):
    """How a value was made, element by element.

    Attributes:
        value: The value; of a node without a call, what the chain starts from.
        call: The operation, or None.
        made_of: The nodes of its arguments.
        parent: The nearest node of which it is a function, or None.
        depth: How many such nodes follow one another.
        curve_of: The node of which it is a curved function, for the sum with a number.
        bent: Whether that function is more than a power, of which statistics are made.
        whole: Whether it has its derivative by ``curve_of`` and not by its arguments.
        writes: How many writes in place the run had seen: a later one may have changed the value.
    """

    value: Tensor
    call: Call | None
    made_of: tuple[Node, ...]
    parent: Node | None
    depth: int
    curve_of: Node | None
    bent: bool
    whole: bool
    writes: int

    def at(self, start: Node, value: Any, known: dict[int, Any]) -> Any:
        """The value as a function of that of a node at which the chain starts."""
        if self is start or self.call is None:
            return value
        if id(self) not in known:
            known[id(self)] = self.call(*[n.at(start, value, known) for n in self.made_of])
        return known[id(self)]


def following(table: dict[str, Op], rule: Callable[..., Any]) -> dict[str, Op]:
    """The table, with chains recognised; ``rule`` is that of a function of one tensor."""
    return {
        name: op._replace(apply=_chained(KINDS[name], op, rule)) if name in KINDS else op
        for name, op in table.items()
    }


def _chained(kind: str, op: Op, rule: Callable[..., Any]) -> Callable[[Any, Call], Any]:
    def apply(run: Any, call: Call) -> Any:
        if call.in_place:
            return op.apply(run, call)
        node = _node(run, kind, call)
        if node is None:
            return op.apply(run, call)
        if node.whole:
            start: Any = node.curve_of
            whole = Call(
                lambda t: node.at(start, t, {}), (run.start_of(start),), {}, FIRST, call.name
            )
            out = run.primitive(whole, rule)
        else:
            out = op.apply(run, call)
        if not isinstance(out, Constant):
            run.chains.put(out, node._replace(value=out))
        return out

    return apply


def _node(run: Run, kind: str, call: Call) -> Node | None:
    """The node of a call's output; None where it is not a function of one tensor."""
    made_of = [known(run, t) for t in call.values]
    parent = made_of[0] if len(made_of) == 1 else _common(made_of)
    if parent is None or not _keeps_shape(call, parent):
        return None
    first = made_of[0]
    curve_of, whole = first.curve_of, False
    if len(made_of) > 1:
        # x + f(x) shares relevance as it is; a product would halve it.
        curve_of, whole = (None, False) if kind == "sum" else (parent, True)
    elif kind == "sum":
        whole = first.bent and curve_of is not None and _adds_number(call)
        curve_of = curve_of if whole else None
    elif kind == "division":
        # The divisor of a normalisation counts as a constant, and that of a sigmoid does not.
        whole = first.whole
        curve_of = curve_of if whole else None
    elif call.name in _THROUGH:
        curve_of = None
    elif kind == "curve":
        whole = first.whole or curve_of is not None
        curve_of = _unscaled(first) if curve_of is None else curve_of
    else:
        whole = False
    bent = any(node.bent for node in made_of) or (kind == "curve" and call.name not in _POWERS)
    depth = parent.depth + 1
    return Node(first.value, call, tuple(made_of), parent, depth, curve_of, bent, whole, run.writes)


def _unscaled(node: Node) -> Node:
    """The node of which one is a multiple: relevance passes multiples as it is."""
    while node.call is not None and KINDS[node.call.name] == "scale" and len(node.made_of) == 1:
        node = node.made_of[0]
    return node


def known(run: Run, t: Tensor) -> Node:
    """The node of a tensor; a new one for what no chain made."""
    node: Node | None = run.chains.get(t)
    if node is None or node.writes != run.writes:
        node = Node(t, None, (), None, 0, None, False, False, run.writes)
        run.chains.put(t, node)
    return node


def _common(nodes: list[Node]) -> Node | None:
    """The nearest node of which all are functions, or None."""
    found: Node | None = nodes[0]
    for other in nodes[1:]:
        at: Node | None = other
        while found is not None and at is not None and found is not at:
            if found.depth > at.depth:
                found = found.parent
            elif at.depth > found.depth:
                at = at.parent
            else:
                found, at = found.parent, at.parent
        found = None if at is None else found
    return found


def _keeps_shape(call: Call, parent: Node) -> bool:
    """Whether a call gives a value for each of the tensor where its chain starts."""
    if len(call.args) == 1 and not any(isinstance(v, Tensor) for v in call.kwargs.values()):
        return not isinstance(call.args[0], (tuple, list))  # most calls: one tensor alone
    shape = parent.value.shape
    for _, t in tensors(call.args, call.kwargs):
        if t.ndim > len(shape) or any(
            n not in (1, m) for n, m in zip(t.shape[::-1], shape[::-1], strict=False)
        ):
            return False
    return all(t.shape == shape for t in call.values)


def _adds_number(call: Call) -> bool:
    return len(tensors(call.args, call.kwargs)) == 1
