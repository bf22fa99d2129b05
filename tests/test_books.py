"""Worked problems of "How To Scale Your Model" (Google DeepMind, 2025), as a reader of the book would check them."""

from __future__ import annotations

import pytest

import taygeta as tg
from taygeta.graph.memory import sequence_bytes


def test_critical_batch_of_tpu_v5e_is_240_tokens():
    """Part 1: a bf16 matmul turns compute-bound at peak / bandwidth = 1.97e14 / 8.2e11 = 240 tokens."""
    chip = tg.chip("tpu-v5e")
    assert chip.peaks["bf16"] / chip.hbm.bandwidth == pytest.approx(240, rel=0.01)


def test_parameters_of_llama_3_70b():
    """Part 6: 80 layers of 8192 wide, d_ff 28672, 64 heads and 8 KV heads of 128, vocabulary 128256: 70.4e9 in the
    book's rounding."""
    assert tg.model("llama-3-70b").parameters() == pytest.approx(70.4e9, rel=0.005)


def test_flop_of_a_token_of_llama_3_70b():
    """Part 6: about 2 FLOP a parameter in a forward pass, less the embedding, which is a lookup."""
    d = tg.deploy("llama-3-70b", on="tpu-v5e:8")
    p = tg.predict(d, tg.Batch.decode(1, 0))
    assert p.flop * 8 == pytest.approx(2 * (70.55e9 - 1.05e9), rel=0.01)


def test_kv_cache_of_llama_3_70b():
    """Part 8: 2 x 80 layers x 8 heads x 128 = 160 kB a token in int8."""
    d = tg.deploy("llama-3-70b", on="tpu-v5e:16", tp=8, pp=2, weights="int8", kv="int8")
    assert 2 * 8 * sequence_bytes(d, 1000) / 1000 == pytest.approx(2 * 80 * 8 * 128)


def test_decode_floor_of_llama_3_70b_on_sixteen_v5e():
    """Part 8: int8 weights take 70e9 / (16 x 8.1e11) = 5.4 ms to read, however few requests there are."""
    d = tg.deploy("llama-3-70b", on="tpu-v5e:16", weights="int8")
    p = tg.predict(d, tg.Batch.decode(1, 1))
    head_in_bf16 = 128256 * 8192 / 16 / 8.19e11  # the book stores it in int8, checkpoints in bf16
    book = 70.4e9 / (16 * 8.19e11) + head_in_bf16 - 128256 * 8192 / 16 / 8.19e11  # and the embedding is not read
    assert p.lower == pytest.approx(book, rel=0.03)
    assert p.seconds.nominal > p.lower


def test_weights_of_a_70b_model_fit_eight_v5e_in_int8_only():
    """Part 8: 16 GB chips: 70 GB of int8 weights need at least five, 140 GB of bf16 at least nine."""
    with pytest.raises(tg.DoesNotFitError, match="Fits with"):
        tg.serve_rate(tg.deploy("llama-3-70b", on="tpu-v5e:8"), 100, 100, 1)
    assert tg.serve_rate(tg.deploy("llama-3-70b", on="tpu-v5e:8", weights="int8"), 100, 100, 1).memory.fits


def test_prefill_is_bound_by_compute():
    """Part 7: at 8,192 tokens a bf16 prefill of a 13B model does 2 x 13e9 x 8192 FLOP."""
    d = tg.deploy("llama-2-13b", on="tpu-v5e:8")
    p = tg.predict(d, tg.Batch.prefill(1, 8192))
    floor = 2 * 13e9 * 8192 / (8 * 1.97e14)
    assert p.lower == pytest.approx(floor, rel=0.12)  # attention adds a tenth, the head is one row
    assert p.bound in ("tensor", "link")
