"""The columns of a run: what is a traffic, what is refused, and what its statistics say, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taygeta.base.errors import InputError
from taygeta.serving.traffic import MAX_TOKENS, Prefixes, Statistics, Traffic, dense, joined, make_traffic

INF = np.inf


def three(**columns) -> Traffic:
    """Three requests at 0, 1 and 3 seconds."""
    return make_traffic("three", **({"isl": [10, 20, 30], "osl": [1, 0, 5], "arrival": [0.0, 1.0, 3.0]} | columns))


def prefixes(parts: list[list[int]], block: int) -> Prefixes:
    offsets = np.cumsum([0, *map(len, parts)])
    return Prefixes(offsets, np.array([i for part in parts for i in part], dtype=np.int64), block)


def test_columns_have_their_types_and_plain_values():
    t = three()
    kinds = [t.arrival.dtype, t.isl.dtype, t.osl.dtype, t.priority.dtype, t.after.dtype, t.delay.dtype]
    assert kinds == [np.float64, np.int64, np.int64, np.int32, np.int64, np.float64]
    assert (len(t), t.source, t.concurrency, t.prefixes) == (3, "", 0, None)
    assert t.after.tolist() == [-1, -1, -1]
    assert t == three()
    assert t != three(osl=[1, 0, 6])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"isl": [10, 0, 30]}, "isl of request 1 must be 1 to 4,194,304 tokens, not 0."),
        ({"isl": [10, MAX_TOKENS + 1, 3]}, "isl of request 1 must be 1 to 4,194,304 tokens, not 4194305."),
        ({"osl": [1, -1, 5]}, "osl of request 1 must be 0 to 4,194,304 tokens, not -1."),
        ({"isl": [1.5, 2, 3]}, "Values of isl of a traffic must be whole numbers of 64 bits."),
        ({"isl": [1.0, np.nan, 3]}, "Values of isl of a traffic must be whole numbers of 64 bits."),
        ({"isl": ["1", "2", "3"]}, "Values of isl of a traffic must be one column of numbers"),
        ({"isl": [[1, 2, 3]]}, "must be one column of numbers, not 2 of int64"),
        ({"priority": [0, 2**40, 0]}, "Values of priority of a traffic must be whole numbers of 32 bits."),
        ({"osl": [1, 2]}, "osl has 2 values for 3 requests."),
        ({"isl": [], "osl": [], "arrival": []}, "A traffic must have 1 to 20,000,000 requests, not 0."),
        ({"arrival": [0, np.nan, 3]}, "arrival of request 1 must be 0 to 1e+09 seconds, not nan."),
        ({"arrival": [0, -1.0, 3]}, "arrival of request 1 must be 0 to 1e+09 seconds, not -1."),
        ({"arrival": [0, INF, 3]}, "arrival of request 1 must be 0 to 1e+09 seconds, not inf."),
        ({"arrival": [0, 3, 1]}, "Request 2 arrives before the one in front of it: sort requests by arrival."),
        ({"after": [-1, 0, -1]}, "arrival of request 1 must be infinite, as another request releases it, not 1."),
        ({"after": [-1, 1, -1]}, "after of request 1 must be -1 or the number of an earlier request, not 1."),
        ({"after": [-2, -1, -1]}, "after of request 0 must be -1"),
        ({"delay": [0, 0, -1.0]}, "delay of request 2 must be 0 to 1e+09 seconds, not -1."),
        ({"delay": [0, 0, np.nan]}, "delay of request 2"),
        ({"concurrency": 2}, "In a closed loop of 2 the first 2 requests arrive at 0"),
        ({"concurrency": -1}, "The concurrency of a closed loop must be 1 to 20,000,000, not -1."),
        (
            {"concurrency": 1, "arrival": [0, INF, INF], "after": [-1, 0, -1]},
            "In a closed loop every end releases the next request: `after` must be -1.",
        ),
    ],
)
def test_what_is_no_traffic_is_refused(columns, words):
    with pytest.raises(InputError) as found:
        three(**columns)
    assert words in str(found.value)


def test_the_turn_after_another_arrives_when_it_is_released():
    t = three(arrival=[0, INF, 3], after=[-1, 0, -1], delay=[0, 2.5, 0])
    assert t.after.tolist() == [-1, 0, -1]
    assert t.statistics().duration == 3.0


def test_a_closed_loop_starts_with_as_many_as_it_holds():
    t = make_traffic("loop", [5] * 5, [1] * 5, concurrency=2)
    assert t.arrival.tolist() == [0, 0, INF, INF, INF]
    assert t.statistics().rate is None
    with pytest.raises(InputError, match="A closed loop has no rate to scale: change its concurrency"):
        t.scaled_rate(2.0)
    assert make_traffic("loop", [5] * 2, [1] * 2, concurrency=9).arrival.tolist() == [0, 0]


def test_statistics_counted_by_hand():
    """Blocks of 4 tokens: the second request shares two blocks (8 tokens), the third one and a half (6 of its 6)."""
    p = prefixes([[0, 1, 2], [0, 1, 3], [0, 1]], 4)
    t = three(isl=[10, 12, 6], osl=[1, 0, 5], prefixes=p)
    found = t.statistics()
    assert isinstance(found, Statistics)
    assert (found.requests, found.duration, found.rate) == (3, 3.0, 2 / 3)
    assert found.isl.mean == pytest.approx(28 / 3)
    assert (found.isl.p50, found.osl.p50) == (10.0, 1.0)
    assert found.osl.p99 == pytest.approx(1 + 0.98 * 4)
    assert p.seen().tolist() == [0, 2, 2]
    assert found.shared == (8 + 6) / 28


def test_a_prefix_repeated_within_one_request_is_not_shared():
    assert three(isl=[9, 9, 9], prefixes=prefixes([[0, 1], [2, 3], [4, 5]], 4)).statistics().shared == 0.0


@pytest.mark.parametrize(
    ("offsets", "ids", "block", "words"),
    [
        ([0, 2], [0, 2], 4, "must be dense"),
        ([0, 1], [-1], 4, "must be dense"),
        ([0, 1], [0, 1], 4, "must rise from 0 to the number of ids"),
        ([0, 2, 1, 2], [0, 1], 4, "must rise from 0 to the number of ids"),
        ([], [], 4, "must rise from 0 to the number of ids"),
        ([0, 1], [0], 0, "must have 1 to 4,194,304 tokens, not 0"),
        ([0, 2, 4], [0, 1, 2, 1], 4, "Equal ids of prefixes must have equal ids before them"),
        ([0, 2, 3], [0, 1, 1], 4, "Equal ids of prefixes must have equal ids before them"),
    ],
)
def test_ids_that_are_no_prefixes_are_refused(offsets, ids, block, words):
    with pytest.raises(InputError) as found:
        Prefixes(np.array(offsets, dtype=np.int64), np.array(ids, dtype=np.int64), block)
    assert words in str(found.value)


def test_prefixes_belong_to_the_requests():
    with pytest.raises(InputError, match="Prefixes are of 2 requests, the traffic has 3"):
        three(prefixes=prefixes([[0], [0]], 4))
    with pytest.raises(
        InputError, match="Request 0 has 4 prefix blocks of 4 tokens for 11 tokens of prompt and answer"
    ):
        three(prefixes=prefixes([[0, 1, 2, 3], [], []], 4))


def test_the_first_requests_keep_their_links_and_prefixes():
    t = three(arrival=[0, INF, 3], after=[-1, 0, -1], prefixes=prefixes([[0, 1], [0, 1, 2], [3]], 4))
    two = t.take(2)
    assert two.after.tolist() == [-1, 0]
    assert two.prefixes == prefixes([[0, 1], [0, 1, 2]], 4)
    assert t.take(9) == t
    with pytest.raises(InputError, match="A traffic needs 1 request or more, not 0"):
        t.take(0)


def test_rates_scale_and_runs_start_at_0():
    t = three(arrival=[1, 2, INF], after=[-1, -1, 0], delay=[0, 0, 7])
    fast = t.scaled_rate(4.0)
    assert fast.arrival.tolist() == [0.25, 0.5, INF]
    assert fast.delay.tolist() == [0, 0, 7]
    assert t.shifted().arrival.tolist() == [0, 1, INF]
    for factor in (0.0, -1.0, np.nan, INF):
        with pytest.raises(InputError, match="A rate is scaled by a finite number above 0"):
            t.scaled_rate(factor)
    with pytest.raises(InputError, match="arrival of request 0 must be 0 to 1e\\+09 seconds"):
        t.scaled_rate(1e-300)


LISTS = st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=8)


@given(parts=LISTS)
def test_whatever_the_ids_prefixes_are_shared_where_lists_begin_alike(parts: list[list[int]]):
    """Against the plain meaning: blocks that an earlier list begins with too."""
    counts = np.array([len(part) for part in parts])
    flat = np.array([i for part in parts for i in part], dtype=np.int64)
    found = joined(counts, dense(flat), 1)
    if found is None:
        assert not flat.size
        return
    heads: set[tuple[int, ...]] = set()
    expected = []
    for part in parts:
        expected.append(sum(tuple(part[: i + 1]) in heads for i in range(len(part))))
        heads |= {tuple(part[: i + 1]) for i in range(len(part))}
    assert found.seen().tolist() == expected


@given(parts=LISTS, data=st.data())
def test_a_choice_of_requests_keeps_what_they_share(parts: list[list[int]], data: st.DataObject):
    found = joined(np.array([len(p) for p in parts]), dense(np.array([i for p in parts for i in p], dtype=np.int64)), 1)
    order = np.array(data.draw(st.permutations(range(len(parts)))), dtype=np.int64)
    if found is None:
        return
    chosen = [parts[i] for i in order]
    flat = np.array([i for p in chosen for i in p], dtype=np.int64)
    again = joined(np.array([len(p) for p in chosen]), dense(flat), 1)
    assert found.chosen(order) == Prefixes(again.offsets, dense(again.ids), 1)
