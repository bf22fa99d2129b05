"""What Prometheus reads: vLLM's names for what the fleet does, in the fleet's seconds, and how late the wall runs.

Names and buckets are those of vLLM's V1 metrics (docs.vllm.ai, "Production metrics"), so that dashboards, autoscalers
and gateways made for it read this too. Format: Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from taygeta.serving.live import Live

TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
E2E = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHES = ("stop", "length", "abort", "error")

LATE = 0.020
"""Seconds of the wall by which a token may leave late: the shortest gap between tokens at which the latencies that
clients measure are held to those of the simulator. A lag that stays the same moves all tokens of an answer alike."""
WINDOW = 10.0  # seconds over which the largest lag is kept


class Histogram:
    """Counts of values in buckets, and their sum."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self.buckets = tuple(buckets)
        self.counts = [0] * (len(self.buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value


class Lag:
    """How late tokens leave: the largest lag of the last seconds, and how many were late."""

    def __init__(self) -> None:
        self.late = 0
        self.seen = 0
        self._windows = (0.0, 0.0)  # the largest lag of the last window, and of this one
        self._ends = 0.0

    def note(self, seconds: float, tokens: int, now: float) -> bool:
        """Note tokens that left so many seconds after their time; return whether that is late."""
        self._turn(now)
        self._windows = (self._windows[0], max(self._windows[1], seconds))
        self.seen += tokens
        late = seconds > LATE
        self.late += tokens if late else 0
        return late

    def largest(self, now: float) -> float:
        """Return the largest lag of the last WINDOW to two WINDOWs."""
        self._turn(now)
        return max(self._windows)

    def _turn(self, now: float) -> None:
        if now >= self._ends:
            recent = now < self._ends + WINDOW
            self._windows = (self._windows[1] if recent else 0.0, 0.0)
            self._ends = now + WINDOW


@dataclass
class Metrics:
    """What is counted since the start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISHES, 0))
    cache_queries: int = 0
    cache_hits: int = 0
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT))
    itl: Histogram = field(default_factory=lambda: Histogram(ITL))
    e2e: Histogram = field(default_factory=lambda: Histogram(E2E))
    queueing: Histogram = field(default_factory=lambda: Histogram(E2E))
    prompts: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    answers: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    lag: Lag = field(default_factory=Lag)

    def text(self, live: Live, now: float, model: str, streams: int) -> str:
        """Return all of it for Prometheus. now: the fleet's time. streams: HTTP requests that are being answered."""
        return "\n".join(self._lines(live, now, _escaped(model), streams)) + "\n"

    def _lines(self, live: Live, now: float, model: str, streams: int) -> Iterator[str]:
        use, labels = live.use(), f'model_name="{model}"'
        share = use.blocks / use.room if use.room else 0.0
        gauges = (
            ("vllm:num_requests_running", use.running, "Requests in a step of the simulated fleet."),
            ("vllm:num_requests_waiting", use.waiting, "Requests that wait in the simulated fleet."),
            ("vllm:kv_cache_usage_perc", share, "Share of the blocks of the KV cache in use, 1 is all."),
            ("vllm:gpu_cache_usage_perc", share, "The same, by vLLM's name for it before version 0.10."),
            ("taygeta:lag_seconds", self.lag.largest(time.monotonic()),
             f"Largest time by which tokens left late, seconds of the wall, of the last {WINDOW:g} s or more."),
            ("taygeta:fleet_time_seconds", now, "The time of the simulated fleet since it started."),
            ("taygeta:open_requests", streams, "HTTP requests that are being answered."),
        )  # fmt: skip
        counters = (
            ("vllm:prompt_tokens_total", self.prompt_tokens, "Tokens of prompts whose first token left."),
            ("vllm:generation_tokens_total", self.generation_tokens, "Tokens of answers that left."),
            ("vllm:num_preemptions_total", live.preemptions, "Times a request lost its KV cache to another."),
            ("vllm:prefix_cache_queries_total", self.cache_queries, "Tokens of prompts that were looked up."),
            ("vllm:prefix_cache_hits_total", self.cache_hits, "Tokens of prompts that were found in a cache."),
            ("taygeta:emitted_tokens_total", self.lag.seen, "Tokens whose lag was measured."),
            ("taygeta:late_tokens_total", self.lag.late,
             f"Tokens that left more than {LATE * 1e3:g} ms of the wall late: latencies are not the fleet's."),
        )  # fmt: skip
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, value, words in values:
                yield from (f"# HELP {name} {words}", f"# TYPE {name} {kind}", f"{name}{{{labels}}} {_number(value)}")
        name = "vllm:request_success_total"
        yield from (f"# HELP {name} Answers that ended, by reason.", f"# TYPE {name} counter")
        for reason, count in self.finished.items():
            yield f'{name}{{finished_reason="{reason}",{labels}}} {count}'
        for name, found, words in self._histograms():
            yield from _histogram_lines(name, found, labels, words)

    def _histograms(self) -> tuple[tuple[str, Histogram, str], ...]:
        return (
            ("vllm:time_to_first_token_seconds", self.ttft, "TTFT in the fleet's seconds."),
            ("vllm:inter_token_latency_seconds", self.itl, "Gaps between the chunks of an answer, fleet's seconds."),
            ("vllm:e2e_request_latency_seconds", self.e2e, "Arrival to last token in the fleet's seconds."),
            ("vllm:request_queue_time_seconds", self.queueing, "Arrival to first step in the fleet's seconds."),
            ("vllm:request_prompt_tokens", self.prompts, "Tokens of a prompt."),
            ("vllm:request_generation_tokens", self.answers, "Tokens of an answer."),
        )


def _histogram_lines(name: str, found: Histogram, labels: str, words: str) -> Iterator[str]:
    yield from (f"# HELP {name} {words}", f"# TYPE {name} histogram")
    total = 0
    for bound, count in zip((*found.buckets, None), found.counts, strict=True):
        total += count
        yield f'{name}_bucket{{{labels},le="{"+Inf" if bound is None else _number(bound)}"}} {total}'
    yield f"{name}_sum{{{labels}}} {_number(found.sum)}"
    yield f"{name}_count{{{labels}}} {total}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
