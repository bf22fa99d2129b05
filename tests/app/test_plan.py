"""taygeta plan under traffic and taygeta calibrate --serving, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "validate"))
import serving_results as results

from taygeta.api import deploy
from taygeta.app.cli import app
from taygeta.serving.fleet import fleet
from taygeta.serving.plain import run_plain
from taygeta.serving.setup import prepare
from taygeta.serving.traffic import make_traffic

LOAD = ["--isl", "256", "--osl", "16", "--rate", "20", "--requests", "60"]
SLO = ["--ttft", "500ms", "--tpot", "50ms"]


def run(*args: str) -> Any:
    return CliRunner().invoke(app, args)


def test_a_plan_under_traffic_prints_the_fewest_chips() -> None:
    said = run("plan", "llama-3.1-8b", "--chip", "h100:2", "--tp", "1", *LOAD, *SLO, "--emit", "vllm")
    assert said.exit_code == 0, said.output
    assert "99.0 % of requests within TTFT 500 ms, TPOT 50.0 ms" in said.output
    assert "fewest chips" in said.output
    assert "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 1" in said.output
    assert "--max-model-len 272" in said.output


def test_json_has_the_plan_and_how_to_start_it() -> None:
    said = run("plan", "llama-3.1-8b", "--chip", "h100:2", "--tp", "1", *LOAD, *SLO, "--json", "--emit", "vllm")
    found = json.loads(said.stdout)
    assert found["goal"] == {"ttft_limit_s": 0.5, "tpot_limit_s": 0.05, "share": 0.99}
    assert found["best"]["deployment"]["chips"] == 1
    assert found["best"]["holds"] is True
    assert found["best"] == found["candidates"][0]
    assert found["confidence"]["chips_slow"] >= found["confidence"]["chips_fast"]
    assert found["launch"]["command"][:3] == ["vllm", "serve", "meta-llama/Llama-3.1-8B"]
    assert found["traffic"]["requests"] == 60


def test_a_page_has_the_curves(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    said = run("plan", "llama-3.1-8b", "--chip", "h100:2", "--tp", "1", *LOAD, *SLO, "--html", str(page))
    assert said.exit_code == 0, said.output
    text = page.read_text(encoding="utf-8")
    assert "Requests within the limits" in text
    assert "TTFT over chips" in text
    assert "TPOT over chips" in text


def test_a_share_and_several_chips() -> None:
    said = run("plan", "llama-3.1-8b", "--chips", "h100:1,a100:1", "--tp", "1", *LOAD, *SLO, "--share", "90%", "--json")
    found = json.loads(said.stdout)
    assert found["goal"]["share"] == 0.9
    assert {c["deployment"]["chip"] for c in found["candidates"]} <= {"h100", "a100"}
    assert found["screened"] == 2


def test_what_cannot_be_held_is_said() -> None:
    said = run("plan", "llama-3.1-8b", "--chip", "h100:1", *LOAD, "--tpot", "10us")
    assert said.exit_code == 3, said.output
    assert "nothing tried holds the goal" in said.output
    assert "a decode step alone is slower than the TPOT" in said.output


def test_without_traffic_a_plan_is_in_closed_form() -> None:
    said = run("plan", "llama-3.1-8b", "--chip", "h100:2", "--isl", "512", "--osl", "64", "--emit", "vllm", "--json")
    found = json.loads(said.stdout)
    assert set(found) == {"best", "front", "tried", "refused", "launch"}
    assert found["best"]["isl"] == 512
    assert found["launch"]["command"][0] == "vllm"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--ttft", "1s"], "--ttft needs traffic"),
        (["--share", "90%"], "--share needs traffic"),
        (["--chips", "h100,a100"], "--chips needs traffic"),
        (["--engine-set", "token_budget=9"], "--engine-set needs traffic"),
        (["--turns", "3"], "--turns needs traffic"),
        (["--emit", "tgi"], "--emit takes vllm, sglang or trtllm, not 'tgi'."),
        ([*LOAD, *SLO, "--emit", "sglang"], "as vllm has: plan with --engine sglang."),
        ([*LOAD], "A plan on a traffic needs a limit"),
        ([*LOAD, "--tpot", "1s", "--prefill", "1s"], "--prefill has no meaning under traffic"),
        ([*LOAD, "--tpot", "1s", "--share", "120%"], "--share takes a share such as 99% or 0.99, not '120%'."),
        ([*LOAD, "--tpot", "1s", "--share", "x"], "--share takes a share"),
        ([*LOAD, "--tpot", "1 GB"], "--tpot must be a time"),
        ([*LOAD, "--tpot", "1s", "--chip", "h100", "--chips", "h100"], "--chip and --chips exclude each other"),
        ([*LOAD, "--tpot", "1s", "--engine-set", "budget=1"], "An engine has no setting 'budget'"),
        (["--workload", "nothing", "--tpot", "1s"], "nothing"),
        (["--trace", "none.csv", "--tpot", "1s"], "none.csv"),
    ],
)
def test_errors_of_a_plan_are_one_sentence(args: list[str], text: str) -> None:
    said = run("plan", "llama-3.1-8b", *args)
    assert said.exit_code == 2
    assert text in " ".join(said.stderr.split())
    assert "Traceback" not in said.output


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    d = deploy("llama-3.1-8b", "h100:1", tp=1)
    folder = tmp_path / "results"
    folder.mkdir()
    for c in (1, 4):
        t = make_traffic("x", np.full(20, 256), np.full(20, 12), concurrency=c)
        results.vllm(folder / f"c{c}.json", run_plain(prepare(fleet(d), t)), c)
    return folder


SERVED = ["--model", "llama-3.1-8b", "--chip", "h100:1", "--tp", "1"]


def test_calibrate_writes_an_engine_that_is_accepted(benchmark: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    said = run("calibrate", "--serving", str(benchmark), *SERVED, "--output", str(mine))
    assert said.exit_code == 0, said.output
    assert "Constants of the host" in said.output
    assert 'base = "vllm"' in mine.read_text()
    said = run("predict", "llama-3.1-8b", "--chip", "h100:1", "--engine", str(mine))
    assert said.exit_code == 0, said.output
    assert "engine vllm:mine" in " ".join(said.output.split())


def test_calibrate_says_its_fit_as_json(benchmark: Path, tmp_path: Path) -> None:
    said = run("calibrate", "--serving", str(benchmark), *SERVED, "--output", str(tmp_path / "m.toml"), "--json")
    found = json.loads(said.stdout)
    assert [c["name"] for c in found["constants"]][:2] == ["host_step", "host_request"]
    assert [r["concurrency"] for r in found["runs"]] == [1, 4]
    assert found["runs"][0]["ttft_s"]["measured"] == pytest.approx(found["runs"][0]["ttft_s"]["after"], rel=0.05)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "takes either a directory of tables or --serving"),
        (["--serving", "none", *SERVED], "none cannot be read"),
        (["--serving", "none"], "--serving needs --model"),
        (["--serving", "none", *SERVED, "--framework", "vllm"], "--framework is of tables"),
        (["tables", "--serving", "none", *SERVED], "takes either a directory of tables or --serving"),
        (["tables", "--model", "m"], "--model needs --serving"),
        (["tables", "--tp", "2"], "--tp needs --serving"),
        (["tables", "--engine-set", "a=1"], "--engine-set needs --serving"),
    ],
)
def test_errors_of_calibrate_are_one_sentence(args: list[str], text: str, tmp_path: Path) -> None:
    said = run("calibrate", *args, "--output", str(tmp_path / "x.toml"))
    assert said.exit_code == 2
    assert text in " ".join(said.stderr.split())
