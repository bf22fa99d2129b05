"""Multiplies of the executed machine: by prepared weights, the columns of all cores at once, or of two values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from taygeta.compiler.program import Instruction, Loop
from taygeta.compiler.target import Target
from taygeta.machine.chains import Chain
from taygeta.machine.constants import WIDE, Constants
from taygeta.machine.memory import Memory, Turn
from taygeta.machine.values import Content, Local, alike, array_of, each, joined
from taygeta.numerics import Quantised, TensorUnit, convert, matmul, quantise
from taygeta.numerics.schemes import scheme_of

FEW_ROWS = 4

Step = Callable[[Turn], None]


class Checker(Protocol):
    """What looks on while weights are multiplied."""

    def multiply(self, key: Any, a: Content, out: np.ndarray, unit: TensorUnit) -> None:
        """Take note of one multiply: a (entries, rows, K), out (entries, rows, all columns); key: of the weights."""
        ...

    def product(self, a: Content, b: Content, before: np.ndarray | None, out: np.ndarray, unit: TensorUnit) -> None:
        """Take note of a multiply of two contents, (entries, rows, K) and (entries, columns, K), onto `before`."""
        ...


class Multiplier:
    """The tensor units of a machine. checker: looks on."""

    def __init__(self, constants: Constants, target: Target) -> None:
        self.constants, self.target = constants, target
        self.rule = target.chip.tiles.scale_rule
        self.checker: Checker | None = None
        wide = target.chip.tiles.wide_sum
        self._wide: str | int = int(wide) if wide.isdigit() else wide
        self._units: dict[str, TensorUnit] = {}

    def unit(self, mode: str) -> TensorUnit:
        """Return the arithmetic of a mode."""
        if mode not in self._units:
            self._units[mode] = TensorUnit(self.target.tensor(mode).lanes, "fp32", self._wide)
        return self._units[mode]

    def multiply(self, i: Instruction, memory: Memory) -> Step:
        """Return what one multiply does on one chip."""
        unit = self.unit(str(i.attribute("mode", "bf16")))
        first, second = (memory.port(box, i.cores) for box in i.inputs)
        target, adds = memory.port(i.outputs[0], i.cores), i.attribute("add", 0)
        order = str(i.attribute("order", "nk"))

        def step(turn: Turn) -> None:
            a, b = first.read(turn), second.read(turn)
            if b.source is not None and not adds and order == "nk" and _grid(a, b, i.cores):
                key = (*b.source, unit)
                (value,) = self.grid(a, b, key, lambda: self.weights([b], _format(b.content)), unit)
            else:
                before = target.read(turn) if adds else None
                value = self.product(a, b, before, unit, i.cores, order)
            target.write(turn, value)

        return step

    def product(
        self, a: Local, b: Local, before: Local | None, unit: TensorUnit, cores: int, order: str = "nk"
    ) -> Local:
        """Return the multiply of what the cores hold, each by its own."""
        parts = alike([v for v in (a, b, before) if v is not None], cores)
        several = [v for v in parts if v.count > 1]
        divisor, count = (several[0].divisor, several[0].count) if several else (1, 1)
        total = None
        if before is not None:
            found = array_of(parts[2].content)
            total = (
                found
                if len(found) == count
                else np.ascontiguousarray(np.broadcast_to(found, (count, *found.shape[1:])))
            )
        x, y = parts[0].content, parts[1].content
        result = matmul(x, y, unit, total, _threads(x), order)
        if self.checker is not None:
            rows = y if order == "nk" else each(y, lambda z: np.swapaxes(z, -1, -2))
            self.checker.product(x, rows, total, result, unit)
        return Local(result, divisor, count)

    def grid(
        self, a: Local, b: Local, key: Any, content: Callable[[], Content], unit: TensorUnit, turns: int = 1
    ) -> list[Local]:
        """Return all cores' columns of weights, of so many turns of a loop, as one multiply; the sums of every turn.

        The bits of a column do not depend on its neighbours. b: whose entries are the columns of a core each; key,
        content: name and values of all of them.
        """
        weights = self.constants.prepared(key, content, unit)
        found = matmul(a.content, weights, unit, threads=_threads(a.content))
        if self.checker is not None:
            self.checker.multiply(key, a.content, found, unit)
        count, rows = b.count, a.content.shape[1]
        each_turn = found.reshape(a.count, rows, turns, count, -1).transpose(2, 0, 3, 1, 4)
        if a.count == 1:
            return [Local(sums[0], b.divisor, count) for sums in each_turn]
        return [Local(sums.reshape(a.count * count, rows, -1), 1, a.count * count) for sums in each_turn]

    def weights(self, tiles: Sequence[Local], fmt: str) -> Content:
        """Return tiles of weights as (columns of all cores, depth), in the format in which they are multiplied."""
        content = joined([t.content for t in tiles])
        content = each(content, lambda x: x.reshape(-1, x.shape[-1]))
        return self.rounded(content, fmt)

    def rounded(self, content: Content, fmt: str) -> Content:
        """Return weights converted to another format, as the instruction "quantise" does."""
        if isinstance(content, Quantised):
            return content if content.scheme is scheme_of(fmt) else convert(content, fmt)
        return content if fmt in WIDE else quantise(np.ascontiguousarray(content), fmt, self.rule)


class Chained:
    """A multiply over tiles of depth on one chip, all cores' columns at once; of all turns of a loop where it may."""

    def __init__(self, chain: Chain, multiplier: Multiplier, memory: Memory) -> None:
        self.chain, self.multiplier = chain, multiplier
        self.unit = multiplier.unit(chain.mode)
        self.operand, self.output = memory.port(chain.operand, chain.cores), memory.port(chain.output, chain.cores)
        self.weights = [memory.port(box, chain.cores) for box in chain.weights]
        self.ahead: list[Local] = []

    def __call__(self, turn: Turn) -> None:
        """Multiply, or take what was multiplied ahead."""
        if self.ahead:
            self.output.write(turn, self.ahead.pop())
            return
        c, own = self.chain, self.multiplier
        a, first = self.operand.read(turn), self.weights[0].read(turn)
        if first.source is None or not _grid(a, first, c.cores):
            content = own.rounded(joined([t.full(c.cores).content for t in self._tiles(turn)]), c.format)
            found = own.product(a.full(c.cores), Local(content, 1, c.cores), None, self.unit, c.cores)
        else:
            key = (*first.source, len(c.weights), c.format, self.unit)
            (found,) = own.grid(a, first, key, lambda: own.weights(self._tiles(turn), c.format), self.unit)
        self.output.write(turn, found)

    def _tiles(self, turn: Turn) -> list[Local]:
        return [port.read(turn) for port in self.weights]

    def look_ahead(self, loop: Loop, turn: Turn) -> None:
        """Multiply for every turn of a loop at once, where that can be one multiply; the last turn's sums first."""
        c, own = self.chain, self.multiplier
        a, first = self.operand.read(turn), self.weights[0].read(turn)
        if first.source is None or not _grid(a, first, c.cores):
            return

        def content() -> Content:
            parts = []
            for i in range(loop.count):
                turn.loops[loop.variable] = i
                parts.append(own.weights(self._tiles(turn), c.format))
            turn.loops[loop.variable] = 0
            return joined(parts, 0)

        key = (*first.source, len(c.weights), loop.count, c.format, self.unit)
        self.ahead = own.grid(a, first, key, content, self.unit, loop.count)[::-1]


def _grid(a: Local, b: Local, cores: int) -> bool:
    """Whether the cores form a grid of a's entries by b's, in the order of their numbers."""
    if a.count == 1:
        return True
    return b.divisor == 1 and a.divisor == b.count and a.count * b.count == cores


def _threads(a: Content) -> int | None:
    """One thread for a few rows, whose weights pass by faster than threads start; else all (the bits are the same)."""
    return 1 if a.shape[1] <= FEW_ROWS else None


def _format(content: Content) -> str:
    return content.format if isinstance(content, Quantised) else "fp32"
