"""The fewest chips that hold an SLO: the search for the least number, the closed form, the whole plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taygeta.api import deploy, recipe
from taygeta.base.errors import InputError
from taygeta.explore.confidence import share_interval
from taygeta.explore.least import NEIGHBOURS, least
from taygeta.explore.screen import screen
from taygeta.explore.slo import PREFIX, SloPlan, plan_slo
from taygeta.explore.trial import Settings, Slo, Trial
from taygeta.serving.plain import run_plain
from taygeta.serving.traffic import Traffic, make_traffic
from taygeta.spec.deployment import Deployment

MODEL = "llama-3.1-8b"


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400))
def test_least_is_the_least_of_what_is_monotone(answer: int, start: int, most: int) -> None:
    tried: list[int] = []

    def holds(n: int) -> bool:
        tried.append(n)
        return n >= answer

    found = least(holds, start, most)
    assert found == (answer if answer <= most else None)
    assert len(tried) == len(set(tried))
    assert all(1 <= n <= most for n in tried)
    assert len(tried) <= 2 * 10 + NEIGHBOURS  # both searches are logarithmic: 2^9 > 400


def test_least_starts_where_it_is_told() -> None:
    tried: list[int] = []
    assert least(lambda n: tried.append(n) or n >= 40, 40, 10_000) == 40
    assert tried == [40, 39, 38, 37][: len(tried)]  # the answer, what fails below it, and its neighbours


def test_a_lucky_number_below_the_answer_is_found() -> None:
    assert least(lambda n: n in (7, 9) or n >= 9, 9, 20) == 7


@given(st.sets(st.integers(1, 30)), st.integers(1, 30))
def test_what_least_returns_holds(good: set[int], start: int) -> None:
    found = least(lambda n: n in good, start, 30)
    assert found is None or found in good


def traffic(count: int = 120, gap: float = 0.05, isl: int = 512, osl: int = 32) -> Traffic:
    return make_traffic("even", [isl] * count, [osl] * count, np.arange(count) * gap)


HOST = {
    "host_step": 1.2e-3, "host_request": 30e-6, "prompt_step": 0.0, "prompt_slowdown": 1.0, "client_delay": 0.0,
    "intake_request": 0.0, "intake_token": 0.0, "emit_token": 0.0,
}  # fmt: skip
"""An engine whose times can be counted, whatever the catalogue's are fitted to."""


def simple(d: Deployment, **fields: object) -> Deployment:
    return replace(d, engine=replace(d.engine, **{**HOST, **fields}))  # type: ignore[arg-type]


def plan(t: Traffic, ttft: float | None, tpot: float | None, share: float = 0.99, **more: object) -> SloPlan:
    given = recipe(MODEL, "h100:8", tp=1)
    own = {"settings": HOST, **more}
    return plan_slo(given, t, ttft, tpot, share, run=run_plain, **own)  # type: ignore[arg-type]


def test_one_at_a_time_needs_as_many_replicas_as_it_keeps_busy() -> None:
    """D/D/c: a replica that serves one request after the other holds any TTFT for ever below 1/service a second."""
    d = simple(deploy(MODEL, "h100:1", tp=1))
    alone = Trial(d, traffic(1), run=run_plain).outcome(Settings.of(d), 1, 1)
    service = float(alone.end[0])
    first = float(alone.first[0])
    settings = {**HOST, "sequence_limit": 1}
    for busy in (0.5, 1.5, 2.5):
        t = traffic(60, service / busy)
        found = plan(t, 1.2 * first, None, 1.0, settings=settings, tune=False, router="round_robin")
        assert found.best is not None
        assert found.best.replicas == int(np.ceil(busy))
        assert found.best.settings.sequence_limit == 1


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.floats(0.01, 0.5), st.floats(0.005, 0.1), st.floats(1.0, 3.0), st.floats(1.0, 3.0), st.floats(0.8, 1.0))
def test_a_looser_slo_never_needs_more_chips(ttft: float, tpot: float, a: float, b: float, share: float) -> None:
    t = traffic(80, 0.004)
    tight, loose = plan(t, ttft, tpot, share, tune=False), plan(t, a * ttft, b * tpot, share, tune=False)
    if tight.best is not None:
        assert loose.best is not None
        assert loose.best.chips <= tight.best.chips


def test_more_requests_never_need_fewer_chips() -> None:
    found = [plan(traffic(200, gap), 0.2, 0.03, tune=False).best for gap in (0.1, 0.02, 0.004)]
    chips = [c.chips for c in found if c is not None]
    assert len(chips) == 3
    assert chips == sorted(chips)


def test_the_plan_says_what_it_is_made_of() -> None:
    found = plan(traffic(200, 0.004), 0.2, 0.03)
    best, doubt = found.best, found.confidence
    assert best is not None
    assert doubt is not None
    assert best.holds
    assert best.share >= 0.99
    assert best.chips == best.replicas * best.deployment.parallelism.chips
    assert doubt.share_low <= best.share <= doubt.share_high
    assert doubt.factors[0] < 1.0 < doubt.factors[1]
    assert doubt.fast is not None
    assert doubt.fast <= best.chips
    assert doubt.holds_at_slow_end == (doubt.more_chips == 0)
    assert [c.chips for c in found.curve] == sorted(c.chips for c in found.curve)
    below = [c for c in found.curve if c.replicas == best.replicas - 1]
    assert all(not c.holds for c in below)
    assert found.simulations > 0


def test_the_same_seed_gives_the_same_plan() -> None:
    a, b = (plan(traffic(150, 0.01), 0.1, 0.02, 0.95) for _ in range(2))
    assert a.best is not None
    assert b.best is not None
    assert (a.best.chips, a.best.settings, a.best.share) == (b.best.chips, b.best.settings, b.best.share)
    assert a.confidence == b.confidence
    assert a.simulations == b.simulations


def test_an_slo_that_no_step_keeps_is_refused_without_simulating() -> None:
    found = plan(traffic(), None, 1e-5)
    assert (found.best, found.candidates, found.simulations) == (None, (), 0)
    assert dict(found.refused) == {"a decode step alone is slower than the TPOT": 1}
    found = plan(traffic(isl=8192), 1e-4, None)
    assert dict(found.refused) == {"a prompt alone takes longer than the TTFT": 1}


def test_too_few_chips_are_said_with_what_they_give() -> None:
    given = recipe(MODEL, "h100:1", tp=1)
    found = plan_slo(given, traffic(200, 1e-4), 0.05, 0.02, run=run_plain, tune=False, settings=HOST)
    assert found.best is None
    (only,) = found.candidates
    assert not only.holds
    assert only.share < 0.99


def test_the_parallelism_is_searched_and_fewest_chips_win() -> None:
    found = plan_slo(recipe(MODEL, "h100:4"), traffic(100, 0.01), 0.5, 0.05, run=run_plain, tune=False, settings=HOST)
    assert found.best is not None
    assert found.best.chips == 1
    assert found.screened == 6  # 1, 2 and 4 chips over tp x pp
    # A token limit below what a chip alone can do takes more chips to a replica.
    alone = plan(traffic(50, 0.5), None, 0.004)
    assert alone.best is None
    wide = plan_slo(recipe(MODEL, "h100:8"), traffic(50, 0.5), None, 0.005, run=run_plain, tune=False, settings=HOST)
    assert wide.best is not None
    assert wide.best.deployment.parallelism.tp > 1


def test_of_two_chips_the_fewer_win_then_the_cheaper() -> None:
    both = [recipe(MODEL, "a100:8", tp=1), recipe(MODEL, "h100:8", tp=1)]
    easy = plan_slo(both, traffic(60, 0.2), 1.0, 0.05, run=run_plain, tune=False, settings=HOST)
    assert easy.best is not None
    assert (easy.best.chips, easy.best.deployment.chip.id) == (1, "a100")  # both need one; it is the cheaper
    prices = {c.deployment.chip.id: c.dollars_per_hour for c in easy.candidates}
    assert prices["a100"] is not None
    assert prices["h100"] is not None
    assert prices["a100"][1] < prices["h100"][1]


def test_smaller_steps_are_found_where_long_prompts_break_the_tpot() -> None:
    """A prompt of 8,192 in one step stands between the two tokens of the request before it; a chunk stands less."""
    arrival = np.repeat(np.arange(30.0), 2) + np.tile([0.0, 0.003], 30)
    t = make_traffic("x", [64, 8192] * 30, [2, 1] * 30, arrival)
    d = deploy(MODEL, "h100:1", tp=1)
    own = plan_slo(recipe(MODEL, "h100:1", tp=1), t, None, 0.1, 0.9, run=run_plain, tune=False, settings=HOST)
    tuned = plan_slo(recipe(MODEL, "h100:1", tp=1), t, None, 0.1, 0.9, run=run_plain, settings=HOST)
    assert own.best is None
    assert tuned.best is not None
    assert tuned.best.settings.token_budget < d.engine.token_budget


def test_long_traffic_is_proved_on_all_of_it() -> None:
    count = PREFIX + 200
    t = make_traffic("x", [16] * count, [1] * count, np.arange(count) * 0.01)
    found = plan(t, 0.5, None, tune=False)
    assert found.best is not None
    assert found.best.requests == count


def test_limits_are_checked() -> None:
    for ttft, tpot, share, text in (
        (None, None, 0.9, "A plan on a traffic needs a limit"),
        (-1.0, None, 0.9, "The limit on TTFT must be more than 0 s"),
        (1.0, float("nan"), 0.9, "The limit on TPOT"),
        (1.0, None, 0.0, "The share of requests within the limits must be above 0"),
        (1.0, None, 1.5, "The share of requests within the limits must be above 0"),
    ):
        with pytest.raises(InputError, match=text):
            plan(traffic(), ttft, tpot, share)


def test_a_screened_estimate_is_the_work_of_the_mean_request() -> None:
    """At a batch of one (a limit just above a step alone), replicas = arrivals/s x (prompt + osl x step)."""
    d = deploy(MODEL, "h100:1", tp=1)
    d = simple(d, sequence_limit=1)
    t = traffic(101, 0.01, isl=512, osl=64)
    found = screen(d, t, Slo(None, 1.0))
    alone = Trial(d, traffic(1, isl=512, osl=64), run=run_plain).outcome(Settings.of(d), 1, 1)
    assert found.refused == ""
    assert found.replicas == pytest.approx(101.0 * float(alone.end[0]), rel=0.05)


def test_share_intervals() -> None:
    good = np.ones(1000, bool)
    low, high = share_interval(good)
    assert high == 1.0
    assert low == pytest.approx(1000 / (1000 + 1.96**2), abs=1e-4)  # Wilson: n / (n + z^2)
    apart, together = np.ones(1000, bool), np.ones(1000, bool)
    apart[::10] = False
    together[:100] = False
    assert share_interval(together)[0] < share_interval(apart)[0]  # one full queue is less sure than many mishaps
    assert share_interval(apart, 1) == share_interval(apart, 1)


def test_a_trial_is_the_run_that_prepare_makes() -> None:
    from taygeta.serving.fleet import Fleet, Pool
    from taygeta.serving.setup import prepare

    d = deploy(MODEL, "h100:2", tp=1)
    t = traffic(60, 0.01)
    trial = Trial(d, t, run=run_plain)
    smaller = Settings(1024, 64, "mixed")
    for chosen in (Settings.of(d), smaller, Settings(16384, 2048, "mixed")):
        served = replace(chosen.on(d), chips=3)
        whole = run_plain(prepare(Fleet((Pool(served, 3),)), t))
        mine = trial.outcome(chosen, 3, 60)
        assert np.array_equal(mine.end, whole.end)
    assert np.array_equal(trial.outcome(smaller, 2, 20).arrival, t.arrival[:20])
    slow, own = (trial.outcome(smaller, 1, 20, factor).end[-1] for factor in (2.0, 1.0))
    assert slow > own


def test_the_slow_end_may_take_more_chips_than_the_search_tried() -> None:
    """The winner needs all that the search had tried; its slow end is looked for beyond."""
    found = plan(traffic(300, 0.004), 0.1, 0.02, 0.99, tune=False)
    assert found.best is not None
    doubt = found.confidence
    assert doubt is not None
    assert doubt.slow is None or doubt.slow >= found.best.chips
    assert doubt.more_chips is None or doubt.more_chips == max(0, (doubt.slow or 0) - found.best.chips)
