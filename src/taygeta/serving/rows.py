"""A row for each request, as Parquet: for any tool that reads tables. Needs the extra `tables`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taygeta.base.errors import require
from taygeta.base.files import replacing
from taygeta.serving.metrics import e2e_of, tpot_of, ttft_of
from taygeta.serving.outcome import ANSWERED, CUT, REFUSED, Outcome

if TYPE_CHECKING:
    import polars

ENDINGS = {ANSWERED: "answered", REFUSED: "refused", CUT: "cut"}


def rows(o: Outcome) -> polars.DataFrame:
    """Return a row for each request, in the order of the traffic; null where there is no such thing.

    Columns: index; arrival_s, start_s, first_s, end_s (seconds from the start of the run); ttft_s, tpot_s, e2e_s;
    isl, osl, cached_tokens; replica; preemptions, retries; outcome ("answered", "refused", "cut"). Of a run that was
    interrupted, requests without an end are "cut". Raises MissingExtraError without polars.
    """
    pl = require("polars", "tables", "A row for each request")
    traffic = o.setup.traffic
    times = {
        "arrival_s": o.arrival,
        "start_s": o.start,
        "first_s": o.first,
        "end_s": o.end,
        "ttft_s": ttft_of(o),
        "tpot_s": tpot_of(o),
        "e2e_s": e2e_of(o),
    }
    frame = pl.DataFrame(
        {
            "index": range(len(traffic)),
            **times,
            "isl": traffic.isl,
            "osl": traffic.osl,
            "cached_tokens": o.cached,
            "replica": o.replica,
            "preemptions": o.preemptions,
            "retries": o.retries,
            "outcome": o.ended,
        }
    )
    nobody = pl.when(pl.col("replica") >= 0).then("replica")
    ending = pl.col("outcome").replace_strict(ENDINGS, return_dtype=pl.String)
    return frame.with_columns(pl.col(list(times)).fill_nan(None), nobody, ending)


def write_rows(o: Outcome, path: Path) -> None:
    """Write the rows of a run to a Parquet file, which appears as a whole. Raises InputError or MissingExtraError."""
    frame = rows(o)
    with replacing(path) as part:
        frame.write_parquet(part)
