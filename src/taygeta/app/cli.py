"""The command `taygeta`: its commands, its version, and how it ends.

It exits with 0; with 2 and one sentence on standard error for input that cannot be used, or an output that cannot
be written; with 3 where a search found nothing (compare, plan); with 130 when interrupted; with 1 and one sentence
for a defect of its own, whose traceback --debug shows. What a command needs is imported when it runs, so that help
and completion stay quick.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from taygeta import __version__
from taygeta.app import catalogue, check, plan, predict, run, search, serve, simulate, validate, whatif
from taygeta.app import compile as compilation
from taygeta.app.output import print_error
from taygeta.base.errors import TaygetaError

INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class _Group(TyperGroup):
    """Ends every error in one sentence: input that cannot be used, an interrupt, a defect."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Raises typer.Exit with 2 for bad input, 130 on an interrupt, 1 for a defect."""
        try:
            return super().invoke(ctx)
        except TaygetaError as error:
            print_error(str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if ctx.params.get("debug") or _belongs_to_typer(error) or _is_of_the_output(error):
                raise
            print_error(
                f"{type(error).__name__}: {error}. This is a defect of Taygeta; --debug shows where it is."
            )
            raise typer.Exit(1) from None


def _belongs_to_typer(error: Exception) -> bool:
    """Whether typer ends the command: by its own exceptions, or quietly when the reader stopped early."""
    return isinstance(error, (typer.Abort, BrokenPipeError)) or hasattr(error, "exit_code")


def _is_of_the_output(error: Exception) -> bool:
    """Whether standard output cannot be written: files say so themselves, and what it holds fails again."""
    if not isinstance(error, OSError):
        return False
    if error.errno in FULL and error.filename is None:
        return True
    try:
        _flush()
    except OSError:
        return True
    return False


def _flush() -> None:
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


app = typer.Typer(
    name="taygeta",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"taygeta {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a defect.")] = False,
) -> None:
    """Predict how fast any chip runs any large language model.

    Example: taygeta predict openai/gpt-oss-120b --chip maia-100:4
    """


for _command in (
    predict.predict,
    search.compare,
    plan.plan,
    simulate.simulate,
    serve.serve,
    run.run,
    check.check,
    whatif.sweep,
    whatif.explain,
    catalogue.chips,
    catalogue.models,
    catalogue.show,
    validate.validate,
    validate.calibrate,
):
    app.command()(_command)
app.command("compile")(compilation.compile_model)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a sign that the terminal lacks must not end the program
    try:
        try:
            app()
        finally:
            _flush()  # a small output fails only here
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _leave(1)
    except OSError as error:
        if not _is_of_the_output(error):
            raise
        print_error(f"the output cannot be written: {error.strerror or error}.")
        _leave(2)


def _leave(code: int) -> None:
    """Exit although standard output cannot be written: what it still holds goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
