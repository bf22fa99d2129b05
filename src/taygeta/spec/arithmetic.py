"""The arithmetic of a model that shapes do not show: rotary positions, norms, gates, scales.

Predictions do not depend on it; execution does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, log, pi


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `dim` elements of a head (RoFormer, arXiv 2104.09864).

    kind: "default", "linear" (all angles divided by factor), "llama3" (Llama 3.1: long wavelengths divided, with a
    smooth step from `low` to `high` turns in the original context) or "yarn" (arXiv 2309.00071: a ramp between the
    pairs that turn beta_fast and beta_slow times in the original context). original: the context before it was
    stretched. magnitude: what sines and cosines are multiplied by. interleaved: pairs are neighbours and the turned
    elements are stored as two halves (DeepSeek), else element i pairs with i + dim / 2. truncate: yarn's ramp starts
    and ends at whole pairs.
    """

    dim: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    magnitude: float = 1.0
    interleaved: bool = False

    def frequencies(self) -> tuple[float, ...]:
        """Return the angle in radians that each of dim / 2 pairs turns from one position to the next."""
        return _frequencies(self)


@dataclass(frozen=True)
class NormRule:
    """A normalisation over the last axis.

    kind: "rms" (x / sqrt(mean(x^2) + eps)) or "layer" (the mean is subtracted before). The result is multiplied by the
    parameter's scale plus `offset` (Gemma: 1). A parameter of axes (scale_and_shift, n) has the scale in row 0 and,
    for "layer", the shift in row 1; a parameter of axes (n,) is the scale.
    """

    kind: str = "rms"
    eps: float = 1e-6
    offset: float = 0.0


@dataclass(frozen=True)
class GateRule:
    """What is between the two matrices of a feed-forward block.

    gated: of the two ways of the input, way 0 is the gate: y = f(gate) * (up + shift), else y = f(x). activation:
    "silu", "gelu" (with erf), "gelu_tanh", "relu" or "relu2". limit (0: none): the gate is at most limit and up within
    +-limit before. alpha: silu is x * sigmoid(alpha x). gpt-oss: limit 7, alpha 1.702, shift 1.
    """

    activation: str
    gated: bool = True
    limit: float = 0.0
    alpha: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Arithmetic:
    """What holds for the whole model.

    family: the model_type of its configuration, which names the tensors of its checkpoints. norm: every norm over
    d_model. embedding_scale: embeddings are multiplied by it. logit_softcap (0: none): logits are
    cap * tanh(logits / cap).
    """

    family: str
    norm: NormRule
    embedding_scale: float = 1.0
    logit_softcap: float = 0.0


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """Return yarn's growth of magnitudes with the stretch of the context: 0.1 scale ln(factor) + 1."""
    return 0.1 * scale * log(factor) + 1.0 if factor > 1.0 else 1.0


@lru_cache(maxsize=256)
def _frequencies(r: Rope) -> tuple[float, ...]:
    plain = [r.theta ** (-2.0 * i / r.dim) for i in range(r.dim // 2)]
    if r.kind == "linear":
        return tuple(f / r.factor for f in plain)
    if r.kind == "llama3":
        return tuple(_llama3(r, f) for f in plain)
    if r.kind == "yarn":
        low, high = (_pair_that_turns(r, turns) for turns in (r.beta_fast, r.beta_slow))
        if r.truncate:
            low, high = floor(low), ceil(high)
        low, high = max(low, 0), min(high, r.dim - 1)
        width = high - low or 0.001  # transformers' guard against a ramp of no width
        shares = [min(max((i - low) / width, 0.0), 1.0) for i in range(len(plain))]
        return tuple(f / r.factor * s + f * (1.0 - s) for f, s in zip(plain, shares, strict=True))
    return tuple(plain)


def _llama3(r: Rope, frequency: float) -> float:
    turns = r.original * frequency / (2 * pi)
    if turns < r.low:
        return frequency / r.factor
    if turns >= r.high:
        return frequency
    smooth = (turns - r.low) / (r.high - r.low)
    return (1.0 - smooth) * frequency / r.factor + smooth * frequency


def _pair_that_turns(r: Rope, turns: float) -> float:
    """The index, not whole, of the pair that turns so often in the original context."""
    return r.dim * log(r.original / (turns * 2 * pi)) / (2 * log(r.theta))
