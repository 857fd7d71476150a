"""LRP rules by the names of the modules that run."""

from __future__ import annotations

import fnmatch
import functools
from typing import Any

from attrfn._layers.tails import tail_of, with_tail
from attrfn._model.bind import bind_source
from attrfn._model.source import inside, source, unwrapped_name
from attrfn._model.uncompiled import uncompiled
from attrfn._rules.errors import UnsupportedOpError
from attrfn._rules.formulas import LinearRule
from attrfn._rules.modules import run_whole
from attrfn._rules.table import Rules
from attrfn._torch.compiling import constant_result, is_compiling
from attrfn._torch.private import ProjectionOfAttention
from attrfn._torch.typing import ModelFn


def scoped(model_fn: ModelFn, rules: Rules, scope: list[LinearRule], *, frozen: bool) -> ModelFn:
    """The model function, which puts the rules of its named modules on ``scope`` while they run."""
    # A mode sees functions and not modules. So an intervention around the forward of each named
    # module, on a private copy, pushes its rule and pops it; the innermost rule applies.
    model_fn = uncompiled(model_fn)
    if rules.linear is None or not (rules.linear.names or rules.linear.elementwise):
        return model_fn
    if rules.linear.elementwise and is_compiling():
        raise UnsupportedOpError(
            f"{rules.name} names modules as elementwise, which torch.compile hides from modes: "
            "call it outside of compiled code"
        )
    tail = tail_of(model_fn)
    src = source(model_fn) if tail is None else tail.source
    if src is None:
        raise ValueError(
            "rules name modules, but no module can be found in model_fn: give a torch.nn.Module or "
            "functools.partial of one"
        )
    modules = dict(inside(src.module).named_modules())
    matched, interventions = _interventions(rules.linear, modules, src.module, scope)
    around: tuple[Any, ...] = tuple(interventions.items())
    if tail is not None:  # what comes before the layer, or is replaced by its value, need not run
        return with_tail(model_fn, tail.around(around))
    hidden = [n for n in interventions if isinstance(modules[n], ProjectionOfAttention)]
    bound: Any = bind_source(src._replace(around=around), (), (), frozen=frozen)

    def run(*args: Any, **kwargs: Any) -> Any:
        for intervention in interventions.values():
            intervention.ran = False
        out = bound.func(*args, **kwargs)
        _refuse_unused(matched, interventions, hidden)
        return out

    return functools.partial(run, *bound.args, **bound.keywords)


def _interventions(
    linear: Any, modules: dict[str, Any], root: Any, scope: list[LinearRule]
) -> tuple[dict[str, tuple[str, ...]], dict[str, _Scope]]:
    """The names that each pattern is for, and by name what runs around the module."""
    matched: dict[str, tuple[str, ...]] = {}
    interventions: dict[str, _Scope] = {}
    for pattern, rule in _named(linear):
        names = _matching(pattern, tuple(modules))
        if not names:
            raise ValueError(
                f"rules name the module {pattern!r}, but {type(root).__name__} has none of "
                "that name: see named_modules()"
            )
        matched[pattern] = names
        interventions.update({name: _Scope(rule, scope) for name in names})
    return matched, interventions


def _named(linear: Any) -> list[tuple[str, LinearRule | None]]:
    """The patterns of names, each with its rule; None for one elementwise operation."""
    return [*linear.names.items(), *[(pattern, None) for pattern in linear.elementwise]]


@constant_result
def _matching(pattern: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a pattern with wildcards is for."""
    return tuple([name for name in names if fnmatch.fnmatch(unwrapped_name(name), pattern)])


class _Scope:
    """Puts a rule on top of the scope while its module runs; without one, runs it as a whole."""

    def __init__(self, rule: LinearRule | None, scope: list[LinearRule]) -> None:
        self.rule = rule
        self.scope = scope
        self.ran = False

    def __call__(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.ran = True
        if self.rule is None:
            return run_whole(forward, args, kwargs)
        self.scope.append(self.rule)
        try:
            return forward(*args, **kwargs)
        finally:
            self.scope.pop()


def _refuse_unused(
    matched: dict[str, tuple[str, ...]], interventions: dict[str, _Scope], hidden: list[str]
) -> None:
    """Raise for a rule by name without effect, because the forward of its module did not run."""
    # If some modules of a pattern ran, the others may not contribute to this output. The exception
    # are the modules in `hidden`: nn.MultiheadAttention uses their weights and never calls them.
    for names in matched.values():
        some = any(interventions[name].ran for name in names)
        for name in hidden if some else names:
            if name in names and not _holds(name, interventions):
                raise ValueError(
                    f"rules name the module {unwrapped_name(name)!r}, whose forward does not run "
                    "(as in exported models, or where another module uses its parameters): name a "
                    "module around it that runs, or leave it out"
                )


def _holds(name: str, interventions: dict[str, _Scope]) -> bool:
    """Whether the rule of a module applied, through itself or through a module around it."""
    around = [n for n in interventions if n in ("", name) or name.startswith(f"{n}.")]
    return any(
        interventions[n].ran and interventions[n].rule is interventions[name].rule for n in around
    )
