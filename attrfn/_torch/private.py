"""Private and undocumented names of torch, each once, with what the library relies on.

Names of torch's compiler are in :mod:`attrfn._torch.private_compiler`, those of its trees in
:mod:`attrfn._torch.pytree`. No other file may use such a name (tests/test_layout.py), and each has
a test of its meaning (tests/test_private.py). What hot paths use is torch's own function under
another name, or an ``attrgetter``, neither of which adds a call of Python.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import function
from torch.nn.modules import batchnorm, conv, dropout, linear

# --- Tensors ------------------------------------------------------------------------------------

version: Callable[[Tensor], int] = operator.attrgetter("_version")
"""How many times a tensor, or a view that shares its memory, was written in place.

The rules ask whether a value is still the one that an operation saw. Inference tensors have none.
"""

base: Callable[[Tensor], Tensor | None] = operator.attrgetter("_base")
"""The tensor of which a tensor is a view, or None: a write into the view changes both."""

is_view: Callable[[Tensor], bool] = operator.methodcaller("_is_view")
"""Whether a tensor is a view, also one that was made without gradients."""

storage_id: Callable[[torch.UntypedStorage], int] = operator.attrgetter("_cdata")
"""A number that two storages share if they are one; the Python objects around it are new."""

ATTRIBUTES = ("_version", "_backward_hooks")
"""Attributes of tensors that a mode sees when they are read, and that hold no values."""

modes: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack
"""The active modes of functions, the innermost last, without the one that handles a call."""

no_overrides = torch._C.DisableTorchFunction
"""A context in which neither modes nor subclasses see what runs.

The public ``torch.overrides`` can suspend modes only one by one.
"""

plain_function = torch._C._disabled_torch_function_impl
"""``__torch_function__`` of a subclass of Tensor whose operations run as those of tensors."""

# --- Transforms of torch.func -------------------------------------------------------------------

# torch.func has no public question "does a transform surround this call?". torch.compile knows
# these functions by identity.
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor stands for another one inside a transform."""

unwrapped = torch._C._functorch.get_unwrapped
"""The tensor for which a wrapped one stands, of one transform less."""

no_transforms = torch._C._DisableFuncTorch
"""A context in which no transform sees what runs."""

level_of = torch._C._functorch.maybe_get_level
"""The level of the transform to which a tensor belongs: 1 for the outermost, -1 for none."""

is_differentiated = torch._C._functorch.is_gradtrackingtensor
"""Whether a wrapped tensor belongs to a derivative (grad, vjp or jvp) and not to vmap."""


def is_mapped(t: object) -> bool:
    """Whether vmap maps over a tensor, at any depth of transforms."""
    while isinstance(t, Tensor) and is_wrapped(t):
        if not is_differentiated(t):
            return True
        t = unwrapped(t)
    return False


def memory_of(t: Tensor) -> int:
    """A number that a tensor shares with its views, also inside transforms; 0 without memory."""
    while is_wrapped(t):
        t = unwrapped(t)
    return storage_id(t.untyped_storage()) if t.layout is torch.strided else 0


def in_transform() -> bool:
    """Whether a transform (vmap, grad, jvp ...) surrounds this call in eager mode."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_transform_or_traced() -> bool:
    """The same, which also holds of transforms inside the code that torch.compile traces."""
    # There None is another object. Most callers need not know more than that a compiler is at work.
    innermost: object = torch._C._functorch.peek_interpreter_stack()
    return isinstance(innermost, torch._C._functorch.CInterpreter)


def transform_level() -> int:
    """How many transforms surround this call in eager mode."""
    innermost: Any = torch._C._functorch.peek_interpreter_stack()
    return 0 if innermost is None else int(innermost.level())


def reads_values(error: BaseException) -> bool:
    """Whether an error says that a function inside vmap read values, as ``.item()`` does."""
    # torch raises a RuntimeError for it, so that only the text tells.
    return "vmap: It looks like you're" in str(error)


# --- Modules ------------------------------------------------------------------------------------

PARAMETERS = "_parameters"
BUFFERS = "_buffers"
MODULES = "_modules"
"""Where a module keeps its parameters, buffers and submodules, None among them.

The public iterators leave None out and ask each submodule, where a walk wants one level.
"""

COMPILED_CALL = "_compiled_call_impl"
"""What ``module.compile()`` puts in the place of a module's call, since torch 2.2."""

COMPILED_MODULE = "_orig_mod"
"""The submodule of ``torch.compile(module)`` that holds the module itself."""

OF_STATE_DICTS = (
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)
"""Attributes of each module for state dicts alone: a forward pass does not read them."""

FUSED_LAYER = "activation_relu_or_gelu"
"""Attribute of an encoder layer: 0 turns off its fused path, which skips the submodules."""

NESTED_TENSOR = ("use_nested_tensor", "enable_nested_tensor")
"""Attributes of an encoder: False turns nested tensors off; torch 2.0 and 2.1 read the second."""

BatchNorm = batchnorm._BatchNorm
"""The class of all batch norms, which mix the rows of a batch in training mode."""

Dropout = dropout._DropoutNd
"""The class of all dropouts."""

Convolution = conv._ConvNd
"""The class of all convolutions, the transposed ones too."""

TransposedConvolution = conv._ConvTransposeNd
"""The class of all transposed convolutions."""

ProjectionOfAttention = linear.NonDynamicallyQuantizableLinear
"""The class of ``nn.MultiheadAttention.out_proj``, whose weights are used without its forward."""


def slots(module: nn.Module, kind: str) -> dict[str, Any]:
    """The parameters, buffers or submodules of one module by name, None among them."""
    found: dict[str, Any] = module.__dict__.get(kind, {})  # none before Module.__init__
    return found


# --- Autograd -----------------------------------------------------------------------------------

PythonNode = function.BackwardCFunction
"""The class of nodes that stand for a ``torch.autograd.Function``."""

NODE_OF_RELU = "ReluBackward0"
"""The name of the node of ``torch.relu``."""

NODE_OF_CPP = "CppFunction"
"""The class of nodes that C++ extensions and scripted functions make."""

NODE_OF_SCRIPT = "DifferentiableGraphBackward"
"""The end of the name of the node of a scripted or traced function."""

NODE_WITHOUT_DERIVATIVE = "torch::autograd::WarnNotImplemented"
"""The name of the node of an operation without a derivative, such as that of a quantised layer."""

NODE_OF_CUSTOM_OP = "GeneratedBackwardFor_"
"""The start of the name of the node of an operation of ``torch.library``."""


def function_of(node: str) -> str:
    """The name of the ``torch.autograd.Function`` that a node's name belongs to, under vmap too."""
    return node.replace("Vmapped", "").removesuffix("Backward")


# --- Operations ---------------------------------------------------------------------------------

OpOverload = torch._ops.OpOverload
"""The class of the functions of exported graphs, such as ``torch.ops.aten.relu.default``."""

overload_name: Callable[[Any], str] = operator.attrgetter("_overloadname")
"""The last part of the name of one: ``"default"``."""

GUARDS = "_guards_fn"
"""The submodule of an exported module that asserts what its program needs of all inputs."""


def guards_of(module: nn.Module) -> Callable[..., Any] | None:
    """A function of the leaves of all inputs that asserts what a program needs, if there is one."""
    found: Any = getattr(module, GUARDS, None)
    return None if found is None else found.forward


nn_functions = torch._C._nn
"""What ``torch.nn.functional`` hands to a mode for functions that are written in C++ alone."""

variable_functions = torch._C._VariableFunctions
"""What ``torch.*`` and ``torch._VF`` hand to a mode, as static methods."""

ASKS_FOR_MODES = "has_torch_function"
"""The start of the names by which ``torch.nn.functional`` asks whether a mode wants a call.

A function that hears "no" runs its parts, which then reach the mode one by one.
"""

# --- Memory -------------------------------------------------------------------------------------


def says_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out."""
    # The CPU's allocator raises a RuntimeError and not an OutOfMemoryError.
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def says_inference(error: BaseException) -> bool:
    """Whether an error says that a tensor of inference mode meets autograd."""
    return "nference tensor" in str(error)
