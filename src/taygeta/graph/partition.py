"""Graph -> the graph of one rank, with the collectives that follow.

An axis is divided over the ranks of its group; nothing else is decided here. A matrix multiply that contracts a
divided axis leaves a partial sum on every rank, and the sum over ranks (an all-reduce, or a reduce-scatter and an
all-gather under sequence parallelism) is placed where the next norm needs it, once for everything that is partial by
then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from taygeta.graph import flow
from taygeta.graph.build import build, rows
from taygeta.graph.meaning import AllGather, AllReduce, Send
from taygeta.graph.ops import AttentionShape, Block, ExpertShape, Graph, Op, ScanShape, Slab, Visit, shard
from taygeta.spec.deployment import Deployment, Parallelism
from taygeta.spec.mixers import Weight
from taygeta.spec.model import Model

# Axes that tensor parallelism divides. kv_heads and groups are repeated where there are more ranks than heads.
_DIVIDED: tuple[str, ...] = ("heads", "d_ff", "vocab", "value_heads", "conv_channels")
_REPEATED: tuple[str, ...] = ("kv_heads",)


def stages(deployment: Deployment) -> tuple[Graph, ...]:
    """Return the graph of one rank for each pipeline stage, in order."""
    model, p = deployment.model, deployment.parallelism
    cuts = [len(model.layers) * i // p.pp for i in range(p.pp + 1)]
    out: list[Graph] = []
    for i in range(p.pp):
        layers = model.layers[cuts[i] : cuts[i + 1]]
        whole = build(model, deployment.formats, layers, first=i == 0, last=i == p.pp - 1, start=cuts[i])
        out.append(partition(whole, p, model, send=i < p.pp - 1))
    return tuple(out)


def partition(graph: Graph, p: Parallelism, model: Model, send: bool = False) -> Graph:
    """Return the graph of one rank under `p`; `send` appends the transfer to the next pipeline stage."""
    blocks = [_block(block, p, model) for block in graph.blocks]
    if send:
        x = rows("tokens", ("d_model", model.d_model))
        hop = Op(
            "to the next stage",
            "send",
            "collectives",
            (x,),
            ranks=2,
            stride=p.stage_chips,
            inputs=flow.STREAM,
            outputs=("sent_x", "sent_delta"),
            meaning=Send(),
        )
        blocks.append(Block("pipeline", (hop,), inputs=hop.inputs, outputs=hop.outputs))
    return Graph(tuple(blocks), (*graph.order, Visit(len(blocks) - 1)) if send else graph.order)


def _block(block: Block, p: Parallelism, model: Model) -> Block:
    degrees = _degrees(p, block)
    out: list[Op] = []
    partial = 0  # ranks over which the sum is still open, counted from the tensor-parallel neighbours
    value = ""  # the value whose sum is open
    summed: dict[str, str] = {}
    for op in block.ops:
        if op.name in ("norm", "final norm") and partial > 1:
            out += _sum(p, model, partial, value, summed)
            partial = 0
        out += [_renamed(mine, summed) for mine in _ops_of(op, p, degrees)]
        if _open_sum(op, p, degrees) > 1:
            partial = max(partial, _open_sum(op, p, degrees))
            value = op.outputs[-1] if op.outputs else ""
    if partial > 1:
        out += _sum(p, model, partial, value, summed)
    given = tuple(summed.get(name, name) for name in block.outputs)
    if block.name == "head" and p.tp > 1:
        logits = rows("requests", ("vocab", -(-model.vocab // p.tp)))
        whole = tuple(f"whole_{name}" for name in given)
        gather = Op("gather logits", "all_gather", "collectives", (logits,), ranks=p.tp)
        out.append(replace(gather, inputs=given, outputs=whole, meaning=AllGather(model.vocab) if given else None))
        given = whole
    return replace(block, ops=tuple(out), outputs=given)


def _renamed(op: Op, summed: Mapping[str, str]) -> Op:
    """Return an operation that takes the sums over ranks where it took shares."""
    if not any(name in summed for name in op.inputs):
        return op
    return replace(op, inputs=tuple(summed.get(name, name) for name in op.inputs))


def _degrees(p: Parallelism, block: Block) -> dict[str, int]:
    degrees: dict[str, int] = dict.fromkeys(_DIVIDED, p.tp)
    for op in block.ops:
        for slab in op.reads:
            for name, size in slab.axes:
                if name in _REPEATED:
                    degrees[name] = min(p.tp, size)
    return degrees


def _open_sum(op: Op, p: Parallelism, degrees: Mapping[str, int]) -> int:
    """How many ranks hold a share of the sum after `op`; 1 when its output is whole."""
    if op.kind == "experts":
        return p.stage_chips if p.dp == 1 and p.cp == 1 else 1
    if op.name == "embedding":
        return p.tp
    if op.kind == "matmul" and any(degrees.get(name, 1) > 1 for name in op.contract):
        return p.tp
    return 1


def _sum(p: Parallelism, model: Model, ranks: int, value: str, summed: dict[str, str]) -> list[Op]:
    """Return the collectives that close the sum of `value`, and note its new name."""
    x = rows("tokens", ("d_model", model.d_model))
    if not p.sequence:
        op = Op("all-reduce", "all_reduce", "collectives", (x,), (x,), ranks=ranks)
        if not value:
            return [op]
        summed[value] = f"{value}_summed"
        return [replace(op, inputs=(value,), outputs=(summed[value],), meaning=AllReduce())]
    share = rows("tokens", ("d_model", -(-model.d_model // ranks)))
    return [
        Op("reduce-scatter", "reduce_scatter", "collectives", (x,), (share,), ranks=ranks),
        Op("all-gather", "all_gather", "collectives", (share,), (x,), ranks=ranks),
    ]


def _ops_of(op: Op, p: Parallelism, degrees: Mapping[str, int]) -> list[Op]:
    if isinstance(op.detail, ExpertShape):
        return _experts(op, op.detail, p)
    mine = _shard(op, degrees)
    if op.kind == "attention":
        return _attention(mine, p)
    if p.sequence and op.name in ("norm", "final norm") and p.tp > 1:
        return [_shard(op, {"d_model": p.tp}, weights=False)]
    return [mine]


def _shard(op: Op, degrees: Mapping[str, int], weights: bool = True) -> Op:
    def slab(s: Slab) -> Slab:
        return replace(s, axes=shard(s.axes, degrees))

    def own(w: Weight) -> Weight:
        return replace(w, axes=shard(w.axes, degrees)) if weights else w

    return replace(
        op,
        reads=tuple(map(slab, op.reads)),
        writes=tuple(map(slab, op.writes)),
        weights=tuple(map(own, op.weights)),
        extras=tuple(map(own, op.extras)),
        detail=_shard_detail(op, degrees),
    )


def _shard_detail(op: Op, degrees: Mapping[str, int]) -> AttentionShape | ScanShape | ExpertShape | None:
    d, tp = op.detail, degrees.get("heads", 1)
    if isinstance(d, AttentionShape) and op.name != "index scores":
        kv = -(-d.kv_heads // min(tp, d.kv_heads))
        return replace(d, heads=-(-d.heads // tp), kv_heads=kv)
    if isinstance(d, ScanShape):
        tp = degrees.get("value_heads", 1)
        return replace(
            d,
            heads=-(-d.heads // tp),
            groups=-(-d.groups // min(tp, d.groups)),
            conv_channels=-(-d.conv_channels // tp),
        )
    return d


def _attention(op: Op, p: Parallelism) -> list[Op]:
    """Attention over a share of the context: decode merges partial outputs, prefill gathers keys and values."""
    d = op.detail
    if p.cp == 1 or not isinstance(d, AttentionShape):
        return [op]
    mine = replace(op, detail=replace(d, context_ranks=p.cp))
    kv = rows(
        "gathered", ("kv_heads", d.kv_heads), ("qk_and_v", d.qk_dim + (0 if d.shared_kv else d.v_dim)), fmt=d.kv_format
    )
    out = rows("merged", ("heads", d.heads), ("v_and_sum", d.v_dim + 1))
    return [
        Op("gather context", "all_gather", "collectives", (kv,), ranks=p.cp, stride=p.tp),
        mine,
        Op("merge context", "all_gather", "collectives", (out,), ranks=p.cp, stride=p.tp),
    ]


def _experts(op: Op, shape: ExpertShape, p: Parallelism) -> list[Op]:
    """The experts of one rank. Where ranks hold different tokens they are sent to the experts and back, else they are
    there already.
    """
    degrees = {"experts": p.ep, "d_ff": p.moe_tp}
    mine = replace(
        op,
        weights=tuple(replace(w, axes=shard(w.axes, degrees)) for w in op.weights),
        detail=replace(shape, ep=p.ep, tp=p.moe_tp),
    )
    apart = p.cp * p.dp
    if apart == 1:
        return [mine]
    width = ("expert_width", shape.width)
    inside, outside = op.reads[0].format, "bf16"
    if p.moe_tp == 1:
        copies = expected_ranks(shape.top_k, p.ep) / p.tp  # each of the tp ranks sends its share of the tokens
        ways = [
            Op(name, "all_to_all", "collectives", (rows("tokens", width, fmt=fmt),), ranks=p.ep, factor=copies)
            for name, fmt in (("dispatch", inside), ("combine", outside))
        ]
    else:
        inner, whole = rows("tokens", width, fmt=inside), rows("routed", width, fmt=outside)
        ways = [
            Op("dispatch", "all_gather", "collectives", (inner,), ranks=p.stage_chips, factor=1.0 / p.tp),
            Op("combine", "reduce_scatter", "collectives", (whole,), ranks=p.stage_chips),
        ]
    back = Op(
        "gather tokens",
        "all_gather",
        "collectives",
        (rows("tokens", width, fmt=outside),),
        ranks=p.tp,
        factor=1.0 / p.tp,
    )
    return [ways[0], mine, ways[1], *([back] if p.tp > 1 else [])]


def expected_ranks(top_k: int, ep: int) -> float:
    """Return how many of `ep` ranks hold at least one of a token's `top_k` experts when routing is even: ep (1 - (1 -
    1/ep)^top_k).
    """
    return ep * (1.0 - (1.0 - 1.0 / ep) ** top_k)
