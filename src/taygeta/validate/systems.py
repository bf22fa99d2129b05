"""The chips that tables name: a row says "h100_sxm", a kernel needs numbers, at the nominal values and at the
corners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taygeta.base.errors import InputError, TaygetaError
from taygeta.cost.silicon import silicon
from taygeta.cost.step import Silicon
from taygeta.spec.catalog import sheet
from taygeta.spec.chip import Chip, build_chip
from taygeta.spec.sheet import Sheet

CORNERS = ("fast", "slow")


@dataclass(frozen=True)
class System:
    """A chip as a table names it, with what kernels know of it at the nominal values, then at the fast and
    the slow corner.
    """

    name: str
    sheet: Sheet
    chips: tuple[Chip, ...]

    @property
    def chip(self) -> Chip:
        """The chip at its nominal values."""
        return self.chips[0]

    @cached_property
    def silicons(self) -> tuple[Silicon, ...]:
        """What kernels know of each of `chips`. Raises InputError when a constant is missing."""
        return tuple(silicon(chip) for chip in self.chips)

    def error(self, kernel: str, kind: str = "") -> float:
        """Return the chip's error of a kernel, or of a kind of its rows (taygeta.validate.kinds)."""
        return self.chip.error(kernel, kind)

    def errors(self, kernel: str, kinds: np.ndarray) -> np.ndarray:
        """Return `error` of each row, given the kinds of rows."""
        found = {kind: self.error(kernel, kind) for kind in set(kinds.tolist())}
        return np.array([found[kind] for kind in kinds.tolist()], dtype=float)


class Systems:
    """Every chip that tables name, built once. own: chip files that stand for the catalogue's entry of the
    same id or alias.
    """

    def __init__(self, own: Iterable[str] = ()) -> None:
        self._own: dict[str, str] = {}
        for path in own:
            found = sheet(path)
            self._own |= dict.fromkeys((_key(name) for name in (found.id, *found.aliases)), path)
        self._found: dict[str, System | str] = {}

    def get(self, name: str) -> System:
        """Return a chip by the name in a table. Raises InputError with the reason when it cannot be used."""
        key = _key(name)
        if key not in self._found:
            self._found[key] = self._build(name, key)
        found = self._found[key]
        if isinstance(found, str):
            raise InputError(found)
        return found

    def used(self) -> Mapping[str, System]:
        """Return the chips that tables named and that were found."""
        return {key: found for key, found in self._found.items() if isinstance(found, System)}

    def _build(self, name: str, key: str) -> System | str:
        try:
            found = sheet(self._own.get(key, key))
            corners = tuple(build_chip(found, corner) for corner in CORNERS) if found.assumptions() else ()
            system = System(name, found, (build_chip(found), *corners))
            _ = system.silicons  # a chip without its constants answers nothing
            return system
        except TaygetaError as error:
            return str(error)


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")
