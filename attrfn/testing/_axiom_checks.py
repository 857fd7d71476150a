"""Checks of axioms, on models of which they can be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrfn import axioms
from attrfn.testing._draw import normal, seeded
from attrfn.testing._known import Treats
from attrfn.testing._models import OUTPUTS
from attrfn.testing._subject import Drawn, Subject
from attrfn.testing._trial import Failed

Axiom = Callable[[Subject, Drawn], None]


def _asked(
    s: Subject, d: Drawn, axiom: str, model: Any, x: Tensor, of_inputs: bool = True, **more: Any
) -> None:
    """Refuse a gap above rounding."""
    if s.of_layer and of_inputs:
        raise Failed(f"{axiom} is about elements of the inputs, and the method explains a layer")
    given = s.options(d, x)
    options = {k: given.pop(k) for k in ("target", "baselines") if k in given}
    if axiom == "conservation":
        options.pop("baselines", None)

    def method(f: Any, z: Any, **o: Any) -> Any:
        return s.method(f, z, **{**given, **o})

    for mark in ("baselines_are_distribution", "scores"):
        if hasattr(s.method, mark):
            setattr(method, mark, getattr(s.method, mark))
    if "pool" in s.needs:
        method.baselines_are_distribution = True  # type: ignore[attr-defined]
    with torch.no_grad():
        outputs = model(x)
        size = max(float(outputs.abs().max()), 1e-2)
    gap = getattr(axioms, axiom)(model, x, method, **options, **more)
    found = float(gap.abs().max())
    if not found <= s.tolerance * size:
        raise Failed(f"a gap of {found:.2g}, where outputs reach {size:.2g}")


def _outputs(s: Subject) -> int:
    return OUTPUTS if "target" in s.takes else 0


def completeness(s: Subject, d: Drawn) -> None:
    """Attributions sum to the change of the output."""
    _asked(s, d, "completeness", s.model(d), d.inputs(), False)


def batch_independence(s: Subject, d: Drawn) -> None:
    """An example is explained alike alone and among others."""
    _asked(s, d, "batch_independence", s.model(d), d.inputs(max(2, d.batch)), False)


def sensitivity(s: Subject, d: Drawn) -> None:
    """The only element that differs gets something."""
    _asked(s, d, "sensitivity", s.model(d), d.inputs(), tolerance=1e-12)


def linearity(s: Subject, d: Drawn) -> None:
    """A sum of models gets the sum of their attributions."""
    more: dict[str, Any] = {"other": s.model(d, shift=17), "weights": (2.0, -1.5)}
    _asked(s, d, "linearity", s.model(d), d.inputs(), **more)


def scale_invariance(s: Subject, d: Drawn) -> None:
    """The units of the inputs do not matter."""
    shift = 0.4 if "baselines" in s.takes and "pool" not in s.needs else None
    x = d.inputs()
    scale = 0.5 + normal(1, *x.shape[1:], seed=d.seed).abs()
    _asked(s, d, "scale_invariance", s.model(d), x, scale=scale, shift=shift)


class Homogeneous(nn.Module):
    """ReLU between linear layers without biases, on inputs of any shape."""

    def __init__(self, n: int, outputs: int) -> None:
        super().__init__()
        self.inp, self.mid = nn.Linear(n, 5, bias=False), nn.ReLU()
        self.out, self.outputs = nn.Linear(5, max(1, outputs), bias=False), outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, K) or (B,)."""
        y: Tensor = self.out(self.mid(self.inp(x.flatten(1))))
        return y if self.outputs else y[:, 0]


class Rewritten(nn.Module):
    """The function of :class:`Homogeneous`, written in other operations."""

    def __init__(self, twin: Homogeneous) -> None:
        super().__init__()
        self.twin, self.mid = twin, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, K) or (B,)."""
        h = torch.einsum("bi,oi->bo", x.flatten(1), self.twin.inp.weight)
        h = self.mid((h + h.abs()) / 2)
        y: Tensor = h @ (3 * self.twin.out.weight.T) - 2 * torch.matmul(h, self.twin.out.weight.T)
        return y if self.twin.outputs else y[:, 0]


def _homogeneous(s: Subject, d: Drawn) -> Homogeneous:
    n = torch.Size(d.kind.shape).numel()
    model: Homogeneous = seeded(lambda: Homogeneous(n, _outputs(s)), d.seed)
    return model


def conservation(s: Subject, d: Drawn) -> None:
    """Attributions sum to the output, of a network of ReLU without biases."""
    _asked(s, d, "conservation", _homogeneous(s, d), d.inputs(), False)


def implementation_invariance(s: Subject, d: Drawn) -> None:
    """Equal functions get equal attributions."""
    model = _homogeneous(s, d)
    _asked(s, d, "implementation_invariance", model, d.inputs(), False, other=Rewritten(model))


def symmetry(s: Subject, d: Drawn) -> None:
    """Elements that the model treats alike exchange attributions with their values."""
    x = d.inputs()
    n = x[0].numel()
    model = Treats(n, alike=(0, n - 1), seed=d.seed, outputs=_outputs(s)).double()
    _asked(s, d, "symmetry", model, x, pair=(0, n - 1))


def dummy(s: Subject, d: Drawn) -> None:
    """Elements that the model does not read get nothing."""
    x = d.inputs()
    n = x[0].numel()
    unread = (torch.arange(n) % 3 == 1).reshape(1, *x.shape[1:])
    places = tuple(unread.flatten().nonzero().flatten().tolist())
    model = Treats(n, unread=places, seed=d.seed, outputs=_outputs(s)).double()
    _asked(s, d, "dummy", model, x, features=unread)


AXIOMS: dict[str, Axiom] = {
    f.__name__: f
    for f in (
        *(completeness, conservation, dummy, symmetry, linearity, implementation_invariance),
        *(scale_invariance, sensitivity, batch_independence),
    )
}
"""The axioms that can be asked of a method, by name."""

SMOOTH = {"completeness", "sensitivity", "scale_invariance"}
"""Those that quadrature meets on smooth models only."""
