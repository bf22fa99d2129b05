"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
import result_samples as samples
from hypothesis import given
from hypothesis import strategies as st

from taygeta.base.interval import Interval
from taygeta.report import words
from taygeta.spec.deployment import Parallelism


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.001234, "0.00123"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.96, "100"),
        (123.4, "123"),
        (999.6, "1,000"),
        (1234.5, "1,230"),
        (1234567.0, "1,230,000"),
        (-2.5, "-2.50"),
        (math.inf, "-"),
        (math.nan, "-"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert words.number(value) == text


@given(st.floats(1e-6, 1e12))
def test_number_is_within_half_a_percent_and_never_in_powers_of_ten(value: float) -> None:
    text = words.number(value)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.005001)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "12.3 ms"),
        (1.5, "1.50 s"),
        (0.9996, "1.00 s"),
        (0.00099951, "1.00 ms"),
        (2e-6, "2.00 us"),
        (3e-9, "3.00 ns"),
        (0.0, "0 ns"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(141e9, "141 GB"), (1.1e12, "1.10 TB"), (512, "512 B"), (73728, "73.7 kB")]
)
def test_size(value: float, text: str) -> None:
    assert words.size(value) == text


def test_ranges() -> None:
    i = Interval(0.008, 0.01, 0.0125)
    assert words.seconds_range(i) == "8.00 to 12.5 ms"
    assert words.span(i, 1e-3) == "8.00-12.5"
    assert words.span(Interval(1, 2, 3), to=" to ", before="$") == "$1.00 to $3.00"


def test_shares_and_changes() -> None:
    assert words.percent(0.314) == "31.4 %"
    assert words.change(-0.052) == "-5.2 %"
    assert words.change(0.0151) == "+1.5 %"
    assert words.change(-0.0001) == "0.0 %"


def test_counts() -> None:
    assert words.count(1, "chip") == "1 chip"
    assert words.count(1024, "chip") == "1,024 chips"
    assert words.requests_that_fit(1) == "1 request fits"
    assert words.requests_that_fit(1200) == "1,200 requests fit"
    assert words.requests_that_fit(words.UNBOUNDED) == "any number of requests fits"


def test_deployments() -> None:
    d = samples.deployed()
    assert words.chips_of(d) == "toy:4"
    assert words.spread_of(d) == "2 x (tp=2)"
    assert words.spread_of(samples.deployed(parallelism=Parallelism(tp=2, pp=2))) == "tp=2 pp=2"
    assert words.formats_of(d) == "weights bf16; activations bf16; KV cache bf16"
    assert words.short_formats(samples.deployed(samples.EXPERTS)) == "bf16"
