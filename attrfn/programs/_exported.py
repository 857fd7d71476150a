"""Exported programs as modules: the tree of the original modules, each running its operations."""

from __future__ import annotations

import hashlib
import io
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from attrfn._torch import pytree
from attrfn._torch.explanation import current
from attrfn._torch.private import GUARDS, guards_of
from attrfn._torch.say import say
from attrfn._torch.warn import warn
from attrfn.programs._code import written
from attrfn.programs._groups import Rows, State, in_groups, whole_batches
from attrfn.programs._inputs import signature_of
from attrfn.programs._ops import draws, mixes, plain
from attrfn.programs._outputs import Outputs, chosen
from attrfn.programs._regions import Region, calls_of, in_order, is_tensor, regions_of
from attrfn.programs._tree import (
    Reach,
    Scope,
    copy_state,
    module_at,
    node_at,
    scope_at,
    tapped,
    tie,
    watched,
)


class Index(NamedTuple):
    """What a program has by which name; a tuple, because private copies share it.

    Attributes:
        calls: How often each module runs, by its path.
        torn: The paths of modules whose operations are not together.
        places: The module of each node, and its function.
    """

    calls: dict[str, int]
    torn: set[str]
    places: dict[str, tuple[str, Any]]


class Program(Scope):
    """An exported program as a module, with the names of the original modules.

    Methods take it as they take the module that was exported. ``layer`` is the qualified name of an
    original module, or the name of a node of the graph, such as ``"relu_1"``. The value of a layer
    are the tensors that the rest of the program reads of it, and its input are those that it reads
    itself.

    Args:
        exported: What ``torch.export.export`` or ``torch.export.load`` returns.
        outputs: Which outputs the model function returns (see :func:`attrfn.programs.load`).

    Attributes:
        node_names: The nodes that a method can name as a layer.

    Raises:
        ValueError: The graph has what no exported program has.

    Example:
        >>> import torch, attrfn.programs
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()).eval()
        >>> program = attrfn.programs.Program(torch.export.export(model, (torch.ones(1, 2),)))
        >>> program.node_names
        ('linear', 'relu')
        >>> [name for name, _ in program.named_modules()]
        ['', '0', '1']
    """

    def __init__(self, exported: torch.export.ExportedProgram, outputs: Outputs = None) -> None:
        super().__init__()
        holder: Any = exported.module()
        graph: fx.Graph = holder.graph
        _refuse_other_calls(graph)
        functions = [n for n in graph.nodes if n.op == "call_function"]
        self.attrfn_mixes = any(map(mixes, functions))
        self.training = self.attrfn_mixes or any(map(draws, functions))
        self.attrfn_outputs = outputs
        # Digests of models (attrfn.data) read texts among the attributes.
        self.attrfn_graph = hashlib.sha256(f"{graph} {outputs}".encode()).hexdigest()
        self.attrfn_exported = (exported,)
        self.attrfn_state = State()
        self.attrfn_signature = signature_of(exported, holder, guards_of(holder))
        self.attrfn_out_spec = exported.call_spec.out_spec
        self.attrfn_state.known = any(map(draws, functions))  # runs that draw tell nothing
        region, torn = regions_of(graph)
        self.attrfn_index = Index(calls_of(region), torn, {})
        tie(holder)
        copy_state(holder, self)
        for one in region.regions():
            self._write(one, graph, holder)

    @property
    def node_names(self) -> tuple[str, ...]:
        """The nodes that a method can name as a layer."""
        return tuple(self.attrfn_index.places)

    def _write(self, region: Region, graph: fx.Graph, holder: nn.Module) -> None:
        """Give the module of a region one more call."""
        scope = scope_at(self, region.path)
        if region.path:
            given = in_order(region.inputs)
            out: Any = region.outputs[0] if len(region.outputs) == 1 else tuple(region.outputs)
        else:
            given = [n for n in graph.nodes if n.op == "placeholder"], []
            out = next(n.args[0] for n in graph.nodes if n.op == "output")
        reach = Reach(self, scope, region.path, holder)
        body = written(region, given, reach, tapped, self.attrfn_index.calls, out)
        scope.attrfn_bodies = (*scope.attrfn_bodies, body)
        for step in region.steps:
            if isinstance(step, fx.Node) and is_tensor(step):
                self.attrfn_index.places[step.name] = (region.path, plain(step.target))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            ValueError: It was not exported for these inputs.
        """
        flat = self.attrfn_signature.flat(args, kwargs)
        rows = self.attrfn_signature.rows(flat)
        if self.attrfn_mixes:
            _say_that_it_mixes()
        if rows is None:
            return chosen(self._run(flat), self.attrfn_outputs)
        self._refuse_groups(rows)
        return chosen(in_groups(self._run, flat, rows, self.attrfn_state), self.attrfn_outputs)

    def _run(self, flat: list[Any]) -> Any:
        self.attrfn_signature.check(flat)
        found = self.attrfn_bodies[0](self, *flat)
        return pytree.tree_unflatten([*found], self.attrfn_out_spec)

    def _refuse_groups(self, rows: Rows) -> None:
        """Run each copy of the batch alone where groups would be other calls of a layer."""
        if watched(self):
            whole_batches(rows, "a layer has its value for the whole batch")
        if self.attrfn_mixes:
            whole_batches(rows, "a batch norm takes its statistics from the batch")

    def attrfn_rows(self, *args: Any) -> int | None:
        """The fixed number of rows that the program takes, if these inputs have another one."""
        rows = self.attrfn_signature.rows(self.attrfn_signature.flat(args, {}))
        return None if rows is None else rows.fixed

    def attrfn_layer(self, name: str) -> nn.Module | None:
        """The node of a name; None for what the tree of modules has.

        Raises:
            ValueError: A module of this name has no value in the program.
        """
        if name in self.attrfn_index.torn:
            raise ValueError(
                f"layer {name!r} has its operations in several places of the exported graph, so "
                "that none of them is its value: name one of its nodes, or a module inside it"
            )
        if name in self.attrfn_index.calls:
            return None
        if name in self.attrfn_index.places:
            path, function = self.attrfn_index.places[name]
            return node_at(scope_at(self, path), name, function)
        if module_at(self, name) is not None:
            raise ValueError(
                f"layer {name!r} runs no operation in the exported program, so that it has no "
                "value there: name a module around it, or a node (see node_names of the program)"
            )
        return None

    def train(self, mode: bool = True) -> Program:
        """The program itself, if it was exported in this mode.

        Raises:
            ValueError: It was exported in the other mode.
        """
        if mode != self.training:
            was, other = ("train", "eval") if self.training else ("eval", "train")
            raise ValueError(
                f"the program was exported after model.{was}(), which its operations hold: call "
                f"model.{other}() and export it again"
            )
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """As the file of the exported program, because its functions are made when it is read."""
        file = io.BytesIO()
        torch.export.save(self.attrfn_exported[0], file)
        return _from_bytes, (file.getvalue(), self.attrfn_outputs)


def _from_bytes(data: bytes, outputs: Outputs) -> Program:
    return Program(torch.export.load(io.BytesIO(data)), outputs)


def _refuse_other_calls(graph: fx.Graph) -> None:
    for node in graph.nodes:
        known = node.op in ("placeholder", "get_attr", "call_function", "output")
        if not known and node.target != GUARDS:
            raise ValueError(
                f"the graph of the program has {say(node.format_node())}, expected functions "
                "alone, as torch.export writes them: export the model again"
            )


def _say_that_it_mixes() -> None:
    one = current()
    if one is None:
        return
    if not one.mixes:
        warn(
            "the program was exported in training mode and holds a batch norm, so its rows depend "
            "on each other and the batch is explained as a whole: call model.eval() and export it "
            "again"
        )
    one.mixes = True
    one.needs_whole_batches()
