"""Where a box's elements are, on every core at once: views of arrays, or index arrays where no view will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from taygeta.compiler.program import Box, Index
from taygeta.compiler.work import digit, variable
from taygeta.machine.values import Content, Local, array_of, codes_of, each

Tables = Mapping[str, Any]

MOST_PLACES = 4096
"""Places of a box that are kept, of as many turns of the loops around it."""


class Axis(NamedTuple):
    """One axis of a box for all cores: starts[core entry], extent (0: dropped), or the places that a table lists."""

    start: int
    step: int
    extent: int
    listed: np.ndarray | None = None
    starts: np.ndarray | None = None


@dataclass(slots=True)
class Place:
    """The axes of a box on cores that have `count` different ones: core c has the (c // divisor % count)-th."""

    axes: tuple[Axis, ...]
    divisor: int = 1
    count: int = 1


class Access:
    """A box of a buffer, ready to be found at each turn of the loops around it.

    whole: whether it is all of a buffer of this shape, whatever the turn.
    """

    def __init__(self, box: Box, cores: int, shape: tuple[int, ...] = ()) -> None:
        self.box, self.cores = box, cores
        self.whole = box.shape == shape and not any(i.ragged for i in box.indices)
        names = {name for index in box.indices for name, _ in index.steps}
        self.loops = {n for n in names if variable(n) != "core"}
        moving = {n: np.array([digit(n, c) for c in range(cores)]) for n in names if variable(n) == "core"}
        self.digits = {n: values for n, values in moving.items() if values.any()}
        self.listed = any(i.table or i.ragged for i in box.indices)
        self.variables = tuple(sorted({variable(n) for n in self.loops}))
        self.places: dict[Any, Place] = {}
        self.divisor, self.count = self._entries()
        self.axes = tuple(map(self._still, box.indices))

    def _entries(self) -> tuple[int, int]:
        if not self.digits:
            return 1, 1
        if len(self.digits) > 1:
            return 1, self.cores
        ((name, values),) = self.digits.items()
        _, _, rest = name.partition("/")
        return int(rest.partition("%")[0]) if rest else 1, int(values.max()) + 1

    def _still(self, index: Index) -> tuple[Axis | None, Index, Axis, tuple[tuple[str, str, int], ...]]:
        """An axis that no loop moves, or None; else the axis at the first turn and what moves it."""
        step, starts = 0, None
        for name, count in index.steps:
            if name in self.digits:
                if len(self.digits) == 1:
                    step = count
                else:
                    starts = count * self.digits[name] + (0 if starts is None else starts)
        moves = tuple((variable(name), name, count) for name, count in index.steps if variable(name) != "core")
        first = Axis(index.start, step, index.extent, None, starts)
        still = not moves and not index.table and not index.ragged
        return first if still else None, index, first, moves

    def turn(self, loops: Mapping[str, int]) -> Any:
        """Return the values of the loops that move the box, a key of its place unless a table is in it."""
        if len(self.variables) == 1:
            return loops[self.variables[0]]
        return tuple([loops[name] for name in self.variables])

    def place(self, loops: Mapping[str, int], tables: Tables) -> Place:
        """Return where the box is at this turn. loops: values of loop variables, `chip` and the current list."""
        key = None if self.listed else self.turn(loops)
        found = self.places.get(key)
        if found is None:
            axes = tuple(still or _moved(index, first, moves, loops, tables, self.count)
                         for still, index, first, moves in self.axes)  # fmt: skip
            found = Place(axes, self.divisor, self.count)
            if key is not None and len(self.places) < MOST_PLACES:
                self.places[key] = found
        return found


def _moved(
    index: Index, first: Axis, moves: Sequence[tuple[str, str, int]], loops: Mapping[str, int], tables: Tables,
    count: int,
) -> Axis:  # fmt: skip
    """An axis at this turn of the loops and with these tables."""
    start, step, extent, starts = first.start, first.step, first.extent, first.starts
    for name, word, times in moves:
        value = loops[name]
        start += times * (value if word == name else digit(word, value))
    if index.ragged:
        found = tables["list"]
        if index.table:
            return Axis(0, 0, found["count"], found[index.table])
        return Axis(start, step, min(extent, found["count"]), None, starts)
    if index.table:
        listed = tables[index.table]
        if step:
            rows = start + step * np.arange(count)[:, None] + np.arange(extent)
            return Axis(0, 0, extent, listed[rows])
        if starts is not None:
            return Axis(0, 0, extent, listed[start + starts[:, None] + np.arange(extent)])
        return Axis(0, 0, extent, listed[start : start + extent])
    return Axis(start, step, extent, None, starts)


def view(content: Content, place: Place) -> Content | None:
    """Return what the cores read as views with the cores' entries first, or None where index arrays are needed."""
    if _scattered(place.axes):
        return None
    parts: list[np.ndarray | None] = []

    def part(array: np.ndarray, block: int) -> np.ndarray:
        parts.append(_view(array, (*place.axes[:-1], _blocks(place.axes[-1], block)), place.count))
        return array if parts[-1] is None else parts[-1]

    found = _parts(content, part)
    return None if any(x is None for x in parts) else found


def load(content: Content, place: Place) -> Local:
    """Return what the cores read."""
    found = _parts(content, lambda array, block: _read(array, place, block))
    return Local(found, place.divisor, place.count)


def gather(table: np.ndarray, place: Place) -> np.ndarray:
    """Return rows of a table, in fp32; its bf16 elements are the upper halves of their fp32."""
    found = _read(table, place, 1)
    return (found.astype(np.uint32) << np.uint32(16)).view(np.float32) if found.dtype == np.uint16 else found


def store(content: Content, place: Place, value: Local, cores: int) -> None:
    """Write what the cores hold."""
    if value.count > 1 and (value.divisor, value.count) != (place.divisor, place.count):
        value = value.full(cores)
        if place.count != cores:
            value = Local(each(value.content, lambda x: x[: place.count * place.divisor : place.divisor]), *_of(place))
    for array, part, block in pairs(content, value.content):
        _write(array, place, part, block)


def _of(place: Place) -> tuple[int, int]:
    return place.divisor, place.count


def _parts(content: Content, function: Any) -> Content:
    if isinstance(content, np.ndarray):
        return function(content, 1)
    return replace(
        content,
        codes=function(content.codes, 1),
        scales=None if content.scales is None else function(content.scales, content.group),
        shifts=None if content.shifts is None else function(content.shifts, 2),
    )


def pairs(content: Content, found: Content) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return the arrays of a content with those that are written there, and the elements in a block of each."""
    if isinstance(content, np.ndarray):
        return [(content, array_of(found), 1)]
    value = codes_of(found)
    out = [(content.codes, value.codes, 1)]
    if content.scales is not None and value.scales is not None:
        out.append((content.scales, value.scales, content.group))
    if content.shifts is not None and value.shifts is not None:
        out.append((content.shifts, value.shifts, 2))
    return out


def _blocks(axis: Axis, block: int) -> Axis:
    """The last axis counted in blocks; block 0: one for the whole axis."""
    if block == 1:
        return axis
    if block == 0:
        return Axis(0, 0, 1)
    starts = None if axis.starts is None else axis.starts // block
    return Axis(axis.start // block, axis.step // block, -(-axis.extent // block), None, starts)


def _read(array: np.ndarray, place: Place, block: int) -> np.ndarray:
    axes = (*place.axes[:-1], _blocks(place.axes[-1], block))
    found = None if _scattered(axes) else _view(array, axes, place.count)
    return array[_key(axes, place.count)] if found is None else found


def _write(array: np.ndarray, place: Place, value: np.ndarray, block: int) -> None:
    axes = (*place.axes[:-1], _blocks(place.axes[-1], block))
    found = None if _scattered(axes) else _view(array, axes, place.count)
    shape = (place.count, *(a.extent for a in axes if a.extent))
    if value.shape[1:] != shape[1:]:
        value = value.reshape(value.shape[0], *shape[1:])
    if found is None:
        array[_key(axes, place.count)] = value
    else:
        found[...] = value


def _scattered(axes: tuple[Axis, ...]) -> bool:
    """Whether a box can only be found by index arrays."""
    return any(a.listed is not None or a.starts is not None for a in axes)


def _view(array: np.ndarray, axes: tuple[Axis, ...], count: int) -> np.ndarray | None:
    """The elements as a view with the cores' entries first, or None where a core's part is not whole."""
    steps = any(a.step for a in axes)
    if steps and any(
        a.start + a.step * (count - 1) + max(1, a.extent) > n for a, n in zip(axes, array.shape, strict=True)
    ):
        return None
    # Slices alone: an index on every axis would give a scalar, a copy.
    found = array[tuple([slice(a.start, a.start + max(1, a.extent)) for a in axes])]
    kept = [i for i, a in enumerate(axes) if a.extent]
    ahead = sum(a.step * stride for a, stride in zip(axes, array.strides, strict=True))
    shape, strides = [found.shape[i] for i in kept], [found.strides[i] for i in kept]
    return as_strided(found, (count if steps else 1, *shape), (ahead, *strides))


def _key(axes: tuple[Axis, ...], count: int) -> tuple[Any, ...]:
    """Index arrays of all axes, which together give (entries, kept axes...)."""
    kept = [i for i, a in enumerate(axes) if a.extent]
    out: list[Any] = []
    for i, a in enumerate(axes):
        shape = [1] * (len(kept) + 1)
        if a.listed is not None:
            found = a.listed if a.listed.ndim == 2 else a.listed[None]
        else:
            starts = np.full(1, a.start) if not a.step else a.start + a.step * np.arange(count)
            starts = starts if a.starts is None else a.start + a.starts
            found = starts[:, None] + np.arange(max(1, a.extent))
        shape[0] = len(found)
        if a.extent:
            shape[1 + kept.index(i)] = found.shape[1]
        out.append(found.reshape(shape))
    first = out[0]
    if all(o.shape[0] == 1 for o in out) and count > 1:
        out[0] = np.broadcast_to(first, (count, *first.shape[1:]))
    return tuple(out)
