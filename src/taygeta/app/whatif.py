"""taygeta sweep and taygeta explain: what changes when a number of the chip does."""

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
    split_ranges,
)
from taygeta.app.output import check_page, emit, progress, write_page

Steps = Annotated[int, typer.Option(help="Values of each field, from its low to its high end.")]


@deployment_options
def sweep(
    model: ModelName,
    how: Options,
    chip: ChipName = "h100",
    isl: Isl = 1024,
    osl: Osl = 1024,
    concurrency: Concurrency = 16,
    steps: Steps = 9,
    price: Price = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Vary one or two numbers of a chip or a model.

    Each is given as --set FIELD=LOW..HIGH; other fields may be set as well.

    Example: taygeta sweep openai/gpt-oss-120b --chip maia-100:4 --set hbm.bandwidth=1.2TB/s..6TB/s
    """
    from taygeta import api
    from taygeta.report.json import to_json
    from taygeta.report.lists import sweep_view

    check_page(html)
    ranges, rest = split_ranges(how)
    with progress("sweeping") as advance:
        found = api.sweep(model, chip, ranges, isl, osl, concurrency, steps, price, advance, **rest)
    emit(lambda: sweep_view(model, chip, found, isl, osl, concurrency), lambda: to_json(found), as_json)
    if html:
        from taygeta.report.pages import sweep_page

        write_page(html, lambda: sweep_page(model, chip, found, isl, osl, concurrency))


@deployment_options
def explain(
    model: ModelName,
    how: Options,
    chip: ChipName = "h100",
    isl: Isl = 1024,
    osl: Osl = 1024,
    concurrency: Concurrency = 16,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Say what a chip that is 10 % better at one thing would buy.

    Example: taygeta explain openai/gpt-oss-120b --chip maia-100:4 --concurrency 64
    """
    from taygeta import api
    from taygeta.report.json import to_json
    from taygeta.report.lists import sensitivity_view

    check_page(html)
    d = api.deploy(model, chip, **how)
    with progress("explaining") as advance:
        found = api.explain(model, chip, isl, osl, concurrency, advance, **how)
    emit(lambda: sensitivity_view(d, isl, osl, concurrency, found), lambda: to_json(found), as_json)
    if html:
        from taygeta.report.pages import sensitivity_page

        write_page(html, lambda: sensitivity_page(d, isl, osl, concurrency, found))
