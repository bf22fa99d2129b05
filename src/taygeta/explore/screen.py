"""Which deployments may hold an SLO, and how many replicas they need about, without simulating them.

Bounds that no schedule beats: a request's prompt takes as long as it takes alone, its tokens as long as decode steps
of one sequence, and a sequence fits the KV cache. The estimate is the work of the mean request over the time there is:

    replicas = arrivals/s x (stall + osl x step(batch) / batch) / attention-DP ranks

with the largest batch of a rank whose steps keep the TPOT and whose caches fit, `stall` what a prompt adds to steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taygeta.cost.service import Load, decode_batch, prefill_seconds, stall_seconds
from taygeta.cost.steps import StepModel
from taygeta.explore.trial import Slo
from taygeta.graph.memory import largest_batch, memory
from taygeta.serving.traffic import Traffic
from taygeta.spec.deployment import Batch, Deployment


@dataclass(frozen=True)
class Screened:
    """A replica's deployment. replicas: how many the traffic needs about, a fraction as it comes. refused: why none
    of any number would hold the SLO, else empty.
    """

    deployment: Deployment
    replicas: float = 0.0
    refused: str = ""

    @property
    def chips(self) -> float:
        """Chips that the traffic needs about."""
        return self.replicas * self.deployment.parallelism.chips


def screen(d: Deployment, traffic: Traffic, slo: Slo) -> Screened:
    """Return what the closed form says of a deployment under a traffic."""
    use = memory(d)
    if not use.fits:
        return Screened(d, refused="weights do not fit")
    lengths = np.sort(traffic.isl + traffic.osl)
    if largest_batch(d, int(_kept_by(lengths, slo.share)), use) < 1:
        return Screened(d, refused="sequences exceed the KV cache")
    model = StepModel(d)
    host = d.engine.host_step + d.engine.host_request
    context = int(_kept_by(np.sort(traffic.isl[traffic.osl >= 2]), slo.share)) if (traffic.osl >= 2).any() else 0
    all_have_tpot = bool((traffic.osl >= 2).all())
    if slo.tpot is not None and all_have_tpot and model.seconds(Batch.decode(1, context))[0] + host > slo.tpot:
        return Screened(d, refused="a decode step alone is slower than the TPOT")
    prompt = int(_kept_by(np.sort(traffic.isl), slo.share))
    fresh = traffic.prefixes is None or not d.engine.prefix_caching
    first = prefill_seconds(model, d, prompt) + d.engine.client_delay
    if slo.ttft is not None and fresh and first > slo.ttft:
        return Screened(d, refused="a prompt alone takes longer than the TTFT")
    return Screened(d, _replicas(model, d, traffic, slo))


def _replicas(model: StepModel, d: Deployment, traffic: Traffic, slo: Slo) -> float:
    found = traffic.statistics()
    saved = found.shared if d.engine.prefix_caching else 0.0
    isl = max(1, round(found.isl.mean * (1.0 - saved)))
    load = Load(isl, max(1, round(found.osl.mean)), 1)
    batch = _batch(model, d, load, slo)
    ranks = d.parallelism.dp
    if traffic.concurrency:
        return traffic.concurrency / (batch * ranks)
    if not found.duration:
        return len(traffic) / (batch * ranks)
    step = _step(model, d, load, batch)
    work = stall_seconds(model, d, load, batch) + load.osl * step / batch
    return len(traffic) / found.duration * work / ranks


def _batch(model: StepModel, d: Deployment, load: Load, slo: Slo) -> int:
    """The largest batch of a rank whose decode steps keep the TPOT and whose caches fit, one at least."""
    room = min(largest_batch(d, load.isl + load.osl) // d.parallelism.dp, d.engine.sequence_limit)
    low, high = 1, max(1, room)
    while low < high:
        middle = (low + high + 1) // 2
        if slo.tpot is None or _step(model, d, load, middle) <= slo.tpot:
            low = middle
        else:
            high = middle - 1
    return low


def _step(model: StepModel, d: Deployment, load: Load, batch: int) -> float:
    latency, interval = model.seconds(decode_batch(d, load, batch))
    return max(latency, interval * d.parallelism.pp) + d.engine.host_step + d.engine.host_request * batch


def _kept_by(ordered: np.ndarray, share: float) -> float:
    """The largest value that a share of a rising column must reach at least."""
    return float(ordered[min(len(ordered) - 1, max(0, int(np.ceil(share * len(ordered))) - 1))])
