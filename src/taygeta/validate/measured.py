"""One run of a serving benchmark as it was measured, and the checked values that files make it from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.serving.traffic import MAX_TOKENS

MAX_REQUESTS = 1_000_000
MAX_SECONDS = 1e6  # of any latency


@dataclass(frozen=True, eq=False)
class Measured:
    """One run of a benchmark.

    name: its file, and its place there. tool: that wrote it. concurrency: requests in flight of a closed loop, 0 of an
    open one. arrival: seconds from the first request, of an open loop. isl, osl: tokens of each request, in the order
    in which they were sent. ttft, tpot: seconds of each, NaN where it has none; empty where the file has means only,
    as its lengths then are. mean_ttft, mean_tpot: seconds. interval: tokens that arrive together, 0 where it is not
    seen. failed: requests without an answer.
    """

    name: str
    tool: str
    concurrency: int
    arrival: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    ttft: NDArray[np.float64]
    tpot: NDArray[np.float64]
    mean_ttft: float
    mean_tpot: float
    interval: int = 0
    failed: int = 0

    @property
    def detailed(self) -> bool:
        """Whether the file has each request."""
        return len(self.ttft) > 0


def measured(
    where: str,
    tool: str,
    concurrency: int,
    times: NDArray[np.float64] | None,
    isl: NDArray[np.float64],
    osl: NDArray[np.float64],
    ttft: NDArray[np.float64],
    tpot: NDArray[np.float64],
    good: NDArray[np.bool_],
    seen: NDArray[np.int64],
) -> Measured:
    """Return a run from the columns of its requests; times: when they were sent, seen: gaps between what arrived.

    Raises InputError where none was answered, an answered one has no prompt, or an open loop has no times.
    """
    if not good.any():
        raise InputError(f"{where} has no request that was answered.")
    if concurrency == 0 and times is None:
        raise InputError(f"{where}: an open loop needs the times at which requests were sent, and has none.")
    order = np.flatnonzero(good)
    if times is not None:
        order = order[np.argsort(times[order], kind="stable")]
    isl, osl, ttft, tpot = isl[order], osl[order], ttft[order], tpot[order]
    if isl.min() < 1:
        raise InputError(f"{where}: a request that was answered has a prompt of {isl.min():g} tokens; 1 is the least.")
    for name, values, most in (("prompt", isl, MAX_TOKENS), ("answer", osl, MAX_TOKENS), ("TTFT", ttft, MAX_SECONDS)):
        if values.max() > most:
            raise InputError(f"{where}: a {name} of {values.max():g} is more than {most:g}.")
    known = tpot[(osl >= 2) & ~np.isnan(tpot)]
    arrival = times[order] - times[order].min() if concurrency == 0 and times is not None else np.zeros(0)
    return Measured(
        name=where,
        tool=tool,
        concurrency=concurrency,
        arrival=arrival,
        isl=isl.astype(np.int64),
        osl=osl.astype(np.int64),
        ttft=ttft,
        tpot=np.where(osl >= 2, tpot, np.nan),
        mean_ttft=float(ttft.mean()),
        mean_tpot=float(known.mean()) if len(known) else math.nan,
        interval=_interval(osl, seen[order]),
        failed=int((~good).sum()),
    )


def _interval(osl: NDArray[np.float64], seen: NDArray[np.int64]) -> int:
    """Tokens that arrive together: those after the first over the gaps seen; 0 where gaps are not known."""
    known = (seen > 0) & (osl >= 2)
    return max(1, round(float(np.median((osl[known] - 1) / seen[known])))) if known.any() else 0


def means(
    where: str, tool: str, concurrency: int, done: int, isl: float, osl: float, ttft: float, tpot: float, failed: int
) -> Measured:
    """Return a run of which the means alone are known: `done` requests of these lengths. Raises InputError."""
    if not 1 <= done <= MAX_REQUESTS:
        raise InputError(f"{where}: the number of answered requests must be 1 to {MAX_REQUESTS:,}, not {done:,}.")
    for name, value, most in (("prompt", isl, MAX_TOKENS), ("answer", osl, MAX_TOKENS)):
        if not 1.0 <= value <= most:
            raise InputError(f"{where}: a mean {name} must be 1 to {most:,} tokens, not {value:g}.")
    if not 0.0 < ttft <= MAX_SECONDS or not 0.0 <= tpot <= MAX_SECONDS:
        raise InputError(f"{where}: the mean TTFT and TPOT must be times above 0, not {ttft:g} s and {tpot:g} s.")
    prompts, answers = (np.full(done, round(value), np.int64) for value in (isl, osl))
    empty = np.zeros(0)
    return Measured(where, tool, concurrency, empty, prompts, answers, empty, empty, ttft, tpot, 0, max(0, failed))


def with_failed(m: Measured, failed: int) -> Measured:
    """Return a run with so many more requests that failed."""
    return replace(m, failed=m.failed + failed)


def object_of(value: Any, where: str) -> Mapping[str, Any]:
    """Return a JSON object. Raises InputError."""
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}.")
    return value


def inside(document: Mapping[str, Any], *keys: str) -> Mapping[str, Any] | None:
    """Return the JSON object at a path of keys; None where there is none."""
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def list_of(document: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """Return the list under a name. Raises InputError."""
    if name not in document:
        raise InputError(f"{where}: {name} is missing: benchmark with --save-detailed.")
    return array_of(document[name], f"{where}: {name}")


def array_of(value: Any, where: str) -> list[Any]:
    """Return a list of a bounded length. Raises InputError."""
    if not isinstance(value, list) or len(value) > MAX_REQUESTS:
        raise InputError(f"{where} must be a list of at most {MAX_REQUESTS:,} values.")
    return value


def column_of(values: Sequence[Any], where: str, gaps: bool = False) -> NDArray[np.float64]:
    """Return a column of finite numbers of 0 or more; with gaps, None is NaN. Raises InputError."""
    if any(isinstance(v, bool) or not (isinstance(v, (int, float)) or (gaps and v is None)) for v in values):
        raise InputError(f"{where} must be numbers.")
    try:
        found = np.array([math.nan if v is None else float(v) for v in values], dtype=float)
    except OverflowError:
        raise InputError(f"{where} must be finite numbers of 0 or more.") from None
    bad = ~(np.isfinite(found) & (found >= 0.0)) & ~(np.isnan(found) if gaps else np.zeros(len(found), bool))
    if bad.any():
        raise InputError(f"{where} must be finite numbers of 0 or more, not {found[bad][0]:g}.")
    return found


def number_of(value: Any, where: str) -> float:
    """Return a finite number of 0 or more. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where} must be a number, not {str(value)[:40]!r}.")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and found >= 0.0):
        raise InputError(f"{where} must be a finite number of 0 or more, not {found:g}.")
    return found


def count_of(value: Any, where: str) -> int:
    """Return a whole number of 1 or more. Raises InputError."""
    found = number_of(value, where)
    if found != int(found) or not 1 <= found <= MAX_REQUESTS:
        raise InputError(f"{where} must be a whole number of 1 to {MAX_REQUESTS:,}, not {found:g}.")
    return int(found)


def whole_of(document: Mapping[str, Any], name: str, where: str) -> int:
    """Return the whole number of 1 or more under a name. Raises InputError."""
    if name not in document:
        raise InputError(f"{where}: {name} is missing.")
    found = number_of(document[name], f"{where}: {name}")
    if found < 1:
        raise InputError(f"{where}: {name} must be 1 or more, not {found:g}.")
    return int(found)


def milliseconds_of(document: Mapping[str, Any], name: str, where: str) -> float:
    """Return the seconds of the milliseconds under a name. Raises InputError."""
    if name not in document:
        raise InputError(f"{where}: {name} is missing.")
    return number_of(document[name], f"{where}: {name}") * 1e-3
