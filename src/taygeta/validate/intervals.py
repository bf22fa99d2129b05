"""How far a range must reach beyond its assumptions: the error constants of chips and families, from residuals.

A prediction's range joins the corners of its assumptions with one number for each kernel, calibration.error.*, in
squares of logarithms. A measurement at the ratio z of a prediction needs the rest, sqrt(log(z)^2 - corner^2). The
constant is the quantile of what measurements need that leaves INSIDE of them in the range, with tables, and systems of
a chip, counting alike. What stands for a family that nobody measured counts measured families alike, however many
chips each has: the next family is one more of them.

- A chip that was measured: its own rows that no filter leaves out, most of which no constant was fitted on.
- A family with a measured chip: that of its chips, times what is lost between siblings (H100 and H200, each with the
  other's constants). The families of one measured chip have no sibling to show it on.
- A family without one, of a maker that has measured chips: every measured chip with the constants of chips of other
  families, by taygeta.validate.carry.
- A family of any other maker: as that, of the chip that comes off worst. Compilers and libraries nobody measured.

Constants that all measured chips share (collectives, most of experts) were fitted with the chips left out: residuals
of those are too small for a new family, by how much no table can say. Refits of the others that leave out a fifth of
the rows give residuals 0.98 to 1.03 times those of the rows fitted, so that own rows need no further allowance.

A range wider than WIDTH is held back to it as long as at least LEAST of the rows stay inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from taygeta.base.errors import InputError, require
from taygeta.validate.carry import Lent, carried_corners, ported
from taygeta.validate.run import Result, answer_frame
from taygeta.validate.score import metrics
from taygeta.validate.systems import Systems
from taygeta.validate.tables import TABLES

if TYPE_CHECKING:
    import polars


KERNELS: Mapping[str, tuple[str, ...]] = {
    "matmul": ("gemm",),
    "attention": ("attention_prefill", "attention_decode"),
    "experts": ("moe",),
    "collective": ("comm",),
    "step": ("e2e",),
}
INSIDE, LEAST = 0.8, 0.75  # share of measurements in the range: wanted, and in every table of a chip at least
WIDTH_OWN, WIDTH_OTHER = 1.5, 2.0  # median high / low that a range is worth having at: measured chips, others
ROWS = 4000  # of a system and table, with constants of other chips: a fixed sample
OTHERS, STRANGERS = "others", "strangers"  # families without a measured chip: of a maker that has one, of any other
FEWEST = 50  # rows that a quantile can be told from


@dataclass(frozen=True)
class Sample:
    """Rows of one system in one table: logarithms of the corners (fast, slow) and what measurements need beyond."""

    table: str
    system: str
    chip: str
    fast: np.ndarray
    slow: np.ndarray
    needed: np.ndarray
    weight: float = 1.0  # what it counts beside other samples


@dataclass(frozen=True)
class ErrorConstant:
    """One error constant: the ratio minus one, the share inside its range, the median width, and what told it."""

    kernel: str
    value: float
    inside: float
    width: float
    rows: int
    source: str

    def line(self, name: str) -> str:
        """Return a line of a report."""
        return (
            f"{name:24} {self.kernel:11} {self.value:6.3f}  inside {self.inside:6.1%}  high / low {self.width:5.2f}"
            f"  {self.rows:7,} rows: {self.source}"
        )


def sample(table: str, system: str, chip: str, frame: polars.DataFrame, error: float) -> Sample:
    """Return what the rows of an answered frame need. error: the constant that its ranges hold already."""
    ours = metrics(table)[0]
    columns = frame.select(ours.predicted, ours.measured, ours.low, ours.high).drop_nulls()
    nominal, measured, low, high = (columns[name].to_numpy().astype(float) for name in columns.columns)
    held = np.log1p(error) ** 2
    fast, slow = (np.sqrt(np.maximum(np.log(r) ** 2 - held, 0.0)) for r in (nominal / low, high / nominal))
    z = np.log(measured / nominal)
    needed = np.sqrt(np.maximum(z**2 - np.where(z > 0.0, slow, fast) ** 2, 0.0))
    return Sample(table, system, chip, fast, slow, needed)


def quantile(samples: Sequence[Sample], share: float) -> float:
    """Return what covers a share of the measurements, samples counting by their weight however many rows they have."""
    values = np.concatenate([s.needed for s in samples])
    weights = np.concatenate([np.full(len(s.needed), s.weight / len(s.needed)) for s in samples])
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share - 1e-9)), len(values) - 1)])


def inside(samples: Sequence[Sample], residual: float) -> float:
    """Return the share of measurements in the range, samples counting by their weight."""
    shares = [np.mean(s.needed <= residual) for s in samples]
    return float(np.average(shares, weights=[s.weight for s in samples]))


def width(samples: Sequence[Sample], residual: float) -> float:
    """Return the median high / low of the ranges."""
    spread = [np.hypot(s.fast, residual) + np.hypot(s.slow, residual) for s in samples]
    return float(np.exp(np.median(np.concatenate(spread))))


def constant(
    kernel: str,
    samples: Sequence[Sample],
    limit: float,
    source: str,
    every_table: bool = False,
    least: float = LEAST,
) -> ErrorConstant:
    """Return the error constant of some samples by the rule of this module.

    every_table: `least` holds for each table by itself, not for all of them together.
    """
    tables = sorted({s.table for s in samples})
    parts = [[s for s in samples if s.table == t] for t in tables] if every_table else [list(samples)]
    floor = max(quantile(part, least) for part in parts)
    wanted = max(quantile(samples, INSIDE), floor)
    if width(samples, wanted) > limit:  # halve towards the widest range that is worth having
        low, high = 0.0, wanted
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if width(samples, middle) > limit else (middle, high)
        wanted = max(low, floor)
    rows = sum(len(s.needed) for s in samples)
    value = math.ceil(1000.0 * float(np.expm1(wanted))) / 1000.0
    return ErrorConstant(kernel, value, inside(samples, wanted), width(samples, wanted), rows, source)


class Residuals:
    """The samples of a validation: chips with their own constants, and with those of other chips."""

    def __init__(self, results: Iterable[Result], systems: Systems) -> None:
        self._systems = systems
        self._frames = {(r.table, name): part for r in results for name, part in _clean(r, systems)}
        self._chips = {system.chip.id: system.chip for system in map(systems.get, self._names())}
        self._others: dict[tuple[str, str], Mapping[str, list[Sample]]] = {}

    def _names(self) -> list[str]:
        return sorted({name for _, name in self._frames})

    def families(self) -> Mapping[str, list[str]]:
        """Return the measured chips of each family."""
        out: dict[str, list[str]] = {}
        for name, chip in sorted(self._chips.items()):
            out.setdefault(chip.family, []).append(name)
        return out

    def own(self, kernel: str, chip: str) -> list[Sample]:
        """Return the samples of a chip with its own constants."""
        return [
            sample(table, name, chip, frame, self._systems.get(name).error(kernel))
            for (table, name), frame in self._frames.items()
            if table in KERNELS[kernel] and self._systems.get(name).chip.id == chip
        ]

    def carried(self, kernel: str, chip: str, sources: Sequence[str]) -> list[Sample]:
        """Return the samples of a chip with the constants of `sources`, on a fixed sample of its rows."""
        lending = [ported(self._systems.get(name)) for name in sources]
        lent = Lent(self._systems, lambda system: carried_corners(system, lending))
        out: list[Sample] = []
        for (table, name), frame in self._frames.items():
            if table in KERNELS[kernel] and self._systems.get(name).chip.id == chip:
                rows = frame if frame.height <= ROWS else frame.sample(ROWS, seed=0)
                kind = next(t for t in TABLES if t.name == table)
                out.append(sample(table, name, chip, answer_frame(kind, rows, lent), 0.0))
        return out

    def others(self, kernel: str, left_out: str = "") -> Mapping[str, list[Sample]]:
        """Return the samples of each chip with the constants of all chips of other families; families count alike.

        left_out: a family that neither tells nor lends.
        """
        if (kernel, left_out) not in self._others:
            families = {family: names for family, names in self.families().items() if family != left_out}
            lent: dict[str, list[Sample]] = {}
            for family, names in families.items():
                rest = [name for other, members in families.items() if other != family for name in members]
                told = {name: self.carried(kernel, name, rest) for name in names} if rest else {}
                told = {name: samples for name, samples in told.items() if samples}
                for name, samples in told.items():
                    lent[name] = [replace(s, weight=1.0 / len(told)) for s in samples]
            self._others[kernel, left_out] = lent
        return self._others[kernel, left_out]


def unseen(found: Residuals, kernel: str, family: str) -> float | None:
    """Return the error constant of a family as if nobody had measured it; None without rows of two other families.

    Three families or fewer cannot tell that LEAST of a fourth needs more than is worth having: the width holds here.
    """
    samples = [s for told in found.others(kernel, family).values() for s in told]
    return constant(kernel, samples, WIDTH_OTHER, "", least=0.0).value if samples else None


def constants(found: Residuals) -> Mapping[str, Mapping[str, ErrorConstant]]:
    """Return the error constants of every measured chip, of its family (family:NAME), of OTHERS and STRANGERS."""
    out: dict[str, dict[str, ErrorConstant]] = {}
    families = found.families()
    chips = [name for names in families.values() for name in names]
    for kernel in KERNELS:
        own = {name: found.own(kernel, name) for name in chips}
        told = [name for name in chips if own[name]]
        if not told:
            continue
        for name in told:
            source = "residuals of its own rows that no filter leaves out"
            out.setdefault(name, {})[kernel] = constant(kernel, own[name], WIDTH_OWN, source, every_table=True)
        widest = max((out[name][kernel] for name in told), key=lambda c: c.value)
        for name in chips:
            source = f"no rows of its own: the largest of {', '.join(told)}"
            out.setdefault(name, {}).setdefault(kernel, replace(widest, rows=0, source=source))
        lost, siblings = _siblings(found, kernel, families, own)
        for family, names in families.items():
            base = max((out[name][kernel] for name in names), key=lambda c: c.value)
            value = math.ceil(1000.0 * float(np.expm1(np.log1p(base.value) * lost))) / 1000.0
            source = f"that of {', '.join(names)}, times {lost:.2f} lost between {siblings}"
            out.setdefault(f"family:{family}", {})[kernel] = replace(base, value=value, source=source)
        known, strange = _others(found, kernel)
        out.setdefault(OTHERS, {})[kernel], out.setdefault(STRANGERS, {})[kernel] = known, strange
    return out


def _siblings(
    found: Residuals, kernel: str, families: Mapping[str, list[str]], own: Mapping[str, list[Sample]]
) -> tuple[float, str]:
    """Return what residuals grow by with the constants of a chip of the family, never less than 1, and of whom."""
    pairs = [(name, [n for n in names if n != name]) for names in families.values() for name in names]
    pairs = [(name, rest) for name, rest in pairs if rest and own[name]]
    if not pairs:
        return 1.0, "no measured siblings"
    lent = [s for name, rest in pairs for s in found.carried(kernel, name, rest)]
    mine = [s for name, _ in pairs for s in own[name]]
    return max(quantile(lent, INSIDE) / quantile(mine, INSIDE), 1.0), ", ".join(name for name, _ in pairs)


def _others(found: Residuals, kernel: str) -> tuple[ErrorConstant, ErrorConstant]:
    """Return the constants of families without a measured chip: of a maker that has measured ones, and of others."""
    lent = found.others(kernel)
    together = [s for samples in lent.values() for s in samples]
    known = constant(kernel, together, WIDTH_OTHER, "")
    shares: list[str] = []
    for name, samples in lent.items():
        rest = constant(kernel, [s for s in together if s.chip != name], WIDTH_OTHER, "")
        shares.append(f"{name} {inside(samples, float(np.log1p(rest.value))):.0%}")
    source = f"{', '.join(lent)}, each with the constants of chips of other families; inside when only the rest tell: "
    worst = max(lent, key=lambda name: quantile(lent[name], INSIDE))
    strange = f"{worst}, the worst of {', '.join(lent)} with the constants of chips of other families"
    return replace(known, source=source + ", ".join(shares)), constant(kernel, lent[worst], WIDTH_OTHER, strange)


def _clean(result: Result, systems: Systems) -> list[tuple[str, polars.DataFrame]]:
    """Return the answered clean rows of each system in a table that the catalogue has under that very name."""
    pl = require("polars", "tables", "Scoring")
    if result.table not in {table for tables in KERNELS.values() for table in tables}:
        return []
    answered = pl.col(metrics(result.table)[0].predicted).is_not_null()
    out: list[tuple[str, polars.DataFrame]] = []
    for (name,), part in result.frame.filter(pl.col("clean") & answered).group_by([result.chip], maintain_order=True):
        try:
            systems.get(str(name))
        except InputError:  # cards that are joined in pairs: another link than the chip's
            continue
        if part.height >= FEWEST:
            out.append((str(name), part))
    return out
