"""The catalogue of chips: names and files to sheets, sheets to chips."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.spec.chip import Chip, build_chip, check_sheet
from taygeta.spec.sheet import Sheet, read_sheet


def chip(name: str, settings: Mapping[str, str] | None = None, corner: str = "nominal") -> Chip:
    """Return a chip by catalogue name, alias or file, with fields overridden, at a corner of its assumptions.

    Raises InputError or UnknownNameError.
    """
    return build_chip(sheet(name, settings), corner)


def sheet(name: str, settings: Mapping[str, str] | None = None) -> Sheet:
    """Return the sheet of a chip by name, alias or file, completed by its family and overridden by `settings`."""
    found = _complete(_file_of(name))
    if settings:
        found = found.overridden(settings)
    check_sheet(found)
    return found


def chip_names() -> tuple[str, ...]:
    """Return the ids of the catalogue, in alphabetical order."""
    return tuple(sorted(_files("chips")))


def family_names() -> tuple[str, ...]:
    """Return the names of the families whose defaults a sheet can take."""
    return tuple(sorted(_files("families")))


def _file_of(name: str) -> Path:
    key = _key(name)
    files = _files("chips")
    if key in files:
        return files[key]
    if key in _aliases():
        return files[_aliases()[key]]
    path = Path(name)
    if name.endswith(".toml") or _is_file(path):
        if not _is_file(path):
            raise InputError(f"Chip file {name} does not exist.")
        return path
    known = (*files, *_aliases())
    raise UnknownNameError("Chip", name, known, "`taygeta chips` lists the catalogue; a .toml file works too.")


def _key(name: str) -> str:
    """The form in which names are compared: `_`, `-` and a space are equal, case is not looked at."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null character, is no file
        return False


@cache
def _files(folder: str) -> dict[str, Path]:
    root = Path(str(resources.files("taygeta") / "data" / folder))
    return {path.stem: path for path in root.glob("*.toml")}


@cache
def _aliases() -> dict[str, str]:
    out: dict[str, str] = {}
    for name, path in sorted(_files("chips").items()):
        for alias in read_sheet(path).aliases:
            out[_key(alias)] = name
    return out


def _complete(path: Path) -> Sheet:
    own = read_sheet(path)
    family = own.texts.get("family")
    if family is None:
        raise InputError(
            f"{path}: family is missing: it names the defaults for what the file leaves out; one of "
            f"{', '.join(family_names())}."
        )
    files = _files("families")
    if family not in files:
        raise UnknownNameError("Family", family, files, f"Families are {', '.join(family_names())}.")
    if "id" not in own.texts:
        raise InputError(f"{path}: id is missing: the name by which a command knows the chip, such as 'my-chip'.")
    return own.over(read_sheet(files[family], "family"))
