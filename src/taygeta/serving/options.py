"""From the options of a command to a traffic: a trace, a built-in workload, or lengths and arrivals of one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from taygeta.base.errors import InputError
from taygeta.serving.lengths import Fixed, Geometric, Lengths, LogNormal, Uniform
from taygeta.serving.synthetic import (
    BENCHMARK_ROUNDS,
    Arrivals,
    Closed,
    Gamma,
    OnOff,
    Paced,
    Poisson,
    Sessions,
    synthesise,
)
from taygeta.serving.trace import BLOCK, load_trace
from taygeta.serving.traffic import Traffic
from taygeta.serving.workloads import REQUESTS, workload

SIGMA = 0.9
"""Deviation of the logarithm of a length where none is given: prompts and answers of Azure's conversations of 2023 have
0.99 and 0.86."""
ARRIVALS = "poisson, uniform, gamma:CV or on-off:ON:OFF (seconds)"
LENGTHS = "fixed, uniform, uniform:LOW, lognormal or lognormal:SIGMA"


@dataclass(frozen=True)
class TrafficOptions:
    """What a user says of the traffic; None: not said.

    trace: a file. workload: a built-in one, or its file. isl, osl: nominal tokens of prompt and answer. lengths: how
    they are spread (LENGTHS). arrivals: how requests arrive (ARRIVALS), at `rate` requests per second; of a trace, the
    rate it is scaled to. scale: factor on the rate of a trace. concurrency: a closed loop instead. requests: how many;
    of a trace, the first so many. turns, think: mean turns of a session and seconds of thought between them. system:
    tokens that all prompts share, on top of the others. sort: order a trace by arrival. unit: of a trace's times.
    block: tokens of a trace's hashed blocks.
    """

    trace: str | None = None
    workload: str | None = None
    isl: int | None = None
    osl: int | None = None
    lengths: str | None = None
    arrivals: str | None = None
    rate: float | None = None
    scale: float | None = None
    concurrency: int | None = None
    requests: int | None = None
    turns: float | None = None
    think: float | None = None
    system: int | None = None
    seed: int = 0
    sort: bool = False
    unit: str | None = None
    block: int | None = None


_TRACE_ONLY = ("scale", "sort", "unit", "block")
_DRAWN_ONLY = ("workload", "isl", "osl", "lengths", "arrivals", "concurrency", "turns", "think", "system")
_OWN_ONLY = ("isl", "osl", "lengths", "turns", "think", "system")


def build_traffic(options: TrafficOptions) -> Traffic:
    """Return the traffic that options describe. Raises InputError for options that contradict each other or say too
    little, and what reading a trace or drawing lengths raises.
    """
    if options.requests is not None and options.requests < 1:
        raise InputError(f"--requests must be 1 or more, not {options.requests}.")
    if options.trace is not None:
        _refuse(options, _DRAWN_ONLY, "--trace", "the trace says so itself")
        return _from_trace(options, options.trace)
    _refuse(options, _TRACE_ONLY, "", "it is of a --trace")
    if options.workload is not None:
        _refuse(options, _OWN_ONLY, "--workload", "the workload says so itself")
        return _from_workload(options, options.workload)
    if options.isl is None or options.osl is None:
        raise InputError("Traffic needs a --trace, a --workload, or --isl and --osl.")
    return _from_lengths(options, options.isl, options.osl)


def parse_lengths(text: str, tokens: int) -> Lengths:
    """Return lengths of nominal `tokens` from fixed, uniform, uniform:LOW, lognormal or lognormal:SIGMA.

    tokens: all, the largest, or the mean. Raises InputError.
    """
    kind, *numbers = text.strip().lower().split(":")
    kind = kind.replace("-", "")  # log-normal too; the sign of a number stays
    if kind == "fixed" and not numbers:
        return Fixed(tokens)
    if kind == "uniform" and len(numbers) <= 1:
        return Uniform(tokens, *_numbers(numbers, "--lengths", text, LENGTHS))
    if kind == "lognormal" and len(numbers) <= 1:
        sigma = _numbers(numbers, "--lengths", text, LENGTHS)
        return LogNormal.of(mean=tokens, sigma=sigma[0] if sigma else SIGMA)
    raise InputError(f"--lengths must be {LENGTHS}, not {text!r}.")


def parse_arrivals(text: str, rate: float) -> Arrivals:
    """Return arrivals at a rate from poisson, uniform, gamma:CV or on-off:ON:OFF. Raises InputError."""
    kind, *texts = text.strip().lower().replace("_", "-").split(":")
    numbers = _numbers(texts, "--arrivals", text, ARRIVALS)
    if kind == "poisson" and not numbers:
        return Poisson(rate)
    if kind == "uniform" and not numbers:
        return Paced(rate)
    if kind == "gamma" and len(numbers) == 1:
        return Gamma(rate, *numbers)
    if kind == "on-off" and len(numbers) == 2:
        return OnOff(rate, *numbers)
    raise InputError(f"--arrivals must be {ARRIVALS}, not {text!r}.")


def _from_trace(options: TrafficOptions, path: str) -> Traffic:
    if options.scale is not None and options.rate is not None:
        raise InputError("--scale and --rate both set the rate of a trace: give one of them.")
    block = BLOCK if options.block is None else options.block
    found = load_trace(path, sort=options.sort, unit=options.unit, block=block)
    if options.requests is not None:
        found = found.take(options.requests)
    if options.scale is not None:
        return found.scaled_rate(options.scale)
    if options.rate is None:
        return found
    rate = found.statistics().rate
    if rate is None:
        raise InputError(f"{path}: its requests arrive all at once and have no rate that --rate could scale.")
    return found.scaled_rate(options.rate / rate)


def _from_workload(options: TrafficOptions, name: str) -> Traffic:
    found = workload(name)
    if options.concurrency is not None and found.sessions is not None:
        raise InputError(f"Workload {found.name} has sessions, whose turns cannot run in a closed loop: give a --rate.")
    if options.concurrency is None and options.rate is None and found.rate is None:
        raise InputError(f"No rate was published of workload {found.name}: give a --rate or a --concurrency.")
    arrivals, count = _arrivals(options, found.rate)
    return synthesise(
        count,
        arrivals,
        found.inputs,
        found.outputs,
        options.seed,
        found.name,
        found.source,
        found.sessions,
        found.system,
    )


def _from_lengths(options: TrafficOptions, isl: int, osl: int) -> Traffic:
    if options.turns is None and options.think is not None:
        raise InputError("--think is the time between the turns of a session: give --turns too.")
    if options.turns is not None and options.concurrency is not None:
        raise InputError("--turns and --concurrency exclude each other: sessions arrive at a --rate.")
    arrivals, count = _arrivals(options, None)
    spread = options.lengths or "fixed"
    sessions = None if options.turns is None else Sessions(Geometric(options.turns), options.think or 0.0)
    name = f"isl {isl:,}, osl {osl:,}" + (f", {spread}" if options.lengths else "")
    inputs, outputs = parse_lengths(spread, isl), parse_lengths(spread, osl)
    return synthesise(
        count, arrivals, inputs, outputs, options.seed, name, sessions=sessions, system=options.system or 0
    )


def _arrivals(options: TrafficOptions, published: float | None) -> tuple[Arrivals, int]:
    """The arrivals and the number of requests."""
    if options.concurrency is not None:
        _refuse(options, ("rate", "arrivals"), "--concurrency", "in a closed loop an end lets the next request in")
        return Closed(options.concurrency), options.requests or BENCHMARK_ROUNDS * options.concurrency
    rate = published if options.rate is None else options.rate
    if rate is None:
        raise InputError("Traffic needs a --rate (requests per second) or a --concurrency.")
    return parse_arrivals(options.arrivals or "poisson", rate), options.requests or REQUESTS


def _refuse(options: TrafficOptions, names: tuple[str, ...], beside: str, reason: str) -> None:
    """Refuse options that have no meaning beside another."""
    plain = {field.name: field.default for field in fields(options)}
    for name in names:
        if getattr(options, name) != plain[name]:
            both = f"--{name} and {beside} exclude each other" if beside else f"--{name} has no meaning here"
            raise InputError(f"{both}: {reason}.")


def _numbers(texts: list[str], option: str, given: str, wanted: str) -> list[float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{option} must be {wanted}, not {given!r}.")
    return numbers
