"""Private names of torch.distributed and of checkpointing: each means what the library relies on.

Those of ``fully_shard`` need a process group, and are used with one in
test_models_that_do_not_fit_ranks.py.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from test_private import defined
from torch import nn

from attrfn._torch import private_distributed as private

CHECKS: dict[str, Callable[[], None]] = {}


def shows(*names: str):
    """The function checks these names."""

    def put(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return put


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one process."""
    path = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded() -> nn.Module:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    fsdp.fully_shard(model[0], mesh=mesh)
    return fsdp.fully_shard(model, mesh=mesh)


def test_each_name_is_checked() -> None:
    assert {n for n in defined(private) if not n.startswith("_")} == CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_name(name: str) -> None:
    CHECKS[name]()


@shows("PRE_HOOKS")
def holds_hooks() -> None:
    module = nn.Linear(2, 2)
    hook = lambda *_: None  # noqa: E731
    module.register_forward_pre_hook(hook)
    assert list(vars(module)[private.PRE_HOOKS].values()) == [hook]


@shows("CHECKPOINTED_MODULE")
def holds_the_module_that_is_checkpointed() -> None:
    file = importlib.import_module("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    inner = nn.Linear(2, 2)
    assert (
        dict(file.checkpoint_wrapper(inner).named_modules())[private.CHECKPOINTED_MODULE] is inner
    )


@shows("FLAT_WEIGHTS")
def hold_the_weights_of_recurrent_layers() -> None:
    lstm = nn.LSTM(2, 3)
    weights, names = (vars(lstm)[name] for name in private.FLAT_WEIGHTS)
    assert [id(t) for t in weights] == [id(getattr(lstm, name)) for name in names]


@shows("MOVES", "is_dtensor")
def dtensors_are_made_by_nodes_that_move() -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    x = torch.ones(2, requires_grad=True)
    there = DTensor.from_local(x, mesh, [Replicate()])
    assert private.is_dtensor(there)
    assert not private.is_dtensor(x)
    moved = there.redistribute(mesh, [Shard(0)])
    names = {t.grad_fn.name() for t in (there, moved, moved.to_local())}
    assert len(names) == 3
    assert names <= private.MOVES


@shows("is_ddp")
def is_of_ddp_alone() -> None:
    assert private.is_ddp(nn.parallel.DistributedDataParallel)
    assert not private.is_ddp(nn.Linear)


@shows("is_fsdp1")
def is_of_the_old_wrapper_alone() -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    assert private.is_fsdp1(fsdp.FullyShardedDataParallel)
    assert not private.is_fsdp1(nn.Linear)


@shows("fsdp_state", "fsdp_parts", "fsdp_resets")
def states_are_found_by_hooks() -> None:
    model = sharded()
    states = [private.fsdp_state(h) for h in vars(model)[private.PRE_HOOKS].values()]
    assert len(states) == 1
    assert private.fsdp_resets(states[0])
    parts = list(private.fsdp_parts(states[0]))
    assert [module for module, _ in parts] == [model[1], model[1]]
    assert all(private.is_dtensor(p) for _, p in parts)
    assert private.fsdp_state(print) is None
    assert private.fsdp_state(model.forward) is None


@shows("fsdp_running", "fsdp_reset")
def a_run_that_was_left_is_reset() -> None:
    model = sharded()
    state = next(map(private.fsdp_state, vars(model)[private.PRE_HOOKS].values()))
    inner = next(map(private.fsdp_state, vars(model[0])[private.PRE_HOOKS].values()))
    private.fsdp_reset(state)  # before its first run
    found = []

    def leaves(*_: object) -> None:
        found.append(private.fsdp_running([state, inner]))
        raise KeyError

    handle = model[0].register_forward_pre_hook(leaves)
    with pytest.raises(KeyError):
        model(torch.ones(1, 3))
    handle.remove()
    assert len(found[0]) == 2
    assert not private.is_dtensor(model[0].weight)
    private.fsdp_reset(state)
    assert private.fsdp_running([state, inner]) == []
    assert all(map(private.is_dtensor, model.parameters()))
    assert model(torch.ones(1, 3)).shape == (1, 2)


@shows("checkpointed", "CHECKPOINT_OPTIONS")
def checkpoint_asks_instead() -> None:
    inner = torch.utils.checkpoint.checkpoint.__wrapped__
    known = getattr(inner, "__dynamo_disable", None)
    calls = []

    def instead(original, function, *args, **options):
        calls.append((args, options))
        return original(function, *args, **options)

    try:
        assert private.checkpointed(instead)
        x = torch.ones(2, requires_grad=True)
        got = torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False)
        assert calls == [((x,), {"use_reentrant": False})]
        assert torch.equal(got, x.sin())
    finally:
        setattr(inner, "__dynamo_disable", known)
    options = set(inspect.signature(inner).parameters) - {"function", "args", "kwargs"}
    assert options | {"preserve_rng_state"} == set(private.CHECKPOINT_OPTIONS)
