"""Counts of routing against drawn loads, sums and numbers counted by hand."""

import math

import numpy as np
import pytest
from drawn_routings import routings
from hypothesis import given

from taygeta.cost.routing import (
    Routing,
    hit_by,
    hit_share_of,
    power_law_lowest,
    power_law_moment,
    power_law_quantile,
    power_law_span,
    routing_even,
    routing_independent,
    routing_skewed,
    row_tiles,
)


def test_even_routing_by_hand():
    # 6 tokens x 2 = 12 rows over 8 experts: all hit, 1.5 rows each; on one of 4 ranks 3 rows over 2 experts.
    assert routing_even(6.0, 2.0, 8.0, 1.0) == Routing(12.0, 6.0, 8.0, 1.5, 1.5, 0.0)
    assert routing_even(6.0, 2.0, 8.0, 4.0) == Routing(3.0, 3.0, 2.0, 1.5, 1.5, 0.0)
    # fewer rows than experts: one row each
    assert routing_even(1.0, 2.0, 8.0, 1.0).hit == 2.0


def test_row_tiles_by_hand():
    # 4 experts of 20 rows, tiles of 16: 2 each.
    assert row_tiles(Routing(80.0, 80.0, 4.0, 20.0, 20.0, 0.0), 16.0) == 8.0
    # 4 experts of 16.5 rows on average: half have 16 (1 tile), half 17 (2 tiles).
    assert row_tiles(Routing(66.0, 66.0, 4.0, 16.5, 16.5, 0.0), 16.0) == 6.0
    # a surplus of 32 rows beyond the law fills two tiles more
    assert row_tiles(Routing(112.0, 112.0, 4.0, 20.0, 20.0, 0.0), 16.0) == 10.0
    # never fewer than one tile per expert that is hit
    assert row_tiles(Routing(7.0, 7.0, 7.0, 1.0, 1.0, 0.0), 256.0) == 7.0


def test_independent_routing_hits_the_occupancy_formula():
    # 2 of 8 experts per token, 2 tokens: an expert is missed with probability (3/4)^2.
    assert routing_independent(2.0, 2.0, 8.0, 1.0).hit == pytest.approx(8.0 * (1.0 - 0.5625))


@pytest.mark.parametrize("tokens", [4, 8, 16, 64, 256])
def test_fullest_rank_hits_as_many_experts_as_drawn_ones(tokens):
    # 8 of 256 experts on 8 ranks, drawn 400 times: distinct experts of the rank with most rows.
    draw = np.random.Generator(np.random.PCG64(1))
    hit = []
    for _ in range(400):
        chosen = np.argsort(draw.random((tokens, 256)), axis=1)[:, :8]
        ranks = np.bincount(chosen.ravel() // 32, minlength=8)
        mine = chosen[chosen // 32 == ranks.argmax()]
        hit.append(len(set(mine.tolist())))
    assert routing_independent(float(tokens), 8.0, 256.0, 8.0).hit == pytest.approx(np.mean(hit), rel=0.11)


def test_more_rows_hit_experts_that_none_had_hit():
    # 8 of 32 experts hit leave 3 of 4 without a row; twice the rows leave 9 of 16 of them.
    assert hit_by(1.0, 8.0, 32.0) == pytest.approx(8.0)
    assert hit_by(2.0, 8.0, 32.0) == pytest.approx(32.0 * 7.0 / 16.0)
    assert hit_by(3.0, 32.0, 32.0) == 32.0  # all are hit already
    few = routing_skewed(4.0, 8.0, 256.0, 8.0, 1.01)
    assert 1.3 * 4.0 < few.hit <= few.rows  # the mean rank has 4 rows


def test_skewed_routing_against_counting():
    # Exponent 1 is log-uniform. 1,000 tokens x 8 over 64 experts: loads 800**u, u = (i + 1/2) / 64, scaled
    # to 8,000 rows.
    loads = [800.0 ** ((i + 0.5) / 64.0) for i in range(64)]
    scale = 8000.0 / sum(loads)
    hit = sum(load * scale >= 0.5 for load in loads)
    routing = routing_skewed(1000.0, 8.0, 64.0, 1.0, 1.0)
    tiles = sum(math.ceil(load * scale / 128.0) for load in loads)
    assert routing.rows == 8000.0
    assert routing.hit == pytest.approx(hit, abs=2.0)
    assert row_tiles(routing, 128.0) == pytest.approx(tiles, rel=0.06)


def test_power_law_quantile_inverts_the_distribution_function():
    low, high, exponent = 1.0, 800.0, 1.2
    for u in (0.0, 0.25, 0.5, 0.99, 1.0):
        x = power_law_quantile(u, low, *power_law_span(low, high, exponent))
        share = (low**-0.2 - x**-0.2) / (low**-0.2 - high**-0.2)
        assert share == pytest.approx(u, abs=1e-9)
    # Exponent 1 is log-uniform, exponent 0 uniform.
    assert power_law_quantile(0.5, 1.0, *power_law_span(1.0, 100.0, 1.0)) == pytest.approx(10.0, rel=1e-4)
    assert power_law_quantile(0.5, 1.0, *power_law_span(1.0, 100.0, 0.0)) == pytest.approx(50.5)


def drawn_loads(tokens: int, topk: int, experts: int, exponent: float, draw: np.random.Generator) -> np.ndarray:
    """Rows of every expert as the benchmark draws them: shares rounded, none above the tokens, the sum mended."""
    low, high = (1.0, 0.8 * tokens) if tokens * topk > experts else (0.01, 2.0)
    power = 1.0 - exponent
    x = ((high**power - low**power) * draw.random(experts) + low**power) ** (1.0 / power)
    loads = np.minimum(np.rint(x / x.sum() * tokens * topk), tokens)
    while (missing := tokens * topk - loads.sum()) != 0.0:
        if missing > 0.0:
            loads[loads.argmin()] += 1.0
        else:
            loads[loads.argmax()] -= 1.0
    return loads


@pytest.mark.parametrize(
    ("tokens", "topk", "experts", "within"),
    [(16, 8, 256, 0.02), (96, 10, 512, 0.02), (384, 1, 128, 0.03), (1024, 8, 256, 0.02), (256, 2, 8, 0.05)],
)
@pytest.mark.parametrize("exponent", [1.01, 1.2])
def test_skewed_routing_is_the_mean_of_drawn_loads(tokens, topk, experts, within, exponent):
    draw = np.random.Generator(np.random.PCG64(7))
    loads = [drawn_loads(tokens, topk, experts, exponent, draw) for _ in range(200)]
    routing = routing_skewed(float(tokens), float(topk), float(experts), 1.0, exponent)
    assert routing.hit == pytest.approx(np.mean([(load > 0).sum() for load in loads]), rel=within)
    for tile in (16.0, 64.0):
        counted = np.mean([np.ceil(load / tile).sum() for load in loads])
        assert row_tiles(routing, tile) == pytest.approx(counted, rel=2.0 * within)


def test_moments_of_a_power_law_against_sums():
    low, high, exponent = 0.5, 300.0, 1.2
    span, power = power_law_span(low, high, exponent)
    u = (np.arange(200_000) + 0.5) / 200_000
    x = low * (1.0 + span * u) ** (1.0 / power)
    for edge in (2.0, 40.0, high):
        for order in (0.0, 1.0, 2.0):
            counted = np.where(x <= edge, x**order, 0.0).mean()
            assert power_law_moment(order, edge, low, span, power) == pytest.approx(counted, rel=1e-3)
    # density 1 / r**2 between 1 and e: mean is ln(e) / (1 - 1 / e), where the closed form divides by zero
    assert power_law_moment(1.0, math.e, 1.0, *power_law_span(1.0, math.e, 2.0)) == pytest.approx(
        1.0 / (1.0 - math.exp(-1.0)), rel=1e-5
    )


def test_the_lowest_load_follows_from_mean_and_highest():
    for exponent in (0.5, 1.0, 1.2):
        lowest = power_law_lowest(150.0, 400.0, exponent)
        span, power = power_law_span(lowest, 400.0, exponent)
        assert power_law_moment(1.0, 400.0, lowest, span, power) == pytest.approx(150.0, rel=1e-3)


def test_rows_that_rounding_loses_go_to_experts_without_any():
    # Uniform loads from 0 to 0.4 round to nothing: their mean of 0.2 rows each goes to a fifth of the experts.
    assert hit_share_of(1.0, 1e-9, 0.4, *power_law_span(1e-9, 0.4, 0.0)) == pytest.approx(0.2)
    # From 0 to 1: half the experts keep their row; loads below a half lose 1/8 in all, those above gain 1/8.
    assert hit_share_of(1.0, 1e-9, 1.0, *power_law_span(1e-9, 1.0, 0.0)) == pytest.approx(0.5)
    # twice the scale: above 1/2 of 2 are 3/4, and nothing is lost on balance
    assert hit_share_of(2.0, 1e-9, 1.0, *power_law_span(1e-9, 1.0, 0.0)) == pytest.approx(0.75)


@given(routings())
def test_routing_is_possible(r: Routing):
    assert all(math.isfinite(x) for x in r)
    assert 1.0 <= r.hit <= r.rows * (1 + 1e-9)
    assert r.lowest <= r.highest * (1 + 1e-9)
    assert r.tokens <= r.rows
    for tile in (1.0, 16.0, 256.0):
        tiles = row_tiles(r, tile)
        assert tiles >= r.hit * (1 - 1e-9)
        assert tiles >= r.rows / tile * (1 - 1e-9)
        assert tiles <= r.rows / tile + r.hit * 1.001 + 1e-6
