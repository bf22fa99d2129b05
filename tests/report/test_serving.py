"""Served traffic in words, as JSON and as pages."""

from __future__ import annotations

import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_samples as samples
from rich.console import Console

from taygeta.report.json import text
from taygeta.report.serving import loads_view, serving_view
from taygeta.report.serving_json import key, loads_json, serving_json
from taygeta.report.terminal import show
from taygeta.report.view import View
from taygeta.serving.metrics import METRICS

GOLDEN = Path(__file__).parent / "golden_serving"
LIMITS = (1.5, 0.05)


def views() -> dict[str, View]:
    return {
        "run": serving_view(samples.result((1.0, 2.0, 3.0)), LIMITS),
        "ranged": serving_view(samples.ranged()),
        "disaggregated": serving_view(samples.disaggregated()),
        "closed": serving_view(samples.closed(), (1.0, None)),
        "nothing": serving_view(samples.nothing(), LIMITS),
        "loads": loads_view(samples.loads(), LIMITS),
    }


def printed(view: View, width: int = 80) -> str:
    out = io.StringIO()
    show(view, Console(file=out, width=width, color_system=None, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("name", sorted(views()))
def test_golden(name: str) -> None:
    assert printed(views()[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_file_has_a_view() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(views())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", sorted(views()))
def test_no_line_is_wider_than_the_screen(name: str, width: int) -> None:
    assert max(len(line) for line in printed(views()[name], width).splitlines()) <= width


def test_a_curve_needs_a_load() -> None:
    with pytest.raises(ValueError, match="A curve needs a load"):
        loads_view([])


def test_keys_say_their_units() -> None:
    assert [key(name) for name in ("ttft", "duration", "replica_seconds", "requests_per_s", "dollars", "batch")] == [
        "ttft_s", "duration_s", "replica_seconds", "requests_per_s", "dollars", "batch",
    ]  # fmt: skip


def test_json_by_hand() -> None:
    document = serving_json(samples.ranged(), LIMITS)
    assert json.loads(text(document)) == document
    metrics = [key(name) for name in METRICS if not name.startswith("goodput")]
    assert list(document) == ["fleet", "traffic", "interrupted", *metrics, "goodput", "notes"]
    assert document["ttft_s"]["p50"] == {"low": pytest.approx(1.2), "nominal": 1.5, "high": pytest.approx(2.25)}
    assert document["ttft_s"]["count"] == 2
    assert document["goodput"] == {
        "ttft_limit_s": 1.5, "tpot_limit_s": 0.05, "requests_per_s": pytest.approx(0.0), "share": 0.0,
    }  # fmt: skip
    assert document["traffic"]["source"] == "Acme's own trace, 2026"
    assert document["traffic"]["isl"]["mean"] == 2000.0
    assert document["dollars"]["nominal"] == pytest.approx(2.0 * 40 / 3600)
    assert document["fleet"]["pools"][0]["tp"] == 2
    assert (document["fleet"]["chips"], document["fleet"]["replicas"]) == (4, 2)


def test_json_of_what_is_not_there() -> None:
    document = serving_json(samples.nothing())
    assert json.loads(text(document)) == document
    assert document["tpot_s"]["p99"] == {"low": None, "nominal": None, "high": None}
    assert document["goodput"] is document["dollars"] is None
    pools = serving_json(samples.disaggregated())["fleet"]
    assert [p["role"] for p in pools["pools"]] == ["prefill", "decode"]
    assert pools["failures"] == [{"replica": 1, "at_s": 5.0, "until_s": None}]
    assert serving_json(samples.disaggregated())["interrupted"] is True
    assert serving_json(samples.closed())["traffic"]["concurrency"] == 2


def test_json_of_loads() -> None:
    document = loads_json(samples.loads(), LIMITS)
    assert json.loads(text(document)) == document
    assert [x["factor"] for x in document["loads"]] == [0.5, 1.0, 2.0]
    assert document["knee"] == 1
    assert document["loads"][2]["report"]["traffic"]["rate_per_s"] == pytest.approx(2.0)


class Outline(HTMLParser):
    """Checks that every element is closed, and notes figures and their words."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.labels: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "svg":
            self.labels.append(dict(attrs)["aria-label"] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pages() -> dict[str, Any]:
    from taygeta.report.serving_page import loads_page, serving_page

    return {
        "run": lambda: serving_page(samples.result(), LIMITS),
        "closed": lambda: serving_page(samples.closed()),
        "nothing": lambda: serving_page(samples.nothing()),
        "loads": lambda: loads_page(samples.loads(), LIMITS),
        "unlimited": lambda: loads_page(samples.loads()),
    }


@pytest.mark.parametrize(
    ("name", "figures"), [("run", 3), ("closed", 3), ("nothing", 0), ("loads", 3), ("unlimited", 2)]
)
def test_pages(name: str, figures: int) -> None:
    pytest.importorskip("matplotlib")
    drawn = pages()[name]()
    outline = Outline()
    outline.feed(drawn)
    assert outline.open == []
    assert len(outline.labels) == figures
    assert not any(marker in drawn for marker in ("#010101", "#020202", "#0400"))
    assert pages()[name]() == drawn


def test_figures_say_their_numbers() -> None:
    pytest.importorskip("matplotlib")
    outline = Outline()
    outline.feed(pages()["run"]() + pages()["loads"]())
    latency, time, first, ttft, tpot, goodput = outline.labels
    assert latency == (
        "Latency of requests, share with at most a time: TPOT p50 100 ms, p99 100 ms; TTFT p50 1.50 s, p99 1.99 s;"
        " end to end p50 2.00 s, p99 2.00 s."
    )
    assert time.startswith("The run over time: up to ")
    assert time.endswith("output tokens/s, 2 requests that run and 1 that wait.")
    assert first == "Time to first token by prompt: a dot for each of 2 requests."
    assert ttft.startswith("TTFT over load: 0.150 tokens/s of a chip: p50 ")
    assert tpot.count(";") == 2
    assert goodput == (
        "Share of requests within the limits. load x 0.5: 40.0 %; load x 1: 0.0 %; load x 2: 0.0 %."
    )  # fmt: skip


def test_tokens_over_time_by_hand() -> None:
    """The first request makes 1 token at 1 s and 10 until 2 s, the second 1 at 3 s; nothing else was answered."""
    from taygeta.report.serving_plots import _cache, _made, _present

    o = samples.outcome()
    times = np.array([0.0, 0.99, 1.0, 1.5, 2.0, 2.5, 3.0, 10.0])
    assert _made(o, times) == pytest.approx([0, 0, 1, 6, 11, 11, 12, 12])
    assert _present(o.start, o.end, o, times).tolist() == [0, 1, 2, 2, 2, 2, 1, 1]
    assert _present(o.arrival, o.start, o, times).tolist() == [1, 0, 0, 0, 0, 0, 1, 0]
    assert _cache(o, times) == pytest.approx([0, 0.05, 0.26, 0.26, 0.26, 0.27, 0.27, 0.27])  # of two replicas


def test_ticks() -> None:
    from taygeta.report.serving_plots import _plain_tick, _time_tick

    assert [_time_tick(x, None) for x in (0.0, 2e-6, 1e-3, 0.05, 1.0, 100.0)] == [
        "",
        "2 us",
        "1 ms",
        "50 ms",
        "1 s",
        "100 s",
    ]
    assert [_plain_tick(x, None) for x in (0.0, 0.25, 1500.0)] == ["0", "0.25", "1,500"]
    assert math.isnan(samples.nothing().ttft.p50)
