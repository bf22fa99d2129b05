"""What an attention call of an exported program does around its softmax: projections, biases, norms, rotation.

Two forms are understood: keys and values of their own (Attention), and both from one latent (LatentAttention). The
traced operators between the projections and the call are run on random numbers and must give what the form gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend.arithmetic import read_rope
from taygeta.frontend.config import Fields
from taygeta.frontend.export_region import Matmul, Program, agree
from taygeta.frontend.recipes import Recipe, conv1d, linear, plain, rows_of
from taygeta.graph.functions import norm as reference_norm
from taygeta.graph.functions import rotate
from taygeta.spec.arithmetic import NormRule, Rope
from taygeta.spec.mixers import Attention, LatentAttention, Weight


@dataclass
class Part:
    """Half a layer: the value that it reads, the value that it adds, and its parameters."""

    source: Any
    result: Any
    recipes: dict[str, Recipe] = field(default_factory=dict)


def lift_attention(program: Program, call: Any) -> tuple[Attention | LatentAttention, Part]:
    """Return the attention of a call, with its output projection. Raises UnsupportedError."""
    program.used.add(call)
    sources = [program.matmul(n) for n in _all_sources(program, call)]
    known = [m for m in sources if m is not None]
    if len(known) != len(sources) or not known:
        raise program.refused(call, "reads something that is no projection")
    o = _output(program, call)
    latent = [m for m in known if program.kind(m.source) == "norm"]
    if any(m.outer != program.trace.tokens and program.sources(m.source) for m in latent) and _is_latent(program, call):
        return _latent(program, call, o)
    return _plain(program, call, known, o)


def _all_sources(program: Program, call: Any) -> list[Any]:
    found = {n for value in call.args[:3] for n in program.sources(value)}
    return [n for n in program.nodes if n in found]


def _output(program: Program, call: Any) -> Matmul:
    readers = list(program.readers(call))
    o = program.matmul(readers[0]) if len(readers) == 1 else None
    if o is None:
        raise program.refused(call, "is read by something else than one output projection")
    program.used.add(o.node)
    program.strip(o.node.args[0] if str(o.node.target) == "aten.linear.default" else o.node.args[-2])
    return o


def _is_latent(program: Program, call: Any) -> bool:
    """Keys and values come from one multiply of a normalised part of another one."""
    values = [program.matmul(n) for n in program.sources(call.args[2])]
    if len(values) != 1 or values[0] is None or program.kind(values[0].source) != "norm":
        return False
    inner = program.sources(values[0].source)
    return len(inner) == 1 and program.matmul(inner[0]) is not None and inner[0] in program.sources(call.args[1])


def _scale(given: float, dim: int) -> float | None:
    """None where the scale is the usual one, so that equal layers are equal."""
    return None if abs(given * dim**0.5 - 1.0) < 1e-9 else given


# ---------------------------------------------------------------- keys and values of their own


def _plain(program: Program, call: Any, known: list[Matmul], o: Matmul) -> tuple[Attention, Part]:
    q, k, v = call.args[:3]
    (_, heads, _, dim), (_, kv_heads, _, _), (_, _, _, v_dim) = (n.meta["val"].shape for n in (q, k, v))
    if len({m.source for m in known}) != 1 or len(known) not in (1, 3):
        raise program.refused(call, "reads projections of several values")
    widths = (heads * dim, kv_heads * dim, kv_heads * v_dim)
    given = {m.node: program.draw(m.node) for m in known}
    flat = np.concatenate([given[m.node].reshape(program.trace.tokens, -1) for m in known], axis=-1)
    if flat.shape[-1] != sum(widths) or (len(known) == 3 and tuple(m.outer for m in known) != widths):
        raise program.refused(call, "reads projections that are not queries, keys and values in this order")
    parts = np.split(flat, np.cumsum(widths)[:-1], axis=-1)
    found = [f[0].transpose(1, 0, 2) for f in program.run(given, q, k, v)]
    shaped = [a.reshape(f.shape) for a, f in zip(parts, found, strict=True)]
    norms = _head_norms(program, (q, k), given)
    rule = None
    if norms:
        rule = program.trace.norms[norms[0]]
        shaped[:2] = [_normed(program, x, path, rule) for x, path in zip(shaped[:2], norms, strict=True)]
    rope = _rotation(program, (q, k), given, dim, shaped[:2], found[:2])
    if not agree(found[2], shaped[2]):
        raise program.refused(call, "reads values that are not as their projection gave them")
    record = program.trace.attention[call.args[-1]]
    attention = Attention(
        heads, kv_heads, dim, v_dim,
        window=record.window or None, sinks=bool(record.sinks), qkv_bias=bool(known[0].bias),
        output_bias=bool(o.bias), qk_norm=_norm_kind(program, call, norms, dim), rotary=rope is not None,
        scale=_scale(record.scale, dim), softcap=record.softcap, rope=rope,
        norm_eps=rule.eps if rule else 1e-6, norm_offset=rule.offset if rule else 0.0,
    )  # fmt: skip
    if len({bool(m.bias) for m in known}) != 1:
        raise program.refused(call, "reads projections of which some have a bias and others none")
    recipes = _plain_recipes(attention, o.outer, known, o, widths, norms, record.sinks)
    return attention, Part(known[0].source, o.node, recipes)


def _head_norms(program: Program, values: tuple[Any, Any], stops: Mapping[Any, Any]) -> list[str]:
    """Return the paths of the norms of queries and keys, none or one of each."""
    found = [program.norms(value, stops) for value in values]
    if [len(f) for f in found] not in ([0, 0], [1, 1]):
        raise program.refused(values[0], "has norms of queries or keys alone, or several")
    paths = [node.args[1] for f in found for node in f]
    if len({program.trace.norms[p] for p in paths}) > 1 or any(program.trace.norms[p].kind != "rms" for p in paths):
        raise program.refused(values[0], "has norms of queries and keys that differ, or that subtract the mean")
    return paths


def _normed(program: Program, x: np.ndarray, path: str, rule: NormRule) -> np.ndarray:
    """Apply a norm over a head, or over all heads where its weight is as wide as they are together."""
    size = program.trace.model.get_submodule(path).weight.shape[0]
    flat = x if size == x.shape[-1] else x.reshape(len(x), size)
    return reference_norm(flat, program.norm_weight(path, size)[0], rule).reshape(x.shape)


def _norm_kind(program: Program, call: Any, norms: list[str], dim: int) -> str:
    if not norms:
        return "none"
    return "head" if program.trace.model.get_submodule(norms[0]).weight.shape[0] == dim else "full"


def _rotation(
    program: Program,
    nodes: tuple[Any, ...],
    stops: Mapping[Any, Any],
    dim: int,
    before: list[np.ndarray],
    after: list[np.ndarray],
) -> Rope | None:
    """Return the rotation between projections and call, None where there is none. Raises UnsupportedError."""
    if all(agree(a, b) for a, b in zip(after, before, strict=True)):
        return None
    positions = np.arange(program.trace.tokens)
    buffers = {program.parameters.get(n.name, "") for n in program.inputs(nodes[0], stops)}
    frequencies = [program.trace.constants[b].numpy() for b in buffers if b in program.trace.constants]
    for rope in _candidates(program, dim):
        exact = any(len(f) * 2 == rope.dim and np.allclose(f, rope.frequencies(), rtol=1e-5) for f in frequencies)
        turned = [rotate(a, positions, rope) for a in before] if exact else []
        # Logits do not change when queries and keys are stored in another order, neighbours instead of halves.
        for stored in (lambda x, _: x, _as_neighbours) if rope.interleaved else (lambda x, _: x,):
            if exact and all(agree(stored(a, rope.dim), b) for a, b in zip(turned, after, strict=True)):
                return rope
    raise program.refused(nodes[0], "turns queries and keys in a way that is no rotation of the configuration")


def _as_neighbours(x: np.ndarray, dim: int) -> np.ndarray:
    """Return the turned elements, two halves of `dim`, as neighbours again."""
    halves = x[..., :dim].reshape(*x.shape[:-1], 2, dim // 2)
    return np.concatenate((np.moveaxis(halves, -2, -1).reshape(*x.shape[:-1], dim), x[..., dim:]), axis=-1)


def _candidates(program: Program, dim: int) -> Iterator[Rope]:
    """Yield the rotations that the configuration's tables can mean."""
    config = program.trace.model.config.get_text_config()
    table = getattr(config, "rope_parameters", None) or {}
    nested = [t for t in table.values() if isinstance(t, Mapping)]
    context = int(getattr(config, "max_position_embeddings", 2048))
    for one in nested or [table]:
        stated = {"rope_parameters": dict(one), "max_position_embeddings": context}
        outer = getattr(config, "original_max_position_embeddings", None)
        stated |= {} if outer is None else {"original_max_position_embeddings": outer}
        try:
            rope = read_rope(Fields(stated, type(config).__name__), dim, 10_000.0, context, {})
        except UnsupportedError:
            raise
        except InputError as error:
            raise UnsupportedError(str(error)) from None
        yield from (rope, replace(rope, interleaved=True))


def _plain_recipes(
    a: Attention, d_model: int, known: list[Matmul], o: Matmul, widths: tuple[int, ...], norms: list[str], sinks: str
) -> dict[str, Recipe]:
    weights = {w.name: w for w in a.weights(d_model)}
    out: dict[str, Recipe] = {"o": _projection(weights["o"], o, inner=2)}
    starts = (0, widths[0], widths[0] + widths[1])
    for index, name in enumerate("qkv"):
        if len(known) == 3:
            out[name] = _projection(weights[name], known[index])
        else:
            out[name] = rows_of(weights[name], known[0].weight, starts[index], sum(widths), known[0].transposed)
        if a.qkv_bias and len(known) == 3:
            out[f"{name}_bias"] = plain(weights[f"{name}_bias"], known[index].bias)
        elif a.qkv_bias:
            out[f"{name}_bias"] = rows_of(weights[f"{name}_bias"], known[0].bias, starts[index], sum(widths))
    if a.output_bias:
        out["o_bias"] = plain(weights["o_bias"], o.bias)
    if a.sinks:
        out["sinks"] = plain(weights["sinks"], sinks)
    for name, path in zip(("q_norm", "k_norm"), norms, strict=False):
        out[name] = plain(weights[name], f"{path}.weight")
    return out


def _projection(weight: Weight, m: Matmul, inner: int = 1) -> Recipe:
    return (conv1d if m.transposed else linear)(weight, m.weight, inner)


# ---------------------------------------------------------------- keys and values from one latent


def _latent(program: Program, call: Any, o: Matmul) -> tuple[LatentAttention, Part]:
    q, _, v = call.args[:3]
    (_, heads, _, dim), v_dim = q.meta["val"].shape, v.meta["val"].shape[-1]
    (kv_b,) = (m for n in program.sources(v) if (m := program.matmul(n)))
    (kv_a,) = (m for n in program.sources(kv_b.source) if (m := program.matmul(n)))
    last = [m for n in program.sources(q) if (m := program.matmul(n))]
    if len(last) != 1 or any(m.bias for m in (*last, kv_a, kv_b, o)):
        raise program.refused(call, "has latent attention with biases, or queries of several projections")
    nope, rank = kv_b.outer // heads - v_dim, kv_b.inner
    rope_dim, q_norm = dim - nope, last[0].source if program.kind(last[0].source) == "norm" else None
    first = None
    if q_norm is not None and program.sources(q_norm) != []:
        inner = [m for n in program.sources(q_norm) if (m := program.matmul(n))]
        first = inner[0] if len(inner) == 1 and program.strip(q_norm.args[0]) is inner[0].node else None
    source = first.source if first else last[0].source
    if kv_a.source is not source or kv_a.outer != rank + rope_dim or not 0 < nope < dim:
        raise program.refused(call, "has keys and values of a latent that is not made as DeepSeek makes it")
    given = {m.node: program.draw(m.node) for m in (last[0], kv_a, kv_b)}
    rope = _latent_rotation(program, call, given, (last[0], kv_a, kv_b), (heads, nope, v_dim, rank, rope_dim))
    paths = [kv_b.source.args[1], *([q_norm.args[1]] if first is not None and q_norm is not None else [])]
    rules = {program.trace.norms[p] for p in paths}
    if len(rules) != 1 or next(iter(rules)) != NormRule(eps=next(iter(rules)).eps):
        raise program.refused(call, "has norms of latents that differ")
    program.used |= {kv_b.source, last[0].node, *([first.node, q_norm] if first else [])}
    a = LatentAttention(
        heads, first.outer if first else None, rank, nope, rope_dim, v_dim,
        scale=program.trace.attention[call.args[-1]].scale, rope=rope, norm_eps=next(iter(rules)).eps,
    )  # fmt: skip
    return a, Part(source, o.node, _latent_recipes(a, o, last[0], first, kv_a, kv_b, paths))


def _latent_rotation(
    program: Program, call: Any, given: dict[Any, np.ndarray], multiplies: tuple[Matmul, ...], sizes: tuple[int, ...]
) -> Rope:
    """Check what lies between the multiplies and the call, and return the rotation of the shared key."""
    heads, nope, v_dim, rank, rope_dim = sizes
    rows = program.trace.tokens
    queries, latent, both = (given[m.node].reshape(rows, -1) for m in multiplies)
    queries, both = queries.reshape(rows, heads, -1), both.reshape(rows, heads, nope + v_dim)
    q, k, v = (f[0].transpose(1, 0, 2) for f in program.run(given, *call.args[:3]))
    (normed,) = program.run(given, multiplies[2].source.args[0])
    same = (
        agree(normed.reshape(rows, -1), latent[:, :rank])
        and agree(q[..., :nope], queries[..., :nope])
        and agree(k[..., :nope], both[..., :nope])
        and agree(v, both[..., nope:])
        and agree(k[..., nope:], np.repeat(k[:, :1, nope:], heads, axis=1))
    )
    if not same:
        raise program.refused(call, "has keys and values of a latent that is not made as DeepSeek makes it")
    before = [queries[..., nope:], latent[:, None, rank:]]
    rope = _rotation(program, call.args[:2], given, rope_dim, before, [q[..., nope:], k[:, :1, nope:]])
    if rope is None:
        raise program.refused(call, "has latent attention without rotation")
    return rope


def _latent_recipes(
    a: LatentAttention, o: Matmul, q: Matmul, q_a: Matmul | None, kv_a: Matmul, kv_b: Matmul, norms: list[str]
) -> dict[str, Recipe]:
    w = {x.name: x for x in a.weights(o.outer)}
    out = {
        "o": _projection(w["o"], o, inner=2),
        "kv_a": _projection(w["kv_a"], kv_a),
        "kv_a_norm": plain(w["kv_a_norm"], f"{norms[0]}.weight"),
        "q_b" if q_a else "q": _projection(w["q_b" if q_a else "q"], q),
    }
    if q_a is not None:
        out["q_a"] = _projection(w["q_a"], q_a)
        out["q_a_norm"] = plain(w["q_a_norm"], f"{norms[1]}.weight")
    width, h = a.nope_dim + a.v_head_dim, a.heads
    stored = (kv_b.inner, kv_b.outer) if kv_b.transposed else (kv_b.outer, kv_b.inner)

    def heads(x: np.ndarray) -> np.ndarray:  # -> (heads, nope_dim + v_head_dim, kv_rank)
        return (x.T if kv_b.transposed else x).reshape(h, width, a.kv_rank)

    tensors = ((kv_b.weight, stored),)
    out["kv_b keys"] = Recipe(tensors, lambda x: heads(x)[:, : a.nope_dim])
    out["kv_b values"] = Recipe(tensors, lambda x: heads(x)[:, a.nope_dim :].transpose(0, 2, 1))
    return out
