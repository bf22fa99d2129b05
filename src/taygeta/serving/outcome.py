"""What a run leaves: a column for each fact of a request, a log of steps, gaps between tokens, use of replicas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from taygeta.serving.setup import Setup

# How a request ended: answered in full, refused because its sequence exceeds the KV cache of every replica, cut off by
# the end of the run.
ANSWERED, REFUSED, CUT = 0, 1, 2

GAP_PARTS = 64  # bins of an octave of gaps: 1.1 % wide
GAP_LOWEST = -20  # exponent of the shortest gap told apart: about 1 us
GAP_BINS = 31 * GAP_PARTS

LOG_ROWS = 4096  # of a replica, where not every step is asked for
LOG_TOTAL = 1 << 20  # of all replicas, about

LOG_COLUMNS = ("replica", "start", "seconds", "decodes", "prompt_tokens", "waiting", "running", "blocks")


@dataclass
class Outcome:
    """Columns by request, in the order of the traffic; times in seconds, NaN where there is none.

    arrival: when it came (in a closed loop: when it was released). start: when its first step began. first, end: when
    its first and last token left. replica: the one that ended it, -1 for none. cached: tokens of its prompt that were
    found in a cache. ended: ANSWERED, REFUSED or CUT. gaps: gaps between tokens of a request, counted by gap_bin.
    log: rows of LOG_COLUMNS, one for each step of a replica, or for every 2nd, 4th, ... of them (`log_rows` at
    most). busy, active: seconds that each replica computed, and was there. horizon: when the run ended. interrupted:
    the user ended it first.
    """

    setup: Setup
    arrival: np.ndarray
    start: np.ndarray
    first: np.ndarray
    end: np.ndarray
    replica: np.ndarray
    cached: np.ndarray
    preemptions: np.ndarray
    retries: np.ndarray
    ended: np.ndarray
    gaps: np.ndarray
    steps: np.ndarray
    busy: np.ndarray
    active: np.ndarray
    horizon: float
    log: np.ndarray = field(default_factory=lambda: np.zeros((0, len(LOG_COLUMNS))))
    interrupted: bool = False


def log_rows(replicas: int) -> int:
    """Return the rows at which a replica's log drops every second one and notes half as many steps from then on."""
    return max(64, min(LOG_ROWS, LOG_TOTAL // max(1, replicas)))


def gap_bin(gap: float) -> int:
    """Return the bin of a gap between tokens: GAP_PARTS to the octave, the shortest below 2^GAP_LOWEST s."""
    mantissa, exponent = math.frexp(gap)
    index = (exponent - GAP_LOWEST) * GAP_PARTS + int((2.0 * mantissa - 1.0) * GAP_PARTS)
    return min(max(index, 0), GAP_BINS - 1)


def gap_values() -> np.ndarray:
    """Return the gap in the middle of each bin, seconds."""
    index = np.arange(GAP_BINS)
    exponent, part = index // GAP_PARTS + GAP_LOWEST, index % GAP_PARTS
    return 2.0 ** (exponent - 1.0) * (1.0 + (part + 0.5) / GAP_PARTS)
