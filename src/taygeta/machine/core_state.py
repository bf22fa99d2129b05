"""What the compiled timed machine works on: a program's columns, and records of all that changes.

Records keep what belongs together in one array: compiling and calling code over few arrays is much faster than over
many.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from taygeta.machine.columns import HBM, LINK, PORTS, SHARED, Columns

FIRST_RING, FIRST_LOG = 64, 1 << 12
"""Rows at first, of rings (a power of two) and logs; both double when they are full."""

NEVER = 1 << 62


def _record(floats: str, integers: str) -> np.dtype:
    return np.dtype([(n, "f8") for n in floats.split()] + [(n, "i8") for n in integers.split()], align=True)


ENGINE = _record("clock moved arrived begin left since rate finish many", "row last group phase next")
"""One engine. moved, arrived: of its last transfer or sum to arrive. begin, left, since, rate, finish: of its transfer
under way: bytes left at time `since`, and when they will have moved at this rate. group: its class, of `many` cores.
next: the next engine that waits for the same event, or -1."""

STREAM = _record("latency", "sent limit giver waiting chipwide")
"""Events of a semaphore in a class: how many, how many find room, who gives them, and the first engine that waits."""

PLACE = _record("level", "ready full active pending open")
"""The n-th of several lists of engines: that can run, that wait for room in a ring, that transfer (in the order of
their numbers), that will; and of `share`, the places of transfers that can have more, and the rate of each."""

RESOURCE = _record("capacity spare load rise", "")
USE = _record("amount moved", "resource")
"""What a byte of an engine's transfer asks of a resource, and what its transfers have moved through it."""

TURN = _record("", "count rank")
"""Of a loop: turns begun before this one, and the rank of the length of its list."""

LOG, MARK, SPAN = (
    _record("begin end origin", "engine giver"),
    _record("begin", "engine phase"),
    _record("begin end", "engine instruction"),
)
"""A stall and what ended it; a change of an engine's phase; an instruction."""

TALLY = _record("now", "classes logs marks spans instructions ready full active pending changed")
"""Time, used rows of arrays, and whether transfers have started or ended since rates were shared."""


class State(NamedTuple):
    """The columns, and records of what changes.

    turns: engine x depth. waited: semaphore x engine, the number of the event that the next wait is for (NEVER: of an
    engine that does not wait there). events: stream x slot x (time, when its cause was done). uses: engine x (hbm,
    shared, link, own port). busy: engine x phase. extent: first begin and last end of each phase.
    """

    code: np.ndarray
    works: np.ndarray
    lists: np.ndarray
    ranks: np.ndarray
    engines: np.ndarray
    turns: np.ndarray
    waited: np.ndarray
    streams: np.ndarray
    events: np.ndarray
    places: np.ndarray
    uses: np.ndarray
    resources: np.ndarray
    busy: np.ndarray
    extent: np.ndarray
    log: np.ndarray
    marks: np.ndarray
    spans: np.ndarray
    tally: np.ndarray


def state(c: Columns, phases: int, spans: int) -> State:
    """Return the state before the first instruction."""
    count, classes = len(c.start) - 1, len(c.many)
    number = np.arange(count)
    engines, uses = np.zeros(count, ENGINE), np.zeros((count, 4), USE)
    engines["row"], engines["last"], engines["phase"], engines["next"] = c.start[:-1], c.start[1:], -1, -1
    engines["group"], engines["many"] = number // 6, c.many[number // 6]
    uses["resource"][:, :3] = HBM, SHARED, LINK
    uses["resource"][:, 3] = PORTS + 2 * (number // 6) + (number % 6 == 2)
    streams = np.zeros((len(c.semaphores), classes), STREAM)
    streams["giver"], streams["waiting"] = -1, -1
    streams["chipwide"], streams["latency"] = c.semaphores["chipwide"][:, None], c.semaphores["latency"][:, None]
    places, resources, tally = np.zeros(count, PLACE), np.zeros(len(c.capacity), RESOURCE), np.zeros(1, TALLY)
    places["ready"], resources["capacity"] = number[::-1], c.capacity
    tally["ready"], tally["classes"] = count, classes
    return State(
        c.code, c.works, c.lists, c.ranks, engines,
        np.zeros((count, int(c.code["depth"].max(initial=0)) + 1), TURN),
        np.where(c.waits, -c.semaphores["initial"][:, None], NEVER), streams.reshape(-1),
        np.zeros((streams.size, FIRST_RING, 2)), places, uses, resources, np.zeros((count, phases)),
        np.tile([np.inf, 0.0], (phases, 1)), np.zeros(FIRST_LOG, LOG), np.zeros(FIRST_LOG, MARK),
        np.zeros(spans, SPAN), tally,
    )  # fmt: skip


def wider(s: State) -> State:
    """Return the state with rings of twice the size, every event in its place."""
    old = s.events.shape[1]
    out = np.zeros((len(s.events), 2 * old, 2))
    for n, count in enumerate(s.streams["sent"].tolist()):
        kept = np.arange(max(0, count - old), count)
        out[n, kept % (2 * old)] = s.events[n, kept % old]
    s.streams["limit"] = 0
    return s._replace(events=out)


def longer(s: State) -> State:
    """Return the state with logs of twice the size."""
    return s._replace(**{n: np.concatenate([a, np.zeros_like(a)]) for n, a in (("log", s.log), ("marks", s.marks))})
