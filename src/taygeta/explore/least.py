"""The least whole number that holds, where more nearly always holds too."""

from __future__ import annotations

from collections.abc import Callable

NEIGHBOURS = 2  # numbers below the answer that are looked at: more replicas can do worse by the luck of the router


def least(holds: Callable[[int], bool], start: int, most: int) -> int | None:
    """Return the least number of 1 to `most` that holds; None where none does up to `most`.

    From `start`, steps that double until one holds and one does not, then bisection, then the neighbours below the
    answer. Each number is tried once.
    """
    known: dict[int, bool] = {}

    def works(n: int) -> bool:
        if n not in known:
            known[n] = holds(n)
        return known[n]

    at, step = min(max(1, start), most), 1
    if works(at):
        low, high = at, at
        while low > 0 and (low == high or works(low)):
            high = low
            low, step = max(0, low - step), 2 * step
    else:
        low, high = at, at
        while not works(high):
            if high == most:
                return None
            low = high
            high, step = min(most, high + step), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    for below in range(high - 1, max(0, high - 1 - NEIGHBOURS), -1):
        if works(below):
            return least(works, below, below)
    return high
