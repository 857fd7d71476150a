"""Limits of today's torch that the library works around.

Each test asserts that the limit is still there. A failure is good news: a newer torch has lifted
it, and the workaround that the test names can go. What may fail to compile runs in a process of its
own, because a failed trace can poison later ones.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, grad, jacfwd, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import randn

from attrfn._torch.layouts import linear_of_rows


def test_functional_call_changes_the_module_while_it_runs():
    """Why eager runs use shells of their own (_model/private_copy.py) and not functional_call."""

    class Watches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(users.lin.weight)
            return self.lin(x)

    seen: list[Tensor] = []
    users = Watches()
    own = users.lin.weight
    other = torch.zeros(2, 2)
    functional_call(users, {"lin.weight": other}, (torch.ones(1, 2),))
    assert users.lin.weight is own
    # another thread that looks at the module at that moment sees the other weight
    assert seen[0] is other


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x * 2, x + 1)


Q = randn(1, 2, 5, 4)

recent = pytest.mark.skipif(not hasattr(F, "rms_norm"), reason="a fact of torch since 2.4")


@recent
def test_fused_attention_has_no_second_derivative():
    """Why attention is written out (_torch/decomposed.py) where somebody differentiates again."""
    x = Q.clone().requires_grad_()
    (g,) = torch.autograd.grad(attend(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"flash_attention_for_cpu_backward is not implemented"):
        torch.autograd.grad(g.sum(), x)
    with pytest.raises(RuntimeError, match=r"flash_attention_for_cpu_backward is not implemented"):
        grad(lambda x: (grad(lambda x: attend(x).sum())(x) ** 2).sum())(Q)


def third_derivative(f) -> tuple[float, float]:
    """d/dx of |J(x) t|^2 along s: by finite differences, and as torch has it."""
    x, t, s = randn(3, 4, 6, seed=1), randn(3, 4, 6, seed=2), randn(3, 4, 6, seed=3)

    def squared(x: Tensor) -> Tensor:
        return (jvp(f, (x,), (t,))[1] ** 2).sum()

    eps = 1e-5
    by_differences = (squared(x + eps * s) - squared(x - eps * s)) / (2 * eps)
    return float(by_differences), float((grad(squared)(x) * s).sum())


@recent
@pytest.mark.parametrize(
    "norm",
    [
        lambda x: F.layer_norm(x, (6,)),
        F.instance_norm,
        lambda x: F.batch_norm(x, None, None, training=True),
    ],
    ids=["layer_norm", "instance_norm", "batch_norm"],
)
def test_third_derivatives_of_norms_are_wrong(norm):
    """Why LayerNorm is written out (_torch/decomposed.py): torch's answer is off without a word."""
    expected, got = third_derivative(norm)
    assert abs(got - expected) > 0.05 * abs(expected)
    # the measurement itself is sound: the same formula written out agrees
    expected, got = third_derivative(lambda x: F.rms_norm(x, (6,)))
    assert abs(got - expected) < 1e-6 * abs(expected)


@pytest.mark.parametrize("d", [2, pytest.param(3, marks=recent)])
@pytest.mark.parametrize(
    "norm",
    [
        lambda x: F.batch_norm(x, torch.zeros(4).to(x), torch.ones(4).to(x)),
        lambda x: F.batch_norm(x, None, None, training=True),
        F.instance_norm,
    ],
    ids=["batch_norm", "training", "instance_norm"],
)
def test_backward_of_batch_norm_mistakes_the_layout_of_a_gradient(norm, d):
    """Why _torch/layouts.py lays gradients out for batch norms: torch is wrong for one row.

    The gradient's strides say (D, H, W, B, C); instance norm reads (B, D, H, W, C) so, too.
    """
    x = randn(1, 4, *[3] * d).requires_grad_()
    g = randn(*[3] * d, 1, 4).movedim((-2, -1), (0, 1))
    (expected,) = torch.autograd.grad(norm(x), x, g.contiguous())
    (got,) = torch.autograd.grad(norm(x), x, g)
    assert (got - expected).abs().max() > 0.1
    # with one dimension of positions there is no order to mistake
    (got,) = torch.autograd.grad(norm(x.flatten(2)), x, g.flatten(2))
    torch.testing.assert_close(got, expected)


def test_forward_mode_of_glu_cannot_be_differentiated():
    """Why a push-forward that is differentiated is a double vjp."""
    x = randn(3, 6)
    with pytest.raises(RuntimeError, match=r"glu_jvp is not implemented"):
        grad(lambda x: jvp(F.glu, (x,), (x,))[1].sum())(x)


PROCESSES = {
    "threads": """
        import sys, threading
        from torch.func import jvp

        sys.setswitchinterval(1e-5)  # threads take turns within a call

        x, wrong = torch.randn(50, 50), []
        expected = jvp(torch.tanh, (x,), (x,))[1]

        def work():
            for _ in range(200):
                try:
                    if not torch.equal(jvp(torch.tanh, (x,), (x,))[1], expected):
                        wrong.append("value")
                except RuntimeError as error:
                    wrong.append(str(error))

        # a race: it may be won now and then, hardly thirty times in a row
        for _ in range(30):
            threads = [threading.Thread(target=work) for _ in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
            if wrong:
                print("WRONG")
                break
        """,
    "double vjp": """
        from torch.func import vjp

        norm, x = torch.nn.LayerNorm(4).requires_grad_(False), torch.randn(2, 4)

        def push(x):
            y, pull = vjp(norm, x)
            return vjp(pull, torch.zeros_like(y))[1]((x,))[0]

        got = torch.compile(push, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(got, torch.func.jvp(norm, (x,), (x,))[1])
        print("COMPILED")
        """,
    "jvp": """
        norm, x = torch.nn.LayerNorm(4).requires_grad_(False), torch.randn(2, 4)

        def push(x):
            return torch.func.jvp(norm, (x,), (x,))[1]

        torch.compile(push, backend="aot_eager", fullgraph=True)(x)
        print("COMPILED")
        """,
    "lstm": """
        rnn = torch.nn.LSTM(4, 5)
        torch.compile(lambda x: rnn(x)[0], backend="eager", fullgraph=True)(torch.randn(3, 2, 4))
        print("COMPILED")
        """,
    "custom function": """
        from torch.func import grad

        class Triples(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(x):
                return x.clone()

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

            @staticmethod
            def backward(ctx, g):
                return 3 * g

        f, x = lambda x: Triples.apply(x).sum(), torch.ones(2)
        print(grad(f)(x).tolist())
        print(torch.compile(grad(f), backend="aot_eager", fullgraph=True)(x).tolist())
        """,
    "compiled model": """
        model = torch.compile(torch.nn.Linear(4, 1), backend="aot_eager", fullgraph=True)
        torch.func.grad(lambda x: model(x).sum())(torch.randn(3, 4))
        print("COMPILED")
        """,
}


@pytest.fixture(scope="module")
def processes() -> dict[str, str]:
    return zoo.in_processes(PROCESSES)


@pytest.mark.slow
def test_forward_mode_is_not_for_threads(processes):
    """Why push_forward takes no jvp: the levels of forward mode belong to the whole process."""
    assert processes["threads"] == "WRONG\n"


@pytest.mark.slow
def test_forward_mode_of_layer_norm_does_not_compile(processes):
    """Why a compiled push-forward is a double vjp, which does."""
    assert processes["double vjp"] == "COMPILED\n"
    assert processes["jvp"].startswith("FAILED")
    assert "_fw_primal" in processes["jvp"]


@pytest.mark.slow
def test_recurrent_nets_do_not_compile(processes):
    """What the documentation says about compiled LSTMs."""
    assert processes["lstm"].startswith("FAILED")
    assert "Dynamo does not support RNN, GRU, or LSTM" in processes["lstm"]


@pytest.mark.slow
def test_transforms_of_a_compiled_model_fail(processes):
    """Why shells look through torch.compile()d models (_orig_mod)."""
    assert processes["compiled model"].startswith("FAILED")
    assert "Unsupported functorch tracing attempt" in processes["compiled model"]


@pytest.mark.slow
def test_custom_functions_lose_their_backward_when_compiled(processes):
    """Why no custom autograd.Function carries a rule (_rules/run.py): silently another gradient."""
    eager, _, compiled = processes["custom function"].partition("\n")
    assert eager == "[3.0, 3.0]"
    assert compiled == "[1.0, 1.0]\n" or compiled.startswith("FAILED")


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_nets_have_no_vmap_rule(cell):
    """Why batching="fold" is the default (_copies/batch.py)."""
    rnn = zoo.make(cell, 4, 5, batch_first=True)
    with pytest.raises(RuntimeError, match=r"Batching rule not implemented for aten::(lstm|gru)"):
        vmap(lambda x: rnn(x[None])[0])(randn(3, 6, 4))


def test_encoder_layers_hide_their_parts():
    """Why _model/subclasses.py switches their fast path off: no sub-layer is called."""
    model, x = zoo.make(zoo.Transformer), randn(3, 5, 4)
    called: list[str] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            called.append("forward")
            return super().forward(x)

    model.enc.layers[0].linear1.__class__ = Watched
    with torch.no_grad():
        model(x)
    assert not called
    model(x)
    assert called == ["forward"]


def test_multihead_attention_takes_a_fused_path():
    """Why _model/subclasses.py splits query and key: the fused operation hides its parts."""

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operations.append(str(func))
            return func(*args, **(kwargs or {}))

    attention, x = zoo.make(nn.MultiheadAttention, 6, 2, batch_first=True), randn(3, 5, 6)
    fused = "aten._native_multi_head_attention.default"
    for key, taken in [(x, True), (x.view_as(x), False)]:
        operations: list[str] = []
        with torch.no_grad(), Log():
            attention(x, key, key)
        assert (fused in operations) == taken


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_the_fast_path_answers_padded_rows_differently():
    """Why values and gradients would come from two different models."""
    model, x = zoo.make(zoo.Transformer), randn(3, 5, 4)
    mask = torch.arange(5) >= torch.tensor([5, 4, 2])[:, None]
    h = model.inp(x).detach()
    slow = model.enc(h, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        fast = model.enc(h, src_key_padding_mask=mask)
    torch.testing.assert_close(fast[~mask], slow[~mask])
    assert not fast[mask].any()
    assert slow[mask].all()


def test_vjp_of_linear_functions_is_the_reference():
    """The double pull-back is J t (the identity that the workarounds above rest on)."""
    x, t = randn(3, 6), randn(3, 6, seed=1)

    def f(x: Tensor) -> Tensor:
        return x.softmax(-1) * x.sin()

    y, pull = vjp(f, x)
    got = vjp(pull, torch.zeros_like(y))[1]((t,))[0]
    torch.testing.assert_close(got, jvp(f, (x,), (t,))[1])


def test_forward_mode_of_solve_is_wrong_under_vmap():
    """Why surrogates/_solve.py writes it with inv: its forward mode is right there."""
    x, eye = randn(4, 3), torch.eye(3).double()

    def f(solve, x: Tensor) -> Tensor:
        return solve(torch.outer(x, x) + eye, x.sin()[:, None]).square().sum()

    def inv(A: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.inv(A) @ b

    right = torch.stack([grad(functools.partial(f, torch.linalg.solve))(row) for row in x])
    for solve, holds in [(torch.linalg.solve, False), (inv, True)]:
        found = vmap(jacfwd(functools.partial(f, solve)))(x)
        assert torch.allclose(found, right) == holds


def test_compiled_linear_of_a_sequence_makes_the_batch_a_constant(fresh_compiler):
    """Inside vjp, with a bias; :func:`attrfn._torch.layouts.linear_of_rows` does the same work."""
    weight, bias, counts = randn(5, 4), randn(5, seed=1), []
    for linear in (F.linear, linear_of_rows):
        torch._dynamo.reset()
        counter = CompileCounter()

        def gradient(x, linear=linear):
            y, pull = vjp(lambda x: linear(x, weight, bias), x)
            return pull(torch.ones_like(y))[0]

        compiled = torch.compile(gradient, backend=counter, fullgraph=True)
        for batch in (6, 9, 12):
            x = randn(batch, 3, 4)
            torch._dynamo.maybe_mark_dynamic(x, 0)
            compiled(x)
        counts.append(counter.frame_count)
    assert counts == [3, 1]
