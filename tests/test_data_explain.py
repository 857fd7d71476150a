"""attrfn.data.explain without a folder: the numbers of one call, for every batch and data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import optree
import pytest
import torch
from data_cases import ROWS, examples, network
from registry import REGISTRY, Row
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import attrfn
import attrfn.data
from attrfn import random

explain = functools.partial(attrfn.data.explain, progress=False)
NET = network()
PAIR = {"inputs": 0, "target": 1}
NAMED = {"inputs": "x", "target": "y"}


class Mapped(Dataset):
    """A data set whose examples are dicts."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.x, self.y = examples()
        self.bad = bad

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if i in self.bad:
            raise OSError("broken picture")
        return {"x": self.x[i], "y": self.y[i]}


class Streamed(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(*examples(), strict=True))


class Lists(Dataset):
    """Examples of Python's numbers; a batch of 6 is a square, whose axes could be exchanged."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> Any:
        x, y = examples()
        return {"x": x[i].tolist(), "y": int(y[i])}


class HuggingFaceStream(IterableDataset):
    """As ``datasets.IterableDataset`` behaves: it has columns, and no length."""

    column_names = ("x", "y")

    def __iter__(self) -> Iterator[Any]:
        return (Lists()[i] for i in range(ROWS))


class HuggingFace:
    """As ``datasets.Dataset`` behaves: slices are dicts of lists."""

    column_names = ("x", "y", "text")

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: slice) -> dict[str, Any]:
        x, y = examples()
        return {"x": list(x[i]), "y": y[i].tolist(), "text": ["a"] * len(x[i])}


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = examples()
    return [(x[i : i + 9], y[i : i + 9]) for i in range(0, ROWS, 9)]


DATA: dict[str, Callable[[], tuple[Any, Any]]] = {
    "tensors": lambda: (dict(zip("xy", examples(), strict=True)), NAMED),
    "tuple": lambda: (examples(), PAIR),
    "map-style": lambda: (Mapped(), NAMED),
    "TensorDataset": lambda: (TensorDataset(*examples()), PAIR),
    "DataLoader": lambda: (DataLoader(TensorDataset(*examples()), batch_size=9), PAIR),
    "workers": lambda: (DataLoader(Mapped(), batch_size=9, num_workers=2), NAMED),
    "iterable data set": lambda: (Streamed(), PAIR),
    "loader of an iterable": lambda: (DataLoader(Streamed(), batch_size=9), PAIR),
    "generator": lambda: ((b for b in batches()), PAIR),
    "list of batches": lambda: (batches(), PAIR),
    "Hugging Face": lambda: (HuggingFace(), NAMED),
    "stream of Hugging Face": lambda: (HuggingFaceStream(), NAMED),
    "lists": lambda: (Lists(), NAMED),
}


@pytest.mark.parametrize("batch_size", ["auto", 1, 6, 7, 1000])
@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data_gives_what_one_call_gives(kind: str, batch_size: Any) -> None:
    data, columns = DATA[kind]()
    x, y = examples()
    expected = attrfn.integrated_gradients(NET, x, target=y)
    model = network(torch.float32) if kind in ("lists", "stream of Hugging Face") else NET
    found = explain(
        attrfn.integrated_gradients, model, data, columns=columns, batch_size=batch_size
    )
    # Python's numbers become float32, as everywhere in torch.
    rounding = 1e-5 if found.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)


def same_for_all(method: Any, x: Tensor, **options: Any) -> Any:
    """The attributions, which are the same for all sizes of batches."""
    found = [explain(method, NET, x, batch_size=b, **options) for b in (1, 4, 5, len(x))]
    for other in found[1:]:
        for a, b in zip(optree.tree_leaves(found[0]), optree.tree_leaves(other), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    return found[0]


METHODS = {
    r.name: r
    for r in REGISTRY
    if not (r.layer or r.neuron or r.images or r.relu or r.mixes or r.batch_dim)
    and r.explains != "map"
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_no_method_depends_on_the_batch(name: str) -> None:
    r: Row = METHODS[name]
    options = {"target": 1} if r.target else {}
    method = r.method
    if r.baselines == "pool":
        method = functools.partial(
            method, baselines=torch.linspace(-1, 1, 18).reshape(3, 6).double()
        )
    more = {k: v for k, v in r.options.items() if k not in ("key", "baselines")}
    same_for_all(method, examples(11)[0], key=5, **{**options, **more})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "method", [attrfn.kernel_shap, attrfn.shapley_value_sampling, attrfn.gradient_shap, attrfn.lime]
)
def test_an_example_draws_by_its_number(method: Any) -> None:
    """Example i gets what it gets alone, with the key of i."""
    x, _ = examples(8)
    options: dict[str, Any] = {"target": 1, "n_samples": 9}
    if method is attrfn.gradient_shap:
        options |= {"baselines": torch.zeros(1, 6).double(), "stdevs": 0.5}
    found = explain(method, NET, x, key=7, batch_size=3, **options)
    for i in (0, 5):
        alone = method(NET, x[i : i + 1], key=random.fold_in(7, torch.tensor([i])), **options)
        torch.testing.assert_close(found[i], alone[0], rtol=1e-10, atol=1e-12)
    assert not torch.equal(found, explain(method, NET, x, key=8, batch_size=3, **options))


def test_an_index_column_keeps_the_draws_in_another_order() -> None:
    x, _ = examples(12)
    order = torch.randperm(12)
    method = functools.partial(attrfn.gradient_shap, baselines=torch.zeros(1, 6).double())
    columns = {"inputs": "x", "index": "i"}
    run = functools.partial(explain, method, NET, columns=columns, target=0, stdevs=1.0)
    first = run({"x": x, "i": torch.arange(12)}, batch_size=5)
    other = run({"x": x[order], "i": order}, batch_size=4)
    torch.testing.assert_close(other, first[order], rtol=1e-12, atol=1e-14)


def test_trees_bound_arguments_and_options_of_columns() -> None:
    """Against one call with functools.partial."""
    x, y = examples(20)
    w, m, x0 = x + 1, x - 1, x.flip(0)

    def model(a: Tensor, b: dict[str, Tensor], mask: Tensor) -> Tensor:
        return NET(a * mask + b["w"])

    columns = {
        "inputs": ("x", {"w": "w"}),
        "target": "y",
        "bind": {"mask": "m"},
        "baselines": "x0",
    }
    data = {"x": x, "w": w, "m": m, "x0": x0, "y": y}
    method = lambda f, x, baselines, target: attrfn.input_x_gradient(  # noqa: E731
        f, x, baselines=(baselines, {"w": 0.0}), target=target
    )
    found = explain(method, model, data, columns=columns, batch_size=6)
    expected = attrfn.input_x_gradient(
        functools.partial(model, mask=m), (x, {"w": w}), baselines=(x0, {"w": 0.0}), target=y
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_what_is_bound_for_all_may_be_as_long_as_a_batch() -> None:
    """W of 10 rows, and batches of 10: no row of it belongs to an example."""
    x, _ = examples(25)
    w, p = x[:10] + 1, torch.nn.Parameter(x[:10])
    model = functools.partial(lambda x, w, p: torch.tanh(x @ (w + p).T), w=w, p=p)
    expected = attrfn.integrated_gradients(lambda x: model(x), x, target=3)
    for batch_size in (4, 5, 10):
        found = explain(attrfn.integrated_gradients, model, x, target=3, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    parameters = {k: v.detach() + 0.1 for k, v in NET.named_parameters()}
    functional = functools.partial(torch.func.functional_call, NET, parameters)
    found = explain(attrfn.gradient, functional, x, target=1, batch_size=8)
    torch.testing.assert_close(found, attrfn.gradient(functional, x, target=1))


def test_tensors_alone_are_the_inputs_as_they_are() -> None:
    x, _ = examples(20)
    model = lambda d: NET(d["a"] + d["b"])  # noqa: E731
    data = {"a": x, "b": x * 2}
    found = explain(attrfn.gradient, model, data, target=1, batch_size=6)
    torch.testing.assert_close(found, attrfn.gradient(model, data, target=1))


def test_a_table_takes_the_type_of_the_model() -> None:
    columns = {"inputs": list("abcdef")}
    data = {name: X[:, i].numpy() for i, name in enumerate("abcdef")}
    found = explain(attrfn.gradient, network(torch.float32), data, columns=columns, target=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, attrfn.gradient(NET, X, target=1).float())


def test_arguments_with_a_row_for_each_example() -> None:
    x, y = examples(20)
    x0, mask = x.flip(0), (torch.arange(120).reshape(20, 6) // 2) % 3
    expected = attrfn.feature_ablation(
        NET, x, target=y, baselines=x0, feature_mask=mask, n_features=3
    )
    found = explain(
        attrfn.feature_ablation,
        NET,
        x,
        target=y.tolist(),
        baselines=x0,
        feature_mask=mask,
        n_features=3,
        batch_size=7,
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_what_broadcasts_to_an_example_is_no_row() -> None:
    """Baselines (6,) and (1, 6) for 6 examples of 6 features."""
    x, _ = examples(6)
    x0 = torch.arange(6.0).double()
    expected = attrfn.input_x_gradient(NET, x, target=0, baselines=x0)
    for given in (x0, x0[None]):
        found = explain(attrfn.input_x_gradient, NET, x, target=0, baselines=given, batch_size=4)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_baselines_of_a_distribution() -> None:
    """K for all examples, or K for each."""
    x, y = examples(20)
    pool = torch.randn(3, 20, 6).double()
    method = attrfn.over_baselines(attrfn.input_x_gradient)
    for given in (pool[:, 0], pool):
        expected = method(NET, x, target=y, baselines=given)
        found = explain(method, NET, x, target=y, baselines=given, batch_size=7)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "model"),
    [
        (attrfn.at_layer(attrfn.integrated_gradients, "1"), NET),
        (functools.partial(attrfn.layer_activation, layer=[NET[0], "1"]), NET),
        (attrfn.noise_tunnel(attrfn.saliency, n_samples=3), NET),
        (functools.partial(attrfn.integrated_gradients, n_steps=4), NET),
        (attrfn.absolute(attrfn.gradient), NET),
        (attrfn.ensemble(attrfn.gradient), [NET, NET]),
    ],
)
def test_layers_and_methods_of_methods(method: Any, model: Any) -> None:
    x, y = examples(20)
    options = {"target": y} if "layer_activation" not in repr(method) else {}
    found = explain(method, model, x, batch_size=7, **options)
    torch.testing.assert_close(found, method(model, x, **options), rtol=1e-9, atol=1e-11)


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_running_means(batch_size: int) -> None:
    x, y = examples()
    a = attrfn.gradient(NET, x, target=y)
    run = functools.partial(explain, attrfn.gradient, NET, x, target=y, batch_size=batch_size)
    torch.testing.assert_close(run(reduce="mean"), a.mean(0))
    torch.testing.assert_close(run(reduce="mean_abs"), a.abs().mean(0))
    pair = (lambda s, a: a.amax(0) if s is None else torch.maximum(s, a.amax(0)), lambda s: s)
    torch.testing.assert_close(run(reduce=pair), a.amax(0))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_quantiles_are_exact_in_one_block(batch_size: int) -> None:
    x, y = examples()
    a = attrfn.gradient(NET, x, target=y)
    q = (0.0, 0.1, 0.5, 0.77, 1.0)
    found = explain(
        attrfn.gradient,
        NET,
        x,
        target=y,
        batch_size=batch_size,
        reduce=attrfn.data.quantiles(q, size=128),
    )
    torch.testing.assert_close(found, torch.quantile(a, torch.tensor(q).double(), 0))


@pytest.mark.parametrize("shape", ["drawn", "rising", "falling", "few values"])
def test_the_sketch_keeps_its_bound_and_no_batch_matters(shape: str) -> None:
    """Ranks of the found values in the data: log2(n / size) / (2 size) is allowed."""
    n, size = 20_000, 64
    x = {
        "drawn": torch.randn(n, 2).double(),
        "rising": torch.arange(2 * n).reshape(n, 2).double(),
        "falling": -torch.arange(2 * n).reshape(n, 2).double(),
        "few values": torch.randint(0, 3, (n, 2)).double(),
    }[shape]
    q = torch.linspace(0, 1, 21).double()
    sketch = attrfn.data.quantiles(q.tolist(), size=size)
    results = []
    for step in (n, 777):
        state = sketch.init()
        for i in range(0, n, step):
            rows = x[i : i + step]
            state = sketch.update(state, rows, torch.arange(len(rows)))
        results.append(sketch.compute(state))
    assert torch.equal(*results)
    allowed = torch.log2(torch.tensor(n / size)).ceil() / (2 * size) + 2 / n
    low = (x[None] < results[0][:, None]).double().mean(1)
    high = (x[None] <= results[0][:, None]).double().mean(1)
    assert bool((low - allowed <= q[:, None]).all())
    assert bool((high + allowed >= q[:, None]).all())


def test_statistics_merge() -> None:
    x = torch.randn(300, 2).double()
    index = torch.arange(300)
    for how in ("mean", attrfn.data.quantiles(size=512), attrfn.data.top_k(5)):
        one = attrfn.data._reduce.reduction(how)
        whole = one.compute(one.update(one.init(), x, index))
        a = one.update(one.init(), x[:100], index[:100])
        b = one.update(one.init(), x[100:], index[100:])
        found = one.compute(one.merge(a, b))
        torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_top_examples(batch_size: int) -> None:
    x, y = examples()
    a = attrfn.gradient(NET, x, target=y)
    top = explain(
        attrfn.gradient,
        NET,
        x,
        target=y,
        batch_size=batch_size,
        reduce=attrfn.data.top_k(4),
    )
    best = a.abs().sum(1).sort(descending=True, stable=True).indices[:4]
    assert top.examples.tolist() == best.tolist()
    torch.testing.assert_close(top.attributions, a[best])


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    ],
    ids=["GPU", "Python", "CPU"],
)
def test_memory_that_runs_out_halves_the_batch(error: Exception) -> None:
    """A model that takes three rows: 16 to 8 to 4 to 2, and the numbers stay."""
    x, y = examples(40)
    rows: list[int] = []

    def model(x: Tensor) -> Tensor:
        rows.append(len(x))
        if len(x) > 3:
            raise error
        return NET(x)

    found = explain(attrfn.gradient, model, x, target=y, batch_size=16)
    torch.testing.assert_close(found, attrfn.gradient(NET, x, target=y))
    assert rows[:5] == [16, 8, 4, 2, 2]
    assert max(rows[4:]) == 2


def test_one_row_that_does_not_fit_is_named() -> None:
    def model(x: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(ValueError, match=r"^example 0: .*: out of memory"):
        explain(attrfn.gradient, model, examples(4)[0], target=0, batch_size=4)


def fragile(x: Tensor) -> Tensor:
    """Fails for examples whose first feature is 99."""
    if bool((x[:, 0] == 99).any()):
        raise ValueError("too large")
    return NET(x)


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_an_example_that_fails_is_named_or_left_out(batch_size: int) -> None:
    x, y = examples(30)
    x[[7, 8, 21], 0] = 99
    run = functools.partial(explain, attrfn.gradient, fragile, x, target=y, batch_size=batch_size)
    with pytest.raises(ValueError, match=r"^example 7: .*too large"):
        run()
    with pytest.warns(UserWarning, match="3 of the examples failed, the first is 7: "):
        found = run(on_error="skip")
    good = [i for i in range(30) if i not in (7, 8, 21)]
    assert bool(found[[7, 8, 21]].isnan().all())
    torch.testing.assert_close(
        found[good], attrfn.gradient(NET, x[good], target=y[good]), rtol=1e-12, atol=1e-14
    )


def test_an_example_that_cannot_be_read_is_named_or_left_out() -> None:
    run = functools.partial(
        explain, attrfn.gradient, NET, Mapped(bad=(17,)), columns=NAMED, batch_size=8
    )
    with pytest.raises(ValueError, match=r"^example 17 cannot be read: broken picture"):
        run()
    with pytest.warns(UserWarning, match="1 of the examples failed, the first is 17"):
        found = run(on_error="skip")
    assert found.isnan().any(1).nonzero().flatten().tolist() == [17]
    with pytest.warns(UserWarning, match="they are left out|are left out"):
        mean = run(on_error="skip", reduce="mean")
    torch.testing.assert_close(mean, found.nanmean(0))


def test_a_call_that_is_wrong_for_all_is_refused_with_skip_too() -> None:
    with pytest.raises(ValueError, match="all 100 examples of the first batch failed"):
        explain(attrfn.gradient, NET, examples()[0], target=7, on_error="skip")


def test_rows_that_mix_are_said() -> None:
    model = lambda x: NET(x - x.mean(0))  # noqa: E731
    with pytest.warns(UserWarning, match="an example alone has other attributions"):
        explain(attrfn.gradient, model, examples()[0], target=0, batch_size=8)


def test_warnings_of_a_kind_come_once() -> None:
    with pytest.warns(UserWarning, match="kernel_shap") as caught:
        explain(attrfn.kernel_shap, NET, examples()[0], target=0, batch_size=10, n_samples=7)
    kinds = [str(w.message)[:20] for w in caught]
    assert len(kinds) == len(set(kinds))


X, Y = examples()
LOADER = DataLoader(TensorDataset(X, Y), batch_size=9, shuffle=True)
LATE = [X[:9], X[9:18, :3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": 3}, "data is 3, expected a DataLoader"),
        ({"data": TensorDataset(X, Y)}, "data has examples of 2 parts, .* columns="),
        ({"data": LOADER, "columns": PAIR}, "RandomSampler, .* shuffle=False"),
        ({"data": LATE}, r"example 9: rows are \(3,\) float64, expected .* \(6,\) float64"),
        ({"data": {"x": X}, "columns": {"inputs": "z"}}, "columns names 'z'.*'x'"),
        ({"data": (X, Y), "columns": {"inputs": 5}}, "columns names 5.*places 0 to 1"),
        ({"columns": {"target": 0}}, "columns has no 'inputs'"),
        ({"columns": {"inputs": 0, "targets": 1}}, "'targets'.*did you mean 'target'"),
        ({"columns": [0]}, r"columns is \[0\], expected a dict"),
        ({"data": {"x": ["a", "b"]}, "columns": {"inputs": "x"}}, "column 'x' holds 'a'"),
        ({"target": torch.where(torch.arange(ROWS) == 17, 5, Y)}, "^example 17: target has values"),
        ({"target": Y[:50]}, "target has 50 entries, expected one for each of the 100"),
        (
            {"data": X.float()},
            "^example 0: .*inputs are torch.float32 and the parameters of model_fn",
        ),
        ({"model_fn": []}, r"model_fn is \[\], expected a function"),
        ({"data": [X], "target": Y.repeat(2)}, "target has 200 entries, expected .* 100"),
        (
            {"data": [X], "target": Y[:50]},
            "^example 50: .*target has 50 entries, and data have more",
        ),
        ({"baselines": X[:50]}, "baselines has 50 rows, expected 1, or one for each of the 100"),
        ({"method": attrfn.feature_permutation}, "attrfn.data.importance"),
        ({"n_step": 3}, "n_step is not an option.*did you mean 'n_steps'"),
        ({"create_graph": True}, "create_graph cannot be given"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"engine": "spark"}, "engine is 'spark', expected 'local', 'ray', "),
        ({"on_error": "stop"}, "on_error is 'stop'"),
        ({"reduce": "median"}, "reduce is 'median'"),
        ({"reduce": "mean", "out": "x"}, "reduce and out are both given"),
        ({"data": X[:0]}, "data has no examples"),
        ({"data": []}, "data has no examples"),
        ({"key": torch.zeros(100, 2).long()}, "key has shape"),
        ({"resume": 1}, "resume is 1, expected True or False"),
        ({"data": "x.csv"}, "ends in .parquet or .safetensors"),
        (
            {"model_fn": functools.partial(lambda x, w: (x * w).sum(1), w=X)},
            r"model_fn binds a tensor of 100 rows, .*columns\['bind'\]",
        ),
    ],
)
def test_wrong_calls(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "method": attrfn.integrated_gradients,
        "model_fn": NET,
        "data": X,
        "target": None if "target" in (change.get("columns") or ()) else 0,
        "batch_size": 9,
    }
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        explain(**{**given, **change})
    assert len(str(caught.value)) <= 300


def test_a_loader_that_lies_about_its_length() -> None:
    class Short(DataLoader):
        def __iter__(self) -> Any:
            return iter(list(super().__iter__())[:-1])

    data = Short(TensorDataset(X), batch_size=9)
    with pytest.raises(ValueError, match="data said that it has 100 examples and gave 99"):
        explain(attrfn.gradient, NET, data, target=0)


def test_nothing_of_the_users_changes() -> None:
    model = NET
    x = X.clone().requires_grad_()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = explain(attrfn.gradient, model, x, target=0, batch_size=9)
    assert not found.requires_grad
    assert x.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert isinstance(model, nn.Module)
