"""Bound tensors without a mark: the rule, runs that tell, and marks in all kinds of places."""

from __future__ import annotations

import functools
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import Tensor, nn
from torch.func import functional_call
from zoo import make, randn

import attrfn
import attrfn.axioms
import attrfn.metrics
import attrfn.robust
import attrfn.testing
from attrfn import per_example, shared

pytestmark = pytest.mark.filterwarnings("ignore:.*(standard errors|mostly noise|missed)")
POOL = {"baselines": randn(3, 5, 3, seed=8)}
METHODS: dict[str, Any] = {
    "gradient": attrfn.gradient,
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, n_steps=5),
    "tolerance": functools.partial(attrfn.integrated_gradients, tolerance=1e-5),
    "gradient_shap": functools.partial(attrfn.gradient_shap, **POOL),
    "deep_lift_shap": functools.partial(attrfn.deep_lift_shap, **POOL),
    "background": functools.partial(attrfn.over_baselines(attrfn.deep_lift), **POOL),
    "lrp": attrfn.lrp,
    "ablation": functools.partial(attrfn.feature_ablation, feature_mask=torch.arange(5)[:, None]),
    "kernel_shap": functools.partial(
        attrfn.kernel_shap, feature_mask=torch.arange(5)[:, None], n_samples=16
    ),
    "tunnel": attrfn.noise_tunnel(attrfn.gradient, n_samples=3, stdevs=0.1),
    "tunnel of a path": attrfn.noise_tunnel(
        functools.partial(attrfn.integrated_gradients, n_steps=2), n_samples=2, stdevs=0.1
    ),
    "each": attrfn.each_output(attrfn.gradient),
    "each path": attrfn.each_output(functools.partial(attrfn.integrated_gradients, n_steps=3)),
    "gradient at a": functools.partial(attrfn.layer_gradient_x_activation, layer="a"),
    "gradient at b": functools.partial(attrfn.layer_gradient_x_activation, layer="b"),
    "shap at b": functools.partial(attrfn.layer_gradient_shap, layer="b", **POOL),
    "conductance": functools.partial(attrfn.layer_conductance, layer="b", n_steps=3),
    "path at b": functools.partial(attrfn.layer_integrated_gradients, layer="b", n_steps=3),
    "deep_lift at b": functools.partial(attrfn.layer_deep_lift, layer="b"),
    "neuron": functools.partial(
        attrfn.neuron_integrated_gradients, layer="b", neuron=(0, 1), n_steps=3
    ),
}


class Graphs(nn.Module):
    """Layers on graphs of five nodes, all with the same edges."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, edges: Tensor, weights: Tensor | None = None) -> Tensor:
        start, end = edges
        h = self.a(x).tanh()
        passed = h[:, start] if weights is None else h[:, start] * weights[:, start, None]
        h = self.b(h + torch.zeros_like(h).index_add(1, end, passed)).tanh()
        return self.out(h.sum(1))


EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 4, 2]])
X = randn(2, 5, 3, seed=1)


def call(name: str, model: Any, x: Tensor = X) -> Tensor:
    options = {} if name.startswith(("each", "neuron")) else {"target": 1}
    return METHODS[name](model, x, **options)


def alone(name: str, model: Any) -> Tensor:
    """The reference: each example is a batch of its own, where the edges are not as many."""
    return torch.cat([call(name, model, X[i : i + 1]) for i in range(2)])


@pytest.mark.parametrize("name", METHODS)
def test_edges_of_two_rows_for_two_examples(name: str) -> None:
    """With a mark, and without one: a run of two copies tells."""
    expected = alone(name, functools.partial(make(Graphs), edges=EDGES))
    assert_close(call(name, functools.partial(make(Graphs), edges=shared(EDGES))), expected)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert_close(call(name, functools.partial(make(Graphs), edges=EDGES)), expected)
    said = [str(w.message) for w in told if "edges that functools" in str(w.message)]
    assert len(said) <= 1
    copies = name not in ("gradient", "lrp", "each")
    assert bool(said) or not copies or name.startswith("gradient at")


@pytest.mark.parametrize("name", ["integrated_gradients", "shap at b", "each path", "tunnel"])
def test_what_one_argument_is_says_nothing_of_another(name: str) -> None:
    """Weights have a row for each example, and the edges have none; neither says so."""
    weights = randn(2, 5, seed=3).abs() + 0.5
    model = functools.partial(make(Graphs), edges=EDGES, weights=weights)
    marked = functools.partial(make(Graphs), edges=shared(EDGES), weights=per_example(weights))
    pairs = [
        functools.partial(make(Graphs), edges=EDGES, weights=weights[i : i + 1]) for i in range(2)
    ]
    expected = torch.cat([call(name, f, X[i : i + 1]) for i, f in enumerate(pairs)])
    assert_close(call(name, marked), expected)
    if name == "shap at b":
        # Whether two rows are the examples, a run with another number of them cannot tell here.
        with pytest.raises(ValueError, match=r"say so with rows='examples'"):
            call(name, model)
        given = functools.partial(METHODS[name], rows="examples", target=1)
    else:
        given = functools.partial(call, name)
    with pytest.warns(UserWarning, match="edges that functools.partial binds has as many rows"):
        assert_close(given(model, X), expected)


class Answers(nn.Module):
    """The log-probability of an answer of some tokens, after a prompt of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 7)

    def forward(self, x: Tensor, answer: Tensor | None = None) -> Tensor:
        said = self.head(self.body(x).tanh().mean(1)).log_softmax(-1)
        return said if answer is None else said[:, answer].sum(1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("where", ["model", "target"])
def test_an_answer_of_as_many_tokens_as_there_are_examples(where: str, batch: int) -> None:
    answer, x = torch.tensor([3, 5])[:batch], X[:batch]
    net = make(Answers)

    def log_probability(out: Tensor, answer: Tensor) -> Tensor:
        return out[:, answer].sum(1)

    def explained(make_method: Any, tokens: Tensor) -> Tensor:
        if where == "model":
            return make_method(functools.partial(net, answer=tokens), x)
        return make_method(net, x, target=functools.partial(log_probability, answer=tokens))

    path = functools.partial(attrfn.integrated_gradients, n_steps=4)
    tunnel = functools.partial(attrfn.noise_tunnel, attrfn.gradient, n_samples=3, stdevs=0.1)
    for method, one_by_one in (
        (path, functools.partial(path, chunk_size=1)),
        (tunnel(), tunnel(chunk_size=1)),
    ):
        expected = explained(one_by_one, answer)
        assert_close(explained(method, shared(answer)), expected)
        with pytest.warns(UserWarning, match="answer that functools.partial binds has as many"):
            assert_close(explained(method, answer), expected)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inp = nn.Linear(3, 3)
        self.rnn = kind(3, 4, num_layers=2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor, states: Any) -> Tensor:
        return self.out(self.rnn(self.inp(x), states)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", ["path", "shap", "tunnel", "shap at a layer", "ablation", "rules"])
def test_states_with_the_examples_in_dimension_1(name: str, batch: int, kind: Any) -> None:
    """As many layers as examples, or another number."""
    methods: dict[str, Any] = {
        "path": functools.partial(attrfn.integrated_gradients, n_steps=4),
        "shap": functools.partial(attrfn.gradient_shap, **POOL),
        "tunnel": attrfn.noise_tunnel(attrfn.gradient, n_samples=3, stdevs=0.1),
        "shap at a layer": functools.partial(attrfn.layer_gradient_shap, layer="inp", **POOL),
        "ablation": functools.partial(
            attrfn.feature_ablation, feature_mask=torch.arange(5)[:, None]
        ),
        "rules": attrfn.deep_lift,
    }
    net, x = make(Recurrent, kind), randn(batch, 5, 3, seed=1)
    h, c = randn(2, batch, 4, seed=2), randn(2, batch, 4, seed=3)

    def bound(i: slice) -> Any:
        parts = per_example([h[:, i], c[:, i]], dim=1)
        return functools.partial(net, states=tuple(parts) if kind is nn.LSTM else parts[0])

    found = methods[name](bound(slice(0, batch)), x, target=1)
    rows = [slice(i, i + 1) for i in range(batch)]
    expected = [methods[name](bound(i), x[i], target=1) for i in rows]
    assert_close(found, torch.cat(expected))


def test_states_without_a_mark() -> None:
    """Of as many layers as examples each copy runs alone; another number is refused."""
    path, net = functools.partial(attrfn.integrated_gradients, n_steps=4), make(Recurrent, nn.GRU)
    h, x = randn(2, 2, 4, seed=2), randn(2, 5, 3, seed=1)
    expected = path(functools.partial(net, states=per_example(h, dim=1)), x, target=1)
    with pytest.warns(UserWarning, match=r"rows of states .* mark what is bound with"):
        assert_close(path(functools.partial(net, states=h), x, target=1), expected)
    f = functools.partial(net, states=randn(2, 3, 4))
    with pytest.raises(ValueError, match=r"states .* bind attrfn.per_example\(tensor, dim=1\)"):
        path(f, randn(3, 5, 3), target=1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_masks_of_attention(batch: int) -> None:
    """A mask (B, T) of its own for each example, and one (T, T) for all, as long as the batch."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, own: Tensor, causal: Tensor) -> Tensor:
            h = self.inp(x)
            seen = own[:, None, :] & causal
            return self.out(F.scaled_dot_product_attention(h, h, h, seen).mean(1))

    net, x = make(Attends), randn(batch, 5, 3, seed=1)
    own = torch.rand(batch, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    own[:, 0] = True
    causal = torch.ones(5, 5).tril().bool()
    model = functools.partial(net, own=per_example(own), causal=shared(causal))
    for method in (functools.partial(attrfn.integrated_gradients, n_steps=4), attrfn.deep_lift):
        rows = [
            method(lambda x, m=own[i : i + 1]: net(x, m, causal), x[i : i + 1], target=1)
            for i in range(batch)
        ]
        assert_close(method(model, x, target=1), torch.cat(rows))


def test_the_model_gets_plain_tensors_bit_for_bit() -> None:
    seen: list[Tensor] = []

    def f(x: Tensor, own: Any, table: Tensor, wide: Tensor) -> Tensor:
        for t in (own["a"], own["b"].inner, table, wide):
            assert type(t) is Tensor
            assert vars(t) == {}
            seen.append(t)
        return (x * own["a"]).sum(1) + table.sum() + wide.sum()

    x, a, table = randn(2, 3), randn(2, 3, seed=1), randn(2, 4, seed=2)
    obj = SimpleNamespace(inner=shared(table))
    own = {"a": per_example(a), "b": obj}
    wide = shared(randn(1, 1, seed=4).expand(2, 3))
    f_bound = functools.partial(f, own=own, table=shared(table), wide=wide)
    for method in (attrfn.gradient, attrfn.integrated_gradients):
        seen.clear()
        method(f_bound, x)
        assert all(torch.equal(t, table) for t in seen if t.shape == table.shape)
        assert all(torch.equal(t[:2], a) for t in seen if t.shape[1:] == a.shape[1:] and len(t) > 2)
    assert not vars(a)
    assert not vars(table)


def test_a_marked_function_is_called_as_it_is() -> None:
    net = functools.partial(make(Graphs), edges=shared(EDGES))
    assert_close(net(X), make(Graphs)(X, EDGES))
    assert torch.equal(shared(EDGES) + 1, EDGES + 1)
    weight = randn(4).requires_grad_()
    shared(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_a_method_inside_of_another_decides_as_the_outer_one() -> None:
    """A table as long as the copies of the outer method: four samples of three examples."""
    table, x = randn(12, 3, seed=2), randn(3, 3)

    def f(x: Tensor, table: Tensor) -> Tensor:
        return (x @ table.T).tanh().sum(1)

    inner = functools.partial(attrfn.integrated_gradients, n_steps=4)
    for bound in (table, shared(table)):
        found = attrfn.noise_tunnel(inner, n_samples=4, stdevs=0.1, chunk_size=None)(
            functools.partial(f, table=bound), x
        )
        plain = attrfn.noise_tunnel(inner, n_samples=4, stdevs=0.1)(lambda x: f(x, table), x)
        assert_close(found, plain)


def test_keyword_arguments_of_functional_call() -> None:
    net, weights = make(Graphs), randn(3, 5, seed=3)
    x, params = randn(3, 5, 3, seed=1), dict(make(Graphs).named_parameters())
    for own, edges in ((weights, EDGES), (per_example(weights), shared(EDGES))):
        bound = functools.partial(
            functional_call, net, params, kwargs={"edges": edges, "weights": own}
        )
        for method in (attrfn.integrated_gradients, METHODS["tunnel"]):
            closed = [
                method(lambda z, i=i: net(z, EDGES, weights[i : i + 1]), x[i : i + 1], target=1)
                for i in range(3)
            ]
            assert_close(method(bound, x, target=1), torch.cat(closed))


@pytest.mark.parametrize("size", ["auto", 1, 2, 3, None])
@pytest.mark.parametrize("batching", ["fold", "vmap", "loop"])
def test_every_batching_and_chunk(size: Any, batching: Any) -> None:
    weights = randn(5, 2, seed=3).T
    model = functools.partial(make(Graphs), edges=shared(EDGES), weights=per_example(weights))
    found = attrfn.integrated_gradients(
        model, X, target=1, n_steps=5, chunk_size=size, batching=batching
    )
    expected = attrfn.integrated_gradients(model, X, target=1, n_steps=5, chunk_size=1)
    assert_close(found, expected)


def test_metrics_attacks_and_axioms() -> None:
    weights = randn(2, 5, seed=3)
    parts = [
        (
            functools.partial(
                make(Graphs), edges=shared(EDGES), weights=per_example(weights[i : i + 1])
            ),
            X[i : i + 1],
        )
        for i in range(2)
    ]
    whole = functools.partial(make(Graphs), edges=shared(EDGES), weights=per_example(weights))
    ig = functools.partial(attrfn.integrated_gradients, n_steps=4)

    def both(f: Any) -> None:
        together = f(whole, X)
        assert_close(together, torch.cat([f(model, x) for model, x in parts]))

    metrics, one = attrfn.metrics, {"target": 1}
    both(lambda f, x: metrics.sensitivity_max(f, x, ig, **one, n_samples=3, radius=0.1))
    both(lambda f, x: metrics.infidelity(f, x, ig(f, x, **one), **one, n_samples=4))
    both(lambda f, x: metrics.comprehensiveness(f, x, ig(f, x, **one), **one))
    y = torch.tensor([0, 0])
    both(lambda f, x: attrfn.robust.pgd(f, x, target=y[: len(x)], radius=0.1, n_steps=3))
    gaps = attrfn.axioms.batch_independence(whole, X, ig, target=1)
    assert float(gaps.abs().max()) < 1e-12
    both(lambda f, x: attrfn.axioms.sensitivity(f, x, ig, **one))
    report = attrfn.testing.check_model(whole, X, target=1)
    assert report.ok, report
    unmarked = functools.partial(make(Graphs), edges=EDGES, weights=weights)
    text = attrfn.testing.check_model(unmarked, X, target=1).find("rows").text
    assert "edges and weights that functools.partial binds counts as rows" in text


@pytest.mark.compiles
def test_compiled_code(fresh_compiler: None) -> None:
    """In units, as a whole, and in the user's own graph; other sizes compile nothing."""

    def scaled(x: Tensor, table: Tensor, own: Tensor) -> Tensor:
        return ((x @ table.T).tanh() * own[0, :, None]).sum(1)

    table = randn(2, 3, seed=2)

    def model(batch: int) -> Any:
        own = per_example(randn(2, batch, seed=3), dim=1)
        return functools.partial(scaled, table=shared(table), own=own)

    ig, f, x = functools.partial(attrfn.integrated_gradients, n_steps=4), model(2), randn(2, 3)
    tunnel = attrfn.noise_tunnel(ig, n_samples=3, stdevs=0.1)
    expected, of_tunnel = ig(f, x), tunnel(f, x)
    for method, wanted in ((ig, expected), (tunnel, of_tunnel), (attrfn.gradient, None)):
        compiled = attrfn.compile(method, f, backend="aot_eager")
        assert_close(compiled(x), method(f, x) if wanted is None else wanted)
        assert_close(compiled(2 * x), method(f, 2 * x))
    own = torch.compile(
        lambda x, table, own: tunnel(
            functools.partial(scaled, table=shared(table), own=per_example(own, dim=1)), x
        ),
        fullgraph=True,
        backend="aot_eager",
    )
    assert_close(own(x, table, randn(2, 2, seed=3)), of_tunnel)


def test_vmap_and_derivatives() -> None:
    weights = randn(2, 5, seed=3)
    ig = functools.partial(attrfn.integrated_gradients, n_steps=4)
    model = functools.partial(make(Graphs), edges=shared(EDGES), weights=per_example(weights))
    net = make(Graphs)

    def one(x: Tensor, w: Tensor) -> Tensor:
        row = functools.partial(net, edges=shared(EDGES), weights=per_example(w[None]))
        return ig(row, x[None], target=1)[0]

    found = torch.func.vmap(one)(X, weights)
    assert_close(found, ig(model, X, target=1))

    def size(w: Tensor) -> Tensor:
        f = functools.partial(net, edges=shared(EDGES), weights=per_example(w))
        return ig(f, X, target=1, create_graph=True).square().sum()

    w = weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(size(w), w)
    assert_close(torch.func.grad(size)(weights), slope)
    step = 1e-6 * randn(2, 5, seed=9)
    change = (size(weights + step) - size(weights - step)) / 2
    assert_close((slope * step).sum(), change.detach(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (lambda: shared(3), TypeError, "attrfn.shared got 3, expected a tensor"),
        (lambda: per_example([1.0]), TypeError, "attrfn.per_example got 1.0, expected"),
        (lambda: shared(SimpleNamespace()), TypeError, "attrfn.shared got namespace"),
        (lambda: per_example(torch.ones(2), dim=1), ValueError, r"dim is 1 for a tensor of shape"),
        (lambda: per_example(torch.ones(())), ValueError, r"dim is 0 for a tensor of shape \(\)"),
        (lambda: per_example(torch.ones(2), dim=True), TypeError, "dim is True"),
        (lambda: per_example(torch.ones(2), dim="0"), TypeError, "dim is '0'"),
        (
            lambda: attrfn.integrated_gradients(
                functools.partial(lambda w, x: (x * w[0]).sum(1), per_example(torch.ones(3, 1))),
                torch.ones(2, 3),
            ),
            ValueError,
            r"shape \(3, 1\) that attrfn.per_example marks with dim=0, expected 2",
        ),
    ],
)
def test_wrong_marks(do: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        do()


def test_marks_of_other_layouts() -> None:
    """Sparse matrices, integers, parameters and negative dimensions."""
    adjacency = torch.eye(5).to_sparse()
    f = functools.partial(lambda a, x: torch.stack([(a @ r).sum() for r in x]), shared(adjacency))
    assert_close(attrfn.gradient(f, torch.ones(2, 5, 1)), torch.ones(2, 5, 1))
    found = attrfn.integrated_gradients(f, torch.ones(5, 5, 1))
    assert_close(found, torch.ones(5, 5, 1), rtol=1e-6, atol=1e-6)
    p = nn.Parameter(torch.ones(2, 3))
    g = functools.partial(lambda p, x: (x * p).sum(1), per_example(p, dim=-2))
    assert_close(attrfn.integrated_gradients(g, torch.ones(2, 3)), torch.ones(2, 3), rtol=1e-6)
    assert p.grad is None
