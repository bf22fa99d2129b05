"""Latent attention (MLA) as phases, in its absorbed form: queries are folded into the latent space.

A head's queries are multiplied by its key matrix, all heads attend to the one cached latent, and what they gather is
multiplied by the head's value matrix (DeepSeek-V2 report, section 2.1). Every sequence is lowered so, prompts too:
the expanded form would need fewer operations from some hundred new tokens on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from taygeta.base.errors import UnsupportedError
from taygeta.compiler.attention import attend
from taygeta.compiler.context import Context, Fetch, Held
from taygeta.compiler.elementwise import cache_of, rotation_tables, slots_of
from taygeta.compiler.emit import Ring, Slot, Turn, box, only, span
from taygeta.compiler.program import Buffer, Index
from taygeta.compiler.rows import WIDE, Rows, Stream, convert_late, give, norm_attributes, reads, writes
from taygeta.compiler.tiling import divisors
from taygeta.compiler.units import Heads
from taygeta.graph import meaning as m
from taygeta.graph.ops import AttentionShape, Op


def latent_cache_write(c: Context, op: Op, a: m.LatentCacheWrite) -> None:
    """Norms of the latents; the normalised latent and its rotated key go to the cache."""
    latent = op.inputs[-2]
    width, dim = c.get(latent).width, a.rope.dim
    rank = width - dim
    key, _ = cache_of(c, AttentionShape(1, 1, width, rank, kv_format=op.writes[-1].format), width, 0)
    c.latent_cache = key
    outputs = writes(c, c.hold(op.outputs[0], c.rows, c.get(op.inputs[0]).width)) if a.q_norm else []
    stored = Stream("latent", width, c.carry, slots_of(c, key, width))
    inputs = [reads(c, name) for name in op.inputs[:-1]]
    tables = rotation_tables(c, a.rope)
    phase = Rows(c, op.name, op.part, c.rows, [*inputs, *tables], [*outputs, stored], 12.0 * width, 8.0 * width)
    kv_scale = phase.weight(a.kv_norm, (rank,))
    q_scale = phase.weight(a.q_norm, (outputs[0].width,)) if a.q_norm else None
    joined = phase.scratch("joined", width)
    normed = phase.scratch("normed", outputs[0].width) if outputs else None

    def work(found: Slot, outs: Slot) -> None:
        if q_scale is not None and normed is not None:
            phase.run("norm", [normed], [found[0], q_scale], **norm_attributes(a.rule))
            phase.give(outs[:-1], normed)
        whole, cosine, sine = found[-3:]
        rows = span(phase.tile)
        own = box(joined, rows, span(rank))
        read = (box(whole, rows, span(rank)), box(kv_scale))
        c.emitter.run("vector", "norm", (own,), read, phase.cores, **norm_attributes(a.rule))
        own = box(joined, rows, span(dim, rank))
        read = (box(whole, rows, span(dim, rank)), box(cosine), box(sine))
        order = int(a.rope.interleaved)
        c.emitter.run("vector", "rotate", (own,), read, phase.cores, heads=1, dim=dim, start=0, interleaved=order)
        phase.give(outs[-1:], joined)

    phase.emit(work)


def absorb_keys(c: Context, op: Op, a: m.AbsorbKeys) -> None:
    """Queries of every head into the latent space, beside the room for their rotary part."""
    (_, heads), (_, nope), (_, rank) = op.weights[0].axes
    q = c.get(op.inputs[0])
    own = heads // c.chips
    rope = q.width // own - nope
    buffer = c.temporary("latent-queries", (c.rows, own, rank + rope), c.carry)
    c.latent_queries = buffer
    source = _HeadColumns(q, q.width // own, nope)
    _Grouped(c, op, a.weight, source, own, nope, rank).emit(buffer, None)
    c.values[op.outputs[0]] = Held(op.outputs[0], own * rank)


def latent_attend(c: Context, op: Op, a: m.LatentAttend) -> None:
    """Rotary parts of the queries beside their latent ones; attention over the cached latents."""
    buffer, q = c.latent_queries, c.get(op.inputs[1])
    if buffer is None:
        raise UnsupportedError(f"{op.name!r} has no latent queries: this graph cannot be compiled.")
    _, heads, width = buffer.shape
    dim = a.rope.dim
    rank = width - dim
    tables = rotation_tables(c, a.rope)
    stored = Stream("turned", heads * dim, c.carry, lambda rows: box(buffer, rows, span(heads), span(dim, rank)))
    phase = Rows(c, "rotate queries", op.part, c.rows, [reads(c, q.name), *tables], [stored], 8.0 * heads * dim)
    turned = phase.scratch("turned", heads * dim)
    order, start = int(a.rope.interleaved), q.width // heads - dim

    def work(found: Slot, outs: Slot) -> None:
        phase.run("rotate", [turned], found, heads=heads, dim=dim, start=start, interleaved=order)
        phase.give(outs, turned)

    phase.emit(work)
    found = Heads(1, heads, width, rank, c.latent_cache, c.latent_cache, a.scale)
    attend(c, op, buffer, found, op.outputs[0])


def absorb_values(c: Context, op: Op, a: m.AbsorbValues) -> None:
    """What every head gathered, out of the latent space."""
    (_, heads), (_, rank), (_, value) = op.weights[0].axes
    own = heads // c.chips
    source = _HeadColumns(c.get(op.inputs[0]), rank, rank)
    grouped = _Grouped(c, op, a.weight, source, own, rank, value)
    held = c.hold(op.outputs[0], c.rows, own * value, True, value)
    grouped.emit(None, held)
    c.gather(held, c.rows, own * value)
    convert_late(c, held, c.rows)


def expanded_attend(c: Context, op: Op, a: m.Meaning) -> None:
    """Every sequence is absorbed: the output is the absorbed one."""
    c.values[op.outputs[0]] = c.get(op.inputs[2])


def nothing(c: Context, op: Op, a: m.Meaning) -> None:
    """What only expanded sequences need."""


LATENT: dict[type, Callable[[Context, Op, Any], None]] = {
    m.LatentCacheWrite: latent_cache_write,
    m.AbsorbKeys: absorb_keys,
    m.LatentAttend: latent_attend,
    m.AbsorbValues: absorb_values,
    m.ExpandLatents: nothing,
    m.ExpandedAttend: expanded_attend,
}
"""Phases by meaning."""


@dataclass(frozen=True)
class _HeadColumns:
    """Where the operand of each head is in a value: every `stride` columns, the first `width` of them."""

    held: Held
    stride: int
    width: int


class _Grouped:
    """A multiply of each head by a matrix of its own: heads are spread over the cores, and their columns."""

    def __init__(
        self, c: Context, op: Op, weight: str, source: _HeadColumns, heads: int, depth: int, columns: int
    ) -> None:
        self.c, self.e, self.op, self.weight, self.source = c, c.emitter, op, weight, source
        self.heads, self.depth, self.columns = heads, depth, columns
        self.over = max(d for d in divisors(heads) if d <= c.target.cores)
        room = c.target.cores // self.over
        self.parts = max(d for d in divisors(columns) if (d <= room and (columns // d) % 32 == 0) or d == 1)
        self.cores, self.own = self.over * self.parts, columns // self.parts
        self.mode, self.weight_format, self.operand = c.mode(op.weight_format, op.reads[0].format)
        limit = 256
        self.tile = max((d for d in divisors(c.rows) if d <= limit), default=1)
        e = self.e
        e.phase(op.name.replace(" ", "-"), op.part)

    def emit(self, buffer: Buffer | None, held: Held | None) -> None:
        """Emit the phase; the result goes to a buffer of (rows, heads, at least columns), or to a value."""
        c, e, cores = self.c, self.e, self.cores
        narrow = self.operand not in WIDE
        converts = self.weight_format != self.op.weight_format
        rings = {
            "w": e.weights("w", (self.own, self.depth), self.op.weight_format, "vector" if converts else "tensor"),
            "a": e.ring("a", "load", "vector" if narrow else "tensor", [("a", (self.tile, self.depth), c.carry)]),
            "sums": e.ring("sums", "tensor", "vector", [("sums", (self.tile, self.own), "fp32")]),
        }
        if converts:
            rings["wide"] = e.ring("wide", "vector", "tensor", [("wide", (self.own, self.depth), self.weight_format)])
        if narrow:
            rings["operand"] = e.ring(
                "operand", "vector", "tensor", [("operand", (self.tile, self.depth), self.operand)]
            )
        formats = [c.carry] if held is None else [fmt for fmt, _ in held.direct]
        rings["out"] = e.ring("out", "vector", "store", [(f"out.{f}.", (self.tile, self.own), f) for f in formats])
        stored = self._constant()
        e.begin()
        if converts:
            e.sync("begun", "load", "vector", cores)  # converted weights lie where the last phase may still work
        for head in e.turns("h", self.heads // self.over):
            w, ring = self._weights(rings, stored, head)
            for rows in e.turns("m", c.rows // self.tile):
                self._rows(rings, w, head, rows, buffer, held)
            ring.release(cores)
            for name in rings:
                if name not in ("w", "wide"):
                    rings[name].settle(cores)
        for ring in rings.values():
            ring.settle(cores)
        e.finish()

    def _weights(self, rings: dict[str, Ring], stored: Buffer, head: Turn) -> tuple[Buffer, Ring]:
        """A head's matrix, in the format of the mode, and the ring whose slot it holds."""
        e, cores = self.e, self.cores
        (w,) = rings["w"].fill(cores)
        start, step = head.times(self.over)
        place = (self.c.visits.index, only(start, (f"core%{self.over}", 1), step), only(0, (f"core/{self.over}", 1)))
        e.run("stream", "dma", (box(w),), (box(stored, *place, span(self.own), span(self.depth)),), cores)
        rings["w"].filled(cores)
        if "wide" not in rings:
            return w, rings["w"]
        (taken,) = rings["wide"].fill(cores)
        e.run("vector", "quantise", (box(taken),), (box(w),), cores)
        rings["w"].release(cores)
        rings["wide"].filled(cores)
        return taken, rings["wide"]

    def _rows(
        self, rings: dict[str, Ring], w: Buffer, head: Turn, m: Turn, buffer: Buffer | None, held: Held | None
    ) -> None:
        c, e, cores = self.c, self.e, self.cores
        (a,) = rings["a"].fill(cores)
        rows = m.part(self.tile)
        columns = self._head(head, self.source.stride, self.source.width)
        e.run("load", "dma", (box(a),), (c.part(self.source.held, c.carry, rows, columns),), cores)
        rings["a"].filled(cores)
        (left,), ring = rings["a"].converted(rings.get("operand"), (a,), cores)
        (acc,) = rings["sums"].fill(cores)
        e.run("tensor", "matmul", (box(acc),), (box(left), box(w)), cores, mode=self.mode, add=0)
        ring.release(cores)
        rings["sums"].filled(cores)
        outs = rings["out"].fill(cores)
        give(e, outs, acc, c.carry, cores)
        rings["sums"].release(cores)
        rings["out"].filled(cores)
        part = (f"core/{self.over}", self.own)
        if buffer is not None:
            start, step = head.times(self.over)
            heads = only(start, (f"core%{self.over}", 1), step)
            e.run("store", "dma", (box(buffer, rows, heads, span(self.own, 0, part)),), (box(outs[0]),), cores)
        elif held is not None:
            chip = ("chip", self.heads * self.columns if not held.local and c.chips > 1 else 0)
            found = self._head(head, self.columns, self.own, part, chip)
            for out, (fmt, _) in zip(outs, held.direct, strict=True):
                e.run("store", "dma", (c.part(held, fmt, rows, found),), (box(out),), cores)
        rings["out"].release(cores)

    def _head(self, head: Turn, stride: int, width: int, *more: tuple[str, int]) -> Index:
        start, step = head.times(self.over * stride)
        return span(width, start, (f"core%{self.over}", stride), step, *more)

    def _constant(self) -> Buffer:
        heads, depth, parts, own = self.heads, self.depth, self.parts, self.own

        def pack(fetch: Fetch, chip: int) -> np.ndarray:
            found = fetch(self.weight)[chip * heads : (chip + 1) * heads]
            return np.ascontiguousarray(found.transpose(0, 2, 1).reshape(heads, parts, own, depth))

        return self.c.constant(self.weight, (heads, parts, own, depth), self.op.weight_format, pack)
