"""The size of chunks inside compiled code: memory stays bounded, and graphs are few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from models import targets
from registry import Row, needs, rows
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from zoo import randn

import attrfn
from attrfn._compile import static_chunks
from attrfn._copies.chunks import demand_of

pytestmark = pytest.mark.usefixtures("fresh_compiler")

OPTIONS: dict[Callable[..., Any], dict[str, Any]] = {
    attrfn.occlusion: {"window": 3},
    attrfn.feature_ablation: {},
    attrfn.integrated_hessians: {"n_steps": 2},
    attrfn.integrated_gradients: {"n_steps": 30, "chunk_size": "auto"},
}
METHODS = pytest.mark.parametrize("method", OPTIONS, ids=lambda m: m.__name__)


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_copies.memory", "_copies.chunks", "_compile.static_chunks"):
        monkeypatch.setattr(f"attrfn.{module}.budget", lambda device: 40_000)
    for module in ("_explain.masked", "_copies.chunks", "_compile.static_chunks"):
        monkeypatch.setattr(f"attrfn.{module}.unmeasured_copies", lambda x: 0)


class Wide:
    """A model that is wider inside than its inputs, and notes the rows that it sees."""

    def __init__(self) -> None:
        self.weight = randn(20, 60, seed=3)
        self.rows: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(int(x.shape[0]))
        return torch.tanh(x @ self.weight).sum(1) ** 2


@pytest.mark.filterwarnings("ignore:the sum of integrated_hessians")  # of two steps
@METHODS
@pytest.mark.usefixtures("_little_memory")
def test_memory_is_bounded_inside_compiled_code(method: Callable[..., Any]) -> None:
    model, x = Wide(), randn(4, 20)
    expected = method(model, x, **OPTIONS[method])
    eager = max(model.rows)
    model.rows.clear()
    explain = attrfn.compile(method, model, backend="eager", dynamic=False, **OPTIONS[method])
    assert_close(explain(x), expected)
    assert 4 <= max(model.rows) <= 2 * eager
    assert len(model.rows) <= static_chunks.MOST + 3


def own(model: Any, x: Tensor, chunk_size: Any = "auto") -> Tensor:
    """A function of one's own, which is compiled whole."""
    return attrfn.feature_ablation(model, x, chunk_size=chunk_size)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize(
    ("method", "least", "most"), [(own, 3, 8), (attrfn.feature_ablation, 1, 1)], ids=["own", "ours"]
)
@pytest.mark.filterwarnings("ignore:torch.compile unrolls")
def test_few_graphs_while_batches_grow(method: Any, least: int, most: int) -> None:
    counter = CompileCounter()
    explain = attrfn.compile(method, torch.cos, backend=counter)
    for batch in range(2, 60, 3):
        x = randn(batch, 20)
        assert_close(explain(x), attrfn.feature_ablation(torch.cos, x))
    assert least <= counter.frame_count <= most  # of 20 sizes of batches


def test_a_given_size_wins() -> None:
    model, x = Wide(), randn(4, 20)
    explain = attrfn.compile(attrfn.feature_ablation, model, backend="eager", chunk_size=5)
    explain(x)
    assert max(model.rows) == 20
    model.rows.clear()
    explain(x, chunk_size=10)
    assert max(model.rows) == 40
    model.rows.clear()
    explain(x, chunk_size="auto")
    assert max(model.rows) == 80


@pytest.mark.parametrize(
    ("copies", "fit", "size"),
    [(10, 10, None), (10, 9, 8), (10, 1, 1), (10, 0, 1), (1000, 1, 32), (33, 1, 2), (960, 40, 32)],
)
def test_sizes_are_few(copies: int, fit: int, size: int | None) -> None:
    assert static_chunks.rounded(copies, fit) == size


@rows(lambda r: r.chunked and not r.noisy)
def test_what_a_method_keeps_is_known(r: Row) -> None:
    """Gradients keep the graph, perturbation nothing."""
    net = r.net
    options = {**needs(r, net), **({"target": targets(3)} if r.target else {})}
    found = demand_of(lambda ask: r.method(net.build(), net.inputs(), chunk_size=ask, **options))
    assert found is not None
    assert found.copies >= 1
    assert found.backward == r.gradient
