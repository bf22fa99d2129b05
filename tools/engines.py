"""Fit the host's constants of every recipe to measured serving runs: `python tools/engines.py DIRECTORY [RECIPE ...]`.

A recipe is an engine as a public benchmark ran it, such as sglang@inferencex. Its constants are found by a search along
one constant after the other on a sample of the clean rows of e2e.parquet, without runs that their labels do not tell
apart; what is compared are the logarithms of simulated over measured TTFT and TPOT, large ones cut. Then the same is
done without each fifth of the configurations (model, chip, precision, release, parallelism) and scored on that fifth,
so that no row is scored by constants that saw its configuration. Prints the constants, the errors with them on all
rows, and the cross-fitted errors; writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
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

STEPS = {  # first moves of the search, seconds; prompt_slowdown is a factor, eager seconds for each operation
    "host_step": 3e-4,
    "host_request": 5e-6,
    "prompt_step": 1e-2,
    "prompt_slowdown": 0.1,
    "first_delay": 1e-2,
    "eager": 3e-5,
    "emit_token": 2e-5,
}
LEAST = {"prompt_slowdown": 0.6}
NEUTRAL = {  # where searches start; those of cross-fits from nothing else
    "host_step": 1e-3,
    "host_request": 1e-5,
    "prompt_slowdown": 1.0,
    "emit_token": 2e-5,
}
# And with what of these is best on the sample: they lie in valleys of their own. The coarse grid was laid after earlier
# searches over all rows had ended near some of its points.
STARTS = [
    {**NEUTRAL, "prompt_step": step, "first_delay": delay, "eager": eager}
    for step in (0.0, 2e-2, 1e-1)
    for delay in (1e-2, 8e-2)
    for eager in (0.0, 6e-5)
]
ROUNDS = 3  # along all constants; moves that do not help are halved
SAMPLE = 210  # rows that a search looks at, at most
SAME = 1.1  # TPOT of two runs with the same labels, at most, one over the other, or searches look at neither
CUT = 0.5  # of a logarithm: rows off by more than a factor of 1.65 (cold starts, unlabelled speculation) do not pull
TPOT_WEIGHT = 1.3
FOLDS = 5

Constants = dict[str, float]


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
    return out


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


def loss(some: list[Run], constants: Constants) -> float:
    """Return what the search makes small: mean cut |logarithm| of TTFT, and of TPOT with its weight."""
    off = np.minimum(np.nan_to_num(np.abs(np.log(errors(some, constants))), nan=CUT), CUT).mean(axis=0)
    return float(off[0] + TPOT_WEIGHT * off[1])


def fitted(some: list[Run], *known: Constants) -> Constants:
    """Return the constants that a search along one after the other finds on a sample of runs, from the best of STARTS
    and of constants that are known.
    """
    told = [run for run in some if run.told]
    sample = told[:: -(-len(told) // SAMPLE)]
    best, step = min([*STARTS, *known], key=lambda start: loss(sample, start)), dict(STEPS)
    least = loss(sample, best)
    for _ in range(ROUNDS):
        for name in STEPS:
            found, least = along(sample, best, least, name, step[name])
            if found == best:
                step[name] /= 2.0
            best = found
    return best


def along(sample: list[Run], best: Constants, least: float, name: str, step: float) -> tuple[Constants, float]:
    """Return the constants after moves of one constant, up or else down, for as long as they help, and their loss."""
    for sign in (1.0, -1.0):
        here, reached = best, least
        while True:
            value = max(LEAST.get(name, 0.0), here[name] + sign * step)
            there = {**here, name: value}
            got = loss(sample, there) if value != here[name] else reached
            if got > reached - 1e-4:
                break
            here, reached = there, got
        if here is not best:
            return here, reached
    return best, least


def said(what: str, off: np.ndarray) -> str:
    """Return a line with mean, median and 90th percentile of |error| in % of TTFT and of TPOT."""
    size = 100.0 * np.abs(off - 1.0)
    parts = [
        f"{name} {size[:, i].mean():.1f}/{np.median(size[:, i]):.1f}/{np.quantile(size[:, i], 0.9):.1f}"
        for i, name in enumerate(("TTFT", "TPOT"))
    ]
    return f"{what}, {len(off)} runs: {', '.join(parts)}"


def cross_fitted(some: list[Run]) -> list[tuple[np.ndarray, list[int]]]:
    """Return (simulated / measured, rows of each run) of each fold of configurations, with constants fitted without
    it.
    """
    names = sorted({run.configuration for run in some})
    count = min(FOLDS, len(names))
    folds = [set(names[fold::count]) for fold in range(count)] if count > 1 else []
    out = []
    for fold in folds:
        rest = [run for run in some if run.configuration not in fold]
        left = [run for run in some if run.configuration in fold]
        out.append((errors(left, fitted(rest)), [run.rows for run in left]))
    return out


def main(directory: Path, wanted: list[str]) -> None:
    """Fit, cross-fit and print."""
    everything: list[tuple[np.ndarray, list[int]]] = []
    for name, some in sorted(runs(directory, wanted).items()):
        bounds = some[0].setup.kinds[0].limits
        start = {key: float(getattr(bounds, key)) for key in STEPS}
        start["eager"] = engine(name).eager_launch
        start["prompt_step"] = engine(name).prompt_step
        found = fitted(some, start)
        print(name, {key: float(f"{value:.3g}") for key, value in found.items()})
        print(said("  before", errors(some, start)))
        print(said("  fitted on all", errors(some, found)))
        held = cross_fitted(some) or [(errors(some, found), [run.rows for run in some])]
        everything += held
        print(said(f"  cross-fitted in {len(held)} folds", np.concatenate([off for off, _ in held])), flush=True)
    print(said("All, cross-fitted, each run once", np.concatenate([off for off, _ in everything])))
    print(said("All, cross-fitted, every row", np.concatenate([np.repeat(*pair, axis=0) for pair in everything])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
