"""Explain a classifier of breast cancer data: which measurements speak for a malignant tumour?

Run: python docs/examples/tabular.py --out demo_output
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import attrfn
from attrfn import viz


def trained_model(x: Tensor, y: Tensor) -> nn.Module:
    """A small network whose output is the log-odds of "malignant"."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 32), nn.Softplus(), nn.Linear(32, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()
    return model.eval()


def main(out: Path) -> None:
    cancer = load_breast_cancer()
    names = [str(name) for name in cancer.feature_names]
    raw = torch.tensor(cancer.data, dtype=torch.float32)
    y = torch.tensor(cancer.target == 0, dtype=torch.float32)
    train, test = train_test_split(torch.arange(len(raw)), test_size=0.25, random_state=0)
    x = (raw - raw[train].mean(0)) / raw[train].std(0)
    model = trained_model(x[train], y[train])
    with torch.no_grad():
        accuracy = ((model(x[test]) > 0) == (y[test] > 0.5)).float().mean().item()
    print(f"accuracy on {len(test)} held-out patients: {accuracy:.1%}")

    # Against what? Against the mean of the benign patients of the training set.
    benign = x[train][y[train] == 0].mean(0, keepdim=True)
    sick = test[y[test] == 1]
    attributions, errors = attrfn.kernel_shap(
        model, x[sick], baselines=benign, n_samples=300, return_stderr=True
    )
    with torch.no_grad():
        change = model(x[sick]) - model(benign)
    gap = (attributions.sum(1) - change).abs().max().item()
    print(f"the attributions sum to the log-odds above benign, up to {gap:.0e}")

    one = int(change.argmin())  # the patient that the model finds hardest
    figures = {
        "tabular_bars": viz.bar(
            attributions[one],
            names,
            top=12,
            error=errors[one],
            values=raw[sick[one]],
            title="Malignant or not? The tumour that the model finds hardest",
            xlabel="KernelSHAP, in log-odds, \N{PLUS-MINUS SIGN} standard error of the sampling",
        ),
        "tabular_waterfall": viz.waterfall(
            attributions[one],
            names,
            start=model(benign).detach(),
            end=model(x[sick[one]][None]).detach(),
            values=raw[sick[one]],
            title="From the mean benign patient to this one",
            xlabel='log-odds of "malignant"',
        ),
        "tabular_mean": viz.bar(
            attributions,
            names,
            title="Which measurements matter for malignant tumours?",
        ),
        "tabular_dependence": viz.dependence(
            attributions,
            raw[sick],
            names,
            feature="worst texture",
            colour="worst area",
            title="What a texture counts, and at which area",
            ylabel="KernelSHAP, in log-odds",
        ),
        "tabular_strip": viz.strip(
            attributions,
            raw[sick],
            names,
            top=12,
            title="What makes malignant tumours differ? Each dot is one patient",
            xlabel="KernelSHAP, in log-odds",
        ),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = out / f"{name}.png"
        figure.savefig(path, dpi=150)
        print(f"wrote {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    main(parser.parse_args().out)
