"""A validation: every table of a directory answered, filtered and scored, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taygeta.base.errors import require
from taygeta.validate import attention, comm, e2e, gemm, llmcompass, moe, quirks
from taygeta.validate.answers import Answers
from taygeta.validate.score import Score, scores
from taygeta.validate.systems import Systems
from taygeta.validate.tables import Table, find_tables, read_table

if TYPE_CHECKING:
    import polars

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """A scored table. frame: its rows with predictions and `clean`; removed: rows that each filter alone
    leaves out.
    """

    table: str
    chip: str
    frame: polars.DataFrame
    columns: tuple[str, ...]
    removed: dict[str, int]
    scores: tuple[Score, ...]

    @property
    def rows(self) -> polars.DataFrame:
        """The rows with the columns they had and the predictions."""
        return self.frame.select(self.columns)

    def reasons(self) -> list[tuple[str, int]]:
        """Return why rows have no answer and how many, the most frequent first."""
        pl = require("polars", "tables", "Scoring")
        found = (
            self.frame.filter(pl.col("refused").is_not_null())
            .group_by("refused")
            .len()
            .sort("len", "refused", descending=[True, False])
        )
        return found.rows()


def validate(directory: Path, systems: Systems, progress: Progress | None = None) -> Iterator[Result]:
    """Yield the results of a directory's tables as they are finished.

    Raises InputError for a directory without tables, or for a table that cannot be read.
    """
    tables = find_tables(directory)
    total = len(tables) + 1
    for done, (table, path) in enumerate(tables):
        if progress:
            progress(done, total)
        yield result(table, read_table(table, path), systems)
    if progress:
        progress(total - 1, total)
    compass = llmcompass.read(directory)
    if compass is not None:
        yield result(llmcompass.TABLE, compass, systems)
    if progress:
        progress(total, total)


def result(table: Table, frame: polars.DataFrame, systems: Systems) -> Result:
    """Answer, filter and score the rows of one table."""
    before = frame.columns
    full = answer_frame(table, frame, systems)
    keep, removed = quirks.apply(table.name, full)
    full = full.with_columns(keep.alias("clean"))
    added = [name for name in full.columns if name not in before and name != "impossible"]
    columns = (*(name for name in before), *(name for name in added if name != "clean"))
    return Result(table.name, table.chip, full, columns, removed, tuple(scores(table.name, table.chip, full)))


def answer_frame(table: Table, frame: polars.DataFrame, systems: Systems) -> polars.DataFrame:
    """Return a table with its predictions."""
    pl = require("polars", "tables", "Scoring")
    if table.name == "e2e":
        return e2e.answer(frame, systems)
    answer = {"gemm": gemm, "moe": moe, "comm": comm, "llmcompass_matmul": llmcompass}.get(
        table.name, attention
    ).answer
    found = answer(frame, systems)
    full = frame.with_columns(**columns_of(found))
    if table.name.startswith("attention"):
        full = full.with_columns(pl.Series("impossible", attention.impossible(frame, found, systems)))
    return full


def columns_of(found: Answers) -> dict[str, polars.Series]:
    """Return predictions as columns; empty where there is no answer."""
    pl = require("polars", "tables", "Scoring")
    times = {
        "predicted_s": found.predicted,
        "low_s": found.low,
        "high_s": found.high,
        "roofline_s": found.roofline,
    }
    out = {name: pl.Series(name, values).fill_nan(None) for name, values in times.items()}
    answered = out["predicted_s"].is_not_null()
    bound = pl.Series("bound", found.bound.tolist(), dtype=pl.String)
    refused = pl.Series("refused", [text or None for text in found.refused.tolist()], dtype=pl.String)
    return {
        **out,
        "bound": bound.zip_with(
            answered, pl.Series([""], dtype=pl.String).extend_constant("", len(bound) - 1)
        ),
        "refused": refused,
    }
