"""Views of language models' explanations: what is in them, and what browsers make of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser

from attrfn import viz
from attrfn.text import TextAttribution

WORDS = ("The", "capital", "of", "France", "is")
TOKENS = (" Paris", ",", " and", "\n", "<|im_end|>")
VIEWS = {"text_matrix": viz.text_matrix, "answer": viz.answer, "passages": viz.passages}
# Texts that break pages which do not escape: as parts and as tokens.
ODD = (
    *("</script><script>document.title='run'</script>", '"><b onclick="x">', "&amp;", "'"),
    *("שלום", "مرحبا", "\N{WAVING HAND SIGN}", "\ufffd", "\n", "  ", "", "a\nb", "</style>"),
)
VOID = {"meta", "input", "br"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Browser() as one:
        yield one


def result(rows: int = 5, n: int = 5, **more: Any) -> TextAttribution:
    values = torch.randn(rows, n, generator=torch.Generator().manual_seed(rows + n))
    given: dict[str, Any] = {
        **{"values": values, "total": values.sum(0), "method": "feature_ablation"},
        **{"scores": torch.linspace(-1, 0, rows), "empty": torch.linspace(-5, -2, rows)},
        "parts": tuple((WORDS * n)[:n]),
        "answer": tuple((TOKENS * rows)[:rows]),
    }
    return TextAttribution(**{**given, **more})


class Tags(HTMLParser):
    """What a page consists of; fails where a tag is not closed in its order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.given: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.given += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def fits(page: str) -> Tags:
    """A view has no script and asks for no other file."""
    tags = Tags(page)
    allowed = "style div table thead tbody tr th td i bdi b form p span fieldset legend label input"
    assert tags.seen <= {*allowed.split(), "details", "summary", "ul", "li", "br"}
    names = {name for name, _ in tags.given}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href", "id")]
    style = "".join(tags.texts["style"])
    assert "url(" not in style
    assert "@import" not in style
    return tags


# --- structure


def test_a_matrix_has_a_row_per_token_and_a_column_per_part() -> None:
    given = result(3, 4)
    tags = fits(viz.text_matrix(given, title="a<b"))
    assert "a<b" in "".join(tags.texts["div"])
    numbers = [float(t.replace("\N{MINUS SIGN}", "-")) for t in tags.texts["i"]]
    want = torch.cat([given.values, given.total[None]]).flatten()
    assert torch.allclose(torch.tensor(numbers), want, atol=0.006)
    titles = [value for name, value in tags.given if name == "title"]
    assert "feature_ablation, score log_prob" in "".join(tags.texts["div"])
    assert titles[:4] == ["The", "capital", "of", "France"]
    assert titles[4] == "Paris: score \N{MINUS SIGN}1; \N{MINUS SIGN}5 without the parts"


def test_colours_of_a_matrix_share_one_scale_and_the_total_has_its_own() -> None:
    values = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    page = viz.text_matrix(result(2, 2, values=values, total=torch.tensor([8.0, -4.0])))
    found = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)\" title", page)
    # By hand: shares of 2 for the tokens and of 8 for the whole answer, times 0.65.
    assert found[:3] == [("214", "0.325"), ("52", "0.650"), ("214", "0.163")]
    assert found[4:] == [("214", "0.650"), ("52", "0.325")]
    assert [e in page for e in ("+2<", "+8<")] == [True, True]


def test_one_row_that_is_the_total_is_shown_once() -> None:
    one = result(1, 3)
    assert "whole answer" not in viz.text_matrix(one).lower()
    assert viz.answer(one).count('type="radio"') == 1
    other = one._replace(total=2 * one.total)
    assert "whole answer" in viz.text_matrix(other)
    assert viz.answer(other).count('type="radio"') == 2
    # One number for a whole answer of several tokens.
    whole = one._replace(answer=(" Paris", "."))
    assert "Paris." in viz.text_matrix(whole)


def test_a_total_that_is_not_known_is_left_out() -> None:
    given = result(total=torch.full((5,), torch.nan))
    assert "whole answer" not in viz.text_matrix(given).lower()
    page = viz.answer(given)
    assert "whole answer" not in page.lower()
    assert page.count('type="radio"') == 5
    assert page.count("checked>") == 1
    with pytest.raises(ValueError, match="total is nan, which has no order: explain"):
        viz.passages(given)


def test_many_parts_have_upright_names_and_their_numbers_for_screen_readers() -> None:
    page = viz.text_matrix(result(30, 60))
    assert 'class="attrfn-matrix attrfn-many"' in page
    assert len(fits(page).texts["i"]) == 31 * 60
    assert len(page) < 300_000
    assert 'class="attrfn-matrix attrfn-few"' in viz.text_matrix(result(30, 12))


def test_an_answer_has_a_choice_per_token_and_a_share_per_row() -> None:
    values = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    given = result(2, 2, values=values, total=values.sum(0), parts=("a ", " b"))
    page = viz.answer(given)
    tags = fits(page)
    assert page.count('type="radio"') == 3
    assert page.count("checked>") == 1
    styles = re.findall(r'class="attrfn-p" style="[^"]*?;([^"]*)">(\w)</span>', page)
    # Percents of the largest size: of the totals (1.5, -2), then of the values.
    assert styles == [("--r0:75;--r1:50;--r2:25", "a"), ("--r0:-100;--r1:-100", "b")]
    assert "Most: " in "".join(tags.texts["div"])
    assert "b \N{MINUS SIGN}2" in re.sub(r"<[^>]*>", "", page)


def test_fixed_text_of_a_prompt_has_no_colour() -> None:
    prompt = "<|user|>\n The capital of France is </s>"
    spans = [(m.start(), m.end()) for w in WORDS for m in [re.search(rf"\b{w}\b", prompt)] if m]
    page = viz.answer(result(spans=torch.tensor(spans)), prompt=prompt)
    (text,) = re.findall(r'<p class="attrfn-text" dir="auto">(.*?)</p>', page, re.DOTALL)[:1]
    assert re.sub(r"<[^>]*>", "", text) == prompt.replace("<", "&lt;").replace(">", "&gt;")
    assert text.count("<span") == 5
    assert text.startswith("&lt;|user|&gt;\n <span")


def test_a_prompt_that_is_not_given_is_made_of_its_parts() -> None:
    for spans, want in {
        None: "The capital of",
        ((0, 3), (4, 11), (12, 14)): "The capital of",
        (
            (9, 12),
            (12, 19),
            (40, 42),
        ): "\N{HORIZONTAL ELLIPSIS} Thecapital \N{HORIZONTAL ELLIPSIS} of",
        ((9, 12), (2, 5), (40, 42)): "The capital of",  # out of order: by parts
    }.items():
        given = None if spans is None else torch.tensor(spans)
        page = viz.answer(result(2, 3, spans=given))
        (text,) = re.findall(r'<p class="attrfn-text" dir="auto">(.*?)</p>', page)[:1]
        assert re.sub(r"<[^>]*>", "", text) == want


def test_passages_are_ranked_with_bars() -> None:
    values = torch.tensor([[0.5, -1.0, 3.0]])
    parts = ("Dogs bark.", "Cows moo.", "Cats purr.")
    stderr = torch.tensor([[0.1, 0.0, 1.0]])
    given = result(1, 3, values=values, total=values[0], parts=parts, stderr=stderr)
    page = viz.passages(given)
    fits(page)
    assert re.findall(r'dir="auto">([^<]*)<', page) == ["Cats purr.", "Dogs bark.", "Cows moo."]
    assert re.findall(r'rank">(\d)', page) == ["1", "2", "3"]
    texts = re.findall(r'number">([^<]*)<', page)
    assert texts == ["+3.00 ± 1.00", "+0.50 ± 0.10", "\N{MINUS SIGN}1.00 ± 0.00"]
    # The track goes from -1 to 3 + 1; zero is at a fifth of it.
    assert re.findall(r'bar" style="left:([\d.]+)%;width:([\d.]+)%', page)[0] == ("20.00", "60.00")
    assert re.findall(r'error" style="left:([\d.]+)%;width:([\d.]+)%', page)[0] == (
        "60.00",
        "40.00",
    )
    page = viz.passages(given, order="text", top=2)
    assert re.findall(r'dir="auto">([^<]*)<', page) == ["Cows moo.", "Cats purr."]
    assert re.findall(r'rank">(\d)', page) == ["3", "1"]
    assert "2 of 3 passages" in page


def test_errors_of_passages_are_bounds_or_left_out() -> None:
    values, stderr = torch.ones(2, 2), torch.full((2, 2), 0.25)
    given = result(2, 2, values=values, total=values.sum(0), stderr=stderr)
    page = viz.passages(given)
    assert "+2.00 ± 0.50" in page
    assert "at most this large" in page
    # A total that is no sum of the tokens: their errors say nothing of it.
    page = viz.passages(given._replace(total=torch.tensor([0.3, 0.4])))
    assert "±" not in page
    assert "standard error" not in page


def test_long_passages_unfold() -> None:
    long = "word " * 100
    page = viz.passages(result(1, 2, parts=(long, "short")))
    assert page.count("<details") == 1
    assert page.count(long.strip()) == 1


# --- escaping, purity, messages


@pytest.mark.parametrize("view", VIEWS)
def test_texts_are_texts(view: str) -> None:
    n = len(ODD)
    given = result(n, n, parts=ODD, answer=ODD)
    tags = fits(VIEWS[view](given, title=ODD[0]))
    told = "".join(t for texts in tags.texts.values() for t in texts)
    assert all(text in told for text in (ODD[0], "שלום", "مرحبا", "\N{WAVING HAND SIGN}", ODD[1]))


def test_tokens_without_a_letter_are_seen() -> None:
    page = viz.text_matrix(result(4, 4, parts=("", " ", "  ", "\t"), answer=("\n", "", " ", "a\n")))
    names = re.findall(r"<bdi>(.*?)</bdi>", page)
    assert names == [*"∅␣", "␣␣", "⇥", *"↵∅␣", "a↵", "whole answer"]


@pytest.mark.parametrize("view", VIEWS)
def test_same_call_same_page_and_nothing_changes(view: str, tmp_path: Path) -> None:
    given = result()
    before = [v.clone() for v in given if isinstance(v, torch.Tensor)]
    page = VIEWS[view](given)
    assert page == VIEWS[view](given)
    assert page._repr_html_() == str(page)
    after = [v for v in given if isinstance(v, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    file = page.save(tmp_path / "new" / "page.html", title="a<b")
    text = file.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert page in text
    assert "<title>a&lt;b</title>" in text
    assert page in viz.report(tmp_path / "r.html", title="t", figures={"c": page}).read_text(
        "utf-8"
    )


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("zero", ["values", "row", "size"])
def test_zeros_are_drawn(view: str, zero: str) -> None:
    nothing = torch.zeros(5, 5)
    if zero == "row":
        nothing[1] = 1.0
    if zero == "size":
        nothing = nothing + 1e-30
    page = VIEWS[view](result(values=nothing, total=nothing.sum(0)))
    fits(page)
    assert "nan" not in page


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"parts": WORDS[:4]}, ValueError, "result.parts has 4 texts, expected one for each of 5"),
        ({"answer": TOKENS[:4]}, ValueError, "result.answer has 4 texts"),
        ({"parts": "abcde"}, TypeError, "result.parts is 'abcde', expected a tuple of texts"),
        ({"parts": (1, *WORDS[:4])}, TypeError, "result.parts holds 1, expected texts"),
        ({"total": torch.zeros(4)}, ValueError, r"result.total has shape \(4,\), expected \(5,\)"),
        ({"values": torch.zeros(5)}, ValueError, r"result.values has shape \(5,\)"),
        ({"values": torch.full((5, 5), torch.nan)}, ValueError, "result.values holds 25 of 25"),
        ({"scores": torch.zeros(3)}, ValueError, "result.scores has shape"),
        ({"stderr": torch.zeros(3)}, ValueError, "result.stderr has shape"),
        ({"spans": torch.zeros(3, 2)}, ValueError, "result.spans has shape"),
    ],
)
def test_results_that_do_not_fit_are_refused(
    view: str, more: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        VIEWS[view](result(**more))


def test_other_things_are_refused() -> None:
    for view in VIEWS.values():
        for wrong in (torch.zeros(3), "words", None, [1.0]):
            with pytest.raises(TypeError, match=r"result is .*, expected the TextAttribution"):
                view(wrong)
    for wrong in ("size", None, 3):
        with pytest.raises(ValueError, match="order is"):
            viz.passages(result(), order=wrong)
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="top is"):
            viz.passages(result(), top=wrong)
    with pytest.raises(ValueError, match="prompt has 3 characters"):
        viz.answer(result(), prompt="abc")
    spans = torch.tensor([[0, 3]] * 5)
    with pytest.raises(ValueError, match="prompt has 3 characters"):
        viz.answer(result(spans=spans), prompt="abc")


# --- in a browser


def colours(page: Browser) -> list[str]:
    """The colours of the parts of a prompt: red, blue or none, with the opacity."""
    return list(
        page.js(
            "[...document.querySelectorAll('.attrfn-p')].map(e => getComputedStyle(e)"
            ".backgroundImage).map(b => b == 'none' ? '(0, 0, 0, 0) (0, 0, 0, 0)'"
            " : b.match(/rgba?\\([^)]*\\)/g).filter((c, i) => i % 2 == 0).join(' '))"
        )
    )


def expected(row: torch.Tensor, end: float) -> list[tuple[float, float]]:
    shares = (100 * row / end).round() / 100 * 0.65
    return [(max(0.0, s), max(0.0, -s)) for s in shares.tolist()]


def opacities(page: Browser) -> list[tuple[float, float]]:
    """Of the red and the blue of each part."""
    found = []
    for text in colours(page):
        parts = [re.findall(r"[\d.]+", c) for c in re.findall(r"\([^)]*\)", text)]
        red, blue = (float(p[3]) if len(p) > 3 else 1.0 for p in parts)
        found.append((red, blue))
    return found


def visible(page: Browser) -> str:
    """The line about a token that can be seen."""
    return str(
        page.js(
            "[...document.querySelectorAll('.attrfn-says > div')]"
            ".filter(e => getComputedStyle(e).visibility == 'visible')"
            ".map(e => e.querySelector('b').textContent).join('|')"
        )
    )


def test_pointer_keys_and_touch_choose_a_row(browser: Browser, tmp_path: Path) -> None:
    given = result()
    given.values[1, 2] = given.values[4, 0] = 0.0  # parts without a colour
    file = viz.answer(given, title="t").save(tmp_path / "a.html")
    end, top = float(given.values.abs().max()), float(given.total.abs().max())

    def near(page: Browser, row: torch.Tensor, end: float) -> None:
        want = expected(row, end)
        assert [r for r, _ in opacities(page)] == pytest.approx([r for r, _ in want], abs=0.004)
        assert [b for _, b in opacities(page)] == pytest.approx([b for _, b in want], abs=0.004)

    page = browser.open(file)
    near(page, given.total, top)
    assert visible(page) == "Whole answer"
    page.point(".attrfn-a2")  # the pointer over the second token
    near(page, given.values[1], end)
    assert visible(page) == ","
    page.point(".attrfn-title")  # and away: the choice is as it was
    near(page, given.total, top)
    page.point(".attrfn-a1", click=True)
    page.point(".attrfn-title")
    near(page, given.values[0], end)
    page.press("ArrowRight", 39)
    page.press("ArrowRight", 39)
    near(page, given.values[2], end)
    assert visible(page) == "and"
    assert page.js("document.activeElement.className") == "attrfn-a3"
    page.tap(".attrfn-a5")
    near(page, given.values[4], end)
    assert visible(page) == "<|im_end|>"
    assert page.js("document.scripts.length") == 0
    fresh = file.with_name("b.html")
    fresh.write_text(file.read_text("utf-8"), "utf-8")
    page = browser.open(fresh)
    page.press("Tab", 9)  # the keyboard alone
    page.press("ArrowRight", 39)
    near(page, given.values[0], end)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_pages_fit_their_windows_in_light_and_dark(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    """No page scrolls sideways (tables do, in their own frame); letters stand off the ground."""
    wide = result(30, 60)
    for name, view in VIEWS.items():
        file = view(wide).save(tmp_path / f"{name}.html")
        page = browser.open(file, width, dark=dark)
        page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.js("document.documentElement.scrollWidth") <= width, name
        colour, ground = (
            [
                int(n)
                for n in re.findall(r"\d+", page.js(f"getComputedStyle(document.body).{p}"))[:3]
            ]
            for p in ("color", "backgroundColor")
        )
        assert (sum(colour) > sum(ground)) == dark
        assert abs(sum(colour) - sum(ground)) > 500


def test_a_matrix_of_30_by_60_fits_a_desktop(browser: Browser, tmp_path: Path) -> None:
    file = viz.text_matrix(result(30, 60)).save(tmp_path / "m.html")
    page = browser.open(file, 1440)
    width = page.js("document.querySelector('.attrfn-matrix').offsetWidth")
    assert width <= page.js("document.querySelector('.attrfn-scroll').clientWidth")
    cell = page.js(
        "(c => [c.width, c.height])(document.querySelector('tbody td').getBoundingClientRect())"
    )
    assert min(cell) > 15
    names = page.js("[...document.querySelectorAll('thead th')].map(e => e.innerText)")
    assert len(names) == 60


@pytest.mark.parametrize("view", VIEWS)
def test_no_text_becomes_markup(browser: Browser, tmp_path: Path, view: str) -> None:
    n = len(ODD)
    file = VIEWS[view](result(n, n, parts=ODD, answer=ODD)).save(tmp_path / "o.html", title="kept")
    page = browser.open(file)
    assert page.js("document.title") == "kept"
    assert page.js("document.scripts.length") == 0
    assert page.js("document.querySelectorAll('[onclick]').length") == 0
    assert ODD[0] in page.js("document.body.textContent")
    lines = page.js(
        "[...document.querySelectorAll('p, bdi, details')].filter(e =>"
        " e.textContent.trim() == 'שלום').map(e => getComputedStyle(e).direction)"
    )
    assert lines
    assert set(lines) == {"rtl"}
