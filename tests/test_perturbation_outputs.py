"""Perturbation methods: one number per example, one for a batch, several; branching models."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from games import FAMILY, PAIRS, SMALL, ablation, family, matrix, shapley, wavy, whole_batch
from oracles import close, randn

import attrfn


def stepped(x):
    """Whole numbers, so that models of integers can return them as they are."""
    return (3 * wavy(x)).floor()


def stepped_table(x):
    """(B, 2, 3)."""
    shifts = torch.arange(6).double()
    return torch.stack([stepped(x + s / 7) for s in shifts], 1).unflatten(1, (2, 3))


ROWS = {
    "column": lambda x: stepped(x)[:, None],
    "numpy": lambda x: stepped(x).numpy(),
    "numpy_column": lambda x: stepped(x)[:, None].numpy(),
    "integers": lambda x: stepped(x).long(),
    "numpy_integers": lambda x: stepped(x).long().numpy(),
    "float32": lambda x: stepped(x).float(),
}


WHOLE = {
    "float": lambda x: float(stepped(x).sum()),
    "int": lambda x: int(stepped(x).sum()),
    "zero_d": lambda x: stepped(x).sum(),
    "one_element": lambda x: stepped(x).sum()[None],
    "one_by_one": lambda x: stepped(x).sum()[None, None],
    "zero_d_integer": lambda x: stepped(x).sum().long(),
    "numpy_number": lambda x: np.float64(stepped(x).sum()),
    "numpy_zero_d": lambda x: stepped(x).sum().numpy(),
    "numpy_one_element": lambda x: stepped(x).sum()[None].numpy(),
}


SEVERAL = {
    "matrix": (lambda x: stepped_table(x)[:, 0], lambda t: t[:, 0]),
    "numpy_matrix": (lambda x: stepped_table(x)[:, 0].numpy(), lambda t: t[:, 0]),
    "integer_matrix": (lambda x: stepped_table(x)[:, 0].long(), lambda t: t[:, 0]),
    "three_d": (stepped_table, lambda t: t),
    "numpy_three_d": (lambda x: stepped_table(x).numpy(), lambda t: t),
}


@family
def test_one_number_per_example(name):
    """(B,), (B, 1), tensors and arrays, floating and integers: the same attributions (B, ...)."""
    method = FAMILY[name]
    want = method(stepped, SMALL)
    assert want.shape[0] == 3
    assert (want != 0).any()
    for kind, f in ROWS.items():
        got = method(f, SMALL)
        assert got.dtype == torch.float64, kind
        close(got, want, 1e-5 if kind == "float32" else 1e-10)


@family
def test_one_value_for_the_whole_batch(name):
    """Of a model that sums over the examples the value is that of their sum: (1, ...)."""
    method = FAMILY[name]
    want = method(stepped, SMALL).sum(0, keepdim=True)
    for kind, f in WHOLE.items():
        for options in ({}, {"chunk_size": 1}, {"chunk_size": None}):
            got = method(f, SMALL, **options)
            assert got.dtype == torch.float64, kind
            close(got, want)


@family
def test_several_outputs_without_a_target(name):
    """(B, K) and (B, K, L): one after the other, stacked behind the batch."""
    method = FAMILY[name]
    each = [
        method(stepped_table, SMALL, target=(k, m))
        for k, m in itertools.product(*map(range, (2, 3)))
    ]
    table = torch.stack(each, 1).unflatten(1, (2, 3))
    for f, part in SEVERAL.values():
        close(method(f, SMALL), part(table))


@family
def test_a_batch_of_one(name):
    """One number for one example is both the example's and the batch's: (1, ...).

    Whether (1,) is one of the two cannot be told, so that copies come one by one.
    """
    if name == "feature_permutation":
        return
    method = FAMILY[name]
    if name == "lime":
        method = functools.partial(method, similarity=lambda x, p, z: torch.ones(len(z), 1))
    want = method(stepped, SMALL[:1])
    for f in (*ROWS.values(), *WHOLE.values()):
        close(method(f, SMALL[:1], chunk_size=1), want, 1e-5)
    for kind in ("float", "int", "zero_d", "numpy_number", "numpy_zero_d"):
        close(method(WHOLE[kind], SMALL[:1]), want, 1e-5)


@family
def test_copies_with_a_callable_target(name):
    """It sees what the model returns and may return one number per row or one for all."""
    method = FAMILY[name]
    want = method(lambda x: stepped_table(x)[:, 1, 2] - stepped_table(x)[:, 0, 0], SMALL)
    got = method(stepped_table, SMALL, target=lambda out: out[:, 1, 2] - out[:, 0, 0])
    close(got, want)
    got = method(
        stepped_table, SMALL, target=lambda out: (out[:, 1, 2] - out[:, 0, 0]).sum(), chunk_size=1
    )
    close(got, want.sum(0, keepdim=True))


def branching(x):
    """Another formula where the batch as a whole is positive: a Python number."""
    if x.sum() > 0.5:
        return float(x.max() * x[0].sum())
    if bool((x[:, 0] < 0).all()):
        return int((3 * x).sum())
    return -float((x**2).sum())


def branching_rows(x):
    """The same for numbers of examples that depend on the others."""
    return x.flatten(1).sum(1) * (2.0 if x.sum() > 0.5 else -1.0) + x.flatten(1).amax(1)


BATCH = randn(3, 3, 4)


ONE_BY_ONE = {
    "chunk_size": {"chunk_size": 1},
    "loop": {"batching": "loop"},
}


@pytest.mark.parametrize("how", ONE_BY_ONE)
def test_models_that_branch_on_the_batch(how):
    """With chunk_size=1 the model sees one copy of the batch at a time, B rows of it."""
    options, shapes = ONE_BY_ONE[how], set()

    def watched(f):
        def g(x):
            shapes.add(tuple(x.shape))
            return f(x)

        return g

    for f in (branching, branching_rows):
        for method, rule in (
            (attrfn.feature_ablation, ablation),
            (attrfn.shapley_values, shapley),
            (functools.partial(attrfn.kernel_shap, n_samples=14), shapley),
        ):
            scores = whole_batch(rule, f, BATCH)
            want = torch.stack([scores[k].double() for k in range(4)], -1).reshape(-1, 4)
            close(method(watched(f), BATCH, **options), want, 1e-6)
        for index, rule in PAIRS.items():
            pairs = {k: v.double() for k, v in whole_batch(rule, f, BATCH).items()}
            want = matrix(pairs, range(4)).reshape(-1, 4, 4)
            close(attrfn.interactions(watched(f), BATCH, index=index, **options), want, 1e-6)
        got = attrfn.shapley_value_sampling(watched(f), BATCH, n_samples=2, **options)
        change = torch.as_tensor(f(BATCH)) - torch.as_tensor(f(0 * BATCH))
        close(got.sum(1), change.double().reshape(-1), 1e-6)
        lost = [f(BATCH) - f(BATCH.clone().index_fill_(1, torch.tensor([k]), 0)) for k in range(4)]
        lost = torch.stack([torch.as_tensor(v).double() for v in lost], -1).reshape(-1, 4)
        close(attrfn.occlusion(watched(f), BATCH, window=1, **options), lost, 1e-6)
        attrfn.feature_permutation(watched(f), BATCH, **options)
        attrfn.lime(watched(f), BATCH, **options)
    assert shapes == {(3, 4)}
