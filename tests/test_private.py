"""Private and undocumented names of torch: each exists and means what the library relies on.

A failure tells which name of ``attrfn/_torch/private.py``, ``private_compiler.py`` or ``pytree.py``
a new torch has taken away or changed. The limits of torch's public names are in test_canaries.py.
"""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from test_private_compiler import COMPILING
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from attrfn._torch import private, private_compiler, pytree

MODULES = (private, private_compiler, pytree)
EAGER: dict[str, Callable[[], None]] = {}


def shows(*names: str):
    """The function checks these names."""

    def put(function: Callable[[], None]) -> Callable[[], None]:
        EAGER.update(dict.fromkeys(names, function))
        return function

    return put


def defined(module: ModuleType) -> Iterator[str]:
    """The names that a file defines."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.FunctionDef) and node.col_offset in (0, 4):
            yield node.name
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.col_offset == 0:
            for target in getattr(node, "targets", None) or [node.target]:
                yield target.id


def test_each_name_is_checked() -> None:
    names = {n for module in MODULES for n in defined(module) if not n.startswith("_")} - {"F"}
    assert len(names) > 40
    assert names == EAGER.keys() | COMPILING.keys()


@pytest.mark.parametrize("name", EAGER)
def test_eager_name(name: str) -> None:
    EAGER[name]()


# --- tensors --------------------------------------------------------------------------------------


@shows("version")
def counts_writes_in_place() -> None:
    x = torch.zeros(3)
    view = x[:2]
    before = private.version(x)
    assert isinstance(before, int)
    view.add_(1)
    assert private.version(x) == private.version(view) == before + 1
    assert private.version(x + 1) == 0


@shows("base")
def is_what_a_view_shares_memory_with() -> None:
    x = torch.zeros(3)
    assert private.base(x) is None
    assert private.base(x[:2][:1]) is x


@shows("is_mapped")
def is_of_vmap_alone() -> None:
    def f(t: Tensor, mapped: bool) -> Tensor:
        assert private.is_mapped(t) == mapped
        return t.sum()

    x = torch.ones(2, 3)
    vmap(lambda t: f(t, True))(x)
    vmap(grad(lambda t: f(t, True)))(x)
    grad(lambda t: f(t, False))(x)


@shows("memory_of")
def is_the_same_for_views_inside_transforms_too() -> None:
    x = torch.zeros(3, 2)
    assert private.memory_of(x) == private.memory_of(x[:2][:1]) != private.memory_of(x + 1)
    assert private.memory_of(x.to_sparse()) == 0

    def f(t: Tensor) -> Tensor:
        assert private.memory_of(t) == private.memory_of(t[:1]) != private.memory_of(t + 1)
        return t.sum()

    vmap(grad(f))(x)
    grad(lambda t: vmap(f)(t).sum())(x)


@shows("makes_fakes")
def is_for_the_mode_that_makes_fakes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert not private_compiler.makes_fakes()
    with FakeTensorMode():
        assert private_compiler.makes_fakes()
    assert not private_compiler.makes_fakes()


@shows("plain_function")
def makes_a_subclass_run_as_a_tensor() -> None:
    class Mine(Tensor):
        __torch_function__ = private.plain_function

    x = torch.ones(3).as_subclass(Mine)
    assert type(x) is Mine
    assert type(x + 1) is type(x[1:]) is Tensor


@shows("no_transforms")
def hides_tensors_from_transforms() -> None:
    x = torch.ones(3)

    def f(t: Tensor) -> Tensor:
        with private.no_transforms():
            assert not private.is_wrapped(x.clone())
        assert private.is_wrapped(x.clone())
        return t.sum()

    assert torch.equal(grad(f)(torch.zeros(3)), x)


@shows("is_view")
def tells_views_also_without_gradients() -> None:
    with torch.no_grad():
        x = torch.ones(2, 3)
        assert private.is_view(x.reshape(6))
        assert not private.is_view(x)
        assert not private.is_view(x.reshape(6).data)


@shows("storage_id")
def is_of_the_memory_and_not_of_the_object() -> None:
    x = torch.zeros(3)
    own = private.storage_id(x.untyped_storage())
    assert private.storage_id(x[1:].untyped_storage()) == own
    assert private.storage_id(x.clone().untyped_storage()) != own


class Sees(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@shows("ATTRIBUTES")
def are_seen_when_they_are_read() -> None:
    for name in private.ATTRIBUTES:
        with Sees() as mode:
            getattr(torch.zeros(1), name)
        assert getattr(Tensor, name).__get__ in mode.seen


@shows("no_overrides")
def hides_from_modes() -> None:
    x = torch.zeros(3)
    with Sees() as mode:
        x.sum()
        with private.no_overrides():
            x.relu()
            x.shape  # noqa: B018
    assert mode.seen == [Tensor.sum]


@shows("modes")
def are_those_around_the_one_that_handles_a_call() -> None:
    found: list[object] = []

    class Asks(Sees):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found[:] = private.modes()
            return func(*args, **(kwargs or {}))

    with Sees() as outer, Asks():
        torch.zeros(3).sum()
    assert found == [outer]


# --- transforms -----------------------------------------------------------------------------------


@shows("in_transform", "transform_level")
def count_the_transforms() -> None:
    levels = []

    def f(x: Tensor) -> Tensor:
        levels.append((private.in_transform(), private.transform_level()))
        return x.sum()

    x = torch.ones(2)
    f(x)
    vmap(f)(torch.ones(2, 2))
    vmap(grad(f))(torch.ones(2, 2))
    f(x)
    assert levels == [(False, 0), (True, 1), (True, 2), (False, 0)]


@shows("in_transform_or_traced")
def see_transforms_inside_compiled_code() -> None:
    def f(x: Tensor) -> Tensor:
        return x * (2 if private.in_transform_or_traced() else 3)

    x = torch.ones(2)
    assert f(x)[0] == 3
    assert vmap(f)(x)[0] == 2
    if tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 12):
        compiled = torch.compile(f, backend="eager", fullgraph=True)
        assert compiled(x)[0] == 3
        assert torch.compile(vmap(f), backend="eager", fullgraph=True)(x)[0] == 2


@shows("is_wrapped", "unwrapped", "level_of", "is_differentiated")
def tell_apart_what_a_transform_wraps() -> None:
    constant = torch.ones(2)
    seen = []

    def f(x: Tensor) -> Tensor:
        inner = private.unwrapped(x)
        seen.extend([private.level_of(t) for t in (x, inner, constant)])
        seen.extend([private.is_differentiated(t) for t in (x, inner, constant)])
        seen.extend([private.is_wrapped(t) for t in (x, inner, private.unwrapped(inner))])
        return x.sum()

    vmap(grad(f))(torch.ones(3, 2))
    assert seen == [2, 1, -1, True, False, False, True, True, False]


@shows("reads_values")
def tells_an_error_of_vmap() -> None:
    for f in (lambda x: x * x.item(), lambda x: x * float(x), lambda x: x if x > 0 else -x):
        with pytest.raises(RuntimeError) as raised:
            vmap(f)(torch.ones(2))
        assert private.reads_values(raised.value)
    assert not private.reads_values(RuntimeError("another"))


@shows("children", "in_order_of")
def are_of_structures() -> None:
    spec = pytree.tree_flatten(({"a": 1, "b": [2, (3,)]}, 4))[1]
    assert [s.num_leaves for s in pytree.children(spec)] == [3, 1]
    assert [*pytree.children(spec)[0].context] == ["a", "b"]
    other = ({"b": [2, (3,)], "a": 1}, 4)
    assert [*pytree.in_order_of(other, spec)[0]] == ["a", "b"]
    assert pytree.in_order_of(other, spec) == other
    assert pytree.tree_flatten(pytree.in_order_of(other, spec))[1] == spec
    assert pytree.in_order_of([1], spec) == [1]


@shows("says_inference")
def tells_an_error_of_inference_tensors() -> None:
    with torch.inference_mode():
        w = torch.ones(2)
    x = torch.ones(2, requires_grad=True)
    for f in (lambda: x * w, lambda: w._version, lambda: w.add_(1).requires_grad_()):
        with pytest.raises(RuntimeError) as raised:
            f()
        assert private.says_inference(raised.value)
    assert not private.says_inference(RuntimeError("another"))


# --- modules --------------------------------------------------------------------------------------


@shows("PARAMETERS", "BUFFERS", "MODULES", "slots")
def hold_what_a_module_has() -> None:
    norm = nn.BatchNorm1d(2, affine=False)
    outer = nn.Sequential(norm, nn.Linear(2, 2, bias=False))
    outer.register_module("nothing", None)
    assert private.slots(norm, private.PARAMETERS) == {"weight": None, "bias": None}
    assert private.slots(norm, private.BUFFERS) == dict(norm.named_buffers())
    assert private.slots(outer, private.MODULES) == {"0": norm, "1": outer[1], "nothing": None}
    assert private.slots(nn.Module.__new__(nn.Module), private.MODULES) == {}
    # and what is put there is what the module uses
    outer.__dict__[private.MODULES] = {"0": nn.Identity()}
    assert torch.equal(outer(torch.ones(1)), torch.ones(1))


@shows("OF_STATE_DICTS")
def are_attributes_of_each_module() -> None:
    state = vars(nn.Module())
    assert set(private.OF_STATE_DICTS) <= state.keys()
    linear = nn.Linear(2, 2)
    for name in private.OF_STATE_DICTS:
        del linear.__dict__[name]
    linear(torch.ones(1, 2))


@shows("FUSED_LAYER", "NESTED_TENSOR")
def keep_encoders_from_fused_kernels() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True).eval()
    assert getattr(layer, private.FUSED_LAYER)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    assert getattr(encoder, private.NESTED_TENSOR[1]) is True
    padded = torch.tensor([[False, False, True]])
    for module in encoder.layers:
        setattr(module, private.FUSED_LAYER, 0)
    for name in private.NESTED_TENSOR:
        setattr(encoder, name, False)
    with torch.no_grad(), Sees() as mode:
        out = encoder(torch.ones(1, 3, 4), src_key_padding_mask=padded)
    assert out.shape == (1, 3, 4)  # nested tensors leave out what is padded
    assert F.layer_norm in mode.seen


@shows("BatchNorm", "Dropout", "Convolution", "TransposedConvolution")
def are_the_classes_of_families() -> None:
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    dropouts = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    assert all(issubclass(c, private.BatchNorm) for c in batch_norms)
    assert not any(issubclass(c, private.BatchNorm) for c in (nn.InstanceNorm2d, nn.GroupNorm))
    assert all(issubclass(c, private.Dropout) for c in dropouts)
    assert all(issubclass(c, private.Convolution) for c in convolutions + transposed)
    assert all(issubclass(c, private.TransposedConvolution) for c in transposed)
    assert not any(issubclass(c, private.TransposedConvolution) for c in convolutions)


@shows("ProjectionOfAttention")
def does_not_run_its_forward() -> None:
    attention, ran = nn.MultiheadAttention(4, 2), []
    assert isinstance(attention.out_proj, private.ProjectionOfAttention)
    attention.out_proj.register_forward_hook(lambda *_: ran.append(1))
    attention(*[torch.ones(3, 1, 4)] * 3)
    assert not ran


# --- autograd -------------------------------------------------------------------------------------


class Double(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        return None

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 2 * g


@shows("PythonNode", "function_of")
def are_the_nodes_of_functions() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    found = []
    for y in (Double.apply(x), vmap(Double.apply)(x), vmap(vmap(Double.apply))(x)):
        todo = [y.grad_fn]
        while todo:
            node = todo.pop()
            if isinstance(node, private.PythonNode):
                found.append(private.function_of(node.name()))
            todo.extend([parent for parent, _ in node.next_functions if parent is not None])
    assert found == ["Double"] * 3
    assert not isinstance(x.relu().grad_fn, private.PythonNode)


@shows("NODE_OF_RELU")
def is_the_node_of_relu() -> None:
    x = torch.ones(2, requires_grad=True)
    for y in (torch.relu(x), x.relu(), F.relu(x), nn.ReLU()(x), x.clone().relu_()):
        assert y.grad_fn.name() == type(y.grad_fn).__name__ == private.NODE_OF_RELU


@shows("NODE_OF_CPP", "NODE_OF_SCRIPT")
def are_of_scripted_modules() -> None:
    x = torch.ones(2, requires_grad=True)
    f = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    for _ in range(4):  # the profiling runs come first
        y = f(x)
    assert type(y.grad_fn).__name__ == private.NODE_OF_CPP
    assert y.grad_fn.name().endswith(private.NODE_OF_SCRIPT)


@shows("NODE_OF_CUSTOM_OP")
def is_of_custom_ops() -> None:
    if not hasattr(torch.library, "custom_op"):
        pytest.skip("torch.library.custom_op is in torch since 2.4")

    @torch.library.custom_op("attrfn_tests::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    doubled.register_autograd(lambda ctx, g: 2 * g)
    node = doubled(torch.ones(2, requires_grad=True)).grad_fn
    assert node.name().startswith(private.NODE_OF_CUSTOM_OP)
    assert isinstance(node, private.PythonNode)


@shows("NODE_WITHOUT_DERIVATIVE")
def is_of_operations_that_torch_cannot_differentiate() -> None:
    library = torch.library.Library("attrfn_tests_private", "DEF")
    library.define("halved(Tensor x) -> Tensor")
    library.impl("halved", lambda x: x.detach() / 2, "CPU")
    node = torch.ops.attrfn_tests_private.halved(torch.ones(2, requires_grad=True)).grad_fn
    assert node.name() == private.NODE_WITHOUT_DERIVATIVE


# --- operations -----------------------------------------------------------------------------------


@shows("OpOverload", "overload_name")
def are_of_functions_of_exported_graphs() -> None:
    found = make_fx(lambda x: x.relu() + 1)(torch.ones(2))
    calls = [n.target for n in found.graph.nodes if n.op == "call_function"]
    assert all(isinstance(f, private.OpOverload) and f.namespace == "aten" for f in calls)
    assert [private.overload_name(f) for f in calls] == ["default", "Tensor"]


@shows("GUARDS", "guards_of")
def assert_what_an_exported_program_needs() -> None:
    size = torch.export.Dim("size", min=4, max=8)
    exported = torch.export.export(nn.ReLU(), (torch.ones(5),), dynamic_shapes=({0: size},))
    module = exported.module()
    guards = private.guards_of(module)
    assert private.GUARDS in dict(module.named_children())
    guards(torch.ones(8))
    with pytest.raises(AssertionError, match="Guard failed"):
        guards(torch.ones(9))
    assert private.guards_of(nn.ReLU()) is None


@shows("nn_functions", "variable_functions")
def are_what_modes_see() -> None:
    x = torch.ones(1, 2)
    with Sees() as mode:
        F.linear(x, x)
        torch.relu(x)
    assert mode.seen == [private.nn_functions.linear, private.variable_functions.relu]


@shows("ASKS_FOR_MODES")
def asks_whether_a_mode_wants_the_call() -> None:
    names = {name for name in vars(F) if name.startswith(private.ASKS_FOR_MODES)}
    for function in (F.multi_head_attention_forward, F.layer_norm, F.softmax):
        assert names.intersection(function.__code__.co_names)


@shows("says_out_of_memory")
def tells_that_memory_is_short() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert private.says_out_of_memory(raised.value)
    assert not private.says_out_of_memory(RuntimeError("another"))


# --- trees ----------------------------------------------------------------------------------------


@shows("tree_flatten", "tree_unflatten", "tree_leaves", "tree_map_only")
def go_over_trees() -> None:
    tree = {"a": [1, None], "b": (torch.ones(2), "text")}
    leaves, spec = pytree.tree_flatten(tree)
    assert leaves[:2] == [1, None]
    assert leaves[3:] == ["text"]
    assert pytree.tree_unflatten(leaves, spec) == tree
    assert all(map(operator.is_, pytree.tree_leaves(tree), leaves))
    assert pytree.tree_leaves(leaves[2]) == [leaves[2]]
    assert pytree.tree_map_only(int, str, tree)["a"] == ["1", None]


@shows("children", "in_order_of")
def have_parts_and_an_order() -> None:
    spec = pytree.tree_flatten(({"a": 1, "b": [2, (3,)]}, 4))[1]
    assert [s.num_leaves for s in pytree.children(spec)] == [3, 1]
    assert [*pytree.children(spec)[0].context] == ["a", "b"]
    other = ({"b": [2, (3,)], "a": 1}, 4)
    assert [*pytree.in_order_of(other, spec)[0]] == ["a", "b"]
    assert pytree.in_order_of(other, spec) == other
    assert pytree.tree_flatten(pytree.in_order_of(other, spec))[1] == spec
    assert pytree.in_order_of([1], spec) == [1]


@shows("says_inference")
def is_of_autograd_that_meets_a_tensor_of_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.ones(2)
    with pytest.raises(RuntimeError) as caught:
        x * torch.ones(2, requires_grad=True)
    assert private.says_inference(caught.value)
    assert not private.says_inference(RuntimeError("shapes differ"))
