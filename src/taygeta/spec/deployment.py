"""Deployments and batches: a model on chips, and the work of one step.

Words. tp: tensor parallelism of attention and dense layers. dp: attention data parallelism, every rank keeps its own
requests. ep: ranks over which experts are spread; what is left of a stage, tp x cp x dp / ep, splits each expert. cp:
ranks over which the context of a sequence is spread. pp: pipeline stages. A replica has tp x cp x dp x pp chips.
`concurrency` counts requests of one replica, over all its dp ranks. `context` is what is already in the KV cache,
`new_tokens` what this step adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from taygeta.base.errors import InputError
from taygeta.base.formats import format_of
from taygeta.spec.chip import Chip
from taygeta.spec.engine import Engine
from taygeta.spec.mixers import LinearAttention
from taygeta.spec.model import Model, MoeFfn

MAX_CHIPS = 1 << 17
MAX_SKEW = 3.0
ROUTING_SKEW = 1.01
"""Exponent of the power law of expert loads, unless told otherwise: trained routers are not even.

AIConfigurator (commit 095f58a8) measures skewed expert layers at 1.01 and 1.2. Its end-to-end rows prefer 0.8 to 1.2 to
random routing (TPOT error 13.3/8.6 -> 13.1/8.4 % over all rows) and do not tell these apart.
"""


@dataclass(frozen=True)
class Parallelism:
    """How one replica is spread over chips. sequence: norms work on shards of the tokens (sequence parallelism)."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1
    cp: int = 1
    sequence: bool = False

    @property
    def stage_chips(self) -> int:
        """Chips of one pipeline stage."""
        return self.tp * self.cp * self.dp

    @property
    def chips(self) -> int:
        """Chips of one replica."""
        return self.stage_chips * self.pp

    @property
    def moe_tp(self) -> int:
        """Ranks that split each expert."""
        return self.stage_chips // self.ep

    def __str__(self) -> str:
        names = ("tp", "cp", "dp", "ep", "pp")
        text = " ".join(f"{n}={getattr(self, n)}" for n in names if getattr(self, n) > 1 or n == "tp")
        return text + (" sequence" if self.sequence else "")


@dataclass(frozen=True)
class Formats:
    """The storage format of each part, and of activations and KV cache, as deployed."""

    attention: str
    ffn: str
    experts: str
    shared: str
    head: str
    activations: str
    expert_activations: str
    kv: str

    def of(self, part: str) -> str:
        """Return the format in which weights of a part of the model are stored."""
        fixed = {"embedding": "bf16", "norm": "bf16", "router": "bf16"}
        return fixed.get(part) or getattr(self, part)


@dataclass(frozen=True)
class Corner:
    """One group of assumptions at one end: the model and the chip with just these numbers moved.

    group: "model", or a group of spec.chip.assumption_group. side: "fast" or "slow".
    """

    group: str
    side: str
    model: Model
    chip: Chip


@dataclass(frozen=True)
class Deployment:
    """A model on chips: how it is spread, in which formats, served by which engine.

    chips: the chips in all replicas together. corners: the model and the chip at the fast and at the slow end of what
    is assumed about them; empty when nothing is.
    """

    model: Model
    chip: Chip
    chips: int
    parallelism: Parallelism
    formats: Formats
    engine: Engine
    corners: tuple[Corner, ...] = ()
    skew: float = ROUTING_SKEW

    @property
    def replicas(self) -> int:
        """Whole replicas that the chips hold."""
        return self.chips // self.parallelism.chips

    def at(self, corner: Corner) -> Deployment:
        """Return the deployment at a corner of its assumptions."""
        return replace(self, model=corner.model, chip=corner.chip, corners=())

    def spread(self, parallelism: Parallelism) -> Deployment:
        """Return the same deployment under another parallelism. Raises InputError if model or chips forbid it."""
        check_parallelism(self.model, parallelism, self.chips)
        return replace(self, parallelism=parallelism)


@dataclass(frozen=True)
class Group:
    """`count` sequences that each add `new_tokens` after `context` cached tokens."""

    count: int
    new_tokens: int
    context: int


@dataclass(frozen=True)
class Batch:
    """The work of one step on one attention-DP rank. Prefill and decode are not modes, they are batches."""

    groups: tuple[Group, ...] = field(default=())

    def __post_init__(self) -> None:
        for g in self.groups:
            if g.count < 0 or g.new_tokens < 0 or g.context < 0:
                raise InputError(f"A batch needs counts and lengths that are not negative, not {g}.")

    @classmethod
    def decode(cls, requests: int, context: int) -> Batch:
        """Return a batch in which every request adds one token."""
        return cls((Group(requests, 1, context),))

    @classmethod
    def prefill(cls, requests: int, tokens: int, context: int = 0) -> Batch:
        """Return a batch in which every request adds `tokens` tokens of its prompt."""
        return cls((Group(requests, tokens, context),))

    def __add__(self, other: Batch) -> Batch:
        return Batch(self.groups + other.groups)

    @property
    def tokens(self) -> int:
        """New tokens of the step."""
        return sum(g.count * g.new_tokens for g in self.groups)

    @property
    def requests(self) -> int:
        """Sequences in the step."""
        return sum(g.count for g in self.groups)


def choose_formats(
    model: Model, chip: Chip, weights: str | None = None, activations: str | None = None, kv: str | None = None
) -> Formats:
    """Return the formats of a deployment.

    Weights are stored as the checkpoint stores them unless `weights` is given: then every part but embedding, norms,
    router and head takes it. Activations follow the weights: the chip's own pairing, else the format itself where the
    chip computes in it (a quantised multiply), else bf16 (weights are widened in the core). Raises InputError or
    UnknownNameError.
    """
    native = model.native
    for name in (weights, activations, kv):
        if name is not None:
            format_of(name)
    parts = {p: weights or _served(getattr(native, p)) for p in ("attention", "ffn", "experts", "shared")}
    return Formats(
        **parts,
        head=_served(native.head),
        activations=activations or _activations(parts["ffn"], chip, native.activations if weights is None else None),
        expert_activations=activations
        or _activations(parts["experts"], chip, native.activations if weights is None else None),
        kv=kv or _served(native.kv),
    )


def _served(stored: str) -> str:
    """Engines cast fp32 checkpoints to bf16 when they load them (vLLM's dtype auto)."""
    return "bf16" if stored == "fp32" else stored


def _activations(weights: str, chip: Chip, native: str | None) -> str:
    paired = chip.activations.get(weights)
    if paired and (format_of(paired).bits >= 16 or chip.computes(paired)):
        return paired
    if format_of(weights).bits >= 16 or weights == "int4" or not chip.computes(weights):
        return "bf16"
    return native if native and native != "bf16" and format_of(native).bits == format_of(weights).bits else weights


def deployment(
    model: Model,
    chip: Chip,
    chips: int,
    engine: Engine,
    parallelism: Parallelism | None = None,
    weights: str | None = None,
    activations: str | None = None,
    kv: str | None = None,
    corners: tuple[Corner, ...] = (),
    skew: float = ROUTING_SKEW,
) -> Deployment:
    """Return a checked deployment; by default tensor parallelism over all chips. Raises InputError."""
    if not 1 <= chips <= MAX_CHIPS:
        raise InputError(f"A deployment needs 1 to {MAX_CHIPS:,} chips, not {chips}.")
    spread = parallelism or Parallelism(tp=chips)
    check_parallelism(model, spread, chips)
    if not 0.0 <= skew <= MAX_SKEW:
        raise InputError(f"skew must be 0 (random routing) to {MAX_SKEW:g} (a few experts take all), not {skew:g}.")
    formats = choose_formats(model, chip, weights, activations, kv)
    return Deployment(model, chip, chips, spread, formats, engine, corners, skew)


def check_parallelism(model: Model, p: Parallelism, chips: int) -> None:
    """Refuse a parallelism that the model or the number of chips cannot hold, and say what would work."""
    for name in ("tp", "pp", "ep", "dp", "cp"):
        if getattr(p, name) < 1:
            raise InputError(f"{name} must be 1 or more, not {getattr(p, name)}.")
    if p.pp > len(model.layers):
        raise InputError(f"pp={p.pp} is more than the {len(model.layers)} layers of {model.name}.")
    _check_heads(model, p, chips)
    _check_experts(model, p)
    if chips % p.chips:  # last: a number of chips is good advice only for what the model can hold
        raise InputError(
            f"{p} needs {p.chips} chips for each replica, and {chips} chips are no multiple of that: "
            f"use {_multiple(chips, p.chips)} chips."
        )


def _check_heads(model: Model, p: Parallelism, chips: int) -> None:
    """Refuse a tp that the heads do not spread over; advise the nearest, and chips for it where these are none."""
    if divides_heads(model, p.tp):
        return
    others = p.chips // p.tp
    fits = [tp for tp in range(1, max(_heads(model)) + 1) if divides_heads(model, tp)]
    near = min(fits, key=lambda tp: (abs(tp - p.tp), chips % (tp * others) > 0, tp))
    needed = _multiple(chips, near * others)
    on = f" with {needed} {'chip' if needed == 1 else 'chips'}" if needed != chips else ""
    heads = next(h for h in _heads(model) if h % p.tp)
    raise InputError(f"tp={p.tp} does not divide the {heads} heads of {model.name}: use tp={near}{on}.")


def _multiple(chips: int, of: int) -> int:
    """Return the multiple nearest to a number of chips, at least one."""
    return of * max(1, round(chips / of))


def divides_heads(model: Model, tp: int) -> bool:
    """Return whether the heads of every layer spread evenly over `tp` ranks."""
    return all(heads % tp == 0 for heads in _heads(model))


def _heads(model: Model) -> tuple[int, ...]:
    mixers = (layer.mixer for layer, _ in model.kinds())
    return tuple(m.value_heads if isinstance(m, LinearAttention) else m.heads for m in mixers if m is not None)


def _check_experts(model: Model, p: Parallelism) -> None:
    counts = {layer.ffn.experts for layer, _ in model.kinds() if isinstance(layer.ffn, MoeFfn)}
    if p.ep > 1 and not counts:
        raise InputError(f"ep={p.ep} needs a mixture of experts, and {model.name} has none: use ep=1.")
    if p.stage_chips % p.ep:
        raise InputError(
            f"ep={p.ep} does not divide the {p.stage_chips} chips of a stage ({p}): use ep={p.stage_chips}."
        )
    for experts in counts:
        if p.ep > experts:
            raise InputError(f"ep={p.ep} is more than the {experts} experts of {model.name}.")
