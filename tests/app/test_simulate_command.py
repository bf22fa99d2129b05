"""taygeta simulate: what each option does, what it refuses, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import serving_samples as samples
from typer.testing import CliRunner, Result

from taygeta.app import simulate as command
from taygeta.app.cli import app
from taygeta.base.errors import InputError
from taygeta.serving import curve
from taygeta.serving import simulate as verb
from taygeta.serving.fleet import Autoscale, Failure, Fleet
from taygeta.serving.metrics import ServingReport
from taygeta.serving.traffic import Traffic

MODEL = "gpt2"
LOAD = ("--isl", "64", "--osl", "8", "--rate", "50", "--requests", "20")


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["simulate", *words])


def answer(*words: str) -> dict[str, Any]:
    result = run(MODEL, *words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


class Asked:
    """Stands for the simulator: notes what it is asked, and answers with a run made by hand."""

    def __init__(self, answers: list[ServingReport]) -> None:
        self.calls: list[tuple[Fleet, Traffic, dict[str, Any]]] = []
        self.answers = answers

    def __call__(self, served: Fleet, asked: Traffic, **more: Any) -> ServingReport:
        self.calls.append((served, asked, more))
        more["progress"](1.0)
        return self.answers[min(len(self.calls), len(self.answers)) - 1]

    @property
    def fleet(self) -> Fleet:
        return self.calls[0][0]

    @property
    def traffic(self) -> Traffic:
        return self.calls[0][1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked([samples.ranged()])
    for module in (verb, curve):
        monkeypatch.setattr(module, "simulate", made)
    return made


def test_a_run_with_the_library_behind_it() -> None:
    found = answer(*LOAD, "--chip", "h100:2", "--tp", "1", "--ttft", "1s", "--tpot", "1s")
    assert (found["requests"], found["answered"], found["output_tokens"]) == (20, 20, 160)
    assert found["fleet"]["replicas"] == 2
    assert found["goodput"]["share"] == 1.0
    assert 0.0 < found["ttft_s"]["p50"]["low"] <= found["ttft_s"]["p50"]["nominal"] <= found["ttft_s"]["p50"]["high"]
    assert answer(*LOAD, "--chip", "h100:2", "--tp", "1", "--ttft", "1s", "--tpot", "1s") == found


def test_a_closed_loop_and_its_loads() -> None:
    found = answer("--isl", "64", "--osl", "8", "--concurrency", "4", "--loads", "0.5,2", "--no-ranges")
    assert [x["report"]["traffic"]["concurrency"] for x in found["loads"]] == [2, 8]
    assert [x["report"]["requests"] for x in found["loads"]] == [20, 80]  # ten of each client
    assert found["knee"] in (0, 1)
    assert found["loads"][0]["report"]["ttft_s"]["p50"]["low"] is None


def test_loads_scale_the_rate() -> None:
    found = answer(*LOAD, "--loads", "4,1,2", "--no-ranges")
    rates = [x["report"]["traffic"]["rate_per_s"] for x in found["loads"]]
    assert [x["factor"] for x in found["loads"]] == [1.0, 2.0, 4.0]
    assert rates == pytest.approx([rates[0], 2 * rates[0], 4 * rates[0]])


def test_text(asked: Asked) -> None:
    result = run(MODEL, *LOAD)
    assert result.exit_code == 0
    assert result.stdout.startswith("acme/small on toy:4\n")
    assert re.search(r"time to first token, TTFT +1\.50 s", result.stdout)
    assert asked.calls[0][2]["ranges"] is True
    assert asked.calls[0][2]["log"] is False


def test_traffic_options(asked: Asked) -> None:
    assert run(MODEL, "--workload", "chat", "--rate", "4", "--requests", "50", "--seed", "7").exit_code == 0
    assert (len(asked.traffic), asked.calls[0][2]["seed"]) == (50, 7)
    sessions = ("--isl", "100", "--osl", "10", "--rate", "2", "--turns", "3", "--think", "5s", "--system", "50")
    assert run(MODEL, *sessions, "--lengths", "uniform", "--arrivals", "gamma:2").exit_code == 0
    made = asked.calls[1][1]
    assert made.prefixes is not None
    assert (made.after >= 0).any()


def test_a_trace(asked: Asked, tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text("arrival,isl,osl\n0,10,1\n2000,30,3\n1000,20,2\n")
    assert run(MODEL, "--trace", str(path), "--sort", "--unit", "ms", "--scale", "2").exit_code == 0
    assert asked.traffic.arrival.tolist() == [0.0, 0.5, 1.0]
    assert asked.traffic.isl.tolist() == [10, 20, 30]


def test_fleet_options(asked: Asked) -> None:
    more = ("--router", "round_robin", "--scheduler", "prefill_first", "--fail", "0@1s:2s", "--fail", "1@3s")
    more += ("--autoscale", "8:1:5s", "--speculate", "3:0.5", "--host-memory", "64 GB", "--kv", "fp8")
    more += ("--engine-set", "token_budget=512", "--engine-set", "host_step=1ms", "--set", "hbm.bandwidth=1TB/s")
    assert run(MODEL, *LOAD, "--chip", "h100:4", "--replicas", "2", *more).exit_code == 0
    fleet, pool = asked.fleet, asked.fleet.pools[0]
    assert (fleet.replicas, fleet.chips, pool.deployment.parallelism.tp) == (2, 4, 2)
    assert (fleet.router, fleet.scheduler, fleet.host_bytes) == ("round_robin", "prefill_first", 64e9)
    assert fleet.failures == (Failure(0, 1.0, 2.0), Failure(1, 3.0))
    assert pool.autoscale == Autoscale(8.0, 1, startup=5.0)
    assert (fleet.speculation.tokens, fleet.speculation.acceptance) == (3, 0.5)
    assert (pool.deployment.engine.token_budget, pool.deployment.engine.host_step) == (512, 1e-3)
    assert (pool.deployment.formats.kv, pool.deployment.chip.hbm.bandwidth) == ("fp8", 1e12)


def test_pools(asked: Asked) -> None:
    pools = ("--prefill", "h100:2,tp=1", "--decode", "a100:2,tp=2", "--decode", "h200:1")
    assert run(MODEL, *LOAD, *pools).exit_code == 0
    assert [(p.role, p.deployment.chip.id, p.replicas) for p in asked.fleet.pools] == [
        ("prefill", "h100", 2), ("decode", "a100", 1), ("decode", "h200", 1),
    ]  # fmt: skip
    assert run(MODEL, *LOAD, "--pool", "h100:4,replicas=2", "--pool", "a100").exit_code == 0
    assert asked.calls[1][0].replicas == 3


def test_a_file_of_a_fleet(asked: Asked, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(f'model = "{MODEL}"\nchip = "h100:2"\ntp = 1\nrouter = "round_robin"\n')
    assert run(str(path), *LOAD).exit_code == 0
    assert (asked.fleet.replicas, asked.fleet.router) == (2, "round_robin")
    for words, option in ((("--chip", "h100"), "chip"), (("--tp", "2"), "tp"), (("--engine-set", "a=b"), "engine-set"),
                          (("--set", "clock=1GHz"), "set"), (("--skew", "0"), "skew")):  # fmt: skip
        result = run(str(path), *LOAD, *words)
        said = f"error: {path} says all of the fleet: leave --{option} out, or write it there.\n"
        assert (result.exit_code, result.stderr) == (2, said)


def test_other_options(asked: Asked) -> None:
    assert run(MODEL, *LOAD, "--until", "1min", "--price", "2 $/h", "--no-ranges").exit_code == 0
    more = asked.calls[0][2]
    assert (more["until"], more["price"], more["ranges"]) == (60.0, (2.0, 2.0, 2.0), False)
    many = ("--isl", "10", "--osl", "1", "--rate", "50", "--requests", "20001")
    result = run(MODEL, *many)
    assert asked.calls[1][2]["ranges"] is False
    assert "No ranges were simulated: --ranges does, at three times the work." in result.stdout
    run(MODEL, *many, "--ranges")
    assert asked.calls[2][2]["ranges"] is True


def test_files(asked: Asked, tmp_path: Path) -> None:
    pl = pytest.importorskip("polars")
    pytest.importorskip("matplotlib")
    rows, timeline, page = tmp_path / "rows.parquet", tmp_path / "run.json.gz", tmp_path / "run.html"
    result = run(MODEL, *LOAD, "--rows", str(rows), "--perfetto", str(timeline), "--html", str(page))
    assert (result.exit_code, result.stderr) == (0, f"wrote {page}\nwrote {rows}\nwrote {timeline}\n")
    assert pl.read_parquet(rows).height == 5
    assert timeline.read_bytes()[:2] == b"\x1f\x8b"
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert asked.calls[0][2]["log"] is True
    result = run(MODEL, *LOAD, "--loads", "1,2", "--html", str(page))
    assert result.exit_code == 0
    assert "TTFT over load" in page.read_text()


def test_an_interrupt_leaves_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("polars")
    made = Asked([samples.result(), samples.disaggregated()])
    for module in (verb, curve):
        monkeypatch.setattr(module, "simulate", made)
    path = tmp_path / "rows.parquet"
    result = run(MODEL, *LOAD, "--loads", "1,2,4")
    assert result.exit_code == 130
    assert len(made.calls) == 2
    assert "Interrupted: this is what had ended by then." in result.stdout.replace("\n  ", " ")
    assert result.stderr.endswith("interrupted: the results are of what was done by then\n")
    result = run(MODEL, *LOAD, "--json", "--rows", str(path))
    assert (result.exit_code, json.loads(result.stdout)["interrupted"]) == (130, True)
    assert path.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Traffic needs a --trace, a --workload, or --isl and --osl."),
        ([*LOAD, "--loads", "1,x"], "--loads takes 1 to 100 numbers above 0 such as 0.5,1,2,4, not '1,x'."),
        ([*LOAD, "--loads", "0"], "--loads takes 1 to 100 numbers above 0 such as 0.5,1,2,4, not '0'."),
        ([*LOAD, "--loads", "nan"], "--loads takes 1 to 100 numbers above 0 such as 0.5,1,2,4, not 'nan'."),
        ([*LOAD, "--ttft", "0s"], "--ttft must be more than 0 s, not '0s'."),
        ([*LOAD, "--tpot", "50"], "--tpot = '50' has no unit: write a time such as '10 us'."),
        ([*LOAD, "--until", "0s"], "--until must be more than 0 s, not '0s'."),
        ([*LOAD, "--seed", "-1"], "--seed must be 0 or more, not -1."),
        ([*LOAD, "--engine-set", "budget"], "--engine-set takes FIELD=VALUE such as token_budget=4096, not 'budget'."),
        ([*LOAD, "--engine-set", "reserve=1", "--engine-set", "reserve=0"],
         "--engine-set reserve is given twice: '1' and '0'."),
        ([*LOAD, "--pool", "h100", "--chip", "h100"],
         "--chip has no meaning beside --pool, --prefill or --decode: give each kind of chip a --pool."),
        ([*LOAD, "--pool", "h100", "--replicas", "2"],
         "--replicas has no meaning beside --pool, --prefill or --decode: write h100:8,replicas=2."),
        ([*LOAD, "--prefill", "h100"],
         "A fleet is of pools that do both, or of pools for prefill and pools for decode."),
        ([*LOAD, "--fail", "1@1s"], "Replica 1 fails, but the fleet has replicas 0 to 0."),
        ([*LOAD, "--rows", "/"], "--rows / is a directory: give the name of a file."),
        ([*LOAD, "--perfetto", "/no/x"], "--perfetto /no/x cannot be written: /no is no directory."),
        ([*LOAD, "--rows", "x", "--loads", "1"], "--rows is of one run: leave --loads out."),
        ([*LOAD, "--speculate", "0:0.5"],
         "Speculation is written TOKENS:ACCEPTANCE[:SHARE] such as 3:0.7 or 3:0.7:0.05, not '0:0.5'."),
        ([*LOAD, "--lengths", "lognormal:-1"], "The deviation of the logarithm of a length must be 0 to 10, not -1."),
        ([*LOAD, "--router", "math:isnan"],
         "The router isnan failed: TypeError: math.isnan() takes exactly one argument (2 given)."),
        ([*LOAD, "--ep", "0"], "ep must be 1 or more, not 0."),
        ([*LOAD, "--tp", "0"], "A deployment needs 1 to 131,072 chips, not 0."),
        ([*LOAD, "--scale", "2"], "--scale has no meaning here: it is of a --trace."),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(words: list[str], message: str) -> None:
    result = run(MODEL, *words)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


def test_a_block_of_no_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hashed.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 512, "output_length": 5, "hash_ids": [1]}\n')
    result = run(MODEL, "--trace", str(path), "--block", "0")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: A block of a hashed prefix must have 1 to 4,194,304 tokens, not 0.\n"


def test_what_the_simulator_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("There is no module my_router.")

    for module in (verb, curve):
        monkeypatch.setattr(module, "simulate", refuse)
    result = run(MODEL, *LOAD, "--router", "my_router:route")
    assert (result.exit_code, result.stderr) == (2, "error: There is no module my_router.\n")


def test_ranges_are_said_in_the_help() -> None:
    result = run("--help")
    assert f"by default up to {command.RANGES_UP_TO:,} requests" in re.sub(r"\s+", " ", result.stdout)
    for option in ("--trace", "--pool", "--prefill", "--decode", "--fail", "--autoscale", "--rows", "--perfetto"):
        assert option in result.stdout
