"""LIME against Captum's, float32, from the same draws or in distribution."""

from __future__ import annotations

import functools

import pytest
import torch
from captum_cases import F32, PAIR, PAIR0, same, two_inputs
from captum_perturbed import PAIR_MASKS, TABLE, TABLE0, captum_fits_rows_in_a_loop, mlp, seeded
from oracles import close

import attrfn

attr = pytest.importorskip("captum.attr")
linear_model = pytest.importorskip("captum._utils.models.linear_model")


# ---------------------------------------------------------------------------------------------
# LIME

DRAWS = torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) < 0.5


def draws(keys, n):
    assert len(keys) == len(DRAWS)
    return DRAWS[:, None, :n]


def captum_draws(original, **options):
    for z in DRAWS:
        yield z[None, : options["num_interp_features"]].long()


FITS = {
    # sklearn stops its coordinate descent early unless told otherwise.
    "lasso": (
        lambda: attrfn.surrogates.lasso(0.01),
        lambda: linear_model.SkLearnLasso(alpha=0.01, tol=1e-6, max_iter=100_000),
    ),
    "strong_lasso": (
        lambda: attrfn.surrogates.lasso(0.05),
        lambda: linear_model.SkLearnLasso(alpha=0.05, tol=1e-6, max_iter=100_000),
    ),
    "ridge": (
        lambda: attrfn.surrogates.ridge(0.5),
        lambda: linear_model.SkLearnRidge(alpha=0.5),
    ),
}
each_fit = pytest.mark.parametrize(("ours", "theirs"), FITS.values(), ids=FITS)

KERNELS = pytest.mark.parametrize(
    ("distance", "width"), [("cosine", 1.0), ("cosine", 0.25), ("euclidean", 2.0)]
)


def captum_kernel(distance, width):
    from captum.attr._core.lime import get_exp_kernel_similarity_function

    return get_exp_kernel_similarity_function(distance, width)


@captum_fits_rows_in_a_loop
@each_fit
@KERNELS
def test_lime_from_the_same_draws(ours, theirs, distance, width):
    model = mlp()
    want = attr.Lime(model, theirs(), captum_kernel(distance, width), captum_draws).attribute(
        TABLE, TABLE0, 1, n_samples=60, perturbations_per_eval=20
    )
    got = attrfn.lime(
        model,
        TABLE,
        baselines=TABLE0,
        target=1,
        n_samples=60,
        surrogate=ours(),
        similarity=attrfn.surrogates.exponential_kernel(distance, width),
        perturb=draws,
        chunk_size=None,
    )
    assert (want != 0).sum() > 6
    close(got, want, tolerance=1e-4)


@captum_fits_rows_in_a_loop
def test_lime_of_two_inputs_with_the_defaults_of_both():
    """The lasso of 0.01 and the cosine kernel over both inputs; only the draws are given."""
    model, mask = two_inputs(), PAIR_MASKS["across_tensors"]
    captum = attr.Lime(model, perturb_func=captum_draws)
    options = {"target": [1, 0, 3, 2], "feature_mask": mask, "n_samples": 60}
    want = captum.attribute(PAIR, PAIR0, **options)
    ours = functools.partial(
        attrfn.lime, model, PAIR, baselines=PAIR0, perturb=draws, chunk_size=None, **options
    )
    close(ours(), want, tolerance=1e-3)  # sklearn's tolerance
    want = captum.attribute(PAIR, PAIR0, **options, return_input_shape=False)
    close(ours(return_input_shape=False), want, tolerance=1e-3)


@KERNELS
def test_similarities(distance, width):
    x = tuple(t[:1] for t in PAIR)
    moved = tuple(t[1:] for t in PAIR)
    kernel = captum_kernel(distance, width)
    want = torch.tensor([[kernel(x, tuple(t[i : i + 1] for t in moved), None)] for i in range(3)])
    ours = attrfn.surrogates.exponential_kernel(distance, width)
    same(ours(x, tuple(t[:, None] for t in moved), None).to(F32), want)


@captum_fits_rows_in_a_loop
def test_lime_agrees_in_distribution():
    """Each with draws of its own: the mean of 10 fits of 500 samples and its spread."""
    model = mlp()
    options = {"target": 1, "n_samples": 500}
    captum = attr.Lime(model, linear_model.SkLearnRidge(alpha=0.1))
    want = seeded(
        lambda: torch.stack(
            [
                captum.attribute(TABLE[:2], TABLE0, perturbations_per_eval=500, **options)
                for _ in range(10)
            ]
        )
    )
    got = torch.stack(
        [
            attrfn.lime(
                model,
                TABLE[:2],
                baselines=TABLE0,
                surrogate=attrfn.surrogates.ridge(0.1),
                key=key,
                **options,
            )
            for key in range(10)
        ]
    )
    error = ((want.var(0) + got.var(0)) / 10) ** 0.5
    assert error.max() < 0.02
    assert ((want.mean(0) - got.mean(0)).abs() < 5 * error).all()
