"""Checks over random models, each failure with the smallest example that shows it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from attrfn._copies.progress import steps
from attrfn._torch.typing import Method
from attrfn.testing import _slopes, _state, _values
from attrfn.testing._axiom_checks import AXIOMS, SMOOTH
from attrfn.testing._draw import hypothesis
from attrfn.testing._subject import Drawn, Subject, subject_of
from attrfn.testing._trial import Failed, Trial

Check = Callable[[Subject, Drawn], None]

CHECKS: dict[str, Callable[[Trial], None]] = {
    f.__name__: f
    for f in (
        *(_values.result, _values.row_alone, _values.vmap, _slopes.jvp, _slopes.grad),
        *(_slopes.parameters, _values.compile, _values.pytrees, _values.dtypes, _values.chunks),
        *(_state.purity, _state.exceptions, _state.threads),
        *(_values.keys, _values.baselines, _values.targets, _values.no_grad),
    )
}
DERIVATIVES = ("jvp", "grad", "parameters")
DIFFER = ("keys", "baselines", "targets")  # two results must not be the same
SLOW = ("compile", "threads")  # once each


class Failure(NamedTuple):
    """A check that a method does not pass.

    Attributes:
        check: The name of the check.
        message: What was wrong.
        example: The smallest model and inputs that hypothesis found.
        error: The exception.
    """

    check: str
    message: str
    example: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.check}: {self.message}\n    for {self.example}"


class MethodFailedError(AssertionError):
    """A method that does not pass all checks.

    Attributes:
        failures: What it does not pass.
    """

    def __init__(self, method: str, failures: Sequence[Failure], count: int) -> None:
        self.failures = tuple(failures)
        lines = "\n".join([str(f) for f in failures])
        super().__init__(f"{method} fails {len(failures)} of {count} checks\n{lines}")


def check_method(
    method: Method,
    *,
    needs: str | Collection[str] = (),
    kinds: str | Collection[str] | None = None,
    differentiable: bool = True,
    axioms: str | Collection[str] = (),
    checks: Collection[str] | None = None,
    skip: Collection[str] = (),
    compile: bool = False,
    tolerance: float = 1e-6,
    max_examples: int = 8,
    progress: bool = False,
) -> None:
    """Check an attribution method over random models.

    A method is called as ``method(model_fn, inputs, *, target, **options)``. Its signature tells
    which of the options ``target``, ``baselines``, ``key``, ``chunk_size`` and ``create_graph`` it
    has; what it has is checked. Bind other options with ``functools.partial``.

    The checks are ``result`` (shape, finite, repeatable), ``row_alone``, ``vmap``, ``jvp``,
    ``grad``, ``parameters`` (derivatives against finite differences), ``compile``, ``pytrees``,
    ``dtypes``, ``chunks``, ``purity``, ``exceptions``, ``threads``, ``keys``, ``baselines``,
    ``targets``, ``no_grad``, and those of the axioms.

    Args:
        method: The method.
        needs: What it needs: ``"layer"`` (attributions are those of the layer ``"mid"``, which
            it gets as ``layer="mid"`` unless that is bound),
            ``"neuron"`` (with a layer, and no target unless that is needed, too), ``"images"``
            (inputs (B, C, H, W)), ``"relu"`` (a model with a ReLU), ``"pool"`` (baselines are
            draws (K, ...)); or ``"baselines"``, ``"target"``, ``"key"`` if the signature does not
            show that it takes them.
        kinds: The names of the kinds of models that it is for, as those of
            :func:`attrfn.testing.models`; ``None`` for all.
        differentiable: Whether attributions have a derivative, which is then checked.
        axioms: The names of axioms that it should satisfy, of :mod:`attrfn.axioms`.
        checks: The names of the checks that run; ``None`` for all that apply.
        skip: The names of those that do not.
        compile: Whether to try ``torch.compile``, which takes seconds.
        tolerance: What counts as equal, relative to the largest value.
        max_examples: How many models each check tries.
        progress: Show a progress bar over the checks.

    Raises:
        MethodFailedError: With each failed check and the smallest example that shows it.
        ImportError: hypothesis is not installed.

    Example:
        >>> import attrfn, attrfn.testing
        >>> def gradient_times_two(model_fn, inputs, *, target=None):
        ...     return 2 * attrfn.gradient(model_fn, inputs, target=target)
        >>> attrfn.testing.check_method(gradient_times_two, checks=["row_alone", "purity"])
        >>> attrfn.testing.check_method(gradient_times_two, checks=[], axioms="completeness")
        Traceback (most recent call last):
        ...
        attrfn.testing._run.MethodFailedError: gradient_times_two fails 1 of 1 checks
        completeness: a gap of ...
    """
    s = subject_of(method, needs, differentiable, axioms, tolerance, kinds)
    chosen = _chosen(s, checks, skip, compile)
    failures = []
    with steps(len(chosen), name_of(method), progress, ("check", "checks")) as advance:
        for name, check in chosen.items():
            if failure := _failure(s, name, check, max_examples):
                failures.append(failure)
            advance(1)
    if failures:
        error = MethodFailedError(name_of(method), failures, len(chosen))
        raise error from failures[0].error


def parametrize_with_checks(methods: Method | Sequence[Method], **options: Any) -> Any:
    """One pytest test for each check of each method.

    Args:
        methods: A method, or a list of those.
        **options: Those of :func:`attrfn.testing.check_method`.

    Returns:
        A decorator for a test with the argument ``check``, which calls it.

    Example:
        >>> import attrfn, attrfn.testing
        >>> @attrfn.testing.parametrize_with_checks(attrfn.gradient, axioms="linearity")
        ... def test_my_method(check):
        ...     check()
    """
    import pytest

    given = dict(options)
    about = {k: given.pop(k) for k in ("checks", "skip", "compile") if k in given}
    cases = []
    every: Sequence[Method] = [methods] if callable(methods) else methods
    for method in every:
        s = subject_of(
            method,
            given.get("needs", ()),
            given.get("differentiable", True),
            given.get("axioms", ()),
            given.get("tolerance", 1e-6),
            given.get("kinds"),
        )
        for name in _chosen(s, about.get("checks"), about.get("skip", ()), about.get("compile")):
            only = {**given, "axioms": [name] if name in AXIOMS else []}
            kept = [name] if name in CHECKS else []
            run = functools.partial(
                check_method, method, checks=kept, compile=name == "compile", **only
            )
            cases.append(pytest.param(run, id=f"{name_of(method)}-{name}"))
    return pytest.mark.parametrize("check", cases)


def name_of(method: Method) -> str:
    """The name of a method in messages."""
    while isinstance(method, functools.partial):
        method = method.func
    return str(getattr(method, "__name__", type(method).__name__))


def _chosen(
    s: Subject, checks: Collection[str] | None, skip: Collection[str], compile: bool | None
) -> Mapping[str, Check]:
    """The checks that apply to a method, by name."""
    for option, names in (("checks", checks or ()), ("skip", skip)):
        if unknown := sorted(set(names) - {*CHECKS, *AXIOMS}):
            raise ValueError(f"{option} has {unknown[0]!r}, expected some of {', '.join(CHECKS)}")
    if unknown := sorted(set(s.axioms) - AXIOMS.keys()):
        raise ValueError(f"axioms has {unknown[0]!r}, expected some of {', '.join(AXIOMS)}")
    absent = {
        **dict.fromkeys(DERIVATIVES, not s.differentiable),
        "parameters": not s.differentiable,
        "compile": not compile,
        "chunks": "chunk_size" not in s.takes,
        "keys": "key" not in s.takes,
        "baselines": "baselines" not in s.takes,
        "targets": "target" not in s.takes,
    }
    wanted = [k for k in CHECKS if (checks is None or k in checks) and not absent.get(k)]
    chosen: dict[str, Check] = {k: functools.partial(_on_trial, CHECKS[k]) for k in wanted}
    chosen |= {k: AXIOMS[k] for k in s.axioms}
    return {k: check for k, check in chosen.items() if k not in skip}


def _on_trial(check: Callable[[Trial], None], s: Subject, d: Drawn) -> None:
    check(s.trial(d))


def _failure(s: Subject, name: str, check: Check, max_examples: int) -> Failure | None:
    """Run a check on random models; the smallest one on which it fails."""
    h = hypothesis()
    last: list[Drawn] = []

    def once(drawn: Drawn) -> None:
        last[:] = [drawn]
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(drawn.seed)
            check(s, drawn)

    run = h.given(_drawn(s, name))(once)
    settings = h.settings(
        max_examples=1 if name in SLOW else max_examples,
        database=None,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        verbosity=h.Verbosity.quiet,
        phases=(h.Phase.generate, h.Phase.shrink),
        suppress_health_check=list(h.HealthCheck),
    )
    try:
        settings(run)()
    except Exception as error:
        said = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        return Failure(name, said.split("\n")[0], str(last[0]), error)
    return None


def _drawn(s: Subject, name: str) -> Any:
    """What a check is tried on: derivatives and quadrature need smooth models."""
    st = hypothesis().strategies
    kinds = s.kinds
    if name in (*DERIVATIVES, *SMOOTH, *DIFFER):
        # Of models with a ReLU, one has smooth operations around it: its derivatives say more.
        smooth = [kind for kind in kinds if kind.smooth]
        kinds = smooth or [kind for kind in kinds if kind.kind == "rectified cnn"] or kinds
    if name in DIFFER and s.of_layer:  # after this layer the model is linear
        kinds = [kind for kind in kinds if kind.kind != "mlp"] or kinds
    width = 2 if name in DIFFER else 1  # a map of one channel has no other weights
    least = 2 if name in ("row_alone", "vmap") else 1
    return st.builds(
        Drawn,
        st.sampled_from(kinds),
        st.integers(width, 3),
        st.integers(least, 3),
        st.integers(0, 15),
    )
