"""A model function with other derivatives."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from attrfn._explain.baseline import fill_baselines
from attrfn._explain.tree import call_model, flatten
from attrfn._model.bind import bind
from attrfn._rules.hidden_relus import refuse_scripted
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.routes import check_routes
from attrfn._rules.run import Entry
from attrfn._rules.scope import scoped
from attrfn._rules.table import Rules
from attrfn._torch.autodiff import twice_differentiable
from attrfn._torch.compiling import is_compiling
from attrfn._torch.generators import unmoved
from attrfn._torch.guard import guarded
from attrfn._torch.typing import Leaves, ModelFn, Tree


@guarded
def with_rules(model_fn: ModelFn, rules: Rules) -> ModelFn:
    """A model function with the same values, and derivatives by rules.

    Its gradient is relevance divided by the input for the composites of LRP (relevance itself with
    a rule for ``first``), the multipliers for :func:`attrfn.rules.rescale`, and the guided gradient
    for :func:`attrfn.rules.guided`. The coefficients of the rules are constants here; methods such
    as :func:`lrp` are differentiable through them.

    Args:
        model_fn: A model function of floating tensors or pytrees of them.
        rules: One of :mod:`attrfn.rules`.

    Returns:
        A model function with the same arguments.

    Raises:
        TypeError: ``rules`` is not one of :mod:`attrfn.rules`.
        UnsupportedOpError: (When called) the model calls an operation that the rules do not cover.

    Example:
        >>> import torch, attrfn
        >>> f = attrfn.with_rules(lambda x: x.relu().sum(1), attrfn.rules.rescale(baselines=-1.0))
        >>> attrfn.gradient(f, torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])

    Reference:
        Ancona et al., Towards better understanding of gradient-based attribution methods for Deep
        Neural Networks, 2018.
    """
    if not isinstance(rules, Rules):
        raise TypeError(
            f"rules is a {type(rules).__name__}, expected one of attrfn.rules, such as "
            "attrfn.rules.attn_lrp()"
        )

    @guarded
    def ruled(*inputs: Any) -> Any:
        return _run(model_fn, rules, inputs[0] if len(inputs) == 1 else inputs)

    return ruled


def _run(model_fn: ModelFn, rules: Rules, inputs: Tree) -> Any:
    """The outputs of the model function, whose derivatives are those of the rules."""
    x, rebuild = flatten(inputs)
    if not rules.strict:
        refuse_scripted(model_fn, rules.name)
    # Methods run the model on the inputs first, so that the coefficients of rules can be
    # differentiated. Here that run is left out: the first derivative does not need it.
    scope: list[Any] = []
    model = bind(scoped(model_fn, rules, scope, frozen=False), frozen=False)
    at_x0: list[Entry] | None = None

    def again(rows: Leaves, record: Record) -> None:
        # What the model draws, the other run draws again.
        with contextlib.nullcontext() if is_compiling() else unmoved(), record:
            call_model(model, rebuild(rows))

    if rules.complete:
        x0 = fill_baselines(rules.baselines, inputs, x)
        at_x0 = []
        record = Record(rules, [], at_x0, False, scope)
        with torch.no_grad():
            again(record.add(x0), record)
    run = Replay(rules, [], None, at_x0, scope)
    rows = run.add(x)
    try:
        with twice_differentiable(False), run:
            outputs = call_model(model, rebuild(rows))
            run.returned(outputs)
    finally:
        if rules.complete and run.routes:
            check_routes(run, x0, again)
    run.finished(outputs)
    return outputs
