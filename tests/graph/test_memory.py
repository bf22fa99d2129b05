"""Memory: KV bytes by hand, and refusals that say what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

import taygeta as tg
from taygeta.base.errors import DoesNotFitError
from taygeta.frontend.catalog import model
from taygeta.graph.memory import check_fits, largest_batch, memory, sequence_bytes


def test_kv_bytes_of_grouped_queries(deploy, dense):
    # 4 layers, 4 KV heads, keys and values of 8, bf16
    assert sequence_bytes(deploy(dense), 100) == 4 * 4 * (8 + 8) * 2 * 100
    assert sequence_bytes(deploy(dense, 8), 100) == 4 * 1 * (8 + 8) * 2 * 100  # one KV head a rank, repeated
    assert sequence_bytes(deploy(dense, 2, tp=1, pp=2), 100) == 2 * 4 * (8 + 8) * 2 * 100


def test_kv_bytes_of_latents_are_whole_on_every_rank(deploy, latent):
    assert sequence_bytes(deploy(latent, 4), 100) == 2 * (32 + 4) * 2 * 100


def test_sliding_windows_keep_their_window(deploy):
    d = deploy(model("gpt-oss-120b"))
    # 36 layers, half of them see 128 tokens; 8 KV heads of 64, keys and values, bf16
    assert sequence_bytes(d, 10_000) == 18 * 8 * 128 * 2 * (128 + 10_000)


def test_weights_that_do_not_fit(deploy):
    with pytest.raises(DoesNotFitError) as error:
        check_fits(deploy(model("llama-3.1-70b")), 1, 1000)
    assert str(error.value) == (
        "meta-llama/Llama-3.1-70B in bf16 needs 141 GB of weights and 1.54 GB of activations"
        " (of steps of 8,192 tokens) on each chip under tp=1;"
        " round has 100 GB of 100 GB for them."
        " Fits with tp=2, or with weights=fp8."
    )


def test_requests_that_do_not_fit(deploy):
    d = deploy(model("llama-3.1-70b"), 2)
    room = largest_batch(d, 10_000)
    check_fits(d, room, 10_000)
    with pytest.raises(DoesNotFitError, match=f"{room} requests fit"):
        check_fits(d, room + 1, 10_000)


def test_memory_adds_up(deploy, dense):
    use = memory(deploy(dense))
    assert use.weights + use.activations + use.cache == use.capacity
    assert use.fits


def test_steps_that_do_not_fit_are_told_apart_from_weights(deploy):
    """Weights of 48 MB beside activations of 336 MB in 230 MB of SRAM: shorter steps fit, and are proposed."""
    d = tg.deploy("meta-llama/Llama-3.1-8B", on="groq-lpu-v1:512", tp=32, pp=16, weights="int8")
    with pytest.raises(DoesNotFitError) as error:
        check_fits(d, 1, 1000)
    said = str(error.value)
    assert "needs 0.0481 GB of weights and 0.336 GB of activations (of steps of 8,192 tokens) on each chip" in said
    budget = int(said.split("token_budget=")[1].split()[0])
    shorter, longer = (replace(d, engine=replace(d.engine, token_budget=b)) for b in (budget, 2 * budget))
    assert memory(shorter).fits
    assert not memory(longer).fits
