"""The fleet under the clock: requests come in, tokens leave when their time has come."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from taygeta.endpoint.clock import Clock
from taygeta.endpoint.errors import ApiError, busy
from taygeta.endpoint.metrics import LATE, WINDOW, Metrics
from taygeta.endpoint.stops import Stops
from taygeta.endpoint.stream import Choice, Mark, Stream
from taygeta.endpoint.text import Ask, TextSource
from taygeta.serving.live import Departure, Live
from taygeta.serving.request import INFINITY

LOG = logging.getLogger("taygeta.endpoint")
SLICE = 0.005  # seconds of the wall after which the fleet lets the connections have their turn


@dataclass(frozen=True)
class Bounds:
    """What a client may take. Sizes in bytes and tokens, times in seconds of the wall.

    context: tokens of a prompt and its answer. requests: answers in flight. connections: open at once. body: bytes
    of a request. headers, reading, writing: until a connection has sent the head of a request, its body, and has taken
    what was written to it. answer: until a request is answered in full. grace: for open requests when the server stops.
    """

    context: int
    requests: int = 4096
    connections: int = 4096
    body: int = 4 << 20
    headers: float = 20.0
    reading: float = 30.0
    writing: float = 30.0
    answer: float = 1800.0
    grace: float = 10.0


class Service:
    """A live fleet, its clock, its text. names: those that the model answers to; the first one is its own."""

    def __init__(self, live: Live, source: TextSource, clock: Clock, names: Sequence[str], bounds: Bounds) -> None:
        self.live, self.source, self.clock, self.names, self.bounds = live, source, clock, tuple(names), bounds
        self.metrics = Metrics()
        self.created = int(time.time())
        self.stopping = False
        self.connections: set[object] = set()  # the server's, once it runs
        self.streams: set[Stream] = set()
        self.hash_tokens = live.setup.traffic.prefixes.block if live.setup.traffic.prefixes else 0
        self.caches = any(kind.limits.caches for kind in live.setup.kinds)
        self._open: dict[int, tuple[Stream, Choice]] = {}  # by flight
        self._owed: dict[int, Choice] = {}  # by flight: whose text the fleet waits for
        self._something = asyncio.Event()
        self._text = asyncio.Event()
        self._said, self._said_late = -math.inf, 0
        self._teller: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """Return the fleet's time."""
        return self.live.now if self.clock.free else self.clock.fleet_time(time.monotonic())

    def open(
        self, name: str, asks: Sequence[tuple[Ask, Sequence[str]]], priority: int, arrived: float, prompt_tokens: int
    ) -> Stream:
        """Let the answers of a request begin. asks: what is wanted, with the texts that end it. arrived: of the wall.

        Raises ApiError where too much is in flight, or an answer fits nowhere, and what the text's source raises.
        """
        if self.stopping:
            raise busy(503, "The server is stopping.", "server_stopping")
        if len(self._open) + len(asks) > self.bounds.requests:
            raise busy(429, f"{self.bounds.requests:,} answers are in flight: come again later.", "too_many_requests")
        at = self.live.now if self.clock.free else self.clock.fleet_time(arrived)
        stream = Stream(name, max(at, self.live.now), prompt_tokens)
        answers = [self.source.answer(ask) for ask, _ in asks]
        for (ask, _), answer in zip(asks, answers, strict=True):
            if not self.live.accepts(len(ask.prompt), answer.tokens):
                raise ApiError(
                    400,
                    f"{len(ask.prompt):,} tokens of prompt and {answer.tokens:,} of answer exceed the KV cache of every"
                    " replica of the fleet.",
                    code="context_length_exceeded",
                )
        for index, ((ask, stops), answer) in enumerate(zip(asks, answers, strict=True)):
            hashes = self._hashes([*ask.prompt, *answer.ahead()]) if self.caches else ()
            flight = self.live.submit(at, len(ask.prompt), answer.tokens, priority, hashes)
            choice = Choice(index, flight, answer, Stops(stops, ask.least))
            stream.choices.append(choice)
            self._open[flight.index] = (stream, choice)
            answer.start(partial(self._told, stream, choice))
        self.streams.add(stream)
        self._something.set()
        return stream

    def end(self, stream: Stream, choice: Choice, reason: str) -> None:
        """An answer has ended: note it, and take from the fleet what it would still do."""
        choice.reason = reason
        stream.done = all(c.reason is not None for c in stream.choices)
        choice.answer.close()
        self.metrics.finished[reason] += 1
        self.metrics.answers.observe(choice.sent)
        self._owed.pop(choice.flight.index, None)
        self._text.set()
        if self._open.pop(choice.flight.index, None) is not None:
            self.live.cancel(choice.flight)
            self._something.set()

    def close(self, stream: Stream) -> None:
        """A request is over, in whatever way: what has not ended goes away."""
        self.streams.discard(stream)
        for choice in stream.choices:
            if choice.reason is None:
                self.end(stream, choice, "abort" if stream.gone else "error")

    def note(self, stream: Stream, mark: Mark, tokens: int) -> None:
        """Note how late tokens are that are about to be written."""
        if self.clock.free:
            return
        now = time.monotonic()
        due = max(self.clock.wall_time(mark.at), stream.free)  # what a slow reader holds up is its own
        if self.metrics.lag.note(max(0.0, now - due), tokens, now) and self._teller is None:
            wait = max(1.0, self._said + WINDOW - now)
            self._teller = asyncio.get_running_loop().call_later(wait, self._tell)

    def stop(self) -> None:
        """Take no more requests; what is open has the grace to end."""
        self.stopping = True

    def fail_all(self, message: str) -> None:
        """End every open request with an error."""
        for stream in list(self.streams):
            stream.fail(ApiError(503, message, code="server_stopping"))

    async def run(self) -> None:
        """Move the fleet on as time passes, for ever."""
        self.clock.start()
        loop = asyncio.get_running_loop()
        while True:
            began = time.monotonic()
            self._something.clear()
            while (at := self.live.next_moment()) <= self._reach(at):
                for departure in self.live.advance_until(at):
                    self._deliver(departure)
                while self._owed:  # where an answer ends, and who has its place then, is not known before its text
                    self._text.clear()
                    await self._text.wait()
                if self.clock.free or time.monotonic() - began > SLICE:
                    await asyncio.sleep(0)
                    began = time.monotonic()
            timer = None
            if at < INFINITY and not self.clock.free:
                wait = min(self.clock.wall_time(at) - time.monotonic(), 3600.0)
                timer = loop.call_later(max(0.0, wait), self._something.set)
            await self._something.wait()
            if timer is not None:
                timer.cancel()

    def _reach(self, at: float) -> float:
        """Return the time up to which the fleet may go."""
        if self.clock.free:  # where nothing is asked for, no time passes
            return at if at < INFINITY and self._open else -math.inf
        return self.clock.fleet_time(time.monotonic()) if at < INFINITY else -math.inf

    def _deliver(self, d: Departure) -> None:
        """Tokens of an answer leave: tell the stream that waits for them."""
        found = self._open.get(d.flight.index)
        if found is None or found[1].whole:
            return
        stream, choice = found
        metrics, r = self.metrics, d.flight
        tokens, choice.whole = d.tokens, d.last
        if choice.answer.ended and tokens >= choice.answer.made:  # it has said all it has to say
            tokens, choice.whole = choice.answer.made, True
        if not choice.made:
            metrics.prompt_tokens += r.isl
            metrics.prompts.observe(r.isl)
            metrics.ttft.observe(d.at - stream.arrived)
            metrics.queueing.observe(max(0.0, r.start - stream.arrived))
            if self.caches:
                metrics.cache_queries += r.isl
                metrics.cache_hits += r.cached
        else:
            metrics.itl.observe(d.at - choice.latest)
        choice.made, choice.latest = tokens, d.at
        choice.answer.want(tokens)
        self._count(choice)
        if choice.whole:
            self._finish(stream, choice, d.last)
        elif self._owes(choice):
            self._owed[r.index] = choice
        stream.push(Mark(choice.index, tokens, d.at, choice.whole))

    def _owes(self, choice: Choice) -> bool:
        """Return whether tokens that have left have no text yet. A fleet that runs free knows the next one, too:
        an answer that ends there takes no part in the step after it.
        """
        answer = choice.answer
        return not (answer.problem or answer.ended) and answer.made < choice.made + self.clock.free

    def _count(self, choice: Choice) -> None:
        """Count tokens that have left the fleet and are there."""
        tokens = min(choice.made, choice.answer.made)
        self.metrics.generation_tokens += tokens - choice.counted
        choice.counted = tokens

    def _finish(self, stream: Stream, choice: Choice, known: bool = False) -> None:
        """All tokens of an answer have left the fleet. known: to the fleet too; else what it would still do goes."""
        self.metrics.e2e.observe(choice.latest - stream.arrived)
        if not known:
            self.live.cancel(choice.flight)
            self._something.set()

    def _told(self, stream: Stream, choice: Choice) -> None:
        """There is more text of an answer, or a problem."""
        answer = choice.answer
        if choice.reason is not None:
            return
        if answer.problem:
            stream.fail(ApiError(500, answer.problem, code="execution_failed"))
        if answer.ended and choice.made >= answer.made and not choice.whole:  # tokens that leave together end early
            choice.made, choice.whole = answer.made, True
            self._finish(stream, choice)
        elif answer.ended and answer.made < answer.tokens:
            self.live.shorten(choice.flight, answer.made)
        self._count(choice)
        if not self._owes(choice):
            self._owed.pop(choice.flight.index, None)
            self._text.set()
        stream.wake()

    def _hashes(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return a number for every complete block of tokens, equal where all tokens up to its end are."""
        out: list[int] = []
        number, size = 0, self.hash_tokens
        for end in range(size, len(tokens) + 1, size):
            number = hash((number, *tokens[end - size : end]))
            out.append(number)
        return tuple(out)

    def _tell(self) -> None:
        """Say in the log, now and then, that tokens leave late."""
        lag, now = self.metrics.lag, time.monotonic()
        LOG.warning(
            "cannot keep pace: %d tokens left more than %g ms late, up to %.0f ms; clients see latencies that are"
            " not the fleet's. A lower --speed lets it keep pace.",
            lag.late - self._said_late,
            LATE * 1e3,
            lag.largest(now) * 1e3,
        )
        self._said, self._said_late, self._teller = now, lag.late, None
