"""What instructions read and write: views against index arrays, copies, and parts that are kept for later turns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.compiler.program import Box, Buffer, Index
from taygeta.machine.access import Access, Axis, Place, load, view
from taygeta.machine.constants import Constants
from taygeta.machine.memory import Memory, Turn
from taygeta.machine.values import Local, Waiting, array_of
from taygeta.numerics import Quantised, TensorUnit, dequantise, prepare, quantise

RNG = np.random.default_rng(0)


def memory(*buffers: Buffer) -> Memory:
    return Memory({b.name: b for b in buffers}, Constants({}, "floor"), "floor", 0)


def buffer(name: str, space: str, shape: tuple[int, ...], fmt: str = "fp32") -> Buffer:
    return Buffer(name, space, 0, 4 * int(np.prod(shape)), shape, fmt)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_view_of_all_cores_is_what_index_arrays_find(data):
    """Entry c holds the elements from start + c * step on, on every axis; parts that are not whole have no view."""
    array = np.arange(7 * 24, dtype=np.float32).reshape(7, 24)
    count = data.draw(st.integers(1, 4))
    axes = []
    for size in array.shape:
        start, step = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 8))
        axes.append(Axis(start, step, data.draw(st.integers(0, size - start))))
    place = Place(tuple(axes), 1, count)
    inside = all(a.start + a.step * (count - 1) + max(1, a.extent) <= n for a, n in zip(axes, array.shape, strict=True))
    if not inside:
        assert not any(a.step for a in axes) or view(array, place) is None
        return
    parts = [
        array[
            tuple(
                slice(a.start + c * a.step, a.start + c * a.step + a.extent) if a.extent else a.start + c * a.step
                for a in axes
            )
        ]
        for c in range(count)
    ]
    found = array_of(load(array, place).content)
    assert np.array_equal(np.broadcast_to(found, (count, *found.shape[1:])), np.stack(parts))


def test_what_was_read_does_not_change_when_main_memory_does():
    memories = memory(buffer("x", "hbm", (4, 8)), buffer("q", "hbm", (4, 64), "mxfp8"))
    turn = Turn({"i": 1}, {})
    rows = Box("x", (Index(0, 2, (("i", 2),)), Index(0, 4, (("core", 4),))))
    port = memories.port(rows, 2)
    value = RNG.standard_normal((2, 2, 4)).astype(np.float32)
    port.write(turn, Local(value, 1, 2))
    before = port.read(turn)
    assert np.array_equal(array_of(before.content), value)
    assert np.array_equal(array_of(memories.outer["x"])[2:], np.concatenate(list(value), axis=1))
    assert not array_of(memories.outer["x"])[:2].any()
    port.write(turn, Local(2 * value, 1, 2))
    assert np.array_equal(array_of(before.content), value)
    narrow = memories.port(Box("q", (Index(0, 4), Index(0, 32, (("core", 32),)))), 2)
    codes = quantise(RNG.standard_normal((2, 4, 32)).astype(np.float32), "mxfp8")
    narrow.write(turn, Local(codes, 1, 2))
    whole = memories.outer["q"]
    assert isinstance(whole, Quantised)
    assert np.array_equal(dequantise(whole), np.concatenate(list(dequantise(codes)), axis=1))


def test_another_cache_is_read_where_it_was_taken_over():
    """A place that is kept belongs to the array in which it was found."""
    memories = memory(buffer("x", "hbm", (2, 4)))
    port, turn = memories.port(Box("x", (Index(0, 2), Index(0, 4))), 1), Turn({}, {})
    assert not array_of(port.read(turn).content).any()
    memories.outer["x"] = np.ones((2, 4), np.float32)
    assert array_of(port.read(turn).content).all()
    port.write(turn, Local(np.full((1, 2, 4), 3.0, np.float32)))
    assert (array_of(memories.outer["x"]) == 3.0).all()


def test_turns_move_a_box_and_tables_are_looked_up_each_time():
    access = Access(Box("x", (Index(1, 0, (("i", 2),)), Index(0, 3))), 1)
    assert [access.place({"i": i}, {}).axes[0].start for i in (0, 1, 2, 1)] == [1, 3, 5, 3]
    listed = Access(Box("x", (Index(0, 2, table="rows"), Index(0, 3))), 1)
    array = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    for rows in ([3, 1], [0, 2]):
        found = load(array, listed.place({}, {"rows": np.array(rows)}))
        assert np.array_equal(array_of(found.content)[0], array[rows])


def test_a_part_of_the_scratchpad_is_written_beside_what_is_there():
    memories = memory(buffer("s", "sram", (2, 4)))
    turn = Turn({}, {})
    whole = memories.port(Box("s", (Index(0, 2), Index(0, 4))), 2)
    right = memories.port(Box("s", (Index(0, 2), Index(2, 2))), 2)
    given_array = np.ones((1, 2, 4), np.float32)
    whole.write(turn, Local(given_array, 1, 1, ("constant",)))
    right.write(turn, Local(np.stack([np.full((2, 2), 5.0, np.float32), np.full((2, 2), 6.0, np.float32)]), 1, 2))
    assert (given_array == 1.0).all()
    found = array_of(whole.read(turn).content)
    assert found[:, :, :2].tolist() == [[[1.0, 1.0]] * 2] * 2
    assert found[:, 0, 2].tolist() == [5.0, 6.0]


def test_a_content_that_waits_is_made_once_when_it_is_asked_for():
    calls = []
    value = Waiting(lambda: calls.append(1) or np.zeros((1, 2), np.float32), 1, 1, "name")
    assert value.waits
    assert not calls
    assert value.content is value.content
    assert len(calls) == 1
    assert not value.waits


def test_tables_are_the_hosts():
    port = memory().port(Box("tokens", (Index(0, 2),)), 1)
    with pytest.raises(TypeError, match="tokens is a table of the host's"):
        port.write(Turn({}, {}), Local(np.zeros((1, 2), np.float32)))


def test_prepared_weights_give_way_to_those_of_another_program_only_where_there_is_no_room():
    unit, made = TensorUnit(16), []

    def asked(constants: Constants, name: str) -> None:
        constants.prepared(name, lambda: made.append(name) or RNG.standard_normal((32, 16)).astype(np.float32), unit)

    size = prepare(np.full((32, 16), 1.1, np.float32), unit).bytes
    assert size == 32 * 16 * 4
    constants = Constants({}, "floor", budget=2 * size)
    for name in "abcc":
        asked(constants, name)
    assert made == list("abcc")  # c finds no room, and is prepared at each use
    constants.make_room()
    for name in "acacb":
        asked(constants, name)
    assert made == [*"abcc", "c", "b"]  # b gave way to c, a did not
    assert constants.prepared_bytes == 2 * size
