"""Traffic: the requests of a run as columns, whatever they came from (a trace, a generator, a user's own arrays).

A request arrives at a time of its own, or is released by another one: the next turn of a session arrives `delay`
seconds after the turn before it ended, and in a closed loop the end of any request lets the next one in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taygeta.base.errors import InputError

MAX_REQUESTS = 20_000_000
MAX_TOKENS = 1 << 22  # four times the longest context window that is sold
MAX_SECONDS = 1e9  # thirty years; a float64 still tells 0.1 us apart there
MAX_HASHES = 1 << 30  # of all requests together: 8 GiB of ids


def _same(a: object, b: object) -> bool:
    """Whether two nouns of this file hold the same columns and the same words."""
    if type(a) is not type(b):
        return False
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]  # type: ignore[arg-type]
    return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


def _column(values: ArrayLike, kind: type, what: str) -> NDArray[Any]:
    """Return a column in its type. Raises InputError for what is no column of numbers, or of whole ones."""
    try:
        found = np.asarray(values)
        with np.errstate(invalid="ignore", over="ignore"):  # what does not fit is seen by the comparison
            column = np.ascontiguousarray(found, dtype=kind)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{what} of a traffic must be numbers.") from None
    if found.dtype.kind not in "iuf" or found.ndim != 1:
        raise InputError(f"{what} of a traffic must be one column of numbers, not {found.ndim} of {found.dtype}.")
    if kind is not np.float64 and not np.array_equal(column, found):  # 1.5 became 1, 2**40 wrapped around
        raise InputError(f"{what} of a traffic must be whole numbers of {np.dtype(kind).itemsize * 8} bits.")
    return column


@dataclass(frozen=True, eq=False)
class Prefixes:
    """What the sequences of requests share: the ids of consecutive blocks of each sequence's tokens.

    offsets: int64[requests + 1]; the ids of request i are ids[offsets[i]:offsets[i + 1]]. ids: int64, dense from 0;
    equal ids mean equal tokens from the first of the sequence to the end of that block. They cover the prompt, and the
    answer too where it is known; the last one may stand for a block that is filled in part. block: tokens of a block.
    Raises InputError for columns that cannot mean this.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int64]
    block: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", _column(self.offsets, np.int64, "Offsets of prefixes"))
        object.__setattr__(self, "ids", _column(self.ids, np.int64, "Ids of prefixes"))
        offsets, ids = self.offsets, self.ids
        if not 1 <= self.block <= MAX_TOKENS:
            raise InputError(f"A block of a hashed prefix must have 1 to {MAX_TOKENS:,} tokens, not {self.block}.")
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
            raise InputError("Offsets of prefixes must rise from 0 to the number of ids.")
        if len(ids) > MAX_HASHES:
            raise InputError(f"Prefixes have {len(ids):,} ids, more than {MAX_HASHES:,}: take fewer requests.")
        if len(ids) and (ids.min() < 0 or ids.max() >= len(ids) or not np.bincount(ids).all()):
            raise InputError("Ids of prefixes must be dense: every whole number from 0 to the largest.")
        before = parents(offsets, ids)
        if not np.array_equal(before, before[first_places(ids)[ids]]):
            raise InputError("Equal ids of prefixes must have equal ids before them: an id stands for a whole prefix.")

    __eq__ = _same
    __hash__ = None  # type: ignore[assignment] - holds arrays

    def seen(self) -> NDArray[np.int64]:
        """Return for each request how many of its leading blocks an earlier request of the list holds too."""
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        known = np.concatenate(([0], np.cumsum(first_places(self.ids)[self.ids] < starts)))
        return known[self.offsets[1:]] - known[self.offsets[:-1]]

    def chosen(self, order: NDArray[np.int64]) -> Prefixes:
        """Return the prefixes of some requests, in the order given."""
        counts = np.diff(self.offsets)[order]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][order] - offsets[:-1], counts)
        return Prefixes(offsets, dense(self.ids[places]), self.block)


def parents(offsets: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the id before each id of a list of prefixes, -1 for the first of a sequence."""
    before = np.empty_like(ids)
    before[1:] = ids[:-1]
    before[offsets[:-1][offsets[:-1] < offsets[1:]]] = -1
    return before


def first_places(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of the dense ids is first."""
    first = np.empty(int(ids.max(initial=-1)) + 1, np.int64)
    first[ids[::-1]] = np.arange(len(ids) - 1, -1, -1)  # the last to be written is the first of the list
    return first


def dense(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ids numbered from 0 in the order in which they are first met."""
    values, first, index = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(first)] = np.arange(len(values))
    return rank[index]


@dataclass(frozen=True)
class Spread:
    """Mean, median and 99th percentile of a column of token counts."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Spread:
        """Return the spread of a column that is not empty."""
        p50, p99 = np.percentile(values, (50, 99))
        return cls(float(values.mean()), float(p50), float(p99))


@dataclass(frozen=True)
class Statistics:
    """What a traffic is like before anything serves it.

    isl, osl: tokens of a request. duration: seconds from the first to the last arrival that is known before the run.
    rate: such arrivals per second; None where no time passes between them (a closed loop, all at once). shared: share
    of the tokens of prompts that an earlier request of the list holds too, which is what a prefix cache without limits
    would save.
    """

    requests: int
    isl: Spread
    osl: Spread
    duration: float
    rate: float | None
    shared: float


@dataclass(frozen=True, eq=False)
class Traffic:
    """The requests of a run, one value of each column for each request.

    name: for people. source: citation, shown wherever a result is shown; empty for a user's own. arrival: float64,
    seconds from the start of the run, not decreasing among the finite ones; infinite where another request releases
    this one. isl, osl: int64, tokens of the prompt (1 or more) and of the answer (0 or more). priority: int32, higher
    goes first. after: int64, the request (of a lower index) whose end releases this one, or -1. delay: float64,
    seconds from that end. concurrency: 0 for an open loop; else at most so many requests are in flight: the first so
    many arrive at 0, each end releases the next in order, whose arrival is infinite and whose `after` is -1.

    Raises InputError for columns that are no traffic.
    """

    name: str
    source: str
    arrival: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    priority: NDArray[np.int32]
    after: NDArray[np.int64]
    delay: NDArray[np.float64]
    concurrency: int = 0
    prefixes: Prefixes | None = None

    def __post_init__(self) -> None:
        for name, kind in _COLUMNS.items():
            object.__setattr__(self, name, _column(getattr(self, name), kind, f"Values of {name}"))
        count = len(self.isl)
        if not 1 <= count <= MAX_REQUESTS:
            raise InputError(f"A traffic must have 1 to {MAX_REQUESTS:,} requests, not {count:,}.")
        for name in _COLUMNS:
            if len(getattr(self, name)) != count:
                raise InputError(f"{name} has {len(getattr(self, name)):,} values for {count:,} requests.")
        _check_tokens(self.isl, "isl", 1)
        _check_tokens(self.osl, "osl", 0)
        _check_links(self)
        (_check_closed if self.concurrency else _check_open)(self)
        _check_prefixes(self)

    __eq__ = _same
    __hash__ = None  # type: ignore[assignment] - holds arrays

    def __len__(self) -> int:
        return len(self.isl)

    def take(self, count: int) -> Traffic:
        """Return the first `count` requests, or all where there are fewer. Raises InputError."""
        if count < 1:
            raise InputError(f"A traffic needs 1 request or more, not {count}.")
        columns = {name: getattr(self, name)[:count] for name in _COLUMNS}
        kept = None
        if self.prefixes is not None:
            kept = self.prefixes.chosen(np.arange(min(count, len(self))))
        return replace(self, **columns, prefixes=kept)

    def scaled_rate(self, factor: float) -> Traffic:
        """Return the same requests arriving `factor` times as fast; think times between turns stay.

        Raises InputError.
        """
        if self.concurrency:
            raise InputError("A closed loop has no rate to scale: change its concurrency.")
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"A rate is scaled by a finite number above 0, not {factor:g}.")
        with np.errstate(over="ignore"):  # an arrival beyond the end of time is refused
            return replace(self, arrival=self.arrival / factor)

    def shifted(self) -> Traffic:
        """Return the same requests with the first arrival at 0."""
        return replace(self, arrival=self.arrival - self.arrival.min())

    def statistics(self) -> Statistics:
        """Return what the traffic is like."""
        known = self.arrival[np.isfinite(self.arrival)]
        duration = float(known[-1] - known[0])
        reused = 0
        if self.prefixes is not None:
            reused = int(np.minimum(self.prefixes.seen() * self.prefixes.block, self.isl).sum())
        return Statistics(
            requests=len(self),
            isl=Spread.of(self.isl),
            osl=Spread.of(self.osl),
            duration=duration,
            rate=(len(known) - 1) / duration if duration > 0 and not self.concurrency else None,
            shared=reused / int(self.isl.sum()),
        )


_COLUMNS = {
    "arrival": np.float64, "isl": np.int64, "osl": np.int64, "priority": np.int32, "after": np.int64,
    "delay": np.float64,
}  # fmt: skip


def make_traffic(
    name: str,
    isl: ArrayLike,
    osl: ArrayLike,
    arrival: ArrayLike | None = None,
    *,
    source: str = "",
    priority: ArrayLike | None = None,
    after: ArrayLike | None = None,
    delay: ArrayLike | None = None,
    concurrency: int = 0,
    prefixes: Prefixes | None = None,
) -> Traffic:
    """Return a traffic from the columns that matter; the others get their plain values.

    Without `arrival` all requests arrive at once, or, with a concurrency, as its closed loop says. Raises InputError.
    """
    count = int(np.size(np.asarray(isl)))
    if arrival is None:
        arrival = np.zeros(count)
        if concurrency:
            arrival[max(0, concurrency) :] = np.inf
    return Traffic(
        name=name,
        source=source,
        arrival=np.asarray(arrival),
        isl=np.asarray(isl),
        osl=np.asarray(osl),
        priority=np.zeros(count, np.int32) if priority is None else np.asarray(priority),
        after=np.full(count, -1) if after is None else np.asarray(after),
        delay=np.zeros(count) if delay is None else np.asarray(delay),
        concurrency=concurrency,
        prefixes=prefixes,
    )


def joined(counts: NDArray[np.int64], ids: NDArray[np.int64], block: int) -> Prefixes | None:
    """Return prefixes from the number of ids of each request and all their ids; None when no request has any.

    ids: dense. Ids that follow different ids become different prefixes, also where they are the same number (hashes of
    the tokens of a block alone). Raises InputError.
    """
    offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    if offsets[-1] == 0:
        return None
    before = parents(offsets, ids)
    if not np.array_equal(before, before[first_places(ids)[ids]]):
        ids = _chained(offsets, ids)
    return Prefixes(offsets, ids, block)


def _chained(offsets: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number prefixes by the id of their last block and the number of the prefix before it."""
    known: dict[tuple[int, int], int] = {}
    out: list[int] = []
    flat = ids.tolist()
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        number = -1
        for value in flat[start:end]:
            number = known.setdefault((number, value), len(known))
            out.append(number)
    return np.array(out, np.int64)


def _check_tokens(values: NDArray[np.int64], name: str, least: int) -> None:
    bad = np.flatnonzero((values < least) | (values > MAX_TOKENS))
    if len(bad):
        raise InputError(f"{name} of request {bad[0]} must be {least} to {MAX_TOKENS:,} tokens, not {values[bad[0]]}.")


def _check_links(t: Traffic) -> None:
    index = np.arange(len(t))
    bad = np.flatnonzero((t.after < -1) | (t.after >= index))
    if len(bad):
        raise InputError(
            f"after of request {bad[0]} must be -1 or the number of an earlier request, not {t.after[bad[0]]}."
        )
    bad = np.flatnonzero(~((t.delay >= 0) & (t.delay <= MAX_SECONDS)))
    if len(bad):
        raise InputError(f"delay of request {bad[0]} must be 0 to {MAX_SECONDS:g} seconds, not {t.delay[bad[0]]:g}.")


def _check_open(t: Traffic) -> None:
    released = t.after >= 0
    bad = np.flatnonzero(~np.where(released, t.arrival == np.inf, (t.arrival >= 0) & (t.arrival <= MAX_SECONDS)))
    if len(bad):
        wanted = "infinite, as another request releases it" if released[bad[0]] else f"0 to {MAX_SECONDS:g} seconds"
        raise InputError(f"arrival of request {bad[0]} must be {wanted}, not {t.arrival[bad[0]]:g}.")
    places = np.flatnonzero(~released)
    back = np.flatnonzero(np.diff(t.arrival[places]) < 0)
    if len(back):
        late = places[back[0] + 1]
        raise InputError(f"Request {late} arrives before the one in front of it: sort requests by arrival.")


def _check_closed(t: Traffic) -> None:
    if not 1 <= t.concurrency <= MAX_REQUESTS:
        raise InputError(f"The concurrency of a closed loop must be 1 to {MAX_REQUESTS:,}, not {t.concurrency}.")
    if (t.after != -1).any():
        raise InputError("In a closed loop every end releases the next request: `after` must be -1.")
    if (t.arrival[: t.concurrency] != 0).any() or (t.arrival[t.concurrency :] != np.inf).any():
        raise InputError(
            f"In a closed loop of {t.concurrency} the first {t.concurrency} requests arrive at 0 and the others "
            "when one ends (an infinite arrival)."
        )


def _check_prefixes(t: Traffic) -> None:
    if t.prefixes is None:
        return
    if len(t.prefixes.offsets) != len(t) + 1:
        raise InputError(f"Prefixes are of {len(t.prefixes.offsets) - 1:,} requests, the traffic has {len(t):,}.")
    blocks = np.diff(t.prefixes.offsets)
    bad = np.flatnonzero(blocks > -(-(t.isl + t.osl) // t.prefixes.block))
    if len(bad):
        raise InputError(
            f"Request {bad[0]} has {blocks[bad[0]]} prefix blocks of {t.prefixes.block} tokens for "
            f"{t.isl[bad[0]] + t.osl[bad[0]]} tokens of prompt and answer."
        )
