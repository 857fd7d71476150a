"""A small Llama, methods on it, and what must stay as it was, for models that do not fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import zoo
from tiny_transformers import IDS, Embedded, transformers
from torch import Tensor, nn

import attrfn

IDS = IDS[:, :4]
LAYER = "model.model.layers.0"
INSIDE = "model.model.layers.0.mlp"
MASK = torch.arange(4)[None, :, None].expand(1, 4, 16)


def llama(**more: Any) -> nn.Module:
    """A fresh one, because what makes it large changes it."""
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=20,
        max_position_embeddings=12,
        initializer_range=0.3,
        use_cache=False,
        **more,
    )
    return zoo.make(transformers.LlamaForCausalLM, config)


def logit(out: Any) -> Tensor:
    """That of word 7 after the last token."""
    return out.logits[:, -1, 7]


def neuron(a: Any) -> Tensor:
    return a[:, -1, 3] if isinstance(a, Tensor) else a[0][:, -1, 3]


def inputs() -> tuple[Tensor, Tensor]:
    """Embeddings of the words, and those of a baseline."""
    words = llama().get_input_embeddings()
    return words(IDS).detach(), words(torch.full_like(IDS, 3)).detach()


def methods(layer: str = LAYER, inside: str = INSIDE) -> dict[str, Callable[..., Any]]:
    """Each kind of run: gradients, paths, layers and neurons, perturbation, rules.

    All take a model, embeddings and those of a baseline.
    """
    target = {"target": logit}
    mask = {"feature_mask": MASK}

    def of(method: Any, **options: Any) -> Callable[..., Any]:
        return lambda model, x, x0: method(model, x, **options)

    def with_baselines(method: Any, **options: Any) -> Callable[..., Any]:
        return lambda model, x, x0: method(model, x, baselines=x0, **options)

    tokens = lambda a: a.transpose(1, 2)  # noqa: E731
    rules = attrfn.rules.attn_lrp()
    return {
        "gradient": of(attrfn.gradient, **target),
        "integrated_gradients": with_baselines(attrfn.integrated_gradients, n_steps=4, **target),
        "layer_gradient_x_activation": of(
            attrfn.layer_gradient_x_activation, layer=layer, **target
        ),
        "at_layer": of(attrfn.at_layer(attrfn.input_x_gradient, inside), **target),
        "layers": of(attrfn.layer_gradient_x_activation, layer=[layer, inside], **target),
        "layer_integrated_gradients": with_baselines(
            attrfn.layer_integrated_gradients, layer=inside, n_steps=4, **target
        ),
        "layer_conductance": with_baselines(
            attrfn.layer_conductance, layer=inside, n_steps=3, **target
        ),
        "grad_cam": of(attrfn.grad_cam, layer=layer, reshape=tokens, **target),
        "feature_ablation": with_baselines(attrfn.feature_ablation, **mask, **target),
        "kernel_shap": with_baselines(attrfn.kernel_shap, n_samples=12, key=1, **mask, **target),
        "deep_lift": with_baselines(attrfn.deep_lift, **target),
        "attn_lrp": of(attrfn.lrp, rules=rules, **target),
        "layer_lrp": of(attrfn.layer_lrp, rules=rules, layer=inside, **target),
        "neuron_gradient": of(attrfn.at_neuron(attrfn.gradient, inside, neuron)),
        "smooth": of(attrfn.noise_tunnel(attrfn.gradient, n_samples=3, key=5), **target),
    }


@functools.cache
def expected() -> dict[str, Any]:
    """What the methods give for the plain model."""
    x, x0 = inputs()
    model = Embedded(llama()).eval()
    return {name: run(model, x, x0) for name, run in methods().items()}


def close(got: Any, want: Any, tolerance: float = 1e-6) -> None:
    """Equal to a part of the largest value."""
    if isinstance(want, (list, tuple)):
        for one, other in zip(got, want, strict=True):
            close(one, other, tolerance)
        return
    assert type(got) is Tensor
    assert got.grad_fn is None
    largest = float(want.abs().max())
    assert largest > 1e-4  # something to compare
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * largest)


def state(model: nn.Module) -> dict[str, Any]:
    """What a run could change: tensors, flags, hooks and forwards, by name."""
    found: dict[str, Any] = {}
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        found[name] = (type(t), t.device, t.dtype, t.shape, t.requires_grad, t.grad is None)
        if not t.is_meta:
            local: Any = t.to_local() if hasattr(t, "to_local") else t
            found[f"values of {name}"] = local.detach().double().sum().item()
    for name, module in model.named_modules():
        hooks = [v for k, v in vars(module).items() if k.endswith("hooks") and isinstance(v, dict)]
        found[f"hooks of {name}"] = [(k, id(v)) for held in hooks for k, v in held.items()]
        found[f"attributes of {name}"] = sorted(vars(module))
        found[f"module {name}"] = (id(module), type(module), module.training)
        found[f"forward of {name}"] = id(vars(module).get("forward"))
    return found


class Broken(Exception):
    """Raised in the middle of a run."""


def raising(model: nn.Module, x: Tensor, layer: Any) -> None:
    """Run a method whose edit raises inside of a layer."""

    def edit(value: Any, seen: Any) -> Any:
        raise Broken

    edited = attrfn.intervene(model, {layer: edit})
    try:
        attrfn.gradient(edited, x, target=logit)
    except Broken:
        return
    raise AssertionError("nothing was raised")
