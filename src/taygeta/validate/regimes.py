"""Regimes: the ways in which rows of a table are grouped, so that a score says where a prediction is good."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from taygeta.base.errors import require

if TYPE_CHECKING:
    import polars

# Names of the columns that `label` makes, without the leading underscore, in the order of reports.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "framework", "m", "shape", "bound", "case"),
    "attention_prefill": ("dtype", "framework", "new tokens", "window", "bound", "case"),
    "attention_decode": ("dtype", "framework", "context", "batch", "window", "stream", "bound", "case"),
    "moe": ("dtype", "framework", "distribution", "tokens", "bound", "case"),
    "comm": ("op", "library", "bytes", "chips", "case"),
    "e2e": ("model", "backend", "formats", "concurrency", "input", "source", "peer", "flag", "case"),
}


def label(table: str, frame: polars.DataFrame) -> dict[str, polars.Expr]:
    """Return the regime of every row, as new columns: one for each of the table's dimensions."""
    found = {
        "gemm": _gemm,
        "attention_prefill": _prefill,
        "attention_decode": _decode,
        "moe": _moe,
        "comm": _comm,
        "e2e": _e2e,
    }
    labels = found[table](frame) if table in found else {}
    return {f"_{name}": expression for name, expression in labels.items()}


def _steps(column: str, edges: tuple[float, ...], unit: str = "") -> polars.Expr:
    """Name the interval of a size: "m < 64", "64 <= m < 1024", "m >= 1024"."""
    pl = require("polars", "tables", "Scoring")
    value = pl.col(column)
    out = pl.when(value < edges[0]).then(pl.lit(f"{column} < {edges[0]:g}{unit}"))
    for low, high in pairwise(edges):
        out = out.when(value < high).then(pl.lit(f"{low:g}{unit} <= {column} < {high:g}{unit}"))
    return out.otherwise(pl.lit(f"{column} >= {edges[-1]:g}{unit}"))


def _join(*columns: str | polars.Expr) -> polars.Expr:
    pl = require("polars", "tables", "Scoring")
    return pl.concat_str([pl.col(c) if isinstance(c, str) else c for c in columns], separator=" ")


def _bound() -> polars.Expr:
    pl = require("polars", "tables", "Scoring")
    return (
        pl.when(pl.col("bound") == "")
        .then(pl.lit("refused"))
        .otherwise(pl.lit("bound by ") + pl.col("bound"))
    )


def _yes(condition: polars.Expr, yes: str, no: str) -> polars.Expr:
    pl = require("polars", "tables", "Scoring")
    return pl.when(condition).then(pl.lit(yes)).otherwise(pl.lit(no))


def _gemm(frame: polars.DataFrame) -> dict[str, polars.Expr]:
    pl = require("polars", "tables", "Scoring")
    shape = _yes((pl.col("n") >= 512) & (pl.col("k") >= 512), "n, k >= 512", "n or k < 512")
    return {
        "dtype": pl.col("dtype"),
        "framework": pl.col("framework"),
        "m": _steps("m", (65, 1024)),
        "shape": shape,
        "bound": _bound(),
        "case": _join("dtype", "framework", shape),
    }


def _prefill(frame: polars.DataFrame) -> dict[str, polars.Expr]:
    pl = require("polars", "tables", "Scoring")
    dtype = pl.lit("compute ") + pl.col("compute_dtype") + pl.lit(", cache ") + pl.col("kv_dtype")
    return {
        "dtype": dtype,
        "framework": pl.col("framework"),
        "new tokens": _steps("isl", (1024,)),
        "window": _yes(pl.col("window") > 0, "window", "no window"),
        "bound": _bound(),
        "case": _join(dtype, "framework"),
    }


def _decode(frame: polars.DataFrame) -> dict[str, polars.Expr]:
    pl = require("polars", "tables", "Scoring")
    dtype = pl.lit("cache ") + pl.col("kv_dtype")
    grouped = (pl.col("q_heads") > pl.col("kv_heads")) & (pl.col("batch_size") <= 256)
    stream = grouped & (pl.col("kv_len") >= 1000) & (pl.col("latency_s") > 50e-6)
    return {
        "dtype": dtype,
        "framework": pl.col("framework"),
        "context": _steps("kv_len", (1024,)),
        "batch": _steps("batch_size", (64,)),
        "window": _yes(pl.col("window") > 0, "window", "no window"),
        "stream": _yes(stream, "grouped, batch <= 256, context >= 1000, > 50 us", "others"),
        "bound": _bound(),
        "case": _join(dtype, "framework"),
    }


def _moe(frame: polars.DataFrame) -> dict[str, polars.Expr]:
    pl = require("polars", "tables", "Scoring")
    return {
        "dtype": pl.col("dtype"),
        "framework": pl.col("framework"),
        "distribution": pl.col("distribution"),
        "tokens": _steps("num_tokens", (65, 1025)),
        "bound": _bound(),
        "case": _join("dtype", "framework"),
    }


def _comm(frame: polars.DataFrame) -> dict[str, polars.Expr]:
    pl = require("polars", "tables", "Scoring")
    return {
        "op": pl.col("op"),
        "library": pl.col("library"),
        "bytes": _steps("bytes", (65536, 8 * 2**20)),
        "chips": pl.col("num_gpus").cast(pl.Int64).cast(pl.String) + pl.lit(" chips"),
        "case": _join("op", "library", "mode"),
    }


def _e2e(frame: polars.DataFrame) -> dict[str, polars.Expr]:
    pl = require("polars", "tables", "Scoring")
    formats = pl.when(pl.col("precision") == "").then(pl.lit("bf16")).otherwise(pl.col("precision"))
    in_flight = pl.coalesce("concurrency", "batch_size")
    peer = pl.col("aiconfigurator_silicon_tpot_s").is_not_null()  # the mode that the report's first tables show
    return {
        "model": pl.col("model_path"),
        "backend": pl.col("backend"),
        "formats": formats,
        "concurrency": _yes(in_flight <= 16, "concurrency <= 16", "concurrency > 16"),
        "input": _steps("isl", (2000,)),
        "source": pl.col("source"),
        "flag": _flag(),
        "peer": _yes(peer, "answered by aiconfigurator silicon", "refused by aiconfigurator silicon"),
        "case": _join("model_path", "backend", formats),
    }


def _flag() -> polars.Expr:
    """Rows of e2e tables that are known to be suspect, by what they say of themselves and never by their
    error.
    """
    pl = require("polars", "tables", "Scoring")
    model = pl.col("model_path").str.to_lowercase()
    guessed = (
        (pl.col("backend") == "trtllm")
        & (pl.col("measured") == "2026-01-14")
        & model.str.contains("deepseek-r1")
    )
    short = (
        model.str.contains("nvidia/llama-3.1-8b") & (pl.col("system") == "h200_sxm") & (pl.col("osl") == 100)
    )
    return (
        pl.when(guessed.fill_null(False))
        .then(pl.lit("suspect: up to 1.9 times faster than repeats, as with speculative decoding"))
        .when(short.fill_null(False))
        .then(pl.lit("suspect: faster than the weights can be read"))
        .otherwise(pl.lit("not suspect"))
    )
