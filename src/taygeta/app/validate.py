"""taygeta validate and taygeta calibrate: predictions against measured silicon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taygeta.app.output import check_page, progress, write_page
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
            if json:
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
        from taygeta.validate.files import write_text
        from taygeta.validate.markdown import report

        write_text(markdown, report(results, systems, found))
        sys.stderr.write(f"wrote {markdown}\n")
    write_page(html, lambda: view.page(results))


def calibrate(
    tables: Directory,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The chip file to write.", show_default=False)],
    chip: Annotated[
        str, typer.Option(metavar="NAME", help="A chip of the catalogue or a .toml file.")
    ] = "h100",
    framework: Annotated[str, typer.Option(help="Whose rows to fit on where a table has several.")] = "",
) -> None:
    """Fit a chip's constants on measurements of one's own and write them into a chip file.

    Rows whose column gpu names the chip count. Each table needs 60 rows, 10 on each side of what a constant
    decides.

    Example: taygeta calibrate my-tables --chip my-chip.toml --output calibrated.toml
    """
    import datetime

    from rich.console import Console

    from taygeta.report.terminal import show
    from taygeta.validate import calibrate as module
    from taygeta.validate import view
    from taygeta.validate.files import write_text

    _check_file(output)
    with progress("fitting") as advance:
        system, fits = module.calibrate(tables, chip, framework, advance)
    write_text(output, module.chip_file(system, fits, datetime.datetime.now(datetime.UTC).date()))
    show(view.fits(system.name, fits), Console(file=sys.stdout, highlight=False))
    sys.stderr.write(f"wrote {output}\n")


def _check_file(path: Path | None) -> None:
    """Refuse a file that cannot be written before any work. Raises InputError."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path} is a directory: give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.absolute().parent} is no directory.")
