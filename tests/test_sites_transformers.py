"""Sites of transformers: the edges of GPT-2 as masks, its layers in one pass, and a ViT."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import zoo
from helpers import assert_close, assert_informative
from torch import Tensor, nn
from torch.func import jacrev, vmap
from zoo import randn

import attrfn
from attrfn import Site, activations, intervene
from attrfn._layers.at_sites import gradients

transformers = pytest.importorskip("transformers", minversion="5.0")

LAYERS = 4
WRITERS = ["transformer.drop"]
READERS = []
for _i in range(LAYERS):
    WRITERS += [f"transformer.h.{_i}.attn", f"transformer.h.{_i}.mlp"]
    READERS += [Site(f"transformer.h.{_i}.{_n}", "input") for _n in ("ln_1", "ln_2")]
READERS.append(Site("transformer.ln_f", "input"))
SHARED: dict[str, Any] = {"initializer_range": 0.3, "attn_implementation": "eager"}


@functools.cache
def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=12, **SHARED
    )
    return zoo.make(transformers.GPT2LMHeadModel, config)


BASE = torch.tensor([[1, 15, 26, 7, 2], [1, 8, 19, 2, 4]])
OTHER = torch.tensor([[1, 11, 26, 7, 2], [1, 8, 5, 2, 4]])
HALF = torch.ones(len(READERS), len(WRITERS), dtype=torch.float64) / 2


def model() -> Any:
    return functools.partial(gpt2(), use_cache=False)


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def score(outputs: Any) -> Tensor:
    """The difference of two words at the last place, (B,)."""
    logits = outputs.logits[:, -1]
    return logits[:, 3] - logits[:, 5]


def other_values(ids: Tensor = OTHER) -> list[Tensor]:
    _, there = activations(model(), WRITERS)(ids)
    return [first(there[u]).detach() for u in WRITERS]


def circuit(keep: Tensor, other: list[Tensor] | None = None) -> Any:
    """input of v + sum_u (1 - keep[v, u]) (u_other - u), the writers u before v in this run."""
    there = other_values() if other is None else other

    def read(v: int, x: Tensor, seen: Any) -> Tensor:
        for u in range(v + 1):
            x = x + (1 - keep[v, u]) * (there[u] - first(seen[WRITERS[u]]))
        return x

    edits: dict[Any, Any] = dict.fromkeys(WRITERS)
    edits |= {site: functools.partial(read, v) for v, site in enumerate(READERS)}
    return intervene(model(), edits, frozen=True)


def of_keep(keep: Tensor) -> Tensor:
    return score(circuit(keep)(BASE))


def test_writers_sum_to_what_the_last_reader_gets() -> None:
    """Bit for bit, because the model adds them in this order."""
    _, found = activations(model(), [*WRITERS, READERS[-1]])(BASE)
    total = first(found[WRITERS[0]])
    for u in WRITERS[1:]:
        total = first(found[u]) + total
    assert_close(total, found[READERS[-1]])


def test_all_edges_kept_is_the_base_run_and_none_the_other() -> None:
    ones = torch.ones_like(HALF)
    assert torch.equal(circuit(ones)(BASE).logits, gpt2()(BASE).logits)
    assert_close(circuit(0 * ones)(BASE).logits, gpt2()(OTHER).logits.detach())


def test_one_edge_dropped_is_edge_patching() -> None:
    """Against a hook at the reader that adds the change of the writer."""
    v, u = 4, 1
    keep = torch.ones_like(HALF)
    keep[v, u] = 0
    _, base = activations(model(), WRITERS)(BASE)
    change = other_values()[u] - first(base[WRITERS[u]])
    reader: Any = zoo.make(type(gpt2()), gpt2().config)
    reader.load_state_dict(gpt2().state_dict())
    module = reader.get_submodule(READERS[v].layer)
    module.register_forward_pre_hook(lambda m, args: (args[0] + change,))
    assert_close(circuit(keep)(BASE).logits, reader(BASE, use_cache=False).logits.detach())


def test_the_derivative_by_the_mask_is_minus_the_scores_of_edges() -> None:
    ones = torch.ones_like(HALF)
    by_mask = jacrev(of_keep)(ones)
    values, grads = gradients(model(), BASE, [*WRITERS, *READERS], score)
    other = other_values()
    for v, site in enumerate(READERS):
        for u in range(v + 1):
            change = other[u] - first(values[WRITERS[u]])
            edge = (change * grads[site]).sum((1, 2))
            assert_close(-by_mask[:, v, u], edge.detach(), rtol=1e-8)
    assert_informative(by_mask)


def test_masks_by_vmap_and_their_derivative_anywhere() -> None:
    masks = (randn(4, *HALF.shape) > 0).double()
    expected = torch.stack([of_keep(mask) for mask in masks])
    assert_close(vmap(of_keep)(masks), expected, rtol=1e-9)
    eps, direction = 1e-6, randn(*HALF.shape, seed=2)
    difference = of_keep(HALF + eps * direction) - of_keep(HALF - eps * direction)
    by_grad = (jacrev(of_keep)(HALF) * direction).sum((1, 2))
    assert_close(by_grad, difference / (2 * eps), rtol=1e-5)


def test_the_circuit_is_a_model() -> None:
    """Its halves at an edited layer, and attributions by its embedding."""
    run = circuit(HALF)
    head, tail = attrfn.split(run, "transformer.h.2.mlp")
    assert_close(tail(head(BASE), BASE).logits, run(BASE).logits)
    given: dict[str, Any] = {"layer": "transformer.drop", "target": score}
    found = attrfn.layer_gradient_x_activation(run, BASE, multiply_by_inputs=False, **given)
    other = other_values()

    def planted(a: Tensor) -> Tensor:
        """The same by an edit that plants the embedding."""
        first_writer = {"transformer.drop": lambda value, seen: a}
        return score(intervene(circuit(HALF, other), first_writer)(BASE)).sum()

    a = activations(model(), ["transformer.drop"])(BASE)[1]["transformer.drop"].detach()
    assert_close(found, torch.func.grad(planted)(a), rtol=1e-8)


NINE = [name for name in WRITERS if name != "transformer.drop"] + ["transformer.ln_f"]


@pytest.mark.parametrize("name", ["gradient", "lrp", "attn_lrp", "conductance", "activation"])
def test_nine_layers_in_one_pass(name: str) -> None:
    method, options = {
        "gradient": (attrfn.layer_gradient_x_activation, {"target": score}),
        "lrp": (attrfn.layer_lrp, {"target": score}),
        "attn_lrp": (attrfn.layer_lrp, {"target": score, "rules": attrfn.rules.attn_lrp()}),
        "conductance": (attrfn.layer_conductance, None),
        "activation": (attrfn.layer_activation, {}),
    }[name]
    assert len(NINE) == 9
    run, x = model(), BASE
    if options is None:  # a path needs floating inputs
        embedded = gpt2().transformer.wte(BASE).detach()
        run = functools.partial(ByEmbedding(gpt2()))
        x, options = embedded, {"target": score, "n_steps": 3}
        layers = [f"inner.{layer}" for layer in NINE]
    else:
        layers = NINE
    got = method(run, x, layer=layers, **options)
    expected = [method(run, x, layer=layer, **options) for layer in layers]
    assert_close(got, expected, rtol=1e-8)


class ByEmbedding(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, embedded: Tensor) -> Any:
        return self.inner(inputs_embeds=embedded, use_cache=False)


def test_relevance_by_what_is_added_at_nine_layers() -> None:
    """Rules compose with an intervention: RelP at all layers is one gradient by rules."""
    layers = [name for name in NINE if not name.endswith("attn")]
    _, values = activations(model(), layers)(BASE)

    def of(*d: Tensor) -> Tensor:
        added = {k: functools.partial(add, t) for k, t in zip(layers, d, strict=True)}
        return score(intervene(model(), added, frozen=True)(BASE))

    rules = attrfn.rules.attn_lrp()
    zeros = tuple(torch.zeros_like(values[k]) for k in layers)
    grads = attrfn.gradient(attrfn.with_rules(of, rules), zeros)
    expected = attrfn.layer_lrp(model(), BASE, layer=layers, target=score, rules=rules)
    found = [(values[k] * g).detach() for k, g in zip(layers, grads, strict=True)]
    assert_close(found, expected, rtol=1e-7)


def add(t: Tensor, value: Tensor, seen: Any) -> Tensor:
    return value + t


@functools.cache
def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_labels=3,
        **SHARED,
    )
    return zoo.make(transformers.ViTForImageClassification, config)


def test_a_vision_transformer() -> None:
    """Every module's output against hooks, and gradients at its layers against single splits."""
    net, x = vit(), randn(2, 3, 8, 8)
    found: dict[str, list[Any]] = {}
    handles = [
        m.register_forward_hook(lambda m, a, out, k=name: found.setdefault(k, []).append(out))
        for name, m in net.named_modules()
    ]
    expected = net(x).logits
    for handle in handles:
        handle.remove()
    names = [name for name in found if isinstance(first(found[name][0]), Tensor)]
    outputs, values = activations(net, [Site(name, call=None) for name in names])(x)
    assert torch.equal(outputs.logits, expected)
    for site, calls in values.items():
        for value, wanted in zip(calls, found[site.layer], strict=True):
            assert torch.equal(first(value), first(wanted))
    layers = [name for name in names if name.endswith(("intermediate", "layernorm_after", "mlp"))]
    assert layers
    pick: Any = lambda out: out.logits[:, 1]  # noqa: E731
    got = attrfn.layer_gradient_x_activation(
        net, x, layer=layers, target=pick, multiply_by_inputs=False
    )
    for layer, g in zip(layers, got, strict=True):
        head, tail = attrfn.split(net, layer)
        wanted = torch.func.grad(lambda a, t=tail: pick(t(a, x)).sum())(head(x).detach())
        assert_close(g, wanted)
