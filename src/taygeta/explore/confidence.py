"""How sure a plan is: the range of its share of requests, and what slow and fast steps would need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1_000
BLOCKS = 50  # of requests in order of arrival: neighbours share a queue, so that they are drawn together
CONFIDENCE = 0.95
Z = 1.959963984540054  # of the normal distribution, two-sided, at CONFIDENCE


@dataclass(frozen=True)
class Confidence:
    """How sure a plan is.

    share_low, share_high: interval of the share at CONFIDENCE. fast, slow: chips where steps take as long as at the
    fast and at the slow end, None where no number tried holds. factors: those ends over the nominal step.
    """

    share_low: float
    share_high: float
    factors: tuple[float, float]
    fast: int | None
    slow: int | None
    chips: int

    @property
    def holds_at_slow_end(self) -> bool:
        """Whether the plan holds with the slow steps too."""
        return self.slow is not None and self.slow <= self.chips

    @property
    def more_chips(self) -> int | None:
        """Chips that the slow end needs beyond the plan; None where no number tried holds."""
        return None if self.slow is None else max(0, self.slow - self.chips)


def share_interval(good: NDArray[np.bool_], seed: int = 0) -> tuple[float, float]:
    """Return the interval of a share at CONFIDENCE, from requests in order of arrival.

    The hull of two: Wilson's score interval (JASA 22, 1927), which takes requests for independent and says something
    of shares of 0 and 1, and a bootstrap over BLOCKS blocks of neighbours (Kunsch, Ann. Statist. 17, 1989), which
    knows that one full queue spoils many requests.
    """
    count, share = len(good), float(good.mean())
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    parts = np.array_split(good.astype(np.int64), min(BLOCKS, count))
    sums, sizes = np.array([p.sum() for p in parts]), np.array([len(p) for p in parts])
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, len(parts), (RESAMPLES, len(parts)))
    shares = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(shares, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return max(0.0, min(centre - half, float(low))), min(1.0, max(centre + half, float(high)))
