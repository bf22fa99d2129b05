"""The verifier: accepts what is valid, names what is not, and rejects mutants that random schedules tell apart."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError
from taygeta.compiler.text import parse, show
from taygeta.compiler.verify import ProgramError, verify

sys.path.insert(0, str(Path(__file__).parent))
from schedules import apart, in_order
from small_programs import matmuls, pipelines, program

VALID = [matmuls(turns=3), matmuls(turns=2, cores=1), matmuls(turns=2, slots=3)]


def verdict(lines: list[str]) -> str | None:
    try:
        verify(parse("\n".join(lines)))
    except InputError as error:
        return str(error)
    return None


def mutants(lines: list[str]):
    """(what was done, lines) for every line of the listing."""
    first = max(n for n, line in enumerate(lines) if line.startswith("semaphore")) + 1
    for n in range(first, len(lines)):
        words = lines[n].split()
        if len(words) < 3 or words[0] in ("phase", "loop"):
            continue
        yield f"drop {n}", lines[:n] + lines[n + 1 :]
        yield f"twice {n}", [*lines[: n + 1], *lines[n:]]
        yield f"swap {n}", [*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]]
        for engine in ("stream", "load", "store", "tensor", "vector"):
            if engine != words[0]:
                yield f"{engine} {n}", [*lines[:n], lines[n].replace(words[0], engine, 1), *lines[n + 1 :]]
        yield f"cores {n}", [*lines[:n], re.sub(r"cores=\d+", "cores=1", lines[n]), *lines[n + 1 :]]
        for m in re.finditer(r"(?<=:\+)\d+|(?<=[ \[+])\d+(?=[:\]])", lines[n]):
            for by in (1, 8):
                number = str(int(m[0]) + by)
                yield (
                    f"{m[0]} is {number} {n}",
                    [*lines[:n], lines[n][: m.start()] + number + lines[n][m.end() :], *lines[n + 1 :]],
                )


@pytest.mark.parametrize("number", range(len(VALID)))
def test_mutants_that_are_accepted_cannot_be_told_from_their_listing(number):
    """A mutant that is accepted is another valid program: any schedule computes what its own listing says."""
    lines = show(VALID[number]).split("\n")
    assert verdict(lines) is None
    kept, refused = [], 0
    for name, mutant in mutants(lines):
        said = verdict(mutant)
        if said is None and mutant != lines:
            kept.append((name, mutant))
        refused += said is not None
    assert refused > 5 * len(kept)
    for name, mutant in kept[:: max(1, len(kept) // 12)]:
        p = parse("\n".join(mutant))
        wanted = in_order(p)
        for seed in range(2):
            assert apart(p, seed) == wanted, name


@pytest.mark.parametrize("number", range(len(VALID)))
def test_mutants_of_waits_and_signals(number):
    """Only what leaves every order as it was is accepted: see each case."""
    lines = show(VALID[number]).split("\n")
    for n, line in enumerate(lines):
        words = line.split()
        if len(words) < 2 or words[1] not in ("wait", "signal") or verdict(lines[:n] + lines[n + 1 :]) is not None:
            continue
        # In two turns a ring is filled twice: freed with the slot after it, a slot is still free when it is wanted.
        assert number > 0
        assert words[1:3] == ["signal", "w.free"]


def test_random_schedules_tell_wrong_programs_apart():
    """The oracle sees what the verifier sees: without a wait, some schedule computes something else or stops."""
    lines = show(VALID[0]).split("\n")
    for n, line in enumerate(lines):
        if line.split()[1:3] in (["wait", "w.full"], ["wait", "done"], ["signal", "o.free"], ["wait", "s.free"]):
            p = parse("\n".join(lines[:n] + lines[n + 1 :]))
            assert any(apart(p, seed) != in_order(p) for seed in range(40)), line


@settings(max_examples=60, deadline=None)
@given(pipelines(), st.integers(0, 1000))
def test_random_pipelines_are_valid(p, seed):
    verify(p)
    if p.cores * sum(1 for _ in p.instructions()) < 120:
        assert apart(p, seed) == in_order(p)


@settings(max_examples=60, deadline=None)
@given(pipelines(), st.data())
def test_random_mutants_of_random_pipelines(p, data):
    lines = show(p).split("\n")
    name, mutant = data.draw(st.sampled_from(list(mutants(lines))))
    if verdict(mutant) is None and p.cores * sum(1 for _ in p.instructions()) < 120:
        q = parse("\n".join(mutant))
        assert all(apart(q, seed) == in_order(q) for seed in range(2)), name


BUFFERS = """
buffer x hbm 0 256 4x32 bf16 input
buffer c hbm 256 256 4x32 bf16 constant
buffer y shared 0 512 2x4x32 bf16 scratch
buffer a sram 0 256 4x32 bf16 scratch
buffer b sram 256 512 4x32 fp32 scratch
buffer t sram 128 256 4x32 bf16 scratch
semaphore f core 0
semaphore all chip 0
"""
LOAD = "load dma a[0:+4, 0:+32] <- x[0:+4, 0:+32] cores=2\n"
SAY = "load signal f cores=2\n"
HEAR = "vector wait f cores=2\n"
COPY = "vector copy b[0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2\n"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (LOAD + COPY, "nothing orders it after the access to a of `load dma` on the same core"),
        (COPY, "it reads what nothing has written before"),
        (HEAR + LOAD + SAY + COPY, "waits for a signal that is not given before it"),
        (LOAD + SAY + HEAR + COPY.replace("cores=2", "cores=3"), "must run on 1 to 2 cores, not 3"),
        (LOAD.replace("load", "tensor"), "dma runs on stream, load, store, not on tensor"),
        (LOAD.replace("load", "store"), "store moves out of sram, not hbm to sram"),
        (LOAD.replace("x[", "y["), "y has 3 axes, not 2"),
        (LOAD.replace("x[0:+4", "x[1:+4"), "axis 0 of x: reaches element 5, and it has 4"),
        (LOAD.replace("x[0:+4", "x[core:+4"), "axis 0 of x: reaches element 5, and it has 4"),
        (LOAD.replace("x[0:+4", "x[q:+4"), "'q' is neither core, chip nor the variable of a loop around it"),
        (LOAD.replace("0:+32] cores", "0:+31] cores"), "as many elements of one format, not 124 of bf16 to 128"),
        (LOAD + SAY + HEAR + COPY.replace("copy", "cop"), "the kind must be one of"),
        (LOAD + SAY + HEAR + COPY.replace("<- a", "<- z"), "there is no buffer z"),
        (SAY + "stream signal f cores=2", "f is signalled by load already"),
        (LOAD + SAY + HEAR + "tensor wait f cores=2", "vector waits for f already"),
        ("load signal all cores=1", "so all must signal, not 1"),
        ("store dma c[0:+4, 0:+32] <- a[0:+4, 0:+32] cores=1", "c is constant and is not written"),
        # both cores write the same
        (LOAD + "load signal f cores=2\nstore wait f cores=2\nstore dma y[0, 0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2",
         "on another core"),
        # one core reads what the other may not have written
        (LOAD + SAY + "store wait f cores=2\nstore dma y[core, 0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2\n"
         "store signal g cores=2\nload wait g cores=2\nload dma a[0:+4, 0:+32] <- y[0, 0:+4, 0:+32] cores=2",
         "on another core"),
        # t lies over a and b: what was in a is gone
        (LOAD + SAY + HEAR + "vector copy t[0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2", "its operands overlap in part"),
        (LOAD + SAY + "load dma t[0:+4, 0:+32] <- x[0:+4, 0:+32] cores=2\nload signal f cores=2\n" + HEAR + HEAR + COPY,
         "it reads what nothing has written before"),
        # half is written
        (LOAD.replace("0:+32", "0:+16") + SAY + HEAR + COPY, "it reads what nothing has written before"),
        ("loop i 4\nload dma a[0:+2, 0:+32] <- x[i:+2, 0:+32] cores=1\nend", "reaches element 5"),
        ("loop i 2\n" + LOAD + SAY + HEAR + COPY + "end", "nothing orders it after the access to a of `vector copy`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(body, says):
    p = program(body, BUFFERS + "semaphore g core 0", cores=2)
    with pytest.raises(ProgramError, match=re.escape(says)):
        verify(p)


def test_a_barrier_orders_cores():
    body = (
        LOAD + SAY + "store wait f cores=2\nstore dma y[core, 0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2\n"
        "store signal all cores=2\nload wait all cores=2\nload dma a[0:+4, 0:+32] <- y[0, 0:+4, 0:+32] cores=2"
    )
    verify(program(body, BUFFERS, cores=2))


def test_the_sentence_names_the_line():
    p = program(LOAD + COPY, BUFFERS, cores=2)
    number = show(p).split("\n").index(COPY.strip()) + 1
    with pytest.raises(ProgramError, match=rf"^small, line {number}, `vector copy b\["):
        verify(p)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("memory sram 10000", "memory sram 8000"), "buffer sums ends at byte 8,128 of sram, which has 8,000"),
        (("buffer out sram 8128 64", "buffer out sram 8128 63"), "buffer out needs 64 bytes for its shape, not 63"),
        (("buffer out sram 8128", "buffer out sram 8064"), "its operands overlap in part"),
        (("buffer w1 sram 768", "buffer w1 sram 700"), "nothing orders it"),
        (("y shared 0 1024", "y sram 0 1024"), "store moves out of sram, not sram to sram"),
        (("semaphore w.free core 2", "semaphore w.free core 3"), "nothing orders it"),
        (("semaphore w.free core 2", "semaphore w.free core 0"), "waits for a signal that is not given before"),
        (("semaphore o.full core 0", "semaphore o.full core 1"), "nothing orders it"),
        (("semaphore done chip 0", "semaphore done core 0"), "on another core"),
        (("loop t 4", "loop t 5"), "reaches element 9, and it has 8"),
    ],
)
def test_declarations_matter(change, says):
    text = show(matmuls())
    assert change[0] in text
    with pytest.raises(ProgramError, match=re.escape(says)):
        verify(parse(text.replace(*change)))


EXCHANGE = """
buffer y shared 0 1024 2x4x64 bf16 input
buffer z shared 2048 512 2x4x32 bf16 scratch
buffer all shared 4096 2048 2x2x4x32 bf16 scratch
buffer a sram 0 256 4x32 bf16 scratch
buffer b sram 256 256 4x32 bf16 scratch
semaphore f core 0
semaphore g core 0
semaphore ready chip 0
semaphore all chip 1
"""
SEND = "link send all[chip, core, 0:+4, 0:+32] <- z[core, 0:+4, 0:+32] cores=2 hop=1\n"
RECEIVE = "link receive cores=2 hop=1\n"


OWN = "store dma all[chip, core, 0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2\n"


def exchange(order: str, then: str, own: str = OWN) -> None:
    body = f"""
    load dma a[0:+4, 0:+32] <- y[0, 0:+4, 0:+32] cores=2
    load signal f cores=2
    store wait f cores=2
    store dma z[core, 0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2
    {own}
    store signal ready cores=2
    link wait ready cores=2
    {order}
    link signal heard cores=2
    load wait heard cores=2
    {then}
    """
    verify(program(body, EXCHANGE + "semaphore heard chip 0", cores=2, chips=2))


READ = "load dma b[0:+4, 0:+32] <- all[0, 1, 0:+4, 0:+32] cores=2\n"


def test_what_comes_from_other_chips_is_ordered_by_receives():
    exchange(SEND + RECEIVE, "")
    with pytest.raises(ProgramError, match="on another chip"):
        exchange(SEND, READ)
    with pytest.raises(ProgramError, match="waits for a signal"):
        exchange(RECEIVE + SEND, "")
    # The peer's half is there after the receive, the own half after the store.
    exchange(SEND + RECEIVE, READ)
    # The half of chip 0 is what chip 0 does not send itself; the half of chip 1 is what chip 1 does not.
    for half in (READ, READ.replace("all[0", "all[1")):
        with pytest.raises(ProgramError, match="it reads what nothing has written before"):
            exchange(SEND + RECEIVE, half, own="")
    # Nothing orders a store of the own half that comes later against what the load then reads.
    with pytest.raises(ProgramError, match="nothing orders it"):
        exchange(SEND + RECEIVE + OWN, READ)


def test_a_peer_must_not_write_what_is_still_read():
    """A second exchange into the same place: its sender has to have heard that the first was read."""
    again = READ + SEND + RECEIVE
    with pytest.raises(ProgramError, match="on another chip"):
        exchange(SEND + RECEIVE, again)


def test_lists_may_be_empty():
    """What only a loop over lists writes may never be written; what it reads and frees stays in balance."""
    loop = (
        "loop x 3 when lists+0*chip\nload dma a[0:+4?, 0:+32] <- x[lists(0:+4?), 0:+32] cores=1\n"
        + SAY.replace("2", "1")
        + HEAR.replace("2", "1")
    )
    declared = "table lists 4 3\n" + BUFFERS
    with pytest.raises(ProgramError, match="it reads what nothing has written before"):
        verify(program(loop + "end\n" + COPY.replace("cores=2", "cores=1"), declared, cores=2))
    free = loop.replace("load dma", "load wait g cores=1\nload dma")
    inside = COPY.replace("cores=2", "cores=1") + "vector signal g cores=1\n"
    verify(program(free + inside + "end", declared + "semaphore g core 1", cores=2))
    with pytest.raises(ProgramError, match="walks 4 lists of lists, which has not as many"):
        verify(program(free.replace("loop x 3", "loop x 4") + inside + "end", declared + "semaphore g core 1", cores=2))


def test_a_ring_by_turns_of_a_loop_over_lists_is_refused():
    """Turns are left out, so a slot chosen by the turn's number can come twice in a row."""
    loop = """
    loop x 4 when lists+0*chip
    load wait g cores=1
    load dma r[x%2, 0:+4, 0:+32] <- x[0:+4, 0:+32] cores=1
    load signal f cores=1
    vector wait f cores=1
    vector copy b[0:+4, 0:+32] <- r[x%2, 0:+4, 0:+32] cores=1
    vector signal g cores=1
    end
    """
    declared = "table lists 4 4\nbuffer r sram 1000 512 2x4x32 bf16 scratch\n" + BUFFERS
    with pytest.raises(ProgramError, match="nothing orders it"):
        verify(program(loop, declared + "semaphore g core 2", cores=1))
    verify(program(loop.replace(" when lists+0*chip", ""), declared + "semaphore g core 2", cores=1))
    verify(program(loop, declared + "semaphore g core 1", cores=1))


def test_a_buffer_that_peers_write_shares_bytes_with_nothing_they_may_not_know_to_be_done():
    """The peer's send lands where this chip may still be loading from: `old` lies where `all` does."""
    body = """
    load dma a[0:+4, 0:+32] <- old[0, 0:+4, 0:+32] cores=2
    load signal f cores=2
    store wait f cores=2
    store dma z[core, 0:+4, 0:+32] <- a[0:+4, 0:+32] cores=2
    store signal ready cores=2
    link wait ready cores=2
    """
    declared = EXCHANGE + "buffer old shared {} 1024 2x4x64 bf16 input\n"
    with pytest.raises(ProgramError, match="access to old of `load dma` on another chip"):
        verify(program(body + SEND, declared.format(4096), cores=2, chips=2))
    verify(program(body + SEND, declared.format(8192), cores=2, chips=2))
