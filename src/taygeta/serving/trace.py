"""Request traces: files of real traffic, read into columns or refused by the line that is wrong.

CSV (Azure's, BurstGPT's, a user's own), JSON lines (Mooncake's) and Parquet. Columns are known by their names
(taygeta.serving.columns); others are ignored. Times are seconds or ISO dates, in Mooncake's layout milliseconds; the
first arrival becomes 0. An answer of 0 tokens is kept (a failed or filtered request still costs its prompt); a prompt
of 0 tokens is refused, because no engine can serve it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.base.parquet import read_parquet
from taygeta.serving.columns import (
    ARRIVAL,
    HASH_IDS,
    ISL,
    OSL,
    PRIORITY,
    Where,
    counted_times,
    dated_times,
    milliseconds,
    numeric,
    quoted,
    recognised,
    whole_numbers,
)
from taygeta.serving.traffic import MAX_HASHES, MAX_REQUESTS, MAX_TOKENS, Prefixes, Traffic, joined, make_traffic

MAX_BYTES = 1 << 32
MAX_LINE = 1 << 24  # bytes; the ids of a prompt of MAX_TOKENS in blocks of 16 tokens take 2 MB
READ = 1 << 20  # bytes that are read at a time
CHUNK = 1 << 12  # rows that are turned into numbers at a time; few enough to stay in the cache of a CPU
BLOCK = 512  # tokens of a hashed block in Mooncake's traces
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SPLIT = "split it, or take a part of it"

_AZURE = (
    "Azure LLM inference trace 2023 (github.com/Azure/AzurePublicDataset, CC-BY-4.0), published with Splitwise, "
    "arXiv:2311.18677"
)
_MOONCAKE = "Mooncake traces (github.com/kvcache-ai/Mooncake, Apache-2.0), published with Mooncake, arXiv:2407.00079"
SOURCES = (
    ("AzureLLMInferenceTrace", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _AZURE),
    ("conversation_trace", ("timestamp", "input_length", "output_length"), _MOONCAKE),
    ("toolagent_trace", ("timestamp", "input_length", "output_length"), _MOONCAKE),
    ("synthetic_trace", ("timestamp", "input_length", "output_length"), _MOONCAKE),
    ("mooncake_trace", ("timestamp", "input_length", "output_length"), _MOONCAKE),
)
"""Public traces that are known by how their file is called and by its columns: the citation they ask for."""


@dataclass(frozen=True)
class Part:
    """Some rows of a file: the name of the column of each role, where each row is, and the cells of each role."""

    names: dict[str, str]
    rows: Sequence[int] | NDArray[np.int64]
    cells: dict[str, Any]


@dataclass(frozen=True)
class _Columns:
    """A file as numbers. arrival: seconds from the first; hashes: the number of ids of each row, and all ids."""

    names: dict[str, str]
    rows: NDArray[np.int64]
    arrival: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    priority: NDArray[np.int64]
    hashes: tuple[NDArray[np.int64], NDArray[np.int64]]


def load_trace(
    path: str | Path,
    name: str | None = None,
    source: str | None = None,
    sort: bool = False,
    unit: str | None = None,
    block: int = BLOCK,
) -> Traffic:
    """Read a trace: CSV, JSON lines or Parquet.

    name, source: of the traffic; by default the file's name and, for a public trace, its citation. sort: order the
    requests by arrival instead of refusing a file whose times run backwards. unit: what times count, s, ms, us or ns;
    by default seconds, and milliseconds in Mooncake's layout. block: tokens that each of its hash_ids stands for.
    Raises InputError (one sentence: file, line, column, what was given) or MissingExtraError.
    """
    path = Path(path)
    if unit is not None and unit not in PER_SECOND:
        raise InputError(f"The unit of a trace's times must be {', '.join(PER_SECOND)}, not {unit!r}.")
    kind = _kind(path)
    columns = _numbers(path, _READERS[kind](path), kind, unit)
    prefixes = _prefixes(path, columns, block, kind)
    order = np.argsort(columns.arrival, kind="stable")
    if not sort:
        _check_order(path, columns, kind)
    elif (np.diff(order) < 0).any() and prefixes is not None:
        prefixes = prefixes.chosen(order)
    return make_traffic(
        name or path.name,
        columns.isl[order],
        columns.osl[order],
        columns.arrival[order],
        source=_source(path, columns.names) if source is None else source,
        priority=columns.priority[order],
        prefixes=prefixes,
    )


def _kind(path: Path) -> str:
    """The format of a file: by its suffix, else by its first bytes. Raises InputError for what cannot be read."""
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file.")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES // 2**30} GiB: {_SPLIT}.")
        if not path.stat().st_size:
            raise InputError(f"{path} is empty.")
        known = _SUFFIXES.get(path.suffix.lower())
        if known:
            return known
        with path.open("rb") as file:
            start = file.read(4096).lstrip()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return "parquet" if start[:4] == b"PAR1" else "jsonl" if start[:1] == b"{" else "csv"


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file with their ends. Raises InputError for one that is too long or is no text."""
    number, rest = 1, b""
    try:
        with path.open("rb") as file:
            while block := file.read(READ):
                ended, end, rest = (rest + block).rpartition(b"\n")
                if max(len(rest), len(ended)) > MAX_LINE:
                    _check_lengths(path, ended + end + rest, number)
                yield from io.StringIO(_text(path, ended + end, number))
                number += ended.count(b"\n") + len(end)
            yield from io.StringIO(_text(path, rest, number))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _check_lengths(path: Path, block: bytes, number: int) -> None:
    for index, line in enumerate(block.split(b"\n")):
        if len(line) > MAX_LINE:
            raise InputError(f"{path} line {number + index} is longer than {MAX_LINE // 2**20} MiB.")


def _text(path: Path, block: bytes, number: int) -> str:
    """Some lines as text, the first of which is `number`; a file may begin with a byte order mark."""
    try:
        return block.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = number + block.count(b"\n", 0, error.start)
        byte = error.start - block.rfind(b"\n", 0, error.start)
        raise InputError(f"{path} line {line} is not UTF-8 text: byte {byte} of it cannot be read.") from None


def _csv_parts(path: Path) -> Iterator[Part]:
    lines = _lines(path)
    first = next(lines, "")  # a file can be a byte order mark and nothing else
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader)]
        names = recognised(header, f"{path} line 1")
        places = {role: header.index(name) for role, name in names.items()}
        above = reader.line_num
        while rows := list(itertools.islice(reader, CHUNK)):
            numbers = _line_numbers(rows, above, reader.line_num)
            above = reader.line_num
            if not all(rows):  # blank lines
                numbers = [number for number, row in zip(numbers, rows, strict=True) if row]
                rows = [row for row in rows if row]
            if not set(map(len, rows)) <= {len(header)}:
                index = next(i for i, row in enumerate(rows) if len(row) != len(header))
                raise InputError(
                    f"{path} line {numbers[index]}: {len(rows[index])} fields where line 1 names {len(header)}."
                )
            if rows:
                columns = list(zip(*rows, strict=True))
                yield Part(names, numbers, {role: columns[place] for role, place in places.items()})
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: {error}.") from None


def _line_numbers(rows: list[list[str]], above: int, last: int) -> Sequence[int]:
    """The line on which each row ends: quoted fields may hold line breaks."""
    if last - above == len(rows):
        return range(above + 1, last + 1)
    heights = (1 + sum(field.count("\n") for field in row) for row in rows)
    return list(itertools.accumulate(heights, initial=above))[1:]


def _json_parts(path: Path) -> Iterator[Part]:
    layouts: dict[tuple[str, ...], dict[str, str]] = {}
    filled = ((number, line) for number, line in enumerate(_lines(path), 1) if line.strip())
    while batch := list(itertools.islice(filled, CHUNK)):
        cells: dict[str, list[Any]] = {role: [] for role in _ABSENT}
        names: dict[str, str] = {}
        for number, line in batch:
            row = _json_row(line, f"{path} line {number}")
            layout = tuple(row)
            if layout not in layouts:
                layouts[layout] = recognised(row, f"{path} line {number}")
            names = layouts[layout]
            for role, absent in _ABSENT.items():
                cells[role].append(row[names[role]] if role in names else absent)
        yield Part(names, [number for number, _ in batch], cells)


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{where} must be a JSON object, not {quoted(line.strip())}.")
    return row


def _parquet_parts(path: Path) -> Iterator[Part]:
    def choose(columns: list[str]) -> list[str]:
        return list(dict.fromkeys(recognised(columns, str(path)).values()))

    frame = read_parquet(path, "Reading a Parquet trace", MAX_BYTES, MAX_REQUESTS, _SPLIT, choose)
    names = recognised(frame.columns, str(path))
    cells: dict[str, Any] = {}
    for role, name in names.items():
        series = frame[name]
        plain = series.dtype.is_integer() or series.dtype.is_float()
        dated = str(series.dtype).startswith(("Datetime", "Date"))
        if (plain and not series.null_count()) or dated:
            cells[role] = series.to_numpy()
        else:
            cells[role] = series.to_list()
    yield Part(names, np.arange(1, frame.height + 1), cells)


_READERS: dict[str, Callable[[Path], Iterator[Part]]] = {
    "csv": _csv_parts, "jsonl": _json_parts, "parquet": _parquet_parts,
}  # fmt: skip
_SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
}  # fmt: skip
_ABSENT: dict[str, Any] = {ARRIVAL: None, ISL: None, OSL: None, PRIORITY: 0, HASH_IDS: ()}
"""What a row of JSON has where a column is left out; recognised refuses a row without the first three."""


def _numbers(path: Path, parts: Iterator[Part], kind: str, unit: str | None) -> _Columns:
    """Turn the rows of a file into columns of numbers. Raises InputError by the row."""
    names: dict[str, str] = {}
    out: dict[str, list[NDArray[Any]]] = {name: [] for name in ("rows", ARRIVAL, ISL, OSL, PRIORITY, HASH_IDS)}
    known: dict[int | str, int] = {}
    ids = array("q")
    counted, per_second, total = True, 1, 0
    for part in parts:
        if not total:
            names = part.names
            counted = numeric(part.cells[ARRIVAL][0])
            per_second = PER_SECOND[unit or ("ms" if milliseconds(names, kind == "jsonl") else "s")]
        total += len(part.rows)
        if total > MAX_REQUESTS:
            raise InputError(f"{path} has more than {MAX_REQUESTS:,} requests: {_SPLIT}.")
        where = _where(path, kind, part.rows)
        out["rows"].append(np.asarray(part.rows))
        out[ARRIVAL].append(_times(part, counted, per_second, where))
        for role, least, most in ((ISL, 1, MAX_TOKENS), (OSL, 0, MAX_TOKENS)):
            out[role].append(whole_numbers(part.cells[role], part.names[role], least, most, where))
        out[PRIORITY].append(_priorities(part, where))
        out[HASH_IDS].append(_hashes(part, known, ids, where))
    if not total:
        raise InputError(f"{path} has no requests below its header.")
    joint = {name: np.concatenate(values) for name, values in out.items()}
    arrival = joint[ARRIVAL] - joint[ARRIVAL].min()
    return _Columns(
        names,
        joint["rows"],
        arrival if counted else arrival / 1e9,
        joint[ISL],
        joint[OSL],
        joint[PRIORITY],
        (joint[HASH_IDS], np.frombuffer(ids, np.int64)),
    )


def _where(path: Path, kind: str, rows: Sequence[int] | NDArray[np.int64]) -> Where:
    word = "row" if kind == "parquet" else "line"
    return lambda index: f"{path} {word} {rows[index]}"


def _times(part: Part, counted: bool, per_second: int, where: Where) -> NDArray[Any]:
    """Seconds where times are counted, nanoseconds since 1970 where they are dates, as the first of the file is."""
    cells = part.cells[ARRIVAL]
    if counted and not (isinstance(cells, np.ndarray) and cells.dtype.kind == "M"):
        return counted_times(cells, part.names[ARRIVAL], per_second, where)
    return dated_times(cells, part.names[ARRIVAL], where)


def _priorities(part: Part, where: Where) -> NDArray[np.int64]:
    if PRIORITY not in part.cells:
        return np.zeros(len(part.rows), np.int64)
    most = 2**31 - 1
    return whole_numbers(part.cells[PRIORITY], part.names.get(PRIORITY, PRIORITY), -most, most, where)


def _hashes(part: Part, known: dict[int | str, int], ids: array[int], where: Where) -> NDArray[np.int64]:
    """Append the ids of prefixes, numbered in the order in which they are met; return how many each row has."""
    if HASH_IDS not in part.cells:
        return np.zeros(len(part.rows), np.int64)
    counts = []
    for index, cell in enumerate(part.cells[HASH_IDS]):
        found = _id_list(cell) if isinstance(cell, str) else () if cell is None else cell
        if not isinstance(found, (list, tuple)) or not set(map(type, found)) <= {int, str}:
            name = part.names.get(HASH_IDS, HASH_IDS)
            raise InputError(f"{where(index)}: {name} must be a list of whole numbers or texts, not {quoted(cell)}.")
        ids.extend([known.setdefault(value, len(known)) for value in found])
        counts.append(len(found))
        if len(ids) > MAX_HASHES:
            raise InputError(f"{where(index)}: more than {MAX_HASHES:,} ids of prefixes so far: {_SPLIT}.")
    return np.array(counts, np.int64)


def _id_list(cell: str) -> object:
    """The ids in a cell of text: a JSON list, or ids with blanks or semicolons between them."""
    if not cell.lstrip().startswith("["):
        return cell.replace(";", " ").split()
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return None


def _prefixes(path: Path, columns: _Columns, block: int, kind: str) -> Prefixes | None:
    if not 1 <= block <= MAX_TOKENS:
        raise InputError(f"A block of a hashed prefix must have 1 to {MAX_TOKENS:,} tokens, not {block}.")
    counts, ids = columns.hashes
    tokens = columns.isl + columns.osl
    bad = np.flatnonzero(counts > -(-tokens // block))
    if len(bad):
        where, name = _where(path, kind, columns.rows)(int(bad[0])), columns.names.get(HASH_IDS, HASH_IDS)
        raise InputError(
            f"{where}: {name} has {counts[bad[0]]:,} ids for {tokens[bad[0]]:,} tokens of prompt and answer "
            f"in blocks of {block}: give the tokens of a block."
        )
    return joined(counts, ids, block)


def _check_order(path: Path, columns: _Columns, kind: str) -> None:
    back = np.flatnonzero(np.diff(columns.arrival) < 0)
    if len(back):
        where = _where(path, kind, columns.rows)(int(back[0]) + 1)
        gap = columns.arrival[back[0]] - columns.arrival[back[0] + 1]
        raise InputError(
            f"{where}: {columns.names[ARRIVAL]} is {gap:g} s before the one above it; times must not run backwards: "
            "--sort (sort=True) orders the requests by arrival."
        )


def _source(path: Path, names: dict[str, str]) -> str:
    ours = tuple(names[role] for role in (ARRIVAL, ISL, OSL))
    return next((text for start, layout, text in SOURCES if path.name.startswith(start) and ours == layout), "")
