"""Weights in the chip's main memory: packed and rounded as they are first used, and prepared once for the multiplies.

Prepared weights are kept while they fit `budget` bytes. Those beyond are packed, prepared and dropped again at each
use: layers come in turn, so that dropping old ones for new ones would keep none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from taygeta.compiler.compile import Compiled
from taygeta.compiler.program import Buffer
from taygeta.machine.access import Axis, Place, gather, load
from taygeta.machine.values import Content, Local, Waiting
from taygeta.numerics import Prepared, TensorUnit, cast, prepare, quantise
from taygeta.numerics.scales import round_bf16
from taygeta.numerics.schemes import scheme_of

WIDE = ("fp32", "bf16", "fp16")
KEPT = 4
"""Packed constants that are kept at hand before they are prepared; small ones stay."""

E4M3_LARGEST = 448.0
"""The largest scale of a block of NVFP4, an e4m3."""

SMALL = 1 << 20
BUDGET = 12 << 30
"""Bytes of prepared weights: an 8 GB checkpoint in bf16 fits once, and the rest of 24 GB holds what else there is."""


class Constants:
    """The constants of a model on chips; programs of other shapes share what they prepared where it is the same.

    weights: parameters by (layer, name) in fp32, with the axes of the graph's Weight.
    """

    def __init__(self, weights: Mapping[tuple[int | None, str], np.ndarray], rule: str, budget: int = BUDGET) -> None:
        self.weights, self.rule, self.budget = weights, rule, budget
        self._prepared: dict[Any, Prepared] = {}
        self._old: dict[Any, None] = {}
        self.prepared_bytes = 0
        self.watch: Callable[[Any, Content], None] | None = None
        self.recent: OrderedDict[Any, Content] = OrderedDict()
        self.small: dict[Any, Content] = {}
        self.tables: dict[Any, np.ndarray] = {}
        self.packs: dict[str, Any] = {}
        self.layers: dict[int, tuple[int | None, ...]] = {}
        self.chips = 1

    def use(self, compiled: Compiled) -> None:
        """Take the layouts of a program."""
        self.packs = {c.buffer: c for c in compiled.constants}
        self.layers = compiled.layers
        self.chips = compiled.program.chips

    def make_room(self) -> None:
        """Let a program of another shape take the room of what is prepared now and it does not use itself."""
        self._old = dict.fromkeys(self._prepared)

    def prepared(self, key: Any, content: Callable[[], Content], unit: TensorUnit) -> Prepared:
        """Return weights (columns, depth) that are prepared for a multiply; kept while there is room."""
        found = self._prepared.get(key)
        if found is not None:
            self._old.pop(key, None)
            return found
        weights = content()
        if self.watch is not None:
            self.watch(key, weights)
        found = prepare(weights, unit)
        while self._old and self.prepared_bytes + found.bytes > self.budget:
            first = next(iter(self._old))
            del self._old[first]
            self.prepared_bytes -= self._prepared.pop(first).bytes
        if self.prepared_bytes + found.bytes <= self.budget:
            self._prepared[key] = found
            self.prepared_bytes += found.bytes
        return found

    def load(self, buffer: Buffer, place: Place, chip: int) -> Local:
        """Return what cores read of a constant."""
        first, *rest = place.axes
        inner = Place(tuple(rest), place.divisor, place.count)
        if rest[0].listed is not None and buffer.format in WIDE:
            return Local(gather(self._table(buffer, first.start, chip), inner), place.divisor, place.count)
        if any(a.listed is not None or a.starts is not None for a in rest):
            return load(self.content(buffer, first.start, chip), inner)
        visit = first.start
        key = tuple((a.start, a.step, a.extent) for a in rest if isinstance(a, Axis))
        source = (buffer.name, buffer.shape, chip, visit, key)
        return Waiting(
            lambda: load(self.content(buffer, visit, chip), inner).content, place.divisor, place.count, source
        )

    def content(self, buffer: Buffer, visit: int, chip: int) -> Content:
        """Return a constant of one visit of its block, rounded to its format."""
        key = (buffer.name, buffer.shape, chip, visit)
        if key in self.small:
            return self.small[key]
        if key in self.recent:
            self.recent.move_to_end(key)
            return self.recent[key]
        content = self._pack(buffer, visit, chip)
        if content.shape and int(np.prod(content.shape)) <= SMALL:
            self.small[key] = content
        else:
            self.recent[key] = content
            while len(self.recent) > KEPT:
                self.recent.popitem(last=False)
        return content

    def _table(self, buffer: Buffer, visit: int, chip: int) -> np.ndarray:
        """A constant of which rows are picked (the embedding): it stays, bf16 as the upper halves of fp32."""
        key = (buffer.name, buffer.shape, visit)
        if key not in self.tables:
            packed = self._packed(buffer, visit, chip)
            self.tables[key] = round_bf16(packed) if buffer.format == "bf16" else cast(packed, buffer.format)
        return self.tables[key]

    def _packed(self, buffer: Buffer, visit: int, chip: int) -> np.ndarray:
        constant = self.packs[buffer.name]
        layer = self.layers[constant.block][visit]
        found = np.asarray(constant.pack(lambda name: self.weights[layer, name], chip), np.float32)
        return np.ascontiguousarray(found)

    def _pack(self, buffer: Buffer, visit: int, chip: int) -> Content:
        packed = self._packed(buffer, visit, chip)
        if buffer.format in WIDE:
            return packed if buffer.format == "fp32" else cast(packed, buffer.format)
        scale = self._tensor_scale(buffer, self.layers[self.packs[buffer.name].block][visit])
        return quantise(packed, buffer.format, self.rule, scale=scale)

    def _tensor_scale(self, buffer: Buffer, layer: int | None) -> float | None:
        """The scale of a whole matrix, over all chips that have a share of it; None for formats without one."""
        scheme = scheme_of(buffer.format)
        if not scheme.of_tensor:
            return None
        pack = self.packs[buffer.name].pack
        parts = (pack(lambda name: self.weights[layer, name], chip) for chip in range(self.chips))
        peak = max(float(np.abs(part).max(initial=0.0)) for part in parts)
        most = float(scheme.codes.largest) * (E4M3_LARGEST if scheme.scale == "e4m3" else 1.0)
        return float(np.float32(peak / most)) or 1.0
