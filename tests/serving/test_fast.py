"""The compiled run against the plain one: every column of every outcome is equal, bit by bit, on random fleets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fleets import (
    bounds,
    closed,
    differences,
    random_setup,
    setup_of,
    step_tables,
    traffic,
)

from taygeta.base.errors import InputError
from taygeta.serving import outcome as outcomes
from taygeta.serving.fast import Fast, run_fast
from taygeta.serving.fleet import Autoscale
from taygeta.serving.outcome import CUT
from taygeta.serving.plain import run_plain
from taygeta.serving.rank import Rank
from taygeta.serving.replica import Replica
from taygeta.serving.request import Flight
from taygeta.serving.run import run
from taygeta.serving.setup import Setup


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 1 << 32), log=st.booleans())
def test_compiled_is_plain(seed: int, log: bool) -> None:
    setup = random_setup(seed)
    assert differences(run_plain(setup, log=log), run_fast(setup, log)) == []


def test_random_fleets_reach_every_corner() -> None:
    seen = [run_fast(random_setup(seed)) for seed in range(120)]
    assert sum((a.preemptions > 0).any() for a in seen) > 10
    assert sum((a.retries > 0).any() for a in seen) > 20
    assert sum((a.cached > 0).any() for a in seen) > 20
    assert sum((a.ended == outcomes.REFUSED).any() for a in seen) > 20
    assert sum((a.ended == CUT).any() for a in seen) > 10


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 32))
def test_slices_do_not_matter(seed: int) -> None:
    setup = random_setup(seed)
    sliced = Fast(setup)
    while not sliced.advance(1):
        pass
    assert differences(sliced.outcome(), run_fast(setup)) == []


def busy() -> Setup:
    """Return a closed loop of 3,000 requests: more steps than a short log holds."""
    return setup_of(closed(3000, 8, 5, 7), step_tables(0.01, 1e-4), bounds(blocks=40), replicas=2)


def test_long_logs_are_thinned_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "LOG_ROWS", 100)
    plain, fast = run_plain(busy()), run_fast(busy())
    assert differences(plain, fast) == []
    assert len(fast.log) <= 200 < fast.steps.sum()
    first = fast.log[fast.log[:, 0] == 0]
    assert len(first) >= 50
    every = run_plain(busy(), log=True).log
    stride = np.searchsorted(every[: int(plain.steps[0]), 1], first[1, 1])
    assert stride in (2, 4, 8, 16, 32, 64, 128)
    assert np.array_equal(first, every[: int(plain.steps[0]) : stride][: len(first)])


def test_full_logs_have_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "LOG_ROWS", 100)
    fast = run_fast(busy(), log=True)
    assert len(fast.log) == fast.steps.sum()
    assert differences(fast, run_plain(busy(), log=True)) == []


def test_the_heap_grows() -> None:
    count = 4000  # all of them are released by the first, at once
    after = np.where(np.arange(count) > 0, 0, -1)
    arrival = np.where(np.arange(count) > 0, np.inf, 0.0)
    setup = setup_of(traffic(arrival, 3, 2, after=after, delay=0.5), step_tables(0.01))
    fast = run_fast(setup)
    assert (fast.ended == outcomes.ANSWERED).all()
    assert differences(fast, run_plain(setup)) == []


def test_many_replicas_take_turns() -> None:
    setup = setup_of(closed(500, 100, 6, 5), step_tables(0.01, 1e-4), replicas=37, router="round_robin")
    assert differences(run_plain(setup), run_fast(setup)) == []


def test_autoscaled_fleets_end() -> None:
    setup = setup_of(traffic(np.arange(20) * 0.5, 5, 5), step_tables(0.01), replicas=3, autoscale=Autoscale(2.0))
    fast = run_fast(setup)
    assert (fast.ended == outcomes.ANSWERED).all()
    assert differences(fast, run_plain(setup)) == []


def test_progress_rises_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taygeta.serving.run.SLICE", 100)
    shares: list[float] = []
    run(busy(), progress=shares.append)
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] < 1.0


def test_an_interrupted_run_keeps_what_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taygeta.serving.run.SLICE", 100)

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    found = run(busy(), progress=stop)
    assert found.interrupted
    ended = found.ended == outcomes.ANSWERED
    assert 0.5 < ended.mean() < 0.6
    assert (found.ended[~ended] == CUT).all()
    assert np.isnan(found.end[~ended]).all()
    whole = run(busy())
    assert not whole.interrupted
    assert np.array_equal(found.end[ended], whole.end[ended])


def to_last(request: Flight, replicas: Sequence[Replica]) -> int:
    """Send every request to the last replica."""
    del request
    return len(replicas) - 1


def test_a_users_router_runs() -> None:
    found = run(busy(), router=to_last)
    assert (found.replica == 1).all()


def named(router: str = "least_loaded", scheduler: str = "") -> Setup:
    """Return a small run with functions by their names."""
    setup = setup_of(closed(8, 4, 5, [7, 3, 5, 9, 2, 4, 6, 8]), step_tables(0.01), replicas=2)
    return replace(setup, fleet=replace(setup.fleet, router=router, scheduler=scheduler))


def test_functions_are_found_by_name() -> None:
    assert (run(named(router=f"{__name__}:to_last")).replica == 1).all()
    by_name = run(named(scheduler="taygeta.serving.schedulers:mixed"))
    assert differences(by_name, run(named())) == []
    assert differences(run(named(scheduler="decode_first")), by_name) != []


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (named(router="nearest"), "A router is one of round_robin, .* or a function of yours .* not 'nearest'"),
        (named(router="no_such_module:f"), "cannot be imported: ModuleNotFoundError"),
        (named(router="math:no_such_function"), "must be a function of math; there is none of that name"),
        (named(router="math:pi"), "there is a float of that name"),
        (named(scheduler="fifo"), "A scheduler is one of mixed, prefill_first, decode_first, or"),
    ],
)
def test_bad_names_are_refused(setup: Setup, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(setup)


@pytest.mark.parametrize("choice", [2, -1, 0.0, None, True])
def test_a_router_that_returns_nonsense_is_refused(choice: object) -> None:
    with pytest.raises(InputError, match="must return a position of 0 to 1 in the replicas it was given, not"):
        run(busy(), router=lambda request, replicas: choice)  # type: ignore[arg-type, return-value]


def test_a_users_function_that_fails_is_named() -> None:
    def broken(*given: object) -> Any:
        raise KeyError("load")

    with pytest.raises(InputError, match=r"^The router broken failed: KeyError: 'load'\.$"):
        run(busy(), router=broken)
    with pytest.raises(InputError, match=r"^The scheduler broken failed: KeyError: 'load'\.$"):
        run(busy(), scheduler=broken)


@pytest.mark.parametrize("plan", [None, [1], [(1, 2)], "plan"])
def test_a_scheduler_that_returns_nonsense_is_refused(plan: object) -> None:
    with pytest.raises(InputError, match="must return a list of \\(request, new tokens\\), not"):
        run(busy(), scheduler=lambda rank, limits: plan)  # type: ignore[arg-type, return-value]


def test_a_scheduler_that_plans_too_much_is_refused() -> None:
    def greedy(rank: Rank, limits: object) -> list[object]:
        del limits
        return [(r, r.prompt + 1) for r in rank.queue()]

    with pytest.raises(InputError, match="more than its prompt has left"):
        run(busy(), scheduler=greedy)  # type: ignore[arg-type]
