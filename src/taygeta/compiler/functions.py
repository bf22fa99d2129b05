"""What the vector unit's instructions compute, on fp32 arrays with the cores of a chip as the first axis.

Every function takes its inputs in the order of the instruction's operands and its attributes, and gives its outputs in
fp32; the machine rounds them to the formats of their buffers. Sums run in increasing order in fp64 and are rounded
once; exponentials, roots and the like are correctly rounded (taygeta.numerics). An axis of one core stands for equal
cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from taygeta.compiler.program import Value
from taygeta.numerics import vector

Array = np.ndarray
Attributes = Mapping[str, Value]
Function = Callable[[Sequence[Array], Attributes], list[Array]]

F32 = np.float32


def row_sum(x: Array) -> Array:
    """Return the sums over the last axis, kept as an axis of one: in increasing order in fp64, rounded once."""
    return vector.totals(x).astype(F32)


def row_mean(x: Array) -> Array:
    """Return the means over the last axis: the fp64 sum over the count, rounded once."""
    return (vector.totals(x) / x.shape[-1]).astype(F32)


def _aligned(x: Array, like: Array) -> Array:
    """A vector for each core as one row for all rows of a matrix for each core."""
    while x.ndim < like.ndim:
        x = x[..., None, :]
    return x


def _copy(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    return [inputs[0].copy()]


def _scale(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    return [inputs[0] * F32(a["factor"])]


def _add(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    total = inputs[0]
    for other in inputs[1:]:
        total = total + _aligned(other, inputs[0])
    return [total]


def _reduce(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    parts = inputs[0]
    total = parts[:, 0]
    for i in range(1, parts.shape[1]):
        total = total + parts[:, i]
    return [total]


def _norm(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    x, weight = inputs
    groups = int(a["groups"])
    shape = x.shape
    x = x.reshape(*shape[:-1], groups, shape[-1] // groups)
    scale, shift = (weight[:, 0], weight[:, 1:]) if weight.ndim == 3 else (weight, weight[:, :0])
    if a["rule"] == "layer":
        x = x - row_mean(x)
    x = x * vector.rsqrt(row_mean(x * x) + F32(a["eps"]))
    x = x * _aligned(scale + F32(a["offset"]), x)
    if a["rule"] == "layer" and shift.shape[1]:
        x = x + _aligned(shift[:, 0], x)
    return [x.reshape(shape)]


def _gate(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    first, second = np.split(inputs[0], 2, axis=-1)
    limit = F32(a["limit"])
    if limit:
        first, second = np.minimum(first, limit), np.clip(second, -limit, limit)
    return [activation(str(a["activation"]), first, F32(a["alpha"])) * (second + F32(a["shift"]))]


def _activate(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    return [activation(str(a["activation"]), inputs[0], F32(a["alpha"]))]


def activation(name: str, x: Array, alpha: np.float32) -> Array:
    """Return an activation of every element (see GateRule)."""
    if name == "silu":
        return x * vector.sigmoid(alpha * x)
    if name == "gelu":
        return vector.gelu(x)
    if name == "gelu_tanh":
        return vector.gelu_tanh(x)
    found = np.maximum(x, F32(0.0))
    return found * found if name == "relu2" else found


def _softcap(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    cap = F32(a["cap"])
    return [cap * vector.tanh(np.divide(inputs[0], cap, dtype=F32))]


def _rotate(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    x, cosine, sine = inputs
    heads, dim, start = int(a["heads"]), int(a["dim"]), int(a["start"])
    found = x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
    turned, rest = found[..., start : start + dim], found[..., dim:] if not start else found[..., :0]
    half = dim // 2
    first, second = (
        (turned[..., 0::2], turned[..., 1::2]) if a["interleaved"] else (turned[..., :half], turned[..., half:])
    )
    cosine, sine = cosine[..., None, :], sine[..., None, :]
    parts = (first * cosine - second * sine, second * cosine + first * sine)
    out = np.concatenate(np.broadcast_arrays(*parts), axis=-1)
    if rest.shape[-1]:
        out = np.concatenate((out, np.broadcast_to(rest, (*out.shape[:-1], rest.shape[-1]))), axis=-1)
    return [out.reshape(*out.shape[:-2], -1)]


def visible(asked: Array, keys: Array, window: int, chunk: int) -> Array:
    """Return which keys (…, keys) the tokens at positions `asked` (…, tokens) see: (…, tokens, keys)."""
    q, k = asked[..., :, None], keys[..., None, :]
    seen = (k >= 0) & (k <= q)
    if window:
        seen &= q - k < window
    if chunk:
        seen &= q // chunk == k // chunk
    return seen


def _softmax_step(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    scores, state, asked, keys = inputs
    logits = scores * F32(a["scale"])
    cap = F32(a["softcap"])
    if cap:
        logits = cap * vector.tanh(np.divide(logits, cap, dtype=F32))
    seen = visible(asked, keys, int(a["window"]), int(a["chunk"]))
    seen = np.repeat(seen, scores.shape[-2] // seen.shape[-2], axis=-2)
    logits = np.where(seen, logits, F32(-np.inf))
    before = state[..., 0:1]
    top = np.maximum(before, logits.max(axis=-1, keepdims=True))
    base = np.where(np.isfinite(top), top, F32(0.0))
    factor = vector.exp(before - base)
    weights = vector.exp(logits - base)
    total = state[..., 1:2] * factor + row_sum(weights)
    return [weights, np.concatenate(np.broadcast_arrays(top, total, factor), axis=-1)]


def _softmax_scale(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    return [inputs[0] * inputs[1][..., 2:3]]


def _softmax_end(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    sums, state = inputs[0], inputs[1]
    top, total = state[..., 0:1], state[..., 1:2]
    if len(inputs) > 2:
        sink = inputs[2]
        sink = np.tile(sink, (1, sums.shape[-2] // sink.shape[-1]))[..., None]
        higher = np.maximum(top, sink)
        factor = vector.exp(top - higher)
        sums, total = sums * factor, total * factor + vector.exp(sink - higher)
    return [np.divide(sums, total, out=np.zeros(np.broadcast_shapes(sums.shape, total.shape), F32), where=total > 0)]


def _softmax_merge(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    heads = int(a["heads"])
    parts, states = (x.reshape(*x.shape[:-1], heads, -1) for x in inputs[:2])
    tops = states[..., 0:1]
    top = tops.max(axis=1, keepdims=True)
    base = np.where(np.isfinite(top), top, F32(0.0))
    factors = vector.exp(tops - base)
    sums = _reduce([parts * factors], a)[0]
    total = _reduce([states[..., 1:2] * factors], a)[0]
    if len(inputs) > 2:
        sink = inputs[2][:, None, :, None]
        higher = np.maximum(top[:, 0], sink)
        factor = vector.exp(base[:, 0] - higher)
        sums, total = sums * factor, total * factor + vector.exp(sink - higher)
    out = np.divide(sums, total, out=np.zeros(np.broadcast_shapes(sums.shape, total.shape), F32), where=total > 0)
    return [out.reshape(*out.shape[:-2], -1)]


def _route(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    logits = inputs[0]
    more = list(inputs[1:])
    if a["bias"]:
        logits = logits + _aligned(more.pop(0), logits)
    if a["scoring"] == "sigmoid":
        scores = vector.sigmoid(logits)
    else:
        raised = vector.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = raised / row_sum(raised)
    wanted = scores + _aligned(more.pop(0), scores) if a["correction"] else scores
    groups = int(a["groups"])
    if groups > 1:
        grouped = wanted.reshape(*wanted.shape[:-1], groups, -1)
        best = np.sort(grouped, axis=-1)[..., -2:]
        kept = _best(best[..., 0] + best[..., 1], int(a["top_groups"]))
        wanted = np.where(kept[..., None], grouped, F32(-np.inf)).reshape(wanted.shape)
    chosen = _best(wanted, int(a["top_k"]))
    weights = np.where(chosen, scores, F32(0.0))
    if a["normalise"]:
        weights = weights / row_sum(weights)
    return [weights * F32(a["scale"])]


def _best(values: Array, count: int) -> Array:
    """Where the `count` largest of the last axis are, the lower index first among equals."""
    order = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    found = np.zeros(values.shape, bool)
    np.put_along_axis(found, order, True, axis=-1)
    return found


def _scatter_add(inputs: Sequence[Array], a: Attributes) -> list[Array]:
    total, found, scale = inputs
    return [total + scale[..., None] * found]


FUNCTIONS: dict[str, Function] = {
    "copy": _copy,
    "scale": _scale,
    "add": _add,
    "reduce": _reduce,
    "norm": _norm,
    "gate": _gate,
    "activate": _activate,
    "softcap": _softcap,
    "rotate": _rotate,
    "softmax_step": _softmax_step,
    "softmax_scale": _softmax_scale,
    "softmax_end": _softmax_end,
    "softmax_merge": _softmax_merge,
    "route": _route,
    "scatter_add": _scatter_add,
}
"""The meaning of every elementwise instruction."""
