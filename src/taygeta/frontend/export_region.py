"""Regions of an exported program: what lies between its matrix multiplies, and what that computes on real numbers.

A region is lifted to a meaning by trying candidates: the traced operators are run on random numbers, and a candidate
holds only where it gives the same. So no class is trusted by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taygeta.base.errors import UnsupportedError, require
from taygeta.frontend.export_trace import PURPOSE, Trace
from taygeta.graph.functions import norm as reference_norm

# Operators that keep every element and the order of elements.
_SAME = {
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.alias.default",
    "aten.clone.default",
    "aten.detach.default", "aten._to_copy.default", "aten.to.dtype", "aten.unsqueeze.default", "aten.squeeze.dim",
    "aten.squeeze.dims", "aten.contiguous.default", "aten.dropout.default", "aten.flatten.using_ints",
}  # fmt: skip
_IGNORED = {"aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten.sym_size.int"}


@dataclass(frozen=True)
class Matmul:
    """A multiply with a parameter: its node, what it reads, and where its weight lies.

    transposed: the weight is (in, out) instead of torch's (out, in).
    """

    node: Any
    source: Any
    weight: str
    bias: str
    transposed: bool
    inner: int
    outer: int


class Program:
    """The nodes of a trace with the questions that lifting asks; `used` collects the nodes that have an explanation."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.nodes = list(trace.program.graph.nodes)
        signature = trace.program.graph_signature
        self.parameters: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.used: set[Any] = set()
        self.rng = np.random.default_rng(1)
        self._values: dict[str, np.ndarray] = {}

    def strip(self, node: Any) -> Any:
        """Return the node whose elements this one has, in the same order."""
        while str(node.target) in _SAME or _is_times_one(node):
            self.used.add(node)
            node = node.args[0]
        return node

    def readers(self, node: Any) -> Iterator[Any]:
        """Yield the nodes that read a value, through operators that keep its elements."""
        for user in node.users:
            if str(user.target) in _SAME or _is_times_one(user):
                yield from self.readers(user)
            elif str(user.target) not in _IGNORED:
                yield user

    def matmul(self, node: Any) -> Matmul | None:
        """Return a node as a multiply with a parameter, None when it is none."""
        name = str(node.target)
        if name == "aten.linear.default":
            x, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
        elif name == "aten.addmm.default":
            bias, x, weight = node.args[:3]
        elif name in ("aten.mm.default", "aten.matmul.default"):
            x, weight, bias = node.args[0], node.args[1], None
        else:
            return None
        weight = self.strip(weight)
        if weight.op != "placeholder" or weight.name not in self.parameters:
            return None
        transposed = name != "aten.linear.default"
        inner, outer = weight.meta["val"].shape[:: 1 if transposed else -1]
        path = "" if bias is None else self.parameters.get(self.strip(bias).name, "")
        return Matmul(node, self.strip(x), self.parameters[weight.name], path, transposed, inner, outer)

    def kind(self, node: Any) -> str:
        """Return "norm", "attention" or "experts" for a custom operator, else the name of the operator."""
        name = str(node.target)
        return name.split(".")[1] if name.startswith("taygeta.") else name

    def sources(self, node: Any) -> list[Any]:
        """Return the multiplies, embeddings and custom operators but norms whose values reach a node, in order."""
        found: dict[Any, None] = {}
        seen: set[Any] = set()
        stack = [node]
        while stack:
            n = stack.pop()
            if n in seen or n.op == "placeholder":
                continue
            seen.add(n)
            if self.kind(n) in ("attention", "experts", "aten.embedding.default") or self.matmul(n):
                found[n] = None
            else:
                stack += n.all_input_nodes
        return [n for n in self.nodes if n in found]

    def inputs(self, node: Any, stops: Mapping[Any, Any]) -> list[Any]:
        """Return the placeholders of parameters and buffers that a region reads, the `stops` being its border."""
        found, stack, seen = [], [node], set()
        while stack:
            n = stack.pop()
            if n in seen or n in stops:
                continue
            seen.add(n)
            found += [n] if n.op == "placeholder" else []
            stack += n.all_input_nodes
        return found

    def norms(self, node: Any, stops: Mapping[Any, Any]) -> list[Any]:
        """Return the norms inside of a region."""
        found, stack, seen = [], [node], set()
        while stack:
            n = stack.pop()
            if n in seen or n in stops or n.op == "placeholder":
                continue
            seen.add(n)
            found += [n] if self.kind(n) == "norm" else []
            stack += n.all_input_nodes
        return found

    def value(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return random numbers that stand for a parameter, the same ones whenever they are asked for."""
        if path not in self._values:
            self._values[path] = self.rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return self._values[path]

    def draw(self, node: Any) -> np.ndarray:
        """Return random numbers of a node's shape."""
        return self.rng.standard_normal(tuple(node.meta["val"].shape)).astype(np.float32)

    def run(self, given: Mapping[Any, np.ndarray], *outputs: Any) -> list[np.ndarray]:
        """Return what the nodes `outputs` compute when the nodes of `given` have these values; all become used."""
        torch = require("torch", "torch", PURPOSE)
        self.used |= set(given)
        values = {node: torch.from_numpy(np.ascontiguousarray(array)) for node, array in given.items()}
        with torch.no_grad():
            return [self._run(node, values).numpy().copy() for node in outputs]

    def _run(self, node: Any, values: dict[Any, Any]) -> Any:
        stack = [node]
        while stack:
            n = stack[-1]
            missing = [] if n in values else [i for i in n.all_input_nodes if i not in values]
            if missing:
                stack += missing
                continue
            if n not in values:
                values[n] = self._one(n, values)
            self.used.add(n)
            stack.pop()
        return values[node]

    def _one(self, n: Any, values: dict[Any, Any]) -> Any:
        torch = require("torch", "torch", PURPOSE)
        if n.op == "placeholder":
            path = self.parameters.get(n.name, "")
            if path in self.trace.constants:
                return self.trace.constants[path]
            if n.name in self.trace.program.constants:
                return self.trace.program.constants[n.name]
            return torch.from_numpy(self.value(path or n.name, tuple(n.meta["val"].shape)))
        if self.kind(n) == "norm":
            x, path = values[n.args[0]].numpy(), n.args[1]
            return torch.from_numpy(reference_norm(x, self.norm_weight(path, x.shape[-1]), self.trace.norms[path]))
        if str(n.target).startswith("taygeta."):
            raise self.refused(n)

        def real(a: Any) -> Any:
            if isinstance(a, torch.device):
                return torch.device("cpu")
            return values[a] if hasattr(a, "all_input_nodes") else a

        args, kwargs = torch.utils._pytree.tree_map(real, (n.args, dict(n.kwargs)))
        return n.target(*args, **kwargs)

    def norm_weight(self, path: str, size: int) -> np.ndarray:
        """Return the numbers that stand for the parameters of a norm: the scale, and the shift where it has one."""
        module = self.trace.model.get_submodule(path)
        names = ["weight", *(["bias"] if getattr(module, "bias", None) is not None else [])]
        return np.stack([self.value(f"{path}.{name}", (size,)) for name in names])

    def refused(self, node: Any, what: str = "") -> UnsupportedError:
        """Return the error that names an operator and the module that it stands in."""
        stack = node.meta.get("nn_module_stack") or {}
        path, kind = (*list(stack.values())[-1],)[:2] if stack else ("the model", "")
        kind = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
        return UnsupportedError(
            f"{path or 'the model'} ({kind}): {node.target!s} {what or 'is not understood'}, so the export stops; "
            f"import the config.json, or export the module alone with export_module."
        )

    def check_all_used(self) -> None:
        """Refuse the first live operator that nothing has explained. Raises UnsupportedError."""
        live: set[Any] = set()
        stack = [n for n in self.nodes if n.op == "output"]
        while stack:
            n = stack.pop()
            if n not in live:
                live.add(n)
                stack += n.all_input_nodes
        for n in self.nodes:
            if n.op == "call_function" and n in live and n not in self.used and str(n.target) not in _IGNORED:
                raise self.refused(n)


def _is_times_one(node: Any) -> bool:
    return str(node.target) == "aten.mul.Tensor" and node.args[1] in (1, 1.0) and not hasattr(node.args[1], "target")


def agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether two results are equal within the rounding of a few operations in fp32."""
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=3e-5, atol=3e-5))


def first_that_agrees(candidates: Iterator[Any], computed: Callable[[Any], np.ndarray], found: np.ndarray) -> Any:
    """Return the first candidate whose result is the one found, None when there is none."""
    return next((c for c in candidates if agree(computed(c), found)), None)
