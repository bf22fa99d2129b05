"""Listings made ready for the executed machine: without waits, and with multiplies over tiles of depth joined.

A multiply whose weights pass by in tiles of depth is one long sum in the order of the reduction axis: cutting it at
multiples of the lanes does not change a bit (taygeta.numerics.matmul). So a run of instructions

    stream dma w <- weights[.., d, ..];  (vector quantise wide <- w;)  (load dma a <- rows[.., d * depth];)
    tensor matmul sums (+)= a, w

that differ in d only is executed as one multiply. It is joined only where nothing else in the program reads w, wide
and a, so that nobody can see that they are not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from taygeta.compiler.program import Box, Buffer, Instruction, Item, Loop, Phase, Program

SILENT = ("wait", "signal", "receive")


@dataclass(frozen=True, eq=False)
class Chain:
    """A multiply over tiles of depth. weights: a constant's tiles in order, `format` in which they are multiplied.

    operand: where the whole depth of the first operand lies. depth: of one tile.
    """

    cores: int
    mode: str
    output: Box
    operand: Box
    weights: tuple[Box, ...]
    format: str
    depth: int


@dataclass(frozen=True, eq=False)
class Turns:
    """A loop with its body made ready. ahead: chains that may run for all turns at once, when they are first met: only
    the tile of their weights depends on the turn, and nothing in the loop writes their operand.
    """

    loop: Loop
    body: tuple[Ready, ...]
    ahead: tuple[Chain, ...] = ()


Ready = Instruction | Phase | Turns | Chain


def ready(program: Program) -> tuple[Ready, ...]:
    """Return the listing of a program with its chains joined, without what only orders engines."""
    readers: dict[str, set[int]] = {}
    for i in program.instructions():
        for box in i.inputs:
            readers.setdefault(box.buffer, set()).add(id(i))
    return _body(program.body, _hidden(program, readers))


def _body(body: Sequence[Item], found: _Found) -> tuple[Ready, ...]:
    out: list[Ready] = []
    for item in body:
        if isinstance(item, Loop):
            inner = _body(item.body, found)
            if inner:
                out.append(Turns(item, inner, _ahead(item, inner)))
        elif isinstance(item, Phase) or id(item) in found.chains:
            out.append(item if isinstance(item, Phase) else found.chains[id(item)])
        elif item.kind not in SILENT and id(item) not in found.gone:
            out.append(item)
    return tuple(out)


def _ahead(loop: Loop, body: Sequence[Ready]) -> tuple[Chain, ...]:
    """The chains of a loop that may run for all its turns at once."""
    if loop.when or any(isinstance(item, Turns) for item in body):
        return ()
    written = {box.buffer for item in body if isinstance(item, Instruction) for box in item.outputs}
    written |= {item.output.buffer for item in body if isinstance(item, Chain)}

    def free(c: Chain) -> bool:
        moves = any(name == loop.variable for index in c.operand.indices for name, _ in index.steps)
        return not moves and c.operand.buffer not in written and not any(i.ragged for i in c.operand.indices)

    return tuple(item for item in body if isinstance(item, Chain) and free(item))


@dataclass(frozen=True)
class _Found:
    """Chains by the instruction in whose place they stand, and the instructions that they are made of."""

    chains: Mapping[int, Chain]
    gone: frozenset[int]


@dataclass(frozen=True)
class _Tile:
    """One tile of a chain: its multiply, where its weights and its part of the operand come from.

    reads: (buffer, instruction) of the reads that a chain does without. members: the instructions it stands for.
    """

    multiply: Instruction
    weights: Box
    operand: Box
    format: str
    members: tuple[Instruction, ...]
    reads: tuple[tuple[str, int], ...]


def _hidden(program: Program, readers: Mapping[str, set[int]]) -> _Found:
    """Join what can be joined: a buffer is not written only where every read of it is one that a chain does without."""
    kept: set[str] = set()
    while True:
        candidates: list[list[_Tile]] = []
        _search(program.body, program.by_name, kept, candidates)
        without: dict[str, set[int]] = {}
        for tiles in candidates:
            for buffer, reader in (read for tile in tiles for read in tile.reads):
                without.setdefault(buffer, set()).add(reader)
        seen = {buffer for buffer, done in without.items() if not readers[buffer] <= done}
        if not seen:
            break
        kept |= seen
    chains = {id(tiles[-1].multiply): _chain(tiles) for tiles in candidates}
    gone = frozenset(id(member) for tiles in candidates for tile in tiles for member in tile.members)
    return _Found(chains, gone)


def _search(body: Sequence[Item], buffers: Mapping[str, Buffer], kept: set[str], out: list[list[_Tile]]) -> None:
    """Find chains in the straight-line stretches of a listing. kept: buffers that must be written."""
    loads: dict[str, Instruction] = {}
    tiles: list[_Tile] = []
    for item in body:
        if isinstance(item, Instruction) and item.kind in SILENT:
            continue
        tile = _tile(item, loads, buffers, kept) if isinstance(item, Instruction) and item.kind == "matmul" else None
        if tile is not None and tiles and tile.multiply.attribute("add", 0) and _follows(tiles[-1], tile):
            tiles.append(tile)
            continue
        if not isinstance(item, Instruction):
            loads.clear()
        if tiles and not (isinstance(item, Instruction) and _apart(item, tiles)):
            out.append(list(tiles))
            tiles.clear()
        if tile is not None and not tile.multiply.attribute("add", 0):
            tiles.append(tile)
        elif isinstance(item, Loop):
            _search(item.body, buffers, kept, out)
        elif isinstance(item, Instruction):
            written = {box.buffer for box in item.outputs}
            loads = {name: i for name, i in loads.items() if i.inputs[0].buffer not in written}
            loads |= dict.fromkeys(written, item) if item.inputs else {}
    if tiles:
        out.append(tiles)


def _apart(i: Instruction, tiles: Sequence[_Tile]) -> bool:
    """Whether an instruction may stand between the tiles of a chain: a transfer or conversion into other buffers."""
    sums, operand = tiles[0].multiply.outputs[0].buffer, tiles[0].operand.buffer
    written = {box.buffer for box in i.outputs}
    return i.kind in ("dma", "quantise") and not written & {sums, operand} and i.inputs[0].buffer != sums


def _tile(
    i: Instruction, loads: Mapping[str, Instruction], buffers: Mapping[str, Buffer], kept: set[str]
) -> _Tile | None:
    """A multiply whose weights have just come from main memory, or None."""
    left, right = i.inputs
    if i.attribute("order", "nk") != "nk" or not _whole(right, buffers) or right.buffer in kept:
        return None
    members, reads = [i], [(right.buffer, id(i))]
    load, fmt = loads.get(right.buffer), buffers[right.buffer].format
    if load is not None and load.kind == "quantise" and _whole(load.inputs[0], buffers):
        members.append(load)
        reads.append((load.inputs[0].buffer, id(load)))
        load = loads.get(load.inputs[0].buffer)
    if load is None or not _brings(load, i, buffers) or load.outputs[0].buffer in kept:
        return None
    source = load.inputs[0]
    if buffers[source.buffer].role != "constant" or any(x.table or x.ragged for x in source.indices):
        return None
    members.append(load)
    operand, brought = left, loads.get(left.buffer)
    if brought is not None and left.buffer not in kept and _whole(left, buffers) and _brings(brought, i, buffers):
        operand = brought.inputs[0]
        members.append(brought)
        reads.append((left.buffer, id(i)))
    return _Tile(i, source, operand, fmt, tuple(members), tuple(reads))


def _brings(load: Instruction, i: Instruction, buffers: Mapping[str, Buffer]) -> bool:
    """Whether an instruction loads the whole of a buffer from outside, for the cores of the multiply."""
    if load.kind != "dma" or load.cores != i.cores or not _whole(load.outputs[0], buffers):
        return False
    return buffers[load.inputs[0].buffer].space != "sram" and load.inputs[0].shape == load.outputs[0].shape


def _whole(box: Box, buffers: Mapping[str, Buffer]) -> bool:
    return box.shape == buffers[box.buffer].shape and not any(i.ragged or i.steps or i.table for i in box.indices)


def _follows(before: _Tile, after: _Tile) -> bool:
    """Whether a tile goes on where the one before ended, in the depth of the operand, on the same sums."""
    a, b = before.multiply, after.multiply
    same = (a.cores, a.outputs, a.attribute("mode", "")) == (b.cores, b.outputs, b.attribute("mode", ""))
    same = same and before.format == after.format and before.weights.buffer == after.weights.buffer
    last, then = before.operand.indices[-1], after.operand.indices[-1]
    return (
        same
        and before.weights.shape == after.weights.shape
        and before.operand.buffer == after.operand.buffer
        and before.operand.indices[:-1] == after.operand.indices[:-1]
        and (last.start + last.extent, last.steps, last.extent) == (then.start, then.steps, then.extent)
        and not last.table
        and not last.ragged
    )


def _chain(tiles: Sequence[_Tile]) -> Chain:
    """The tiles as one multiply."""
    first = tiles[0]
    i, last = first.multiply, first.operand.indices[-1]
    whole = replace(last, extent=last.extent * len(tiles))
    operand = Box(first.operand.buffer, (*first.operand.indices[:-1], whole))
    weights = tuple(t.weights for t in tiles)
    mode = str(i.attribute("mode", "bf16"))
    return Chain(i.cores, mode, i.outputs[0], operand, weights, first.format, first.weights.shape[-1])
