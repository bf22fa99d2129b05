"""What the steps that a session ran would take on the chip: the timed machine on the very same programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taygeta.base.interval import Interval
from taygeta.cost.predict import Predictor
from taygeta.cost.result import Prediction
from taygeta.machine.fidelity import beside
from taygeta.machine.session import Ran
from taygeta.machine.timed import time_program
from taygeta.machine.timeline import Timeline
from taygeta.spec.deployment import Batch, Deployment, Group

Lists = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class StepPrice:
    """Steps on the chip. seconds: of all of them, timed. modelled: of the same steps by the cost model, an interval.

    parts: seconds (timed along the critical path, modelled) by part of the model; the first add up to `seconds`, the
    second to the nominal of `modelled`. tokens: new tokens of all
    sequences. busy: share of the time in which each engine of the last step worked, mean over the cores. joules: at
    the chip's full power, an upper bound; None where the chip does not state it.
    """

    steps: int
    tokens: int
    seconds: float
    modelled: Interval
    parts: Mapping[str, tuple[float, float]]
    busy: Mapping[str, float]
    joules: float | None


class Pricer:
    """Prices steps of a deployment; programs and batches that come again are looked at once."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._predictor = Predictor(deployment)
        self._modelled: dict[Batch, Prediction] = {}
        self._timed: dict[tuple[int, Lists], Timeline] = {}

    def timed(self, step: Ran) -> Timeline:
        """Return the clocks of a step. Experts take the lists of tokens that the text itself chose."""
        c, key = step.compiled, (id(step.compiled), step.lists)
        if key not in self._timed:
            self._timed[key] = time_program(c.program, c.target, _routing(step.lists), spans=0)
        return self._timed[key]

    def modelled(self, step: Ran) -> Prediction:
        """Return a step by the cost model."""
        batch = Batch((Group(step.compiled.requests, step.compiled.new, step.context),))
        if batch not in self._modelled:
            self._modelled[batch] = self._predictor.predict(batch)
        return self._modelled[batch]

    def price(self, steps: Sequence[Ran]) -> StepPrice:
        """Return what steps take, one after another; at least one."""
        timelines = [self.timed(step) for step in steps]
        models = [self.modelled(step) for step in steps]
        parts = [timeline.parts() for timeline in timelines]
        model_parts = [{name: seconds for name, seconds, _ in m.parts()} for m in models]
        seconds = sum(t.seconds for t in timelines)
        power, last = self.deployment.chip.power, timelines[-1]
        return StepPrice(
            steps=len(steps),
            tokens=sum(s.compiled.requests * s.new for s in steps),
            seconds=seconds,
            modelled=Interval(*(sum(getattr(m.seconds, end) for m in models) for end in ("low", "nominal", "high"))),
            parts=beside(_added(parts), _added(model_parts)),
            busy={e: last.utilisation(e) for e in dict.fromkeys(u.engine for u in last.engines)},
            joules=None if power is None else power * self.deployment.chips * seconds,
        )


def _added(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums of values of the same name."""
    out: dict[str, float] = {}
    for values in found:
        for name, value in values.items():
            out[name] = out.get(name, 0.0) + value
    return out


def _routing(lists: Lists) -> Callable[[str, tuple[int, ...]], Sequence[int]] | None:
    """The lists of a run as the timed machine asks for them: by the turn of the loop over layers."""
    if not lists:
        return None
    rows = [np.asarray(row, dtype=np.int64) for row in lists]
    return lambda table, turns: rows[min(turns[0] if turns else 0, len(rows) - 1)]  # type: ignore[return-value]
