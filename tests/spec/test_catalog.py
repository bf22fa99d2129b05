"""The catalogue: every sheet loads, adds up and says where its numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.base.formats import FORMATS
from taygeta.spec.catalog import chip, chip_names, family_names, sheet
from taygeta.spec.chip import build_chip
from taygeta.spec.fields import FIELDS, MODES
from taygeta.spec.sheet import Sheet, parse_sheet, read_sheet

DATA = Path(__file__).parents[2] / "src" / "taygeta" / "data"
OWN = {name: read_sheet(DATA / "chips" / f"{name}.toml") for name in chip_names()}


def test_the_chips_of_the_catalogue():
    expected = """a100 a100-40gb a40 arc-pro-b60 b200 b300 blackhole-p150 cobalt-100 cobalt-200 gaudi2 gaudi3 gb200
    gb300 gh200 graviton4 groq-3-lpu groq-lpu-v1 h100 h100-pcie h200 inferentia2 l4 l40s maia-100 maia-200 mi210 mi300x
    mi325x mi355x rtx-pro-6000 sn40l tpu-v2 tpu-v3 tpu-v4 tpu-v5e tpu-v5p tpu-v6e tpu-v7 trainium2 trainium3
    wormhole-n150 xeon-6980p xeon-8480"""
    assert chip_names() == tuple(expected.split())


@pytest.mark.parametrize("name", chip_names())
def test_builds_at_every_corner(name: str):
    found = sheet(name)
    slow, nominal, fast = (build_chip(found, corner) for corner in ("slow", "nominal", "fast"))
    assert nominal.id == name
    assert nominal.kind in ("gpu", "tpu", "npu", "cpu")
    for mode in nominal.peaks:
        assert 0 < slow.peaks[mode] <= nominal.peaks[mode] <= fast.peaks[mode]
    for level in ("hbm", "cache"):
        assert getattr(slow, level).bandwidth <= getattr(nominal, level).bandwidth <= getattr(fast, level).bandwidth
    assert slow.vector_flop_per_s <= nominal.vector_flop_per_s <= fast.vector_flop_per_s
    assert nominal.host_bandwidth > 0
    assert nominal.network is not None
    if nominal.link is not None:
        assert slow.link is not None
        assert fast.link is not None
        assert slow.link.latency >= nominal.link.latency >= fast.link.latency > 0
        assert nominal.link.domain > 1


@pytest.mark.parametrize("name", chip_names())
def test_every_number_has_a_source_or_a_reason(name: str):
    for path, entry in OWN[name].entries.items():
        if entry.assumed:
            assert len(entry.reason) > 10, path
        else:
            assert " " in entry.source, f"{path}: {entry.source!r} is no citation but a key that [sources] lacks"
            assert entry.source != "this file", path


@pytest.mark.parametrize("name", chip_names())
def test_peaks_are_cores_x_macs_x_2_x_clock(name: str):
    entries = OWN[name].entries
    for mode in MODES:
        peak, macs = entries.get(f"tensor.peak.{mode}"), entries.get(f"tensor.macs.{mode}")
        if peak and macs:
            counted = entries["cores.count"].nominal * macs.nominal * 2 * entries["clock"].nominal
            assert counted == pytest.approx(peak.nominal, rel=0.05), mode


@pytest.mark.parametrize("name", chip_names())
def test_every_weight_format_can_be_multiplied(name: str):
    found = chip(name)
    assert set(found.activations) == set(FORMATS)
    for weights, activations in found.activations.items():
        if weights != "fp32":  # tensor units without fp32 refuse it
            assert found.mode(weights, activations) in found.peaks


def test_names_and_aliases_mean_one_chip_each():
    seen: dict[str, str] = {}
    for name, own in OWN.items():
        assert own.id == name
        for alias in (name, *own.aliases):
            key = alias.lower().replace("_", "-").replace(" ", "-")
            assert key == alias, f"{name}: alias {alias!r} is written {key!r}"
            assert seen.setdefault(key, name) == name, f"{alias} means {seen[key]} and {name}"
            assert sheet(alias).id == name


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("H100_SXM", "h100"), ("h100 sxm", "h100"), ("h200_sxm", "h200"), ("b200_sxm", "b200"),
        ("b300_sxm", "b300"), ("gb200_sxm", "gb200"), ("rtx_pro_6000_server", "rtx-pro-6000"),
        ("a100_sxm", "a100"), ("a100_sxm_40gb", "a100-40gb"), ("h100_pcie", "h100-pcie"),
        ("b60", "arc-pro-b60"), ("maia", "maia-100"), ("Maia 200", "maia-200"), ("ironwood", "tpu-v7"),
        ("tpu7x", "tpu-v7"), ("Trillium", "tpu-v6e"), ("Grace-Blackwell", "gb200"), ("trn2", "trainium2"),
        ("groq", "groq-lpu-v1"), ("xeon_8480plus", "xeon-8480"),
    ],
)  # fmt: skip
def test_what_people_type(typed: str, name: str):
    assert sheet(typed).id == name


def test_unknown_names_are_refused_with_what_is_close():
    with pytest.raises(UnknownNameError) as caught:
        chip("maia-300")
    assert str(caught.value) == (
        "Chip 'maia-300' is neither in the catalogue nor a file. Did you mean maia-200 or maia-100 or maia200? "
        "`taygeta chips` lists the catalogue; a .toml file works too."
    )
    with pytest.raises(UnknownNameError) as caught:
        chip("abacus")
    assert str(caught.value) == (
        "Chip 'abacus' is neither in the catalogue nor a file. "
        "`taygeta chips` lists the catalogue; a .toml file works too."
    )
    with pytest.raises(InputError, match=r"^Chip file nowhere/mine\.toml does not exist\.$"):
        chip("nowhere/mine.toml")
    with pytest.raises(UnknownNameError):
        chip("x" * 5000)  # longer than a file name may be


def test_h100_by_hand():
    h100 = chip("h100")
    assert (h100.cores, h100.clock, h100.tile) == (132, 1.83e9, (16, 8, 16))
    assert dict(h100.peaks) == {"fp32": 67e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp8": 1978.9e12, "int8": 1978.9e12}
    assert (h100.hbm.capacity, h100.hbm.bandwidth) == (80 * 2**30, 3.35e12)
    assert (h100.cache.capacity, h100.cache.bandwidth) == (50 * 2**20, 9.37e12)  # 5,120 B x 1.83 GHz
    assert chip("h100", corner="slow").cache.bandwidth == 5.5e12  # measured
    assert (h100.exp_per_clock, h100.core_sram, h100.power) == (16, 256 * 1024, 700)
    assert h100.link is not None
    assert (h100.link.bandwidth, h100.link.topology, h100.link.domain) == (450e9, "switch", 8)
    assert h100.network is not None
    assert h100.network.bandwidth == 50e9  # 400 Gb/s
    assert h100.price == (1.99, 2.95, 6.88)
    assert h100.mode("mxfp4", h100.activations["mxfp4"]) == "bf16"  # no 4-bit arithmetic: weights are widened
    assert h100.mode("fp8", h100.activations["fp8"]) == "fp8"


def test_maia_100_by_hand():
    maia = chip("maia-100")
    assert (maia.cores, maia.tile) == (64, (16, 16, 16))
    assert dict(maia.peaks) == {"bf16": 0.8e15, "mx9": 1.5e15, "mx6": 3e15}
    assert (maia.hbm.capacity, maia.hbm.bandwidth) == (64 * 2**30, 1.8e12)
    assert maia.core_sram * 64 + maia.cache.capacity == 500e6  # L1 of 64 tiles and L2 of 16 clusters
    assert maia.link is not None
    assert (maia.link.bandwidth, maia.link.topology, maia.link.domain) == (12 * 400e9 / 8, "mesh", 4)
    slow = chip("maia-100", corner="slow")
    assert slow.link is not None
    assert slow.link.bandwidth == 9 * 400e9 / 8  # the ports inside a node
    assert maia.network is not None
    assert maia.network.bandwidth == 3 * 400e9 / 8
    assert maia.mode("mxfp4", maia.activations["mxfp4"]) == "mx9"
    assert maia.mode("mx6", "mx6") == "mx6"


def test_tpu_v5p_by_hand():
    tpu = chip("tpu-v5p")
    assert (tpu.cores, tpu.tile) == (2, (128, 128, 1))
    assert tpu.peaks["bf16"] == 459e12
    assert 2 * 4 * 128 * 128 * 2 * tpu.clock == pytest.approx(459e12, rel=0.001)  # 2 cores of 4 arrays
    assert (tpu.hbm.capacity, tpu.hbm.bandwidth) == (95 * 2**30, 2.765e12)
    assert tpu.cache.capacity == 0
    assert tpu.core_sram == 64 * 2**20
    assert tpu.link is not None
    assert (tpu.link.bandwidth, tpu.link.topology, tpu.link.domain) == (600e9, "torus3d", 8960)


REQUIRED = {
    "clock": "1 GHz",
    "cores": {"count": 8},
    "hbm": {"capacity": "8 GB", "bandwidth": "1 TB/s"},
    "tensor": {"macs": {"bf16": 64}},
}


@pytest.mark.parametrize("name", family_names())
def test_a_family_completes_a_sheet_of_required_numbers(name: str):
    family = read_sheet(DATA / "families" / f"{name}.toml", "family")
    assert all(entry.assumed for path, entry in family.entries.items() if not path.startswith("calibration."))
    assert set(family.activations) == set(FORMATS)
    assert family.texts["kind"] in ("gpu", "tpu", "npu", "cpu")
    completed = parse_sheet({"id": "x", **REQUIRED}, "x").over(family)
    for corner in ("slow", "nominal", "fast"):
        built = build_chip(completed, corner)
        assert built.peaks["bf16"] == 8 * 64 * 2 * 1e9
    assert min(built.tile) >= 1
    assert built.host_bandwidth > 0


def test_families_are_named_by_chips_or_are_for_chips_of_ones_own():
    used = {own.texts["family"] for own in OWN.values()}
    assert used | {"generic-npu", "generic-gpu", "generic-cpu"} == set(family_names())


def test_the_sheet_over_its_family_keeps_its_own_numbers():
    family: Sheet = read_sheet(DATA / "families" / "nvidia-hopper.toml", "family")
    h100 = sheet("h100")
    for path, entry in OWN["h100"].entries.items():
        assert h100.entries[path] == entry
    for path in set(h100.entries) - set(OWN["h100"].entries):
        assert h100.entries[path].nominal == family.entries[path].nominal
        assert h100.entries[path].origin == "family"
    assert set(h100.entries) <= set(FIELDS)


def test_the_page_about_chips_lists_every_chip_and_its_example_builds(tmp_path: Path):
    page = (DATA.parents[2] / "docs" / "chips.md").read_text()
    for name in chip_names():
        assert f"\n| {name} | {OWN[name].texts['name']} | " in page
    example = page.split("## A chip of your own\n")[1].split("\n\n")[0].replace("    ", "")
    (tmp_path / "mine.toml").write_text(example)
    assert chip(str(tmp_path / "mine.toml")).peaks["bf16"] == 64 * 4096 * 2 * 1.5e9
