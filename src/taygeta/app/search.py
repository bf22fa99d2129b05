"""taygeta compare and taygeta plan: the best deployment of each chip, and of one chip under limits."""

from __future__ import annotations

from typing import Annotated

import typer

from taygeta.app.options import (
    ChipName,
    Concurrency,
    Html,
    Isl,
    Json,
    ModelName,
    Options,
    Osl,
    Price,
    deployment_options,
    match_prices,
    split_chips,
)
from taygeta.app.output import check_page, emit, progress, write_page

Chips = Annotated[
    str,
    typer.Option(
        metavar="A:N,B:N", help="Chips and how many of each, with commas between them.", show_default=False
    ),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="CHIP=PRICE",
        help="Price of a chip-hour such as 'h100:8=2.50 $/h'; may be repeated.",
        show_default=False,
    ),
]
TpotLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Longest time per output token, such as 50ms.")
]
PrefillLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Longest prefill of one prompt, such as 2s.")
]


@deployment_options
def compare(
    model: ModelName,
    how: Options,
    chips: Chips,
    isl: Isl = 1024,
    osl: Osl = 1024,
    concurrency: Concurrency = 16,
    prices: Prices = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compare chips, each with its best deployment.

    Example: taygeta compare meta-llama/Llama-3.1-70B --chips maia-100:8,h100:8,b200:4 --html report.html
    """
    from taygeta import api
    from taygeta.report.json import to_json
    from taygeta.report.lists import comparison_view

    check_page(html)
    names = split_chips(chips)
    costs = match_prices(prices or (), names)
    with progress("comparing") as advance:
        found = api.compare(model, names, isl, osl, concurrency, costs, advance, **how)
    emit(lambda: comparison_view(model, isl, osl, concurrency, found), lambda: to_json(found), as_json)
    if html:
        from taygeta.report.pages import comparison_page

        write_page(html, lambda: comparison_page(model, isl, osl, concurrency, found))


@deployment_options
def plan(
    model: ModelName,
    how: Options,
    chip: ChipName = "h100:8",
    isl: Isl = 1024,
    osl: Osl = 1024,
    tpot: TpotLimit = None,
    prefill: PrefillLimit = None,
    price: Price = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Search for the best deployment under limits.

    It is the parallelism and the number of requests with the most tokens per second.

    Example: taygeta plan openai/gpt-oss-120b --chip maia-100:8 --isl 4096 --osl 512 --tpot 25ms --prefill 1s
    """
    from taygeta import api
    from taygeta.base.units import SECONDS, parse
    from taygeta.report.json import to_json
    from taygeta.report.lists import plan_view

    check_page(html)
    longest = parse(tpot, SECONDS, "--tpot") if tpot else None
    first = parse(prefill, SECONDS, "--prefill") if prefill else None
    with progress("searching") as advance:
        found = api.plan(model, chip, isl, osl, longest, first, price, advance, **how)
    goal = _goal(isl, osl, tpot, prefill)
    emit(lambda: plan_view(model, chip, goal, found), lambda: to_json(found), as_json)
    if html:
        from taygeta.report.pages import plan_page

        write_page(html, lambda: plan_page(model, chip, goal, found))


def _goal(isl: int, osl: int, tpot: str | None, prefill: str | None) -> str:
    limits = [f"{name} at most {text}" for name, text in (("TPOT", tpot), ("prefill", prefill)) if text]
    return f"isl {isl:,}, osl {osl:,}; most tokens/s" + (f" with {' and '.join(limits)}" if limits else "")
