"""Rules for :func:`attrfn.with_rules`, :func:`attrfn.lrp` and :func:`attrfn.deep_lift`, as data.

Rules of linear operations: :func:`epsilon`, :func:`gamma`, :func:`alpha_beta`, :func:`z_plus`,
:func:`identity`, and :func:`z_box`, :func:`flat`, :func:`w_square` where the inputs are read.
:func:`composite` combines them. Ready-made composites: :func:`epsilon_plus`,
:func:`epsilon_alpha2_beta1`, :func:`epsilon_plus_flat`, :func:`epsilon_alpha2_beta1_flat`,
:func:`epsilon_gamma_box`, :func:`attn_lrp` and :func:`cp_lrp`. Rules without relevance:
:func:`rescale`, :func:`reveal_cancel`, :func:`guided`, :func:`deconv`.

Composites and rules without relevance are :class:`Rules`: ``rules | {torch.foo: function}``
adds an operation, ``rules.allow(torch.foo)`` takes its own derivative.

The rules of LRP share two options. ``epsilon`` is added to the size of a divisor, in its units, so
that it is never near zero: a larger one is more stable, and takes relevance away where the divisor
is small; 0 takes none away. ``low`` and ``high`` are bounds of the inputs, numbers or tensors that
broadcast to the input of the first operation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._methods.lrp import conservation as conservation
from attrfn._rules.conservation import Leak as Leak
from attrfn._rules.fold import fold_batch_norm as fold_batch_norm
from attrfn._rules.formulas import LinearRule as LinearRule
from attrfn._rules.formulas import alpha_beta as alpha_beta
from attrfn._rules.formulas import epsilon as epsilon
from attrfn._rules.formulas import flat as flat
from attrfn._rules.formulas import gamma as gamma
from attrfn._rules.formulas import identity as identity
from attrfn._rules.formulas import w_square as w_square
from attrfn._rules.formulas import z_box as z_box
from attrfn._rules.formulas import z_plus as z_plus
from attrfn._rules.relevance import composite as _composite
from attrfn._rules.relu import DECONV as _DECONV
from attrfn._rules.relu import GUIDED as _GUIDED
from attrfn._rules.rescale import RESCALE as _RESCALE
from attrfn._rules.reveal import REVEAL_CANCEL as _REVEAL_CANCEL
from attrfn._rules.table import Rules as Rules
from attrfn._torch.guard import guarded
from attrfn._torch.say import say
from attrfn._torch.typing import Baselines


@guarded
def composite(
    dense: LinearRule | None = None,
    conv: LinearRule | None = None,
    *,
    first: LinearRule | None = None,
    names: Mapping[str, LinearRule] | None = None,
    softmax: str = "derivative",
) -> Rules:
    """Rules of LRP by kind, place and module of a linear operation.

    Args:
        dense: The rule of matrix products; ``None`` is :func:`epsilon`.
        conv: The rule of convolutions; ``None`` is ``dense``.
        first: The rule where the inputs are read (after moves, shifts and scalings); None is the
            rule by kind.
        names: Rules by qualified names of modules with wildcards, ``{"features.*": gamma()}``; a
            later pattern wins over an earlier one, and an inner module over the one around it.
        softmax: ``"derivative"`` takes its own derivative (AttnLRP), ``"constant"`` takes its value
            as a constant (CP-LRP).

    Returns:
        Rules for :func:`attrfn.lrp`.

    Raises:
        TypeError: A rule is not a rule of linear operations.
        ValueError: :func:`z_box`, :func:`flat` or :func:`w_square` is given elsewhere than as
            ``first``, or ``softmax`` is unknown.

    Example:
        >>> import attrfn
        >>> rules = attrfn.rules.composite(
        ...     conv=attrfn.rules.gamma(), names={"head": attrfn.rules.epsilon(0.1)}
        ... )
    """
    dense = epsilon() if dense is None else dense
    conv = dense if conv is None else conv
    for place, rule in {"dense": dense, "conv": conv, **_named(names)}.items():
        _check(place, rule, first=False)
    if first is not None:
        _check("first", first, first=True)
    if not is_one_of(softmax, "derivative", "constant"):
        raise ValueError(f"softmax is {say(softmax)}, expected 'derivative' or 'constant'")
    return _composite("composite", conv, dense, first, names, softmax == "constant")


def _named(names: Mapping[str, LinearRule] | None) -> dict[str, LinearRule]:
    if names is None:
        return {}
    given: object = names
    if not isinstance(given, Mapping):
        raise TypeError(f"names is {say(given)}, expected a dict from names of modules to rules")
    return {f"names[{say(name)}]": rule for name, rule in names.items()}


@guarded
def epsilon_plus(epsilon: float = 1e-6) -> Rules:
    """LRP-z+ for convolutions, LRP-epsilon for matrix products.

    Args:
        epsilon: Added to the size of a divisor.

    Reference:
        Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019.
    """
    return _composite("epsilon_plus", z_plus(epsilon), _epsilon(epsilon))


@guarded
def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Rules:
    """LRP-alpha2-beta1 for convolutions, LRP-epsilon for matrix products.

    Args:
        epsilon: Added to the size of a divisor.
    """
    return _composite("epsilon_alpha2_beta1", alpha_beta(2.0, 1.0, epsilon), _epsilon(epsilon))


@guarded
def epsilon_plus_flat(epsilon: float = 1e-6) -> Rules:
    """:func:`epsilon_plus` with LRP-flat where the inputs are read.

    Args:
        epsilon: Added to the size of a divisor.
    """
    conv, dense = z_plus(epsilon), _epsilon(epsilon)
    return _composite("epsilon_plus_flat", conv, dense, flat(epsilon))


@guarded
def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Rules:
    """:func:`epsilon_alpha2_beta1` with LRP-flat where the inputs are read.

    Args:
        epsilon: Added to the size of a divisor.
    """
    conv, dense = alpha_beta(2.0, 1.0, epsilon), _epsilon(epsilon)
    return _composite("epsilon_alpha2_beta1_flat", conv, dense, flat(epsilon))


@guarded
def epsilon_gamma_box(
    low: Tensor | float,
    high: Tensor | float,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
) -> Rules:
    """LRP-z^B where the inputs are read, LRP-gamma for convolutions, LRP-epsilon for the rest.

    Args:
        low: The lower bound of the inputs.
        high: The upper bound.
        epsilon: Added to the size of a divisor.
        gamma: How much contributions with the sign of the output are favoured.
    """
    box = z_box(low, high, epsilon)
    return _composite("epsilon_gamma_box", _gamma(gamma, epsilon), _epsilon(epsilon), box)


@guarded
def attn_lrp(epsilon: float = 1e-6) -> Rules:
    """AttnLRP: LRP-epsilon, softmax by its derivative, products shared equally.

    Args:
        epsilon: Added to the size of a divisor.

    Reference:
        Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
        Transformers, 2024.
    """
    return _composite("attn_lrp", _epsilon(epsilon), _epsilon(epsilon))


@guarded
def cp_lrp(epsilon: float = 1e-6) -> Rules:
    """CP-LRP: LRP-epsilon with attention weights as constants.

    Args:
        epsilon: Added to the size of a divisor.

    Reference:
        Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation,
        2022.
    """
    rule = _epsilon(epsilon)
    return _composite("cp_lrp", rule, rule, softmax_is_constant=True)


@guarded
def rescale(baselines: Baselines = None) -> Rules:
    """The rescale rule of DeepLIFT.

    Args:
        baselines: x0, for :func:`attrfn.with_rules` only: ``None`` (zeros), a number, a tensor
            that broadcasts to its input, or a pytree of those.
    """
    return _RESCALE._replace(baselines=baselines)


@guarded
def reveal_cancel(baselines: Baselines = None) -> Rules:
    """The rule RevealCancel of DeepLIFT.

    Args:
        baselines: As for :func:`rescale`.
    """
    return _REVEAL_CANCEL._replace(baselines=baselines)


def guided() -> Rules:
    """The rule of :func:`attrfn.guided_backprop`."""
    return _GUIDED


def deconv() -> Rules:
    """The rule of :func:`attrfn.deconvolution`."""
    return _DECONV


_epsilon, _gamma = epsilon, gamma


def _check(place: str, rule: LinearRule, *, first: bool) -> None:
    if not isinstance(rule, LinearRule):
        raise TypeError(f"{place} is {say(rule)}, expected a rule such as attrfn.rules.epsilon()")
    if rule.first and not first:
        raise ValueError(
            f"{place} is {rule.name}, which shares relevance without regard to activations and "
            "applies only where the inputs are read: give it as first"
        )
