"""Sizes, structures, modes and guards of exported programs: right, or refused in one sentence."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from programs_cases import DYNAMIC, program_of, program_of_model, program_of_net, through_a_file
from test_programs import near
from torch import Tensor, nn
from zoo import make, randn

import attrfn
import attrfn.programs

pytestmark = [
    pytest.mark.compiles,
    # Raised by torch inside run_decompositions.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]


def perceptron() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


METHODS = {
    "gradient": attrfn.gradient,
    "integrated_gradients": functools.partial(attrfn.integrated_gradients, n_steps=7),
    "gradient_shap": functools.partial(
        attrfn.gradient_shap, baselines=randn(2, 4, seed=5), n_samples=3
    ),
    "feature_ablation": attrfn.feature_ablation,
    "kernel_shap": functools.partial(attrfn.kernel_shap, n_samples=9),
    "deep_lift": attrfn.deep_lift,
    "lrp": attrfn.lrp,
    "smoothgrad": attrfn.noise_tunnel(attrfn.gradient, n_samples=3),
}


# --- a fixed batch ------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [1, 2, 5])
@pytest.mark.parametrize("name", METHODS)
def test_a_fixed_batch_runs_any_number_of_rows(name: str, fixed: int) -> None:
    """In groups, the last one filled: with batches of 3 the groups fit, are larger, or smaller."""
    model, x = perceptron(), randn(3, 4, seed=1)
    program = program_of(model, randn(fixed, 4), shapes=None)
    near(METHODS[name](program, x, target=1), METHODS[name](model, x, target=1))


@pytest.mark.parametrize("fixed", [1, 3])
def test_layers_of_a_fixed_batch(fixed: int) -> None:
    """Copies of the batch run one by one, because a group would be a call of the layer."""
    model, x = perceptron(), randn(fixed, 4, seed=1)
    program = program_of(model, x, shapes=None)
    for method in (
        attrfn.layer_activation,
        attrfn.layer_gradient_x_activation,
        attrfn.layer_integrated_gradients,
        attrfn.layer_conductance,
        attrfn.layer_feature_ablation,
    ):
        more = {} if method is attrfn.layer_activation else {"target": 1}
        near(method(program, x, layer="0", **more), method(model, x, layer="0", **more))
    neuron = {"layer": "1", "neuron": 2}
    for method in (attrfn.neuron_gradient, attrfn.neuron_integrated_gradients):
        near(method(program, x, **neuron), method(model, x, **neuron))
    with pytest.raises(ValueError, match=r"^the program was made for a batch of \d and got 7 rows"):
        attrfn.layer_activation(program, randn(7, 4), layer="0")


def test_vmap_over_a_batch_of_one() -> None:
    model, x = perceptron(), randn(3, 4, seed=1)
    program = program_of(model, x[:1], shapes=None)
    found = torch.func.vmap(lambda z: attrfn.gradient(program, z[None], target=1)[0])(x)
    near(found, attrfn.gradient(model, x, target=1))


class Centred(nn.Module):
    """Its rows depend on each other."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).square()


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum()


def test_rows_that_depend_on_each_other_run_in_no_groups() -> None:
    program = program_of(Centred(), randn(3, 2), shapes=None)
    x = randn(3, 2, seed=1)
    near(
        attrfn.integrated_gradients(program, x, target=0),
        attrfn.integrated_gradients(Centred(), x, target=0, chunk_size=1),
    )
    for rows in (1, 2, 4, 6):
        with pytest.raises(ValueError, match=r"cannot run in groups, because its rows depend on"):
            attrfn.gradient(program, randn(rows, 2, seed=1), target=0)
    total = program_of(Total(), randn(3, 2), shapes=None)
    with pytest.raises(ValueError, match=r"an output of shape \(\) has no row for each example"):
        attrfn.feature_ablation(total, randn(6, 2))


def test_one_sentence_for_other_sizes() -> None:
    program = program_of(perceptron(), randn(2, 4))
    for x, said in (
        (randn(3, 5), r"has shape \(3, 5\), and it was exported for \(s\d+, 4\): give these sizes"),
        (randn(3, 2, 4), r"has shape \(3, 2, 4\)"),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            attrfn.gradient(program, x, target=1)
        assert len(str(raised.value)) <= 300


class Pairs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(1) * x.shape[1]


def test_equal_and_limited_sizes() -> None:
    size = torch.export.Dim("size", min=3, max=6)
    rows = torch.export.Dim("rows")
    shapes = ({0: rows, 1: size}, {0: rows, 1: size})
    program = program_of(Pairs(), randn(2, 4), randn(2, 4), shapes=shapes)
    x, y = randn(3, 5), randn(3, 5, seed=1)
    near(attrfn.gradient(program, (x, y)), attrfn.gradient(Pairs(), (x, y)))
    for a, b in ((x, y[:, :4]), (x[:, :2], y[:, :2]), (randn(3, 7), randn(3, 7))):
        with pytest.raises(
            ValueError, match=r"^(input '[xy]' of the program|the program does not)"
        ):
            attrfn.gradient(program, (a, b))


class Branches(nn.Module):
    """A Python branch on a size, of which export keeps one side and a guard."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) if x.shape[1] > 5 else x.square().sum(1)


def test_guards() -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.AUTO},)
    program = program_of(Branches(), randn(2, 8), shapes=shapes)
    x = randn(3, 7)
    near(attrfn.gradient(program, x), torch.ones_like(x))
    with pytest.raises(ValueError, match=r"^(the program does not hold|input 'x')") as raised:
        attrfn.gradient(program, x[:, :4])
    assert len(str(raised.value)) <= 300


# --- inputs and outputs of any structure --------------------------------------------------------


class Structured(nn.Module):
    """Inputs in a dict and a tuple, an argument by name, a number, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(
        self, given: dict[str, Tensor], pair: tuple[Tensor, Tensor], *, mask: Tensor, scale: float
    ) -> dict[str, Any]:
        h = self.lin(given["b"] * mask + given["a"]) * scale
        return {"logits": h + pair[0] * pair[1], "hidden": [h]}


def test_trees_of_inputs_and_arguments_by_name() -> None:
    model = make(Structured)
    t = [randn(2, 4), randn(2, 4), randn(2, 3), randn(2, 3), randn(2, 4)]
    rows = DYNAMIC
    exported = torch.export.export(
        model,
        ({"b": t[0], "a": t[1]}, (t[2], t[3])),
        {"mask": t[4], "scale": 2.0},
        dynamic_shapes={
            "given": {"b": rows, "a": rows}, "pair": (rows, rows), "mask": rows, "scale": None
        },
    )  # fmt: skip
    program = attrfn.programs.load(exported, outputs="logits")
    x = [randn(3, 4, seed=1), randn(3, 4, seed=2), randn(3, 3, seed=3), randn(3, 3, seed=4)]
    # The keys in another order than that of the export.
    inputs = ({"a": x[0], "b": x[1]}, (x[2], x[3]))
    mask = randn(3, 4, seed=5)

    def bound(f: Any) -> Any:
        return functools.partial(f, mask=mask, scale=2.0)

    logits = lambda *args, **named: model(*args, **named)["logits"]  # noqa: E731
    for method in (attrfn.gradient, attrfn.integrated_gradients, attrfn.feature_ablation):
        near(method(bound(program), inputs, target=1), method(bound(logits), inputs, target=1))
    whole = attrfn.programs.load(exported)
    pick = lambda out: out["logits"][:, 1]  # noqa: E731
    near(
        attrfn.gradient(bound(whole), inputs, target=pick),
        attrfn.gradient(bound(logits), inputs, target=1),
    )
    several = attrfn.programs.load(exported, outputs=["hidden", 0])(*inputs, mask=mask, scale=2.0)
    assert isinstance(several, tuple)
    assert torch.equal(several[1], several[0][0] + x[2] * x[3])
    with pytest.raises(ValueError, match=r"'scale' of the program is 3.0, and it was exported for"):
        program(*inputs, mask=mask, scale=3.0)
    with pytest.raises(ValueError, match=r"in a structure that it was not exported for"):
        program(*inputs)
    with pytest.raises(ValueError, match=r"outputs names 'loss', and the program returns 2 output"):
        attrfn.programs.load(exported, outputs="loss")(*inputs, mask=mask, scale=2.0)


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask).square()


def test_arguments_by_name_or_by_place() -> None:
    """Whatever the export took, as the module does."""
    x, mask = randn(3, 4), randn(3, 4, seed=1)
    by_place = program_of(Masked(), randn(2, 4), randn(2, 4))
    by_name = program_of(Masked(), randn(2, 4), mask=randn(2, 4))
    want = attrfn.integrated_gradients(functools.partial(Masked(), mask=mask), x, target=1)
    for program in (by_place, by_name):
        for model, chunk in (
            (functools.partial(program, mask=mask), None),
            (lambda x, p=program: p(x, mask), 1),
        ):
            near(attrfn.integrated_gradients(model, x, target=1, chunk_size=chunk), want)


# --- modes, regions and state -------------------------------------------------------------------


def test_a_batch_norm_in_training_mode_explains_the_batch_as_a_whole() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))).train()
    program = program_of(model, randn(4, 4))
    x = randn(6, 4, seed=1)
    before = {k: b.clone() for k, b in program.named_buffers()}
    for method in (attrfn.gradient, attrfn.integrated_gradients):
        with pytest.warns(UserWarning, match=r"rows depend on each other"):
            want = method(model, x, target=1)
        with pytest.warns(UserWarning, match=r"^the program was exported in training mode and"):
            near(method(program, x, target=1), want)
    assert all(torch.equal(b, before[k]) for k, b in program.named_buffers())
    assert program.training
    with pytest.raises(ValueError, match=r"^the program was exported after model.train\(\)"):
        program.eval()


def test_dropout_in_training_mode_draws_the_same_numbers_in_each_run() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))).train()
    program = program_of(model, randn(2, 4))
    x = randn(3, 4, seed=1)
    with pytest.warns(UserWarning, match=r"the model draws random numbers"):
        found = attrfn.integrated_gradients(program, x, target=1)
    with pytest.warns(UserWarning, match=r"the model draws random numbers"):
        near(found, attrfn.integrated_gradients(model, x, target=1))
    quiet = program_of(model.eval(), randn(2, 4))
    near(attrfn.gradient(quiet, x, target=1), attrfn.gradient(model, x, target=1))
    assert quiet.eval() is quiet
    with pytest.raises(ValueError, match=r"call model.train"):
        quiet.train()


class Counts(nn.Module):
    """Writes into a buffer, which it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(()))
        self.lin = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        with torch.no_grad():
            fixed = self.lin(x)
        return self.lin(x) * self.seen + fixed


@pytest.mark.parametrize("decompose", [False, True])
def test_buffers_that_are_written_and_regions_without_gradients(decompose: bool) -> None:
    model = make(Counts)
    program = program_of(model, randn(2, 4), decompose=decompose)
    x = randn(3, 4, seed=1)
    near(attrfn.feature_ablation(program, x, target=1), attrfn.feature_ablation(model, x, target=1))
    for method in (attrfn.gradient, attrfn.integrated_gradients):
        for _ in range(2):
            want = method(model, x, target=1)
            # torch leaves no_grad out of decomposed programs: the third copy of the layer counts.
            near(method(program, x, target=1), 1.5 * want if decompose else want)
    assert float(program.seen) == 1.0


class Frozen(nn.Module):
    """Modules in a region without gradients, which is one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.second(self.first(x).relu())
        return self.out(y * x)


@pytest.mark.parametrize("file", [False, True])
def test_modules_in_a_region_without_gradients(file: bool) -> None:
    model, x = make(Frozen), randn(3, 4, seed=1)
    exported = torch.export.export(model, (randn(2, 4),), dynamic_shapes=(DYNAMIC,))
    program = through_a_file(exported) if file else attrfn.programs.load(exported)
    near(attrfn.gradient(program, x, target=1), attrfn.gradient(model, x, target=1))
    near(
        attrfn.layer_integrated_gradients(program, x, target=1, layer="out"),
        attrfn.layer_integrated_gradients(model, x, target=1, layer="out"),
    )
    for layer in ("first", "second"):
        with pytest.raises(
            ValueError, match=rf"^layer '{layer}' runs no operation in the exported"
        ):
            attrfn.layer_activation(program, x, layer=layer)


class Checks(nn.Module):
    """Assertions and conversions, which export writes as operations of their own."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        torch._check(x.shape[0] < 1000)
        mean = x.sum(1) / x.shape[1]
        return x.to(torch.float64).square().sum(1) + mean * n.to(x.dtype)


def test_assertions_in_the_graph() -> None:
    x, n = randn(3, 4), torch.arange(3)
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}, DYNAMIC)
    program = program_of(Checks(), randn(2, 5), torch.arange(2), shapes=shapes)
    bound = functools.partial(program, n=n)
    near(
        attrfn.integrated_gradients(bound, x),
        attrfn.integrated_gradients(functools.partial(Checks(), n=n), x),
    )
    near(torch.func.vmap(lambda z, m: program(z[None], m[None])[0])(x, n), Checks()(x, n))


class Chooses(nn.Module):
    """A branch on a value, which export writes as torch.cond."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v.sin(), (x,)).sum(1)


def test_branches_on_values() -> None:
    program = program_of(Chooses(), randn(2, 4), shapes=None)
    for x in (randn(2, 4).abs(), -randn(2, 4).abs()):
        want = torch.full_like(x, 2.0) if x.sum() > 0 else x.cos()
        near(attrfn.gradient(program, x), want)


def test_strict_exports() -> None:
    model, _, x = program_of_model("blocks")
    program = program_of(model, randn(2, 4), strict=True)
    for call in (0, 1):
        method = attrfn.at_layer(attrfn.gradient, "block", call=call)
        near(method(program, x, target=1), method(model, x, target=1))


# --- what is refused ----------------------------------------------------------------------------


def test_names_that_are_no_layers() -> None:
    _, program, net = program_of_net("norm")
    x = net.inputs()
    with pytest.raises(ValueError, match=r"layer 'nothing' is not part of Program"):
        attrfn.layer_activation(program, x, layer="nothing")
    inner = make(lambda: nn.Sequential(nn.Linear(4, 3), nn.Identity()))
    with pytest.raises(ValueError, match=r"layer '1' is not part of|runs no operation"):
        attrfn.layer_activation(program_of(inner, randn(2, 4)), randn(2, 4), layer="1")


def test_a_program_that_is_not_loaded() -> None:
    x = randn(2, 4)
    exported = torch.export.export(perceptron(), (x,))
    for f in (attrfn.gradient, attrfn.kernel_shap, attrfn.lrp, attrfn.layer_activation):
        more = {"layer": "0"} if f is attrfn.layer_activation else {"target": 1}
        for given, said in ((exported, "an ExportedProgram"), ("m.pt2", "the path 'm.pt2'")):
            with pytest.raises(TypeError, match=rf"^model_fn is {said}, expected a model function"):
                f(given, x, **more)
    near(
        attrfn.gradient(exported.module(), x, target=1),
        attrfn.gradient(perceptron(), x, target=1),
    )
    with pytest.raises(
        TypeError, match=r"^program is a graph module, expected the ExportedProgram"
    ):
        attrfn.programs.load(exported.module())


def test_objects_that_are_modules_already() -> None:
    model, x = perceptron(), randn(2, 4)
    assert attrfn.programs.load(model) is model
    compiled = torch.compile(model, backend="eager")
    assert attrfn.programs.load(compiled) is compiled
    second = attrfn.programs.load(make(Two), outputs=1)
    near(attrfn.gradient(second, x), torch.full_like(x, 2.0))
    near(attrfn.layer_activation(second, x, layer="module.same"), x)
    for bad in (3, None, object()):
        with pytest.raises(TypeError, match=r"^program is "):
            attrfn.programs.load(bad)
    for outputs in (1.5, True, [], ["a", None]):
        with pytest.raises(TypeError, match=r"^outputs is "):
            attrfn.programs.load(model, outputs=outputs)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.same(x)
        return y.sum(1), 2 * y.sum(1)


def test_digests_tell_programs_apart() -> None:
    """attrfn.data resumes a run with the same program alone."""
    from attrfn.data._digest import digest

    model, x = perceptron(), randn(2, 4)
    same = [through_a_file(torch.export.export(model, (x,))) for _ in range(2)]
    other = nn.Sequential(model[0], nn.Sigmoid(), model[2])
    assert digest(same[0]) == digest(same[1])
    attrfn.gradient(same[0], randn(5, 4), target=1)  # which notes something about its rows
    assert digest(same[0]) == digest(same[1])
    assert digest(through_a_file(torch.export.export(other, (x,)))) != digest(same[0])
