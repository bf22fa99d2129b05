"""How many tokens each expert gets: the lengths of the lists that the timed machine walks.

A run of the executed machine has real lists; a prediction has the expectation of a router whose loads follow a power
law (see ROUTING_SKEW), dealt out so that every expert's load is what the law says and the sum is exact.
"""

from __future__ import annotations

import numpy as np

from taygeta.compiler.compile import Compiled
from taygeta.compiler.experts import PLACES, TOKENS
from taygeta.cost.routing import power_law_quantile, power_law_span
from taygeta.machine.columns import Routing
from taygeta.spec.model import Model, MoeFfn


def expert_loads(tokens: int, experts: int, top_k: int, skew: float) -> np.ndarray:
    """Return tokens x top_k pairs over the experts, most first, none with more than the tokens; skew 0: even.

    The law's bounds are those of taygeta.cost.routing.routing_skewed.
    """
    pairs = tokens * top_k
    if skew <= 0.0:
        shares = np.ones(experts)
    else:
        low, high = (1.0, max(0.8 * tokens, 1.0)) if pairs > experts else (0.01, 2.0)
        span, power = power_law_span(low, high, skew)
        quantiles = (np.arange(experts) + 0.5) / experts
        shares = np.array([power_law_quantile(1.0 - u, low, span, power) for u in quantiles])
    wanted = np.minimum(shares / shares.sum() * pairs, tokens)
    loads = np.where(wanted >= 0.5, np.floor(wanted + 0.5), 0.0).astype(np.int64)
    order = np.argsort(loads, kind="stable")  # what rounding loses goes one each, to experts without tokens first
    while (left := pairs - int(loads.sum())) != 0:
        change = 1 if left > 0 else -1
        able = [i for i in order if 0 <= loads[i] + change <= tokens]
        loads[able[: abs(left)] if change > 0 else able[::-1][: abs(left)]] += change
    return np.sort(loads)[::-1]


def expected_routing(compiled: Compiled, model: Model, skew: float) -> Routing | None:
    """Return list lengths for a compiled step: the same for every layer; None without experts."""
    table = next((t for t in compiled.program.tables if t.name == TOKENS), None)
    if table is None:
        return None
    ffn = next(layer.ffn for layer in model.layers if isinstance(layer.ffn, MoeFfn))
    loads = expert_loads(compiled.requests * compiled.new, ffn.experts, ffn.top_k, skew)
    chunks = table.lists // ffn.experts
    starts = np.arange(chunks) * table.length
    lengths = np.clip(loads[:, None] - starts, 0, table.length).reshape(-1)
    return {TOKENS: lengths, PLACES: lengths}
