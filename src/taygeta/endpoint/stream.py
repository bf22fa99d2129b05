"""One HTTP request on its way: its answers, and the tokens of them whose time to leave has come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from taygeta.endpoint.errors import ApiError
from taygeta.endpoint.stops import Stops
from taygeta.endpoint.text import Answer, Chance
from taygeta.serving.request import Flight

MAX_MARKS = 256
"""Marks that wait for a reader that is slow; later ones join the last one, so that memory does not grow."""


class Mark(NamedTuple):
    """Tokens of an answer whose time has come: those up to `tokens`, at the fleet's time `at`."""

    choice: int
    tokens: int
    at: float
    last: bool


@dataclass
class Choice:
    """One answer.

    made: tokens that have left the fleet, at `latest` its time; whole: whether those are all; counted: in
    the metrics. sent: those that were
    written; letters: of their text. chances: of tokens that were written, until their event is. reason: why it ended.
    """

    index: int
    flight: Flight
    answer: Answer
    stops: Stops
    made: int = 0
    latest: float = 0.0
    whole: bool = False
    counted: int = 0
    sent: int = 0
    letters: int = 0
    chances: list[tuple[Chance, ...]] = field(default_factory=list)
    reason: str | None = None


@dataclass(eq=False)
class Stream:
    """What waits to be written.

    prompt_tokens: of all prompts of the request together. arrived: the fleet's time. problem: what ends it early.
    done: whether every answer has ended. free: when a client that did not read last did again: what waited for it
    until then is not the server's lag.
    """

    name: str
    arrived: float
    prompt_tokens: int
    choices: list[Choice] = field(default_factory=list)
    marks: deque[Mark] = field(default_factory=deque)
    problem: ApiError | None = None
    gone: bool = False
    done: bool = False
    free: float = 0.0
    _waiter: asyncio.Future[None] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all answers that were sent."""
        return sum(choice.sent for choice in self.choices)

    def push(self, mark: Mark) -> None:
        """Add tokens whose time has come."""
        if len(self.marks) >= MAX_MARKS:
            for place in range(len(self.marks) - 1, -1, -1):
                if self.marks[place].choice == mark.choice:
                    self.marks[place] = mark
                    return
        self.marks.append(mark)
        self.wake()

    def fail(self, problem: ApiError) -> None:
        """End it with an error."""
        self.problem = self.problem or problem
        self.wake()

    def leave(self) -> None:
        """The client has gone."""
        self.gone = True
        self.wake()

    @property
    def broken(self) -> bool:
        """Whether it ends early."""
        return self.gone or self.problem is not None

    async def next(self) -> Mark | None:
        """Return the next tokens, as soon as there are some; None when it ends early."""
        return self.marks.popleft() if await self.until(lambda: bool(self.marks)) else None

    async def until(self, met: Callable[[], bool]) -> bool:
        """Wait until something is so; return False where it ends early instead."""
        while not (self.broken or met()):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return not self.broken

    def wake(self) -> None:
        """Let who waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
