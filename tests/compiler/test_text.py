"""Programs as text and back, and text that is no program."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError
from taygeta.compiler.program import Box, Buffer, Index, Instruction, Loop, Phase, Program, Semaphore, Table
from taygeta.compiler.text import parse, show

sys.path.insert(0, str(Path(__file__).parent))
from small_programs import matmuls, pipelines

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,6}", fullmatch=True)
buffers = st.from_regex(r"[A-Za-z0-9_.\-]{1,6}", fullmatch=True)
counts = st.integers(0, 1 << 40)
digits = st.builds(lambda v, d, m: v + d + m, names, st.sampled_from(["", "/4"]), st.sampled_from(["", "%16"]))
indices = st.builds(
    Index, counts, counts, st.lists(st.tuples(digits, counts), max_size=2).map(tuple), st.one_of(st.just(""), names),
    st.booleans(),
)  # fmt: skip
boxes = st.lists(st.builds(Box, buffers, st.lists(indices, min_size=1, max_size=3).map(tuple)), max_size=3).map(tuple)
values = st.one_of(
    st.integers(-(10**17), 10**17), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
)  # fmt: skip
attributes = st.lists(st.tuples(names, values), max_size=3).map(tuple)
engines = st.sampled_from(["stream", "load", "store", "tensor", "vector", "link"])
instructions = st.one_of(
    st.builds(Instruction, engines, st.sampled_from(["dma", "matmul", "fill"]), counts, boxes, boxes, attributes),
    st.builds(lambda e, k, n, s: Instruction(e, k, n, semaphore=s), engines, st.sampled_from(["wait", "signal"]),
              counts,
              names),
)  # fmt: skip
items = st.recursive(
    st.one_of(instructions, st.builds(Phase, names, names)),
    lambda inner: st.builds(
        Loop, names, counts, st.lists(inner, max_size=3).map(tuple), *[st.just("")], st.just(0)
    ) | st.builds(Loop, names, counts, st.lists(inner, max_size=3).map(tuple), names, counts),
    max_leaves=6,
)  # fmt: skip


@st.composite
def programs(draw):
    return Program(
        draw(st.from_regex(r"[a-z][a-z ]{0,5}[a-z]", fullmatch=True)), draw(names), draw(st.integers(1, 9)),
        draw(st.integers(1, 9)), MappingProxyType(draw(st.dictionaries(st.sampled_from(["hbm", "sram"]), counts))),
        tuple(draw(st.lists(st.builds(Table, names, counts, counts), max_size=2, unique_by=lambda t: t.name))),
        tuple(draw(st.lists(
            st.builds(Buffer, buffers, st.sampled_from(["hbm", "sram"]), counts, counts,
                      st.lists(counts, min_size=1, max_size=3).map(tuple), names,
                      st.sampled_from(["scratch", "state"])),
            max_size=3, unique_by=lambda b: b.name,
        ))),
        tuple(draw(st.lists(
            st.builds(Semaphore, names, st.sampled_from(["core", "chip"]), counts), max_size=2,
            unique_by=lambda s: s.name,
        ))),
        tuple(draw(st.lists(items, max_size=4))),
    )  # fmt: skip


def same(a: Program, b: Program) -> bool:
    return dict(a.memory) == dict(b.memory) and all(
        getattr(a, f) == getattr(b, f)
        for f in ("name", "chip", "chips", "cores", "tables", "buffers", "semaphores", "body")
    )


@settings(max_examples=150, deadline=None)
@given(programs())
def test_text_and_back(p):
    assert same(parse(show(p)), p)


@settings(max_examples=40, deadline=None)
@given(pipelines())
def test_pipelines_and_back(p):
    assert same(parse(show(p)), p)


TEXT = show(matmuls())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_edited_text_is_a_program_or_refused(data):
    at = data.draw(st.integers(0, len(TEXT) - 1))
    cut = data.draw(st.integers(0, 12))
    new = data.draw(
        st.one_of(
            st.text(max_size=4), st.sampled_from(["[", "]", ",", "<-", "*", "+", "end\n", "loop a 3\n", "9" * 30])
        )
    )
    with contextlib.suppress(InputError):
        parse(TEXT[:at] + new + TEXT[at + cut :])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: must be 'program NAME on CHIP"),
        ("program p on c: 1 chip x 1 core\nloop i 3\n", "'end', for a loop is open"),
        ("program p on c: 1 chip x 1 core\nload dma a[0] <- b[0]\n", "with cores=N after its operands"),
        ("program p on c: 1 chip x 1 core\nmemory disk 5\n", "a memory must be one of hbm, shared, sram"),
        ("program p on c: 1 chip x 1 core\n" + "loop i 1\n" * 12, "nested 8 deep at most"),
    ],
)
def test_what_is_wrong_is_said(text, says):
    with pytest.raises(InputError, match=says.replace("[", r"\[")):
        parse(text)
