"""The host's constants from benchmarks: files of each tool, a round trip, what is refused."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
import serving_results as results

from taygeta.api import deploy
from taygeta.base.errors import InputError
from taygeta.serving.fleet import fleet
from taygeta.serving.outcome import Outcome
from taygeta.serving.plain import run_plain
from taygeta.serving.setup import prepare
from taygeta.serving.traffic import make_traffic
from taygeta.spec.deployment import Deployment
from taygeta.spec.engine import engine
from taygeta.validate.engine_file import engine_file
from taygeta.validate.measured import Measured
from taygeta.validate.serving_files import read_result, read_results
from taygeta.validate.serving_fit import CONSTANTS, fit_serving

BEFORE = {**dict.fromkeys(CONSTANTS, 0.0), "host_step": 1e-3, "host_request": 20e-6, "prompt_slowdown": 1.0}
TRUE = {"host_step": 3e-3, "host_request": 80e-6, "prompt_step": 9e-3, "client_delay": 12e-3, "intake_request": 4e-3}
LOADS = (1, 6, 24)


@pytest.fixture(scope="module")
def served() -> Deployment:
    d = deploy("llama-3.1-8b", "h100:1", tp=1)
    return replace(d, engine=replace(d.engine, **BEFORE))


def simulated(d: Deployment, concurrency: int, requests: int = 0, seed: int = 0) -> Outcome:
    random = np.random.default_rng([seed, concurrency])
    count = requests or max(24, 3 * concurrency)
    isl, osl = random.integers(300, 600, count), random.integers(24, 48, count)
    return run_plain(prepare(fleet(d), make_traffic("x", isl, osl, concurrency=concurrency)))


@pytest.fixture(scope="module")
def outcomes(served: Deployment) -> dict[int, Outcome]:
    d = replace(served, engine=replace(served.engine, **TRUE))
    return {c: simulated(d, c) for c in LOADS}


def written(tool: str, outcomes: dict[int, Outcome], folder: Path) -> list[Path]:
    if tool == "vllm":
        return [results.vllm(folder / f"c{c}.json", o, c) for c, o in outcomes.items()]
    if tool == "guidellm":
        runs = [(o, {"type_": "concurrent", "streams": c}) for c, o in outcomes.items()]
        return [results.guidellm(folder / "benchmarks.json", runs)]
    for c in outcomes:
        (folder / str(c)).mkdir()
    return [results.aiperf(folder / str(c) / "profile_export.jsonl", o, c) for c, o in outcomes.items()]


@pytest.mark.parametrize("tool", ["vllm", "guidellm", "aiperf"])
def test_every_tool_says_what_was_measured(tool: str, outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    runs = read_results(written(tool, outcomes, tmp_path))
    assert [(m.tool, m.concurrency) for m in runs] == [(tool, c) for c in LOADS]
    for m, o in zip(runs, outcomes.values(), strict=True):
        t = o.setup.traffic
        came = {pair: float(at) for pair, at in zip(zip(t.isl, t.osl, strict=True), o.arrival, strict=True)}
        order = [came[pair] for pair in zip(m.isl, m.osl, strict=True)]
        assert sorted(zip(m.isl, m.osl, strict=True)) == sorted(zip(t.isl, t.osl, strict=True))
        assert len(came) < len(t) or tool == "vllm" or order == sorted(order)
        assert np.sort(m.ttft) == pytest.approx(np.sort(o.first - o.arrival), rel=1e-6)
        assert np.sort(m.tpot) == pytest.approx(np.sort((o.end - o.first) / (t.osl - 1)), rel=1e-6)
        assert m.interval in (0, 1)


@pytest.mark.parametrize("tool", ["vllm", "guidellm", "aiperf"])
def test_known_constants_come_back(tool: str, served: Deployment, outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    runs = read_results(written(tool, outcomes, tmp_path))
    fit = fit_serving(served, runs, run=run_plain)
    found = {c.name: c for c in fit.constants}
    assert list(found) == list(CONSTANTS)
    assert found["host_step"].value == pytest.approx(TRUE["host_step"], rel=0.1)
    assert found["prompt_step"].value == pytest.approx(TRUE["prompt_step"], rel=0.2)
    assert found["host_request"].value == pytest.approx(TRUE["host_request"], rel=0.25)
    front = found["intake_request"].value + found["intake_token"].value * float(np.mean([m.isl.mean() for m in runs]))
    assert front == pytest.approx(TRUE["intake_request"], rel=0.2)  # lengths are too alike to split it for sure
    assert found["client_delay"].value == pytest.approx(TRUE["client_delay"], rel=0.3)
    for name in ("host_step", "prompt_step", "client_delay", "intake_request"):
        assert found[name].low <= found[name].value <= found[name].high
    assert found["emit_token"].left == "moves nothing in these runs"
    errors = fit.errors()
    assert max(errors["ttft"][1], errors["tpot"][1]) < 0.02
    assert errors["ttft"][1] < errors["ttft"][0]


def test_the_engine_is_written_and_read_again(served: Deployment, outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    fit = fit_serving(served, read_results(written("vllm", outcomes, tmp_path)), run=run_plain)
    path = tmp_path / "mine.toml"
    path.write_text(engine_file(fit, datetime.date(2026, 1, 2)), encoding="utf-8")
    found = engine(str(path))
    assert (found.name, found.framework) == ("vllm:mine", "vllm")
    for c in fit.constants:
        assert getattr(found, c.name) == pytest.approx(c.value, rel=1e-5, abs=1e-12)
    assert replace(found, name="", sources=()) == replace(
        served.engine, name="", sources=(), **{c.name: getattr(found, c.name) for c in fit.constants}
    )
    (source,) = (s for s in found.sources if s.startswith("host_step: "))
    assert "fitted on 2026-01-02 to 3 runs of vllm (c1.json, c6.json, c24.json), 120 requests" in source
    assert "95 %" in source
    assert deploy("llama-3.1-8b", "h100:1", tp=1, engine=str(path)).engine == found
    assert any(s == "prompt_slowdown: as set for the fit" for s in found.sources) or engine("vllm").prompt_slowdown == 1


def test_a_file_with_means_only_is_fitted_too(served: Deployment, outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    paths = [results.vllm(tmp_path / f"c{c}.json", o, c, detailed=False) for c, o in outcomes.items()]
    runs = read_results(paths)
    assert not any(m.detailed for m in runs)
    fit = fit_serving(served, runs, run=run_plain)
    errors = fit.errors()
    assert errors["ttft"][1] < 0.5 * errors["ttft"][0]
    assert errors["tpot"][1] < 0.5 * errors["tpot"][0]


def test_means_of_the_other_tools(outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    o = outcomes[6]
    runs = [
        *read_result(results.guidellm(tmp_path / "g.json", [(o, {"type_": "concurrent", "streams": 6})], False)),
        *read_result(results.aiperf_summary(tmp_path / "a.json", o, 6)),
        *read_result(results.aiperf_table(tmp_path / "t.csv", o)),
    ]
    for m in runs:
        assert (m.concurrency, len(m.isl), m.detailed) == (6, len(o.setup.traffic), False)
        assert m.mean_ttft == pytest.approx(float((o.first - o.arrival).mean()))
        assert m.mean_tpot == pytest.approx(float(((o.end - o.first) / (o.setup.traffic.osl - 1)).mean()))


def test_an_open_loop_keeps_its_arrivals(served: Deployment, tmp_path: Path) -> None:
    arrival = np.cumsum(np.full(40, 0.05))
    o = run_plain(prepare(fleet(served), make_traffic("x", [256] * 40, [16] * 40, arrival)))
    strategy = {"type_": "constant", "rate": 20.0}
    for m in (
        *read_result(results.guidellm(tmp_path / "g.json", [(o, strategy)])),
        *read_result(results.aiperf(tmp_path / "a.jsonl", o, None)),
        *read_result(
            results.vllm(tmp_path / "v.json", o, None, request_rate=20.0, start_times=(arrival + 1e9).tolist())
        ),
    ):
        assert m.concurrency == 0
        assert m.arrival == pytest.approx(arrival - arrival[0], abs=1e-4)


def test_a_closed_loop_is_seen_in_records_that_do_not_name_it(outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    for c, o in outcomes.items():
        (m,) = read_result(results.aiperf(tmp_path / f"{c}.jsonl", o, None))
        assert m.concurrency == c


def test_failed_requests_are_left_out_and_counted(outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    o = outcomes[6]
    errors = ["", "timed out", *[""] * (len(o.setup.traffic) - 2)]
    (m,) = read_result(results.vllm(tmp_path / "v.json", o, 6, errors=errors))
    assert (len(m.isl), m.failed) == (len(o.setup.traffic) - 1, 1)
    path = results.aiperf(tmp_path / "a.jsonl", o, 6)
    lost = {"metadata": {"was_cancelled": True}, "metrics": {}, "error": {"code": 499}}
    path.write_text(path.read_text() + json.dumps(lost) + "\n")
    (m,) = read_result(path)
    assert (len(m.isl), m.failed) == (len(o.setup.traffic), 1)


def test_tokens_that_arrive_together_are_seen(served: Deployment, outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    o = outcomes[6]
    chunks = [[float(sum(g[i : i + 5])) for i in range(0, len(g), 5)] for g in results.gaps_of(o)]
    (m,) = read_result(results.vllm(tmp_path / "v.json", o, 6, itls=chunks))
    assert m.interval in (4, 5)
    other = replace(m, concurrency=2, interval=1)
    with pytest.raises(InputError, match="tokens at a time: calibrate each stream interval by itself"):
        fit_serving(served, [m, other], run=run_plain)


def test_several_runs_to_a_file_and_files_of_a_directory(outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    lines = [results.vllm(tmp_path / "one.json", o, c).read_text() for c, o in outcomes.items()]
    (tmp_path / "one.json").unlink()
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    assert [m.concurrency for m in read_results([tmp_path])] == list(LOADS)
    results.aiperf(tmp_path / "profile_export.jsonl", outcomes[6], 6)
    results.aiperf_table(tmp_path / "profile_export_aiperf.csv", outcomes[6])
    (tmp_path / "inputs.json").write_text("{}")
    assert [m.concurrency for m in read_results([tmp_path])] == [*LOADS, 6]


def test_too_little_is_refused(served: Deployment, outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    (m,) = read_result(results.vllm(tmp_path / "v.json", outcomes[6], 6))
    with pytest.raises(InputError, match="The results are of 1 run under one load"):
        fit_serving(served, [m])
    with pytest.raises(InputError, match="The results are of 2 runs under one load"):
        fit_serving(served, [m, m])
    few = replace(m, isl=m.isl[:5], osl=m.osl[:5], ttft=m.ttft[:5], tpot=m.tpot[:5], concurrency=2)
    with pytest.raises(InputError, match="has 5 answered requests; a fit needs 16 in a run"):
        fit_serving(served, [m, few])
    with pytest.raises(InputError, match="There are no results"):
        read_results([])


BAD: list[tuple[str, str, str]] = [
    ("x.json", "{", "is not JSON"),
    ("x.json", "[]", "must be a JSON object, not list"),
    ("x.json", "{}", "is no result of vllm bench, guidellm or aiperf"),
    ("x.json", '{"benchmarks": [3]}', "benchmark 0 must be a JSON object"),
    ("x.json", '{"benchmarks": [{}]}', "an open loop needs its requests"),
    ("x.json", '{"benchmarks": [{"config": {"strategy": {"streams": 0.5}}}]}', "streams must be a whole number"),
    ("x.json", '{"ttfts": [1], "input_lens": [], "output_lens": [], "itls": []}', "must have as many values"),
    ("x.json", '{"ttfts": [1]}', "input_lens is missing: benchmark with --save-detailed"),
    ("x.json", '{"ttfts": ["a"], "input_lens": [1], "output_lens": [1], "itls": [[]]}', "ttfts must be numbers"),
    ("x.json", '{"ttfts": [-1], "input_lens": [1], "output_lens": [1], "itls": [[]]}', "finite numbers of 0 or more"),
    (
        "x.json",
        '{"ttfts": [1e999], "input_lens": [1], "output_lens": [1], "itls": [[]]}',
        "finite numbers of 0 or more",
    ),
    ("x.json", '{"ttfts": [0], "input_lens": [1], "output_lens": [1], "itls": [[]]}', "no request that was answered"),
    ("x.json", '{"ttfts": [1], "input_lens": [1e9], "output_lens": [1], "itls": [[]]}', "is more than"),
    ("x.json", '{"mean_ttft_ms": 1, "request_rate": 4.0, "completed": 1}', "total_input_tokens is missing"),
    (
        "x.json",
        '{"ttfts": [1], "input_lens": [1], "output_lens": [1], "itls": [[]], "request_rate": 4.0}',
        "does not say when requests were sent",
    ),
    ("x.json", '{"mean_ttft_ms": 1}', "completed is missing"),
    ("x.json", '{"time_to_first_token": {"avg": 1}}', "input_sequence_length must be a JSON object"),
    ("x.csv", "a,b\n", "is no summary of aiperf"),
    ("x.jsonl", '{"metadata": {}, "metrics": {}}\n{"metadata"', "line 2 is not JSON"),
    ("x.jsonl", '{"metadata": {}, "metrics": {}}\n{"metadata": {}}\n', "request_start_ns must be a number"),
    ("x.jsonl", '{"metadata": {}, "metrics": {}, "error": 1}\n', "has no request that was answered"),
]


@pytest.mark.parametrize(("name", "text", "said"), BAD)
def test_bad_files_are_refused_in_one_sentence(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_result(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_result(tmp_path / "none.json")
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        read_result(path)


def _damaged(document: Any, draw: Any) -> Any:
    """A JSON document with one value somewhere replaced by something else."""
    odd = st.sampled_from([None, -1, 0, 1e308, "x", True, [], {}, [None], float("nan"), 3.7, 10**400])
    if isinstance(document, dict) and document and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(document)))
        return {**document, key: _damaged(document[key], draw)}
    if isinstance(document, list) and document and draw(st.booleans()):
        place = draw(st.integers(0, len(document) - 1))
        return [*document[:place], _damaged(document[place], draw), *document[place + 1 :]]
    return draw(odd)


def test_a_prompt_of_no_tokens_is_refused(outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    results.vllm(path, outcomes[1], 1)
    document = json.loads(path.read_text())
    document["input_lens"][0] = 0
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="a prompt of 0 tokens; 1 is the least"):
        read_result(path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, outcomes: dict[int, Outcome], tmp_path: Path) -> None:
    """Whatever a file holds, it is a run with sound columns or one sentence."""
    o = outcomes[1]
    kind = data.draw(st.sampled_from(["v.json", "g.json", "s.json", "a.jsonl"]))
    path = tmp_path / kind
    {
        "v.json": lambda: results.vllm(path, o, 1),
        "g.json": lambda: results.guidellm(path, [(o, {"type_": "concurrent", "streams": 1})]),
        "s.json": lambda: results.aiperf_summary(path, o, 1),
        "a.jsonl": lambda: results.aiperf(path, o, None),
    }[kind]()
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    documents[0] = _damaged(documents[0], data.draw)
    path.write_text("\n".join(json.dumps(d) for d in documents))
    try:
        runs = read_result(path)
    except InputError:
        return
    for m in runs:
        assert len(m.isl) == len(m.osl) >= 1
        assert (m.isl >= 1).all()
        assert (m.osl >= 1).all()
        assert np.isfinite(m.ttft).all()
        assert (m.ttft > 0).all()
        assert m.concurrency >= 0


ENGINE_ERRORS = [
    ("", "base must name the engine that it differs from: sglang, trtllm, vllm"),
    ('base = "tgi"', "Engine 'tgi' is neither in the catalogue"),
    ('base = "x.toml"', "base must name the engine"),
    ('base = "vllm"\nhost_steps = { value = "1 ms", source = "x" }', "an engine has no field 'host_steps'"),
    ('base = "vllm"\nname = { value = "x", source = "x" }', "an engine has no field 'name'"),
    ('base = "vllm"\nhost_step = "1 ms"', 'host_step must be { value = ..., source = "..." }'),
    ('base = "vllm"\nhost_step = { value = "1 GB", source = "x" }', "host_step must be a time"),
    ('base = "vllm"\ntoken_budget = { value = 0, source = "x" }', "token_budget"),
    ("base = ", "is not TOML"),
]


@pytest.mark.parametrize(("text", "said"), ENGINE_ERRORS)
def test_an_engine_file_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        engine(str(path))
    assert said in str(error.value)


def test_an_engine_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        engine(str(tmp_path / "none.toml"))


def test_constants_that_move_the_same_are_not_both_fitted(served: Deployment) -> None:
    """With prompts of one length, a time for each token of the prompt is a time for each request."""
    d = replace(served, engine=replace(served.engine, **TRUE))
    runs = []
    for c in (1, 4, 12):
        t = make_traffic(f"c{c}", [400] * 40, [16] * 40, concurrency=c)
        o = run_plain(prepare(fleet(d), t))
        ttft, tpot = o.first - o.arrival, (o.end - o.first) / 15
        runs.append(Measured(f"c{c}", "vllm", c, np.zeros(0), t.isl, t.osl, ttft, tpot, ttft.mean(), tpot.mean()))
    left = [c.left for c in fit_serving(served, runs, run=run_plain).constants]
    assert left[list(CONSTANTS).index("intake_token")] == "prompts are of one length: it is in intake_request"
    assert left[0] == ""
