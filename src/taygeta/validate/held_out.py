"""Chips left out: how good predictions are with constants that are not the chip's own.

The measured chips are split in two, twice: one part lends its constants, by the rule of
taygeta.validate.carry, and the chips of the other part are predicted with them. Beside that stand the same
rows with the chip's own constants, and with the defaults of its family, which is what a chip without
measurements gets.

The range of a prediction is that of the target's own unpublished numbers, widened by the error of the sources of its
family, or of a family that was never measured where no source is of it: the rule of taygeta.validate.intervals, told by
chips of the other families only, and of each kind of rows apart. Whole steps err with engines and models as much as
with chips: where a source is of the target's family, they have the larger of its error and of what benchmarks of the
other families tell. No row of the target tells anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from taygeta.base.errors import InputError, require
from taygeta.spec.chip import Chip, build_chip
from taygeta.spec.fields import ERROR_KINDS
from taygeta.spec.sheet import read_sheet
from taygeta.validate.carry import Lent, carried_corners, ported
from taygeta.validate.fit import LINK_LATENCY
from taygeta.validate.intervals import KERNELS, Residuals, unseen, unseen_steps
from taygeta.validate.run import Progress, Result, answer_frame
from taygeta.validate.score import CLEAN, EVERY_CHIP, EVERY_GROUP, Score, metrics, scores
from taygeta.validate.systems import CORNERS, System, Systems
from taygeta.validate.tables import TABLES

if TYPE_CHECKING:
    import polars

    Column = Callable[[str], polars.Expr]

HELD_OUT = "held out"  # the scope of these scores
OWN, DEFAULTS = (
    ", own constants",
    ", family defaults",
)  # what a metric's name ends with; carried ones: nothing
SPLITS = (
    ("a100", "h100"),
    ("h200", "b200", "l40s"),
)  # the chips that lend; all others of a table are predicted
SERVED = ("step", "first")  # kernels whose errors come with engines and models too
UNMEASURED = "nvidia-blackwell-rtx"  # a family without a measured chip, of the maker of all measured ones
ROWS = 4000  # of a chip and case: a fixed sample, enough for a mean within half a percent
LEAST = 50
OTHER_CHIPS = "other chips"  # the sources of all chips of a case together: of each those that do not have it


@dataclass(frozen=True)
class Case:
    """Rows of a table that one kernel library measured in one way, so that chips compare."""

    table: str
    name: str
    rows: Callable[[Column], polars.Expr]


def _gemm(c: Column) -> polars.Expr:
    return (c("dtype") == "bfloat16") & (c("framework") == "trtllm") & (c("n") >= 512) & (c("k") >= 512)


def _attention(c: Column) -> polars.Expr:
    return (c("compute_dtype") == "bfloat16") & (c("kv_dtype") == "bfloat16")


def _experts(c: Column, dtype: str) -> polars.Expr:
    return (c("dtype") == dtype) & (c("framework") == "trtllm") & (c("ep") == 1)


CASES = (
    Case("gemm", "bf16, TensorRT-LLM, n, k >= 512", _gemm),
    Case("attention_prefill", "bf16", _attention),
    Case("attention_decode", "bf16", _attention),
    *(
        Case("moe", f"{name}, TensorRT-LLM, ep = 1", partial(_experts, dtype=dtype))
        for name, dtype in (("bf16", "bfloat16"), ("fp8", "fp8"))
    ),
    Case("comm", "all-reduce, NCCL", lambda c: (c("op") == "all_reduce") & (c("library") == "nccl")),
    Case("e2e", "TPOT of all engines and models", lambda c: c("mode") == "agg"),
)


@dataclass(frozen=True)
class HeldOut:
    """A chip with the constants of others: its scores so, with its own, and with its family's defaults.

    All three are of the same rows and have scope HELD_OUT; `dimension` names the sources, `group` the case.
    """

    sources: tuple[str, ...]
    carried: Score
    own: Score
    defaults: Score | None

    def scores(self) -> tuple[Score, ...]:
        """Return the scores, as JSON lists them."""
        return (self.carried, self.own, *((self.defaults,) if self.defaults else ()))


def family_only(system: System, family: str = "") -> tuple[Chip, ...]:
    """Return a chip as it would be without measurements of it: its sheet without calibration, completed by
    its family, or by another. Nominal, then the corners. Raises InputError for a chip without a family.
    """
    family = family or system.chip.family
    if not family:
        raise InputError(f"{system.chip.id} has no family to take constants from.")
    own = read_sheet(Path(system.sheet.origin))
    bare = {p: e for p, e in own.entries.items() if not p.startswith("calibration.") and p != LINK_LATENCY}
    path = Path(str(resources.files("taygeta") / "data" / "families" / f"{family}.toml"))
    sheet = replace(own, entries=MappingProxyType(bare)).over(read_sheet(path, "family"))
    return tuple(build_chip(sheet, corner) for corner in ("nominal", *CORNERS))


def carried_to(system: System, sources: Sequence[Chip], found: Residuals, kernel: str) -> tuple[Chip, ...]:
    """Return a chip with the constants that `sources` lend it, nominal and at the corners of its own numbers.

    Its errors are the largest that sources of its family have of their own; of whole steps not less than what the
    benchmarks of other families tell. Without such a source they are those of a family that nobody measured: of
    `kernel`, and of each kind of its rows, what chips of the other families tell, else the catalogue's.
    """
    strange = {p: v for p, v in family_only(system, UNMEASURED)[0].constants.items() if p.startswith("error.")}
    kin = [source for source in sources if system.chip.family and source.family == system.chip.family]
    if kin:
        paths = [path for path in kin[0].constants if path.startswith("error.")]
        errors = {path: max(source.constants[path] for source in kin) for path in paths}
        for kind in ("", *ERROR_KINDS[kernel]) if kernel in SERVED else ():
            path = f"error.{kernel}_{kind}" if kind else f"error.{kernel}"
            told = unseen_steps(found, kernel, system.chip.family, kind)
            errors[path] = max(errors[path], strange[path] if told is None else told)
    else:
        kinds = {f"error.{kernel}_{kind}": kind for kind in ERROR_KINDS.get(kernel, {})}
        told = {path: unseen(found, kernel, system.chip.family, kind) for path, kind in kinds.items()}
        told[f"error.{kernel}"] = unseen(found, kernel, system.chip.family)
        errors = strange | {path: value for path, value in told.items() if value is not None}
    lent = carried_corners(system, sources)
    return tuple(replace(chip, constants=MappingProxyType({**chip.constants, **errors})) for chip in lent)


@dataclass(frozen=True)
class Answered:
    """The rows of one chip in a case, answered with the constants of `sources`, its own, and its family's defaults."""

    sources: tuple[str, ...]
    carried: polars.DataFrame
    own: polars.DataFrame
    defaults: polars.DataFrame | None


def held_out(results: Sequence[Result], systems: Systems, progress: Progress | None = None) -> list[HeldOut]:
    """Return every chip of every case with the constants of the chips of each split that it is not in, and all chips
    of a case together.
    """
    tables = {result.table: result for result in results}
    found = Residuals(results, systems)
    cases = [case for case in CASES if case.table in tables]
    done, out = 0, []
    for case in cases:
        answered: list[Answered] = []
        for split in SPLITS:
            if progress:
                progress(done, len(cases) * len(SPLITS))
            done += 1
            sources = [ported(systems.get(name)) for name in split]
            for name, rows in _samples(tables[case.table], case).items():
                chip = _chip(systems, name)
                if chip is not None and chip.id not in {source.id for source in sources}:
                    answered.append(_answered(case, name, rows, systems, sources, found))
        out += [_scored(case, part, tables[case.table].chip) for part in answered]
        if len(answered) > 1:
            out.append(_scored(case, _together(answered), tables[case.table].chip))
    if progress:
        progress(done, done)
    return out


def _chip(systems: Systems, name: str) -> Chip | None:
    try:
        return systems.get(name).chip
    except InputError:
        return None


def _samples(result: Result, case: Case) -> Mapping[str, polars.DataFrame]:
    """Return a fixed sample of the answered clean rows of each chip that belong to a case."""
    pl = require("polars", "tables", "Scoring")
    answered = pl.col(metrics(result.table)[0].predicted).is_not_null()
    usable = result.frame.filter(pl.col("clean") & answered & case.rows(pl.col))
    out: dict[str, polars.DataFrame] = {}
    for (name,), part in usable.group_by([result.chip], maintain_order=True):
        if part.height >= LEAST:
            out[str(name)] = part if part.height <= ROWS else part.sample(ROWS, seed=0)
    return out


def _answered(
    case: Case, name: str, rows: polars.DataFrame, systems: Systems, sources: Sequence[Chip], found: Residuals
) -> Answered:
    table = next(table for table in TABLES if table.name == case.table)
    kernel = next(kernel for kernel, tables in KERNELS.items() if case.table in tables)
    carried = answer_frame(table, rows, Lent(systems, lambda system: carried_to(system, sources, found, kernel)))
    family = systems.get(name).chip.family
    defaults = answer_frame(table, rows, Lent(systems, family_only)) if family else None
    return Answered(tuple(source.id for source in sources), carried, rows, defaults)


def _together(parts: Sequence[Answered]) -> Answered:
    """Return the rows of all chips of a case; with defaults where each chip has a family."""
    pl = require("polars", "tables", "Scoring")
    carried, own = (pl.concat([getattr(part, name) for part in parts]) for name in ("carried", "own"))
    defaults = [part.defaults for part in parts if part.defaults is not None]
    return Answered((OTHER_CHIPS,), carried, own, pl.concat(defaults) if len(defaults) == len(parts) else None)


def _scored(case: Case, part: Answered, chip: str) -> HeldOut:
    """Return the scores of answered rows. chip: the table's column of chips."""
    ours = metrics(case.table)[0].name
    every = part.sources == (OTHER_CHIPS,)

    def scored(frame: polars.DataFrame, ending: str) -> Score:
        total = next(
            s
            for s in scores(case.table, chip, frame)
            if (s.scope, s.group, s.metric) == (CLEAN, EVERY_GROUP, ours) and (s.chip == EVERY_CHIP) == every
        )
        origin = f"from {', '.join(part.sources)}"
        return replace(total, scope=HELD_OUT, dimension=origin, group=case.name, metric=ours + ending)

    defaults = scored(part.defaults, DEFAULTS) if part.defaults is not None else None
    return HeldOut(part.sources, scored(part.carried, ""), scored(part.own, OWN), defaults)
