"""Reading a model's configuration: files of bounded size, fields of checked type, and a record of what was read.

A Fields object is a table of a config.json or of a catalogue entry. Every access ticks the field off; `finish` refuses
what nobody has read, unless it is known to leave shapes and operations alone. So no field is skipped silently.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from taygeta.base.errors import InputError, UnsupportedError

MAX_BYTES = 4 * 1024 * 1024  # the longest published config.json, with thousands of module names, is under 1 MiB
MAX_DEPTH = 24
MAX_ITEMS = 500_000

# Sane bounds: ten times the largest published model or more, small enough for arithmetic to stay quick.
MAX_LAYERS = 10_000
MAX_WIDTH = 10_000_000
MAX_HEADS = 100_000
MAX_EXPERTS = 100_000
MAX_VOCABULARY = 100_000_000
MAX_CONTEXT = 1_000_000_000

_REQUIRED = object()


def shown(value: object) -> str:
    """Return a value as a person would find it in the file, in a few characters whatever it holds."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return f"a table of {len(value)} fields"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


class Fields:
    """The fields of one table of a configuration; `where` names the file and the table in messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Return whether a field is given and not null, without ticking it off."""
        return self.values.get(name) is not None

    def get(self, name: str) -> object:
        """Return a field as it stands, None when it is absent, and tick it off."""
        self._read.add(name)
        return self.values.get(name)

    def count(self, name: str, most: int, least: int = 1, default: object = _REQUIRED) -> int:
        """Return a whole number between `least` and `most`; a missing or null field takes `default`.

        Raises InputError.
        """
        value = self.get(name)
        if value is None and default is not _REQUIRED:
            value = default
        wanted = f"a whole number from {least} to {most}"
        if value is None and name not in self.values:
            raise InputError(f"{self.where}: {name} is missing; it must be {wanted}.")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"{self.where}: {name} must be {wanted}, not {shown(value)}.")
        return value

    def number(self, name: str, default: float, least: float = 0.0, most: float = 1e12) -> float:
        """Return a number between `least` and `most`; a missing or null field takes `default`. Raises InputError."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise InputError(f"{self.where}: {name} must be a number from {least:g} to {most:g}, not {shown(value)}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false; a missing or null field takes `default`. Raises InputError."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {name} must be true or false, not {shown(value)}.")
        return value

    def text(self, name: str, allowed: Collection[str], default: str | None = None) -> str:
        """Return one of `allowed`; raises UnsupportedError for another text, InputError for another type."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None and name not in self.values:
            raise InputError(f"{self.where}: {name} is missing; it must be {_one_of(allowed)}.")
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {name} must be {_one_of(allowed)}, not {shown(value)}.")
        if value not in allowed:
            raise UnsupportedError(
                f"{self.where}: {name} = {shown(value)} is not supported; it can be {_one_of(allowed)}."
            )
        return value

    def texts(self, name: str, allowed: Collection[str] | None = None) -> tuple[str, ...]:
        """Return a list of texts, each one of `allowed` where given; empty when missing. Raises InputError."""
        out: list[str] = []
        for value in self._list(name, "texts"):
            if not isinstance(value, str):
                raise InputError(f"{self.where}: {name} must be a list of texts, not with {shown(value)} in it.")
            if allowed is not None and value not in allowed:
                raise UnsupportedError(
                    f"{self.where}: {name} holds {shown(value)}, which is not supported; "
                    f"it can hold {_one_of(allowed)}."
                )
            out.append(value)
        return tuple(out)

    def counts(self, name: str, most: int) -> tuple[int, ...]:
        """Return a list of whole numbers from 0 to `most`; empty when missing. Raises InputError."""
        out: list[int] = []
        for value in self._list(name, "whole numbers"):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise InputError(
                    f"{self.where}: {name} must be a list of whole numbers from 0 to {most}, "
                    f"not with {shown(value)} in it."
                )
            out.append(value)
        return tuple(out)

    def section(self, name: str) -> Fields | None:
        """Return a table inside this one, None when missing or null. Raises InputError."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise InputError(f"{self.where}: {name} must be a table of fields, not {shown(value)}.")
        return Fields(value, f"{self.where}: {name}")

    def only(self, name: str, *accepted: object) -> None:
        """Tick off a field that is understood with these values only (null always is). Raises UnsupportedError."""
        value = self.get(name)
        if value is None or any(type(value) is type(a) and value == a for a in accepted):
            return
        choices = " or ".join(shown(a) for a in accepted) or "null"
        raise UnsupportedError(f"{self.where}: {name} = {shown(value)} is not supported; it can be {choices}.")

    def same(self, name: str, value: int, other: str) -> None:
        """Tick off a field that repeats another one. Raises InputError when the two differ."""
        given = self.get(name)
        if given is not None and (isinstance(given, bool) or given != value):
            raise InputError(
                f"{self.where}: {name} = {shown(given)} contradicts {other} = {value}; they must be equal."
            )

    def finish(self, kind: str, harmless: Collection[str], endings: Iterable[str]) -> None:
        """Refuse the first field that nobody read, that is not null and not known to be harmless.

        Raises UnsupportedError.
        """
        endings = tuple(endings)
        for name, value in self.values.items():
            if value is None or name in self._read or name in harmless or str(name).endswith(endings):
                continue
            label = name if isinstance(name, str) and len(name) <= 60 else shown(name)
            raise UnsupportedError(
                f"{self.where}: {label} = {shown(value)} is not a field that the import of {kind} models understands; "
                "if it does not change the computation, remove it."
            )

    def _list(self, name: str, what: str) -> list[Any] | tuple[Any, ...]:
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise InputError(f"{self.where}: {name} must be a list of {what}, not {shown(value)}.")
        return value


def check_nesting(config: object, where: str) -> None:
    """Refuse what is not a table of named fields, or is nested or filled beyond any real configuration.

    Raises InputError.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"{where}: a model configuration must be a table of fields, not {shown(config)}.")
    level: list[object] = [config]
    items = 0
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for value in level:
            inner += list(value.values()) if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]
        items += len(inner)
        if items > MAX_ITEMS:
            raise InputError(
                f"{where}: the configuration holds more than {MAX_ITEMS} values; a model's has a few hundred."
            )
        if not all(isinstance(name, str) for table in level if isinstance(table, Mapping) for name in table):
            raise InputError(f"{where}: the names of fields must be texts.")
        level = [value for value in inner if isinstance(value, Mapping | list | tuple)]
        if not level:
            return
    raise InputError(
        f"{where}: the configuration is nested deeper than {MAX_DEPTH} levels; a model's has four or five."
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the table in a JSON file of at most 4 MiB; `Infinity` and `NaN`, which Hugging Face writes, are read.

    Raises InputError.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read: {error.strerror or error}.") from None
    except ValueError:
        raise InputError(f"{shown(str(path))} is not a usable file name.") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: the file is larger than 4 MiB; a model's config.json has a few KiB.")
    try:
        config = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise InputError(f"{path}: the file is not UTF-8 text; a config.json is.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except _RepeatedFieldError as error:
        raise InputError(f"{path}: the field {shown(error.args[0])} is given twice; keep one.") from None
    except (RecursionError, ValueError):
        raise InputError(
            f"{path}: not JSON that can be read: nested too deep, or a number of thousands of digits."
        ) from None
    check_nesting(config, str(path))
    return config


class _RepeatedFieldError(Exception):
    """A name that occurs twice in one JSON object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise _RepeatedFieldError(name)
        out[name] = value
    return out


def _one_of(allowed: Collection[str]) -> str:
    names = sorted(allowed)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
