"""`taygeta calibrate`: a chip's constants fitted on measurements of one's own, written into a chip file with
where they come from.
"""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taygeta.base import units
from taygeta.base.errors import InputError, require
from taygeta.spec.catalog import sheet
from taygeta.spec.fields import FIELDS
from taygeta.validate import quirks
from taygeta.validate.fit import LINK_LATENCY, Fit, fit, with_constants
from taygeta.validate.fit_kernels import problems
from taygeta.validate.kinds import FUSED
from taygeta.validate.run import answer_frame
from taygeta.validate.systems import System, Systems
from taygeta.validate.tables import Table, find_tables, read_table

if TYPE_CHECKING:
    import polars

NOT_KERNELS = ("e2e",)  # engines and hosts are in its times: no constant of a chip can be told from them
REFERENCES = ("trtllm", "nccl")  # the libraries that constants stand for, where a table has several


def calibrate(
    directory: Path, name: str, framework: str = "", progress: Callable[[int, int], None] | None = None
) -> tuple[System, list[Fit]]:
    """Return a chip of the catalogue or a file, and the constants fitted on its rows of a directory's tables
    of
    kernels.

    framework: whose rows count where a table has several; by default trtllm, else the one with most rows.
    Raises InputError for tables without the chip, or with too few or too one-sided rows; says the limits.
    """
    systems = Systems([name] if Path(name).is_file() else ())
    system = systems.get(sheet(name).id)
    tables = [(table, path) for table, path in find_tables(directory) if table.name not in NOT_KERNELS]
    chip, fits = system.chip, []
    for done, (table, path) in enumerate(tables):
        if progress:
            progress(done, len(tables))
        rows = _rows(table, read_table(table, path), systems, system, framework)
        if rows.height == 0:
            continue
        for problem in problems(table.name, rows, system):
            found = fit(problem, chip)
            fits.append(found)
            chip = with_constants(chip, found.values)
    if not fits:
        raise InputError(
            f"{directory} has no rows of {name} in any table of kernels: the column gpu must hold its id"
            " or an alias."
        )
    return system, fits


def _rows(
    table: Table, frame: polars.DataFrame, systems: Systems, system: System, framework: str
) -> polars.DataFrame:
    """Return the rows of the chip that no filter leaves out, of one framework."""
    pl = require("polars", "tables", "Calibration")
    mine = [name for name in frame[table.chip].unique().to_list() if _same(systems, name, system)]
    frame = frame.filter(pl.col(table.chip).is_in(mine))
    if frame.height == 0:
        return frame
    maker = "library" if table.name == "comm" else "framework"
    if table.name.startswith("attention"):
        answered = answer_frame(table, frame, systems)
        frame = frame.with_columns(answered["impossible"])
    frame = frame.filter(quirks.apply(table.name, frame)[0])
    names = frame.group_by(maker).len().sort("len", maker, descending=[True, False])[maker].to_list()
    names = [name for name in names if FUSED not in name] or names
    chosen = next((name for name in (framework, *REFERENCES) if name in names), names[0] if names else "")
    return frame.filter(pl.col(maker) == chosen)


def _same(systems: Systems, name: str, system: System) -> bool:
    try:
        return systems.get(name).chip.id == system.chip.id
    except InputError:
        return False


def chip_file(system: System, fits: Sequence[Fit], today: datetime.date) -> str:
    """Return the chip's file with the fitted constants, their ranges and where they come from. Raises
    InputError.
    """
    path = Path(system.sheet.origin)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    for found in fits:
        for name, value in found.values.items():
            full = name if name == LINK_LATENCY else f"calibration.{name}"
            _set(document, full, entry(full, value, found, name, today))
        same = [f for f in fits if f.kernel == found.kernel]
        _set(document, f"calibration.error.{found.kernel}", _error_entry(same, today))
        for kind in found.kinds:
            told = _error_entry([f for f in same if kind in f.kinds], today)
            _set(document, f"calibration.error.{found.kernel}_{kind}", told)
    return f"# Calibrated by `taygeta calibrate` on {today.isoformat()}.\n\n" + dump(document)


def entry(path: str, value: float, found: Fit, name: str, today: datetime.date) -> dict[str, Any]:
    """Return a number of a chip file as an assumption with a range, its source and how good the fit is."""
    low, high = found.ranges[name]
    dimension = FIELDS[path].dimension
    return {
        "low": _text(min(low, value), dimension),
        "nominal": _text(value, dimension),
        "high": _text(max(high, value), dimension),
        "source": f"{found.source}; fitted {today.isoformat()}",
        "reason": (
            f"fitted on {found.rows:,} rows, mean error {found.mape:.1%}, median {found.median:.1%}; the"
            " range is that of five refits which each leave out a fifth of the rows"
        ),
    }


def _error_entry(fits: Sequence[Fit], today: datetime.date) -> dict[str, Any]:
    worst = max(fits, key=lambda f: f.held_out)
    source = f"{worst.source}; fitted {today.isoformat()}: covers 80 % of rows left out of five fits"
    return {"value": float(f"{worst.held_out:.4g}"), "source": source}


def _text(value: float, dimension: units.Dimension) -> str | float:
    number = f"{value:.6g}"
    return float(number) if dimension in units.UNITLESS else f"{number} {dimension.unit}"


def _set(document: dict[str, Any], path: str, value: Mapping[str, Any]) -> None:
    """Put a number at a dotted path; a table on the way that is itself a number makes room under a quoted
    key.
    """
    here = document
    *tables, last = path.split(".")
    for n, key in enumerate(tables):
        inner = here.get(key)
        if isinstance(inner, dict) and not {"value", "nominal"} & set(inner):
            here = inner
        elif inner is None:
            here = here.setdefault(key, {})
        else:
            last = ".".join([*tables[n:], last])
            break
    here[last] = dict(value)


def dump(document: Mapping[str, Any]) -> str:
    """Return a chip's document as TOML: texts, numbers, lists and tables, which is all that a chip file
    holds.
    """
    lines: list[str] = []
    _dump(document, (), lines)
    return "\n".join(lines) + "\n"


def _dump(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    leaves = {key: value for key, value in table.items() if not _is_table(value)}
    if path and (leaves or not table):
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in leaves.items()]
    for key, value in table.items():
        if _is_table(value):
            _dump(value, (*path, key), lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"value", "nominal"} & set(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _string(key)


def _string(text: str) -> str:
    """A basic string: as in JSON, which only leaves DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    return _string(str(value))
