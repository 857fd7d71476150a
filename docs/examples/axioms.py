"""Property-based tests of a method of one's own, on a model of one's own.

Integrated gradients by the midpoint rule are written here in ten lines, twice. They should be
complete: hypothesis looks for an input of the trained network on which they are not. One version
has a mistake that a picture would not show, and the smallest input on which it shows is printed.
Then ``check_method`` runs both over random models, and ``check_model`` says whether the network
itself is fit for attribution.

The functions whose names begin with ``test_`` are what a test file would hold.
"""

import functools

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import attrfn
from attrfn import axioms, testing


def midpoint_gradients(
    model_fn: object, inputs: Tensor, *, target: object = None, baselines: object = None
) -> Tensor:
    """(x - x0) times the mean of the gradients at 32 midpoints of the path from x0 to x."""
    x0 = torch.zeros_like(inputs) if baselines is None else torch.as_tensor(baselines) + 0 * inputs
    total = torch.zeros_like(inputs)
    for k in range(32):
        point = x0 + (k + 0.5) / 32 * (inputs - x0)
        total = total + attrfn.gradient(model_fn, point, target=target)
    return (inputs - x0) * total / 32


def hasty_gradients(
    model_fn: object, inputs: Tensor, *, target: object = None, baselines: object = None
) -> Tensor:
    """The same, but the path starts at 0 whatever the baselines are."""
    x0 = torch.zeros_like(inputs) if baselines is None else torch.as_tensor(baselines) + 0 * inputs
    points = [(k + 0.5) / 32 * inputs for k in range(32)]
    gradients = [attrfn.gradient(model_fn, point, target=target) for point in points]
    return (inputs - x0) * torch.stack(gradients).mean(0)


def network() -> tuple[nn.Module, Tensor]:
    """A small network for the progress of diabetes, and its inputs."""
    torch.manual_seed(0)
    data = load_diabetes()
    x = torch.tensor(data.data / data.data.std(0))
    y = torch.tensor((data.target - data.target.mean()) / data.target.std())
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), x


MODEL, PATIENTS = network()
patients = st.lists(st.integers(0, len(PATIENTS) - 1), min_size=1, max_size=3, unique=True)


def completeness_of(method: object) -> object:
    """A property-based test: for any patients and any baseline, attributions sum to the change."""

    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(patients, st.floats(-1, 1, width=16))
    def test_completeness(rows: list[int], baseline: float) -> None:
        gap = axioms.completeness(MODEL, PATIENTS[rows], method, baselines=baseline)
        assert gap.abs().max() < 1e-2, (
            f"the gap is {gap.abs().max():.2g} for patients {rows} and baselines={baseline}"
        )

    return test_completeness


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(testing.games(4))
def test_shapley_values(game: testing.Game) -> None:
    """A method whose right values are known, on games that hypothesis makes up."""
    found = attrfn.shapley_values(game, game.inputs)
    torch.testing.assert_close(found[0], game.shapley)


# What pytest collects: one test for each check.
@testing.parametrize_with_checks(
    midpoint_gradients, axioms=["completeness", "linearity"], skip=["pytrees"], tolerance=1e-3
)
def test_midpoint_gradients(check: object) -> None:
    check()


def main() -> None:
    for method in (midpoint_gradients, hasty_gradients):
        name = method.__name__
        try:
            completeness_of(method)()
            print(f"{name}: complete for all patients and baselines that were tried")
        except AssertionError as error:
            print(f"{name}: not complete; {str(error).splitlines()[0]}")
    test_shapley_values()
    print("shapley_values: right on 50 games of four players\n")

    # Over random models: all properties at once, each failure with its smallest example.
    about = {"axioms": ["completeness", "linearity"], "skip": ["pytrees"], "tolerance": 1e-3}
    testing.check_method(midpoint_gradients, max_examples=3, **about)
    print("midpoint_gradients passes all checks")
    try:
        testing.check_method(hasty_gradients, max_examples=3, **about)
    except testing.MethodFailedError as error:
        print(f"{error}\n")
    else:
        raise AssertionError("the mistake was not found")

    print(testing.check_model(MODEL, PATIENTS[:4]))

    # A gap is a number for each example, so it can be plotted, or penalised.
    few_steps = functools.partial(attrfn.integrated_gradients, n_steps=2)
    gaps = axioms.completeness(MODEL, PATIENTS, few_steps).abs()
    print(f"\ntwo steps of integrated gradients miss the change by up to {gaps.max():.3f}")


if __name__ == "__main__":
    main()
