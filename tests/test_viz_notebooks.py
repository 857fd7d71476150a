"""Pictures as notebooks have them: batches of one, normalised images, axes of the caller's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_viz import drawn, rand, texts

import attrfn
from attrfn import metrics, viz

pytest.importorskip("matplotlib")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PHOTO = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))
NORMALISED = (PHOTO - MEAN[:, None, None]) / STD[:, None, None]
CAM = rand(1, 3, 4).relu() + 0.1
NAMES = ["a", "b", "c", "d"]


def pixels(figure: Figure, axes: int = 0, image: int = 0) -> torch.Tensor:
    return torch.tensor(figure.axes[axes].images[image].get_array().data)


# --- images


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("kind", [list, torch.tensor, None])
def test_a_normalised_image_is_shown_as_it_was(batch: bool, kind: Any) -> None:
    mean, std = MEAN if kind is None else kind(MEAN.tolist()), STD
    x, a = (NORMALISED[None], CAM[None]) if batch else (NORMALISED, CAM)
    for figure in (
        viz.image(x, a, mean=mean, std=std),
        viz.image_grid(NORMALISED[None], {"m": CAM[None]}, mean=mean, std=std),
    ):
        assert torch.allclose(pixels(figure), PHOTO.movedim(0, -1).double(), atol=1e-6)


def test_means_of_another_number_of_channels_are_refused() -> None:
    for image, given in ((PHOTO, [0.5, 0.5]), (PHOTO[:1], MEAN), (PHOTO[0], MEAN)):
        with pytest.raises(ValueError, match=r"std has \d numbers, expected 1 or \d as image has"):
            viz.image(image, CAM, std=given)


def test_one_mean_and_std_serve_all_channels() -> None:
    for image in (PHOTO, PHOTO[:1], PHOTO[0]):
        figure = viz.image(2 * image - 1, rand(12, 16), background="colour", mean=0.5, std=0.5)
        shown = pixels(figure)
        shown = shown[..., 0] if shown.ndim == 3 else shown
        assert torch.allclose(shown, PHOTO[0].double(), atol=1e-6)


def test_a_map_without_negative_values_lies_half_opaque_over_the_colours() -> None:
    """What slides need of a rectified Grad-CAM; at an opacity of 0.9 it hides the photograph."""
    figure = drawn(viz.image(PHOTO, CAM))
    assert pixels(figure).shape == (12, 16, 3)
    heat = figure.axes[0].images[1]
    assert heat.get_clim() == (0, pytest.approx(float(CAM.max())))
    assert {heat.to_rgba(value)[3] for value in (0.0, 0.5, 1.0)} == {0.5}
    brightness = [sum(heat.to_rgba(value)[:3]) for value in torch.linspace(0, 1, 9).tolist()]
    assert brightness == sorted(brightness)
    signed = drawn(viz.image(PHOTO, rand(12, 16)))
    assert pixels(signed).ndim == 2, "grey under both signs"
    assert signed.axes[0].images[1].to_rgba(0.0)[3] == 0


def test_a_coarse_map_is_smooth_or_shows_its_cells() -> None:
    coarse = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    smooth = pixels(viz.image(PHOTO, coarse), image=1)
    # Provenance: torch's bilinear interpolation, tested there.
    want = torch.nn.functional.interpolate(coarse[None, None], (12, 16), mode="bilinear")[0, 0]
    assert torch.allclose(smooth, want.double(), atol=1e-6)
    assert torch.equal(pixels(viz.image(PHOTO, coarse, smooth=False), image=1), coarse.double())
    fine = rand(24, 32)
    assert torch.equal(pixels(viz.image(PHOTO, fine), image=1), fine.double())


@pytest.mark.parametrize("name", ["viridis", "inferno", "RdBu_r", "PuOr"])
def test_one_sided_scales_take_half_of_a_diverging_map_only(name: str) -> None:
    import matplotlib

    figure = viz.image(PHOTO, CAM, cmap=name, alpha=1)
    zero = figure.axes[0].images[0].to_rgba(0.0)[:3]
    own = matplotlib.colormaps[name](0.5 if name in ("RdBu_r", "PuOr") else 0.0)[:3]
    assert zero == pytest.approx(own, abs=0.01)


def test_scales_are_named_in_words() -> None:
    values = rand(12, 16)
    for sign, said in {
        "all": "lowers the output  –  raises the output",
        "positive": "raises the output",
        "negative": "lowers the output",
        "absolute": "size of the attribution",
    }.items():
        figure = viz.image(PHOTO, values, sign=sign)  # type: ignore[arg-type]
        assert figure.axes[1].get_ylabel() == said


def test_grid_overlays_lie_over_pale_grey_images() -> None:
    maps = {"gradient": rand(2, 3, 12, 16), "CAM": CAM.expand(2, 1, 3, 4)}
    figure = drawn(viz.image_grid(torch.stack([PHOTO, PHOTO]), maps, overlay=True))
    for axes in (figure.axes[1], figure.axes[2], figure.axes[4], figure.axes[5]):
        under, over = axes.images
        assert under.get_array().ndim == 2
        assert under.get_array().min() >= 0.35
        assert over.to_rgba(0.0)[3] == 0
        assert over.get_clim()[0] == -over.get_clim()[1]
    assert "Scales end at percentile 99 of the column's sizes." in texts(figure)
    figure = viz.image_grid(PHOTO[None], {"m": CAM[None]}, outlier_percentile=100)
    assert not [text for text in texts(figure) if "percentile" in text]


# --- waterfall and dependence


def test_waterfall_leads_from_the_baseline_to_the_input() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0] * x[:, 1] + 3 * x[:, 2] - x[:, 3] + 7

    x = torch.tensor([[2.0, 5.0, 1.0, 4.0]], dtype=torch.float64)
    a = attrfn.integrated_gradients(f, x)
    figure = drawn(viz.waterfall(a, NAMES, start=f(torch.zeros_like(x)), end=f(x), values=x, top=2))
    axes = figure.axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    # By hand: 2 * 5 is shared equally, the others are linear; f(x0) = 7, f(x) = 16.
    assert labels == [
        *("at the baseline, f(x0)", "a = 2", "b = 5"),
        *("2 other features, summed", "at the input, f(x)"),
    ]
    assert [t.get_text() for t in axes.texts] == ["7", "+5", "+5", "−1", "16"]
    bars = [(round(p.get_x(), 6), round(p.get_width(), 6)) for p in axes.patches]
    assert bars == [(7, 5), (12, 5), (17, -1)]


def test_waterfall_shows_what_is_not_attributed() -> None:
    figure = viz.waterfall([1.0, 2.0], ["a", "b"], start=0.0, end=4.5)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels[3] == "not attributed"
    assert figure.axes[0].patches[2].get_width() == pytest.approx(1.5)
    with pytest.raises(ValueError, match="has 2 samples, expected one"):
        viz.waterfall(rand(2, 2), ["a", "b"], start=0.0)
    with pytest.raises(ValueError, match="start has 2 values"):
        viz.waterfall(rand(2), ["a", "b"], start=[0.0, 1.0])


def test_dependence_has_values_along_x_and_attributions_along_y() -> None:
    a, x = rand(9, 4), rand(9, 4, seed=1)
    for feature in ("b", 1, -3):
        axes = drawn(viz.dependence(a, x, NAMES, feature=feature)).axes
        dots = torch.tensor(axes[0].collections[0].get_offsets().data)
        assert torch.allclose(dots, torch.stack([x[:, 1], a[:, 1]], 1).double())
        assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("value of b", "attribution of b")
    axes = drawn(viz.dependence(a, x, NAMES, feature="b", colour="d")).axes
    assert torch.allclose(torch.tensor(axes[0].collections[0].get_array().data), x[:, 3].double())
    assert axes[1].get_ylabel() == "value of d"
    for wrong in ("e", 4, -5, True, None):
        with pytest.raises(ValueError, match=r"feature is .*, expected one of names"):
            viz.dependence(a, x, NAMES, feature=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="feature is 'a'"):
        viz.dependence(a, x, ["a", "a", "b", "c"], feature="a")


# --- axes of the caller's


def comparison() -> metrics.Comparison:
    return metrics.compare(
        lambda x: (x**3).sum(1),
        rand(6, 5),
        {"gradient": attrfn.gradient, "ig": attrfn.integrated_gradients},
        {"deletion": metrics.deletion, "sparseness": metrics.sparseness},
    )


def curve() -> metrics.Curve:
    f, x = lambda x: (x**2).sum(1), rand(6, 5)
    return metrics.removal_curve(f, x, attrfn.gradient(f, x))


SINGLE: dict[str, Callable[..., Figure]] = {
    "image": lambda **o: viz.image(PHOTO, rand(12, 16), title="t", **o),
    "bar": lambda **o: viz.bar(rand(5, 4), NAMES, title="t", **o),
    "strip": lambda **o: viz.strip(rand(5, 4), rand(5, 4), NAMES, title="t", **o),
    "waterfall": lambda **o: viz.waterfall(rand(4), NAMES, start=0.0, title="t", **o),
    "dependence": lambda **o: viz.dependence(
        rand(5, 4), rand(5, 4), NAMES, feature="a", colour="b", title="t", **o
    ),
}
SEVERAL: dict[str, Callable[..., Figure]] = {
    "image_grid": lambda **o: viz.image_grid(
        rand(2, 3, 8, 8), {"m": rand(2, 8, 8)}, titles=["one", "two"], title="t", **o
    ),
    "time_series": lambda **o: viz.time_series(rand(2, 20), rand(2, 20), title="t", **o),
    "compare": lambda **o: viz.compare(comparison(), title="t", **o),
    "curves": lambda **o: viz.curves(curve(), title="t", **o),
    "sanity": lambda **o: viz.sanity(
        rand(1, 1, 8, 8), {"m": {"a": rand(1, 8, 8), "b": rand(1, 8, 8)}}, title="t", **o
    ),
}


def test_every_plot_takes_axes() -> None:
    import inspect

    plots = {n for n, f in vars(viz).items() if "Figure" in str(getattr(f, "__annotations__", {}))}
    assert {*SINGLE, *SEVERAL} == plots - {"image_overlay", "report"}
    assert all(
        "ax" in inspect.signature(getattr(viz, name)).parameters for name in plots - {"report"}
    )


@pytest.mark.parametrize("subfigures", [False, True])
@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL])
def test_a_plot_stays_in_the_box_of_its_axes(name: str, subfigures: bool) -> None:
    figure = Figure((12, 8))
    home = figure.subfigures(1, 2)[0] if subfigures else figure
    ax, other = home.subplots(1, 2)
    before = ax.get_position().bounds
    found = {**SINGLE, **SEVERAL}[name](ax=ax)
    assert found is figure
    drawn(figure)
    assert ax.get_position().bounds == pytest.approx(before) or name == "image"
    assert not other.has_data()
    assert figure.texts == []
    own = {**SINGLE, **SEVERAL}[name]()
    if name in SINGLE:
        assert ax.has_data()
        assert "t" in (ax.get_title(), ax.get_title(loc="left"))
    else:
        assert len(ax.child_axes) == len(own.axes)
        box = ax.get_window_extent()
        for axes in ax.child_axes:
            inner = axes.get_window_extent()
            assert box.x0 - 1 <= inner.x0 <= inner.x1 <= box.x1 + 1
            assert box.y0 - 1 <= inner.y0 <= inner.y1 <= box.y1 + 1
        said = {text.get_text() for text in ax.texts if text.get_text()}
        assert said == {text for text in texts(own) if text}


@pytest.mark.parametrize("engine", ["none", "constrained", "tight"])
def test_regions_keep_their_proportions_under_layout_engines(engine: str) -> None:
    figure = Figure((12, 6), layout=engine)
    axes = figure.subplots(1, 3)
    axes[2].set_title("a title")
    SEVERAL["image_grid"](ax=axes[1])
    drawn(figure)
    boxes = [a.get_window_extent() for a in axes[1].child_axes[:4]]
    for box in boxes:
        assert box.width == pytest.approx(box.height, rel=0.02)
    # Rows are as far apart as in a figure of its own: a tenth of an inch where a cell has 1.25.
    gap = boxes[0].y0 - boxes[2].y1
    assert gap / boxes[0].height == pytest.approx(0.1 / 1.25, abs=0.06)


@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL])
def test_other_things_than_axes_are_refused(name: str) -> None:
    axes = Figure().subplots(1, 2)
    for wrong in (axes, Figure(), 3):
        with pytest.raises(TypeError, match="expected one matplotlib axes"):
            {**SINGLE, **SEVERAL}[name](ax=wrong)


@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL])
def test_notebooks_show_figures_without_pyplot(name: str) -> None:
    figure: Any = {**SINGLE, **SEVERAL}[name]()
    data, size = figure._repr_png_()
    assert data.startswith(b"\x89PNG")
    # Twice the pixels of the size on the page; the width is the first number of the header.
    assert int.from_bytes(data[16:20], "big") == pytest.approx(2 * size["width"], abs=2)
    assert all(isinstance(axes, Axes) for axes in figure.axes)
