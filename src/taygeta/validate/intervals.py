"""How far a range must reach beyond its assumptions: the error constants of chips and families, from residuals.

A prediction's range joins the corners of its assumptions with one number for each kernel, calibration.error.*, in
squares of logarithms; kinds of rows that are known apart beforehand (taygeta.validate.kinds) each have their own. A
measurement at the ratio z of a prediction needs the rest, sqrt(log(z)^2 - corner^2). The constant is the quantile of
what measurements need that leaves INSIDE of them in the range, with tables, and systems of a chip, counting alike, and
LEAST of each of those. Cards joined in pairs are a system of the chip, where others of the table's rows are of it. What
stands for a family that nobody measured counts measured families alike, however many chips each has: the next family is
one more of them.

First tokens are told by the same rows as whole steps, each kind by one engine's.

- A chip that was measured: its own rows that no filter leaves out, most of which no constant was fitted on.
- A family with a measured chip: that of its chips, times what is lost between siblings (H100 and H200, each with the
  other's constants). The families of one measured chip have no sibling to show it on.
- A family without one, of a maker that has measured chips: every measured chip with the constants of chips of other
  families, by taygeta.validate.carry.
- A family of any other maker: as that, of the chip that comes off worst. Compilers and libraries nobody measured.

Constants that all measured chips share (collectives, most of experts) were fitted with the chips left out: residuals
of those are too small for a new family, by how much no table can say. Refits of the others that leave out a fifth of
the rows give residuals 0.98 to 1.03 times those of the rows fitted, so that own rows need no further allowance.

A range wider than WIDTH is held back to it as long as at least LEAST of the rows stay inside. A kind of which a chip
has fewer rows than a quantile can be told from has the largest constant of chips that have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from taygeta.base.errors import InputError, require
from taygeta.spec.fields import ERROR_KINDS
from taygeta.validate.carry import Lent, carried_corners, ported
from taygeta.validate.kinds import PAIRS, kinds_of
from taygeta.validate.run import Result, answer_frame
from taygeta.validate.score import OF_FIRST, Metric, metrics
from taygeta.validate.systems import System, Systems
from taygeta.validate.tables import TABLES

if TYPE_CHECKING:
    import polars


KERNELS: Mapping[str, tuple[str, ...]] = {
    "matmul": ("gemm",),
    "attention": ("attention_prefill", "attention_decode"),
    "experts": ("moe",),
    "collective": ("comm",),
    "step": ("e2e",),
    "first": ("e2e",),
}
INSIDE, LEAST = 0.8, 0.75  # share of measurements in the range: wanted, and in every table of a chip at least
WIDTH_OWN, WIDTH_OTHER = 1.5, 2.0  # median high / low that a range is worth having at: measured chips, others
ROWS = 4000  # of a system and table, with constants of other chips: a fixed sample
OTHERS, STRANGERS = "others", "strangers"  # families without a measured chip: of a maker that has one, of any other
FEWEST = 50  # rows of a system in a table that tell anything
FEWEST_KIND = 10  # of a kind, or a benchmark: 80 % of 10 is told within 13 % of the rows (deviation of a binomial)
BENCHMARK = ("source", "backend", "model_path", "precision")  # columns of e2e that tell benchmarks apart


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


class Answered(NamedTuple):
    """Rows of one system in one table with predictions, and the kind of each."""

    table: str
    system: str
    frame: polars.DataFrame
    kinds: np.ndarray


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


def compared(kernel: str, table: str) -> Metric:
    """Return what tells the errors of a kernel in a table: its times, of e2e those of steps or of first tokens."""
    return next((m for m in metrics(table) if m.name == OF_FIRST and kernel == "first"), metrics(table)[0])


def sample(
    kernel: str, table: str, system: str, chip: str, frame: polars.DataFrame, error: float | np.ndarray
) -> Sample:
    """Return what the rows of an answered frame need. error: the constant that its ranges, or each, hold already."""
    pl = require("polars", "tables", "Scoring")
    ours = compared(kernel, table)
    held_already = pl.Series("_error", np.broadcast_to(np.asarray(error, dtype=float), frame.height))
    columns = frame.select(ours.predicted, ours.measured, ours.low, ours.high).with_columns(held_already).drop_nulls()
    nominal, measured, low, high, error = (columns[name].to_numpy().astype(float) for name in columns.columns)
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
    every: bool = False,
    least: float = LEAST,
) -> ErrorConstant:
    """Return the error constant of some samples by the rule of this module.

    every: `least` holds for each sample by itself, not for all of them together.
    """
    parts = [[s] for s in samples] if every else [list(samples)]
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
        found = (self._system(name).chip for name in sorted({name for _, name in self._frames}))
        self._chips = {chip.id: chip for chip in found}
        self._carried: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[Answered]] = {}

    def _system(self, name: str) -> System:
        return self._systems.get(name.removesuffix(PAIRS))

    def families(self) -> Mapping[str, list[str]]:
        """Return the measured chips of each family."""
        out: dict[str, list[str]] = {}
        for name, chip in sorted(self._chips.items()):
            out.setdefault(chip.family, []).append(name)
        return out

    def own(self, kernel: str, chip: str, kind: str = "") -> list[Sample]:
        """Return the samples of a chip with its own constants, of the rows of a kind where one is given."""
        out: list[Sample] = []
        for (table, name), frame in self._frames.items():
            if table in KERNELS[kernel] and self._system(name).chip.id == chip:
                kinds = kinds_of(table, frame)
                rows = _of_kind(Answered(table, name, frame, kinds), kind)
                if rows.frame.height:
                    errors = self._system(name).errors(kernel, rows.kinds)
                    out.append(sample(kernel, table, name, chip, rows.frame, errors))
        return out

    def carried(self, kernel: str, chip: str, sources: Sequence[str], kind: str = "") -> list[Sample]:
        """Return the samples of a chip with the constants of `sources`, on a fixed sample of its rows."""
        parts = [_of_kind(answered, kind) for answered in self._lent(kernel, chip, sources)]
        return [sample(kernel, part.table, part.system, chip, part.frame, 0.0) for part in parts if part.frame.height]

    def _benchmarks(self, kernel: str, chip: str, sources: Sequence[str], kind: str) -> list[Sample]:
        """Return the samples of whole steps, or first tokens, of a chip with the constants of `sources`, one of each
        benchmark.
        """
        parts = [_of_kind(answered, kind) for answered in self._lent(kernel, chip, sources)]
        frames = [
            (answered, part)
            for answered in parts
            for part in answered.frame.partition_by(BENCHMARK, maintain_order=True)
            if part.height >= FEWEST_KIND
        ]
        return [sample(kernel, answered.table, answered.system, chip, part, 0.0) for answered, part in frames]

    def _lent(self, kernel: str, chip: str, sources: Sequence[str]) -> list[Answered]:
        """Return the rows of a chip with the constants of `sources`, answered once for all kernels of a table."""
        key = KERNELS[kernel], chip, tuple(sources)
        if key not in self._carried:
            self._carried[key] = self._answered(kernel, chip, sources)
        return self._carried[key]

    def _answered(self, kernel: str, chip: str, sources: Sequence[str]) -> list[Answered]:
        lending = [ported(self._systems.get(name)) for name in sources]
        lent = Lent(self._systems, lambda system: carried_corners(system, lending))
        out: list[Answered] = []
        for (table, name), frame in self._frames.items():
            if table in KERNELS[kernel] and self._system(name).chip.id == chip:
                rows = frame if frame.height <= ROWS else frame.sample(ROWS, seed=0)
                answered = answer_frame(next(t for t in TABLES if t.name == table), rows, lent)
                out.append(Answered(table, name, answered, kinds_of(table, answered)))
        return out

    def others(self, kernel: str, left_out: str = "", kind: str = "") -> Mapping[str, list[Sample]]:
        """Return the samples of each chip with the constants of all chips of other families; families count alike.

        left_out: a family that neither tells nor lends.
        """
        return self._crossed(left_out, lambda name, rest: self.carried(kernel, name, rest, kind))

    def benchmarks(self, kernel: str, left_out: str, kind: str = "") -> list[Sample]:
        """Return the samples of whole steps, or first tokens, as `others`, one of each benchmark; benchmarks of a chip
        count alike.
        """
        lent = self._crossed(left_out, lambda name, rest: self._benchmarks(kernel, name, rest, kind))
        return [replace(s, weight=s.weight / len(told)) for told in lent.values() for s in told]

    def _crossed(self, left_out: str, tell: Callable[[str, list[str]], list[Sample]]) -> Mapping[str, list[Sample]]:
        families = {family: names for family, names in self.families().items() if family != left_out}
        lent: dict[str, list[Sample]] = {}
        for family, names in families.items():
            rest = [name for other, members in families.items() if other != family for name in members]
            told = {name: tell(name, rest) for name in names} if rest else {}
            told = {name: samples for name, samples in told.items() if samples}
            for name, samples in told.items():
                lent[name] = [replace(s, weight=1.0 / len(told)) for s in samples]
        return lent


def unseen_steps(found: Residuals, kernel: str, family: str, kind: str = "") -> float | None:
    """Return the error constant of whole steps, or first tokens, of a chip as if nobody had measured its family; None
    without rows of two other families.

    It holds INSIDE of the rows in INSIDE of the benchmarks of the other families: a chip comes with engines and models
    of its own, whose rows are off together.
    """
    each = [replace(s, needed=np.array([quantile([s], INSIDE)])) for s in found.benchmarks(kernel, family, kind)]
    return float(np.expm1(quantile(each, INSIDE))) if each else None


def unseen(found: Residuals, kernel: str, family: str, kind: str = "") -> float | None:
    """Return the error constant of a family as if nobody had measured it; None without rows of two other families.

    Three families or fewer cannot tell that LEAST of a fourth needs more than is worth having: the width holds here.
    """
    samples = [s for told in found.others(kernel, family, kind).values() for s in told]
    return constant(kernel, samples, WIDTH_OTHER, "", least=0.0).value if samples else None


def constants(found: Residuals) -> Mapping[str, Mapping[str, ErrorConstant]]:
    """Return the error constants of every measured chip, of its family (family:NAME), of OTHERS and STRANGERS, by name:
    that of a kernel, or of a kind of its rows, as attention_decode.
    """
    out: dict[str, dict[str, ErrorConstant]] = {}
    families = found.families()
    chips = [name for names in families.values() for name in names]
    for kernel in KERNELS:
        if not any(found.own(kernel, name) for name in chips):
            continue
        lost, siblings = _siblings(found, kernel, families)
        for kind in ("", *ERROR_KINDS.get(kernel, {})):
            name = f"{kernel}_{kind}" if kind else kernel
            measured = _measured(found, kernel, kind, name, chips)
            for chip, value in measured.items():
                out.setdefault(chip, {})[name] = value
            for family, members in families.items() if measured else ():
                base = max((measured[chip] for chip in members), key=lambda c: c.value)
                value = math.ceil(1000.0 * float(np.expm1(np.log1p(base.value) * lost))) / 1000.0
                source = f"that of {', '.join(members)}, times {lost:.2f} lost between {siblings}"
                out.setdefault(f"family:{family}", {})[name] = replace(base, value=value, source=source)
            for who, value in zip((OTHERS, STRANGERS), _others(found, kernel, kind, name) or (), strict=False):
                out.setdefault(who, {})[name] = value
    return out


def _measured(found: Residuals, kernel: str, kind: str, name: str, chips: Sequence[str]) -> Mapping[str, ErrorConstant]:
    """Return the constant of each chip; of one without rows the largest of the others, none where none has rows."""
    own = {chip: found.own(kernel, chip, kind) for chip in chips}
    source = "residuals of its own rows that no filter leaves out"
    out = {chip: constant(name, own[chip], WIDTH_OWN, source, every=True) for chip in chips if own[chip]}
    if out:
        widest = max(out.values(), key=lambda c: c.value)
        source = f"too few rows of its own: the largest of {', '.join(out)}"
        out |= {chip: replace(widest, rows=0, source=source) for chip in chips if chip not in out}
    return out


def _siblings(found: Residuals, kernel: str, families: Mapping[str, list[str]]) -> tuple[float, str]:
    """Return what residuals grow by with the constants of a chip of the family, never less than 1, and of whom."""
    pairs = [(name, [n for n in names if n != name]) for names in families.values() for name in names]
    pairs = [(name, rest) for name, rest in pairs if rest and found.own(kernel, name)]
    if not pairs:
        return 1.0, "no measured siblings"
    lent = [s for name, rest in pairs for s in found.carried(kernel, name, rest)]
    mine = [s for name, _ in pairs for s in found.own(kernel, name)]
    return max(quantile(lent, INSIDE) / quantile(mine, INSIDE), 1.0), ", ".join(name for name, _ in pairs)


def _others(found: Residuals, kernel: str, kind: str, name: str) -> tuple[ErrorConstant, ErrorConstant] | None:
    """Return the constants of families without a measured chip: of a maker that has measured ones, and of others.

    None where no chip can be told from chips of other families.
    """
    lent = found.others(kernel, kind=kind)
    together = [s for samples in lent.values() for s in samples]
    if not together:
        return None
    known = constant(name, together, WIDTH_OTHER, "")
    shares: list[str] = []
    for chip, samples in lent.items():
        if rest := [s for s in together if s.chip != chip]:
            told = constant(name, rest, WIDTH_OTHER, "")
            shares.append(f"{chip} {inside(samples, float(np.log1p(told.value))):.0%}")
    source = f"{', '.join(lent)}, each with the constants of chips of other families; inside when only the rest tell: "
    worst = max(lent, key=lambda chip: quantile(lent[chip], INSIDE))
    strange = f"{worst}, the worst of {', '.join(lent)} with the constants of chips of other families"
    return replace(known, source=source + ", ".join(shares)), constant(name, lent[worst], WIDTH_OTHER, strange)


def _of_kind(rows: Answered, kind: str) -> Answered:
    """Return the rows of a kind, none where they are too few; all of them where no kind is given."""
    if not kind:
        return rows
    wanted = rows.kinds == kind
    if wanted.sum() < FEWEST_KIND:
        wanted[:] = False
    return rows._replace(frame=rows.frame.filter(wanted), kinds=rows.kinds[wanted])


def _clean(result: Result, systems: Systems) -> list[tuple[str, polars.DataFrame]]:
    """Return the answered clean rows of each system in a table that the catalogue has under that very name, and of
    cards of such a chip that are joined in pairs.
    """
    pl = require("polars", "tables", "Scoring")
    if result.table not in {table for tables in KERNELS.values() for table in tables}:
        return []
    answered = pl.col(metrics(result.table)[0].predicted).is_not_null()
    parts = result.frame.filter(pl.col("clean") & answered).partition_by(result.chip, maintain_order=True)
    named = {str(part[result.chip][0]): part for part in parts if part.height >= FEWEST}
    alone = {_chip_of(name, systems) for name in named if not name.endswith(PAIRS)} - {""}
    return [(name, part) for name, part in named.items() if _chip_of(name.removesuffix(PAIRS), systems) in alone]


def _chip_of(name: str, systems: Systems) -> str:
    try:
        return systems.get(name).chip.id
    except InputError:
        return ""
