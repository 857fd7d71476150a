"""Rules by the names of the modules that run."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn

from attrfn._core.bind import bind_source, uncompiled
from attrfn._core.source import plain, source
from attrfn._core.typing import ModelFn
from attrfn._rules.formulas import LinearRule
from attrfn._rules.table import Rules


def scoped(model_fn: ModelFn, rules: Rules, scope: list[LinearRule], *, frozen: bool) -> ModelFn:
    """The model function, which says what rule its running modules have by name."""
    model_fn = uncompiled(model_fn)
    if rules.linear is None or not rules.linear.names:
        return model_fn
    src = source(model_fn)
    if src is None:
        raise ValueError(
            "rules name modules, but the model function has no module in sight: give a "
            "torch.nn.Module or functools.partial of one (and no rules by name at layers)"
        )
    taken: dict[str, LinearRule] = {}
    for pattern, rule in rules.linear.names.items():
        names = [n for n, _ in src.module.named_modules() if fnmatch.fnmatch(plain(n), pattern)]
        if not names:
            raise ValueError(
                f"rules name the module {pattern!r}, but {type(src.module).__name__} has none of "
                "that name: see named_modules()"
            )
        taken.update(dict.fromkeys(names, rule))
    layers: list[nn.Module | str] = list(taken)
    return bind_source(src, layers, [_Tap(rule, scope) for rule in taken.values()], frozen=frozen)


class _Tap:
    """Puts a rule on top of the scope while its module runs."""

    def __init__(self, rule: LinearRule, scope: list[LinearRule]) -> None:
        self.rule = rule
        self.scope = scope

    def __call__(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.scope.append(self.rule)
        try:
            return forward(*args, **kwargs)
        finally:
            self.scope.pop()
