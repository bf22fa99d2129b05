"""Tiny tables of measurements, made from the plain kernels, and where the real ones are."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from taygeta.cost.silicon import silicon
from taygeta.cost.step import Silicon
from taygeta.spec.catalog import chip as catalogue_chip
from taygeta.spec.chip import Chip

SILICON = Path(__file__).parents[3] / "shared" / "silicon"


@pytest.fixture(scope="session")
def h100() -> Chip:
    return catalogue_chip("h100")


@pytest.fixture(scope="session")
def kernels(h100: Chip) -> Silicon:
    return silicon(h100)


@pytest.fixture
def write(tmp_path: Path):
    """Return a function that writes a table into the directory of the test and returns the directory."""

    def table(name: str, rows: list[dict]) -> Path:
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(tmp_path / f"{name}.parquet")
        return tmp_path

    return table


@pytest.fixture(scope="session")
def measured() -> Path:
    """The directory of measured tables, or a skipped test."""
    if not SILICON.is_dir():
        pytest.skip("no measured tables in shared/silicon beside the repository")
    return SILICON
