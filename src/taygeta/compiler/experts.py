"""Mixtures of experts as phases: routing, and every expert's share of columns on every core.

Each core has some columns of every expert, so that the cores are equally busy whichever experts are chosen. The
tokens of an expert are a list: a loop walks over the experts and leaves out those without tokens; an expert with more
tokens than a tile holds comes several times. The first phase gates what the up matrices give and stores it in the
order of the lists; the second adds the down matrices' sums to each token's, expert after expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taygeta.base.errors import DoesNotFitError, UnsupportedError
from taygeta.base.formats import format_of
from taygeta.compiler.context import Context, Fetch, Held
from taygeta.compiler.emit import Ring, Turn, box, only, span
from taygeta.compiler.program import Box, Buffer, Index
from taygeta.compiler.reduce import PARTIAL, add_up, hold_partial, pieces_of
from taygeta.compiler.rows import Rows, convert_late, give, reads, writes
from taygeta.compiler.shares import all_columns, block_of
from taygeta.compiler.tiling import Cut, Multiply, cut, divisors
from taygeta.graph import meaning as m
from taygeta.graph.ops import ExpertShape, Op

TOKENS, PLACES = "tokens", "places"
"""Ragged tables: the tokens of each expert, and where they stand when all lists are written one after another."""

MOST_TOKENS = 128
"""Tokens of an expert that are multiplied at a time: beyond, more rows hardly amortise its weights."""


def route(c: Context, op: Op, a: m.Route) -> None:
    """Scores to chosen experts: a row of weights over all experts, zero for those that are not chosen."""
    count = op.reads[0].row_elements
    c.wants.setdefault(op.outputs[0], set()).add("fp32")
    c.wants[op.outputs[0]] = {"fp32"}
    c.routing = op
    outputs = writes(c, c.hold(op.outputs[0], c.rows, count))
    phase = Rows(c, op.name, op.part, c.rows, [reads(c, op.inputs[0], "fp32")], outputs, 8.0 * count, 8.0 * count)
    weights = {name: _router_bias(phase, name, count, a) for name in ("bias", "correction") if getattr(a, name)}

    def work(found, outs) -> None:
        phase.run(
            "route", outs, [found[0], *weights.values()], top_k=a.top_k, scoring=a.scoring, normalise=int(a.normalise),
            groups=a.groups, top_groups=a.top_groups, scale=a.scale, bias=int("bias" in weights),
            correction=int("correction" in weights),
        )  # fmt: skip

    phase.emit(work)


def _router_bias(phase: Rows, name: str, count: int, a: m.Route) -> Buffer:
    """The bias or the correction: where a router has both, the bias comes first in the parameter."""

    def take(found: np.ndarray, chip: int) -> np.ndarray:
        flat = found.reshape(-1)
        return flat[len(flat) - count :] if name == "correction" else flat[:count]

    return phase.weight(getattr(a, name), (count,), f"{getattr(a, name)} {name}", take)


def experts(c: Context, op: Op, a: m.Experts) -> None:
    """Both phases of the experts of a layer."""
    shape = op.detail
    if not isinstance(shape, ExpertShape):
        raise UnsupportedError(f"{op.name!r} does not say how many experts it has: this graph cannot be compiled.")
    layer = _Experts(c, op, shape, a)
    inner = layer.up()
    layer.down(inner)


@dataclass
class _Experts:
    """What the two phases of one layer's experts share."""

    c: Context
    op: Op
    shape: ExpertShape
    meaning: m.Experts

    def __post_init__(self) -> None:
        c, s = self.c, self.shape
        self.e = c.emitter
        self.ways = 2 if s.gated else 1
        self.split = self.op.outputs[0] in c.summed
        self.depths, self.columns = (c.chips, 1) if self.split else (1, c.chips)  # over chips, of the down matrices
        self.order = all_columns(c, s.width, pieces_of(c, c.rows, s.width) if self.split else 1).order
        self.pairs = c.rows * s.top_k  # places of all lists, more than are taken where rows are padding
        self.mode, self.weight_format, self.operand = c.mode(self.op.weight_format, self.op.reads[0].format)
        self.weights = c.get(self.op.inputs[1])
        self.cap = self._largest_list()
        self.chunks = -(-c.rows // self.cap)
        self.lists = s.experts * self.chunks
        for table in (TOKENS, PLACES):
            self.e.table(table, self.cap, self.lists)

    def _largest_list(self) -> int:
        """Tokens of a list: as many as both phases have room for."""
        c, s = self.c, self.shape
        name, inner = self.op.outputs[0], f"{self.op.outputs[0]}-inner"
        c.wants[inner] = {self.operand}
        self.cap = min(c.rows, MOST_TOKENS)
        while True:
            try:
                self._cut_up(c.get(self.op.inputs[0]).width, self._share(s.d_ff, "d_ff", c.chips), inner)
                self._cut_down(s.d_ff // self.depths, self._share(s.width, "width", self.columns), name)
            except DoesNotFitError:
                if self.cap == 1:
                    raise
                self.cap = -(-self.cap // 2)
            else:
                return self.cap

    def _cut_up(self, depth: int, width: int, name: str) -> Cut:
        each = 4.0 * bool(self.meaning.up_bias) * self.shape.experts
        return self._cut(self.ways * width, depth, name, width, each)

    def _cut_down(self, depth: int, width: int, name: str) -> Cut:
        each = 4.0 * (bool(self.meaning.down_bias) * self.shape.experts + 1.5 * self.c.rows)
        return self._cut(width, depth, name, width, each)

    def up(self) -> Held:
        """Tokens times the up matrices, gated, in the order of the lists."""
        c, e, s = self.c, self.e, self.shape
        held = c.get(self.op.inputs[0])
        width = self._share(s.d_ff, "d_ff", c.chips)
        name = f"{self.op.outputs[0]}-inner"
        c.wants[name] = {self.operand}
        if not self.split:
            c.whole.add(name)
        e.phase("experts-up", self.op.part)
        found = self._cut_up(held.width, width, name)
        inner = c.hold(name, self.pairs, width, True, width, "state")
        self._run(found, held, inner, "up", None)
        c.gather(inner, self.pairs, width)
        convert_late(c, inner, self.pairs)
        return inner

    def down(self, inner: Held) -> None:
        """The gated values times the down matrices, weighted and added to each token's sum."""
        c, e = self.c, self.e
        width = self._share(self.shape.width, "width", self.columns)
        name = self.op.outputs[0]
        e.phase("experts-down", self.op.part)
        found = self._cut_down(inner.width, width, name)
        held = hold_partial(c, name, c.rows, width) if self.split else c.hold(name, c.rows, width, True, width)
        self._run(found, inner, held, "down", held)
        if self.split:
            add_up(c, self.op, held, name, c.rows)
            return
        c.gather(held, c.rows, width)
        convert_late(c, held, c.rows)

    def _share(self, columns: int, word: str, chips: int) -> int:
        if columns % chips:
            raise UnsupportedError(f"{self.op.name}: {word} = {columns} does not divide over {chips} chips.")
        return columns // chips

    def _cut(self, columns: int, depth: int, name: str, piece: int, each: float) -> Cut:
        c = self.c
        formats = (PARTIAL,) if name in c.summed else c.formats(name, piece)[0]
        ways = columns // piece
        step = ways * max(block_of(f) for f in formats)
        lanes = c.target.tensor(self.mode).lanes
        return cut(
            Multiply(
                self.cap, columns, depth, self.mode, self.op.weight_format, self.operand, step,
                max(block_of(self.weight_format), block_of(self.operand), lanes, 32),
                sum(format_of(f).bytes_per_element for f in formats), 8.0 / c.target.vector,
                self.weight_format != self.op.weight_format, whole=True,
                reserved=4.0 * c.rows * self.shape.experts,
                reserved_column=each,
            ),
            c.target,
        )  # fmt: skip

    def _run(self, f: Cut, source: Held, target: Held, name: str, sums: Held | None) -> None:
        """One of the two phases: a loop over the lists."""
        c, e, cores = self.c, self.e, f.cores
        core_columns = f.tile_cols * f.col_tiles
        ways = self.ways if name == "up" else 1
        weights, bias = self._constant(f, name), self._bias(f, name)
        rings = self._rings(f, source, target, name, ways)
        dense = e.scratch("routing", (c.rows, self.shape.experts), "fp32")
        total = e.scratch("total", (c.rows, core_columns), "fp32") if sums else None
        e.begin()
        e.run(
            "load",
            "dma",
            (box(dense),),
            (c.part(self.weights, "fp32", span(c.rows), span(self.shape.experts)),),
            cores,
        )
        if bias:
            place = (c.visits.index, span(self.shape.experts), only(0, (f"core%{f.grid_n}", 1)), span(core_columns))
            e.run("load", "dma", (box(bias[0]),), (box(bias[1], *place),), cores)
        e.sync("routing", "load", "vector", cores)
        if total:
            e.run("vector", "fill", (box(total),), (), cores, value=0.0)
        e.run("vector", "list", (), (box(dense),), cores, experts=self.shape.experts, cap=self.cap)
        for engine in ("stream", "load", "tensor", "store"):
            e.sync("listed", "vector", engine, cores)
        with e.loop("w", self.lists, TOKENS):
            self._turn(f, source, target, name, (weights, bias[0] if bias else None, dense, total), rings)
        if total and sums:
            self._store(f, total, target)
        e.finish()

    def _store(self, f: Cut, total: Buffer, target: Held) -> None:
        """The sums of all experts, some rows at a time."""
        c, e, cores = self.c, self.e, f.cores
        columns = f.tile_cols * f.col_tiles
        rows = max(d for d in divisors(c.rows) if d <= max(1, c.rows // 8))
        out = e.ring(
            "result", "vector", "store", [(f"result.{fmt}.", (rows, columns), fmt) for fmt, _ in target.direct]
        )
        place = span(columns, 0, (f"core%{f.grid_n}", columns), *self._chip(target, f, columns))
        for turn in e.turns("r", c.rows // rows):
            found = out.fill(cores)
            part = box(total, turn.part(rows), span(columns))
            give(e, found, part, c.carry, cores)
            out.filled(cores)
            for buffer, (fmt, _) in zip(found, target.direct, strict=True):
                e.run("store", "dma", (c.part(target, fmt, turn.part(rows), place),), (box(buffer),), cores)
            out.release(cores)
        out.settle(cores)

    def _chip(self, held: Held, f: Cut, core_columns: int) -> tuple[tuple[str, int], ...]:
        width = core_columns * f.grid_n
        return (("chip", width),) if held.width > width else ()

    def _rings(self, f: Cut, source: Held, target: Held, name: str, ways: int) -> dict[str, Ring]:
        e = self.e
        converts = self.weight_format != self.op.weight_format
        rings = {
            "w": e.weights("w", (f.tile_cols, f.tile_depth), self.op.weight_format, "vector" if converts else "tensor"),
            "a": e.ring("a", "load", "tensor", [("a", (self.cap, source.width), self.operand)], 1),
            "sums": e.ring("sums", "tensor", "vector", [("sums", (self.cap, f.tile_cols), "fp32")]),
        }
        if converts:
            rings["wide"] = e.ring(
                "wide", "vector", "tensor", [("wide", (f.tile_cols, f.tile_depth), self.weight_format)]
            )
        if name == "up":
            outs = [(f"out.{fmt}.", (self.cap, f.tile_cols // ways), fmt) for fmt, _ in target.direct]
            rings["out"] = e.ring("out", "vector", "store", outs)
        return rings

    def _turn(
        self, f: Cut, source: Held, target: Held, name: str,
        held: tuple[Buffer, Buffer | None, Buffer, Buffer | None], rings: dict[str, Ring],
    ) -> None:  # fmt: skip
        """One list: its rows in, its columns tile by tile, its results out."""
        c, e, cores = self.c, self.e, f.cores
        weights, bias, dense, total = held
        rows = Index(0, self.cap, (), TOKENS if name == "up" else PLACES, True)
        (a,) = rings["a"].fill(cores)
        part = Index(0, self.cap, (), "", True)
        e.run(
            "load",
            "dma",
            (box(a, part, span(source.width)),),
            (c.part(source, self.operand, rows, span(source.width)),),
            cores,
        )
        rings["a"].filled(cores)
        for n in e.turns("n", f.col_tiles):
            (acc,) = rings["sums"].fill(cores)
            sums = box(acc, part, span(f.tile_cols))
            for d in range(f.depth_tiles):
                self._multiply(f, weights, a, sums, (n, d), rings)
            rings["sums"].filled(cores)
            if bias:
                own = box(bias, self._expert(), n.part(f.tile_cols))
                e.run("vector", "add", (sums,), (sums, own), cores)
            if total:
                into = box(total, Index(0, self.cap, (), TOKENS, True), n.part(f.tile_cols))
                scale = box(dense, Index(0, self.cap, (), TOKENS, True), self._expert())
                e.run("vector", "scatter_add", (into,), (into, sums, scale), cores)
                rings["sums"].release(cores)
            else:
                self._gate(f, target, acc, n, rings)
        for ring in rings.values():
            ring.settle(cores)
        rings["a"].release(cores)

    def _expert(self) -> Index:
        """The expert of this list."""
        return only(0, (f"w/{self.chunks}" if self.chunks > 1 else "w", 1))

    def _multiply(
        self, f: Cut, weights: Buffer, a: Buffer, sums: Box, at: tuple[Turn, int], rings: dict[str, Ring]
    ) -> None:
        e, cores = self.e, f.cores
        n, d = at
        (w,) = rings["w"].fill(cores)
        start, step = n.times(f.depth_tiles)
        place = (self.c.visits.index, self._expert(), only(0, (f"core%{f.grid_n}", 1)), only(start + d, step))
        e.run("stream", "dma", (box(w),), (box(weights, *place, span(f.tile_cols), span(f.tile_depth)),), cores)
        rings["w"].filled(cores)
        (taken,), ring = rings["w"].converted(rings.get("wide"), (w,), cores)
        left = box(a, Index(0, self.cap, (), "", True), span(f.tile_depth, d * f.tile_depth))
        e.run("tensor", "matmul", (sums,), (left, box(taken)), cores, mode=self.mode, add=int(d > 0))
        ring.release(cores)

    def _gate(self, f: Cut, target: Held, acc: Buffer, n: Turn, rings: dict[str, Ring]) -> None:
        """The gate of one tile, in the formats that the down matrices take, into the places of the list."""
        c, e, cores, r = self.c, self.e, f.cores, self.meaning.rule
        half = f.tile_cols // self.ways
        found = rings["out"].fill(cores)
        gated = e.buffers.get(f"{e.number}.gated") or e.scratch("gated", (self.cap, half), "fp32")
        e.run(
            "vector", "gate" if r.gated else "activate", (box(gated),), (box(acc),), cores,
            activation=r.activation, limit=r.limit, alpha=r.alpha, shift=r.shift,
        )  # fmt: skip
        give(e, found, gated, c.carry, cores)
        rings["sums"].release(cores)
        rings["out"].filled(cores)
        rows = Index(0, self.cap, (), PLACES, True)
        columns = n.part(half, 0, (f"core%{f.grid_n}", half * f.col_tiles), *self._chip(target, f, half * f.col_tiles))
        for buffer, (fmt, _) in zip(found, target.direct, strict=True):
            part = box(buffer, Index(0, self.cap, (), "", True), span(half))
            e.run("store", "dma", (c.part(target, fmt, rows, columns),), (part,), cores)
        rings["out"].release(cores)

    def _order(self, f: Cut, name: str, chip: int) -> np.ndarray:
        """Columns of the matrix in the order of cores and tiles, -1 for padding; gate and up halves in every tile."""
        c, ways, width = self.c, *((self.ways, self.shape.d_ff) if name == "up" else (1, self.shape.width))
        if name == "down" and self.split:
            own = self.order[chip : chip + 1]
        else:
            share = width // c.chips
            own = np.arange(ways * width).reshape(ways, width)[:, chip * share : (chip + 1) * share]
        half = f.tile_cols // ways
        padded = np.pad(own, ((0, 0), (0, half * f.col_tiles * f.grid_n - own.shape[1])), constant_values=-1)
        return padded.reshape(ways, -1, half).transpose(1, 0, 2).reshape(-1)

    def _constant(self, f: Cut, name: str) -> Buffer:
        count = self.shape.experts
        parameter = getattr(self.meaning, name)

        def pack(fetch: Fetch, chip: int) -> np.ndarray:
            found = fetch(parameter)
            flat = found.reshape(count, found.shape[1], -1).transpose(0, 2, 1)
            depth = f.tile_depth * f.depth_tiles
            if name == "down" and self.split:
                flat = flat[:, :, chip * depth : (chip + 1) * depth]
            flat = np.pad(flat, ((0, 0), (0, 1), (0, depth - flat.shape[2])))
            taken = flat[:, self._order(f, name, chip)]
            shape = (count, f.grid_n, f.col_tiles, f.tile_cols, f.depth_tiles, f.tile_depth)
            return np.ascontiguousarray(taken.reshape(shape).transpose(0, 1, 2, 4, 3, 5)).reshape(whole)

        whole = (count, f.grid_n, f.col_tiles * f.depth_tiles, f.tile_cols, f.tile_depth)
        return self.c.constant(parameter, whole, self.op.weight_format, pack)

    def _bias(self, f: Cut, name: str) -> tuple[Buffer, Buffer] | None:
        """This core's part of every expert's bias, in the scratchpad and in main memory."""
        parameter = getattr(self.meaning, f"{name}_bias")
        if not parameter:
            return None
        count, columns = self.shape.experts, f.tile_cols * f.col_tiles

        def pack(fetch: Fetch, chip: int) -> np.ndarray:
            flat = np.pad(fetch(parameter).reshape(count, -1), ((0, 0), (0, 1)))
            if name == "down" and self.split and chip:  # a bias is part of the first chip's sums
                flat = np.zeros_like(flat)
            return flat[:, self._order(f, name, chip)].reshape(count, f.grid_n, columns)

        stored = self.c.constant(parameter, (count, f.grid_n, columns), "fp32", pack)
        return self.e.scratch(f"{name}-bias", (count, columns), "fp32"), stored
