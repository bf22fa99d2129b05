"""A norm inside the multiply that reads it: every core norms the rows of its operand as it loads them.

A norm of its own spreads rows over the cores, and its result makes a round trip through the memory that cores share,
with a barrier between. Few rows are normed sooner by every core for itself; the first core stores the residual stream.
The instructions are those of the phase of its own, row by row, so the bits are the same.
"""

from __future__ import annotations

from dataclasses import replace

from taygeta.base.errors import DoesNotFitError
from taygeta.base.formats import format_of
from taygeta.compiler.context import Context
from taygeta.compiler.elementwise import add_norm
from taygeta.compiler.emit import Ring, box, span
from taygeta.compiler.instructions import KINDS
from taygeta.compiler.program import Buffer
from taygeta.compiler.rows import give, norm_attributes, parameter, reads, spread, writes
from taygeta.compiler.tiling import Cut, Multiply, cut
from taygeta.graph import meaning as m
from taygeta.graph.ops import Block, Op

WIDE_BYTES = 4.0


def follows(op: Op, after: Op, found: Block) -> bool:
    """Whether a norm is read by the multiply after it, and by nothing else."""
    if not isinstance(op.meaning, m.AddNorm) or not isinstance(after.meaning, m.Linear):
        return False
    h = op.outputs[1]
    return after.inputs[:1] == (h,) and h not in found.outputs and [o for o in found.ops if h in o.inputs] == [after]


class Normed:
    """A norm whose phase is that of the multiply after it."""

    def __init__(self, c: Context, op: Op, rows: int) -> None:
        if not isinstance(op.meaning, m.AddNorm):
            raise TypeError(f"{op.name} is not a norm of a sum")
        self.c, self.e, self.op, self.rows, self.meaning = c, c.emitter, op, rows, op.meaning
        self.width = op.reads[0].row_elements

    @property
    def room(self) -> float:
        """Bytes of scratchpad that it takes: both inputs, the sum, it twice in the carried format, its weight."""
        carried = format_of(self.c.carry).bytes_per_element
        return self.width * (self.rows * (4.0 * carried + WIDE_BYTES) + 2.0 * WIDE_BYTES)

    def inside(self, multiply: Multiply) -> Cut | None:
        """Return how a multiply is cut beside the norm, or None where it has no room for it or does not gain by it."""
        try:
            pause = multiply.pause - self.c.target.round_trip
            found = cut(replace(multiply, reserved=self.room, kept=True, pause=pause), self.c.target)
        except DoesNotFitError:
            return None
        return found if self.pays(found, cut(multiply, self.c.target), multiply.activations) else None

    def pays(self, inside: Cut, apart: Cut, operand: str) -> bool:
        """Whether it is sooner done inside the multiply than in a phase of its own.

        inside, apart: how the multiply is cut with and without the norm, for which every core keeps all rows. Counted
        of both: transfers at the port and at the memory that cores share, the vector unit's operations, the latencies
        and the barrier of the round trip, and the multiply.
        """
        t, rows, width = self.c.target, self.rows, self.width
        latency = t.semaphore_latency if t.spill == "shared" else t.dma_latency
        memory = t.shared if t.spill == "shared" else t.hbm
        _, each = spread(rows, t.cores)
        carried, narrow = (format_of(f).bytes_per_element for f in (self.c.carry, operand))
        flop = sum(KINDS[kind].flop for kind in ("add", "copy", "norm", "copy"))
        clocks = flop / t.vector + (carried + narrow) / t.convert * (operand != self.c.carry)

        def moved(size: float, readers: int) -> float:
            return max(size / t.port, size * (1.0 + (readers - 1) * t.broadcast) / memory)

        given, taken = 3.0 * carried + narrow, width * rows * narrow
        alone = latency + t.round_trip + moved(taken, apart.grid_n)
        alone += max(each * width * given / t.port, rows * width * given / memory) + each * width * clocks
        here = latency + moved(2.0 * rows * width * carried, inside.grid_n) + rows * width * clocks
        return here + inside.clocks < alone + apart.clocks

    def apart(self) -> None:
        """Emit the norm as a phase of its own."""
        add_norm(self.c, self.op, self.meaning)

    def place(self, cores: int) -> None:
        """Make room in the phase of the multiply."""
        c, e, a = self.c, self.e, self.meaning
        self.cores = cores
        name = self.op.outputs[0]
        self.stored = writes(c, c.hold(name, self.rows, self.width)) if name in c.wants else []
        table = e.table("last", c.last_rows) if a.last else ""
        self.inputs = [reads(c, given, table=table) for given in self.op.inputs]
        shape = tuple(n for _, n in self.op.weights[0].axes)
        self.scale, self.weight = parameter(c, a.weight, shape)
        found = [(s.name, s.shape(self.rows), s.format) for s in self.inputs]
        self.ring = e.ring("in", "load", "vector", found, 1)
        self.total = e.scratch("sum", (self.rows, self.width), "fp32")
        out = [(f"{s.name}.", s.shape(self.rows), s.format) for s in self.stored]
        self.out = e.ring("stream", "vector", "store", out, 1) if out else None

    def emit(self, operands: Ring) -> Buffer:
        """Emit loads, sum, norm and what is stored; returns the operand, which the tensor unit has been told of."""
        e, cores, rows = self.e, self.cores, span(self.rows)
        found = self.ring.fill(cores)
        for buffer, stream in zip(found, self.inputs, strict=True):
            e.run("load", "dma", (box(buffer),), (stream.at(rows),), cores)
        e.run("load", "dma", (box(self.scale),), (self.weight,), cores)
        self.ring.filled(cores)
        (operand,) = operands.fill(cores)
        total = box(self.total)
        e.run("vector", "add", (total,), tuple(map(box, found)), cores)
        self.ring.release(cores)
        if self.out is not None:
            given = self.out.fill(1)
            give(e, given, self.total, self.c.carry, 1)
            self.out.filled(1)
            for buffer, stream in zip(given, self.stored, strict=True):
                e.run("store", "dma", (stream.at(rows),), (box(buffer),), 1)
            self.out.release(1)
        e.run("vector", "norm", (total,), (total, box(self.scale)), cores, **norm_attributes(self.meaning.rule))
        give(e, (operand,), self.total, self.c.carry, cores)
        operands.filled(cores)
        return operand
