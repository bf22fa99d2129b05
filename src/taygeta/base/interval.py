"""Numbers with a range: what assumptions and the model's own error leave of a prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A number with the range that its assumptions and the model's own error leave; low <= nominal <= high."""

    low: float
    nominal: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Return the interval times a positive number."""
        return Interval(self.low * factor, self.nominal * factor, self.high * factor)

    def inverse(self, numerator: float = 1.0) -> Interval:
        """Return numerator / x: a rate from a time."""
        return Interval(numerator / self.high, numerator / self.nominal, numerator / self.low)


def widen(nominal: float, corners: Sequence[float], error: float) -> Interval:
    """Combine the corners of the assumptions with the residuals of held-out silicon: independent, so squares of
    logarithms add.

    error: the ratio within which 80 % of held-out measurements lie, minus one.
    """
    residual = math.log1p(error)
    fast = math.log(nominal / min((*corners, nominal)))
    slow = math.log(max((*corners, nominal)) / nominal)
    return Interval(
        nominal * math.exp(-math.hypot(fast, residual)), nominal, nominal * math.exp(math.hypot(slow, residual))
    )
