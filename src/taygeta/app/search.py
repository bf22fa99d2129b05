"""taygeta compare: the best deployment of each chip."""

from __future__ import annotations

from typing import Annotated

import typer

from taygeta.app.options import (
    Concurrency,
    Html,
    Isl,
    Json,
    ModelName,
    Options,
    Osl,
    deployment_options,
    match_prices,
    split_chips,
)
from taygeta.app.output import NOTHING_FOUND, check_page, emit, progress, write_page

Chips = Annotated[
    str,
    typer.Option(metavar="A:N,B:N", help="Chips and how many of each, with commas between them.", show_default=False),
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

    Exits with 3 where none of them can run the model.

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
    if not any(c.best for c in found):
        raise typer.Exit(NOTHING_FOUND)
