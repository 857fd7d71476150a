"""Models of ONNX through onnxruntime: perturbation methods give what they give for the module."""

from __future__ import annotations

import functools
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_programs import near
from torch import Tensor, nn
from zoo import make, randn

import attrfn
import attrfn.programs

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

METHODS = {
    "feature_ablation": attrfn.feature_ablation,
    "occlusion": functools.partial(attrfn.occlusion, window=2),
    "feature_permutation": attrfn.feature_permutation,
    "shapley_values": attrfn.shapley_values,
    "shapley_value_sampling": attrfn.shapley_value_sampling,
    "kernel_shap": attrfn.kernel_shap,
    "lime": attrfn.lime,
    "interactions": functools.partial(attrfn.interactions, n_samples=5),
}
KINDS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
}


class Net(nn.Module):
    """Two inputs and two outputs; the graph below is the same function."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        h = self.lin(x) * scale
        return h.tanh(), h.relu()


def graph_of(
    model: Net, dtype: torch.dtype = torch.float32, rows: int | str = "rows", bad: str = ""
) -> Any:
    """The net as a ModelProto, written by hand."""
    kind = KINDS[dtype]
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["lin"], transB=1),
        helper.make_node("Mul", ["lin", "scale"], ["h"]),
        helper.make_node("Tanh", ["h"], ["soft"]),
        helper.make_node("Relu", ["h"], ["hard"]),
    ]
    weights = {"weight": model.lin.weight, "bias": model.lin.bias}
    arrays = [
        numpy_helper.from_array(t.detach().to(dtype).numpy(), name) for name, t in weights.items()
    ]
    outputs = [info("soft", kind, [rows, 3]), info("hard", kind, [rows, 3])]
    if bad == "strings":
        nodes.append(helper.make_node("Cast", ["h"], ["text"], to=onnx.TensorProto.STRING))
        outputs.append(info("text", onnx.TensorProto.STRING, [rows, 3]))
    inputs = [info("x", kind, [rows, 4]), info("scale", kind, [rows, 1])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, arrays)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def net(dtype: torch.dtype = torch.float32) -> Net:
    return make(Net, dtype=dtype)


def soft(model: Any) -> Any:
    return lambda *args, **named: model(*args, **named)[0]


X = randn(3, 4, dtype=torch.float32)
SCALE = randn(3, 1, seed=1, dtype=torch.float32)


@pytest.mark.parametrize("rows", ["rows", 2])
@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str, rows: int | str) -> None:
    """Of a dynamic batch, and of fixed ones, which run in groups."""
    model, program = net(), attrfn.programs.load(graph_of(net(), rows=rows), outputs="soft")
    method = METHODS[name]
    bound = functools.partial(program, scale=SCALE)
    want = method(functools.partial(soft(model), scale=SCALE), X, target=1)
    near(method(bound, X, target=1), want, 1e-5)
    if name == "feature_ablation":
        near(method(program, (X, SCALE), target=1), method(soft(model), (X, SCALE), target=1), 1e-5)


@pytest.mark.parametrize("dtype", KINDS)
def test_types(dtype: torch.dtype) -> None:
    model, x, scale = net(dtype), X.to(dtype), SCALE.to(dtype)
    program = attrfn.programs.load(graph_of(model, dtype), outputs=0)
    found = attrfn.feature_ablation(program, (x, scale), target=1)
    want = attrfn.feature_ablation(soft(model), (x, scale), target=1)
    near(found, want, 1e-2 if dtype == torch.float16 else 1e-5)
    assert found[0].dtype == dtype
    other = torch.float64 if dtype == torch.float32 else torch.float32
    with pytest.raises(
        ValueError, match=rf"^input 'x' of the model of ONNX is .* of {dtype}: conv"
    ):
        attrfn.feature_ablation(program, (x.to(other), scale.to(other)), target=1)


def test_files_sessions_inputs_and_outputs(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(graph_of(net()), path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = net()(X, SCALE)
    for given in (path, str(path), session, graph_of(net())):
        program = attrfn.programs.load(given)
        for found in (
            program(X, SCALE),
            program(X, scale=SCALE),
            program(scale=SCALE, x=X),
            program({"scale": SCALE, "x": X}),
            attrfn.programs.load(given, outputs=["soft", 1])(X, SCALE),
        ):
            near(found, want, 1e-5)
        for outputs, i in ((0, 0), (-1, 1), ("hard", 1), ("soft", 0)):
            near(attrfn.programs.load(given, outputs=outputs)(X, SCALE), want[i], 1e-5)
    again = pickle.loads(pickle.dumps(attrfn.programs.load(path)))
    near(again(X, SCALE), want, 1e-5)
    with pytest.raises(TypeError, match=r"cannot be sent to another process: give its path"):
        pickle.dumps(attrfn.programs.load(session))


def test_what_is_refused(tmp_path: Path) -> None:
    program = attrfn.programs.load(graph_of(net()), outputs=0)
    bound = functools.partial(program, scale=SCALE)
    for method in (
        *(attrfn.gradient, attrfn.integrated_gradients, attrfn.lrp, attrfn.deep_lift),
        *(attrfn.guided_backprop, attrfn.gradient_shap, attrfn.integrated_hessians),
    ):
        with pytest.raises(ValueError, match=r"^a model of ONNX only runs forward, so that it has"):
            method(bound, X, target=1, **({"baselines": X} if "shap" in method.__name__ else {}))
    with pytest.raises(ValueError, match=r"^model_fn is a model of ONNX, which only runs forward"):
        attrfn.layer_activation(program, X, layer="0")
    with pytest.raises(
        ValueError, match=r"^a model of ONNX cannot run inside torch.func transforms"
    ):
        torch.func.vmap(lambda z, s: attrfn.feature_ablation(program, (z, s), target=1))(
            X[:, None], SCALE[:, None]
        )
    x = X.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"without create_graph$"):
        attrfn.feature_ablation(bound, x, target=1, create_graph=True)
    near(attrfn.feature_ablation(bound, x, target=1), attrfn.feature_ablation(bound, X, target=1))
    for args, said in (
        ((X,), r"has the inputs x, scale, got 1 by place and none by name"),
        ((X, SCALE, X), r"got 3 by place"),
        ((X[:, :3], SCALE), r"^input 'x' of the model of ONNX has shape \(3, 3\), expected \(rows"),
        ((X, SCALE[:2]), r"^onnxruntime failed: "),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            program(*args)
        assert len(str(raised.value)) <= 300
    session = runtime.InferenceSession(graph_of(net()).SerializeToString())
    for given, said in ((session, "an InferenceSession"), (graph_of(net()), "a ModelProto")):
        with pytest.raises(TypeError, match=rf"^model_fn is {said}, expected a model function"):
            attrfn.feature_ablation(given, X, target=1)
    for outputs in (2, -3, "loss", ["soft", "loss"]):
        with pytest.raises(ValueError, match=r"has 2 output\(s\), named soft, hard: expected"):
            attrfn.programs.load(graph_of(net()), outputs=outputs)
    strings = graph_of(net(), bad="strings")
    with pytest.raises(
        ValueError, match=r"^output 'text' of the model of ONNX is a tensor\(string"
    ):
        attrfn.programs.load(strings)
    near(attrfn.programs.load(strings, outputs=0)(X, SCALE), net()(X, SCALE)[0], 1e-5)
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"^onnxruntime cannot read .*broken.onnx"):
        attrfn.programs.load(path)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    onnx.save(graph_of(net()), tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'onnxruntime: pip install "attrfn\[onnx\]"'):
        attrfn.programs.load(tmp_path / "net.onnx")


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_torch_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    model = make(layers, dtype=torch.float32)
    x = randn(2, 2, 4, 4, dtype=torch.float32)
    exported = torch.onnx.export(model, (x,), dynamic_shapes=({0: "rows"},), dynamo=True)
    exported.save(str(tmp_path / "cnn.onnx"))
    program = attrfn.programs.load(tmp_path / "cnn.onnx")
    more = {"target": 1, "grid": 2, "n_samples": 9}
    x = randn(3, 2, 4, 4, dtype=torch.float32, seed=1)
    near(attrfn.rise(program, x, **more), attrfn.rise(model, x, **more), 1e-5)
