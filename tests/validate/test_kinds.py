"""Kinds of rows: told by hand, each with the error constant of its own, and the kernel's where it has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
import pytest
from silicon_rows import comm_row, decode_row, gemm_row, moe_row, prefill_row

from taygeta.spec.catalog import chip as find_chip
from taygeta.spec.catalog import sheet
from taygeta.spec.chip import Chip, build_chip
from taygeta.spec.fields import ERROR_KINDS
from taygeta.validate.kinds import attention_kind, collective_kinds, kinds_of, library_kinds
from taygeta.validate.run import answer_frame
from taygeta.validate.systems import System, Systems
from taygeta.validate.tables import TABLES

ONE = np.ones(1)


def test_near_is_a_roofline_of_half_the_prediction():
    found = library_kinds("vllm", np.array([2.0, 2.0, 2.0]), np.array([1.0, 0.999, 1.9]))
    assert found.tolist() == ["vllm_near", "vllm_far", "vllm_near"]
    assert library_kinds("mine", ONE, ONE).tolist() == [""]


@pytest.mark.parametrize(
    ("op", "library", "pairs", "kind"),
    [
        ("all_reduce", "nccl", False, "library_near"),
        ("all_gather", "vidur_torch_nccl", False, "torch_near"),
        ("all_reduce", "vidur_torch_nccl", True, "torch_near"),
        ("all_reduce", "sglang_custom", False, "direct_near"),
        ("alltoall", "nccl", False, "send_near"),
        ("p2p", "vidur_torch_nccl", False, "send_near"),
        ("p2p", "vidur_torch_nccl", True, "bridge"),
    ],
)
def test_collectives_are_told_by_who_sends_to_whom_and_whose_code_does_it(op, library, pairs, kind):
    assert collective_kinds(op, library, pairs, ONE, ONE).tolist() == [kind]


def test_every_kind_has_a_field():
    far = np.zeros(1)
    for framework in ("trtllm", "vllm", "sglang"):
        for roofline in (ONE, far):
            (kind,) = library_kinds(framework, ONE, roofline)
            assert kind in ERROR_KINDS["matmul"]
            assert kind in ERROR_KINDS["experts"]
    for op, library in (("all_reduce", "nccl"), ("all_reduce", "torch"), ("p2p", ""), ("all_reduce", "custom")):
        for pairs in (False, True):
            assert set(collective_kinds(op, library, pairs, np.ones(2), np.array([1.0, 0.0]))) <= set(
                ERROR_KINDS["collective"]
            )
    assert {attention_kind(True), attention_kind(False)} == set(ERROR_KINDS["attention"])


class Told(Systems):
    """An H100 whose errors are 1, 2, 3 % ... of each constant in the order of the fields; and none of its corners."""

    def get(self, name: str) -> System:
        found = super().get(name)
        return replace(found, chips=(with_errors(found.chip, {name: 0.01 * n for n, name in enumerate(NAMES, 1)}),))


NAMES = [f"{kernel}{kind and '_'}{kind}" for kernel, kinds in ERROR_KINDS.items() for kind in ("", *kinds)]


def with_errors(chip: Chip, errors: dict[str, float]) -> Chip:
    rest = {path: value for path, value in chip.constants.items() if not path.startswith("error.")}
    return replace(chip, constants=MappingProxyType(rest | {f"error.{name}": e for name, e in errors.items()}))


ROWS = {
    "gemm": [gemm_row(framework=name, n=n) for name in ("trtllm", "vllm", "sglang", "mine") for n in (64, 65536)],
    "moe": [moe_row(framework=name, num_tokens=64, tp=tp) for name in ("trtllm", "vllm", "sglang") for tp in (1, 32)],
    "attention_prefill": [prefill_row()],
    "attention_decode": [decode_row()],
    "comm": [
        comm_row(gpu=gpu, op=op, library=library, bytes=size, num_gpus=2)
        for gpu, op, library in (
            ("h100_sxm", "all_gather", "nccl"),
            ("h100_sxm", "all_reduce", "vllm_custom"),
            ("h100_sxm", "alltoall", "nccl"),
            ("h100_dgx", "all_gather", "vidur_torch_nccl"),
            ("h100_pairwise_nvlink", "p2p", "vidur_torch_nccl"),
        )
        for size in (1 << 12, 1 << 30)
    ],
}
KERNEL = {"gemm": "matmul", "moe": "experts", "comm": "collective"}


@pytest.mark.parametrize("table", ROWS)
def test_the_range_of_a_row_is_that_of_its_kind(table):
    kind_of_table = next(t for t in TABLES if t.name == table)
    found = answer_frame(kind_of_table, pl.DataFrame(ROWS[table]), Told())
    kinds = kinds_of(table, found)
    kernel = KERNEL.get(table, "attention")
    expected = [1.0 + 0.01 * (NAMES.index(f"{kernel}_{kind}" if kind else kernel) + 1) for kind in kinds]
    assert (found["high_s"] / found["predicted_s"]).to_list() == pytest.approx(expected)
    assert (found["predicted_s"] / found["low_s"]).to_list() == pytest.approx(expected)
    assert len(set(kinds)) == {"gemm": 7, "comm": 8, "moe": 6}.get(table, 1)
    assert kinds[-1] == {"attention_prefill": "prefill", "attention_decode": "decode", "comm": "bridge"}.get(
        table, kinds[-1]
    )


OWN = """
id = "mine"
name = "Mine"
family = "nvidia-hopper"
kind = "gpu"
clock = "1.5 GHz"
[cores]
count = 100
[tensor.peak]
bf16 = "500 TFLOP/s"
[hbm]
capacity = "80 GB"
bandwidth = "3 TB/s"
[calibration]
"""


def mine(tmp_path: Path, lines: str) -> System:
    path = tmp_path / "mine.toml"
    path.write_text(OWN + lines)
    found = sheet(str(path))
    return System("mine", found, (build_chip(found),))


def test_a_file_that_states_the_kernel_s_error_only_means_it_for_every_kind(tmp_path):
    family = find_chip("h100-pcie").constants
    bare = mine(tmp_path, "")
    assert bare.error("attention", "decode") == family["error.attention_decode"]
    assert bare.error("attention") == family["error.attention"]
    coarse = mine(tmp_path, "error.attention = 0.33\n")
    assert [coarse.error("attention", kind) for kind in ("", "prefill", "decode")] == [0.33] * 3
    assert coarse.error("matmul", "vllm_far") == family["error.matmul_vllm_far"]
    fine = mine(tmp_path, "error.attention = 0.33\nerror.attention_decode = 0.11\n")
    assert [fine.error("attention", kind) for kind in ("", "prefill", "decode")] == [0.33, 0.33, 0.11]
    only = mine(tmp_path, "error.attention_decode = 0.11\n")
    assert only.error("attention", "decode") == 0.11
    assert only.error("attention", "prefill") == family["error.attention_prefill"]


def test_first_tokens_have_the_error_of_steps_where_none_of_their_own_is_told():
    chip = with_errors(find_chip("h100"), {"step": 0.1, "step_vllm": 0.2})
    assert [chip.error("first", kind) for kind in ("", "vllm", "sglang")] == [0.1, 0.2, 0.1]
    assert with_errors(chip, {"step": 0.1, "first": 0.3}).error("first", "vllm") == 0.3
    assert with_errors(chip, {}).error("first", "vllm") == 0.0


def test_a_user_s_setting_counts_more_than_the_chip_s_file():
    set_by_user = sheet("h100").overridden({"calibration.error.attention": "0.5"})
    system = System("h100", set_by_user, (build_chip(set_by_user),))
    assert system.error("attention", "decode") == 0.5
    assert system.error("experts", "vllm_far") == find_chip("h100").constants["error.experts_vllm_far"]


def test_every_chip_states_the_errors_of_every_kind_of_a_measured_kernel():
    for name in ("a100", "a40", "h100", "b200", "l4", "maia-100", "mi300x", "tpu-v5p", "gaudi3"):
        constants = find_chip(name).constants
        assert not [n for n in NAMES if f"error.{n}" not in constants], name
