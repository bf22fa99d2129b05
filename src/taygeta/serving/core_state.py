"""The state of a compiled run: arrays of records, one for each request, rank, replica and pool.

A request is in one queue at most, one list of running sequences, one slot of its rank's calendar and one plan; links
are request numbers, NONE ends a list. Names are those of the plain path (`request`, `rank`, `replica`, `plain`);
what differs is there so that a step costs the same however many sequences it holds: those that decode are counted, and
each has one next event only (`slot`: more blocks, the first token that is seen, or the end) by its rank's step.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numba import extending, types
from numba.core import cgutils
from numba.np import numpy_support

from taygeta.graph.ops import BATCH_AXES
from taygeta.serving.limits import Limits
from taygeta.serving.lookup import Tables
from taygeta.serving.outcome import GAP_BINS, LOG_COLUMNS

NONE = -1
RING = 64  # slots of a calendar: no event lies farther ahead, a later one is looked at again on the way
CLOSED_LIST = 0  # index of the header of `entries`, whose chain leads to the entries that are free
RUNNING, ENDED, FULL_LOG, FULL_HEAP = range(4)  # what advance returns
INFINITY = float("inf")

_REQUEST_COUNTS = (
    "isl osl level prompt answer steps rate computed base joined made blocks pieces committed ticket admitted arrived"
    " later later_steps rank replica cached preemptions retries ended hashes hash_count first_follower next_follower"
    " target source_life life queue_next queue_prev run_next run_prev slot slot_next slot_prev plan_next new"
)
_REQUEST_TIMES = "last ready start first end arrival came delay"
_RANK_COUNTS = (
    "free committed idle idle_first idle_last hosted host_first host_last queued waiting arrived running run_first"
    " run_last reading decodes context rate steady grown step admissions plan_first plan_last pieces fresh goes"
    " queues open"
)
_REPLICA_COUNTS = (
    "kind first_rank queue outstanding blocked tickets front steps waited unseen up wanted lives log_rows log_stride"
    " compiled"
)
_REPLICA_TIMES = "intake emitted ends started busy sends receives ready since active"
_RUN_COUNTS = (
    "left released coming events managed ticks levels backlog unsent done closed router disaggregated keep_all log_full"
    " request_count replica_count kind_count entry_count bucket_count heap_room leaves log_rows sequences"
)


def _record(counts: str, times: str) -> list[tuple[str, type]]:
    return [(name, np.int64) for name in counts.split()] + [(name, np.float64) for name in times.split()]


REQUEST = np.dtype(_record(_REQUEST_COUNTS, _REQUEST_TIMES))
RANK = np.dtype([*_record(_RANK_COUNTS, "loading last_decode"), ("slots", np.int64, (RING,))])
REPLICA = np.dtype(_record(_REPLICA_COUNTS, _REPLICA_TIMES))
LIMITS = [(name, np.int64 if kind is int else np.float64) for name, kind in get_type_hints(Limits).items()]
KIND = np.dtype(
    LIMITS
    + _record(
        "role first replicas scales least tables sizes counts contexts news",
        "send_fixed send_token latency expand_from context_ranks verified_tokens target interval startup",
    )
)
QUEUE = np.dtype(_record("first last", ""))
ENTRY = np.dtype(_record("key chain holders here there idle_prev idle_next host_prev host_next", ""))
EVENT = np.dtype(_record("kind number", "at"))


class State(NamedTuple):
    """The arrays of a run, and in `run` the one record that compiled functions are given: counts and addresses.

    queues: of each rank and level of priority, of each replica's front end, then the fleet's. entries, buckets: pieces
    of prefixes in a hash table, by rank. ids: hashed pieces of all requests. tables: of all pools in one row. heap:
    events to come; initial arrivals are in order already and stay out of it. tree: when replicas wake, a tournament.
    log: rows by replica. pieces: new and cached tokens of a step's prompts. able, chosen: room to work in.
    """

    run: np.ndarray
    requests: np.ndarray
    ranks: np.ndarray
    replicas: np.ndarray
    kinds: np.ndarray
    queues: np.ndarray
    entries: np.ndarray
    heap: np.ndarray
    buckets: np.ndarray
    ids: np.ndarray
    tables: np.ndarray
    tree: np.ndarray
    gaps: np.ndarray
    log: np.ndarray
    pieces: np.ndarray
    able: np.ndarray
    chosen: np.ndarray


ARRAYS = State._fields[1:]
RUN = np.dtype(_record(_RUN_COUNTS + "".join(f" {name}_at" for name in ARRAYS), "now until"))


def point(state: State) -> None:
    """Write into the record of a run where its arrays lie; they must live as long as it is used."""
    for name in ARRAYS:
        array = getattr(state, name)
        if not array.flags.c_contiguous:
            raise ValueError(f"the array {name} of a run must be contiguous")
        state.run[f"{name}_at"] = array.ctypes.data


def _as_pointer(context: Any, address: Any) -> Any:
    """Type and generate the code of an address taken as a pointer, for `carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


carray: Any = numpy_support.carray
_pointer: Any = extending.intrinsic(_as_pointer)


def request_of(s, r):
    """Return a request."""
    return carray(_pointer(s.requests_at), (1 << 40,), REQUEST)[r]


def rank_of(s, k):
    """Return a rank, by its number over all replicas."""
    return carray(_pointer(s.ranks_at), (1 << 40,), RANK)[k]


def replica_of(s, n):
    """Return a replica."""
    return carray(_pointer(s.replicas_at), (1 << 40,), REPLICA)[n]


def kind_of(s, i):
    """Return a kind of replica: the limits of a pool, and what else is the same for all of it."""
    return carray(_pointer(s.kinds_at), (1 << 40,), KIND)[i]


def queue_of(s, i):
    """Return a queue."""
    return carray(_pointer(s.queues_at), (1 << 40,), QUEUE)[i]


def entry_of(s, e):
    """Return an entry of the hash table of pieces."""
    return carray(_pointer(s.entries_at), (1 << 40,), ENTRY)[e]


def event_of(s, i):
    """Return an event of the heap."""
    return carray(_pointer(s.heap_at), (1 << 40,), EVENT)[i]


def buckets_of(s):
    """Return the buckets of the hash table of pieces."""
    return carray(_pointer(s.buckets_at), (s.bucket_count,), np.int64)


def ids_of(s):
    """Return the hashed pieces of all requests."""
    return carray(_pointer(s.ids_at), (1 << 40,), np.int64)


def tables_of(s, bounds):
    """Return the tables of a kind of replica."""
    axes = (bounds.stages, len(BATCH_AXES), bounds.sizes)
    decode = (bounds.stages, 2, bounds.counts, bounds.contexts)
    prompt = (bounds.stages, 3, bounds.news, bounds.contexts)
    at = s.tables_at + 8 * bounds.tables  # bytes of a float64
    after = at + 8 * axes[0] * axes[1] * axes[2]
    last = after + 8 * decode[0] * decode[1] * decode[2] * decode[3]
    return Tables(
        carray(_pointer(at), axes, np.float64),
        carray(_pointer(after), decode, np.float64),
        carray(_pointer(last), prompt, np.float64),
        bounds.expand_from,
        bounds.context_ranks,
        bounds.verified_tokens,
    )


def tree_of(s):
    """Return the tournament of wake times."""
    return carray(_pointer(s.tree_at), (2 * s.leaves,), np.float64)


def gaps_of(s):
    """Return the histogram of gaps between tokens."""
    return carray(_pointer(s.gaps_at), (GAP_BINS,), np.int64)


def log_of(s):
    """Return the log: replica, row, column."""
    return carray(_pointer(s.log_at), (s.replica_count, s.log_rows, len(LOG_COLUMNS)), np.float64)


def pieces_of(s):
    """Return room for the new and the cached tokens of a step's prompts."""
    return carray(_pointer(s.pieces_at), (2, s.sequences), np.float64)


def able_of(s):
    """Return room for the replicas that take a request."""
    return carray(_pointer(s.able_at), (s.replica_count,), np.int64)


def chosen_of(s):
    """Return room for sequences of a rank."""
    return carray(_pointer(s.chosen_at), (s.sequences,), np.int64)
