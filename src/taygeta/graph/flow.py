"""What the operations of a block compute: names of values and meanings, laid over the operations that `build` lists.

Costs never read this. A model without arithmetic keeps its operations as they are.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.graph import meaning as m
from taygeta.graph.ops import AttentionShape, Block, Op
from taygeta.spec.arithmetic import Arithmetic, GateRule, NormRule
from taygeta.spec.mixers import Attention, LatentAttention
from taygeta.spec.model import DenseFfn, Layer, Model, MoeFfn

STREAM = ("x", "delta")  # what blocks take and give: the residual stream, and what is still to be added to it
# transformers' names of the activations that GateRule knows under another name
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}


def embedding(block: Block, model: Model) -> Block:
    """Return the block of the embedding with its meaning."""
    a = model.arithmetic
    if a is None:
        return block
    (op,) = block.ops
    found = m.Embed("embedding", model.vocab, "positions" if model.positions else "", a.embedding_scale)
    op = replace(op, inputs=(m.IDS, m.POSITIONS), outputs=STREAM, meaning=found)
    return replace(block, ops=(op,), outputs=STREAM)


def head(block: Block, model: Model) -> Block:
    """Return the block of the last norm, the head and the logits with their meanings."""
    a = model.arithmetic
    if a is None:
        return block
    norm, matrix, sampling = block.ops
    bias = "head_bias" if model.head_bias else ""
    ops = (
        replace(
            norm,
            inputs=STREAM,
            outputs=("last_x", "last_h"),
            meaning=m.AddNorm("final_norm", a.norm, last=True),
        ),
        replace(matrix, inputs=("last_h",), outputs=("raw_logits",), meaning=m.Linear((matrix.weights[0].name,))),
        replace(sampling, inputs=("raw_logits",), outputs=("logits",), meaning=m.Logits(a.logit_softcap, bias)),
    )
    return replace(block, ops=ops, inputs=STREAM, outputs=("logits",))


def layer(block: Block, found: Layer, model: Model) -> Block:
    """Return the block of a layer with its meanings."""
    a = model.arithmetic
    if a is None:
        return block
    switch = max((op.detail.expand_from for op in block.ops if isinstance(op.detail, AttentionShape)), default=0)
    flow = _Flow(found, a, switch)
    ops = tuple(flow.of(op) for op in block.ops)
    return replace(block, ops=ops, inputs=STREAM, outputs=(flow.x, flow.delta))


class _Flow:
    """Walks through the operations of a layer: the stream x, what is to be added, and the input h of this half."""

    def __init__(self, found: Layer, arithmetic: Arithmetic, switch: int) -> None:
        self.layer, self.arithmetic = found, arithmetic
        self.x, self.delta = STREAM
        self.h, self.half = "", ""
        self.table = _mixer(found, switch) | _ffn(found)

    def of(self, op: Op) -> Op:
        """Return the operation with its meaning; operations come in order."""
        if op.name == "norm":
            return self.norm(op)
        key = op.weights[0].name if op.kind == "matmul" else op.name
        if key == "activation" and self.half == "ffn" and isinstance(self.layer.ffn, MoeFfn):
            key = "shared activation"
        inputs, outputs, found = self.table[key]
        if outputs and outputs[-1] in ("mixer", "ffn"):
            self.delta = outputs[-1]
        return replace(op, inputs=tuple(self.h if i == "h" else i for i in inputs), outputs=outputs, meaning=found)

    def norm(self, op: Op) -> Op:
        (weight,) = op.weights
        rule = self.arithmetic.norm
        if weight.name.endswith("post_norm"):
            before, self.delta = self.delta, f"{self.delta}_normed"
            return replace(op, inputs=(before,), outputs=(self.delta,), meaning=m.Norm(weight.name, rule))
        self.half = weight.name.removesuffix("_norm")
        inputs, self.x, self.h = (self.x, self.delta), f"{self.half}_x", f"{self.half}_h"
        return replace(op, inputs=inputs, outputs=(self.x, self.h), meaning=m.AddNorm(weight.name, rule))


# Tables are cached: predictions build graphs often and never read them.
# An entry: inputs (h is the normed input of this half), outputs, meaning.
_Entry = tuple[tuple[str, ...], tuple[str, ...], m.Meaning]


def _mixer(found: Layer, switch: int) -> dict[str, _Entry]:
    """Meanings by the name of a matmul's first weight, or of another operation; switch: see AbsorbKeys.expand_from."""
    mixer = found.mixer
    if isinstance(mixer, Attention):
        return _attention(mixer)
    return _latent(mixer, switch) if isinstance(mixer, LatentAttention) else {}


@lru_cache(maxsize=64)
def _attention(a: Attention) -> dict[str, _Entry]:
    if a.qk_norm == "unit" or a.output_gate:
        what = "queries and keys of unit length" if a.qk_norm == "unit" else "a gate on its output"
        raise UnsupportedError(f"Attention with {what} has no meaning here: it can be predicted and not executed.")
    normed = a.qk_norm != "none"
    kind = m.JointNormCacheWrite if a.qk_norm == "full" else m.RotaryCacheWrite
    write = kind(
        biases=("q_bias", "k_bias", "v_bias") if a.qkv_bias else (),
        norms=("q_norm", "k_norm") if normed else (),
        rule=NormRule(eps=a.norm_eps, offset=a.norm_offset) if normed else None,
        rope=a.rope if a.rotary else None,
    )
    attend = m.Attend(
        scale=a.head_dim**-0.5 if a.scale is None else a.scale,
        softcap=a.softcap,
        window=a.window or 0,
        chunk=a.chunk or 0,
        sinks="sinks" if a.sinks else "",
    )
    return {
        "q": (("h",), ("q", "k", "v"), m.Linear(("q", "k", "v"))),
        "rotary and cache write": (("q", "k", "v", m.POSITIONS), ("queries",), write),
        "attention": (("queries",), ("attended",), attend),
        "o": (("attended",), ("mixer",), m.Linear(("o",), "o_bias" if a.output_bias else "")),
    }


@lru_cache(maxsize=64)
def _latent(a: LatentAttention, switch: int) -> dict[str, _Entry]:
    if a.rope is None:
        raise InputError("Latent attention needs its rotation (LatentAttention.rope) in a model with arithmetic.")
    scale = (a.nope_dim + a.rope_dim) ** -0.5 if a.scale is None else a.scale
    rule = NormRule(eps=a.norm_eps)
    ranked = a.q_rank is not None
    latents = ("q_latent", "kv_latent") if ranked else ("kv_latent",)
    first = ("q_a", "kv_a") if ranked else ("kv_a",)
    normed = ("q_normed",) if ranked else ()
    q = "q_b" if ranked else "q"
    return {
        first[0]: (("h",), latents, m.Linear(first)),
        "latent norms, rotary and cache write": (
            (*latents, m.POSITIONS),
            normed,
            m.LatentCacheWrite("kv_a_norm", rule, a.rope, "q_a_norm" if ranked else ""),
        ),
        q: (normed or ("h",), ("q",), m.Linear((q,))),
        "kv_b keys": (("q",), ("latent_queries",), m.AbsorbKeys("kv_b keys", switch)),
        "latent attention": (
            ("latent_queries", "q", m.POSITIONS),
            ("latent_values",),
            m.LatentAttend(scale, a.rope, switch),
        ),
        "kv_b values": (("latent_values",), ("absorbed",), m.AbsorbValues("kv_b values")),
        "kv_b again": ((), ("expanded",), m.ExpandLatents("kv_b keys", "kv_b values", switch)),
        "expanded attention": (
            ("q", "expanded", "absorbed", m.POSITIONS),
            ("attended",),
            m.ExpandedAttend(scale, a.rope, a.nope_dim, switch),
        ),
        "o": (("attended",), ("mixer",), m.Linear(("o",))),
    }


def _ffn(found: Layer) -> dict[str, _Entry]:
    f = found.ffn
    if isinstance(f, DenseFfn):
        rule = GateRule(_activation(f.activation), f.gated)
        up_bias, down_bias = ("up_bias", "down_bias") if f.bias else ("", "")
        return {
            "up": (("h",), ("up",), m.Linear(("up",))),
            "activation": (("up",), ("gated",), m.Gate(rule, up_bias)),
            "down": (("gated",), ("ffn",), m.Linear(("down",), down_bias)),
        }
    return _experts(f) if isinstance(f, MoeFfn) else {}


@lru_cache(maxsize=64)
def _experts(f: MoeFfn) -> dict[str, _Entry]:
    rule = GateRule(_activation(f.activation), f.gated, f.limit, f.alpha, f.shift)
    route = m.Route(
        top_k=f.top_k,
        scoring=f.scoring,
        normalise=f.normalise,
        groups=f.groups,
        top_groups=f.top_groups,
        bias="router_bias" if f.router_bias else "",
        correction="router_bias" if f.correction_bias else "",
        scale=f.route_scale,
    )
    biases = ("experts_up_bias", "experts_down_bias") if f.bias else ("", "")
    sum_ = "routed" if f.shared_d_ff else "ffn"
    return {
        "router": (("h",), ("router_logits",), m.Linear(("router",))),
        "top-k": (("router_logits",), ("route_weights", "route_experts"), route),
        "experts": (
            ("h", "route_weights", "route_experts"),
            (sum_,),
            m.Experts("experts_up", "experts_down", rule, *biases),
        ),
        "shared_up": (("h",), ("shared_up",), m.Linear(("shared_up",))),
        "shared activation": (("shared_up",), ("shared_gated",), m.Gate(rule)),
        "shared_down": (("shared_gated", "routed"), ("ffn",), m.Linear(("shared_down",))),
    }


def _activation(name: str) -> str:
    return _ACTIVATIONS.get(name, name)
