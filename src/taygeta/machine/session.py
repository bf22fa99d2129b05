"""A model at work on simulated chips: prompts in chunks, tokens one by one, the KV cache handed from step to step.

Programs are made for chunks of at most `CHUNK` new tokens and for contexts that grow in powers of two, as they are
needed, and are shared by sessions of the same model, formats and chip in this process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.compiler.compile import Compiled, compile_graph
from taygeta.compiler.target import target
from taygeta.frontend.checkpoint import open_checkpoint
from taygeta.frontend.weights import load_weights
from taygeta.graph.build import build
from taygeta.graph.meaning import AddNorm
from taygeta.graph.ops import Graph, Op
from taygeta.machine.checks import Checker
from taygeta.machine.constants import BUDGET, Constants
from taygeta.machine.executed import Machine, Observer
from taygeta.machine.steps import tables_of
from taygeta.spec.deployment import Deployment

CHUNK = 256
"""New tokens of a sequence in one step of its prompt."""

LEAST_ROOM = 32
"""Tokens of the shortest context that a program is made for."""

PROGRAMS = 64
MOST_SEQUENCES = 64

Weights = Mapping[tuple[int | None, str], np.ndarray]

_programs: OrderedDict[Any, Compiled] = OrderedDict()


def checkpoint_weights(directory: str | Path, deployment: Deployment) -> Weights:
    """Return the parameters of a local checkpoint of a deployment's model; every name and shape is checked.

    A checkpoint of more than 8 GB in bf16 is refused with the sum, before anything of it is read. Raises InputError
    and UnsupportedError.
    """
    tensors = open_checkpoint(directory)
    tensors.check_size()
    return load_weights(deployment.model, tensors, str(directory))


@dataclass(frozen=True)
class Ran:
    """One step that was executed. context, new: of the longest sequence. lists: lengths of the lists of tokens of its
    experts, one for each layer that has experts.
    """

    compiled: Compiled
    context: int
    new: int
    lists: tuple[tuple[int, ...], ...] = ()


class Session:
    """Sequences on the chips of a deployment. capacity: tokens of each that the KV cache holds.

    context: cached tokens of each sequence. machine: what ran last. steps: what has been executed. checker: looks on.
    every: logits follow every new token of the one sequence, not only the last. Raises InputError, UnsupportedError (a
    chip without tiles, a layer without a program) and DoesNotFitError.
    """

    def __init__(
        self, deployment: Deployment, weights: Weights, capacity: int, sequences: int = 1, chunk: int = CHUNK,
        every: bool = False, budget: int = BUDGET, checker: Checker | None = None,
    ) -> None:  # fmt: skip
        check_deployment(deployment)
        limit = deployment.model.max_context
        if not 1 <= sequences <= MOST_SEQUENCES:
            raise InputError(f"A session has 1 to {MOST_SEQUENCES} sequences, not {sequences}.")
        if not 1 <= capacity <= limit:
            raise InputError(
                f"The KV cache must hold 1 to {limit:,} tokens, the context of {deployment.model.name}, not"
                f" {capacity:,}."
            )
        self.deployment, self.sequences = deployment, sequences
        graph = build(deployment.model, deployment.formats)
        self.every, self.graph = every, everywhere(graph) if every else graph
        self.capacity, self.chunk = capacity, min(chunk, capacity)
        self.rows = capacity
        self.rows = self._program(1, capacity - 1).capacity
        self.constants = Constants(weights, deployment.chip.tiles.scale_rule, budget)
        self.checker = checker
        self.observe: Observer | None = None
        self.steps: list[Ran] = []
        self._compiled: dict[tuple[int, int], Compiled] = {}
        if checker is not None:
            self.constants.watch = checker.watch
        self.context = [0] * sequences
        self.machine: Machine | None = None
        self._machines: dict[int, Machine] = {}

    def _program(self, new: int, context: int) -> Compiled:
        return program(self.deployment, self.graph, self.sequences, new, context, self.rows, self.chunk)

    def program(self, new: int, context: int) -> Compiled:
        """Return the program that adds up to `new` tokens to sequences of up to `context` cached ones."""
        step = min(_doubled(1, new), self.chunk, self.rows - context)
        room = min(_doubled(LEAST_ROOM, context + step), self.rows)
        if (step, room) not in self._compiled:
            self._compiled[step, room] = self._program(step, room - step)
        return self._compiled[step, room]

    def extend(self, new: Sequence[Sequence[int]]) -> np.ndarray:
        """Add tokens to every sequence, a prompt in chunks; returns the logits (sequences, vocab) after the last.

        Where a sequence has fewer than others, its last token is computed again, which changes nothing. Raises
        InputError for a sequence without tokens, or with more than its KV cache holds.
        """
        if len(new) != self.sequences or not all(len(tokens) for tokens in new):
            raise InputError(f"A step adds at least one token to each of the {self.sequences} sequences.")
        for context, tokens in zip(self.context, new, strict=True):
            check_length(context + len(tokens), self.capacity, self.deployment)
        rest = [list(tokens) for tokens in new]
        last = [0] * self.sequences
        logits: np.ndarray | None = None
        while logits is None or any(rest):
            parts, starts = [], []
            most = min(self.chunk, self.rows - max(self.context))
            for s in range(self.sequences):
                part, rest[s] = rest[s][:most], rest[s][most:]
                starts.append(self.context[s] if part else self.context[s] - 1)
                parts.append(part or [last[s]])
                last[s] = parts[s][-1]
                self.context[s] = starts[s] + len(parts[s])
            logits = self.step(parts, starts)
        return logits

    def step(self, new: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """Run one program: at most `chunk` new tokens of each sequence after its cached ones; returns the logits."""
        compiled = self.program(max(map(len, new)), max(contexts))
        machine = self._machine(compiled)
        machine.multiplier.checker, machine.observe = self.checker, self.observe
        logits = machine.run(tables_of(compiled, new, contexts))
        if self.every:
            logits = machine.logits(len(new[0]))
        lists = tuple(tuple(int(n) for n in found) for found in machine.lists)
        self.steps.append(Ran(compiled, max(contexts), max(map(len, new)), lists))
        return logits

    def _machine(self, compiled: Compiled) -> Machine:
        """The machine of a program, with the KV cache as the last one left it."""
        known = self._machines.get(id(compiled))
        if known is None:
            known = self._machines[id(compiled)] = Machine(compiled, self.constants, self.machine)
            if self.machine is not None and self.machine.compiled.new != compiled.new:
                self.constants.make_room()
        elif self.machine is not None and self.machine is not known:
            known.take(self.machine)
        self.machine = known
        return known


def everywhere(graph: Graph) -> Graph:
    """Return a graph whose head gives logits after every new token: to score a text in few steps."""

    def of(op: Op) -> Op:
        meaning = replace(op.meaning, last=False) if isinstance(op.meaning, AddNorm) else op.meaning
        slabs = [
            tuple(replace(s, axes=(("tokens", 0), *s.axes[1:])) if s.rows == "requests" else s for s in group)
            for group in (op.reads, op.writes)
        ]
        return replace(op, reads=slabs[0], writes=slabs[1], meaning=meaning)

    return replace(graph, blocks=tuple(replace(b, ops=tuple(map(of, b.ops))) for b in graph.blocks))


def _doubled(least: int, wanted: int) -> int:
    """The first of least, 2 least, 4 least, ... that is not below what is wanted."""
    while least < wanted:
        least *= 2
    return least


def program(
    deployment: Deployment, graph: Graph, sequences: int, new: int, context: int, capacity: int, reach: int
) -> Compiled:
    """Return a compiled step, from the programs of this process where it is known."""
    d = deployment
    key = (d.model, d.formats, repr(d.chip), d.parallelism, graph.blocks, sequences, new, context, capacity, reach)
    found = _programs.get(key)
    if found is None:
        found = compile_graph(graph, d, sequences, new, context, capacity, reach=reach)
        _programs[key] = found
        while len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return found


def check_deployment(d: Deployment) -> None:
    """Refuse what cannot be executed before any weight is read. Raises InputError and UnsupportedError."""
    target(d.chip)
    p = d.parallelism
    for word, value in (("pp", p.pp), ("dp", p.dp), ("cp", p.cp)):
        if value > 1:
            raise UnsupportedError(
                f"Programs are made for tensor parallelism; {word}={value} is not compiled: use {word}=1."
            )
    if d.chips != p.tp:
        raise UnsupportedError(
            f"A program runs on the chips of one replica: give --chip {d.chip.id}:{p.tp} for tp={p.tp}, not"
            f" {d.chips} chips."
        )
    if d.model.arithmetic is None:
        raise UnsupportedError(
            f"{d.model.name} can be predicted and not executed: its configuration does not say all of its arithmetic,"
            " or a layer of it is not compiled."
        )


def check_length(tokens: int, capacity: int, d: Deployment) -> None:
    """Refuse more tokens than a KV cache holds. Raises InputError."""
    if tokens > capacity:
        raise InputError(
            f"{tokens:,} tokens exceed the {capacity:,} that the KV cache of this session holds; the context of"
            f" {d.model.name} is {d.model.max_context:,} tokens."
        )
