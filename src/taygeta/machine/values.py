"""Arrays of the executed machine: a buffer's content, and what a core's scratchpad holds of it.

Cores often hold equal copies. A `Local` keeps each distinct content once: core c has entry c // divisor % count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from taygeta.numerics import Quantised
from taygeta.numerics.quantised import coarse
from taygeta.numerics.schemes import ROW

Content = np.ndarray | Quantised
"""Elements in fp32 (fp32, bf16, fp16), or codes and scales."""


class Local:
    """What cores hold of a buffer: distinct contents along the first axis, and which core has which.

    source: where it was loaded from unchanged, a hashable name of constant content, or None. waits: whether the content
    has not been asked for yet.
    """

    __slots__ = ("content", "count", "divisor", "source")
    waits = False

    def __init__(self, content: Content, divisor: int = 1, count: int = 1, source: Any = None) -> None:
        self.content, self.divisor, self.count, self.source = content, divisor, count, source

    def which(self, cores: int) -> np.ndarray:
        """Return the entry of each core."""
        return np.arange(cores) // self.divisor % self.count

    def full(self, cores: int) -> Local:
        """Return the same with an entry for each core."""
        if self.divisor == 1 and self.count == cores:
            return self
        which = self.which(cores)
        return Local(each(self.content, lambda x: x[which]), 1, cores, self.source)


class Waiting(Local):
    """A content that is given as a function, called when it is first asked for: weights that are already prepared for
    their multiply are never looked at.
    """

    __slots__ = ("_call", "_found")

    def __init__(self, call: Callable[[], Content], divisor: int, count: int, source: Any) -> None:
        self._call, self._found = call, None
        self.divisor, self.count, self.source = divisor, count, source

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether the content has not been asked for yet."""
        return self._found is None

    @property
    def content(self) -> Content:  # type: ignore[override]
        """The distinct contents."""
        if self._found is None:
            self._found = self._call()
        return self._found


def alike(values: list[Local], cores: int) -> list[Local]:
    """Return values whose entries belong together: those of one entry as they are, others spread to all cores."""
    several = {(v.divisor, v.count) for v in values if v.count > 1}
    if len(several) <= 1:
        return values
    return [v if v.count == 1 else v.full(cores) for v in values]


def each(content: Content, function: Callable[[np.ndarray], np.ndarray]) -> Content:
    """Apply a function of the leading axes to the arrays of a content."""
    if isinstance(content, np.ndarray):
        return function(content)
    return replace(
        content,
        codes=function(content.codes),
        scales=None if content.scales is None else function(content.scales),
        shifts=None if content.shifts is None else function(content.shifts),
    )


def array_of(content: Content) -> np.ndarray:
    """Return a content of fp32 elements as it is. Raises TypeError for one of codes."""
    if not isinstance(content, np.ndarray):
        raise TypeError(f"fp32 elements are needed where {content.format} is")
    return content


def codes_of(content: Content) -> Quantised:
    """Return a content of codes as it is. Raises TypeError for one of fp32 elements."""
    if isinstance(content, np.ndarray):
        raise TypeError("codes and scales are needed where fp32 elements are")
    return content


def joined(contents: Sequence[Content], axis: int = -1) -> Content:
    """Return contents one after another along an axis, the last one by default: cut at blocks.

    Parts of rows that have one scale each are of the same rows, and so have the same scales.
    """
    first = contents[0]
    if len(contents) == 1:
        return first
    if isinstance(first, np.ndarray):
        return np.concatenate([c for c in contents if isinstance(c, np.ndarray)], axis=axis)
    parts = [c for c in contents if isinstance(c, Quantised)]
    many = [
        None if getattr(first, name) is None else np.concatenate([getattr(p, name) for p in parts], axis=axis)
        for name in ("codes", "scales", "shifts")
    ]
    of_rows = axis == -1 and parts[0].group == ROW
    return replace(first, codes=many[0], scales=parts[0].scales if of_rows else many[1], shifts=many[2])


def empty(shape: tuple[int, ...], format_name: str, quantise: Callable[[np.ndarray], Content]) -> Content:
    """Return a buffer of zeros in a format."""
    return quantise(np.zeros(shape, np.float32)) if quantise else np.zeros(shape, np.float32)


Key = tuple[Any, ...]


def read(content: Content, key: Key) -> Content:
    """Return a part of a content: whole numbers, slices and index arrays by axis (the last axis: a slice).

    The last axis of a quantised content is cut at blocks.
    """
    if isinstance(content, np.ndarray):
        return content[key]
    *lead, columns = key
    return replace(
        content,
        codes=content.codes[(*lead, columns)],
        scales=None if content.scales is None else content.scales[(*lead, _blocks(columns, content.group))],
        shifts=None if content.shifts is None else content.shifts[(*lead, _blocks(columns, 2))],
    )


def write(content: Content, key: Key, value: Content) -> None:
    """Write a part of a content in place."""
    if isinstance(content, np.ndarray):
        found = array_of(value)
        content[key] = found.reshape(len(found), *content[key].shape[1:])
        return
    given = codes_of(value)
    *lead, columns = key
    content.codes[(*lead, columns)] = given.codes
    if content.scales is not None and given.scales is not None:
        content.scales[(*lead, _blocks(columns, content.group))] = given.scales
    if content.shifts is not None and given.shifts is not None:
        content.shifts[(*lead, _blocks(columns, 2))] = given.shifts


def _blocks(columns: Any, group: int) -> Any:
    """Columns as blocks: a slice, or an index array whose runs begin at blocks."""
    if not group:
        return slice(None)
    if isinstance(columns, slice):
        return coarse(columns, group)
    return columns[..., ::group] // group
