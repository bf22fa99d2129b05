"""The table of instructions: for each kind its engine, its shape rule, its cost and its meaning.

The compiler emits these, the verifier checks their operands, the timed machine asks for their work and the executed
one for their values. Adding an instruction is one entry. Elementwise instructions cost `flop` operations and
`exponentials` for each element of their first input, at the rates of the core's vector unit; their arithmetic is in
taygeta.compiler.functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taygeta.base.errors import InputError
from taygeta.compiler.program import Instruction, Program
from taygeta.compiler.target import Target
from taygeta.compiler.work import Work, box_bytes, transfer


@dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    engines: that can run it. inputs, outputs: least and most operands. spaces: what its operands may lie in. flop,
    exponentials: for each element of the first input, of elementwise kinds.
    """

    engines: tuple[str, ...]
    inputs: tuple[int, int]
    outputs: tuple[int, int] = (1, 1)
    local: bool = True
    flop: float = 0.0
    exponentials: float = 0.0
    work: Callable[[Instruction, Program, Target, int | None], Work] | None = None


def _elementwise(flop: float, exponentials: float = 0.0, inputs: tuple[int, int] = (1, 1), outputs: int = 1) -> Kind:
    return Kind(("vector",), inputs, (outputs, outputs), flop=flop, exponentials=exponentials)


def _moves(i: Instruction, program: Program, target: Target, rows: int | None) -> Work:
    return scaled(transfer(i, program, target), i, rows)


def _multiplies(i: Instruction, program: Program, target: Target, rows: int | None) -> Work:
    (m, n), (_, k) = matmul_shape(i)
    unit = target.tensor(str(i.attribute("mode", "bf16")))
    first = next(x for x in i.outputs[0].indices if x.extent)
    own = m if rows is None or not first.ragged else min(rows, m)
    busy = unit.occupancy(own, n, k)
    return Work(cycles=busy, latency=unit.cycles(own, n, k) - busy)


def _converts(i: Instruction, program: Program, target: Target, rows: int | None) -> Work:
    moved = sum(box_bytes(b, program.buffer(b.buffer)) for b in (*i.inputs[:1], *i.outputs[:1]))
    return scaled(Work(cycles=moved / target.convert), i, rows)


KINDS: dict[str, Kind] = {
    "dma": Kind(("stream", "load", "store"), (1, 1), local=False, work=_moves),
    "send": Kind(("link",), (1, 1), local=False, work=_moves),
    "receive": Kind(("link",), (0, 0), (0, 0), local=False),
    "wait": Kind(("stream", "load", "store", "tensor", "vector", "link"), (0, 0), (0, 0)),
    "signal": Kind(("stream", "load", "store", "tensor", "vector", "link"), (0, 0), (0, 0)),
    "matmul": Kind(("tensor",), (2, 2), work=_multiplies),
    "quantise": Kind(("vector",), (1, 1), work=_converts),
    "reduce": _elementwise(1.0),
    "copy": _elementwise(1.0),
    "scale": _elementwise(1.0),
    "add": _elementwise(1.0, inputs=(2, 8)),
    "norm": _elementwise(5.0, inputs=(2, 2)),
    "gate": _elementwise(4.0, 0.5),
    "activate": _elementwise(4.0, 1.0),
    "softcap": _elementwise(2.0, 1.0),
    "rotate": _elementwise(3.0, inputs=(3, 3)),
    "softmax_start": Kind(("vector",), (0, 0), (2, 2)),
    "softmax_step": _elementwise(4.0, 1.0, inputs=(4, 4), outputs=2),
    "softmax_scale": _elementwise(1.0, inputs=(2, 2)),
    "softmax_end": _elementwise(2.0, inputs=(2, 3)),
    "softmax_merge": _elementwise(3.0, inputs=(2, 3)),
    "fill": Kind(("vector",), (0, 0)),
    "route": _elementwise(8.0, 1.0, inputs=(1, 3)),
    "list": Kind(("vector",), (1, 1), (0, 0), flop=1.0),
    "scatter_add": _elementwise(2.0, inputs=(3, 3)),
}
"""Every kind of instruction. Operations per element are counted by hand, as those of taygeta.graph.build."""


def scaled(work: Work, i: Instruction, rows: int | None) -> Work:
    """Return the work of an instruction whose ragged axis has `rows` elements on this turn (None: all)."""
    share = ragged_share(i, rows)
    if share == 1.0:
        return work
    return Work(
        work.cycles * share, work.port * share, work.hbm * share, work.shared * share, work.link * share, work.latency
    )


def ragged_share(i: Instruction, rows: int | None) -> float:
    """Return which part of its elements an instruction works on when its ragged axis has `rows` of them."""
    if rows is None:
        return 1.0
    extents = [x.extent for box in (*i.outputs, *i.inputs) for x in box.indices if x.ragged]
    return min(1.0, rows / max(extents)) if extents else 1.0


def work_of(i: Instruction, program: Program, target: Target, rows: int | None = None) -> Work:
    """Return what one run of an instruction asks of a core. rows: elements of the ragged axis on this turn."""
    kind = KINDS[i.kind]
    if kind.work is not None:
        return kind.work(i, program, target, rows)
    if not i.inputs:
        elements = sum(box.elements for box in i.outputs)
        return scaled(Work(cycles=elements / target.vector if elements else 0.0), i, rows)
    elements = i.inputs[0].elements
    cycles = kind.flop * elements / target.vector + kind.exponentials * elements / target.exponentials
    return scaled(Work(cycles=cycles), i, rows)


def matmul_shape(i: Instruction) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (m, n), (n, k) of a multiply out[m, n] (+)= a[m, k] b[n, k], or b[k, n] where order="kn".

    Raises InputError for operands that do not go together.
    """
    out, a, b = i.outputs[0].shape, i.inputs[0].shape, i.inputs[1].shape
    if i.attribute("order", "nk") == "kn":
        b = b[::-1]
    if len(out) != 2 or len(a) != 2 or len(b) != 2 or (out[0], out[1], a[1]) != (a[0], b[0], b[1]):
        raise InputError(f"matmul: the shapes {out}, {a} and {b} do not go together: they must be m x n, m x k, n x k.")
    return (out[0], out[1]), (b[0], a[1])
