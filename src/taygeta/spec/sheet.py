"""A chip sheet: the numbers of a chip with where each comes from, as read from a TOML file.

A number is written as
    clock = "1.83 GHz"                                            # in a file of one's own: the file is the source
    clock = { value = "1.83 GHz", source = "whitepaper" }         # a key of [sources], or a text
    clock = { low = "1.4 GHz", nominal = "1.5 GHz", high = "1.6 GHz", reason = "unpublished; from ..." } The last is
    an assumption: predictions carry the interval that follows from it. What a sheet leaves out comes from its family
    (data/families), where every number is an assumption. A key that is in no table is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from taygeta.base import units
from taygeta.base.errors import InputError
from taygeta.base.formats import FORMATS, RULES, SUM_BITS
from taygeta.spec.fields import FIELDS, TENSOR_PARALLEL, TEXTS, TOPOLOGIES

MAX_FILE_BYTES = 256 * 1024  # a sheet is a few kilobytes; a bound for files from outside
KINDS = ("gpu", "tpu", "npu", "cpu")
_PORTS = ("calibration.core_port_share", "calibration.matmul.core_port_share")
_TABLES = ("aliases", "sources", "notes", "activations", "cooling")


ORIGINS = ("family", "chip", "user")  # of numbers, the ones that count more last


@dataclass(frozen=True)
class Entry:
    """One number of a sheet in SI units. origin: "chip", "family" or "user"; reason is set for assumptions only."""

    low: float
    nominal: float
    high: float
    source: str
    reason: str
    origin: str

    @property
    def assumed(self) -> bool:
        """True when the number is not published and an interval stands for it."""
        return bool(self.reason)


@dataclass(frozen=True)
class Sheet:
    """Everything a chip file says. activations: format of weights -> format of activations it is multiplied with."""

    texts: Mapping[str, str]
    entries: Mapping[str, Entry]
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    activations: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""

    @property
    def id(self) -> str:
        """The name by which a command knows the chip."""
        return self.texts.get("id", "")

    def assumptions(self) -> tuple[tuple[str, Entry], ...]:
        """Return the assumed numbers with their paths, in the order of the field table."""
        return tuple(
            (path, self.entries[path]) for path in FIELDS if path in self.entries and self.entries[path].assumed
        )

    def over(self, family: Sheet) -> Sheet:
        """Return this sheet with what it leaves out taken from `family`."""
        entries = {**{path: replace(e, origin="family") for path, e in family.entries.items()}, **self.entries}
        return replace(
            self,
            texts=MappingProxyType({**_shared_texts(family), **self.texts}),
            entries=MappingProxyType(entries),
            activations=MappingProxyType({**family.activations, **self.activations}),
        )

    def overridden(self, settings: Mapping[str, str]) -> Sheet:
        """Return the sheet with fields set by the user, such as {"hbm.bandwidth": "3 TB/s"}; a text that says how
        something works can be set too, such as {"tensor.scale_rule": "rceil"}.

        Peaks, the vector rate and the bandwidth of the memory that cores share are stated at the sheet's clock and core
        count: more cores come with theirs, so setting either scales those that are not set as well. Raises InputError.
        """
        entries, texts = dict(self.entries), dict(self.texts)
        for path, text in settings.items():
            if path in TEXTS and "." in path:
                texts[path] = _text(path, text, f"--set {path}")
                _check_choices({path: texts[path]}, f"--set {path}")
            else:
                entries[path] = _entry(path, text, f"--set {path}", {}, "user")
        scale = 1.0
        for path in ("clock", "cores.count"):
            if path in settings and path in self.entries:
                scale *= entries[path].nominal / self.entries[path].nominal
        if scale != 1.0:
            # Without a shared memory the cores' ports are shares of main memory, which does not grow with them.
            ports = ("cache.bandwidth",) if "cache.bandwidth" in self.entries else _PORTS
            for path, old in self.entries.items():
                if path not in settings and path.startswith(("tensor.peak.", "vector.flop_per_s", *ports)):
                    entries[path] = replace(
                        old, low=old.low * scale, nominal=old.nominal * scale, high=old.high * scale
                    )
        return replace(self, texts=MappingProxyType(texts), entries=MappingProxyType(entries))


def read_sheet(path: Path, origin: str = "chip") -> Sheet:
    """Read a chip or family file. Raises InputError that names the file, the field and what would work."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB: a chip file is a few kilobytes.")
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOML and UTF-8 errors, and integers of too many digits, are ValueErrors
        raise InputError(f"{path} is not a TOML file: {error}.") from None
    return parse_sheet(document, str(path), origin)


def parse_sheet(document: Mapping[str, object], where: str, origin: str = "chip") -> Sheet:
    """Turn a parsed TOML document into a Sheet. `where` names the file in messages. Raises InputError."""
    sources = _strings(document.get("sources", {}), f"{where}: sources")
    texts: dict[str, str] = {}
    entries: dict[str, Entry] = {}
    for path, value in _flatten({k: v for k, v in document.items() if k not in _TABLES}, "", where):
        if path in TEXTS:
            texts[path] = _text(path, value, where)
        elif path in FIELDS:
            entries[path] = _entry(path, value, f"{where}: {path}", sources, origin)
        else:
            raise InputError(f"{where}: {path} is not a field of a chip.{_close(path)}")
    _check_choices(texts, where)
    return Sheet(
        texts=MappingProxyType(texts),
        entries=MappingProxyType(entries),
        aliases=_list(document.get("aliases", []), f"{where}: aliases"),
        notes=_list(document.get("notes", []), f"{where}: notes"),
        activations=MappingProxyType(_formats(document.get("activations", {}), where)),
        origin=where,
    )


def _flatten(table: object, prefix: str, where: str) -> list[tuple[str, object]]:
    """Return (dotted path, value) of every leaf; a table with value or nominal is a leaf."""
    if not isinstance(table, Mapping):
        return [(prefix, table)]
    if prefix and ("value" in table or "nominal" in table or prefix in FIELDS):
        return [(prefix, table)]
    out: list[tuple[str, object]] = []
    for key, value in table.items():
        path = f"{prefix}.{key}" if prefix else key
        if path.count(".") > 4:
            raise InputError(f"{where}: {path} is not a field of a chip: tables are at most four deep.")
        out += _flatten(value, path, where)
    return out


def _entry(path: str, value: object, where: str, sources: Mapping[str, str], origin: str) -> Entry:
    if path not in FIELDS:
        raise InputError(f"{where}: {path} is not a field of a chip.{_close(path)}")
    dimension = FIELDS[path].dimension
    if not isinstance(value, Mapping):
        number = _positive(units.parse(value, dimension, where), value, where)
        return Entry(number, number, number, "set by the user" if origin == "user" else "this file", "", origin)
    unknown = set(value) - {"value", "source", "low", "nominal", "high", "reason"}
    if unknown:
        raise InputError(
            f"{where}: {sorted(unknown)[0]!r} is not a key of a number: use value and source,"
            " or low, nominal, high and reason."
        )
    if "value" in value:
        number = _positive(units.parse(value["value"], dimension, where), value["value"], where)
        source = _text("source", value.get("source", "this file"), where)
        return Entry(number, number, number, sources.get(source, source), "", origin)
    return _assumption(value, dimension, where, sources, origin)


def _assumption(
    value: Mapping[str, object], dimension: units.Dimension, where: str, sources: Mapping[str, str], origin: str
) -> Entry:
    missing = [key for key in ("low", "nominal", "high", "reason") if key not in value]
    if missing:
        raise InputError(f"{where}: an assumption needs low, nominal, high and a reason; {missing[0]} is missing.")
    low, nominal, high = (
        _positive(units.parse(value[k], dimension, where), value[k], where) for k in ("low", "nominal", "high")
    )
    if not low <= nominal <= high:
        raise InputError(
            f"{where}: an assumption needs low <= nominal <= high, not {value['low']!r}, {value['nominal']!r},"
            f" {value['high']!r}."
        )
    source = _text("source", value["source"], where) if "source" in value else ""
    return Entry(low, nominal, high, sources.get(source, source), _text("reason", value["reason"], where), origin)


_MAY_BE_ZERO = ("calibration.", "cache.", "sram.", "price.")


def _positive(number: float, given: object, where: str) -> float:
    field_path = where.rsplit(" ", 1)[-1]
    if number == 0 and not field_path.startswith(_MAY_BE_ZERO):
        raise InputError(f"{where} must be greater than zero, not {given!r}.")
    return number


def _text(key: str, value: object, where: str) -> str:
    if key == "year" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > 4000:
        raise InputError(f"{where}: {key} must be a text, not {value!r}.")
    return value.strip()


def _strings(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a table of texts, not {value!r}.")
    return {str(k): _text(str(k), v, where) for k, v in value.items()}


def _list(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list of texts, not {value!r}.")
    return tuple(_text("item", item, where) for item in value)


def _formats(value: object, where: str) -> dict[str, str]:
    table = _strings(value, f"{where}: activations")
    for name in (*table, *table.values()):
        if name not in FORMATS:
            raise InputError(f"{where}: activations: {name!r} is not a format; formats are {', '.join(FORMATS)}.")
    return table


_CHOICES = {
    "link.topology": TOPOLOGIES, "tensor.parallel": TENSOR_PARALLEL, "tensor.scale_rule": RULES, "kind": KINDS,
}  # fmt: skip


def _check_choices(texts: Mapping[str, str], where: str) -> None:
    for key, choices in _CHOICES.items():
        if key in texts and texts[key] not in choices:
            raise InputError(f"{where}: {key} must be one of {', '.join(choices)}, not {texts[key]!r}.")
    wide = texts.get("tensor.wide_sum", "tree")
    if wide not in ("tree", "exact", *map(str, range(SUM_BITS[0], SUM_BITS[1] + 1))):
        raise InputError(
            f"{where}: tensor.wide_sum must be tree, exact or {SUM_BITS[0]} to {SUM_BITS[1]} bits, not {wide!r}."
        )


def _shared_texts(family: Sheet) -> dict[str, str]:
    own = ("id", "name", "status", "year")
    return {key: text for key, text in family.texts.items() if key not in own}


def _close(path: str) -> str:
    import difflib  # only on the way to an error

    close = difflib.get_close_matches(path, (*FIELDS, *TEXTS), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else " `taygeta show --fields` lists them."
