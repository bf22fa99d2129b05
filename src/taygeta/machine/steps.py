"""The tables of a step: which tokens, where they stand, and which rows of the KV cache they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from taygeta.base.errors import InputError
from taygeta.compiler.compile import Compiled


def tables_of(compiled: Compiled, new: Sequence[Sequence[int]], contexts: Sequence[int]) -> dict[str, Any]:
    """Return the tables for one run: new ids of every sequence, each after its cached tokens.

    A sequence may add fewer tokens than the program has room for, at least one. Raises InputError.
    """
    c = compiled
    if len(new) != c.requests or len(contexts) != c.requests:
        raise InputError(f"The program runs {c.requests} sequences, not {len(new)} with {len(contexts)} contexts.")
    ids, positions = np.zeros(c.rows, np.int64), np.full(c.rows, -1, np.int64)
    last = np.zeros(c.last_rows, np.int64)
    for r, (tokens, context) in enumerate(zip(new, contexts, strict=True)):
        if not 1 <= len(tokens) <= c.new:
            raise InputError(f"The program takes 1 to {c.new} new tokens of a sequence, not {len(tokens)}.")
        if context + len(tokens) > c.capacity:
            raise InputError(f"{context + len(tokens)} tokens exceed the {c.capacity} that the KV cache holds.")
        rows = slice(r * c.new, r * c.new + len(tokens))
        ids[rows] = tokens
        positions[rows] = np.arange(context, context + len(tokens))
        last[r] = rows.stop - 1
    out: dict[str, Any] = {"ids": ids, "positions": positions, "last": last}
    for length in c.caches:
        out |= _cache_tables(c, length, positions, contexts, new)
    return out


def _cache_tables(
    c: Compiled, length: int, positions: np.ndarray, contexts: Sequence[int], new: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    """Rows that new tokens take in a cache of this length, and the positions that its rows hold after that."""
    slots = np.full(c.rows, c.requests * length, np.int64)
    keys = np.full((c.requests, length), -1, np.int64)
    for r, (context, tokens) in enumerate(zip(contexts, new, strict=True)):
        rows = slice(r * c.new, r * c.new + len(tokens))
        slots[rows] = r * length + positions[rows] % length
        held = np.arange(max(0, context + len(tokens) - length), context + len(tokens))
        keys[r, held % length] = held
    return {f"slots.{length}": slots, f"keys.{length}": keys.reshape(-1)}
