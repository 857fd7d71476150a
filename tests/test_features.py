"""Features of more than one element: their ids, and the scores of methods that take them."""

import pytest
import torch

import attrfn
from attrfn import features


@pytest.mark.parametrize("size", [1, 3, (2, 5), 16])
def test_patches_are_squares_row_by_row(size: int | tuple[int, int]) -> None:
    rows, columns = size if isinstance(size, tuple) else (size, size)
    mask, across = features.patches(7, 10, size), -(-10 // columns)
    # By hand: the pixel (y, x) lies in patch (y // rows, x // columns).
    want = [[(y // rows) * across + x // columns for x in range(10)] for y in range(7)]
    assert mask.tolist() == want
    assert mask.unique().tolist() == list(range(len(mask.unique())))


def test_patches_are_ablated_together() -> None:
    x = torch.rand(2, 3, 4, 4)
    found = attrfn.feature_ablation(
        lambda x: x.sum((1, 2, 3)), x, feature_mask=features.patches(4, 4, 2)
    )
    want = x.sum(1, keepdim=True).unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2))
    want = want.repeat_interleave(2, 2).repeat_interleave(2, 3).expand_as(x)
    assert torch.allclose(found, want, atol=1e-5)


def test_superpixels_follow_colours() -> None:
    image = torch.zeros(3, 20, 30)
    image[0, :, 13:], image[1, 7:, :] = 1.0, 1.0
    regions = features.superpixels(image, 12, compactness=0.5)
    assert regions.shape == (20, 30)
    count = int(regions.max()) + 1
    assert regions.unique().tolist() == list(range(count))
    assert 4 <= count <= 16
    for k in range(count):
        colours = image[:, regions == k]
        assert torch.equal(colours, colours[:, :1].expand_as(colours))


def test_superpixels_do_not_depend_on_normalisation_or_batch() -> None:
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    regions = features.superpixels(image, 20)
    assert torch.equal(regions, features.superpixels(image[None] * 4 - 1, 20))
    assert torch.equal(features.superpixels(torch.ones(1, 8, 8), 4), features.patches(8, 8, 4))
    assert features.superpixels(image, 10**6).max() == 24 * 24 - 1


@pytest.mark.parametrize(
    "image", [torch.rand(8, 8), torch.rand(2, 3, 8, 8), torch.full((1, 2, 2), torch.nan)]
)
def test_superpixels_refuse_what_is_no_image(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"image has shape .*expected \(C, H, W\)"):
        features.superpixels(image)


# What the tokenizers of transformers give: bert-base-uncased, gpt2, t5-small, CLIP.
TOKENS = {
    "wordpiece": (["[CLS]", "play", "##ing", "'", "s", "[SEP]", "[PAD]", "[PAD]"], "playing"),
    "bytes": (["The", "Ġcaf", "Ã", "©", ",", "ĠGood", "bye", "Ċ", "Now", "<|endoftext|>"], "café"),
    "sentencepiece": (["▁Hel", "lo", ",", "▁wor", "ld", "</s>", "<pad>"], "Hello"),
    "ends": (["<|startoftext|>", "a</w>", "phot", "ograph</w>", ".</w>"], "photograph"),
    "words": (["not", "bad"], "bad"),
}
WORDS = {
    "wordpiece": [0, 1, 1, 2, 3, 4, 5, 6],
    "bytes": [0, 1, 1, 1, 2, 3, 3, 4, 5, 6],
    "sentencepiece": [0, 0, 1, 2, 2, 3, 4],
    "ends": [0, 1, 2, 2, 3],
    "words": [0, 1],
}


@pytest.mark.parametrize("kind", TOKENS)
def test_words_are_put_together(kind: str) -> None:
    tokens, known = TOKENS[kind]
    texts, mask = features.words(tokens)
    assert mask.tolist() == WORDS[kind]
    assert len(texts) == int(mask.max()) + 1
    assert known in texts


def test_scores_of_words_are_sums_of_their_tokens() -> None:
    tokens, _ = TOKENS["wordpiece"]
    mask = features.words(tokens).mask
    x = torch.rand(2, len(tokens), 4, dtype=torch.float64)
    a = attrfn.input_x_gradient(lambda x: x.square().sum((1, 2)), x)
    found = attrfn.feature_scores(a, mask[:, None])
    want = [[a[i, mask == k].sum() for k in range(7)] for i in range(2)]
    assert torch.allclose(found, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("tokens", ["abc", [1, 2], torch.zeros(3), None])
def test_words_refuse_other_things_than_texts(tokens: object) -> None:
    with pytest.raises(TypeError, match=r"tokens is .*expected a list of texts"):
        features.words(tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, 1.5, True, (2, 0), "a"])
def test_patches_refuse_other_sizes(size: object) -> None:
    with pytest.raises(ValueError, match=r"size is .*expected an int of at least 1"):
        features.patches(4, 4, size)  # type: ignore[arg-type]
