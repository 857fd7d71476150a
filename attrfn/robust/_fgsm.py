"""The fast gradient sign method: one step."""

from __future__ import annotations

import torch

from attrfn._explain.forms import documented
from attrfn._explain.tree import each
from attrfn._torch.typing import ModelFn, Target, Tree
from attrfn.robust._ball import Amount, along, amount, attacked
from attrfn.robust._objective import Objective
from attrfn.robust._options import AttackOptions


@documented(AttackOptions, scores=None)
def fgsm(
    model_fn: ModelFn,
    inputs: Tree,
    *,
    target: Target = None,
    epsilon: Amount,
    objective: Objective = "cross_entropy",
    targeted: bool = False,
    bounds: tuple[Tree, Tree] | None = None,
    mask: Tree = None,
    create_graph: bool = False,
) -> Tree:
    """Fast gradient sign method: one step that raises the objective L as far as L is linear.

        x' = clip(x + epsilon mask sign(dL/dx), low, high)

    The outputs are logits, not probabilities. Where the gradient is 0, x stays.

    Args:
        epsilon: The size of the step in each element, a number of at least 0 or one for each
            example, (B,).

    Returns:
        Inputs of the same structure, shapes and dtypes.

    Example:
        >>> import torch
        >>> from attrfn import robust
        >>> w = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> robust.fgsm(lambda x: x @ w.T, torch.ones(1, 2), target=0, epsilon=0.25)
        tensor([[1.2500, 0.7500]])

    Reference:
        Goodfellow, Shlens and Szegedy, Explaining and Harnessing Adversarial Examples, 2014.
        https://arxiv.org/abs/1412.6572
    """
    a = attacked(
        model_fn,
        inputs,
        target=target,
        objective=objective,
        targeted=targeted,
        bounds=bounds,
        mask=mask,
        create_graph=create_graph,
    )
    epsilon = amount("epsilon", epsilon, a)
    x = tuple([t[None] for t in a.p.x])
    _, grads = a.gradients(x)
    moved = a.allowed(along(x, epsilon, each(torch.sign, grads)))
    return a.result(tuple([t[0] for t in moved]))
