"""Deployment and batch -> Program: the phases of every layer, layers of a kind in a loop, and places in memory.

Over several chips the multiplies are gather-based, as Maia's: every chip has a share of the columns of each matrix,
the outputs are gathered where a whole row is needed, and no sum is split over chips. The bits do not depend on the
number of chips. A chip whose tensor.parallel is "reduce" splits the sums over heads and over d_ff instead, and adds the
parts in the order of the chips (taygeta.compiler.reduce): half the exchanges, and bits that depend on how many chips
there are, not on when or where a sum is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from taygeta.base.errors import UnsupportedError
from taygeta.compiler import elementwise
from taygeta.compiler.attention import attend
from taygeta.compiler.context import STREAM, Constant, Context, Held, Visits
from taygeta.compiler.emit import Emitter
from taygeta.compiler.experts import experts, route
from taygeta.compiler.latent import LATENT
from taygeta.compiler.linear import linear
from taygeta.compiler.normed import follows
from taygeta.compiler.place import place
from taygeta.compiler.program import Program
from taygeta.compiler.target import Target, target
from taygeta.compiler.units import Heads
from taygeta.graph import meaning as m
from taygeta.graph.build import build
from taygeta.graph.ops import AttentionShape, Block, Graph, Op, Visit
from taygeta.spec.deployment import Batch, Deployment

DIVIDED = ("heads", "d_ff")
"""Axes of which each chip has a share: a multiply that contracts one may leave every chip with a part of its sums."""

MOST_PERIOD = 16
"""Layers after which a pattern of kinds may repeat: Gemma 3 has 6."""


@dataclass(frozen=True)
class Finished:
    """Values that are there when the phase of this number, counted in the listing from 1, has ended."""

    phase: int
    visits: Visits
    values: tuple[tuple[str, Held], ...]


@dataclass(frozen=True)
class Compiled:
    """A program with what fills its buffers and tables.

    constants: how weights become constant buffers. layers: the layers of the model that each block's visits are.
    requests, new, capacity: sequences, new tokens of each, and rows of the cache of each. caches: lengths of caches
    with their windows' tables. vocab: columns of the logits that are tokens, of each chip's `logit_columns`. finished:
    which values of the graph are there after which phase.
    """

    program: Program
    target: Target
    constants: tuple[Constant, ...]
    layers: dict[int, tuple[int | None, ...]]
    requests: int
    new: int
    capacity: int
    rows: int
    last_rows: int
    caches: tuple[int, ...]
    logits: Held
    vocab: int
    finished: tuple[Finished, ...] = ()


def compile_step(deployment: Deployment, batch: Batch, capacity: int | None = None, name: str = "") -> Compiled:
    """Return the program of one step.

    capacity: tokens of a sequence that the KV cache holds, context and new ones included (by default what the batch
    needs). Raises UnsupportedError for what cannot be compiled, by name, and DoesNotFitError for what has no room.
    """
    _check(deployment, batch)
    group = batch.groups[0]
    graph = build(deployment.model, deployment.formats)
    return compile_graph(graph, deployment, group.count, group.new_tokens, group.context, capacity, name, exact=True)


def compile_graph(
    graph: Graph, d: Deployment, requests: int, new: int, context: int, capacity: int | None = None, name: str = "",
    reach: int = 0,
    exact: bool = False,
) -> Compiled:  # fmt: skip
    """Return the program of a whole graph (not partitioned) for `requests` sequences of `new` tokens after `context`.

    reach: the most new tokens of any step that shares the KV cache, which sets how much a window keeps. exact: the
    sequences have just this context, not up to so much.
    """
    t = target(d.chip)
    chips = d.parallelism.tp
    need = max(capacity or 0, context + new)
    step = key_step(t, need)
    wide = {d.formats.attention, d.formats.ffn, d.formats.activations}
    carry = "fp32" if "fp32" in wide else "bf16"
    length = -(-need // step) * step
    if carry == "fp32":
        graph = widened(graph)
    c = Context(
        Emitter(t, chips), t, chips, requests, new, context, length, carry, key_step=step, longest=length,
        reach=max(reach, new),
        exact=exact,
    )  # fmt: skip
    for pattern in patterns(graph.order):
        _pattern(c, graph, pattern)
    counts = {b: [v.layer for v in graph.order if v.block == b] for b in {v.block for v in graph.order}}
    logits = c.get("logits")
    program = place(c, name or f"{d.model.name}-{requests}x{new}".replace("/", "-"), d.chip.id)
    lengths = sorted({int(t.name.partition(".")[2]) for t in program.tables if t.name.startswith("slots.")})
    return Compiled(
        program, t, tuple(c.constants.values()), {b: tuple(v) for b, v in counts.items()}, requests, new, length,
        c.rows, c.last_rows, tuple(lengths), logits, d.model.vocab,
        tuple(Finished(*found) for found in c.finished),
    )  # fmt: skip


def widened(graph: Graph) -> Graph:
    """Return a graph with everything that is in bf16 in fp32: parts that deployments never quantise go along."""

    def of(op: Op) -> Op:
        fmt = "fp32" if op.weight_format == "bf16" else op.weight_format
        reads = tuple(replace(s, format="fp32") if s.format == "bf16" else s for s in op.reads)
        return replace(op, weight_format=fmt, reads=reads)

    return replace(graph, blocks=tuple(replace(b, ops=tuple(map(of, b.ops))) for b in graph.blocks))


def _check(d: Deployment, batch: Batch) -> None:
    groups = [g for g in batch.groups if g.count and g.new_tokens]
    if len(groups) != 1 or len(batch.groups) != 1:
        raise UnsupportedError(
            f"A program is made for sequences with equal new tokens and context, not for {len(batch.groups)} groups of"
            " them: give one group, or ask for the modelled fidelity."
        )
    p = d.parallelism
    for word, value in (("pp", p.pp), ("dp", p.dp), ("cp", p.cp)):
        if value > 1:
            raise UnsupportedError(
                f"Programs are made for tensor parallelism; {word}={value} is not compiled: use {word}=1."
            )
    if d.model.arithmetic is None:
        raise UnsupportedError(
            f"{d.model.name} can be predicted and not executed: its configuration does not say all of its arithmetic,"
            " or a layer of it is not compiled."
        )


def key_step(t: Target, length: int) -> int:
    """Return how many keys are a tile of attention: columns of the tensor unit, more where the scratchpad is large."""
    cols = t.chip.tile[1]
    step = max(cols, 32)
    while step * 2 <= min(512, t.memory["sram"] // 16384) and step < length:
        step *= 2
    return step


@dataclass(frozen=True)
class Pattern:
    """Visits that repeat `count` times, with how many visits of each block came before."""

    visits: tuple[Visit, ...]
    count: int
    before: tuple[tuple[int, int], ...]


def patterns(order: Sequence[Visit]) -> list[Pattern]:
    """Return the visits of a graph as repeated patterns: the layers' own repetition found, the rest once."""
    out: list[Pattern] = []
    at = 0
    seen: dict[int, int] = {}
    while at < len(order):
        period, count = _repetition([v.block for v in order[at:]])
        visits = tuple(order[at : at + period])
        out.append(Pattern(visits, count, tuple(seen.items())))
        for v in order[at : at + period * count]:
            seen[v.block] = seen.get(v.block, 0) + 1
        at += period * count
    return out


def _repetition(blocks: Sequence[int]) -> tuple[int, int]:
    """The period and count of the longest repetition that starts here; (1, 1) for none."""
    best = (1, 1)
    for period in range(1, min(MOST_PERIOD, len(blocks)) + 1):
        count = 1
        while blocks[count * period : (count + 1) * period] == blocks[:period]:
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best


def _pattern(c: Context, graph: Graph, pattern: Pattern) -> None:
    totals: dict[int, int] = {}
    for v in graph.order:
        totals[v.block] = totals.get(v.block, 0) + 1
    before = dict(pattern.before)
    each = {b: sum(v.block == b for v in pattern.visits) for b in {v.block for v in pattern.visits}}
    inside: dict[int, int] = {}
    c.emitter.hear()
    with c.emitter.loop("layer", pattern.count):
        for v in pattern.visits:
            first = before.get(v.block, 0) + inside.get(v.block, 0)
            inside[v.block] = inside.get(v.block, 0) + 1
            step = each[v.block] if pattern.count > 1 else 0
            c.visits = Visits(v.block, totals[v.block], first, step)
            block(c, graph.blocks[v.block])
        c.emitter.hear()


def block(c: Context, found: Block) -> None:
    """Emit the phases of a block."""
    needs(c, found)
    stream: dict[str, str] = dict(zip(found.outputs, STREAM, strict=False)) if len(found.outputs) == 2 else {}
    c.boundary = stream
    incoming = [c.values[name] for name in c.outgoing]
    c.values = dict(zip(found.inputs, incoming, strict=True)) | {
        m.IDS: Held(m.IDS, 1),
        m.POSITIONS: Held(m.POSITIONS, 1),
    }
    ops = list(found.ops)
    waiting: list[str] = []
    while ops:
        op = ops.pop(0)
        follower = ops[0] if ops and fuses(op, ops[0], found) else None
        if follower is not None:
            ops.pop(0)
        if ops and follows(op, ops[0], found):
            c.norm = op
        else:
            emit(c, op, follower)
        waiting += (follower or op).outputs
        there = tuple((name, c.values[name]) for name in waiting if name in c.values)
        waiting = [name for name in waiting if name not in c.values]
        c.finished.append((c.emitter.number, c.visits, there))
    c.outgoing = found.outputs


def fuses(op: Op, after: Op, found: Block) -> bool:
    """Whether an operation is done where the sums of the multiply before it are: it alone reads them."""
    if not isinstance(op.meaning, m.Linear) or not isinstance(after.meaning, m.Gate | m.Logits) or len(op.outputs) != 1:
        return False
    readers = [o for o in found.ops if op.outputs[0] in o.inputs]
    return readers == [after]


def needs(c: Context, found: Block) -> None:
    """Find in which formats the values of a block are read, and which are read whole, or by all chips."""
    c.wants, c.whole, c.replicated = {}, set(), set()
    c.summed, c.partial = split_sums(found) if c.reduces else (set(), set())

    def want(names: Sequence[str], fmt: str, whole: bool) -> None:
        for name in names:
            c.wants.setdefault(name, set()).add(fmt)
            if whole:
                c.whole.add(name)

    for op in found.ops:
        meaning = op.meaning
        if isinstance(meaning, m.Linear | m.Experts):
            _, _, operand = c.mode(op.weight_format, op.reads[0].format)
            split = isinstance(meaning, m.Linear) and op.outputs[0] in c.summed
            want(op.inputs[:1], operand, not split)
            want(op.inputs[1:], "fp32" if split or isinstance(meaning, m.Experts) else c.carry, False)
        elif isinstance(meaning, m.Route):
            want(op.inputs, "fp32", False)
            c.replicated.update(op.inputs)
        elif isinstance(meaning, m.AddNorm | m.Norm):
            want(op.inputs, c.carry, True)
        elif isinstance(meaning, m.LatentCacheWrite):
            want(op.inputs, c.carry, False)
            c.replicated.update(op.inputs)
        elif isinstance(meaning, m.Gate | m.Logits):
            want(op.outputs if isinstance(meaning, m.Logits) else (), "fp32", True)
        else:
            want(op.inputs, c.carry, False)
    want(found.outputs if len(found.outputs) == 2 else (), c.carry, True)
    for op in found.ops:
        if isinstance(op.meaning, m.ExpandedAttend):  # programs absorb every sequence: its output is the absorbed one
            absorbed, (attended,) = op.inputs[2], op.outputs
            c.wants[absorbed] = set(c.wants.get(attended, ()))
            c.whole.update({absorbed} if attended in c.whole else ())


def split_sums(found: Block) -> tuple[set[str], set[str]]:
    """Return the values of a block that are sums over an axis which chips share out, and those of them that only such
    a sum takes in: they stay partial.
    """
    ops = [
        op
        for op in found.ops
        if isinstance(op.meaning, m.Experts) or (isinstance(op.meaning, m.Linear) and set(op.contract) & set(DIVIDED))
    ]
    summed = {op.outputs[0] for op in ops}
    taken = {name for op in ops if isinstance(op.meaning, m.Linear) for name in op.inputs[1:]}
    for op in found.ops:
        if op not in ops:
            taken -= set(op.inputs)
    return summed, summed & taken - set(found.outputs)


def emit(c: Context, op: Op, follower: Op | None) -> None:
    """Emit the phases of one operation. Raises UnsupportedError for one that has no meaning or no phase."""
    meaning = op.meaning
    if isinstance(meaning, m.Linear):
        linear(c, op, meaning, follower)
        return
    function = PHASES.get(type(meaning)) or LATENT.get(type(meaning))
    if function is None:
        raise UnsupportedError(f"{op.name!r} cannot be compiled for {c.target.chip.id}: it has no program.")
    function(c, op, meaning)


def _later(c: Context, op: Op, a: m.RotaryCacheWrite) -> None:
    """The cache write waits for the attention, which says how much of the context its window keeps."""
    c.rotary = (op, a)


def _attention(c: Context, op: Op, a: m.Attend) -> None:
    """Rotation and cache write, then attention over the cache."""
    shape = op.detail
    if not isinstance(shape, AttentionShape) or c.rotary is None:
        raise UnsupportedError(f"{op.name!r} has no cache to attend to: this graph cannot be compiled.")
    rotary, write = c.rotary
    k, v = elementwise.rotate_and_write(c, rotary, write, shape)
    kv_heads = c.get(rotary.inputs[1]).width // shape.qk_dim
    queries = c.get(op.inputs[0])
    group = queries.width // shape.qk_dim // kv_heads
    found = Heads(kv_heads, group, shape.qk_dim, shape.v_dim, k, v, a.scale, a.softcap, a.window, a.chunk, a.sinks)
    attend(c, op, queries, found, op.outputs[0])


PHASES: dict[type, Callable[[Context, Op, Any], None]] = {
    m.Embed: elementwise.embed,
    m.AddNorm: elementwise.add_norm,
    m.Norm: elementwise.norm,
    m.Gate: elementwise.gate,
    m.RotaryCacheWrite: _later,
    m.JointNormCacheWrite: _later,
    m.Attend: _attention,
    m.Route: route,
    m.Experts: experts,
}
"""Phases by meaning; latent attention has its own table, multiplies take what follows them along."""
