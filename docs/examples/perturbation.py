"""One picture for each perturbation method: boards of four digits, and patients with diabetes."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestRegressor
from torch import Tensor, nn

import attrfn
from attrfn import viz

NAMES = "age,sex,body mass index,blood pressure,total cholesterol,LDL,HDL,cholesterol / HDL,"
NAMES = [*NAMES.split(",")[:-1], "log triglycerides", "blood sugar"]


def trained(model: nn.Module, loss: Callable[[], Tensor], decay: float = 0.0) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=300)
    for step in range(300):
        if step % 100 == 0:
            print(f"training: step {step} of 300", flush=True)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def boards(images: Tensor, labels: Tensor, n: int, blank: float = 0.0) -> tuple[Tensor, Tensor]:
    """n boards (n, 1, 16, 16) of four random digits, some blank, and their labels (n, 4)."""
    chosen, empty = torch.randint(len(images), (n, 4)), torch.rand(n, 4) < blank
    grid = images[chosen].where(~empty[..., None, None, None], 0).reshape(n, 2, 2, 8, 8)
    return grid.transpose(2, 3).reshape(n, 1, 16, 16), labels[chosen].where(~empty, 10)


def loss_of_each(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each board, from ten log-odds: is there a 0, is there a 1, ..."""
    present = nn.functional.one_hot(labels, 11).amax(1)[:, :10].float()
    every = nn.functional.binary_cross_entropy_with_logits(logits, present, reduction="none")
    return every.sum(1)


def board_model(images: Tensor, labels: Tensor) -> nn.Module:
    def block(i: int, o: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()

    model = nn.Sequential(
        *(*block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), *block(32, 64)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )

    def loss() -> Tensor:
        x, y = boards(images, labels, 64, blank=0.3)
        return loss_of_each(model(x), y).mean()

    return trained(model, loss)


def blocks(size: int) -> Tensor:
    """A feature mask (16, 16) of squares."""
    row = torch.arange(16) // size
    return row[:, None] * 16 + row


def of_boards() -> dict[str, Figure]:
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
    print("methods on the boards", flush=True)
    ablate = partial(attrfn.feature_ablation, model, x, target=digits)
    occlude = partial(attrfn.occlusion, model, x, target=digits)
    likely = partial(lambda out, digit: out.sigmoid().gather(1, digit[:, None]), digit=digits)
    rise = partial(attrfn.rise, model, x, target=likely, grid=4)
    lime = partial(attrfn.lime, model, x, target=digits, feature_mask=blocks(4), n_samples=300)
    lasso, ridge = attrfn.surrogates.lasso, attrfn.surrogates.ridge
    masks = {"each pixel": None, "blocks 4 x 4": blocks(4), "the digits": blocks(8)}
    fits = {"lasso(0.01)": lasso(0.01), "lasso(0.5)": lasso(0.5), "ridge(1)": ridge(1.0)}
    columns = {
        "feature_ablation": {name: ablate(feature_mask=mask) for name, mask in masks.items()},
        "occlusion": {f"window {w} x {w}": occlude(window=(1, w, w)) for w in (2, 4, 8)},
        "lime": {name: lime(surrogate=surrogate) for name, surrogate in fits.items()},
        "rise": {
            f"{n} masks, less the mean": (a := rise(n_samples=n)) - a.mean((1, 2, 3), keepdim=True)
            for n in (100, 1000, 10000)
        },
    }
    for name in ("ablation_cam", "score_cam"):
        cam = partial(getattr(attrfn, name), model, x, target=digits, relu=True)
        columns[name] = {f"layer {layer}": cam(layer=layer) for layer in ("5", "9", "12")}
    figures = {name: grid(maps, title=name) for name, maps in columns.items()}

    channels = {"layer": "12", "layer_mask": torch.arange(64)[:, None, None]}
    three = held_out[(found == 3).any(1)]
    lost = attrfn.layer_feature_ablation(model, three, target=3, **channels)[..., 0, 0]
    bar = partial(
        viz.bar, names=[f"channel {k}" for k in range(64)], top=8, rest=False, signed=True
    )
    figures["layer_feature_ablation"] = bar(
        lost,
        title="layer_feature_ablation: what finds a 3?",
        xlabel=f"lost log-odds of a 3: mean and standard error over {len(three)} boards",
    )
    target = partial(loss_of_each, labels=found)
    figures["layer_feature_permutation"] = bar(
        -attrfn.layer_feature_permutation(model, held_out, target=target, **channels)[..., 0, 0],
        title="layer_feature_permutation: what is needed?",
        xlabel=f"added loss: mean and standard error over {len(found)} boards",
    )
    active = attrfn.layer_activation(model, x[:1], layer="9")[0].argmax(0)
    units = [(int(active[i, j]), i, j) for i, j in ((1, 1), (4, 4), (6, 2))]
    neuron = partial(attrfn.neuron_feature_ablation, model, x[:1], layer="9")
    figures["neuron_feature_ablation"] = viz.image_grid(
        x[:1],
        {f"channel {c} at row {i}, column {j}": neuron(neuron=(c, i, j)) for c, i, j in units},
        title="neuron_feature_ablation",
    )
    return figures


def heat_map(matrix: Tensor, limit: float, title: str) -> Figure:
    """Interactions of pairs in colour; what a feature does alone, on the diagonal, in numbers."""
    figure = Figure(figsize=(7.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    pairs = matrix - matrix.diag().diag()
    shown = axes.imshow(pairs, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for i, j in ((i, j) for i in range(10) for j in range(10) if matrix[i, j].abs() >= 0.5):
        text = f"{matrix[i, j]:+.0f}".replace("-", "\N{MINUS SIGN}")
        style = {"color": "w" if pairs[i, j].abs() > limit / 2 else "k", "size": 8}
        axes.text(j, i, text, ha="center", va="center", weight="bold" if i == j else None, **style)
    axes.set_xticks(range(10), NAMES, rotation=40, ha="right", size=8)
    axes.set_yticks(range(10), NAMES, size=8)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
    figure.colorbar(shown, label="interaction of two features")
    return figure


def of_patients() -> dict[str, Figure]:
    data = load_diabetes(scaled=False)
    raw, y = (torch.tensor(t, dtype=torch.float32) for t in (data.data, data.target))
    x = (raw - raw[:332].mean(0)) / raw[:332].std(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.Softplus(), nn.Linear(32, 1), nn.Flatten(0))
    mean, std = y[:332].mean(), y[:332].std()
    trained(net, lambda: (net(x[:332]) - (y[:332] - mean) / std).square().mean(), decay=0.1)
    model = lambda x: mean + std * net(x)  # noqa: E731
    exact, figures = attrfn.shapley_values(model, x[332:]), {}
    title = "shapley_values: each dot is one patient"
    label = "disease progression, from the mean patient to this one"
    figures["shapley_values"] = viz.strip(exact, raw[332:], NAMES, title=title, xlabel=label)

    label = "one patient: estimate \N{PLUS-MINUS SIGN} its standard error; circle: exact"
    for method, n in ((attrfn.shapley_value_sampling, 10), (attrfn.kernel_shap, 100)):
        found, error = method(model, x[332:333], n_samples=n, return_stderr=True)
        title = f"{method.__name__}, n_samples={n}"
        figure = viz.bar(found, NAMES, error=error[0], title=title, xlabel=label)
        for row, name in enumerate(figure.axes[0].get_yticklabels()):
            figure.axes[0].plot(exact[0, NAMES.index(name.get_text())], row, "ok", mfc="w", ms=4)
        figures[method.__name__] = figure

    forest = RandomForestRegressor(random_state=0, n_jobs=1).fit(x[:332], y[:332])

    def loss(x: Tensor) -> float:
        return float((y[332:] - torch.tensor(forest.predict(x))).square().mean())

    shuffle = partial(attrfn.feature_permutation, loss, x[332:])
    figures["feature_permutation"] = viz.bar(
        -torch.cat([shuffle(key=key) for key in range(10)]),
        NAMES,
        error="std",
        signed=True,
        title="feature_permutation of a random forest",
        xlabel="added squared error: mean and standard deviation over 10 keys",
    )

    both = (attrfn.interactions, attrfn.integrated_hessians)
    pairs = {method.__name__: method(model, x[332:333])[0] for method in both}
    limit = max(float((m - m.diag().diag()).abs().max()) for m in pairs.values())
    return figures | {name: heat_map(m, limit, f"{name}, one patient") for name, m in pairs.items()}


def main(out: Path) -> None:
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in (of_boards() | of_patients()).items():
        figure.savefig(out / f"{name}.png", dpi=88)
        print(f"wrote {out / f'{name}.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
