"""DATA: tables, arrays, images, texts; each against the library called with tensors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_cases
import numpy
import pandas
import pytest
import torch
from cli_cases import NAMES, inputs, json_of, refused, run
from safetensors.torch import save_file
from torch import Tensor

import attrfn
import attrfn.data

TABLE = ("--columns", ",".join(NAMES))
LABELS = torch.arange(20) % 3


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with cli_cases.at_home(tmp_path, monkeypatch):
        yield


def explain(data: str, *words: Any, model: str = "toys:net", method: str = "saliency") -> Any:
    run("explain", model, data, "--method", method, "--out", "o", *words)
    return attrfn.data.read("o")[:]


def refuse(data: str, *words: Any, model: str = "toys:net", code: int = 1) -> str:
    return refused("explain", model, data, "--method", "saliency", "--out", "o", *words, code=code)


def saliency(target: Any, x: Tensor | None = None) -> Tensor:
    from toys import NET

    return attrfn.saliency(NET, inputs() if x is None else x, target=target)


def frame() -> pandas.DataFrame:
    found = pandas.DataFrame(inputs().numpy(), columns=NAMES)
    found["label"], found["name"] = LABELS.numpy(), [f"row {i}" for i in range(20)]
    return found


FILES = ["t.parquet", "t.csv", "t.tsv"]


def write(name: str, table: pandas.DataFrame | None = None) -> None:
    table = frame() if table is None else table
    if name.endswith("parquet"):
        table.to_parquet(name)
    else:
        table.to_csv(name, sep="\t" if name.endswith("tsv") else ",", index=False)


@pytest.mark.parametrize("name", FILES)
def test_tables(name: str) -> None:
    write(name)
    found = explain(name, *TABLE, "--target", "label:label")
    torch.testing.assert_close(found, saliency(LABELS), rtol=0, atol=1e-15)
    assert list(attrfn.data.to_pandas("o").columns) == NAMES
    assert "a, b, c, d, e, f, label, name: say with" in refuse(name, code=2)
    assert "did you mean 'label'?" in refuse(name, *TABLE, "--target", "label:labels")
    assert "'zzz'" in refuse(name, "--columns", "a,b,zzz")


def test_an_empty_cell_is_named() -> None:
    table = frame()
    table.loc[7, "c"] = float("nan")
    write("t.csv", table)
    assert "t.csv, row 7: column 'c' is empty" in refuse("t.csv", *TABLE)
    explain("t.csv", "--columns", "a,b,d,e,f,label", "--target", 0)


def test_a_table_of_one_feature_and_several_inputs() -> None:
    write("t.csv")
    found = explain("t.csv", "--columns", "inputs=[a]", model="toys:square")
    torch.testing.assert_close(found, 2 * inputs()[:, :1].abs())
    save_file({"x": inputs(), "y": inputs() + 1}, "t.safetensors")
    run(
        *("explain", "toys:Two", "t.safetensors", "--method", "gradient", "--out", "p"),
        *("--columns", "inputs=(x,y)"),
    )
    first, second = attrfn.data.read("p")[:]
    torch.testing.assert_close(first, inputs() + 1)
    torch.testing.assert_close(second, inputs())


def test_bound_columns_and_places() -> None:
    mask = (inputs() > 0).double()
    save_file({"x": inputs(), "m": mask}, "t.safetensors")
    found = explain(
        "t.safetensors", "--columns", "inputs=x", "--columns", "bind.mask=m", model="toys:Masked"
    )
    torch.testing.assert_close(found, (2 * inputs() * mask).abs())
    words = ("--columns", "inputs=0", "--target", "label:1", "--out", "p")
    run("explain", "toys:net", "toys:pairs", "--method", "saliency", *words)
    torch.testing.assert_close(attrfn.data.read("p")[:], saliency(LABELS), rtol=0, atol=0)


def test_cells_that_are_no_numbers_are_named() -> None:
    table = frame()
    table["c"] = table["c"].astype(object)
    table.loc[9, "c"] = "old"
    write("t.csv", table)
    assert "t.csv, row 9: column 'c' holds 'old', expected a number" in refuse("t.csv", *TABLE)
    write("n.csv", frame().head(0))
    assert "n.csv has no rows" in refuse("n.csv", *TABLE)
    Path("e.csv").write_text("", encoding="utf-8")
    assert "e.csv cannot be read: No columns" in refuse("e.csv", *TABLE)
    table = frame()
    table["label"] = table["label"] == 1
    write("b.csv", table)
    found = explain("b.csv", *TABLE, "--target", "label:label")
    torch.testing.assert_close(found, saliency((LABELS == 1).long()), rtol=0, atol=1e-15)


def test_floating_numbers_of_files_become_the_models() -> None:
    """A column of lists, and tensors, in another type than that of the model."""
    x = inputs().float()
    pandas.DataFrame({"x": list(x.numpy()), "y": LABELS.numpy()}).to_parquet("t.parquet")
    save_file({"x": x}, "t.safetensors")
    expected = saliency(1, x.double())
    words = ("--columns", "inputs=x", "--target", "1")
    torch.testing.assert_close(explain("t.parquet", *words), expected, rtol=0, atol=0)
    words = ("--method", "integrated_gradients", "--target", "1", "--out", "p")
    run("explain", "toys:net", "t.safetensors", *words, "--baselines", "mean")
    from toys import NET

    mean = x.mean(0, keepdim=True).double()
    expected = attrfn.integrated_gradients(NET, x.double(), target=1, baselines=mean)
    torch.testing.assert_close(attrfn.data.read("p")[:], expected, rtol=1e-5, atol=1e-7)
    words = ("--method", "saliency", "--metric", "sparseness", "--target", "1")
    compared = json_of("compare", "toys:net", "t.safetensors", *words)
    assert len(compared["values"]["saliency"]["sparseness"]) == 16
    rows = json_of("layers", "toys:net", "t.safetensors")["layers"]
    assert rows[0]["output"] == [["B", 8]]


@pytest.mark.parametrize("dtype", [numpy.float64, numpy.float32, ">f8"])
def test_arrays(dtype: Any) -> None:
    """Floating numbers become those of the model."""
    x = inputs().numpy().astype(dtype)
    numpy.save("x.npy", x)
    numpy.savez("x.npz", x=x, y=LABELS.numpy())
    expected = saliency(1, torch.from_numpy(x.astype(numpy.float64)))
    torch.testing.assert_close(explain("x.npy", "--target", 1), expected, rtol=0, atol=0)
    run(
        *("explain", "toys:net", "x.npz", "--method", "saliency", "--out", "p"),
        *("--columns", "inputs=x", "--target", "label:y"),
    )
    expected = saliency(LABELS, torch.from_numpy(x.astype(numpy.float64)))
    torch.testing.assert_close(attrfn.data.read("p")[:], expected, rtol=0, atol=0)
    assert "which holds x, y: say with --columns inputs=NAME" in refuse("x.npz", code=2)
    numpy.savez("one.npz", x=x)
    run("explain", "toys:net", "one.npz", "--method", "saliency", "--target", 1, "--out", "q")


def test_pickles_are_not_opened() -> None:
    numpy.save("x.npy", numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    numpy.savez("x.npz", x=numpy.array([{"a": 1}], dtype=object))
    torch.save(inputs(), "x.pt")
    Path("x.pkl").write_bytes(b"")
    for name in ("x.npy", "x.npz"):
        assert "holds Python objects, which would have to be unpickled" in refuse(name)
    for name in ("x.pt", "x.pkl"):
        assert "a pickle, which can run any code" in refuse(name)


def test_what_is_no_data() -> None:
    Path("cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    Path("x.xyz").write_text("", encoding="utf-8")
    Path("cut.parquet").write_bytes(b"PAR1")
    Path("cut.safetensors").write_bytes(b"123")
    Path("t.txt").write_text("a text\n", encoding="utf-8")
    assert "cut.npy cannot be read" in refuse("cut.npy")
    assert "expected a folder of images, or a file that ends in" in refuse("x.xyz")
    assert "cut.parquet" in refuse("cut.parquet", *TABLE)
    assert "cut.safetensors cannot be read" in refuse("cut.safetensors")
    assert "there is no such file" in refuse("gone.csv")
    assert "only a Hugging Face ...ForSequenceClassification" in refuse("t.txt")
    assert "there is no 'dat': did you mean 'data'?" in refuse("toys:dat")
    assert "no examples" in refuse("toys:none")


def test_baselines() -> None:
    from toys import NET

    x = inputs()
    mean = x.mean(0, keepdim=True)
    numpy.save("b.npy", mean.numpy())
    save_file({"b": torch.ones_like(x)}, "b.safetensors")
    given = {"zeros": 0, "mean": mean, "b.npy": mean, "b.safetensors": torch.ones_like(x)}
    for name, value in given.items():
        words = ("--method", "integrated_gradients", "--target", 0, "--out", f"o.{name}")
        run("explain", "toys:net", "toys:data", *words, "--baselines", name, "--batch-size", 7)
        expected = attrfn.integrated_gradients(NET, x, target=0, baselines=value)
        found = attrfn.data.read(f"o.{name}")[:]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    words = ("--method", "integrated_gradients", "--target", 0, "--out", "p", "--baselines")
    for name, why in {"gone.npy": "there is no such file", "toys.py": "expected a .npy"}.items():
        assert why in refused("explain", "toys:net", "toys:data", *words, name)


def test_tensors_of_files_as_options() -> None:
    from toys import NET

    mask = torch.tensor([[0, 0, 1, 1, 2, 2]])
    numpy.save("m.npy", mask.numpy())
    words = ("--target", 1, "--option", "feature_mask=@m.npy")
    found = explain("toys:data", *words, method="feature_ablation")
    expected = attrfn.feature_ablation(NET, inputs(), target=1, feature_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# --- images --------------------------------------------------------------------------------------

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 90, 200)]


def pictures(root: str = "photos", size: tuple[int, int] = (8, 8)) -> Path:
    from PIL import Image

    for i, colour in enumerate(COLOURS):
        folder = Path(root, "cats" if i < 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, colour)
        image.putpixel((1, 2), (77, 88, 99))
        image.save(folder / f"{i}.png")
    return Path(root)


def pixels() -> Tensor:
    rows = torch.tensor(COLOURS, dtype=torch.float32)[:, :, None, None].repeat(1, 1, 8, 8)
    rows[:, :, 2, 1] = torch.tensor([77.0, 88.0, 99.0])
    return rows / 255


def look_at(x: Tensor) -> None:
    """A model with an input of images, as a module of the user's."""
    Path("seen.py").write_text(
        "import torch\n"
        "def model(x):\n    return (x**2).flatten(1).sum(1)\n"
        "def classes(x):\n    return (x**2).sum((2, 3))\n",
        encoding="utf-8",
    )


def test_a_folder_of_images() -> None:
    look_at(pixels())
    pictures()
    found = explain("photos", model="seen:model", method="gradient")
    torch.testing.assert_close(found, 2 * pixels())
    words = ("--image-mean", "0.5", "--image-std", "0.25,0.5,1", "--out", "p")
    words += ("--target", "label:folder", "--method", "gradient")
    run("explain", "seen:classes", "photos", *words)
    std = torch.tensor([0.25, 0.5, 1.0])[:, None, None]
    expected = 2 * (pixels() - 0.5) / std
    expected[:2, 1:], expected[2:, 0], expected[2:, 2] = 0, 0, 0
    torch.testing.assert_close(attrfn.data.read("p")[:], expected)
    words = ("--method", "gradient", "--image-size", "4,6", "--out", "q")
    run("explain", "seen:model", "photos", *words)
    assert attrfn.data.read("q")[:].shape == (4, 3, 4, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_get_the_type_of_the_model(dtype: torch.dtype) -> None:
    pictures()
    Path("wide.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.Tanh())\n"
        f"    return net.to({dtype}).eval()\n",
        encoding="utf-8",
    )
    sys.modules.pop("wide", None)
    words = ("--method", "gradient", "--target", "predicted", "--out", "o")
    run("explain", "wide:net", "photos", *words)
    import wide

    x = pixels().to(dtype)
    expected = attrfn.gradient(wide.net(), x, target=wide.net()(x).argmax(1))
    found = attrfn.data.read("o")[:]
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    assert json_of("layers", "wide:net", "photos")["layers"][1]["output"] == [["B", 2]]


def test_maps_are_compared_at_the_size_of_the_images() -> None:
    pictures()
    Path("nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), "
        "nn.Linear(144, 2)).eval()\n",
        encoding="utf-8",
    )
    words = ("--method", "grad_cam", "--method", "saliency", "--layer", "1", "--target", "0")
    found = json_of("compare", "nets:net", "photos", *words, "--metric", "deletion")
    import nets

    from attrfn import metrics

    maps = attrfn.grad_cam(nets.net(), pixels(), layer="1", target=0, upsample="nearest")
    expected = metrics.deletion(nets.net(), pixels(), maps, target=0)
    torch.testing.assert_close(
        torch.tensor(found["values"]["grad_cam"]["deletion"]), expected, rtol=1e-4, atol=1e-5
    )


def test_images_that_do_not_do() -> None:
    look_at(pixels())
    root = pictures()
    Path("empty").mkdir()
    words = ("--method", "gradient", "--out", "o")
    assert "a folder without images" in refused("explain", "seen:model", "empty", *words)
    one = str(root / "cats" / "1.png")
    assert "one image: give the folder" in refused("explain", "seen:model", one, *words)
    (root / "cats" / "1.png").write_bytes(b"no image")
    said = refused("explain", "seen:model", "photos", *words)
    assert "example 1 cannot be read: cats/1.png" in said
    done = json_of("explain", "seen:model", "photos", *words, "--on-error", "skip")
    assert done["failed"].keys() == {"1"}
    from PIL import Image

    words = ("--method", "gradient", "--out", "p")
    Image.new("RGB", (9, 8)).save(root / "cats" / "1.png")
    said = refused("explain", "seen:model", "photos", *words)
    assert "cats/1.png: it is 8 x 9 and the first one 8 x 8: give --image-size" in said
    Image.new("I;16", (8, 8), 40_000).save(root / "cats" / "1.png")
    said = refused("explain", "seen:model", "photos", *words)
    assert "cats/1.png: it has the mode I;16: save it with 8 bits" in said
    (root / "alone.png").write_bytes((root / "cats" / "0.png").read_bytes())
    assert "not all in folders" in refused(
        "explain", "seen:model", "photos", *words, "--target", "label:folder"
    )


def test_the_preprocessor_of_a_model() -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        **sizes, intermediate_size=20, image_size=4, patch_size=2, num_labels=2
    )
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained("vit")
    how = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_normalize": True}
    how |= {"size": {"height": 4, "width": 4}, "resample": 2, "do_rescale": True}
    how |= {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    Path("vit/preprocessor_config.json").write_text(json.dumps(how), encoding="utf-8")
    pictures()
    found = explain("photos", "--target", 1, model="vit")
    # Where Pillow resizes, and the formula of rescaling and normalising.
    from PIL import Image

    files = sorted(Path("photos").rglob("*.png"))
    small = [Image.open(f).convert("RGB").resize((4, 4), Image.Resampling.BILINEAR) for f in files]
    x = torch.stack([torch.tensor(numpy.array(s)).permute(2, 0, 1) / 255 for s in small])
    expected = attrfn.saliency(model, (x - 0.5) / 0.25, target=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert "drop them" in refuse("photos", "--image-size", "4", model="vit", code=2)
    run("report", "o")
    assert "cats" in Path("o/report.html").read_text(encoding="utf-8")


# --- texts ---------------------------------------------------------------------------------------

WORDS = ["the", "film", "was", "good", "not", "a", "bad"]
TEXTS = ["the film was good", "not good", "a bad film", "the good the bad"]


def classifier(folder: str = "bert") -> Any:
    """A tiny BERT with a tokenizer of words."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *WORDS]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = ("pad", "cls", "sep", "mask", "unk")
    marks = {f"{n}_token": f"[{n.upper()}]" for n in names}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=12, **marks)
    fast.save_pretrained(folder)
    import tiny_transformers

    torch.manual_seed(1)
    config = tiny_transformers.bert_config(
        id2label={0: "bad", 1: "good", 2: "none"}, label2id={"bad": 0, "good": 1, "none": 2}
    )
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model


IDS = torch.tensor(
    [[1, 5, 6, 7, 8, 2], [1, 9, 8, 2, 0, 0], [1, 10, 11, 6, 2, 0], [1, 5, 8, 5, 11, 2]]
)
SPECIAL = (IDS == 1) | (IDS == 2) | (IDS == 0)
CALLS = torch.tensor([1, 1, 0, 0])


def by_hand(model: Any, target: Any, other: int = 0, **options: Any) -> Tensor:
    """The recipe of docs/recipes/text.md."""
    from functools import partial

    bound = partial(model, attention_mask=(IDS != 0).long(), token_type_ids=torch.zeros_like(IDS))
    found = attrfn.layer_integrated_gradients(
        bound,
        IDS,
        layer="bert.embeddings.word_embeddings",
        target=target,
        baselines=torch.where(SPECIAL, IDS, other),
        **options,
    )
    return found.sum(-1)


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.parquet"])
def test_texts(name: str) -> None:
    model = classifier()
    table = pandas.DataFrame({"text": TEXTS, "label": ["good", "good", "bad", "bad"]})
    if name == "t.txt":
        Path(name).write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        words: tuple[Any, ...] = ("--target", 1)
        expected = by_hand(model, 1)
    else:
        write(name, table)
        words = ("--columns", "text", "--target", "label:label")
        expected = by_hand(model, CALLS)
    found = explain(name, *words, model="bert", method="integrated_gradients")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert bool((found[SPECIAL] == 0).all())
    run("report", "o")
    page = Path("o/report.html").read_text(encoding="utf-8")
    assert "film" in page
    assert "The texts with the largest attributions" in page


def test_texts_with_other_methods() -> None:
    model = classifier()
    Path("t.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    words = ("--target", 2, "--baselines", "mask", "--out", "p")
    run("explain", "bert", "t.txt", "--method", "integrated_gradients", *words)
    expected = by_hand(model, 2, 3)
    torch.testing.assert_close(attrfn.data.read("p")[:], expected, rtol=1e-4, atol=1e-6)
    from functools import partial

    bound = partial(model, attention_mask=(IDS != 0).long(), token_type_ids=torch.zeros_like(IDS))
    found = explain("t.txt", "--target", 2, model="bert", method="feature_ablation")
    base = torch.where(SPECIAL, IDS, 0)
    expected = attrfn.feature_ablation(bound, IDS, target=2, baselines=base)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    layers = json_of("layers", "bert", "t.txt")["layers"]
    found_at = {row["layer"]: row["output"] for row in layers}
    assert found_at["bert.embeddings.word_embeddings"] == [["B", 6, 16]]
    words = ("--method", "saliency", "--method", "feature_ablation", "--metric", "deletion")
    compared = json_of("compare", "bert", "t.txt", *words, "--target", 1)
    assert compared["mean"].keys() == {"saliency", "feature_ablation"}
    assert json_of("check", "bert", "t.txt", "--target", 1)["findings"]


def test_an_encoder_and_a_decoder_share_the_embedding() -> None:
    """Where T5 reads the tokens is not the module that it names."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    classifier("t5")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
    marks = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = transformers.T5Config(vocab_size=30, num_labels=3, **sizes, **marks)
    model = transformers.T5ForSequenceClassification(config).eval()
    model.save_pretrained("t5")
    Path("t.txt").write_text(TEXTS[0], encoding="utf-8")
    found = explain("t.txt", "--target", 1, model="t5", method="input_x_gradient")
    at = attrfn.at_layer(attrfn.input_x_gradient, "transformer.encoder.embed_tokens")
    base = torch.where(SPECIAL, IDS, 0)[:1]
    expected = at(model, IDS[:1], target=1, baselines=base).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert float(found.abs().max()) > 0


def test_texts_that_do_not_do() -> None:
    classifier()
    long = " ".join(["good"] * 20)
    Path("t.txt").write_text(f"{long}\nbad\n", encoding="utf-8")
    done = run("explain", "bert", "t.txt", "--method", "saliency", "--target", 0, "--out", "p")
    assert "1 of 2 texts are cut after 12 tokens" in done.stderr
    assert attrfn.data.read("p")[:].shape == (2, 12)
    assert "takes a sample of baselines" in refused(
        *("explain", "bert", "t.txt", "--method", "gradient_shap", "--baselines", "pad"),
        *("--target", "0", "--out", "q"),
        code=2,
    )
    write("t.csv", pandas.DataFrame({"text": ["good", None], "label": ["good", "odd"]}))
    texts = ("--columns", "text")
    assert "t.csv, row 1: " in refuse("t.csv", *texts, model="bert")
    write("t.csv", pandas.DataFrame({"text": ["good", "bad"], "label": ["good", "odd"]}))
    assert "row 1: the label is 'odd'" in refuse(
        "t.csv", *texts, "--target", "label:label", model="bert"
    )
    assert "names the column 'zz'" in refuse("t.csv", *texts, "--target", "label:zz", model="bert")
    Path("bert/tokenizer.json").unlink()
    Path("bert/tokenizer_config.json").unlink()
    assert "has no tokenizer" in refuse("t.txt", model="bert")


def test_a_mean_needs_data_that_can_be_read_twice() -> None:
    Path("once.py").write_text(
        "import toys\ndef data():\n    yield from toys.data().split(4)\n", encoding="utf-8"
    )
    words = ("--method", "integrated_gradients", "--target", "0", "--out", "o")
    said = refused("explain", "toys:net", "once:data", *words, "--baselines", "mean")
    assert "DATA is an iterator" in said
    run("explain", "toys:net", "once:data", *words)
    assert len(attrfn.data.read("o")) == 20
