"""Options: what is refused, in one sentence that names the argument, the got and the expected."""

from __future__ import annotations

import builtins
import functools
import inspect
import re
import sys
import warnings
from typing import Any

import pytest
import torch
import zoo
from registry import REGISTRY, ROWS, Row
from torch import Tensor, nn
from zoo import randn

import attrfn

X = randn(3, 4)
POOL = randn(2, 4, seed=1)
IMAGES = randn(2, 2, 8, 8, seed=2)
MLP = zoo.mlp()


def f(x: Tensor) -> Tensor:
    return torch.tanh(x[:, 0]) + (x**2).sum(1)


def two(x: Tensor, y: Tensor) -> Tensor:
    return f(x) + y.flatten(1).sum(1)


def _plain(r: Row) -> bool:
    return r.gradient and not (r.rules or r.relu or r.images or r.explains in ("map", "pairs"))


def having(option: str, but: tuple[str, ...] = ("noise_tunnel",)) -> list[str]:
    """The methods of the registry whose signature has an option."""
    return [
        r.name
        for r in REGISTRY
        if r.name in r.covers and r.name not in but
        if option in inspect.signature(r.method).parameters
    ]


PATHS = having("quadrature")
SHAPS = having("stdevs")
CAMS = having("upsample", but=("eigen_cam", "score_cam"))
# Of first order, and of no rule: what their inputs must be is what a gradient needs.
GRADIENTS = [r.name for r in REGISTRY if r.name in having("create_graph") and _plain(r)]
GRADIENTS += ["noise_tunnel"]
# Those that need a gradient at the inputs: the others at a layer take token ids, too.
ALONG_INPUTS = ("layer_conductance", "internal_influence")
FLOATING = [n for n in GRADIENTS if n in ALONG_INPUTS or n not in having("layer", but=())]
FLOATING += [n for n in GRADIENTS if n in having("neuron")]
MOVED = [name for name in having("layer") if name in GRADIENTS]


def run(name: str, inputs: Any = X, **options: Any) -> Any:
    """The method on the little network, with all that its signature asks for."""
    if name == "noise_tunnel":
        return attrfn.noise_tunnel(attrfn.gradient, n_samples=2)(MLP, inputs, **options)
    method = getattr(attrfn, name)
    given: dict[str, Any] = {"layer": "1", "neuron": 0, "target": 0}
    if ROWS[name].baselines == "pool":
        given["baselines"] = POOL
    takes = inspect.signature(method).parameters
    return method(MLP, inputs, **{k: v for k, v in given.items() if k in takes} | options)


def refused(kind: type[Exception], message: str, what, *args, **options) -> None:
    with pytest.raises(kind, match=message) as error:
        what(*args, **options)
    assert "\n" not in str(error.value)


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_quadrature(name):
    message = r"^quadrature is 'simpson', expected one of gauss_legendre, riemann_left, .*callable"
    refused(ValueError, message, run, name, quadrature="simpson")
    message = r"^n_steps is 1, expected at least 2 for riemann_trapezoid"
    refused(ValueError, message, run, name, quadrature="riemann_trapezoid", n_steps=1)
    for wrong in (
        lambda n: ([0.5], [0.5, 0.5]),
        lambda n: ([], []),
        lambda n: (torch.zeros(2, 2), torch.zeros(2, 2)),
    ):
        message = r"^quadrature returned nodes of shape .* and weights of shape .*, expected two of"
        refused(ValueError, message, run, name, quadrature=wrong)


@pytest.mark.parametrize("wrong", [3, None, ("gauss_legendre",)])
def test_quadrature_of_the_wrong_type(wrong):
    for name in PATHS:
        with pytest.raises((TypeError, ValueError), match=r"^quadrature is .*, expected one of ga"):
            run(name, quadrature=wrong)


def test_a_callable_quadrature():
    """Two nodes of Gauss and Legendre integrate the cubic's derivative exactly: x^3 -> x^3."""
    node = 0.5 - 3**-0.5 / 2
    got = attrfn.integrated_gradients(
        lambda x: (x**3).sum(1), X, quadrature=lambda n: ([node, 1 - node], [0.5, 0.5])
    )
    torch.testing.assert_close(got, X**3)


@pytest.mark.parametrize("name", SHAPS)
def test_stdevs(name):
    for wrong in (-0.1, -1, float("nan")):
        refused(ValueError, rf"^stdevs has {wrong!r}, expected a number o", run, name, stdevs=wrong)
    for wrong in ("1", True):
        refused(TypeError, rf"^stdevs has {wrong!r}, expected a number", run, name, stdevs=wrong)
    refused(TypeError, r"^stdevs has None, expected a number", run, name, stdevs=None)
    refused(ValueError, r"^stdevs is a tree unlike the inputs", run, name, stdevs=(0.1, 0.2))


@pytest.mark.parametrize("name", SHAPS)
def test_keys(name):
    message = r"^key (must be an int or an integer tensor of sha|holds a tensor of torch\.bool)"
    for wrong in (1.5, "7", None, True, torch.tensor([1.0, 2.0]), torch.tensor([True, False])):
        refused(TypeError, message, run, name, key=wrong)
    for wrong in (torch.tensor(3), torch.zeros(3, dtype=torch.long)):
        refused(ValueError, r"^key must have shape \(\.\.\., 2\), got ", run, name, key=wrong)
    for shape in ((2, 2), (4, 2), (3, 1, 2)):
        message = r"^key has shape .*, expected \(2,\), or \(3, 2\) with one key for each example"
        refused(ValueError, message, run, name, key=torch.zeros(shape, dtype=torch.long))


def test_keys_that_are_taken():
    """An int, a key and a key per example; the last makes each row's draw its own."""
    one = run("gradient_shap", key=7)
    torch.testing.assert_close(run("gradient_shap", key=attrfn.random.key(7)), one, rtol=0, atol=0)
    keys = attrfn.random.key(7).expand(3, 2)
    torch.testing.assert_close(run("gradient_shap", key=keys), one)
    own = attrfn.random.split(7, 3)
    whole = run("gradient_shap", key=own)
    for i in range(3):
        torch.testing.assert_close(run("gradient_shap", X[i : i + 1], key=own[i])[0], whole[i])
    assert not torch.equal(run("gradient_shap", key=8), one)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"kind": "mean"}, ValueError, r"^kind is 'mean', expected 'smoothgrad', 'smoothgrad_sq',"),
        ({"kind": None}, ValueError, r"^kind is None, expected 'smoothgrad'"),
        ({"n_samples": 0}, ValueError, r"^n_samples is 0, expected an int of at least 1"),
        ({"n_samples": 2.0}, ValueError, r"^n_samples is 2\.0, expected an int of at least 1"),
        ({"stdevs": -1.0}, ValueError, r"^stdevs has -1\.0, expected a number of at least 0"),
        ({"stdevs": "a"}, TypeError, r"^stdevs has 'a', expected a number"),
        ({"stdevs": (1.0,)}, ValueError, r"^stdevs is a tree unlike the inputs"),
        ({"key": 0.5}, TypeError, r"^key must be an int or an integer tensor"),
        ({"key": torch.zeros(4, 2).long()}, ValueError, r"^key has shape \(4, 2\), expected \(2,"),
        ({"chunk_size": 0}, ValueError, r"^chunk_size is 0, expected None"),
        ({"draw_baselines": True}, TypeError, r"^baselines has None for inputs of shape \(3, 4"),
    ],
)
def test_noise_tunnel(options, kind, message):
    def call() -> None:
        attrfn.noise_tunnel(attrfn.integrated_gradients, **options)(f, X)

    refused(kind, message, call)


def test_stdevs_of_each_input():
    """Noise for one of two inputs: the other's attribution has no spread."""
    tunnel = attrfn.noise_tunnel(attrfn.gradient, kind="vargrad", n_samples=9, stdevs=(0.0, 0.5))
    a, b = tunnel(lambda x, y: (x**2).sum(1) + (y**2).sum(1), (X, X))
    # a variance of equal numbers is zero up to rounding
    assert (a < 1e-25).all()
    assert (b > 1e-3).all()
    features = torch.tensor([0.0, 0.5, 0.0, 1.0], dtype=X.dtype)
    spread = attrfn.noise_tunnel(attrfn.gradient, kind="vargrad", n_samples=9, stdevs=features)
    got = spread(lambda x: (x**2).sum(1), X)
    assert torch.equal(got > 1e-3, (features > 0).expand(3, 4))


def test_stdevs_that_do_not_fit():
    for call in (
        lambda s: run("gradient_shap", stdevs=s),
        lambda s: attrfn.noise_tunnel(attrfn.gradient, stdevs=s)(f, X),
    ):
        refused(ValueError, r"^stdevs has shape \(5,\) for inputs of shape ", call, torch.ones(5))


# --- tolerance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["integrated_gradients", "layer_integrated_gradients", "neuron_integrated_gradients"]
)
def test_tolerance(name):
    for wrong in (0, -0.1, float("nan")):
        message = rf"^tolerance is {wrong!r}, expected a number above 0 in units of the output"
        refused(ValueError, message, run, name, tolerance=wrong)
    message = r"^tolerance cannot be met inside a torch\.func transform .*set n_steps instead"
    refused(ValueError, message, torch.func.vmap(lambda x: run(name, x[None], tolerance=0.1)), X)
    refused(ValueError, message, torch.func.grad(lambda x: run(name, x, tolerance=0.1).sum()), X)


def test_tolerance_that_is_met():
    """Left sums need many steps; the rounds after them take the nodes of Gauss, exact here."""
    counts = []

    def quadratic(x: Tensor) -> Tensor:
        counts.append(len(x) // 3)
        return (x**2).sum(1)

    options = {"quadrature": "riemann_left", "n_steps": 2, "chunk_size": 4096}
    got = attrfn.integrated_gradients(quadratic, X, tolerance=0.2, **options)
    torch.testing.assert_close(got, X**2)
    assert max(counts) == 4


def test_a_tolerance_needs_no_check():
    with pytest.raises(TypeError, match=r"^check_completeness is 'no', expected True or False"):
        attrfn.integrated_gradients(f, X, check_completeness="no")


def test_tolerance_that_is_missed():
    """A step function jumps on the path: the gap stays, and is named."""

    def step(x: Tensor) -> Tensor:
        return x.sum(1) + 10 * (x[:, 0] > 0.01).double()

    x = torch.ones(1, 4, dtype=zoo.D)
    message = (
        r"^integrated_gradients missed tolerance=0\.1 with [0-9]+ gradients.*gap is 10: .*jump"
    )
    with pytest.warns(UserWarning, match=message):
        got = attrfn.integrated_gradients(
            step, x, n_steps=1, tolerance=0.1, quadrature="riemann_middle"
        )
    torch.testing.assert_close(got, x)


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_inputs_without_a_gradient(name, dtype):
    message = rf"^inputs has a tensor of {dtype}, expected "
    advice = "real numbers: give torch.view_as_real" if dtype.is_complex else "floating.*embedd"
    refused(TypeError, message + advice, run, name, X.to(dtype))


@pytest.mark.parametrize("name", GRADIENTS)
def test_inputs_that_are_no_tensors(name):
    for wrong, kind in (([1.0, 2.0], "float"), ({"x": X, "mode": "fast"}, "str"), ((X, 3), "int")):
        message = rf"^inputs has a leaf of type {kind}, expected tensors only: .*with functools\.pa"
        refused(TypeError, message, run, name, wrong)
    refused(TypeError, r"^inputs has a leaf of type ndarray, expected tensor", run, name, X.numpy())


@pytest.mark.parametrize("name", GRADIENTS)
def test_inputs_that_disagree(name):
    refused(
        ValueError,
        r"^inputs has tensors with 3 and 2 examples in dimension 0, expected the same number in al",
        run,
        name,
        (X, X[:2]),
    )
    refused(ValueError, r"^inputs has a 0-d tensor, expected the examples in d", run, name, X[0, 0])
    refused(ValueError, r"^inputs has a 0-d tensor, expected the examples", run, name, (X, X[0, 0]))
    for empty in ((), {}, None, {"a": None}):
        refused(ValueError, r"^inputs holds no tensor, expected at least one", run, name, empty)


@pytest.mark.parametrize("name", CAMS)
def test_inputs_of_cams(name):
    cam = functools.partial(getattr(attrfn, name), layer="1", target=0)
    refused(TypeError, r"^inputs has a leaf of type int, expected tensors only", cam, MLP, (X, 3))
    refused(ValueError, r"^inputs has a 0-d tensor, expected the examples", cam, MLP, X[0, 0])


def test_attributions_that_do_not_fit():
    delta = attrfn.completeness_delta
    refused(ValueError, r"^attributions has 2 examples in dimension 0, expecte", delta, f, X, X[:2])
    refused(TypeError, r"^attributions has a leaf of type float, expected tens", delta, f, X, [1.0])
    refused(ValueError, r"^attributions holds no tensor, expected at least one", delta, f, X, ())
    refused(ValueError, r"^attributions has a 0-d tensor, expected the examp", delta, f, X, X.sum())
    refused(ValueError, r"^inputs has a 0-d tensor, expected the examples", delta, f, X.sum(), X)


def test_options_are_keywords():
    for name in ("gradient", "integrated_gradients"):
        with pytest.raises(TypeError, match="positional argument"):
            getattr(attrfn, name)(f, X, 0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        attrfn.integrated_gradients(f, X, steps=5)
    with pytest.raises(TypeError, match="positional argument"):
        attrfn.layer_conductance(MLP, X, "1")
    with pytest.raises(TypeError, match="positional argument"):
        attrfn.noise_tunnel(attrfn.gradient, "vargrad")


# --- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOVED)
def test_layers(name):
    for wrong in (1, None, nn.Linear):
        refused(TypeError, r"^layer is .+, expected a module of the model", run, name, layer=wrong)
    refused(ValueError, r"^layer '7' is not part of Sequential", run, name, layer="7")
    refused(ValueError, r"^at is 'out', expected 'input' or 'output'", run, name, at="out")
    refused(ValueError, r"^call is -1, expected None \(all calls\) or an int o", run, name, call=-1)
    refused(ValueError, r"^layer '1' was called 1 time\(s\), so call=1 does not", run, name, call=1)


def test_target_at_a_neuron():
    moved = attrfn.at_neuron(attrfn.gradient, "1", 0)
    message = r"^target is given to a method at a neuron, whose target is the neuron itself: leave"
    refused(TypeError, message, moved, MLP, X, target=0)


def test_neurons_of_several_layers():
    """A list of layers has no int neuron: a callable picks."""
    refused(
        TypeError,
        r"returned .*list.*, expected a tensor: give neuron as a callable",
        attrfn.neuron_gradient,
        MLP,
        X,
        layer=["0", "1"],
        neuron=0,
    )
    got = attrfn.neuron_gradient(MLP, X, layer=["0", "1"], neuron=lambda v: v[1][:, 2])
    torch.testing.assert_close(got, attrfn.neuron_gradient(MLP, X, layer="1", neuron=2))


@pytest.mark.parametrize("name", [*CAMS, "eigen_cam"])
def test_cams(name):
    cam = functools.partial(getattr(attrfn, name), zoo.cnn(), IMAGES, layer="4")
    if name in CAMS:
        cam = functools.partial(cam, target=0)
    for mode in ("nearest", "bilinear", "bicubic", "nearest-exact", "area"):
        assert cam(upsample=mode).shape == (2, 1, 8, 8)
    refused(ValueError, r"^upsample is 'cubic', expected ", cam, upsample="cubic")
    refused(ValueError, r"^upsample is 'linear', expected ", cam, upsample="linear")
    refused(TypeError, r"^layer '4' gives a tuple, expected one ten", cam, reshape=lambda a: (a, a))
    refused(ValueError, r"^layer '4' gives shape \(32,\), expected \(B", cam, reshape=torch.flatten)


def test_cams_at_odd_layers():
    cam = functools.partial(attrfn.grad_cam, target=0)
    parts = zoo.structured("tuple")
    two = functools.partial(attrfn.ablation_cam, target=0)
    refused(TypeError, r"^layer 'parts' gives a tuple, expected one ", two, parts, X, layer="parts")
    message = r"^upsample is 'nearest', but no input has the 0 spatial dimension\(s\) of the map"
    refused(ValueError, message, cam, MLP, X, layer="1", upsample="nearest")
    assert cam(MLP, X, layer="1").shape == (3, 1)


# --- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PATHS, *SHAPS])
@pytest.mark.parametrize("installed", [True, False])
def test_progress(name, installed, capfd, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    count = "n_steps" if name in PATHS else "n_samples"
    options = {count: 6, "chunk_size": 2}
    quiet = run(name, **options)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    loud = run(name, progress=True, **options)
    out, err = capfd.readouterr()
    assert out == ""
    label = name.removeprefix("layer_").removeprefix("neuron_")
    assert label in err
    assert "6/6" in err
    assert ("%" in err) == installed
    torch.testing.assert_close(loud, quiet, rtol=0, atol=0)


@pytest.mark.parametrize("installed", [True, False])
def test_progress_of_the_noise_tunnel(installed, capfd, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    attrfn.noise_tunnel(attrfn.gradient, n_samples=5)(f, X)
    assert capfd.readouterr() == ("", "")
    attrfn.noise_tunnel(attrfn.gradient, n_samples=5, chunk_size=1, progress=True)(f, X)
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise_tunnel" in err
    assert "5/5" in err


def test_progress_without_tqdm_asks_once_for_it(capfd, monkeypatch):
    """The plain line counts the copies that are done, with rate and remaining time."""
    asked = []
    plain_import = builtins.__import__

    def no_tqdm(name: str, *args, **kwargs):
        if name.startswith("tqdm"):
            asked.append(name)
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_tqdm)
    attrfn.integrated_gradients(f, X, n_steps=3, chunk_size=1, progress=True)
    monkeypatch.undo()
    _, err = capfd.readouterr()
    assert len(asked) == 1
    parts = err.replace("\r\n", "\n").split("\r")
    assert parts[0] == ""
    for i, part in enumerate(parts[1:]):
        left = rf", [0-9.]+/s, [0-9]+ s left{chr(10) if i == 3 else ''}" if i else ""
        assert re.fullmatch(rf"integrated_gradients: {i}/3 copies{left}", part)
    assert len(parts) == 5


# --- warnings ------------------------------------------------------------------------------------

CONSTANTS = {
    "detached": lambda x: f(x.detach()),
    "argmax": lambda x: x.argmax(1).double(),
    "step": lambda x: (x > 0).double().sum(1),
    "no_grad": torch.no_grad()(f),
    "ones": lambda x: torch.ones(len(x), dtype=x.dtype),
    "its_own_graph": lambda x: f(x.detach().requires_grad_()),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant_models_warn(name):
    model = CONSTANTS[name]
    for method in (
        attrfn.gradient,
        attrfn.saliency,
        functools.partial(attrfn.integrated_gradients, n_steps=3),
        functools.partial(attrfn.gradient_shap, baselines=POOL),
    ):
        with pytest.warns(UserWarning, match=r"^the explained output does not depend on what is e"):
            got = method(model, X)
        assert torch.equal(got, torch.zeros_like(X))


def test_constant_targets_warn():
    for call in (
        lambda: attrfn.gradient(MLP, X, target=lambda o: o.argmax(1).double()),
        lambda: attrfn.layer_gradient_x_activation(
            MLP, X, layer="1", target=lambda o: o[:, 0].detach()
        ),
        lambda: attrfn.neuron_gradient(MLP, X, layer="1", neuron=lambda a: a[:, 0].detach()),
    ):
        with pytest.warns(UserWarning, match=r"^the explained output does not depend on what is e"):
            got = call()
        assert not got.any()


def test_one_constant_input_of_two_does_not_warn():
    """Nothing is wrong with an input that the model does not use: its attribution is zero."""
    a, b = attrfn.integrated_gradients(lambda x, y: f(x), (X, X), n_steps=3)
    assert a.any()
    assert not b.any()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.AlphaDropout(0.1),
        nn.RReLU(),
        nn.LSTM(6, 6, num_layers=2, dropout=0.5),
        nn.MultiheadAttention(6, 2, dropout=0.5),
    ],
    ids=lambda m: type(m).__name__,
)
def test_training_mode_warns(layer):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.layer, self.out = nn.Linear(4, 6), layer, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inp(x)
            h = (
                self.layer(h, h, h)[0]
                if isinstance(layer, nn.MultiheadAttention)
                else self.layer(h)
            )
            return self.out(h[0] if isinstance(h, tuple) else h)

    model = zoo.make(Net).train()
    kind = type(layer).__name__
    message = r"^the model draws random numbers.*call model\.eval"
    if kind == "BatchNorm1d":
        message = (
            rf"^the model is in training mode and holds {kind}, so its rows .*call model\.eval"
        )
    state = torch.get_rng_state()
    for call in (
        lambda: attrfn.gradient(model, X, target=0),
        lambda: attrfn.integrated_gradients(model, X, target=0, n_steps=2),
        lambda: attrfn.layer_gradient_x_activation(model, X, layer="inp", target=0),
        lambda: attrfn.split(model, "inp").tail(randn(3, 6), X),
    ):
        with pytest.warns(UserWarning, match=message):
            call()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    attrfn.gradient(model.eval(), X, target=0)


def test_training_mode_that_does_not_matter():
    """Deterministic layers, and dropout of nothing, are the same in training mode."""
    model = zoo.make(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Dropout(0.0), nn.Linear(6, 3))
    )
    expected = attrfn.gradient(model, X, target=0)
    torch.testing.assert_close(attrfn.gradient(model.train(), X, target=0), expected)
    lstm = zoo.make(zoo.Recurrent, nn.LSTM).train()
    attrfn.gradient(lstm, randn(3, 5, 4), target=0)
    dead = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double().train()
    dead[1].eval()
    attrfn.gradient(dead, X, target=0)


def test_warnings_point_at_the_call():
    """The line that a warning names is the user's, not one of the library."""
    for call in (
        lambda: attrfn.gradient(CONSTANTS["detached"], X),
        lambda: attrfn.integrated_gradients(CONSTANTS["detached"], X, n_steps=2),
        lambda: attrfn.gradient(zoo.cnn().train(), IMAGES, target=0),
        lambda: attrfn.layer_conductance(zoo.cnn().train(), IMAGES, layer="0", target=0, n_steps=2),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert caught
        assert {w.filename for w in caught} == {__file__}
