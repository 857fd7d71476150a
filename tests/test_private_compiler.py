"""Private names of torch's compiler: each exists and means what the library relies on."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

import attrfn
from attrfn._torch import private, private_compiler

COMPILING: dict[str, Callable[[], None]] = {}  # of the compiler, which attrfn uses since 2.12


def shows(*names: str):
    """The function checks these names."""

    def put(function: Callable[[], None]) -> Callable[[], None]:
        COMPILING.update(dict.fromkeys(names, function))
        return function

    return put


@shows("is_compiling")
def is_off_in_eager_mode() -> None:
    assert not private_compiler.is_compiling()


@shows("unreadable")
def is_on_in_make_fx() -> None:
    found = []
    assert not private_compiler.unreadable()
    make_fx(lambda x: (found.append(private_compiler.unreadable()), x + 1)[1])(torch.ones(2))
    assert found == [True]
    assert not private_compiler.unreadable()


@shows("without_modes")
def makes_values_real() -> None:
    found = []

    def f(x: Tensor) -> Tensor:
        with private_compiler.without_modes():
            found.append(torch.arange(3).tolist())
        return x + 1

    graph = make_fx(f, tracing_mode="fake")(torch.ones(2))
    assert found[-1] == [0, 1, 2]
    assert "arange" not in graph.code


@shows("changing_size")
def lets_one_graph_serve_for_all_sizes() -> None:
    counter = CompileCounter()
    double = torch.compile(lambda x: 2 * x, backend=counter, fullgraph=True)
    for size in (2, 3, 4):
        x = torch.ones(size)
        private_compiler.changing_size(x, 0)
        double(x)
    assert counter.frame_count == 1


@shows("compilations")
def times_each_compilation() -> None:
    triple = torch.compile(lambda x: 3 * x, backend="eager", fullgraph=True)
    with private_compiler.compilations() as seconds:
        triple(torch.ones(2))
        triple(torch.ones(2))
    assert len(seconds) == 1
    assert seconds[0] > 0
    triple(torch.ones(2, dtype=torch.float64))
    assert len(seconds) == 1


@shows("COMPILER")
def is_not_imported_by_attrfn() -> None:
    code = "import sys, attrfn; print([m in sys.modules for m in sys.argv[1:]])"
    names = [private_compiler.COMPILER, "torch._inductor"]
    ran = subprocess.run([sys.executable, "-c", code, *names], stdout=subprocess.PIPE, text=True)
    assert ran.stdout.strip() == "[False, False]"


@shows("is_compiling", "MARK_OF_CONSTANT", "allow_in_graph")
def are_known_to_the_compiler() -> None:
    calls = []

    def constant() -> int:
        calls.append(1)
        return len(calls)

    setattr(constant, private_compiler.MARK_OF_CONSTANT, True)

    def whole(x: Tensor) -> Tensor:
        return x * 2

    private_compiler.allow_in_graph(whole)
    seen = []

    def backend(graph, example):
        seen.extend([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    def f(x: Tensor) -> Tensor:
        return whole(x) + constant() if private_compiler.is_compiling() else x

    g = torch.compile(f, backend=backend, fullgraph=True)
    assert torch.equal(g(torch.ones(2)), torch.full((2,), 3.0))
    assert torch.equal(g(torch.ones(2)), torch.full((2,), 3.0))
    assert whole in seen


@shows("own_code", "guard_failures", "limit_errors", "recompile_limit")
def count_by_code_object() -> None:
    def make() -> Callable[[Tensor, int], Tensor]:
        return private_compiler.own_code(lambda x, flag: x + len(flag))

    first, second = make(), make()
    assert first.__code__ is not second.__code__
    name, limit = private_compiler.recompile_limit()
    assert operator.attrgetter(name.removeprefix("torch."))(torch) == limit
    compiled = torch.compile(first, backend="eager", fullgraph=True)
    for i in range(limit):
        compiled(torch.ones(2), "a" * i)
    with pytest.raises(private_compiler.limit_errors()):
        compiled(torch.ones(2), "a" * limit)
    assert "flag" in private_compiler.guard_failures(first.__code__)[-1]
    assert private_compiler.guard_failures(second.__code__) == []
    torch.compile(second, backend="eager", fullgraph=True)(torch.ones(2), "a")


@shows("compiler_error", "RAISED")
def tell_what_stopped_the_compiler() -> None:
    def stops(x: Tensor) -> Tensor:
        raise ValueError("of the user")

    with pytest.raises(private_compiler.compiler_error()) as raised:
        torch.compile(stops, backend="eager", fullgraph=True)(torch.ones(2))
    assert f"{private_compiler.RAISED}ValueError" in str(raised.value)


@shows("uncompiled", "COMPILED_CALL", "COMPILED_MODULE")
def hold_what_was_compiled() -> None:
    def f(x: Tensor) -> Tensor:
        return x

    assert private_compiler.uncompiled(f) is f
    assert private_compiler.uncompiled(torch.compile(f, backend="eager")) is f
    linear = nn.Linear(2, 2)
    outer = torch.compile(linear, backend="eager")
    assert private.slots(outer, private.MODULES) == {private.COMPILED_MODULE: linear}
    linear.compile(backend="eager")
    assert vars(linear)[private.COMPILED_CALL] is not None


@shows("is_package", "load_package")
def know_packages_of_aotinductor() -> None:
    from torch.export.pt2_archive._package import AOTICompiledModel

    assert private_compiler.is_package(AOTICompiledModel(None))
    assert not private_compiler.is_package(nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        private_compiler.load_package(Path("missing.pt2"))


@shows("mode_options")
def are_what_a_mode_stands_for() -> None:
    assert private_compiler.mode_options("reduce-overhead", None) == {"triton.cudagraphs": True}
    with pytest.raises(RuntimeError, match="Unrecognized mode"):
        private_compiler.mode_options("none", None)


@shows("GUARDS_OF_IDENTITY", "GUARDED_BUILTINS", "guarded_package")
def are_in_the_names_of_guards() -> None:
    guards: list[tuple[str, str]] = []

    def watch(found):
        guards.extend([(g.guard_type, g.name) for g in found])
        return [True] * len(found)

    model = nn.Sequential(nn.Linear(2, 2))
    torch.compile(
        lambda x: attrfn.gradient(model, x, target=0),
        backend="eager",
        fullgraph=True,
        options={"guard_filter_fn": watch},
    )(torch.ones(1, 2))
    names = [name for _, name in guards]
    assert private_compiler.GUARDS_OF_IDENTITY & {kind for kind, _ in guards}
    starts = (private_compiler.guarded_package("attrfn"), private_compiler.GUARDED_BUILTINS)
    assert all(any(name.startswith(start) for name in names) for start in starts)


@pytest.mark.parametrize("name", COMPILING)
def test_name_of_the_compiler(name: str, fresh_compiler: None) -> None:
    COMPILING[name]()
