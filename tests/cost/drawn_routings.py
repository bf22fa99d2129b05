"""Drawn routings of expert layers, for properties that hold of all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from taygeta.cost.routing import Routing, routing_even, routing_independent, routing_skewed


def routings() -> st.SearchStrategy[Routing]:
    """Routings of any kind: 1 to 2**24 tokens, up to 32 choices among 1 to 256 experts on each of 1 to 64 ranks."""

    def build(tokens: float, experts: int, topk: int, parts: int, skew: float) -> Routing:
        experts_all, k = float(experts * parts), float(min(topk, experts * parts))
        if skew < 0.0:
            return routing_independent(tokens, k, experts_all, float(parts))
        if skew == 0.0:
            return routing_even(tokens, k, experts_all, float(parts))
        return routing_skewed(tokens, k, experts_all, float(parts), skew)

    skews = st.sampled_from([-1.0, 0.0, 0.6, 1.01, 1.2])
    return st.builds(
        build,
        st.integers(1, 2**24).map(float),
        st.integers(1, 256),
        st.integers(1, 32),
        st.sampled_from([1, 2, 8, 64]),
        skews,
    )
