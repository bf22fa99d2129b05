"""Matrix multiplies as phases: operand in, weights streamed, sums out through what follows them.

A core loads its rows of the operand once, streams its columns of the weights tile by tile, and the vector unit adds
biases, gates and converts while the next tile is multiplied. Over several chips each has a share of the columns
(gather-based: sums are never split, so the bits do not depend on the number of chips), or of the depth (reduce-based:
what chips make are parts of the sums, which are added afterwards).
"""

from __future__ import annotations

import numpy as np

from taygeta.base.errors import UnsupportedError
from taygeta.base.formats import format_of
from taygeta.compiler.context import Context, Fetch, Held
from taygeta.compiler.emit import SLOTS, Ring, Turn, box, only, span
from taygeta.compiler.normed import Normed
from taygeta.compiler.program import Buffer, Index
from taygeta.compiler.reduce import PARTIAL, add_up, hold_partial, pieces_of
from taygeta.compiler.rows import convert_late, give
from taygeta.compiler.shares import Columns, all_columns, block_of, columns_of, matrix_of, widths_of
from taygeta.compiler.tiling import Cut, Multiply, cut
from taygeta.graph.meaning import Gate, Linear, Logits
from taygeta.graph.ops import Op
from taygeta.spec.arithmetic import GateRule


def linear(c: Context, op: Op, a: Linear, gate: Op | None = None) -> None:
    """Emit the phase of a multiply, with the gate that follows it where it is given."""
    outputs = gate.outputs if gate else op.outputs
    rows = c.last_rows if op.rows == "requests" else c.rows
    widths = widths_of(op)
    rule = gate.meaning.rule if gate and isinstance(gate.meaning, Gate) else None
    replicated = outputs[0] in c.replicated
    split = outputs[0] in c.summed
    if split:
        columns = all_columns(c, widths[0], pieces_of(c, rows, widths[0]))
    else:
        columns = columns_of(c, op, widths, rule, replicated)
    wanted = _multiply(c, op, rows, columns, rule, outputs)
    norm, c.norm = Normed(c, c.norm, rows) if c.norm else None, None
    found = norm.inside(wanted) if norm else None
    if norm and not found:
        norm.apart()
        norm = None
    c.emitter.phase(op.name.replace(" ", "-"), op.part)
    phase = _Phase(c, op, a, found or cut(wanted, c.target), columns, rule, norm)
    phase.softcap = gate.meaning.softcap if gate and isinstance(gate.meaning, Logits) else 0.0
    phase.place(outputs, rows, replicated)
    phase.emit(gate)
    if split:
        add_up(c, op, phase.held, outputs[0], rows)


def depth_of(c: Context, op: Op) -> int:
    """Return the depth of a multiply: the columns of its operand, those that only fill up a block included.

    Where sums are split, the columns that one chip has. Raises UnsupportedError where chips do not have equal shares.
    """
    width = c.get(op.inputs[0]).width if op.inputs[0] in c.values else 0  # not there: a norm's, in this phase
    if op.outputs[0] not in c.summed:
        return max(op.k(), width)
    if width * c.chips != op.k():
        raise UnsupportedError(f"{op.name}: a depth of {op.k()} is not split evenly over {c.chips} chips.")
    return width


def _multiply(
    c: Context, op: Op, rows: int, columns: Columns, rule: GateRule | None, outputs: tuple[str, ...]
) -> Multiply:
    """What there is to cut."""
    ways = 2 if columns.gated else 1
    formats = (PARTIAL,) if outputs[0] in c.summed else c.formats(outputs[0], columns.width // ways)[0]
    step = ways * max(block_of(f) for f in formats)
    mode, weight_format, operand_format = c.mode(op.weight_format, op.reads[0].format)
    depth_step = max(block_of(weight_format), block_of(operand_format), c.target.tensor(mode).lanes, 32)
    flop = 8.0 if rule else 1.0
    bytes_out = sum(format_of(f).bytes_per_element for f in formats)
    vector = flop / c.target.vector + (4.0 + bytes_out) / c.target.convert * (len(formats) > 1)
    return Multiply(
        rows,
        columns.width,
        depth_of(c, op),
        mode,
        op.weight_format,
        operand_format,
        step,
        depth_step,
        bytes_out,
        vector,
        weight_format != op.weight_format,
        pads=op.name == "head",
        pause=2.0 * c.target.round_trip + (c.target.exchange if c.chips > 1 else 0.0),  # mostly a phase stands between
    )


class _Phase:
    """The parts of one multiply's phase."""

    def __init__(
        self,
        c: Context,
        op: Op,
        meaning: Linear,
        found: Cut,
        columns: Columns,
        rule: GateRule | None,
        norm: Normed | None,
    ) -> None:
        self.c, self.e, self.op, self.meaning = c, c.emitter, op, meaning
        self.cut, self.columns, self.rule, self.norm = found, columns, rule, norm
        self.mode, self.weight_format, self.operand_format = c.mode(op.weight_format, op.reads[0].format)
        self.cores = found.cores
        self.depth = depth_of(c, op)
        self.softcap = 0.0
        self.split = op.outputs[0] in c.summed
        self.ways = 2 if columns.gated else 1
        self.core_columns = found.tile_cols * found.col_tiles
        self.width = self.core_columns * found.grid_n  # columns on one chip, padding included

    def place(self, outputs: tuple[str, ...], rows: int, replicated: bool) -> None:
        """Make room for the outputs: one buffer that holds all, each output a range of its columns."""
        c = self.c
        name = outputs[0]
        self.held_rows = rows
        if self.split:
            self.held, self.gathered = hold_partial(c, name, rows, self.width), False
            return
        for other in outputs[1:]:
            c.wants.setdefault(name, set()).update(c.wants.get(other, ()))
            if other in c.whole:
                c.whole.add(name)
        self.held = c.hold(name, rows, self.width // self.ways, not replicated, self.columns.width // self.ways)
        self.gathered = self.held.width > self.width // self.ways
        if len(outputs) > 1 and self.gathered:
            raise UnsupportedError(f"{self.op.name}: several outputs of one multiply are not gathered over chips.")
        start = 0
        parts = self.columns.parts if len(outputs) > 1 else (self.held.width,)
        for output, width in zip(outputs, parts, strict=True):
            c.values[output] = Held(output, width, start, self.held.local, self.held.buffers, self.held.late)
            start += width

    def emit(self, gate: Op | None) -> None:
        """Emit loads, multiplies, what follows them, and stores."""
        c, e, f = self.c, self.e, self.cut
        weights = self._weights()
        depth = self.depth
        ring_w = e.weights("w", (f.tile_cols, f.tile_depth), self.op.weight_format, self._weights_consumer())
        wide = self._converted()
        ring_a = self._operands(depth)
        if self.norm is not None:
            self.norm.place(self.cores)
        ring_s = e.ring("sums", "tensor", "vector", [("sums", (f.tile_rows, f.tile_cols), "fp32")])
        outs = [(f"out.{fmt}.", (f.tile_rows, f.tile_cols // self.ways), fmt) for fmt, _ in self.held.direct]
        ring_o = e.ring("out", "vector", "store", outs)
        extras = self._extras(gate)
        added = self.op.inputs[1:]
        ring_p = (
            e.ring(
                "plus",
                "load",
                "vector",
                [(f"plus{i}.", (f.tile_rows, f.tile_cols), self._added) for i in range(len(added))],
            )
            if added
            else None
        )
        e.begin()
        if wide is not None:
            e.sync("begun", "load", "vector", self.cores)  # converted weights lie where the last phase may still work
        biases = self._load_biases(extras)
        for m in e.turns("m", f.row_tiles):
            a = None if f.streams else self._kept(ring_a, m)
            for n in e.turns("n", f.col_tiles):
                self._tile(ring_w, wide, ring_s, ring_o, ring_p, ring_a, a, weights, biases, (m, n))
            for ring in (ring_w, wide, ring_s, ring_o, ring_p, ring_a if f.streams else None):
                if ring is not None:
                    ring.settle(self.cores)
            if a is not None:
                ring_a.release(self.cores)
        ring_a.settle(self.cores)
        e.finish()
        c.gather(self.held, self.held_rows, self.width // self.ways)
        convert_late(c, self.held, self.held_rows)

    def _operands(self, depth: int) -> Ring:
        """The ring of the operand: whole rows that are kept, or tiles that pass by with the weights."""
        f = self.cut
        shape = (f.tile_rows, f.tile_depth if f.streams else depth)
        slots = SLOTS if f.streams or f.row_tiles > 1 else 1
        producer = "vector" if self.norm else "load"
        return self.e.ring("a", producer, "tensor", [("a", shape, self.operand_format)], slots)

    def _kept(self, ring: Ring, m: Turn) -> Buffer:
        """Bring a tile of rows in whole, or make it of what is normed here."""
        if self.norm is not None:
            return self.norm.emit(ring)
        return self._load(ring, self.c.get(self.op.inputs[0]), m, 0, self.depth)

    def _load(self, ring: Ring, held: Held, m: Turn, start: int, depth: int) -> Buffer:
        """Bring some of the depth of a tile of rows in."""
        (a,) = ring.fill(self.cores)
        source = self.c.part(held, self.operand_format, self._rows(m), span(depth, start))
        self.e.run("load", "dma", (box(a),), (source,), self.cores)
        ring.filled(self.cores)
        return a

    def _rows(self, m: Turn) -> Index:
        f = self.cut
        return m.part(f.tile_rows, 0, (f"core/{f.grid_n}", f.tile_rows * f.row_tiles))

    def _weights_consumer(self) -> str:
        return "tensor" if self.weight_format == self.op.weight_format else "vector"

    def _converted(self) -> Ring | None:
        """The ring of weights in the format of the mode, where they are stored in another."""
        if self.weight_format == self.op.weight_format:
            return None
        f = self.cut
        return self.e.ring("wide", "vector", "tensor", [("wide", (f.tile_cols, f.tile_depth), self.weight_format)])

    def _tile(
        self,
        ring_w: Ring,
        wide: Ring | None,
        sums: Ring,
        outs: Ring,
        plus: Ring | None,
        operands: Ring,
        kept: Buffer | None,
        weights: Buffer,
        biases: list[tuple[str, Buffer]],
        turn: tuple[Turn, Turn],
    ) -> None:
        """One tile of sums: stream its weights over the depth, multiply, finish, store."""
        e, f, cores = self.e, self.cut, self.cores
        m, n = turn
        (acc,) = sums.fill(cores)
        for d in range(f.depth_tiles):
            (w,) = ring_w.fill(cores)
            place = (self.c.visits.index, only(0, (f"core%{f.grid_n}", 1)), n.index, only(d))
            e.run("stream", "dma", (box(w),), (box(weights, *place, span(f.tile_cols), span(f.tile_depth)),), cores)
            ring_w.filled(cores)
            taken = w
            if wide is not None:
                (taken,) = wide.fill(cores)
                e.run("vector", "quantise", (box(taken),), (box(w),), cores)
                ring_w.release(cores)
                wide.filled(cores)
            if kept is None:
                a = self._load(operands, self.c.get(self.op.inputs[0]), m, d * f.tile_depth, f.tile_depth)
                left = box(a)
            else:
                left = box(kept, span(f.tile_rows), span(f.tile_depth, d * f.tile_depth))
            e.run("tensor", "matmul", (box(acc),), (left, box(taken)), cores, mode=self.mode, add=int(d > 0))
            if kept is None:
                operands.release(cores)
            (wide or ring_w).release(cores)
        sums.filled(cores)
        if plus is not None:
            self._add(plus, acc, m, n)
        found = outs.fill(cores)
        self._finish(acc, found, biases, n)
        sums.release(cores)
        outs.filled(cores)
        columns = n.part(
            f.tile_cols // self.ways,
            0,
            (f"core%{f.grid_n}", self.core_columns // self.ways),
            ("chip", self.width // self.ways if self.gathered else 0),
        )
        for out, (fmt, _) in zip(found, self.held.direct, strict=True):
            e.run("store", "dma", (self.c.part(self.held, fmt, self._rows(m), columns),), (box(out),), cores)
        outs.release(cores)

    @property
    def _added(self) -> str:
        """The format of further inputs: parts of the same sums are not rounded before they are added."""
        return PARTIAL if self.split else self.c.carry

    def _add(self, plus: Ring, acc: Buffer, m: Turn, n: Turn) -> None:
        """Further inputs of the multiply, in the shares that this chip has of them."""
        e, c, f, cores = self.e, self.c, self.cut, self.cores
        found = plus.fill(cores)
        columns = n.part(f.tile_cols, 0, (f"core%{f.grid_n}", self.core_columns))
        for buffer, name in zip(found, self.op.inputs[1:], strict=True):
            held = c.get(name)
            if held.width != self.width:
                raise UnsupportedError(f"{self.op.name}: {name} has {held.width} columns on a chip, not {self.width}.")
            e.run("load", "dma", (box(buffer),), (c.part(held, self._added, self._rows(m), columns),), cores)
        plus.filled(cores)
        e.run("vector", "add", (box(acc),), (box(acc), *map(box, found)), cores)
        plus.release(cores)

    def _finish(self, acc: Buffer, outs: tuple[Buffer, ...], biases: list[tuple[str, Buffer]], n: Turn) -> None:
        """Biases, further inputs, the gate; then the formats that are wanted."""
        e, cores = self.e, self.cores
        for _, found in biases:
            part = box(found, n.part(self.cut.tile_cols))
            e.run("vector", "add", (box(acc),), (box(acc), part), cores)
        source = acc
        if self.softcap:
            e.run("vector", "softcap", (box(acc),), (box(acc),), cores, cap=self.softcap)
        if self.rule is not None:
            shape = (self.cut.tile_rows, self.cut.tile_cols // self.ways)
            source = self.e.buffers.get(f"{e.number}.gated") or e.scratch("gated", shape, "fp32")
            r = self.rule
            kind = "gate" if r.gated else "activate"
            e.run(
                "vector", kind, (box(source),), (box(acc),), cores,
                activation=r.activation, limit=r.limit, alpha=r.alpha, shift=r.shift,
            )  # fmt: skip
        give(e, outs, source, self.c.carry, cores)

    def _weights(self) -> Buffer:
        """The weights as they lie in main memory: by core, tile of columns and tile of depth, each contiguous."""
        f, op = self.cut, self.op
        order, depth = self._tiled(), self.depth
        shape = (f.grid_n, f.col_tiles, f.depth_tiles, f.tile_cols, f.tile_depth)
        names, inner = (
            [w.name for w in op.weights],
            [len([a for a in w.axes if a[0] in op.contract]) for w in op.weights],
        )

        def pack(fetch: Fetch, chip: int) -> np.ndarray:
            joined = np.concatenate([matrix_of(fetch(n), k) for n, k in zip(names, inner, strict=True)])
            if self.split:
                joined = joined[:, chip * depth : (chip + 1) * depth]
            joined = np.pad(joined, ((0, 1), (0, depth - joined.shape[1])))
            taken = joined[order[chip]].reshape(f.grid_n, f.col_tiles, f.tile_cols, f.depth_tiles, f.tile_depth)
            return np.ascontiguousarray(taken.transpose(0, 1, 3, 2, 4))

        return self.c.constant(op.name, shape, op.weight_format, pack)

    def _tiled(self) -> np.ndarray:
        """Columns in the order of cores and tiles, (chips, columns with padding): where a gate follows, each tile has
        its gate columns first and then the up columns of the same elements.
        """
        order, f = self.columns.order, self.cut
        chips = len(order)
        halves = order.reshape(chips, self.ways, -1)
        padding = self.width // self.ways - halves.shape[2]
        halves = np.pad(halves, ((0, 0), (0, 0), (0, padding)), constant_values=-1)
        tiles = halves.reshape(chips, self.ways, -1, f.tile_cols // self.ways).transpose(0, 2, 1, 3)
        return tiles.reshape(chips, -1)

    def _extras(self, gate: Op | None) -> list[str]:
        found = [self.meaning.bias] if self.meaning.bias else []
        return found + (
            [gate.meaning.bias] if gate and isinstance(gate.meaning, Gate | Logits) and gate.meaning.bias else []
        )

    def _load_biases(self, names: list[str]) -> list[tuple[str, Buffer]]:
        """Bring this core's part of each bias into the scratchpad, once."""
        e, f = self.e, self.cut
        out: list[tuple[str, Buffer]] = []
        order, total = self._tiled(), sum(widths_of(self.op))
        for name in names:

            def pack(fetch: Fetch, chip: int, name: str = name) -> np.ndarray:
                flat = np.zeros(total + 1, np.float32)
                found = fetch(name).reshape(-1)
                if not (self.split and chip):  # a bias is part of the first chip's sums
                    flat[: len(found)] = found
                return flat[order[chip]].reshape(f.grid_n, self.core_columns)

            stored = self.c.constant(name, (f.grid_n, self.core_columns), "fp32", pack)
            found = e.scratch(name, (self.core_columns,), "fp32")
            place = (self.c.visits.index, only(0, (f"core%{f.grid_n}", 1)), span(self.core_columns))
            e.run("load", "dma", (box(found),), (box(stored, *place),), self.cores)
            out.append((name, found))
        if names:
            e.sync("bias", "load", "vector", self.cores)
        return out
