"""``chunk_size="auto"``: what a copy takes is measured, and what does not fit is halved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from models import NETS
from registry import Row, explain, rows
from torch import Tensor, nn
from zoo import randn

import attrfn
from attrfn._copies import chunks as chunks_module
from attrfn._copies.chunks import Chunks, over_chunks
from attrfn._copies.memory import Peak, budget, out_of_memory
from attrfn._explain import masked as masked_module

CPU = torch.device("cpu")
AUTO = Chunks("auto", "fold", False, "test")


def test_peak_counts_what_lives_at_once() -> None:
    """Three results of 4 kB, of which two live at once."""
    x = torch.zeros(1000)
    with Peak() as peak:
        y = x + 1
        y = y * 2
        y = y.exp()
    assert peak.bytes == 8000


def test_peak_counts_views_and_in_place_results_once() -> None:
    x = torch.zeros(1000)
    with Peak() as peak:
        y = x + 1
        z = y.reshape(10, 100)[:, :5].add_(1).mT
        del y
        assert z.shape == (5, 10)
    assert peak.bytes == 4000


def test_peak_counts_what_autograd_keeps_twice() -> None:
    x = torch.zeros(1000, requires_grad=True)
    with Peak() as peak:
        y = x.exp()
        y = y.sin()
        y = y.cos()
    assert y.requires_grad
    assert peak.bytes == 3 * 8000


def test_peak_leaves_out_what_is_small_and_not_kept() -> None:
    x, kept = torch.zeros(1000), torch.zeros(10, requires_grad=True)
    with Peak(least=200) as peak:
        y, z, w = x + 1, x[:10] * 2, kept.exp()
    assert peak.bytes == 4000 + 2 * 40
    assert y.shape != z.shape == w.shape


def test_small_results_do_not_make_a_chunk_unbounded() -> None:
    """64 copies of one number are nothing; all 100,000 at once would be too many unmeasured."""
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return x.sum(1)

    attrfn.shapley_value_sampling(f, torch.ones(1, 2), n_samples=100_000)
    assert max(seen) <= 2**13


def test_peak_sees_inside_transforms() -> None:
    x = torch.zeros(10, 100)
    with Peak() as peak:
        torch.func.vmap(lambda x: (x + 1).sum())(x)
    assert 4000 <= peak.bytes < 4200


def test_peak_does_not_disturb_a_compiled_model() -> None:
    """One graph with the mode and one without it: the same numbers."""
    torch._dynamo.reset()
    model = torch.compile(nn.Linear(3, 2).double(), backend="aot_eager", fullgraph=True)
    x = randn(2, 3)
    expected = model(x)
    with Peak() as peak:
        assert_close(model(x), expected)
    assert peak.bytes >= expected.nbytes
    torch._dynamo.reset()


@rows(lambda r: r.chunked)
def test_auto_gives_the_same_numbers(r: Row) -> None:
    assert_close(explain(r, r.net, chunk_size="auto"), explain(r, r.net, chunk_size=None))


def parts_of(n: int, fits: int, auto: Chunks = AUTO) -> list[Any]:
    """The slices that ran, and those that ran out of memory, where ``fits`` copies fit."""
    tried = []
    byte = torch.zeros(1, dtype=torch.uint8)

    def part(i: slice) -> list[int]:
        size = i.stop - i.start
        tried.append((i.start, i.stop))
        byte.clone()  # so that a copy takes one byte by the measurement
        if size > fits:
            raise torch.cuda.OutOfMemoryError(f"out of memory with {size} copies")
        return list(range(i.start, i.stop))

    result = over_chunks(part, lambda a, b: a + b, n, auto, CPU)
    assert result == list(range(n))
    return tried


def test_out_of_memory_halves_and_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 copies, 12 at once by the first, 5 in truth: 12, 6 and 3; what ran does not run again."""
    monkeypatch.setattr(chunks_module, "budget", lambda device: 16)
    tried = parts_of(25, fits=5)
    assert tried[:4] == [(0, 1), (1, 13), (1, 7), (1, 4)]
    assert tried[4:] == [(i, i + 3) for i in range(4, 25, 3)]


def test_out_of_memory_with_one_copy_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "budget", lambda device: 4)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="with 1 copies"):
        parts_of(8, fits=0)


def test_a_number_of_copies_is_not_halved() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError, match="with 8 copies"):
        parts_of(8, fits=4, auto=AUTO._replace(size=8))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory of this test"), False),
    ],
)
def test_which_errors_are_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected


def test_a_real_allocation_failure_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float64)
    assert out_of_memory(caught.value)


def test_error_of_the_model_is_not_swallowed() -> None:
    def f(x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            raise RuntimeError("no more than two rows")
        return x.sum(1)

    with pytest.raises(RuntimeError, match="no more than two rows"):
        attrfn.feature_ablation(f, randn(2, 4))


@pytest.mark.usefixtures("independent_rows")
def test_chunks_follow_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the batch takes what the first one took; no chunk is larger than the budget."""
    # (a batch of 8 rows is as many as a chunk has in any case)
    seen, wide = [], torch.ones(8, 100, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return torch.tanh(x @ wide).sum(1)

    x = randn(8, 8)
    # two hidden results of 8 * 100 doubles live at once; points of 8 * 8, twice; under 200 bytes
    one = 2 * 8 * 100 * 8 + 2 * 8 * 8 * 8 + 200
    monkeypatch.setattr(chunks_module, "budget", lambda device: 3 * one)
    monkeypatch.setattr(masked_module, "unmeasured_copies", lambda x: 0)
    attrfn.feature_ablation(f, x)
    assert seen == [8, 24, 24, 16]


@pytest.mark.usefixtures("independent_rows")
def test_small_inputs_are_measured_in_their_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 copies of one row at most are tried; then a model that blows up takes what it may."""
    seen, wide = [], torch.ones(100, 1000)

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return torch.tanh(x @ wide).sum(1)

    monkeypatch.setattr(chunks_module, "budget", lambda device: 200_000)
    attrfn.feature_ablation(f, torch.ones(1, 100))
    # 100 in two equal chunks; two hidden results of 4 kB a copy and points: 23 fit, so 50 in three
    assert seen == [1, 50, 17, 17, 16]


@pytest.mark.usefixtures("independent_rows")
def test_what_fits_is_evaluated_at_once() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return x.sum(1)

    attrfn.feature_ablation(f, randn(2, 8))
    assert seen == [2, 16]


@pytest.mark.usefixtures("independent_rows")
def test_what_the_model_holds_counts_and_not_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is a few bytes, and its embedding is 8 kB: 8 rows of two tokens take 128 kB."""
    seen, table = [], torch.ones(16, 1024, dtype=torch.float64)

    def f(ids: Tensor) -> Tensor:
        seen.append(ids.shape[0])
        return F.embedding(ids, table).sum((1, 2))

    monkeypatch.setattr(chunks_module, "budget", lambda device: 320_000)
    attrfn.feature_ablation(f, torch.arange(2).repeat(8, 1))
    assert seen == [8, 16]
    attrfn.feature_ablation(f, torch.arange(4).repeat(8, 1))
    assert seen[2:] == [8, 8, 8, 8, 8]


@pytest.mark.usefixtures("independent_rows")
def test_a_chunk_has_a_few_rows_although_they_leave_the_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No copy of 1 MB fits the budget; 8 rows run at once, 6 and 6 of 12 copies of one row."""
    seen, wide = [], torch.ones(12, 2**17)

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return torch.tanh(x @ wide).sum(1)

    monkeypatch.setattr(chunks_module, "budget", lambda device: 2**19)
    monkeypatch.setattr(masked_module, "unmeasured_copies", lambda x: 0)
    attrfn.feature_ablation(f, torch.ones(1, 12))
    assert seen == [1, 6, 6]
    attrfn.feature_ablation(f, torch.ones(3, 12))
    assert seen[3:] == [3, *[6] * 6]


@pytest.mark.parametrize(
    "method",
    [
        attrfn.feature_ablation,
        attrfn.shapley_values,
        attrfn.shapley_value_sampling,
        attrfn.kernel_shap,
        attrfn.lime,
        attrfn.interactions,
    ],
    ids=lambda method: method.__name__,
)
def test_methods_go_on_where_memory_ran_out(method: Any) -> None:
    """Of 5 rows and more there is too little memory, for small inputs, too."""
    most = 0

    def f(x: Tensor) -> Tensor:
        nonlocal most
        if len(x) > 4:
            raise torch.cuda.OutOfMemoryError("out of memory")
        most = max(most, len(x))
        return torch.tanh(x).sum(1)

    x = randn(2, 5)
    assert_close(method(f, x), method(lambda x: torch.tanh(x).sum(1), x))
    assert most == 4


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient_shap", "layer_conductance"])
def test_gradient_methods_measure_their_first_copy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry import ROWS

    net = NETS["mlp"]
    model, seen = net.build(), []
    model.mid.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[0]))
    monkeypatch.setattr(chunks_module, "budget", lambda device: 2**40)
    monkeypatch.setattr(chunks_module, "unmeasured_copies", lambda x: 0)
    r = ROWS[name]
    found = explain(r, net, model, **{r.copies: 7}, chunk_size="auto")
    assert 3 in seen
    assert max(seen) == 18  # one copy of three rows to measure, then the six others at once
    assert_close(found, explain(r, net, **{r.copies: 7}))


@pytest.mark.usefixtures("independent_rows")
def test_gradient_methods_take_at_once_what_surely_fits() -> None:
    """Two rows of 8 doubles and 50 steps: 0.4 MB, if the model is 64 times as large inside."""
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return torch.tanh(x).sum(1)

    attrfn.integrated_gradients(f, randn(2, 8))
    assert seen == [100, 4]  # the steps, and both ends of the path


def test_budget_is_a_part_of_what_is_free() -> None:
    assert 0 < budget(CPU) <= torch.get_num_threads() * 2**23


def test_memory_of_many_copies_is_bounded() -> None:
    """3,721 copies of 200 kB; an automatic chunk holds its budget, or what may be tried."""
    most = 0

    def f(x: Tensor) -> Tensor:
        nonlocal most
        most = max(most, x.numel() * x.element_size())
        return x.flatten(1).sum(1)

    x = torch.ones(4, 3, 64, 64)
    attrfn.occlusion(f, x, window=(3, 4, 4), stride=(3, 1, 1))
    assert most <= 2**25


def test_peak_leaves_out_views_of_what_was_there() -> None:
    """Weights that a model transposes or detaches are no memory of a copy."""
    weight, x = torch.zeros(10, 1000), torch.zeros(2, 1000)
    with Peak() as peak:
        y = x @ weight.detach().T.view(1000, 10)
    assert y.shape == (2, 10)
    assert peak.bytes == 80


def test_models_with_sparse_parts_are_measured() -> None:
    """A sparse tensor has no storage to count."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mixing", torch.eye(300).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.mixing, x.mT).mT.tanh()

    x = randn(200, 300, dtype=torch.float32)
    for size in ("auto", 7):
        a = attrfn.integrated_gradients(Mixes(), x, target=1, n_steps=60, chunk_size=size)
        b = attrfn.feature_ablation(Mixes(), x, target=1, chunk_size=size)
        torch.testing.assert_close(a, torch.where(torch.arange(300) == 1, x.tanh(), 0))
        torch.testing.assert_close(b, torch.where(torch.arange(300) == 1, x.tanh(), 0))
