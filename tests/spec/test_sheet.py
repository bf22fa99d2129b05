"""Chip files: what is read, what is refused and in which words, and how settings change a chip."""

from __future__ import annotations

import tomllib
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError, TaygetaError
from taygeta.spec.catalog import chip, chip_names, sheet
from taygeta.spec.chip import build_chip
from taygeta.spec.fields import FIELDS
from taygeta.spec.sheet import MAX_FILE_BYTES, parse_sheet, read_sheet

DATA = Path(__file__).parents[2] / "src" / "taygeta" / "data" / "chips"
MINE = """
id = "mine"
family = "generic-npu"
clock = "1 GHz"
cores.count = 64
tensor.macs.bf16 = 4096
hbm.capacity = "64 GB"
hbm.bandwidth = "2 TB/s"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a chip of one's own."""
    file = tmp_path / "mine.toml"
    file.write_text(MINE)
    return file


def refusal(path: Path, settings: dict[str, str] | None = None) -> str:
    """Return the sentence with which a file is refused, its name replaced by FILE."""
    with pytest.raises(InputError) as caught:
        chip(str(path), settings)
    return str(caught.value).replace(str(path), "FILE")


def test_a_file_of_ones_own_needs_seven_lines(path: Path):
    mine = chip(str(path))
    assert (mine.id, mine.cores, mine.clock) == ("mine", 64, 1e9)
    assert dict(mine.peaks) == {"bf16": 64 * 4096 * 2 * 1e9}  # 524.288 TFLOP/s
    assert (mine.hbm.capacity, mine.hbm.bandwidth) == (64e9, 2e12)
    assert mine.kind == "npu"  # the family's
    assert mine.network is not None
    assert mine.link is None  # no bandwidth of links is given, and no family invents one


def test_the_origin_and_the_source_of_a_number(path: Path):
    path.write_text(
        MINE
        + 'sram.per_core = { value = "1 MB", source = "ds" }\n'
        + 'cache.capacity = { value = "8 MB", source = "a rumour" }\n'
        + '[sources]\nds = "Datasheet, p. 3"\n'
    )
    entries = sheet(str(path), {"host.bandwidth": "8 GB/s"}).entries
    assert (entries["clock"].source, entries["clock"].origin) == ("this file", "chip")
    assert entries["sram.per_core"].source == "Datasheet, p. 3"
    assert entries["cache.capacity"].source == "a rumour"
    assert (entries["host.bandwidth"].source, entries["host.bandwidth"].origin) == ("set by the user", "user")
    assert entries["vector.exp_per_clock"].origin == "family"
    assert entries["vector.exp_per_clock"].assumed


def test_the_corners_of_an_assumption(path: Path):
    path.write_text(
        MINE.replace(
            'clock = "1 GHz"', 'clock = { low = "0.5 GHz", nominal = "1 GHz", high = "2 GHz", reason = "guess" }'
        )
        + 'link.bandwidth = "100 GB/s"\n'
    )
    found = sheet(str(path))
    assert [build_chip(found, corner).clock for corner in ("slow", "nominal", "fast")] == [0.5e9, 1e9, 2e9]
    latencies = []
    for corner in ("slow", "nominal", "fast"):
        link = build_chip(found, corner).link
        assert link is not None
        latencies.append(link.latency)
    assert latencies == [5e-6, 1.5e-6, 0.5e-6]  # more latency is slower: the generic family's, the other way round
    assert ("clock", found.entries["clock"]) in found.assumptions()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"1 GHz"', "1.0", "FILE: clock = 1.0 has no unit: write a frequency such as '1.83 GHz'."),
        (
            '"64 GB"', '"64 GB/s"',
            "FILE: hbm.capacity must be a size such as '80 GiB', not '64 GB/s', which is a bandwidth.",
        ),
        (
            '"2 TB/s"', '"2 TB"',
            "FILE: hbm.bandwidth must be a bandwidth such as '3.35 TB/s', not '2 TB', which is a size.",
        ),
        ('"2 TB/s"', '"0 TB/s"', "FILE: hbm.bandwidth must be greater than zero, not '0 TB/s'."),
        ("= 64\n", "= 64.5\n", "FILE: cores.count must be a whole number, not 64.5."),
        (
            "cores.count", "core.count",
            "FILE: core.count is not a field of a chip. Did you mean cores.count or cores.name?",
        ),
        ("clock =", "zzzz =", "FILE: zzzz is not a field of a chip. `taygeta show --fields` lists them."),
        (
            "clock", "a.b.c.d.e.f",
            "FILE: a.b.c.d.e.f is not a field of a chip: tables are at most four deep.",
        ),
        (
            'clock = "1 GHz"\n', "",
            "FILE: clock is missing: sustained clock of the tensor unit, such as '1.83 GHz'.",
        ),
        (
            "tensor.macs.bf16 = 4096\n", "",
            "FILE: no peak is given: write tensor.peak.bf16 such as '989 TFLOP/s', or tensor.macs.bf16.",
        ),
        (
            '"1 GHz"', '{ low = "1 GHz", nominal = "1 GHz", high = "2 GHz" }',
            "FILE: clock: an assumption needs low, nominal, high and a reason; reason is missing.",
        ),
        (
            '"1 GHz"', '{ nominal = "1 GHz", reason = "x" }',
            "FILE: clock: an assumption needs low, nominal, high and a reason; low is missing.",
        ),
        (
            '"1 GHz"', '{ low = "2 GHz", nominal = "1 GHz", high = "3 GHz", reason = "x" }',
            "FILE: clock: an assumption needs low <= nominal <= high, not '2 GHz', '1 GHz', '3 GHz'.",
        ),
        (
            '"1 GHz"', '{ value = "1 GHz", origin = "x" }',
            "FILE: clock: 'origin' is not a key of a number: use value and source, or low, nominal, high "
            "and reason.",
        ),
        ('"1 GHz"', '{ value = "1 GHz", source = 7 }', "FILE: clock: source must be a text, not 7."),
        (
            'family = "generic-npu"', "",
            "FILE: family is missing: it names the defaults for what the file leaves out; one of "
            "amd-cdna2, ",
        ),
        (
            '"generic-npu"', '"generic-xpu"',
            "Family 'generic-xpu' is neither in the catalogue nor a file. Did you mean generic-npu or "
            "generic-gpu or generic-cpu? Families are amd-cdna2, ",
        ),
        (
            'id = "mine"', "",
            "FILE: id is missing: the name by which a command knows the chip, such as 'my-chip'.",
        ),
        ('id = "mine"', "id = 7", "FILE: id must be a text, not 7."),
        (
            'id = "mine"', 'id = "mine"\nlink.topology = "star"',
            "FILE: link.topology must be one of switch, mesh, ring, torus2d, torus3d, pcie, not 'star'.",
        ),
        (
            'id = "mine"', 'id = "mine"\nkind = "dpu"',
            "FILE: kind must be one of gpu, tpu, npu, cpu, not 'dpu'.",
        ),
        ('id = "mine"', 'id = "mine"\naliases = "m"', "FILE: aliases must be a list of texts, not 'm'."),
        ('id = "mine"', 'id = "mine"\nsources = 3', "FILE: sources must be a table of texts, not 3."),
        (
            'id = "mine"', 'id = "mine"\nactivations = { fp5 = "bf16" }',
            "FILE: activations: 'fp5' is not a format; formats are fp32, bf16, ",
        ),
        (
            "id =", "id",
            "FILE is not a TOML file: Expected '=' after a key in a key/value pair (at line 2, column 4).",
        ),
    ],
)  # fmt: skip
def test_refuses_in_one_sentence(path: Path, old: str, new: str, message: str):
    assert old in MINE
    path.write_text(MINE.replace(old, new))
    said = refusal(path)
    assert said == message or (message.endswith(", ") and said.startswith(message))


def test_refuses_a_peak_that_the_cores_cannot_reach(path: Path):
    path.write_text(MINE + 'tensor.peak.bf16 = "1 PFLOP/s"\n')
    assert refusal(path) == (
        "FILE: tensor.peak.bf16 = 1 PFLOP/s is impossible: cores x MACs x 2 x clock is 524.3 TFLOP/s."
    )
    path.write_text(MINE + 'tensor.peak.bf16 = "550 TFLOP/s"\n')  # 4.9 % above: clocks and peaks are rounded
    assert chip(str(path)).peaks["bf16"] == 550e12


def test_refuses_files_that_are_no_chip_files(path: Path, tmp_path: Path):
    path.write_bytes(b"\xff\xfe\x00")
    assert refusal(path).startswith("FILE is not a TOML file: 'utf-8' codec can't decode byte 0xff in position 0")
    path.write_text("a = " + "[" * 100_000)
    assert refusal(path).startswith("FILE is not a TOML file: ")
    path.write_text("clock = " + "9" * 5000)
    assert refusal(path).startswith("FILE is not a TOML file: Exceeds the limit")
    path.write_text(MINE + "#" * MAX_FILE_BYTES)
    assert refusal(path) == "FILE is larger than 256 KiB: a chip file is a few kilobytes."
    missing = tmp_path / "none.toml"
    assert refusal(missing) == "Chip file FILE does not exist."
    with pytest.raises(InputError, match=r"cannot be read: Is a directory\.$"):
        read_sheet(tmp_path)


def test_clock_and_cores_scale_the_peaks():
    full = chip("h100")
    half = chip("h100", {"clock": "0.915 GHz"})
    assert half.peaks["bf16"] == pytest.approx(494.7e12)
    assert half.peaks["fp8"] == pytest.approx(989.45e12)
    assert half.vector_flop_per_s == pytest.approx(33.5e12)
    assert half.hbm == full.hbm
    quarter = chip("h100", {"clock": "0.915 GHz", "cores.count": "66"})
    assert quarter.cores == 66
    assert quarter.peaks["bf16"] == pytest.approx(247.35e12)
    mixed = chip("h100", {"clock": "0.915 GHz", "tensor.peak.bf16": "900 TFLOP/s"})
    assert mixed.peaks["bf16"] == 900e12  # what is set stays as set
    assert mixed.peaks["fp8"] == pytest.approx(989.45e12)
    assert chip("cobalt-100", {"clock": "1.7 GHz"}).peaks["bf16"] == 128 * 32 * 2 * 1.7e9  # peaks that follow from MACs


def test_refuses_settings_in_one_sentence():
    said = refusal(Path("h100"), {"hbm.bandwith": "3 TB/s"})
    assert said == (
        "--set hbm.bandwith: hbm.bandwith is not a field of a chip. "
        "Did you mean hbm.bandwidth or host.bandwidth or cache.bandwidth?"
    )
    assert refusal(Path("h100"), {"hbm.bandwidth": "3 TB"}) == (
        "--set hbm.bandwidth must be a bandwidth such as '3.35 TB/s', not '3 TB', which is a size."
    )
    assert refusal(Path("h100"), {"clock": "0 GHz"}) == "--set clock must be greater than zero, not '0 GHz'."


REAL = [tomllib.loads(file.read_text()) for file in sorted(DATA.glob("*.toml"))]
BYTES = [file.read_bytes() for file in sorted(DATA.glob("*.toml"))]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just(10**400),
    st.sampled_from(["1 GHz", "3 TB/s", "1 PB", "0 B", "10 us", "1e30 FLOP/s", "nan GHz", "1e-320 GHz"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["value", "low", "nominal", "high", "reason"]), st.text(max_size=6), max_size=4),
)  # fmt: skip


def survives(document: dict) -> None:
    """Build a chip at three corners, or be refused: nothing else may come out."""
    try:
        found = parse_sheet(document, "fuzz").over(sheet("h100"))
        for corner in ("nominal", "fast", "slow"):
            build_chip(found, corner)
    except TaygetaError:
        pass


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_field_is_read_or_refused(data: st.DataObject):
    document = deepcopy(data.draw(st.sampled_from(REAL)))
    for _ in range(data.draw(st.integers(1, 4))):
        table = document
        *tables, leaf = data.draw(st.sampled_from([*FIELDS, "sources", "activations", "aliases", "id"])).split(".")
        for name in tables:
            below = table.get(name)
            table = below if isinstance(below, dict) else table.setdefault(name, {}) if below is None else {}
        table[leaf] = data.draw(JUNK)
    survives(document)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject):
    content = bytearray(data.draw(st.sampled_from([*BYTES, b""])))
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    file = tmp_path / "fuzz.toml"
    file.write_bytes(content)
    try:
        found = read_sheet(file)
        for corner in ("nominal", "fast", "slow"):
            build_chip(found, corner)
    except TaygetaError:
        pass


@given(
    st.sampled_from(("maia-100", "h100", "cobalt-100", "sn40l")),
    st.dictionaries(
        st.sampled_from((*FIELDS, "clok")),
        st.sampled_from(("1", "0", "7 GHz", "2 TB/s", "4 GB", "1 ns", "1e30", "1 EFLOP/s", "9 $/h", "1 W", ""))
        | st.text(max_size=8),
        max_size=3,
    ),
)
def test_any_setting_is_applied_or_refused(name: str, changes: dict[str, str]):
    try:
        for corner in ("nominal", "fast", "slow"):
            built = chip(name, changes, corner)
    except TaygetaError:
        return
    assert all(peak > 0 for peak in built.peaks.values())


@given(st.text(max_size=300))
def test_any_name_is_found_or_refused(name: str):
    try:
        found = chip(name).id
    except TaygetaError:
        return
    assert found in chip_names()


def test_a_text_that_says_how_something_works_can_be_set() -> None:
    assert sheet("maia-100", {"tensor.scale_rule": "rceil"}).texts["tensor.scale_rule"] == "rceil"
    assert refusal(Path("h100"), {"tensor.parallel": "both"}) == (
        "--set tensor.parallel: tensor.parallel must be one of gather, reduce, not 'both'."
    )
    for wide in ("11", "41", "x", "9" * 30, "²"):
        assert "must be tree, exact or 12 to 40 bits" in refusal(Path("h100"), {"tensor.wide_sum": wide})
    assert sheet("h100", {"tensor.wide_sum": "12"}).texts["tensor.wide_sum"] == "12"
