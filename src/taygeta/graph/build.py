"""Model -> Graph: the operations of one step on a single chip, before any partition.

Layers are pre-norm residual blocks; engines run the residual add inside the norm's kernel, and that is how it is
counted. q, k and v (and gate and up) are one matrix multiply, as every serving engine fuses them.
"""

from __future__ import annotations

from dataclasses import replace

from taygeta.graph import flow
from taygeta.graph.ops import (
    STORED_ELSEWHERE,
    AttentionShape,
    Block,
    ExpertShape,
    Graph,
    Op,
    ScanShape,
    Slab,
    Visit,
)
from taygeta.spec.deployment import Formats
from taygeta.spec.mixers import Attention, Axes, Indexer, LatentAttention, LinearAttention, StateSpace, Weight
from taygeta.spec.model import DenseFfn, Layer, Model, MoeFfn

# Arithmetic per element of the vector operations, counted by hand.
NORM_FLOP = 6.0  # square, add, scale, weight, residual add, reciprocal root amortised
GATE_FLOP = 8.0  # sigmoid by exponential and division, two multiplies
ROTARY_FLOP = 3.0  # two multiplies and an add
SOFTMAX_FLOP = 4.0
QUANTISE_FLOP = 4.0  # absolute value, maximum, scale, round
NEVER = 2**53  # new tokens of a sequence from which it is lowered otherwise, where it never is


def build(
    model: Model,
    formats: Formats,
    layers: tuple[Layer, ...] | None = None,
    first: bool = True,
    last: bool = True,
    start: int = 0,
) -> Graph:
    """Return the graph of `layers` (all by default), with the embedding if `first` and the head if `last`.

    start: the number of the first of these layers in the model.
    """
    builder = _Builder(model, formats, first)
    found = model.layers if layers is None else layers
    blocks: list[Block] = []
    if first:
        blocks.append(flow.embedding(Block("embedding", builder.embedding()), model))
    kinds: dict[Layer, int] = {}
    known: dict[int, int] = {}  # by identity: most layers of a model are few objects, and comparing them takes time
    for layer in found:
        if id(layer) not in known:
            known[id(layer)] = kinds.setdefault(layer, len(kinds))
    which = [known[id(layer)] for layer in found]
    order = [Visit(len(blocks) + kind, start + i) for i, kind in enumerate(which)]
    for layer, kind in kinds.items():
        block = Block(f"layer kind {kind + 1}", builder.layer(layer), which.count(kind))
        blocks.append(flow.layer(block, layer, model))
    if last:
        blocks.append(flow.head(Block("head", builder.head()), model))
        order.append(Visit(len(blocks) - 1))
    return Graph(tuple(blocks), ((Visit(0),) if first else ()) + tuple(order))


def rows(axis: str, *axes: tuple[str, int], fmt: str = "bf16") -> Slab:
    """Return an activation with the batch axis `axis` first."""
    return Slab(((axis, 0), *axes), fmt)


class _Builder:
    """Holds what every layer of a model shares while its operations are listed."""

    def __init__(self, model: Model, formats: Formats, first: bool) -> None:
        self.model, self.formats, self.first = model, formats, first
        self.wide = ("d_model", model.d_model)

    def embedding(self) -> tuple[Op, ...]:
        weights = tuple(w for w in self.model.outer_weights() if w.part == "embedding")
        x = rows("tokens", self.wide)
        return (Op("embedding", "vector", "embedding", (x,), (x,), weights),)

    def head(self) -> tuple[Op, ...]:
        outer = {w.name: w for w in self.model.outer_weights()}
        norm = tuple(outer[n] for n in ("final_norm", "head_bias") if n in outer)
        x = rows("requests", self.wide)
        logits = rows("requests", ("vocab", self.model.vocab), fmt="fp32")
        matrix = outer.get("head") or _tied(self.model, stored=not self.first)
        head = self.matmul("head", "head", x, (matrix,), "head", ("d_model",))
        sample = Op(
            "sampling", "vector", "head", (logits,), (rows("requests", ("token", 1), fmt="fp32"),), flop=SOFTMAX_FLOP
        )
        return (self.norm("final norm", norm, "requests"), head, sample)

    def layer(self, layer: Layer) -> tuple[Op, ...]:
        d = self.model.d_model
        shift = 2 if layer.norm_bias else 1
        axes: Axes = (("scale_and_shift", shift), ("d_model", d))
        ops: list[Op] = []
        halves = [half for half in (layer.mixer, layer.ffn) if half is not None]
        for index, half in enumerate(halves):
            name = "ffn" if isinstance(half, (DenseFfn, MoeFfn)) else "mixer"
            norms = [self.norm("norm", (Weight(f"{name}_norm", axes, "norm"),))]
            norms *= layer.norms // len(halves) + (index < layer.norms % len(halves))
            if layer.post_norms:
                norms[-1] = self.norm("norm", (Weight(f"{name}_post_norm", axes, "norm"),))
            after = [norms.pop()] if layer.post_norms else []
            ops += [*norms, *(self.ffn(half) if isinstance(half, (DenseFfn, MoeFfn)) else self.mixer(half)), *after]
        return tuple(ops)

    def norm(self, name: str, weights: tuple[Weight, ...], axis: str = "tokens") -> Op:
        x = rows(axis, self.wide)
        return Op(name, "vector", "norms", (x, x), (x, x), weights, flop=NORM_FLOP / 2)

    def matmul(
        self, name: str, part: str, x: Slab, weights: tuple[Weight, ...], where: str, contract: tuple[str, ...]
    ) -> Op:
        """A matrix multiply of `x` with weights of the part `where`; activations take the format of the deployment."""
        fmt = self.formats.of(where)
        activations = (
            "bf16" if where in ("head", "router") or fmt in ("bf16", "fp16", "fp32") else self.formats.activations
        )
        own = {axis for axis, _ in x.axes}
        kept = tuple(a for a in x.axes if a[0] not in contract)
        writes = tuple(Slab((*kept, *(a for a in w.axes if a[0] not in own)), "bf16") for w in weights)
        return Op(
            name, "matmul", part, (Slab(x.axes, activations),), writes, weights, weight_format=fmt, contract=contract
        )

    def small(self, name: str, weights: tuple[Weight, ...], reads: Slab, writes: Slab, flop: float) -> Op:
        return Op(name, "vector", "attention", (reads,), (writes,), weights, flop=flop)

    def mixer(self, mixer: Attention | LatentAttention | LinearAttention | StateSpace) -> list[Op]:
        if isinstance(mixer, Attention):
            return self.attention(mixer)
        if isinstance(mixer, LatentAttention):
            return self.latent(mixer)
        return self.recurrent(mixer)

    def attention(self, a: Attention) -> list[Op]:
        w = {x.name: x for x in a.weights(self.model.d_model)}
        x = rows("tokens", self.wide)
        q = rows("tokens", ("heads", a.heads), ("head_dim", a.head_dim))
        k = rows("tokens", ("kv_heads", a.kv_heads), ("head_dim", a.head_dim))
        v = rows("tokens", ("kv_heads", a.kv_heads), ("v_head_dim", a.v_head_dim))
        out = rows("tokens", ("heads", a.heads), ("v_head_dim", a.v_head_dim))
        stored = (Slab(k.axes, self.formats.kv), Slab(v.axes, self.formats.kv))
        rest = tuple(w[n] for n in w if n not in ("q", "k", "v", "o", "o_bias"))
        shape = AttentionShape(
            a.heads, a.kv_heads, a.head_dim, a.v_head_dim, a.window or 0, a.chunk or 0, kv_format=self.formats.kv
        )
        ops = [
            self.matmul("qkv", "attention", x, (w["q"], w["k"], w["v"]), "attention", ("d_model",)),
            Op("rotary and cache write", "vector", "attention", (q, k, v), (q, *stored), rest, flop=ROTARY_FLOP),
            Op("attention", "attention", "attention", (q,), (out,), detail=shape),
        ]
        if a.output_gate:
            ops.append(Op("output gate", "vector", "attention", (out, out), (out,), flop=GATE_FLOP / 2))
        bias = (w["o_bias"],) if "o_bias" in w else ()
        return [
            *ops,
            replace(self.matmul("o", "attention", out, (w["o"],), "attention", ("heads", "v_head_dim")), extras=bias),
        ]

    def latent(self, a: LatentAttention) -> list[Op]:
        w = {x.name: x for x in a.weights(self.model.d_model)}
        x = rows("tokens", self.wide)
        first = tuple(w[n] for n in ("q_a", "kv_a", "index_k", "index_weight") if n in w)
        norms = tuple(v for n, v in w.items() if v.part == "norm" and n != "index_k_norm")
        latent = rows("tokens", ("latent", a.kv_rank + a.rope_dim))
        stored = Slab(latent.axes, self.formats.kv)
        inner = rows("tokens", ("q_rank", a.q_rank)) if a.q_rank else x
        q_name, contract = ("q_b", ("q_rank",)) if a.q_rank else ("q", ("d_model",))
        out = rows("tokens", ("heads", a.heads), ("v_head_dim", a.v_head_dim))
        ops = [self.matmul("latents", "attention", x, first, "attention", ("d_model",))]
        ops.append(
            Op(
                "latent norms, rotary and cache write",
                "vector",
                "attention",
                (inner, latent),
                (inner, stored),
                norms,
                flop=NORM_FLOP,
            )
        )
        ops.append(self.matmul(q_name, "attention", inner, (w[q_name],), "attention", contract))
        if a.indexer:
            ops += self._indexer(a.indexer, w, inner)
        ops += self._absorbed(a) if a.indexer else self._absorbed(a) + self._expanded(a)
        return [*ops, self.matmul("o", "attention", out, (w["o"],), "attention", ("heads", "v_head_dim"))]

    def _absorbed(self, a: LatentAttention) -> list[Op]:
        """Queries into the latent space, attention there with one key per token for all heads, and back.

        The two multiplies take the two halves of kv_b as their weights. A layer that chooses its keys is lowered so
        whatever its batch: queries share no keys. Only short prompts rebuild them, which takes the same multiplies.
        """
        up = Weight("kv_b keys", (("heads", a.heads), ("nope_dim", a.nope_dim), ("kv_rank", a.kv_rank)), "attention")
        down = Weight(
            "kv_b values", (("heads", a.heads), ("kv_rank", a.kv_rank), ("v_head_dim", a.v_head_dim)), "attention"
        )
        q = rows("absorbed", ("heads", a.heads), ("nope_dim", a.nope_dim))
        wide_q = rows("absorbed", ("heads", a.heads), ("latent", a.kv_rank + a.rope_dim))
        wide_v = rows("absorbed", ("heads", a.heads), ("kv_rank", a.kv_rank))
        shape = AttentionShape(
            a.heads,
            1,
            a.kv_rank + a.rope_dim,
            a.kv_rank,
            top_k=a.indexer.top_k if a.indexer else 0,
            shared_kv=True,
            lowering="absorbed",
            expand_from=NEVER if a.indexer else expand_from(a),
            kv_format=self.formats.kv,
            rebuilt=(a.nope_dim + a.rope_dim, a.v_head_dim) if a.indexer else (0, 0),
        )
        return [
            self.matmul("absorb keys", "attention", q, (up,), "attention", ("nope_dim",)),
            Op("latent attention", "attention", "attention", (wide_q,), (wide_v,), detail=shape),
            self.matmul("absorb values", "attention", wide_v, (down,), "attention", ("kv_rank",)),
        ]

    def _expanded(self, a: LatentAttention) -> list[Op]:
        """Keys and values of every head rebuilt from the latents, then plain attention. Its weights are those of the
        absorbed form.
        """
        shape = AttentionShape(
            a.heads,
            a.heads,
            a.nope_dim + a.rope_dim,
            a.v_head_dim,
            lowering="expanded",
            expand_from=expand_from(a),
            kv_format="bf16",
        )
        latent = rows("expanded", ("kv_rank", a.kv_rank))
        again = Weight(
            "kv_b again",
            (("kv_rank", a.kv_rank), ("heads", a.heads), ("kv_dim", a.nope_dim + a.v_head_dim)),
            STORED_ELSEWHERE,
        )
        q = rows("tokens", ("heads", a.heads), ("head_dim", a.nope_dim + a.rope_dim))
        out = rows("tokens", ("heads", a.heads), ("v_head_dim", a.v_head_dim))
        return [
            self.matmul("expand latents", "attention", latent, (again,), "attention", ("kv_rank",)),
            Op("expanded attention", "attention", "attention", (q,), (out,), detail=shape),
        ]

    def _indexer(self, i: Indexer, w: dict[str, Weight], inner: Slab) -> list[Op]:
        """Scores of every cached token against small index queries, and the choice of the best: no values.

        Every rank scores for all heads, whose sum ranks the tokens. Queries and keys are rotated twice, by position
        and by a Hadamard matrix, whose log2(dim) additions an element spread outliers before both become fp8
        (DeepSeek-V3.2-Exp, inference/model.py); the scale of a query goes into the weights of its heads. A key's
        own kernels are taken as hidden on a stream beside the queries'; one after the other the chain has twelve
        (SGLang on ROCm, pull request 38583).
        """
        q = rows("tokens", ("index_heads", i.heads), ("index_dim", i.dim))
        k = rows("tokens", ("index_dim", i.dim))
        gates = rows("tokens", ("index_heads", i.heads), fmt="fp32")
        contract = (inner.axes[1][0],)
        shape = AttentionShape(i.heads, 1, i.dim, 0, top_k=i.top_k, shared_kv=True, kv_format="fp8")
        small = (Slab(q.axes, "fp8"), Slab(k.axes, "fp8"))
        norm, spread = (w["index_k_norm"],), (i.dim - 1).bit_length()
        chosen = rows("tokens", ("top_k", i.top_k), fmt="fp32")
        part = "attention"
        return [
            self.matmul("index queries", part, inner, (w["index_q"],), part, contract),
            Op("index norm and rotary", "vector", part, (q, k), (q, k), norm, flop=NORM_FLOP / 2 + ROTARY_FLOP),
            Op("index rotation", "vector", part, (q, k), (q, k), flop=spread),
            Op("index quantise and cache write", "vector", part, (q, k), small, flop=QUANTISE_FLOP),
            Op("index weights", "vector", part, (gates, gates), (gates,), flop=1.0),
            Op("index scores", "attention", part, (q,), (chosen,), detail=shape),
        ]

    def recurrent(self, m: LinearAttention | StateSpace) -> list[Op]:
        w = {x.name: x for x in m.weights(self.model.d_model)}
        x = rows("tokens", self.wide)
        delta = isinstance(m, LinearAttention)
        heads_axis, dim_axis = ("value_heads", "value_dim") if delta else ("heads", "head_dim")
        heads, groups = (m.value_heads, m.key_heads) if isinstance(m, LinearAttention) else (m.heads, m.groups)
        key, value = (m.key_dim, m.value_dim) if isinstance(m, LinearAttention) else (m.state_dim, m.head_dim)
        first = tuple(w[n] for n in (("qkv", "z", "ba") if delta else ("z", "xbc", "dt")))
        small = tuple(v for v in w.values() if v.part == "norm")
        out = rows("tokens", (heads_axis, heads), (dim_axis, value))
        channels = rows("tokens", ("conv_channels", m.conv_channels))
        shape = ScanShape(heads, groups, key, value, m.conv_channels, m.conv_kernel, delta)
        return [
            self.matmul("in", "attention", x, first, "attention", ("d_model",)),
            Op("convolution and scan", "scan", "attention", (channels,), (out,), extras=small, detail=shape),
            Op("gated norm", "vector", "attention", (out, out), (out,), flop=(NORM_FLOP + GATE_FLOP) / 2),
            self.matmul("o", "attention", out, (w["o"],), "attention", (heads_axis, dim_axis)),
        ]

    def ffn(self, ffn: DenseFfn | MoeFfn) -> list[Op]:
        w = {x.name: x for x in ffn.weights(self.model.d_model)}
        if isinstance(ffn, DenseFfn):
            small = tuple(w[n] for n in ("up_bias", "down_bias") if n in w)
            return self._dense("ffn", w["up"], w["down"], ("d_ff", ffn.d_ff), ffn.gated, "ffn", small)
        return self._moe(ffn, w)

    def _dense(
        self,
        part: str,
        up: Weight,
        down: Weight,
        wide: tuple[str, int],
        gated: bool,
        where: str,
        small: tuple[Weight, ...],
    ) -> list[Op]:
        x, h = rows("tokens", self.wide), rows("tokens", wide)
        reads = (h, h) if gated else (h,)
        return [
            self.matmul(f"{up.name}", part, x, (up,), where, ("d_model",)),
            Op("activation", "vector", part, reads, (h,), small, flop=GATE_FLOP / len(reads)),
            self.matmul(f"{down.name}", part, h, (down,), where, ("d_ff",)),
        ]

    def _moe(self, f: MoeFfn, w: dict[str, Weight]) -> list[Op]:
        x = rows("tokens", self.wide)
        scores = rows("tokens", ("experts", f.experts), fmt="fp32")
        chosen = rows("tokens", ("top_k", f.top_k), fmt="fp32")
        width = ("expert_width", f.latent or self.model.d_model)
        small = tuple(v for n, v in w.items() if n in ("router_bias", "shared_gate"))
        experts = tuple(v for v in w.values() if v.part == "experts")
        shape = ExpertShape(f.experts, f.top_k, width[1], f.d_ff, f.gated)
        inside = Slab(rows("routed", width).axes, self.formats.expert_activations)
        ops = [
            self.matmul("router", "experts", x, (w["router"],), "router", ("d_model",)),
            Op("top-k", "vector", "experts", (scores,), (chosen, chosen), small, flop=SOFTMAX_FLOP),
        ]
        if f.latent:
            ops.append(self.matmul("latent_in", "experts", x, (w["latent_in"],), "shared", ("d_model",)))
        ops.append(
            Op(
                "experts",
                "experts",
                "experts",
                (inside,),
                (rows("routed", width),),
                experts,
                weight_format=self.formats.experts,
                detail=shape,
            )
        )
        if f.latent:
            ops.append(
                self.matmul(
                    "latent_out", "experts", rows("tokens", width), (w["latent_out"],), "shared", ("expert_width",)
                )
            )
        if f.shared_d_ff:
            ops += self._dense(
                "shared experts", w["shared_up"], w["shared_down"], ("d_ff", f.shared_d_ff), f.gated, "shared", ()
            )
        return ops


def expand_from(a: LatentAttention) -> int:
    """Return the new tokens a sequence needs for the expanded lowering to cost fewer FLOP than the absorbed one.

    Absorbed, a pair of query and key costs 2 (kv_rank + rope + kv_rank) per head; expanded, 2 (nope + rope + v),
    after every key was rebuilt once for 2 kv_rank (nope + v). DeepSeek-V3: 2 x 512 x 256 / (2176 - 640) = 171 tokens.
    """
    absorbed = 2 * (a.kv_rank + a.rope_dim + a.kv_rank)
    expanded = 2 * (a.nope_dim + a.rope_dim + a.v_head_dim)
    rebuilt = 2 * a.kv_rank * (a.nope_dim + a.v_head_dim)
    return rebuilt // max(1, absorbed - expanded) + 1


def _tied(model: Model, stored: bool) -> Weight:
    """The embedding's table as the head: stored once, but by the last pipeline stage too when that is not the first."""
    axes: Axes = (("d_model", model.d_model), ("vocab", model.vocab))
    return Weight("tied head", axes, "head" if stored else STORED_ELSEWHERE)
