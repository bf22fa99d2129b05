"""Rows and timelines: complete, readable by others, written as a whole."""

from __future__ import annotations

import gzip
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "report"))
import serving_samples as samples

from taygeta.base import errors
from taygeta.base.errors import InputError
from taygeta.base.files import replacing
from taygeta.serving.outcome import Outcome
from taygeta.serving.perfetto import COUNTERS, write_trace
from taygeta.serving.rows import rows, write_rows
from taygeta.serving.simulate import simulate


def test_rows_by_hand() -> None:
    pytest.importorskip("polars")
    frame = rows(samples.outcome())
    assert frame.columns == [
        "index", "arrival_s", "start_s", "first_s", "end_s", "ttft_s", "tpot_s", "e2e_s", "isl", "osl",
        "cached_tokens", "replica", "preemptions", "retries", "outcome",
    ]  # fmt: skip
    found = frame.to_dict(as_series=False)
    assert found["ttft_s"] == [1.0, 2.0, None, 2.0, None]
    assert found["tpot_s"] == [pytest.approx(0.1), None, None, None, None]
    assert found["end_s"] == [2.0, 3.0, 4.0, None, None]
    assert found["replica"] == [0, 1, 0, 1, None]
    assert found["outcome"] == ["answered", "answered", "answered", "cut", "refused"]


def test_rows_survive_a_file(tmp_path: Path) -> None:
    pl = pytest.importorskip("polars")
    path = tmp_path / "rows.parquet"
    path.write_text("old")
    write_rows(samples.outcome(), path)
    assert pl.read_parquet(path).equals(rows(samples.outcome()))
    assert os.listdir(tmp_path) == ["rows.parquet"]


def test_rows_need_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(errors.importlib, "import_module", absent)
    with pytest.raises(errors.MissingExtraError, match=r"A row for each request needs polars: pip install"):
        rows(samples.outcome())


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["file"])
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(InputError, match=r"no/file cannot be written: No such file or directory\."):
        interrupted(tmp_path / "no" / "file")


def interrupted(path: Path) -> None:
    with replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def trace(o: Outcome, path: Path, **more: Any) -> dict[str, Any]:
    write_trace(o, path, **more)
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_timeline_by_hand(name: str, tmp_path: Path) -> None:
    found = trace(samples.outcome(), tmp_path / name)
    assert found["otherData"] == {"traffic": "day.csv", "source": "Acme's own trace, 2026", "steps": 4}
    events = found["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "replica 0: toy, tp=2", 1: "replica 1: toy, tp=2", 2: "requests that no replica ended"}
    steps = [e for e in events if e["ph"] == "X"]
    assert [(e["pid"], e["ts"], e["dur"], e["name"]) for e in steps] == [
        (0, 0.5e6, 0.5e6, "prefill 100"),
        (0, 1e6, 1e6, "decode 1"),
        (0, 2.5e6, 1.5e6, "prefill 2,300 + decode 3"),
        (1, 1e6, 2e6, "prefill 200"),
    ]
    running = [(e["ts"], e["args"]["running"]) for e in events if e["name"] == "running" and e["pid"] == 0]
    assert running == [(0.5e6, 1), (1e6, 1), (2e6, 0), (2.5e6, 4), (4e6, 0)]  # idle from 2 to 2.5 s
    cache = [e["args"]["KV cache, %"] for e in events if e["name"] == "KV cache, %" and e["pid"] == 0]
    assert cache == [10.0, 12.0, 12.0, 14.0, 0.0]


def test_spans_of_requests_by_hand(tmp_path: Path) -> None:
    events = trace(samples.outcome(), tmp_path / "run.json")["traceEvents"]
    spans: dict[int, list[tuple[str, str, float]]] = {}
    for e in events:
        if e["ph"] in "be":
            spans.setdefault(e["id"], []).append((e["ph"], e["name"], e["ts"] / 1e6))
    assert spans[0] == [
        ("b", "request 0", 0.0),
        ("b", "queued", 0.0), ("e", "queued", 0.5),
        ("b", "prefill", 0.5), ("e", "prefill", 1.0),
        ("b", "decode", 1.0), ("e", "decode", 2.0),
        ("e", "request 0", 2.0),
    ]  # fmt: skip
    assert [(name, at) for ph, name, at in spans[3] if ph == "e"] == [
        ("queued", 3.5), ("prefill", 5.0), ("decode", 10.0), ("request 3", 10.0),  # cut at the end of the run
    ]  # fmt: skip
    assert spans[4] == [("b", "request 4", 4.0), ("e", "request 4", 4.0)]  # refused when it came
    assert {e["pid"] for e in events if e.get("id") == 4} == {2}


def test_the_cap_on_requests_is_said(tmp_path: Path) -> None:
    found = trace(samples.outcome(), tmp_path / "run.json", requests=2)
    assert found["otherData"]["requests_shown"] == "the first 2 of 5 requests"
    assert {e["id"] for e in found["traceEvents"] if "id" in e} == {0, 1}
    o = samples.outcome()
    thinned = trace(replace(o, log=o.log[:2]), tmp_path / "run.json")
    assert thinned["otherData"]["steps_shown"] == "2 of 4 steps"


def test_a_timeline_of_a_real_run_equals_its_log(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    asked = samples.make_traffic("x", draw.integers(1, 300, 30), draw.integers(0, 30, 30), np.sort(draw.random(30)))
    r = simulate(samples.real(chips=2), asked, log=True)
    events = trace(r.outcome, tmp_path / "run.json")["traceEvents"]
    assert sum(e["ph"] == "X" for e in events) == len(r.outcome.log) == r.outcome.steps.sum()
    assert sum(e["dur"] for e in events if e["ph"] == "X") == pytest.approx(r.outcome.busy.sum() * 1e6, rel=1e-3)
    begun, over = (sum(e["ph"] == ph for e in events) for ph in "be")
    assert begun == over > 30
    assert {e["name"] for e in events if e["ph"] == "C"} == set(COUNTERS)
