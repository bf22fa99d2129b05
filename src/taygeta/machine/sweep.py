"""The co-design table: pairs of weight and activation formats, each with what it does to answers, speed and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from taygeta.base.formats import FORMATS, format_of
from taygeta.graph.build import build
from taygeta.machine.quality import Quality, Windows, chip_logits, quality
from taygeta.machine.routing import expected_routing
from taygeta.machine.session import Session, Weights
from taygeta.machine.timed import time_program
from taygeta.numerics.schemes import ALIASES, SCHEMES
from taygeta.spec.chip import MODES_OF, Chip
from taygeta.spec.deployment import Deployment

WIDE_MODES = ("bf16", "fp32", "tf32")


@dataclass(frozen=True)
class Row:
    """One pair of formats. mode: the arithmetic of its multiplies. seconds: of one token of one sequence, timed, at
    the context of the text. bytes: of the weights of all chips. right: answers that are right; None: none was asked.
    """

    weights: str
    activations: str
    mode: str
    quality: Quality
    seconds: float
    bytes: float
    right: int | None = None


def format_pairs(chip: Chip) -> tuple[tuple[str, str], ...]:
    """Return pairs of weight and activation formats that a chip computes, widest first.

    Weights: formats that one of its narrow modes holds, and bf16. Activations: formats that it multiplies as they
    are, no narrower than the weights.
    """
    known = [f for f in FORMATS.values() if f.name in SCHEMES or f.name in ALIASES]
    weights = [f for f in known if f.name == "bf16" or _narrow(chip, f.name)]
    activations = [f for f in known if chip.computes(f.name) and f.name not in ("fp32", "fp16", "fp8_static")]
    pairs = [
        (w.name, a.name)
        for w in weights
        for a in activations
        if w.name not in ("fp8_static", "fp32", "fp16") and a.bits >= w.bits and _as_it_is(chip, w.name, a.name)
    ]
    return tuple(sorted(pairs, key=lambda p: (-_bits(p[0]), -_bits(p[1]), p)))


def _bits(name: str) -> float:
    return format_of(name).bytes_per_element


def _narrow(chip: Chip, name: str) -> bool:
    mode = next((m for m in MODES_OF[name] if m in chip.peaks), "fp32")
    return mode not in WIDE_MODES


def _as_it_is(chip: Chip, weights: str, activations: str) -> bool:
    """Whether the mode of a pair multiplies these activations as they are; else the pair is one with wider ones."""
    return chip.mode(weights, activations) == MODES_OF[activations][0]


def measure(
    d: Deployment, parameters: Weights, windows: Windows, reference: Sequence[np.ndarray],
    right: Callable[[Deployment], int] | None = None,
) -> Row:  # fmt: skip
    """Execute a text in the formats of a deployment, and time one token on the chip.

    right: asks questions of a deployment, and counts the right answers.
    """
    longest = max(map(len, windows))
    session = Session(d, parameters, longest, every=True)
    found = quality(chip_logits(session, windows), reference, windows)
    decode = Session(d, parameters, longest).program(1, longest - 1)
    timed = time_program(decode.program, decode.target, expected_routing(decode, d.model, d.skew), spans=0)
    size = build(d.model, d.formats).weight_bytes()
    mode = d.chip.mode(d.formats.ffn, d.formats.activations)
    asked = None if right is None else right(d)
    return Row(d.formats.ffn, d.formats.activations, mode, found, timed.seconds, size, asked)


def pareto(rows: Sequence[Row]) -> set[int]:
    """Return the rows that no other is at least as good as in KL, seconds and bytes, and better in one."""
    points = [(r.quality.kl, r.seconds, r.bytes) for r in rows]

    def beaten(p: tuple[float, ...]) -> bool:
        return any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)

    return {i for i, p in enumerate(points) if not beaten(p)}
