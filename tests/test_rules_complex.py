"""Complex numbers inside models: DeepLIFT is complete, LRP is that of real and imaginary parts."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from completeness import gap
from oracles import randn
from torch import nn

import attrfn
from attrfn import rules


def numbers(seed, *shape):
    return torch.view_as_complex(randn(seed, *shape, 2))


W, B, KERNEL, FILTER = numbers(1, 5, 4), numbers(2, 5), numbers(3, 3, 1, 3), numbers(4, 33)
WINDOW = torch.hann_window(16, dtype=torch.float64)
KEEP = torch.tensor([True, False, True, False])
z_of = torch.view_as_complex


def signal(r):
    """A signal (B, 64) of an input (B, 4, 2)."""
    return r.flatten(1).repeat(1, 8) * torch.linspace(0.5, 1.5, 64, dtype=r.dtype)


def spectrogram(r):
    return torch.stft(signal(r), 16, window=WINDOW, return_complex=True)


def written(r):
    y = torch.cat([z_of(r) * 0, z_of(r)[:, :1].exp()], 1)
    y[:, :4] = z_of(r) * 1j
    return y.tanh()


def attention(r):
    z = z_of(r)[:, :, None]
    weights = (z @ z.mH).real.softmax(-1)
    return (weights.to(z.dtype) @ z)[..., 0]


FORMS = {
    "of the issue": lambda r: torch.tanh(z_of(r)) * (1 + 2j),
    "z z": lambda r: z_of(r) * z_of(r),
    "z^2": lambda r: z_of(r) ** 2,
    "z^3": lambda r: z_of(r).pow(3),
    "z^c": lambda r: z_of(r) ** (0.3 + 0.7j),
    "z^z": lambda r: z_of(r) ** z_of(r).conj(),
    "x^c": lambda r: r[..., 0].exp() ** 1j,
    "linear": lambda r: F.linear(z_of(r), W, B),
    "matmul": lambda r: z_of(r) @ W.T,
    "addmm": lambda r: torch.addmm(B, z_of(r), W.T, beta=2j, alpha=1 - 1j),
    "einsum": lambda r: torch.einsum("bi,oi->bo", z_of(r), W),
    "conv": lambda r: F.conv1d(z_of(r)[:, None], KERNEL, B[:3], padding=1),
    "transposed conv": lambda r: F.conv_transpose1d(z_of(r)[:, None], KERNEL.transpose(0, 1)),
    "layer": lambda r: F.linear(F.linear(z_of(r), W, B).tanh(), W.T).exp(),
    "fft": lambda r: torch.fft.fft(r[..., 0]).tanh(),
    "rfft": lambda r: torch.fft.rfft(signal(r)).abs(),
    "irfft": lambda r: torch.fft.irfft(z_of(r).exp()).tanh(),
    "Fourier layer": lambda r: torch.fft.irfft(torch.fft.rfft(signal(r)) * FILTER).tanh(),
    "hfft": lambda r: torch.fft.hfft(z_of(r)).sin(),
    "fft2": lambda r: torch.fft.fft2(r).sin(),
    "fftn": lambda r: torch.fft.fftn(r, dim=(1, 2)).cos(),
    "stft": lambda r: spectrogram(r).abs(),
    "stft method": lambda r: signal(r).stft(16, window=WINDOW, return_complex=True).exp(),
    "istft": lambda r: torch.istft(spectrogram(r).tanh(), 16, window=WINDOW).tanh(),
    "abs": lambda r: z_of(r).abs(),
    "angle": lambda r: z_of(r).angle(),
    "sgn": lambda r: z_of(r).sgn(),
    "polar": lambda r: torch.polar(r[..., 0].exp(), r[..., 1]),
    "complex": lambda r: torch.complex(r[..., 0], r[..., 1].tanh()).sinh(),
    "quotient": lambda r: z_of(r) / (z_of(r).conj() + 3),
    "by a real": lambda r: z_of(r) / r[..., 0].exp(),
    "real by complex": lambda r: r[..., 0] / z_of(r),
    "times a real": lambda r: z_of(r) * r[..., 1],
    "exp(i x)": lambda r: torch.exp(1j * r[..., 0]),
    "norm": lambda r: z_of(r) / torch.linalg.vector_norm(z_of(r), dim=1, keepdim=True),
    "normalize": lambda r: F.normalize(z_of(r), dim=1),
    "var": lambda r: z_of(r).var(1)[:, None],
    "prod": lambda r: z_of(r).prod(1)[:, None],
    "cumprod": lambda r: z_of(r).cumprod(1),
    "solve": lambda r: torch.linalg.solve(torch.diag_embed(z_of(r) + 3j) + 0.1, z_of(r)),
    "split relu": lambda r: torch.complex(z_of(r).real.relu(), z_of(r).imag.relu()),
    "modulus relu": lambda r: (z_of(r).abs() - 0.3).relu() * z_of(r).sgn(),
    "cardioid": lambda r: 0.5 * (1 + z_of(r).angle().cos()) * z_of(r),
    "softsign": lambda r: F.softsign(z_of(r)),
    "sigmoid": lambda r: z_of(r).sigmoid(),
    "asin": lambda r: z_of(r).asin(),
    "log": lambda r: z_of(r).log(),
    "sqrt": lambda r: z_of(r).sqrt(),
    "written": written,
    "attention": attention,
    "conjugates": lambda r: (W @ z_of(r).T.conj()).T.imag.exp(),
    "where": lambda r: torch.where(KEEP, z_of(r), z_of(r) * 1j).tanh(),
    "cast": lambda r: F.linear(r[..., 0].to(torch.complex128), W, B).tanh(),
    "cdouble": lambda r: r[..., 0].cdouble() * z_of(r),
}
slow_under_vmap = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def scalar(form):
    """One real number for each row, which the real and imaginary parts enter differently."""

    def f(r):
        y = form(r).flatten(1)
        y = torch.cat([y.real, y.imag.sin()], 1) if y.is_complex() else y
        return (y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)).sum(1)

    return f


@slow_under_vmap
@pytest.mark.parametrize("name", FORMS)
def test_deep_lift_is_complete(name):
    f, x, x0 = scalar(FORMS[name]), randn(5, 3, 4, 2), randn(6, 3, 4, 2)
    want = attrfn.deep_lift(f, x, baselines=x0)
    for options in ({}, {"rule": "reveal_cancel"}, {"create_graph": True}):
        assert gap(f, x, x0, **options) < 1e-10
    found = torch.func.vmap(lambda x, x0: attrfn.deep_lift(f, x[None], baselines=x0[None])[0])(
        x, x0
    )
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)


COMPILED = ("of the issue", "z^2", "layer", "Fourier layer", "abs", "istft", "quotient")


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    f, x, x0 = scalar(FORMS[name]), randn(5, 3, 4, 2), randn(6, 3, 4, 2)
    torch.compiler.reset()
    want = attrfn.deep_lift(f, x, baselines=x0)
    run = torch.compile(
        lambda x, x0: attrfn.deep_lift(f, x, baselines=x0), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(run(x, x0), want, rtol=1e-9, atol=1e-11)


RULES = {
    "epsilon": rules.composite(rules.epsilon(0.0)),
    "z_plus": rules.composite(rules.z_plus()),
    "alpha_beta": rules.composite(rules.alpha_beta()),
    "gamma": rules.composite(rules.gamma()),
    "identity": rules.composite(rules.epsilon(0.1)),
}


def blocks(w):
    """A complex matrix (O, I) as a real one (2 O, 2 I), of interleaved parts."""
    rows = [torch.stack([w.real, -w.imag], -1), torch.stack([w.imag, w.real], -1)]
    return torch.stack(rows, 1).reshape(2 * w.shape[0], 2 * w.shape[1])


@pytest.mark.parametrize("name", RULES)
def test_lrp_of_a_complex_layer_is_that_of_its_real_view(name):
    """The real layer is written out as a dense matrix, with a bias."""
    x, out = randn(5, 3, 4, 2), randn(7, 10)
    bias = torch.view_as_real(B).flatten()

    def complex_layer(r):
        return (torch.view_as_real(F.linear(z_of(r), W, B)).flatten(1) * out).sum(1)

    def real_layer(r):
        return (F.linear(r.flatten(1), blocks(W), bias) * out).sum(1)

    found = attrfn.lrp(complex_layer, x, rules=RULES[name])
    torch.testing.assert_close(
        found, attrfn.lrp(real_layer, x, rules=RULES[name]), rtol=1e-9, atol=1e-10
    )


CONSERVING = ("of the issue", "z z", "z^2", "z^3", "matmul", "einsum", "transposed conv", "abs")
CONSERVING += (
    "sgn",
    "split relu",
    "hfft",
    "fft2",
    "Fourier layer",
    "times a real",
    "where",
    "sqrt",
)


@slow_under_vmap
@pytest.mark.filterwarnings("ignore:the explained output does not depend:UserWarning")  # 1 / z
@pytest.mark.filterwarnings("ignore:.*has no effect:UserWarning")  # flat is of real numbers
@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"z^z"}))
def test_lrp_conserves_relevance_and_is_the_same_under_vmap(name):
    def f(r):
        y = FORMS[name](r).flatten(1)
        return (torch.cat([y.real, y.imag], 1) if y.is_complex() else y).sum(1)

    x = randn(5, 3, 4, 2)
    want = attrfn.lrp(f, x, rules=RULES["epsilon"])
    if name in CONSERVING:
        torch.testing.assert_close(want.flatten(1).sum(1), f(x), rtol=1e-9, atol=1e-9)
    assert want.isfinite().all()
    for table in (RULES["epsilon"], RULES["gamma"], rules.epsilon_plus_flat()):
        want = attrfn.lrp(f, x, rules=table)
        got = torch.func.vmap(lambda r, table=table: attrfn.lrp(f, r[None], rules=table)[0])(x)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


# ---------------------------------------------------------------------------------------------
# layers, inputs, outputs, baselines


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x)


class Net(nn.Module):
    """A real layer, a Fourier transform, a complex layer and its modulus."""

    def __init__(self):
        super().__init__()
        self.inp, self.spectrum = nn.Linear(4, 6).double(), Spectrum()
        self.mix = nn.Linear(4, 3, dtype=torch.complex128)

    def forward(self, x):
        return self.mix(self.spectrum(self.inp(x))).abs()


LAYERED = {
    "deep_lift": attrfn.layer_deep_lift,
    "integrated_gradients": attrfn.layer_integrated_gradients,
    "conductance": attrfn.layer_conductance,
}


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("layer", ["spectrum", "mix"])
def test_complex_layers_are_explained_through_their_real_view(name, layer):
    torch.manual_seed(0)
    model, x, x0 = Net(), randn(1, 3, 4), randn(2, 3, 4)
    a = LAYERED[name](model, x, layer=layer, target=1, baselines=x0)
    assert a.shape == (3, {"spectrum": 4, "mix": 3}[layer], 2)
    change = model(x)[:, 1] - model(x0)[:, 1]
    tolerance = 1e-10 if name == "deep_lift" else 0.05
    torch.testing.assert_close(a.flatten(1).sum(1), change, rtol=tolerance, atol=tolerance)


def test_a_part_of_a_complex_layer_is_ablated():
    """By a loop that puts zeros in the places of parts."""
    torch.manual_seed(0)
    model, x = Net(), randn(1, 3, 4)
    a = attrfn.layer_feature_ablation(model, x, layer="spectrum", target=0)
    z = model.spectrum(model.inp(x)).detach()
    for i in range(4):
        for part in range(2):
            zeroed = torch.view_as_real(z.clone())
            zeroed[:, i, part] = 0
            want = model(x)[:, 0] - model.mix(z_of(zeroed)).abs()[:, 0]
            torch.testing.assert_close(a[:, i, part], want.detach())


def test_gradients_at_complex_layers():
    torch.manual_seed(0)
    model, x = Net(), randn(1, 3, 4)
    parts = torch.view_as_real(model.spectrum(model.inp(x)).detach()).requires_grad_()
    grad = torch.autograd.grad(model.mix(z_of(parts)).abs()[:, 2].sum(), parts)[0]
    for options in ({}, {"create_graph": True}):
        found = attrfn.layer_gradient_x_activation(model, x, layer="spectrum", target=2, **options)
        torch.testing.assert_close(found.detach(), (parts * grad).detach())
    relevance = attrfn.layer_lrp(
        model, x, layer="mix", target=2, rules=rules.composite(rules.epsilon(0.0))
    )
    torch.testing.assert_close(relevance.flatten(1).sum(1), model(x)[:, 2].detach())
    neuron = attrfn.neuron_gradient(model, x, layer="spectrum", neuron=lambda z: z[:, 1].imag)
    assert neuron.abs().max() > 1e-3


REAL = randn(8, 3, 4)
FIRST_LAYER = nn.Linear(4, 4).double()
HALF_COMPLEX = nn.Sequential(FIRST_LAYER, Spectrum())
OF_INPUTS = {
    name: getattr(attrfn, name)
    for name in (
        *("gradient", "saliency", "input_x_gradient", "integrated_gradients", "deep_lift", "lrp"),
        *("guided_backprop", "deconvolution", "integrated_hessians", "feature_ablation"),
        *("feature_permutation", "shapley_values", "shapley_value_sampling", "kernel_shap", "lime"),
        "interactions",
    )
}


OF_INPUTS["occlusion"] = functools.partial(attrfn.occlusion, window=1)


@pytest.mark.filterwarnings("ignore:.*met no ReLU:UserWarning")
@pytest.mark.parametrize("name", OF_INPUTS)
def test_complex_inputs_and_outputs_are_refused(name):
    method = OF_INPUTS[name]
    with pytest.raises(TypeError, match=r"^inputs has .*complex128, expected real .*view_as_real"):
        method(lambda z: z.abs(), torch.complex(REAL, REAL), target=0)
    with pytest.raises(TypeError, match=r"returned torch.complex128, expected real .*\.abs\(\)"):
        method(HALF_COMPLEX, REAL, target=1)
    with pytest.raises(TypeError, match=r"callable target returned torch.complex128, expected rea"):
        method(HALF_COMPLEX, REAL, target=lambda z: z[:, 1])
    found = method(HALF_COMPLEX, REAL, target=lambda z: z[:, 1].abs())
    assert not found.is_complex()


@pytest.mark.parametrize("baselines", [1j, torch.complex(REAL, REAL)])
def test_complex_baselines_are_refused(baselines):
    model = nn.Linear(4, 2).double()
    for method in (attrfn.deep_lift, attrfn.integrated_gradients, attrfn.feature_ablation):
        with pytest.raises(TypeError, match=r"^baselines has complex numbers for .*expected real"):
            method(model, REAL, target=0, baselines=baselines)
    for method in (attrfn.deep_lift_shap, attrfn.gradient_shap):
        with pytest.raises(TypeError, match=r"^baselines has complex numbers for .*expected real"):
            method(model, REAL, target=0, baselines=baselines)


def test_complex_deviations_bounds_and_attributions_are_refused():
    model = nn.Linear(4, 2).double()
    with pytest.raises(TypeError, match=r"^stdevs has a tensor of torch.complex128, expected real"):
        attrfn.gradient_shap(
            model, REAL, target=0, baselines=REAL, stdevs=torch.complex(REAL, REAL), key=0
        )
    with pytest.raises(TypeError, match=r"^low is a tensor of torch.complex128, expected real"):
        rules.z_box(torch.complex(REAL, REAL), 3.0)
    with pytest.raises(TypeError, match=r"^attributions has a tensor of torch.complex128"):
        attrfn.completeness_delta(model, REAL, torch.complex(REAL, REAL), target=0)


def test_complex_neurons_need_a_callable():
    with pytest.raises(TypeError, match=r"returned torch.complex128, .*neuron=lambda"):
        attrfn.neuron_gradient(Net(), REAL, layer="spectrum", neuron=0)
