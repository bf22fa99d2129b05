"""Speed of the chip in software: number formats, the timed machine, and GPT-2 small executed.

Everything here runs on one thread; rows are (what, measured, held against, ratio).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_time import process, seconds, share, times

LAB = Path(__file__).parents[1] / "tests/chips/lab.toml"
LINEARS = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
"""Outputs x inputs of the linears of a layer of GPT-2 small."""
LAYERS, WIDTH, VOCABULARY, PROMPT = 12, 768, 50257, 256
TURNS = 1_000_000

CHAIN = f"""program chain on lab: 1 chip x 1 core
memory hbm 1000000
memory shared 100000
memory sram 10000
buffer a sram 0 32 4x4 bf16 scratch
buffer c sram 100 64 4x4 fp32 scratch
buffer d sram 200 64 4x4 fp32 scratch
semaphore free core 2
semaphore full core 0
loop i {TURNS}
tensor wait free cores=1
tensor matmul c[0:+4, 0:+4] <- a[0:+4, 0:+4], a[0:+4, 0:+4] cores=1 mode="bf16"
tensor signal full cores=1
vector wait full cores=1
vector copy d[0:+4, 0:+4] <- c[0:+4, 0:+4] cores=1
vector signal free cores=1
end"""
"""Two engines that hand on tiles: no transfers."""

STEP = """
import taygeta as tg
from taygeta.compiler.compile import compile_step
from taygeta.machine.timed import time_program
step = compile_step(tg.deploy("llama-3.1-70b", on="maia-100:8"), tg.Batch.decode(32, 4096))
time_program(step.program, step.target)
"""
"""One decode step of Llama-3.1-70B, compiled and timed, in a process of its own."""


def chip_rows() -> list[str]:
    """Rows of the table of the chip in software."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    rows = [*_formats(), *_dots(), *_machine(), *_executed()]
    numba.set_num_threads(before)
    head = ["| the chip in software, one thread | measured | held against | ratio |", "|---|---|---|---|"]
    return head + [f"| {' | '.join(row)} |" for row in rows]


Row = tuple[str, str, str, str]


def at_least(what: str, measured: float, least: float, digits: str = ".3g", note: str = "") -> Row:
    """Return a row of a rate that should not be below a goal."""
    return what, f"{measured:{digits}}", f"{least:g} at least{note}", times(measured, least)


def at_most(what: str, measured: float, most: float) -> Row:
    """Return a row of seconds that should not be above a goal."""
    return what, f"{measured:.3g}", f"{most:g}", share(measured, most)


def _formats() -> list[Row]:
    """Quantising: the slowest format."""
    import numpy as np

    from taygeta.numerics import quantise
    from taygeta.numerics.schemes import SCHEMES

    x = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)
    rates = {}
    for name, scheme in SCHEMES.items():
        if scheme.element:
            quantise(x, name, threads=1)
            rates[name] = x.size / seconds(lambda name=name: quantise(x, name, threads=1)) / 1e6
    slow = min(rates, key=lambda name: rates[name])
    return [
        at_least(
            f"quantise, the slowest of {len(rates)} formats ({slow}): M elements per CPU second", rates[slow], 25,
            note=", for 50 M/s on two cores",
        ),
        ("quantise to MXFP8: M elements per CPU second", f"{rates['mxfp8_e4m3']:.3g}", "", ""),
    ]  # fmt: skip


def _dots() -> list[Row]:
    """The linears of GPT-2 small by the exact dot product, beside NumPy's product in fp32 of the same shapes."""
    import numpy as np

    from taygeta.numerics import TensorUnit, matmul, prepare, quantise

    rng, unit = np.random.default_rng(0), TensorUnit(32)
    layer = [rng.standard_normal(shape, np.float32) for shape in LINEARS]
    layers = [[prepare(quantise(w, "mxfp8"), unit, 1) for w in layer] for _ in range(LAYERS)]
    copies = [[w.copy() for w in layer] for _ in range(LAYERS)]
    rows: list[Row] = []
    for tokens in (1, PROMPT):
        given = {k: rng.standard_normal((tokens, k), np.float32) for k in (768, 3072)}
        codes = {k: quantise(x, "mxfp8") for k, x in given.items()}
        ours = seconds(lambda codes=codes: _each(lambda w: matmul(codes[w.shape[1]], w, unit, threads=1), layers), 3)
        plain = seconds(lambda given=given: _each(lambda w: given[w.shape[1]] @ w.T, copies), 3)
        what = "one token" if tokens == 1 else f"{tokens} tokens"
        name = f"linears of GPT-2 small's layers, {what}, exact dot products of MXFP8, V = 32, s"
        rows.append((name, f"{ours:.3g}", f"{plain:.3g} (NumPy in fp32)", f"{ours / plain:.2g} x"))
    return rows


def _each(call: Callable[[Any], object], layers: list[list[Any]]) -> None:
    for layer in layers:
        for weight in layer:
            call(weight)


def _machine() -> list[Row]:
    """The timed machine: instructions a second, and a step of a large model."""
    import taygeta as tg
    from taygeta.compiler.compile import compile_step
    from taygeta.compiler.target import target
    from taygeta.compiler.text import parse
    from taygeta.machine.timed import time_program
    from taygeta.spec.catalog import chip

    chain, lab = parse(CHAIN), target(chip(str(LAB)))
    count = time_program(chain, lab, spans=0).instructions
    rate = count / seconds(lambda: time_program(chain, lab, spans=0), 3)
    deployment, batch = tg.deploy("llama-3.1-70b", on="maia-100:8"), tg.Batch.decode(32, 4096)
    step = compile_step(deployment, batch)
    compiled = seconds(lambda: compile_step(deployment, batch), 3)
    timed = seconds(lambda: time_program(step.program, step.target, spans=0))
    own = time_program(step.program, step.target, spans=0).instructions
    what = "one decode step of Llama-3.1-70B on 8 x maia-100, compiled and timed"
    return [
        at_least("timed: M instructions per CPU second, computing and semaphores", rate / 1e6, 10),
        at_least(
            f"the same in that step of Llama-3.1-70B, whose transfers share bandwidth ({own:,} instructions)",
            own / timed / 1e6, 10,
        ),
        at_most(f"{what}, s: warm ({compiled:.2g} + {timed:.2g})", compiled + timed, 10),
        at_most("the same in a new process", process("-c", STEP), 10),
        at_most("the same where nothing was compiled before, once on a machine", _first_time(), 10),
    ]  # fmt: skip


def _first_time() -> float:
    """CPU seconds of STEP in a process whose compiled kernels are not yet on disk."""
    with tempfile.TemporaryDirectory() as folder:
        own = {**os.environ, "NUMBA_CACHE_DIR": folder}
        words = [sys.executable, "-c", STEP]
        return seconds(lambda: subprocess.run(words, check=True, capture_output=True, env=own), 1)


def _executed() -> list[Row]:
    """GPT-2 small with random weights, executed on the chip of the tests with the oracle looking on."""
    import numpy as np

    import taygeta as tg
    from taygeta.graph.build import build
    from taygeta.machine.checks import Checker
    from taygeta.machine.session import Session

    d = tg.deploy("gpt2", on=str(LAB), weights="mxfp8", activations="mxfp8", kv="bf16")
    rng, weights = np.random.default_rng(0), {}
    graph = build(d.model, d.formats)
    for visit in graph.order:
        for op in graph.blocks[visit.block].ops:
            for w in (*op.weights, *op.extras):
                shape = tuple(size for _, size in w.axes)
                weights[visit.layer, w.name] = 0.02 * rng.standard_normal(shape, np.float32)
    checker = Checker()
    session = Session(d, weights, PROMPT + 64, checker=checker)
    prompt = rng.integers(0, VOCABULARY, PROMPT).tolist()

    def start() -> None:
        session.context = [0]
        session.extend([prompt])

    def decode(tokens: int = 8) -> None:
        for token in prompt[:tokens]:
            session.extend([[token]])

    start()  # packs and quantises the weights
    prefill = seconds(start, 2)
    decode(2)
    step = seconds(decode, 3) / 8
    name = "GPT-2 small, random weights, executed in MXFP8, V = 32, chip of the tests"
    return [
        at_least(f"{name}: tokens per CPU second", 1 / step, 10, note=" on two cores"),
        at_most(f"the same: a prompt of {PROMPT} tokens, s", prefill, 3),
        ("elements of its multiplies recomputed in whole numbers on the way, all equal", f"{checker.checked:,}", "",
         ""),
    ]  # fmt: skip
