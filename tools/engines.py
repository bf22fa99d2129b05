"""Fit the host's constants of every recipe to measured serving runs: `python tools/engines.py DIRECTORY [RECIPE ...]`.

A recipe is an engine as a public benchmark ran it, such as sglang@inferencex. Every clean run of e2e.parquet whose
labels tell it apart is simulated at POINTS spread evenly over all that its host's constants may be. A quadratic through
these times then stands for the simulation, and on it the constants are searched everywhere: those that make small what
is scored, the mean errors of TTFT and TPOT, large ones cut. Where this leads, it is done once more, closer.

The same is done without each fifth of the configurations (model, chip, precision, release, parallelism; those that
share a measurement count as one), which is then simulated with what was found without it, so that no row is scored by
constants that saw its configuration. Nothing starts from what an earlier search found.
Prints the constants, the errors with them on all rows, and the cross-fitted errors; writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from taygeta.base.errors import TaygetaError
from taygeta.serving.fast import run_fast
from taygeta.serving.limits import Limits, kernels
from taygeta.serving.setup import Setup
from taygeta.spec.engine import engine
from taygeta.validate.e2e import Row, Runner, means, row_of
from taygeta.validate.systems import Systems
from taygeta.validate.tables import find_tables, read_table

REACH = {  # what a host may take at least and at most: seconds, a factor for prompt_slowdown, for eager per operation
    "host_step": (0.0, 4e-3),
    "host_request": (0.0, 5e-5),
    "prompt_step": (0.0, 0.2),
    "prompt_slowdown": (0.8, 1.6),
    "client_delay": (0.0, 0.15),
    "eager": (0.0, 2e-4),
    "emit_token": (0.0, 1e-4),
}
POINTS = 160  # simulated for every run, over all of REACH; the quadratic has 36 coefficients
CLOSER = 96  # simulated for every run once more, where these led
MARGIN = 0.12  # of the side of the unit cube, around the points that were found with and without each fifth
LOOKS = 4096  # at the quadratic, over all of REACH
BEST = 8  # of which are followed, each through ROUNDS of CLOUD points around it
ROUNDS, CLOUD = 60, 40
SAME = 1.1  # TPOT of two runs with the same labels, at most, one over the other, or searches look at neither
CUT = 1.0  # of an error: rows that take twice as long as measured, or longer, pull no more
TPOT_WEIGHT = 1.3
FOLDS = 5

Constants = dict[str, float]
HELD: list[Run] = []


@dataclass
class Run:
    """A measured run made ready. operations: that a step with prompts launches one by one."""

    row: Row
    setup: Setup
    operations: int
    measured: tuple[float, float]
    configuration: str
    none: frozenset[str] = frozenset()  # constants that a rule of the launch sets to nothing
    rows: int = 1  # of the table that repeat it
    told: bool = True  # no other run has all of its labels and another time

    def times(self, constants: Constants) -> tuple[float, float]:
        """Return the simulated (TTFT, TPOT) with other constants of the host."""
        kind = self.setup.kinds[0]
        values = {**constants, "eager": constants["eager"] * self.operations} | dict.fromkeys(self.none, 0.0)
        limits = kind.limits._replace(**values)
        try:
            return means(run_fast(replace(self.setup, kinds=(replace(kind, limits=limits),))))
        except TaygetaError:
            return np.nan, np.nan


def runs(directory: Path, wanted: list[str]) -> dict[str, list[Run]]:
    """Return the clean aggregated rows by recipe (all, or those wanted), each distinct run once."""
    runner, seen = Runner(Systems()), {}
    out: dict[str, list[Run]] = {}
    table, path = next(found for found in find_tables(directory) if found[0].name == "e2e")
    frame = read_table(table, path).filter(pl.col("clean") & (pl.col("mode") == "agg"))
    for values in frame.iter_rows(named=True):
        row, measured = row_of(values), (values["ttft_s"], values["tpot_s"])
        if wanted and row.recipe not in wanted:
            continue
        if (row, measured) in seen:
            seen[row, measured].rows += 1
            continue
        try:
            setup = runner.setup(row)
        except TaygetaError as error:
            print(f"left out: {row.model} on {row.system}: {error}", file=sys.stderr)
            continue
        name = f"{row.model} {row.system} {row.formats} {values['backend_version']} {row.spreads}"
        operations = kernels(setup.kinds[0].pool.deployment)
        found = Run(row, setup, operations, measured, name, without(row.recipe, setup.kinds[0].limits))
        seen[row, measured] = found
        out.setdefault(row.recipe, []).append(found)
    for some in out.values():
        mark(some)
        join(some)
    return out


def join(some: list[Run]) -> None:
    """Give the configurations that share a measurement one name: the table has runs under several labels, and a fold
    that leaves one of them out must leave out the others.
    """
    first: dict[tuple[float, float], Run] = {}
    for run in some:
        same = first.setdefault(run.measured, run)
        if same.configuration != run.configuration:
            old, new = max(same.configuration, run.configuration), min(same.configuration, run.configuration)
            for other in some:
                if other.configuration == old:
                    other.configuration = new


def mark(some: list[Run]) -> None:
    """Mark the runs that share every label, checkpoints of one shape counting as one, with a run of another TPOT: what
    tells them apart, the table does not say.
    """
    groups: dict[Any, list[Run]] = {}
    for run in some:
        shape = replace(run.setup.kinds[0].pool.deployment.model, name="")
        groups.setdefault((replace(run.row, model=""), shape), []).append(run)
    for group in groups.values():
        times = [run.measured[1] for run in group]
        for run in group:
            run.told = max(times) < SAME * min(times)


def without(recipe: str, bounds: Limits) -> frozenset[str]:
    """Return the constants that a recipe has and that a rule of the launch took away."""
    whole = engine(recipe)
    stated = {"eager": whole.eager_launch, "prompt_step": whole.prompt_step}
    return frozenset(key for key, value in stated.items() if value and not getattr(bounds, key))


def errors(some: Iterable[Run], constants: Constants) -> np.ndarray:
    """Return simulated / measured of (TTFT, TPOT), rows x 2."""
    return np.array([np.divide(run.times(constants), run.measured) for run in some])


def spread(count: int) -> np.ndarray:
    """Return points that fill the unit cube evenly, count x constants: the additive sequence of the generalised golden
    ratio (Roberts, The unreasonable effectiveness of quasirandom sequences, 2018).
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1.0 + ratio) ** (1.0 / (len(REACH) + 1))
    return (0.5 + np.outer(np.arange(1, count + 1), ratio ** -np.arange(1.0, len(REACH) + 1))) % 1.0


def placed(points: np.ndarray) -> np.ndarray:
    """Return the shares of their reach that points of the unit cube stand for: closer where a constant is small."""
    return np.where([low == 0.0 for low, _ in REACH.values()], points**2, points)


def constants_at(point: np.ndarray) -> Constants:
    """Return the constants at a point of the unit cube."""
    shares = placed(point)
    return {name: low + share * (high - low) for share, (name, (low, high)) in zip(shares, REACH.items(), strict=True)}


def terms(points: np.ndarray) -> np.ndarray:
    """Return the terms of a quadratic in the constants, points x terms."""
    shares = placed(points)
    first, second = np.triu_indices(len(REACH))
    return np.hstack([np.ones((len(points), 1)), shares, shares[:, first] * shares[:, second]])


@dataclass(frozen=True)
class Box:
    """A part of the unit cube: its lowest and highest corner."""

    low: np.ndarray
    high: np.ndarray

    def spread(self, count: int) -> np.ndarray:
        """Return points that fill the box evenly, count x constants."""
        return self.low + spread(count) * (self.high - self.low)


CUBE = Box(np.zeros(len(REACH)), np.ones(len(REACH)))


def around(points: list[np.ndarray]) -> Box:
    """Return the smallest box of some points, with a margin, inside the unit cube."""
    return Box(
        np.maximum(np.min(points, axis=0) - MARGIN, 0.0),
        np.minimum(np.max(points, axis=0) + MARGIN, 1.0),
    )


@dataclass(frozen=True)
class Surface:
    """Times of runs in a box over the measured, as quadratics in the constants, terms x runs x 2."""

    box: Box
    coefficients: np.ndarray

    def loss(self, points: np.ndarray) -> np.ndarray:
        """Return what the search makes small, for each point: the mean cut error of TTFT, and of TPOT weighted."""
        off = np.minimum(np.abs(np.tensordot(terms(points), self.coefficients, 1) - 1.0), CUT).mean(axis=1)
        return off[:, 0] + TPOT_WEIGHT * off[:, 1]

    def lowest(self) -> np.ndarray:
        """Return the point of the least loss found: clouds that shrink around the best of many looks."""
        draws = np.random.default_rng(0)
        looks = self.box.spread(LOOKS)
        losses = np.concatenate([self.loss(part) for part in np.array_split(looks, LOOKS // 256)])
        found = [self.followed(looks[i], float(losses[i]), draws) for i in np.argsort(losses)[:BEST]]
        return min(found, key=lambda pair: pair[0])[1]

    def followed(self, point: np.ndarray, least: float, draws: np.random.Generator) -> tuple[float, np.ndarray]:
        """Return the least loss and its point that clouds around a point lead to; without gain they shrink."""
        size = 0.15 * (self.box.high - self.box.low)
        for _ in range(ROUNDS):
            moved = draws.random((CLOUD, len(REACH))) < 0.4
            step = size * draws.standard_normal(moved.shape) * moved
            cloud = np.clip(point + step, self.box.low, self.box.high)
            losses = self.loss(cloud)
            best = int(losses.argmin())
            if losses[best] < least:
                point, least = cloud[best], float(losses[best])
            else:
                size = 0.8 * size
        return least, point


@dataclass(frozen=True)
class Simulated:
    """Runs of a recipe and their (TTFT, TPOT) at points of a box, runs x points x 2; nan for those no search sees."""

    some: list[Run]
    box: Box
    times: np.ndarray

    def lowest(self, left_out: frozenset[str] = frozenset()) -> np.ndarray:
        """Return the point found on all runs that are told apart, but for those of some configurations."""
        good = [
            i
            for i, run in enumerate(self.some)
            if run.configuration not in left_out and np.isfinite(self.times[i]).all()
        ]
        count = self.times.shape[1]
        ratios = self.times[good] / np.array([self.some[i].measured for i in good])[:, None]
        values = np.moveaxis(ratios, 0, 1).reshape(count, -1)
        coefficients = np.linalg.lstsq(terms(self.box.spread(count)), values)[0]
        return Surface(self.box, coefficients.reshape(-1, len(good), 2)).lowest()


def simulated(some: list[Run], box: Box, count: int) -> Simulated:
    """Return the runs with their times at `count` points of a box, found on all cores."""
    HELD[:] = some  # for the processes to come: what a run holds is not sent
    points = [constants_at(point) for point in box.spread(count)]
    times = np.full((len(some), count, 2), np.nan)
    told = [i for i, run in enumerate(some) if run.told]
    with get_context("fork").Pool() as pool:
        for i, found in zip(told, pool.imap(partial(times_of_held, points), told), strict=True):
            times[i] = found
    return Simulated(some, box, times)


def times_of_held(points: list[Constants], index: int) -> np.ndarray:
    """Return the (TTFT, TPOT) of a run that is held at each point."""
    return np.array([HELD[index].times(constants) for constants in points])


def folds(some: list[Run]) -> list[frozenset[str]]:
    """Return fifths of the configurations of some runs; none where there is only one."""
    names = sorted({run.configuration for run in some})
    count = min(FOLDS, len(names))
    return [frozenset(names[fold::count]) for fold in range(count)] if count > 1 else []


def found_and_held(some: list[Run]) -> tuple[Constants, list[tuple[np.ndarray, list[int]]]]:
    """Return the constants found on all runs, and of each fold (simulated / measured, rows of each run) with those
    found without it.

    The box that is looked at more closely holds what was found with and without each fold; a fold's own constants are
    then again the lowest of a loss that it is not part of.
    """
    parts = folds(some)
    far = simulated(some, CUBE, POINTS)
    box = around([far.lowest(), *(far.lowest(part) for part in parts)])
    near = simulated(some, box, CLOSER)
    held = []
    for part in parts:
        left = [run for run in some if run.configuration in part]
        held.append((errors(left, constants_at(near.lowest(part))), [run.rows for run in left]))
    return constants_at(near.lowest()), held


def said(what: str, off: np.ndarray) -> str:
    """Return a line with mean, median and 90th percentile of |error| in % of TTFT and of TPOT."""
    size = 100.0 * np.abs(off - 1.0)
    parts = [
        f"{name} {size[:, i].mean():.1f}/{np.median(size[:, i]):.1f}/{np.quantile(size[:, i], 0.9):.1f}"
        for i, name in enumerate(("TTFT", "TPOT"))
    ]
    return f"{what}, {len(off)} runs: {', '.join(parts)}"


def main(directory: Path, wanted: list[str]) -> None:
    """Fit, cross-fit and print."""
    everything: list[tuple[np.ndarray, list[int]]] = []
    for name, some in sorted(runs(directory, wanted).items()):
        bounds = some[0].setup.kinds[0].limits
        start = {key: float(getattr(bounds, key)) for key in REACH}
        start["eager"] = engine(name).eager_launch
        start["prompt_step"] = engine(name).prompt_step
        found, held = found_and_held(some)
        print(name, {key: float(f"{value:.3g}") for key, value in found.items()})
        print(said("  before", errors(some, start)))
        print(said("  fitted on all", errors(some, found)))
        held = held or [(errors(some, found), [run.rows for run in some])]
        everything += held
        print(said(f"  cross-fitted in {len(held)} folds", np.concatenate([off for off, _ in held])), flush=True)
    print(said("All, cross-fitted, each run once", np.concatenate([off for off, _ in everything])))
    print(said("All, cross-fitted, every row", np.concatenate([np.repeat(*pair, axis=0) for pair in everything])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
