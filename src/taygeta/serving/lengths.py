"""How long requests are: distributions of whole numbers, of tokens mostly, each with its mean in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from taygeta.base.errors import InputError
from taygeta.serving.traffic import MAX_TOKENS

BENCHMARK_LOW = 0.8
"""Least share of the nominal length in the public serving benchmarks (InferenceX: random-range-ratio 0.8)."""


@dataclass(frozen=True)
class Fixed:
    """Every length the same."""

    tokens: int

    def __post_init__(self) -> None:
        _check_tokens(self.tokens, "A fixed length")

    @property
    def mean(self) -> float:
        """The mean, which is the length."""
        return float(self.tokens)

    def draw(self, random: Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""
        return np.full(count, self.tokens, np.int64)


@dataclass(frozen=True)
class Uniform:
    """Every whole number from `low` x `tokens`, rounded down, to `tokens` as often as any other.

    This is the random dataset of vLLM's benchmark_serving, whose random-range-ratio is `low`.
    """

    tokens: int
    low: float = BENCHMARK_LOW

    def __post_init__(self) -> None:
        _check_tokens(self.tokens, "The nominal length")
        if not 0.0 <= self.low <= 1.0:
            raise InputError(f"The least share of a nominal length must be 0 to 1, not {self.low:g}.")

    @property
    def least(self) -> int:
        """The smallest length."""
        return max(1, int(self.tokens * self.low))

    @property
    def mean(self) -> float:
        """Half way between the smallest length and the largest."""
        return (self.least + self.tokens) / 2

    def draw(self, random: Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""
        return random.integers(self.least, self.tokens, count, np.int64, endpoint=True)


@dataclass(frozen=True)
class LogNormal:
    """Lengths whose logarithm is normal with deviation `sigma`, rounded, at least 1 and at most `cap`.

    What exceeds the cap is cut to it, as a limit of the context or of the answer does.
    """

    median: float
    sigma: float
    cap: int = MAX_TOKENS

    def __post_init__(self) -> None:
        if not 0.5 <= self.median <= MAX_TOKENS:
            raise InputError(f"The median of a length must be 1 to {MAX_TOKENS:,} tokens, not {self.median:g}.")
        _check_sigma(self.sigma)
        _check_tokens(self.cap, "The cap of a length")

    @classmethod
    def of(
        cls,
        median: float | None = None,
        mean: float | None = None,
        sigma: float | None = None,
        p90: float | None = None,
        cap: int = MAX_TOKENS,
    ) -> LogNormal:
        """Return the distribution with a median or a mean, a sigma or a 90th percentile, all of them before the cap.

        Raises InputError, also where no log-normal has that mean and 90th percentile: at most 2.27 times the mean.
        """
        centre = median if mean is None else mean
        if (median is None) == (mean is None) or (sigma is None) == (p90 is None) or centre is None:
            raise InputError("A log-normal length needs a median or a mean, and a sigma or a 90th percentile.")
        if not (math.isfinite(centre) and centre > 0):
            raise InputError(f"The median or mean of a length must be above 0, not {centre:g}.")
        if p90 is not None:
            sigma = _sigma(centre, p90, of_mean=median is None)
        assert sigma is not None  # noqa: S101 - for the type checker
        _check_sigma(sigma)  # its square below would hide a sign
        return cls(centre if mean is None else mean * math.exp(-(sigma**2) / 2), sigma, cap)

    @property
    def mean(self) -> float:
        """The mean, the cut at the cap included; rounding and the least length of 1 left out.

        E[min(X, c)] = m exp(s^2/2) F(d - s) + c (1 - F(d)) with d = ln(c/m)/s and F the normal distribution function.
        """
        if self.sigma == 0.0:
            return min(self.median, float(self.cap))
        d = math.log(self.cap / self.median) / self.sigma
        whole = self.median * math.exp(self.sigma**2 / 2)
        return whole * _normal(d - self.sigma) + self.cap * (1 - _normal(d))

    def draw(self, random: Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""
        exponent = np.minimum(math.log(self.median) + self.sigma * random.standard_normal(count), 50.0)
        return np.clip(np.rint(np.exp(exponent)), 1, self.cap).astype(np.int64)


@dataclass(frozen=True)
class Geometric:
    """1, 2, 3, ...: each more with the same probability, so that the mean is `mean` (turns of a session)."""

    mean: float

    def __post_init__(self) -> None:
        if not 1.0 <= self.mean <= 10_000.0:
            raise InputError(f"The mean of a geometric count must be 1 to 10,000, not {self.mean:g}.")

    def draw(self, random: Generator, count: int) -> NDArray[np.int64]:
        """Return `count` counts."""
        return np.minimum(random.geometric(1 / self.mean, count), MAX_TOKENS).astype(np.int64)


@dataclass(frozen=True)
class Quantiles:
    """Lengths with published quantiles and straight lines between them.

    shares: rising from 0 to 1. tokens: the length that each share of the requests does not exceed.
    """

    shares: tuple[float, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.tokens) or len(self.shares) < 2:
            raise InputError("Quantiles of a length need a share and a number of tokens each, two or more.")
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not rising or self.shares[0] != 0.0 or self.shares[-1] != 1.0:
            raise InputError("The shares of quantiles must rise from 0 to 1.")
        if any(a > b for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise InputError("The tokens of quantiles must not fall.")
        for tokens in (self.tokens[0], self.tokens[-1]):
            _check_tokens(tokens, "A quantile of a length")

    @property
    def mean(self) -> float:
        """The mean: of each straight line, weighted with its share."""
        tokens = np.array(self.tokens)
        return float(np.diff(self.shares) @ (tokens[1:] + tokens[:-1]) / 2)

    def draw(self, random: Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""
        return np.rint(np.interp(random.random(count), self.shares, self.tokens)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Empirical:
    """Lengths drawn from measured ones, each as likely as any other."""

    values: NDArray[np.int64]

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim != 1 or not len(values) or values.dtype.kind not in "iu":
            raise InputError("Measured lengths must be one column of whole numbers, 1 or more of them.")
        if values.min() < 0 or values.max() > MAX_TOKENS:
            raise InputError(f"Measured lengths must be 0 to {MAX_TOKENS:,} tokens.")
        object.__setattr__(self, "values", values.astype(np.int64))

    @property
    def mean(self) -> float:
        """The mean of the measured lengths."""
        return float(self.values.mean())

    def draw(self, random: Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""
        return self.values[random.integers(0, len(self.values), count)]


Lengths = Fixed | Uniform | LogNormal | Geometric | Quantiles | Empirical

_Z90 = 1.2815515655446004  # 90th percentile of the standard normal distribution


def _sigma(centre: float, p90: float, of_mean: bool) -> float:
    """The deviation of the logarithm from the 90th percentile and the median, or the mean.

    With the mean M: ln(p90/M) = z s - s^2/2, of which the smaller root is meant.
    """
    if not (math.isfinite(p90) and p90 > 0):
        raise InputError(f"The 90th percentile of a length must be above 0, not {p90:g}.")
    span = math.log(p90 / centre)
    if not of_mean:
        if span < 0:
            raise InputError(f"The 90th percentile of a length ({p90:g}) must not be below its median ({centre:g}).")
        return span / _Z90
    if not 0 <= 2 * span <= _Z90**2:
        raise InputError(f"No log-normal length has a mean of {centre:g} and a 90th percentile of {p90:g} tokens.")
    return _Z90 - math.sqrt(_Z90**2 - 2 * span)


def _normal(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _check_sigma(sigma: float) -> None:
    if not 0.0 <= sigma <= 10.0:
        raise InputError(f"The deviation of the logarithm of a length must be 0 to 10, not {sigma:g}.")


def _check_tokens(tokens: int, what: str) -> None:
    if not 1 <= tokens <= MAX_TOKENS:
        raise InputError(f"{what} must be 1 to {MAX_TOKENS:,} tokens, not {tokens:,}.")
