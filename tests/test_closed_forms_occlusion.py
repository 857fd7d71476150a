"""Occlusion against loops over windows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from games import row, spread, start_of, wavy, wavy_pair
from oracles import as_tuple, close, randn

import attrfn


def occlusion(f, x, x0, windows, strides):
    """Each leaf on its own; a loop over examples, windows and the elements of a window."""
    xs = as_tuple(x)
    starts = [start_of(t, b) for t, b in zip(xs, spread(x0, xs), strict=True)]
    results = []
    for leaf, (t, window, stride) in enumerate(zip(xs, windows, strides, strict=True)):
        total, count = torch.zeros_like(t), torch.zeros_like(t)
        corners = []
        for size, w, step in zip(t.shape[1:], window, stride, strict=True):
            corners.append([k * step for k in range(1 + math.ceil((size - w) / step))])
        for i, corner in itertools.product(range(len(t)), itertools.product(*corners)):
            inside = (i, *[slice(c, c + w) for c, w in zip(corner, window, strict=True)])
            point = [z.clone() for z in xs]
            point[leaf][inside] = starts[leaf][inside]
            lost = (f(*xs)[i] - f(*point)[i]).to(t)
            total[inside] += lost
            count[inside] += 1
        assert (count > 0).all()
        results.append(total / count)
    return tuple(results) if isinstance(x, tuple) else results[0]


WINDOWS = {
    # shape behind the batch, window, stride, both written out
    "1d": ((7,), 3, None, (3,), (1,)),
    "1d_cut_off": ((7,), (3,), 3, (3,), (3,)),
    "1d_overlap_cut_off": ((8,), 3, (2,), (3,), (2,)),
    "1d_all": ((4,), 4, None, (4,), (1,)),
    "1d_all_and_any_stride": ((4,), 4, 9, (4,), (9,)),
    "1d_single": ((4,), 1, None, (1,), (1,)),
    "2d": ((3, 4), 2, None, (2, 2), (1, 1)),
    "2d_rectangles": ((3, 5), (1, 3), (1, 2), (1, 3), (1, 2)),
    "2d_cut_off": ((5, 4), (2, 3), (2, 3), (2, 3), (2, 3)),
    "2d_cut_off_to_one": ((5, 5), 4, 4, (4, 4), (4, 4)),
    "3d_channels": ((2, 3, 3), (2, 2, 2), (2, 1, 1), (2, 2, 2), (2, 1, 1)),
    "3d_cut_off": ((2, 5, 3), (1, 3, 2), (1, 2, 2), (1, 3, 2), (1, 2, 2)),
    "3d_whole_dim": ((3, 2, 4), (3, 1, 2), (5, 1, 1), (3, 1, 2), (5, 1, 1)),
}


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("f", [wavy, lambda x: x.flatten(1) @ randn(3, x[0].numel())])
def test_occlusion_is_the_loop_over_windows(case, f):
    shape, window, stride, *full = WINDOWS[case]
    x, x0 = randn(0, 2, *shape), randn(1, *shape)
    got = attrfn.occlusion(f, x, window=window, stride=stride, baselines=x0)
    close(got, occlusion(f, x, x0, full[:1], full[1:]))


def test_occlusion_by_hand():
    """f = sum: windows of 2 over (1, 2, 4) lose 3 and 6; the middle has their mean."""
    got = attrfn.occlusion(lambda x: x.sum(1), row(1, 2, 4), window=2)
    close(got, row(3, 4.5, 6))
    # steps of 2: the second window is cut off at the border and holds the 4 alone
    got = attrfn.occlusion(lambda x: x.sum(1), row(1, 2, 4), window=2, stride=2)
    close(got, row(3, 3, 4))


@pytest.mark.parametrize(
    ("window", "stride", "full", "steps"),
    [
        (2, None, [(2,), (2, 2)], [(1,), (1, 1)]),
        (((2,), (1, 2)), None, [(2,), (1, 2)], [(1,), (1, 1)]),
        ((3, (2, 1)), ((2,), (1, 1)), [(3,), (2, 1)], [(2,), (1, 1)]),
        (((2,), (2, 3)), (2, (1, 2)), [(2,), (2, 3)], [(2,), (1, 2)]),
        ((2, 1), (None, 1), [(2,), (1, 1)], [(1,), (1, 1)]),
    ],
    ids=["int", "tuples", "int_and_tuple", "strides", "none"],
)
def test_occlusion_of_two_inputs_takes_each_on_its_own(window, stride, full, steps):
    x, x0 = (randn(0, 2, 5), randn(1, 2, 2, 4)), (0.2, randn(2, 2, 4))
    if window == (2, 1):  # all ints: sizes of a window, not one for each input
        window = ((2,), (1, 1))
    got = attrfn.occlusion(wavy, x, window=window, stride=stride, baselines=x0)
    close(got, occlusion(wavy, x, x0, full, steps))


def test_occlusion_of_a_dict():
    x = {"a": randn(0, 2, 3), "b": [randn(1, 2, 2, 3)]}
    got = attrfn.occlusion(
        lambda t: wavy(t["a"], t["b"][0]), x, window={"a": 2, "b": [(1, 2)]}, stride=1
    )
    a, b = occlusion(wavy, (x["a"], x["b"][0]), 0.0, [(2,), (1, 2)], [(1,), (1, 1)])
    close(got, {"a": a, "b": [b]})


def test_occlusion_of_several_outputs():
    x = randn(0, 2, 3, 4)
    options = {"window": (2, 3), "stride": (1, 2)}
    got = attrfn.occlusion(wavy_pair, x, **options)
    want = [
        occlusion(lambda x, k=k: wavy_pair(x)[:, k], x, 0.0, [(2, 3)], [(1, 2)]) for k in (0, 1)
    ]
    close(got, torch.stack(want, 1))
    close(attrfn.occlusion(wavy_pair, x, target=1, **options), want[1])


def test_windows_of_one_element_are_feature_ablation():
    x, x0 = randn(0, 2, 3, 2), randn(1, 2, 3, 2)
    got = attrfn.occlusion(wavy, x, window=1, baselines=x0)
    close(got, attrfn.feature_ablation(wavy, x, baselines=x0))
