"""Graph -> values: the plain NumPy definition of every meaning, in fp32. What programs are compared with.

`run` walks through the blocks and looks every meaning up in one table. All ranks of a tensor-parallel group run
together, operation by operation, so that a collective is a function of all their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.graph import meaning as m
from taygeta.graph.elementwise import evaluate
from taygeta.graph.functions import gate, norm, rotate, route, softmax_attention
from taygeta.graph.ops import Block, ExpertShape, Graph, Op
from taygeta.graph.step import Cache, Step
from taygeta.spec.arithmetic import NormRule

Weights = Mapping[tuple[int | None, str], np.ndarray]
"""Parameters by layer (None: outside of layers) and name, with the axes of the graph's Weight of that name."""

Observe = Callable[[int | None, Block, Op, Mapping[str, list[np.ndarray]]], None]
"""Called after an operation of a block of a layer with its outputs by name, one array a rank."""


@dataclass(frozen=True)
class Place:
    """Where an operation runs: which of how many ranks, in which layer, with which parameters, on which step."""

    rank: int
    layer: int | None
    weights: Weights
    step: Step
    cache: Cache
    ranks: int = 1

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a parameter in fp32."""
        return np.asarray(self.weights[self.layer, name], dtype=np.float32)

    @property
    def number(self) -> int:
        """The layer of an operation that works on the cache."""
        if self.layer is None:
            raise InputError("An operation on the cache stands outside of the layers.")
        return self.layer


def run(
    graph: Graph | Sequence[Graph],
    weights: Weights | Sequence[Weights],
    new: Mapping[int, Sequence[int]],
    cache: Cache,
    observe: Observe | None = None,
) -> np.ndarray:
    """Return the logits (sequences, vocab) that follow the last of the new tokens of each sequence.

    graph: of one rank, or the stages of a pipeline in order. weights: of the model, or one mapping for each rank of
    the tensor-parallel group (taygeta.graph.shards). new: the ids that each sequence adds to its cached tokens;
    prefill, chunks of a prompt and decode differ in their number only. The cache is extended. observe: called with
    the layer and every operation's outputs of each rank as they are made. Raises InputError,
    and UnsupportedError for a graph that can be predicted and not executed.
    """
    ranks = [weights] if isinstance(weights, Mapping) else list(weights)
    step = Step.of(new, cache)
    tokens: dict[str, list[np.ndarray]] = {
        m.IDS: [step.ids] * len(ranks), m.POSITIONS: [step.positions] * len(ranks)
    }  # fmt: skip
    stream: list[list[np.ndarray]] = []
    for stage in [graph] if isinstance(graph, Graph) else graph:
        if not stage.order:
            raise UnsupportedError("This graph does not say in which order its layers run: it cannot be executed.")
        for visit in stage.order:
            block = stage.blocks[visit.block]
            values = tokens | dict(zip(block.inputs, stream, strict=True))
            places = [Place(r, visit.layer, w, step, cache, len(ranks)) for r, w in enumerate(ranks)]
            _run_block(block, values, places, observe)
            stream = [values[name] for name in block.outputs]
    cache.advance(step)
    return stream[0][0]


def _run_block(
    block: Block, values: dict[str, list[np.ndarray]], places: Sequence[Place], observe: Observe | None
) -> None:
    """Run the operations of a block; `values` holds one array a rank for every name, and grows."""
    for op in block.ops:
        if op.meaning is None:
            raise UnsupportedError(
                f"{op.name!r} of {block.name!r} has no meaning here: this graph can be predicted and not executed."
            )
        inputs = [values[name] for name in op.inputs]
        collective = COLLECTIVES.get(type(op.meaning))
        if collective is not None:
            found = collective(op.meaning, *inputs)
        else:
            function = FUNCTIONS[type(op.meaning)]
            each = [function(op.meaning, op, place, *(v[place.rank] for v in inputs)) for place in places]
            found = [list(out) for out in zip(*each, strict=True)]
        values.update(zip(op.outputs, found, strict=True))
        if observe is not None:
            observe(places[0].layer, block, op, dict(zip(op.outputs, found, strict=True)))


def _embed(a: m.Embed, op: Op, at: Place, ids: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
    wrong = ids[(ids < 0) | (ids >= a.vocab)]
    if len(wrong):
        raise InputError(f"Token {wrong[0]} is not in the vocabulary of {a.vocab} tokens.")
    table = at[a.table]
    mine = ids - at.rank * len(table)
    held = (mine >= 0) & (mine < len(table))
    delta = np.where(held[:, None], table[np.where(held, mine, 0)], np.float32(0)) * np.float32(a.scale)
    if a.positions:
        learned = at[a.positions]
        if positions.max() >= len(learned):
            raise InputError(f"Position {positions.max()} exceeds the {len(learned)} learned positions of the model.")
        delta = delta + learned[positions]
    return np.zeros_like(delta), delta


def _add_norm(a: m.AddNorm, op: Op, at: Place, x: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, ...]:
    x = x + delta
    if a.last:
        x = x[at.step.last_rows()]
    return x, norm(x, at[a.weight], a.rule)


def _norm(a: m.Norm, op: Op, at: Place, x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (norm(x, at[a.weight], a.rule),)


def _linear(a: m.Linear, op: Op, at: Place, x: np.ndarray, *added: np.ndarray) -> tuple[np.ndarray, ...]:
    rows, inner = len(x), len(op.contract)
    out: list[np.ndarray] = []
    for name in a.weights:
        w = at[name]
        kept = w.shape[inner:]
        k = int(np.prod(w.shape[:inner]))
        out.append((x.reshape(rows, k) @ w.reshape(k, -1)).reshape(rows, *kept))
    if a.bias:
        out[0] = out[0] + at[a.bias]
    for other in added:
        out[0] = out[0] + other
    return tuple(out)


def _rotary_cache_write(
    a: m.RotaryCacheWrite, op: Op, at: Place, q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, ...]:
    if a.biases:
        q, k, v = (x + at[name] for x, name in zip((q, k, v), a.biases, strict=True))
    if a.rule is not None:
        normed = _joint_norm if isinstance(a, m.JointNormCacheWrite) else norm
        q, k = (normed(x, at[name], a.rule) for x, name in zip((q, k), a.norms, strict=True))
    if a.rope is not None:
        q, k = rotate(q, positions, a.rope), rotate(k, positions, a.rope)
    for part in at.step.parts:
        at.cache.append(at.rank, at.number, part, k[part.rows], v[part.rows])
    return (q,)


def _joint_cache_write(
    a: m.JointNormCacheWrite, op: Op, at: Place, q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, ...]:
    if at.ranks > 1:
        raise UnsupportedError(
            f"{op.name!r} normalises over all heads together, of which each of {at.ranks} ranks has a share: this"
            " attention is executed with tp=1."
        )
    return _rotary_cache_write(a, op, at, q, k, v, positions)


def _joint_norm(x: np.ndarray, weight: np.ndarray, rule: NormRule) -> np.ndarray:
    """A norm over the heads of a row together; weight: (heads, head_dim)."""
    return norm(x.reshape(len(x), -1), weight.reshape(-1), rule).reshape(x.shape)


def _attend(a: m.Attend, op: Op, at: Place, q: np.ndarray) -> tuple[np.ndarray, ...]:
    out: list[np.ndarray] = []
    sinks = at[a.sinks] if a.sinks else None
    for part in at.step.parts:
        keys, values = at.cache.get(at.rank, at.number, part.sequence)
        out.append(softmax_attention(q[part.rows], keys, values, a.scale, a.softcap, a.window, a.chunk, sinks))
    return (np.concatenate(out),)


def _latent_cache_write(a: m.LatentCacheWrite, op: Op, at: Place, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    *queries, latent, positions = inputs
    rank = latent.shape[-1] - a.rope.dim
    normed = norm(latent[:, :rank], at[a.kv_norm], a.rule)
    stored = np.concatenate((normed, rotate(latent[:, rank:], positions, a.rope)), axis=-1)
    for part in at.step.parts:
        at.cache.append(at.rank, at.number, part, stored[part.rows])
    return tuple(norm(q, at[a.q_norm], a.rule) for q in queries)


def _absorb_keys(a: m.AbsorbKeys, op: Op, at: Place, q: np.ndarray) -> tuple[np.ndarray, ...]:
    w = at[a.weight]  # (heads, nope_dim, kv_rank)
    rows = _rows(at, a.expand_from, absorbed=True)
    return (np.einsum("thn,hnr->thr", q[rows][..., : w.shape[1]], w),)


def _latent_attend(
    a: m.LatentAttend, op: Op, at: Place, latent_q: np.ndarray, q: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, ...]:
    rank = latent_q.shape[-1]
    out = [latent_q[:0]]
    start = 0
    for part in at.step.lowered(a.expand_from, absorbed=True):
        turned = rotate(q[part.rows][..., -a.rope.dim :], positions[part.rows], a.rope)
        mine = np.concatenate((latent_q[start : start + part.new], turned), axis=-1)
        (cached,) = at.cache.get(at.rank, at.number, part.sequence)
        keys = cached[:, None, :]
        out.append(softmax_attention(mine, keys, keys[..., :rank], a.scale))
        start += part.new
    return (np.concatenate(out),)


def _absorb_values(a: m.AbsorbValues, op: Op, at: Place, values: np.ndarray) -> tuple[np.ndarray, ...]:
    return (np.einsum("thr,hrv->thv", values, at[a.weight]),)


def _expand_latents(a: m.ExpandLatents, op: Op, at: Place) -> tuple[np.ndarray, ...]:
    keys, values = at[a.keys], at[a.values]
    parts = at.step.lowered(a.expand_from, absorbed=False)
    latents = [at.cache.get(at.rank, at.number, p.sequence)[0][:, : keys.shape[2]] for p in parts]
    cached = np.concatenate([np.zeros((0, keys.shape[2]), np.float32), *latents])
    nope = np.einsum("tr,hnr->thn", cached, keys)
    return (np.concatenate((nope, np.einsum("tr,hrv->thv", cached, values)), axis=-1),)


def _expanded_attend(
    a: m.ExpandedAttend, op: Op, at: Place, q: np.ndarray, expanded: np.ndarray, absorbed: np.ndarray,
    positions: np.ndarray,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    out = np.zeros((*q.shape[:2], expanded.shape[-1] - a.nope_dim), np.float32)
    out[_rows(at, a.expand_from, absorbed=True)] = absorbed
    start = 0
    for part in at.step.lowered(a.expand_from, absorbed=False):
        mine, size = q[part.rows], part.context + part.new
        turned = rotate(mine[..., -a.rope.dim :], positions[part.rows], a.rope)
        (cached,) = at.cache.get(at.rank, at.number, part.sequence)
        own = expanded[start : start + size]
        shared = np.broadcast_to(cached[:, None, -a.rope.dim :], (size, q.shape[1], a.rope.dim))
        keys = np.concatenate((own[..., : a.nope_dim], shared), axis=-1)
        queries = np.concatenate((mine[..., : a.nope_dim], turned), axis=-1)
        out[part.rows] = softmax_attention(queries, keys, own[..., a.nope_dim :], a.scale)
        start += size
    return (out,)


def _rows(at: Place, expand_from: int, absorbed: bool) -> np.ndarray:
    """The rows of the sequences with one lowering of latent attention."""
    parts = at.step.lowered(expand_from, absorbed)
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(p.start, p.start + p.new) for p in parts)])


def _gate(a: m.Gate, op: Op, at: Place, x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (gate(x + at[a.bias] if a.bias else x, a.rule),)


def _elementwise(a: m.Elementwise, op: Op, at: Place, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    return evaluate(a, inputs, {name: at[name] for name in a.parameters})


def _route(a: m.Route, op: Op, at: Place, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return route(a, logits, at[a.bias] if a.bias else None, at[a.correction] if a.correction else None)


def _experts(
    a: m.Experts, op: Op, at: Place, h: np.ndarray, weights: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, ...]:
    up, down = at.weights[at.layer, a.up], at.weights[at.layer, a.down]
    split = op.detail.tp if isinstance(op.detail, ExpertShape) else 1  # ranks that share each expert
    first = at.rank // split * len(up)
    out = np.zeros((len(h), down.shape[2]), np.float32)
    for expert in range(len(up)):
        rows, places = np.nonzero(chosen == first + expert)
        if not len(rows):
            continue
        w = np.asarray(up[expert], np.float32)
        inner = (h[rows] @ w.reshape(len(w), -1)).reshape(len(rows), *w.shape[1:])
        if a.up_bias:
            inner = inner + at[a.up_bias][expert]
        y = gate(inner, a.rule) @ np.asarray(down[expert], np.float32)
        if a.down_bias:
            y = y + at[a.down_bias][expert]
        out[rows] += y * weights[rows, places, None]
    return (out,)


def _logits(a: m.Logits, op: Op, at: Place, x: np.ndarray) -> tuple[np.ndarray, ...]:
    if a.bias:
        x = x + at[a.bias]
    return (np.float32(a.softcap) * np.tanh(x / np.float32(a.softcap)) if a.softcap else x,)


def _send(a: m.Send, op: Op, at: Place, x: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.zeros_like(x), x + delta


def _all_reduce(a: m.AllReduce, shares: list[np.ndarray]) -> list[list[np.ndarray]]:
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    return [[total] * len(shares)]


def _all_gather(a: m.AllGather, shares: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [[np.concatenate(shares, axis=-1)[..., : a.length]] * len(shares)]


FUNCTIONS: dict[type, Callable[..., tuple[np.ndarray, ...]]] = {
    m.Embed: _embed,
    m.AddNorm: _add_norm,
    m.Norm: _norm,
    m.Linear: _linear,
    m.RotaryCacheWrite: _rotary_cache_write,
    m.JointNormCacheWrite: _joint_cache_write,
    m.Attend: _attend,
    m.LatentCacheWrite: _latent_cache_write,
    m.AbsorbKeys: _absorb_keys,
    m.LatentAttend: _latent_attend,
    m.AbsorbValues: _absorb_values,
    m.ExpandLatents: _expand_latents,
    m.ExpandedAttend: _expanded_attend,
    m.Gate: _gate,
    m.Elementwise: _elementwise,
    m.Route: _route,
    m.Experts: _experts,
    m.Logits: _logits,
    m.Send: _send,
}
"""What every meaning computes on one rank: (meaning, operation, place, *inputs) -> outputs."""

COLLECTIVES: dict[type, Callable[..., list[list[np.ndarray]]]] = {
    m.AllReduce: _all_reduce,
    m.AllGather: _all_gather,
}
"""What collectives compute: (meaning, *inputs, each one array a rank) -> outputs, each one array a rank."""
