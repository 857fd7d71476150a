"""Surrogates, the models that LIME fits, and similarities, by which it weighs samples.

A surrogate is a function ``(z, y, w) -> coefficients`` of S samples: z (S, 1 or B, n) says which of
the n features each sample has, y (S, B, K) holds the values of the model and w (S, 1 or B) the
weights, at least 0. The coefficients are (B, K, n); an intercept b is fitted and dropped. All but
:func:`scikit_learn` are tensor operations in float64 (on the CPU where y is on mps) that can be
differentiated, mapped and compiled; the result has the type of y.

A similarity is a function ``(inputs, perturbed, z) -> w``: the leaves of inputs are (B, ...), those
of perturbed (S, B, ...).
"""

import importlib
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from attrfn._copies.batch import is_one_of
from attrfn._torch.autodiff import transforming
from attrfn._torch.guard import guarded
from attrfn._torch.say import say
from attrfn._torch.typing import Tree
from attrfn.surrogates._distance import DISTANCES, in_widest
from attrfn.surrogates._lasso import central_path, on_support, shrink, tiny, variances
from attrfn.surrogates._solve import solve

__all__ = ["constant", "exponential_kernel", "lasso", "linear", "ridge", "scikit_learn"]

Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]
Similarity = Callable[[Tree, Tree, Tensor], Tensor]
Distance = Literal["cosine", "euclidean", "interpretable"] | Similarity


def linear() -> Surrogate:
    """Weighted least squares: the shortest c of argmin_c,b sum_s w_s (y_s - b - z_s c)^2.

    Returns:
        The surrogate.

    Example:
        >>> z, w = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[:, None], torch.ones(3, 1)
        >>> linear()(z, 3 * z[..., :1] - z[..., 1:] + 5, w).round(decimals=4)
        tensor([[[ 3., -1.]]])
    """

    def fit(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        G, v, _ = _moments(z, y, w)
        # Above the default of n eps: G is a sum of products over many samples, whose rounding makes
        # small eigenvalues of zeros, whose inverse is noise. The factor was not tuned.
        tolerance = 1000 * max(1, G.shape[-1]) * torch.finfo(G.dtype).eps
        return _like(y, (torch.linalg.pinv(G, rtol=tolerance, hermitian=True) @ v).mT)

    return fit


@guarded
def ridge(alpha: float = 1.0) -> Surrogate:
    """Ridge regression: argmin_c,b sum_s w_s (y_s - b - z_s c)^2 + alpha |c|_2^2.

    Args:
        alpha: The penalty, at least 0; its effect falls with the number of samples.

    Returns:
        The surrogate.

    Raises:
        ValueError: ``alpha`` is negative.

    Example:
        >>> z, w = torch.tensor([[0.0], [1.0]])[:, None], torch.ones(2, 1)
        >>> ridge(0.5)(z, 3 * z, w)  # 3 * 0.5 / (0.5 + alpha)
        tensor([[[1.5000]]])

    Reference:
        Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, 1970.
    """
    if _finite("alpha", alpha) == 0:
        return linear()

    def fit(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        G, v, total = _moments(z, y, w)
        eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
        return _like(y, solve(total * G + alpha * eye, total * v).mT)

    return fit


@guarded
def lasso(alpha: float = 0.01) -> Surrogate:
    """Lasso: argmin_c,b 1 / (2 sum_s w_s) sum_s w_s (y_s - b - z_s c)^2 + alpha |c|_1.

    All examples and outputs are solved at once, up to rounding: an interior point method finds
    where c_j != 0, and the linear equations that hold there give the values and their derivatives.
    Features that are equal in all samples have equal coefficients.

    Args:
        alpha: The penalty, at least 0.

    Returns:
        The surrogate.

    Raises:
        ValueError: ``alpha`` is negative.

    Example:
        >>> z, w = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])[:, None], torch.ones(4, 1)
        >>> lasso(0.5)(z, 6.0 * z[..., :1] + z[..., 1:], w)  # 6 - alpha / 0.25, 1 - alpha / 0.25
        tensor([[[4., 0.]]])

    Reference:
        Tibshirani, Regression Shrinkage and Selection via the Lasso, 1996.
        Wright, Primal-Dual Interior-Point Methods, 1997.
    """
    if _finite("alpha", alpha) == 0:
        return linear()

    def fit(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        G, v, _ = _moments(z, y, w)
        if v.numel() == 0:
            return _like(y, v.mT)
        # In units of the gradient in which alpha is 1, and of c in which the largest c_j of the
        # fits to single features is 1: the tolerances of the solver then hold for any problem.
        G, v = G[:, None], v.mT[..., None] / alpha
        single = shrink(v.detach()) / variances(G)
        unit = single.abs().amax(-2, keepdim=True).clamp_min(tiny(v))
        G = unit * G
        return _like(y, (alpha * unit * on_support(G, v, central_path(G, v)))[..., 0])

    return fit


@guarded
def scikit_learn(estimator: Any) -> Surrogate:
    """A linear model of scikit-learn: one clone fitted per example and output, no derivatives.

    Args:
        estimator: An object with ``fit(z, y, sample_weight=w)``, and with ``coef_`` afterwards.

    Returns:
        The surrogate; it raises RuntimeError in torch.func transforms and torch.compile.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: ``estimator`` is not such an object.

    Example:
        >>> from sklearn.linear_model import LinearRegression
        >>> z, w = torch.tensor([[0.0], [1.0]])[:, None], torch.ones(2, 1)
        >>> scikit_learn(LinearRegression())(z, 3 * z, w)
        tensor([[[3.]]])
    """
    try:
        clone = importlib.import_module("sklearn.base").clone
    except ImportError as error:
        raise ImportError(
            "scikit_learn needs scikit-learn, which is not installed: "
            "pip install 'attrfn[surrogates]'"
        ) from error
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        raise TypeError(
            f"estimator is {say(estimator)}, expected an estimator of scikit-learn such as "
            "sklearn.linear_model.Lasso(0.01)"
        )

    def coefficients(z: Any, y: Any, w: Any) -> Tensor:
        model = clone(estimator).fit(z, y, sample_weight=w)
        if not hasattr(model, "coef_"):
            raise TypeError(f"estimator is {say(estimator)}, expected one with coef_ after its fit")
        return torch.as_tensor(model.coef_).reshape(z.shape[1])

    def fit(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        if transforming():
            raise RuntimeError(
                "scikit_learn is called inside a torch.func transform or torch.compile, expected "
                "plain tensors: take lasso, ridge or linear of attrfn.surrogates there"
            )
        _check(z, y, w)
        S, B, K = y.shape
        z, w = z.expand(S, B, -1), w.expand(S, B)
        Z, Y, W = (t.detach().cpu().to(torch.float64).numpy() for t in (z, y, w))
        c = torch.zeros(B, K, z.shape[2], dtype=torch.float64)
        for b in range(B):
            for k in range(K):
                c[b, k] = coefficients(Z[:, b], Y[:, b, k], W[:, b])
        return _like(y, c)

    return fit


@guarded
def exponential_kernel(distance: Distance = "cosine", width: float = 1.0) -> Similarity:
    """Weights that fall with the distance of the sample: exp(-d^2 / (2 width^2)).

        cosine:         d = 1 - cos(x, x_s), over all elements of all tensors
        euclidean:      d = |x - x_s|_2
        interpretable:  d = 1 - cos(1, z_s), that is 1 - sqrt(share of the features present)

    Args:
        distance: One of those, or a function ``(inputs, perturbed, z) -> d``, (S, 1 or B).
        width: In units of d; with a tiny width all weights are 0, and so are the coefficients.

    Returns:
        The similarity, of weights in float64 (float32 on mps).

    Raises:
        ValueError: ``distance`` is an unknown name, or ``width`` is not positive.

    Example:
        >>> z = torch.tensor([[True, True, True, True], [True, False, False, False]])[:, None]
        >>> exponential_kernel("interpretable", width=0.5)(None, None, z)
        tensor([[1.0000],
                [0.6065]], dtype=torch.float64)

    Reference:
        Ribeiro, Singh and Guestrin, "Why Should I Trust You?": Explaining the Predictions of Any
        Classifier, 2016.
    """
    if _finite("width", width, "a positive number") == 0:
        raise ValueError(f"width is {say(width)}, expected a positive number")
    if not callable(distance) and not is_one_of(distance, *DISTANCES):
        raise ValueError(
            f"distance is {say(distance)}, expected one of {', '.join(DISTANCES)}, or a callable "
            "(inputs, perturbed, z) -> (S, B)"
        )
    measure = distance if callable(distance) else DISTANCES[distance]

    def similarity(inputs: Tree, perturbed: Tree, z: Tensor) -> Tensor:
        return torch.exp(-((in_widest(measure(inputs, perturbed, z)) / width) ** 2) / 2)

    return similarity


def constant() -> Similarity:
    """The weight 1 for every sample.

    Returns:
        The similarity.

    Example:
        >>> constant()(None, None, torch.zeros(2, 1, 3))
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    return lambda inputs, perturbed, z: in_widest(torch.ones(z.shape[:2], device=z.device))


def _check(z: Tensor, y: Tensor, w: Tensor) -> None:
    fits = y.ndim == z.ndim == 3 and w.ndim == 2
    if not fits or not all(
        t.shape[0] == y.shape[0] and t.shape[1] in (1, y.shape[1]) for t in (z, w)
    ):
        raise ValueError(
            f"z, y and w have shapes {tuple(z.shape)}, {tuple(y.shape)} and {tuple(w.shape)}, "
            "expected (S, 1 or B, n), (S, B, K) and (S, 1 or B)"
        )


def _moments(z: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted covariances of z (B, n, n) and of z with y (B, n, K), and sum_s w_s (B, 1, 1)."""
    _check(z, y, w)
    device = "cpu" if y.device.type == "mps" else y.device  # mps knows no float64
    z, y, w = (t.to(device).transpose(0, 1).contiguous() for t in (z, y, w[..., None]))
    varies = (z != z[:, :1]).any(1, keepdim=True)
    z, y, w = z.double(), y.double(), w.double()
    total = w.sum(1, keepdim=True)
    w = w / total.clamp_min(tiny(w))
    # A feature that is the same in all samples becomes exactly 0. The weighted mean would leave
    # rounding there, which a fit without a penalty could blow up.
    z = z - torch.where(varies, w.mT @ z, z[:, :1])
    y = y - w.mT @ y
    zw = (w * z).mT
    return zw @ z, zw @ y, total


def _like(y: Tensor, c: Tensor) -> Tensor:
    return c.to(y.device, y.dtype if y.is_floating_point() else torch.get_default_dtype())


def _finite(name: str, value: float, kind: str = "a number of at least 0") -> float:
    given: object = value
    message = f"{name} is {say(value)}, expected {kind}, and finite"
    if isinstance(given, int) and given >= 2**63:  # no tensor holds it
        raise ValueError(message)
    if isinstance(given, bool) or not isinstance(given, (Real, Tensor)):
        raise TypeError(message)
    if not 0 <= value < math.inf:
        raise ValueError(message)
    return value
