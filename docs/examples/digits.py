"""Explain a small network's predictions on handwritten digits with sixteen methods."""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import attrfn
from attrfn import viz


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels: three quarters to train on, the rest held out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(torch.arange(len(images)), test_size=0.25, random_state=0)
    return images[train], labels[train], images[test], labels[test]


def trained_model(images: Tensor, labels: Tensor) -> nn.Module:
    """Three convolutions, averaged over the places, trained for a few seconds."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters())
    batches = [b for _ in range(15) for b in torch.randperm(len(images)).split(64)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def difference(outputs: Tensor, this: Tensor, other: Tensor) -> Tensor:
    """The contrastive target: how much more the model says ``this`` than ``other``."""
    return (outputs.gather(1, this[:, None]) - outputs.gather(1, other[:, None]))[:, 0]


def pick(model: nn.Module, images: Tensor) -> Tensor:
    """Six held-out images: two threes whose runner-up is 8, then the least certain of others."""
    two = model(images).topk(2).indices
    threes = ((two[:, 0] == 3) & (two[:, 1] == 8)).nonzero()[:2, 0].tolist()
    margin = model(images).softmax(1).topk(2).values.diff(dim=1).abs()[:, 0]
    others, seen = [], {3}
    for i in margin.argsort().tolist():
        if int(two[i, 0]) not in seen:
            seen.add(int(two[i, 0]))
            others.append(i)
    return torch.tensor((threes + others)[:6])


def main(out: Path) -> None:
    train_images, train_labels, test_images, test_labels = data()
    model = trained_model(train_images, train_labels)
    with torch.no_grad():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
        chosen = pick(model, test_images)
        x, labels = test_images[chosen], test_labels[chosen]
        probability, said = model(x).softmax(1).topk(2)
    print(f"accuracy on {len(test_images)} held-out images: {accuracy:.1%}")
    first, second = said.T
    # What is explained: the score of the digit that the model says.
    why_not = functools.partial(difference, this=first, other=second)
    neuron = (5, slice(None), slice(None))  # channel 5 of the second convolution, all places
    smooth = attrfn.noise_tunnel(attrfn.gradient, n_samples=50, stdevs=0.2, key=0)
    ig = functools.partial(attrfn.integrated_gradients, n_steps=200)
    neuron_ig = attrfn.neuron_integrated_gradients
    rules = attrfn.rules.epsilon_alpha2_beta1_flat()

    def of(method: Callable[..., Tensor], **options: object) -> Callable[[], Tensor]:
        return functools.partial(method, model, x, **({"target": first} | options))

    methods = {
        "gradient": of(attrfn.gradient),
        "smoothed gradient": of(smooth),
        "guided backprop": of(attrfn.guided_backprop),
        "input x gradient": of(attrfn.input_x_gradient),
        "integrated gradients": of(ig),
        "DeepLIFT": of(attrfn.deep_lift),
        "LRP, epsilon and z+": of(attrfn.lrp),
        "LRP, alpha 2 beta 1, flat": of(attrfn.lrp, rules=rules),
        "why not the second best?": of(ig, target=why_not),
        "expected gradients": of(attrfn.gradient_shap, baselines=train_images[:100], n_samples=200),
        "occlusion, 2 x 2": of(attrfn.occlusion, window=(1, 2, 2)),
        "sampled Shapley values": of(attrfn.shapley_value_sampling, antithetic=True),
        "Grad-CAM, layer 6": of(attrfn.grad_cam, layer="6"),
        "HiResCAM, layer 3": of(attrfn.hires_cam, layer="3"),
        "conductance, layer 1": of(attrfn.layer_conductance, layer="1"),
        "neuron 5 of layer 3": functools.partial(neuron_ig, model, x, layer="3", neuron=neuron),
    }
    # Where attributions promise to sum to f(x) - f(0): the function and target they explain.
    names = ("integrated gradients", "DeepLIFT", "sampled Shapley values", "conductance, layer 1")
    complete = dict.fromkeys(names, (model, first)) | {
        "why not the second best?": (model, why_not),
        "neuron 5 of layer 3": (attrfn.split(model, "3").head, neuron),
    }
    maps, notes, rows = {}, {}, []
    for name, method in methods.items():
        method()  # the first call pays for set-up
        start = time.perf_counter()
        maps[name] = method()
        ms, gap = f"{1000 * (time.perf_counter() - start):.1f} ms", None
        if name in complete:
            f, target = complete[name]
            gap = attrfn.completeness_delta(f, x, maps[name], target=target).abs().max().item()
        notes[name] = ms if gap is None else f"{ms}, gap {gap:.0e}"
        rows.append({"method": name, "time": ms, "largest completeness gap": gap})
        print(f"{name:26} {notes[name]}")
    titles = [
        f"label {label}\nsays {a} ({p:.0%})\nthen {b} ({q:.0%})"
        for label, (a, b), (p, q) in zip(labels, said, probability, strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    figures, every = {}, list(maps)
    for file, half in {"digits": every[:8], "digits_more": every[8:]}.items():
        columns, under = ({name: d[name] for name in half} for d in (maps, notes))
        title = "What speaks for the digit that the model says?"
        figure = viz.image_grid(x, columns, titles=titles, notes=under, title=title)
        figure.savefig(out / f"{file}.png", dpi=150)
        figures[f"Six held-out images, explained: {half[0]} to {half[-1]}"] = figure
    page = viz.report(
        out / "digits.html",
        title="Handwritten digits, explained",
        text=f"A small convolutional network reads {accuracy:.1%} of {len(test_images)} held-out "
        "digits right. Red speaks for the explained score, blue against it. The completeness gap "
        "is how far attributions are from summing to the score's change from an empty image.",
        figures=figures,
        tables={"Costs for the six images": rows},
    )
    print(f"wrote {out / 'digits.png'}, {out / 'digits_more.png'} and {page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
