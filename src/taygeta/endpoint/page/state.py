"""What a fleet does now, for a page: its latest step by part of the model and by engine, queue, batch, KV cache."""

from __future__ import annotations

import time
from typing import Any

from taygeta.cost.result import RESOURCES, StepCost
from taygeta.cost.steps import StepModel
from taygeta.endpoint.service import Service
from taygeta.endpoint.synthetic import Synthetic
from taygeta.report.serving import fleet_lines
from taygeta.report.words import short_formats
from taygeta.serving.live import Step
from taygeta.spec.deployment import Batch, Group


class Watch:
    """Prices the latest step of a fleet, once for each step at most and only when somebody looks."""

    def __init__(self, service: Service) -> None:
        self.service = service
        kinds = service.live.setup.kinds
        self._models = [StepModel(kind.pool.deployment, compiled=True) for kind in kinds]
        self._priced: tuple[Step, dict[str, Any]] | None = None
        for model in self._models:  # compiles now what would hold up tokens later
            model.cost(Batch.decode(requests=1, context=1))

    def state(self) -> dict[str, Any]:
        """Return the fleet as JSON. Times are the fleet's, in seconds; kv is a share; speed is null for max.

        made_up: whether the text is synthetic.
        """
        s = self.service
        use, fleet, clock = s.live.use(), s.live.setup.fleet, s.clock
        pools = [(p.replicas * p.deployment.parallelism.chips, p.deployment) for p in fleet.pools]
        lines = [line.removeprefix(f"{pools[0][1].chip.name} x {pools[0][0]}, ") for line in fleet_lines(fleet)]
        return {
            "name": s.names[0],
            "names": list(s.names),
            "chips": " + ".join(f"{count} × {d.chip.name}" for count, d in pools),
            "weights": short_formats(pools[0][1]),
            "lines": [*lines, s.source.said],
            "made_up": isinstance(s.source, Synthetic),
            "speed": None if clock.free else clock.speed,
            "time": s.now(),
            "running": use.running,
            "waiting": use.waiting,
            "kv": use.blocks / use.room if use.room else 0.0,
            "generated": s.metrics.generation_tokens,
            "lag": s.metrics.lag.largest(time.monotonic()),
            "late": s.metrics.lag.late,
            "step": self._step(),
        }

    def _step(self) -> dict[str, Any] | None:
        step = self.service.live.latest_step()
        if step is None:
            return None
        if self._priced is None or self._priced[0] != step:
            self._priced = (step, self._price(step))
        return self._priced[1]

    def _price(self, step: Step) -> dict[str, Any]:
        """Return a step with its modelled parts; what they leave of it is the host and the engine's waiting."""
        pool = int(self.service.live.setup.pool_of[step.replica])
        cost = self._models[pool].cost(batch_of(step))
        parts: dict[str, float] = {}
        for op in cost.ops:
            parts[op.part] = parts.get(op.part, 0.0) + op.seconds
        return {
            "seconds": step.seconds,
            "decodes": step.decodes,
            "context": round(step.context),
            "prompts": len(step.pieces),
            "prompt_tokens": sum(new for new, _ in step.pieces),
            "parts": [{"name": name, "seconds": t} for name, t in sorted(parts.items(), key=lambda item: -item[1])],
            "host": max(0.0, step.seconds - sum(parts.values())),
            "engines": [{"name": name, "seconds": t} for name, t in zip(RESOURCES, _busy(cost), strict=True)],
        }


def batch_of(step: Step) -> Batch:
    """Return the work of the fullest rank of a step."""
    decodes = (Group(step.decodes, 1, round(step.context)),) if step.decodes else ()
    return Batch((*decodes, *(Group(1, new, behind) for new, behind in step.pieces)))


def _busy(cost: StepCost) -> list[float]:
    """Return the seconds that each of RESOURCES works; they overlap, so that they do not add up to the step."""
    return [sum(op.busy[i] for op in cost.ops) for i in range(len(RESOURCES))]
