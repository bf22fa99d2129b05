"""Results for a page: comparisons and simulations as views with their plots, and the catalogue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from taygeta.base.errors import InputError
from taygeta.base.formats import FORMATS
from taygeta.endpoint.beside import MAX_TEXT, check_chip, check_text
from taygeta.report.view import View

RANGES_UP_TO = 500  # requests that are simulated at the fast and the slow end of the steps too
Count = Annotated[int, Field(ge=1, le=1 << 17)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
STYLE = re.compile(r' style="([^"]*)"')


class CompareRequest(BaseModel):
    """The body of a comparison: chips such as "h100:8" at a closed loop."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: Name
    chips: Annotated[list[Name], Field(min_length=1, max_length=6)]
    isl: Count = 1024
    osl: Count = 1024
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 16
    weights: Name | None = None


class SimulateRequest(BaseModel):
    """The body of a simulation: a fleet such as "h100:8,tp=4", and requests at a rate (Poisson)."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    model: Name
    fleet: Name
    isl: Count = 1024
    osl: Annotated[int, Field(ge=1, le=16384)] = 256
    rate: Annotated[float, Field(gt=0.0, le=1e4)] = 1.0
    requests: Annotated[int, Field(ge=1, le=5000)] = 200


def compared(asked: CompareRequest, served: str) -> dict[str, Any]:
    """Return a comparison with its plots. served: the model of the server, whatever its name. Raises InputError."""
    from taygeta import api
    from taygeta.report import lists, plots

    _check_model(asked.model, served)
    for chip in asked.chips:
        check_chip(chip)
    how: api.Options = {"weights": asked.weights} if asked.weights else {}
    found = api.compare(asked.model, asked.chips, asked.isl, asked.osl, asked.concurrency, **how)
    view = lists.comparison_view(asked.model, asked.isl, asked.osl, asked.concurrency, found)
    done = lists.named(found)
    if not done:
        return document(view)
    tpot = [(name, s.tpot) for name, s in done]
    drawn = [
        plots.intervals("TPOT", tpot, "ms per output token, lower is better", lists.MS, "a"),
        plots.speeds(done, "b"),
        *plots.times_of(done, ("c", "d")),
    ]
    return document(view, drawn)


def simulated(asked: SimulateRequest, served: str) -> dict[str, Any]:
    """Return a simulated run with its plots. Raises InputError, DoesNotFitError."""
    from taygeta.explore.fleets import FleetWords, parse_pool
    from taygeta.report import serving_plots as plots
    from taygeta.report.serving import serving_view
    from taygeta.serving.options import TrafficOptions, build_traffic
    from taygeta.serving.simulate import simulate

    _check_model(asked.model, served)
    check_text(asked.fleet)
    fleet = FleetWords(asked.model, (parse_pool(asked.fleet),)).build()
    context = fleet.pools[0].deployment.model.max_context
    if asked.isl + asked.osl > context:
        raise InputError(f"isl and osl must be {context:,} tokens together at most, not {asked.isl + asked.osl:,}.")
    options = TrafficOptions(isl=asked.isl, osl=asked.osl, rate=asked.rate, requests=asked.requests)
    report = simulate(fleet, build_traffic(options), ranges=asked.requests <= RANGES_UP_TO)
    if not report.answered:
        return document(serving_view(report))
    o = report.outcome
    drawn = [plots.distributions(o, "a"), plots.timeline(o, "b"), plots.first_tokens(o, "c")]
    return document(serving_view(report), drawn)


@lru_cache(maxsize=1)
def choices() -> dict[str, Any]:
    """Return what can be chosen: the chips and the models of the catalogue, and formats of weights."""
    from taygeta.frontend.catalog import model_names
    from taygeta.spec.catalog import chip_names, sheet

    chips = [{"id": name, "name": sheet(name).texts.get("name", name)} for name in chip_names()]
    return {"chips": chips, "models": list(model_names()), "formats": list(FORMATS)}


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Any]:
    """Return the chips and the models, each as a view with the id behind each row."""
    from taygeta.frontend.catalog import model, model_names
    from taygeta.report.catalogue import chips_view, models_view
    from taygeta.spec.catalog import chip_names, sheet
    from taygeta.spec.chip import build_chip

    sheets = [sheet(name) for name in chip_names()]
    chips = chips_view([(s, build_chip(s)) for s in sheets])
    models = models_view([model(name) for name in model_names()])
    return {
        "chips": document(chips) | {"ids": list(chip_names())},
        "models": document(models) | {"ids": list(model_names())},
    }


def chip_sheet(name: str) -> dict[str, Any] | None:
    """Return a chip with the source of every number; None where the catalogue has none of that name."""
    from taygeta.report.sheets import sheet_view
    from taygeta.spec.catalog import chip_names, sheet

    return document(sheet_view(sheet(name))) if name in chip_names() else None


def model_sheet(name: str) -> dict[str, Any] | None:
    """Return a model with its layers and what is guessed of it; None where the catalogue has none of that name."""
    from taygeta.frontend.catalog import model, model_names
    from taygeta.report.sheets import model_view

    if name not in model_names():
        return None
    found = model(name)
    return document(model_view(found)) | {"source": found.source}


def document(view: View, pictures: Sequence[Any] = ()) -> dict[str, Any]:
    """Return a view with its plots as JSON."""
    drawn = [{"title": p.title, "svg": plain_svg(p.svg), "alt": p.alt} for p in pictures]
    return {"view": asdict(view), "pictures": drawn}


def plain_svg(svg: str) -> str:
    """Return a plot whose styles are attributes: a page that allows no inline styles shows it all the same.

    The one rule of its style sheet, round joins and butt ends, is an attribute of the whole.
    """
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    return STYLE.sub(_attributes, svg)


def _attributes(found: re.Match[str]) -> str:
    pairs = (part.split(":", 1) for part in found[1].split(";") if ":" in part)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs)


def _check_model(name: str, served: str) -> None:
    from taygeta.frontend.catalog import model_names

    if name not in (served, *model_names()):
        raise InputError(f"There is no model {name[:100]!r} in the catalogue.")
