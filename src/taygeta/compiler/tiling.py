"""Cutting a multiply for the cores: a bounded search over grids and tiles against memories and tensor unit.

C[T, N] = A[T, K] B[N, K] runs on grid_m x grid_n cores. A core keeps its rows of A and streams its columns of B
through two slots of the scratchpad, tile by tile; sums leave a tile at a time. A cut is priced by the largest of what
it asks of main memory, of the core's port, of the tensor unit and of the vector unit, and by the time to the first
multiply and of the last; the cheapest wins, the first of equals in the order of the search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from taygeta.base.errors import DoesNotFitError
from taygeta.base.formats import format_of
from taygeta.compiler.emit import SLOTS, STREAM_SHARE
from taygeta.compiler.target import Target

LEAST_ROWS = 64
"""Rows below which no smaller tile of rows is tried once one has fitted."""

MARGIN = 4096
"""Bytes of scratchpad that a cut leaves: biases' ends and the alignment of buffers."""


@dataclass(frozen=True)
class Multiply:
    """A multiply to cut: rows T, columns N and depth K on one chip; formats; what the cut must respect.

    column_step: columns of a core are a multiple of it (a block of an output format, a pair of gate and up).
    depth_step: K is cut at its multiples. out_bytes: of one output element, all its formats together. vector: clocks
    of the vector unit for one sum. convert: weights are converted on the core. kept: all rows are one tile, which
    every core keeps. whole: so too, and many such multiplies follow each other (experts). pads: columns may be filled
    up, as of the vocabulary. reserved, reserved_column: bytes of scratchpad that the phase needs beside, in all and for
    every column of a core. pause: clocks before the phase in which no multiply asks for weights.
    """

    rows: int
    columns: int
    depth: int
    mode: str
    weights: str
    activations: str
    column_step: int = 1
    depth_step: int = 32
    out_bytes: float = 2.0
    vector: float = 0.0
    convert: bool = False
    kept: bool = False
    whole: bool = False
    pads: bool = False
    reserved: float = 0.0
    reserved_column: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True)
class Cut:
    """How a multiply is cut: cores over rows and columns, and the rows, columns and depth of one tile.

    columns of a core: tile_cols * col_tiles; rows of a core: tile_rows * row_tiles. streams: the operand passes by in
    tiles of the depth with the weights, for every tile of columns again, because a core cannot keep its rows whole.
    clocks: its price.
    """

    grid_m: int
    grid_n: int
    tile_rows: int
    tile_cols: int
    tile_depth: int
    row_tiles: int
    col_tiles: int
    depth_tiles: int
    streams: bool
    clocks: float

    @property
    def cores(self) -> int:
        """Cores that work."""
        return self.grid_m * self.grid_n


def divisors(n: int) -> tuple[int, ...]:
    """Return the divisors of n, smallest first."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))


def padded_rows(rows: int) -> int:
    """Return the rows of buffers for `rows` rows: enough divisors to spread them over cores."""
    step = 1 if rows <= 8 else 8 if rows <= 64 else 64
    return -(-rows // step) * step


def cut(multiply: Multiply, target: Target) -> Cut:
    """Return the cheapest cut of a multiply. Raises DoesNotFitError when not even the smallest tile fits."""
    found = _search(multiply, _Key(target))
    if found is None:
        m = multiply
        raise DoesNotFitError(
            f"A multiply of {m.rows} x {m.depth} by {m.depth} x {m.columns} in {m.weights} has no tile that fits the"
            f" {target.memory['sram']:,} bytes of scratchpad of a core of {target.chip.id}: a narrower format, more"
            " chips or a larger scratchpad would work."
        )
    return found


class _Key:
    """A target that hashes by its chip's name and numbers, so that cuts are found once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        t, chip = target, target.chip
        rates = (t.hbm, t.shared, t.port, t.vector, t.convert, t.broadcast, t.dma_latency)
        self.key = (chip.id, t.cores, *rates, *t.memory.items(), *chip.tile, chip.clock, *chip.peaks.items())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key


@lru_cache(maxsize=4096)
def _search(m: Multiply, key: _Key) -> Cut | None:
    target = key.target
    best: Cut | None = None
    for columns in _columns(m, target.cores):
        grid_n = -(-m.columns // columns)
        for grid_m in (1,) if m.kept or m.whole else divisors(m.rows):
            if grid_m * grid_n > target.cores:
                break
            for rows in (m.rows,) if m.kept or m.whole else reversed(divisors(m.rows // grid_m)):
                found = _tile(m, target, grid_m, grid_n, rows, columns)
                if found is not None and (best is None or found.clocks < best.clocks):
                    best = found
                if found is not None and rows <= LEAST_ROWS:
                    break  # fewer rows would only read the weights more often
    return best


def _columns(m: Multiply, cores: int) -> tuple[int, ...]:
    """Columns of a core: divisors of N that respect the step, on no more than all cores; padded ones where allowed."""
    fit = [n for n in divisors(m.columns) if n % m.column_step == 0 and m.columns // n <= cores]
    least = -(-m.columns // cores)
    near = [n for n in fit if n <= 4 * least][:6] or fit[:2]
    if near and not m.pads:
        return tuple(near)
    step = m.column_step * 16
    return tuple(sorted({*near, -(-least // step) * step}))


def _tile(m: Multiply, t: Target, grid_m: int, grid_n: int, rows: int, columns: int) -> Cut | None:
    """The better of keeping the operand and of streaming it, each with the largest tile that fits."""
    ways = (False,) if m.kept or m.whole else (False, True)
    found = [_fit(m, t, (grid_m, grid_n), rows, columns, streams) for streams in ways]
    return min((f for f in found if f is not None), key=lambda f: f.clocks, default=None)


def _fit(m: Multiply, t: Target, grid: tuple[int, int], rows: int, columns: int, streams: bool) -> Cut | None:
    """The largest tile of these rows that fits, and its price: deep tiles first, then wide ones."""
    weight, operand = format_of(m.weights).bytes_per_element, format_of(m.activations).bytes_per_element
    slot = t.memory["sram"] // STREAM_SHARE
    room = t.memory["sram"] - SLOTS * slot - MARGIN - m.reserved - m.reserved_column * columns
    row_tiles = m.rows // (grid[0] * rows)
    kept = rows * math.ceil(m.depth * operand) * (SLOTS if row_tiles > 1 else 1)
    best: Cut | None = None
    for depth in reversed([d for d in divisors(m.depth) if d % m.depth_step == 0 or d == m.depth]):
        panel = rows * math.ceil(depth * operand) * SLOTS if streams else kept
        for cols in reversed([c for c in divisors(columns) if c % m.column_step == 0]):
            wide = cols * depth * 2 * SLOTS if m.convert else 0
            sums = SLOTS * rows * cols * (4.0 + m.out_bytes + 4.0)
            if cols * depth * weight > slot or panel + sums + wide > room:
                continue
            col_tiles, depth_tiles = columns // cols, m.depth // depth
            if m.whole and col_tiles * depth_tiles == 1 and cols > m.column_step:
                continue  # two tiles: one is multiplied while the other, or the next expert's, comes in
            if streams and col_tiles * depth_tiles == 1:
                continue  # it is kept, then
            tiles = (row_tiles, cols, col_tiles, depth, depth_tiles)
            clocks = _price(m, t, grid, rows, columns, tiles, streams)
            if best is None or clocks < best.clocks:
                best = Cut(*grid, rows, cols, depth, row_tiles, col_tiles, depth_tiles, streams, clocks)
            break
        if best is not None and not streams and depth < m.depth:
            break
    return best


def _price(
    m: Multiply, t: Target, grid: tuple[int, int], rows: int, columns: int, tiles: tuple[int, ...], streams: bool
) -> float:
    """Clocks of a cut: the largest of what it asks of each resource, and the time to the first operand and from the
    last weights to the last sums. Where a core has one tile of rows, weights are what it waits for, and they fill both
    slots in the pause before; with several, as for prompts, the first weights are part of the wait. Timed, Llama 3.1
    8B on four Maia 100 decodes 11 to 15 % sooner so; the same for a prompt of 2,048 tokens would cost it 3 %.

    rounds: a slot is filled again once its tile is multiplied (or converted), so a round of all slots takes a transfer,
    its latency and a multiply at least.
    """
    row_tiles, cols, col_tiles, depth, depth_tiles = tiles
    grid_m, grid_n = grid
    weight, operand = format_of(m.weights).bytes_per_element, format_of(m.activations).bytes_per_element
    unit = t.tensor(m.mode)
    own = columns * m.depth * weight * row_tiles
    copies = (grid_m - 1) / grid_m * t.broadcast
    passes = col_tiles if streams else 1
    activations = m.rows * m.depth * operand * passes
    hbm = own * grid_n / t.hbm
    shared = (own * grid_n * grid_m * copies + activations * (1 + (grid_n - 1) * t.broadcast)) / t.shared
    port = (own + rows * row_tiles * m.depth * operand * passes) / t.port
    count = row_tiles * col_tiles * depth_tiles
    tensor = count * unit.occupancy(rows, cols, depth)
    transfer = cols * depth * weight * grid_n / t.hbm
    converted = own / weight * (weight + operand) / t.convert if m.convert else 0.0
    held = converted / count if m.convert else unit.cycles(rows, cols, depth)
    rounds = count * (transfer + t.dma_latency + held) / SLOTS if m.whole or count > SLOTS else 0.0
    vector = m.vector * rows * row_tiles * columns + converted
    if m.whole and count % SLOTS:
        rounds *= (count + 1) / count  # a slot is left out so that the next multiply begins with the first
    busy = max(hbm, shared, port, tensor, vector, rounds)
    if m.whole:
        return busy  # many such multiplies follow each other
    first = rows * (depth if streams else m.depth) * operand / t.port
    slot = cols * depth * weight
    if row_tiles > 1:
        first += min(own, slot) * grid_n / t.hbm
    else:
        first -= min(min(own, SLOTS * slot) * grid_n / t.hbm, m.pause)
    return busy + first + unit.cycles(rows, cols, depth)
