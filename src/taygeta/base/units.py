"""Quantities with units exist in files and on the command line only; inside, everything is SI.

`parse` turns "3.35 TB/s" into 3.35e12 for a field whose dimension is a bandwidth, and refuses a bare number, a
wrong dimension, a negative or a non-finite value with one sentence. `show` is its inverse for people.
kB = 1000 bytes, KiB = 1024 bytes; b is a bit, B a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantiphy import InvalidNumber, Quantity

from taygeta.base.errors import InputError


@dataclass(frozen=True)
class Dimension:
    """A physical dimension: its name, an example for messages, its SI unit, and accepted units with their factor."""

    name: str
    example: str
    unit: str
    units: tuple[tuple[str, float], ...]


BYTES = Dimension("a size", "80 GiB", "B", (("B", 1.0),))
BYTES_PER_S = Dimension(
    "a bandwidth", "3.35 TB/s", "B/s", (("B/s", 1.0), ("b/s", 1 / 8), ("bit/s", 1 / 8), ("bps", 1 / 8))
)
BYTES_PER_CLOCK = Dimension("a bandwidth per clock", "64 B/clk", "B/clk", (("B/clk", 1.0),))
FLOP_PER_S = Dimension("a compute rate", "989 TFLOP/s", "FLOP/s", (("FLOP/s", 1.0), ("OP/s", 1.0)))
SECONDS = Dimension("a time", "10 us", "s", (("s", 1.0), ("min", 60.0), ("h", 3600.0)))
HERTZ = Dimension("a frequency", "1.83 GHz", "Hz", (("Hz", 1.0),))
WATTS = Dimension("a power", "700 W", "W", (("W", 1.0),))
DOLLARS_PER_HOUR = Dimension("a price per hour", "2.50 $/h", "$/h", (("$/h", 1.0),))
COUNT = Dimension("a count", "132", "", ())
RATIO = Dimension("a ratio", "0.85", "", ())

UNITLESS = (COUNT, RATIO)
_TOO_LARGE = 1e30  # no quantity of this field comes near; keeps arithmetic on user input finite


def parse(value: object, dimension: Dimension, where: str) -> float:
    """Return `value` in SI units.

    `value` is a string with a unit for dimensioned fields, and a plain number for counts and ratios. `where` names
    the field in messages. Raises InputError.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where} must be {dimension.name} such as {dimension.example!r}, not {value!r}.")
    number, unit = _split(value, dimension, where)
    if not math.isfinite(number) or number < 0 or number > _TOO_LARGE:
        raise InputError(f"{where} must be a finite number that is not negative, not {value!r}.")
    if dimension in UNITLESS:
        return _unitless(number, unit, value, dimension, where)
    if not unit:
        raise InputError(f"{where} = {value!r} has no unit: write {dimension.name} such as {dimension.example!r}.")
    factor = dict(dimension.units).get(unit)
    if factor is None:
        raise InputError(f"{where} must be {dimension.name} such as {dimension.example!r}, not {value!r}{_is(unit)}.")
    return number * factor


def show(value: float, dimension: Dimension, digits: int = 4) -> str:
    """Return an SI value for people: 3.35e12 with BYTES_PER_S becomes '3.35 TB/s'."""
    if dimension in UNITLESS or not dimension.unit:
        return f"{value:.{digits}g}" if dimension is RATIO else f"{value:,.0f}"
    if dimension is DOLLARS_PER_HOUR:
        return f"{value:.2f} $/h"
    return _Shown(value, dimension.unit).render(prec=digits - 1)


def seconds(value: float) -> str:
    """Return a time for people, with three significant digits: 0.01234 becomes '12.3 ms'."""
    return _Shown(value, "s").render(prec=2)


class _Shown(Quantity):
    """A quantity that is written with prefixes up to exa: peaks are petaflops."""


_Shown.set_prefs(output_sf="EPTGMkmunpf")


def _split(value: str | int | float, dimension: Dimension, where: str) -> tuple[float, str]:
    if not isinstance(value, str):
        try:
            return float(value), ""
        except OverflowError:
            return math.inf, ""
    text = value.strip().replace("/clock", "/clk").replace("FLOPS", "FLOP/s").replace("OPS", "OP/s")
    minutes = text.endswith("min")  # the parser would read 5 milli-in
    try:
        quantity = Quantity(text.removesuffix("min"), binary=True)
    except (InvalidNumber, ValueError):
        raise InputError(f"{where} must be {dimension.name} such as {dimension.example!r}, not {value!r}.") from None
    return float(quantity), str(quantity.units or "") + ("min" if minutes else "")


def _unitless(number: float, unit: str, value: object, dimension: Dimension, where: str) -> float:
    if unit:
        raise InputError(f"{where} must be {dimension.name} without a unit such as {dimension.example}, not {value!r}.")
    if dimension is COUNT and number != int(number):
        raise InputError(f"{where} must be a whole number, not {value!r}.")
    return number


def _is(unit: str) -> str:
    """What a wrong unit measures, for the message: ', which is a size'."""
    for dimension in (BYTES, BYTES_PER_S, BYTES_PER_CLOCK, FLOP_PER_S, SECONDS, HERTZ, WATTS, DOLLARS_PER_HOUR):
        if unit in dict(dimension.units):
            return f", which is {dimension.name}"
    return ""
