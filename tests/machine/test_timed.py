"""The timed machine: clocks counted by hand, and two implementations that agree bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from taygeta.base.errors import InputError
from taygeta.compiler.target import TensorUnit
from taygeta.machine.bounds import program_bounds
from taygeta.machine.timed import Plain, time_program
from taygeta.machine.timeline import perfetto

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))
from small_programs import matmuls, pipelines, plain_target, program


def both(p, target, routing=None):
    """The timeline, after checking that the plain machine says the same of every instruction."""
    fast, plain = time_program(p, target, routing), Plain(p, target, routing)
    assert plain.done
    assert fast.cycles == plain.cycles
    rows, times = fast.spans
    found = sorted((e, fast.lines[i], *t) for (e, i), t in zip(rows.tolist(), times.tolist(), strict=True))
    from taygeta.compiler.text import line_of

    assert found == sorted((e, line_of(i), a, b) for e, i, a, b in plain.spans)
    return fast


ONE = """
buffer x hbm 0 4096 2048 bf16 input
buffer a sram 0 4096 2048 bf16 scratch
buffer b sram 4096 4096 2048 bf16 scratch
"""


def test_one_transfer():
    p = program("load dma a[0:+2048] <- x[0:+2048] cores=1", ONE)
    assert both(p, plain_target()).cycles == 4096 / 32 + 100  # its port is the narrowest; then the latency


def test_a_second_transfer_of_an_engine_starts_before_the_first_arrives():
    p = program("load dma a[0:+2048] <- x[0:+2048] cores=1\nload dma b[0:+2048] <- x[0:+2048] cores=1", ONE)
    assert both(p, plain_target()).cycles == 2 * 128 + 100


def test_two_engines_share_the_port_and_then_one_has_it():
    p = program("load dma a[0:+2048] <- x[0:+2048] cores=1\nstream dma b[0:+1024] <- x[0:+1024] cores=1", ONE)
    # Each has 16 bytes a clock until the stream's 2048 have moved at 128; the load's last 2048 take 64 more.
    t = both(p, plain_target())
    assert t.cycles == 128 + 64 + 100
    assert {e.engine: e.busy for e in t.engines if e.busy} == {"stream": 128.0, "load": 192.0}


def test_cores_share_main_memory():
    p = program("load dma a[0:+64] <- x[core, 0:+64] cores=4", "buffer x hbm 0 512 4x64 bf16 input\n"
                "buffer a sram 0 128 64 bf16 scratch", cores=4)  # fmt: skip
    t = both(p, plain_target(4))
    assert t.cycles == 4 * 128 / 64 + 100
    assert t.bytes == {"hbm": 512.0, "shared": 0.0, "link": 0.0, "port": 512.0}


def test_a_broadcast_is_read_once():
    p = program("load dma a[0:+64] <- x[0:+64] cores=4", "buffer x hbm 0 128 64 bf16 input\n"
                "buffer a sram 0 128 64 bf16 scratch", cores=4)  # fmt: skip
    # hbm gives 128 bytes once; the ports take 128 each at 32; three copies cross the shared memory: 384 at 128.
    t = both(p, plain_target(4))
    assert t.cycles == 128 / 32 + 100
    assert t.bytes == {"hbm": 128.0, "shared": 384.0, "link": 0.0, "port": 512.0}


def test_fair_shares_leave_no_room_unused():
    """One core is held by its port, so the others have what it leaves of the main memory."""
    p = program("load dma a[0:+64] <- x[core, 0:+64] cores=3\nstream dma b[0:+64] <- x[core, 64:+64] cores=1",
                "buffer x hbm 0 768 3x128 bf16 input\nbuffer a sram 0 128 64 bf16 scratch\n"
                "buffer b sram 128 128 64 bf16 scratch", cores=3)  # fmt: skip
    # Four transfers would have 30 of 120 each; core 0's two have 16 of its port's 32 and leave 44 each, which the
    # other ports cut to 32: those end at 128 / 32 = 4, core 0's at 128 / 16 = 8.
    assert both(p, plain_target(3, hbm=120.0)).cycles == 8 + 100


def test_double_buffering_hides_the_transfers():
    """Weights of 512 bytes take 16 clocks and 20 to arrive, in two slots behind multiplies of 48: seen once."""
    target = plain_target(2, dma_latency=20.0)
    t = both(matmuls(turns=2, stored=False), target)
    tile = target.tensor("bf16").cycles(4, 8, 32)
    assert tile == 48
    # The operand's 256 bytes share the port: 16 clocks; then the weights' last 256 take 8 more, and 20 to arrive.
    # There is one place for sums, so each multiply but the first waits 4 clocks for 32 elements to be copied.
    # The array itself is taken for its drain of 16 clocks a tile.
    tensor = next(e for e in t.engines if e.engine == "tensor")
    assert tensor.busy == 4 * 16
    assert tensor.end == 16 + 8 + 20 + 4 * 48 + 3 * 4


def test_a_barrier_waits_for_the_last_core():
    body = """
    vector copy a[0:+80] <- e[0:+80] cores=2
    vector copy b[0:+40] <- e[0:+40] cores=1
    vector signal done cores=2
    tensor wait done cores=2
    tensor matmul c[0:+4, 0:+4] <- d[0:+4, 0:+4], d[0:+4, 0:+4] cores=2 mode="bf16"
    """
    declared = """
    buffer a sram 0 320 80 fp32 scratch
    buffer b sram 320 320 80 fp32 scratch
    buffer c sram 640 64 4x4 fp32 scratch
    buffer d sram 704 32 4x4 bf16 scratch
    buffer e sram 1000 320 80 fp32 scratch
    semaphore done chip 0
    """
    t = plain_target(2)
    # Core 0 copies 80 and 40 elements at 8 a clock; the signal is seen 10 clocks later.
    assert both(program(body, declared, 2), t).cycles == 10 + 5 + 10 + t.tensor("bf16").cycles(4, 4, 4)


def test_what_is_received_arrives_a_link_later():
    body = """
    link send y[chip, 0:+8] <- x[0:+8] cores=2 hop=1
    link receive cores=2 hop=1
    link signal heard cores=2
    load wait heard cores=2
    load dma a[0:+8] <- y[0, 0:+8] cores=2
    """
    declared = """
    buffer x hbm 0 16 8 bf16 input
    buffer y hbm 16 32 2x8 bf16 scratch
    buffer a sram 0 16 8 bf16 scratch
    semaphore heard chip 0
    """
    # 16 bytes of each of two cores over 16 bytes a clock, 500 of the link, 10 of the barrier; then 16 at 32, and 100.
    assert both(program(body, declared, 2, chips=2), plain_target(2)).cycles == 2 + 500 + 10 + 16 / 32 + 100


@pytest.mark.parametrize("n", [4, 8, 16])
def test_tiles_of_an_output_stationary_array(n):
    """K + 2 (N - 1) + N clocks a tile, as measured in RTL."""
    unit = TensorUnit("int8", n, n, 1, 1, n, 0, 1.0)
    for k in (1, n, 5 * n):
        assert unit.cycles(n, n, k) == k + 2 * (n - 1) + n


def test_tiles_back_to_back_on_the_engine():
    """Three multiplies that wait for nothing: an array drains one as it takes in the next; the last has its skew."""
    body = 'loop i 3\ntensor matmul c[0:+16, 0:+16] <- a[0:+16, 0:+40], a[0:+16, 0:+40] cores=1 mode="bf16"\nend'
    declared = "buffer a sram 0 1280 16x40 bf16 scratch\nbuffer c sram 1280 1024 16x16 fp32 scratch"
    # 16 lanes: 3 clocks of products in an array that drains for 16; alone 3 + 15 + 15 + 16.
    assert both(program(body, declared), plain_target()).cycles == 2 * 16 + 3 + 15 + 15 + 16


RAGGED = """
loop l 2
loop x 3 when tokens+0*chip
vector copy b[0:+8?, 0:+4] <- a[0:+8?, 0:+4] cores=1
end
end"""
LISTS = "table tokens 8 3\nbuffer a sram 0 64 8x4 bf16 scratch\nbuffer b sram 64 64 8x4 bf16 scratch"


def test_loops_over_lists_skip_empty_ones_and_scale_with_their_length():
    p = program(RAGGED, LISTS)
    assert both(p, plain_target(), {"tokens": [8, 0, 2]}).cycles == 2 * (8 + 2) * 4 / 8
    assert both(p, plain_target(), {"tokens": [[8, 0, 2], [1, 1, 1]]}).cycles == (10 + 3) * 4 / 8
    assert both(p, plain_target(), lambda table, turns: [turns[0], 0, 0]).cycles == 4 / 8
    with pytest.raises(InputError, match="give routing"):
        time_program(p, plain_target())
    with pytest.raises(InputError, match="at least 3 lengths"):
        time_program(p, plain_target(), {"tokens": [1, 2]})


def test_engines_that_wait_for_one_another_are_named():
    p = program("tensor wait f cores=1\ntensor signal g cores=1\nvector wait g cores=1\nvector signal f cores=1",
                "semaphore f core 0\nsemaphore g core 0")  # fmt: skip
    with pytest.raises(InputError, match=r"stops before its end.*tensor at 'tensor wait f cores=1'; vector at"):
        time_program(p, plain_target())


def test_critical_path_and_trace():
    t = both(matmuls(), plain_target(2))
    assert sum(t.critical.values()) == pytest.approx(t.cycles)
    assert [p.name for p in t.phases] == ["tiles", "gather"]
    assert t.path[0].end == t.cycles
    assert all(a.begin == pytest.approx(b.end) for a, b in zip(t.path, t.path[1:], strict=False))
    events = perfetto(t)["traceEvents"]
    assert sum(e["ph"] == "X" for e in events) == len(t.spans[0])
    assert max(e["ts"] + e["dur"] for e in events if e["ph"] == "X") <= t.seconds * 1e6


def test_rings_grow_with_engines_that_run_ahead():
    body = "loop i 1000\nvector signal g cores=1\nend\nloop j 1000\ntensor wait g cores=1\nend"
    assert both(program(body, "semaphore g core 0"), plain_target()).cycles == 0


def test_a_transfer_that_starts_under_way_takes_its_share_from_then_on():
    body = """
    load dma a[0:+2048] <- x[0:+2048] cores=1
    vector copy c[0:+512] <- d[0:+512] cores=1
    vector signal go cores=1
    stream wait go cores=1
    stream dma b[0:+512] <- x[0:+512] cores=1
    """
    declared = (
        "buffer c sram 8192 2048 512 fp32 scratch\nbuffer d sram 10240 2048 512 fp32 scratch\nsemaphore go core 0" + ONE
    )
    # Alone for 64 clocks at 32 bytes; then 1024 each at 16 until 128; the load's last 1024 at 32, and 100 to arrive.
    t = both(program(body, declared), plain_target())
    assert t.cycles == 64 + 64 + 32 + 100
    assert {e.engine: e.busy for e in t.engines if e.busy} == {"stream": 64.0, "load": 160.0, "vector": 64.0}


def test_rings_and_logs_grow_while_engines_hand_on_to_each_other():
    """The tensor engine is 2000 events ahead of its reader; stalls are more than logs hold at first."""
    body = """
    loop i 2000
    tensor matmul c[0:+4, 0:+4] <- a[0:+4, 0:+4], a[0:+4, 0:+4] cores=2 mode="bf16"
    tensor signal ahead cores=2
    end
    loop j 3000
    vector signal asked cores=2
    store wait asked cores=2
    store dma y[core, 0:+4, 0:+4] <- b[0:+4, 0:+4] cores=1
    store signal stored cores=2
    vector wait stored cores=2
    end
    loop k 2000
    vector wait ahead cores=2
    vector copy b[0:+4, 0:+4] <- c[0:+4, 0:+4] cores=1
    end
    """
    declared = """
    buffer y hbm 0 64 1x4x4 fp32 output
    buffer a sram 0 32 4x4 bf16 scratch
    buffer b sram 32 64 4x4 fp32 scratch
    buffer c sram 96 64 4x4 fp32 scratch
    semaphore ahead core 0
    semaphore asked core 0
    semaphore stored chip 0
    """
    target = plain_target(2)
    t = both(program(body, declared, 2), target)
    # Each turn moves 64 bytes at 32 a clock, which arrive after 100 and are seen after 10; copies of 16 at 8 a clock.
    assert t.cycles == 3000 * (2 + 100 + 10) + 2000 * 2
    assert sum(t.critical.values()) == pytest.approx(t.cycles)


@settings(max_examples=60, deadline=None)
@given(pipelines())
def test_random_pipelines(p):
    target = plain_target(p.cores)
    t = both(p, target)
    bounds = program_bounds(p, target)
    assert bounds.lower <= t.cycles * (1 + 1e-12)
    assert t.cycles <= bounds.upper * (1 + 1e-12)
    assert sum(t.critical.values()) == pytest.approx(t.cycles)
