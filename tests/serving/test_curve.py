"""The same traffic under other loads."""

from __future__ import annotations

import numpy as np
import pytest

from taygeta.api import deploy
from taygeta.base.errors import InputError
from taygeta.serving.curve import curve, traffic_at
from taygeta.serving.options import TrafficOptions
from taygeta.serving.simulate import knee
from taygeta.serving.traffic import make_traffic


def test_a_rate_is_scaled() -> None:
    at = traffic_at(TrafficOptions(isl=8, osl=2, rate=2.0, requests=50))
    assert at(4.0).arrival.tolist() == pytest.approx((at(1.0).arrival / 4.0).tolist())


def test_a_closed_loop_has_more_in_flight() -> None:
    at = traffic_at(TrafficOptions(isl=8, osl=2, concurrency=8, requests=50))
    assert [at(load).concurrency for load in (0.01, 0.5, 1.5)] == [1, 4, 12]


def test_latency_rises_with_load_and_the_knee_is_on_the_curve() -> None:
    d = deploy("llama-3.1-8b", "h100:1", tp=1)
    t = make_traffic("x", [512] * 120, [16] * 120, np.arange(120) * 0.2)
    shares: list[float] = []
    found = curve(d, t.scaled_rate, (4.0, 1.0, 16.0), progress=shares.append)
    assert [x.factor for x in found] == [1.0, 4.0, 16.0]
    assert [x.offered for x in found] == pytest.approx([120 / 119 * 5 * f for f in (1, 4, 16)], rel=0.02)
    middles = [x.report.e2e.p50 for x in found]
    assert middles == sorted(middles)
    assert knee(found) in (0, 1, 2)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("loads", [(), (0.0,), (-1.0,), (float("nan"),), (float("inf"),)])
def test_loads_are_checked(loads: tuple[float, ...]) -> None:
    d = deploy("llama-3.1-8b", "h100:1", tp=1)
    with pytest.raises(InputError, match="finite number"):
        curve(d, make_traffic("x", [8], [1]).scaled_rate, loads)
