"""Where results go: tables or JSON on standard output, a page in a file, the rest on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taygeta.base.errors import InputError, require

if TYPE_CHECKING:
    from taygeta.report.view import View

NOTHING_FOUND = 3
"""What a search ends with where nothing that it tried can do what was asked; its result is printed all the same."""


def emit(view: Callable[[], View], document: Callable[[], Mapping[str, Any]], as_json: bool) -> None:
    """Print a result as JSON or as tables; only the one that is asked for is made."""
    if as_json:
        from taygeta.report.json import text

        sys.stdout.write(text(document()) + "\n")
        return
    from rich.console import Console

    from taygeta.report.terminal import show

    show(view(), Console(file=sys.stdout, highlight=False))


def check_page(path: Path | None) -> None:
    """Refuse a page that cannot be written before any work. Raises InputError or MissingExtraError."""
    if path is None:
        return
    require("matplotlib", "plots", "--html")
    if path.is_dir():
        raise InputError(f"--html {path} is a directory: give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--html {path} cannot be written: {path.absolute().parent} is no directory.")


def write_page(path: Path | None, page: Callable[[], str]) -> None:
    """Write a page and say so on standard error; nothing for None. Raises InputError."""
    if path is None:
        return
    from taygeta.base.files import write_text

    write_text(path, page())
    sys.stderr.write(f"wrote {path}\n")


COMPILING = "compiling, once on a machine"


@contextmanager
def progress(text: str, compiles: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, on a terminal only; yields what to call with (done, of how many).

    compiles: machine code is missing, so that nothing is done for a while: said until something is, and off a terminal
    too.
    """
    if not sys.stderr.isatty():
        if compiles:
            sys.stderr.write(f"{COMPILING}\n")
            sys.stderr.flush()
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(COMPILING if compiles else text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, description=text)


def print_error(message: str) -> None:
    """Print one sentence on standard error after a red "error:"."""
    from rich.console import Console
    from rich.text import Text

    sentence = "".join(c if c.isprintable() else " " for c in message)  # names may come from files
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error:", "bold red"), " ", sentence))
