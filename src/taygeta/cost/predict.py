"""Predictions: one step of a deployment, with its interval, its bounds and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from taygeta.base.interval import Interval, widen
from taygeta.cost.result import RESOURCES, OpCost, Prediction, StepCost
from taygeta.cost.steps import StepModel
from taygeta.spec.deployment import Batch, Deployment

CORNERS = ("fast", "slow")


class Predictor:
    """A deployment made ready to predict: its step model at the nominal values and at the corners of its assumptions.

    compiled: run the kernels through Numba; worth it from some hundred steps on. corners: without them intervals hold
    the residuals only.
    """

    def __init__(self, deployment: Deployment, compiled: bool = False, corners: bool = True) -> None:
        self.deployment = deployment
        self.nominal = StepModel(deployment, compiled)
        self.corner_models = (
            tuple(StepModel(deployment.at(c), compiled) for c in CORNERS) if corners and deployment.corners else ()
        )

    def predict(self, batch: Batch | Sequence[Batch]) -> Prediction:
        """Return the prediction of one step. A single batch is the work of each attention-DP rank."""
        cost = self.nominal.cost(batch)
        first = batch if isinstance(batch, Batch) else batch[0]
        flop, moved, sent = (sum(getattr(op, name) for op in cost.ops) for name in ("flop", "hbm_bytes", "link_bytes"))
        chip = self.deployment.chip
        peak = self.nominal.peak_of(cost)
        return Prediction(
            deployment=self.deployment,
            batch=first,
            seconds=self.interval(cost.latency, batch),
            interval=cost.interval,
            lower=cost.lower,
            upper=cost.upper,
            bound=_bound(cost.ops),
            mfu=flop / (peak * cost.latency),
            mbu=moved / (chip.hbm.bandwidth * cost.latency),
            intensity=flop / moved if moved else math.inf,
            flop=flop,
            hbm_bytes=moved,
            link_bytes=sent,
            ops=cost.ops,
        )

    def interval(self, nominal: float, batch: Batch | Sequence[Batch]) -> Interval:
        """Return a step's time with the range of its assumptions and of the model's own held-out error."""
        times = [model.seconds(batch)[0] for model in self.corner_models]
        return widen(nominal, times, self.deployment.chip.constants.get("error.step", 0.0))


def predict(deployment: Deployment, batch: Batch | Sequence[Batch]) -> Prediction:
    """Return the prediction of one step of a deployment. See Predictor for many steps of one deployment."""
    return Predictor(deployment).predict(batch)


def _bound(ops: tuple[OpCost, ...]) -> str:
    sums = [sum(op.busy[i] for op in ops) for i in range(len(RESOURCES))]
    return RESOURCES[max(range(len(RESOURCES)), key=sums.__getitem__)]


def bound_of(cost: StepCost) -> str:
    """Return the resource that a step spends most time on."""
    return _bound(cost.ops)
