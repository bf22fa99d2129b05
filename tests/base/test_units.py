"""Quantities: what is read, what is refused and in which words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taygeta.base import units
from taygeta.base.errors import InputError
from taygeta.base.units import Dimension, parse, seconds, show

DIMENSIONS = (
    units.BYTES, units.BYTES_PER_S, units.BYTES_PER_CLOCK, units.FLOP_PER_S, units.SECONDS, units.HERTZ, units.WATTS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("80 GB", units.BYTES, 80e9),
        ("80 GiB", units.BYTES, 80 * 2**30),
        ("64 kB", units.BYTES, 64_000),
        ("64 KiB", units.BYTES, 65_536),
        ("275040 MiB", units.BYTES, 275_040 * 2**20),
        ("3.35 TB/s", units.BYTES_PER_S, 3.35e12),
        ("400 Gb/s", units.BYTES_PER_S, 50e9),  # 400e9 / 8
        ("400 Gbit/s", units.BYTES_PER_S, 50e9),
        ("400 Gbps", units.BYTES_PER_S, 50e9),
        ("64 B/clock", units.BYTES_PER_CLOCK, 64),
        ("989.4 TFLOP/s", units.FLOP_PER_S, 989.4e12),
        ("10 PFLOPS", units.FLOP_PER_S, 1e16),
        ("1500 TOPS", units.FLOP_PER_S, 1.5e15),
        ("10 us", units.SECONDS, 1e-5),
        ("5 min", units.SECONDS, 300),
        ("2 h", units.SECONDS, 7200),
        ("1.83 GHz", units.HERTZ, 1.83e9),
        ("1.2kW", units.WATTS, 1200),
        ("2.50 $/h", units.DOLLARS_PER_HOUR, 2.5),
        (132, units.COUNT, 132),
        ("132", units.COUNT, 132),
        (0.85, units.RATIO, 0.85),
        (" 80 GB ", units.BYTES, 80e9),
    ],
)
def test_reads(text: object, dimension: Dimension, value: float):
    assert parse(text, dimension, "x") == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "dimension", "message"),
    [
        (80, units.BYTES, "hbm.capacity = 80 has no unit: write a size such as '80 GiB'."),
        ("80", units.BYTES, "hbm.capacity = '80' has no unit: write a size such as '80 GiB'."),
        ("3 TB/s", units.BYTES, "hbm.capacity must be a size such as '80 GiB', not '3 TB/s', which is a bandwidth."),
        ("3 B", units.BYTES_PER_S, "hbm.capacity must be a bandwidth such as '3.35 TB/s', not '3 B', which is a size."),
        ("3 GHz", units.SECONDS, "hbm.capacity must be a time such as '10 us', not '3 GHz', which is a frequency."),
        ("3 apples", units.BYTES, "hbm.capacity must be a size such as '80 GiB', not '3 apples'."),
        ("many", units.BYTES, "hbm.capacity must be a size such as '80 GiB', not 'many'."),
        ("", units.BYTES, "hbm.capacity must be a size such as '80 GiB', not ''."),
        (True, units.BYTES, "hbm.capacity must be a size such as '80 GiB', not True."),
        (None, units.HERTZ, "hbm.capacity must be a frequency such as '1.83 GHz', not None."),
        (["1 B"], units.BYTES, "hbm.capacity must be a size such as '80 GiB', not ['1 B']."),
        ("-1 GB", units.BYTES, "hbm.capacity must be a finite number that is not negative, not '-1 GB'."),
        ("1e400 B", units.BYTES, "hbm.capacity must be a finite number that is not negative, not '1e400 B'."),
        (math.nan, units.RATIO, "hbm.capacity must be a finite number that is not negative, not nan."),
        (math.inf, units.COUNT, "hbm.capacity must be a finite number that is not negative, not inf."),
        ("8 GB", units.COUNT, "hbm.capacity must be a count without a unit such as 132, not '8 GB'."),
        (1.5, units.COUNT, "hbm.capacity must be a whole number, not 1.5."),
    ],
)
def test_refuses_in_one_sentence(value: object, dimension: Dimension, message: str):
    with pytest.raises(InputError) as caught:
        parse(value, dimension, "hbm.capacity")
    assert str(caught.value) == message


def test_refuses_an_integer_beyond_floats():
    with pytest.raises(InputError, match="must be a finite number that is not negative"):
        parse(10**400, units.COUNT, "x")


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (3.35e12, units.BYTES_PER_S, "3.35 TB/s"),
        (2.25e15, units.FLOP_PER_S, "2.25 PFLOP/s"),
        (1e19, units.FLOP_PER_S, "10 EFLOP/s"),
        (80e9, units.BYTES, "80 GB"),
        (0.0, units.BYTES, "0 B"),
        (1.83e9, units.HERTZ, "1.83 GHz"),
        (700.0, units.WATTS, "700 W"),
        (2.5, units.DOLLARS_PER_HOUR, "2.50 $/h"),
        (1040.0, units.COUNT, "1,040"),
        (0.84567, units.RATIO, "0.8457"),
    ],
)
def test_shows(value: float, dimension: Dimension, text: str):
    assert show(value, dimension) == text


def test_shows_times_with_three_digits():
    assert [seconds(t) for t in (0.01234, 1.5e-6, 2.0, 0.0)] == ["12.3 ms", "1.5 us", "2 s", "0 s"]


@given(st.sampled_from(DIMENSIONS), st.floats(min_value=1e-15, max_value=1e25))
def test_what_is_shown_reads_back(dimension: Dimension, value: float):
    assert parse(show(value, dimension, digits=16), dimension, "x") == pytest.approx(value, rel=1e-12)


@given(st.sampled_from((*DIMENSIONS, units.COUNT, units.RATIO, units.DOLLARS_PER_HOUR)), st.text(max_size=20))
def test_any_text_is_read_or_refused(dimension: Dimension, text: str):
    try:
        value = parse(text, dimension, "x")
    except InputError:
        return
    assert math.isfinite(value)
    assert value >= 0
