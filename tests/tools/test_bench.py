"""The table of speeds says which goals are missed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import bench_chip
from bench_time import share, times


def test_a_goal_that_is_missed_is_marked() -> None:
    assert (times(7.95, 10), times(17, 10)) == ("0.80 x, **missed**", "1.70 x")
    assert (share(6, 5), share(2, 5)) == ("120%, **missed**", "40%")
    assert bench_chip.at_least("rate", 7.95, 10)[-1].endswith("**missed**")
    assert bench_chip.at_most("seconds", 11, 10)[-1].endswith("**missed**")
