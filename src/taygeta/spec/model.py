"""The model noun: what a transformer is made of, said once as weights on named axes.

Every part lists its weights with their axes. Parameter counts, active parameters, bytes, the matrix multiplies of the
graph and their shards all follow from that list. Sizes are counts of elements; formats are names of
taygeta.base.formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from taygeta.spec.arithmetic import Arithmetic, Rope

Axes = tuple[tuple[str, int], ...]

# The parts of a model that may be stored in formats of their own.
PARTS = ("attention", "ffn", "experts", "shared", "router", "embedding", "head", "norm")


@dataclass(frozen=True)
class Weight:
    """One parameter tensor: its name, its axes in order as (name, size), and the part of the model it belongs to."""

    name: str
    axes: Axes
    part: str

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return prod(size for _, size in self.axes)


def weight(name: str, part: str, **axes: int) -> Weight:
    """Return a Weight; axes are given in order as keywords."""
    return Weight(name, tuple(axes.items()), part)


@dataclass(frozen=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention over a KV cache.

    window: keys a query can see, itself included (None: all); chunk: local attention inside aligned chunks of this
    many tokens (Llama 4), None: none. sinks: one learned logit per head. qk_norm: "none", "head" (over head_dim,
    weights shared by heads), "full" (over all heads' dimensions) or "unit" (scaled to unit length, no weights: Llama
    4). output_gate: a sigmoid gate as wide as the output, from the query projection. scale: what logits are multiplied
    by (None: 1 / sqrt(head_dim)); softcap: then cap * tanh(logits / cap), 0: none; rope: the rotation, where rotary;
    norm_eps, norm_offset: of qk_norm (NormRule).
    """

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    chunk: int | None = None
    sinks: bool = False
    qk_norm: str = "none"
    qkv_bias: bool = False
    output_bias: bool = False
    output_gate: bool = False
    rotary: bool = True
    scale: float | None = None
    softcap: float = 0.0
    rope: Rope | None = None
    norm_eps: float = 1e-6
    norm_offset: float = 0.0

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Return the projections, their biases and the norms of one layer."""
        part, h, g, d, v = "attention", self.heads, self.kv_heads, self.head_dim, self.v_head_dim
        gate = h * (2 if self.output_gate else 1)
        out = [
            weight("q", part, d_model=d_model, heads=gate, head_dim=d),
            weight("k", part, d_model=d_model, kv_heads=g, head_dim=d),
            weight("v", part, d_model=d_model, kv_heads=g, v_head_dim=v),
            weight("o", part, heads=h, v_head_dim=v, d_model=d_model),
        ]
        if self.qkv_bias:
            out += [
                weight("q_bias", "norm", heads=gate, head_dim=d),
                weight("k_bias", "norm", kv_heads=g, head_dim=d),
                weight("v_bias", "norm", kv_heads=g, v_head_dim=v),
            ]
        if self.output_bias:
            out.append(weight("o_bias", "norm", d_model=d_model))
        if self.sinks:
            out.append(weight("sinks", "norm", heads=h))
        if self.qk_norm == "head":
            out += [weight("q_norm", "norm", head_dim=d), weight("k_norm", "norm", head_dim=d)]
        elif self.qk_norm == "full":
            out += [weight("q_norm", "norm", heads=h, head_dim=d), weight("k_norm", "norm", kv_heads=g, head_dim=d)]
        return tuple(out)

    def cache_elements(self) -> int:
        """Elements that one token adds to the KV cache of one layer."""
        return self.kv_heads * (self.head_dim + self.v_head_dim)

    def visible(self, context: int) -> int:
        """Cached tokens that a layer must keep for a sequence of `context` tokens."""
        limit = self.window or self.chunk
        return min(context, limit) if limit else context


@dataclass(frozen=True)
class Indexer:
    """The lightning indexer of sparse attention (DeepSeek-V3.2): picks `top_k` cached tokens for each query."""

    heads: int
    dim: int
    top_k: int


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2 report, section 2.1): one latent and one rotary key a token are cached.

    q_rank None: queries are projected directly. Two lowerings exist: absorbed (queries are folded into the latent
    space, as in decode) and expanded (keys and values are rebuilt, as in prefill). scale: what logits are multiplied
    by (None: 1 / sqrt(nope_dim + rope_dim)); norm_eps: of the norms of the latents.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_head_dim: int
    indexer: Indexer | None = None
    qkv_bias: bool = False
    scale: float | None = None
    rope: Rope | None = None
    norm_eps: float = 1e-6

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Return the projections and norms of one layer."""
        part, h = "attention", self.heads
        qk = self.nope_dim + self.rope_dim
        out: list[Weight] = []
        if self.q_rank is None:
            out.append(weight("q", part, d_model=d_model, heads=h, head_dim=qk))
        else:
            out += [
                weight("q_a", part, d_model=d_model, q_rank=self.q_rank),
                weight("q_a_norm", "norm", q_rank=self.q_rank),
                weight("q_b", part, q_rank=self.q_rank, heads=h, head_dim=qk),
            ]
        out += [
            weight("kv_a", part, d_model=d_model, latent=self.kv_rank + self.rope_dim),
            weight("kv_a_norm", "norm", kv_rank=self.kv_rank),
            weight("kv_b", part, kv_rank=self.kv_rank, heads=h, head_dim=self.nope_dim + self.v_head_dim),
            weight("o", part, heads=h, v_head_dim=self.v_head_dim, d_model=d_model),
        ]
        if self.qkv_bias:
            rank = self.q_rank
            q_bias = weight("q_a_bias", "norm", q_rank=rank) if rank else weight("q_bias", "norm", heads=h, head_dim=qk)
            out += [q_bias, weight("kv_a_bias", "norm", latent=self.kv_rank + self.rope_dim)]
        if self.indexer:
            i = self.indexer
            out += [
                weight("index_q", part, q_rank=self.q_rank or d_model, index_heads=i.heads, index_dim=i.dim),
                weight("index_k", part, d_model=d_model, index_dim=i.dim),
                weight("index_k_norm", "norm", scale_and_shift=2, index_dim=i.dim),
                weight("index_weight", part, d_model=d_model, index_heads=i.heads),
            ]
        return tuple(out)

    def cache_elements(self) -> int:
        """Elements that one token adds to the cache of one layer: the latent, the rotary key, the index key."""
        return self.kv_rank + self.rope_dim + (self.indexer.dim if self.indexer else 0)

    def visible(self, context: int) -> int:
        """Cached tokens that a layer must keep: all of them, whatever the indexer picks."""
        return context


@dataclass(frozen=True)
class LinearAttention:
    """Gated DeltaNet (Qwen3.5): a recurrent state of key_dim x value_dim per value head, and a short convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Return the projections, the convolution and the gates of one layer."""
        part, v, dv = "attention", self.value_heads, self.value_dim
        return (
            weight("qkv", part, d_model=d_model, conv_channels=self.conv_channels),
            weight("z", part, d_model=d_model, value_heads=v, value_dim=dv),
            weight("ba", part, d_model=d_model, value_heads=v, two=2),
            weight("conv", "norm", conv_channels=self.conv_channels, conv_kernel=self.conv_kernel),
            weight("dt_bias", "norm", value_heads=v),
            weight("a_log", "norm", value_heads=v),
            weight("gate_norm", "norm", value_dim=dv),
            weight("o", part, value_heads=v, value_dim=dv, d_model=d_model),
        )

    def state_elements(self) -> int:
        """Elements of the recurrent state of one sequence in one layer (kept in fp32)."""
        return self.value_heads * self.key_dim * self.value_dim

    def conv_elements(self) -> int:
        """Elements of the convolution's history of one sequence in one layer."""
        return self.conv_channels * (self.conv_kernel - 1)


@dataclass(frozen=True)
class StateSpace:
    """Mamba-2 (arXiv 2405.21060): a state of head_dim x state_dim per head; a group of heads shares B and C."""

    heads: int
    head_dim: int
    state_dim: int
    groups: int
    conv_kernel: int
    conv_bias: bool = True

    @property
    def inner(self) -> int:
        """Width of the mixer."""
        return self.heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Return the projections, the convolution and the state parameters of one layer."""
        part, h = "attention", self.heads
        out = [
            weight("z", part, d_model=d_model, heads=h, head_dim=self.head_dim),
            weight("xbc", part, d_model=d_model, conv_channels=self.conv_channels),
            weight("dt", part, d_model=d_model, heads=h),
            weight("conv", "norm", conv_channels=self.conv_channels, conv_kernel=self.conv_kernel),
            weight("dt_bias", "norm", heads=h),
            weight("a_log", "norm", heads=h),
            weight("skip", "norm", heads=h),
            weight("gate_norm", "norm", heads=h, head_dim=self.head_dim),
            weight("o", part, heads=h, head_dim=self.head_dim, d_model=d_model),
        ]
        if self.conv_bias:
            out.append(weight("conv_bias", "norm", conv_channels=self.conv_channels))
        return tuple(out)

    def state_elements(self) -> int:
        """Elements of the recurrent state of one sequence in one layer (kept in fp32)."""
        return self.heads * self.head_dim * self.state_dim

    def conv_elements(self) -> int:
        """Elements of the convolution's history of one sequence in one layer."""
        return self.conv_channels * (self.conv_kernel - 1)


@dataclass(frozen=True)
class DenseFfn:
    """A feed-forward block, gated (up and gate, then down) or plain; activation as Hugging Face names it."""

    d_ff: int
    gated: bool = True
    bias: bool = False
    activation: str = "silu"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Return the matrices and biases of one layer."""
        ways = 2 if self.gated else 1
        out = [
            weight("up", "ffn", d_model=d_model, ways=ways, d_ff=self.d_ff),
            weight("down", "ffn", d_ff=self.d_ff, d_model=d_model),
        ]
        if self.bias:
            out += [weight("up_bias", "norm", ways=ways, d_ff=self.d_ff), weight("down_bias", "norm", d_model=d_model)]
        return tuple(out)


@dataclass(frozen=True)
class MoeFfn:
    """A mixture of experts: `top_k` of `experts` per token, and optionally shared experts that every token visits.

    shared_d_ff: total width of the shared experts (0: none). shared_gate: a sigmoid gate on them (Qwen). groups,
    top_groups: expert groups of which top_groups are eligible (DeepSeek-V3). router_bias: a bias of the router's
    linear layer; correction_bias: a bias on the scores that only picks experts. latent: width in which the experts
    work, with projections into and out of it (Nemotron 3), 0: d_model. scoring: how scores come from the router's
    logits, "softmax" or "sigmoid"; normalise: the chosen scores sum to 1; route_scale: what they are multiplied by
    then. limit, alpha, shift: see GateRule.
    """

    experts: int
    top_k: int
    d_ff: int
    gated: bool = True
    bias: bool = False
    shared_d_ff: int = 0
    shared_gate: bool = False
    groups: int = 1
    top_groups: int = 1
    router_bias: bool = False
    correction_bias: bool = False
    latent: int = 0
    activation: str = "silu"
    scoring: str = "softmax"
    normalise: bool = True
    route_scale: float = 1.0
    limit: float = 0.0
    alpha: float = 1.0
    shift: float = 0.0

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Return the router, the experts and the shared experts of one layer."""
        e, f, ways = self.experts, self.d_ff, 2 if self.gated else 1
        width = self.latent or d_model
        out = [
            weight("router", "router", d_model=d_model, experts=e),
            weight("experts_up", "experts", experts=e, expert_width=width, ways=ways, d_ff=f),
            weight("experts_down", "experts", experts=e, d_ff=f, expert_width=width),
        ]
        if self.latent:
            out += [
                weight("latent_in", "shared", d_model=d_model, expert_width=width),
                weight("latent_out", "shared", expert_width=width, d_model=d_model),
            ]
        if self.bias:
            out += [
                weight("experts_up_bias", "experts", experts=e, ways=ways, d_ff=f),
                weight("experts_down_bias", "experts", experts=e, expert_width=width),
            ]
        if self.router_bias or self.correction_bias:
            out.append(weight("router_bias", "norm", experts=e * (int(self.router_bias) + int(self.correction_bias))))
        if self.shared_d_ff:
            out += [
                weight("shared_up", "shared", d_model=d_model, ways=ways, d_ff=self.shared_d_ff),
                weight("shared_down", "shared", d_ff=self.shared_d_ff, d_model=d_model),
            ]
            if self.shared_gate:
                out.append(weight("shared_gate", "norm", d_model=d_model))
        return tuple(out)


Mixer = Attention | LatentAttention | LinearAttention | StateSpace
Ffn = DenseFfn | MoeFfn


@dataclass(frozen=True)
class Layer:
    """One residual layer: a mixer, a feed-forward block, or both; norms counts its d_model-wide normalisations.

    post_norms: every second norm is of what mixer and feed-forward block give, before it is added (Gemma).
    """

    mixer: Mixer | None
    ffn: Ffn | None
    norms: int = 2
    norm_bias: bool = False
    post_norms: bool = False

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Return every weight of the layer."""
        norm = weight("norm", "norm", norms=self.norms, scale_and_shift=2 if self.norm_bias else 1, d_model=d_model)
        parts = [part.weights(d_model) for part in (self.mixer, self.ffn) if part is not None]
        return (*(w for part in parts for w in part), norm)


@dataclass(frozen=True)
class NativeFormats:
    """The formats in which a checkpoint stores each part; activations: the format its recipe computes in.

    embedding also holds for what is never quantised: norms, biases, routers.
    """

    attention: str = "bf16"
    ffn: str = "bf16"
    experts: str = "bf16"
    shared: str = "bf16"
    head: str = "bf16"
    activations: str = "bf16"
    kv: str = "bf16"
    embedding: str = "bf16"


@dataclass(frozen=True)
class Guess:
    """An unpublished number of a model: the configuration field, its range, and who estimated it."""

    field: str
    low: float
    nominal: float
    high: float
    reason: str


@dataclass(frozen=True)
class Model:
    """A language model.

    layers: one entry per layer, in order. mtp: extra layers that predict further tokens; they are stored, and run
    only under speculative decoding. mtp_projections: d_model x d_model matrices and norms of each MTP module are in
    mtp_weights. positions: learned positions (0: none). notes: what the importer left out or assumed, for the user.
    guesses: unpublished numbers behind this entry; empty for a published model. arithmetic: what execution needs
    beside the layers; None for a model that can be predicted and not executed, for which `refusal` says why.
    """

    name: str
    d_model: int
    vocab: int
    layers: tuple[Layer, ...]
    max_context: int
    tied: bool = False
    positions: int = 0
    final_norm_bias: bool = False
    head_bias: bool = False
    mtp: tuple[Layer, ...] = ()
    mtp_weights: tuple[Weight, ...] = ()
    native: NativeFormats = field(default_factory=NativeFormats)
    source: str = ""
    notes: tuple[str, ...] = ()
    guesses: tuple[Guess, ...] = ()
    arithmetic: Arithmetic | None = None
    refusal: str = ""

    @property
    def assumed(self) -> bool:
        """True when the model is unpublished and its numbers are somebody's estimate."""
        return bool(self.guesses)

    def outer_weights(self) -> tuple[Weight, ...]:
        """Return the weights outside the layers: embedding, positions, final norm, head (absent when tied)."""
        d, shift = self.d_model, 2 if self.final_norm_bias else 1
        out = [weight("embedding", "embedding", vocab=self.vocab, d_model=d)]
        if self.positions:
            out.append(weight("positions", "embedding", positions=self.positions, d_model=d))
        out.append(weight("final_norm", "norm", scale_and_shift=shift, d_model=d))
        if not self.tied:
            out.append(weight("head", "head", d_model=d, vocab=self.vocab))
        if self.head_bias:
            out.append(weight("head_bias", "norm", vocab=self.vocab))
        return tuple(out)

    def parameters(self, mtp: bool = False) -> int:
        """Return the number of parameters, without the MTP modules unless asked for."""
        count = sum(w.elements for w in self.outer_weights())
        count += sum(w.elements for layer in self.layers for w in layer.weights(self.d_model))
        if mtp:
            count += sum(w.elements for layer in self.mtp for w in layer.weights(self.d_model))
            count += sum(w.elements for w in self.mtp_weights)
        return count

    def active_parameters(self, embedding: bool = True) -> int:
        """Return the parameters that one token uses: top_k of the experts, everything else once.

        Model cards differ on the embedding table, of which a token reads one row: Qwen and DeepSeek count it in full,
        OpenAI leaves it out of gpt-oss (`embedding=False`; a tied table stays, as the head).
        """
        count = sum(w.elements for w in self.outer_weights())
        if not embedding and not self.tied:
            count -= self.vocab * self.d_model
        for layer in self.layers:
            for w in layer.weights(self.d_model):
                routed = isinstance(layer.ffn, MoeFfn) and w.part == "experts"
                share = (layer.ffn.top_k, layer.ffn.experts) if routed and isinstance(layer.ffn, MoeFfn) else (1, 1)
                count += w.elements * share[0] // share[1]
        return count

    def kinds(self) -> tuple[tuple[Layer, int], ...]:
        """Return the distinct layers with how often each occurs, in order of first occurrence."""
        counts: dict[Layer, int] = {}
        for layer in self.layers:
            counts[layer] = counts.get(layer, 0) + 1
        return tuple(counts.items())
