"""Embedding, norms, rotation with the cache write, and routing: the phases of the vector unit, meaning by meaning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from taygeta.base.errors import UnsupportedError
from taygeta.compiler.context import Context, Fetch, Held
from taygeta.compiler.emit import Slot, box, only, span
from taygeta.compiler.program import Box, Index
from taygeta.compiler.rows import WIDE, Rows, Stream, gathers, norm_attributes, reads, writes
from taygeta.graph import meaning as m
from taygeta.graph.ops import AttentionShape, Op
from taygeta.spec.arithmetic import Rope


def embed(c: Context, op: Op, a: m.Embed) -> None:
    """Rows of the table that the ids name, scaled, plus those of learned positions; the stream starts at zero."""
    e = c.emitter
    width = op.reads[0].row_elements
    sizes = {w.name: w.axes[0][1] for w in op.weights}
    inputs = []
    for name, table in ((a.table, "ids"), (a.positions, "positions")):
        if name:
            e.table(table, c.rows)
            stored = c.shared_constant(
                name, (sizes[name], width), "bf16" if c.carry == "bf16" else "fp32", _whole(name)
            )
            inputs.append(gathers(stored, only(0), table, width))
    held = [c.hold(name, c.rows, width) for name in op.outputs]
    x, delta = (writes(c, h) for h in held)
    phase = Rows(c, op.name, op.part, c.rows, inputs, [*x, *delta], extra=8.0 * width)
    total = phase.scratch("embedded", width)

    def work(found: Slot, outputs: Slot) -> None:
        phase.run("scale", [total], [found[0]], factor=a.scale)
        if a.positions:
            phase.run("add", [total], [total, found[1]])
        phase.give(outputs[len(x) :], total)
        phase.run("scale", [total], [total], factor=0.0)
        phase.give(outputs[: len(x)], total)

    phase.emit(work)


def _whole(name: str):
    def pack(fetch: Fetch, chip: int) -> np.ndarray:
        return np.asarray(fetch(name), np.float32)

    return pack


def add_norm(c: Context, op: Op, a: m.AddNorm) -> None:
    """X' = x + delta; h = norm(x'), in every format that is wanted of it."""
    rows = c.last_rows if a.last else c.rows
    table = c.emitter.table("last", c.last_rows) if a.last else ""
    width = op.reads[0].row_elements
    shape = tuple(n for _, n in op.weights[0].axes)
    x, h = (writes(c, c.hold(name, rows, width)) for name in op.outputs)
    inputs = [reads(c, name, table=table) for name in op.inputs]
    phase = Rows(c, op.name, op.part, rows, inputs, [*x, *h], extra=8.0 * width, constants=4.0 * np.prod(shape))
    scale = phase.weight(a.weight, shape)
    total, normed = phase.scratch("sum", width), phase.scratch("normed", width)

    def work(found: Slot, outputs: Slot) -> None:
        phase.run("add", [total], found)
        phase.give(outputs[: len(x)], total)
        phase.run("norm", [normed], [total, scale], **norm_attributes(a.rule))
        phase.give(outputs[len(x) :], normed)

    phase.emit(work)


def norm(c: Context, op: Op, a: m.Norm) -> None:
    """A norm of what is to be added."""
    width = op.reads[0].row_elements
    shape = tuple(n for _, n in op.weights[0].axes)
    outputs = writes(c, c.hold(op.outputs[0], c.rows, width))
    phase = Rows(c, op.name, op.part, c.rows, [reads(c, op.inputs[0])], outputs, 4.0 * width, 4.0 * np.prod(shape))
    scale = phase.weight(a.weight, shape)
    normed = phase.scratch("normed", width)

    def work(found: Slot, outs: Slot) -> None:
        phase.run("norm", [normed], [found[0], scale], **norm_attributes(a.rule))
        phase.give(outs, normed)

    phase.emit(work)


def gate(c: Context, op: Op, a: m.RotaryCacheWrite) -> None:
    """An activation that no multiply takes with it."""
    raise UnsupportedError(f"{op.name}: an activation that does not follow a multiply of its own cannot be compiled.")


def rotation_tables(c: Context, rope: Rope) -> list[Stream]:
    """Return cosines and sines of a rotation as inputs: rows by position, kept in main memory."""
    c.emitter.table("positions", c.rows)
    length = c.longest
    angles = np.arange(length)[:, None].astype(np.float32) * np.asarray(rope.frequencies(), np.float32)
    out = []
    for name, function in (("cos", np.cos), ("sin", np.sin)):
        found = (function(angles) * np.float32(rope.magnitude)).astype(np.float32)
        stored = c.shared_constant(name, found.shape, "fp32", lambda fetch, chip, found=found: found)
        out.append(gathers(stored, only(0), "positions", found.shape[1]))
    return out


def rotate_and_write(c: Context, op: Op, a: m.RotaryCacheWrite, shape: AttentionShape) -> tuple[str, str]:
    """Biases, norms and rotation of queries and keys; keys and values go to the cache, whose buffers are returned."""
    values = [c.get(name) for name in op.inputs[:3]]
    q, k, v = values
    tables = rotation_tables(c, a.rope) if a.rope else []
    cache = cache_of(c, shape, k.width, v.width)
    outputs = writes(c, c.hold(op.outputs[0], c.rows, q.width, local=c.chips > 1))
    stored = [
        Stream(n, w, c.carry, slots_of(c, cache[i], w)) for i, (n, w) in enumerate((("k", k.width), ("v", v.width)))
    ]
    widths = (q.width, k.width, v.width)
    inputs = [_columns(c, value, name) for value, name in zip(values, ("q", "k", "v"), strict=True)]
    phase = Rows(c, op.name, op.part, c.rows, [*inputs, *tables], [*outputs, *stored], 8.0 * sum(widths), 64e3)
    biases = [_chip_bias(c, phase, n, w, value) for n, w, value in zip(a.biases, widths, values, strict=False)]
    joint = isinstance(a, m.JointNormCacheWrite)
    if joint and c.chips > 1:
        raise UnsupportedError(f"{op.name!r} normalises over all heads together: it is compiled for one chip, tp=1.")
    normed = widths if joint else (shape.qk_dim,) * len(widths)
    scales = [phase.weight(name, (width,)) for name, width in zip(a.norms, normed, strict=False)]
    work_on = [phase.scratch(f"{n}.sum", w) for n, w in zip("qkv", widths, strict=True)]
    turned = [phase.scratch(f"{n}.turned", w) for n, w in zip("qk", widths[:2], strict=True)]

    def work(found: Slot, outs: Slot) -> None:
        for i, (value, width) in enumerate(zip(found, widths, strict=False)):
            now = work_on[i]
            phase.run("add", [now], [value, biases[i]]) if biases else phase.run("copy", [now], [value])
            heads = width // shape.qk_dim
            if a.rule is not None and i < len(scales):
                phase.run("norm", [now], [now, scales[i]], **norm_attributes(a.rule, 1 if joint else heads))
            if a.rope is not None and i < len(turned):
                order = int(a.rope.interleaved)
                phase.run(
                    "rotate", [turned[i]], [now, *found[3:5]], heads=heads, dim=a.rope.dim, start=0, interleaved=order
                )
                now = turned[i]
            phase.give(outs[: len(outputs)] if i == 0 else [outs[len(outputs) + i - 1]], now)

    phase.emit(work)
    return cache


def _columns(c: Context, value: Held, name: str) -> Stream:
    return Stream(name, value.width, c.carry, lambda rows: c.part(value, c.carry, rows, span(value.width)))


def slots_of(c: Context, cache: str, width: int) -> Callable[[Index], Box]:
    """Return where rows of tokens stand in a buffer of the cache."""

    def at(rows: Index) -> Box:
        index = Index(rows.start, rows.extent, rows.steps, c.slots)
        return box(c.emitter.buffers[cache], c.visits.index, index, span(width))

    return at


def _chip_bias(c: Context, phase: Rows, name: str, width: int, value: Held):
    """A bias over heads: each chip has that of its own."""
    if c.chips > 1 and value.local:

        def take(found: np.ndarray, chip: int) -> np.ndarray:
            flat = found.reshape(-1)
            shares = max(1, len(flat) // width)
            start = chip * shares // c.chips * width
            return flat[start : start + width]

        return phase.weight(name, (width,), take=take)
    return phase.weight(name, (width,))


def cache_of(c: Context, shape: AttentionShape, key: int, value: int) -> tuple[str, str]:
    """Make the KV cache of this block, and the tables that say where tokens stand in it; return its buffers.

    A layer with a window keeps only what a step of this size can see, in turn; others keep the whole context.
    """
    if shape.kv_format not in WIDE:
        raise UnsupportedError(f"A KV cache in {shape.kv_format} is not compiled for {c.target.chip.id}: give kv=bf16.")
    reach = shape.window + c.reach - 1 if shape.window else c.capacity
    length = min(c.capacity, -(-reach // c.key_step) * c.key_step)
    c.cache_length = length
    c.slots, c.keys = (f"{word}.{length}" for word in ("slots", "keys"))
    c.emitter.table(c.slots, c.rows)
    c.emitter.table(c.keys, c.requests * length)
    rows = c.requests * length + 1  # the last takes what rows without a token write
    k = c.state("key-cache", (rows, key), c.carry)
    v = c.state("value-cache", (rows, value), c.carry) if value else k
    return k.name, v.name
