"""The time of a step, looked up: sums of tables that a deployment fills once.

A step's time is a sum. Every operation but attention and recurrent mixers depends on one batch axis alone (tokens,
logit rows, routed tokens, ...), so that all of them together are one table for each axis. Attention adds group by
group: sequences that each add the same number of tokens at their mean context, and each piece of a prompt on its own.
Kernels of the groups share their launch, so that fixed times are kept apart and the largest one counts.

Tables are on whole numbers, every one up to twice `per octave`, then as many to each octave; between two of them time
is a straight line. Plain scalar Python that compiles unchanged and is its own reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

AXIS_OCTAVE = 32  # points to an octave of a batch axis
COUNT_OCTAVE = 16  # of decoding sequences
PIECE_OCTAVE = 8  # of the new tokens of a prompt's piece
CONTEXT_OCTAVE = 4  # of tokens in the cache; attention is nearly linear in them
TOGETHER = 8.0
"""Pieces at which many prompts of a step are priced: one alone does not fill a chip, eight of a length do."""

# Axes of the tables, in the order of graph.ops.BATCH_AXES.
TOKENS, REQUESTS, ABSORBED, EXPANDED, ROUTED, MERGED, GATHERED = range(7)


class Tables(NamedTuple):
    """What steps of one deployment cost, seconds; the first index of each is the pipeline stage.

    axes: stage, batch axis, size. decode: stage, (body, fixed), sequences, context. prompt: stage, (each of many,
    more for the longest, fixed), new tokens, context. expand_from: new tokens of a sequence from which latent
    attention rebuilds keys. verified: tokens that a decoding sequence adds to a step (more than one under
    speculation).
    """

    axes: np.ndarray
    decode: np.ndarray
    prompt: np.ndarray
    expand_from: float
    context_ranks: float
    verified: float


def grid_value(index: int, octave: int) -> int:
    """Return the whole number at an index of a grid with `octave` points to the octave."""
    if index < octave:
        return index
    power = (index - octave) // octave
    return (1 << power) * (octave + (index - octave) % octave)


def position(x: float, octave: int) -> tuple[int, float]:
    """Return (index below x, share of the way to the next) on a grid with `octave` points to the octave."""
    if x < 2.0 * octave:
        index = int(x)
        return index, x - index
    mantissa, exponent = math.frexp(x / octave)
    along = (2.0 * mantissa - 1.0) * octave
    index = int(along)
    return octave * exponent + index, along - index


def on_line(table: np.ndarray, x: float, octave: int) -> float:
    """Return the value of a table at x; beyond its last point the last line goes on."""
    index, share = position(x, octave)
    last = len(table) - 2
    if index > last:
        low, high = grid_value(last, octave), grid_value(last + 1, octave)
        index, share = last, (x - low) / (high - low)
    return table[index] + share * (table[index + 1] - table[index])


def on_plane(table: np.ndarray, x: float, x_octave: int, y: float, y_octave: int) -> float:
    """Return the value of a table of two axes at (x, y); beyond its last points the last lines go on."""
    index, share = position(x, x_octave)
    last = len(table) - 2
    if index > last:
        low, high = grid_value(last, x_octave), grid_value(last + 1, x_octave)
        index, share = last, (x - low) / (high - low)
    below = on_line(table[index], y, y_octave)
    return below + share * (on_line(table[index + 1], y, y_octave) - below)


def rank_seconds(
    tables: Tables,
    stage: int,
    micro: float,
    decodes: int,
    context: float,
    pieces: int,
    news: Sequence[float],
    contexts: Sequence[float],
) -> tuple[float, float]:
    """Return (seconds of a stage for one attention-DP rank, its tokens), experts left out: they see all ranks.

    micro: microbatches that share the work. decodes: sequences that decode, at a mean `context`. news, contexts: new
    tokens and cached tokens of the `pieces` of prompts.
    """
    tokens, absorbed, expanded, merged, gathered = decodes * tables.verified, 0.0, 0.0, 0.0, 0.0
    if tables.verified < tables.expand_from:
        absorbed = tokens
    else:
        expanded = decodes * (context + tables.verified)
    merged = tokens
    body, longest, fixed = 0.0, 0.0, 0.0
    for i in range(pieces):
        new, behind = news[i], contexts[i]
        ranks = tables.context_ranks
        share = new if new < 16.0 * ranks else math.ceil(new / ranks)
        tokens += share
        if new < tables.expand_from:
            absorbed += share
        else:
            expanded += math.ceil((new + behind) / ranks)
        if new < 16.0 * ranks:
            merged += share
        else:
            gathered += share
        body += on_plane(tables.prompt[stage][0], new, PIECE_OCTAVE, behind, CONTEXT_OCTAVE)
        longest = max(longest, on_plane(tables.prompt[stage][1], new, PIECE_OCTAVE, behind, CONTEXT_OCTAVE))
        fixed = max(fixed, on_plane(tables.prompt[stage][2], new, PIECE_OCTAVE, behind, CONTEXT_OCTAVE))
    seconds = body / micro + longest
    if decodes > 0:
        each = max(1.0, decodes / micro)
        seconds += on_plane(tables.decode[stage][0], each, COUNT_OCTAVE, context, CONTEXT_OCTAVE)
        fixed = max(fixed, on_plane(tables.decode[stage][1], each, COUNT_OCTAVE, context, CONTEXT_OCTAVE))
    axes = tables.axes[stage]
    seconds += fixed
    if tokens > 0.0:
        seconds += on_line(axes[TOKENS], max(1.0, tokens / micro), AXIS_OCTAVE)
        seconds += on_line(axes[REQUESTS], max(1.0, (decodes + pieces) / micro), AXIS_OCTAVE)
    seconds += on_line(axes[ABSORBED], absorbed / micro, AXIS_OCTAVE)
    seconds += on_line(axes[EXPANDED], expanded / micro, AXIS_OCTAVE)
    seconds += on_line(axes[MERGED], merged / micro, AXIS_OCTAVE)
    seconds += on_line(axes[GATHERED], gathered / micro, AXIS_OCTAVE)
    return seconds, tokens


def experts_seconds(tables: Tables, stage: int, micro: float, routed: float) -> float:
    """Return the seconds of a stage's experts for the tokens of all attention-DP ranks together."""
    return on_line(tables.axes[stage][ROUTED], routed / micro, AXIS_OCTAVE)
