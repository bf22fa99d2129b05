"""Vector operators of an exported program as the steps of an Elementwise meaning, with the rows first.

Torch's axes become ours: the axis of rows first, axes of length 1 left out. What moves rows among the other axes, or
mixes rows, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from taygeta.base.errors import UnsupportedError
from taygeta.graph.meaning import Apply, Attribute, Elementwise
from taygeta.spec.mixers import Axes

_BINARY = {
    "aten.add.Tensor": "add", "aten.sub.Tensor": "subtract", "aten.mul.Tensor": "multiply",
    "aten.div.Tensor": "divide", "aten.pow.Tensor_Scalar": "power", "aten.maximum.default": "maximum",
    "aten.minimum.default": "minimum", "aten.add.Scalar": "add", "aten.mul.Scalar": "multiply",
}  # fmt: skip
_UNARY = {
    f"aten.{name}.default": ours
    for name, ours in (
        ("neg", "negate"), ("abs", "absolute"), ("exp", "exp"), ("log", "log"), ("sqrt", "sqrt"), ("rsqrt", "rsqrt"),
        ("tanh", "tanh"), ("sigmoid", "sigmoid"), ("silu", "silu"), ("relu", "relu"), ("sin", "sin"), ("cos", "cos"),
    )
}  # fmt: skip
_MOVES = {
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.alias.default",
    "aten.clone.default",
    "aten.detach.default", "aten._to_copy.default", "aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.contiguous.default", "aten.dropout.default", "aten.flatten.using_ints", "aten.transpose.int",
    "aten.permute.default", "aten.t.default", "aten.unflatten.int",
}  # fmt: skip
_THIN = {"aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.select.int"}  # axes of length 1
_ORDERED = {"aten.transpose.int", "aten.permute.default", "aten.t.default"}


def rows_axis(n: Any, rows: int) -> int | None:
    """Return which axis of a torch value is the rows, None when it has none."""
    places = [i for i, side in enumerate(n.meta["val"].shape) if side == rows]
    if len(places) > 1:
        raise UnsupportedError(
            f"A value of shape {tuple(n.meta['val'].shape)} has several axes of {rows}; give an example with another "
            f"number of rows, or a module that does not multiply rows by rows."
        )
    return places[0] if places else None


def other_axes(n: Any, rows: int) -> tuple[int, ...]:
    """Return the sides of a value without its rows and without those of length 1."""
    at = rows_axis(n, rows)
    return tuple(int(s) for i, s in enumerate(n.meta["val"].shape) if i != at and s != 1)


class Steps:
    """Collects steps; `given` are the values from outside in the order of the meaning's inputs, `held` parameters."""

    def __init__(self, rows: int, parameters: dict[str, str], refused: Callable[..., UnsupportedError]) -> None:
        self.rows, self.parameters, self.refused = rows, parameters, refused
        self.given: list[Any] = []
        self.held: dict[str, Axes] = {}
        self._steps: list[tuple[str, tuple[Any, ...], dict[str, Attribute]]] = []
        self._names: dict[Any, Any] = {}

    def add(self, n: Any, mine: set[Any]) -> None:
        """Add what a node computes; nodes come in the order of the program."""
        for i in n.all_input_nodes:
            if i in mine or i in self._names:
                continue
            if i.name in self.parameters:
                sides = tuple(int(s) for s in i.meta["val"].shape)
                self.held[self.parameters[i.name]] = tuple((f"axis_{len(sides) - k}", s) for k, s in enumerate(sides))
                self._names[i] = ("parameter", self.parameters[i.name])
            else:
                self._names[i] = ("input", len(self.given))
                self.given.append(i)
        name = str(n.target)
        if n.target is operator.getitem:
            self._names[n] = self._names[n.args[0]][n.args[1]]
        elif name in _BINARY and not n.kwargs.get("alpha") and not n.kwargs.get("rounding_mode"):
            self._make(n, _BINARY[name], [self._aligned(a, n) for a in n.args[:2]])
        elif name in _UNARY:
            self._make(n, _UNARY[name], [self._names[n.args[0]]])
        elif name == "aten.gelu.default":
            tanh = n.kwargs.get("approximate", "none") == "tanh"
            self._make(n, "gelu_tanh" if tanh else "gelu", [self._names[n.args[0]]])
        elif name in _MOVES or (name == "aten.select.int" and n.args[0].meta["val"].shape[n.args[1]] == 1):
            self._move(n, name)
        else:
            self._rest(n, name)

    def _make(self, n: Any, function: str, operands: list[Any], **attributes: Attribute) -> None:
        self._names[n] = self._append(function, operands, attributes)

    def _append(self, function: str, operands: list[Any], attributes: dict[str, Attribute]) -> Any:
        self._steps.append((function, tuple(operands), attributes))
        return ("step", len(self._steps) - 1)

    def _aligned(self, a: Any, out: Any) -> Any:
        """Return an operand so that NumPy broadcasts it as torch does, the rows being first."""
        if not hasattr(a, "meta"):
            return ("constant", float(a))
        shape, wide = list(a.meta["val"].shape), list(out.meta["val"].shape)
        shape = [1] * (len(wide) - len(shape)) + shape
        at = rows_axis(out, self.rows)
        kept = tuple(int(s) for i, s in enumerate(shape) if i != at and wide[i] != 1)
        mine = rows_axis(a, self.rows)
        if at is None or (mine is None and self._names[a][0] != "parameter" and len(other_axes(a, self.rows))):
            raise self.refused(out, "combines values of which some have no rows")
        if mine is None:  # a parameter: its own axes stay on the right
            if at != 0 and any(s != 1 for s in shape[: at + 1]):
                raise self.refused(out, "combines a parameter with axes before the rows")
            return self._names[a]
        if shape[at] != self.rows:
            raise self.refused(out, "mixes rows")
        if kept == other_axes(a, self.rows):
            return self._names[a]
        return self._append("reshape", [self._names[a]], {"shape": kept})

    def _move(self, n: Any, name: str) -> None:
        """Views keep the order of elements in a row; transposes may move the rows' axis alone."""
        x = n.args[0]
        before, after = other_axes(x, self.rows), other_axes(n, self.rows)
        if (rows_axis(x, self.rows) is None) != (rows_axis(n, self.rows) is None):
            raise self.refused(n, "mixes rows with other axes")
        if name in _ORDERED:
            if before != after or _permuted(n, name, self.rows):
                raise self.refused(n, "changes the order of the axes of a row")
        elif name not in _THIN and not _rows_stay(n, x, self.rows):
            raise self.refused(n, "mixes rows with other axes")
        if before == after:
            self._names[n] = self._names[x]
        else:
            self._make(n, "reshape", [self._names[x]], shape=after)

    def _rest(self, n: Any, name: str) -> None:
        x = n.args[0]
        if name == "aten.embedding.default":
            self._make(n, "take", [self._names[x], self._names[n.args[1]]])
        elif name in ("aten.softmax.int", "aten._softmax.default"):
            self._make(n, "softmax", [self._names[x]], axis=self._axis(n, x, n.args[1]))
        elif name == "aten.mean.dim" and len(n.args) > 2 and n.args[2] and len(n.args[1]) == 1:
            self._make(n, "mean", [self._names[x]], axis=self._axis(n, x, n.args[1][0]))
        elif name == "aten.slice.Tensor":
            self._slice(n, x)
        elif name == "aten.cat.default":
            axis = self._axis(n, n, n.args[1] if len(n.args) > 1 else 0)
            self._make(n, "join", [self._names[a] for a in n.args[0]], axis=axis)
        elif name in ("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default"):
            self._split(n, x)
        elif name in ("aten.layer_norm.default", "aten.rms_norm.default"):
            self._norm(n, x, name)
        else:
            raise self.refused(n)

    def _axis(self, n: Any, x: Any, axis: int) -> int:
        """Return an axis of torch as ours, from the last one: the rows' axis and axes of length 1 are refused."""
        shape = list(x.meta["val"].shape)
        axis %= len(shape)
        at = rows_axis(x, self.rows)
        if axis == at or shape[axis] == 1:
            raise self.refused(n, "works along the rows, or along an axis of length 1")
        return -1 - sum(1 for i in range(axis + 1, len(shape)) if i != at and shape[i] != 1)

    def _slice(self, n: Any, x: Any) -> None:
        if n.meta["val"].shape == x.meta["val"].shape:
            self._names[n] = self._names[x]
            return
        dim, start, end = (list(n.args[1:4]) + [0, 0, 2**62][len(n.args) - 1 :])[:3]
        side = x.meta["val"].shape[dim]
        start, end = (min(v + side if v < 0 else v, side) for v in (start or 0, side if end is None else end))
        if end - start == 1 or (len(n.args) > 4 and n.args[4] != 1):
            raise self.refused(n, "takes one element, or not neighbours")
        self._make(n, "part", [self._names[x]], axis=self._axis(n, x, dim), start=int(start), stop=int(end))

    def _split(self, n: Any, x: Any) -> None:
        dim = n.args[2] if len(n.args) > 2 else 0
        sides = [v.shape[dim] for v in n.meta["val"]]
        if 1 in sides:
            raise self.refused(n, "takes one element")
        axis, start, parts = self._axis(n, x, dim), 0, []
        for side in sides:
            place: dict[str, Attribute] = {"axis": axis, "start": start, "stop": start + int(side)}
            parts.append(self._append("part", [self._names[x]], place))
            start += int(side)
        self._names[n] = parts

    def _norm(self, n: Any, x: Any, name: str) -> None:
        layer = name == "aten.layer_norm.default"
        if len(n.args[1]) != 1 or x.meta["val"].shape[-1] == 1:
            raise self.refused(n, "normalises over several axes")
        weight, bias = n.args[2] if len(n.args) > 2 else None, n.args[3] if layer and len(n.args) > 3 else None
        eps = (n.args[4] if len(n.args) > 4 else 1e-5) if layer else (n.args[3] if len(n.args) > 3 else None)
        if eps is None:
            eps = 1.1920928955078125e-07  # torch.nn.RMSNorm takes the epsilon of fp32 when it is given none
        last = self._append("normalise", [self._names[x]], {"eps": float(eps), "centred": int(layer)})
        for parameter, function in ((weight, "multiply"), (bias, "add")):
            if parameter is not None:
                last = self._append(function, [last, self._names[parameter]], {})
        self._names[n] = last

    def meaning(self, outputs: list[Any]) -> Elementwise:
        """Return the steps with every value numbered: inputs, then parameters, then results."""
        names = tuple(self.held)
        base = len(self.given)

        def number(name: Any) -> int | float:
            kind, value = name
            if kind == "constant":
                return value
            if kind == "parameter":
                return base + names.index(value)
            return value if kind == "input" else base + len(names) + value

        steps = tuple(
            Apply(
                function, tuple(number(o) for o in operands), tuple(o[0] == "constant" for o in operands),
                tuple(attributes.items()),
            )
            for function, operands, attributes in self._steps
        )  # fmt: skip
        return Elementwise(steps, tuple(int(number(self._names[n])) for n in outputs), names)


def _permuted(n: Any, name: str, rows: int) -> bool:
    """Whether a transpose changes the order of axes that are longer than 1, the rows apart."""
    shape = n.args[0].meta["val"].shape
    order = list(range(len(shape)))
    if name == "aten.permute.default":
        order = [d % len(shape) for d in n.args[1]]
    else:
        a, b = (d % len(shape) for d in (n.args[1:3] if len(n.args) > 2 else (0, 1)))
        order[a], order[b] = order[b], order[a]
    kept = [d for d in order if shape[d] not in (1, rows)]
    return kept != sorted(kept)


def _rows_stay(n: Any, x: Any, rows: int) -> bool:
    """Whether a view keeps the rows an axis of its own: as many elements stand before it as before."""

    def before(v: Any) -> int:
        at, out = rows_axis(v, rows), 1
        for side in v.meta["val"].shape[: at or 0]:
            out *= side
        return out

    return before(n) == before(x)
