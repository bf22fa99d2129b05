"""A closed loop at fixed concurrency in its steady state: TPOT, prefill time, throughput, what a token costs.

Every request in flight adds one token a step; between two of its tokens a request waits for the step, for the host,
and for the prefills of the others. While it makes its osl tokens, each of the others ends and is followed by a new
prompt once:

    TPOT = step + host_step + host_request x batch + stall x (batch - 1) / osl

A service shows the sum with its parts: those of the step, "host and engine" for the host, "prompts of others" for the
last term, and "other stages" where a pipeline's slowest stage, not its latency, sets the pace. What an engine makes of
a prompt's kernels, and the seconds it takes beyond them, are "host and engine" of the prefill.

The first three belong to chip and engine, the last is what a closed loop adds. `stall` is what one prompt costs the
others: where an engine mixes chunks of prompts into decode steps, the difference that they make to those steps; where
it runs prefills alone, the time of a step of that prompt alone, since answers of unequal lengths end one by one.

Where all requests have the same lengths and prefills run alone, answers begin together and end together: prompts come
in waves, as many in a step as fit the token budget, and a request waits only for those that come after its own, half
of them on average: prefill x (batch - together) / 2 / osl. Engines that mix spread a wave by themselves, since early
prompts decode while late ones are read.

Queueing before the first token is not in it: TTFT comes from simulating the requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from taygeta.base.errors import InputError
from taygeta.base.interval import Interval, widen
from taygeta.cost.predict import Predictor
from taygeta.cost.result import HOST, OTHERS, STAGES, Part, Service
from taygeta.cost.steps import StepTimes
from taygeta.economics.tokens import dollars_per_million, per_megawatt
from taygeta.graph.memory import check_fits, largest_batch
from taygeta.spec.deployment import Batch, Deployment

MAX_TOKENS = 1 << 22


@dataclass(frozen=True)
class Load:
    """What a closed loop asks for: input and output tokens of a request, requests in flight over all replicas.

    equal_lengths: every request has just these lengths, as in a benchmark; else they are means of what varies.
    """

    isl: int
    osl: int
    concurrency: int
    equal_lengths: bool = False

    def __post_init__(self) -> None:
        for name in ("isl", "osl", "concurrency"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_TOKENS:
                raise InputError(f"{name} must be 1 to {MAX_TOKENS:,}, not {value:,}.")

    def per_rank(self, d: Deployment) -> int:
        """Requests of the fullest attention-DP rank."""
        return -(-self.concurrency // (d.replicas * d.parallelism.dp))


def decode_batch(d: Deployment, load: Load, batch: int) -> Batch:
    """Return one decode step of a rank in the middle of its answers, of one microbatch under pipeline parallelism."""
    return Batch.decode(-(-batch // d.parallelism.pp), load.isl + load.osl // 2)


def prefill_batches(d: Deployment, isl: int) -> tuple[Batch, ...]:
    """Return the steps that take in one prompt: chunks of at most the engine's token budget."""
    budget = d.engine.token_budget
    return tuple(Batch.prefill(1, min(budget, isl - start), start) for start in range(0, isl, budget))


def prefill_seconds(model: StepTimes, d: Deployment, isl: int) -> float:
    """Return the time of the steps that take in one prompt on an idle replica."""
    return sum(prompt_seconds(model, d, batch) for batch in prefill_batches(d, isl))


def prompt_seconds(model: StepTimes, d: Deployment, batch: Batch) -> float:
    """Return the time of a step that holds prompts, with what the engine makes of it."""
    return model.seconds(batch)[0] * d.engine.prompt_slowdown + step_beyond(d, batch.tokens)


def step_beyond(d: Deployment, tokens: int) -> float:
    """Return the seconds that a step with prompts takes beyond its kernels: none where it was captured."""
    return d.engine.prompt_step if tokens > d.engine.captured_tokens else 0.0


def prompts_together(d: Deployment, load: Load, batch: int) -> int:
    """Return the prompts of a prefill step: one, unless requests end together and prefills run alone."""
    if d.engine.mixes_prefill or not load.equal_lengths:
        return 1
    return max(1, min(batch, d.engine.token_budget // load.isl))


def prompts_waited(d: Deployment, load: Load, batch: int) -> float:
    """Return the prompts of others that run while a request makes its tokens, by the engine's policy."""
    if d.engine.mixes_prefill or not load.equal_lengths:
        return batch - 1.0
    return (batch - prompts_together(d, load, batch)) / 2.0


def together_share(load: Load, batch: int) -> float:
    """Return the steps that hold prompts, for each prompt: several that come during one step share the next.

    A step ends batch / osl answers on average, whose successors come independently of each other.
    """
    coming = batch / load.osl
    return -math.expm1(-coming) / coming


def stall_seconds(model: StepTimes, d: Deployment, load: Load, batch: int) -> float:
    """Return the time that one prompt adds to the steps of the other requests of its rank, by the engine's policy."""
    slow = d.engine.prompt_slowdown
    if d.engine.mixes_prefill:
        decode = decode_batch(d, load, batch)
        alone = model.seconds(decode)[0]
        more, share = (slow - 1.0) * alone, together_share(load, batch)
        steps = [chunk + decode for chunk in prefill_batches(d, load.isl)]
        beyond = sum(more + step_beyond(d, step.tokens) for step in steps) * share
        return sum(slow * (model.seconds(step)[0] - alone) for step in steps) + beyond
    together, budget = prompts_together(d, load, batch), d.engine.token_budget
    chunks = [Batch.prefill(together, min(budget, load.isl - at), at) for at in range(0, load.isl, budget)]
    share = together_share(load, batch) if together == 1 else 1.0
    return sum(slow * model.seconds(c)[0] + share * step_beyond(d, c.tokens) for c in chunks) / together


def tpot_seconds(model: StepTimes, d: Deployment, load: Load, batch: int) -> float:
    """Return seconds per output token for `batch` requests on a rank, by the formula of the module."""
    latency, interval = model.seconds(decode_batch(d, load, batch))
    step = max(latency, interval * d.parallelism.pp)
    host = d.engine.host_step + d.engine.host_request * batch
    if batch == 1:
        return step + host
    return step + host + stall_seconds(model, d, load, batch) * prompts_waited(d, load, batch) / load.osl


def beyond_decode(model: StepTimes, d: Deployment, load: Load, batch: int, stall_bound: str) -> tuple[Part, ...]:
    """Return what `tpot_seconds` adds to the latency of a decode step, as parts. stall_bound: what binds prompts."""
    latency, interval = model.seconds(decode_batch(d, load, batch))
    waited = stall_seconds(model, d, load, batch) * prompts_waited(d, load, batch) / load.osl if batch > 1 else 0.0
    parts = (
        (HOST, d.engine.host_step + d.engine.host_request * batch, "host"),
        (OTHERS, waited, stall_bound),
        (STAGES, max(latency, interval * d.parallelism.pp) - latency, "pipeline"),
    )
    return tuple(part for part in parts if part[1] > 0.0)


def quick_rates(model: StepTimes, d: Deployment, load: Load) -> tuple[float, float, float]:
    """Return (tpot, prefill, tokens/s of all replicas) at nominal values, for searches; checks no memory."""
    prefill = prefill_seconds(model, d, load.isl)
    tpot = tpot_seconds(model, d, load, load.per_rank(d))
    return tpot, prefill, load.concurrency * load.osl / (prefill + tpot * load.osl)


def service(predictor: Predictor, load: Load, price: tuple[float, float, float] | None = None) -> Service:
    """Return the steady state of a closed loop on a deployment.

    price: dollars per chip-hour, instead of the chip's own.

    Raises DoesNotFitError when the requests do not fit, InputError for a load without tokens.
    """
    d = predictor.deployment
    batch = load.per_rank(d)
    use = check_fits(d, batch * d.parallelism.dp, load.isl + load.osl)
    error = d.chip.error("step", d.engine.framework)
    decode_step, prompt_steps = decode_batch(d, load, batch), prefill_batches(d, load.isl)
    decode, prompt = predictor.predict(decode_step), predictor.predict_all(prompt_steps)
    tpots = [(group, tpot_seconds(m, d, load, batch)) for group, m in predictor.corner_models]
    prefills = [(group, prefill_seconds(m, d, load.isl)) for group, m in predictor.corner_models]
    tpot = widen(tpot_seconds(predictor.nominal, d, load, batch), tpots, error, predictor.floor(decode_step))
    floor = sum(map(predictor.floor, prompt_steps))
    prefill = widen(prefill_seconds(predictor.nominal, d, load.isl), prefills, error, floor)
    beyond = prefill.nominal - prompt.seconds.nominal
    rates = [load.concurrency * load.osl / (p + t * load.osl) for t, p in _edges(tpot, prefill)]
    tokens = Interval(rates[2], rates[1], rates[0])
    per_chip = tokens.scaled(1.0 / d.chips)
    return Service(
        deployment=d,
        isl=load.isl,
        osl=load.osl,
        concurrency=load.concurrency,
        tpot=tpot,
        prefill=prefill,
        tokens_per_s=tokens,
        per_chip=per_chip,
        per_user=tpot.inverse(),
        dollars=dollars_per_million(price or d.chip.price, per_chip),
        per_megawatt=per_megawatt(d.chip.power, per_chip),
        memory=use,
        room=largest_batch(d, load.isl + load.osl, use) * d.replicas,
        decode=decode,
        prompt=prompt,
        beyond_decode=beyond_decode(predictor.nominal, d, load, batch, prompt.bound),
        beyond_prompt=((HOST, beyond, "host"),) if beyond > 0.0 else (),
        notes=_notes(d),
    )


def _edges(a: Interval, b: Interval) -> tuple[tuple[float, float], ...]:
    return ((a.low, b.low), (a.nominal, b.nominal), (a.high, b.high))


def _notes(d: Deployment) -> tuple[str, ...]:
    notes = list(d.model.notes)
    for part, weights, activations in (
        ("layers", d.formats.ffn, d.formats.activations),
        ("experts", d.formats.experts, d.formats.expert_activations),
    ):
        if weights != activations and (part == "layers" or d.formats.experts != d.formats.ffn):
            notes.append(
                f"{part}: {weights} weights x {activations} activations, multiplied in "
                f"{d.chip.mode(weights, activations)}"
            )
    idle = d.chips - d.replicas * d.parallelism.chips
    if idle:
        notes.append(f"{idle} of {d.chips} chips are idle")
    return tuple(dict.fromkeys(notes))
