"""Recurrent mixers: FLOP and bytes by hand, FLOP of chunks against running the algebra, and laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.cost.hardware import Hardware
from taygeta.cost.scan import ScanConstants, chunk_flop, recurrent_flop, scan, scan_bytes, state_bytes

HW = Hardware(132.0, 1.83e9, 3.35e12, 5e7, 9.4e12, 2.6e5, 70.0, 2e-6, 0.75, 16.0, 16.0, 8.0, 16.0, 6.7e13)
PEAK = 989e12
EXACT = ScanConstants(
    stream_efficiency=1.0, tensor_efficiency=1.0, vector_efficiency=1.0, step=0.0, token_step=0.0
)


def run(
    sequences: float, new_tokens: float, delta_rule: float = 1.0, hw: Hardware = HW, c: ScanConstants = EXACT
):
    """32 heads of 128 x 128 in fp32, 16 groups, 4 tokens of 8,192 channels convolved, bf16 activations."""
    return scan(
        sequences, new_tokens, 32.0, 16.0, 128.0, 128.0, 8192.0, 4.0, 4.0, 2.0, delta_rule, PEAK, hw, c
    )


def test_flop_of_a_token_by_hand() -> None:
    assert (
        recurrent_flop(1, 2, 3, 0.0) == 6 + 2 * 6 + 2 * 6
    )  # decay, outer product, read-out of 2 x 3 elements
    assert recurrent_flop(1, 2, 3, 1.0) == 6 + 2 * 6 + 2 * 6 + 2 * 6  # and the prediction of the delta rule


def test_flop_of_a_chunk_by_hand() -> None:
    t, k, v = 4, 2, 3
    ssd = 2 * t * t * k + 2 * t * t * v + 2 * t * k * v + 2 * t * k * v
    assert chunk_flop(t, k, v, 0.0) == ssd
    delta = 2 * t * t * k + 2 * t**3 / 3 + 2 * t * t * (k + v) + 2 * t * k * v
    assert chunk_flop(t, k, v, 1.0) == pytest.approx(ssd + delta)


def test_chunked_and_recurrent_forms_are_one_function() -> None:
    """The multiplies that chunk_flop counts for Mamba-2 give what the recurrence gives (without decay)."""
    rng = np.random.default_rng(0)
    t, k, v = 8, 4, 3
    b, c, x, state = (
        rng.normal(size=(t, k)),
        rng.normal(size=(t, k)),
        rng.normal(size=(t, v)),
        rng.normal(size=(k, v)),
    )
    chunked = np.tril(c @ b.T) @ x + c @ state
    final = state + b.T @ x
    for i in range(t):
        state = state + np.outer(b[i], x[i])
        assert np.allclose(c[i] @ state, chunked[i])
    assert np.allclose(state, final)


def test_bytes_by_hand() -> None:
    assert state_bytes(32, 128, 128, 4) == 2 * 1024 * 1024
    state = 2 * 3 * 2 * 2**20  # 3 sequences, read and written
    activations = 3 * 5 * (2 * 16 * 128 + 2 * 32 * 128) * 2  # 15 tokens: queries, keys, values, outputs
    convolution = 2 * 8192 * (3 * 5 + 3 * 3) * 2  # channels in and out, and 3 carried tokens a sequence
    assert scan_bytes(3, 5, 32, 16, 128, 128, 8192, 4, 4, 2) == state + activations + convolution


def test_decode_moves_the_states_and_launches_four_kernels() -> None:
    seconds, tensor, memory, _, fixed = run(64.0, 1.0)
    moved = scan_bytes(64, 1, 32, 16, 128, 128, 8192, 4, 4, 2)
    assert tensor == 0.0
    assert fixed == 4 * 2e-6
    assert memory == pytest.approx(moved / 3.35e12)
    assert seconds == pytest.approx(fixed + memory)


def test_prefill_runs_in_chunks_on_the_tensor_unit() -> None:
    _, tensor, _, _, fixed = run(8.0, 4096.0)
    assert fixed == 12 * 2e-6
    assert tensor == pytest.approx(8 * 32 * 64 * chunk_flop(64, 128, 128, 1.0) / PEAK)


def test_states_pass_from_chunk_to_chunk_one_after_the_other() -> None:
    c = EXACT._replace(step=1e-3, token_step=1.0)
    assert run(1.0, 640.0, c=c)[3] == pytest.approx(10 * 1e-3)  # 10 chunks; 32 heads fit 132 cores at once
    assert run(8.0, 640.0, c=c)[3] == pytest.approx(2 * 10 * 1e-3)  # 256 heads: two rounds


sizes = st.floats(0, 24).map(lambda e: float(round(2**e)))


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, st.sampled_from([0.0, 1.0]), st.sampled_from([1.0, 132.0, 900_000.0]))
def test_time_is_finite_and_never_below_its_bytes(
    sequences: float, new: float, delta: float, cores: float
) -> None:
    hw = HW._replace(cores=cores)
    parts = run(sequences, new, delta, hw, ScanConstants())
    assert all(math.isfinite(p) and p >= 0 for p in parts)
    assert parts[0] > scan_bytes(sequences, new, 32, 16, 128, 128, 8192, 4, 4, 2) / hw.hbm_bandwidth
    assert run(sequences, new, delta, hw._replace(hbm_bandwidth=6.7e12), ScanConstants())[0] <= parts[0]
    assert run(2 * sequences, new, delta, hw, ScanConstants())[0] >= parts[0] * (1 - 1e-9)
