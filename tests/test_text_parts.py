"""Parts of prompts: boundaries, special tokens, bytes of one character, chats and documents."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from text_tokenizers import TRAINED, Bytes, Written, alone, spaced, trained

from attrfn import text
from attrfn.text._segment import paragraphs, sentences, words

MIXED = "Unbelievable: the cat 👩‍👩‍👧 is עולם,  3.14!\n"
MIXED_WORDS = ("Unbelievable", ":", "the", "cat", "👩‍👩‍👧", "is", "עולם", ",", "3.14", "!")

TOKENIZERS = {"spaced": spaced, "alone": alone, "bytes": Bytes}
TOKENIZERS |= {name: lambda name=name: trained(name) for name in TRAINED}
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def texts(found: list[tuple[int, int]], of: str) -> list[str]:
    return [of[a:b] for a, b in found]


# Expected by hand: what a reader calls a word.
WORDS = {
    "Don't stop!": ["Don't", "stop", "!"],
    "1,000 at 10:30.": ["1,000", "at", "10:30", "."],
    "a_b x-y, 'l’eau'": ["a_b", "x", "-", "y", ",", "'", "l’eau", "'"],
    "हिन्दी में": ["हिन्दी", "में"],
    "👍🏽🇩🇪 ok": ["👍🏽🇩🇪", "ok"],
    "שָׁלוֹם, מרחבא": ["שָׁלוֹם", ",", "מרחבא"],
    "中文。ok カナ": ["中", "文", "。", "ok", "カナ"],
    "e\u0301a  b": ["e\u0301a", "b"],
    "": [],
    " \n": [],
}


@pytest.mark.parametrize("of", WORDS)
def test_words(of: str) -> None:
    assert texts(words(of), of) == WORDS[of]


SENTENCES = {
    "Dr. Smith met J. Doe. They left.": ["Dr. Smith met J. Doe.", "They left."],
    'At 3.5 p.m. he said "No." Why?': ['At 3.5 p.m. he said "No."', "Why?"],
    '"Why?" he asked. No. 5 won.': ['"Why?" he asked.', "No. 5 won."],
    "1. One. Two.\n2. Three": ["1. One.", "Two.", "2. Three"],
    "A line of\nfixed width. And\n\nnew": ["A line of\nfixed width.", "And", "new"],
    "中文。第二！ok": ["中文。", "第二！", "ok"],
    "Wait... what? Yes": ["Wait... what?", "Yes"],
    "كيف حالك؟ بخير.": ["كيف حالك؟", "بخير."],
    "no end": ["no end"],
    "it rains. we walk. so": ["it rains.", "we walk.", "so"],
    "cats, dogs etc. and at 5 p.m. too": ["cats, dogs etc. and at 5 p.m. too"],
}


@pytest.mark.parametrize("of", SENTENCES)
def test_sentences(of: str) -> None:
    assert texts(sentences(of), of) == SENTENCES[of]


def test_paragraphs() -> None:
    of = "\n one\nline \r\n\r\ntwo\n \n\n three "
    assert texts(paragraphs(of), of) == ["one\nline", "two", "three"]


@each_tokenizer
@pytest.mark.parametrize("by", ["word", "sentence", "paragraph", "token", r"\w+"])
def test_every_character_of_a_part_has_its_tokens(name: str, by: str) -> None:
    """Spelled out: the owner of a token is the part with its first character after spaces."""
    tokenizer = TOKENIZERS[name]()
    found = text.parts(MIXED, tokenizer, by=by)
    encoding = tokenizer(MIXED, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    assert found.ids.tolist() == [ids]
    assert found.mask.shape == (len(ids),)
    assert found.labels == tuple(MIXED[a:b] for a, b in found.spans.tolist())
    assert set(found.mask.tolist()) - {-1} == set(range(found.n)) or by == r"\w+"
    for (a, b), owner, i in zip(offsets, found.mask.tolist(), ids, strict=True):
        signs = [c for c in range(a, b) if not MIXED[c].isspace()]
        if i in tokenizer.all_special_ids and i != getattr(tokenizer, "unk_token_id", None):
            assert owner == -1
        elif signs and by != "token":
            inside = [k for k, (s, e) in enumerate(found.spans.tolist()) if s <= signs[0] < e]
            assert [owner] == (inside or [-1])


@each_tokenizer
def test_words_are_the_same_for_all_tokenizers(name: str) -> None:
    found = text.parts(MIXED, TOKENIZERS[name]())
    assert found.labels == MIXED_WORDS
    assert found.by == "word"


@pytest.mark.parametrize("name", TRAINED)
def test_tokenizers_of_the_library_below_do_too(name: str) -> None:
    fast = trained(name)
    for by in ("word", "token"):
        found, other = (
            text.parts(MIXED, fast, by=by),
            text.parts(MIXED, fast.backend_tokenizer, by=by),
        )
        assert found.labels == other.labels
        assert torch.equal(found.mask, other.mask)


def test_a_space_belongs_to_the_part_after_it() -> None:
    assert text.parts("a b ", alone()).mask.tolist() == [0, 1, 1, -1]
    # A part that says so has it.
    assert text.parts("a b", alone(), by=[(0, 2), (2, 3)]).mask.tolist() == [0, 0, 1]


def test_the_bytes_of_a_character_stay_together() -> None:
    found = text.parts("a 😀b c", Bytes())
    assert found.labels == ("a", "😀", "b", "c")
    assert found.mask.tolist() == [0, 1, 1, 1, 1, 1, 2, 3, 3]
    each = text.parts("😀b", Bytes(), by="token")
    assert each.labels == ("😀", "😀", "😀", "😀", "b")


def test_tokens_without_characters_go_with_what_they_follow_or_precede() -> None:
    def tokenizer(of: str, **options: Any) -> dict[str, Any]:
        # two bytes of one sign, of which the second has no width; a trimmed space; a word
        return {"input_ids": [5, 6, 7, 8], "offset_mapping": [(0, 1), (1, 1), (2, 2), (2, 4)]}

    assert text.parts("é ab", tokenizer).mask.tolist() == [0, 0, 1, 1]


def test_a_token_over_several_words_makes_one_part_of_them() -> None:
    tokenizer = Written(lambda t: [(m.start(), m.end(), m[0]) for m in re.finditer(r"\S+|\s", t)])
    found = text.parts("The end. (Really)", tokenizer)
    assert found.labels == ("The", "end.", "(Really)")
    # Spans that are asked for stay, and have no token.
    found = text.parts("end. x", tokenizer, by=[(0, 3), (3, 4), (5, 6)])
    assert found.n == 3
    assert found.mask.tolist() == [0, 2, 2]


def test_special_tokens_are_fixed_and_unknown_words_are_not() -> None:
    wordpiece = trained("wordpiece")
    found = text.parts("the cat ☃ </s> sat", wordpiece)
    unknown = found.ids[0] == wordpiece.unk_token_id
    assert found.mask[unknown].tolist() == [2]
    marks = torch.isin(found.ids[0], torch.tensor([2, 3]))  # <s> ... </s> ... </s>
    assert marks.sum() == 3
    assert found.mask[marks].tolist() == [-1, -1, -1]


def test_there_is_one_mark_of_the_beginning() -> None:
    bpe = trained("bpe")
    assert bpe("<s>the cat")["input_ids"][:2] == [2, 2]
    found = text.parts("<s>the cat", bpe)
    assert found.ids[0, :2].tolist() == [2, bpe("the", add_special_tokens=False)["input_ids"][0]]
    given = text.parts("<s>the cat", bpe, encoding=bpe("<s>the cat", return_offsets_mapping=True))
    assert given.ids[0, :2].tolist() == [2, 2]


def test_keep() -> None:
    of = "Answer: the cat sat. Answer: yes"
    found = text.parts(of, spaced(), keep=["Answer:"])
    assert found.labels == ("the", "cat", "sat", ".", "yes")
    assert found.mask.tolist()[:2] == [-1, -1]
    found = text.parts(of, spaced(), by="sentence", keep="Answer:")
    assert found.labels == ("Answer: the cat sat.", "Answer: yes")
    assert found.mask.tolist() == [-1, -1, 0, 0, 0, 0, -1, -1, 1]


def test_units_of_the_user() -> None:
    of = "one two three"
    for by in (r"\w+", re.compile(r"\w+"), lambda t: [m.span() for m in re.finditer(r"\w+", t)]):
        assert text.parts(of, spaced(), by=by).labels == ("one", "two", "three")
    back = text.parts(of, spaced(), by=[(8, 13), (4, 7), (0, 3)])
    assert back.labels == ("three", "two", "one")
    assert back.mask.tolist() == [2, 1, 0]
    assert text.parts(of, spaced(), by=torch.tensor([[0, 7]])).labels == ("one two",)


def test_encodings_of_all_forms() -> None:
    bpe = trained("bpe")
    expected = text.parts("the cat", bpe)
    for options in ({}, {"return_tensors": "pt"}):
        for of in ("the cat", ["the cat"]):
            encoding = (
                bpe(of, return_offsets_mapping=True, **options)
                if (options or isinstance(of, list))
                else bpe(of, return_offsets_mapping=True)
            )
            found = text.parts("the cat", bpe, encoding=encoding)
            assert torch.equal(found.ids, expected.ids)
            assert torch.equal(found.mask, expected.mask)


def test_two_texts() -> None:
    """As one text with a new line between them; marks are fixed."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    tokenizers = pytest.importorskip("tokenizers")
    inner = trained("wordpiece").backend_tokenizer
    inner = tokenizers.Tokenizer.from_str(inner.to_str())
    marks = [("<s>", 2), ("</s>", 3)]
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=marks
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    pair = ("The cat sat. A dog", "cats are")
    for tokenizer in (fast, inner):
        found = text.parts(pair, tokenizer)
        assert found.text == "The cat sat. A dog\ncats are"
        assert found.labels == ("The", "cat", "sat", ".", "A", "dog", "cats", "are")
        assert found.ids.tolist() == [fast(*pair)["input_ids"]]
        marked = torch.isin(found.ids[0], torch.tensor([2, 3]))
        assert marked.sum() == 3
        assert torch.equal(found.mask < 0, marked)
        assert text.parts(pair, tokenizer, by="sentence").labels == (
            "The cat sat.",
            "A dog",
            "cats are",
        )
    with pytest.raises(ValueError, match="neither sequence_ids nor token_type_ids"):
        text.parts(pair, lambda a, b, **o: spaced()(a, True))
    typed = {"input_ids": [5, 6], "offset_mapping": [(0, 1), (0, 1)], "token_type_ids": [0, 1]}
    assert text.parts(("a", "b"), None, encoding=typed).mask.tolist() == [0, 1]


def test_words_behind_the_end_of_a_truncated_text_have_no_token() -> None:
    bpe = trained("bpe")
    cut = bpe("the cat sat on", truncation=True, max_length=3, return_offsets_mapping=True)
    found = text.parts("the cat sat on", bpe, encoding=cut)
    assert found.labels == ("the", "cat", "sat", "on")
    assert found.mask.tolist() == [-1, 0, 1]


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "empty": (lambda: text.parts(" ", spaced()), ValueError, "text is ' ', which has no part"),
    "no text": (
        lambda: text.parts(["a"], spaced()),
        TypeError,
        r"text is \['a'\], expected a text",
    ),
    "overlap": (
        lambda: text.parts("abcdef", spaced(), by=[(0, 3), (2, 5)]),
        ValueError,
        r"by has the spans \(0, 3\) and \(2, 5\), which overlap",
    ),
    "outside": (
        lambda: text.parts("abc", spaced(), by=[(0, 4)]),
        ValueError,
        r"by has the span \(0, 4\) for a text of 3 characters",
    ),
    "no offsets": (
        lambda: text.parts("abc", lambda t, **o: {"input_ids": [1]}),
        ValueError,
        "tokenizer gives no offsets",
    ),
    "slow": (
        lambda: text.parts("abc", lambda t: [1]),
        ValueError,
        "tokenizer gives no offsets .*: load a fast tokenizer",
    ),
    "no tokenizer": (lambda: text.parts("abc", 3), TypeError, "tokenizer is 3, expected one of"),
    "regex": (lambda: text.parts("abc", spaced(), by="("), ValueError, "is not a regular expr"),
    "nothing": (lambda: text.parts("abc", spaced(), by="x+"), ValueError, "finds no part in text"),
    "plural": (lambda: text.parts("abc", spaced(), by="Words"), ValueError, "expected 'word'"),
    "kind": (lambda: text.parts("abc", spaced(), by=[3]), TypeError, "by gives .*expected spans"),
    "keep": (lambda: text.parts("abc", spaced(), keep="x"), ValueError, "does not occur in text"),
    "all kept": (lambda: text.parts("a b", spaced(), keep="a b"), ValueError, "finds no part"),
    "other text": (
        lambda: text.parts("ab", spaced(), encoding=spaced()("abc", True)),
        ValueError,
        r"offsets, one of them \(0, 3\), for a text of 2",
    ),
    "two texts": (
        lambda: text.parts("a", None, encoding={"input_ids": [[1], [2]], "offset_mapping": []}),
        ValueError,
        "encoding holds several texts",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(str(caught.value)) <= 300


# --- chats ---------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<s>system user says Hi.\n{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def chat(template: str = TEMPLATE) -> Any:
    import copy

    found = copy.deepcopy(trained("bpe"))
    found.chat_template = template
    return found


def test_chat_parts() -> None:
    """A message that is also a word of the template is found at its own place."""
    tokenizer = chat()
    messages = [
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": " Hi. User says\n"},
    ]
    found = text.chat_parts(messages, tokenizer)
    assert found.text == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert found.labels == ("user", "Hi.", "User says")
    assert found.ids[0].tolist() == tokenizer(found.text, add_special_tokens=False)["input_ids"]
    starts = [a for a, _ in found.spans.tolist()]
    assert starts == [
        found.text.index("<s>user\n") + 8,
        found.text.rindex("Hi."),
        found.text.rindex("User says"),
    ]
    both = text.chat_parts(messages, tokenizer, roles=("user", "assistant"), by="word")
    assert both.labels == ("user", "Hi", ".", "Hi", ".", "User", "says")
    kept = text.chat_parts(messages, tokenizer, keep="says", by="token")
    assert "".join(kept.labels).replace(" ", "") == "userHi.User"
    bare = text.chat_parts(messages, tokenizer, add_generation_prompt=False)
    assert found.text == bare.text + "<s>assistant\n"


def test_chat_parts_of_contents_in_pieces() -> None:
    template = (
        "{% for m in messages %}{% for c in m.content %}[{{ c.text }}]{% endfor %}{% endfor %}"
    )
    content = [{"type": "text", "text": "One. Two."}, {"type": "text", "text": "["}]
    found = text.chat_parts([{"role": "user", "content": content}], chat(template))
    assert found.labels == ("One.", "Two.", "[")
    assert found.spans[-1].tolist() == [12, 13]


def test_messages_of_other_roles_may_be_changed_by_the_template() -> None:
    """As templates do that leave out what a model thought before."""
    template = "{% for m in messages %}[{{ m.content.split('>')[-1] }}]{% endfor %}"
    messages = [
        {"role": "assistant", "content": "<think>Hm.</think>Yes."},
        {"role": "user", "content": "Yes. And?"},
    ]
    found = text.chat_parts(messages, chat(template))
    assert found.text == "[Yes.][Yes. And?]"
    assert found.spans.tolist() == [[7, 11], [12, 16]]


CHAT_WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "changed": (
        lambda: text.chat_parts(
            [{"role": "user", "content": "Hi"}], chat("{{ messages[0].content | upper }}")
        ),
        ValueError,
        "does not print the message 'Hi' once and as it is",
    ),
    "twice": (
        lambda: text.chat_parts(
            [{"role": "user", "content": "Hi"}], chat("{{ messages[0].content * 2 }}")
        ),
        ValueError,
        "does not print the message 'Hi' once and as it is",
    ),
    "role": (
        lambda: text.chat_parts([{"role": "system", "content": "Hi"}], chat()),
        ValueError,
        "of which no message has a text, expected of system",
    ),
    "message": (lambda: text.chat_parts(["Hi"], chat()), TypeError, "messages has 'Hi', expected"),
    "template": (
        lambda: text.chat_parts([{"role": "user", "content": "Hi"}], spaced()),
        TypeError,
        "expected one with apply_chat_template",
    ),
    "spans": (
        lambda: text.chat_parts([{"role": "user", "content": "Hi"}] * 2, chat(), by=[(0, 1)]),
        ValueError,
        "by is spans for 2 messages",
    ),
}


@pytest.mark.parametrize("case", CHAT_WRONG)
def test_wrong_chats(case: str) -> None:
    call, error, message = CHAT_WRONG[case]
    with pytest.raises(error, match=message):
        call()


# --- documents -----------------------------------------------------------------------------------


def test_documents() -> None:
    found = text.documents(
        "Use {{these}}:\n{documents}\n\nQ: {question:>4}",
        ["a {b}", "", "c d"],
        alone(),
        question="e",
    )
    assert found.text == "Use {these}:\na {b}\n\n\n\nc d\n\nQ:    e"
    assert found.labels == ("a {b}", "", "c d")
    assert found.by == "document"
    tokens = alone()(found.text, True)["offset_mapping"]
    for k, (a, b) in enumerate(found.spans.tolist()):
        signs = [t for t, (s, _) in enumerate(tokens) if a <= s < b]
        assert all(found.mask[t] == k for t in signs)
    assert not (found.mask == 1).any()
    tail = [t for t, (s, _) in enumerate(tokens) if s >= found.text.index("Q")]
    assert (found.mask[tail] == -1).all()
    placed = text.documents("1: {} 2: {}", ["x", "y"], spaced())
    assert placed.text == "1: x 2: y"
    assert text.documents("{1}{0}", ["x", "y"], alone()).text == "yx"


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        ("{}", {}, "0 places {documents} and 1 places {}"),
        ("none", {}, "0 places {documents} and 0 places {}"),
        ("{documents} {q}", {}, r"places \['q'\] and the fields are \[\]"),
        ("{documents}", {"q": 1}, r"places \[\] and the fields are \['q'\]"),
    ],
)
def test_wrong_templates(template: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text.documents(template, ["a", "b"], spaced(), **fields)


def test_wrong_documents() -> None:
    with pytest.raises(TypeError, match="documents is 'ab', expected a list of texts"):
        text.documents("{documents}", "ab", spaced())
    with pytest.raises(ValueError, match="documents is empty"):
        text.documents("{documents}", [], spaced())


# --- random texts --------------------------------------------------------------------------------

PIECES = ["a", "Cat", "dogs", " ", "  ", "\n", "\n\n", "\r\n", "\t", ".", "!", "?", ",", "...", '"']
PIECES += [
    "'",
    "3",
    ".5",
    "é",
    "e\u0301",
    "שָ",
    "عر",
    "中",
    "。",
    "の",
    "😀",
    "👩\u200d👧",
    "🇩🇪",
    "\u200b",
]
PIECES += ["</s>", "<unk>", "_", "-", "\u00a0", "\ufeff", "ß", "İ", "\u2028", "हि"]


def _random(seed: int) -> str:
    draw = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 14, (), generator=draw))
    return "".join(PIECES[i] for i in torch.randint(len(PIECES), (size,), generator=draw))


def _check(seed: int, name: str) -> None:
    of, tokenizer = _random(seed), TOKENIZERS[name]()
    if not of.strip():
        return
    marks = set(tokenizer.all_special_ids) - {getattr(tokenizer, "unk_token_id", None)}
    for by in ("word", "sentence", "paragraph", "token"):
        try:
            found = text.parts(of, tokenizer, by=by)
        except ValueError as error:  # nothing but marks, or signs that a tokenizer drops
            assert "finds no part" in str(error) or "makes no token" in str(error), (of, error)  # noqa: PT017
            continue
        spans = found.spans.tolist()
        offsets = tokenizer(of, return_offsets_mapping=True)["offset_mapping"]
        offsets = offsets[len(offsets) - found.ids.shape[1] :]  # less a second mark of the start
        assert found.labels == tuple(of[a:b] for a, b in spans), of
        assert [tuple(s) for s in spans] == sorted(map(tuple, spans)), of
        owners = found.mask.tolist()
        assert owners == sorted(owners) or -1 in owners, of
        free = [k for k in owners if k >= 0]
        assert free == sorted(free), of
        for (a, b), owner, i in zip(offsets, owners, found.ids[0].tolist(), strict=True):
            signs = [c for c in range(a, b) if not of[c].isspace()]
            if i in marks:
                assert owner == -1, of
            elif signs and by != "token":
                inside = [k for k, (s, e) in enumerate(spans) if s <= signs[0] < e]
                assert [owner] == (inside or [-1]), (of, by)
        if by in ("word", "sentence", "paragraph"):
            covered = {c for a, b in spans for c in range(a, b)}
            assert {c for c in range(len(of)) if not of[c].isspace()} <= covered, (of, by)


@each_tokenizer
def test_random_texts(name: str) -> None:
    for seed in range(40):
        _check(seed, name)


@pytest.mark.fuzz
@each_tokenizer
def test_many_random_texts(name: str) -> None:
    for seed in range(40, 1500):
        _check(seed, name)
