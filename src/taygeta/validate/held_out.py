"""Chips left out: how good predictions are with constants that are not the chip's own.

Every chip is predicted from its own public numbers with the defaults of its family, which is what a chip
without measurements gets, and with the calibration constants of every other chip of the table in turn, as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from taygeta.spec.chip import Chip, build_chip
from taygeta.spec.sheet import read_sheet
from taygeta.validate.fit import LINK_LATENCY
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


class Lent(Systems):
    """Chips with other calibration constants; their public numbers stay their own."""

    def __init__(self, systems: Systems, lent: Callable[[System], Chip]) -> None:
        super().__init__()
        self._systems, self._lent = systems, lent

    def get(self, name: str) -> System:
        """Return a chip with the constants that it is lent. Raises InputError."""
        own = self._systems.get(name)
        return System(own.name, own.sheet, (self._lent(own),))


def family_only(system: System) -> Chip:
    """Return a chip as it would be without measurements of it: its sheet without calibration, completed by
    its family.
    """
    own = read_sheet(Path(system.sheet.origin))
    bare = {p: e for p, e in own.entries.items() if not p.startswith("calibration.") and p != LINK_LATENCY}
    family = system.chip.family
    defaults = read_sheet(
        Path(str(resources.files("taygeta") / "data" / "families" / f"{family}.toml")), "family"
    )
    return build_chip(replace(own, entries=MappingProxyType(bare)).over(defaults))


def held_out(results: Sequence[Result], systems: Systems) -> list[HeldOut]:
    """Return every chip of every table of kernels with its family's defaults, and with the constants of every
    other chip.

    The constants of a collective are the library's, shared by all chips: of those, only the defaults of the
    family differ.
    """
    out: list[HeldOut] = []
    tables = {table.name: table for table in TABLES if table.name != "e2e"}
    for result in results:
        if result.table not in tables:
            continue
        samples = {name: frame for name, frame in _samples(result).items() if _known(systems, name)}
        for chip, frame in samples.items():
            mine = systems.get(chip)
            lenders: dict[str, Callable[[System], Chip]] = {f"{mine.chip.family}, defaults": family_only}
            for other in samples:
                theirs = systems.get(other).chip
                if theirs.id != mine.chip.id and result.table != "comm":
                    lenders[other] = lambda system, theirs=theirs: replace(
                        system.chip, constants=theirs.constants
                    )
            for source, lent in lenders.items():
                answered = answer_frame(
                    tables[result.table], frame.drop(_ADDED, strict=False), Lent(systems, lent)
                )
                found = _score(result.table, chip, source, frame, answered)
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
