"""Graph -> rows of numbers: everything about an operation that the batch does not change."""

from __future__ import annotations

import numpy as np

from taygeta.base.formats import format_of
from taygeta.cost import step as s
from taygeta.cost.matmul import MatmulConstants
from taygeta.cost.silicon import constants, core_port, experts_constants, experts_library
from taygeta.cost.vector import QuantiseConstants
from taygeta.graph.ops import BATCH_AXES, AttentionShape, ExpertShape, Graph, Op, ScanShape
from taygeta.spec.deployment import Deployment
from taygeta.spec.fields import BLOCK
from taygeta.spec.model import MoeFfn

_COLLECTIVES = {
    "all_reduce": s.ALL_REDUCE,
    "all_gather": s.ALL_GATHER,
    "reduce_scatter": s.REDUCE_SCATTER,
    "all_to_all": s.ALL_TO_ALL,
    "send": s.SEND,
}
_LOWERINGS = {"plain": s.PLAIN, "absorbed": s.ABSORBED, "expanded": s.EXPANDED}
SHARED = "shared experts"  # part of the operations of shared experts
_BLOCKS = ("fp8_block",)  # activations whose scales are of blocks of a row
_NORMS = ("norm", "final norm")  # what follows an all-reduce and adds the residual
# Vector operations that engines with fused epilogues run inside their neighbours' kernels.
_EPILOGUES = ("rotary and cache write", "latent norms, rotary and cache write", "output gate", "gated norm")


def lower(graph: Graph, d: Deployment) -> np.ndarray:
    """Return one row for each operation of the graph, in order."""
    table = np.zeros((sum(1 for _ in graph.ops()), s.WIDTH))
    for row, (op, repeats), before in zip(table, graph.ops(), _before(graph), strict=True):
        axis = "routed" if op.kind == "experts" else op.rows
        if op.part == SHARED and fused_shared(d):
            kind, parameters = s.VECTOR, (0.0,) * 6  # the experts' kernels compute it
        elif d.engine.fused_all_reduce and op.name in _NORMS and before == "all_reduce":
            kind, parameters = s.VECTOR, _fused_norm(op)
        else:
            kind, parameters = _parameters(op, d)
            row[s.BESIDE] = d.engine.shared_beside if op.part == SHARED else 0.0
        row[:3] = kind, BATCH_AXES.index(axis), repeats
        row[s.FIRST : s.FIRST + len(parameters)] = parameters
    return table


def fused_shared(d: Deployment) -> int:
    """Return how many shared experts the kernels of routed ones compute as more of these; 0 where they run apart.

    Fused are shared experts of the format and width of the routed ones, without a gate of their own, where every rank
    holds a share of every expert.
    """
    ffn = next((layer.ffn for layer in d.model.layers if isinstance(layer.ffn, MoeFfn)), None)
    if ffn is None or not ffn.shared_d_ff or ffn.shared_d_ff % ffn.d_ff or ffn.shared_gate or ffn.latent:
        return 0
    library = experts_library(d.chip, d.engine, d.formats.experts).removesuffix(BLOCK)
    fits = d.formats.shared == d.formats.experts and d.parallelism.ep == 1 and d.parallelism.dp == 1
    return ffn.shared_d_ff // ffn.d_ff if fits and library and library in d.engine.shared_fused.split() else 0


def _before(graph: Graph) -> list[str]:
    """Return the kind of the operation that runs before each one: before the first of a repeated block, its last."""
    kinds: list[str] = []
    last = ""
    for block in graph.blocks:
        if block.repeats > 1:
            last = block.ops[-1].kind
        for op in block.ops:
            kinds.append(last)
            last = op.kind
    return kinds


def peak_mode(op: Op, d: Deployment) -> str:
    """Return the compute mode of an operation of the tensor unit, "" for others."""
    if op.kind == "matmul":
        return d.chip.mode(op.weight_format, op.reads[0].format)
    if op.kind == "experts":
        return d.chip.mode(op.weight_format, op.reads[0].format)
    if isinstance(op.detail, AttentionShape):
        return _attention_mode(op.detail, d)
    return d.chip.mode("bf16", "bf16") if op.kind == "scan" else ""


def _attention_mode(shape: AttentionShape, d: Deployment) -> str:
    """Return the compute mode of attention: the scores of an indexer take queries and keys as they are cached."""
    fmt = shape.kv_format if shape.scores_only else "bf16"
    return d.chip.mode(fmt, fmt)


def _parameters(op: Op, d: Deployment) -> tuple[float, tuple[float, ...]]:
    if op.kind == "matmul":
        return s.MATMUL, _matmul(op, d)
    if op.kind == "vector":
        return s.VECTOR, _vector(op, d)
    if isinstance(op.detail, AttentionShape):
        return s.ATTENTION, _attention(op.detail, d)
    if isinstance(op.detail, ScanShape):
        z = op.detail
        delta = 1.0 if z.delta_rule else 0.0
        sizes = (z.heads, z.groups, z.key_dim, z.value_dim, z.conv_channels, z.conv_kernel)
        return s.SCAN, (*sizes, delta, d.chip.peaks[peak_mode(op, d)])
    if isinstance(op.detail, ExpertShape):
        return s.EXPERTS, _experts(op, op.detail, d)
    domain = d.chip.link.domain if d.chip.link else 1
    inside = min(op.ranks, max(1, domain // op.stride))
    return s.COLLECTIVE, (_COLLECTIVES[op.kind], op.reads[0].row_bytes * op.factor, inside, op.ranks)


def _matmul(op: Op, d: Deployment) -> tuple[float, ...]:
    weights, activations = format_of(op.weight_format), format_of(op.reads[0].format)
    chip, mode = d.chip, peak_mode(op, d)
    output = format_of(op.writes[0].format).bytes_per_element
    fmt = _kernel_format(op, d)
    c = constants(MatmulConstants, "matmul", chip, fmt, core_port=core_port(chip, "matmul."))
    q = constants(QuantiseConstants, "quantise", chip, activations.name)
    launches = d.engine.block_launches if activations.name in _BLOCKS else d.engine.quantise_launches
    # Scales that are known need no pass of their own: what is not fused into the operation before is a plain cast.
    share = 1.0 if activations.quantise_passes > 0 else min(1.0, launches) * (activations.bits < 16)
    return (
        op.n(), op.k(), op.batched(), weights.bytes_per_element, activations.bytes_per_element, output,
        chip.peaks[mode], c.sustained, c.step_seconds, c.split_seconds, share,
        q.passes, q.core_bytes, launches,
    )  # fmt: skip


def _kernel_format(op: Op, d: Deployment) -> str:
    """The format whose kernel multiplies: that of the activations where the tensor unit computes in it, else bf16."""
    activations = op.reads[0].format
    return activations if d.chip.computes(activations) else "bf16"


def sustained(d: Deployment, fmt: str) -> float:
    """Share of peak that large multiplies of a format sustain: the format's own constant where the chip has one."""
    constants_ = d.chip.constants
    return constants_.get(f"matmul.{fmt}.sustained", constants_["matmul.sustained"])


def _vector(op: Op, d: Deployment) -> tuple[float, ...]:
    reads, writes = sum(x.row_bytes for x in op.reads), sum(x.row_bytes for x in op.writes)
    gather = op.name == "embedding"  # reads rows of a table, not the table
    fixed = 0.0 if gather else 2.0 * op.weight_elements()
    flop = op.flop * sum(x.row_elements for x in op.reads)
    rides = d.engine.fused_epilogues and op.name in _EPILOGUES
    stored = sum(x.row_bytes for x in op.writes) if "cache write" in op.name else 0.0
    return reads, writes, fixed, flop, 0.0 if rides else 1.0, reads if gather else stored


def _fused_norm(op: Op) -> tuple[float, ...]:
    """A norm inside the kernel of the all-reduce before it: the sum comes in registers and its norm goes out as the
    all-reduce's result, so that the residual is all that the norm adds.

    The published fusion (TensorRT-LLM's AllReduceFusionOp.RESIDUAL_RMS_NORM; FlashInfer's allreduce_fusion).
    """
    residual, stored = op.reads[1].row_bytes, op.writes[1].row_bytes
    flop = op.flop * sum(x.row_elements for x in op.reads)
    return residual, stored, 2.0 * op.weight_elements(), flop, 0.0, 0.0


def _experts(op: Op, shape: ExpertShape, d: Deployment) -> tuple[float, ...]:
    weights, activations = format_of(op.weight_format), format_of(op.reads[0].format)
    mode = peak_mode(op, d)
    tuned = experts_constants(d.chip, d.engine, d.formats.experts)
    taken = weights.bits >= 16 or d.chip.computes(weights.name)  # by the tensor unit as they are
    return (
        shape.experts, shape.top_k, shape.width, -(-shape.d_ff // shape.tp), 2.0 if shape.gated else 1.0, shape.ep,
        weights.bytes_per_element, activations.bytes_per_element, d.chip.peaks[mode],
        min(tuned.tensor_efficiency, sustained(d, _kernel_format(op, d))), 0.0 if taken else tuned.unpack,
        d.skew, fused_shared(d),
    )  # fmt: skip


def _attention(shape: AttentionShape, d: Deployment) -> tuple[float, ...]:
    kv = format_of(shape.kv_format).bytes_per_element
    return (
        shape.heads, shape.kv_heads, shape.qk_dim, shape.v_dim, kv, d.chip.peaks[_attention_mode(shape, d)],
        shape.window, shape.chunk, shape.top_k, _LOWERINGS[shape.lowering], shape.expand_from, shape.context_ranks,
        1.0 if shape.shared_kv else 0.0, *shape.rebuilt, 0.0 if d.chip.computes(shape.kv_format) else 1.0,
    )  # fmt: skip
