"""One picture for each method by gradients, at the inputs and at layers, on boards of digits."""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from perturbation import board_model, boards, loss_of_each
from sklearn.datasets import load_digits
from torch import Tensor

import attrfn
from attrfn import viz

LAYERS = ("2", "5", "9", "12")  # ReLUs: 16 x 16 pixels, twice, then 8 x 8, twice
CAMS = ("grad_cam", "hires_cam", "grad_cam_plus_plus", "xgrad_cam", "layer_cam")


def pictures() -> dict[str, Figure]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    model = board_model(images[:1300], labels[:1300])
    held_out, found = boards(images[1300:], labels[1300:], 200)
    # The surest of the boards with four different digits, asked for two of them.
    different = (found.sort(1).values.diff(dim=1) > 0).all(1)
    board = loss_of_each(model(held_out), found).where(different, torch.inf).argmin()
    x, digits = held_out[board].expand(2, -1, -1, -1), found[board, [0, 3]]
    grid = partial(viz.image_grid, x, titles=[f"why is there\na {digit}?" for digit in digits])
    explain = {"model_fn": model, "inputs": x, "target": digits}
    figures = of_inputs(grid, explain, boards(images[:1300], labels[:1300], 50)[0])
    return figures | of_layers(grid, explain)


def of_inputs(grid: partial[Figure], explain: dict, others: Tensor) -> dict[str, Figure]:
    def gaps(maps: dict[str, Tensor], x0: Tensor | float) -> dict[str, str]:
        delta = partial(attrfn.completeness_delta, **explain, baselines=x0)
        return {name: f"gap {delta(attributions=a).abs().max():.0e}" for name, a in maps.items()}

    ig, shap = (
        partial(method, **explain) for method in (attrfn.integrated_gradients, attrfn.gradient_shap)
    )
    maps = {
        "gradient": attrfn.gradient(**explain),
        "saliency": attrfn.saliency(**explain),
        "input_x_gradient": attrfn.input_x_gradient(**explain),
    }
    figures = {"gradient": grid(maps, title="gradient, saliency, input_x_gradient")}
    maps = {f"{n} steps": ig(n_steps=n) for n in (5, 10, 50)}
    title = "integrated_gradients"
    figures["integrated_gradients"] = grid(maps, notes=gaps(maps, 0.0), title=title)
    maps = {
        "black, 0": ig(baselines=0.0),
        "white, 1": ig(baselines=1.0),
        "the mean board": ig(baselines=others.mean(0, keepdim=True)),
        "50 boards": shap(baselines=others, n_samples=500),
    }
    figures["baselines"] = grid(maps, title="the same method from other baselines")
    maps = {f"{n} samples": shap(baselines=others, n_samples=n) for n in (5, 50, 500)}
    figures["gradient_shap"] = grid(maps, title="gradient_shap over 50 boards")

    noisy = partial(attrfn.noise_tunnel, attrfn.gradient, stdevs=0.2)
    maps = {
        "gradient": attrfn.gradient(**explain),
        "smoothgrad, 5": noisy(n_samples=5)(**explain),
        "smoothgrad, 100": noisy(n_samples=100)(**explain),
        "smoothgrad_sq": noisy(n_samples=100, kind="smoothgrad_sq")(**explain),
        "vargrad": noisy(n_samples=100, kind="vargrad")(**explain),
    }
    return figures | {"noise_tunnel": grid(maps, title="noise_tunnel of the gradient")}


def of_layers(grid: partial[Figure], explain: dict) -> dict[str, Figure]:
    at = {"layer": "9"}
    maps = {
        name: getattr(attrfn, name)(**explain, **at)
        for name in (
            *("layer_gradient_x_activation", "layer_integrated_gradients"),
            *("layer_conductance", "internal_influence"),
        )
    }
    figures = {"layers": grid(maps, title="a layer with maps of 8 x 8, its channels averaged")}
    maps = {name: getattr(attrfn, name)(**explain, layer="12") for name in CAMS}
    maps["eigen_cam"] = attrfn.eigen_cam(explain["model_fn"], explain["inputs"], layer="12")
    figures["cams"] = grid(maps, title="class activation maps of the last layer")
    maps = {
        f"{name}, layer {layer}": getattr(attrfn, name)(**explain, layer=layer, relu=True)
        for name in ("grad_cam", "layer_cam")
        for layer in LAYERS
    }
    figures["cam_layers"] = grid(maps, title="from the first layers to the last, rectified")

    model, x = explain["model_fn"], explain["inputs"][:1]
    active = attrfn.layer_activation(model, x, layer="9")[0].argmax(0)
    units = [(int(active[i, j]), i, j) for i, j in ((1, 1), (4, 4), (6, 2))]
    neuron = partial(attrfn.neuron_integrated_gradients, model, x, layer="9")
    figures["neurons"] = viz.image_grid(
        x,
        {f"channel {c} at row {i}, column {j}": neuron(neuron=(c, i, j)) for c, i, j in units},
        title="neuron_integrated_gradients",
    )
    return figures


def main(out: Path) -> None:
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures().items():
        figure.savefig(out / f"{name}.png", dpi=88)
        print(f"wrote {out / f'{name}.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
