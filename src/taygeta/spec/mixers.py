"""How layers mix tokens: attention in its kinds, linear attention and state spaces, as weights on named axes.

Sizes are counts of elements. `taygeta.spec.model` puts them together with what follows them in a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from taygeta.spec.arithmetic import Rope

Axes = tuple[tuple[str, int], ...]


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
