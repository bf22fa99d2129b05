"""The prefix cache of one attention-DP rank: hashed pieces in the chip's memory, and behind it in the host's.

A piece is a fixed number of tokens whose hash stands for the whole prefix up to its end, so that a sequence finds its
leading pieces and stops at the first that is missing. Pieces that no request holds stay until their memory is needed
and leave in the order of their last use; those that leave go to the host's memory, if it keeps any.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Counts of holders by piece, and the order in which idle pieces leave. host_pieces: room behind the chip."""

    def __init__(self, host_pieces: int) -> None:
        self.holders: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.host: OrderedDict[int, None] = OrderedDict()
        self._room = host_pieces

    def found(self, hashes: Sequence[int]) -> tuple[int, int]:
        """Return (leading pieces in the chip's memory, pieces after them in the host's)."""
        here = 0
        while here < len(hashes) and hashes[here] in self.holders:
            here += 1
        there = here
        while there < len(hashes) and hashes[there] in self.host and hashes[there] not in self.holders:
            there += 1
        return here, there - here

    def hold(self, piece: int) -> bool:
        """Hold a piece; return whether it was idle (true) or held by others or new (false)."""
        idle = piece in self.idle
        if idle:
            del self.idle[piece]
        self.holders[piece] = self.holders.get(piece, 0) + 1
        return idle

    def release(self, piece: int) -> bool:
        """Let a piece go; return whether nobody holds it now, so that it is idle."""
        self.holders[piece] -= 1
        if self.holders[piece] == 0:
            self.idle[piece] = None
            return True
        return False

    def evict(self) -> None:
        """Drop the idle piece that was used longest ago, into the host's memory where that has room."""
        piece, _ = self.idle.popitem(last=False)
        del self.holders[piece]
        if self._room:
            self.host.pop(piece, None)
            self.host[piece] = None
            if len(self.host) > self._room:
                self.host.popitem(last=False)
