"""Predictions: one step of a deployment, with its interval, its bounds and the reason for it.

The low end of an interval is never below the step's lower bound at the fast corner: compulsory work at full rates, all
that is assumed of chip and model at its better end together. The nominal value is as modelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from taygeta.base.interval import Interval, widen
from taygeta.cost import step
from taygeta.cost.result import RESOURCES, Prediction, StepCost
from taygeta.cost.steps import PartialModel, StepModel, StepTimes, joined
from taygeta.spec.deployment import Batch, Corner, Deployment

# The kinds of rows that a group of calibration constants moves; other groups move every row.
_KINDS = {
    "matmul": (step.MATMUL,),
    "quantise": (step.MATMUL,),
    "vector": (step.VECTOR,),
    "attention": (step.ATTENTION,),
    "scan": (step.SCAN,),
    "experts": (step.EXPERTS,),
    "collective": (step.COLLECTIVE,),
}


class Predictor:
    """A deployment made ready to predict: its step model at the nominal values and at the corners of its assumptions.

    compiled: run the kernels through Numba; worth it from some hundred steps on. corners: without them intervals hold
    the residuals only.
    """

    def __init__(self, deployment: Deployment, compiled: bool = False, corners: bool = True) -> None:
        self.deployment = deployment
        self.nominal = StepModel(deployment, compiled)
        found = deployment.corners if corners else ()
        self.corner_models: tuple[tuple[str, StepTimes], ...] = tuple(
            (c.group, self._corner(c, compiled)) for c in found if c.group == "model" or self._moves(c.group)
        )
        fast = {c.group: c for c in found if c.side == "fast"}
        self._fast_chip = fast["hardware"].chip if "hardware" in fast else deployment.chip
        self._fast_model = self.nominal
        if "model" in fast:
            self._fast_model = StepModel(deployment.at(fast["model"]), compiled)

    def _moves(self, group: str) -> bool:
        return group != "error" and (group not in _KINDS or self.nominal.has(_KINDS[group]))

    def _corner(self, corner: Corner, compiled: bool) -> StepTimes:
        moved = self.deployment.at(corner)
        if corner.group == "model":
            return StepModel(moved, compiled)
        return PartialModel(self.nominal, StepModel(moved, compiled, self.nominal.graphs), _KINDS.get(corner.group))

    def predict(self, batch: Batch | Sequence[Batch]) -> Prediction:
        """Return the prediction of one step. A single batch is the work of each attention-DP rank."""
        cost = self.nominal.cost(batch)
        return self._prediction(cost, batch, self.interval(cost.latency, batch))

    def predict_all(self, batches: Sequence[Batch]) -> Prediction:
        """Return several steps in a row as one: the chunks of a prompt."""
        parts = [self.predict(batch) for batch in batches]
        if len(parts) == 1:
            return parts[0]
        total = joined([self.nominal.cost(batch) for batch in batches])
        seconds = Interval(*(sum(getattr(p.seconds, end) for p in parts) for end in ("low", "nominal", "high")))
        return self._prediction(total, batches[0], seconds)

    def _prediction(self, cost: StepCost, batch: Batch | Sequence[Batch], seconds: Interval) -> Prediction:
        first = batch if isinstance(batch, Batch) else batch[0]
        flop, moved, sent = (sum(getattr(op, name) for op in cost.ops) for name in ("flop", "hbm_bytes", "link_bytes"))
        return Prediction(
            deployment=self.deployment,
            batch=first,
            seconds=seconds,
            interval=cost.interval,
            lower=cost.lower,
            upper=cost.upper,
            bound=bound_of(cost),
            mfu=flop / (self.nominal.peak_of(cost) * cost.latency),
            mbu=moved / (self.deployment.chip.hbm.bandwidth * cost.latency),
            intensity=flop / moved if moved else math.inf,
            flop=flop,
            hbm_bytes=moved,
            link_bytes=sent,
            ops=cost.ops,
        )

    def interval(self, nominal: float, batch: Batch | Sequence[Batch]) -> Interval:
        """Return a step's time with the range of its assumptions and of the model's own held-out error."""
        times = [(group, model.seconds(batch)[0]) for group, model in self.corner_models]
        error = self.deployment.chip.error("step", self.deployment.engine.framework)
        return widen(nominal, times, error, self.floor(batch))

    def floor(self, batch: Batch | Sequence[Batch]) -> float:
        """Return the lower bound of a step at the fast corner: all that is assumed at its better end together.

        Of the assumptions only those about hardware move full rates, and those about the model what has to be done.
        """
        return self._fast_model.lower(batch, self._fast_chip)


def predict(deployment: Deployment, batch: Batch | Sequence[Batch]) -> Prediction:
    """Return the prediction of one step of a deployment. See Predictor for many steps of one deployment."""
    return Predictor(deployment).predict(batch)


def bound_of(cost: StepCost) -> str:
    """Return the resource that a step spends most time on."""
    sums = [sum(op.busy[i] for op in cost.ops) for i in range(len(RESOURCES))]
    return RESOURCES[max(range(len(RESOURCES)), key=sums.__getitem__)]
