"""Layer-wise relevance propagation."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor

from attrfn._explain.explain import explain
from attrfn._explain.forms import documented
from attrfn._explain.options import Arguments, AtLayer, GraphOptions
from attrfn._explain.shared import marked
from attrfn._explain.tree import each
from attrfn._layers.at import at_layer, each_layer
from attrfn._layers.split import layers_of
from attrfn._rules.at_sites import relevances
from attrfn._rules.conservation import Audit, Leak
from attrfn._rules.formulas import LinearRule
from attrfn._rules.gradient import gradients_by_rules
from attrfn._rules.relevance import EPSILON_PLUS, composite
from attrfn._rules.scope import scoped
from attrfn._rules.table import Rules
from attrfn._torch.autodiff import keeps_graph, normal_tensors, transforming
from attrfn._torch.typing import At, Layer, ModelFn, Target, Tree


class LrpOptions(GraphOptions, total=False):
    """What LRP and its layer form take.

    Raises:
        UnsupportedOpError: The model calls an operation that the rules do not cover.
        TypeError: ``rules`` is neither a composite nor a rule.
        ValueError: A rule names a module that the model does not have, or whose forward does not
            run.
    """

    rules: Rules | LinearRule | None
    """A composite of :mod:`attrfn.rules` (default :func:`attrfn.rules.epsilon_plus`), or one rule
    for all linear operations."""


@documented(Arguments, LrpOptions)
def lrp(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    rules: Rules | LinearRule | None = None,
    create_graph: bool = False,
) -> Tree:
    """LRP: the explained output is passed back from operation to operation, share by share.

        R_i = sum_j share_ij R_j,   sum_i share_ij = 1 (up to biases and epsilon);   A = R at x

    ReLU, sums, residual connections and pooling pass relevance on as it is; linear operations
    share it by the rules of a composite, softmax and normalisations as in AttnLRP.

    Returns:
        Relevances like the inputs; they sum to the explained output up to what biases and the
        epsilon of the rules take.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: torch.nn.functional.linear(x, torch.tensor([[1.0, 3.0]]))
        >>> attrfn.lrp(f, torch.tensor([[2.0, 1.0]]), rules=attrfn.rules.epsilon(0))
        tensor([[2., 3.]])

    Reference:
        Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
        Relevance Propagation, 2015.
        Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
        Transformers, 2024.
    """
    chosen = lrp_rules(rules)
    scope: list[LinearRule] = []
    model = scoped(model_fn, chosen, scope, frozen=not keeps_graph(create_graph))
    p = explain(model, inputs, target, create_graph=create_graph)
    grads, _ = gradients_by_rules(p, chosen, p.x, scope=scope)
    # Passed back is relevance divided by activation, which needs no rule at sums and residual
    # connections. A rule for where the inputs are read passes back relevance itself.
    if chosen.linear.first is None:
        grads = each(lambda x, g: x * g, p.x, grads)
    return p.result(grads)


@documented(Arguments, LrpOptions)
def conservation(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    rules: Rules | LinearRule | None = None,
) -> list[Leak]:
    """The relevance that each operation receives and passes on, to find where rules of LRP lose it.

    Returns:
        One :class:`attrfn.rules.Leak` for each operation that depends on the inputs, in the order
        of the calls: its name, its module and line, the relevance ``received`` at its outputs,
        ``passed`` to its inputs and ``lost`` between them, summed over the batch.

    Raises:
        ValueError: Inside a torch.func transform or torch.compile, where values cannot be read; or
            the relevance at the inputs and what is lost do not add up to the explained output.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: (torch.nn.functional.linear(x, torch.ones(1, 2)) + 1).relu()
        >>> leaks = attrfn.rules.conservation(f, torch.ones(1, 2), rules=attrfn.rules.epsilon(0))
        >>> [(leak.op, leak.lost) for leak in leaks if abs(leak.lost) > 1e-6]
        [('torch.Tensor.add', 1.0)]
    """
    if transforming():
        raise ValueError(
            "conservation reads values, which it cannot do inside a torch.func transform or "
            "torch.compile: call it outside"
        )
    chosen = lrp_rules(rules)
    scope: list[LinearRule] = []
    p = explain(scoped(model_fn, chosen, scope, frozen=True), inputs, target)
    if p.batch == 0:
        raise ValueError("inputs holds no example, expected at least one")
    # Relevances are read from gradients at every operation, for which the run records a graph even
    # if the caller is in no_grad or inference mode.
    run = Audit(chosen, scope)
    with torch.inference_mode(False), torch.enable_grad():
        rows = run.add([t.detach().requires_grad_() for t in normal_tensors(p.x)])
        values = p.values(rows, 1, run)
        return run.leaks(values)


def lrp_rules(rules: Rules | LinearRule | None) -> Rules:
    """The composite that an argument ``rules`` stands for."""
    if rules is None:
        return EPSILON_PLUS
    if isinstance(rules, LinearRule):
        if rules.first:
            raise ValueError(
                f"rules is {rules.name} alone, which applies only where the inputs are read: "
                f"use attrfn.rules.composite(first=attrfn.rules.{rules.name}(...))"
            )
        return composite(rules.name, rules, rules)
    given: object = rules
    if not isinstance(given, Rules) or given.linear is None:
        came = given.name if isinstance(given, Rules) else f"a {type(given).__name__}"
        raise TypeError(
            f"rules is {came}, expected a composite such as attrfn.rules.epsilon_plus() or a rule "
            "such as attrfn.rules.gamma()"
        )
    return given


@documented(AtLayer, Arguments, LrpOptions)
def layer_lrp(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    layer: Layer,
    target: Target = None,
    at: At = "output",
    call: int | None = 0,
    rules: Rules | LinearRule | None = None,
    create_graph: bool = False,
) -> Tree:
    """LRP up to a layer: the relevance of its activation.

        A = a * d(target)/da by the rules,   a = head(x)

    Args:
        rules: A composite of :mod:`attrfn.rules` or one rule for all linear operations; a rule for
            where the inputs are read does not apply at a layer.

    Returns:
        Relevances like the layer's activation; a list for several layers.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> first, second = attrfn.layer_lrp(model, torch.randn(5, 3), layer=["0", "1"], target=1)
        >>> first.shape, second.shape
        (torch.Size([5, 4]), torch.Size([5, 4]))

    Reference:
        Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
        Relevance Propagation, 2015.
    """
    # The tail reads an activation, and not inputs of which a range such as that of pixels is known.
    chosen = lrp_rules(rules)
    inner = chosen._replace(linear=chosen.linear._replace(first=None))

    if isinstance(layer, (list, tuple)) and not create_graph:
        found = relevances(
            model_fn, inputs, layers_of(layer), target=target, at=at, call=call, rules=inner
        )
        if found is not None:
            return [_times(*pair) for pair in found]

    def one(layer: Layer) -> Any:
        return at_layer(lrp, layer, at=at, call=call)(
            model_fn, inputs, target=target, rules=inner, create_graph=create_graph
        )

    return each_layer(one, layer)


def _times(activation: Tree, grads: Tree) -> Tree:
    """The relevance of an activation."""

    def relevance(a: Tensor, g: Tensor) -> Tensor:
        return marked([(a * g).to(a.dtype).detach()], "divided")[0]

    return optree.tree_map(relevance, activation, grads)
