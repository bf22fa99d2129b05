"""How the public serving benchmarks were run: which recipe of an engine, which requests, of what lengths.

What is known is in the InferenceX repository (SemiAnalysisAI/InferenceX, August 2026): vLLM's benchmark_serving with
random prompts, at most `concurrency` requests in flight, ten prompts for each of them, lengths drawn uniformly from
0.8 to 1.0 of the nominal ones, the first `concurrency` prompts at once. Rows of gap_analysis are Nvidia's own runs with
fixed lengths. They keep requests together in waves where prompts run alone and before decodes (SGLang with lengths in
powers of two: TTFT error 85 -> 10 %). Where prompts ride on decode steps, such groups break up by jitter that a
simulation does not have: there, and in the campaign with lengths in thousands, drawn lengths stand for it
(TensorRT-LLM 49/21 -> 22/14 %, vLLM 62/22 -> 27/19 %). Tables quote means over all requests, those of the first burst
among them: errors of TTFT double with medians, and with the burst left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from taygeta.base.errors import InputError
from taygeta.cost.service import MAX_TOKENS
from taygeta.serving.traffic import Traffic, make_traffic
from taygeta.spec.chip import Chip
from taygeta.spec.engine import benchmarks, engine

INFERENCEX, GAP = "inferencex", "gap_analysis"
# Input and output lengths of the public InferenceX benchmark: such rows of other sources repeat its runs
# (48 of the 51 rows of gap_analysis with Qwen3.5 have its TTFT and TPOT to 0.1 %).
DRAWN_SCENARIOS = ((1024, 1024), (1024, 8192), (8192, 1024))
# Told apart after errors of one of them had stood out.
THOUSAND = 1000  # one campaign of gap_analysis has lengths in whole thousands, the other in powers of two
LOWEST_SHARE = 0.8  # of the nominal lengths, where they are drawn
ROUNDS = 10  # prompts for each request in flight
MOST_REQUESTS = 4096  # of a simulated row, but two rounds at least
LOADED = 16  # requests in flight from which the Blackwell recipes of SGLang look at arrivals less often


@dataclass(frozen=True)
class Harness:
    """One benchmark run: requests in flight, nominal lengths, whether lengths are drawn, and the benchmark's name."""

    isl: int
    osl: int
    concurrency: int
    drawn: bool
    benchmark: str

    def traffic(self) -> Traffic:
        """Return the requests of the run."""
        count = min(ROUNDS * self.concurrency, max(MOST_REQUESTS, 2 * self.concurrency))
        draw = np.random.Generator(np.random.PCG64(0))
        lengths = []
        for nominal in (self.isl, self.osl):
            low = max(1, int(nominal * LOWEST_SHARE)) if self.drawn else nominal
            lengths.append(draw.integers(low, nominal + 1, count))
        return make_traffic("benchmark", isl=lengths[0], osl=lengths[1], concurrency=self.concurrency)


def harness_of(values: dict[str, Any], concurrency: int) -> Harness:
    """Return how a row of an end-to-end table was measured. Raises InputError for an engine or lengths unknown."""
    scenario = (values["isl"], values["osl"])
    for name, tokens in zip(("isl", "osl"), scenario, strict=True):
        if not 1 <= tokens <= MAX_TOKENS:
            raise InputError(f"{name} must be 1 to {MAX_TOKENS:,}, not {tokens:g}.")
    if values["source"] != GAP or scenario in DRAWN_SCENARIOS:
        return Harness(int(values["isl"]), int(values["osl"]), concurrency, True, INFERENCEX)
    alone = engine(f"{values['backend']}@{GAP}").policy == "prefill_first"
    waves = alone and values["isl"] % THOUSAND != 0
    return Harness(int(values["isl"]), int(values["osl"]), concurrency, not waves, GAP)


def recipe_of(name: str, chip: Chip, harness: Harness) -> str:
    """Return the name of the engine as the benchmark runs it.

    On chips that compute in 4 bits, InferenceX gives an engine with recipes of its own for them a look at arrivals
    every 10 steps, every 30 from 16 requests in flight on (SGLang's scheduler-recv-interval). Raises
    UnknownNameError.
    """
    often = f"{harness.benchmark}-{30 if harness.concurrency >= LOADED else 10}"
    own = "fp4" in chip.peaks and often in benchmarks(name)
    return f"{name}@{often if own else harness.benchmark}"
