"""The model noun: what a transformer is made of, said once as weights on named axes.

Every part lists its weights with their axes. Parameter counts, active parameters, bytes, the matrix multiplies of the
graph and their shards all follow from that list. Sizes are counts of elements; formats are names of
taygeta.base.formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from taygeta.spec.arithmetic import Arithmetic
from taygeta.spec.mixers import Attention, LatentAttention, LinearAttention, StateSpace, Weight, weight

# The parts of a model that may be stored in formats of their own.
PARTS = ("attention", "ffn", "experts", "shared", "router", "embedding", "head", "norm")


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
