"""Pictures: layouts that are given and not guessed, and what becomes of channels."""

from typing import Any

import pytest
import torch
from test_viz import drawn, rand

from attrfn import viz

pytest.importorskip("matplotlib")

HEIGHT, WIDTH = 6, 10


def shown(figure: Any, axes: int = 0) -> torch.Tensor:
    """The map that is drawn last in an axes."""
    return torch.tensor(figure.axes[axes].images[-1].get_array().data)


def last(t: torch.Tensor) -> torch.Tensor:
    return t.movedim(-3, -1)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (20, 7)])
def test_a_layout_draws_the_same_picture(channels: int, height: int, width: int) -> None:
    image, values = rand(channels, height, width).sigmoid(), rand(channels, height, width, seed=1)
    for one, other in [
        (
            viz.image_overlay(image, values),
            viz.image_overlay(last(image), last(values), layout="HWC"),
        ),
        (
            viz.image_grid(image[None], {"m": values[None]}),
            viz.image_grid(last(image)[None], {"m": last(values)[None]}, layout="HWC"),
        ),
    ]:
        for a, b in zip(drawn(one).axes[:-1], drawn(other).axes[:-1], strict=True):
            assert (a.images[-1].get_array() == b.images[-1].get_array()).all()
            assert a.images[-1].get_extent() == [0, width, height, 0]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (20, 7)])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("wrong", ["image", "attribution", "both"])
@pytest.mark.parametrize("grid", [False, True])
def test_another_layout_is_refused(
    channels: int, height: int, width: int, layout: str, wrong: str, grid: bool
) -> None:
    """Images by their numbers of channels, maps by the proportions of the image."""
    image, values = rand(channels, height, width).sigmoid(), rand(channels, height, width, seed=1)
    if (wrong == "attribution") == (layout == "HWC"):
        image = last(image)
    if (wrong == "image") == (layout == "HWC"):
        values = last(values)
    if grid:
        with pytest.raises(ValueError, match=r"layout='(CHW|HWC)'"):
            viz.image_grid(image[None], {"m": values[None]}, layout=layout)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match=r"layout='(CHW|HWC)'"):
            viz.image_overlay(image, values, layout=layout)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [2, 5, 8, 31])
def test_many_channels_need_a_layout(channels: int) -> None:
    """Numbers of channels that no image has tell nothing, so a doubtful shape is not drawn."""
    image = rand(channels, 32, 40).sigmoid()
    for values in (image, last(image)):
        fits = "CHW" if values is image else "HWC"
        drawn(viz.image_overlay(values, values, layout=fits))  # type: ignore[arg-type]
        drawn(viz.image_grid(values[None], {"m": values[None]}, layout=fits))  # type: ignore[arg-type]
    drawn(viz.image_overlay(image, image))
    for picture, maps in ((last(image), image), (last(image), last(image))):
        with pytest.raises(ValueError, match=r"more channels than columns.*layout='HWC'"):
            viz.image_overlay(picture, maps)
        with pytest.raises(ValueError, match=r"more channels than columns.*layout='HWC'"):
            viz.image_grid(picture[None], {"m": maps[None]})


def test_maps_of_layers_are_not_taken_for_another_layout() -> None:
    image = rand(3, 32, 32).sigmoid()
    for shape in [(64, 3, 3), (3, 4, 4), (512, 1, 1), (1, 7, 7), (8, 4, 6)]:
        drawn(viz.image_overlay(image, rand(*shape)))


def test_scores_that_channels_share_count_once() -> None:
    score = rand(1, 8, 8)
    shared, image = score.expand(3, 8, 8), rand(3, 8, 8).sigmoid()
    figure = viz.image_overlay(image, shared, outlier_percentile=100)
    assert torch.allclose(shown(figure), score[0].double())
    assert figure.axes[0].images[-1].get_clim()[1] == pytest.approx(float(score.abs().max()))
    figure = viz.image_overlay(image, shared, channels="sum")
    assert torch.allclose(shown(figure), 3 * score[0].double())


def test_channels_can_differ_from_method_to_method() -> None:
    maps = {"shared": rand(1, 3, 8, 8), "divided": rand(1, 3, 8, 8, seed=1)}
    figure = viz.image_grid(rand(1, 3, 8, 8), maps, channels={"divided": "sum"}, original=False)
    assert torch.allclose(shown(figure, 0), maps["shared"][0].mean(0).double())
    assert torch.allclose(shown(figure, 1), maps["divided"][0].sum(0).double(), atol=1e-6)


def test_time_series_of_steps_first() -> None:
    values, series = rand(20, 3), rand(20, 3, seed=1)
    with pytest.raises(ValueError, match="layout='TC'"):
        viz.time_series(values, series)
    figure = drawn(viz.time_series(values, series, layout="TC", names=["a", "b", "c"]))
    same = drawn(viz.time_series(values.T, series.T))
    assert len(figure.axes) == len(same.axes) == 4
    for a, b in zip(figure.axes[:3], same.axes[:3], strict=True):
        assert (a.lines[0].get_ydata() == b.lines[0].get_ydata()).all()
        assert (a.collections[0].get_array() == b.collections[0].get_array()).all()
    assert len(viz.time_series(values, series, layout="CT").axes) == 21
    assert len(viz.time_series(values[:, 0], series[:, 0], layout="TC").axes) == 2
    with pytest.raises(ValueError, match="expected 3 texts"):
        viz.time_series(values, series, layout="TC", names=["a"])
