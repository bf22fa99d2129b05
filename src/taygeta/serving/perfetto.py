"""A run as a timeline: Chrome trace events, which ui.perfetto.dev opens.

A process for each replica, in it a slice for each logged step, counters of what ran, waited and was cached, and for
each request, up to a number of them, the spans in which it was queued, its prompt was read and its answer made.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from taygeta.base.files import replacing
from taygeta.serving.metrics import kv_share
from taygeta.serving.outcome import LOG_COLUMNS, REFUSED, Outcome

MOST_REQUESTS = 10_000
"""Requests whose spans are drawn: the viewer gives each a line of its own."""
COUNTERS = ("running", "waiting", "KV cache, %")
MICROSECOND = 1e-6  # the unit of times in the format
GAP = 1e-9  # seconds between two steps from which a replica was idle


def write_trace(o: Outcome, path: Path, requests: int = MOST_REQUESTS) -> None:
    """Write the timeline of a run, compressed if the name ends in .gz; the file appears as a whole.

    requests: draw the spans of so many, from the first on. Raises InputError where the file cannot be written.
    """
    with replacing(path) as part, part.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=3, mtime=0) as packed:
                _write(o, packed, requests)
        else:
            _write(o, file, requests)


def _write(o: Outcome, file: Any, requests: int) -> None:
    text = io.TextIOWrapper(file, encoding="ascii", write_through=False)
    text.write('{"displayTimeUnit": "ms", "otherData": ' + json.dumps(_notes(o, requests)) + ', "traceEvents": [')
    comma, encode = "\n", json.JSONEncoder(allow_nan=False, check_circular=False).encode
    for event in events(o, requests):
        text.write(comma + encode(event))
        comma = ",\n"
    text.write("\n]}\n")
    text.flush()
    text.detach()


def events(o: Outcome, requests: int = MOST_REQUESTS) -> Iterator[dict[str, Any]]:
    """Yield the trace events of a run: names, steps with counters, spans of requests."""
    yield from _names(o)
    yield from _steps(o)
    for i in range(min(requests, len(o.setup.traffic))):
        yield from _spans(o, i)


def _notes(o: Outcome, requests: int) -> dict[str, Any]:
    traffic = o.setup.traffic
    notes: dict[str, Any] = {"traffic": traffic.name, "source": traffic.source, "steps": int(o.steps.sum())}
    if len(o.log) < notes["steps"]:
        notes["steps_shown"] = f"{len(o.log):,} of {notes['steps']:,} steps"
    if requests < len(traffic):
        notes["requests_shown"] = f"the first {requests:,} of {len(traffic):,} requests"
    return notes


def _names(o: Outcome) -> Iterator[dict[str, Any]]:
    for replica, pool in enumerate(o.setup.pool_of.tolist()):
        found = o.setup.kinds[pool].pool
        role = "" if found.role == "both" else f"{found.role}, "
        name = f"replica {replica}: {role}{found.deployment.chip.id}, {found.deployment.parallelism}"
        yield {"ph": "M", "pid": replica, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": replica, "name": "process_sort_index", "args": {"sort_index": replica}}
        yield {"ph": "M", "pid": replica, "tid": 0, "name": "thread_name", "args": {"name": "steps"}}
    router = len(o.setup.pool_of)
    yield {"ph": "M", "pid": router, "name": "process_name", "args": {"name": "requests that no replica ended"}}


def _steps(o: Outcome) -> Iterator[dict[str, Any]]:
    shares = kv_share(o).tolist()
    order = np.lexsort((o.log[:, 1], o.log[:, 0]))
    replicas, starts, ends = o.log[:, 0], o.log[:, 1], o.log[:, 1] + o.log[:, 2]
    whole = len(o.log) == int(o.steps.sum())  # between logged steps there may be others that were not
    for place, i in enumerate(order.tolist()):
        row = dict(zip(LOG_COLUMNS, o.log[i].tolist(), strict=True))
        replica, at = int(row["replica"]), _time(row["start"])
        held = {name: int(row[name]) for name in LOG_COLUMNS[3:]}
        yield {
            "ph": "X", "pid": replica, "tid": 0, "ts": at, "dur": _time(row["seconds"]),
            "name": _step_name(held["decodes"], held["prompt_tokens"]), "args": held,
        }  # fmt: skip
        values = (held["running"], held["waiting"], round(100.0 * shares[i], 3))
        yield from _counters(replica, at, values)
        after = order[place + 1] if place + 1 < len(order) else None
        last = after is None or replicas[after] != replica
        if last or (whole and starts[after] > ends[i] + GAP):
            yield from _counters(replica, _time(float(ends[i])), (0, 0, values[2] if not last else 0))


def _counters(replica: int, at: float, values: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    for name, value in zip(COUNTERS, values, strict=True):
        yield {"ph": "C", "pid": replica, "ts": at, "name": name, "args": {name: value}}


def _step_name(decodes: int, prompt_tokens: int) -> str:
    parts = [f"prefill {prompt_tokens:,}"] if prompt_tokens else []
    return " + ".join(parts + ([f"decode {decodes:,}"] if decodes else []))


def _spans(o: Outcome, i: int) -> Iterator[dict[str, Any]]:
    """A request and its three phases, as far as it came; nothing for one that never arrived."""
    arrival, start, first, end = (float(x[i]) for x in (o.arrival, o.start, o.first, o.end))
    if math.isnan(arrival):
        return
    traffic = o.setup.traffic
    replica = int(o.replica[i]) if o.replica[i] >= 0 else len(o.setup.pool_of)
    if o.ended[i] == REFUSED:
        over = arrival
    else:
        over = end if not math.isnan(end) else float(np.nanmax((o.horizon, arrival, start, first)))
    read = first if not math.isnan(first) else over
    began = start if not math.isnan(start) else over
    spans = [
        (f"request {i}", arrival, over),
        ("queued", arrival, began),
        ("prefill", began, read),
        ("decode", read, over),
    ]
    same = {"cat": "request", "id": i, "pid": replica, "tid": 0}
    args = {"isl": int(traffic.isl[i]), "osl": int(traffic.osl[i]), "cached": int(o.cached[i])}
    args |= {"preemptions": int(o.preemptions[i]), "retries": int(o.retries[i])}
    for n, (name, since, to) in enumerate(spans):
        if n and to <= since:
            continue
        yield {"ph": "b", **same, "ts": _time(since), "name": name, **({} if n else {"args": args})}
        if n:
            yield {"ph": "e", **same, "ts": _time(to), "name": name}
    yield {"ph": "e", **same, "ts": _time(over), "name": spans[0][0]}


def _time(seconds: float) -> float:
    return round(seconds / MICROSECOND, 3)
