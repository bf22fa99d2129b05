"""The errors a user can see. Each says what is wrong, where, what was given and what would work, in one sentence.

TaygetaError
    InputError          a file, an option or an argument that cannot be used as given
        UnknownNameError    a name that is in no catalogue; says what is close to it
        UnsupportedError    a thing that is understood and not supported; says which
    DoesNotFitError     a deployment that exceeds a memory; says what would fit
    MissingExtraError   an optional dependency that is not installed; says the line that installs it
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class TaygetaError(Exception):
    """Root of every error that Taygeta raises on purpose; the command line prints it and exits with 2."""


class InputError(TaygetaError):
    """A file, an option or an argument that cannot be used as given."""


class UnknownNameError(InputError):
    """A name that no catalogue holds."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str) -> None:
        close = difflib.get_close_matches(name.lower(), sorted(known), n=3, cutoff=0.5)
        guess = f" Did you mean {' or '.join(close)}?" if close else ""
        super().__init__(f"{what} {name!r} is neither in the catalogue nor a file.{guess} {hint}")


class UnsupportedError(InputError):
    """A thing that is understood and not supported."""


class DoesNotFitError(TaygetaError):
    """A deployment whose weights, KV cache and activations exceed the memory of its chips."""


class MissingExtraError(TaygetaError):
    """An optional dependency that is not installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or name the pip line that installs it.

    Raises MissingExtraError when `module` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{purpose} needs {module.split('.')[0]}: pip install 'taygeta[{extra}]'") from error
