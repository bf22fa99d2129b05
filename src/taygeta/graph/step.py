"""What a step of execution works on: its tokens, and the cache of every sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taygeta.base.errors import InputError


@dataclass(frozen=True)
class Part:
    """The rows of one sequence in a step: `new` of them from row `start`, after `context` cached tokens."""

    sequence: int
    start: int
    new: int
    context: int

    @property
    def rows(self) -> slice:
        """Where its new tokens stand among the rows of the step."""
        return slice(self.start, self.start + self.new)


class Cache:
    """What earlier steps left for attention: by rank, layer and sequence, arrays with one row a cached token.

    Plain attention keeps keys (context, kv_heads, head_dim) and values (context, kv_heads, v_head_dim); latent
    attention keeps one array (context, kv_rank + rope_dim).
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[int, int, int], tuple[np.ndarray, ...]] = {}
        self._lengths: dict[int, int] = {}

    def length(self, sequence: int) -> int:
        """Return the cached tokens of a sequence, 0 for one that is new."""
        return self._lengths.get(sequence, 0)

    def get(self, rank: int, layer: int, sequence: int) -> tuple[np.ndarray, ...]:
        """Return what is cached of a sequence in a layer."""
        return self._arrays[rank, layer, sequence]

    def append(self, rank: int, layer: int, part: Part, *rows: np.ndarray) -> None:
        """Append the new rows of a sequence in a layer; what a broken-off step left behind is dropped."""
        old = self._arrays.get((rank, layer, part.sequence))
        if old is not None:
            rows = tuple(np.concatenate((a[: part.context], b)) for a, b in zip(old, rows, strict=True))
        self._arrays[rank, layer, part.sequence] = rows

    def advance(self, step: Step) -> None:
        """Count the new tokens of a step that has run as cached."""
        for part in step.parts:
            self._lengths[part.sequence] = part.context + part.new

    def forget(self, sequence: int) -> None:
        """Drop a sequence."""
        self._lengths.pop(sequence, None)
        for key in [key for key in self._arrays if key[2] == sequence]:
            del self._arrays[key]


@dataclass(frozen=True)
class Step:
    """New tokens of some sequences, one sequence after another: ids and positions (tokens,)."""

    parts: tuple[Part, ...]
    ids: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, new: Mapping[int, Sequence[int]], cache: Cache) -> Step:
        """Return the step that adds the tokens `new` of each sequence, in the mapping's order. Raises InputError."""
        parts: list[Part] = []
        start = 0
        for sequence, tokens in new.items():
            if not len(tokens):
                raise InputError(f"Sequence {sequence} adds no tokens in this step; leave it out or give one.")
            parts.append(Part(sequence, start, len(tokens), cache.length(sequence)))
            start += len(tokens)
        if not parts:
            raise InputError("A step needs the new tokens of at least one sequence.")
        ids = np.concatenate([np.asarray(new[p.sequence], dtype=np.int64) for p in parts])
        positions = np.concatenate([np.arange(p.context, p.context + p.new) for p in parts])
        return cls(tuple(parts), ids, positions)

    def lowered(self, expand_from: int, absorbed: bool) -> tuple[Part, ...]:
        """Return the sequences whose latent attention is absorbed, or the others, which are expanded."""
        return tuple(p for p in self.parts if (p.new < expand_from) == absorbed)

    def last_rows(self) -> np.ndarray:
        """Return the row of the last new token of every sequence."""
        return np.array([p.start + p.new - 1 for p in self.parts])
