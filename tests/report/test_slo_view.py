"""The view of a plan on a traffic, as a terminal of 80 columns shows it."""

from __future__ import annotations

import io
import re

import numpy as np
from rich.console import Console

from taygeta.api import recipe
from taygeta.explore.slo import SloPlan, plan_slo
from taygeta.report.json import text
from taygeta.report.slo import slo_json, slo_view
from taygeta.report.slo_page import slo_page
from taygeta.report.terminal import show
from taygeta.serving.plain import run_plain
from taygeta.serving.traffic import make_traffic


def plan(tpot: float) -> SloPlan:
    t = make_traffic("even", [512] * 80, [32] * 80, np.arange(80) * 0.01, source="made up")
    return plan_slo(recipe("llama-3.1-8b", "h100:8", tp=1), t, 0.2, tpot, run=run_plain, tune=False)


def shown(found: SloPlan, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    show(slo_view(found), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_plan_in_words() -> None:
    found = plan(0.02)
    best, doubt = found.best, found.confidence
    assert best is not None
    assert doubt is not None
    said = shown(found)
    assert "meta-llama/Llama-3.1-8B: chips for even" in said
    assert "99.0 % of requests within TTFT 200 ms, TPOT 20.0 ms" in said
    assert "1 deployment looked at" in said
    assert f"fewest chips {best.chips} h100, {best.replicas} x (tp=1)" in " ".join(said.split())
    assert "scheduler mixed 8,192 tokens a step, 1,024 sequences" in " ".join(said.split())
    assert ("holds" if doubt.holds_at_slow_end else "more chip") in said
    assert "Traffic: made up" in said
    assert max(map(len, said.splitlines())) <= 80


def test_only_columns_that_are_shown_are_explained() -> None:
    found = plan(0.02)
    narrow = " ".join(shown(found).split())
    assert "Below a latency its median." in narrow
    assert "$/h" not in narrow
    wide = " ".join(shown(found, 160).split())
    assert "Below a latency its median. Below $/h dollars per million output tokens." in wide
    assert "Below $/h dollars per million output tokens." in slo_page(found)


def test_axes_of_times_have_numbers() -> None:
    svg = slo_page(plan(0.02)).split("TPOT over chips")[-1]
    marks = re.findall(r">([0-9.]+ (?:us|ms|s))</text>", svg)
    assert len(marks) >= 2, "an axis without two numbers cannot be read"


def test_no_plan_in_words() -> None:
    said = shown(plan(1e-6))
    assert "nothing tried holds the goal" in said
    assert "1 deployment left out: a decode step alone is slower than the TPOT." in " ".join(said.split())


def test_json_is_of_plain_values() -> None:
    for tpot in (0.02, 1e-6):
        found = slo_json(plan(tpot))
        assert set(found) == {
            "goal", "traffic", "best", "candidates", "confidence", "curve", "screened", "simulations", "refused",
        }  # fmt: skip
        assert "NaN" not in text(found)
        assert (found["best"] is None) == (tpot < 1e-3)
