"""Dollars per million tokens and tokens per second per megawatt, as ranges.

A price per chip-hour is what a chip rents for, so it already holds power, hosts and margins. The power is what the
chip is designed or provisioned for: an upper end without the host and cooling around it.
"""

from __future__ import annotations

from taygeta.base.interval import Interval

SECONDS_PER_HOUR = 3600.0


def dollars_per_million(price: tuple[float, float, float] | None, per_chip: Interval) -> Interval | None:
    """Return dollars per million output tokens from a price per chip-hour (low, nominal, high) and tokens/s of a chip.

    The low end pairs the low price with the high rate. None without a price.
    """
    if price is None:
        return None
    low, nominal, high = (p / SECONDS_PER_HOUR * 1e6 for p in price)
    return Interval(low / per_chip.high, nominal / per_chip.nominal, high / per_chip.low)


def per_megawatt(watts: float | None, per_chip: Interval) -> Interval | None:
    """Return output tokens/s per megawatt of chip power. None without a power."""
    return per_chip.scaled(1e6 / watts) if watts else None
