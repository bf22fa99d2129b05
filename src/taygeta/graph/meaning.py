"""What operations compute: one small class for each function, with its attributes.

An operation with a meaning says its function exactly: `Op.inputs` and `Op.outputs` name the values it takes and gives
(each assigned once inside a block), the meaning names the parameters it reads. Arrays have the rows of the step first
and then the axes of the operation's slabs; a parameter has the axes of its Weight, in order. A cache (of the layer and
of each sequence) is read and written beside the named values. taygeta.graph.execute is the NumPy definition of all.

The interface of a block is (x, delta): the residual stream and what is still to be added to it. A norm before a mixer
or a feed-forward block adds; the embedding gives x = 0; the last norm adds for the last time. So all layers are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from taygeta.spec.arithmetic import GateRule, NormRule, Rope

IDS, POSITIONS = "ids", "positions"  # values of the step, one a token: its id, and its position in its sequence


@dataclass(frozen=True)
class Embed:
    """(ids, positions) -> (x = 0, delta): rows of `table` times `scale`, plus rows of `positions` where named.

    vocab: ids are below it. Under tensor parallelism `table` is this rank's range of the vocabulary, ids of other ranks
    give zero, and the position table is that of the first rank and zero elsewhere.
    """

    table: str
    vocab: int
    positions: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class AddNorm:
    """(x, delta) -> (x', h): x' = x + delta, h = norm(x').

    last: only the last new token of each sequence goes on, one row a request.
    """

    weight: str
    rule: NormRule
    last: bool = False


@dataclass(frozen=True)
class Norm:
    """(delta) -> (norm(delta)): a norm of what is to be added (Gemma's post norms)."""

    weight: str
    rule: NormRule


@dataclass(frozen=True)
class Linear:
    """(x, *added) -> one value for each of `weights`: the contraction of Op.contract with it.

    bias: added to the first; "" for none. Further inputs are added to the first as well (routed and shared experts).
    Under tensor parallelism a bias beside a contraction over ranks is that of the first rank and zero elsewhere.
    """

    weights: tuple[str, ...]
    bias: str = ""


@dataclass(frozen=True)
class RotaryCacheWrite:
    """(q, k, v, positions) -> (queries): biases, norms, rotation; keys and values are appended to the cache.

    biases, norms: parameters of q, k, v and of q, k; () for none. rope: None leaves q and k as they are. The cache of
    a sequence grows to (context, kv_heads, head_dim) and (context, kv_heads, v_head_dim).
    """

    biases: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    rule: NormRule | None = None
    rope: Rope | None = None


@dataclass(frozen=True)
class JointNormCacheWrite(RotaryCacheWrite):
    """As RotaryCacheWrite, each norm over all heads of a token together (MiniMax M2, OLMoE).

    The norms have the axes (heads, head_dim). Under tensor parallelism no rank has a whole row: one rank only.
    """


@dataclass(frozen=True)
class Attend:
    """(queries) -> (attended): causal softmax attention of each sequence over its cache.

    Logits are q.k * scale, then softcap * tanh(logits / softcap) where softcap is not 0. window (0: all): keys a query
    sees, itself included. chunk (0: none): keys of its aligned chunk. sinks: a parameter of one logit a head that
    takes its share of the softmax and gives nothing; "" for none. Query head i reads key head i * kv_heads // heads.
    """

    scale: float
    softcap: float = 0.0
    window: int = 0
    chunk: int = 0
    sinks: str = ""


@dataclass(frozen=True)
class LatentCacheWrite:
    """([q_latent,] kv_latent, positions) -> ([q_latent']): norms; the latent and its rotated key are cached.

    q_norm: "" where queries have no latent (then there is no output). kv_latent is (kv_rank + rope dim) wide: the first
    kv_rank elements are normalised, the rest rotated. The cache of a sequence grows to (context, kv_rank + rope dim).
    """

    kv_norm: str
    rule: NormRule
    rope: Rope
    q_norm: str = ""


@dataclass(frozen=True)
class AbsorbKeys:
    """(q) -> (latent queries): the nope part of each head, contracted with `weight` (heads, nope_dim, kv_rank).

    Takes the rows of sequences with fewer than `expand_from` new tokens, in order ("absorbed" rows); the others are
    expanded.
    """

    weight: str
    expand_from: int


@dataclass(frozen=True)
class LatentAttend:
    """(latent queries, q, positions) -> (latent values): attention of the absorbed rows over the cached latents.

    The key of a token is its cached latent and rotated key; the query its latent query and the rotary part of q,
    rotated here; the value is the latent, (heads, kv_rank) wide.
    """

    scale: float
    rope: Rope
    expand_from: int


@dataclass(frozen=True)
class AbsorbValues:
    """(latent values) -> (attended, absorbed rows): contracted with `weight` (heads, kv_rank, v_head_dim)."""

    weight: str


@dataclass(frozen=True)
class ExpandLatents:
    """() -> (expanded): keys and values of every head for the cached tokens of all sequences that are expanded.

    Rows are the tokens of those sequences' caches, sequence after sequence; a row is (heads, nope_dim + v_head_dim),
    the contraction of the latent with `keys` (heads, nope_dim, kv_rank) and `values` (heads, kv_rank, v_head_dim).
    """

    keys: str
    values: str
    expand_from: int


@dataclass(frozen=True)
class ExpandedAttend:
    """(q, expanded, absorbed, positions) -> (attended): plain attention of the other sequences, whose keys are the
    expanded ones joined with the cached rotated key, q's rotary part rotated here; `absorbed` fills the rows of the
    absorbed sequences.
    """

    scale: float
    rope: Rope
    nope_dim: int
    expand_from: int


@dataclass(frozen=True)
class Gate:
    """(x) -> (y): the activation between two matrices, after the bias where there is one ("" for none)."""

    rule: GateRule
    bias: str = ""


Attribute = float | int | str | tuple[int, ...]


@dataclass(frozen=True)
class Apply:
    """One step: function(operands, **attributes); an operand is the number of a value, or a constant of its own.

    function: a name of taygeta.graph.elementwise.STEPS.
    """

    function: str
    operands: tuple[int | float, ...]
    constants: tuple[bool, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()


@dataclass(frozen=True)
class Elementwise:
    """(*inputs) -> (*outputs): a short program of plain functions, of an exported module of no known kind.

    An elementwise chain, a softmax over an axis, a sum. Steps read values by number: the inputs first, then the
    `parameters`, then the results of the steps before; `outputs` are numbers of values. Values have the rows of the
    step first, as everywhere; an axis in an attribute counts from the last one, negative.
    """

    steps: tuple[Apply, ...]
    outputs: tuple[int, ...]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Route:
    """(router logits) -> (weights, experts): top_k experts of each token, and their weights.

    Logits plus `bias`; scores are their softmax or sigmoid ("softmax", "sigmoid"). The choice is by score plus
    `correction` (a parameter, "" for none), among the `top_groups` of `groups` groups whose two best sum highest
    where groups > 1. Weights are the scores of the chosen, divided by their sum where `normalise`, times `scale`.
    Ties go to the lower expert.
    """

    top_k: int
    scoring: str = "softmax"
    normalise: bool = True
    groups: int = 1
    top_groups: int = 1
    bias: str = ""
    correction: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Experts:
    """(h, weights, experts) -> (delta): the sum over a token's experts of weight * (down(gate(up h + b)) + b).

    up: (experts, width, ways, d_ff), down: (experts, d_ff, width). Under expert parallelism a rank has its range of
    the experts, and adds nothing for others.
    """

    up: str
    down: str
    rule: GateRule
    up_bias: str = ""
    down_bias: str = ""


@dataclass(frozen=True)
class Logits:
    """(logits) -> (logits'): plus `bias` where named, then softcap * tanh(logits / softcap) where not 0.

    What picks a token from them is the caller's.
    """

    softcap: float = 0.0
    bias: str = ""


@dataclass(frozen=True)
class AllReduce:
    """(partial) -> (sum over the ranks of the group), on every rank."""


@dataclass(frozen=True)
class AllGather:
    """(share) -> (the shares of all ranks joined along the last axis, cut to `length`), on every rank."""

    length: int


@dataclass(frozen=True)
class Send:
    """(x, delta) -> (0, x + delta): what the next pipeline stage starts with."""


Meaning = (
    Embed
    | AddNorm
    | Norm
    | Linear
    | RotaryCacheWrite
    | JointNormCacheWrite
    | Attend
    | LatentCacheWrite
    | AbsorbKeys
    | LatentAttend
    | AbsorbValues
    | ExpandLatents
    | ExpandedAttend
    | Gate
    | Elementwise
    | Route
    | Experts
    | Logits
    | AllReduce
    | AllGather
    | Send
)
