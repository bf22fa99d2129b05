"""Answers to the rows of a table: predicted seconds with a range, the roofline, what binds, or why there is
no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from taygeta.cost.loops import PARTS

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class Answers:
    """One entry for each row of a table; times are seconds, NaN where `refused` says why there is no answer."""

    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray
    roofline: np.ndarray
    bound: np.ndarray
    refused: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> Answers:
        """Return answers to `rows` rows that say nothing yet."""
        predicted, low, high, roofline = (np.full(rows, np.nan) for _ in range(4))
        return cls(
            predicted, low, high, roofline, np.full(rows, "", dtype=object), np.full(rows, "", dtype=object)
        )

    def refuse(self, index: np.ndarray, reason: str) -> None:
        """Leave rows without an answer, for a reason."""
        self.refused[index] = reason
        for values in (self.predicted, self.low, self.high, self.roofline):
            values[index] = np.nan

    def put(
        self,
        index: np.ndarray,
        runs: Sequence[np.ndarray],
        roofline: np.ndarray,
        error: float | np.ndarray,
        parts: Sequence[str] = PARTS,
    ) -> None:
        """Enter times. runs: outputs of a loop at the nominal values and at the corners; error: of held-out
        silicon, of all rows or of each.
        """
        nominal = runs[0][:, 0]
        self.predicted[index] = nominal
        self.low[index], self.high[index] = widen_columns(nominal, [run[:, 0] for run in runs[1:]], error)
        self.roofline[index] = roofline
        self.bound[index] = np.array(parts, dtype=object)[np.argmax(runs[0][:, 1:], axis=1)]


def widen_columns(
    nominal: np.ndarray, corners: Sequence[np.ndarray], error: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high) of every row: taygeta.base.interval.widen, on columns."""
    residual = np.log1p(error)
    stack = np.vstack([nominal, *corners])
    fast, slow = np.log(nominal / stack.min(axis=0)), np.log(stack.max(axis=0) / nominal)
    return nominal * np.exp(-np.hypot(fast, residual)), nominal * np.exp(np.hypot(slow, residual))


def groups(frame: polars.DataFrame, *columns: str) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield (values of the columns, indices of the rows that have them), in order of first occurrence."""
    found = frame.select(columns).with_row_index("_row").group_by(columns, maintain_order=True).agg("_row")
    for row in found.rows():
        yield row[:-1], np.asarray(row[-1], dtype=np.int64)


def column(frame: polars.DataFrame, name: str, index: np.ndarray | None = None) -> np.ndarray:
    """Return a column as float64, of the rows of `index` only where it is given; empty cells are NaN."""
    values = frame[name].to_numpy().astype(float)
    return values if index is None else values[index]
