"""Results of serving benchmarks, read from the files that the tools write.

    vllm       `vllm bench serve --save-result` (SGLang's bench_serving too): request_rate, max_concurrency,
               mean_ttft_ms, ...; with --save-detailed input_lens, output_lens, ttfts and itls of each request;
               --append-result makes several runs, one to a line
    guidellm   benchmarks.json: benchmarks[], each with its strategy, and requests.successful[] or metrics
    aiperf     profile_export.jsonl: a record for each request; profile_export_aiperf.json and .csv: means

Times come out in seconds. Requests that failed are left out and counted.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.validate.measured import (
    MAX_REQUESTS,
    Measured,
    array_of,
    column_of,
    count_of,
    inside,
    list_of,
    means,
    measured,
    milliseconds_of,
    number_of,
    object_of,
    whole_of,
    with_failed,
)

MAX_BYTES = 1 << 29
STEADY = 0.9  # share of the starts at which a closed loop is full, and how full that is
BURST = 0.2  # of a latency, in which the first requests of a closed loop are sent
_UNITS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def read_results(paths: Sequence[str | Path]) -> tuple[Measured, ...]:
    """Return the runs of several files, or of all files of directories. Raises InputError: one sentence."""
    found: list[Measured] = []
    for path in (p for given in paths for p in _files(Path(given))):
        found += read_result(path)
    if not found:
        raise InputError("There are no results of a serving benchmark: give files of vllm bench, guidellm or aiperf.")
    return tuple(found)


def read_result(path: Path) -> list[Measured]:
    """Return the runs of one file. Raises InputError for what is no result of a known tool."""
    text = _text(path)
    if path.suffix == ".csv":
        return [_aiperf_table(path, text)]
    documents = _documents(path, text)
    first = documents[0]
    if isinstance(first.get("metadata"), dict) and isinstance(first.get("metrics"), dict):
        return [_aiperf_records(path, documents)]
    out: list[Measured] = []
    for index, document in enumerate(documents):
        where = f"{path}" if len(documents) == 1 else f"{path}, line {index + 1}"
        out += _read(where, document)
    return out


def _read(where: str, document: Mapping[str, Any]) -> list[Measured]:
    if isinstance(document.get("benchmarks"), list):
        many = len(document["benchmarks"]) > 1
        return [
            _guidellm(f"{where}, benchmark {i}" if many else where, object_of(b, f"{where}, benchmark {i}"))
            for i, b in enumerate(document["benchmarks"])
        ]
    if isinstance(document.get("time_to_first_token"), dict):
        return [_aiperf_summary(where, document)]
    if "ttfts" in document or "mean_ttft_ms" in document:
        return [_vllm(where, document)]
    raise InputError(
        f"{where} is no result of vllm bench, guidellm or aiperf: it has neither mean_ttft_ms, nor benchmarks, nor"
        " time_to_first_token."
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [p for p in sorted(path.iterdir()) if p.suffix in (".json", ".jsonl", ".csv") and p.is_file()]
    records = {p.name.removesuffix(".jsonl") for p in found if p.suffix == ".jsonl"}
    covered = {f"{name}_aiperf{end}" for name in records for end in (".json", ".csv")}  # of what the records say better
    covered |= {f"{p.stem}.csv" for p in found if p.suffix == ".json"}
    return [p for p in found if p.name not in covered and p.name != "inputs.json"]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB: benchmark with fewer requests.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text: give a result in JSON or CSV.") from None


def _documents(path: Path, text: str) -> list[Mapping[str, Any]]:
    """The JSON object of a file, or those of its lines."""
    try:
        return [object_of(json.loads(text), str(path))]
    except (ValueError, RecursionError) as error:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
        if len(lines) < 2:
            raise InputError(f"{path} is not JSON: {error}.") from None
    if len(lines) > MAX_REQUESTS:
        raise InputError(f"{path} has {len(lines):,} lines, more than {MAX_REQUESTS:,}.")
    out: list[Mapping[str, Any]] = []
    for n, line in lines:
        try:
            out.append(object_of(json.loads(line), f"{path}, line {n}"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {n} is not JSON: {error}.") from None
    return out


def _vllm(where: str, document: Mapping[str, Any]) -> Measured:
    rate = document.get("request_rate", "inf")
    rate = math.inf if rate in ("inf", None) else number_of(rate, f"{where}: request_rate")
    limit = document.get("max_concurrency")
    if not isinstance(document.get("ttfts"), list) or not document["ttfts"]:
        return _vllm_means(where, document, rate, limit)
    columns = {name: list_of(document, name, where) for name in ("input_lens", "output_lens", "ttfts", "itls")}
    count = len(columns["ttfts"])
    if any(len(column) != count for column in columns.values()):
        raise InputError(f"{where}: input_lens, output_lens, ttfts and itls must have as many values.")
    starts = document.get("start_times")
    times = column_of(starts, f"{where}: start_times") if isinstance(starts, list) and len(starts) == count else None
    isl = column_of(columns["input_lens"], f"{where}: input_lens")
    osl = column_of(columns["output_lens"], f"{where}: output_lens")
    ttft = column_of(columns["ttfts"], f"{where}: ttfts")
    gaps = [column_of(array_of(x, f"{where}: itls"), f"{where}: itls") for x in columns["itls"]]
    errors = document.get("errors")
    failed = [bool(e) for e in errors] if isinstance(errors, list) and len(errors) == count else [False] * count
    good = ~np.array(failed) & (osl >= 1) & (ttft > 0)
    tpot = np.array([float(g.sum()) for g in gaps]) / np.where(osl >= 2, osl - 1, np.nan)
    concurrency = _concurrency(where, rate, limit, count, times is not None)
    seen = np.array([len(g) for g in gaps])
    return measured(where, "vllm", concurrency, times, isl, osl, ttft, tpot, good, seen)


def _vllm_means(where: str, document: Mapping[str, Any], rate: float, limit: Any) -> Measured:
    done = whole_of(document, "completed", where)
    tokens = [whole_of(document, f"total_{name}_tokens", where) for name in ("input", "output")]
    times = [milliseconds_of(document, f"mean_{name}_ms", where) for name in ("ttft", "tpot")]
    prompts = int(number_of(document.get("num_prompts", done), f"{where}: num_prompts"))
    concurrency = _concurrency(where, rate, limit, prompts, False)
    return means(
        where, "vllm", concurrency, done, tokens[0] / done, tokens[1] / done, times[0], times[1], prompts - done
    )


def _concurrency(where: str, rate: float, limit: Any, count: int, timed: bool) -> int:
    """Requests in flight of a closed loop, 0 of an open one whose times are known."""
    if math.isfinite(rate):
        if not timed:
            raise InputError(
                f"{where}: request_rate is {rate:g} and the file does not say when requests were sent: benchmark with"
                " --max-concurrency and without a rate, or with a version that writes start_times."
            )
        return 0
    if limit is None:
        return count
    return min(count, count_of(limit, f"{where}: max_concurrency"))


def _guidellm(where: str, document: Mapping[str, Any]) -> Measured:
    strategy = next(
        (
            s
            for parent in (document.get("config"), document.get("scheduler"), document.get("args"))
            if isinstance(parent, dict) and isinstance(s := parent.get("strategy"), dict)
        ),
        {},
    )
    kind = str(strategy.get("type_") or strategy.get("kind") or strategy.get("type") or "")
    streams = 1 if kind == "synchronous" else strategy.get("streams")
    concurrency = 0 if streams is None else count_of(streams, f"{where}: streams")
    requests = document.get("requests")
    rows = requests.get("successful") if isinstance(requests, dict) else None
    if not isinstance(rows, list) or not rows:
        return _guidellm_means(where, document, concurrency)
    lost = requests.get("errored") if isinstance(requests, dict) else None
    columns: dict[str, list[Any]] = {"isl": [], "osl": [], "ttft": [], "tpot": [], "start": [], "seen": []}
    for n, row in enumerate(rows):
        item = object_of(row, f"{where}: request {n}")
        columns["isl"].append(item.get("prompt_tokens"))
        columns["osl"].append(item.get("output_tokens"))
        columns["ttft"].append(item.get("time_to_first_token_ms"))
        columns["tpot"].append(item.get("inter_token_latency_ms"))
        timings = inside(item, "info", "timings") or inside(item, "scheduler_info", "request_timings") or {}
        columns["start"].append(item.get("request_start_time", item.get("start_time", timings.get("request_start"))))
        columns["seen"].append(timings.get("token_iterations", item.get("iterations")))
    found = {name: column_of(values, f"{where}: {name} of requests", True) for name, values in columns.items()}
    good = (found["isl"] >= 1) & (found["osl"] >= 1) & (found["ttft"] > 0)
    starts = None if np.isnan(found["start"]).any() else found["start"]
    seen = np.where(np.isnan(found["seen"]), 0, found["seen"] - 1).astype(np.int64)
    ms = _UNITS["ms"]
    made = measured(
        where, "guidellm", concurrency, starts, found["isl"], found["osl"], found["ttft"] * ms, found["tpot"] * ms,
        good, seen,
    )  # fmt: skip
    return made if not isinstance(lost, list) else with_failed(made, len(lost))


def _guidellm_means(where: str, document: Mapping[str, Any], concurrency: int) -> Measured:
    if not concurrency:
        raise InputError(f"{where}: an open loop needs its requests, and the file has none: write them out.")

    def mean(name: str) -> float:
        return number_of(_mean_of(document, "metrics", name, "successful", where), f"{where}: {name}")

    counts = inside(document, "request_totals") or inside(document, "metrics", "request_totals") or {}
    done = int(number_of(counts.get("successful", 0), f"{where}: request_totals"))
    lengths = (mean("prompt_token_count"), mean("output_token_count"))
    times = (mean("time_to_first_token_ms") * 1e-3, mean("inter_token_latency_ms") * 1e-3)
    return means(where, "guidellm", concurrency, done, *lengths, *times, 0)


def _mean_of(document: Mapping[str, Any], parent: str, name: str, status: str, where: str) -> Any:
    found = inside(document, parent, name, status)
    if found is None or "mean" not in found:
        raise InputError(f"{where}: {parent}.{name}.{status}.mean is missing.")
    return found["mean"]


def _aiperf_records(path: Path, documents: Sequence[Mapping[str, Any]]) -> Measured:
    rows: list[tuple[float, float, float, float, float, float, float]] = []
    failed = 0
    for n, document in enumerate(documents, start=1):
        where = f"{path}, line {n}"
        about, metrics = object_of(document.get("metadata"), where), object_of(document.get("metrics") or {}, where)
        if document.get("error") or about.get("was_cancelled"):
            failed += 1
            continue
        start, end = (number_of(about.get(f"request_{x}_ns"), f"{where}: request_{x}_ns") for x in ("start", "end"))
        ttft, tpot = (_metric(metrics, name, where) for name in ("time_to_first_token", "inter_token_latency"))
        chunks = metrics.get("inter_chunk_latency")
        seen = len(chunks["value"]) if isinstance(chunks, dict) and isinstance(chunks.get("value"), list) else 0
        lengths = [_metric(metrics, f"{x}_sequence_length", where, 1.0) for x in ("input", "output")]
        rows.append((start, end, lengths[0], lengths[1], ttft, tpot, float(seen)))
    if not rows:
        raise InputError(f"{path} has no request that was answered.")
    start, end, isl, osl, ttft, tpot, seen = np.array(rows, dtype=float).T
    told = _aiperf_concurrency(path)
    concurrency = _loop(start, end) if told is None else told
    good = (isl >= 1) & (osl >= 1) & (ttft > 0)
    made = measured(str(path), "aiperf", concurrency, start * 1e-9, isl, osl, ttft, tpot, good, seen.astype(np.int64))
    return with_failed(made, failed)


def _aiperf_concurrency(path: Path) -> int | None:
    """What the summary beside the records says of the loop; None where it says nothing."""
    beside = path.with_name(f"{path.stem}_aiperf.json")
    if not beside.is_file():
        return None
    return _aiperf_loop(_documents(beside, _text(beside))[0], str(beside))


def _aiperf_loop(document: Mapping[str, Any], where: str) -> int | None:
    asked = inside(document, "input_config") or {}
    phases = asked.get("phases")
    places = [inside(asked, "loadgen") or {}, *(phases if isinstance(phases, list) else ())]
    for place in (p for p in places if isinstance(p, dict) and not p.get("exclude_from_results")):
        if place.get("request_rate") is not None:
            return 0
        if place.get("concurrency") is not None:
            return count_of(place["concurrency"], f"{where}: concurrency")
    return None


def _aiperf_summary(where: str, document: Mapping[str, Any]) -> Measured:
    def mean(name: str) -> tuple[float, float]:
        found = object_of(document.get(name), f"{where}: {name}")
        return number_of(found.get("avg"), f"{where}: {name}"), _UNITS.get(str(found.get("unit", "ms")), 1.0)

    told = _aiperf_loop(document, where)
    return _aiperf_means(where, mean, told)


def _aiperf_table(path: Path, text: str) -> Measured:
    """The summary as a table: "Time to First Token (ms),18.2,..." with the mean, or the one value, in second place."""
    values: dict[str, tuple[float, float]] = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) < 2 or row[0] == "Metric":
            continue
        name, _, unit = row[0].partition("(")
        try:
            values[name.strip().lower().replace(" ", "_")] = float(row[1]), _UNITS.get(unit.rstrip(") "), 1.0)
        except ValueError:
            continue

    def mean(name: str) -> tuple[float, float]:
        if name not in values or not math.isfinite(values[name][0]):
            raise InputError(f"{path} is no summary of aiperf: the row {name.replace('_', ' ')!r} is missing.")
        return values[name]

    return _aiperf_means(str(path), mean, None)


def _aiperf_means(where: str, mean: Any, told: int | None) -> Measured:
    if told == 0:
        raise InputError(f"{where}: an open loop needs its requests: give profile_export.jsonl instead.")
    (isl, _), (osl, _) = mean("input_sequence_length"), mean("output_sequence_length")
    times = [value * unit for value, unit in map(mean, ("time_to_first_token", "inter_token_latency"))]
    done = int(mean("request_count")[0])
    if told is None:  # Little's law: requests in flight = requests/s x seconds of each
        latency, unit = mean("request_latency")
        told = max(1, round(mean("request_throughput")[0] * latency * unit))
    return means(where, "aiperf", told, done, isl, osl, times[0], times[1], 0)


def _loop(start: NDArray[np.float64], end: NDArray[np.float64]) -> int:
    """Requests in flight of a closed loop, from when requests were sent and answered; 0 where it was none.

    A closed loop opens with a burst of as many as it ever has in flight, and is full again at nearly every start.
    """
    order = np.sort(start)
    flying = np.searchsorted(order, order, side="right") - np.searchsorted(np.sort(end), order, side="right")
    most = int(flying.max())
    full = flying[most:] >= max(1, int(STEADY * most))
    burst = float(order[most - 1] - order[0]) <= BURST * float(np.median(end - start))
    return most if burst and len(full) and float(full.mean()) >= STEADY else 0


def _metric(metrics: Mapping[str, Any], name: str, where: str, unit: float | None = None) -> float:
    """A metric of aiperf's records in SI; NaN where it is missing, as the TPOT of one token is."""
    found = metrics.get(name)
    if not isinstance(found, dict):
        return math.nan
    scale = _UNITS.get(str(found.get("unit", "ms")), 1.0) if unit is None else unit
    return number_of(found.get("value"), f"{where}: {name}") * scale
