"""Which method should I trust on this model? Eight of them and chance, by ten metrics."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from digits import data, trained_model
from torch import Tensor, nn

import attrfn
from attrfn import metrics, random, viz
from attrfn.metrics import similarity

N = 40  # images
ig = functools.partial(attrfn.integrated_gradients, n_steps=50)
METHODS = {
    "gradient": attrfn.gradient,
    "smoothed gradient": attrfn.noise_tunnel(attrfn.gradient, n_samples=50, stdevs=0.2),
    "guided backprop": attrfn.guided_backprop,
    "input x gradient": attrfn.input_x_gradient,
    "integrated gradients": ig,
    "DeepLIFT": attrfn.deep_lift,
    "LRP, epsilon and z+": attrfn.lrp,
    "occlusion": functools.partial(attrfn.occlusion, window=(1, 1, 1)),
}


def chance(model_fn: nn.Module, inputs: Tensor, *, target: Tensor | None = None) -> Tensor:
    """No explanation at all: what every method has to beat. The same numbers for each image."""
    return random.normal(random.key(0), inputs.shape[1:]).expand_as(inputs)


def completeness_gap(
    model_fn: nn.Module, inputs: Tensor, attributions: Tensor, *, target: Tensor | None = None
) -> Tensor:
    """How far the attributions are from summing to the change of the output."""
    return attrfn.completeness_delta(model_fn, inputs, attributions, target=target).abs()


def absolute_spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation without its sign: a map that only changes its sign is the same map."""
    return similarity.spearman(a, b).abs()


def random_layers(
    model_fn: nn.Module,
    inputs: Tensor,
    method: Callable[..., Tensor],
    *,
    target: Tensor | None = None,
) -> Tensor:
    """Similarity to the maps of models with random layers, mean over the layers."""
    found = metrics.model_parameter_randomization(
        model_fn, inputs, method, target=target, similarity=absolute_spearman
    )
    return torch.stack(list(found.values())).mean(0)


completeness_gap.better = random_layers.better = "lower"  # compare reads this mark

METRICS = {
    "symmetric relevance gain": metrics.symmetric_relevance_gain,
    "deletion": metrics.deletion,
    "insertion": metrics.insertion,
    "faithfulness correlation": metrics.faithfulness_correlation,
    "infidelity": functools.partial(metrics.infidelity, n_samples=50, normalize=True),
    "completeness gap": completeness_gap,
    "sensitivity": functools.partial(metrics.sensitivity_max, n_samples=5, radius=0.05),
    "another class": functools.partial(
        metrics.random_logit, n_classes=10, similarity=absolute_spearman
    ),
    "random layers": random_layers,
    "sparseness": metrics.sparseness,
}


def drawn(trained: Tensor, drawn: Tensor) -> Tensor:
    """In place of a similarity: the maps of the model with random layers themselves."""
    return drawn


def table(found: metrics.Comparison) -> list[dict[str, object]]:
    """A row per metric: its better end, and the mean of each method."""
    means = found.mean().T.tolist()
    return [
        {"metric": name, "better": found.better[name]}
        | dict(zip(found.methods, numbers, strict=True))
        for name, numbers in zip(found.metrics, means, strict=True)
    ]


def main(out: Path) -> None:
    train_images, train_labels, images, _ = data()
    model = trained_model(train_images, train_labels)
    x = images[:N]
    with torch.no_grad():
        said = model(x).argmax(1)
    methods = {**METHODS, "chance": chance}
    found = metrics.compare(model, x, methods, METRICS, target=said)
    rows = table(found)
    width = max(map(len, METRICS))
    print(f"{f'mean of {N} images':{width}}  {'best':30}  {'then':30}  chance")
    for name, row in zip(METRICS, rows, strict=True):
        first, second = [m for m in found.ranking(name) if m != "chance"][:2]
        cells = [f"{row[m]:.3g} {m}" for m in (first, second)]
        print(f"{name:{width}}  {cells[0]:30}  {cells[1]:30}  {row['chance']:.3g}")

    few = ("gradient", "integrated gradients", "LRP, epsilon and z+", "chance")
    curve = functools.partial(metrics.removal_curve, model, x, target=said)
    maps = {name: methods[name](model, x, target=said) for name in few}
    falls = {name: curve(a) for name, a in maps.items()}
    rises = {name: curve(a, insert=True) for name, a in maps.items()}
    one, target = x[:1], said[:1]
    layers = {}
    for name in ("gradient", "guided backprop", "integrated gradients", "LRP, epsilon and z+"):
        method = functools.partial(METHODS[name], target=target)
        random_maps = metrics.model_parameter_randomization(model, one, method, similarity=drawn)
        named = {f"layer {layer}": values for layer, values in random_maps.items()}
        layers[name] = {"trained": method(model, one), **named}

    figures = {
        "compare": viz.compare(found, title="Eight methods and chance by ten metrics"),
        "compare_curves": viz.curves(falls, rises, ylabel="score of the digit that the model says"),
        "compare_sanity": viz.sanity(one, layers, similarity=absolute_spearman),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    page = viz.report(
        out / "compare.html",
        title="Which method should I trust on this model?",
        text="No metric says that an explanation is true: each compares it with one operation on "
        "the model. Chance is the same noise for each image: it is stable, and it fails wherever "
        "the model has a say.",
        figures={
            f"Eight methods and chance by ten metrics, {N} images": figures["compare"],
            "The score while pixels go, or come, in the order of their attributions": figures[
                "compare_curves"
            ],
            "Maps of the model with random layers, from the last one on": figures["compare_sanity"],
        },
        tables={f"Means over {N} images": rows},
    )
    print(f"wrote {', '.join(f'{out / name}.png' for name in figures)} and {page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
