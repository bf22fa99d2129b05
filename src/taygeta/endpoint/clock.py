"""The clock of an endpoint: the fleet's seconds over those of the wall."""

from __future__ import annotations

import math
import time

from taygeta.base.errors import InputError

MAX_SPEED = 1e6
FREE = math.inf


class Clock:
    """speed: seconds of the fleet in a second of the wall; FREE (infinity): the fleet waits for nothing.

    Times of the fleet are counted from the clock's start and are absolute, so that nothing drifts.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.began = time.monotonic()

    @property
    def free(self) -> bool:
        """Whether the fleet runs as fast as it can, apart from the wall."""
        return self.speed == FREE

    def start(self) -> None:
        """Count the fleet's time from now."""
        self.began = time.monotonic()

    def fleet_time(self, wall: float) -> float:
        """Return the fleet's time at a time of the wall (time.monotonic). It has none when it runs free."""
        return (wall - self.began) * self.speed

    def wall_time(self, at: float) -> float:
        """Return when the wall reaches a time of the fleet: at once where it runs free."""
        return self.began + at / self.speed


def parse_speed(text: str) -> float:
    """Return a speed from "max" or a number above 0. Raises InputError."""
    if text.strip().lower() == "max":
        return FREE
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1.0 / MAX_SPEED <= value <= MAX_SPEED:
        raise InputError(f"--speed must be max or a number such as 1, 10 or 0.1, not {text!r}.")
    return value
