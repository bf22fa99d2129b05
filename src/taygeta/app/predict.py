"""taygeta predict: one deployment, as a closed loop or as a single step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taygeta.app.options import (
    ChipName,
    Concurrency,
    EngineSettings,
    Html,
    Isl,
    Json,
    ModelName,
    Options,
    Osl,
    Price,
    deployment_options,
)
from taygeta.app.output import check_page, emit, write_page
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.report.assumptions import Assumption
    from taygeta.spec.deployment import Batch, Deployment


class Step(StrEnum):
    """A single step instead of the closed loop."""

    decode = "decode"
    prefill = "prefill"


StepOption = Annotated[
    Step | None,
    typer.Option(
        help="Predict one step: a decode step in the middle of the answers, or the prefill of one prompt."
    ),
]


class Fidelity(StrEnum):
    """How a step is predicted."""

    modelled = "modelled"
    timed = "timed"


FidelityOption = Annotated[
    Fidelity,
    typer.Option(
        help="modelled: the cost model, scored on silicon. timed: the step's program on the chip's engines, clock by"
        " clock, for chips with tiles and software-managed memory."
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write the timed step's trace for ui.perfetto.dev to this file."),
]
SPANS = 200_000


@deployment_options
def predict(
    model: ModelName,
    how: Options,
    chip: ChipName = "h100",
    isl: Isl = 1024,
    osl: Osl = 1024,
    concurrency: Concurrency = 16,
    step: StepOption = None,
    fidelity: FidelityOption = Fidelity.modelled,
    trace: TraceOption = None,
    price: Price = None,
    engine_set: EngineSettings = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Predict how fast a model runs on a chip, and where the time goes.

    Example: taygeta predict openai/gpt-oss-120b --chip maia-100:4 --isl 1024 --osl 1024 --concurrency 64
    """
    from taygeta import api
    from taygeta.report.assumptions import assumptions
    from taygeta.report.json import assumptions_json, to_json
    from taygeta.report.service import service_view, step_view

    check_page(html)
    d = _set(api.deploy(model, chip, **how), engine_set or ())
    if fidelity is Fidelity.timed:
        _timed(d, (isl, osl, concurrency), step or Step.decode, trace, as_json, html)
        return
    if trace is not None:
        raise InputError("--trace draws the engines of the timed fidelity: add --fidelity timed.")
    found = assumptions(api.recipe(model, chip, **how).sheet(), d.model)
    if price:
        found = tuple(a for a in found if not a.field.startswith("price."))
    if step is None:
        s = api.serve_rate(d, isl, osl, concurrency, price)
        emit(
            lambda: service_view(s, found),
            lambda: {**to_json(s), "assumptions": assumptions_json(found)},
            as_json,
        )
        write_page(html, lambda: _service_page(s, found))
    else:
        p = api.predict(d, _batch(d, step, isl, osl, concurrency))
        emit(
            lambda: step_view(p, found),
            lambda: {**to_json(p), "assumptions": assumptions_json(found)},
            as_json,
        )
        write_page(html, lambda: _step_page(p, found))


def _set(d: Deployment, texts: Sequence[str]) -> Deployment:
    """The deployment with settings of its engine. Raises InputError."""
    from taygeta.app.serving_options import engine_set
    from taygeta.explore.fleets import engine_settings

    return replace(d, engine=replace(d.engine, **engine_settings(engine_set(texts)))) if texts else d


def _timed(
    d: Deployment, load: tuple[int, int, int], step: Step, trace: Path | None, as_json: bool, html: Path | None
) -> None:
    """One step at the timed fidelity."""
    import json

    from taygeta.base.files import replacing
    from taygeta.machine.fidelity import timed_step
    from taygeta.machine.timeline import perfetto
    from taygeta.report.timed import timed_json, timed_view

    if html is not None:
        raise InputError("--html draws the modelled fidelity: leave one of --html and --fidelity timed out.")
    found = timed_step(d, _batch(d, step, *load), SPANS if trace else 0)
    if trace is not None:
        with replacing(trace) as path:
            path.write_text(json.dumps(perfetto(found.timeline)), encoding="utf-8")
    name = "a decode step" if step is Step.decode else "the prefill of a prompt"
    emit(lambda: timed_view(name, found), lambda: timed_json(found), as_json)


def _batch(d: Deployment, step: Step, isl: int, osl: int, concurrency: int) -> Batch:
    """The batch of the closed loop: of one rank in the middle of its answers, or the start of a prompt."""
    from taygeta.cost.service import Load, decode_batch, prefill_batches

    load = Load(isl, osl, concurrency)
    return prefill_batches(d, isl)[0] if step is Step.prefill else decode_batch(d, load, load.per_rank(d))


def _service_page(s: object, found: tuple[Assumption, ...]) -> str:
    from taygeta.report.pages import service_page

    return service_page(s, found)  # type: ignore[arg-type]


def _step_page(p: object, found: tuple[Assumption, ...]) -> str:
    from taygeta.report.pages import step_page

    return step_page(p, found)  # type: ignore[arg-type]
