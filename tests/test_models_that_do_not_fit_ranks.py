"""Models whose weights are spread over two processes, which call the same methods.

Both run tests/ranks_of_models.py, once for all tests of this file. The expected values are those of
the model with all its weights in one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
if not torch.distributed.is_available() or not hasattr(torch.distributed, "is_gloo_available"):
    pytest.skip("this torch has no gloo", allow_module_level=True)

HERE = Path(__file__).parent
SHARDED = ("whole_layers", "at_once", "parts_of_layers", "checkpointed")
PARALLEL = ("tensor_parallel", "transformers_plan")
KINDS = (*SHARDED, *PARALLEL, "replicated")
ALL = (
    *("gradient", "integrated_gradients", "layer_gradient_x_activation", "at_layer", "layers"),
    *("layer_integrated_gradients", "layer_conductance", "grad_cam", "feature_ablation"),
    *("kernel_shap", "deep_lift", "attn_lrp", "layer_lrp", "neuron_gradient", "smooth"),
)
FEW = ("gradient", "layer_integrated_gradients", "neuron_gradient", "deep_lift", "attn_lrp")
WITH_ALL = ("whole_layers", "tensor_parallel")


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
    script = str(HERE / "ranks_of_models.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=200)[0])
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(said)[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in KINDS for n in (ALL if k in WITH_ALL else FEW)]
)
def test_equal_to_the_whole_model(kind: str, name: str, found: Any) -> None:
    """And the model is what it was."""
    assert [rank[kind].get(name, rank[kind].get("setup")) for rank in found] == ["", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_raises_leaves_the_model_as_it_was(kind: str, found: Any) -> None:
    for rank in found:
        assert [rank[kind][k] for k in ("raising", "after raising", "after refusals")] == [""] * 3


@pytest.mark.parametrize("kind", ["whole_layers", "replicated"])
def test_the_model_can_still_be_trained(kind: str, found: Any) -> None:
    assert [rank[kind]["training"] for rank in found] == ["", ""]


@pytest.mark.parametrize("kind", [*SHARDED, *PARALLEL])
def test_transforms_and_compilers_are_refused(kind: str, found: Any) -> None:
    for rank in found:
        refused = rank[kind]["refused"]
        assert "no transform of torch.func can carry" in refused["mapped"]
        if kind in WITH_ALL:
            assert "which torch.compile cannot trace" in refused["compiled"]


@pytest.mark.parametrize("kind", SHARDED)
def test_second_derivatives_are_refused(kind: str, found: Any) -> None:
    for rank in found:
        assert "leave create_graph out" in rank[kind]["refused"]["again"]


@pytest.mark.parametrize(
    "name",
    [
        "gradient",
        "all outputs",
        "neuron",
        "neuron's input",
        "at input",
        "guided_backprop",
        "halves",
    ],
)
def test_values_inside_of_sharded_modules(name: str, found: Any) -> None:
    assert [rank["others"][name] for rank in found] == ["", ""]


def test_second_derivatives_inside_of_a_method_are_refused(found: Any) -> None:
    assert [rank["others"]["second"] for rank in found] == ["", ""]


def test_the_old_kind_is_refused(found: Any) -> None:
    assert all("fully_shard" in rank["old kind"] for rank in found)


def test_processes_with_unequal_memory_take_equal_chunks(found: Any) -> None:
    assert [rank["memory"] for rank in found] == ["", ""]
