"""Models whose weights come and go while they run, in one process.

The expected values are those of the same model with all its weights in memory.
"""

from __future__ import annotations

import functools
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import big_models
import pytest
import torch
from big_models import IDS, INSIDE, LAYER, close, expected, inputs, llama, logit, methods
from tiny_transformers import Embedded, transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import attrfn
from attrfn import text

accelerate = pytest.importorskip("accelerate")

MAP = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
MAP |= {"model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}


def cpu_offloaded(folder: Any) -> nn.Module:
    return accelerate.cpu_offload(llama(), execution_device="cpu")


def disk_offloaded(folder: Any) -> nn.Module:
    return accelerate.disk_offload(llama(), folder, execution_device="cpu")


def dispatched(folder: Any) -> nn.Module:
    return accelerate.dispatch_model(
        llama(), MAP, main_device="cpu", offload_dir=folder, force_hooks=True
    )


def loaded(folder: Any) -> nn.Module:
    """As users do it: from files, with a map of devices."""
    llama().save_pretrained(folder / "saved")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "saved", device_map=MAP, offload_folder=folder / "weights", dtype=torch.float64
    ).eval()


def with_buffers(folder: Any) -> nn.Module:
    return accelerate.cpu_offload(llama(), execution_device="cpu", offload_buffers=True)


def tied(folder: Any) -> nn.Module:
    return accelerate.cpu_offload(llama(tie_word_embeddings=True), execution_device="cpu")


def preloaded(folder: Any) -> nn.Module:
    kinds = ["LlamaDecoderLayer"]
    return accelerate.cpu_offload(llama(), execution_device="cpu", preload_module_classes=kinds)


OFFLOADED = {
    f.__name__: f
    for f in (cpu_offloaded, disk_offloaded, dispatched, loaded, with_buffers, preloaded)
}
kinds = pytest.mark.parametrize("kind", OFFLOADED)


@kinds
def test_methods_on_an_offloaded_model(kind: str, tmp_path: Any) -> None:
    inner = OFFLOADED[kind](tmp_path)
    assert any(p.is_meta for p in inner.parameters())
    model, (x, x0) = Embedded(inner).eval(), inputs()
    before = big_models.state(model)
    for name, run in methods().items():
        close(run(model, x, x0), expected()[name])
        assert big_models.state(model) == before, name
    big_models.raising(model, x, INSIDE)
    assert big_models.state(model) == before
    close(attrfn.gradient(model, x, target=logit), expected()["gradient"])


def test_tied_weights_are_brought_once(tmp_path: Any) -> None:
    model, plain = Embedded(tied(tmp_path)).eval(), Embedded(llama(tie_word_embeddings=True)).eval()
    x = inputs()[0]
    for name in ("gradient", "layer_integrated_gradients", "attn_lrp"):
        run = methods()[name]
        close(run(model, x, inputs()[1]), run(plain, x, inputs()[1]))
    big_models.raising(model, x, INSIDE)
    held = [
        h.tied_params_map
        for m in model.modules()
        if (h := getattr(m, "_hf_hook", None)) and getattr(h, "tied_params_map", None)
    ]
    assert not any(devices for known in held for devices in known.values())


@kinds
def test_token_ids_and_their_embedding(kind: str, tmp_path: Any) -> None:
    x0 = torch.full_like(IDS, 3)
    found = []
    for model in (llama(), OFFLOADED[kind](tmp_path)):
        options = {"layer": "model.embed_tokens", "baselines": x0, "target": logit}
        path = attrfn.layer_integrated_gradients(model, IDS, n_steps=4, **options)
        lost = attrfn.feature_ablation(model, IDS, baselines=x0, target=logit)
        found.append((path, lost))
    close(found[1], found[0])


def test_threads_on_an_offloaded_model(tmp_path: Any) -> None:
    model, (x, x0) = Embedded(cpu_offloaded(tmp_path)).eval(), inputs()
    run = methods()["layer_integrated_gradients"]
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: run(model, x, x0), range(8)):
            close(got, expected()["layer_integrated_gradients"])


def test_vmap_over_an_offloaded_model(tmp_path: Any) -> None:
    model, x = Embedded(cpu_offloaded(tmp_path)).eval(), inputs()[0]
    got = torch.func.vmap(lambda t: attrfn.gradient(model, t[None], target=logit)[0])(x)
    close(got, expected()["gradient"])


def test_a_model_on_meta_without_hooks_is_refused() -> None:
    model = nn.Linear(3, 2, device="meta")
    with pytest.raises(ValueError, match="on the device meta, where they have no values"):
        attrfn.gradient(model, torch.ones(1, 3), target=0)


def test_compiling_an_offloaded_model_is_refused(tmp_path: Any, fresh_compiler: None) -> None:
    model = accelerate.cpu_offload(nn.Sequential(nn.Linear(3, 2)), execution_device="cpu")
    compiled = torch.compile(
        lambda x: attrfn.gradient(model, x, target=0), backend="eager", fullgraph=True
    )
    with pytest.raises(Exception, match=r"which torch\.compile cannot trace"):
        compiled(torch.ones(1, 3))


def test_text_on_an_offloaded_model(tmp_path: Any) -> None:
    found = []
    for model in (llama(), cpu_offloaded(tmp_path)):
        one = text.attribute(
            attrfn.feature_ablation, model, Words(), "1 15 26", " 7", remove=text.replace(3)
        )
        two = text.attribute(attrfn.input_x_gradient, model, Words(), "1 15 26", " 7")
        found.append((one.values, two.values))
    close(found[1], found[0])


class Words:
    """A tokenizer whose words are the ids."""

    pad_token_id = 0

    def __call__(self, string: str, **options: Any) -> dict[str, Any]:
        words = string.split()
        spans, at = [], 0
        for word in words:
            start = string.index(word, at)
            at = start + len(word)
            spans.append((start, at))
        return {"input_ids": [int(w) for w in words], "offset_mapping": spans}

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(f" {int(i)}" for i in ids)


# --- activation checkpointing --------------------------------------------------------------------


class Blocks(nn.Module):
    """Two blocks, each checkpointed in the way that is asked for."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.second = nn.Sequential(nn.Linear(6, 6), nn.SiLU())
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.way is None:
            return self.out(self.second(self.first(x)))
        return self.out(self.way(self.second, self.way(self.first, x) * 1.5 / 1.5))


def sequential(function: Any, x: Tensor) -> Tensor:
    return checkpoint_sequential(list(function), 2, x, use_reentrant=False)


WAYS = {
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "not reentrant": functools.partial(checkpoint, use_reentrant=False),
    "without random numbers": functools.partial(
        checkpoint, use_reentrant=False, preserve_rng_state=False
    ),
    "sequential": sequential,
}
OF_BLOCKS = {
    "gradient": functools.partial(attrfn.gradient, target=1),
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, n_steps=5, target=1),
    "layer": functools.partial(
        attrfn.layer_integrated_gradients, layer="first.1", n_steps=5, target=1
    ),
    "layer_gradient_x_activation": functools.partial(
        attrfn.layer_gradient_x_activation, layer=["first.0", "second.0"], target=1
    ),
    "neuron": attrfn.at_neuron(attrfn.gradient, "second.0", 2),
    "grad_cam": functools.partial(
        attrfn.grad_cam, layer="first.2", target=1, reshape=lambda a: a[..., None]
    ),
    "feature_ablation": functools.partial(attrfn.feature_ablation, target=1),
    "kernel_shap": functools.partial(attrfn.kernel_shap, n_samples=10, target=1),
    "deep_lift": functools.partial(attrfn.deep_lift, target=1),
    "lrp": functools.partial(attrfn.lrp, target=1),
    "attn_lrp": functools.partial(attrfn.lrp, target=1, rules=attrfn.rules.attn_lrp()),
    "guided_backprop": functools.partial(attrfn.guided_backprop, target=1),
    "smooth": functools.partial(attrfn.noise_tunnel(attrfn.gradient, n_samples=3), target=1),
}


def blocks(way: Any) -> Blocks:
    torch.manual_seed(3)
    return Blocks(way).double().train()


@pytest.mark.filterwarnings("ignore:.*met no ReLU")
@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_blocks(way: str) -> None:
    """Also in a model that a function hides, where the modules run as they are."""
    plain, model = blocks(None), blocks(WAYS[way])
    x = torch.randn(3, 4, dtype=torch.float64)
    before = big_models.state(model)
    for name, method in OF_BLOCKS.items():
        want = method(plain, x)
        close(method(model, x), want, 1e-12)
        if "layer" not in name and name not in ("neuron", "grad_cam"):
            close(method(lambda t: model(t), x), want, 1e-12)
    assert big_models.state(model) == before


def test_checkpointing_is_what_it_was_outside_of_methods() -> None:
    model, plain = blocks(WAYS["reentrant"]), blocks(None)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    attrfn.gradient(model, x, target=1)
    calls = []
    handle = model.first[0].register_forward_hook(lambda *_: calls.append(1))
    model(x).sum().backward()
    assert len(calls) == 2  # forward, and again in the backward pass
    handle.remove()
    plain(x.detach()).sum().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_gradient_of_the_inputs_keeps_checkpointing() -> None:
    """Where no value is read or planted, the blocks run again and their values are not kept."""
    model = blocks(WAYS["reentrant"])
    calls: list[int] = []
    model.first[0].register_forward_hook(lambda *_: calls.append(1))
    attrfn.gradient(model, torch.randn(3, 4, dtype=torch.float64), target=1)
    assert len(calls) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_transformers(reentrant: bool) -> None:
    inner = llama()
    enable = getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model, (x, x0) = Embedded(inner).train(), inputs()
    before = big_models.state(model)
    for name, run in methods().items():
        close(run(model, x, x0), expected()[name])
    assert big_models.state(model) == before


def test_checkpoint_wrapper() -> None:
    file = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    model, plain = blocks(None), blocks(None)
    model.first = file.checkpoint_wrapper(model.first)
    x = torch.randn(3, 4, dtype=torch.float64)
    for name in ("gradient", "layer", "attn_lrp", "deep_lift"):
        method = OF_BLOCKS[name]
        close(method(model, x), method(plain, x), 1e-12)


# --- wrappers ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    torch.manual_seed(1)
    adapted = peft.get_peft_model(llama(), config).double().eval()
    torch.manual_seed(1)
    merged = peft.get_peft_model(llama(), config).double().eval().merge_and_unload()
    x, x0 = inputs()
    before = big_models.state(adapted)
    inner = "model.base_model.model.model.layers.0"
    with_adapters = methods(inner, f"{inner}.mlp")
    for name, run in methods().items():
        got = with_adapters[name](Embedded(adapted).eval(), x, x0)
        if name != "deep_lift" and "lrp" not in name:
            close(got, run(Embedded(merged).eval(), x, x0))
    assert big_models.state(adapted) == before


def test_int8_weights_of_torchao() -> None:
    """Compared with a model of the same weights as ordinary numbers, in float32."""
    quantization = pytest.importorskip("torchao.quantization")
    whole, small = llama().float(), llama().float()
    quantization.quantize_(small, quantization.Int8WeightOnlyConfig())
    with torch.no_grad():
        for p, q in zip(whole.parameters(), small.parameters(), strict=True):
            p.copy_(q if type(q) is nn.Parameter else q.dequantize())
    x, x0 = (t.float() for t in inputs())
    before = [(type(p), p.requires_grad, p.grad is None) for p in small.parameters()]
    for run in methods().values():
        want = run(Embedded(whole).eval(), x, x0)
        close(run(Embedded(small).eval(), x, x0), want, 1e-4)
    assert [(type(p), p.requires_grad, p.grad is None) for p in small.parameters()] == before


# --- forwards in the place of others -------------------------------------------------------------


def wrapped(old: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return old(*args, **kwargs) * 2

    return forward


def replaced(kind: str) -> nn.Module:
    """A model whose first block has another forward, which remembers the old one or the module."""
    model = blocks(None)
    first = model.first
    old = first.forward
    if kind == "closure":
        first.forward = wrapped(old)
    elif kind == "closure in a closure":
        first.forward = wrapped(wrapped(old))
    elif kind == "module":
        first.forward = lambda x: nn.Sequential.forward(first, x) * 2
    elif kind == "partial":
        first.forward = functools.partial(lambda m, x: nn.Sequential.forward(m, x) * 2, first)
    else:
        first.forward = types.MethodType(lambda self, x: nn.Sequential.forward(self, x) * 2, first)
    return model


FORWARDS = ("closure", "closure in a closure", "module", "partial", "method")


@pytest.mark.parametrize("kind", FORWARDS)
def test_forwards_that_remember_their_module(kind: str) -> None:
    """Layers inside of them are found, and no run reaches the user's own modules."""
    x = torch.randn(3, 4, dtype=torch.float64)
    factor = 4 if kind == "closure in a closure" else 2
    plain = blocks(None)
    with torch.no_grad():
        plain.first[2].weight.mul_(factor)
        plain.first[2].bias.mul_(factor)
    model = replaced(kind)
    ran: list[nn.Module] = []
    model.first[0].register_forward_hook(lambda module, *_: ran.append(module))
    for name in ("gradient", "layer", "neuron", "attn_lrp", "feature_ablation"):
        tolerance = 1e-2 if name == "attn_lrp" else 1e-10  # its epsilon does not scale
        close(OF_BLOCKS[name](model, x), OF_BLOCKS[name](plain, x), tolerance)
    assert ran
    assert not any(module is model.first[0] for module in ran)


def test_a_closure_with_a_counter_shares_it() -> None:
    """What a closure holds besides modules is the user's own, as it always was."""
    model, counts = blocks(None), [0]
    old = model.first.forward

    def forward(x: Tensor) -> Tensor:
        counts[0] += 1
        return old(x)

    model.first.forward = forward
    attrfn.gradient(model, torch.randn(3, 4, dtype=torch.float64), target=1)
    assert counts == [1]
    assert model.first.forward is forward


def test_a_layer_named_by_module_on_an_offloaded_model(tmp_path: Any) -> None:
    inner, (x, _) = cpu_offloaded(tmp_path), inputs()
    model = Embedded(inner).eval()
    got = attrfn.layer_gradient_x_activation(model, x, layer=inner.model.layers[0], target=logit)
    close(got, expected()["layer_gradient_x_activation"])
    assert LAYER in dict(model.named_modules())
