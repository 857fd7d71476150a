"""Attributions are functions: differentiate them, map them over models, explain them again."""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

import attrfn

NAMES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def fit(
    models: list[nn.Module], x: Tensor, y: Tensor, steps: int = 60
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Train all models at once, by vmap over their stacked parameters."""
    skeleton = network().to("meta")
    params, _ = stack_module_state(models)

    def loss(p: dict[str, Tensor]) -> Tensor:
        return (functional_call(skeleton, p, (x,))[:, 0] - y).square().mean()

    optimizer = torch.optim.AdamW(params.values(), lr=3e-3, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        vmap(loss)(params).sum().backward()
        optimizer.step()
    return skeleton, {name: p.detach() for name, p in params.items()}


def main() -> None:
    torch.manual_seed(0)
    data = load_diabetes()
    x = torch.tensor(data.data / data.data.std(0), dtype=torch.float32)
    y = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32)
    skeleton, params = fit([network() for _ in range(8)], x[:350], y[:350])
    patient, some = x[400:401], x[400:404]

    def explain(p: dict[str, Tensor], rows: Tensor, **options: object) -> Tensor:
        def model(z: Tensor) -> Tensor:
            return functional_call(skeleton, p, (z,))[:, 0]

        return attrfn.integrated_gradients(model, rows, n_steps=16, **options)

    first = {name: p[0] for name, p in params.items()}

    # An ensemble: one call explains the patient by all eight models.
    each = vmap(explain, in_dims=(0, None))(params, patient)[:, 0]
    mean, spread = each.mean(0), each.std(0)
    print("1. integrated gradients of one patient, mean and standard deviation over 8 models")
    for i in mean.abs().topk(3).indices.tolist():
        print(f"   {NAMES[i]:>4} {mean[i]:+.3f} \N{PLUS-MINUS SIGN} {spread[i]:.3f}")

    # How the attribution of each feature changes with each feature: per example, by vmap.
    jacobian = vmap(jacrev(lambda row: explain(first, row[None])[0]))(some)
    others = jacobian - torch.diag_embed(jacobian.diagonal(dim1=1, dim2=2))
    i, j = divmod(int(others.abs().mean(0).argmax()), 10)
    print(f"2. the attribution of {NAMES[i]} depends most on another feature in {NAMES[j]}")

    # An attribution of an attribution: which features explain what bmi is given?
    def given_to_bmi(z: Tensor) -> Tensor:
        return explain(first, z, create_graph=True)[:, NAMES.index("bmi")]

    second = attrfn.integrated_gradients(given_to_bmi, patient, n_steps=16)[0]
    gap = (second.sum() - given_to_bmi(patient) + given_to_bmi(0 * patient)).abs().item()
    print(f"3. of the attribution of bmi, bmi itself explains {second[2] / second.sum():.0%}")
    print(f"   (the parts miss their sum by {gap:.1e})")

    # Weights that are perturbed: what the attributions would be for models close to this one.
    noise = {name: 0.05 * p.abs().mean() * torch.randn(64, *p.shape) for name, p in first.items()}
    near = vmap(lambda d: explain({k: first[k] + d[k] for k in first}, patient)[0])(noise)
    kept = (near.abs().argmax(1) == explain(first, patient)[0].abs().argmax()).float().mean()
    print(f"4. the strongest feature stays the same in {kept:.0%} of 64 models with 5 % noise")

    # Per-example options: each row has its own baseline, scale of noise and key, mapped with it.
    baselines = torch.stack([x[:350][y[:350].argsort()[k]] for k in (0, 100, 200, 349)])
    scales, keys = torch.tensor([0.1, 0.2, 0.4, 0.8]), attrfn.random.split(0, 4)

    def against(row: Tensor, baseline: Tensor, scale: Tensor, key: Tensor) -> Tensor:
        def model(z: Tensor) -> Tensor:
            return functional_call(skeleton, first, (z,))[:, 0]

        tunnel = attrfn.noise_tunnel(
            attrfn.integrated_gradients, n_samples=8, stdevs=scale, key=key
        )
        return tunnel(model, row[None], baselines=baseline, n_steps=16)[0]

    contrasts = vmap(against)(some, baselines, scales, keys).sum(1)
    texts = ", ".join(f"{c:+.2f}" for c in contrasts.tolist())
    print(f"5. smoothed predictions of four patients above those of four others: {texts}")
    print("   (each with its own baseline, scale of noise and key)")

    # A sensitivity: how fast do all attributions change when the weights move along a gradient?
    def size(p: dict[str, Tensor]) -> Tensor:
        return explain(p, some).abs().sum(1).mean()

    steepest = grad(size)(first)
    name = max(steepest, key=lambda k: float(steepest[k].norm() / first[k].norm()))
    print(f"6. the mean size of attributions reacts most to {name}")


if __name__ == "__main__":
    main()
