"""`taygeta calibrate --serving`: the host's constants of an engine, fitted to a serving benchmark of one's own.

Every run of the benchmark is simulated with its own requests, in its own loop. What is compared is, of each run, the
mean TPOT and the mean TTFT: apart for the burst that opens a closed loop and for what comes later, and for short and
for long prompts where they differ. The residuals are logarithms of simulated over measured, in a robust least-squares
fit (Gauss-Newton with bounds at 0, weights of Charbonnier's loss) over the constants of `CONSTANTS`.

A constant that moves nothing in these runs, or that moves the same as one before it, is left as the engine has it and
said so. Intervals are from the curvature of the fit and its residuals, at 95 %. The times of steps are taken as they
are predicted: what they are off by ends in the constants, which are of this engine on this host with this chip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.serving.fleet import fleet
from taygeta.serving.metrics import tpot_of, ttft_of
from taygeta.serving.outcome import Outcome
from taygeta.serving.run import run as run_setup
from taygeta.serving.setup import Setup, prepare
from taygeta.serving.traffic import make_traffic
from taygeta.spec.deployment import Deployment
from taygeta.spec.engine import Engine
from taygeta.validate.measured import Measured

CONSTANTS = {
    "host_step": 1e-3,
    "host_request": 20e-6,
    "prompt_step": 5e-3,
    "client_delay": 5e-3,
    "intake_request": 1e-3,
    "intake_token": 1e-6,
    "emit_token": 5e-6,
}
"""What is fitted, in the order in which it is kept where two move the same, and about how large it is (seconds)."""

LEAST_RUNS = 2  # of different load: one load does not tell a step's time from a request's
LEAST_REQUESTS = 16  # of a run
MOST_REQUESTS = 4_000  # of a run that are simulated
ITERATIONS = 12
STARTS = (0.0, 1.0, 3.0)  # times the usual sizes, each constant at least as the engine has it
VISIBLE = 0.002  # change of any compared time, for a constant at its usual size, below which it is not seen
ALIKE = 0.998  # cosine of the moves of two constants from which they cannot be told apart
ONE_LENGTH = 0.05  # deviation of the prompts' lengths over their mean, below which they are of one length
ROBUST = 0.1  # residual from which a run counts less
LEAST_ERROR = 0.005  # of a residual: a benchmark that is run again differs by more
SPREAD = 1.2  # longest over shortest half of prompts, from which they are compared apart
Z = 1.959963984540054  # of the normal distribution, two-sided, at 95 %

Runner = Callable[[Setup], Outcome]


@dataclass(frozen=True)
class Constant:
    """A constant of the host, seconds. left: why it was not fitted and stays as it was; empty where it was fitted."""

    name: str
    value: float
    low: float
    high: float
    left: str = ""


@dataclass(frozen=True)
class RunError:
    """One run: what was measured, and what the engine as it was and as fitted gives. Seconds."""

    name: str
    concurrency: int
    requests: int
    ttft: tuple[float, float, float]
    tpot: tuple[float, float, float]


@dataclass(frozen=True)
class ServingFit:
    """A fit. engine: with the constants found. constants: each of CONSTANTS. runs: measured, before, after."""

    deployment: Deployment
    engine: Engine
    constants: tuple[Constant, ...]
    runs: tuple[RunError, ...]
    tools: tuple[str, ...]

    def errors(self) -> dict[str, tuple[float, float]]:
        """Return the mean of |simulated / measured - 1| over runs, before and after: of "ttft" and "tpot"."""
        out = {}
        for name in ("ttft", "tpot"):
            times = np.array([getattr(r, name) for r in self.runs])
            times = times[~np.isnan(times).any(axis=1)]
            ends = [float(np.abs(times[:, i] / times[:, 0] - 1.0).mean()) if len(times) else math.nan for i in (1, 2)]
            out[name] = (ends[0], ends[1])
        return out


def fit_serving(
    d: Deployment,
    runs: Sequence[Measured],
    progress: Callable[[int, int], None] | None = None,
    run: Runner = run_setup,
) -> ServingFit:
    """Return the host's constants of a deployment's engine that explain runs of a benchmark.

    run: what runs a setup. Raises InputError for too little data, DoesNotFitError where a deployment cannot serve it.
    """
    _check(runs)
    step = progress or (lambda done, total: None)
    seen = _stream_interval(d.engine, runs)
    served = replace(d, engine=replace(d.engine, stream_interval=seen))
    compared = [_Compared(served, m, run) for m in runs]
    start = np.array([getattr(served.engine, name) for name in CONSTANTS])
    before = [c.times(_named(start)) for c in compared]
    names, left = _seen(compared, start)
    found, errors = _fit(compared, names, start, lambda i: step(i, ITERATIONS))
    after = [c.times(_named(found)) for c in compared]
    step(ITERATIONS, ITERATIONS)
    constants = tuple(
        Constant(name, float(v), max(0.0, float(v - Z * e)), float(v + Z * e), left.get(name, ""))
        for name, v, e in zip(CONSTANTS, found, errors, strict=True)
    )
    made = replace(served.engine, **_named(found))
    results = tuple(
        RunError(m.name, m.concurrency, len(m.isl), (m.mean_ttft, b[0], a[0]), (m.mean_tpot, b[1], a[1]))
        for m, b, a in zip(runs, before, after, strict=True)
    )
    return ServingFit(served, made, constants, results, tuple(sorted({m.tool for m in runs})))


class _Compared:
    """A run ready to be simulated, and the parts of it that are compared."""

    def __init__(self, d: Deployment, m: Measured, run: Runner) -> None:
        self.measured, self._run = m, run
        count = min(len(m.isl), max(MOST_REQUESTS, m.concurrency))
        arrival = None if m.concurrency else m.arrival[:count]
        traffic = make_traffic(m.name, m.isl[:count], m.osl[:count], arrival, concurrency=m.concurrency)
        self._setup = prepare(fleet(d), traffic)
        self._parts = _parts(m, count)

    def outcome(self, constants: dict[str, float]) -> Outcome:
        """Return the run with these constants of the host."""
        kinds = tuple(replace(k, limits=k.limits._replace(**constants)) for k in self._setup.kinds)
        found = self._run(replace(self._setup, kinds=kinds))
        if found.interrupted:  # by the user: a part of a run would mislead the fit
            raise KeyboardInterrupt
        return found

    def residuals(self, constants: dict[str, float]) -> NDArray[np.float64]:
        """Return the logarithm of simulated over measured for each part."""
        o = self.outcome(constants)
        columns = {"ttft": ttft_of(o), "tpot": tpot_of(o)}
        return np.array([math.log(_mean(columns[name][rows]) / value) for name, rows, value in self._parts])

    def times(self, constants: dict[str, float]) -> tuple[float, float]:
        """Return the simulated mean TTFT and TPOT."""
        o = self.outcome(constants)
        return _mean(ttft_of(o)), _mean(tpot_of(o))


def _parts(m: Measured, count: int) -> list[tuple[str, NDArray[np.int64], float]]:
    """(which time, of which requests, its measured mean) of a run."""
    every = np.arange(count)
    if not m.detailed:
        parts = [("ttft", every, m.mean_ttft), ("tpot", every, m.mean_tpot)]
        return [p for p in parts if p[2] > 0.0]
    burst = every[: m.concurrency] if m.concurrency < count else every[:0]
    later = every[len(burst) :]
    groups = [burst]
    short = m.isl[later] <= np.median(m.isl[later])
    halves = [later[short], later[~short]]
    apart = all(len(h) >= LEAST_REQUESTS for h in halves)
    if apart and m.isl[halves[1]].mean() > SPREAD * m.isl[halves[0]].mean():
        groups += halves
    else:
        groups.append(later)
    out = [("ttft", g, float(m.ttft[g].mean())) for g in groups if len(g)]
    known = every[~np.isnan(m.tpot[:count])]
    if len(known) and (tpot := float(m.tpot[known].mean())) > 0.0:
        out.append(("tpot", known, tpot))
    return out


def _seen(compared: Sequence[_Compared], start: NDArray[np.float64]) -> tuple[list[str], dict[str, str]]:
    """The constants that can be told from each other in these runs, and why the others cannot."""
    moves, _ = _moves(compared, list(CONSTANTS), start)
    names: list[str] = []
    left: dict[str, str] = {}
    for n, name in enumerate(CONSTANTS):
        size = float(np.abs(moves[:, n]).max())
        if size < VISIBLE:
            left[name] = "moves nothing in these runs"
            continue
        if name == "intake_token" and _one_length(compared):
            left[name] = "prompts are of one length: it is in intake_request"
            continue
        like = next((k for k in names if _cosine(moves[:, n], moves[:, list(CONSTANTS).index(k)]) > ALIKE), "")
        if like:
            left[name] = f"moves the same as {like} in these runs"
            continue
        names.append(name)
    for name in names[max(1, len(moves) - 1) :]:
        left[name] = "more constants than these runs tell apart"
    return names[: max(1, len(moves) - 1)], left


def _one_length(compared: Sequence[_Compared]) -> bool:
    """Whether the prompts of all runs are so alike that a time for each token is a time for each request."""
    lengths = np.concatenate([c.measured.isl for c in compared])
    return float(lengths.std()) < ONE_LENGTH * float(lengths.mean())


def _fit(
    compared: Sequence[_Compared], names: Sequence[str], start: NDArray[np.float64], step: Callable[[int], None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all constants, those of `names` fitted, and the standard error of each (0 of those left).

    The fit begins at each of STARTS and the best end counts: whether a request catches a step or the next one makes
    valleys.
    """
    places = [list(CONSTANTS).index(name) for name in names]
    scale = np.array(list(CONSTANTS.values()))
    ends = []
    for n, times in enumerate(STARTS):
        begun = start.copy()
        begun[places] = np.maximum(begun[places], times * scale[places])
        ends.append(_descended(compared, names, begun, lambda i, n=n: step((n * ITERATIONS + i) // len(STARTS))))
    x, moves, r = min(ends, key=lambda end: _loss(end[2]))
    return x, _errors(moves, r, places, scale)


def _descended(
    compared: Sequence[_Compared], names: Sequence[str], start: NDArray[np.float64], step: Callable[[int], None]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return constants at which the loss is least around `start`, how residuals move there, and the residuals."""
    places = [list(CONSTANTS).index(name) for name in names]
    x, damping = start.copy(), 1e-3
    scale = np.array(list(CONSTANTS.values()))
    moves, r = _moves(compared, names, x)
    for i in range(ITERATIONS):
        step(i)
        w = _weights(r)
        shift = _bounded(moves, r, w, x[places] / scale[places], damping)
        trial = x.copy()
        trial[places] = np.maximum(0.0, x[places] + shift * scale[places])
        found = _all(compared, trial)
        if _loss(found) < _loss(r) * (1.0 - 1e-9):
            small = float(np.abs(trial - x)[places].max(initial=0.0)) < 1e-3 * float(scale[places].max())
            better = _loss(r) - _loss(found) > 1e-4 * _loss(r)
            x, damping = trial, damping / 4.0
            moves, r = _moves(compared, names, x)
            if small or not better:
                break
        else:
            damping *= 8.0
            if damping > 1e4:
                break
    return x, moves, r


def _errors(
    moves: NDArray[np.float64], r: NDArray[np.float64], places: list[int], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    w = _weights(r)
    free = max(1, len(r) - len(places))
    variance = max(LEAST_ERROR**2, float((w * r * r).sum()) / free)
    normal = moves.T @ (w[:, None] * moves)
    spread = np.linalg.pinv(normal) * variance
    out = np.zeros(len(scale))
    out[places] = np.sqrt(np.maximum(0.0, np.diag(spread))) * scale[places]
    return out


def _bounded(
    moves: NDArray[np.float64], r: NDArray[np.float64], w: NDArray[np.float64], x: NDArray[np.float64], damping: float
) -> NDArray[np.float64]:
    """The damped least-squares step that keeps every constant at 0 or above, by coordinate descent."""
    normal = moves.T @ (w[:, None] * moves)
    normal += damping * np.diag(np.maximum(np.diag(normal), 1e-12))
    slope = moves.T @ (w * r)
    shift = np.zeros(len(x))
    for _ in range(200):
        for i in range(len(x)):
            rest = slope[i] + normal[i] @ shift - normal[i, i] * shift[i]
            shift[i] = max(-x[i], -rest / normal[i, i])
    return shift


def _moves(
    compared: Sequence[_Compared], names: Sequence[str], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how residuals move with each constant, per its usual size, and the residuals.

    Steps of the simulation are whole, so that a change of a fifth of the usual size is looked at, not a tiny one.
    """
    r = _all(compared, x)
    out = np.zeros((len(r), len(names)))
    for n, name in enumerate(names):
        moved = x.copy()
        place = list(CONSTANTS).index(name)
        change = max(0.2 * CONSTANTS[name], 0.1 * x[place])
        moved[place] += change
        out[:, n] = (_all(compared, moved) - r) / (change / CONSTANTS[name])
    return out, r


def _all(compared: Sequence[_Compared], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([c.residuals(_named(x)) for c in compared])


def _named(x: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(CONSTANTS, (float(v) for v in x), strict=True))


def _weights(r: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / np.sqrt(1.0 + (r / ROBUST) ** 2)


def _loss(r: NDArray[np.float64]) -> float:
    return float((ROBUST**2 * (np.sqrt(1.0 + (r / ROBUST) ** 2) - 1.0)).sum())


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return abs(float(a @ b)) / (float(np.linalg.norm(a) * np.linalg.norm(b)) or 1.0)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _stream_interval(found: Engine, runs: Sequence[Measured]) -> int:
    """The tokens that leave together, where the runs show it; else the engine's own."""
    seen = {m.interval for m in runs if m.interval}
    if len(seen) > 1:
        raise InputError(
            f"The runs are of servers that send {', '.join(map(str, sorted(seen)))} tokens at a time: calibrate each"
            " stream interval by itself."
        )
    return seen.pop() if seen else found.stream_interval


def _check(runs: Sequence[Measured]) -> None:
    small = next((m for m in runs if len(m.isl) < LEAST_REQUESTS), None)
    if small:
        raise InputError(f"{small.name} has {len(small.isl)} answered requests; a fit needs {LEAST_REQUESTS} in a run.")
    loads = {m.concurrency or len(m.isl) / max(1e-9, float(m.arrival.max())) for m in runs}
    if len(loads) < LEAST_RUNS:
        raise InputError(
            f"The results are of {len(runs)} run{'s' if len(runs) > 1 else ''} under one load: a step's time and a"
            f" request's can only be told apart under {LEAST_RUNS} or more, such as concurrencies of 1, 8 and 64."
        )
