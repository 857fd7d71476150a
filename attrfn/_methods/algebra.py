"""An algebra of methods: functions from methods to a method, which nest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import optree
import torch
from torch import Tensor

from attrfn._copies.batch import is_integer, is_one_of
from attrfn._explain.introspect import wraps
from attrfn._explain.shared import mark_of, marked, refuse_laid_out
from attrfn._explain.tree import row_total
from attrfn._layers.leaves import of_leaves
from attrfn._torch.guard import guarded
from attrfn._torch.say import say
from attrfn._torch.typing import Method, ModelFn, Tree

Pool: TypeAlias = Literal["sum", "mean", "norm", "max"]
Size: TypeAlias = Literal["max", "sum", "norm"]

_POOLS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "sum": lambda a, dims: a.sum(dims),
    "mean": lambda a, dims: a.mean(dims),
    "norm": lambda a, dims: a.square().sum(dims).sqrt(),
    "max": lambda a, dims: a.abs().amax(dims),
}


def chain(method: Method, *wrappers: Callable[[Method], Method]) -> Method:
    """A method inside of wrappers, the first one innermost.

        chain(X, w_1, ..., w_n) = w_n(... w_1(X))

    Args:
        method: Any attribution method.
        wrappers: Functions from a method to a method, such as :func:`absolute`,
            ``functools.partial(attrfn.pooled, dims=1)`` or a function of your own.

    Returns:
        A method.

    Raises:
        TypeError: One of them is not callable.

    Example:
        >>> import functools, torch, attrfn
        >>> sizes = attrfn.chain(attrfn.gradient, attrfn.absolute, attrfn.normalized)
        >>> sizes(lambda x: x @ torch.tensor([2.0, -4.0]), torch.ones(1, 2))
        tensor([[0.5000, 1.0000]])
    """
    for wrapper in wrappers:
        if not callable(wrapper):
            raise TypeError(
                f"wrappers has {say(wrapper)}, expected functions from a method to a method, such "
                "as attrfn.absolute"
            )
    return functools.reduce(lambda inner, wrapper: wrapper(inner), wrappers, _method(method))


def absolute(method: Method) -> Method:
    """The sizes of a method's attributions, |A|.

    Args:
        method: Any attribution method.

    Returns:
        A method with the same options.

    Raises:
        TypeError: The method is not callable.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x @ torch.tensor([2.0, -4.0])
        >>> attrfn.absolute(attrfn.gradient)(f, torch.ones(1, 2))
        tensor([[2., 4.]])
    """
    return _after(method, lambda found: optree.tree_map(torch.abs, found))


def pooled(method: Method, dims: int | Sequence[int], *, how: Pool = "sum") -> Method:
    """A method's attributions over some dimensions, such as the channels of an image.

        sum: sum_d A_d     mean: mean_d A_d     norm: sqrt(sum_d A_d^2)     max: max_d |A_d|

    Args:
        method: Any attribution method.
        dims: The dimensions, not that of the examples, which is 0.
        how: ``"sum"``, which keeps what the attributions sum to; ``"mean"``, which keeps a score
            that all elements of a feature share; ``"norm"`` or ``"max"``.

    Returns:
        A method whose attributions lack the dimensions.

    Raises:
        TypeError: ``dims`` are not ints.
        ValueError: The examples are among them, or ``how`` is unknown, or a sum would count a score
            several times that elements share.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x.flatten(1).sum(1)
        >>> attrfn.pooled(attrfn.gradient, 1)(f, torch.ones(1, 3, 2))
        tensor([[3., 3.]])
    """
    if not is_one_of(how, *_POOLS):
        raise ValueError(f"how is {say(how)}, expected {', '.join(map(repr, _POOLS))}")
    given: Any = (dims,) if is_integer(dims) else dims
    if not isinstance(given, Sequence) or not given or not all(map(is_integer, given)):
        raise TypeError(f"dims is {say(dims)}, expected an int or a sequence of ints")

    def pool(found: Tree) -> Tree:
        if how == "sum" and mark_of(optree.tree_leaves(found)) == "shared":
            raise ValueError(
                "how is 'sum', which would count a score once for each element that shares it "
                "(as features of several elements do): use how='mean'"
            )
        return optree.tree_map(over, found)

    def over(a: Tensor) -> Tensor:
        of = [d % a.ndim if -a.ndim <= d < a.ndim else 0 for d in given]
        if 0 in of:
            raise ValueError(
                f"dims is {say(dims)} for attributions of shape {tuple(a.shape)}, expected "
                f"dimensions of an example, 1 to {a.ndim - 1}"
            )
        return _POOLS[how](a, tuple(of))

    return _after(method, pool)


def normalized(method: Method, how: Size = "max") -> Method:
    """A method's attributions with one size for each example.

        A / max |A|,   A / sum |A|,   or A / sqrt(sum A^2),   over all elements of an example

    An example whose attributions are all zero keeps them.

    Args:
        method: Any attribution method.
        how: ``"max"``, ``"sum"`` or ``"norm"``.

    Returns:
        A method with the same options.

    Raises:
        TypeError: The method is not callable.
        ValueError: ``how`` is unknown.

    Example:
        >>> import torch, attrfn
        >>> f = lambda x: x @ torch.tensor([1.0, -3.0])
        >>> attrfn.normalized(attrfn.gradient, "sum")(f, torch.ones(1, 2))
        tensor([[ 0.2500, -0.7500]])
    """
    if not is_one_of(how, "max", "sum", "norm"):
        raise ValueError(f"how is {say(how)}, expected 'max', 'sum' or 'norm'")

    def scaled(found: Tree) -> Tree:
        leaves, spec = optree.tree_flatten(found)
        refuse_laid_out(leaves)
        if how == "max":
            sizes = [a.abs().flatten(1).amax(1) if a.ndim > 1 else a.abs() for a in leaves]
            size = torch.stack(sizes).amax(0)
        else:
            power = 1 if how == "sum" else 2
            size = row_total(tuple([a.abs().double() ** power for a in leaves])) ** (1 / power)
        size = torch.where(size == 0, 1.0, size)
        rows = [(a / size.reshape(-1, *[1] * (a.ndim - 1))).to(a.dtype) for a in leaves]
        return optree.tree_unflatten(spec, rows)

    return _after(method, scaled)


def average(*methods: Method, weights: Sequence[float] | None = None) -> Method:
    """The weighted mean of the attributions of several methods.

        A = sum_i w_i A_i / sum_i w_i

    What sums to f(x) - f(x0) for each method does so for their mean.

    Args:
        methods: Attribution methods whose results have one structure; every one of them gets the
            options of the call.
        weights: A number for each method; None takes them as equal.

    Returns:
        A method.

    Raises:
        TypeError: A method is not callable.
        ValueError: No method is given, or the weights do not match the methods or sum to 0.

    Example:
        >>> import torch, attrfn
        >>> both = attrfn.average(attrfn.gradient, attrfn.input_x_gradient)
        >>> both(lambda x: x.sum(1), torch.tensor([[1.0, 3.0]]))
        tensor([[1., 2.]])
    """
    if not methods:
        raise ValueError("average has no methods, expected at least one")
    numbers = isinstance(weights, (list, tuple)) and all(isinstance(w, Real) for w in weights)
    shares = [1.0] * len(methods) if weights is None else list(weights) if numbers else []
    if len(shares) != len(methods) or sum(shares) == 0:
        raise ValueError(
            f"weights is {say(weights)} for {len(methods)} method(s), expected a number for each, "
            "whose sum is not 0"
        )
    inner = [_method(m) for m in methods]

    @wraps(methods[0])
    @guarded
    def mean(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        found = [m(model_fn, inputs, **options) for m in inner]
        parts = [w / sum(shares) for w in shares]
        return of_leaves(
            lambda *a: sum([w * t for w, t in zip(parts, a, strict=True)]), found[0], *found[1:]
        )

    return mean


def relative_to(method: Method, reference: Method) -> Method:
    """A method's attributions minus those of a reference method.

        A = X(f, x) - R(f, x)

    The reference says what is expected anyway: the same method of another model
    (``lambda f, x, **o: method(other, x, **o)``), or of other inputs.

    Args:
        method: Any attribution method.
        reference: Another one, whose results have the same structure; it gets the same options.

    Returns:
        A method.

    Raises:
        TypeError: One of them is not callable.

    Example:
        >>> import torch, attrfn
        >>> untrained = lambda f, x, **options: attrfn.gradient(lambda x: x.sum(1), x, **options)
        >>> learnt = attrfn.relative_to(attrfn.gradient, untrained)
        >>> learnt(lambda x: 3 * x.sum(1), torch.ones(1, 2))
        tensor([[2., 2.]])
    """
    _method(reference, "reference")

    @wraps(_method(method))
    @guarded
    def difference(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        found = method(model_fn, inputs, **options)
        return of_leaves(torch.sub, found, reference(model_fn, inputs, **options))

    return difference


def _after(method: Method, change: Callable[[Tree], Tree]) -> Method:
    """A method whose attributions are changed; what their scores are stays the same."""

    @wraps(_method(method))
    @guarded
    def changed(model_fn: ModelFn, inputs: Tree, **options: Any) -> Tree:
        found = method(model_fn, inputs, **options)
        leaves = optree.tree_leaves(found)
        if not leaves or not all(isinstance(a, Tensor) for a in leaves):
            raise TypeError(f"method returned {say(found)}, expected tensors")
        new = change(found)
        marked(optree.tree_leaves(new), mark_of(leaves))
        return new

    return changed


def _method(method: Method, name: str = "method") -> Method:
    if not callable(method):
        raise TypeError(f"{name} is {say(method)}, expected a method such as attrfn.gradient")
    return method
