"""taygeta validate and taygeta calibrate: predictions against measured silicon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taygeta.app.options import EngineSettings, Json, Options, changed, deployment_options
from taygeta.app.output import check_page, emit, progress, write_page
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.validate.held_out import HeldOut
    from taygeta.validate.run import Result
    from taygeta.validate.score import Score
    from taygeta.validate.systems import Systems

Directory = Annotated[
    Path,
    typer.Argument(
        metavar="DIRECTORY", help="Tables such as gemm.parquet or e2e.parquet.", show_default=False
    ),
]
OwnChips = Annotated[
    list[str] | None,
    typer.Option(
        "--chip", metavar="FILE", help="A chip file in place of the catalogue's entry; may be repeated."
    ),
]


def validate(
    directory: Directory,
    chip: OwnChips = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores as a JSON list.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Write the tables with predictions.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report as Markdown.")] = None,
) -> None:
    """Score predictions against tables of measured silicon.

    Errors are predicted / measured - 1. Finished tables stay readable when interrupted.

    Example: taygeta validate ../shared/silicon --json scores.json
    """
    from taygeta.base.files import replaceable
    from taygeta.validate import files
    from taygeta.validate.run import validate as run
    from taygeta.validate.systems import Systems

    check_page(html)
    for path in (json, markdown):
        _check_file(path)
    if rows is not None and rows.absolute().resolve() == directory.absolute().resolve():
        raise InputError(f"--rows {rows} is where the measurements are: name another directory.")
    systems = Systems(chip or ())
    results: list[Result] = []
    scores: list[Score] = []
    with progress("scoring") as advance:
        for result in run(directory, systems, advance):
            results.append(result)
            scores += result.scores
            if rows:
                files.write_rows(rows, result.table, result.rows)
            if json and replaceable(json):  # a pipe takes one document, the last
                files.write_scores(json, scores)
    found: list[HeldOut] = []
    if json or markdown:
        from taygeta.validate.held_out import held_out

        with progress("leaving chips out") as advance:
            found = held_out(results, systems, advance)
    if json:
        files.write_scores(json, [*scores, *(score for h in found for score in h.scores())])
    _report(results, systems, found, html, markdown)


def _report(
    results: list[Result], systems: Systems, found: list[HeldOut], html: Path | None, markdown: Path | None
) -> None:
    """Print the scores, and write the page and the report that were asked for."""
    from rich.console import Console

    from taygeta.report.terminal import show
    from taygeta.validate import view

    show(view.summary(results), Console(file=sys.stdout, highlight=False))
    if markdown:
        from taygeta.base.files import write_text
        from taygeta.validate.markdown import report

        write_text(markdown, report(results, systems, found))
        sys.stderr.write(f"wrote {markdown}\n")
    write_page(html, lambda: view.page(results))


@deployment_options
def calibrate(
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.", show_default=False)],
    how: Options,
    tables: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIRECTORY", help="Tables of kernels such as gemm.parquet: fits a chip.", show_default=False
        ),
    ] = None,
    chip: Annotated[
        str, typer.Option(metavar="NAME[:COUNT]", help="A chip of the catalogue or a .toml file; served, how many.")
    ] = "h100",
    framework: Annotated[str, typer.Option(help="Whose rows to fit on where a table has several.")] = "",
    serving: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESULTS",
            help="Results of vllm bench serve, guidellm or aiperf, or a directory of them: fits an engine's host"
            " times; may be repeated.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that was served.", show_default=False)
    ] = None,
    engine_settings: EngineSettings = None,
    as_json: Json = False,
) -> None:
    """Fit constants on measurements of one's own: a chip's on tables of kernels, an engine's on serving benchmarks.

    Tables: rows whose column gpu names the chip count; each needs 60 rows, 10 on each side of what a constant decides;
    writes a chip file. Serving: two runs or more under different loads; writes an engine file for --engine.

    Example: taygeta calibrate --serving results --model llama-3.1-8b --chip h100:1 --output my-vllm.toml
    """
    _check_file(output)
    if (tables is None) == (not serving):
        raise InputError("taygeta calibrate takes either a directory of tables or --serving with results.")
    if tables is not None:
        _refuse_beside_tables(how, model, engine_settings, as_json)
        _calibrate_chip(tables, output, chip, framework)
        return
    if framework:
        raise InputError("--framework is of tables: --engine says what served.")
    if model is None:
        raise InputError("--serving needs --model: the model that was served.")
    _calibrate_engine(serving or [], output, model, chip, how, engine_settings or [], as_json)


def _calibrate_chip(tables: Path, output: Path, chip: str, framework: str) -> None:
    import datetime

    from rich.console import Console

    from taygeta.base.files import write_text
    from taygeta.report.terminal import show
    from taygeta.validate import calibrate as module
    from taygeta.validate import view

    with progress("fitting") as advance:
        system, fits = module.calibrate(tables, chip, framework, advance)
    write_text(output, module.chip_file(system, fits, datetime.datetime.now(datetime.UTC).date()))
    show(view.fits(system.name, fits), Console(file=sys.stdout, highlight=False))
    sys.stderr.write(f"wrote {output}\n")


def _calibrate_engine(
    results: list[Path], output: Path, model: str, chip: str, how: Options, settings: list[str], as_json: bool
) -> None:
    import datetime
    from dataclasses import replace

    from taygeta import api
    from taygeta.app.serving_options import engine_set
    from taygeta.base.files import write_text
    from taygeta.explore.fleets import engine_settings
    from taygeta.validate.engine_file import engine_file, fit_json
    from taygeta.validate.serving_files import read_results
    from taygeta.validate.serving_fit import fit_serving
    from taygeta.validate.serving_view import serving_fit_view

    values = engine_settings(engine_set(settings))
    d = api.deploy(model, chip, **how)
    d = replace(d, engine=replace(d.engine, **values))
    runs = read_results(results)
    with progress("fitting") as advance:
        fit = fit_serving(d, runs, advance)
    write_text(output, engine_file(fit, datetime.datetime.now(datetime.UTC).date()))
    emit(lambda: serving_fit_view(fit), lambda: fit_json(fit), as_json)
    sys.stderr.write(f"wrote {output}\n")


def _refuse_beside_tables(how: Options, model: str | None, settings: list[str] | None, as_json: bool) -> None:
    """Refuse what only means something for a served model."""
    given: dict[str, object] = {"model": model, "engine-set": settings, "json": as_json or None, **changed(how)}
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name} needs --serving: tables of kernels know no deployment.")


def _check_file(path: Path | None) -> None:
    """Refuse a file that cannot be written before any work. Raises InputError."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path} is a directory: give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.absolute().parent} is no directory.")
