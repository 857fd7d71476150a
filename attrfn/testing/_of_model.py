"""Whether a model is fit for attribution: rows, randomness, derivatives, rules and layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import optree
import torch
from torch import Tensor, nn

from attrfn._copies.batch import binds_rows, pick_bound, unmarked_rows
from attrfn._copies.progress import steps
from attrfn._explain.tree import as_dicts, batch_size, flatten
from attrfn._torch.typing import ModelFn, Target, Tree
from attrfn.testing._derivatives import derivatives
from attrfn.testing._draw import normal
from attrfn.testing._model_case import Case, root_of, said
from attrfn.testing._model_report import Finding, ModelReport
from attrfn.testing._parts import hidden, layers_of, names_of, rules_of

_NOISY: tuple[type[nn.Module], ...] = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
"""Modules that mix rows or draw random numbers in training mode."""


def check_model(
    model_fn: ModelFn, inputs: Tree, *, target: Target = None, progress: bool = False
) -> ModelReport:
    """Look whether a model is fit for attribution.

    The table says whether rows are independent; whether the model draws random numbers, is in
    training mode or changes while it runs; whether gradients exist and agree with finite
    differences, or something is hidden from them; whether vmap and forward mode work and second
    derivatives are there; which operations have no rule in DeepLIFT and LRP; which modules a
    function hides; and which layers can be explained.

    The model is run some dozen times, on private copies.

    Args:
        model_fn: The model, called as ``model_fn(*inputs)`` for a tuple, else
            ``model_fn(inputs)``.
        inputs: Some inputs, (B, ...) each; two or more examples show more.
        target: Which scalar of each example is explained; ``None`` takes the sum of the outputs.
        progress: Show a progress bar over the questions and the layers.

    Returns:
        A :class:`attrfn.testing.ModelReport`: ``print`` it, or ask ``report.ok`` and
        ``report.find("rows")``.

    Raises:
        ValueError: The inputs hold no examples.

    Example:
        >>> import torch, attrfn.testing
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
        >>> report = attrfn.testing.check_model(model, torch.randn(2, 4))
        >>> report.ok
        True
        >>> print(report.find("rows").text)
        each row is explained by itself: alone and among others the outputs are the same
    """
    x, rebuild = flatten(inputs)
    if batch_size(x) == 0:
        raise ValueError("inputs has no examples, expected two or more")
    x = tuple([t.detach() for t in x])
    c = Case(model_fn, inputs, _total if target is None else target, x, rebuild)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = _outputs(c)
        if outputs.good is False:
            return ModelReport((outputs,), ())
        return _report(c, outputs, progress)


def _report(c: Case, outputs: Finding, progress: bool) -> ModelReport:
    random = _random(c)
    fixed = random.good is True
    questions: tuple[Callable[[], Iterable[Finding]], ...] = (
        lambda: (outputs, _rows(c, fixed), random, _training(c), _state(c)),
        lambda: derivatives(c, fixed),
        lambda: rules_of(c),
        lambda: (hidden(c),),
    )
    found: list[Finding] = []
    layers: list[Finding] = []
    total = len(questions) + len(names_of(c))
    with steps(total, "check_model", progress, ("step", "steps")) as advance:
        for question in questions:
            found += question()
            advance(1)
        for layer in layers_of(c):
            layers.append(layer)
            advance(1)
    return ModelReport(tuple(found), tuple(layers))


def _total(outputs: Any) -> Tensor:
    """The sum of all floating outputs of each row."""
    leaves = [t for t in optree.tree_leaves(as_dicts(outputs)) if isinstance(t, Tensor)]
    kept = [t for t in leaves if t.ndim and t.is_floating_point()]
    same = [t.reshape(len(t), -1).sum(1) for t in kept if len(t) == len(kept[0])]
    return torch.stack(same).sum(0)


def _outputs(c: Case) -> Finding:
    try:
        y = c.values(c.x)
    except Exception as error:
        return Finding("outputs", False, said(error))
    if not torch.isfinite(y).all():
        return Finding("outputs", False, "some outputs are not finite")
    return Finding("outputs", True, f"{y.shape[1]} finite number(s) for each of {len(y)} examples")


def _close(a: Tensor, b: Tensor) -> bool:
    size = max(float(b.abs().max()) if b.numel() else 0.0, 1e-6)
    return a.shape == b.shape and float((a - b).abs().max() if a.numel() else 0) <= 1e-4 * size


def _rows(c: Case, deterministic: bool) -> Finding:
    batch = c.x[0].shape[0]
    if not deterministic:
        return Finding("rows", None, "not checked, because the outputs are random")
    x = c.x
    if batch == 1:
        if binds_rows(c.model_fn, 1) or not all(t.is_floating_point() for t in x):
            return Finding("rows", None, "not checked: give two examples or more")
        near = [t + 0.1 * normal(*t.shape, seed=i).to(t) for i, t in enumerate(x)]
        x, batch = tuple([torch.cat([t, n]) for t, n in zip(x, near, strict=True)]), 2
    unsure = [name for name, _ in unmarked_rows(c.model_fn, batch)]
    try:
        together = c.values(x)
        for i in range(min(batch, 4)):
            others = tuple([_with_row(t.roll(1, 0), i, t) for t in x])
            if not _close(c.values(others)[i], together[i]):
                return Finding("rows", False, f"output {i} changes with the other rows: rows mix")
            if unsure:
                continue
            own = c._replace(model_fn=pick_bound(c.model_fn, batch, torch.tensor([i])))
            alone = own.values(tuple([t[i : i + 1] for t in x]))
            if not _close(alone[0], together[i]):
                return Finding("rows", False, f"row {i} alone has other outputs than in the batch")
    except Exception as error:
        return Finding("rows", False, f"other rows raise {said(error)}")
    text = "each row is explained by itself: alone and among others the outputs are the same"
    if unsure:
        names = " and ".join(dict.fromkeys([name or "what" for name in unsure]))
        text += (
            f"; {names} that functools.partial binds counts as rows of the examples for its size: "
            "mark it with attrfn.per_example or attrfn.shared"
        )
    return Finding("rows", True, text)


def _with_row(t: Tensor, i: int, own: Tensor) -> Tensor:
    return torch.cat([t[:i], own[i : i + 1], t[i + 1 :]])


def _random(c: Case) -> Finding:
    if _close(c.values(c.x, 1), c.values(c.x, 2)):
        return Finding("deterministic", True, "two runs are the same")
    return Finding("deterministic", False, "two runs differ: the model draws random numbers")


def _training(c: Case) -> Finding:
    root = root_of(c.model_fn)
    if root is None:
        return Finding("evaluation mode", None, "not checked: the model function shows no module")
    awake = [n for n, m in root.named_modules() if m.training and not list(m.children())]
    if not awake:
        return Finding("evaluation mode", True, "all modules are in evaluation mode")
    risky = [n for n, m in root.named_modules() if m.training and isinstance(m, _NOISY)]
    if risky:
        text = f"{', '.join(risky[:4])} in training mode: call model.eval()"
        return Finding("evaluation mode", False, text)
    return Finding("evaluation mode", True, "in training mode, where no module behaves otherwise")


def _state(c: Case) -> Finding:
    root = root_of(c.model_fn)
    if root is None:
        return Finding("state", None, "not checked: the model function shows no module")
    try:
        twin = copy.deepcopy(root)
    except Exception as error:
        return Finding("state", None, f"not checked, because a copy raises {said(error)}")
    if root is not c.model_fn:
        return Finding("state", None, "not checked: give the module itself")
    before = {k: v.clone() for k, v in twin.state_dict().items() if isinstance(v, Tensor)}
    args = c.rebuild([t.clone() for t in c.x])
    used = {t.device for t in c.x if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=used), torch.no_grad():
        twin(*args) if isinstance(args, tuple) and not hasattr(args, "_fields") else twin(args)
    after = twin.state_dict()
    moved = [k for k, v in before.items() if k in after and not torch.equal(v, after[k])]
    if moved:
        text = f"{', '.join(moved[:4])} change in a call; methods run on private copies"
        return Finding("state", False, text)
    if any(not torch.equal(a, b) for a, b in zip(flatten(args)[0], c.x, strict=True)):
        return Finding("state", True, "the model writes into its inputs; methods give it copies")
    return Finding("state", True, "parameters, buffers and inputs are as before")
