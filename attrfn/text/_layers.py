"""Methods that explain the embeddings of a prompt, or what a layer makes of its tokens."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor, nn

import attrfn
from attrfn._explain.introspect import explains_all_outputs, takes_baselines
from attrfn._torch.say import say
from attrfn._torch.typing import ChunkSize, Method
from attrfn._torch.warn import warn
from attrfn.text._adapter import bare
from attrfn.text._calls import embedding_of
from attrfn.text._parts_type import Parts, TextAttribution
from attrfn.text._plan import Plan, outputs, result
from attrfn.text._removal import embedding
from attrfn.text._scorer import Scorer, scorer

Model = Callable[[Tensor], Tensor]
# What torch says where vmap cannot run an operation of a model, such as a custom Function of Bloom.
VMAP = re.compile(r"\bvmap\b|functorch|[Bb]atching rule")
MOST_GAP = 0.05  # as a share of the change of a score
Place = tuple[Any, Any, Any]  # a layer, its side and its call, as of attrfn.at_layer


def is_at_layer(method: Method, options: dict[str, Any]) -> bool:
    """Whether a method is moved to a layer, or has one among its options."""
    return hasattr(_plain(method), "moved_to") or "layer" in options


def name_of(method: Method) -> str:
    """The name of a method; that of one at a layer says so."""
    inner = _plain(method)
    name = str(getattr(inner, "__name__", type(inner).__name__))
    return f"at_layer({name})" if hasattr(inner, "moved_to") else name


def _plain(method: Method) -> Any:
    while isinstance(method, functools.partial):
        method = method.func
    return method


def by_embeddings(method: Method, plan: Plan, options: dict[str, Any]) -> TextAttribution:
    """The values of a method that explains embeddings, summed over the tokens of each part."""
    table = embedding_of(plan.model.model)
    with torch.no_grad():
        x = table(plan.parts.ids)
    method, options, place = _placed(method, plan, options, table)
    fn = _scores_of(plan, whole=plan.whole or not plan.sums(method))
    options = _with_baselines(method, plan, options, x, table)
    scores, x0 = outputs(fn, x), options.get("baselines")
    empty = None
    if isinstance(x0, Tensor) and x0.shape == x.shape and place is None:
        empty = outputs(fn, x0)[0]
    stderr = None
    if explains_all_outputs(method) and place is not None:
        values, stderr = _perturbed(method, plan, fn, x, place, options)
    else:
        found = _each(method, plan, fn, x, scores.shape[1], options)
        pooled = (x.shape[1:2], x.shape[1:])
        if place is None and any(a.shape[2:] not in pooled for a in found):
            raise ValueError(
                f"method {name_of(method)} returned {say(found[0])}, expected values like the "
                f"embeddings, {(1, scores.shape[1], *x.shape[1:])}: it gives no number for a part"
            )
        values = _per_part(found, plan.parts)
        if method is attrfn.integrated_gradients and empty is not None and len(values) > 1:
            _warn_of_gap(values, scores[0] - empty, options)
    return result(method, plan, values, scores[0], empty, stderr)


def _scores_of(plan: Plan, *, whole: bool) -> Model:
    """From embeddings of the prompt to the scores, the last of them that of the whole answer."""
    reference = None
    if plan.score == "kl":
        logits = Scorer(bare(plan.model), None, whole=False, embeds=False)
        f = functools.partial(logits, answer=plan.answer, **plan.model.bound)
        reference = outputs(f, plan.parts.ids).float().log_softmax(-1)
    same: dict[str, Any] = {"score": plan.score, "inputs": "embeds", "reference": reference}

    def of(answer: Tensor, foil: Tensor | None, whole: bool) -> Any:
        return scorer(plan.model, answer, foil=foil, whole=whole, **same)

    if plan.other is None:
        return of(plan.answer, plan.foil, whole)  # type: ignore[no-any-return]
    first, second = of(plan.answer, None, True), of(plan.other, None, True)
    return lambda x: first(x)[:, -1:] - second(x)[:, -1:]


# --- where ---------------------------------------------------------------------------------------


def _placed(
    method: Method, plan: Plan, options: dict[str, Any], table: nn.Module
) -> tuple[Method, dict[str, Any], Place | None]:
    """The method with the layer of the user's model, by name or module; None for embeddings."""
    if "layer" in options:
        layer = _modules(options["layer"], plan)
        if layer is table:
            raise ValueError(
                f"layer is the embedding of the tokens, which {name_of(method)} explains without "
                "one: give the method for inputs, such as attrfn.integrated_gradients"
            )
        place = (layer, options.get("at", "output"), options.get("call", 0))
        return method, {**options, "layer": layer}, place
    inner = getattr(method, "__wrapped__", None)
    if inner is None or not hasattr(method, "moved_to") or hasattr(inner, "moved_to"):
        # What wraps a method at a layer, such as a noise tunnel, has the layer that it was given.
        return method, options, getattr(_plain(method), "moved_to", None)
    layer, at, call = method.moved_to
    layer = _modules(layer, plan)
    if layer is table and at == "output":
        return inner, options, None
    return attrfn.at_layer(inner, layer, at=at, call=call), options, (layer, at, call)


def _modules(layer: Any, plan: Plan) -> Any:
    """A layer by its name in the user's model as a module, which no wrapper renames."""
    if isinstance(layer, (list, tuple)):
        return [_modules(one, plan) for one in layer]
    model = plan.model.model
    if not isinstance(layer, str) or not isinstance(model, nn.Module):
        return layer
    try:
        return model.get_submodule(layer)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        raise ValueError(
            f"layer is {layer!r}, which the model lacks, expected a module or a name such as "
            f"{names[:3]}"
        ) from None


# --- from what -----------------------------------------------------------------------------------


def _with_baselines(
    method: Method, plan: Plan, options: dict[str, Any], x: Tensor, table: nn.Module
) -> dict[str, Any]:
    """The options, with embeddings to start from; those of fixed tokens are the prompt's."""
    if not takes_baselines(method):
        if plan.remove is not None:
            raise ValueError(
                f"remove is given for {name_of(method)}, which removes nothing: leave it out"
            )
        return options
    if "baselines" in options:
        return options
    remove = embedding() if plan.remove is None else plan.remove
    with torch.no_grad():
        if remove.name == "embedding":
            value: Any = remove.value
            if isinstance(value, str):
                value = table.weight.mean(0)  # type: ignore[operator]
            x0 = torch.as_tensor(value).to(x).expand_as(x)
        elif remove.name == "replace" and remove.value is not None:
            ids = torch.as_tensor(remove.value, device=x.device).reshape(1, -1)
            x0 = table(ids.expand(plan.parts.ids.shape))
        else:
            raise ValueError(
                f"remove is {remove.name} for {name_of(method)}, which starts from embeddings, "
                "expected text.embedding(value) or text.replace(id)"
            )
    free = (plan.parts.mask >= 0)[None, :, None]
    return {**options, "baselines": x0.where(free, x)}


# --- how -----------------------------------------------------------------------------------------


def _each(
    method: Method, plan: Plan, fn: Model, x: Tensor, n: int, options: dict[str, Any]
) -> list[Tensor]:
    """Attributions of each score, (1, K, T, ...) for each tensor that is explained."""
    if getattr(method, "explains_each_output", False):
        found = method(fn, x, **options)
    elif plan.whole or n == 1:
        found = method(fn, x, target=n - 1, **options)
        found = optree.tree_map(lambda a: a[:, None], found)
    else:
        found = _every(method, plan, fn, x, n, options)
    leaves = [a for a in optree.tree_leaves(found) if isinstance(a, Tensor)]
    size, least = plan.parts.ids.shape[1], 4 if is_at_layer(method, options) else 3
    if not leaves or any(a.ndim < least or a.shape[0] != 1 or a.shape[2] < size for a in leaves):
        raise ValueError(
            f"method {name_of(method)} explains {say(leaves[0] if leaves else found)}, expected a "
            f"place for each of the {size} tokens of the prompt, (1, N, T, ...): take another layer"
        )
    return leaves


def _warn_of_gap(values: Tensor, change: Tensor, options: dict[str, Any]) -> None:
    """Warn of a path that misses the change, as the method does, but not inside of vmap."""
    if not options.get("check_completeness", True):
        return
    size = torch.maximum(change.abs(), values.norm(dim=1))
    gap = (values.sum(1) - change).abs()
    rounding = 64 * torch.finfo(change.dtype).eps * change.abs().amax()
    wrong = (gap > MOST_GAP * size) & (gap > rounding)
    if bool(wrong.any()):
        warn(
            f"integrated_gradients with n_steps={options.get('n_steps', 50)} misses the change of "
            f"the output by {float((gap / size)[wrong].max()):.0%}: raise n_steps, or start from "
            "a token by remove=text.replace(id), because models with norms are steep near "
            "embedding(0) (check_completeness=False does not look)"
        )


def _every(
    method: Method, plan: Plan, fn: Model, x: Tensor, n: int, options: dict[str, Any]
) -> Any:
    """What a method makes of all outputs together; one by one for models that vmap cannot run."""
    at_once: ChunkSize = "auto" if plan.batch is None else plan.batch
    try:
        return attrfn.each_output(method, n=n, chunk_size=at_once)(fn, x, **options)
    except RuntimeError as error:
        if plan.batch is not None or not VMAP.search(str(error)):
            raise
    return attrfn.each_output(method, n=n, chunk_size=1)(fn, x, **options)


def _per_part(leaves: list[Tensor], parts: Parts) -> Tensor:
    """Sums over the tokens of each part, (K, n)."""
    size, owner = parts.ids.shape[1], parts.mask
    # A layer has places for the answer's tokens too, after those of the prompt.
    each = torch.stack([a[0, :, :size].reshape(len(a[0]), size, -1).sum(2) for a in leaves]).sum(0)
    zeros = each.new_zeros(len(each), parts.n + 1)
    return zeros.index_add(1, owner.where(owner >= 0, parts.n), each)[:, : parts.n]


def _perturbed(
    method: Method, plan: Plan, fn: Model, x: Tensor, place: Place, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """A perturbation method at a layer: a part is all that its tokens have there, (K, n)."""
    mask, n = plan.parts.mask, plan.parts.n
    layer, at, call = place
    activation = attrfn.layer_activation(fn, x, layer=layer, at=at, call=call)
    if not isinstance(activation, Tensor) or activation.ndim < 3 or activation.shape[1] < len(mask):
        raise ValueError(
            f"layer gives {say(activation)}, expected one tensor (1, T, ...) with a place for each "
            "token, because a perturbation method is moved there: take another layer"
        )
    rest = activation.shape[1] - len(mask)
    ids = torch.cat([mask, mask.new_full((rest,), -1)])
    ids = ids.reshape(1, -1, *[1] * (activation.ndim - 2))
    if plan.batch is not None:
        options = {"chunk_size": plan.batch, **options}
    found = method(fn, x, feature_mask=ids, n_features=n, **options)
    many = found if isinstance(found, tuple) else (found,)
    values = [_of_parts(a, mask, n, a.ndim > activation.ndim) for a in many]
    values = [v[-1:] for v in values] if plan.whole else values
    return values[0], values[1] if len(values) > 1 else None


def _of_parts(found: Tensor, mask: Tensor, n: int, several: bool) -> Tensor:
    """The scores of parts, all of whose elements have them: (1, K, T, ...) to (K, n)."""
    scores = (found[0] if several else found).flatten(2)[..., 0]
    firsts = torch.tensor(
        [next(iter((mask == k).nonzero().flatten().tolist()), -1) for k in range(n)]
    )
    firsts = firsts.to(scores.device)
    return scores[:, firsts.clamp(min=0)].where(firsts >= 0, 0)
