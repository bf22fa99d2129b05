"""Tables of measured silicon: which columns each has, and a reader that refuses what cannot be scored.

A table is a Parquet file named after it. Texts become strings, counts and measures become float64, and a
missing optional column is filled with its default, so that what follows sees one shape of table. Times are
seconds, sizes bytes or elements as named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taygeta.base.errors import InputError, require
from taygeta.base.parquet import read_parquet

if TYPE_CHECKING:
    import polars

_PURPOSE = "Reading tables of silicon"
MAX_BYTES = 2**30  # the largest public table has 2 MB
MAX_ROWS = 20_000_000
LARGEST = 2.0**40  # no size or count of a kernel comes near; keeps arithmetic finite
TEXT, SIZE, TIME, FLAG = "text", "size", "time", "flag"
_MEANING = {
    TEXT: "text",
    SIZE: "a number that is not negative",
    TIME: "a time in seconds above zero",
    FLAG: "true or false",
}
REQUIRED = object()


@dataclass(frozen=True)
class Column:
    """One column. default: REQUIRED, or what a table without the column has; empty: whether a row may leave
    it out.
    """

    name: str
    kind: str
    default: Any = REQUIRED
    empty: bool = False


@dataclass(frozen=True)
class Table:
    """A kind of table: its name, its columns, and the columns that together say which kernel a row is."""

    name: str
    columns: tuple[Column, ...]
    time: str = "latency_s"
    chip: str = "gpu"


def _columns(
    text: str = "", sizes: str = "", times: str = "latency_s", optional: tuple[Column, ...] = ()
) -> tuple[Column, ...]:
    texts = tuple(Column(name, TEXT) for name in text.split())
    return (
        *texts,
        *(Column(name, SIZE) for name in sizes.split()),
        *(Column(name, TIME) for name in times.split()),
        *optional,
    )


_KERNEL = tuple(Column(name, TEXT, "", True) for name in ("framework", "version", "kernel"))
_WINDOW = Column("window", SIZE, 0.0, True)
_COMPUTE = Column("compute_dtype", TEXT, "bfloat16")
_MISLABELLED = Column("mislabelled_device", FLAG, False, True)
_SERVED_TEXTS = (
    "id", "backend_version", "precision", "gemm_quant_mode", "moe_quant_mode", "measured", "source", "image",
)  # fmt: skip
_SERVED_SIZES = (
    "concurrency", "batch_size", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size",
)  # fmt: skip
_SIDES = tuple(
    f"{side}_{name}"
    for side in ("prefill", "decode")
    for name in (
        "num_workers", "batch_size", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size",
    )
)  # fmt: skip
_PEERS = tuple(
    Column(f"aiconfigurator_{mode}_{what}_s", TIME, None, True)
    for mode in ("silicon", "hybrid")
    for what in ("tpot", "ttft")
)

GEMM = Table("gemm", _columns("gpu dtype", "m n k", optional=(*_KERNEL, _MISLABELLED)))
PREFILL = Table(
    "attention_prefill",
    _columns(
        "gpu kv_dtype", "batch_size isl q_heads kv_heads head_dim",
        optional=(*_KERNEL, _COMPUTE, Column("step", SIZE, 0.0, True), _WINDOW, _MISLABELLED),
    ),
)  # fmt: skip
DECODE = Table(
    "attention_decode",
    _columns(
        "gpu kv_dtype", "batch_size kv_len q_heads kv_heads head_dim",
        optional=(*_KERNEL, _COMPUTE, _WINDOW, _MISLABELLED),
    ),
)  # fmt: skip
MOE = Table(
    "moe",
    _columns(
        "gpu dtype distribution",
        "num_tokens hidden_size inter_size topk num_experts tp ep",
        optional=(*_KERNEL, _MISLABELLED),
    ),
)
COMM = Table(
    "comm",
    _columns(
        "gpu library op dtype",
        "num_gpus bytes",
        optional=(Column("version", TEXT, "", True), Column("mode", TEXT, "graph")),
    ),
)
E2E = Table(
    "e2e",
    _columns(
        "backend model_path system", "isl osl", "tpot_s",
        (
            *(Column(name, TEXT, "", True) for name in _SERVED_TEXTS),
            Column("mode", TEXT, "agg"),
            *(Column(name, SIZE, None, True) for name in (*_SERVED_SIZES, *_SIDES)),
            Column("ttft_s", TIME, None, True),
            Column("clean", FLAG, True, True),
            *_PEERS,
        ),
    ),
    time="tpot_s",
    chip="system",
)  # fmt: skip
TABLES = (GEMM, PREFILL, DECODE, MOE, COMM, E2E)


def find_tables(directory: Path) -> list[tuple[Table, Path]]:
    """Return the tables that a directory holds, in the order of TABLES. Raises InputError when it holds none."""
    try:
        if not directory.is_dir():
            raise InputError(
                f"{directory} is not a directory: it must be one that holds tables such as gemm.parquet."
            )
        found = [(table, directory / f"{table.name}.parquet") for table in TABLES]
        here = [(table, path) for table, path in found if path.exists()]
        if not here and not list(directory.glob("llmcompass/*.csv")):
            names = ", ".join(f"{table.name}.parquet" for table in TABLES)
            raise InputError(
                f"{directory} holds no table of measured silicon: expected any of {names}, llmcompass/*.csv."
            )
    except (OSError, ValueError) as error:
        raise InputError(f"{directory} cannot be read: {error}.") from None
    return here


def read_table(table: Table, path: Path, progress: Callable[[str], None] | None = None) -> polars.DataFrame:
    """Read one table into strings, float64 and booleans, its other columns as they are.

    Raises InputError that names the file and the column for a file that is no Parquet, is too large or empty,
    lacks a column, or holds a value that is no size or time.
    """
    pl = require("polars", "tables", _PURPOSE)
    raw = read_parquet(path, _PURPOSE, MAX_BYTES, MAX_ROWS, "split it into directories")
    for column in table.columns:
        if column.name not in raw.columns:
            if column.default is REQUIRED:
                raise InputError(
                    f"{path}: column {column.name} is missing; it must hold {_MEANING[column.kind]}."
                )
            dtype = {TEXT: pl.String, FLAG: pl.Boolean}.get(column.kind, pl.Float64)
            raw = raw.with_columns(pl.lit(column.default, dtype=dtype).alias(column.name))
        else:
            raw = raw.with_columns(_typed(raw[column.name], column, path, pl))
    return raw


def _typed(values: polars.Series, column: Column, path: Path, pl: Any) -> polars.Series:
    """Return a column in the type of its kind, or refuse it."""
    where = f"{path}: column {column.name}"
    if values.null_count() == len(values) and column.empty:
        values = values.cast({TEXT: pl.String, FLAG: pl.Boolean}.get(column.kind, pl.Float64), strict=False)
    if column.kind == TEXT:
        if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
            raise InputError(f"{where} must hold text, not {values.dtype}.")
        values = values.cast(pl.String)
    elif column.kind == FLAG:
        if values.dtype != pl.Boolean:
            raise InputError(f"{where} must hold true or false, not {values.dtype}.")
    else:
        if not values.dtype.is_numeric():
            raise InputError(f"{where} must hold {_MEANING[column.kind]}, not {values.dtype}.")
        values = values.cast(pl.Float64)
        _check_numbers(values, column, where)
    if column.empty:
        return values.fill_null(column.default) if column.default is not None else values
    if values.null_count():
        raise InputError(
            f"{where} is empty in {values.null_count():,} rows; every row must have {_MEANING[column.kind]}."
        )
    return values


def _check_numbers(values: polars.Series, column: Column, where: str) -> None:
    given = values.drop_nulls()
    bad = ~(given.is_finite() & (given >= 0.0) & (given <= LARGEST))
    if column.kind == TIME:
        bad = bad | (given <= 0.0)
    if bad.any():
        first = given.filter(bad)[0]
        raise InputError(
            f"{where} must hold {_MEANING[column.kind]}, not {first:g} ({int(bad.sum()):,} such rows)."
        )
