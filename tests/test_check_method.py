"""check_method catches planted faults, and finds the smallest example of each."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import attrfn
from attrfn import testing

Checks = dict[str, Any]


def good(f: Any, x: Tensor, *, target: Any = None, baselines: Any = None) -> Tensor:
    """Exact Shapley values would be as good, and slower."""
    x0 = 0.0 if baselines is None else baselines
    return attrfn.input_x_gradient(f, x, target=target, baselines=x0)


def mixes_rows(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    a = attrfn.gradient(f, x, target=target)
    return a / a.abs().amax()


def moves_the_generator(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    torch.rand(1)
    return attrfn.gradient(f, x, target=target)


def draws_from_the_generator(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    return attrfn.gradient(f, x + 0.1 * torch.randn_like(x), target=target)


def ignores_the_key(f: Any, x: Tensor, *, target: Any = None, key: Any = 0) -> Tensor:
    noise = attrfn.random.normal(attrfn.random.key(7), x.shape[1:], dtype=x.dtype)
    return attrfn.gradient(f, x + noise, target=target)


def forgets_the_baseline(f: Any, x: Tensor, *, target: Any = None, baselines: Any = None) -> Tensor:
    return attrfn.integrated_gradients(f, x, target=target, n_steps=40)


def is_off_by_a_factor(f: Any, x: Tensor, *, target: Any = None, baselines: Any = None) -> Tensor:
    a = attrfn.integrated_gradients(f, x, target=target, baselines=baselines, n_steps=40)
    return 1.01 * a


def leaves_requires_grad(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    x.requires_grad_()
    return torch.autograd.grad(attrfn_total(f(x), target), x)[0]


def attrfn_total(out: Tensor, target: Any) -> Tensor:
    return out.sum() if target is None else out[:, target].sum()


def leaves_gradients_in_the_model(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    attrfn_total(f(leaf), target).backward()
    return leaf.grad


def breaks_under_vmap(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    a = attrfn.gradient(f, x, target=target)
    return a if float(a.sum()) > -1e9 else -a


def writes_into_the_input(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    a = attrfn.gradient(f, x, target=target)
    with torch.no_grad():
        x.mul_(2).div_(2)  # the same again, and not for a graph that holds x
    return a


def changes_the_dtype(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    return attrfn.gradient(f, x, target=target).double()


def depends_on_chunk_size(
    f: Any, x: Tensor, *, target: Any = None, chunk_size: int | None = None
) -> Tensor:
    return attrfn.gradient(f, x, target=target) / (1 if chunk_size is None else chunk_size)


def is_not_differentiable(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    return attrfn.gradient(f, x, target=target).detach()


def is_sign_of_gradient(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    """Right in itself, and flat: its derivative in x is missing a factor."""
    a = attrfn.gradient(f, x, target=target)
    return a * a.detach()


def ignores_the_target(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    return attrfn.gradient(f, x, target=0)


def takes_one_target_for_all(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    one = target if isinstance(target, int) else int(target[0])
    return attrfn.gradient(f, x, target=one)


def leaves_a_hook(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    if isinstance(f, torch.nn.Module):
        f.register_forward_hook(lambda *_: None)
    return attrfn.gradient(f, x, target=target)


def patches_while_it_runs(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    if not isinstance(f, torch.nn.Module):
        return attrfn.gradient(f, x, target=target)
    f.noise = 1.0
    a = attrfn.gradient(f, x, target=target)
    del f.noise  # not if the model raised
    return a


_shared = threading.local()
_shared_everywhere: dict[str, Any] = {}


def shares_state_between_threads(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    _shared_everywhere["x"] = x
    time.sleep(0.002)
    return attrfn.gradient(f, _shared_everywhere["x"], target=target)


def takes_tensors_only(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    return attrfn.gradient(f, x, target=target) + 0 * torch.as_tensor(x)


def hands_out_the_input(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    return x.detach()


def breaks_without_grad_mode(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    a = attrfn.gradient(f, x, target=target)
    return a if torch.is_grad_enabled() else 0 * a


def swallows_exceptions(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    try:
        return attrfn.gradient(f, x, target=target)
    except Exception:
        return 0 * x


def reads_the_dummy(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
    return attrfn.gradient(f, x, target=target) + 0.01


FAULTS: list[tuple[Callable[..., Any], str, str, Checks]] = [
    (mixes_rows, "row_alone", "row 0 alone: off by", {}),
    (moves_the_generator, "purity", "the state of torch's random numbers changed", {}),
    (draws_from_the_generator, "result", "a second call, after torch.manual_seed", {}),
    (ignores_the_key, "keys", "six other keys: the result is the same", {}),
    (forgets_the_baseline, "baselines", "other baselines: the result is the same", {}),
    (forgets_the_baseline, "completeness", "a gap of", {"axioms": "completeness"}),
    (is_off_by_a_factor, "completeness", "a gap of", {"axioms": "completeness"}),
    (leaves_requires_grad, "purity", "requires_grad of an input or option changed", {}),
    (leaves_gradients_in_the_model, "purity", "(gradient) changed", {}),
    (breaks_under_vmap, "vmap", "RuntimeError: vmap: It looks like you", {}),
    (writes_into_the_input, "purity", "value, though it is the same again,", {}),
    (changes_the_dtype, "dtypes", "float32: the result is (1, 4) of torch.float64", {}),
    (depends_on_chunk_size, "chunks", "chunk_size=2: off by", {}),
    (is_not_differentiable, "grad", "torch.func.grad of the attributions: off by", {}),
    (is_not_differentiable, "jvp", "torch.func.jvp of the attributions: off by", {}),
    (is_sign_of_gradient, "parameters", "torch.func.grad in the parameters: off by", {}),
    (ignores_the_target, "targets", "another target: the result is the same", {}),
    (takes_one_target_for_all, "targets", "a target for each example: off by", {}),
    (leaves_a_hook, "purity", "forward_hooks of the whole changed", {}),
    (patches_while_it_runs, "exceptions", "the model has a new attribute noise", {}),
    (shares_state_between_threads, "threads", "8 threads at once: off by", {}),
    (takes_tensors_only, "pytrees", "Error", {}),
    (hands_out_the_input, "purity", "value of an input or option changed", {}),
    (breaks_without_grad_mode, "no_grad", "under torch.no_grad: off by", {}),
    (swallows_exceptions, "exceptions", "an exception of the model does not arrive", {}),
    (reads_the_dummy, "dummy", "a gap of 0.01", {"axioms": ["dummy"]}),
    (reads_the_dummy, "linearity", "a gap of", {"axioms": ["linearity"]}),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f[0].__name__}-{f[1]}")
def test_faults_are_caught(fault: Any) -> None:
    method, check, message, options = fault
    only = {"checks": [] if "axioms" in options else [check], **options}
    with pytest.raises(testing.MethodFailedError) as caught:
        testing.check_method(method, **only)
    (failure,) = caught.value.failures
    assert failure.check == check
    assert message in failure.message
    assert str(caught.value).startswith(f"{method.__name__} fails 1 of 1 checks\n{check}: ")


def test_what_has_no_fault_passes() -> None:
    """So the tests above do not fail for another reason."""
    testing.check_method(good, axioms=("linearity", "dummy", "symmetry"), max_examples=4)


def plain_torch(f: Any, x: Any, *, target: Any = None) -> Any:
    """A method without attrfn."""

    def score(z: Any) -> Tensor:
        out = f(z)
        index = torch.as_tensor(target).expand(out.shape[0])
        return out.gather(1, index[:, None]).sum()

    return torch.func.grad(score)(x)


class NoTarget:
    """An object as a method, for models of one number; by a loop over examples."""

    def __call__(self, f: Any, x: Tensor) -> Tensor:
        rows = [attrfn.gradient(f, row) for row in x.split(1)]
        return torch.cat(rows)


def test_methods_in_other_forms_pass() -> None:
    axioms = ("linearity", "dummy", "symmetry", "implementation_invariance")
    testing.check_method(plain_torch, axioms=axioms, max_examples=5)
    testing.check_method(NoTarget(), skip=["pytrees"], axioms=axioms, max_examples=3)
    tunnel = attrfn.noise_tunnel(attrfn.gradient, n_samples=2, stdevs=0.1, key=1)
    testing.check_method(tunnel, checks=["result", "row_alone", "purity"], axioms="linearity")
    layer = attrfn.at_layer(attrfn.saliency, "mid")
    for method in (layer, attrfn.at_neuron(attrfn.saliency, "mid", lambda a: a.flatten(1).sum(1))):
        needs = "layer" if method is layer else ("layer", "neuron")
        testing.check_method(method, needs=needs, skip=["threads"], max_examples=2)
    bound = functools.partial(attrfn.layer_gradient_x_activation, layer="mid")
    testing.check_method(bound, needs="layer", checks=["result", "pytrees", "purity"])
    testing.check_method(
        functools.partial(attrfn.lrp, rules=attrfn.rules.epsilon(1e-9)),
        checks=[],
        axioms=["conservation", "batch_independence"],
        max_examples=3,
    )


def test_the_smallest_example_is_reported() -> None:
    """A fault that shows on attention alone, for wide models of three examples."""

    def faulty(f: Any, x: Tensor, *, target: Any = None) -> Tensor:
        a = attrfn.gradient(f, x, target=target)
        wide = getattr(f, "kind", "") == "attention" and f.width > 1 and x.shape[0] > 1
        return a[:0] if wide else a

    with pytest.raises(testing.MethodFailedError) as caught:
        testing.check_method(faulty, checks=["result"], max_examples=100)
    testing.check_method(faulty, checks=["result"], kinds=["mlp", "cnn"], max_examples=20)
    (failure,) = caught.value.failures
    assert failure.message == "the result is (0, 3, 2), expected 2 rows in dimension 0"
    assert failure.example == "attention(width=2, seed=0) on inputs (2, 3, 2) of seed 0"


def test_every_failure_is_reported_at_once() -> None:
    with pytest.raises(testing.MethodFailedError, match="fails 2 of 3 checks") as caught:
        testing.check_method(
            lambda f, x, target=None: attrfn.gradient(f, x, target=0).detach() * x.mean(),
            checks=["row_alone", "targets", "no_grad"],
        )
    assert [f.check for f in caught.value.failures] == ["row_alone", "targets"]
    assert isinstance(caught.value.__cause__, AssertionError)


@testing.parametrize_with_checks(
    [attrfn.gradient, functools.partial(attrfn.occlusion, window=1)],
    axioms=["batch_independence"],
    skip=["threads", "jvp", "grad", "parameters", "exceptions"],
    max_examples=2,
)
def test_parametrize(check: Callable[[], None]) -> None:
    check()


def test_parametrize_names_its_tests() -> None:
    mark = testing.parametrize_with_checks(good, differentiable=False, axioms="dummy")
    ids = [case.id for case in mark.args[1]]
    assert "good-row_alone" in ids
    assert "good-dummy" in ids
    assert not {"good-grad", "good-chunks", "good-keys", "good-compile"} & set(ids)


def test_compile_is_checked_where_it_is_asked_for() -> None:
    testing.check_method(attrfn.gradient, checks=["compile"], compile=True)
    with pytest.raises(testing.MethodFailedError, match="compile: "):
        testing.check_method(breaks_under_vmap, checks=["compile"], compile=True)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="needs has 'layers', expected some of baselines"):
        testing.check_method(good, needs="layers")
    with pytest.raises(ValueError, match="axioms has 'complete', expected some of completeness"):
        testing.check_method(good, axioms=["complete"])
    with pytest.raises(ValueError, match="skip has 'speed', expected some of result"):
        testing.check_method(good, skip=["speed"])
    with pytest.raises(ValueError, match="kinds is 'rnn', expected some of mlp"):
        testing.check_method(good, kinds="rnn")
    with pytest.raises(ValueError, match="kinds has none with what the method needs"):
        testing.check_method(good, kinds="mlp", needs="images")
    with pytest.raises(TypeError, match="method is a Tensor, expected an attribution method"):
        testing.check_method(torch.ones(1))
    with pytest.raises(ValueError, match="kinds is 'rnn', expected some of mlp"):
        testing.models(["rnn"])


def test_without_hypothesis_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"pip install 'attrfn\[testing\]'"):
        testing.check_method(good)
    with pytest.raises(ImportError, match=r"pip install 'attrfn\[testing\]'"):
        testing.games(3)


@pytest.mark.parametrize("installed", [True, False])
def test_progress_counts_checks(
    installed: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    some = {"checks": ["result", "no_grad"], "max_examples": 1}
    testing.check_method(good, **some)
    assert capfd.readouterr().err == ""
    testing.check_method(good, **some, progress=True)
    shown = capfd.readouterr().err
    assert "good" in shown
    assert "2/2" in shown
    assert "check" in shown
    testing.check_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.ones(2, 2), progress=True)
    shown = capfd.readouterr().err
    assert "check_model" in shown
    assert "5/5" in shown
