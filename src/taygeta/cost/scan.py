"""Recurrent mixers: gated DeltaNet (Qwen3-Next, Qwen3.5) and Mamba-2 state spaces (Nemotron-H).

Each head keeps a state of key_dim x value_dim. A token decays it, adds an outer product and reads it out.
There are two ways to compute that, and a library takes the faster:

    recurrent   token by token on the vector units, the state on chip meanwhile: decode
    chunked     chunks of tokens as matrix multiplies, states passed from chunk to chunk: prefill

Chunked Mamba-2 is the state-space dual (arXiv 2405.21060, section 6); chunked gated DeltaNet is the WY form
of products of Householder matrices (arXiv 2406.06484, section 3; gated, arXiv 2412.06464). A short causal
convolution runs in front of both.

No public table of measured scans exists, so the constants are assumptions with a range, not fits; bytes, FLOP
and launches are counted. The functions are plain scalar Python, compiled elsewhere; uncompiled they are their
own reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taygeta.cost.hardware import Hardware


class ScanConstants(NamedTuple):
    """Constants of scans: assumed, of the size of the fitted ones of attention and elementwise kernels."""

    chunk: float = 64.0  # tokens of a chunk: 64 in flash-linear-attention, 128 or 256 in mamba_ssm; 64 to 256
    # Launches of a decode call: the gates' projection, the split of projections, convolution, recurrence; 3 to 6
    # (vllm-project/vllm and sgl-project/sglang, models/qwen3_next.py).
    decode_kernels: float = 4.0
    # Those, and norms of queries and keys, gates, decays, products, their inverse, transformed keys, states, outputs;
    # 8 to 16 (chunk_gated_delta_rule_fwd of fla-org/flash-linear-attention).
    prefill_kernels: float = 12.0
    step: float = 1.0e-6  # s that passing a state on to the next chunk takes at least; 0.3 to 2 us
    token_step: float = 1.0e-7  # s that a token takes at least in the recurrent form; 0.05 to 0.3 us
    stream_efficiency: float = 0.8  # share of memory bandwidth that states and activations reach; 0.6 to 0.9
    tensor_efficiency: float = 0.4  # share of the peak that multiplies of chunk size reach; 0.2 to 0.6
    vector_efficiency: float = 0.4  # share of the vector rate that the recurrent form reaches; 0.2 to 0.8
    stored_states: float = 1.0  # 1.0: the states between chunks go through memory, 0.0: they stay on chip


def recurrent_flop(heads: float, key_dim: float, value_dim: float, delta_rule: float) -> float:
    """FLOP of one token: for each element of the state a decay (1), an outer product (2) and a read-out (2).

    The delta rule (1.0) first reads what the state predicts for the key (2 more).
    """
    return heads * key_dim * value_dim * (5.0 + 2.0 * delta_rule)


def chunk_flop(tokens: float, key_dim: float, value_dim: float, delta_rule: float) -> float:
    """FLOP of the multiplies of one chunk of t tokens of one head.

    Mamba-2: C B^T (2 t^2 K), applied to the inputs (2 t^2 V), the chunk's own state and the output of the
    earlier state (2 t K V each). The delta rule besides: K K^T (2 t^2 K), its triangular inverse (2 t^3 / 3),
    that applied to keys and values (2 t^2 (K + V)), and what the state predicts (2 t K V).
    """
    own = 2.0 * tokens * tokens * (key_dim + value_dim)
    state = 4.0 * tokens * key_dim * value_dim
    if delta_rule > 0.0:
        own += 2.0 * tokens * tokens * (2.0 * key_dim + value_dim) + 2.0 * tokens**3 / 3.0
        state += 2.0 * tokens * key_dim * value_dim
    return own + state


def state_bytes(heads: float, key_dim: float, value_dim: float, element_bytes: float) -> float:
    """Bytes of the recurrent state of one sequence in one layer; as a rule it is kept in fp32 (4 bytes)."""
    return heads * key_dim * value_dim * element_bytes


def scan_bytes(
    sequences: float,
    new_tokens: float,
    heads: float,
    groups: float,
    key_dim: float,
    value_dim: float,
    conv_channels: float,
    conv_kernel: float,
    element_bytes: float,
    io_bytes: float,
) -> float:
    """Compulsory bytes: the state of each sequence in and out, activations, the convolution and its state.

    A token has queries and keys of `groups`, values and outputs of `heads`. The convolution reads and writes
    its channels once more, and carries conv_kernel - 1 tokens from step to step.
    """
    tokens = sequences * new_tokens
    state = 2.0 * sequences * state_bytes(heads, key_dim, value_dim, element_bytes)
    activations = tokens * (2.0 * groups * key_dim + 2.0 * heads * value_dim) * io_bytes
    carried = sequences * max(0.0, conv_kernel - 1.0)
    return state + activations + 2.0 * conv_channels * (tokens + carried) * io_bytes


def scan(
    sequences: float, new_tokens: float, heads: float, groups: float, key_dim: float, value_dim: float,
    conv_channels: float, conv_kernel: float, element_bytes: float, io_bytes: float, delta_rule: float,
    peak: float, hw: Hardware, c: ScanConstants,
) -> tuple[float, float, float, float, float]:  # fmt: skip
    """Time of one recurrent mixer on `sequences` that each add new_tokens; the context costs nothing.

    Args:
        sequences: how many.
        new_tokens: of each sequence.
        heads: states of this rank, each key_dim x value_dim.
        groups: heads of queries and keys (B and C of Mamba-2), shared by the states.
        key_dim: rows of a state.
        value_dim: columns of a state.
        conv_channels: of the convolution in front.
        conv_kernel: its length in tokens.
        element_bytes: of an element of a state.
        io_bytes: of an element of the activations.
        delta_rule: 1.0 for gated DeltaNet, 0.0 for Mamba-2.
        peak: dense FLOP/s of the compute mode.
        hw: the chip.
        c: constants of the kernels.

    Returns: (seconds, tensor_seconds, memory_seconds, on_chip_seconds, fixed_seconds); on chip is the chain
    of dependent steps (chunked) or the vector units (recurrent). Never below compulsory bytes over bandwidth.
    """
    moved = scan_bytes(
        sequences, new_tokens, heads, groups, key_dim, value_dim, conv_channels, conv_kernel, element_bytes, io_bytes
    )
    flop = sequences * new_tokens * recurrent_flop(heads, key_dim, value_dim, delta_rule)
    chains = sequences * heads  # states; each passes from token to token, or chunk to chunk, on one core
    recurrent = recurrent_scan(chains, new_tokens, flop, moved, hw, c)
    stored = sequences * state_bytes(heads, key_dim, value_dim, io_bytes)
    chunked = chunked_scan(chains, new_tokens, key_dim, value_dim, delta_rule, moved, stored, peak, hw, c)
    return recurrent if recurrent[0] <= chunked[0] else chunked


def recurrent_scan(
    chains: float, new_tokens: float, flop: float, moved: float, hw: Hardware, c: ScanConstants
) -> tuple[float, float, float, float, float]:
    """Time of the recurrent form of so many chains of new_tokens, with all their FLOP and compulsory bytes; as `scan`
    returns it.
    """
    vector_rate = hw.vector_flop_per_s * c.vector_efficiency * min(1.0, chains / hw.cores)
    vector = max(flop / vector_rate, math.ceil(chains / hw.cores) * new_tokens * c.token_step)
    memory = moved / (hw.hbm_bandwidth * c.stream_efficiency)
    fixed = c.decode_kernels * hw.launch
    return fixed + max(memory, vector), 0.0, memory, vector, fixed


def chunked_scan(
    chains: float, new_tokens: float, key_dim: float, value_dim: float, delta_rule: float, moved: float,
    stored: float, peak: float, hw: Hardware, c: ScanConstants,
) -> tuple[float, float, float, float, float]:  # fmt: skip
    """Time of the chunked form, with the compulsory bytes moved and those of all states once; as `scan` returns it."""
    chunks = math.ceil(new_tokens / c.chunk)
    tokens = new_tokens / chunks
    tensor_rate = peak * c.tensor_efficiency
    busy = min(1.0, chains * chunks / hw.cores)
    tensor = chains * chunks * chunk_flop(tokens, key_dim, value_dim, delta_rule) / (tensor_rate * busy)
    passing = (4.0 if delta_rule > 0.0 else 1.0) * tokens * key_dim * value_dim * hw.cores / tensor_rate
    chain = math.ceil(chains / hw.cores) * chunks * max(c.step, passing)
    between = 2.0 * c.stored_states * (chunks - 1.0) * stored
    memory = (moved + between) / (hw.hbm_bandwidth * c.stream_efficiency)
    fixed = c.prefill_kernels * hw.launch
    return fixed + max(memory, tensor, chain), tensor, memory, chain, fixed
