"""Fitting a few physical constants to measured times: the loss, the search, and how sure the result is.

The loss is the mean of |log(predicted / measured)|, capped at 1, so that a row that is off by more than e
says nothing more. The range of a constant and the error on rows not fitted come from five refits that each
leave out a fifth of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from taygeta.base.errors import InputError
from taygeta.spec.chip import Chip

MOST_ROWS = 1500  # of a fit: more change a constant by less than its range
FOLDS = 5
EVALUATIONS = 60  # of the loss, for each constant
INSIDE = 0.8  # share of left-out measurements that the stated error covers
LINK_LATENCY = "link.latency"


@dataclass(frozen=True)
class Constant:
    """One constant to fit: its path without "calibration.", and where it is plausible; outside it is not
    searched.
    """

    path: str
    low: float
    high: float


@dataclass(frozen=True)
class Problem:
    """Rows to fit on. predict(chip, rows) returns seconds for the rows with these indices; source says what
    the rows are, kinds of which kinds of taygeta.validate.kinds.
    """

    kernel: str
    constants: tuple[Constant, ...]
    measured: np.ndarray
    predict: Callable[[Chip, np.ndarray], np.ndarray]
    source: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """Fitted constants with their ranges; errors as fractions. held_out: ratio that covers INSIDE of left-out
    rows, minus one.
    """

    kernel: str
    values: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    rows: int
    mape: float
    median: float
    held_out: float
    source: str
    kinds: tuple[str, ...] = ()


def with_constants(chip: Chip, values: Mapping[str, float]) -> Chip:
    """Return a chip with other calibration constants, or another latency of its links."""
    rest = {path: value for path, value in values.items() if path != LINK_LATENCY}
    link = chip.link
    if LINK_LATENCY in values and link is not None:
        link = replace(link, latency=values[LINK_LATENCY])
    return replace(chip, constants=MappingProxyType({**chip.constants, **rest}), link=link)


def fit(problem: Problem, chip: Chip) -> Fit:
    """Return the constants that explain the rows best, starting at those of the chip. Raises InputError if
    nothing explains them.
    """
    order = np.random.default_rng(0).permutation(len(problem.measured))[:MOST_ROWS]
    start = np.array([start_of(chip, constant) for constant in problem.constants])
    best = _search(problem, chip, order, start, EVALUATIONS)
    refits, left = [], []
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        found = _search(problem, chip, np.setdiff1d(order, out), best, EVALUATIONS // 3)
        refits.append(found)
        left.append(_log_error(problem, chip, out, found))
    error = np.abs(np.expm1(_log_error(problem, chip, order, best)))
    if not np.isfinite(error).all():
        raise InputError(f"{problem.source}: predictions are not finite, whatever the constants.")
    names = [constant.path for constant in problem.constants]
    spread = np.vstack([best, *refits])
    return Fit(
        problem.kernel,
        MappingProxyType(dict(zip(names, best.tolist(), strict=True))),
        MappingProxyType(
            {name: (float(spread[:, i].min()), float(spread[:, i].max())) for i, name in enumerate(names)}
        ),
        len(order),
        float(error.mean()),
        float(np.median(error)),
        float(np.expm1(np.quantile(np.abs(np.concatenate(left)), INSIDE))),
        problem.source,
        problem.kinds,
    )


def start_of(chip: Chip, constant: Constant) -> float:
    """Return what the chip has for a constant, moved into its bounds; the middle of them where it has
    nothing.
    """
    known = (
        chip.link.latency
        if constant.path == LINK_LATENCY and chip.link
        else chip.constants.get(constant.path, 0.0)
    )
    if known <= 0.0:
        known = float(np.sqrt(constant.low * constant.high))
    return float(np.clip(known, constant.low, constant.high))


def _search(
    problem: Problem, chip: Chip, rows: np.ndarray, start: np.ndarray, evaluations: int
) -> np.ndarray:
    low, high = (np.log([getattr(c, end) for c in problem.constants]) for end in ("low", "high"))

    def loss(x: np.ndarray) -> float:
        error = np.abs(_log_error(problem, chip, rows, np.exp(np.clip(x, low, high))))
        return float(np.minimum(error, 1.0).mean())

    found = nelder_mead(loss, np.log(start), 0.05 * (high - low), evaluations * len(start))
    return np.exp(np.clip(found, low, high))


def _log_error(problem: Problem, chip: Chip, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    names = (constant.path for constant in problem.constants)
    tried = with_constants(chip, dict(zip(names, values.tolist(), strict=True)))
    return np.log(problem.predict(tried, rows) / problem.measured[rows])


def nelder_mead(
    loss: Callable[[np.ndarray], float],
    start: np.ndarray,
    steps: Sequence[float] | np.ndarray,
    evaluations: int,
) -> np.ndarray:
    """Return where a loss is smallest, by the downhill simplex of Nelder and Mead (Computer Journal 7, 1965).

    steps: how far the first simplex reaches along each axis. Reflection 1, expansion 2, contraction and
    shrinking 1/2.
    """
    points = np.vstack([start, start + np.diag(steps)])
    values = np.array([loss(point) for point in points])
    used = len(values)
    while used < evaluations and np.ptp(values) > 1e-7:
        order = np.argsort(values, kind="stable")
        points, values = points[order], values[order]
        centre = points[:-1].mean(axis=0)
        trial = 2.0 * centre - points[-1]
        value = loss(trial)
        used += 1
        if value < values[0]:
            further = 3.0 * centre - 2.0 * points[-1]
            far = loss(further)
            used += 1
            trial, value = (further, far) if far < value else (trial, value)
        elif value >= values[-2]:
            nearer = trial if value < values[-1] else points[-1]
            trial = 0.5 * (centre + nearer)
            value = loss(trial)
            used += 1
            if value >= min(values[-1], loss(nearer)):
                points[1:] = 0.5 * (points[1:] + points[0])
                values[1:] = [loss(point) for point in points[1:]]
                used += len(points)
                continue
        points[-1], values[-1] = trial, value
    return points[int(np.argmin(values))]
