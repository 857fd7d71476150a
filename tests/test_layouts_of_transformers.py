"""Windows of Swin and experts of Mixtral, from configurations, against hooks and autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import make, randn

import attrfn
from attrfn import layouts

transformers = pytest.importorskip("transformers", minversion="5.0")

SIDE, WINDOW = 8, 4  # of the first stage, in tokens
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])


def swin() -> Any:
    config = transformers.SwinConfig(
        **{"image_size": 16, "patch_size": 2, "num_channels": 2, "embed_dim": 8, "num_labels": 3},
        **{"depths": [2, 1], "num_heads": [2, 2], "window_size": WINDOW},
    )
    return make(transformers.SwinForImageClassification, config)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        **{"vocab_size": 12, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3},
    )
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return make(transformers.MixtralForCausalLM, config)


class OfEmbeddings(nn.Module):
    """A language model as a function of embeddings."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(inputs_embeds=x)


def last(outputs: Any) -> Tensor:
    return outputs.logits[:, -1, 2]


def hooked(
    model: nn.Module, x: Tensor, layer: str, target: Callable[[Any], Tensor], call: int = 0
) -> tuple[Tensor, Tensor]:
    """The value of a layer in one of its calls and the gradient there, by a hook."""
    values: list[Any] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, i, out: values.append(out))
    outputs = model(x)
    hook.remove()
    a = values[call] if isinstance(values[call], Tensor) else values[call][0]
    return a.detach(), torch.autograd.grad(target(outputs).sum(), a)[0]


def logits(outputs: Any) -> Tensor:
    return outputs.logits[:, 1]


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("part", ["o_proj", ""])
def test_windows_of_swin(block: int, part: str) -> None:
    """Of the attention alone, whose value is a tuple, and of its last linear layer."""
    model, x = swin(), randn(2, 2, 16, 16)
    layer = f"swin.encoder.layers.0.blocks.{block}.attention.{part}".rstrip(".")
    a, g = hooked(model, x, layer, logits)
    assert a.shape == (2 * (SIDE // WINDOW) ** 2, WINDOW**2, 8)
    found = attrfn.layer_gradient_x_activation(model, x, layer=layer, target=1)
    tensor = found if part else found[0]
    torch.testing.assert_close(tensor, a * g)

    images = layouts.windows(SIDE, SIDE, WINDOW, shift=2 * block)
    reshape = images if part else lambda v: images(v[0])
    cam = attrfn.grad_cam(model, x, layer=layer, target=1, reshape=reshape)
    weights = images(g).mean((2, 3), keepdim=True)
    torch.testing.assert_close(cam, (weights * images(a)).sum(1, keepdim=True))


def test_windows_are_where_the_image_is() -> None:
    """The windows of the second block are rolled: what they show follows the image's tokens."""
    model, x = swin(), randn(1, 2, 16, 16)
    layer = "swin.encoder.layers.0.blocks.{}.attention.q_proj"
    for block in (0, 1):
        images = layouts.windows(SIDE, SIDE, WINDOW, shift=2 * block)
        before = f"swin.encoder.layers.0.blocks.{block}.layernorm_before"
        tokens = attrfn.layer_activation(model, x, layer=before)
        windows = attrfn.layer_activation(model, x, layer=layer.format(block), at="input")
        torch.testing.assert_close(images(windows), layouts.tokens()(tokens))


@pytest.mark.parametrize(
    "method",
    [
        functools.partial(attrfn.layer_integrated_gradients, n_steps=3),
        functools.partial(attrfn.layer_conductance, n_steps=3),
        attrfn.layer_deep_lift,
        functools.partial(attrfn.layer_feature_ablation, layer_mask=torch.arange(16)[:, None] % 3),
    ],
)
@pytest.mark.filterwarnings("ignore:layer_integrated_gradients")
def test_methods_at_windows_of_swin(method: Callable[..., Any]) -> None:
    """With the layout named they are as for one image after the other."""
    model, x = swin(), randn(2, 2, 16, 16)
    layer = "swin.encoder.layers.0.blocks.1.attention.o_proj"
    images = layouts.windows(SIDE, SIDE, WINDOW, shift=2)
    named = method(model, x, layer=layer, target=1, rows=images)
    alone = [method(model, x[i : i + 1], layer=layer, target=1) for i in range(2)]
    torch.testing.assert_close(named, torch.cat(alone))


@pytest.mark.parametrize("call", [0, 1, 2])
def test_tokens_of_an_expert_of_mixtral(call: int) -> None:
    """The activation function of the experts runs once for each, on the tokens that it gets."""
    model, layer = mixtral(), "model.layers.1.mlp.experts.act_fn"
    a, g = hooked(model, IDS, layer, last, call)
    options = {"layer": layer, "target": last, "call": call}
    found = attrfn.layer_gradient_x_activation(model, IDS, **options)
    torch.testing.assert_close(found, a * g)
    saliency = attrfn.at_layer(attrfn.saliency, layer, call=call)(model, IDS, target=last)
    torch.testing.assert_close(saliency, g.abs())
    ablated = attrfn.layer_feature_ablation(model, IDS, **options)
    _, tail = attrfn.split(model, layer, call=call)
    for place in ((0, 1), (1, 3), (-1, 5)):
        without = a.clone()
        without[place] = 0
        lost = (last(model(IDS)) - last(tail(without, IDS))).sum()
        torch.testing.assert_close(ablated[place], lost)
    # The words of the baselines are all the same, so that they go to two experts alone.
    refused = "the model chooses the rows of layer by values|was called 2 time" + r"\(s\)"
    with pytest.raises(ValueError, match=refused):
        attrfn.layer_integrated_gradients(model, IDS, **options, n_steps=2)


def test_tokens_of_all_experts_of_mixtral() -> None:
    """(B T, H), row by row; the same with the layout named, and for each text alone."""
    model, layer = mixtral(), "model.layers.1.mlp.experts"
    a, g = hooked(model, IDS, layer, last)
    found = attrfn.layer_gradient_x_activation(model, IDS, layer=layer, target=last)
    torch.testing.assert_close(found, a * g)
    rows = lambda v: v.unflatten(0, (-1, 5))  # noqa: E731
    mask = torch.arange(5)[:, None]
    whole = attrfn.layer_feature_ablation(
        model, IDS, layer=layer, target=last, layer_mask=mask.repeat(3, 1), rows=rows
    )
    alone = [
        attrfn.layer_feature_ablation(
            model, IDS[i : i + 1], layer=layer, target=last, layer_mask=mask
        )
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.cat(alone))
    found = attrfn.neuron_gradient(
        OfEmbeddings(model),
        model.get_input_embeddings()(IDS).detach(),
        layer=f"model.{layer}",
        neuron=(2, 3),
        rows=rows,
    )
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    values: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, i, out: values.append(out))
    model(inputs_embeds=embedded)
    hook.remove()
    (expected,) = torch.autograd.grad(rows(values[0])[:, 2, 3].sum(), embedded)
    torch.testing.assert_close(found, expected)
