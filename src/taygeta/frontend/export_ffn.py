"""What a feed-forward block of an exported program computes: its gate, its router, its experts.

The traced operators are run on random numbers; the first candidate that gives the same is what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from taygeta.base.errors import UnsupportedError, require
from taygeta.frontend.export_attention import Part
from taygeta.frontend.export_region import Matmul, Program, agree, first_that_agrees
from taygeta.frontend.export_trace import PURPOSE
from taygeta.frontend.recipes import Recipe, conv1d, linear, plain
from taygeta.graph.functions import gate as reference_gate
from taygeta.graph.functions import route as reference_route
from taygeta.graph.meaning import Route
from taygeta.spec.arithmetic import GateRule
from taygeta.spec.mixers import Weight
from taygeta.spec.model import DenseFfn, MoeFfn

_ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu2")


def lift_ffn(program: Program, h: Any) -> tuple[DenseFfn | MoeFfn, Part]:
    """Return the feed-forward block that reads the norm h. Raises UnsupportedError."""
    experts = [n for n in program.nodes if program.kind(n) == "experts" and program.strip(n.args[0]) is h]
    if len(experts) == 1:
        return _mixture(program, h, experts[0])
    down = _down(program, h)
    ffn, recipes = _dense(program, h, down, "up", "down")
    return ffn, Part(h, down.node, recipes)


def _down(program: Program, h: Any, without: frozenset[Any] = frozenset()) -> Matmul:
    """Return the multiply whose input is made of multiplies of h, without the router."""
    ups = {n for n in program.readers(h) if program.matmul(n)} - without
    found = []
    for n in program.nodes:
        m = program.matmul(n)
        if m is not None and n not in ups and (sources := set(program.sources(m.source))) and sources <= ups:
            found.append(m)
    if len(found) != 1:
        raise program.refused(h, f"is read by {len(found)} feed-forward blocks, and one is understood")
    return found[0]


def _dense(program: Program, h: Any, down: Matmul, up_name: str, down_name: str) -> tuple[DenseFfn, dict[str, Recipe]]:
    """Return a feed-forward block, and the recipes of its two matrices under these names."""
    ups = [m for n in program.sources(down.source) if (m := program.matmul(n))]
    given = {m.node: 3 * program.draw(m.node) for m in ups}
    rows, width = program.trace.tokens, down.inner
    if len(ups) not in (1, 2) or sum(m.outer for m in ups) not in (width, 2 * width):
        raise program.refused(down.node, "is a feed-forward block of more than two matrices before its last one")
    (found,) = program.run(given, down.source)
    program.used |= {down.node, *(m.node for m in ups)}
    x = np.concatenate([given[m.node].reshape(rows, -1) for m in ups], axis=-1).reshape(rows, -1, width)

    def computed(candidate: tuple[GateRule, bool]) -> np.ndarray:
        rule, swapped = candidate
        return reference_gate(x[:, ::-1] if swapped else x, rule)

    both = x.shape[1] == 2
    candidates = ((GateRule(a, both), s) for a in _ACTIVATIONS for s in ((False, True) if both else (False,)))
    chosen = first_that_agrees(candidates, computed, found.reshape(rows, width))
    if chosen is None:
        raise program.refused(down.source, "is an activation that is not understood")
    biases = {bool(m.bias) for m in (*ups, down)}
    if len(biases) != 1:
        raise program.refused(down.node, "has a bias where other matrices of its block have none")
    ffn = DenseFfn(width, both, biases == {True}, chosen[0].activation)
    order = ups[::-1] if chosen[1] else ups
    return ffn, _dense_recipes(ffn, down, order, chosen[1], up_name, down_name)


def _dense_recipes(
    ffn: DenseFfn, down: Matmul, ups: list[Matmul], swapped: bool, up_name: str, down_name: str
) -> dict[str, Recipe]:
    w = {x.name: x for x in ffn.weights(down.outer)}
    count, width, inner = (2 if ffn.gated else 1), ffn.d_ff, ups[0].inner

    def stacked(*parts: np.ndarray) -> np.ndarray:  # -> (d_model, ways, d_ff)
        columns = [p if m.transposed else p.T for p, m in zip(parts, ups, strict=True)]
        out = np.concatenate(columns, axis=-1).reshape(inner, count, width)
        return out[:, ::-1] if swapped and len(ups) == 1 else out

    def biases(*parts: np.ndarray) -> np.ndarray:
        out = np.concatenate(parts).reshape(count, width)
        return out[::-1] if swapped and len(ups) == 1 else out

    shapes = [(m.inner, m.outer) if m.transposed else (m.outer, m.inner) for m in ups]
    out = {
        up_name: Recipe(tuple((m.weight, s) for m, s in zip(ups, shapes, strict=True)), stacked),
        down_name: (conv1d if down.transposed else linear)(w["down"], down.weight),
    }
    if ffn.bias:
        out["up_bias"] = Recipe(tuple((m.bias, (m.outer,)) for m in ups), biases)
        out["down_bias"] = plain(w["down_bias"], down.bias)
    return out


def _mixture(program: Program, h: Any, node: Any) -> tuple[MoeFfn, Part]:
    program.used.add(node)
    path = node.args[-1]
    module = program.trace.experts[path]
    ffn, rule, recipes = _experts(program, node, path, module)
    router, ffn, correction = _route(program, node, ffn)
    if program.strip(router.source) is not h:
        raise program.refused(router.node, "is a router of something else than its experts read")
    weight = Weight("router", (("d_model", router.inner), ("experts", ffn.experts)), "router")
    recipes["router"] = (conv1d if router.transposed else linear)(weight, router.weight)
    if router.bias or correction:
        bias = Weight("router_bias", (("experts", ffn.experts),), "norm")
        recipes["router_bias"] = plain(bias, router.bias or correction)
    result = node
    sums = [n for n in program.readers(node) if str(n.target) == "aten.add.Tensor"]
    shared = next((n for n in sums if any(_reads_ffn(program, a, h, router) for a in n.args)), None)
    if shared is not None:
        down = _down(program, h, frozenset({router.node}))
        if not any(program.strip(a) is down.node for a in shared.args):
            raise program.refused(shared, "adds shared experts that are gated or scaled")
        dense, more = _dense(program, h, down, "shared_up", "shared_down")
        if dense.bias or (dense.gated, dense.activation) != (rule.gated, rule.activation) or rule.limit:
            raise program.refused(shared, "adds shared experts that differ from the routed ones")
        ffn, recipes, result = replace(ffn, shared_d_ff=dense.d_ff), recipes | more, shared
        program.used.add(shared)
    return ffn, Part(h, result, recipes)


def _reads_ffn(program: Program, value: Any, h: Any, router: Matmul) -> bool:
    """Whether a summand is made of h by multiplies, the router's apart."""
    if not hasattr(value, "target"):
        return False
    sources = program.sources(program.strip(value))
    return bool(sources) and all(program.matmul(n) and n is not router.node for n in sources) and any(
        set(program.sources(m.source)) <= set(program.readers(h)) for n in sources if (m := program.matmul(n))
    )  # fmt: skip


def _experts(program: Program, node: Any, path: str, module: Any) -> tuple[MoeFfn, GateRule, dict[str, Recipe]]:
    """Return the routed experts by the layout that transformers states for their class."""
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    wanted = {"gate_up_proj", "down_proj"} | ({"gate_up_proj_bias", "down_proj_bias"} if module.has_bias else set())
    if set(shapes) != wanted or module.has_post_expert_norm or not module.has_gate:
        raise program.refused(node, f"has experts with the parameters {', '.join(sorted(shapes))}, which")
    count, top_k, width = shapes["down_proj"][0], node.args[1].meta["val"].shape[-1], node.meta["val"].shape[-1]
    d_ff = shapes["down_proj"][1 if module.is_transposed else 2]
    rule = _expert_gate(program, node, module, d_ff)
    ffn = MoeFfn(
        count, top_k, d_ff, bias=module.has_bias, activation=rule.activation,
        limit=rule.limit, alpha=rule.alpha, shift=rule.shift,
    )  # fmt: skip

    def apart(a: np.ndarray) -> np.ndarray:  # (..., 2 d_ff) -> (..., ways, d_ff)
        if module.is_concatenated:
            return a.reshape(*a.shape[:-1], 2, d_ff)
        return np.moveaxis(a.reshape(*a.shape[:-1], d_ff, 2), -1, -2)

    def rows_last(a: np.ndarray) -> np.ndarray:
        return a if module.is_transposed else a.transpose(0, 2, 1)

    recipes = {
        "experts_up": Recipe(((f"{path}.gate_up_proj", shapes["gate_up_proj"]),), lambda a: apart(rows_last(a))),
        "experts_down": Recipe(((f"{path}.down_proj", shapes["down_proj"]),), rows_last),
    }
    if module.has_bias:
        recipes["experts_up_bias"] = Recipe(((f"{path}.gate_up_proj_bias", shapes["gate_up_proj_bias"]),), apart)
        recipes["experts_down_bias"] = Recipe(((f"{path}.down_proj_bias", (count, width)),), lambda a: a)
    return ffn, rule, recipes


def _expert_gate(program: Program, node: Any, module: Any, d_ff: int) -> GateRule:
    """Return what the experts' gate computes: tried on random numbers, large ones among them for the limits."""
    torch = require("torch", "torch", PURPOSE)
    raw = (program.rng.standard_normal((64, 2 * d_ff)) * 6).astype(np.float32)
    with torch.no_grad():
        found = module._apply_gate(torch.from_numpy(raw)).numpy()
    ways = raw.reshape(64, 2, d_ff) if module.is_concatenated else raw.reshape(64, d_ff, 2).transpose(0, 2, 1)
    numbers = {n: float(v) for n, v in vars(module).items() if isinstance(v, float) and not n.startswith("_")}
    limits, alphas = (
        {0.0, *(v for n, v in numbers.items() if "limit" in n)},
        {1.0, *(v for n, v in numbers.items() if "alpha" in n)},
    )
    rules = (
        GateRule(a, True, limit, alpha, shift)
        for a in _ACTIVATIONS for limit in limits for alpha in alphas for shift in (0.0, 1.0)
    )  # fmt: skip
    rule = first_that_agrees(rules, lambda r: reference_gate(ways, r), found)
    if rule is None:
        raise program.refused(node, "has experts with a gate that is not understood")
    return rule


def _route(program: Program, node: Any, ffn: MoeFfn) -> tuple[Matmul, MoeFfn, str]:
    """Return the router, the block with its rule of routing, and the path of a bias on the choice, "" for none."""
    chosen, weights = node.args[1], node.args[2]
    routers = [program.matmul(n) for n in program.sources(weights)]
    if len(routers) != 1 or routers[0] is None:
        raise program.refused(node, "has experts whose weights do not come from one multiply")
    router = routers[0]
    given = {router.node: 2 * program.draw(router.node)}
    picks, shares = program.run(given, chosen, weights)
    program.used.add(router.node)
    logits = given[router.node].reshape(-1, ffn.experts)
    paths = [program.parameters.get(n.name, "") for n in program.inputs(chosen, given)]
    paths = [p for p in paths if p and p not in program.trace.constants]
    correction = paths[0] if len(paths) == 1 else ""
    bias = program.value(correction, (ffn.experts,)) if correction else None
    if len(paths) > 1 or (correction and router.bias):
        raise program.refused(node, "has a router with several biases")
    found = _spread(shares, picks, ffn.experts)
    for rule in _rules(program, chosen, ffn, correction):
        plain_shares = _spread(*reference_route(rule, logits, None, bias), ffn.experts)
        if not np.array_equal(plain_shares != 0, found != 0):
            continue
        scale = float(np.median(found[found != 0] / plain_shares[found != 0]))
        scale = round(scale, 6) if abs(scale - round(scale, 6)) < 1e-6 else scale  # as a configuration writes it
        if agree(found, plain_shares * np.float32(scale)):
            return router, _routed(ffn, rule, scale, bool(router.bias), bool(correction)), correction
    raise program.refused(node, "has a rule of routing that is not understood")


def _routed(ffn: MoeFfn, rule: Route, scale: float, router_bias: bool, correction: bool) -> MoeFfn:
    return replace(
        ffn, groups=rule.groups, top_groups=rule.top_groups, router_bias=router_bias, correction_bias=correction,
        scoring=rule.scoring, normalise=rule.normalise, route_scale=scale,
    )  # fmt: skip


def _rules(program: Program, chosen: Any, ffn: MoeFfn, correction: str) -> Iterator[Route]:
    """Yield the rules of routing that the numbers of top-k operators allow."""
    picks = [n for n in _region(chosen) if str(n.target) == "aten.topk.default"]
    sizes = {(n.args[0].meta["val"].shape[-1], n.args[1]) for n in picks}
    groups = [(1, 1), *((g, k) for g, k in sorted(sizes) if g < ffn.experts and ffn.experts % g == 0 and k <= g)]
    name = "correction" if correction else ""
    for scoring in ("softmax", "sigmoid"):
        for normalise in (True, False):
            for g, k in groups[::-1]:
                yield Route(ffn.top_k, scoring, normalise, g, k, correction=name)


def _region(node: Any) -> set[Any]:
    seen, stack = set(), [node]
    while stack:
        n = stack.pop()
        if n not in seen and not str(n.target).startswith("aten.linear"):
            seen.add(n)
            stack += n.all_input_nodes
    return seen


def _spread(weights: np.ndarray, chosen: np.ndarray, experts: int) -> np.ndarray:
    """Return (tokens, experts): the weight of every expert, 0 for those that are not chosen."""
    if chosen.ndim != 2 or weights.shape != chosen.shape:
        raise UnsupportedError("Experts are called with indices and weights that are not (tokens, top_k).")
    out = np.zeros((len(chosen), experts), np.float32)
    np.put_along_axis(out, chosen.astype(np.int64), weights.astype(np.float32), axis=-1)
    return out
