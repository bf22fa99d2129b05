"""Files of a validation: each is written as a whole, so that a reader sees the old one or the new one and
never a part.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taygeta.base.errors import InputError
from taygeta.validate.score import Score

if TYPE_CHECKING:
    import polars


def write_text(path: Path, text: str) -> None:
    """Write a text file. Raises InputError."""
    _replace(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write scores as a JSON list of records, errors as fractions. Raises InputError."""
    write_text(path, json.dumps([score.record() for score in scores], indent=1) + "\n")


def write_rows(directory: Path, name: str, frame: polars.DataFrame) -> Path:
    """Write an answered table as Parquet and return its path. Raises InputError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made: {error.strerror or error}.") from None
    path = directory / f"{name}.parquet"
    _replace(path, frame.write_parquet)
    return path


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = None
    try:
        handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        write(part)
        mask = os.umask(0o077)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
