"""Steps whose rows are filled up: proved for any number of sequences and tokens, and right in every row of a token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from compiled import HEADS, WIDE, deployed, model, reducing, weights_of, without
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taygeta.base.errors import UnsupportedError
from taygeta.compiler.compile import Compiled, compile_graph
from taygeta.compiler.padding import ZEROS_BYTES, piece
from taygeta.compiler.text import parse, show
from taygeta.compiler.tiling import padded_rows
from taygeta.compiler.verify import ProgramError, verify
from taygeta.frontend.huggingface import import_config
from taygeta.graph.build import build
from taygeta.graph.execute import run
from taygeta.graph.step import Cache
from taygeta.machine.constants import Constants
from taygeta.machine.executed import Machine
from taygeta.machine.session import Session
from taygeta.machine.steps import tables_of
from taygeta.spec.catalog import chip

FAMILIES = ("llama", "gpt2", "gpt_oss", "deepseek_v3", "gemma2")


def compiled(
    name: str, requests: int, new: int, context: int, chips: int, reduce: bool, fmt: str | None, exact: bool = False
) -> Compiled:
    d = reducing(name, chips, fmt) if reduce else deployed(name, chips, fmt)
    return compile_graph(build(d.model, d.formats), d, requests, new, context, exact=exact)


@settings(max_examples=36, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(FAMILIES),
    requests=st.integers(1, 20),
    new=st.one_of(st.just(1), st.integers(1, 12), st.integers(1, 100)),
    context=st.one_of(st.just(0), st.integers(0, 100)),
    chips=st.sampled_from([1, 2, 4]),
    reduce=st.booleans(),
    fmt=st.sampled_from([None, "mx9", "mxfp8"]),
    exact=st.booleans(),
)
@example("llama", 9, 1, 1023, 1, False, "mx9", True)  # parts of the keys, merged
@example("llama", 1, 80, 0, 2, False, "mx9", True)
@example("deepseek_v3", 13, 5, 31, 2, True, "mx9", False)
@example("gpt2", 4, 9, 0, 1, False, None, False)  # the state of a row lies where the phase before stores from
@example("gpt2", 4, 77, 15, 2, True, "mxfp8", False)
def test_every_step_is_proved(name, requests, new, context, chips, reduce, fmt, exact):
    verify(compiled(name, requests, new, context, chips, reduce, fmt, exact).program)


@pytest.mark.parametrize("requests", [40, 44])
def test_what_a_layer_did_is_not_taken_for_what_the_next_one_does(requests):
    """Two cores take rows in turn, more of them than a verifier remembers one by one: those of the layer before, which
    are known to be done, must not be joined with those of this one.
    """
    d = deployed("llama", 2, None)
    d = replace(d, chip=chip("tpu-v5p"))
    verify(compile_graph(build(d.model, d.formats), d, requests, 1, 48).program)


def _padding(found: Compiled) -> list[int]:
    """The numbers of the instructions, in the listing, that store zeros in rows of no token."""
    listing = enumerate(found.program.instructions())
    return [n for n, i in listing if i.engine == "store" and i.inputs and ".zeros" in i.inputs[0].buffer]


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
@pytest.mark.parametrize(("requests", "new"), [(9, 1), (1, 80)])
def test_rows_of_no_token_are_missed(name, requests, new):
    """Without the stores of zeros the program is refused: they are what writes those rows."""
    found = compiled(name, requests, new, 40, 2, False, "mx9")
    chosen = _padding(found)
    assert chosen
    for number in chosen:
        with pytest.raises(ProgramError, match="it reads what nothing has written before"):
            verify(without(found.program, number))


@pytest.mark.parametrize(("requests", "new"), [(8, 1), (16, 1), (4, 16), (2, 64)])
def test_rows_that_are_all_tokens_need_no_zeros(requests, new):
    assert _padding(compiled("llama", requests, new, 40, 1, False, "mx9")) == []


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "mx9", "mxfp8"])
def test_zeros_are_whole_blocks_of_little_room(fmt):
    """In fp32, 63 rows of 32 columns are 8,064 bytes, 7 of 256 are 7,168; twice the columns are too many."""
    assert piece(fmt, 63, 512) == 32
    assert piece(fmt, 7, 512) == 256
    assert max(63 * 32 * 4, 7 * 256 * 4) <= ZEROS_BYTES < min(63 * 64 * 4, 7 * 512 * 4)
    assert piece("fp32", 63, 12) == 12


@pytest.mark.parametrize(
    ("name", "requests", "new", "chips", "reduce", "fmt"),
    [
        ("llama", 9, 1, 1, False, None),
        ("gpt_oss", 5, 3, 2, False, "mx9"),
        ("deepseek_v3", 11, 1, 2, True, None),
        ("gpt2", 1, 70, 4, False, "mxfp8"),
    ],
)
def test_what_lay_in_memory_before_does_not_matter(name, requests, new, chips, reduce, fmt):
    """Not-a-number in everything that a step should write first: all of it is written, and the bits are the same."""
    found = compiled(name, requests, new, 0, chips, reduce, fmt)
    assert found.rows > found.requests * found.new
    assert parse(show(found.program)) == found.program
    weights = weights_of(build(model(name), deployed(name, chips, fmt).formats))
    tokens = np.random.default_rng(6).integers(3, 90, (requests, new)).tolist()
    logits = []
    for before in (0.0, np.nan):
        machine = Machine(found, Constants(weights, "floor"))
        scratch = [b.name for b in found.program.buffers if b.role == "scratch" and b.space != "sram"]
        for content in _wide(machine, scratch):
            content[...] = before
        logits.append(machine.run(tables_of(found, tokens, [0] * requests)))
        assert not any(np.isnan(content).any() for content in _wide(machine, scratch))
    assert np.array_equal(*logits)


def _wide(machine: Machine, names: list[str]) -> list[np.ndarray]:
    """What these buffers of all chips hold, of those in formats that are kept as they are."""
    found = [memory.outer[name] for memory in machine.memories for name in names]
    return [content for content in found if isinstance(content, np.ndarray)]


@pytest.mark.parametrize(
    ("name", "requests", "chips", "reduce"),
    [("llama", 9, 1, False), ("gpt2", 11, 2, True), ("gpt_oss", 3, 2, False), ("deepseek_v3", 5, 4, False)],
)
def test_logits_are_those_of_the_plain_definition(name, requests, chips, reduce):
    """Prompts of several lengths, then a decode: the largest of both is filled up."""
    d = reducing(name, chips, "fp32") if reduce else deployed(name, chips, "fp32")
    graph = build(d.model, d.formats)
    weights = weights_of(graph)
    random = np.random.default_rng(7)
    prompts = {s: random.integers(3, 90, 3 + 5 * (s % 4)).tolist() for s in range(requests)}
    assert padded_rows(requests * 18) > requests * 18
    session, cache = Session(d, weights, 40, sequences=requests), Cache()
    for step in (prompts, {s: [s + 3] for s in prompts}):
        expected = run(graph, weights, step, cache)
        found = session.extend(list(step.values()))
        assert np.abs(expected).max() > 0.5
        assert np.abs(found - expected).max() < 1e-4


def test_norms_over_all_heads_are_compiled_for_one_chip():
    joint = {
        "model_type": "minimax_m2", "num_hidden_layers": 2, "intermediate_size": 48, "num_local_experts": 6,
        "num_experts_per_tok": 2, **WIDE, **HEADS,
    }  # fmt: skip
    found = import_config(joint, "joint", "the tests")
    for chips in (1, 2):
        d = replace(deployed("llama", chips), model=found)
        graph = build(found, d.formats)
        if chips == 1:
            verify(compile_graph(graph, d, 9, 1, 20).program)
            continue
        with pytest.raises(UnsupportedError, match="normalises over all heads together: it is compiled for one chip"):
            compile_graph(graph, d, 9, 1, 20)
