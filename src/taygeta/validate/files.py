"""Files of a validation: each is written as a whole, so that a reader sees the old one or the new one and
never a part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taygeta.base.errors import InputError
from taygeta.base.files import replacing, write_text
from taygeta.validate.score import Score

if TYPE_CHECKING:
    import polars


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
    with replacing(path) as part:
        frame.write_parquet(part)
    return path
