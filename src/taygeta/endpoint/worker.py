"""The thread that executes text, apart from the event loop: one token of one answer after the other.

Sessions belong to this thread alone. Answers take turns, whoever is the furthest behind the fleet first; each computes
by itself, so that none depends on what else is served. What they hold together is bounded: beyond it they wait.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from taygeta.base.errors import TaygetaError

LOG = logging.getLogger("taygeta.endpoint")
MAX_ACTIVE = 64
MAX_BYTES = 4 << 30
"""Of KV caches and activations of all answers that are being made."""

STOP_SECONDS = 10.0

T = TypeVar("T")


class StoppedError(TaygetaError):
    """Nothing more is executed."""

    def __init__(self) -> None:
        super().__init__("The server has stopped.")


class Work(Protocol):
    """An answer that is being made."""

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        ...

    @property
    def closed(self) -> bool:
        """Whether no more of it is wanted."""
        ...

    @property
    def spare(self) -> int:
        """Tokens that it is ahead of what is wanted of it; below 0 where somebody waits."""
        ...

    def step(self) -> bool:
        """Make one token, or read a part of the prompt; return whether more is to come."""
        ...

    def fail(self, error: Exception) -> None:
        """Say why it cannot go on."""
        ...

    def release(self) -> None:
        """Give back what it holds."""
        ...


class Worker:
    """Runs work in a thread of its own as long as the block. room: bytes that all of it may hold together."""

    def __init__(self, room: int = MAX_BYTES) -> None:
        self.room = room
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._waiting: deque[Work] = deque()
        self._active: list[Work] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="taygeta-text", daemon=True)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def held(self) -> int:
        """Bytes that the work in turn holds."""
        return sum(work.size for work in self._active)

    def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns in the worker's thread, between two tokens. Raises what it raises."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            if self._stopped:
                raise StoppedError()
            self._calls.append(run)
            self._changed.notify()
        return future.result()

    def submit(self, work: Work) -> None:
        """Let work begin, as soon as there is room for it."""
        with self._changed:
            stopped = self._stopped
            if not stopped:
                self._waiting.append(work)
                self._changed.notify()
        if stopped:
            work.fail(StoppedError())

    def wake(self) -> None:
        """Look at the work again: some of it may be closed."""
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the token that it makes; what is not made then fails."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stopped or self._calls or self._admit()):
                    self._changed.wait()
                if self._stopped:
                    left, calls = [*self._active, *self._waiting], [*self._calls]
                    break
                call = self._calls.popleft() if self._calls else None
                work = None if call else min(self._active, key=lambda w: w.spare)
            if call is not None:
                call()
            elif work is not None and not self._step(work):
                with self._changed:
                    self._active.remove(work)
                work.release()
        for call in calls:
            call()
        for work in left:
            work.fail(StoppedError())
            work.release()

    def _admit(self) -> bool:
        """Drop what is closed, and let in what there is room for, in order; return whether there is work."""
        for gone in [work for work in self._active if work.closed]:
            self._active.remove(gone)
            gone.release()
        self._waiting = deque(work for work in self._waiting if not work.closed)
        while self._waiting and len(self._active) < MAX_ACTIVE:
            if self._active and self.held + self._waiting[0].size > self.room:
                break
            self._active.append(self._waiting.popleft())
        return bool(self._active)

    @staticmethod
    def _step(work: Work) -> bool:
        try:
            return work.step()
        except Exception as error:  # whatever execution meets: its client is told, and the others go on
            LOG.debug("an answer could not go on", exc_info=True)
            work.fail(error)
            return False
