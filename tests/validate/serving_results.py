"""Results of serving benchmarks as the tools write them, made from a simulated run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from taygeta.serving.outcome import Outcome

SENDING = 1e-6  # seconds between two requests that a client sends at once
EPOCH = 1_760_000_000.0  # seconds; benchmarks write the time of day


def gaps_of(o: Outcome) -> list[list[float]]:
    """The gaps between the tokens of each request, evenly spread."""
    osl = o.setup.traffic.osl
    return [[float(e - f) / (n - 1)] * (n - 1) if n > 1 else [] for f, e, n in zip(o.first, o.end, osl, strict=True)]


def vllm(path: Path, o: Outcome, concurrency: int | None, detailed: bool = True, **more: Any) -> Path:
    t = o.setup.traffic
    ttft, gaps = o.first - o.arrival, gaps_of(o)
    tpot = [float(np.mean(g)) for g in gaps if g]
    document: dict[str, Any] = {
        "date": "20260102-030405", "endpoint_type": "openai", "model_id": "m", "num_prompts": len(t),
        "request_rate": "inf", "burstiness": 1.0, "max_concurrency": concurrency, "duration": float(o.end.max()),
        "completed": len(t), "total_input_tokens": int(t.isl.sum()), "total_output_tokens": int(t.osl.sum()),
        "mean_ttft_ms": float(ttft.mean()) * 1e3, "mean_tpot_ms": float(np.mean(tpot)) * 1e3,
    }  # fmt: skip
    if detailed:
        document |= {
            "input_lens": t.isl.tolist(), "output_lens": t.osl.tolist(), "ttfts": ttft.tolist(), "itls": gaps,
            "generated_texts": [""] * len(t), "errors": [""] * len(t),
        }  # fmt: skip
    path.write_text(json.dumps(document | more), encoding="utf-8")
    return path


def guidellm(path: Path, runs: list[tuple[Outcome, dict[str, Any]]], requests: bool = True) -> Path:
    """runs: outcomes with their strategies, such as {"type_": "concurrent", "streams": 8}."""
    path.write_text(json.dumps({"benchmarks": [_guidellm(o, s, requests) for o, s in runs]}), encoding="utf-8")
    return path


def _guidellm(o: Outcome, strategy: dict[str, Any], requests: bool) -> dict[str, Any]:
    t = o.setup.traffic
    ttft, tpot = (o.first - o.arrival) * 1e3, (o.end - o.first) / np.maximum(t.osl - 1, 1) * 1e3
    rows = [
        {
            "type_": "generative_request_stats",
            "request_id": f"r{i}",
            "info": {
                "timings": {"request_start": EPOCH + o.arrival[i] + SENDING * int(i), "token_iterations": int(t.osl[i])}
            },
            "prompt_tokens": int(t.isl[i]),
            "output_tokens": int(t.osl[i]),
            "time_to_first_token_ms": float(ttft[i]),
            "inter_token_latency_ms": float(tpot[i]) if t.osl[i] > 1 else None,
            "request_start_time": EPOCH + float(o.arrival[i]) + SENDING * int(i),
        }
        for i in np.argsort(o.end)  # in the order in which they ended
    ]
    means = {
        "prompt_token_count": t.isl.mean(), "output_token_count": t.osl.mean(),
        "time_to_first_token_ms": ttft.mean(), "inter_token_latency_ms": tpot[t.osl > 1].mean(),
    }  # fmt: skip
    return {
        "type_": "generative_benchmark",
        "config": {"strategy": strategy},
        "request_totals": {"successful": len(t), "errored": 0},
        "metrics": {name: {"successful": {"mean": float(value)}} for name, value in means.items()},
        "requests": {"successful": rows if requests else [], "incomplete": [], "errored": []},
    }


def aiperf(path: Path, o: Outcome, concurrency: int | None) -> Path:
    """profile_export.jsonl and, with a concurrency, the summary beside it."""
    t = o.setup.traffic
    tpot = ((o.end - o.first) / np.maximum(t.osl - 1, 1) * 1e3).tolist()
    lines = [
        {
            "metadata": {
                "session_num": int(i), "benchmark_phase": "profiling", "was_cancelled": False,
                "request_start_ns": round((EPOCH + o.arrival[i] + SENDING * int(i)) * 1e9),
                "request_end_ns": round((EPOCH + o.end[i]) * 1e9),
            },
            "metrics": {
                "input_sequence_length": {"value": int(t.isl[i]), "unit": "tokens"},
                "output_sequence_length": {"value": int(t.osl[i]), "unit": "tokens"},
                "time_to_first_token": {"value": float(o.first[i] - o.arrival[i]) * 1e3, "unit": "ms"},
                **({"inter_token_latency": {"value": tpot[i], "unit": "ms"}} if t.osl[i] > 1 else {}),
            },
            "error": None,
        }
        for i in np.argsort(o.end)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    if concurrency is not None:
        aiperf_summary(path.with_name(f"{path.stem}_aiperf.json"), o, concurrency)
    return path


def aiperf_values(o: Outcome) -> dict[str, tuple[float, str]]:
    t = o.setup.traffic
    several = t.osl > 1
    return {
        "request_throughput": (len(t) / float(o.end.max()), "requests/sec"),
        "request_latency": (float((o.end - o.arrival).mean()) * 1e3, "ms"),
        "request_count": (float(len(t)), "requests"),
        "time_to_first_token": (float((o.first - o.arrival).mean()) * 1e3, "ms"),
        "inter_token_latency": (float(((o.end - o.first)[several] / (t.osl[several] - 1)).mean()) * 1e3, "ms"),
        "input_sequence_length": (float(t.isl.mean()), "tokens"),
        "output_sequence_length": (float(t.osl.mean()), "tokens"),
    }


def aiperf_summary(path: Path, o: Outcome, concurrency: int) -> Path:
    document: dict[str, Any] = {name: {"unit": unit, "avg": v} for name, (v, unit) in aiperf_values(o).items()}
    document["input_config"] = {"loadgen": {"concurrency": concurrency, "request_rate": None}}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def aiperf_table(path: Path, o: Outcome) -> Path:
    names = {name: name.replace("_", " ").title().replace(" To ", " to ") for name in aiperf_values(o)}
    rows = [f"{names[name]} ({unit}),{value}" for name, (value, unit) in aiperf_values(o).items()]
    path.write_text("Metric,avg,min,max\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path
