"""Chips left out: how good predictions are with constants that never saw the chip.

Every chip is predicted from its own public numbers with the calibration constants of every other chip of the
table in turn, as they are. That is what a chip without measurements gets when its family is known from one
relative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from taygeta.validate.run import Result, answer_frame
from taygeta.validate.systems import System, Systems
from taygeta.validate.tables import TABLES

if TYPE_CHECKING:
    import polars

ROWS = 4000  # of a chip and table: a fixed sample, enough for a mean within half a percent
LEAST = 50


@dataclass(frozen=True)
class HeldOut:
    """A chip with the constants of another one: errors on clean rows as fractions, and those with its own
    constants.
    """

    table: str
    chip: str
    source: str
    rows: int
    mape: float
    median: float
    bias: float
    own_mape: float
    own_median: float


class Borrowed(Systems):
    """Chips with the calibration constants of another chip; their public numbers stay their own."""

    def __init__(self, systems: Systems, lender: System) -> None:
        super().__init__()
        self._systems, self._lender = systems, lender

    def get(self, name: str) -> System:
        """Return a chip with borrowed constants. Raises InputError."""
        own = self._systems.get(name)
        constants = MappingProxyType(dict(self._lender.chip.constants))
        return System(own.name, own.sheet, (replace(own.chip, constants=constants),))


def held_out(results: Sequence[Result], systems: Systems) -> list[HeldOut]:
    """Return every chip of every table of kernels with the constants of every other chip of that table."""
    out: list[HeldOut] = []
    tables = {table.name: table for table in TABLES if table.name != "e2e"}
    for result in results:
        if result.table not in tables:
            continue
        samples = _samples(result)
        lenders = {name: systems.get(name) for name in samples if _known(systems, name)}
        for chip, frame in samples.items():
            for other, lender in lenders.items():
                if chip in lenders and lender.chip.id != lenders[chip].chip.id:
                    answered = answer_frame(
                        tables[result.table], frame.drop(_ADDED, strict=False), Borrowed(systems, lender)
                    )
                    found = _score(result.table, chip, other, frame, answered)
                    out += [found] if found else []
    return out


_ADDED = ("predicted_s", "low_s", "high_s", "roofline_s", "bound", "refused", "clean", "impossible")


def _known(systems: Systems, name: str) -> bool:
    return name.strip().lower().replace("_", "-") in systems.used()


def _samples(result: Result) -> Mapping[str, polars.DataFrame]:
    """Return a fixed sample of the answered clean rows of each chip."""
    usable = result.frame.filter(result.frame["clean"] & result.frame["predicted_s"].is_not_null())
    out: dict[str, polars.DataFrame] = {}
    for (name,), part in usable.group_by([result.chip], maintain_order=True):
        if part.height >= LEAST:
            out[str(name)] = part if part.height <= ROWS else part.sample(ROWS, seed=0)
    return out


def _score(
    table: str, chip: str, other: str, frame: polars.DataFrame, answered: polars.DataFrame
) -> HeldOut | None:
    measured = frame["latency_s"].to_numpy()
    error = answered["predicted_s"].to_numpy() / measured - 1.0
    own = np.abs(frame["predicted_s"].to_numpy() / measured - 1.0)
    error = error[np.isfinite(error)]
    if not len(error):
        return None
    size = np.abs(error)
    return HeldOut(
        table,
        chip,
        other,
        len(error),
        mape=float(size.mean()),
        median=float(np.median(size)),
        bias=float(error.mean()),
        own_mape=float(own.mean()),
        own_median=float(np.median(own)),
    )
