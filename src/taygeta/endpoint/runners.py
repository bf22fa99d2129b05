"""What executes a model for text: the machine of a chip with tiles in the chip's formats, or the fp32 reference.

A chip that does not state its tiles (a GPU) has no program to run. For it the reference of `taygeta.graph.execute`
computes the text in fp32, the same for all such chips whatever their formats, and whoever shows it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from math import prod
from typing import Protocol

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.compiler.compile import Compiled
from taygeta.compiler.target import target
from taygeta.graph.build import build
from taygeta.graph.execute import run
from taygeta.graph.step import Cache
from taygeta.machine.constants import BUDGET
from taygeta.machine.session import CHUNK, Session, Weights, check_deployment
from taygeta.report.words import formats_of
from taygeta.serving.fleet import Fleet
from taygeta.spec.chip import Chip
from taygeta.spec.deployment import Deployment, Formats
from taygeta.spec.mixers import Attention, LatentAttention

Extend = Callable[[Sequence[int]], np.ndarray]
"""Adds at most CHUNK tokens to a sequence; returns the logits (vocab,) after the last."""

VALUE_BYTES = 4  # of the KV cache: values are held in fp32 here, whatever their format on the chip


class Runner(Protocol):
    """Executes one model."""

    def begin(self, tokens: int) -> Extend:
        """Return an empty sequence that holds so many tokens."""
        ...

    def size(self, tokens: int) -> int:
        """Return the bytes that a sequence holds, at most and about."""
        ...


class Tiles:
    """A chip with tiles. budget: bytes of prepared weights. Raises UnsupportedError where there is no program."""

    def __init__(self, deployment: Deployment, weights: Weights, budget: int) -> None:
        self.deployment, self.weights, self.budget = deployment, weights, budget
        new = min(CHUNK, deployment.model.max_context)
        probe = Session(deployment, weights, new, budget=budget)
        self._constants = probe.constants  # weights are rounded and prepared once for all sequences
        self._work = 2 * sum(map(_bytes_of, (probe.program(new, 0), probe.program(1, new - 1))))
        for tokens in (1 + new // 16, 1) if new > 2 else (1,):  # what is prepared now holds no answer up later
            probe.extend([[0] * tokens])

    def begin(self, tokens: int) -> Extend:
        """Return an empty sequence: a session of its own, so that its bits depend on nothing else."""
        session = Session(self.deployment, self.weights, _capacity(self.deployment, tokens), budget=self.budget)
        session.constants = self._constants

        def extend(new: Sequence[int]) -> np.ndarray:
            session.steps.clear()
            return session.extend([new])[0]

        return extend

    def size(self, tokens: int) -> int:
        """Return the bytes of its KV cache, and of what its steps work in."""
        return cache_bytes(self.deployment, _capacity(self.deployment, tokens)) + self._work


class Reference:
    """The graph in fp32. budget: bytes of weights that are kept; others are read again at each use."""

    def __init__(self, deployment: Deployment, weights: Weights, budget: int) -> None:
        d = self.deployment = deployment
        if d.model.arithmetic is None:
            why = d.model.refusal or "its configuration does not say all of its arithmetic"
            raise UnsupportedError(f"{d.model.name} can be predicted and not executed: {why}; use --text synthetic.")
        self._graph = build(d.model, Formats(*["bf16"] * len(fields(Formats))))
        self._weights = _Kept(weights, budget)
        self.begin(1)([0])

    def begin(self, tokens: int) -> Extend:
        """Return an empty sequence with a cache of its own."""
        cache = Cache()
        return lambda new: run(self._graph, self._weights, {0: new}, cache)[0]

    def size(self, tokens: int) -> int:
        """Return the bytes of its cache, and of the scores of a part of the prompt with all keys."""
        layers = self.deployment.model.layers
        heads = max(getattr(layer.mixer, "heads", 1) for layer in layers)
        return 2 * cache_bytes(self.deployment, tokens) + 3 * VALUE_BYTES * heads * min(CHUNK, tokens) * tokens


class _Kept(Mapping[tuple[int | None, str], np.ndarray]):
    """Parameters in fp32 that stay once they are read, as far as the budget goes."""

    def __init__(self, weights: Weights, budget: int) -> None:
        self._weights, self._room = weights, budget
        self._held: dict[tuple[int | None, str], np.ndarray] = {}

    def __getitem__(self, key: tuple[int | None, str]) -> np.ndarray:
        found = self._held.get(key)
        if found is None:
            found = np.asarray(self._weights[key], dtype=np.float32)
            if found.nbytes <= self._room:
                self._held[key] = found
                self._room -= found.nbytes
        return found

    def __iter__(self) -> Iterator[tuple[int | None, str]]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def runner(deployment: Deployment, weights: Weights, budget: int = BUDGET) -> Runner:
    """Return what executes the text of a deployment. Raises InputError and UnsupportedError."""
    if not has_tiles(deployment.chip):
        return Reference(deployment, weights, budget)
    check_deployment(deployment)
    return Tiles(deployment, weights, budget)


def has_tiles(chip: Chip) -> bool:
    """Return whether programs can be compiled for a chip."""
    try:
        target(chip)
    except UnsupportedError:
        return False
    return True


def said_of(deployment: Deployment) -> str:
    """Return how the text of a deployment is executed, for people."""
    if has_tiles(deployment.chip):
        return f"text executed in the chip's formats ({formats_of(deployment)})"
    return f"text computed in fp32, not in the chip's formats ({deployment.chip.id} does not state its tiles)"


def deployment_of(fleet: Fleet) -> Deployment:
    """Return the one deployment that computes the text of a fleet: of one replica, as all compute the same.

    Raises UnsupportedError for pools that would compute different bits.
    """
    found = [replace(pool.deployment, chips=pool.deployment.parallelism.chips) for pool in fleet.pools]
    first = found[0]
    for other in found[1:]:
        if (other.chip.id, other.formats, other.parallelism.tp) != (
            first.chip.id, first.formats, first.parallelism.tp,
        ):  # fmt: skip
            raise UnsupportedError(
                f"The pools of this fleet compute different values ({first.chip.id} and {other.chip.id}, or other"
                " formats or tp), so that its text has no one source: use --text synthetic, or serve them side by side"
                " with --beside."
            )
    return first


def cache_bytes(deployment: Deployment, tokens: int) -> int:
    """Return the bytes that the KV cache of a sequence of so many tokens takes here. Raises UnsupportedError."""
    total = 0
    for layer in deployment.model.layers:
        if not isinstance(layer.mixer, Attention | LatentAttention):
            raise UnsupportedError(f"{deployment.model.name} has layers without attention, which are not executed.")
        total += layer.mixer.cache_elements()
    return VALUE_BYTES * total * tokens


def longest(deployment: Deployment, room: int) -> int:
    """Return the longest context whose KV cache fits `room` bytes: the model's, or less. Raises InputError."""
    each = cache_bytes(deployment, 1)
    if room < 2 * each:
        raise InputError(f"The KV cache of {deployment.model.name} takes {each:,} bytes a token: {room:,} hold none.")
    return min(deployment.model.max_context, room // max(1, each))


def _capacity(deployment: Deployment, tokens: int) -> int:
    """The KV cache of a sequence: of few different sizes, as programs are made for each."""
    return min(max(CHUNK, 1 << (tokens - 1).bit_length()), deployment.model.max_context)


def _bytes_of(compiled: Compiled) -> int:
    """Bytes of what a program works in, beside weights and KV cache."""
    own = [b for b in compiled.program.buffers if b.space != "sram" and b.role not in ("constant", "state")]
    return VALUE_BYTES * compiled.program.chips * sum(prod(b.shape) for b in own)
