"""How little has to change before a small network reads a digit wrong?"""

import argparse
import functools
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from digits import data, trained_model
from matplotlib.figure import Figure
from torch import Tensor, nn

from attrfn import random, robust, viz

RADII = torch.arange(1, 33) / 64  # in units of the images, whose pixels are in [0, 1]
BOX = (0, 1)


def fgsm(inputs: Tensor, value: Tensor, keys: Tensor, *, model: nn.Module, y: Tensor) -> Tensor:
    """One step; the keys of the rows are not needed."""
    return robust.fgsm(model, inputs, target=y, epsilon=value, bounds=BOX)


def pgd(inputs: Tensor, value: Tensor, keys: Tensor, *, model: nn.Module, y: Tensor) -> Tensor:
    """Ten steps from a random point, which the key of the row chooses."""
    return robust.pgd(model, inputs, target=y, radius=value, n_steps=10, bounds=BOX, key=keys)


def noise(inputs: Tensor, value: Tensor, keys: Tensor) -> Tensor:
    """Every pixel moves as far as FGSM moves it, up or down by chance."""
    signs = 2 * random.bernoulli(keys, 0.5, inputs.shape[1:]).to(inputs) - 1
    return (inputs + value.view(-1, 1, 1, 1) * signs).clamp(*BOX)


def probability(outputs: Tensor, *, y: Tensor) -> Tensor:
    return outputs.softmax(1).gather(1, y[:, None])[:, 0]


def still_right(found: dict[str, robust.MinParam], right: Tensor) -> Figure:
    """The share of images that are read right against the strength of each attack."""
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for name, f in found.items():
        value = f.value.nan_to_num(torch.inf)[:, None]
        share = right.float().mean() * (value > RADII).float().mean(0)
        axes.step(
            [0, *RADII.tolist()], [right.float().mean(), *share.tolist()], where="post", label=name
        )
    axes.set(xlabel="largest change of a pixel", ylabel="share of images read right", ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def main(out: Path) -> None:
    train_images, train_labels, images, labels = data()
    model = trained_model(train_images, train_labels)
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    x, y = images[right], labels[right]
    print(f"{right.float().mean():.1%} of {len(images)} held-out images are read right")

    attacks = {
        "noise": noise,
        "FGSM": functools.partial(fgsm, model=model, y=y),
        "PGD": functools.partial(pgd, model=model, y=y),
    }
    search = functools.partial(robust.min_param_perturbation, model, x, values=RADII, target=y)
    found = {name: search(attack, mode="binary") for name, attack in attacks.items()}
    print("the least change of a pixel that changes the answer:")
    for name, f in found.items():
        middle = f.value.nan_to_num(torch.inf).median()
        print(f"  {name:6} median {middle:.3f}, found for {int(f.found.sum())} of {len(x)} images")

    at_strength = {
        "noise": lambda inputs, keys: noise(inputs, torch.full((len(inputs),), 0.1), keys),
        "FGSM": functools.partial(robust.fgsm, model, target=y, epsilon=0.1, bounds=BOX),
        "PGD": functools.partial(robust.pgd, model, target=y, radius=0.1, bounds=BOX),
        "PGD, l2": functools.partial(
            robust.pgd, model, target=y, radius=0.4, norm="l2", bounds=BOX
        ),
    }
    metric = functools.partial(probability, y=y)
    compared = robust.attack_comparator(model, x, at_strength, metric=metric, n_attempts=5)
    print("the probability of the right digit, mean over images; worst of five attempts:")
    for name, numbers in compared.items():
        print(f"  {name:9} {numbers.mean.mean():.3f}  {numbers.min.mean():.3f}")

    some = torch.arange(10).unsqueeze(1).eq(y).int().argmax(1)[:6]  # the first image of each digit
    moved = {name: f.inputs[some] for name, f in found.items() if name != "noise"}
    with torch.no_grad():
        says = {name: model(z).argmax(1).tolist() for name, z in moved.items()}
    titles = [
        f"a {label}\n" + "\n".join(f"{name}: {said[i]}" for name, said in says.items())
        for i, label in enumerate(y[some].tolist())
    ]
    out.mkdir(parents=True, exist_ok=True)
    figure = viz.image_grid(
        x[some],
        {f"change by {name}": z - x[some] for name, z in moved.items()},
        titles=titles,
        title="The least change that changes the answer",
        outline=False,
    )
    figure.savefig(out / "attacks.png", dpi=150)
    still_right(found, right).savefig(out / "attacks_strength.png", dpi=150)
    print(f"wrote {out / 'attacks.png'} and {out / 'attacks_strength.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
