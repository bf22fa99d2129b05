"""End-to-end rows: a serving benchmark at fixed concurrency, simulated request by request.

A row is a deployment, an engine as the benchmark ran it, and a closed loop (taygeta.validate.harness). The simulator
plays the whole run, the burst at its start among it, and the mean TTFT and TPOT over all requests are the answer, as
the tables quote them. Ranges come from the corners of the step's assumptions and the held-out error of steps, for the
TTFT that of first tokens, which queues and benchmarks have a part in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from taygeta.base.errors import DoesNotFitError, InputError, TaygetaError, require
from taygeta.cost.predict import bound_of
from taygeta.cost.service import Load, decode_batch, prefill_batches, prompts_waited, tpot_seconds
from taygeta.cost.steps import StepModel
from taygeta.serving.fast import run_fast
from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.limits import ENDLESS, Limits, kv_bytes, limits
from taygeta.serving.lookup import Tables
from taygeta.serving.outcome import ANSWERED, Outcome
from taygeta.serving.setup import HORIZON, Kind, Setup, decode_steps
from taygeta.serving.surface import tables
from taygeta.serving.traffic import Traffic
from taygeta.spec.deployment import Deployment
from taygeta.spec.engine import Engine
from taygeta.spec.launch import Case, launched, release_of
from taygeta.validate.answers import widen_columns
from taygeta.validate.harness import Harness, harness_of
from taygeta.validate.serving import Deployments, Spread, formats_of, side_of, spread_of
from taygeta.validate.systems import Systems

if TYPE_CHECKING:
    import polars

UNNAMED = (0,)  # release of runs that name none: taken to be older than those that do
NO_WORKERS = "prefill and decode run on workers of their own, and the row does not say on how many."


@dataclass(frozen=True)
class Row:
    """What a row asks for: deployments (one, or one that reads prompts and one that decodes), and how it was run."""

    model: str
    system: str
    engine: str
    spreads: tuple[Spread, ...]
    workers: tuple[int, ...]
    formats: tuple[str, str, str]
    harness: Harness
    release: tuple[int, ...] = ()

    @property
    def recipe(self) -> str:
        """The name of the engine as the row's benchmark runs it."""
        return f"{self.engine}@{self.harness.benchmark}"

    @property
    def load(self) -> Load:
        """The mean request of the run, for the closed form."""
        h = self.harness
        share = 0.9 if h.drawn else 1.0
        return Load(max(1, round(h.isl * share)), max(1, round(h.osl * share)), h.concurrency, not h.drawn)


@dataclass
class Served:
    """A deployment made ready: its step models at the nominal values and at the corners, its tables and memory."""

    deployments: tuple[Deployment, ...]

    @cached_property
    def models(self) -> tuple[StepModel, ...]:
        """Step models at the nominal values, then at the corners."""
        return tuple(StepModel(d, compiled=True) for d in self.deployments)

    @cached_property
    def tables(self) -> dict[tuple[int, int, int], Tables]:
        """Tables by what they reach."""
        return {}

    def kind(self, pool: Pool, row: Row, engine: Engine) -> Kind:
        """Return the replicas of a row under its load's recipe, with tables that reach powers of two, so that rows
        share them.
        """
        d, h = replace(pool.deployment, engine=engine), row.harness
        longest = h.isl + h.osl
        bounds = _limits(d, longest)
        batch = min(bounds.sequence_limit, -(-h.concurrency // d.parallelism.dp))
        tokens = min(max(bounds.token_budget, h.isl), h.isl * batch + batch)
        reach = _room(batch), _room(tokens), _room(longest)
        if reach not in self.tables:
            self.tables[reach] = tables(self.models[0], *reach)
        fixed, token = kv_bytes(d, longest)
        link = d.chip.network or d.chip.link
        rate, latency = (link.bandwidth, link.latency) if link else (1.0, 0.0)
        return Kind(pool, self.tables[reach], bounds, fixed / rate, token / rate, latency)

    def batch(self, load: Load) -> int:
        """Return the requests of a rank in the closed form."""
        return max(1, load.per_rank(self.deployments[0]))

    def spread(self, load: Load) -> tuple[float, float]:
        """Return (fast, slow) TPOT of the corners over the nominal one, by the closed form."""
        times = [tpot_seconds(m, m.deployment, load, self.batch(load)) for m in self.models]
        return min(times) / times[0], max(times) / times[0]

    def floor(self, load: Load) -> tuple[float, str]:
        """Return TPOT on an ideal chip and host (lower bounds of the same steps), and what binds a decode step."""
        d, model, batch = self.deployments[0], self.models[0], self.batch(load)
        decode = model.cost(decode_batch(d, load, batch))
        prompt = sum(model.cost(step).lower for step in prefill_batches(d, load.isl))
        return decode.lower + prompt * prompts_waited(d, load, batch) / load.osl, bound_of(decode)


def _room(size: int) -> int:
    """Return the power of two from `size` on."""
    return 1 << (size - 1).bit_length()


def _limits(d: Deployment, longest: int) -> Limits:
    """Return the limits of a replica; a run that took place had room for its longest request at least."""
    try:
        found = limits(d, longest)
    except DoesNotFitError:
        roomy = replace(d.engine, memory_of="static", memory_fraction=1e6)
        found = limits(replace(d, engine=roomy), longest)
        return found._replace(blocks=ENDLESS)
    needed = -(-longest // found.block_tokens) + found.fixed_blocks
    return found._replace(blocks=ENDLESS) if needed > found.blocks else found


class Runner:
    """Answers rows, sharing what they have in common."""

    def __init__(self, systems: Systems) -> None:
        self._deployments = Deployments(systems)
        self._cases: dict[Any, Case] = {}
        self._served: dict[Any, Served | str] = {}
        self._traffic: dict[Harness, Traffic] = {}

    def times(self, row: Row) -> tuple[np.ndarray, float, str]:
        """Return ((TTFT, TPOT) x (nominal, low, high), the roofline of TPOT, what binds a decode step).

        Raises InputError with the reason why there is no answer.
        """
        found = means(run_fast(self.setup(row)))
        decoding = self._serve(row, row.spreads[-1])
        fast, slow = decoding.spread(row.load)
        d = decoding.deployments[0]
        out = np.empty((2, 3))
        for i, error in enumerate(d.chip.error(kernel, row.engine) for kernel in ("first", "step")):
            nominal = np.array([found[i]])
            low, high = widen_columns(nominal, [nominal * fast, nominal * slow], error)
            out[i] = found[i], low[0], high[0]
        return out, *decoding.floor(row.load)

    def setup(self, row: Row) -> Setup:
        """Return the run of a row, ready to be simulated. Raises InputError with the reason why there is none."""
        sides = [self._serve(row, spread) for spread in row.spreads]
        roles = ("both",) if len(sides) == 1 else ("prefill", "decode")
        pools = [
            Pool(side.deployments[0], workers, role)
            for side, workers, role in zip(sides, row.workers, roles, strict=True)
        ]
        kinds = tuple(
            side.kind(pool, row, self._engine(row, spread))
            for side, pool, spread in zip(sides, pools, row.spreads, strict=True)
        )
        traffic = self._traffic_of(row.harness)
        return Setup(Fleet(tuple(pools)), traffic, kinds, decode_steps(traffic.osl, 0, 0.0, 0), HORIZON)

    def _serve(self, row: Row, spread: Spread) -> Served:
        """Return the deployment of a row before any load: what its step model and memory rest on."""
        key = (row.model, row.system, row.recipe, row.release, spread, row.formats)
        if key not in self._served:
            try:
                engine = launched(row.recipe, self._case(row, spread))
                self._served[key] = Served(self._deployments.build(row.model, row.system, engine, spread, row.formats))
            except TaygetaError as error:
                self._served[key] = str(error)
        found = self._served[key]
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _engine(self, row: Row, spread: Spread) -> Engine:
        """Return the engine as the benchmark launched it for the load of a row."""
        h = row.harness
        case = replace(self._case(row, spread), prompt=h.isl, answer=h.osl, requests=h.concurrency)
        return launched(row.recipe, case)

    def _case(self, row: Row, spread: Spread) -> Case:
        key = (row.model, row.system, row.release, spread, row.formats)
        if key not in self._cases:
            found = self._deployments.case(row.model, row.system, spread, row.formats)
            self._cases[key] = replace(found, release=row.release)
        return self._cases[key]

    def _traffic_of(self, harness: Harness) -> Traffic:
        if harness not in self._traffic:
            self._traffic[harness] = harness.traffic()
        return self._traffic[harness]


def means(o: Outcome) -> tuple[float, float]:
    """Return the mean TTFT and TPOT over the requests of a run."""
    if (o.ended != ANSWERED).any():
        raise InputError("a request of the run does not fit the memory.")
    more = o.setup.traffic.osl > 1
    tpot = ((o.end - o.first)[more] / (o.setup.traffic.osl[more] - 1)).mean() if more.any() else 0.0
    return float((o.first - o.arrival).mean()), float(tpot)


def answer(frame: polars.DataFrame, systems: Systems) -> polars.DataFrame:
    """Return the table with predictions of every row: TTFT and TPOT with ranges, the roofline, what binds, why not."""
    pl = require("polars", "tables", "Scoring")
    runner = Runner(systems)
    count = frame.height
    times = np.full((count, 2, 3), np.nan)
    floors, bounds, refused = np.full(count, np.nan), [""] * count, [""] * count
    for i, values in enumerate(frame.iter_rows(named=True)):
        try:
            times[i], floors[i], bounds[i] = runner.times(row_of(values))
        except TaygetaError as error:
            refused[i] = str(error)
    columns = {
        f"predicted_{what}{end}_s": times[:, i, j]
        for i, what in enumerate(("ttft", "tpot"))
        for j, end in enumerate(("", "_low", "_high"))
    }
    reasons = pl.Series([text or None for text in refused], dtype=pl.String)
    return frame.with_columns(
        *(pl.Series(name, values).fill_nan(None) for name, values in columns.items()),
        roofline_s=pl.Series(floors).fill_nan(None),
        bound=pl.Series(bounds, dtype=pl.String),
        refused=reasons,
        refused_ttft=reasons,
    )


def row_of(values: dict[str, Any]) -> Row:
    """Return what a row asks for. Raises InputError with the reason why it cannot be answered."""
    if values["mode"] == "agg":
        spreads, workers = (spread_of(values),), (1,)
    else:
        sides = [side_of(values, side) for side in ("prefill", "decode")]
        if any(count < 1 for _, count in sides):
            raise InputError(NO_WORKERS)
        spreads, workers = tuple(s for s, _ in sides), tuple(c for _, c in sides)
    in_flight = values["concurrency"]
    if not in_flight:
        in_flight = (values["batch_size"] or 0.0) * spreads[-1].dp
    if in_flight < 1:
        raise InputError("neither concurrency nor batch_size is given.")
    return Row(
        values["model_path"],
        values["system"],
        values["backend"],
        spreads,
        workers,
        formats_of(values),
        harness_of(values, round(in_flight)),
        release_of(version) if (version := values.get("backend_version")) else UNNAMED,
    )
