"""Units of work of an attention, and how they are spread over the cores of a chip.

A unit is some query tokens of one sequence and the query heads that share a key head. Where units are fewer than
cores, decode splits the keys too.
"""

from __future__ import annotations

from dataclasses import dataclass

from taygeta.compiler.context import Context
from taygeta.compiler.tiling import divisors

MOST_ROWS = 256
"""Query rows of a unit at most: beyond, more rows no longer amortise the keys."""


@dataclass(frozen=True)
class Heads:
    """One attention as the phase needs it, per chip.

    group: query heads of a key head. keys, values: buffers of the cache; value_start: first column of the values in
    them (0, or inside the keys). scale, softcap, window, chunk, sinks as graph.meaning.Attend.
    """

    kv_heads: int
    group: int
    key_dim: int
    value_dim: int
    keys: str
    values: str
    scale: float
    softcap: float = 0.0
    window: int = 0
    chunk: int = 0
    sinks: str = ""


@dataclass(frozen=True)
class Spread:
    """How units are spread: cores over key heads, parts of a group, sequences, query tiles and splits of the keys.

    tile: query tokens of a unit; steps: query tiles that a core takes one after another.
    """

    heads: int
    parts: int
    requests: int
    queries: int
    splits: int
    tile: int
    steps: int

    @property
    def cores(self) -> int:
        """Cores that work."""
        return self.heads * self.parts * self.requests * self.queries * self.splits

    def digit(self, name: str) -> str:
        """Return the digit of a core's number that says which head, part, sequence, query tile or split is its own."""
        names = ("heads", "parts", "requests", "queries", "splits")
        divisor = 1
        for other in names[: names.index(name)]:
            divisor *= getattr(self, other)
        modulus = getattr(self, name)
        return f"core/{divisor}%{modulus}" if divisor > 1 else f"core%{modulus}"


def spread(c: Context, h: Heads) -> Spread:
    """Spread the units of an attention over the cores of a chip."""
    free = c.target.cores
    heads = _most(h.kv_heads, free)
    requests = _most(c.requests, free // heads)
    room = free // (heads * requests)
    parts = _most(h.group, room) if c.new > 1 else 1
    rows = h.group // parts
    tile = max((d for d in divisors(c.new) if d * rows <= MOST_ROWS), default=1)
    while tile > 1 and c.new // tile < room // parts and tile * rows > c.target.chip.tile[0]:
        tile = max(d for d in divisors(c.new) if d < tile)
    queries = _most(c.new // tile, room // parts)
    steps = c.new // (tile * queries)
    tiles = c.cache_length // c.key_step
    splits = _most(tiles, room // (parts * queries)) if steps == 1 else 1
    return Spread(heads, parts, requests, queries, splits, tile, steps)


def _most(count: int, limit: int) -> int:
    """The largest divisor of a count that is no more than a limit."""
    return max((d for d in divisors(count) if d <= limit), default=1)
