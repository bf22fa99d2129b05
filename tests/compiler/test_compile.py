"""Programs of whole models: proved free of races, read back, bounded; and the pieces that make them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiled import CONFIGS, deployed, step, without
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.errors import DoesNotFitError, UnsupportedError
from taygeta.compiler.compile import compile_step, patterns
from taygeta.compiler.place import _first_fit
from taygeta.compiler.program import Buffer
from taygeta.compiler.target import target
from taygeta.compiler.text import parse, show
from taygeta.compiler.tiling import Multiply, cut, divisors, padded_rows
from taygeta.compiler.verify import ProgramError, verify
from taygeta.graph.ops import Visit
from taygeta.machine.bounds import program_bounds
from taygeta.machine.routing import expected_routing, expert_loads
from taygeta.machine.timed import Plain, time_program
from taygeta.spec.catalog import chip
from taygeta.spec.deployment import Batch, Parallelism, deployment
from taygeta.spec.engine import engine

GOLDEN = Path(__file__).parent / "golden"
STEPS = [(name, *sizes) for name in CONFIGS for sizes in ((1, 1, 40, 1), (3, 1, 40, 2), (1, 24, 0, 1), (2, 12, 20, 2))]


@pytest.mark.parametrize(("name", "requests", "new", "context", "chips"), STEPS)
def test_programs_are_proved_read_back_and_bounded(name, requests, new, context, chips):
    compiled = step(name, requests, new, context, chips)
    verify(compiled.program)
    assert parse(show(compiled.program)) == compiled.program
    routing = expected_routing(compiled, deployed(name, chips).model, 1.01)
    timed = time_program(compiled.program, compiled.target, routing)
    bounds = program_bounds(compiled.program, compiled.target, routing)
    assert bounds.lower <= timed.cycles * (1 + 1e-12)
    assert timed.cycles <= bounds.upper * (1 + 1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_the_plain_machine_gives_the_same_clocks(name):
    compiled = step(name, 2, 12, 20, 2)
    routing = expected_routing(compiled, deployed(name, 2).model, 1.01)
    fast = time_program(compiled.program, compiled.target, routing)
    assert Plain(compiled.program, compiled.target, routing).cycles == fast.cycles


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_a_program_that_lacks_a_wait_is_rejected(name):
    program = step(name, 2, 12, 20, 2).program
    listing = list(program.instructions())
    chosen = [n for n, i in enumerate(listing) if i.kind == "wait" and ".free" not in i.semaphore]
    for number in np.random.default_rng(3).choice(chosen, 12, replace=False):
        with pytest.raises(ProgramError):
            verify(without(program, int(number)))


def test_a_program_that_computes_less_is_rejected():
    """What only one instruction writes and another reads is missed."""
    program = step("llama", 2, 12, 20, 2).program
    listing = list(program.instructions())
    scratch = {b.name for b in program.buffers if b.role == "scratch"}
    writers = [{o.buffer for o in i.outputs} for i in listing]
    read = {x.buffer for i in listing for x in i.inputs}
    once = {b for b in scratch & read if sum(b in w for w in writers) == 1}
    chosen = [n for n, w in enumerate(writers) if w & once]
    assert len(chosen) > 40
    for number in np.random.default_rng(4).choice(chosen, 16, replace=False):
        with pytest.raises(ProgramError):
            verify(without(program, int(number)))


@pytest.mark.parametrize(("name", "sizes"), [("gpt2", (1, 1, 40, 1)), ("gpt_oss", (2, 12, 20, 2))])
def test_programs_are_the_golden_ones(name, sizes):
    path = GOLDEN / f"{name}-{'-'.join(map(str, sizes))}.txt"
    text = show(step(name, *sizes).program)
    if os.environ.get("TAYGETA_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_layers_that_repeat_become_loops():
    def order(*blocks):
        return [Visit(b, i) for i, b in enumerate(blocks)]

    found = patterns(order(0, 1, 2, 1, 2, 1, 2, 3))
    assert [(tuple(v.block for v in p.visits), p.count) for p in found] == [((0,), 1), ((1, 2), 3), ((3,), 1)]
    found = patterns(order(0, 1, 1, 1, 2, 2, 3))
    assert [(len(p.visits), p.count) for p in found] == [(1, 1), (1, 3), (1, 2), (1, 1)]
    assert dict(found[3].before) == {0: 1, 1: 3, 2: 2}
    gemma = patterns(order(0, *([1] * 5 + [2]) * 4, 1, 1, 3))
    assert [(len(p.visits), p.count) for p in gemma][:2] == [(1, 1), (6, 4)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 8, 16, 64, 128, 512]),
    columns=st.sampled_from([20, 64, 96, 360, 2304, 5120]),
    depth=st.sampled_from([32, 64, 768, 2880, 8192]),
    weights=st.sampled_from(["bf16", "mx9", "mxfp8"]),
)
def test_a_cut_covers_its_multiply_and_fits(rows, columns, depth, weights):
    t = target(deployed("llama").chip)
    mode = {"bf16": "bf16", "mx9": "mx9", "mxfp8": "fp8"}[weights]
    m = Multiply(padded_rows(rows), columns, depth, mode, weights, weights)
    found = cut(m, t)
    assert found.cores <= t.cores
    assert found.grid_m * found.row_tiles * found.tile_rows == m.rows
    assert found.grid_n * found.col_tiles * found.tile_cols >= columns
    assert found.depth_tiles * found.tile_depth == depth
    assert found.tile_depth == depth or found.tile_depth % m.depth_step == 0
    assert found.tile_cols * found.tile_depth <= t.memory["sram"] // 8  # at a byte or more an element
    assert found.clocks >= rows * columns * depth / (4096 * t.cores * 2)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(1000, 8000),
)
def test_values_that_live_together_never_share_bytes(found, capacity):
    values = [Buffer(f"v{n}", "shared", 0, size, (size,), "fp8") for n, (size, _, _) in enumerate(found)]
    lives = {f"v{n}": (min(a, b), max(a, b)) for n, (_, a, b) in enumerate(found)}
    placed, left = _first_fit(values, lives, capacity)
    assert len(placed) + len(left) == len(values)
    size = {v.name: v.bytes for v in values}
    for a, at in placed.items():
        assert at + size[a] <= capacity
        for b, other in placed.items():
            together = lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
            assert a == b or not together or at + size[a] <= other or other + size[b] <= at


def test_rows_are_padded_to_what_divides():
    assert [padded_rows(n) for n in (1, 7, 8, 9, 64, 65, 1000)] == [1, 7, 8, 16, 64, 128, 1024]
    assert divisors(36) == (1, 2, 3, 4, 6, 9, 12, 18, 36)


@pytest.mark.parametrize("skew", [0.0, 0.6, 1.01, 2.0])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 8, 2), (16, 128, 4), (500, 128, 4), (64, 8, 8)])
def test_expert_loads_are_whole_and_sum_up(tokens, experts, top_k, skew):
    loads = expert_loads(tokens, experts, top_k, skew)
    assert loads.sum() == tokens * top_k
    assert loads.min() >= 0
    assert loads.max() <= tokens
    assert np.all(np.diff(loads) <= 0)


def test_what_has_no_program_is_refused_by_name():
    d = deployed("llama")
    with pytest.raises(UnsupportedError, match="one group, or ask for the modelled fidelity"):
        compile_step(d, Batch.decode(1, 10) + Batch.prefill(1, 8))
    pipeline = deployment(d.model, d.chip, 2, engine("vllm"), Parallelism(pp=2), "mx9", "mx9", "bf16")
    with pytest.raises(UnsupportedError, match="pp=2 is not compiled: use pp=1"):
        compile_step(pipeline, Batch.decode(1, 10))
    with pytest.raises(UnsupportedError, match=r"h100 cannot be compiled for: it does not state dma\.latency"):
        target(chip("h100"))
    with pytest.raises(UnsupportedError, match="A KV cache in fp8 is not compiled for lab: give kv=bf16"):
        compile_step(deployed("llama", kv="fp8"), Batch.decode(1, 10))
    small = replace(d, chip=replace(d.chip, core_sram=6e3))
    with pytest.raises(DoesNotFitError, match="scratchpad"):
        compile_step(small, Batch.prefill(1, 64))
    little = replace(d, chip=replace(d.chip, hbm=replace(d.chip.hbm, capacity=1e5)))
    with pytest.raises(DoesNotFitError, match=r"needs 0\.0 GB of main memory on each of 1 x lab"):
        compile_step(little, Batch.decode(1, 10))
