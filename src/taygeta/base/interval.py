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


def widen(nominal: float, corners: Sequence[tuple[str, float]], error: float, floor: float = 0.0) -> Interval:
    """Combine groups of assumptions with the residuals of held-out silicon.

    corners: (group, value with only that group moved to one of its ends). Groups and residuals are independent, so
    the squares of their logarithms add, upwards and downwards apart. error: the ratio within which 80 % of held-out
    measurements lie, minus one.

    floor: what no machine within the assumptions can go below, such as the roofline with all of them at their better
    ends: residuals are symmetric and know no such bound, so the low end stops there. The nominal value never moves.
    """
    down, up = [math.log1p(error)], [math.log1p(error)]
    for group in dict.fromkeys(name for name, _ in corners):
        values = [value for name, value in corners if name == group]
        down.append(math.log(nominal / min(*values, nominal)))
        up.append(math.log(max(*values, nominal) / nominal))
    low = max(nominal * math.exp(-math.hypot(*down)), min(floor, nominal))
    return Interval(low, nominal, nominal * math.exp(math.hypot(*up)))
