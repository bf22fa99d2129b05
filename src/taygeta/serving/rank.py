"""One attention-DP rank in plain Python: its queue, the sequences that run, the blocks of its KV cache."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from taygeta.serving.limits import Limits
from taygeta.serving.prefix import PrefixCache
from taygeta.serving.request import INFINITY, Flight


class Rank:
    """The sequences of one attention-DP rank and the blocks of its KV cache."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: list[tuple[int, int, Flight]] = []  # heap of (-priority, ticket, request)
        self.running: list[Flight] = []  # in order of admission
        self.free = limits.blocks
        self.committed = 0
        self.cache = PrefixCache(limits.host_pieces)
        self.loading = 0.0  # when the link to the host is free again
        self.last_decode = 0.0
        self.queued = 0  # tokens of prompts that wait
        self.open = True  # waiting requests may start in this step
        self.admissions = 0

    def decoding(self) -> list[Flight]:
        """Return the sequences that decode."""
        return [r for r in self.running if r.decodes]

    def reading(self) -> list[Flight]:
        """Return the sequences whose prompts are partly read."""
        return [r for r in self.running if not r.decodes]

    def queue(self) -> Iterator[Flight]:
        """Yield the waiting requests in their order."""
        return (entry[2] for entry in sorted(self.waiting, key=lambda e: e[:2])) if self.open else iter(())

    def cached(self, r: Flight) -> tuple[int, int, int]:
        """Return (tokens of a waiting prompt that need no work, its pieces on the chip, and at the host)."""
        if not self.limits.caches or r.arrived:
            return (r.prompt if r.arrived else 0), 0, 0
        here, there = self.cache.found(r.hashes[: r.prompt // self.limits.hash_tokens])
        return min((here + there) * self.limits.hash_tokens, r.prompt - 1), here, there

    def blocks_for(self, tokens: int) -> int:
        """Return the blocks of a sequence of so many tokens in the cache."""
        return -(-tokens // self.limits.block_tokens) + self.limits.fixed_blocks

    def find(self, blocks: int) -> bool:
        """Drop idle pieces until so many blocks are free; return whether they are."""
        while self.free < blocks and self.cache.idle:
            self.cache.evict()
            self.free += self.limits.hash_blocks
        return self.free >= blocks

    def available(self) -> int:
        """Return the blocks that are free or idle."""
        return self.free + len(self.cache.idle) * self.limits.hash_blocks

    def held(self, r: Flight) -> int:
        """Return the blocks that a sequence holds, its pieces included."""
        return r.blocks + len(r.pieces) * self.limits.hash_blocks

    def admit(self, r: Flight, new: int, now: float) -> bool:
        """Start a waiting request whose first step adds `new` tokens; return false where its blocks are not free."""
        bounds = self.limits
        tokens, here, there = self.cached(r)
        after = r.prompt + r.produced(1) if r.arrived else tokens + min(new, r.prompt - tokens)
        commit = self.blocks_for(r.prompt + int(bounds.reserve * max(0, r.answer - 1))) if bounds.reserve > 0.0 else 0
        need = self.blocks_for(after) - here * bounds.hash_blocks
        idle = sum(1 for piece in r.hashes[:here] if piece in self.cache.idle) if here else 0
        if need > self.available() - idle * bounds.hash_blocks:
            return False
        if self.running and self.committed + commit > bounds.blocks:
            return False
        for piece in r.hashes[:here]:
            self.cache.hold(piece)
        self.find(need)
        for piece in r.hashes[here : here + there]:
            self.cache.host.pop(piece, None)  # evicting may just have pushed it out
            self.cache.hold(piece)
        if there:
            self.loading = max(self.loading, now) + there * bounds.host_piece
        r.pieces = list(r.hashes[: here + there])
        r.blocks, r.committed = need - there * bounds.hash_blocks, commit
        self.free -= need
        self.committed += commit
        if self.waiting[0][2] is r:
            heapq.heappop(self.waiting)
        else:
            self.waiting.remove((-r.priority, r.ticket, r))
            heapq.heapify(self.waiting)
        self.queued -= r.prompt
        if r.start == INFINITY:
            r.start, r.cached = now, 0 if r.arrived else tokens
        r.computed = tokens
        r.admitted, self.admissions = self.admissions, self.admissions + 1
        self.running.append(r)
        return True

    def release(self, r: Flight) -> None:
        """Give back all blocks of a sequence; its pieces stay, idle, the last of the prefix leaving first."""
        self.free += r.blocks
        for piece in reversed(r.pieces):
            self.cache.release(piece)
        r.pieces.clear()
        self.committed -= r.committed
        r.blocks = r.committed = 0

    def share(self, r: Flight, tokens: int) -> None:
        """Make the complete pieces of a sequence's first `tokens` tokens findable by others."""
        if not self.limits.caches:
            return
        for piece in r.hashes[len(r.pieces) : tokens // self.limits.hash_tokens]:
            if piece in self.cache.holders:
                break  # another made the same meanwhile: what follows stays private too
            self.cache.hold(piece)
            r.pieces.append(piece)
            r.blocks -= self.limits.hash_blocks
