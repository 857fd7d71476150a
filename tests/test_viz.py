"""Pictures: what is in the figures, one colour scale per method, purity, messages, the report."""

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from attrfn import viz

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(figure: Figure) -> Figure:
    """The figure after a real drawing, in which warnings would be errors."""
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


IMAGES = rand(3, 1, 8, 8).abs()
MAPS = {"gradient": rand(3, 1, 8, 8, seed=1), "CAM": 1e-3 * rand(3, 1, 4, 4, seed=2).relu()}


# --- image_grid


def test_grid_has_an_axes_per_cell_and_a_bar_per_method() -> None:
    notes = {"CAM": "3.1 ms, gap 1e-6"}
    figure = drawn(viz.image_grid(IMAGES, MAPS, titles=["one", "two", "three"], notes=notes))
    assert len(figure.axes) == 3 * (1 + 2) + 2
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "gradient", "CAM", *[""] * 8]
    assert {"one", "two", "three", "3.1 ms, gap 1e-6"} <= set(texts(figure))
    assert "3 images" in str(figure.get_label())
    assert len(viz.image_grid(IMAGES, MAPS, original=False).axes) == 3 * 2 + 2


def test_grid_has_one_symmetric_scale_per_method() -> None:
    figure = viz.image_grid(IMAGES, MAPS, outlier_percentile=100)
    for column, name in enumerate(MAPS, 1):
        cells = [figure.axes[3 * row + column].images[0] for row in range(3)]
        top = float(MAPS[name].abs().max())
        assert [cell.get_clim() for cell in cells] == [(-top, top)] * 3
        assert all(cell.get_extent() == [0, 8, 8, 0] for cell in cells)
        assert all(cell.get_interpolation() == "nearest" for cell in cells)
        red, _, blue, _ = cells[0].to_rgba(top)
        assert red > blue
        red, _, blue, _ = cells[0].to_rgba(-top)
        assert red < blue
        assert min(cells[0].to_rgba(0.0)) > 0.95


def test_grid_scale_ends_at_the_percentile_and_says_so() -> None:
    maps = torch.arange(1.0, 101.0).reshape(1, 10, 10)
    figure = drawn(viz.image_grid(maps, {"m": maps}, outlier_percentile=90))
    assert figure.axes[1].images[0].get_clim() == (-90, 90)
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == [
        "≤\u2009−90",
        "0",
        "≥\u2009+90",
    ]
    figure = viz.image_grid(maps, {"m": maps}, outlier_percentile=100)
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == ["−100", "0", "+100"]


def test_grid_reduces_channels_and_takes_every_shape() -> None:
    images, maps = rand(2, 3, 16, 12).sigmoid(), rand(2, 3, 16, 12, seed=1)
    cells = {"channels": maps, "flat": maps.sum(1), "numpy": maps.numpy(), "list": maps.tolist()}
    figure = drawn(viz.image_grid(images, cells, channels="sum"))
    for column in range(1, 5):
        shown = torch.tensor(figure.axes[column].images[0].get_array().data)
        assert torch.allclose(shown, maps[0].sum(0).double(), atol=1e-5)
    assert figure.axes[0].images[0].get_array().shape == (16, 12, 3)


@pytest.mark.parametrize("images", [torch.randint(256, (2, 3, 9, 9)).byte(), rand(2, 3, 9, 9)])
def test_grid_brings_colour_images_to_0_1(images: torch.Tensor) -> None:
    shown = viz.image_grid(images, {"m": rand(2, 9, 9)}).axes[0].images[0].get_array()
    assert shown.min() >= 0
    assert shown.max() <= 1


@pytest.mark.parametrize("value", [0.0, 1e-320, 1e-30, 1e30])
@pytest.mark.parametrize("image", [torch.zeros(1, 1, 8, 8), torch.ones(1, 3, 40, 40)])
def test_grid_of_constants_is_drawn(value: float, image: torch.Tensor) -> None:
    figure = drawn(viz.image_grid(image, {"m": torch.full((1, 8, 8), value, dtype=torch.float64)}))
    low, high = figure.axes[1].images[0].get_clim()
    assert low == -high < 0
    empty = value < 1e-300
    assert ("0 everywhere" in [t.get_text() for t in figure.axes[2].get_xticklabels()]) == empty


def test_grid_of_a_sparse_map_shows_its_pixel() -> None:
    sparse = torch.zeros(1, 32, 32)
    sparse[0, 3, 4] = -2
    assert viz.image_grid(sparse, {"m": sparse}).axes[1].images[0].get_clim() == (-2, 2)


def test_grid_texts_do_not_overlap() -> None:
    names = [
        "layer_gradient_x_activation",
        "why 3 and not 8, by integrated gradients",
        "x",
        "W" * 40,
    ]
    maps = {name: 1e4 * rand(2, 8, 8, seed=i) for i, name in enumerate(names)}
    figure = drawn(
        viz.image_grid(
            IMAGES[:2],
            maps,
            titles=["a label that is much too long for one line", "$5 and $6"],
            notes={"x": "12345.6 milliseconds, gap 1.23e-06"},
            title="A heading " * 12,
        )
    )
    boxes = [t.get_window_extent() for t in figure.texts if t.get_text()]
    boxes += [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for axes in figure.axes[-4:]:
        boxes += [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
    for i, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0 <= one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0 <= one.y1 <= figure.bbox.y1
        for other in boxes[i + 1 :]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            along = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(across, along) < 2, "boxes overlap by two pixels and more"


def test_grid_headings_break_between_words() -> None:
    names = ["HiResCAM, layer 3", "conductance, layer 1", "why this and not 8?"]
    figure = viz.image_grid(IMAGES, dict.fromkeys(names, MAPS["gradient"]))
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes[1:4]] == names


# --- the others


@pytest.mark.parametrize(
    ("sign", "clim"),
    [("all", (-4, 4)), ("positive", (0, 3)), ("negative", (-4, 0)), ("absolute", (0, 4))],
)
@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_overlay_has_the_scale_of_its_sign(
    sign: str, clim: tuple[float, float], alpha: float
) -> None:
    values = torch.tensor([[-4.0, 0.0], [1.0, 3.0]])
    figure = drawn(
        viz.image_overlay(
            rand(3, 8, 8).sigmoid(), values, sign=sign, alpha=alpha, outlier_percentile=100
        )
    )
    heat = figure.axes[0].images[-1]
    assert heat.get_clim() == clim
    assert heat.to_rgba(0.0)[3] == pytest.approx(0 if alpha < 1 else 1, abs=0.01)
    assert heat.to_rgba(clim[1] or clim[0])[3] == pytest.approx(alpha)
    assert len(figure.axes[0].images) == (2 if alpha < 1 else 1)


def test_overlay_of_one_sign_only_is_empty_for_the_other() -> None:
    figure = drawn(viz.image_overlay(rand(8, 8), rand(8, 8).abs(), sign="negative", title="none"))
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == ["0 everywhere"]


def test_bar_sorts_and_measures() -> None:
    data = torch.tensor([[1.0, -9.0, 0.1, 4.0], [2.0, 9.0, 0.1, -2.0]])
    figure = drawn(viz.bar(data, ["a", "b", "c", "d"], top=2, values=data[0], signed=True))
    axes = figure.axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == ["b = -9", "d = 4", "2 other features, summed"]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([0, 1, 1.6])
    assert [t.get_text() for t in axes.texts] == ["+0.00 ± 9.00", "+1.00 ± 3.00", "+1.60 ± 0.50"]
    assert "mean attribution over 2 samples (± standard error)" in texts(figure)


def test_bar_of_several_samples_is_the_mean_of_sizes_and_says_so() -> None:
    data = torch.tensor([[1.0, -9.0, 0.1, 4.0], [2.0, 9.0, 0.1, -2.0]])
    figure = drawn(viz.bar(data, ["a", "b", "c", "d"], top=2))
    axes = figure.axes[0]
    # By hand: (9 + 9) / 2, (4 + 2) / 2, and of the others ((1 + 0.1) + (2 + 0.1)) / 2.
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([9, 3, 1.6])
    assert [t.get_text() for t in axes.texts] == ["9.00 ± 0.00", "3.00 ± 1.00", "1.60 ± 0.50"]
    assert "mean |attribution| over 2 samples (± standard error)" in texts(figure)
    for one in (data[1], data[1:]):
        patches = viz.bar(one, ["a", "b", "c", "d"], top=2).axes[0].patches
        assert [patch.get_width() for patch in patches] == pytest.approx([9, 2, 0.1 - 2])


def test_bar_error_bars_have_the_asked_width() -> None:
    data = rand(20, 3).double()
    for error, width in [
        ("std", data.std(0)),
        ("stderr", data.std(0) / 20**0.5),
        (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, 0.2, 0.3]).double()),
    ]:
        axes = viz.bar(data, ["a", "b", "c"], error=error, signed=True).axes[0]
        chosen = data.abs().mean(0).argsort(descending=True)
        spans = [s[1][0] - s[0][0] for s in axes.collections[0].get_segments()]
        assert torch.allclose(torch.tensor(spans), 2 * width[chosen])
    assert not viz.bar(data, ["a", "b", "c"], error=None).axes[0].collections
    one = drawn(viz.bar(data[0], ["a", "b", "c"], error=[0.1, 0.2, 0.3], top=2))
    assert "attribution (± error)" in texts(one)
    assert not drawn(viz.bar(data[0], ["a", "b", "c"])).axes[0].collections
    drawn(viz.bar(torch.zeros(4, 2), ["a", "b"]))


def test_strip_draws_every_sample_the_same_way_each_time() -> None:
    x = rand(60, 4)
    weights = torch.tensor([0.5, 3.0, -1.0, 0.0])
    first, second = (drawn(viz.strip(x * weights, x, ["a", "b", "c", "d"], top=3)) for _ in "12")
    axes = first.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["b", "c", "a"]
    dots = [torch.tensor(c.get_offsets().data) for c in axes.collections]
    assert [len(d) for d in dots] == [60] * 3
    assert torch.allclose(dots[0][:, 0], (x[:, 1] * 3).double())
    assert all((d[:, 1] - row).abs().max() <= 0.4 for row, d in enumerate(dots))
    again = [torch.tensor(c.get_offsets().data) for c in second.axes[0].collections]
    assert all(torch.equal(a, b) for a, b in zip(dots, again, strict=True))
    drawn(viz.strip(torch.zeros(3, 2), torch.ones(3, 2), ["a", "b"]))
    drawn(viz.strip(x[0], x[0], ["a", "b", "c", "d"]))


def test_time_series_shares_one_scale() -> None:
    figure = drawn(
        viz.time_series(
            rand(2, 30), rand(2, 30, seed=1), names=["up", "down"], outlier_percentile=100
        )
    )
    assert len(figure.axes) == 3
    top = float(rand(2, 30).abs().max())
    assert [axes.collections[0].get_clim() for axes in figure.axes[:2]] == [(-top, top)] * 2
    uneven = viz.time_series([0.0, 1, 0], [1.0, 2, 3], times=[0.0, 1, 5])
    assert drawn(uneven).axes[0].get_xlim() == (-0.5, 7)
    drawn(viz.time_series([0.0], [2.0]))


# --- purity


def draw_all(image: torch.Tensor, maps: torch.Tensor, table: torch.Tensor) -> list[Figure]:
    names = [str(i) for i in range(table.shape[1])]
    return [
        viz.image_grid(image, {"m": maps}),
        viz.image_overlay(image[0], maps[0]),
        viz.bar(table, names, values=table),
        viz.strip(table, table, names),
        viz.time_series(table, table, layout="TC"),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_inputs_stay_as_they_are(dtype: torch.dtype) -> None:
    given = [(10 * rand(2, 3, 8, 8, seed=i)).to(dtype) for i in (0, 1)] + [rand(5, 4).to(dtype)]
    if dtype.is_floating_point:
        given = [value.requires_grad_() for value in given]
    before = [value.detach().clone() for value in given]
    for figure in draw_all(*given):
        drawn(figure)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_figures_keep_their_own_numbers() -> None:
    maps = rand(1, 8, 8).double()
    figure = viz.image_grid(maps, {"m": maps})
    maps.zero_()
    assert abs(figure.axes[1].images[0].get_array()).max() > 0


def test_pyplot_is_never_imported() -> None:
    code = """
import sys, torch
import attrfn.viz as viz
assert "matplotlib" not in sys.modules
x = torch.randn(2, 1, 8, 8)
figure = viz.image_grid(x, {"m": x})
viz.bar(x.flatten(1), [str(i) for i in range(64)])
viz.report(sys.argv[1], title="t", figures={"f": figure})
assert "matplotlib.pyplot" not in sys.modules
assert figure.canvas.manager is None
assert not sys.modules["matplotlib._pylab_helpers"].Gcf.figs
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_missing_matplotlib_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    for draw in (
        lambda: viz.image_grid(IMAGES, MAPS),
        lambda: viz.bar(rand(3, 2), ["a", "b"]),
        lambda: viz.time_series(rand(4), rand(4)),
    ):
        with pytest.raises(ImportError, match=r'pip install "attrfn\[viz\]"'):
            draw()


# --- messages

X, A = rand(2, 1, 8, 8), rand(2, 1, 8, 8)
NAN = torch.full((2, 8, 8), float("nan"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: viz.image_grid(X, A), TypeError, "attributions is a Tensor"),
        (lambda: viz.image_grid(X, {}), ValueError, "attributions is empty"),
        (
            lambda: viz.image_grid(X, {"m": A[:1]}),
            ValueError,
            r"\['m'\] has 1 examples, expected 2",
        ),
        (lambda: viz.image_grid(X, {"m": NAN}), ValueError, r"\['m'\] holds 128 of 128 .* NaN"),
        (lambda: viz.image_grid(X[:0], {"m": A[:0]}), ValueError, "images .* holds no value"),
        (lambda: viz.image_grid(X[0, 0], {"m": A}), ValueError, r"images has shape \(8, 8\)"),
        (lambda: viz.image_grid(X, {"m": A + 0j}), TypeError, "complex64, expected real"),
        (lambda: viz.image_grid("cat.png", {"m": A}), TypeError, "images is a str"),
        (lambda: viz.image_grid([[1.0], [1.0, 2.0]], {"m": A}), TypeError, "images is a list"),
        (lambda: viz.image_grid(X, {"m": A}, titles="ab"), ValueError, "titles is 'ab'"),
        (lambda: viz.image_grid(X, {"m": A}, titles=["a"]), ValueError, "a sequence of 2 texts"),
        (lambda: viz.image_grid(X, {"m": A}, notes={"n": ""}), ValueError, r"notes has \['n'\]"),
        (lambda: viz.image_grid(X, {"m": A}, cmap="nope"), ValueError, "cmap is 'nope'"),
        (
            lambda: viz.image_grid(X, {"m": A}, outlier_percentile=0),
            ValueError,
            "outlier_percentile is 0",
        ),
        (lambda: viz.image_overlay(X[0], A[0], sign="both"), ValueError, "sign is 'both'"),
        (lambda: viz.image_overlay(X[0], A[0], alpha=2), ValueError, "alpha is 2"),
        (lambda: viz.image_overlay(X, A[0]), ValueError, r"image has shape \(2, 1, 8, 8\)"),
        (lambda: viz.bar(rand(4, 3), ["a"]), ValueError, "names has 1 entries, expected 3"),
        (lambda: viz.bar(rand(4, 1), ["a"], top=0), ValueError, "top is 0"),
        (lambda: viz.bar(rand(4, 1), ["a"], error="sem"), ValueError, "error is 'sem'"),
        (lambda: viz.bar(rand(4, 1), ["a"], error=[-1.0]), ValueError, "no negative value"),
        (lambda: viz.bar(rand(4, 1), ["a"], error=[1.0, 2.0]), ValueError, r"expected \(1,\)"),
        (lambda: viz.bar(rand(4, 1), ["a"], values=[1.0, 2.0]), ValueError, r"values has shape"),
        (lambda: viz.strip(rand(4, 1), rand(3, 1), ["a"]), ValueError, r"expected \(4, 1\)"),
        (lambda: viz.strip(rand(4, 1), rand(4, 1), ["a"], cmap="nope"), ValueError, "'nope'"),
        (lambda: viz.image_overlay(X[0], A[0], layout="hwc"), ValueError, "layout is 'hwc'"),
        (lambda: viz.image_overlay(X[0], A[0], channels="max"), ValueError, "channels is 'max'"),
        (lambda: viz.image_grid(X, {"m": A}, channels={"n": "sum"}), ValueError, "channels has"),
        (lambda: viz.time_series(rand(4), rand(4), layout="T"), ValueError, "layout is 'T'"),
        (lambda: viz.time_series(rand(4), rand(5)), ValueError, r"expected \(5,\) as series"),
        (lambda: viz.time_series(rand(2), rand(2), times=[1.0, 0.0]), ValueError, "increasing"),
        (lambda: viz.time_series(rand(2), rand(2), names=["a", "b"]), ValueError, "expected 1 tex"),
    ],
)
def test_bad_input_gets_one_clear_sentence(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert ": " in str(raised.value), "what to do stands behind a colon"


# --- text ----------------------------------------------------------------------------------------


def test_text_has_one_scale_and_colours_by_sign() -> None:
    page = viz.text([["so", "good"], ["bad"]], [torch.tensor([0.0, 0.5]), torch.tensor([-0.25])])
    colours = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\);padding[^>]*>([^<]*)<", page)
    assert colours == [("52", "0.000", "so"), ("214", "0.650", "good"), ("52", "0.325", "bad")]
    assert ">good</span></div>\n<div>" in page
    assert "+0.5" in page and "\N{MINUS SIGN}0.25" in page  # noqa: PT018
    assert page._repr_html_() == str(page)


def test_text_escapes_and_leaves_spaces_uncoloured() -> None:
    values = torch.tensor([1.0, 2.0, 0.0], requires_grad=True)
    page = viz.text(["<b>", " & ", " "], values, labels=["<i>"], separator="", title="a<b")
    assert ">&lt;b&gt;</span> <span" in page
    assert ">&amp;</span> <span" in page
    assert "&lt;i&gt;" in page and "a&lt;b" in page  # noqa: PT018
    assert not set(re.findall(r"<(\w+)", page)) - {"div", "span"}


def test_text_of_zeros_is_not_coloured() -> None:
    assert "0.000" in viz.text(["a"], [0.0])


@pytest.mark.parametrize(
    ("words", "values", "message"),
    [
        ("not bad", torch.zeros(2), "expected a list of words"),
        ([], torch.zeros(0), "expected a list of words"),
        ([["a"], "b"], [torch.zeros(1)] * 2, "a list of words for each text"),
        ([["a", 1]], [torch.zeros(2)], "a list of words for each text"),
    ],
)
def test_text_refuses_other_words(words: Any, values: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        viz.text(words, values)


@pytest.mark.parametrize(
    ("words", "values", "labels", "message"),
    [
        (["a", "b"], torch.zeros(3), None, "2 words and 3 attributions"),
        (["a", "b"], torch.zeros(2, 4), None, "shape \\(2, 4\\)"),
        ([["a"], ["b"]], [torch.zeros(1)], None, "1 rows, expected one for each of 2 texts"),
        (["a"], torch.zeros(1), ["x", "y"], "labels has 2 texts"),
        (["a"], torch.tensor([torch.nan]), None, "NaN"),
    ],
)
def test_text_refuses_other_numbers(words: Any, values: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        viz.text(words, values, labels=labels)


def test_report_shows_text(tmp_path: Path) -> None:
    page = viz.text(["a"], torch.ones(1))
    file = viz.report(tmp_path / "r.html", title="t", figures={"c & d": page})
    assert f"<figure>\n{page}\n<figcaption>c &amp; d" in file.read_text("utf-8")


# --- report


class Page(HTMLParser):
    """Tags with their attributes, checked for nesting, and the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", list[str]()
        self.feed(source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self._open and self._open[-1] == "style" else data


def test_report_is_self_contained_and_escapes(tmp_path: Path) -> None:
    nasty = '<script>alert("1 & 2")</script>\''
    file = viz.report(
        tmp_path / "made" / "report.html",
        title=nasty,
        text=f"{nasty}\n\nsecond",
        figures={nasty: viz.image_grid(IMAGES, {nasty: MAPS["CAM"]}), "plain": Figure()},
        tables={nasty: [{nasty: nasty, "n": 3}]},
    )
    assert file == tmp_path / "made" / "report.html"
    source = file.read_text(encoding="utf-8")
    assert "http" not in source
    assert "url(" not in source
    page = Page(source)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "a"} & set(tags)
    assert page.text.count(nasty) == 7
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all((p["src"] or "").startswith("data:image/png;base64,") for p in pictures)
    assert nasty in (pictures[0]["alt"] or "")
    assert pictures[1]["alt"] == "plain"
    assert tags.count("p") == 2


def test_report_sets_numbers_to_the_right(tmp_path: Path) -> None:
    rows = [
        {"method": "gradient", "time": "3.1 ms", "gap": None, "steps": 12345, "ok": True},
        {"method": "IG", "time": "0.5 s", "gap": torch.tensor(1.23456e-6), "more": "late"},
    ]
    source = viz.report(tmp_path / "r.html", title="t", tables={"costs": rows}).read_text("utf-8")
    page = Page(source)
    classes = [attributes.get("class") for tag, attributes in page.tags if tag == "th"]
    assert classes == [None, "number", "number", "number", None, None]
    for cell in (">12345<", ">1.235e-06<", ">yes<", ">–<", ">late<", ">3.1 ms<"):
        assert cell in source


def test_report_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"figures\['f'\] is a Tensor"):
        viz.report(tmp_path / "r.html", title="t", figures={"f": X})
    with pytest.raises(TypeError, match=r"tables\['t'\] is a dict"):
        viz.report(tmp_path / "r.html", title="t", tables={"t": {"a": 1}})
    assert not (tmp_path / "r.html").exists()
