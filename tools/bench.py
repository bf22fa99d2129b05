"""Speed of Taygeta on this machine, as a table: `make bench`; --markdown FILE writes it too.

Every figure is measured in this run, in CPU seconds of all threads and processes, so that other work on the machine
counts little; processes are started afresh where a cold start is meant.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_chip import chip_rows
from bench_compare import compare_rows, start_slow
from bench_time import command, cpu, first_time, process, seconds, share, times

TRACE = Path(__file__).parents[2] / "shared/traces/azure-2023/AzureLLMInferenceTrace_conv.csv"
MEASURE = (
    "Seconds are CPU seconds, user and system, of all threads and child processes, the least of a few runs; other work"
    " on the machine, at a load of {load:.1f} when this began, makes them larger. SCALE-Sim"
    " runs beside what is in the first two tables. A goal that is not met says so beside its ratio."
)
# Vidur (arXiv:2405.05465) on that trace: its requests, and its CPU seconds once its forests are trained.
VIDUR_REQUESTS, VIDUR_SECONDS = 19_366, 210.0


def step_of_100_layers() -> float:
    """Seconds of one compiled prediction of a 100-layer model, a new batch each time."""
    from dataclasses import replace

    import taygeta as tg
    from taygeta.cost.steps import StepModel

    d = tg.deploy("llama-3.1-405b", on="h100:8", weights="fp8")
    layers = d.model.layers[:100]
    model = StepModel(replace(d, model=replace(d.model, layers=layers)), compiled=True)
    batches = [tg.Batch.decode(1 + i % 200, 1000 + i) + tg.Batch.prefill(1, 100 + i) for i in range(1000)]
    model.seconds(batches[0])
    return seconds(lambda: [model.seconds(batch) for batch in batches]) / len(batches)


def million_matmuls() -> float:
    """Seconds for a million distinct GEMM shapes on all cores, compiled."""
    import numpy as np

    from taygeta import chip
    from taygeta.cost.surface import matmul_seconds

    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 16384, size=(1_000_000, 3)).astype(float)
    h100 = chip("h100")
    matmul_seconds(h100, "bf16", shapes[:100])
    return seconds(lambda: matmul_seconds(h100, "bf16", shapes), 2)


def vidur_traffic() -> tuple[str, Any]:
    """The Azure conversation trace with its name; without its file, as many requests of the same statistics."""
    from taygeta.serving.options import TrafficOptions, build_traffic
    from taygeta.serving.trace import load_trace

    if TRACE.exists():
        return "the Azure conversation trace", load_trace(TRACE)
    return "the workload chat, of the statistics of Azure's trace", build_traffic(
        TrafficOptions(workload="chat", requests=VIDUR_REQUESTS)
    )


def replay(traffic: Any) -> tuple[float, float]:
    """CPU seconds of a warm replay on 4 replicas of Llama-2-7B on A100, and of each of its steps."""
    import taygeta as tg
    from taygeta.serving.simulate import simulate

    d = tg.deploy("meta-llama/Llama-2-7b", on="a100:4", tp=1)
    best, steps = float("inf"), 1
    simulate(d, traffic)  # compiles
    for _ in range(3):
        start = cpu()
        steps = int(simulate(d, traffic).outcome.steps.sum())
        best = min(best, cpu() - start)
    return best, best / steps


MILLION = """
import resource, sys, time
import taygeta as tg
from taygeta.serving.options import TrafficOptions, build_traffic
from taygeta.serving.simulate import simulate
start = time.process_time()
traffic = build_traffic(TrafficOptions(workload="chat", rate=88.0, requests=1_000_000))
found = simulate(tg.deploy("meta-llama/Llama-2-7b", on="a100:64", tp=1), traffic)
assert found.answered == 1_000_000
unit = 1 if sys.platform == "darwin" else 1024
print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""
"""A million requests of Azure's lengths over 64 replicas, each at the load of the replay: prints seconds and bytes."""


def million_requests() -> tuple[float, float]:
    """Seconds and bytes at the peak of a fresh process that serves MILLION."""
    said = subprocess.run([sys.executable, "-c", MILLION], check=True, capture_output=True, text=True).stdout
    seconds_taken, peak = map(float, said.split())
    return seconds_taken, peak


FIRST = ("simulate", "llama-3.1-8b", "--isl", "1024", "--osl", "128", "--rate", "4", "--requests", "100")


def serving() -> list[str]:
    """Rows of the table of serving: what, measured, limit or published figure, and the ratio to it."""
    name, traffic = vidur_traffic()
    cpu, step = replay(traffic)
    rate, vidur = len(traffic) / cpu, VIDUR_REQUESTS / VIDUR_SECONDS
    took, peak = million_requests()
    first, cold = command(*FIRST), first_time(*FIRST)
    return [
        "| serving | measured | held against | ratio |",
        "|---|---|---|---|",
        f"| requests per CPU second, warm: {name}, 4 replicas | {rate:,.0f} | 10,000 at least | {times(rate, 1e4)} |",
        f"| the same over Vidur's {VIDUR_REQUESTS:,} requests in {VIDUR_SECONDS:g} CPU s | {rate:,.0f} | {vidur:,.0f}"
        f" | {rate / vidur:.0f} x |",
        f"| CPU of a simulated step of it, us | {step * 1e6:.3g} | | |",
        f"| a million requests over 64 replicas, a new process, CPU s | {took:.3g} | 120 | {share(took, 120)} |",
        f"| its memory at the peak, MB | {peak / 1e6:,.0f} | 2000 | {share(peak, 2e9)} |",
        f"| a first result: `taygeta simulate` in a new process, CPU s | {first:.3g} | 5 | {share(first, 5)} |",
        f"| the same where nothing was compiled before, once on a machine, CPU s | {cold:.3g} | | |",
    ]


def plan_of_10000() -> tuple[float, int]:
    """Seconds of a search, scaled to 10,000 deployments, and how many it tried."""
    import taygeta as tg

    start = cpu()
    found = tg.plan("gpt-oss-120b", on="h100:64", isl=1024, osl=1024)
    return (cpu() - start) / found.tried * 10_000, found.tried


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    slow = start_slow()
    plan, tried = plan_of_10000()
    rows = [
        ("`import taygeta`, less a bare interpreter", process("-c", "import taygeta") - process("-c", "pass"), 0.5),
        ("`taygeta --help`, the whole process", command("--help"), 0.5),
        (
            "a first answer: `taygeta predict` in a new process",
            command("predict", "gpt-oss-120b", "--chip", "h100:2"),
            3.0,
        ),
        ("one step of a 100-layer model, a new batch each time, compiled", step_of_100_layers(), 1e-3),
        ("a million distinct GEMM shapes, compiled, all cores", million_matmuls(), 3.0),
        (f"`plan` over 10,000 deployments (scaled from {tried:,})", plan, 60.0),
    ]
    lines = [
        f"Measured on {machine()}. {MEASURE.format(load=load)}",
        "",
        "| what | CPU seconds | limit | of the limit |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {value:.3g} | {limit:g} | {share(value, limit)} |" for name, value, limit in rows]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines += [f"| memory of this process at its largest, MB | {peak:,.0f} | 1000 | {share(peak, 1000)} |"]
    lines += ["", *serving()]
    if slow:
        slow.wait()
    lines += ["", *chip_rows(), "", *compare_rows(slow)]
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# Speed\n\nGenerated by `make bench`.\n\n{text}\n", encoding="utf-8")


def machine() -> str:
    """Return the processor, the cores that may be used, and Python's version."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = found[0] if found else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
