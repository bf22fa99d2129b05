"""Sums over chips: bit for bit those of a NumPy model, proved, near what one chip computes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from compiled import LAB, deployed, reducing, weights_of, without

from taygeta.base.errors import InputError
from taygeta.compiler import experts, linear, reduce
from taygeta.compiler.compile import Compiled, compile_graph
from taygeta.compiler.functions import FUNCTIONS
from taygeta.compiler.normed import Normed
from taygeta.compiler.program import Loop, Phase
from taygeta.compiler.text import parse, show
from taygeta.compiler.verify import ProgramError, verify
from taygeta.graph import meaning as m
from taygeta.graph.build import build
from taygeta.graph.ops import Graph, Op
from taygeta.machine.bounds import program_bounds
from taygeta.machine.constants import Constants
from taygeta.machine.executed import Machine
from taygeta.machine.routing import expected_routing
from taygeta.machine.steps import tables_of
from taygeta.machine.timed import time_program
from taygeta.numerics import TensorUnit, cast, matmul
from taygeta.spec.catalog import chip

MODELS = ("llama", "gpt2", "gpt_oss", "deepseek_v3")
NEW = 12


@cache
def step(name: str, requests: int, new: int, context: int, chips: int, pieces: bool, fmt: str = "mx9") -> Compiled:
    """A reduce-based step; pieces: every chip adds up a share of the columns, which are gathered."""
    d = reducing(name, chips, fmt)
    with pytest.MonkeyPatch.context() as patch:
        for module in (linear, experts, reduce):
            patch.setattr(module, "pieces_of", lambda c, rows, width: c.chips if pieces else 1)
        return compile_graph(build(d.model, d.formats), d, requests, new, context)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 40, 4), (2, 12, 20, 2)])
@pytest.mark.parametrize("name", [*MODELS, "gemma2"])
def test_sums_over_chips_are_proved_read_back_and_bounded(name, sizes, pieces):
    compiled = step(name, *sizes, pieces)
    verify(compiled.program)
    assert parse(show(compiled.program)) == compiled.program
    routing = expected_routing(compiled, deployed(name, sizes[3]).model, 1.01)
    timed = time_program(compiled.program, compiled.target, routing)
    bounds = program_bounds(compiled.program, compiled.target, routing)
    assert bounds.lower <= timed.cycles * (1 + 1e-12)
    assert timed.cycles <= bounds.upper * (1 + 1e-12)


@pytest.mark.parametrize("pieces", [False, True])
def test_what_a_sum_over_chips_needs_cannot_be_left_out(pieces):
    """Every wait, signal, send, transfer and addition, dropped: the program is refused.

    Not: waits for slots that are free at first, and what the residual stream is given in place of what it had.
    """
    program = step("llama", 2, 12, 20, 2, pieces).program
    listing = list(program.instructions())
    adds = [n for n, i in enumerate(listing) if i.kind == "reduce"]
    assert len(adds) == 2
    chosen: list[int] = []
    for at in adds:
        ready = [n for n in range(at) if listing[n].kind == "signal" and listing[n].semaphore == "ready"]
        done = [n for n in range(at, len(listing)) if listing[n].kind == "signal" and listing[n].semaphore == "done"]
        for n in range(ready[-1], done[0] + 1):
            i = listing[n]
            free = i.kind == "wait" and ".free" in i.semaphore
            if not free and not any(o.buffer.startswith("delta") for o in i.outputs):
                chosen.append(n)
    assert len(chosen) > 20
    for number in chosen:
        with pytest.raises(ProgramError):
            verify(without(program, number))


class Run:
    """One prompt step executed, with every value that the program keeps, by (layer, name)."""

    def __init__(self, compiled: Compiled, graph: Graph) -> None:
        self.compiled, self.weights = compiled, weights_of(graph)
        self.values: dict[tuple[int | None, str], np.ndarray] = {}
        self.everywhere: list[list[np.ndarray]] = []  # of every sum over chips, what each chip holds
        self.machine = Machine(compiled, Constants(self.weights, "floor"))
        self.now: list[tuple[int, dict[str, int]]] = []
        phases = [id(item) for item in _phases(compiled.program.body)]
        self.number = {phase: n for n, phase in enumerate(phases, 1)}
        self.machine.observe = self.see
        tokens = np.random.default_rng(6).integers(3, 90, (compiled.requests, NEW)).tolist()
        self.logits = self.machine.run(tables_of(compiled, tokens, [0] * compiled.requests))

    def see(self, phase, loops) -> None:
        for number, turn in self.now:
            for finished in (f for f in self.compiled.finished if f.phase == number):
                visits = finished.visits
                layer = self.compiled.layers[visits.block][visits.first + visits.each * turn.get("layer", 0)]
                for name, held in finished.values:
                    if held.buffers:
                        rows = self.compiled.requests * NEW
                        self.values[layer, name] = self.machine.value(held, rows).copy()
                    if name in ("mixer", "ffn"):
                        all_chips = self.machine.value(replace(held, local=True), rows).copy()
                        self.everywhere.append(np.split(all_chips, self.compiled.program.chips, axis=1))
        self.now = [] if phase is None else [(self.number[id(phase)], dict(loops))]


def _phases(body):
    for item in body:
        if isinstance(item, Loop):
            yield from _phases(item.body)
        elif isinstance(item, Phase):
            yield item


class Oracle:
    """What chips compute of a sum that is split, in NumPy: every chip's part, then the parts from chip 0 on."""

    def __init__(self, run: Run, chips: int, fmt: str) -> None:
        self.run, self.chips, self.fmt = run, chips, fmt
        self.unit = TensorUnit(run.compiled.target.tensor(fmt).lanes, "fp32", "tree")
        self.layer: int | None = None

    def rounded(self, x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        return x if self.fmt == "fp32" else cast(x, self.fmt)

    def weight(self, name: str) -> np.ndarray:
        return self.run.weights[self.layer, name]

    def product(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return matmul(self.rounded(x)[None], self.rounded(weight.T)[None], self.unit)[0]

    def shared(self, op: Op, a: m.Linear, number: int) -> np.ndarray:
        x = self.run.values[self.layer, op.inputs[0]]
        weight = self.weight(a.weights[0]).reshape(x.shape[1], -1)
        own = x.shape[1] // self.chips
        found = self.product(x[:, number * own : (number + 1) * own], weight[number * own : (number + 1) * own])
        return found + self.weight(a.bias) if a.bias and number == 0 else found

    def experts(self, op: Op, a: m.Experts, number: int) -> np.ndarray:
        x, routing = (self.run.values[self.layer, name] for name in op.inputs[:2])
        up, down = self.weight(a.up), self.weight(a.down)
        own = down.shape[1] // self.chips
        here = slice(number * own, (number + 1) * own)
        total = np.zeros((len(x), down.shape[2]), np.float32)
        for expert in range(len(up)):
            tokens = np.flatnonzero(routing[:, expert])
            if not len(tokens):
                continue
            found = self.product(x[tokens], up[expert][..., here].reshape(x.shape[1], -1))
            if a.up_bias:
                found = found + self.weight(a.up_bias)[expert].reshape(up.shape[2], -1)[:, here].reshape(-1)
            r = a.rule
            rule = {"activation": r.activation, "limit": r.limit, "alpha": r.alpha, "shift": r.shift}
            (gated,) = FUNCTIONS["gate"]([found], rule)
            found = self.product(self.rounded(gated), down[expert, here])
            if a.down_bias and number == 0:
                found = found + self.weight(a.down_bias)[expert]
            total[tokens] = total[tokens] + routing[tokens, expert][:, None] * found
        return total

    def sum(self, ops: list[Op]) -> np.ndarray:
        """The parts of all these operations on each chip added, then over the chips, then rounded once."""
        total: np.ndarray | None = None
        for number in range(self.chips):
            part: np.ndarray | None = None
            for op in ops:
                a = op.meaning
                found = self.experts(op, a, number) if isinstance(a, m.Experts) else self.shared(op, a, number)
                part = found if part is None else part + found
            total = part if total is None else total + part
        return self.rounded(total)


@pytest.mark.parametrize(("chips", "fmt"), [(2, "fp32"), (4, "fp32"), (4, "bf16")])
@pytest.mark.parametrize("name", MODELS)
def test_executed_sums_are_those_of_numpy_chip_after_chip(name, chips, fmt):
    d = reducing(name, chips, fmt)
    graph = build(d.model, d.formats)
    run = Run(step(name, 2, NEW, 0, chips, False, fmt), graph)
    oracle = Oracle(run, chips, fmt)
    checked = 0
    for visit in graph.order:
        block, oracle.layer = graph.blocks[visit.block], visit.layer
        by_output = {name: op for op in block.ops for name in op.outputs}
        for value in {"mixer", "ffn"} & set(by_output):
            op = by_output[value]
            added = [by_output[name] for name in op.inputs[1:]] if isinstance(op.meaning, m.Linear) else []
            assert np.array_equal(run.values[visit.layer, value], oracle.sum([op, *added])), (visit.layer, value)
            checked += 1
    assert checked == 2 * len(d.model.layers)


@pytest.mark.parametrize("name", MODELS)
def test_all_chips_hold_the_same_sums_however_they_are_added(name):
    """Sent whole or in pieces: the same bits, on all chips, near those of one chip."""
    d = reducing(name, 4, "fp32")
    graph = build(d.model, d.formats)
    runs = [Run(step(name, 2, NEW, 0, 4, pieces, "fp32"), graph) for pieces in (False, True)]
    assert np.array_equal(runs[0].logits, runs[1].logits)
    for run in runs:
        assert len(run.everywhere) == 2 * len(d.model.layers)
        for first, *others in run.everywhere:
            assert first.any()
            assert all(np.array_equal(first, other) for other in others)
    alone = deployed(name, 1, "fp32")
    single = Run(compile_graph(build(alone.model, alone.formats), alone, 2, NEW, 0), graph)
    assert not np.array_equal(single.logits, runs[0].logits)
    assert np.abs(single.logits - runs[0].logits).max() < 1e-4 * np.abs(single.logits).max()


def test_few_sums_are_sent_whole_and_many_in_pieces():
    t = step("llama", 1, 1, 40, 4, False).target

    class Some:
        target, chips, carry = t, 4, "bf16"

    assert reduce.pieces_of(Some, 1, 64) == 1
    assert reduce.pieces_of(Some, 4096, 64) == 4
    assert reduce.pieces_of(Some, 4096, 66) == 1  # columns that do not divide


def test_a_chip_says_how_it_spreads_multiplies(tmp_path):
    text = Path(LAB).read_text(encoding="utf-8")
    assert chip(LAB).tiles.parallel == "gather"
    path = tmp_path / "lab.toml"
    path.write_text(text.replace("drain = 16", 'drain = 16\nparallel = "reduce"'), encoding="utf-8")
    assert chip(str(path)).tiles.parallel == "reduce"
    path.write_text(text.replace("drain = 16", 'drain = 16\nparallel = "split"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"tensor\.parallel must be one of gather, reduce, not 'split'"):
        chip(str(path))


def unfused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Normed, "inside", lambda self, multiply: None)


@pytest.mark.parametrize(("chips", "fmt"), [(1, "mx9"), (2, "bf16")])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "gemma2"])
def test_a_norm_inside_a_multiply_gives_the_same_bits_in_fewer_phases(name, chips, fmt, monkeypatch):
    d = deployed(name, chips, fmt)
    graph = build(d.model, d.formats)
    inside = compile_graph(graph, d, 2, NEW, 0)
    unfused(monkeypatch)
    apart = compile_graph(graph, d, 2, NEW, 0)
    verify(inside.program)
    runs = [Run(compiled, graph) for compiled in (inside, apart)]
    assert np.array_equal(runs[0].logits, runs[1].logits)
    phases = [len(list(_phases(compiled.program.body))) for compiled in (inside, apart)]
    assert phases[0] < phases[1]
    norms = [sum(i.kind == "norm" for i in compiled.program.instructions()) for compiled in (inside, apart)]
    assert norms[0] == norms[1]
    clocks = [time_program(c.program, c.target, expected_routing(c, d.model, 1.01)).cycles for c in (inside, apart)]
    assert clocks[0] < clocks[1]


def test_many_rows_are_normed_once():
    """Cores that each norm all rows do the work of one as often as there are cores: a long prompt has a phase."""
    d = deployed("llama", 1, "bf16")
    compiled = compile_graph(build(d.model, d.formats), d, 1, 128, 0)
    assert sum(phase.name == "norm" for phase in _phases(compiled.program.body)) == 2
