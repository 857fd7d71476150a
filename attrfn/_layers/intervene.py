"""Read and edit a model at any number of sites in one pass, as pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from attrfn._explain.flags import check_flags
from attrfn._explain.tree import call_model
from attrfn._layers.sites import Key, check_edit, check_sites, keys_of
from attrfn._layers.taps import Edit, Plan, Recorder
from attrfn._model.kept import Kept
from attrfn._model.source import Source, shown, source
from attrfn._torch.guard import guarded
from attrfn._torch.typing import ModelFn, Tree


@guarded
def activations(
    model: ModelFn,
    sites: Key | list[Key] | tuple[Key, ...],
    *,
    frozen: bool = False,
) -> Callable[..., tuple[Any, dict[Key, Tree]]]:
    """Read any number of sites in one pass of a model.

        activations(model, sites)(x) = (model(x), {site: value there})

    Args:
        model: A module, a bound method of one, or ``functools.partial`` of either (also
            ``functools.partial(torch.func.functional_call, module, params)``, or what
            :func:`intervene` returned).
        sites: A list of sites: modules of the model, their qualified names, or :class:`Site`. They
            may depend on each other, and one module may have several.
        frozen: Detach the parameters, where nothing will differentiate with respect to them.

    Returns:
        A function of the model's inputs. It returns the model's outputs, and a dict with the value
        at each site under its key as given, in the given order; of a site with ``call=None`` a
        tuple. The values are copies.

    Raises:
        TypeError: The model function hides its module, or a site is not a layer.
        ValueError: The model has no such layer, or (when called) does not call it.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> x = torch.randn(5, 3)
        >>> out, found = attrfn.activations(model, ["0", "1"])(x)
        >>> torch.equal(out, model(x)), torch.equal(found["0"].relu(), found["1"])
        (True, True)
    """
    check_flags(("frozen",), {"frozen": frozen})
    src = visible(model)
    plan = Plan(check_sites(src.module, keys_of(sites)))
    read = reading(src, plan, frozen=frozen)

    def run(
        args: tuple[Any, ...], kwargs: dict[str, Any], *inputs: Any, **more: Any
    ) -> tuple[Any, dict[Any, Tree]]:
        given = inputs[0] if len(inputs) == 1 else inputs
        return read(args, {**kwargs, **more}, given)

    return functools.partial(run, src.args, src.kwargs)


def reading(src: Source, plan: Plan, *, frozen: bool) -> Callable[..., tuple[Any, dict[Any, Tree]]]:
    """``read(args, kwargs, inputs) -> (outputs, values)``, of a source with bound arguments."""
    kept = Kept(with_plan(src, plan), frozen=frozen)
    first = len(src.edits)

    def read(
        args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Tree
    ) -> tuple[Any, dict[Any, Tree]]:
        recorder = Recorder()
        model = kept.model()
        bound = functools.partial(model, *args[:first], recorder, *args[first:], **kwargs)
        outputs = call_model(bound, inputs)
        return outputs, {key: recorder.seen[key] for key in plan.sites.keys}

    return read


@guarded
def intervene(
    model: ModelFn,
    edits: Mapping[Key, Edit | None],
    *,
    frozen: bool = False,
) -> ModelFn:
    """A model function that edits values of the model while it runs.

    A function per site gets the value there and returns another one in its place; the rest of
    the model continues with that. Edits run in the order of the model, so that each sees what those
    before it have changed.

    Args:
        model: As for :func:`activations`.
        edits: From sites to functions ``(value, seen) -> value``, or None to record a value alone.
            ``value`` is a private copy; ``seen`` is a mapping of the sites passed so far in this
            run, to their values after editing. Tensors of the result that are None stay as they
            are. A tensor with a row per example is given by ``functools.partial(edit, tensor)``,
            so that it follows the batch where a method evaluates several copies of it. Keys that
            stand for one place are applied one after the other.
        frozen: Detach the parameters, where nothing will differentiate with respect to them.

    Returns:
        A model function with the model's arguments. All functions that need the model's layers,
        such as :func:`split` and this one, take it in place of the model.

    Raises:
        TypeError: The model function hides its module, a site is not a layer, or an edit is not a
            function of two arguments.
        ValueError: The model has no such layer; or, when called, the model does not call it, or an
            edit changes a shape, a dtype or a structure.

    Example:
        >>> import torch, attrfn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> twice = attrfn.intervene(model, {"0": lambda a, seen: 2 * a})
        >>> x = torch.randn(5, 3)
        >>> torch.equal(twice(x), 2 * model(x))
        True

    Reference:
        Vig et al., Investigating Gender Bias in Language Models Using Causal Mediation Analysis,
        2020.
    """
    check_flags(("frozen",), {"frozen": frozen})
    src = visible(model)
    given: object = edits
    if not isinstance(given, Mapping):
        raise TypeError(
            f"edits is {shown(edits)}, expected a dict from sites to functions of (value, seen)"
        )
    for key, edit in edits.items():
        check_edit(key, edit)
    plan = Plan(check_sites(src.module, tuple(edits)))
    return with_edits(src, plan, tuple(edits.values()), frozen=frozen)


def with_edits(src: Source, plan: Plan, edits: Any, *, frozen: bool) -> ModelFn:
    """A source with one more plan as a model function, in which its parts are found again."""
    bare = with_plan(src, plan)
    kept = Kept(bare, frozen=frozen)
    first = len(src.edits)

    # A function, because runs get copies of all other objects that a model function binds.
    def run(*args: Any, **kwargs: Any) -> Any:
        model = kept.model()
        bound = functools.partial(model, *args[: first + 1], **kwargs)
        return call_model(bound, args[first + 1 :])

    run.attrfn_source = bare  # type: ignore[attr-defined]
    return functools.partial(run, *src.args[:first], edits, *src.args[first:], **src.kwargs)


def with_plan(src: Source, plan: Plan) -> Source:
    """A source with one more plan, whose edits are the last ones; without bound arguments."""
    return src._replace(args=(), kwargs={}, edits=(*src.edits, plan))


def visible(model: ModelFn) -> Source:
    """The source of a model function.

    Raises:
        TypeError: It hides its module.
    """
    src = source(model)
    if src is None:
        raise TypeError(
            f"model is {shown(model)}, and no module can be found in it: give a torch.nn.Module, "
            "a bound method of one or functools.partial of either, or wrap the function in a module"
        )
    return src
