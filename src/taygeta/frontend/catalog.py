"""The catalogue of models: names and files to models.

An entry is a TOML file: its name, other names, where the numbers are published, and a [config] table with the fields
of a Hugging Face configuration that the importer needs. A number that nobody has published is a table of low,
nominal, high and reason, and becomes a guess of the model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.frontend.config import MAX_BYTES, Fields, check_nesting, shown
from taygeta.frontend.huggingface import import_config, load_config
from taygeta.frontend.settings import overridden
from taygeta.spec.model import Guess, Model

CORNERS = ("low", "nominal", "high")
_GUESS_KEYS = {"low", "nominal", "high", "reason"}


@dataclass(frozen=True)
class Entry:
    """One entry of the catalogue as its file says it.

    total and active are published parameter counts, None where nobody has published one.
    """

    name: str
    aliases: tuple[str, ...]
    source: str
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    total: float | None = None
    active: float | None = None


def model(name: str, corner: str = "nominal", settings: Mapping[str, str] | None = None) -> Model:
    """Return a model by catalogue name, alias, or file: a config.json, a directory that holds one, or an entry in TOML.

    Names match in any case, with or without the organisation. corner: "low", "nominal" or "high" takes every guessed
    field of an unpublished model at that value; published models have one corner. settings: fields of the
    configuration set by the user, such as {"num_hidden_layers": "40"}; a guess that is set is no guess any more.
    Raises InputError, UnknownNameError, UnsupportedError.
    """
    if corner not in CORNERS:
        raise InputError(f"corner must be low, nominal or high, not {shown(corner)}.")
    found, chosen = _find(name), tuple((settings or {}).items())
    if found is not None:
        return _build(found, corner, chosen)
    path = Path(name)
    try:
        is_file, is_directory = path.is_file(), bool(name.strip()) and path.is_dir()
    except (OSError, ValueError):
        is_file = is_directory = False
    if is_file and path.suffix == ".toml":
        return _build(path, corner, chosen)
    if is_file or is_directory:
        return load_config(path, settings)
    if path.suffix in (".json", ".toml"):
        raise InputError(f"Model file {name[:200]} does not exist.")
    raise UnknownNameError(
        "Model", name[:200], _index(), "`taygeta models` lists the catalogue; a config.json works too."
    )


def model_names() -> tuple[str, ...]:
    """Return the names of the catalogue, in alphabetical order."""
    return tuple(sorted((entry(path).name for path in _files().values()), key=str.lower))


def entry(path: Path) -> Entry:
    """Return an entry of the catalogue from its file. Raises InputError."""
    return _read(path)


def entries() -> tuple[Entry, ...]:
    """Return every entry of the catalogue, in the order of model_names."""
    return tuple(sorted((entry(path) for path in _files().values()), key=lambda e: e.name.lower()))


@lru_cache(maxsize=256)
def _build(path: Path, corner: str, settings: tuple[tuple[str, str], ...]) -> Model:
    found = entry(path)
    guesses: list[Guess] = []
    config = _resolve(overridden(found.config, dict(settings), found.name), corner, guesses, path.name)
    built = import_config(config, found.name, found.source, where=path.name)
    return replace(built, notes=(*built.notes, *found.notes), guesses=tuple(guesses))


def _resolve(config: Mapping[str, Any], corner: str, guesses: list[Guess], where: str) -> dict[str, Any]:
    """Return a configuration with every guessed field at a corner, and note the guesses."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if not isinstance(value, Mapping):
            out[name] = value
        elif "nominal" in value:
            out[name] = _guess(name, value, guesses, where)[CORNERS.index(corner)]
        else:
            out[name] = _resolve(value, corner, guesses, where)
    return out


def _guess(name: str, value: Mapping[str, Any], guesses: list[Guess], where: str) -> tuple[int, int, int]:
    """Return low, nominal and high of a guessed field. Raises InputError."""
    fields = Fields(value, f"{where}: {name}")
    if set(value) != _GUESS_KEYS or not isinstance(value["reason"], str) or not value["reason"].strip():
        raise InputError(f"{where}: {name} must have low, nominal, high and a reason that names who estimated it.")
    low, nominal, high = (fields.count(key, 10**12, least=0) for key in CORNERS)
    if not low <= nominal <= high:
        raise InputError(f"{where}: {name} must have low <= nominal <= high, not {low}, {nominal}, {high}.")
    guesses.append(Guess(name, low, nominal, high, value["reason"]))
    return low, nominal, high


@cache
def _read(path: Path) -> Entry:
    table = _read_toml(path)
    fields = Fields(table, path.name)
    config = table.get("config")
    if not isinstance(config, Mapping):
        raise InputError(
            f"{path.name}: config is missing; it must be a table with the fields of a Hugging Face config.json."
        )
    published = fields.section("published_parameters")
    counts = dict(published.values) if published else {}
    if not set(counts) <= {"total", "active"} or not all(type(v) in (int, float) and v > 0 for v in counts.values()):
        raise InputError(
            f"{path.name}: published_parameters must be numbers named total and active, such as {{total = 8.03e9}}."
        )
    out = Entry(
        name=_text(fields, "name"),
        aliases=fields.texts("aliases"),
        source=_text(fields, "source"),
        notes=fields.texts("notes"),
        config=config,
        total=counts.get("total"),
        active=counts.get("active"),
    )
    fields.finish("catalogue", ("config",), ())
    return out


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise InputError(f"{path}: the file is larger than 4 MiB; an entry of the catalogue has one or two KiB.")
        table = tomllib.loads(raw.decode())
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise InputError(f"{path}: not TOML: {reason}.") from None
    check_nesting(table, path.name)
    return table


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{fields.where}: {name} must be a text, not {shown(value)}.")
    return value


def _find(name: str) -> Path | None:
    """Return the file of a catalogue name or alias; a short name finds its file without reading the others."""
    key = _key(name)
    direct = _files().get(key)
    return direct if direct is not None else _index().get(key)


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


@cache
def _files() -> dict[str, Path]:
    root = Path(str(resources.files("taygeta") / "data" / "models"))
    return {path.stem: path for path in sorted(root.glob("*.toml"))}


@cache
def _index() -> dict[str, Path]:
    """Return every name, short name and alias with its file. Raises InputError when two entries share one."""
    out: dict[str, Path] = {}
    for path in _files().values():
        found = entry(path)
        for name in (found.name, *found.aliases):
            for key in {_key(name), _key(name.rpartition("/")[2])}:
                if out.setdefault(key, path) != path:
                    raise InputError(f"{path.name}: the name {key!r} belongs to {out[key].name} already.")
    return out
