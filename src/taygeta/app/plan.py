"""taygeta plan: the best deployment of a chip under limits, and the fewest chips that hold an SLO on a traffic."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import (
    EngineSettings,
    Html,
    Json,
    ModelName,
    Options,
    Price,
    deployment_options,
    split_chips,
)
from taygeta.app.output import NOTHING_FOUND, check_page, emit, progress, write_page
from taygeta.app.serving_options import TRAFFIC, bundled, engine_set, traffic_options
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.explore.emit import Launch
    from taygeta.explore.plan import Plan
    from taygeta.explore.slo import SloPlan
    from taygeta.spec.deployment import Deployment

TOKENS = 1024  # of prompt and answer where nothing says otherwise
SHARE = 0.99
_MEANS_TRAFFIC = ("trace", "workload", "rate", "arrivals", "concurrency")
_ONLY_TRAFFIC = ("lengths", "requests", "scale", "turns", "think", "system", "sort", "unit", "block")

Chip = Annotated[
    str | None,
    typer.Option(
        "--chip",
        metavar="NAME[:COUNT]",
        help="A chip of the catalogue or a .toml file, and how many at most; by default h100:8, under traffic h100.",
        show_default=False,
    ),
]
Chips = Annotated[
    str | None,
    typer.Option(metavar="A[:N],B[:N]", help="Chips to choose from under traffic, instead of --chip."),
]
TpotLimit = Annotated[str | None, typer.Option(metavar="TIME", help="Longest time per output token, such as 50ms.")]
PrefillLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Longest prefill of one prompt, such as 2s; without traffic.")
]
TtftLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Longest time to the first token, such as 1s; under traffic.")
]
Share = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Requests that must keep both limits, by default 99%.")
]
Tune = Annotated[bool, typer.Option("--tune/--no-tune", help="Search scheduler settings too.", show_default=False)]
Emit = Annotated[
    str | None,
    typer.Option("--emit", metavar="ENGINE", help="Also print how vllm, sglang or trtllm is started for it."),
]


@deployment_options
@bundled("asked", TRAFFIC)
def plan(
    model: ModelName,
    how: Options,
    asked: Mapping[str, Any],
    chip: Chip = None,
    chips: Chips = None,
    ttft: TtftLimit = None,
    tpot: TpotLimit = None,
    share: Share = None,
    prefill: PrefillLimit = None,
    engine_settings: EngineSettings = None,
    tune: Tune = True,
    price: Price = None,
    launch: Emit = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Search for the best deployment under limits.

    Without traffic it is the parallelism and the number of requests with the most tokens per second, in closed form.
    Under traffic (a trace, a workload, a rate) it is the fewest chips that keep TTFT and TPOT, by simulation.
    Exits with 3 where nothing that was tried keeps the limits.

    Example: taygeta plan meta-llama/Llama-3.1-8B --chip h100 --workload chat --rate 40 --ttft 1s --tpot 30ms
    """
    check_page(html)
    if launch is not None:
        _check_launch(launch, how, engine_settings or [])
    if any(asked[name] is not None for name in _MEANS_TRAFFIC):
        if prefill is not None:
            raise InputError("--prefill has no meaning under traffic: --ttft is the time to the first token.")
        names = split_chips(chips) if chips else [chip or "h100"]
        if chips and chip:
            raise InputError("--chip and --chips exclude each other: put all chips into --chips.")
        goal = _Goal(_time(ttft, "--ttft"), _time(tpot, "--tpot"), SHARE if share is None else _share(share))
        search = _Search(names, engine_settings or [], tune, price)
        _under_traffic(model, how, asked, goal, search, _Output(launch, as_json, html))
        return
    alone = {"ttft": ttft, "share": share, "chips": chips, "engine-set": engine_settings}
    alone |= {name: asked[name] for name in _ONLY_TRAFFIC if asked[name]}
    for name, value in alone.items():
        if value is not None:
            raise InputError(f"--{name} needs traffic: give a --trace, a --workload, or a --rate with --isl and --osl.")
    _closed_form(model, how, asked, chip or "h100:8", (tpot, prefill), price, _Output(launch, as_json, html))


@dataclass(frozen=True)
class _Goal:
    """What a plan under traffic holds: limits in seconds, and the share of requests that keep both."""

    ttft: float | None
    tpot: float | None
    share: float


@dataclass(frozen=True)
class _Search:
    """What a plan under traffic may choose from."""

    chips: list[str]
    fixed: list[str]
    tune: bool
    price: str | None


@dataclass(frozen=True)
class _Output:
    """How a plan is said. launch: the engine whose command is printed too."""

    launch: str | None
    as_json: bool
    html: Path | None


def _closed_form(
    model: str,
    how: Options,
    asked: Mapping[str, Any],
    chip: str,
    limits: tuple[str | None, str | None],
    price: str | None,
    out: _Output,
) -> None:
    from taygeta import api
    from taygeta.report.json import to_json
    from taygeta.report.lists import plan_view

    tpot, prefill = limits
    isl, osl = (TOKENS if asked[name] is None else asked[name] for name in ("isl", "osl"))
    longest, first = _time(tpot, "--tpot"), _time(prefill, "--prefill")
    with progress("searching") as advance:
        found = api.plan(model, chip, isl, osl, longest, first, price, advance, **how)
    launch = _launch(out.launch, found.best.deployment if found.best else None, isl + osl)
    goal = _goal(isl, osl, tpot, prefill)
    emit(lambda: plan_view(model, chip, goal, found), lambda: _with_launch(to_json(found), launch), out.as_json)
    _print(launch, out.as_json)
    if out.html:
        _plan_page(out.html, model, chip, goal, found)
    _end(found)


def _plan_page(html: Path, model: str, chip: str, goal: str, found: Plan) -> None:
    from taygeta.report.pages import plan_page

    write_page(html, lambda: plan_page(model, chip, goal, found))


def _under_traffic(
    model: str, how: Options, asked: Mapping[str, Any], goal: _Goal, search: _Search, out: _Output
) -> None:
    from taygeta import api
    from taygeta.explore.fleets import engine_settings
    from taygeta.explore.slo import plan_slo
    from taygeta.report.slo import slo_json, slo_view
    from taygeta.serving.fast import compiled_before
    from taygeta.serving.options import build_traffic

    options = traffic_options(asked)
    settings = engine_settings(engine_set(search.fixed))
    first = api.recipe(model, search.chips[0], **how)
    traffic = build_traffic(options)
    with progress("simulating", not compiled_before()) as advance:
        found = plan_slo(
            [replace(first, on=chip) for chip in search.chips],
            traffic,
            goal.ttft,
            goal.tpot,
            goal.share,
            settings=settings,
            price=api.price_of(search.price),
            seed=options.seed,
            tune=search.tune,
            progress=advance,
        )
    longest = int((traffic.isl + traffic.osl).max())
    launch = _launch(out.launch, found.best.deployment if found.best else None, longest)
    emit(lambda: slo_view(found), lambda: slo_json(found, launch), out.as_json)
    _print(launch, out.as_json)
    if out.html:
        _slo_page(out.html, found)
    _end(found)


def _end(found: Plan | SloPlan) -> None:
    """Exit with a code of its own where nothing keeps the limits."""
    if found.best is None:
        raise typer.Exit(NOTHING_FOUND)


def _slo_page(html: Path, found: SloPlan) -> None:
    from taygeta.report.slo_page import slo_page

    write_page(html, lambda: slo_page(found))


def _launch(target: str | None, best: Deployment | None, longest: int) -> Launch | None:
    """How the best deployment is started; None where it was not asked for, or there is none."""
    if target is None or best is None:
        return None
    from taygeta.explore import emit as module

    return module.emit(best, target, longest)


def _check_launch(target: str, how: Mapping[str, Any], fixed: list[str]) -> None:
    """Refuse what cannot be started before the search, whose result would be lost."""
    from taygeta.explore.emit import TARGETS, check_memory
    from taygeta.explore.fleets import engine_settings
    from taygeta.spec.engine import engine

    if target not in TARGETS:
        raise InputError(f"--emit takes {', '.join(TARGETS[:-1])} or {TARGETS[-1]}, not {target!r}.")
    check_memory(replace(engine(how["engine"]), **engine_settings(engine_set(fixed))), target)


def _with_launch(document: dict[str, Any], launch: Launch | None) -> dict[str, Any]:
    if launch is None:
        return document
    from taygeta.report.slo import launch_json

    return {**document, "launch": launch_json(launch)}


def _print(launch: Launch | None, as_json: bool) -> None:
    if launch is not None and not as_json:
        sys.stdout.write(launch.text() + "\n")


def _time(text: str | None, option: str) -> float | None:
    from taygeta.base.units import SECONDS, parse

    return parse(text, SECONDS, option) if text else None


def _share(text: str) -> float:
    """A share from "99%" or "0.99"."""
    wrong = InputError(f"--share takes a share such as 99% or 0.99, not {text!r}.")
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / 100.0 if percent else float(number)
    except ValueError:
        raise wrong from None
    if rest.strip() or not 0.0 < value <= 1.0:
        raise wrong
    return value


def _goal(isl: int, osl: int, tpot: str | None, prefill: str | None) -> str:
    limits = [f"{name} at most {text}" for name, text in (("TPOT", tpot), ("prefill", prefill)) if text]
    return f"isl {isl:,}, osl {osl:,}; most tokens/s" + (f" with {' and '.join(limits)}" if limits else "")
