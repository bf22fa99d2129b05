"""The graph's nouns: operations on named axes.

An axis is (name, size). Batch axes have no size of their own; a step binds them:
    tokens      new tokens of this rank
    requests    sequences of this rank, one row each where logits are made
    absorbed    tokens whose latent attention runs in the latent space (decode)
    expanded    cached and new tokens whose keys and values are rebuilt (prefill of latent attention)
    routed      new tokens of every attention-DP rank together: what the experts of a stage see
    merged      tokens whose attention is computed in shares of the context and merged (decode, context parallelism)
    gathered    tokens of this rank whose keys and values every context rank needs (prefill under context parallelism)
FLOP, bytes, shards and the need for an all-reduce fall out of the axes. Sizes are elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from taygeta.base.formats import format_of
from taygeta.graph.meaning import Meaning
from taygeta.spec.mixers import Axes, Weight

BATCH_AXES = ("tokens", "requests", "absorbed", "expanded", "routed", "merged", "gathered")
STORED_ELSEWHERE = "again"  # the part of a weight that is read a second time, under other axes, and stored once
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")


@dataclass(frozen=True)
class Slab:
    """An activation: its axes, the batch axis first, and its format."""

    axes: Axes
    format: str

    @property
    def rows(self) -> str:
        """The batch axis."""
        return self.axes[0][0]

    @property
    def row_elements(self) -> int:
        """Elements of one row: the product of the axes that have a size."""
        return prod(size for name, size in self.axes if name not in BATCH_AXES)

    @property
    def row_bytes(self) -> float:
        """Bytes of one row."""
        return self.row_elements * format_of(self.format).bytes_per_element


@dataclass(frozen=True)
class AttentionShape:
    """One attention: queries of `heads`, keys and values of `kv_heads`, shared by the queries of a group.

    lowering: "plain" for attention over a KV cache, "absorbed" or "expanded" for latent attention, whose groups of a
    batch take one or the other. shared_kv: values are a part of the keys (latent attention, absorbed). top_k: cached
    tokens that a query attends to at most (0: all); where they are chosen, rebuilt: dimensions of the queries and
    values of a head whose keys are rebuilt, as short prompts do it. context_ranks: ranks over which the context is
    spread.
    """

    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    window: int = 0
    chunk: int = 0
    top_k: int = 0
    shared_kv: bool = False
    lowering: str = "plain"
    expand_from: int = 0
    context_ranks: int = 1
    kv_format: str = "bf16"
    rebuilt: tuple[int, int] = (0, 0)

    @property
    def scores_only(self) -> bool:
        """Whether this is an indexer: scores and no values."""
        return self.v_dim == 0


@dataclass(frozen=True)
class ScanShape:
    """One recurrent mixer: `heads` states of key_dim x value_dim, keys shared by `groups`, a convolution in front."""

    heads: int
    groups: int
    key_dim: int
    value_dim: int
    conv_channels: int
    conv_kernel: int
    delta_rule: bool


@dataclass(frozen=True)
class ExpertShape:
    """The routed experts of one rank: experts and d_ff are the model's, spread over ep and tp ranks; width is what
    goes in and out.
    """

    experts: int
    top_k: int
    width: int
    d_ff: int
    gated: bool
    ep: int = 1
    tp: int = 1


Detail = AttentionShape | ScanShape | ExpertShape


@dataclass(frozen=True)
class Op:
    """One operation of a rank.

    kind: "matmul", "attention", "scan", "experts", "vector" or a collective. part: the group of operations that
    reports sum over. matmul: contracts the axes `contract` of reads[0] with weights that share them; axes that are in
    both and not contracted are batched. extras are biases and the like that ride on it. vector: reads and writes,
    with `flop` arithmetic operations for each element read. collective: reads[0] is the input of one rank, times
    `factor`; `ranks` take part, `stride` chips apart.

    inputs, outputs: names of the values it takes and gives, each given once inside a block; meaning: what is computed
    (taygeta.graph.meaning), None where an operation can be predicted and not executed.
    """

    name: str
    kind: str
    part: str
    reads: tuple[Slab, ...]
    writes: tuple[Slab, ...] = ()
    weights: tuple[Weight, ...] = ()
    extras: tuple[Weight, ...] = ()
    weight_format: str = "bf16"
    contract: tuple[str, ...] = ()
    detail: Detail | None = None
    flop: float = 0.0
    factor: float = 1.0
    ranks: int = 1
    stride: int = 1
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    meaning: Meaning | None = None

    @property
    def rows(self) -> str:
        """The batch axis that sets how much work there is."""
        return self.reads[0].rows

    def k(self) -> int:
        """Length of the contraction of a matmul."""
        return prod(size for name, size in self.reads[0].axes if name in self.contract)

    def batched(self) -> int:
        """How many independent multiplies a matmul is: the product of axes that input and weights share and keep."""
        shared = {name for name, _ in self.weights[0].axes}
        return prod(s for name, s in self.reads[0].axes if name in shared and name not in self.contract)

    def n(self) -> int:
        """Width of the output of one of the multiplies, over all fused weights."""
        own = {name for name, _ in self.reads[0].axes}
        return sum(prod(size for name, size in w.axes if name not in own) for w in self.weights)

    def weight_elements(self) -> int:
        """Parameters that this operation stores."""
        return sum(w.elements for w in (*self.weights, *self.extras) if w.part != STORED_ELSEWHERE)

    def weight_bytes(self) -> float:
        """Bytes that its parameters take as stored; extras are bf16."""
        stored = sum(w.elements for w in self.weights if w.part != STORED_ELSEWHERE)
        return stored * format_of(self.weight_format).bytes_per_element + 2.0 * sum(w.elements for w in self.extras)

    def read_weight_bytes(self) -> float:
        """Bytes of weights that one run reads, whoever stores them."""
        return sum(w.elements for w in self.weights) * format_of(self.weight_format).bytes_per_element

    def matmul_flop(self, rows: float) -> float:
        """FLOP of a matmul over `rows` rows: 2 x rows x the product of every other axis."""
        return 2.0 * rows * self.batched() * self.k() * self.n()


@dataclass(frozen=True)
class Block:
    """Operations in order, repeated for `repeats` equal layers.

    inputs, outputs: the values that it takes from the block that ran before, in order, and gives to the next.
    """

    name: str
    ops: tuple[Op, ...]
    repeats: int = 1
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visit:
    """One run of a block: its index in the graph, and which layer of the model it is, None outside of layers."""

    block: int
    layer: int | None = None


@dataclass(frozen=True)
class Graph:
    """The operations of one step on one rank of one pipeline stage.

    order: the blocks as they run, each layer with its number in the model; costs do not depend on it.
    """

    blocks: tuple[Block, ...]
    order: tuple[Visit, ...] = ()

    def ops(self) -> Iterable[tuple[Op, int]]:
        """Yield every operation with how often it runs."""
        for block in self.blocks:
            for op in block.ops:
                yield op, block.repeats

    def weight_bytes(self) -> float:
        """Bytes of the weights that the rank holds."""
        return sum(op.weight_bytes() * repeats for op, repeats in self.ops())

    def weight_elements(self) -> int:
        """Parameters that the rank holds."""
        return sum(op.weight_elements() * repeats for op, repeats in self.ops())


def shard(axes: Axes, degrees: Mapping[str, int]) -> Axes:
    """Return the axes of one rank: each axis divided by its degree, rounded up (the last rank is padded)."""
    return tuple((name, -(-size // degrees.get(name, 1))) for name, size in axes)
