"""The commands with the real library behind them: small loads, results that must hold together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from taygeta.app.cli import app

MODEL = "llama-3.1-8b"


def answer(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def assert_interval(i: dict[str, float]) -> None:
    assert 0 < i["low"] <= i["nominal"] <= i["high"]


def test_predict() -> None:
    s = answer("predict", MODEL, "--chip", "h100", "--concurrency", "8")
    for key in ("tpot_s", "prefill_s", "tokens_per_s", "tokens_per_s_per_chip", "tokens_per_s_per_user"):
        assert_interval(s[key])
    step = s["decode"]
    assert step["lower_s"] <= step["seconds"]["nominal"] <= step["upper_s"]
    assert sum(part["seconds"] for part in step["parts"]) == pytest.approx(
        step["seconds"]["nominal"], rel=1e-6
    )
    assert s["tokens_per_s_per_user"]["nominal"] == pytest.approx(1 / s["tpot_s"]["nominal"])


def test_the_step_is_that_of_the_closed_loop() -> None:
    loop = answer("predict", MODEL, "--concurrency", "8")
    for name in ("decode", "prefill"):
        step = answer("predict", MODEL, "--concurrency", "8", "--step", name)
        assert step["batch"] == loop[name]["batch"]
        assert step["seconds"] == loop[name]["seconds"]


def test_an_unpublished_model_has_ranges() -> None:
    s = answer("predict", "gpt-3.5-turbo", "--chip", "h100:8")
    assert s["deployment"]["model_unpublished"] is True
    assert s["tpot_s"]["low"] < s["tpot_s"]["nominal"] < s["tpot_s"]["high"]
    assert {a["of"] for a in s["assumptions"]} == {"chip", "model"}


def test_compare_puts_the_best_first_and_refuses_what_does_not_fit() -> None:
    found = answer("compare", "llama-3.1-70b", "--chips", "l4:1,h100:4,b200:4", "--price", "b200:4=3 $/h")[
        "results"
    ]
    rates = [c["best"]["tokens_per_s_per_chip"]["nominal"] for c in found if c["best"]]
    assert rates == sorted(rates, reverse=True)
    assert len(rates) == 2
    assert found[-1]["chip"] == "l4:1"
    assert "needs" in found[-1]["refused"]
    priced = next(c["best"] for c in found if c["chip"] == "b200:4")
    dollars = 3 / 3600 / priced["tokens_per_s_per_chip"]["nominal"] * 1e6
    assert priced["dollars_per_million_tokens"]["nominal"] == pytest.approx(dollars)


def test_plan_keeps_its_limits() -> None:
    plan = answer("plan", MODEL, "--chip", "h100:2", "--tpot", "20ms", "--osl", "256")
    assert plan["best"]["tpot_s"]["nominal"] <= 0.020
    front = [(s["tpot_s"]["nominal"], s["tokens_per_s_per_chip"]["nominal"]) for s in plan["front"]]
    by_speed = sorted(front)
    assert [rate for _, rate in by_speed] == sorted(rate for _, rate in by_speed)


def test_sweep_and_explain_agree_that_bandwidth_helps() -> None:
    sweep = answer("sweep", MODEL, "--set", "hbm.bandwidth=2TB/s..4TB/s", "--steps", "3")
    assert [p["values"] for p in sweep["points"]] == [[2e12], [3e12], [4e12]]
    times = [p["service"]["tpot_s"]["nominal"] for p in sweep["points"]]
    assert times == sorted(times, reverse=True)
    changes = {s["field"]: s["tpot_change"] for s in answer("explain", MODEL)["results"]}
    assert changes["hbm.bandwidth"] < 0
