"""What a deployment keeps in memory: weights, KV cache, activations; and whether it fits.

The engine takes `memory_fraction` of something, and engines differ in what: of the memory, weights and the activations
of the largest step coming off it ("total", vLLM); of the memory, only the weights coming off, so that activations live
in the rest ("static", SGLang); or of what weights and activations leave ("free", TensorRT-LLM).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from taygeta.base.errors import DoesNotFitError
from taygeta.base.formats import format_of
from taygeta.graph.ops import ExpertShape, Graph, Op
from taygeta.graph.partition import stages
from taygeta.spec.deployment import Deployment, Parallelism, divides_heads
from taygeta.spec.mixers import Attention, LatentAttention, LinearAttention, StateSpace
from taygeta.spec.model import Layer

MAX_IDEA = 64  # degrees of parallelism that a message proposes
LEAST_BUDGET = 64  # tokens of a step that a message proposes: a prompt of any length takes too many steps of fewer
STATE_BYTES = 4  # recurrent states are kept in fp32 by every engine; convolution histories in bf16


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the fullest chip of a replica. cache: what is left for KV cache, negative when nothing is.

    capacity: what the engine takes of the chip. activations: 0 where they live outside of it.
    """

    capacity: float
    weights: float
    activations: float
    cache: float

    @property
    def fits(self) -> bool:
        """True when there is room for some KV cache."""
        return self.cache > 0


def memory(d: Deployment, graphs: tuple[Graph, ...] | None = None) -> MemoryUse:
    """Return what weights and activations take on the fullest chip, and what is left for the KV cache."""
    found = graphs or stages(d)
    weights = max(graph.weight_bytes() for graph in found)
    activations = max(_activations(graph, d) for graph in found)
    capacity, share = d.chip.hbm.capacity, d.engine.memory_fraction
    if d.engine.memory_of == "free":
        free = capacity - weights - activations
        return MemoryUse(capacity, weights, activations, min(free, share * free))
    if d.engine.memory_of == "static":
        return MemoryUse(capacity * share, weights, 0.0, capacity * share - weights)
    return MemoryUse(capacity * share, weights, activations, capacity * share - weights - activations)


def sequence_bytes(d: Deployment, context: int) -> float:
    """Return the cache bytes that one sequence of `context` tokens takes on the fullest chip of its rank."""
    layers, p = d.model.layers, d.parallelism
    cuts = [len(layers) * i // p.pp for i in range(p.pp + 1)]
    return max(sum(_layer_bytes(layer, d, context) for layer in layers[cuts[i] : cuts[i + 1]]) for i in range(p.pp))


def largest_batch(d: Deployment, context: int, use: MemoryUse | None = None) -> int:
    """Return how many sequences of `context` tokens the KV caches of one replica hold at once."""
    room = (use or memory(d)).cache
    each = sequence_bytes(d, context)
    if room <= 0:
        return 0
    return int(room // each) * d.parallelism.dp if each > 0 else 1 << 30


def check_fits(d: Deployment, requests: int, context: int) -> MemoryUse:
    """Refuse a deployment whose weights, or whose `requests` sequences of `context` tokens, exceed the memory.

    Raises DoesNotFitError that names the sum and what would fit.
    """
    use = memory(d)
    if not use.fits:
        have, size = _gigabytes(use.capacity), _gigabytes(d.chip.hbm.capacity)
        raise DoesNotFitError(
            f"{d.model.name} in {weight_formats(d)} needs {_needed(use, d)} on each chip under"
            f" {d.parallelism}; {d.chip.id} has {have} of {size} for them.{_what_fits(d)}"
        )
    room = largest_batch(d, context, use)
    if requests > room:
        need = _gigabytes(_ceil(requests, d.parallelism.dp) * sequence_bytes(d, context))
        raise DoesNotFitError(
            f"{requests:,} requests of {context:,} tokens need {need} of KV cache on each chip;"
            f" {_gigabytes(use.cache)} are left beside the weights of {d.model.name}. {room:,} requests fit."
        )
    return use


def weight_formats(d: Deployment) -> str:
    """Return the formats of the weights for people: 'bf16', or 'mxfp4 experts and bf16'."""
    f = d.formats
    has_experts = any(isinstance(op.detail, ExpertShape) for graph in stages(d) for op, _ in graph.ops())
    if has_experts and f.experts != f.attention:
        return f"{f.experts} experts and {f.attention}"
    return f.attention if f.attention == f.ffn else f"{f.attention} and {f.ffn}"


def _activations(graph: Graph, d: Deployment) -> float:
    """Bytes of the largest operation of a step of `token_budget` tokens, with the residual stream beside it."""
    p, budget = d.parallelism, d.engine.token_budget
    residual = 2.0 * d.model.d_model * budget
    return residual + max((_op_bytes(op, budget, p) for op, _ in graph.ops()), default=0.0)


def _op_bytes(op: Op, budget: int, p: Parallelism) -> float:
    if op.rows == "requests":
        return sum(s.row_bytes for s in op.reads + op.writes) * min(budget, 1024)  # logits: one row a sequence
    if isinstance(op.detail, ExpertShape):
        s = op.detail
        rows = budget * p.dp * s.top_k / s.ep
        return rows * 2.0 * (2 * s.width + (3 if s.gated else 2) * s.d_ff / s.tp)
    return sum(s.row_bytes for s in op.reads + op.writes) * budget


def _layer_bytes(layer: Layer, d: Deployment, context: int) -> float:
    mixer, p = layer.mixer, d.parallelism
    kv = format_of(d.formats.kv).bytes_per_element
    if isinstance(mixer, Attention):
        share = _ceil(mixer.kv_heads, min(p.tp, mixer.kv_heads)) / mixer.kv_heads
        return mixer.cache_elements() * share * kv * mixer.visible(context) / p.cp
    if isinstance(mixer, LatentAttention):
        return mixer.cache_elements() * kv * context / p.cp
    if isinstance(mixer, (LinearAttention, StateSpace)):
        return (mixer.state_elements() * STATE_BYTES + mixer.conv_elements() * 2) / p.tp
    return 0.0


def _needed(use: MemoryUse, d: Deployment) -> str:
    """What a chip has to hold, for people: weights, and the activations of the steps that the engine makes."""
    weights = f"{_gigabytes(use.weights)} of weights"
    if not use.activations:
        return weights
    return f"{weights} and {_gigabytes(use.activations)} of activations (of steps of {d.engine.token_budget:,} tokens)"


def _what_fits(d: Deployment) -> str:
    """The nearest things that would fit: more tensor parallelism, more pipeline stages, narrower weights, or shorter
    steps.
    """
    f, p = d.formats, d.parallelism
    ideas: list[str] = []
    wider = (tp for tp in (p.tp << i for i in range(1, 7)) if tp <= MAX_IDEA and divides_heads(d.model, tp))
    longer = (pp for pp in (p.pp << i for i in range(1, 7)) if pp <= min(MAX_IDEA, len(d.model.layers)))
    tp = next((tp for tp in wider if memory(replace(d, parallelism=_with_tp(p, tp))).fits), None)
    pp = next((pp for pp in longer if memory(replace(d, parallelism=replace(p, pp=pp))).fits), None)
    if tp:
        ideas.append(f"tp={tp}")
    elif pp:
        ideas.append(f"pp={pp}")
    for fmt in ("fp8", "mxfp4"):
        if format_of(fmt).bits < format_of(f.attention).bits:
            experts = min(fmt, f.experts, key=lambda name: format_of(name).bits)
            narrow = replace(f, attention=fmt, ffn=fmt, experts=experts, shared=fmt)
            if memory(replace(d, formats=narrow)).fits:
                ideas.append(f"weights={fmt}")
                break
    budgets = (d.engine.token_budget >> i for i in range(1, d.engine.token_budget.bit_length()))
    budget = next((b for b in budgets if b >= LEAST_BUDGET and memory(_with_budget(d, b)).fits), None)
    if budget:
        ideas.append(f"token_budget={budget} (--engine-set of predict, plan and simulate)")
    if not ideas:
        return f" Neither tp nor pp up to {MAX_IDEA} nor fp8 or mxfp4 weights nor shorter steps alone would fit."
    return f" Fits with {', or with '.join(ideas)}."


def _with_budget(d: Deployment, budget: int) -> Deployment:
    return replace(d, engine=replace(d.engine, token_budget=budget))


def _with_tp(p: Parallelism, tp: int) -> Parallelism:
    return Parallelism(tp=tp, pp=p.pp, ep=min(p.ep, tp * p.dp), dp=p.dp, cp=1, sequence=p.sequence)


def _gigabytes(size: float) -> str:
    """Three digits, and thousands in full: '62.3 GB', '2,680 GB'."""
    return f"{float(f'{size / 1e9:.3g}'):,.15g} GB"


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
