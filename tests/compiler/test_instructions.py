"""Work of instructions, counted by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taygeta.compiler.instructions import work_of
from taygeta.compiler.work import Work, digit, distinct

sys.path.insert(0, str(Path(__file__).parent))
from small_programs import plain_target, program

DECLARED = """
buffer x hbm 0 2048 8x4x32 bf16 input
buffer q hbm 4096 1088 32x32 mxfp8 constant
buffer y shared 0 2048 8x4x32 bf16 scratch
buffer a sram 0 256 4x32 bf16 scratch
buffer b sram 256 4096 32x32 fp32 scratch
buffer c sram 4352 1088 32x32 mxfp8 scratch
buffer d sram 6000 512 4x32 fp32 scratch
buffer e sram 256 4096 32x32 fp32 scratch
"""


def work(line: str, cores: int = 8, rows: int | None = None) -> Work:
    p = program(line, DECLARED, cores)
    return work_of(next(p.instructions()), p, plain_target(cores), rows)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        # 4 x 32 of 2 bytes for every core, each its own
        ("load dma a[0:+4, 0:+32] <- x[core, 0:+4, 0:+32] cores=8", Work(port=256, hbm=256, latency=100)),
        # two cores share each: half is read, the other half copied over the shared memory
        ("load dma a[0:+4, 0:+32] <- x[core/2, 0:+4, 0:+32] cores=8", Work(port=256, hbm=128, shared=128, latency=100)),
        # 32 x 32 elements of 1 byte and a scale in 32, once for all eight: an eighth, and seven eighths copied
        ("stream dma c[0:+32, 0:+32] <- q[0:+32, 0:+32] cores=8", Work(port=1056, hbm=132, shared=924, latency=100)),
        ("store dma y[core, 0:+4, 0:+32] <- a[0:+4, 0:+32] cores=8", Work(port=256, shared=256, latency=10)),
        ("link send y[core, 0:+4, 0:+32] <- y[core, 0:+4, 0:+32] cores=8", Work(shared=256, link=256, latency=500)),
        ("link receive cores=8", Work()),
        ("load wait f cores=8", Work()),
        # 4 x 32 elements of 2 and of 4 bytes, 16 bytes a clock
        ("vector quantise a[0:+4, 0:+32] <- d[0:+4, 0:+32] cores=8", Work(cycles=128 * 6 / 16)),
        # one operation an element, eight a clock; with one exponential a clock for `activate`
        ("vector copy d[0:+4, 0:+32] <- a[0:+4, 0:+32] cores=8", Work(cycles=16)),
        ("vector activate d[0:+4, 0:+32] <- a[0:+4, 0:+32] cores=8", Work(cycles=4 * 16 + 128)),
    ],
)  # fmt: skip
def test_work_by_hand(line, wanted):
    assert work(line) == wanted


def test_a_multiply_takes_what_its_unit_takes():
    line = 'tensor matmul d[0:+4, 0:+32] <- a[0:+4, 0:+32], b[0:+32, 0:+32] cores=1 mode="bf16"'
    # A 16 x 16 array of 16 lanes: two tiles of 2 clocks of products, each held for its drain of 16; the second is out
    # 16 clocks after the first, which takes 2 + 15 + 15 + 16.
    assert work(line) == Work(cycles=32, latency=48 + 16 - 32)
    assert work(line + ' order="kn"') == work(line)


def test_a_list_has_as_much_work_as_it_is_long():
    line = "vector copy d[0:+4?, 0:+32] <- a[0:+4?, 0:+32] cores=1"
    assert work(line, rows=1) == Work(cycles=4)
    assert work(line, rows=9) == Work(cycles=16)


def test_a_multiply_is_as_long_as_the_list_of_its_rows_where_they_are_one():
    wide = 'tensor matmul e[0:+32{0}, 0:+32] <- b[0:+32{0}, 0:+32], b[0:+32, 0:+32] cores=1 mode="bf16"'
    # 32 rows are two tiles of the array, and so 2 x 2 with the columns; 9 rows of a list are one, and 1 x 2.
    assert work(wide.format("?"), rows=9).cycles == 32
    assert work(wide.format("?"), rows=32).cycles == work(wide.format(""), rows=9).cycles == 64


def test_digits_of_a_number():
    assert [digit("core/4%16", n) for n in (3, 4, 37, 64)] == [0, 1, 9, 0]
    assert digit("core%8", 13) == 5
    line = "load dma a[0:+4, 0:+32] <- x[core/2%2, 0:+4, 0:+32] cores=8"
    assert distinct(next(program(line, DECLARED, 8).instructions()).inputs[0], 8) == 2
