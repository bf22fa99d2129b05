"""StepModel: (Batches) -> StepCost. A deployment lowered to rows of numbers once, then evaluated for any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from taygeta.base.errors import InputError
from taygeta.cost.lower import lower, peak_mode
from taygeta.cost.result import OpCost, StepCost
from taygeta.cost.silicon import silicon
from taygeta.cost.step import OUTPUTS, step
from taygeta.graph.ops import BATCH_AXES, AttentionShape, Graph
from taygeta.graph.partition import stages
from taygeta.spec.chip import Chip
from taygeta.spec.deployment import Batch, Deployment

SPREAD_FROM = 16  # a group's new tokens are spread over context ranks when each gets at least this many


class StepTimes(Protocol):
    """All that a closed loop needs of a step model."""

    def seconds(self, batch: Batch | Sequence[Batch]) -> tuple[float, float]:
        """Return (latency, interval) of a step."""
        ...


class StepModel:
    """The cost of a step of one deployment.

    compiled: run the kernels through Numba. graphs: the stages' graphs, where the caller has them already.
    """

    def __init__(self, deployment: Deployment, compiled: bool = False, graphs: tuple[Graph, ...] | None = None) -> None:
        self.deployment = deployment
        self.graphs = graphs or stages(deployment)
        self.silicon = silicon(deployment.chip, deployment.engine, deployment.formats.experts)
        self.tables = [lower(graph, deployment) for graph in self.graphs]
        self._ops = [[(op, repeats) for op, repeats in graph.ops()] for graph in self.graphs]
        self._expand_from = max(
            (op.detail.expand_from for ops in self._ops for op, _ in ops if isinstance(op.detail, AttentionShape)),
            default=0,
        )
        self._step = step
        self.remembered: dict[tuple[int, Batch | tuple[Batch, ...]], np.ndarray] = {}  # filled by PartialModel only
        self._outs = [np.zeros((len(table), OUTPUTS)) for table in self.tables]
        if compiled:
            from taygeta.cost.compiled import compiled as twin

            self._step = twin(step)

    def seconds(self, batch: Batch | Sequence[Batch]) -> tuple[float, float]:
        """Return (latency, interval) of a step: through all stages, and between two steps' starts."""
        times = [float(self._run(stage, batch)[:, 0].sum()) for stage in range(len(self.tables))]
        return sum(times), max(times)

    def has(self, kinds: Sequence[float]) -> bool:
        """Return whether any row is of one of these kinds."""
        return any(bool(np.isin(table[:, 0], kinds).any()) for table in self.tables)

    def row_seconds(self, stage: int, batch: Batch | Sequence[Batch]) -> np.ndarray:
        """Return the seconds of every row of a stage."""
        return self._run(stage, batch)[:, 0].copy()

    def subset_seconds(self, stage: int, batch: Batch | Sequence[Batch], rows: np.ndarray) -> float:
        """Return the seconds of some rows of a stage, evaluating only these."""
        bound, groups = self._bind(batch)
        out = np.zeros((int(rows.sum()), OUTPUTS))
        self._step(self.tables[stage][rows], bound, groups, self.silicon, out)
        return float(out[:, 0].sum())

    def cost(self, batch: Batch | Sequence[Batch]) -> StepCost:
        """Return the step with its operations and bounds."""
        times: list[float] = []
        ops: list[OpCost] = []
        lower_bound, upper = 0.0, 0.0
        for stage in range(len(self.tables)):
            out = self._run(stage, batch)
            found = [
                _op_cost(op, repeats, row) for (op, repeats), row in zip(self._ops[stage], out.tolist(), strict=True)
            ]
            times.append(float(out[:, 0].sum()))
            lower_bound += self._lower(stage, out, self.deployment.chip)
            upper += sum(max(op.seconds, sum(op.busy)) for op in found)
            ops += found
        return StepCost(sum(times), max(times), lower_bound, upper, tuple(_merged(ops)))

    def peak_of(self, cost: StepCost) -> float:
        """Return the peak of the compute mode that most of a step's FLOP run in."""
        modes: dict[str, float] = {}
        for op, _ in (pair for ops in self._ops for pair in ops):
            mode = peak_mode(op, self.deployment)
            if mode:
                flop = sum(c.flop for c in cost.ops if c.name == op.name and c.part == op.part)
                modes[mode] = modes.get(mode, 0.0) + flop
        return self.deployment.chip.peaks[max(modes, key=modes.__getitem__)] if modes else 1.0

    def lower(self, batch: Batch | Sequence[Batch], chip: Chip | None = None) -> float:
        """Return the lower bound of a step's latency. chip: at the full rates of this one, not of the deployment's."""
        rated = chip or self.deployment.chip
        return sum(self._lower(stage, self._run(stage, batch), rated) for stage in range(len(self.tables)))

    def _lower(self, stage: int, out: np.ndarray, chip: Chip) -> float:
        """The largest per-resource total of compulsory work, each resource at its full rate."""
        peaks = np.array(
            [chip.peaks[peak_mode(op, self.deployment) or next(iter(chip.peaks))] for op, _ in self._ops[stage]]
        )
        link = max((t.bandwidth for t in (chip.link, chip.network) if t), default=1.0)
        tensor = float((out[:, 7] / peaks).sum())
        return max(tensor, float(out[:, 8].sum()) / chip.hbm.bandwidth, float(out[:, 9].sum()) / link)

    def _run(self, stage: int, batch: Batch | Sequence[Batch]) -> np.ndarray:
        bound, groups = self._bind(batch)
        out = self._outs[stage]
        self._step(self.tables[stage], bound, groups, self.silicon, out)
        return out

    def _bind(self, batch: Batch | Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Sizes of the batch axes and the groups of the fullest rank; a single batch is every attention-DP rank's."""
        p = self.deployment.parallelism
        if isinstance(batch, Batch):
            mine, routed = batch, batch.tokens * p.dp
        else:
            if len(batch) != p.dp:
                raise InputError(
                    f"A step takes one batch, or one for each of {p.dp} attention-DP ranks, not {len(batch)}."
                )
            mine, routed = max(batch, key=lambda b: b.tokens), sum(b.tokens for b in batch)
        spread = [g.new_tokens >= SPREAD_FROM * p.cp for g in mine.groups]
        shares = [-(-g.new_tokens // p.cp) if far else g.new_tokens for g, far in zip(mine.groups, spread, strict=True)]
        tokens = sum(g.count * share for g, share in zip(mine.groups, shares, strict=True))
        absorbed = expanded = merged = gathered = 0
        for g, share, far in zip(mine.groups, shares, spread, strict=True):
            if g.new_tokens < self._expand_from:
                absorbed += g.count * share
            else:
                expanded += g.count * -(-(g.new_tokens + g.context) // p.cp)
            if far:
                gathered += g.count * share
            else:
                merged += g.count * share
        sizes = {
            "tokens": tokens,
            "requests": mine.requests,
            "absorbed": absorbed,
            "expanded": expanded,
            "routed": routed,
        }
        sizes |= {"merged": merged, "gathered": gathered}
        groups = np.array(
            [(g.count, g.new_tokens, g.context) for g in mine.groups if g.count * g.new_tokens], dtype=float
        )
        return np.array([sizes[axis] for axis in BATCH_AXES], dtype=float), groups.reshape(-1, 3)


def joined(steps: Sequence[StepCost]) -> StepCost:
    """Return several steps in a row as one; there is one at least."""
    return StepCost(
        sum(s.latency for s in steps),
        sum(s.interval for s in steps),
        sum(s.lower for s in steps),
        sum(s.upper for s in steps),
        tuple(_merged([op for s in steps for op in s.ops])),
    )


class PartialModel:
    """A step model that differs from another in rows of some kinds only, and evaluates just these.

    kinds: None for all of them. The other's rows are remembered for the batches that corners share with it.
    """

    def __init__(self, base: StepModel, moved: StepModel, kinds: Sequence[float] | None) -> None:
        self._base, self._moved = base, moved
        self._rows = None if kinds is None else [np.isin(table[:, 0], kinds) for table in moved.tables]

    def seconds(self, batch: Batch | Sequence[Batch]) -> tuple[float, float]:
        """Return (latency, interval) of a step."""
        if self._rows is None:
            return self._moved.seconds(batch)
        times = []
        for stage, rows in enumerate(self._rows):
            key = (stage, batch if isinstance(batch, Batch) else tuple(batch))
            if key not in self._base.remembered:
                self._base.remembered[key] = self._base.row_seconds(stage, batch)
            rest = self._base.remembered[key][~rows]
            times.append(float(rest.sum()) + self._moved.subset_seconds(stage, batch, rows))
        return sum(times), max(times)


def _op_cost(op, repeats: int, row: list[float]) -> OpCost:
    return OpCost(op.name, op.part, op.kind, repeats, row[0], tuple(row[1:7]), row[7], row[8], row[9])


def _merged(ops: list[OpCost]) -> list[OpCost]:
    """Operations of the same name and part as one, in order of first occurrence."""
    out: dict[tuple[str, str], OpCost] = {}
    for op in ops:
        key = (op.part, op.name)
        if key not in out:
            out[key] = op
            continue
        old = out[key]
        busy = tuple(a + b for a, b in zip(old.busy, op.busy, strict=True))
        out[key] = OpCost(
            op.name, op.part, op.kind, old.repeats + op.repeats, old.seconds + op.seconds, busy,
            old.flop + op.flop, old.hbm_bytes + op.hbm_bytes, old.link_bytes + op.link_bytes,
        )  # fmt: skip
    return list(out.values())
