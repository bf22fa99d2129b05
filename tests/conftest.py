"""Chips and models that tests count by hand: round numbers, nothing assumed."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from taygeta.spec.chip import Chip, Link, Memory
from taygeta.spec.deployment import Deployment, Parallelism, deployment
from taygeta.spec.engine import Engine
from taygeta.spec.mixers import Attention, LatentAttention
from taygeta.spec.model import DenseFfn, Layer, Model, MoeFfn

SILICON = Path(__file__).parents[2] / "shared" / "silicon"
MODELS = Path(__file__).parents[2] / "shared" / "models"


@pytest.fixture
def engine() -> Engine:
    """An engine with no host time and all of the memory."""
    return Engine(
        "plain", memory_fraction=1.0, token_budget=8192, host_step=0.0, host_request=0.0, policy="mixed",
        quantise_launches=0.0, fused_all_reduce=False, fused_epilogues=False,
        direct_start=4.0, direct_second=6.0, direct_efficiency=0.6,
    )  # fmt: skip


@pytest.fixture
def chip() -> Chip:
    """A chip of 100 TFLOP/s and 1 TB/s with links of 100 GB/s."""
    return Chip(
        id="round", name="Round", family="generic-gpu", kind="gpu", cores=100, clock=1e9, tile=(16, 8, 16),
        peaks=MappingProxyType({"bf16": 100e12, "fp8": 200e12}), vector_flop_per_s=10e12, exp_per_clock=16,
        hbm=Memory(100e9, 1e12), cache=Memory(50e6, 5e12), core_sram=256e3, far=Memory(0, 0),
        link=Link(100e9, 1e-6, "switch", 8), network=Link(10e9, 5e-6, "switch", 1 << 20), host_bandwidth=64e9,
        power=500.0,
        price=(1.0, 2.0, 3.0), activations=MappingProxyType({}), constants=MappingProxyType({}),
    )  # fmt: skip


@pytest.fixture
def dense() -> Model:
    """Four layers of width 64: 8 heads of 8, 4 KV heads, gated d_ff 128, vocabulary 100."""
    return Model("dense", 64, 100, (Layer(Attention(8, 4, 8, 8), DenseFfn(128)),) * 4, 1024)


@pytest.fixture
def moe() -> Model:
    """Four layers: 8 experts of d_ff 32, top 2, one shared expert."""
    return Model("moe", 64, 100, (Layer(Attention(8, 8, 8, 8), MoeFfn(8, 2, 32, shared_d_ff=32)),) * 4, 1024)


@pytest.fixture
def latent() -> Model:
    """Two layers of latent attention: 8 heads, ranks 16 and 32, nope 8, rope 4, v 8."""
    return Model("latent", 64, 100, (Layer(LatentAttention(8, 16, 32, 8, 4, 8), DenseFfn(128)),) * 2, 1024)


@pytest.fixture
def deploy(chip: Chip, engine: Engine):
    """Return a function that deploys a model on the round chip."""

    def build(model: Model, chips: int = 1, **spread: int) -> Deployment:
        return deployment(model, chip, chips, engine, Parallelism(**({"tp": chips} | spread)))

    return build
