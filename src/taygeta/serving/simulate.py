"""The verb: traffic on a deployment or a fleet, and what came of it, with the range that the step times leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from taygeta.cost.predict import Predictor
from taygeta.serving.fleet import Fleet, fleet
from taygeta.serving.lookup import Tables
from taygeta.serving.metrics import ServingReport, report
from taygeta.serving.outcome import ANSWERED, Outcome
from taygeta.serving.run import run
from taygeta.serving.setup import HORIZON, Setup, prepare
from taygeta.serving.traffic import Traffic
from taygeta.spec.deployment import Batch, Deployment

Progress = Callable[[float], None]  # of the share of the work that is done


def simulate(
    served: Deployment | Fleet,
    traffic: Traffic,
    *,
    seed: int = 0,
    until: float = HORIZON,
    ranges: bool = False,
    log: bool = False,
    price: tuple[float, float, float] | None = None,
    progress: Progress | None = None,
) -> ServingReport:
    """Return the metrics of serving a traffic.

    served: a deployment (all its replicas behind a router of least load) or a fleet. seed: of what is drawn. until:
    seconds after which nothing more happens. ranges: simulate twice more, with the fast and the slow end of the
    steps, for `report.interval`. log: keep every step. price: dollars of a chip-hour (low, nominal, high).

    An interrupt (Ctrl-C) ends the run; what it has left is reported, and the rest is cut; one that comes later leaves
    out the ranges. Raises DoesNotFitError
    where no KV cache fits, InputError for what contradicts itself.
    """
    made = prepare(served if isinstance(served, Fleet) else fleet(served), traffic, seed, until)
    advance = progress or (lambda share: None)
    runs = 3.0 if ranges else 1.0
    outcome = run(made, lambda share: advance(share / runs), log)
    advance(1.0 / runs)
    found = report(outcome, price)
    if not ranges or outcome.interrupted or not found.answered:
        return found
    ends: list[ServingReport] = []
    for number, factors in enumerate(zip(*step_ranges(outcome), strict=True), start=1):
        moved = run(scaled(made, factors), lambda share, n=number: advance((n + share) / runs), log)
        if moved.interrupted:
            return replace(found, outcome=replace(outcome, interrupted=True))
        advance((number + 1.0) / runs)
        ends.append(report(moved, price))
    return found.with_ends(*ends)


@dataclass(frozen=True, eq=False)
class Load:
    """One point of a curve of latency over load. factor: on the rate, or on the concurrency, of the first traffic."""

    factor: float
    report: ServingReport

    @property
    def offered(self) -> float | None:
        """Requests per second that the traffic offers; None where that is not known before (a closed loop)."""
        return self.report.outcome.setup.traffic.statistics().rate

    @property
    def concurrency(self) -> int:
        """Requests in flight of a closed loop; 0 of an open one."""
        return self.report.outcome.setup.traffic.concurrency


def knee(loads: Sequence[Load]) -> int | None:
    """Return which load has the most throughput for its latency: requests per second / mean end-to-end time.

    This ratio, "power", is largest where the curve of latency over throughput bends (Kleinrock, ICC 1979). None where
    no load has an answer.
    """
    powers = [x.report.requests_per_s / x.report.e2e.mean if x.report.answered else -math.inf for x in loads]
    best = max(powers, default=-math.inf)
    return powers.index(best) if best > -math.inf else None


def step_ranges(o: Outcome) -> list[tuple[float, float]]:
    """Return for each pool what the fast and the slow end of its mean step are to the nominal one.

    The ends are those of a step that holds what the run's steps held on average, sequences that decode and tokens of
    prompts: assumptions one group at a time, and the error on silicon that was held out (cost.predict).
    """
    done = o.ended == ANSWERED
    steps = max(1, int(o.steps.sum()))
    traffic = o.setup.traffic
    decodes = int(o.setup.steps[done].sum())
    context = (traffic.isl + traffic.osl // 2)[done] * o.setup.steps[done]
    fresh = int((traffic.isl - o.cached)[done].sum())
    out = []
    for kind in o.setup.kinds:
        d, role = kind.pool.deployment, kind.pool.role
        ranks = d.parallelism.dp
        batch = Batch.prefill(1, max(1, fresh // steps // ranks)) if role != "decode" else Batch()
        if role != "prefill" and decodes:
            batch += Batch.decode(max(1, decodes // steps // ranks), int(context.sum() // decodes))
        predictor = Predictor(d)
        nominal = predictor.nominal.seconds(batch)[0] if batch.tokens else 0.0
        ends = predictor.interval(nominal, batch) if nominal > 0.0 else None
        out.append((ends.low / nominal, ends.high / nominal) if ends else (1.0, 1.0))
    return out


def scaled(setup: Setup, factors: tuple[float, ...]) -> Setup:
    """Return a setup whose steps take `factors` times as long, one factor for each pool; host and links stay."""
    kinds = tuple(replace(k, tables=_times(k.tables, f)) for k, f in zip(setup.kinds, factors, strict=True))
    return replace(setup, kinds=kinds)


def _times(t: Tables, factor: float) -> Tables:
    return t._replace(axes=t.axes * factor, decode=t.decode * factor, prompt=t.prompt * factor)
