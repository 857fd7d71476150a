"""Pictures of metrics: means, better ends and bands of the numbers that they are given."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import attrfn
from attrfn import metrics, viz
from attrfn.metrics import Comparison, Curve, similarity

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAN, INF = math.nan, math.inf


def drawn(figure: Figure) -> Figure:
    """The figure after a real drawing, in which warnings would be errors."""
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts if text.get_text()]


def no_text_overlaps(figure: Figure) -> None:
    drawn(figure)
    boxes = [t.get_window_extent() for t in figure.texts if t.get_text()]
    boxes += [a.title.get_window_extent() for a in figure.axes if a.get_title()]
    boxes += [a.get_window_extent() for a in figure.axes]
    for i, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0 <= one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0 <= one.y1 <= figure.bbox.y1
        for other in boxes[i + 1 :]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            down = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(across, down) < 1, (one, other)


def comparison(**columns: Any) -> Comparison:
    """Metrics by name: the better end, and the numbers of the methods a, b, ..."""
    methods = "abcdefgh"[: len(next(iter(columns.values()))[1])]
    values = {
        method: {name: torch.tensor(rows[i]) for name, (_, rows) in columns.items()}
        for i, method in enumerate(methods)
    }
    return Comparison(values, {name: end for name, (end, _) in columns.items()})


def dots(figure: Figure, row: int = 0) -> dict[int, list[float]]:
    """The values of the dots of a row by column; triangles at the ends are left out."""
    found: dict[int, list[float]] = {}
    low, high = figure.axes[row].get_ylim()
    for points in figure.axes[row].collections:
        for x, y in getattr(points, "get_offsets", list)():
            if low < y < high and points.get_paths()[0].vertices.shape[0] > 8:
                found.setdefault(round(x), []).append(float(y))
    return {column: sorted(ys) for column, ys in found.items()}


def lines(figure: Figure, row: int = 0) -> list[float]:
    """The heights of the lines at the means."""
    found = [c for c in figure.axes[row].collections if type(c).__name__ == "LineCollection"]
    return [float(c.get_segments()[0][0][1]) for c in found]


TWO = comparison(
    good=("higher", [[0.1, 0.2, 0.6], [0.5, 0.7, 0.9]]),
    bad=("lower", [[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]),
    neither=(None, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]),
)


# --- compare


def test_compare_draws_a_dot_per_example_and_a_line_at_the_mean() -> None:
    figure = drawn(viz.compare(TWO, outlier_percentile=100))
    assert len(figure.axes) == 3
    expected = {0: [0.1, 0.2, 0.6], 1: [0.5, 0.7, 0.9]}
    assert dots(figure).keys() == expected.keys()
    for column, values in dots(figure).items():
        assert values == pytest.approx(expected[column])
    assert lines(figure) == pytest.approx([0.3, 0.7])
    assert lines(figure, 1) == pytest.approx([2, 6])
    assert {"a", "b", "good", "bad", "neither", "0.3", "0.7", "2", "6", "1"} <= set(texts(figure))


def test_compare_labels_the_better_end_at_that_end() -> None:
    figure = drawn(viz.compare(TWO))
    ends = [t for t in figure.texts if "better" in t.get_text()]
    assert [t.get_text() for t in ends] == ["▲ better", "▼ better"]
    for text, axes in zip(ends, figure.axes, strict=False):
        box, at = axes.get_window_extent(), text.get_window_extent()
        middle = (box.y0 + box.y1) / 2
        assert box.y0 - 1 <= at.y0 <= at.y1 <= box.y1 + 1
        assert (at.y0 > middle) == ("▲" in text.get_text())


def test_compare_marks_the_best_mean_of_each_metric() -> None:
    figure = viz.compare(TWO)
    bold = [t.get_text() for t in figure.texts if t.get_text() and t.get_weight() == "bold"]
    assert bold == ["a", "b", "0.7", "2"]  # the names of the methods, then the best means
    assert "Best means: good: b; bad: a." in str(figure.get_label())
    ties = comparison(m=("lower", [[1.0], [1.0], [2.0]]))
    assert "Best means: m: a and b." in str(viz.compare(ties).get_label())


def test_compare_counts_what_is_undefined() -> None:
    found = comparison(
        m=("higher", [[NAN, 2.0, 4.0], [NAN, NAN, NAN], [1.0, 1.0, 1.0]]),
        all_nan=("lower", [[NAN] * 3] * 3),
    )
    figure = viz.compare(found)
    assert lines(figure) == [3, 1]
    assert texts(figure).count("1 undefined") == 1
    assert texts(figure).count("undefined") == texts(figure).count("everywhere") == 4
    assert "Best means: m: a." in str(figure.get_label())
    no_text_overlaps(figure)


def test_compare_draws_values_beyond_the_axis_as_triangles() -> None:
    values = [float(i) for i in range(100)]
    found = comparison(m=("higher", [[*values, 1e4], [*values, -INF], [*values, NAN]]))
    figure = drawn(viz.compare(found, outlier_percentile=90))
    low, high = figure.axes[0].get_ylim()
    ends = {
        (float(x), float(y))
        for points in figure.axes[0].collections
        for x, y in getattr(points, "get_offsets", list)()
        if y in (low, high)
    }
    # The axis reaches down to the 10th percentile, and up to the mean 148.5 of the first method.
    assert low < 10 < 148.5 < high < 200
    assert sum(map(len, dots(figure).values())) == 3 * 100 - sum(3 * (v < low) for v in values)
    assert ends == {(0, high), (1, low)} | {(i, low) for i in range(3) if low > 0}
    assert "\N{MINUS SIGN}inf" in texts(figure)
    whole = viz.compare(found, outlier_percentile=100).axes[0].get_ylim()
    assert whole[0] < 0 < 1e4 < whole[1]


@pytest.mark.parametrize("rows", [[[0.0]], [[5.0, 5.0]], [[1e-300], [1e300]], [[True], [False]]])
def test_compare_draws_constants_and_extremes(rows: Any) -> None:
    drawn(viz.compare(comparison(m=("higher", rows))))


def test_compare_has_logarithmic_axes() -> None:
    found = comparison(m=("lower", [[1e-6, 1e-3], [1.0, 1e3]]), other=(None, [[0.0] * 2] * 2))
    figure = drawn(viz.compare(found, log="m", outlier_percentile=100))
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert dots(figure)[0] == pytest.approx([1e-6, 1e-3])
    assert dots(figure)[1] == [1, 1e3]
    with pytest.raises(ValueError, match="log has 'other', which has values down to 0, expected"):
        viz.compare(found, log=["other"])
    with pytest.raises(ValueError, match=r"log has \['n'\], expected names among"):
        viz.compare(found, log=["n"])


def test_compare_texts_do_not_overlap() -> None:
    names = ["integrated gradients", "W" * 40, "x", "LRP, epsilon and z+", "$5 and $6"]
    of = {"a long name of a metric of mine": torch.randn(9), "relative_input_stability" * 2: 1e-9}
    values = {n: {k: v + torch.zeros(9) for k, v in of.items()} for n in names}
    no_text_overlaps(
        viz.compare(
            Comparison(values, dict.fromkeys(of, "higher")),  # type: ignore[arg-type]
            title="A heading " * 20,
        )
    )


def test_compare_takes_what_compare_returns() -> None:
    found = metrics.compare(
        lambda x: (x**2).sum(1),
        torch.rand(6, 4),
        {"gradient": attrfn.gradient, "ig": attrfn.integrated_gradients},
        {"deletion": metrics.deletion, "complexity": metrics.complexity},
    )
    before = {m: {k: v.clone() for k, v in of.items()} for m, of in found.values.items()}
    figure = drawn(viz.compare(found))
    assert lines(figure) == pytest.approx(found.mean()[:, 0].tolist())
    assert all(
        torch.equal(found.values[m][k], v) for m, of in before.items() for k, v in of.items()
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a": 1}, TypeError, "comparison is a dict, expected what attrfn.metrics.compare"),
        (Comparison({}, {}), ValueError, "comparison is empty"),
        (
            Comparison({"a": {"m": torch.ones(2)}, "b": {"m": torch.ones(3)}}, {"m": None}),
            ValueError,
            r"comparison has \[2, 3\] examples of 'm'",
        ),
    ],
)
def test_compare_refuses_what_is_no_comparison(
    given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        viz.compare(given)


# --- curves

X = torch.tensor([0.0, 0.5, 1.0])
CURVE = Curve(X, torch.tensor([[4.0, 2.0, 0.0], [6.0, 2.0, 2.0], [8.0, 5.0, 1.0]]))


def paths(figure: Figure, panel: int = 0) -> list[list[float]]:
    return [[float(y) for y in line.get_ydata()] for line in figure.axes[panel].lines]


def test_curves_draw_the_mean_and_a_band_over_examples() -> None:
    figure = drawn(viz.curves(CURVE, band=(0, 100), ylabel="score"))
    (panel, _) = figure.axes
    assert paths(figure) == [[6, 3, 1]]
    # The corners of the band: minimum and maximum over the examples at each fraction.
    corners = {(float(x), float(y)) for x, y in panel.collections[0].get_paths()[0].vertices}
    assert corners == {(0, 4), (0.5, 2), (1, 0), (0, 8), (0.5, 5), (1, 2)}
    assert panel.get_xlabel() == "share of features deleted"
    assert panel.get_ylabel() == "score"
    # By hand: 0.5 (6 + 3) / 2 + 0.5 (3 + 1) / 2 = 3.25.
    assert {"3.25", "deletion", "lower is better"} <= set(texts(figure))


def test_curves_show_quartiles_by_default() -> None:
    figure = viz.curves(None, CURVE)
    corners = {
        (float(x), float(y)) for x, y in figure.axes[0].collections[0].get_paths()[0].vertices
    }
    # Of 4, 6, 8 a quarter of the way through both gaps: 5 and 7; of 2, 2, 5: 2 and 3.5.
    assert {(0, 5), (0, 7), (0.5, 2), (0.5, 3.5)} <= corners
    assert {"insertion", "higher is better"} <= set(texts(figure))
    assert any("percentiles 25 to 75" in text for text in texts(figure))


def test_curves_of_several_methods_share_an_axis_and_say_their_areas() -> None:
    f, x = lambda x: (x**2).sum(1), torch.rand(8, 6)
    maps = {"ig": attrfn.integrated_gradients(f, x), "gradient": attrfn.gradient(f, x)}
    falls = {name: metrics.removal_curve(f, x, a) for name, a in maps.items()}
    rises = {"ig": metrics.removal_curve(f, x, maps["ig"], insert=True)}
    figure = drawn(viz.curves(falls, rises))
    deletion, insertion, legend = figure.axes
    assert deletion.get_ylim() == insertion.get_ylim()
    assert (len(deletion.lines), len(insertion.lines), len(legend.lines)) == (2, 1, 2)
    assert [line.get_color() for line in deletion.lines] == [
        line.get_color() for line in legend.lines
    ]
    for name, a in maps.items():
        area = metrics.deletion(f, x, a).mean().item()
        assert f"{area:.3g}" in texts(figure)
        assert name in texts(figure)
    assert "–" in texts(figure)  # the gradient has no curve of insertion
    no_text_overlaps(figure)


def test_curves_tell_nine_methods_apart() -> None:
    figure = viz.curves({str(i): CURVE for i in range(9)})
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 9


def test_curves_leave_out_examples_that_are_not_finite() -> None:
    values = torch.cat([CURVE.values, torch.tensor([[NAN, 1.0, 1.0], [INF, 0.0, 0.0]])])
    figure = drawn(viz.curves({"m": Curve(X, values)}))
    assert paths(figure) == [[6, 3, 1]]
    assert any("not finite: 2 of m." in text for text in texts(figure))


def test_curves_texts_do_not_overlap() -> None:
    names = ["W" * 40, "a name that is long enough for two lines", "$5"] + [
        str(i) for i in range(20)
    ]
    many = dict.fromkeys(names, CURVE)
    no_text_overlaps(viz.curves(many, many, title="A heading " * 30))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: viz.curves(), ValueError, "deletion and insertion are both None"),
        (lambda: viz.curves({}), ValueError, "deletion is empty"),
        (lambda: viz.curves({"m": 3}), TypeError, r"deletion\['m'\] is a int, expected a Curve"),  # type: ignore[dict-item]
        (lambda: viz.curves(CURVE, band=(75, 25)), ValueError, r"band is \(75, 25\), expected two"),
        (
            lambda: viz.curves(Curve(X[:2], CURVE.values)),
            ValueError,
            "deletion has 2 fractions and 3 values per example",
        ),
        (
            lambda: viz.curves(Curve(X, CURVE.values * NAN)),
            ValueError,
            "deletion has no example whose values are all finite",
        ),
    ],
)
def test_curves_refuse(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# --- sanity

IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = {
    name: {
        column: torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(10 * i + j))
        for j, column in enumerate(("trained", "fc", "conv"))
    }
    for i, name in enumerate(("gradient", "ig"))
}


def test_sanity_has_a_row_per_method_and_image() -> None:
    figure = drawn(viz.sanity(IMAGES, MAPS, titles=["three", "eight"]))
    assert len(figure.axes) == 4 * 4
    assert [axes.get_title() for axes in figure.axes[:5]] == ["image", "trained", "fc", "conv", ""]
    labels = [t for t in texts(figure) if "three" in t or "eight" in t]
    assert labels == ["gradient\nthree", "gradient\neight", "ig\nthree", "ig\neight"]
    for row, (name, i) in enumerate((n, i) for n in MAPS for i in range(2)):
        for column, (_, values) in enumerate(MAPS[name].items(), 1):
            shown = torch.tensor(figure.axes[4 * row + column].images[0].get_array().data)
            assert torch.equal(shown, values[i, 0].double())


def test_sanity_gives_each_map_its_own_scale_around_zero() -> None:
    maps = {"m": {"trained": MAPS["ig"]["fc"], "fc": 1e-6 * MAPS["ig"]["fc"]}}
    figure = viz.sanity(IMAGES, maps, outlier_percentile=100)
    for axes, values, size in zip(figure.axes[1:3], maps["m"].values(), (1, 1e-6), strict=True):
        top = values[0].abs().max().item()
        assert axes.images[0].get_clim() == (-top, top)
        assert 0.5 * size < top


def test_sanity_writes_similarities_under_the_maps() -> None:
    trained = MAPS["ig"]["trained"]
    maps = {"m": {"trained": trained, "same": trained, "less": -trained, "none": 0 * trained}}
    figure = viz.sanity(IMAGES, maps, similarity=similarity.spearman)
    numbers = [t for t in texts(figure) if re.fullmatch(r"−?\d\.\d\d|undefined", t)]
    assert numbers == ["1.00", "−1.00", "undefined"] * 2
    assert any("spearman with that of the trained model" in t for t in texts(figure))


def test_sanity_draws_what_randomization_returns() -> None:
    model = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 2, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    )
    of = {"target": 1, "key": 3}
    call = metrics.model_parameter_randomization
    found = call(model, IMAGES, attrfn.gradient, similarity=lambda a, b: b, **of)  # type: ignore[arg-type]
    trained = attrfn.gradient(model, IMAGES, target=1)
    figure = viz.sanity(
        IMAGES, {"g": {"trained": trained, **found}}, similarity=similarity.spearman
    )
    # The numbers are those that the metric computes by itself with the same key.
    alike = call(model, IMAGES, attrfn.gradient, similarity=similarity.spearman, **of)  # type: ignore[arg-type]
    expected = [f"{alike[layer][i]:.2f}" for i in range(2) for layer in ("3", "0")]
    numbers = [t.replace("−", "-") for t in texts(figure) if re.fullmatch(r"−?\d\.\d\d", t)]
    assert numbers == [t.replace("-0.00", "0.00") for t in expected]


def test_sanity_texts_do_not_overlap() -> None:
    names = ("trained", "features.0.conv_1.weight_norm", "W" * 30)
    columns = dict.fromkeys(names, MAPS["ig"]["fc"])
    maps = {"integrated gradients, " * 4: columns, "x": columns}
    no_text_overlaps(
        viz.sanity(
            IMAGES,
            maps,
            similarity=similarity.pearson,
            titles=["a label that is much too long for one line", "$5 and $6"],
            title="A heading " * 20,
        )
    )


@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        ({"m": IMAGES}, TypeError, "expected a mapping from method names to mappings"),
        ({}, ValueError, "maps has fewer than two columns"),
        ({"m": {"trained": IMAGES}}, ValueError, "maps has fewer than two columns"),
        (
            {"m": {"trained": IMAGES, "a": IMAGES}, "n": {"trained": IMAGES, "b": IMAGES}},
            ValueError,
            r"maps\['n'\] has columns \['trained', 'b'\], expected \['trained', 'a'\]",
        ),
        ({"m": {"trained": IMAGES, "a": IMAGES[:1]}}, ValueError, "has 1 examples, expected 2"),
        ({"m": {"trained": IMAGES, "a": IMAGES * NAN}}, ValueError, "NaN or infinite"),
    ],
)
def test_sanity_refuses(maps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        viz.sanity(IMAGES, maps)


def test_sanity_refuses_wrong_titles_and_similarities() -> None:
    with pytest.raises(ValueError, match="titles is 'ab', expected a sequence of 2 texts"):
        viz.sanity(IMAGES, MAPS, titles="ab")
    with pytest.raises(ValueError, match=r"similarity returned \(\), expected one number for each"):
        viz.sanity(IMAGES, MAPS, similarity=lambda a, b: (a * b).sum())
