"""The functions that meanings are made of, on NumPy arrays in fp32: norms, rotation, attention, gates, routing."""

from __future__ import annotations

from math import erf

import numpy as np

from taygeta.graph.meaning import Route
from taygeta.spec.arithmetic import GateRule, NormRule, Rope


def norm(x: np.ndarray, weight: np.ndarray, rule: NormRule) -> np.ndarray:
    """Return an array normalised over its last axis; weight: (n,), or (1 or 2, n) with the scale and the shift."""
    scale, shift = (weight[0], weight[1:]) if weight.ndim == 2 else (weight, weight[:0])
    if rule.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(rule.eps))
    out = x * (scale + np.float32(rule.offset))
    return out + shift[0] if len(shift) else out


def rotate(x: np.ndarray, positions: np.ndarray, rope: Rope) -> np.ndarray:
    """Return (tokens, [heads,] dim) with the first rope.dim elements of the last axis turned by their positions."""
    angles = positions[:, None].astype(np.float32) * np.asarray(rope.frequencies(), np.float32)
    shape = (len(positions), *(1,) * (x.ndim - 2), angles.shape[1])
    cosine, sine = (
        (f(angles) * np.float32(rope.magnitude)).astype(np.float32).reshape(shape) for f in (np.cos, np.sin)
    )
    turned, rest = x[..., : rope.dim], x[..., rope.dim :]
    half = rope.dim // 2
    a, b = (turned[..., 0::2], turned[..., 1::2]) if rope.interleaved else (turned[..., :half], turned[..., half:])
    return np.concatenate((a * cosine - b * sine, b * cosine + a * sine, rest), axis=-1)


def softmax_attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    chunk: int = 0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Return (new, heads, v_dim): causal attention of the last `new` tokens of one sequence over all its keys.

    queries: (new, heads, dim); keys: (context, kv_heads, dim); values: (context, kv_heads, v_dim); sinks: (heads,).
    Window, chunk, softcap and sinks as taygeta.graph.meaning.Attend says.
    """
    new, heads, dim = queries.shape
    context, kv_heads, _ = keys.shape
    group = heads // kv_heads
    q = queries.reshape(new, kv_heads, group, dim).transpose(1, 2, 0, 3).reshape(kv_heads, group * new, dim)
    logits = (q @ keys.transpose(1, 2, 0)).reshape(kv_heads, group, new, context) * np.float32(scale)
    if softcap:
        logits = np.float32(softcap) * np.tanh(logits / np.float32(softcap))
    at, seen = np.arange(context - new, context)[:, None], np.arange(context)[None, :]
    visible = seen <= at
    if window:
        visible &= at - seen < window
    if chunk:
        visible &= at // chunk == seen // chunk
    logits = np.where(visible, logits, np.float32(-np.inf))
    top = logits.max(axis=-1, keepdims=True)
    sink = None if sinks is None else sinks.reshape(kv_heads, group, 1, 1)
    if sink is not None:
        top = np.maximum(top, sink)
    weights = np.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    weights = (weights / total).reshape(kv_heads, group * new, context)
    out = (weights @ values.transpose(1, 0, 2)).reshape(kv_heads, group, new, values.shape[-1])
    return out.transpose(2, 0, 1, 3).reshape(new, heads, values.shape[-1])


def gate(x: np.ndarray, rule: GateRule) -> np.ndarray:
    """Return the activation of (rows, ways, width), or of (rows, 1, width) where it is not gated, as (rows, width)."""
    if not rule.gated:
        return activation(x[:, 0], rule)
    first, second = x[:, 0], x[:, 1]
    if rule.limit:
        limit = np.float32(rule.limit)
        first, second = np.minimum(first, limit), np.clip(second, -limit, limit)
    return activation(first, rule) * (second + np.float32(rule.shift))


def activation(x: np.ndarray, rule: GateRule) -> np.ndarray:
    """Return the activation of every element."""
    return _ACTIVATIONS[rule.activation](x, np.float32(rule.alpha))


def _silu(x: np.ndarray, alpha: np.float32) -> np.ndarray:
    return x * sigmoid(alpha * x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def _gelu(x: np.ndarray, alpha: np.float32) -> np.ndarray:
    spread = np.asarray(np.frompyfunc(erf, 1, 1)(x.astype(np.float64) / np.sqrt(2.0)), dtype=np.float64)
    return (0.5 * x * (1.0 + spread)).astype(x.dtype)


def _gelu_tanh(x: np.ndarray, alpha: np.float32) -> np.ndarray:
    inner = np.float32(np.sqrt(2.0 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1.0) + np.tanh(inner))


def _relu(x: np.ndarray, alpha: np.float32) -> np.ndarray:
    return np.maximum(x, np.float32(0))


def _relu2(x: np.ndarray, alpha: np.float32) -> np.ndarray:
    return np.square(np.maximum(x, np.float32(0)))


_ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": _relu, "relu2": _relu2}


def route(
    a: Route, logits: np.ndarray, bias: np.ndarray | None, correction: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (tokens, top_k) and the experts (tokens, top_k) of every token, best first."""
    if bias is not None:
        logits = logits + bias
    if a.scoring == "sigmoid":
        scores = sigmoid(logits)
    else:
        raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = raised / raised.sum(axis=-1, keepdims=True)
    wanted = scores if correction is None else scores + correction
    if a.groups > 1:
        grouped = wanted.reshape(len(wanted), a.groups, -1)
        merit = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)
        kept = np.zeros_like(merit, dtype=bool)
        np.put_along_axis(kept, _best(merit, a.top_groups), True, axis=-1)
        wanted = np.where(kept[..., None], grouped, np.float32(-np.inf)).reshape(wanted.shape)
    chosen = _best(wanted, a.top_k)
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if a.normalise:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights * np.float32(a.scale), chosen


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest along the last axis, the lower index first among equals."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]
