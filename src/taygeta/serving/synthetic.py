"""Synthetic traffic: when requests arrive, how long they are, sessions of turns, a system prompt that all share.

Everything is drawn from NumPy's PCG64 with a stream of its own for each of arrivals, prompts, answers and sessions, so
that a seed gives the same traffic always and a change of rate leaves the lengths alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.serving.lengths import Lengths
from taygeta.serving.traffic import MAX_REQUESTS, MAX_TOKENS, Prefixes, Traffic, make_traffic

PREFIX_BLOCK = 64
"""Tokens of a hashed block of synthetic prefixes: whole blocks of the KV cache of vLLM (16) and TensorRT-LLM (32)."""
CONTEXT = 131_072  # tokens; the window of Llama 3.1 and gpt-oss
MAX_RATE = 1e6  # requests per second
BENCHMARK_ROUNDS = 10
"""Requests of a closed loop for each in flight, as the public serving benchmarks run (InferenceX: 10 x concurrency)."""


@dataclass(frozen=True)
class Poisson:
    """Arrivals that know nothing of each other: exponential gaps, at `rate` requests per second."""

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def times(self, random: Generator, count: int) -> NDArray[np.float64]:
        """Return arrivals in seconds, the first at 0."""
        return _from_gaps(random.exponential(1 / self.rate, count - 1))


@dataclass(frozen=True)
class Gamma:
    """Arrivals with gamma-distributed gaps: cv is their standard deviation over their mean (1: Poisson, more: bursts).

    vLLM's benchmark calls 1/cv^2 its burstiness.
    """

    rate: float
    cv: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        _check_number(self.cv, "The coefficient of variation of gaps", 0.01, 100)

    def times(self, random: Generator, count: int) -> NDArray[np.float64]:
        """Return arrivals in seconds, the first at 0."""
        shape = self.cv**-2
        return _from_gaps(random.gamma(shape, 1 / (self.rate * shape), count - 1))


@dataclass(frozen=True)
class OnOff:
    """Poisson arrivals during `on` seconds, none during the next `off` seconds, again and again; rate: over both."""

    rate: float
    on: float
    off: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        _check_number(self.on, "The seconds of traffic of on-off arrivals", 1e-3, 1e6)
        _check_number(self.off, "The seconds without traffic of on-off arrivals", 0, 1e6)

    def times(self, random: Generator, count: int) -> NDArray[np.float64]:
        """Return arrivals in seconds, the first at 0."""
        inside = _from_gaps(random.exponential(self.on / ((self.on + self.off) * self.rate), count - 1))
        return inside + np.floor(inside / self.on) * self.off


@dataclass(frozen=True)
class Paced:
    """Arrivals evenly spaced, at `rate` requests per second."""

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def times(self, random: Generator, count: int) -> NDArray[np.float64]:
        """Return arrivals in seconds, the first at 0."""
        return np.arange(count) / self.rate


@dataclass(frozen=True)
class Closed:
    """A closed loop: at most `concurrency` requests in flight, each end lets the next one in."""

    concurrency: int

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MAX_REQUESTS:
            raise InputError(f"The concurrency of a closed loop must be 1 to {MAX_REQUESTS:,}, not {self.concurrency}.")


Arrivals = Poisson | Gamma | OnOff | Paced | Closed


@dataclass(frozen=True)
class Sessions:
    """Conversations: each turn's prompt is all that was said before and new tokens of its own.

    turns: of a session. think: mean seconds, exponential, from the end of an answer to the next turn. follow: new
    tokens of the turns after the first; None: as many as the first's. context: a session ends before a turn whose
    prompt and answer exceed so many tokens (its first turn is always kept).
    """

    turns: Lengths
    think: float
    follow: Lengths | None = None
    context: int = CONTEXT

    def __post_init__(self) -> None:
        _check_number(self.think, "The think time of a session", 0, 1e6)
        if not 1 <= self.context <= MAX_TOKENS:
            raise InputError(f"The context of a session must be 1 to {MAX_TOKENS:,} tokens, not {self.context}.")


def synthesise(
    count: int,
    arrivals: Arrivals,
    inputs: Lengths,
    outputs: Lengths,
    seed: int = 0,
    name: str = "synthetic",
    source: str = "",
    sessions: Sessions | None = None,
    system: int = 0,
) -> Traffic:
    """Return `count` requests.

    inputs, outputs: tokens of prompts and answers. sessions: requests are turns of sessions, which start so often that
    requests arrive at the rate of `arrivals` in the long run. system: tokens that all prompts begin with, on top of
    the lengths drawn. Raises InputError.
    """
    if not 1 <= count <= MAX_REQUESTS:
        raise InputError(f"A traffic must have 1 to {MAX_REQUESTS:,} requests, not {count:,}.")
    if not 0 <= system < MAX_TOKENS:
        raise InputError(f"A system prompt must have 0 to {MAX_TOKENS - 1:,} tokens, not {system}.")
    if not 0 <= seed < 2**63:
        raise InputError(f"A seed must be a whole number from 0 to 2^63 - 1, not {seed}.")
    times, prompts, answers, talk = (Generator(PCG64(child)) for child in SeedSequence(seed).spawn(4))
    if sessions is not None:
        if isinstance(arrivals, Closed):
            raise InputError("Sessions cannot run in a closed loop: their turns follow each other; give them a rate.")
        turns = _turns(count, inputs, outputs, sessions, system, (prompts, answers, talk))
        return _in_sessions(turns, arrivals, times, name, source, system)
    return make_traffic(
        name,
        inputs.draw(prompts, count) + system,
        outputs.draw(answers, count),
        None if isinstance(arrivals, Closed) else arrivals.times(times, count),
        source=source,
        concurrency=arrivals.concurrency if isinstance(arrivals, Closed) else 0,
        prefixes=_shared(count, system // PREFIX_BLOCK),
    )


def benchmark(concurrency: int, inputs: Lengths, outputs: Lengths, seed: int = 0, name: str = "closed loop") -> Traffic:
    """Return the closed loop of a public serving benchmark: ten requests for each that is in flight."""
    return synthesise(BENCHMARK_ROUNDS * concurrency, Closed(concurrency), inputs, outputs, seed, name)


class _Turns(NamedTuple):
    """Turns of sessions, one after the other: whether each is the first of its session, the tokens said to its end
    (prompt and answer), those of its answer, the seconds of thought before it.
    """

    first: NDArray[np.bool_]
    ends: NDArray[np.int64]
    osl: NDArray[np.int64]
    think: NDArray[np.float64]


def _turns(
    count: int,
    inputs: Lengths,
    outputs: Lengths,
    sessions: Sessions,
    system: int,
    streams: tuple[Generator, Generator, Generator],
) -> _Turns:
    """The first `count` turns; a batch of sessions at a time, because the context cuts some of them short."""
    batches: list[_Turns] = []
    have = 0
    while have < count:
        batches.append(_some_turns(count - have, inputs, outputs, sessions, system, streams))
        have += len(batches[-1].osl)
    return _Turns(*(np.concatenate(columns)[:count] for columns in zip(*batches, strict=True)))


def _some_turns(
    wanted: int,
    inputs: Lengths,
    outputs: Lengths,
    sessions: Sessions,
    system: int,
    streams: tuple[Generator, Generator, Generator],
) -> _Turns:
    prompts, answers, talk = streams
    turns = np.clip(sessions.turns.draw(talk, wanted), 1, wanted)
    turns = turns[: int(np.searchsorted(np.cumsum(turns), wanted)) + 1]
    total = int(turns.sum())
    first = np.zeros(total, bool)
    first[np.cumsum(turns) - turns] = True
    new = inputs.draw(prompts, total)
    if sessions.follow is not None:
        new = np.where(first, new, sessions.follow.draw(prompts, total))
    osl = outputs.draw(answers, total)
    said = np.cumsum(new + osl)
    ends = said - np.repeat((said - new - osl)[first], turns) + system
    think = talk.exponential(sessions.think, total) if sessions.think else np.zeros(total)
    kept = first | (ends <= sessions.context)  # what is said only grows, so that the leading turns are kept
    return _Turns(first[kept], ends[kept], osl[kept], think[kept])


def _in_sessions(
    turns: _Turns, arrivals: Poisson | Gamma | OnOff | Paced, times: Generator, name: str, source: str, system: int
) -> Traffic:
    first, count = turns.first, len(turns.first)
    session = np.cumsum(first) - 1
    number = int(first.sum())
    starts = replace(arrivals, rate=arrivals.rate * number / count).times(times, number)
    return make_traffic(
        name,
        turns.ends - turns.osl,
        turns.osl,
        np.where(first, starts[session], np.inf),
        source=source,
        after=np.where(first, -1, np.arange(count) - 1),
        delay=np.where(first, 0.0, turns.think),
        prefixes=_histories(session, turns.ends, system // PREFIX_BLOCK),
    )


def _shared(count: int, blocks: int) -> Prefixes | None:
    """Prefixes of requests that share so many leading blocks and nothing else."""
    if not blocks:
        return None
    return Prefixes(np.arange(count + 1) * blocks, np.tile(np.arange(blocks), count), PREFIX_BLOCK)


def _histories(session: NDArray[np.int64], ends: NDArray[np.int64], shared: int) -> Prefixes | None:
    """Prefixes of turns: the whole blocks of all that is said to the end of a turn, the leading ones shared by all.

    session: number of each turn's session. ends: tokens of its prompt and answer.
    """
    counts = ends // PREFIX_BLOCK
    offsets = np.concatenate(([0], np.cumsum(counts)))
    if offsets[-1] == 0:
        return None
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    last = np.flatnonzero(np.diff(session, append=-1))
    own = np.maximum(0, counts[last] - shared)
    base = shared + np.cumsum(own) - own
    ids = np.where(place < shared, place, np.repeat(base[session], counts) + place - shared)
    return Prefixes(offsets, ids, PREFIX_BLOCK)


def _from_gaps(gaps: NDArray[Any]) -> NDArray[np.float64]:
    return np.concatenate(([0.0], np.cumsum(gaps)))


def _check_rate(rate: float) -> None:
    _check_number(rate, "A rate in requests per second", 1e-6, MAX_RATE)


def _check_number(value: float, what: str, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise InputError(f"{what} must be {least:g} to {most:g}, not {value:g}.")
