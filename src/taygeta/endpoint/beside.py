"""Fleets beside the first one: the same model on other chips, or in other formats, in the words of a pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from taygeta.base.errors import InputError
from taygeta.endpoint.fleets import Fleets
from taygeta.endpoint.service import Service
from taygeta.explore.fleets import COUNTS, FleetWords, parse_pool
from taygeta.explore.recipe import split_count, split_settings
from taygeta.serving.fleet import Fleet
from taygeta.spec.catalog import chip_names

MAX_TEXT = 200
MAX_CHIPS = 1024
SPREAD = (*COUNTS, "sequence")
"""What the first fleet says of its own chips only; others spread over all of theirs, or say so themselves."""

Make = Callable[[Fleet, Sequence[str]], Service]


@dataclass(frozen=True)
class Beside:
    """Makes further fleets. words: of the first fleet. make: a service of a fleet and its names."""

    words: FleetWords
    make: Make

    def build(self, text: str, fleets: Fleets) -> Service:
        """Return the service of "h100:8" or "h100:8,tp=4,weights=fp8", not served yet. It takes seconds.

        Raises InputError and what building a fleet raises, ApiError where it is served already or none has room.
        """
        pool = parse_pool(text)
        how = {name: value for name, value in self.words.how.items() if name not in SPREAD}
        settings = {f"model.{name}": value for name, value in split_settings(self.words.settings)[1].items()}
        words = replace(
            self.words, pools=(pool,), how=how, settings=MappingProxyType(settings), failures=(), scheduler=""
        )
        fleet = words.build()
        name = self._name(text, fleet, fleets)
        fleets.check_room(name)
        return self.make(fleet, [name])

    def _name(self, text: str, fleet: Fleet, fleets: Fleets) -> str:
        """Return the shortest name that is free: model@chip, with its count, with all that is said of it."""
        deployment = fleet.pools[0].deployment
        on, _, rest = text.replace(" ", "").partition(",")
        count = split_count(on)[1]
        chip = f"{deployment.chip.id}:{count}" if count else deployment.chip.id
        short = f"{deployment.model.name.rpartition('/')[2]}@"
        names = [] if rest else [short + deployment.chip.id, short + chip]
        names.append(short + ",".join(part for part in (chip, rest) if part))
        return next((name for name in names if name not in fleets.names), names[-1])


def check_text(text: str) -> None:
    """Refuse a fleet that a client may not ask for. Raises InputError."""
    if len(text) > MAX_TEXT:
        raise InputError(f"A fleet is written in at most {MAX_TEXT} signs, not {len(text)}.")
    pool = parse_pool(text)
    check_chip(pool.on)
    said = [pool.how.get(name, 1) for name in COUNTS] + [pool.replicas or 1]
    if math.prod(said) > MAX_CHIPS:
        raise InputError(f"A fleet has at most {MAX_CHIPS:,} chips here, not {math.prod(said):,}.")


def check_chip(on: str) -> None:
    """Refuse a chip of a client that is not of the catalogue, or too many of it. Raises InputError."""
    name, count = split_count(on)
    if name not in chip_names():
        raise InputError(f"There is no chip {name[:100]!r} in the catalogue: write CHIP:COUNT such as h100:8.")
    if count is not None and count > MAX_CHIPS:
        raise InputError(f"A fleet has at most {MAX_CHIPS:,} chips here, not {count:,}.")
