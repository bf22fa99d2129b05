"""The verb: ranges around a run, and the knee of several."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "report"))
import serving_samples as samples

from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.setup import prepare
from taygeta.serving.simulate import Load, knee, scaled, simulate, step_ranges
from taygeta.serving.traffic import make_traffic


@pytest.fixture
def traffic() -> Any:
    return make_traffic("x", [64, 128, 256], [8, 16, 32], [0.0, 0.001, 0.002])


def test_a_run_answers_and_says_so(traffic: Any) -> None:
    shares: list[float] = []
    r = simulate(samples.real(), traffic, progress=shares.append)
    assert (r.answered, r.output_tokens) == (3, 8 + 16 + 32)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert r.fast is None


def test_without_anything_assumed_the_range_is_a_point(traffic: Any) -> None:
    r = simulate(samples.real(), traffic, ranges=True)
    i = r.interval(lambda x: x.e2e.mean)
    assert i is not None
    assert i.low == i.nominal == i.high == r.e2e.mean


def test_the_error_of_steps_moves_latencies_by_as_much() -> None:
    """One request at a time on an engine without host time is steps and nothing else."""
    alone = make_traffic("x", [512], [64])
    r = simulate(samples.real(0.25), alone, ranges=True)
    i = r.interval(lambda x: x.e2e.mean)
    assert i is not None
    assert i.high == pytest.approx(1.25 * i.nominal)
    assert i.low == pytest.approx(i.nominal / 1.25)


def test_each_pool_has_its_own_range(traffic: Any) -> None:
    d = samples.real()
    fleet = Fleet((Pool(d, 1), Pool(samples.real(0.5), 1)))
    r = simulate(fleet, traffic)
    sure, unsure = step_ranges(r.outcome)
    assert sure == (1.0, 1.0)
    assert unsure == (pytest.approx(1 / 1.5), pytest.approx(1.5))
    moved = scaled(r.outcome.setup, (1.0, 2.0))
    assert np.array_equal(moved.kinds[0].tables.axes, r.outcome.setup.kinds[0].tables.axes)
    assert np.array_equal(moved.kinds[1].tables.decode, 2.0 * r.outcome.setup.kinds[1].tables.decode)


def test_an_end_before_any_answer_has_no_range(traffic: Any) -> None:
    r = simulate(samples.real(), traffic, until=1e-9, ranges=True)
    assert (r.answered, r.cut, r.fast) == (0, 3, None)


def test_an_interrupt_keeps_what_is_done(traffic: Any) -> None:
    """While the run goes on: what has ended; while its ends are simulated: the run without its range."""

    def stop_at(share: float) -> Any:
        pressed: list[float] = []

        def progress(done: float) -> None:
            if done >= share and not pressed:
                pressed.append(done)
                raise KeyboardInterrupt

        return progress

    many = make_traffic("x", [64] * 3000, [200] * 3000, concurrency=8)
    half = simulate(samples.real(), many, progress=stop_at(0.01))
    assert half.outcome.interrupted
    assert 0 < half.answered < 3000
    assert half.answered + half.cut == 3000
    late = simulate(samples.real(0.2), many, ranges=True, progress=stop_at(0.34))
    assert (late.outcome.interrupted, late.answered, late.fast) == (True, 3000, None)


def test_the_seed_is_of_what_is_drawn() -> None:
    served = replace(samples.fleet(), pools=(Pool(samples.real(), 1),), speculation=samples.Speculation(3, 0.5))
    asked = make_traffic("x", [64] * 20, [50] * 20)
    runs = [simulate(served, asked, seed=seed).outcome.end for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert np.array_equal(prepare(served, asked, 1).steps, prepare(served, asked, 1).steps)


def test_the_knee_by_hand() -> None:
    """Three requests in 20, 10 and 6 s, over 1.25, 2 and 3.5 s each: 0.12, 0.15 and 0.143."""
    loads = samples.loads()
    assert [x.report.requests_per_s for x in loads] == pytest.approx([3 / 20, 3 / 10, 3 / 6])
    assert [x.report.e2e.mean for x in loads] == pytest.approx([1.25, 2.0, 3.5])
    assert knee(loads) == 1
    assert knee([]) is None
    assert knee([Load(1.0, samples.nothing())]) is None
    assert knee([Load(1.0, samples.nothing()), Load(2.0, samples.result())]) == 1


def test_what_a_load_offers() -> None:
    assert [x.offered for x in samples.loads()] == pytest.approx([0.5, 1.0, 2.0])  # 4 gaps in 8, 4 and 2 seconds
    closed = Load(1.0, samples.closed())
    assert (closed.offered, closed.concurrency) == (None, 2)
