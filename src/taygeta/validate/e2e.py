"""Rows of e2e: a model served in a closed loop at fixed concurrency. TPOT by the formula of
taygeta.cost.service.

How a row's labels become a deployment is said in `rows_of`; how the benchmarks were run, in its constants.
The time to the first token is a matter of queues, which the formula does not have: it is left without an
answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from taygeta.base.errors import InputError, TaygetaError, require
from taygeta.cost.predict import bound_of
from taygeta.cost.service import Load, decode_batch, prefill_batches, prompts_waited, tpot_seconds
from taygeta.cost.steps import StepModel
from taygeta.graph.memory import MemoryUse, largest_batch, memory
from taygeta.spec.deployment import Deployment
from taygeta.validate.answers import widen_columns
from taygeta.validate.serving import Deployments, Spread, formats_of, spread_of
from taygeta.validate.systems import Systems

if TYPE_CHECKING:
    import polars

NOT_AGGREGATED = "prefill and decode on chips of their own are not modelled."
NO_TTFT = "the time to the first token needs a simulation of the requests."
EQUAL_LENGTHS = ("gap_analysis",)  # sources whose requests all have the nominal lengths
# Input and output lengths of the public InferenceX benchmark: such rows of other sources repeat its runs
# (48 of the 51 rows of gap_analysis with Qwen3.5 have its TTFT and TPOT to 0.1 %).
DRAWN_SCENARIOS = ((1024, 1024), (1024, 8192), (8192, 1024))
# mean of lengths drawn uniformly from 0.8 to 1.0 of the nominal ones (vLLM benchmark_serving, random)
DRAWN_SHARE = 0.9


@dataclass(frozen=True)
class Row:
    """What a row asks for: a deployment, and its load with requests in flight over all ranks."""

    model: str
    system: str
    engine: str
    spread: Spread
    formats: tuple[str, str, str]
    load: Load


class Served:
    """A deployment with its step models at the nominal values and at the corners, shared by the rows that it
    serves.
    """

    def __init__(self, deployments: tuple[Deployment, ...]) -> None:
        self.deployment = deployments[0]
        self.models = tuple((StepModel(d, compiled=True), d) for d in deployments)

    @cached_property
    def use(self) -> MemoryUse:
        """What weights and activations leave for the KV cache."""
        return memory(self.deployment)

    def batch(self, load: Load) -> int:
        """Return the requests that run at once on the fullest rank: what is asked for, or what fits if that
        is less.
        """
        d = self.deployment
        asked = load.per_rank(d)
        room = largest_batch(d, load.isl + load.osl, self.use) // d.parallelism.dp
        return min(asked, room) if room > 0 else asked

    def times(self, load: Load) -> list[float]:
        """Return TPOT at the nominal values, then at the corners."""
        batch = self.batch(load)
        out = []
        for model, d in self.models:
            out.append(tpot_seconds(model, d, load, batch))
        return out

    def floor(self, load: Load) -> tuple[float, str]:
        """Return TPOT on an ideal chip and host (the lower bounds of the same steps), and what binds a decode
        step.
        """
        d, (model, _) = self.deployment, self.models[0]
        batch = self.batch(load)
        decode = model.cost(decode_batch(d, load, batch))
        prompt = sum(model.cost(step).lower for step in prefill_batches(d, load.isl))
        return decode.lower + prompt * prompts_waited(d, load, batch) / load.osl, bound_of(decode)


def answer(frame: polars.DataFrame, systems: Systems) -> polars.DataFrame:
    """Return the table with predictions of every row: TPOT with its range, the roofline, what binds, why not."""
    pl = require("polars", "tables", "Scoring")
    deployments = Deployments(systems)
    served: dict[Any, Served | str] = {}
    count = frame.height
    times = np.full((3, count), np.nan)
    floors, bounds, refused = np.full(count, np.nan), [""] * count, [""] * count
    for i, values in enumerate(frame.iter_rows(named=True)):
        try:
            row = row_of(values)
            key = (row.model, row.system, row.engine, row.spread, row.formats)
            if key not in served:
                served[key] = _serve(deployments, row)
            found = served[key]
            if isinstance(found, str):
                raise InputError(found)
            nominal, *corners = found.times(row.load)
            floors[i], bounds[i] = found.floor(row.load)
            error = found.deployment.chip.constants.get("error.step", 0.0)
            low, high = widen_columns(np.array([nominal]), [np.array([t]) for t in corners], error)
            times[:, i] = nominal, low[0], high[0]
        except TaygetaError as error:
            refused[i] = str(error)
    names = ("predicted_tpot_s", "predicted_tpot_low_s", "predicted_tpot_high_s")
    empty = pl.lit(None, dtype=pl.Float64)
    return frame.with_columns(
        *(pl.Series(name, values).fill_nan(None) for name, values in zip(names, times, strict=True)),
        **{f"predicted_ttft{end}_s": empty for end in ("", "_low", "_high")},
        roofline_s=pl.Series(floors).fill_nan(None),
        bound=pl.Series(bounds, dtype=pl.String),
        refused=pl.Series([text or None for text in refused], dtype=pl.String),
        refused_ttft=pl.Series([text or NO_TTFT for text in refused], dtype=pl.String),
    )


def _serve(deployments: Deployments, row: Row) -> Served | str:
    """Return a deployment made ready, or why it cannot be."""
    try:
        return Served(deployments.build(row.model, row.system, row.engine, row.spread, row.formats))
    except TaygetaError as error:
        return str(error)


def row_of(values: dict[str, Any]) -> Row:
    """Return what a row asks for. Raises InputError with the reason why it cannot be answered."""
    if values["mode"] != "agg":
        raise InputError(NOT_AGGREGATED)
    spread = spread_of(values)
    in_flight = values["concurrency"]
    if not in_flight:
        in_flight = (values["batch_size"] or 0.0) * spread.dp
    if in_flight < 1:
        raise InputError("neither concurrency nor batch_size is given.")
    equal = values["source"] in EQUAL_LENGTHS and (values["isl"], values["osl"]) not in DRAWN_SCENARIOS
    share = 1.0 if equal else DRAWN_SHARE
    isl, osl = (round(values[name] * share) for name in ("isl", "osl"))
    formats = formats_of(values)
    return Row(
        values["model_path"],
        values["system"],
        values["backend"],
        spread,
        formats,
        Load(isl, osl, round(in_flight), equal),
    )
