"""Columns of a trace file: which name means what, and how a cell becomes a number or is refused by its line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taygeta.base.errors import InputError

Where = Callable[[int], str]  # the index of a value to the place in the file, such as "azure.csv line 17"

ARRIVAL, ISL, OSL, PRIORITY, HASH_IDS = "arrival", "isl", "osl", "priority", "hash_ids"


@dataclass(frozen=True)
class Role:
    """What a column can hold: its meaning for messages, the names it goes by, whether a file may leave it out."""

    meaning: str
    names: tuple[str, ...]
    optional: bool = False


ROLES = {
    ARRIVAL: Role("when a request arrives", ("arrival", "arrival_time", "arrived_at", "timestamp", "time")),
    ISL: Role(
        "the tokens of the prompt",
        ("isl", "input_tokens", "input_length", "prompt_tokens", "ContextTokens", "request_tokens"),
    ),
    OSL: Role(
        "the tokens of the answer",
        ("osl", "output_tokens", "output_length", "completion_tokens", "GeneratedTokens", "response_tokens"),
    ),
    PRIORITY: Role("the priority", ("priority",), optional=True),
    HASH_IDS: Role("the ids of the blocks of the prefix", ("hash_ids",), optional=True),
}
"""Names are compared without case, spaces and underscores. ContextTokens and GeneratedTokens are Azure's, input_length,
output_length and hash_ids Mooncake's, request_tokens and response_tokens BurstGPT's, arrived_at Vidur's."""


def plain(name: str) -> str:
    """Return the form in which names of columns are compared."""
    return re.sub(r"[\s_-]", "", name).lower()


def recognised(names: Iterable[str], where: str) -> dict[str, str]:
    """Return which of a file's columns plays each role.

    Raises InputError for a role that no column plays, or two.
    """
    given = list(names)
    found: dict[str, str] = {}
    for role, wanted in ROLES.items():
        known = {plain(name) for name in wanted.names}
        matches = [name for name in given if plain(name) in known]
        if len(matches) > 1:
            both = " and ".join(quoted(name) for name in matches[:2])
            raise InputError(f"{where}: columns {both} both say {wanted.meaning}: leave one of them out.")
        if matches:
            found[role] = matches[0]
        elif not wanted.optional:
            seen = ", ".join(quoted(name) for name in given[:8]) or "none"
            raise InputError(
                f"{where}: no column says {wanted.meaning}; it must be called {', '.join(wanted.names[:-1])} or "
                f"{wanted.names[-1]}; the columns are {seen}."
            )
    return found


def quoted(value: object) -> str:
    """Return a cell for a message: on one line, short, in double quotes."""
    text = value if isinstance(value, str) else repr(value)
    return json.dumps(text if len(text) <= 40 else f"{text[:37]}...")


def whole_numbers(
    values: Sequence[Any] | NDArray[Any], name: str, least: int, most: int, where: Where
) -> NDArray[np.int64]:
    """Return cells as whole numbers of least to most. Raises InputError that names the first that is none."""
    found = _fast_whole(values)
    if found is not None and (not len(found) or (found.min() >= least and found.max() <= most)):
        return found
    return np.array([_whole(value, name, least, most, where, i) for i, value in enumerate(values)], np.int64)


def _fast_whole(values: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64] | None:
    """Cells as int64 where all of them are plainly whole numbers, else None."""
    if isinstance(values, np.ndarray):
        return values.astype(np.int64) if values.dtype.kind == "i" else None
    kinds = set(map(type, values))
    try:
        if kinds == {int}:
            return np.array(values, np.int64)
        if kinds == {str} and "_" not in "".join(values):  # int takes 1_000 for 1000
            return np.array(list(map(int, values)), np.int64)
    except (ValueError, OverflowError):
        pass
    return None


def _whole(value: Any, name: str, least: int, most: int, where: Where, index: int) -> int:
    number = _number(value)
    if number is None or number != math.floor(number) or number < least:
        raise InputError(
            f"{where(index)}: {name} must be a whole number of at least {least}, not {quoted(_cell(value))}."
        )
    if number > most:
        raise InputError(
            f"{where(index)}: {name} must be a whole number of at most {most:,}, not {quoted(_cell(value))}."
        )
    return int(number)


def _number(value: Any) -> float | int | None:
    """A cell as a finite number, or None."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (str, int, float, np.integer, np.floating)):
        return None
    if isinstance(value, str) and "_" in value:
        return None
    try:
        number = float(value)
        if not math.isfinite(number):
            return None
        # Beyond 2**53 a float is a neighbour of what was written.
        return int(value) if isinstance(value, (int, np.integer)) else number
    except (ValueError, OverflowError):
        return None


def _cell(value: Any) -> Any:
    """A cell as it stands in the file: a NumPy number without its type."""
    return value.item() if isinstance(value, np.generic) else value


def numeric(value: Any) -> bool:
    """Whether times are counted, as this first one is, or are dates."""
    if not isinstance(value, str):
        return not isinstance(value, np.datetime64)
    try:
        float(value)
    except ValueError:
        return False
    return True


def counted_times(
    values: Sequence[Any] | NDArray[Any], name: str, per_second: int, where: Where
) -> NDArray[np.float64]:
    """Return times that are counts of 1/per_second seconds as seconds.

    Raises InputError that names the first that is not finite or is negative.
    """
    found = None
    if isinstance(values, np.ndarray):
        found = values.astype(np.float64) if values.dtype.kind in "iuf" else None
    elif set(map(type, values)) <= {int, float} or (set(map(type, values)) == {str} and "_" not in "".join(values)):
        try:
            found = np.array(list(map(float, values)))
        except (ValueError, OverflowError):
            found = None
    if found is None or not (np.isfinite(found) & (found >= 0)).all():
        out = []
        for index, value in enumerate(values):
            number = _number(value)
            if number is None or number < 0:
                raise InputError(
                    f"{where(index)}: {name} must be a time in seconds of at least 0 or a date such as "
                    f'"2023-11-16 18:17:03.97996", not {quoted(_cell(value))}.'
                )
            out.append(float(number))
        found = np.array(out)
    return found / per_second


_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?", re.ASCII)
_FIRST, _LAST = "1970", "2250"  # nanoseconds in 64 bits reach to 2262


def dated_times(values: Sequence[Any] | NDArray[Any], name: str, where: Where) -> NDArray[np.int64]:
    """Return dates as nanoseconds since 1970. Raises InputError that names the first that is no ISO date."""
    if isinstance(values, np.ndarray):
        empty = np.flatnonzero(np.isnat(values))
        if len(empty):
            raise InputError(f"{where(int(empty[0]))}: {name} must be a date; it is empty.")
        return values.astype("datetime64[ns]").astype(np.int64)
    zone = _ZONE.search(values[0]) if values and isinstance(values[0], str) else None
    suffix = zone.group() if zone and len(values[0]) > len("2023-11-16-0000") else ""
    out: NDArray[np.int64] | None = None
    if set(map(type, values)) == {str} and all(value.endswith(suffix) for value in values):
        out = _fast_dates([value.removesuffix(suffix) for value in values])
    if out is not None:
        return out - _offset(suffix)
    return np.array([_date(value, name, where, i) for i, value in enumerate(values)], np.int64)


def _fast_dates(values: list[str]) -> NDArray[np.int64] | None:
    """Dates without a time zone as nanoseconds, or None where one is not of that form."""
    if not (all(map(_DATE.fullmatch, values)) and min(values) >= _FIRST and max(values) < _LAST):
        return None
    try:
        return np.array(values, dtype="datetime64[ns]").astype(np.int64)
    except ValueError:  # the 30th of February
        return None


def _offset(suffix: str) -> int:
    """Nanoseconds of a time zone east of Greenwich, from Z or +hh:mm."""
    if suffix in ("", "Z"):
        return 0
    minutes = int(suffix[1:3]) * 60 + int(suffix[-2:])
    return (-1 if suffix[0] == "-" else 1) * minutes * 60 * 10**9


def _date(value: Any, name: str, where: Where, index: int) -> int:
    text = value.strip() if isinstance(value, str) else ""
    zone = _ZONE.search(text)
    suffix = zone.group() if zone and len(text) > len("2023-11-16-0000") else ""
    found = _fast_dates([text.removesuffix(suffix).replace(",", ".")])
    if found is None:
        raise InputError(
            f'{where(index)}: {name} must be a date such as "2023-11-16 18:17:03.97996", like the first one, '
            f"not {quoted(_cell(value))}."
        )
    return int(found[0]) - _offset(suffix)


def milliseconds(names: Mapping[str, str], lines_of_json: bool) -> bool:
    """Whether a file without a unit counts its times in milliseconds: it has Mooncake's columns.

    The names alone do not tell in a table; with the ids of prefixes they do.
    """
    ours = tuple(names.get(role) for role in (ARRIVAL, ISL, OSL))
    return ours == ("timestamp", "input_length", "output_length") and (lines_of_json or HASH_IDS in names)
