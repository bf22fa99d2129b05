"""Any module of known operators through torch.export: multiplies, attention, and fused chains of vector operations.

Values are kept as everywhere in a graph: the rows of the step first, then the other axes, axes of length 1 left out.
The axis of rows is the one as long as the first axis of the first input. Multiplies that read the same value are one
operation, and vector operations that no multiply stands between are one, as an engine's fusion has them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError, require
from taygeta.frontend.export_fuse import fused
from taygeta.frontend.export_steps import Steps, other_axes, rows_axis
from taygeta.frontend.export_trace import PURPOSE
from taygeta.graph import meaning as m
from taygeta.graph.elementwise import flop_of
from taygeta.graph.execute import FUNCTIONS, Place
from taygeta.graph.ops import AttentionShape, Block, Graph, Op, Slab, Visit
from taygeta.graph.step import Cache, Step
from taygeta.spec.mixers import Axes, Weight

if TYPE_CHECKING:
    import torch

_LINEAR = ("aten.linear.default", "aten.addmm.default", "aten.mm.default")
_ATTENTION = "aten.scaled_dot_product_attention.default"
_SKIPPED = ("aten._assert_tensor_metadata.default", "aten._assert_scalar.default")


@dataclass(frozen=True)
class ExportedModule:
    """A module's graph; inputs and outputs name its values, in order, and parameters their paths in the module."""

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[str, ...]

    def run(self, tensors: Mapping[str, np.ndarray], *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs, rows first, for inputs whose first axis is the rows, by the meanings of the graph."""
        values = dict(zip(self.inputs, (np.asarray(x) for x in inputs), strict=True))
        rows = len(values[self.inputs[0]])
        cache = Cache()
        step = Step.of({0: list(range(rows))}, cache)
        values[m.POSITIONS] = step.positions
        multiplied = self._multiplied()
        weights: dict[tuple[int | None, str], np.ndarray] = {
            (0, n): _stored(tensors[n], multiplied.get(n)) for n in self.parameters
        }
        place = Place(0, 0, weights, step, cache)
        for op, _ in self.graph.ops():
            given = tuple(values[name] for name in op.inputs)
            found = FUNCTIONS[type(op.meaning)](op.meaning, op, place, *given)
            values.update(zip(op.outputs, found, strict=True))
        return tuple(values[name] for name in self.outputs)

    def _multiplied(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights of multiplies."""
        ops = [op for op, _ in self.graph.ops() if isinstance(op.meaning, m.Linear)]
        return {w.name: tuple(size for _, size in w.axes) for op in ops for w in op.weights}


def _stored(tensor: np.ndarray, multiplied: tuple[int, ...] | None) -> np.ndarray:
    """A parameter as the graph has it: the weight of a torch.nn.Linear with its inputs first, in its axes."""
    found = np.asarray(tensor, np.float32)
    return found if multiplied is None else np.ascontiguousarray(found.T).reshape(multiplied)


def export_module(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedModule:
    """Return the graph of a module for example inputs; weights are neither read nor needed (the meta device will do).

    The first axis of the first input longer than 1 is the rows; no other axis may be as long. Raises UnsupportedError
    with the operator and the module for what is not known, InputError, MissingExtraError.
    """
    torch = require("torch", "torch", PURPOSE)
    rows = next((side for side in inputs[0].shape if side > 1), 0) if inputs else 0
    if not rows:
        raise InputError("An export needs an example input with an axis of rows that is longer than 1.")
    if any(rows in p.shape for p in module.parameters()):
        raise InputError(
            f"The example has {rows} rows and a parameter has a side of {rows}; give a prime that is none."
        )
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own classes
            program = torch.export.export(module.eval(), inputs, strict=False).run_decompositions({})
    except Exception as error:  # code of any class runs here, under a tracer
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(f"{type(module).__name__} cannot be exported: torch.export says {reason!r}.") from error
    return _Builder(program, rows, type(module).__name__).module()


@dataclass
class _Group:
    """Nodes that become one operation, and how many multiplies lie before it at least."""

    level: int
    nodes: list[Any] = field(default_factory=list)


class _Builder:
    """Turns the nodes of a program into operations."""

    def __init__(self, program: Any, rows: int, name: str) -> None:
        signature = program.graph_signature
        self.parameters: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.nodes = [n for n in program.graph.nodes if str(n.target) not in _SKIPPED]
        self.live = _live(program.graph)
        self.rows, self.name = rows, name
        self.given = [n for n in self.nodes if n.op == "placeholder" and n.name not in self.parameters]

    def module(self) -> ExportedModule:
        """Return the graph of one block."""
        (end,) = (n for n in self.nodes if n.op == "output")
        results = list(end.all_input_nodes)
        ops: list[Op] = []
        for group in self.groups():
            ops += self.operations(group, results)
        names, outs = tuple(n.name for n in self.given), tuple(n.name for n in results)
        ops = fused(ops, outs)
        block = Block(self.name, tuple(ops), inputs=names, outputs=outs)
        held = tuple(dict.fromkeys(w.name for op in ops for w in (*op.weights, *op.extras)))
        return ExportedModule(Graph((block,), (Visit(0, 0),)), names, outs, held)

    def groups(self) -> list[_Group]:
        """Return the operations in an order that runs: by how many multiplies and attentions lie before them."""
        level: dict[Any, int] = {}
        home: dict[Any, _Group] = {}
        multiplies: dict[tuple[Any, int], _Group] = {}
        for n in self.nodes:
            if n.op != "call_function" or n not in self.live:
                level[n] = 0
                continue
            own = max((level[i] for i in n.all_input_nodes), default=0)
            name = str(n.target)
            if name in _LINEAR or name == _ATTENTION:
                own += 1
            level[n] = own
            if name in _LINEAR:
                group = multiplies.setdefault((self._read(n), own), _Group(2 * own - 1))
            elif name == _ATTENTION:
                group = _Group(2 * own - 1)
            else:
                group = self._joined(n, own, home)
            group.nodes.append(n)
            home[n] = group
        order = {n: i for i, n in enumerate(self.nodes)}
        found = {id(g): g for g in home.values()}.values()
        return sorted(found, key=lambda g: (g.level, order[g.nodes[0]]))

    def _joined(self, n: Any, own: int, home: dict[Any, _Group]) -> _Group:
        """Return the group of a vector operation: those of its level that it reads become one."""
        near = {id(home[i]): home[i] for i in n.all_input_nodes if i in home and home[i].level == 2 * own}
        first, *rest = near.values() or [_Group(2 * own)]
        for other in rest:
            first.nodes += other.nodes
            for node in other.nodes:
                home[node] = first
        return first

    def _read(self, n: Any) -> Any:
        return n.args[1] if str(n.target) == "aten.addmm.default" else n.args[0]

    def operations(self, group: _Group, results: list[Any]) -> list[Op]:
        """Return the operations of a group: one, or a cache write before an attention."""
        name = str(group.nodes[0].target)
        if name in _LINEAR:
            return self.multiply(group.nodes)
        if name == _ATTENTION:
            return self.attention(group.nodes[0])
        order = {n: i for i, n in enumerate(self.nodes)}
        return self.vector(sorted(group.nodes, key=order.__getitem__), results)

    def slab(self, n: Any, fmt: str = "bf16") -> Slab:
        """Return a value's axes; its other axes have no names of their own."""
        sides = other_axes(n, self.rows)
        axes: Axes = tuple((f"axis_{len(sides) - i}", side) for i, side in enumerate(sides))
        return Slab((("tokens", 0), *axes), fmt)

    def multiply(self, nodes: list[Any]) -> list[Op]:
        """Return the multiplies of one value as one operation, and their biases as one after it."""
        x = self._read(nodes[0])
        size = x.meta["val"].shape[-1]
        if rows_axis(x, self.rows) is None or (other_axes(x, self.rows)[-1:] != (size,) and size != 1):
            raise self.refused(nodes[0], "multiplies along the rows")
        weights, biased, made = [], [], []
        for n in nodes:
            path, bias, outer = self._weight(n)
            weights.append(Weight(path, (("axis_1", size), ("out", outer)), "ffn"))
            made.append(f"{n.name}_product" if bias else n.name)
            biased += [(n, bias)] if bias else []
        read, kept = self.slab(x), self.slab(x).axes[:-1]
        writes = tuple(Slab((*kept, w.axes[1]), "bf16") for w in weights)
        op = Op(
            " and ".join(w.name.removesuffix(".weight") for w in weights), "matmul", "ffn", (read,), writes,
            tuple(weights), contract=("axis_1",), inputs=(x.name,), outputs=tuple(made),
            meaning=m.Linear(tuple(w.name for w in weights)),
        )  # fmt: skip
        return [op, *(self._bias(n, path) for n, path in biased)]

    def _weight(self, n: Any) -> tuple[str, str, int]:
        name = str(n.target)
        weight, bias = (n.args[2], n.args[0]) if name == "aten.addmm.default" else (n.args[1], None)
        if name == "aten.linear.default" and len(n.args) > 2:
            bias = n.args[2]
        path = self.parameters.get(weight.name, "")
        if not path or name != "aten.linear.default":
            raise self.refused(n, "multiplies something else than the weight of a torch.nn.Linear")
        return path, self.parameters[bias.name] if bias is not None else "", weight.meta["val"].shape[0]

    def _bias(self, n: Any, path: str) -> Op:
        found = m.Elementwise((m.Apply("add", (0, 1), (False, False)),), (2,), (path,))
        y = self.slab(n)
        weight = Weight(path, (("out", n.meta["val"].shape[-1]),), "norm")
        return Op(
            f"{path} added", "vector", "ffn", (y,), (y,), (weight,), flop=1.0,
            inputs=(f"{n.name}_product",), outputs=(n.name,), meaning=found,
        )  # fmt: skip

    def attention(self, n: Any) -> list[Op]:
        """Return the cache write and the causal attention of one sequence."""
        q, k, v = n.args[:3]
        mask, dropout, causal = (list(n.args[3:6]) + [None, 0.0, False][len(n.args) - 3 :])[:3]
        shapes = [tuple(s for s in x.meta["val"].shape) for x in (q, k, v)]
        right = all(rows_axis(x, self.rows) == len(s) - 2 for x, s in zip((q, k, v), shapes, strict=True))
        if mask is not None or dropout or not causal or not right:
            raise self.refused(n, "is attention that is not causal, or not of (heads, rows, head size)")
        heads, kv_heads = (prod(s[:-2]) for s in shapes[:2])
        dim, v_dim = shapes[0][-1], shapes[2][-1]
        scale = n.kwargs.get("scale") or dim**-0.5
        made = (f"{n.name}_queries", n.name)
        if heads == 1 or kv_heads == 1:
            raise self.refused(n, "is attention of one head, whose axis is left out; two or more are understood")
        write = Op(
            "cache write", "vector", "attention", (self.slab(k), self.slab(v)), (self.slab(k), self.slab(v)),
            inputs=(q.name, k.name, v.name, m.POSITIONS), outputs=made[:1], meaning=m.RotaryCacheWrite(),
        )  # fmt: skip
        attend = Op(
            "attention", "attention", "attention", (self.slab(q),), (self.slab(n),),
            detail=AttentionShape(heads, kv_heads, dim, v_dim), inputs=made[:1], outputs=made[1:],
            meaning=m.Attend(scale),
        )  # fmt: skip
        return [write, attend]

    def vector(self, nodes: list[Any], results: list[Any]) -> list[Op]:
        """Return a chain of vector operations as one."""
        mine = set(nodes)
        inside = Steps(self.rows, self.parameters, self.refused)
        for n in nodes:
            inside.add(n, mine)
        outs = [n for n in nodes if n in results or any(u not in mine and u in self.live for u in n.users)]
        found = inside.meaning(outs)
        weights = tuple(Weight(name, axes, "norm") for name, axes in inside.held.items())
        reads = tuple(self.slab(n) for n in inside.given) or tuple(self.slab(n) for n in outs)
        if not found.steps:
            return []
        op = Op(
            " and ".join(dict.fromkeys(s.function for s in found.steps)), "vector", "ffn", reads,
            tuple(self.slab(n) for n in outs), weights, flop=flop_of(found) / max(len(reads), 1),
            inputs=tuple(n.name for n in inside.given), outputs=tuple(n.name for n in outs), meaning=found,
        )  # fmt: skip
        return [op]

    def refused(self, node: Any, what: str = "is not a known operator") -> UnsupportedError:
        """Return the error that names an operator and the module that it stands in."""
        stack = node.meta.get("nn_module_stack") or {}
        path, kind = list(stack.values())[-1][:2] if stack else ("", self.name)
        kind = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
        return UnsupportedError(f"{path or self.name} ({kind}): {node.target} {what}, so the export stops.")


def _live(graph: Any) -> set[Any]:
    """Return the nodes that reach the output."""
    live: set[Any] = set()
    stack = [n for n in graph.nodes if n.op == "output"]
    while stack:
        n = stack.pop()
        if n not in live:
            live.add(n)
            stack += n.all_input_nodes
    return live
