"""One picture for each method with other derivatives, on the boards of perturbation.py."""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from perturbation import board_model, boards, loss_of_each
from sklearn.datasets import load_digits
from torch import Tensor, nn

import attrfn
from attrfn import rules, viz


class Transformer(nn.Module):
    """Two layers of attention over 16 patches of 4 x 4 pixels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.places = nn.Parameter(torch.randn(16, width) / 10)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.out(self.encoder(tokens).mean(1))


def transformer(images: Tensor, labels: Tensor) -> nn.Module:
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=1500)
    for step in range(1500):
        if step % 150 == 0:
            print(f"transformer: step {step} of 1500", flush=True)
        x, y = boards(images, labels, 64, blank=0.3)
        optimizer.zero_grad()
        loss_of_each(model(x), y).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def pictures() -> dict[str, Figure]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    held_out, found = boards(images[1300:], labels[1300:], 200)
    model = board_model(images[:1300], labels[:1300])
    different = (found.sort(1).values.diff(dim=1) > 0).all(1)

    def chosen(model: nn.Module) -> tuple[Tensor, Tensor]:
        """The surest of the boards with four different digits, asked for two of them."""
        board = loss_of_each(model(held_out), found).where(different, torch.inf).argmin()
        return held_out[board].expand(2, -1, -1, -1), found[board, [0, 3]]

    x, digits = chosen(model)
    explain = {"model_fn": model, "inputs": x, "target": digits}
    grid = partial(viz.image_grid, x, titles=[f"why is there\na {digit}?" for digit in digits])
    figures = {}

    maps = {
        "gradient": attrfn.gradient(**explain),
        "guided_backprop": attrfn.guided_backprop(**explain),
        "deconvolution": attrfn.deconvolution(**explain),
    }
    figures["guided_backprop"] = grid(maps, title="guided_backprop and deconvolution")

    def gaps(maps: dict[str, Tensor], model: nn.Module = model, x: Tensor = x) -> dict[str, str]:
        delta = partial(attrfn.completeness_delta, model, x, target=digits)
        return {name: f"gap {delta(a).abs().max():.0e}" for name, a in maps.items()}

    maps = {
        "input_x_gradient": attrfn.input_x_gradient(**explain),
        "deep_lift, rescale": attrfn.deep_lift(**explain),
        "deep_lift, reveal_cancel": attrfn.deep_lift(**explain, rule="reveal_cancel"),
        "integrated_gradients": attrfn.integrated_gradients(**explain),
    }
    figures["deep_lift"] = grid(maps, notes=gaps(maps), title="deep_lift")

    others = boards(images[:1300], labels[:1300], 100)[0]
    shap = partial(attrfn.deep_lift_shap, **explain)
    maps = {f"mean of {k}": shap(baselines=others[:k]) for k in (1, 10, 100)}
    figures["deep_lift_shap"] = grid(maps, title="deep_lift_shap: other boards as baselines")

    lrp = partial(attrfn.lrp, **explain)
    alone = {
        "epsilon(1e-6)": rules.epsilon(),
        "epsilon(0.25)": rules.epsilon(0.25),
        "gamma(0.25)": rules.gamma(0.25),
        "alpha_beta(2, 1)": rules.alpha_beta(2, 1),
        "z_plus()": rules.z_plus(),
    }
    maps = {name: lrp(rules=rule) for name, rule in alone.items()}
    print("rules of LRP, one by one", flush=True)
    figures["lrp"] = grid(maps, title="lrp: one rule for all linear operations")

    firsts = {"z_plus()": None, "z_box(0, 1)": rules.z_box(0, 1), "w_square()": rules.w_square()}
    maps = {
        name: lrp(rules=rules.composite(conv=rules.z_plus(), first=rule))
        for name, rule in (firsts | {"flat()": rules.flat()}).items()
    }
    title = "lrp: epsilon_plus, and a rule where the inputs are read"
    figures["lrp_first"] = grid(maps, title=title)

    composites = {
        "epsilon_plus": rules.epsilon_plus(),
        "epsilon_plus_flat": rules.epsilon_plus_flat(),
        "epsilon_alpha2_beta1": rules.epsilon_alpha2_beta1(),
        "epsilon_alpha2_beta1_flat": rules.epsilon_alpha2_beta1_flat(),
        "epsilon_gamma_box": rules.epsilon_gamma_box(0, 1),
    }
    maps = {name: lrp(rules=composite) for name, composite in composites.items()}
    figures["lrp_composites"] = grid(maps, title="lrp: composites")

    maps = {
        f"{name}, layer {layer}": getattr(attrfn, name)(**explain, layer=layer)
        for name in ("layer_lrp", "layer_deep_lift")
        for layer in ("2", "5", "9")
    }
    figures["layer_rules"] = grid(maps, title="layer_lrp and layer_deep_lift")

    active = attrfn.layer_activation(model, x[:1], layer="9")[0].argmax(0)
    units = [(int(active[i, j]), i, j) for i, j in ((1, 1), (4, 4), (6, 2))]
    neuron = partial(attrfn.neuron_deep_lift, model, x[:1], layer="9")
    figures["neuron_deep_lift"] = viz.image_grid(
        x[:1],
        {f"channel {c} at row {i}, column {j}": neuron(neuron=(c, i, j)) for c, i, j in units},
        title="neuron_deep_lift",
    )

    model = transformer(images[:1300], labels[:1300])
    x, digits = chosen(model)
    explain = {"model_fn": model, "inputs": x, "target": digits}
    maps = {
        "input_x_gradient": attrfn.input_x_gradient(**explain),
        "attn_lrp": attrfn.lrp(**explain, rules=rules.attn_lrp()),
        "cp_lrp": attrfn.lrp(**explain, rules=rules.cp_lrp()),
        "deep_lift": attrfn.deep_lift(**explain),
    }
    titles = [f"why is there\na {digit}?" for digit in digits]
    notes = {"deep_lift": gaps(maps, model, x)["deep_lift"]}
    title = "a transformer on the boards"
    figures["transformer"] = viz.image_grid(x, maps, titles=titles, notes=notes, title=title)
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
