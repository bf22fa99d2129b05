"""Numbers and nouns in the words of a person: three significant digits, ranges, one line for a deployment.

Everything here is ASCII, so that it prints on any terminal and in any file.
"""

from __future__ import annotations

import math

from taygeta.base.interval import Interval
from taygeta.graph.memory import weight_formats
from taygeta.spec.deployment import Deployment
from taygeta.spec.model import MoeFfn

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
LEAST_CHANGE = 0.0005  # a smaller relative change rounds to 0.0 %
UNBOUNDED = 1 << 30  # as many requests as one likes: a model without a cache that grows


def number(value: float) -> str:
    """Return a number with three significant digits, never in powers of ten: 1234.5 becomes '1,230'."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if (
        rounded and math.floor(math.log10(abs(rounded))) > 2 - decimals
    ):  # 9.999 rounds to 10.0, which needs a decimal less
        decimals -= 1
    return f"{rounded:,.{max(0, decimals)}f}"


def seconds(value: float) -> str:
    """Return a time with its unit: 0.01234 becomes '12.3 ms'."""
    scale, unit = _scale(value, _TIMES)
    return f"{number(value / scale)} {unit}"


def size(value: float) -> str:
    """Return bytes with their decimal unit: 1.41e11 becomes '141 GB'."""
    scale, unit = _scale(value, _BYTES)
    return f"{number(value / scale)} {unit}"


def seconds_range(i: Interval) -> str:
    """Return the range of a time in the unit of its nominal value: '10.9 to 14.1 ms'."""
    scale, unit = _scale(i.nominal, _TIMES)
    return f"{number(i.low / scale)} to {number(i.high / scale)} {unit}"


def span(i: Interval, scale: float = 1.0, to: str = "-", before: str = "") -> str:
    """Return a range in the width of a table: '10.9-14.1'; before: what precedes each number, such as '$'."""
    return f"{before}{number(i.low / scale)}{to}{before}{number(i.high / scale)}"


def percent(value: float) -> str:
    """Return a share: 0.314 becomes '31.4 %'."""
    return f"{value * 100:.1f} %"


def change(value: float) -> str:
    """Return a relative change with its sign: -0.052 becomes '-5.2 %'."""
    return f"{value * 100:+.1f} %" if abs(value) >= LEAST_CHANGE else "0.0 %"


def count(value: int, noun: str, many: str = "") -> str:
    """Return a count with its noun: '1 chip', '1,024 chips'."""
    return f"{value:,} {noun if value == 1 else many or noun + 's'}"


def requests_that_fit(room: int) -> str:
    """Return how many requests fit, for people."""
    return (
        "any number of requests fits"
        if room >= UNBOUNDED
        else f"{count(room, 'request')} {'fits' if room == 1 else 'fit'}"
    )


def chips_of(d: Deployment) -> str:
    """Return the chips of a deployment as they are typed: 'h100:8'."""
    return f"{d.chip.id}:{d.chips}"


def spread_of(d: Deployment) -> str:
    """Return the parallelism, with the replicas where there are several: '2 x (tp=4 ep=4)'."""
    return f"{d.replicas} x ({d.parallelism})" if d.replicas > 1 else str(d.parallelism)


def formats_of(d: Deployment) -> str:
    """Return the formats of weights, activations and KV cache in one line."""
    f = d.formats
    mixed = (
        any(isinstance(layer.ffn, MoeFfn) for layer, _ in d.model.kinds())
        and f.expert_activations != f.activations
    )
    activations = f"{f.expert_activations} (experts) and {f.activations}" if mixed else f.activations
    return f"weights {weight_formats(d)}; activations {activations}; KV cache {f.kv}"


def short_formats(d: Deployment) -> str:
    """Return the format of most weights: of the experts if there are any, else of the feed-forward blocks."""
    has_experts = any(isinstance(layer.ffn, MoeFfn) for layer, _ in d.model.kinds())
    return d.formats.experts if has_experts else d.formats.ffn


def _scale(value: float, scales: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    for scale, unit in scales:
        if abs(value) >= scale * 0.9995:  # 0.9999 s rounds to 1.00 s, so it is shown in seconds
            return scale, unit
    return scales[-1]
