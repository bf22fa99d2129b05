"""Attention as a streaming softmax: queries stay in the scratchpad, keys and values pass by, a tile at a time.

A unit of work is some query tokens of one sequence and the query heads that share a key head. Units are spread over
the cores; where they are fewer, decode splits the keys too and a second phase merges the parts. For every tile of
keys the tensor unit makes scores, the vector unit their exponentials under the running maximum and rescales what was
summed, and the tensor unit adds the values (Online normalizer calculation for softmax, arXiv 1805.02867;
FlashAttention-2, arXiv 2307.08691).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taygeta.compiler.context import Context, Held
from taygeta.compiler.emit import SLOTS, Ring, Turn, box, only, span
from taygeta.compiler.padding import clear
from taygeta.compiler.program import Box, Buffer, Index, Value
from taygeta.compiler.rows import Rows, Stream, convert_late, give, writes
from taygeta.compiler.units import Heads, Spread, spread
from taygeta.graph.ops import Op

STATE = 3
"""Columns of the running state of a row: its maximum, its sum, and what the last tile scaled earlier sums by."""


def attend(c: Context, op: Op, queries: Held | Buffer, h: Heads, output: str) -> None:
    """Emit the phase of an attention, and the merge of its splits where there are any.

    queries: a value of (tokens, heads x key_dim), or a buffer of (tokens, heads, key_dim).
    """
    s = spread(c, h)
    width = h.kv_heads * h.group * h.value_dim
    if s.splits == 1:
        held = c.hold(output, c.rows, width, c.chips > 1, h.value_dim)
        _Attention(c, op, queries, h, s, held).emit()
        c.gather(held, c.rows, width)
        convert_late(c, held, c.rows)
        return
    parts = c.temporary("split-values", (s.splits, c.rows, width), "fp32")
    states = c.temporary("split-states", (s.splits, c.rows, h.kv_heads * h.group * STATE), "fp32")
    _Attention(c, op, queries, h, s, (parts, states)).emit()
    held = c.hold(output, c.rows, width, c.chips > 1, h.value_dim)
    _merge(c, op, h, s.splits, parts, states, held)
    c.gather(held, c.rows, width)
    convert_late(c, held, c.rows)


@dataclass(frozen=True)
class _Lane:
    """The scratch buffers of one of the units that go on at the same time."""

    number: int
    scores: tuple[Buffer, ...]
    weights: tuple[Buffer, ...]
    state: Buffer
    sums: Buffer


class _Attention:
    """The parts of one attention's phase."""

    def __init__(
        self, c: Context, op: Op, queries: Held | Buffer, h: Heads, s: Spread, output: Held | tuple[Buffer, Buffer]
    ) -> None:
        self.c, self.e, self.op, self.queries, self.h, self.s, self.output = c, c.emitter, op, queries, h, s, output
        self.heads = h.group // s.parts
        self.rows = s.tile * self.heads
        self.shared = h.values == h.keys
        self.mode, _, _ = c.mode(c.carry, c.carry)
        self.own = h.kv_heads // s.heads  # key heads that a core walks through
        few = self.rows <= c.target.chip.tile[0]
        self.abreast = next((n for n in (4, 2) if few and self.own % n == 0), 1)

    def emit(self) -> None:
        """Emit the phase."""
        c, e, h, s = self.c, self.e, self.h, self.s
        e.phase(self.op.name.replace(" ", "-"), self.op.part)
        step, rows, abreast = c.key_step, self.rows, self.abreast
        units = self.own * (c.requests // s.requests) * s.steps
        q = e.ring("q", "load", "tensor", [("q", (rows, h.key_dim), c.carry)], SLOTS * abreast if units > 1 else 1)
        keys = e.ring("k", "load", "tensor", [("k", (step, h.key_dim), c.carry)], SLOTS * abreast)
        values = keys
        if not self.shared:
            values = e.ring("v", "load", "tensor", [("v", (step, h.value_dim), c.carry)], SLOTS * abreast)
        self.lanes = [
            _Lane(
                number,
                tuple(e.scratch(f"scores{number}.{i}", (rows, step), "fp32") for i in range(SLOTS)),
                tuple(e.scratch(f"weights{number}.{i}", (rows, step), c.carry) for i in range(SLOTS)),
                e.scratch(f"state{number}", (rows, STATE), "fp32"),
                e.scratch(f"sums{number}", (rows, h.value_dim), "fp32"),
            )
            for number in range(abreast)
        ]
        out = e.ring("attended", "vector", "store", self._outputs(), SLOTS * abreast)
        e.begin()
        sinks = self._sinks()
        if sinks is None:
            e.sync("begun", "load", "vector", s.cores)  # states lie where the last phase may still store from
        clear(c, self._padding(), s.cores)
        for head in e.turns("h", self.own // abreast):
            for request in e.turns("q", c.requests // s.requests):
                for i in range(s.steps):
                    self._units(q, (keys, values), out, sinks, (head, request, i, self._seen(i)))
                q.settle(s.cores)
                out.settle(s.cores)
        e.finish()

    def _padding(self) -> list[Box]:
        """The rows of the output that stand for no token, which no unit writes."""
        c, h = self.c, self.h
        rows = span(c.rows - c.tokens, c.tokens)
        if not isinstance(self.output, Held):
            return [box(b, span(self.s.splits), rows, span(b.shape[-1])) for b in self.output]
        return [place.at(rows) for place in writes(c, self.output, h.kv_heads * h.group * h.value_dim)]

    def _seen(self, i: int) -> range:
        """The tiles of keys that some query of this step can see; of a split, those of the first.

        A cache that goes round holds its keys in no order, so all of them are looked at.
        """
        c, h, s = self.c, self.h, self.s
        tiles = c.cache_length // c.key_step
        if s.splits > 1:
            return range(tiles // s.splits)
        if c.cache_length < min(c.capacity, c.context + c.new):
            return range(tiles)
        first, last = c.context + i * s.queries * s.tile, c.context + (i + 1) * s.queries * s.tile
        start = max(0, first - h.window + 1) // c.key_step if h.window and c.exact else 0
        return range(start, min(tiles, -(-last // c.key_step)))

    def _outputs(self) -> list[tuple[str, tuple[int, ...], str]]:
        shape = (self.rows, self.h.value_dim)
        if isinstance(self.output, Held):
            return [("o", shape, fmt) for fmt, _ in self.output.direct]
        return [("o", shape, "fp32"), ("s", (self.rows, STATE), "fp32")]

    def _units(
        self, q: Ring, kv: tuple[Ring, Ring], out: Ring, sinks: Buffer | None, at: tuple[Turn, Turn, int, range]
    ) -> None:
        """One unit of each lane: their queries, their tiles of keys, their outputs.

        The scores of the next tile are made before the values of this one are added, so that the tensor unit works
        while the vector unit makes weights of scores; lanes fill the time in which the sums of a small multiply are
        still on their way.
        """
        e, cores = self.e, self.s.cores
        head, request, i, tiles = at
        keys, values = kv
        units = [(lane, (head.among(self.abreast, lane.number), request, i, tiles)) for lane in self.lanes]
        queries = []
        for lane, own in units:
            (found,) = q.fill(cores)
            e.run("load", "dma", (box(found),), (self._query_box(request, i, own[0]),), cores)
            q.filled(cores)
            queries.append(found)
            e.run("vector", "softmax_start", (box(lane.state), box(lane.sums)), (), cores)
            e.mark("summed", lane.number, "tensor", "vector", cores)
        held = [self._scores(found, keys, *unit, Turn(), 0) for found, unit in zip(queries, units, strict=True)]
        for tile in e.turns("j", len(tiles) - 1):
            after = Turn(tile.start + 1, tile.variable, tile.step)
            following = [
                self._scores(found, keys, *unit, after, tile.start + 1)
                for found, unit in zip(queries, units, strict=True)
            ]
            for found, unit in zip(held, units, strict=True):
                self._add(values, found, *unit, tile, tile.start)
            held = following
        last = len(tiles) - 1
        for found, unit in zip(held, units, strict=True):
            self._add(values, found, *unit, Turn(last), last)
        for ring in kv:
            ring.settle(cores)
        for lane, own in units:
            q.release(cores)
            e.await_mark("summed", lane.number, "tensor", "vector", cores)
            found = out.fill(cores)
            self._end(found, lane, sinks, own[0])
            out.filled(cores)
            self._store(found, request, i, own[0])
            out.release(cores)

    def _load(self, ring: Ring, cache: str, width: int, at: tuple[Turn, Turn, int, range], tile: Turn) -> Buffer:
        """Bring a tile of keys or values in."""
        c, e, s, cores = self.c, self.e, self.s, self.s.cores
        head, request, _, tiles = at
        (found,) = ring.fill(cores)
        start, step = head.times(s.heads * width)
        columns = span(width, start, (s.digit("heads"), width), step)
        place = (c.visits.index, self._keys(request, tile, tiles), columns)
        e.run("load", "dma", (box(found),), (box(e.buffers[cache], *place),), cores)
        ring.filled(cores)
        return found

    def _scores(
        self, queries: Buffer, keys: Ring, lane: _Lane, at: tuple[Turn, Turn, int, range], tile: Turn, number: int
    ) -> Buffer:
        """Queries times a tile of keys; returns the keys."""
        e, h, cores = self.e, self.h, self.s.cores
        found = self._load(keys, h.keys, h.key_dim, at, tile)
        out = box(lane.scores[number % SLOTS])
        e.run("tensor", "matmul", (out,), (box(queries), box(found)), cores, mode=self.mode, add=0)
        e.mark("scores", lane.number, "tensor", "vector", cores)
        if not self.shared:
            keys.release(cores)
        return found

    def _add(
        self, ring: Ring, keys: Buffer, lane: _Lane, at: tuple[Turn, Turn, int, range], tile: Turn, number: int
    ) -> None:
        """Scores to weights, earlier sums to the new maximum, and the values of the tile added."""
        c, e, h, cores = self.c, self.e, self.h, self.s.cores
        _, request, i, tiles = at
        values = keys if self.shared else self._load(ring, h.values, h.value_dim, at, tile)
        weights, state, sums = box(lane.weights[number % SLOTS]), box(lane.state), box(lane.sums)
        asked = Box("positions", (self._tokens(request, i),))
        seen = Box(c.keys, (self._keys(request, tile, tiles),))
        attributes: dict[str, Value] = {"scale": h.scale, "softcap": h.softcap, "window": h.window, "chunk": h.chunk}
        e.await_mark("scores", lane.number, "tensor", "vector", cores)
        scores = box(lane.scores[number % SLOTS])
        e.run("vector", "softmax_step", (weights, state), (scores, state, asked, seen), cores, **attributes)
        e.await_mark("summed", lane.number, "tensor", "vector", cores)
        e.run("vector", "softmax_scale", (sums,), (sums, state), cores)
        e.sync(f"weights{lane.number}", "vector", "tensor", cores)
        part = box(values, span(c.key_step), span(h.value_dim))  # of keys that hold them: the first columns
        e.run("tensor", "matmul", (sums,), (weights, part), cores, mode=self.mode, add=1, order="kn")
        e.mark("summed", lane.number, "tensor", "vector", cores)
        ring.release(cores)

    def _end(self, found: tuple[Buffer, ...], lane: _Lane, sinks: Buffer | None, head: Turn) -> None:
        e, cores = self.e, self.s.cores
        sums, state = box(lane.sums), box(lane.state)
        if not isinstance(self.output, Held):
            e.run("vector", "copy", (box(found[0]),), (sums,), cores)
            e.run("vector", "copy", (box(found[1]),), (state,), cores)
            return
        read = (sums, state, *([box(sinks, head.index, span(self.heads))] if sinks else []))
        e.run("vector", "softmax_end", (sums,), read, cores)
        give(e, found, lane.sums, self.c.carry, cores)

    def _store(self, found: tuple[Buffer, ...], request: Turn, i: int, head: Turn) -> None:
        e, s, h, cores = self.e, self.s, self.h, self.s.cores
        tokens = self._tokens(request, i)
        columns = self._columns(head, self.heads * h.value_dim)
        if isinstance(self.output, Held):
            chip = ("chip", h.kv_heads * h.group * h.value_dim if not self.output.local and self.c.chips > 1 else 0)
            columns = Index(columns.start, columns.extent, (*columns.steps, *([chip] if chip[1] else [])))
            for buffer, (fmt, _) in zip(found, self.output.direct, strict=True):
                e.run("store", "dma", (self.c.part(self.output, fmt, tokens, columns),), (box(buffer),), cores)
            return
        split = only(0, (s.digit("splits"), 1))
        for buffer, stored, width in zip(found, self.output, (h.value_dim, STATE), strict=True):
            place = self._columns(head, self.heads * width)
            e.run("store", "dma", (box(stored, split, tokens, place),), (box(buffer),), cores)

    def _query_box(self, request: Turn, i: int, head: Turn) -> Box:
        tokens = self._tokens(request, i)
        if isinstance(self.queries, Buffer):
            return box(self.queries, tokens, self._columns(head, self.heads), span(self.h.key_dim))
        return self.c.part(self.queries, self.c.carry, tokens, self._columns(head, self.heads * self.h.key_dim))

    def _tokens(self, request: Turn, i: int) -> Index:
        """The query tokens of a unit, among the rows of the step."""
        c, s = self.c, self.s
        start, step = request.times(s.requests * c.new)
        return span(
            s.tile, start + i * s.queries * s.tile, (s.digit("requests"), c.new), step, (s.digit("queries"), s.tile)
        )

    def _keys(self, request: Turn, tile: Turn, tiles: range) -> Index:
        """The keys of a tile, among the rows of the cache."""
        c, s = self.c, self.s
        start, step = request.times(s.requests * c.cache_length)
        request_step = (s.digit("requests"), c.cache_length)
        split = (s.digit("splits"), len(tiles) * c.key_step)
        return tile.part(c.key_step, start + tiles.start * c.key_step, request_step, step, split)

    def _columns(self, head: Turn, width: int) -> Index:
        """The columns of a unit's heads; width: of one part of a group."""
        s = self.s
        start, step = head.times(s.heads * s.parts * width)
        return span(width, start, (s.digit("heads"), s.parts * width), step, (s.digit("parts"), width))

    def _sinks(self) -> Buffer | None:
        """The sinks of a core's heads, brought in once (a chip's heads are one part where cores walk over heads)."""
        c, e, h, s = self.c, self.e, self.h, self.s
        if not h.sinks:
            return None
        total = h.kv_heads * h.group
        width = self.heads

        def pack(fetch, chip: int) -> np.ndarray:
            return _own(np.asarray(fetch(h.sinks), np.float32).reshape(-1), total, chip)

        stored = c.constant(h.sinks, (total,), "fp32", pack)
        scratch = e.scratch("sinks", (self.own, width), "fp32")
        for head in range(self.own):
            place = self._columns(Turn(head), width)
            part = box(scratch, only(head), span(width))
            e.run("load", "dma", (part,), (box(stored, c.visits.index, place),), s.cores)
        e.sync("sinks", "load", "vector", s.cores)
        return scratch


def _merge(c: Context, op: Op, h: Heads, splits: int, parts: Buffer, states: Buffer, held: Held) -> None:
    """Join the parts of the keys: a phase over rows."""
    heads = h.kv_heads * h.group
    wide, narrow = heads * h.value_dim, heads * STATE
    streams = [
        Stream("parts", wide, "fp32", lambda rows: box(parts, span(splits), rows, span(wide)), splits),
        Stream("states", narrow, "fp32", lambda rows: box(states, span(splits), rows, span(narrow)), splits),
    ]
    outputs = writes(c, held, heads * h.value_dim)
    phase = Rows(c, f"{op.name} merge", op.part, c.rows, streams, outputs, 4.0 * heads * h.value_dim)
    sinks = None
    if h.sinks:
        sinks = phase.weight(h.sinks, (heads,), f"{h.sinks} merge", lambda w, chip: _own(w.reshape(-1), heads, chip))
    merged = phase.scratch("merged", heads * h.value_dim)

    def work(found: tuple[Buffer, ...], outs: tuple[Buffer, ...]) -> None:
        phase.run("softmax_merge", [merged], [*found, *([sinks] if sinks else [])], heads=heads)
        phase.give(outs, merged)

    phase.emit(work)


def _own(found: np.ndarray, heads: int, chip: int) -> np.ndarray:
    """A chip's part of a parameter of all heads."""
    start = chip * heads if len(found) > heads else 0
    return found[start : start + heads]
