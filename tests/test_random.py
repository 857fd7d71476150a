"""attrfn.random: right words, right laws, independent streams, the same under transforms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from attrfn._random import draws, erfinv, philox
from attrfn.random import (
    as_key,
    bernoulli,
    bits,
    fold_in,
    key,
    normal,
    permutation,
    randint,
    split,
    uniform,
)

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
N = 50_000
ALPHA = 1e-3  # keys are fixed, so a test passes always or never

DRAWS: dict[str, Callable[[Any], Tensor]] = {
    "bits": lambda k: bits(k, (3, 5)),
    "uniform": lambda k: uniform(k, (7,), minval=-2.0, maxval=3.0),
    "uniform64": lambda k: uniform(k, (2, 3), dtype=torch.float64),
    "uniform16": lambda k: uniform(k, (9,), dtype=torch.bfloat16),
    "normal": lambda k: normal(k, (6,)),
    "bernoulli": lambda k: bernoulli(k, torch.tensor([0.1, 0.5, 0.9]), (4, 3)),
    "randint": lambda k: randint(k, (5,), 1000),
    "permutation": lambda k: permutation(k, 11),
    "split": lambda k: split(k, 3),
    "fold_in": lambda k: fold_in(k, 2**40 + 5),
    "scalar": lambda k: uniform(k),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def chi_square(counts: Tensor, expected: Tensor | None = None) -> float:
    """The p-value of counts under equal (or the given) expected counts."""
    return float(stats.chisquare(counts.flatten(), expected).pvalue)


# --- words ---


@pytest.mark.parametrize(
    ("counter", "words", "expected"),
    [
        # Known answers for philox4x32-10 in Random123 (tests/kat_vectors), Salmon et al.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
@pytest.mark.parametrize("as_tensor", [True, False])
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], words: tuple[int, int], expected: tuple[int, ...], as_tensor: bool
) -> None:
    k0, k1 = torch.tensor(words)
    c: Any = tuple(torch.tensor(counter)) if as_tensor else counter
    assert torch.stack(philox.philox(c, k0, k1)).tolist() == list(expected)


def test_element_i_is_word_i_mod_4_of_block_i_div_4() -> None:
    k = key(0x299F31D0A4093822)
    blocks = [
        torch.stack(philox.philox((philox.DRAW, torch.tensor(c), 0, 0), k[0], k[1]))
        for c in range(3)
    ]
    assert torch.equal(bits(k, (10,)), torch.cat(blocks)[:10])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32 + 7, 2**63, 2**64 - 1, 2**64 + 3, -(2**70) + 1])
def test_a_key_is_the_low_64_bits_of_its_seed(seed: int) -> None:
    low, high = key(seed).tolist()
    assert low + 2**32 * high == seed % 2**64
    assert torch.equal(as_key(seed), key(seed))
    assert torch.equal(key(seed), key(seed % 2**64))


@every_draw
def test_an_int_is_its_key(draw: Callable[[Any], Tensor]) -> None:
    for seed in (0, -3, 2**64 + 11):
        assert torch.equal(draw(seed), draw(key(seed)))
        if hasattr(torch, "uint32"):  # since torch 2.3
            assert torch.equal(draw(seed), draw(key(seed).to(torch.uint32)))


@pytest.mark.parametrize(
    "draw",
    [
        bits,
        uniform,
        normal,
        lambda k, shape: uniform(k, shape, dtype=torch.float64),
        lambda k, shape: bernoulli(k, 0.3, shape),
        lambda k, shape: randint(k, shape, 6),
        lambda k, shape: split(k, shape[0]),
    ],
)
def test_a_longer_draw_starts_with_the_shorter_one(draw: Callable[..., Tensor]) -> None:
    long = draw(5, (41,))
    for n in (0, 1, 4, 7, 40):
        assert torch.equal(draw(5, (n,)), long[:n])


def test_a_draw_depends_on_the_flat_index_alone() -> None:
    flat = uniform(1, (24,))
    assert torch.equal(uniform(1, (2, 3, 4)), flat.view(2, 3, 4))
    assert torch.equal(uniform(1), flat[0])
    assert torch.equal(uniform(1, torch.Size([4, 6])), flat.view(4, 6))


def test_large_draws_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = split(3, 4)
    whole = normal(keys, (1003,))
    monkeypatch.setattr(philox, "CHUNK", 37)
    assert torch.equal(normal(keys, (1003,)), whole)
    assert torch.equal(normal(keys[2], (1003,)), whole[2])


# --- laws ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_uniform(dtype: torch.dtype) -> None:
    u = uniform(11, (N,), dtype=dtype)
    assert u.dtype == dtype
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / (12 * N) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / N) ** 0.5
    assert stats.kstest(u, "uniform").pvalue > ALPHA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_is_normal(dtype: torch.dtype) -> None:
    z = normal(12, (N,), dtype=dtype)
    assert z.dtype == dtype
    assert abs(z.mean()) < 4 / N**0.5
    assert abs(z.var() - 1) < 4 * (2 / N) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / N) ** 0.5
    assert stats.kstest(z, "norm").pvalue > ALPHA


def test_every_bit_is_fair_and_adjacent_words_are_uncorrelated() -> None:
    words = bits(13, (N,))
    assert words.min() >= 0
    assert words.max() < 2**32
    ones = ((words[:, None] >> torch.arange(32)) & 1).sum(0)
    assert ((ones - N / 2).abs() < 4.5 * N**0.5 / 2).all()
    u = words.double() / 2**32 - 0.5
    for lag in (1, 2, 3, 4):
        assert abs(12 * (u[lag:] * u[:-lag]).mean()) < 4 / N**0.5


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.3, 1.0])
def test_bernoulli_has_its_rate(p: float) -> None:
    draw = bernoulli(14, p, (N,))
    assert draw.dtype == torch.bool
    assert abs(draw.double().mean() - p) <= 4 * (p * (1 - p) / N) ** 0.5


def test_bernoulli_takes_a_tensor_of_probabilities() -> None:
    p = torch.tensor([0.0, 0.2, 0.7, 1.0])
    rates = bernoulli(15, p, (N, 4)).double().mean(0)
    assert torch.allclose(rates, p.double(), atol=4 * 0.5 / N**0.5)
    assert rates[[0, 3]].tolist() == [0, 1]


@pytest.mark.parametrize("high", [1, 7, 100])
def test_randint_is_uniform(high: int) -> None:
    draw = randint(16, (N,), high)
    assert draw.dtype == torch.int64
    counts = torch.bincount(draw, minlength=high)
    assert counts.shape == (high,)
    assert high == 1 or chi_square(counts) > ALPHA


@pytest.mark.parametrize("high", [3, 12345, 2**31 - 1, 2**31])
def test_randint_is_the_leading_part_of_64_bits_times_high(high: int) -> None:
    words = [
        torch.cat(
            [torch.stack(philox.philox((tag, torch.tensor(c), 0, 0), *key(17))) for c in range(3)]
        ).tolist()
        for tag in (philox.DRAW, philox.LOW)
    ]
    expected = [((hi * 2**32 + lo) * high) >> 64 for hi, lo in zip(*words, strict=True)]
    assert randint(17, (12,), high).tolist() == expected
    assert (1 << 63) > ((2**32 - 1) * 2**31 + 2**31 - 1)  # the largest sum within randint


def test_all_permutations_are_equally_likely() -> None:
    draws = permutation(split(18, 24 * 400), 4)
    codes = draws @ torch.tensor([64, 16, 4, 1])
    cases = torch.tensor(list(permutations(range(4)))) @ torch.tensor([64, 16, 4, 1])
    counts = (codes[:, None] == cases).sum(0)
    assert counts.sum() == len(draws)
    assert chi_square(counts) > ALPHA


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_a_permutation_holds_every_index_once(n: int) -> None:
    assert torch.equal(permutation(19, n).sort().values, torch.arange(n))


# --- independent streams ---


def streams() -> dict[str, tuple[Tensor, Tensor]]:
    a, b = split(20)
    folded = fold_in(20, torch.arange(N))
    return {
        "split": (uniform(a, (N,)), uniform(b, (N,))),
        "adjacent seeds": (uniform(20, (N,)), uniform(21, (N,))),
        "parent and child": (uniform(20, (N,)), uniform(a, (N,))),
        "split and fold_in": (uniform(a, (N,)), uniform(fold_in(20, 0), (N,))),
        "fold_in": (uniform(fold_in(20, 0), (N,)), uniform(fold_in(20, 1), (N,))),
        "adjacent indices": (uniform(folded)[:-1], uniform(folded)[1:]),
        "elements": tuple(uniform(folded, (2,)).unbind(-1)),
    }


@pytest.mark.parametrize("name", list(streams()))
def test_streams_are_independent(name: str) -> None:
    x, y = streams()[name]
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 4 / N**0.5
    counts = torch.bincount((8 * x).long() * 8 + (8 * y).long(), minlength=64)
    assert chi_square(counts) > ALPHA


def test_uniform_over_keys_is_uniform() -> None:
    for keys in (split(22, N), fold_in(22, torch.arange(N)), torch.arange(2 * N).view(N, 2)):
        assert stats.kstest(uniform(keys), "uniform").pvalue > ALPHA


def test_no_key_comes_twice() -> None:
    k = key(23)
    index = torch.arange(2000)
    keys = torch.cat(
        [
            k[None],
            split(k, 2000),
            fold_in(k, index),
            fold_in(k, (index + 1) << 32),
            fold_in(k, -1 - index),
            bits(k, (2000, 2)),
        ]
    )
    assert len(keys.unique(dim=0)) == len(keys)


# --- shapes, and the same numbers however they are asked for ---


@every_draw
def test_batched_keys_equal_the_loop_and_vmap(draw: Callable[[Any], Tensor]) -> None:
    keys = split(24, 6).view(2, 3, 2)
    batched = draw(keys)
    looped = torch.stack([torch.stack([draw(k) for k in row]) for row in keys])
    assert torch.equal(batched, looped)
    assert torch.equal(torch.vmap(torch.vmap(draw))(keys), batched)
    assert torch.equal(torch.vmap(draw, in_dims=1, out_dims=1)(keys), batched)


def test_fold_in_broadcasts_keys_against_data() -> None:
    keys, data = split(25, 3), torch.tensor([[4], [-1]])
    folded = fold_in(keys, data)
    assert folded.shape == (2, 3, 2)
    for i, d in enumerate((4, -1)):
        for j in range(3):
            assert torch.equal(folded[i, j], fold_in(keys[j], d))
    assert fold_in(25, data).shape == (2, 1, 2)
    assert fold_in(keys, 7).shape == (3, 2)
    assert torch.equal(fold_in(25, 2**64 + 7), fold_in(25, 7))
    assert torch.equal(fold_in(25, torch.tensor(7, dtype=torch.uint8)), fold_in(25, 7))


@pytest.mark.parametrize("size", [1, 3, 10])
def test_chunks_of_samples_concatenate_to_the_whole(size: int) -> None:
    whole = normal(fold_in(26, torch.arange(10)), (4, 5))
    chunks = [normal(fold_in(26, i), (4, 5)) for i in torch.arange(10).split(size)]
    assert torch.equal(torch.cat(chunks), whole)


def test_vmap_over_data_with_an_int_key() -> None:
    data = torch.arange(5)
    mapped = torch.vmap(lambda i: uniform(fold_in(27, i), (3,)))(data)
    assert torch.equal(mapped, uniform(fold_in(27, data), (3,)))


def test_draws_are_constants_to_derivatives() -> None:
    def f(x: Tensor) -> Tensor:
        return (x * normal(28, (4,), dtype=torch.float64)).sum()

    x = torch.arange(4.0, dtype=torch.float64)
    z = normal(28, (4,), dtype=torch.float64)
    assert torch.equal(torch.func.grad(f)(x), z)
    assert torch.equal(torch.func.jvp(f, (x,), (torch.ones_like(x),))[1], z.sum())
    assert not z.requires_grad


def some_draws(k: Tensor, seed: int, scale: float, x: Tensor) -> list[Tensor]:
    return [
        uniform(seed, x.shape, minval=-scale, maxval=scale),
        torch.vmap(lambda i: randint(fold_in(k, i), (2,), 10))(torch.arange(3)),
    ]


def test_compiled_draws_are_the_eager_ones() -> None:
    compiled = torch.compile(some_draws, backend="aot_eager", fullgraph=True, dynamic=True)
    arguments = (key(29), 2**64 - 5, 0.25, torch.zeros(2, 3))
    for draw, expected in zip(compiled(*arguments), some_draws(*arguments), strict=True):
        assert torch.equal(draw, expected)


def test_compiled_draws_take_changing_seeds_sizes_and_scales() -> None:
    def draw(seed: int, scale: float, n: int) -> Tensor:
        return uniform(fold_in(seed, n), (n,), minval=-scale, maxval=scale)

    compiled = torch.compile(draw, backend="eager", fullgraph=True, dynamic=True)
    for arguments in ((5, 0.5, 4), (-7, 0.125, 9), (2**64 + 3, 2.0, 6)):
        assert torch.equal(compiled(*arguments), draw(*arguments))


@pytest.mark.inductor
def test_inductor_draws_are_the_eager_ones() -> None:
    # Long enough for vector code: products of an arange overflow there (pytorch#175966).
    def draw(k: Tensor) -> tuple[Tensor, Tensor]:
        return uniform(k, (1000,)), fold_in(7, torch.arange(100))

    compiled = torch.compile(draw, fullgraph=True)
    for actual, expected in zip(compiled(key(30)), draw(key(30)), strict=True):
        assert torch.equal(actual, expected)


@every_draw
def test_the_global_generator_is_not_touched(draw: Callable[[Any], Tensor]) -> None:
    state = torch.get_rng_state()
    first = draw(31)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(draw(31), first)


# --- dtypes and ranges ---


def test_dtypes_agree() -> None:
    wide = uniform(32, (N,), dtype=torch.float64)
    assert (uniform(32, (N,)) - wide).abs().max() <= 2**-23
    wide_normal = normal(32, (N,), dtype=torch.float64)
    middle = wide_normal.abs() < 3
    assert (normal(32, (N,)) - wide_normal)[middle].abs().max() < 1e-4
    for dtype in (torch.float16, torch.bfloat16):
        eps = torch.finfo(dtype).eps
        assert (uniform(32, (N,), dtype=dtype).double() - wide).abs().max() <= eps
        assert normal(32, (N,), dtype=dtype).dtype == dtype


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("low", [-1.5, 0.0, 1.0, -0.7, 0.1])
@pytest.mark.parametrize("width", [0.0, 1e-9, 0.1, 1.0, 3.0])
def test_uniform_stays_in_its_range(dtype: torch.dtype, low: float, width: float) -> None:
    high = low + width
    u = uniform(33, (3000,), dtype=dtype, minval=low, maxval=high)
    least, top = (torch.tensor(bound, dtype=dtype) for bound in (low, high))
    assert (u >= least).all()
    assert (u < top).all() if least < top else (u == least).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("high", [1.0, 2.0, 0.3, 3.3, 1000.0, 0.0, -1.0, -0.7, -1.5])
def test_the_upper_bound_is_the_number_below_maxval(dtype: torch.dtype, high: float) -> None:
    top = torch.tensor(high, dtype=dtype)
    bound = draws._largest_below(-5000.0, high, dtype, top.device)
    try:
        expected = torch.nextafter(top, torch.tensor(-5000.0, dtype=dtype))
    except RuntimeError:
        pytest.skip(f"this torch has no nextafter of {dtype}")
    assert torch.equal(bound, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_give_finite_draws(
    dtype: torch.dtype, word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(philox, "philox", lambda c, k0, k1: [k0 * 0 + c[1] * 0 + word] * 4)
    bound, p = (5.42, 24) if dtype == torch.float32 else (8.3, 53)
    z = normal(0, (1,), dtype=dtype)
    assert 0.99 * bound < abs(z) < bound
    assert z.sign() == (1 if word else -1)
    assert uniform(0, (1,), dtype=dtype) == (1 - 2**-p if word else 0)


def shifts_on_meta() -> bool:
    try:
        torch.empty(1, dtype=torch.int64, device="meta") >> 1
    except NotImplementedError:
        return False
    return True


@pytest.mark.skipif(not shifts_on_meta(), reason="this torch shifts no integers without values")
def test_a_draw_lives_where_the_key_is() -> None:
    assert uniform(key(0, device="meta"), (3,)).device.type == "meta"
    assert normal(0, (3,), device="meta").device.type == "meta"
    assert fold_in(0, torch.empty(3, dtype=torch.int64, device="meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_draw
def test_a_gpu_draws_the_same(draw: Callable[[Any], Tensor]) -> None:
    if draw is DRAWS["bernoulli"]:
        pytest.skip("its probabilities are on the CPU")
    assert torch.allclose(draw(key(34, device="cuda")).cpu().double(), draw(34).double())


# --- errors ---


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: key("a"), TypeError, r"key must be an int or .*, got a str: make one with"),
        (lambda: uniform(1.5), TypeError, r"got a float: make one with"),
        (lambda: uniform(True), TypeError, r"got a bool"),
        (lambda: uniform(None), TypeError, r"got a NoneType"),
        (lambda: uniform(torch.rand(2)), TypeError, r"got a tensor of torch.float32"),
        (lambda: uniform(torch.ones(2, dtype=torch.bool)), TypeError, r"torch.bool"),
        (lambda: uniform(torch.tensor(3)), ValueError, r"\(\.\.\., 2\), got \(\).*fold_in"),
        (lambda: split(torch.arange(3)), ValueError, r"\(\.\.\., 2\), got \(3,\)"),
        (lambda: split(0, -1), ValueError, r"sizes >= 0 .* got \(-1, 2\)"),
        (lambda: fold_in(0, 1.0), TypeError, r"data must be .*, got a float"),
        (lambda: fold_in(0, torch.rand(3)), TypeError, r"data must be .* torch.float32"),
        (lambda: uniform(0, 5), TypeError, r"write \(5,\)"),
        (lambda: uniform(0, (2, -1)), ValueError, r"got \(2, -1\)"),
        (lambda: bits(0, (2**20, 2**20)), ValueError, r"at most 2\^34 elements"),
        (lambda: uniform(0, dtype=torch.int64), TypeError, r"dtype must be .*torch.int64"),
        (lambda: normal(0, dtype=torch.complex64), TypeError, r"dtype must be"),
        (lambda: uniform(0, minval=1.0, maxval=0.0), ValueError, r"minval must not exceed"),
        (lambda: bernoulli(0, 1.5), ValueError, r"p must be in \[0, 1\], got 1.5"),
        (lambda: bernoulli(0, torch.rand(3)), ValueError, r"got \(3,\): pass shape="),
        (lambda: bernoulli(0, torch.rand(3), (4,)), ValueError, r"shape \(4,\), got \(3,\)"),
        (lambda: randint(0, (2,), 0), ValueError, r"high must be from 1 to 2\^31, got 0"),
        (lambda: randint(0, (2,), 2**31 + 1), ValueError, r"got 2147483649"),
        (lambda: permutation(0, -1), ValueError, r"sizes >= 0"),
    ],
)
def test_errors_say_what_to_do(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_compiled_normals_are_those_of_eager_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value that a draw in float32 can have, of the formula that compiled code uses."""
    k = torch.arange(0, 2**24, 7)
    x = (2 * k + 1 - 2**24).float() * 2.0**-24
    monkeypatch.setattr(erfinv, "is_compiling", lambda: True)
    torch.testing.assert_close(
        erfinv.erfinv(x).double(), torch.erfinv(x.double()), rtol=4e-7, atol=0.0
    )
    monkeypatch.undo()
    compiled = torch.compile(lambda k: normal(k, (1001,)), fullgraph=True)
    torch.testing.assert_close(compiled(key(3)), normal(3, (1001,)), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("n", [1, 8, 32, 33])
def test_few_numbers_are_made_by_ints_and_are_the_same(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = split(5, n)
    draws = [lambda: bits(keys, (3,)), lambda: fold_in(keys, torch.arange(-2, n - 2))]
    draws += [lambda: fold_in(keys[:1], torch.arange(n)[:, None]), lambda: fold_in(keys, -7)]
    found = [draw() for draw in draws]
    monkeypatch.setattr(philox, "_FEW", 0)
    for draw, few in zip(draws, found, strict=True):
        assert torch.equal(draw(), few)
        assert few.dtype == torch.int64
