"""How the public serving benchmarks were run: which requests, of what lengths, how many, and on which recipe.

What is known is in the InferenceX repository (SemiAnalysisAI/InferenceX, August 2026): vLLM's benchmark_serving with
random prompts, at most `concurrency` requests in flight, ten prompts for each of them, lengths drawn uniformly from
0.8 to 1.0 of the nominal ones, the first `concurrency` prompts at once. Rows of gap_analysis are Nvidia's own runs with
fixed lengths, in engines whose token budget holds one prompt beside the decodes (taygeta.spec.launch): groups of
requests then fall apart by themselves where prompts ride on decode steps, and stay together where they run alone. One
campaign of those, with lengths in thousands and dozens to hundreds of requests in flight under an engine that runs
prompts alone, shows neither: its lengths are taken as drawn and its runs as half as long. Tables quote means over all
requests, those of the first burst among them: errors of TTFT double with medians, and with the burst left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from taygeta.base.errors import InputError
from taygeta.cost.service import MAX_TOKENS
from taygeta.serving.traffic import Traffic, make_traffic
from taygeta.spec.engine import engine

INFERENCEX, GAP = "inferencex", "gap_analysis"
# Input and output lengths of the public InferenceX benchmark: such rows of other sources repeat its runs
# (48 of the 51 rows of gap_analysis with Qwen3.5 have its TTFT and TPOT to 0.1 %).
DRAWN_SCENARIOS = ((1024, 1024), (1024, 8192), (8192, 1024))
# Told apart after errors of one of them had stood out.
THOUSAND = 1000  # one campaign of gap_analysis has lengths in whole thousands, the other in powers of two
GROUPS = 16  # requests in flight from which those of that campaign do not stay together
LOWEST_SHARE = 0.8  # of the nominal lengths, where they are drawn
ROUNDS = 10  # prompts for each request in flight
FEW_ROUNDS = 5  # the same, where lengths of gap_analysis are taken as drawn
MOST_REQUESTS = 4096  # of a simulated row, but two rounds at least


@dataclass(frozen=True)
class Harness:
    """One benchmark run: requests in flight, nominal lengths, whether they are drawn, rounds, the benchmark's name."""

    isl: int
    osl: int
    concurrency: int
    drawn: bool
    benchmark: str
    rounds: int = ROUNDS

    def traffic(self) -> Traffic:
        """Return the requests of the run."""
        count = min(self.rounds * self.concurrency, max(MOST_REQUESTS, 2 * self.concurrency))
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
    isl, osl = int(values["isl"]), int(values["osl"])
    if values["source"] != GAP or scenario in DRAWN_SCENARIOS:
        return Harness(isl, osl, concurrency, True, INFERENCEX)
    alone = engine(f"{values['backend']}@{GAP}").policy == "prefill_first"
    if alone and isl % THOUSAND == 0 and concurrency >= GROUPS:
        return Harness(isl, osl, concurrency, True, GAP, FEW_ROUNDS)
    return Harness(isl, osl, concurrency, False, GAP)
