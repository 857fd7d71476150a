"""DeepLIFT is complete on exported and compiled models, and on those of Hugging Face."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from completeness import CLASSES, RULES, TOLERANCE, Block, C, ResNet, fused, gap, statistics
from oracles import close, randn, seeded
from torch import nn

import attrfn

# ---------------------------------------------------------------------------------------------
# other forms of models


@pytest.mark.parametrize("make", [lambda: Block(fused), lambda: statistics(seeded(ResNet))])
def test_exported_models(make):
    model = seeded(make)
    shape = (5, 8) if isinstance(model, Block) else (2, 10, 10)
    statistics(model)
    exported = torch.export.export(model, (randn(0, 3, *shape),), strict=False).module()
    x, x0 = randn(1, 3, *shape), randn(2, 3, *shape)
    for rule in RULES:
        assert gap(exported, x, x0, 1, rule=rule) < 1e-10
    torch.testing.assert_close(
        attrfn.deep_lift(exported, x, baselines=x0, target=1),
        attrfn.deep_lift(model, x, baselines=x0, target=1),
    )


class Writes(nn.Module):
    """A function of what a linear layer returns, between two of them."""

    def __init__(self, function):
        super().__init__()
        self.inp, self.out, self.function = nn.Linear(6, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.out(self.function(self.inp(x), x))


def set_items(h, x):
    h = h.clone()
    h[:, 1:] = x[:, 1:].tanh()
    return h


GRID = randn(60, 1, 1, 6, 2)


def resized(h, x, mode, **options):
    dims = {"linear": 1, "trilinear": 3}.get(mode, 2)
    out = F.interpolate(
        h.tanh().reshape(-1, 1, *[1] * (dims - 1), 6), scale_factor=2, mode=mode, **options
    )
    return out.flatten(1)[:, 1:7].exp()


IN_EXPORTED = {
    "relu_": lambda h, x: F.relu(h, inplace=True),
    "silu_": lambda h, x: F.silu(h, inplace=True),
    "hardtanh_": lambda h, x: F.hardtanh(h, -0.5, 0.5, inplace=True),
    "elu_": lambda h, x: F.elu(h, inplace=True),
    "leaky_relu_": lambda h, x: F.leaky_relu(h, 0.1, inplace=True),
    "tanh_": lambda h, x: h.tanh_(),
    "add_": lambda h, x: h.add_(x).relu(),
    "mul_": lambda h, x: h.mul_(x),
    "div_": lambda h, x: h.div_(1 + x.square()),
    "clamp_": lambda h, x: h.clamp_(min=0),
    "copy_": set_items,
    "gelu": lambda h, x: F.gelu(h, approximate="tanh"),
    "glu": lambda h, x: F.glu(torch.cat([h, x], 1), 1),
    "softmax": lambda h, x: h.softmax(1) * x,
    "layer_norm": lambda h, x: F.layer_norm(h, (6,)) * x,
    "max": lambda h, x: h.max(1, keepdim=True).values * x,
    "pooling": lambda h, x: F.max_pool1d(h[:, None], 2)[:, 0].repeat(1, 2),
    "pooling 2d": lambda h, x: F.max_pool2d(h[:, None, None].tanh(), (1, 2))[:, 0, 0].repeat(1, 2),
    "adaptive pooling": lambda h, x: F.adaptive_max_pool1d(h[:, None], 3)[:, 0].repeat(1, 2),
    "adaptive pooling 2d": lambda h, x: F.adaptive_max_pool2d(
        h.tanh().reshape(-1, 1, 2, 3), (2, 2), return_indices=True
    )[0].flatten(1)[:, [0, 1, 2, 3, 0, 1]],
    "adaptive pooling 3d": lambda h, x: (
        F.adaptive_max_pool3d(h.reshape(-1, 1, 1, 2, 3), (1, 1, 3)).flatten(1).repeat(1, 2)
    ),
    "cat": lambda h, x: torch.stack([h, x], 1).amax(1),
    "T": lambda h, x: h.T.exp().T,
    "mT": lambda h, x: h.reshape(-1, 2, 3).mT.exp().flatten(1),
    "fold": lambda h, x: F.fold(h.tanh()[:, None], (2, 3), (1, 1)).flatten(1).exp(),
    "unfold": lambda h, x: F.unfold(h[:, None, None].tanh(), (1, 1)).flatten(1).exp(),
    "grid_sample": lambda h, x: F.grid_sample(
        h[:, None, None].tanh(), GRID.to(h).expand(len(h), 1, 6, 2), align_corners=False
    )[:, 0, 0],
    "instance_norm": lambda h, x: F.instance_norm(h.reshape(-1, 2, 3)).flatten(1),
    "instance_norm with weights": lambda h, x: (
        F.instance_norm(h.reshape(-1, 2, 3), weight=C[:2], bias=C[2:4]).flatten(1) * x
    ),
    "instance_norm with statistics": lambda h, x: F.instance_norm(
        h.reshape(-1, 2, 3).tanh(), C[:2], C[2:4].abs(), use_input_stats=False
    ).flatten(1),
    "mse_loss": lambda h, x: F.mse_loss(h, C.expand(3, 6), reduction="none"),
    "l1_loss": lambda h, x: F.l1_loss(h.tanh(), C.expand(3, 6), reduction="none"),
    "cross_entropy": lambda h, x: F.cross_entropy(h, CLASSES, reduction="none")[:, None] * h,
    "nll_loss": lambda h, x: F.nll_loss(h.log_softmax(1), CLASSES, reduction="none")[:, None] * h,
    **{
        f"interpolate {mode}": functools.partial(resized, mode=mode, **options)
        for mode, options in {
            "nearest": {},
            "nearest-exact": {},
            "area": {},
            "linear": {"align_corners": False},
            "bilinear": {"align_corners": True},
            "bicubic": {"antialias": True},
            "trilinear": {},
        }.items()
    },
}


@pytest.mark.parametrize("name", IN_EXPORTED)
def test_operations_of_exported_models(name):
    """The same from a graph of aten operations, also of those that write in place."""
    model = seeded(lambda: Writes(IN_EXPORTED[name]))
    exported = torch.export.export(model, (randn(0, 3, 6),), strict=False).module()
    x, x0 = randn(1, 3, 6), randn(2, 3, 6)
    for create_graph in (False, True):
        for rule in RULES:
            options = {"target": 1, "baselines": x0, "rule": rule, "create_graph": create_graph}
            got, want = (attrfn.deep_lift(f, x, **options) for f in (exported, model))
            torch.testing.assert_close(got, want)
            assert gap(exported, x, x0, 1, rule=rule, create_graph=create_graph) < 1e-10
        for rules in (attrfn.rules.epsilon_plus(), attrfn.rules.gamma()):
            options = {"target": 1, "rules": rules, "create_graph": create_graph}
            got, want = (attrfn.lrp(f, x, **options) for f in (exported, model))
            torch.testing.assert_close(got, want)


LOSSES = {
    "mse_loss": lambda y, **o: F.mse_loss(y, C[None], **o),
    "l1_loss": lambda y, **o: F.l1_loss(y, C[None], **o),
    "cross_entropy": lambda y, **o: F.cross_entropy(y, CLASSES[:1], **o) ** 2,
    "cross_entropy with weights": lambda y, **o: F.cross_entropy(y, CLASSES[:1], C.abs(), **o),
    "cross_entropy without a class": lambda y, **o: (
        F.cross_entropy(y, CLASSES[:1], ignore_index=1, **o) * y[0, 0]
    ),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_reductions_of_losses(name, exported):
    """By name, by the old flags, and by the number that exported graphs have."""
    x, x0 = randn(1, 1, 6), randn(2, 1, 6)
    for options in (
        *({"reduction": "sum"}, {"reduction": "mean"}, {}),
        *({"size_average": False}, {"size_average": True, "reduce": True}),
    ):

        class Loss(nn.Module):
            def forward(self, x, options=options):
                return LOSSES[name](x.tanh() * x, **options).reshape(1)

        f = Loss()
        if exported:
            f = torch.export.export(f, (x,)).module()
        for rule in RULES:
            assert gap(f, x, x0, rule=rule) < 1e-10
        close(attrfn.deep_lift(f, x, baselines=x0), attrfn.deep_lift(Loss(), x, baselines=x0))


def test_compiled_models():
    """Rules apply to what a compiled module was made of."""
    model = statistics(seeded(ResNet))
    x, x0 = randn(1, 3, 2, 10, 10), randn(2, 3, 2, 10, 10)
    want = attrfn.deep_lift(model, x, baselines=x0, target=1)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(attrfn.deep_lift(compiled, x, baselines=x0, target=1), want)
    compiled = torch.compile(lambda x: model(x), backend="eager")
    torch.testing.assert_close(attrfn.deep_lift(compiled, x, baselines=x0, target=1), want)


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "initializer_range": 0.3,
}
KEEP = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def bert(transformers, attention):
    config = transformers.BertConfig(
        **SIZES, vocab_size=30, num_labels=3, attn_implementation=attention
    )
    return transformers.BertForSequenceClassification(config)


def gpt2(transformers, attention):
    config = transformers.GPT2Config(
        **{"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12},
        **{"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3},
        attn_implementation=attention,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(transformers, attention):
    config = transformers.LlamaConfig(
        **SIZES, vocab_size=30, num_key_value_heads=2, attn_implementation=attention
    )
    return transformers.LlamaForCausalLM(config)


def vit(transformers, attention):
    config = transformers.ViTConfig(
        **SIZES, image_size=12, patch_size=4, num_channels=2, attn_implementation=attention
    )
    return transformers.ViTForImageClassification(config)


class Logits(nn.Module):
    """A model of transformers as a function of embeddings or pixels."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x):
        if self.name == "vit":
            return self.model(pixel_values=x).logits
        out = self.model(inputs_embeds=x, attention_mask=KEEP).logits
        return out if out.ndim == 2 else out[:, 3]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [bert, gpt2, llama, vit], ids=lambda f: f.__name__)
def test_transformers(make, attention):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Logits(make(transformers, attention), make.__name__).eval().double()
    shape = (2, 12, 12) if make is vit else (5, 16)
    x, x0 = randn(1, 2, *shape), randn(2, 2, *shape)
    # Llama's RMS norm and the softmax of ViT in eager mode run in float32 in a float64 model too
    within_32 = make is llama or (make is vit and attention == "eager")
    tolerance = 1e-5 if within_32 else TOLERANCE[torch.float64]
    for rule in RULES:
        assert gap(model, x, x0, 1, rule=rule) < tolerance
    assert gap(model, x, x0, 1, create_graph=True) < tolerance
    x, x0, model = x.float(), x0.float(), model.float()
    for rule in RULES:
        assert gap(model, x, x0, 1, rule=rule) < 1e-4
