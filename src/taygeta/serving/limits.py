"""What bounds a replica: its engine's scheduler, its memory in blocks, its host; all as plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from taygeta.base.errors import DoesNotFitError, InputError
from taygeta.graph.memory import memory, sequence_bytes, weight_formats
from taygeta.graph.partition import stages
from taygeta.spec.deployment import Deployment
from taygeta.spec.engine import POLICIES

MIXED, PREFILL_FIRST, DECODE_FIRST = range(3)  # in the order of spec.engine.POLICIES
ENDLESS = 1 << 40  # blocks of a cache that nothing fills
MAX_HOST_BYTES = 1 << 50


@dataclass(frozen=True)
class Speculation:
    """Drafted tokens of a decode step and how often one is accepted after those before it were.

    draft_share: time of drafting one token over that of a decode step without speculation; a small draft head of one
    layer takes a few percent of the model's own step.
    """

    tokens: int = 0
    acceptance: float = 0.0
    draft_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= 64:
            raise InputError(f"Speculation drafts 0 to 64 tokens, not {self.tokens}.")
        if not 0.0 <= self.acceptance <= 1.0:
            raise InputError(f"The acceptance rate of drafted tokens must be 0 to 1, not {self.acceptance:g}.")
        if not 0.0 <= self.draft_share <= 10.0:
            raise InputError(f"A draft's share of a step must be 0 to 10, not {self.draft_share:g}.")


class Limits(NamedTuple):
    """The numbers of one kind of replica; times in seconds, names as in taygeta.spec.engine.

    ranks: attention-DP ranks. stages: pipeline stages. blocks: of the KV cache of a rank. fixed_blocks: of a sequence,
    whatever its length (windows, recurrent states). hash_blocks: blocks of a hashed piece of a prefix. host_pieces:
    pieces that the host's memory holds, host_piece: seconds to load one. eager: seconds that the host takes to launch
    a step that holds prompts. draft: seconds of drafting, over those of a decode step.
    """

    ranks: int
    stages: int
    policy: int
    token_budget: int
    sequence_limit: int
    chunks_prompts: int
    blocks: int
    block_tokens: int
    fixed_blocks: int
    reserve: float
    caches: int
    hash_tokens: int
    hash_blocks: int
    host_pieces: int
    host_piece: float
    intake_steps: int
    wait_steps: int
    wait_share: float
    host_step: float
    host_request: float
    overlaps_host: int
    captured_tokens: int
    eager: float
    prompt_step: float
    prompt_slowdown: float
    compile_pieces: float
    plans_ahead: int
    client_delay: float
    intake_request: float
    intake_token: float
    emit_token: float
    stream_interval: int
    streams_first: int
    verified: int
    draft: float


def limits(
    d: Deployment,
    longest: int,
    hash_tokens: int = 0,
    host_bytes: float = 0.0,
    speculation: Speculation | None = None,
) -> Limits:
    """Return the limits of a replica of a deployment.

    longest: tokens of the longest sequence it will see. hash_tokens: tokens of a hashed piece of a prefix (0: none
    are known). host_bytes: memory of the host behind each chip that keeps evicted pieces of prefixes.

    Raises DoesNotFitError when not even one token of KV cache fits, InputError for a bad size.
    """
    e, draft = d.engine, speculation or Speculation()
    if not 0.0 <= host_bytes <= MAX_HOST_BYTES:
        raise InputError(f"Host memory for prefixes must be 0 to {MAX_HOST_BYTES:.3g} bytes, not {host_bytes:g}.")
    if host_bytes and not d.chip.host_bandwidth:
        raise InputError(f"{d.chip.id} has no host.bandwidth: set it, or leave the host's memory out.")
    use = memory(d)
    if not use.fits:
        raise DoesNotFitError(
            f"{d.model.name} in {weight_formats(d)} leaves no memory for a KV cache on {d.chip.id} under"
            f" {d.parallelism}."
        )
    fixed, token = kv_bytes(d, longest)
    if token > 0.0:
        block = token * e.block_tokens
        blocks, fixed_blocks = int(use.cache // block), math.ceil(fixed / block)
    else:  # nothing grows with the sequence: a block is a sequence's whole state
        blocks, fixed_blocks = (int(use.cache // fixed) if fixed > 0.0 else ENDLESS), 0
    hash_tokens = hash_tokens if e.prefix_caching and token > 0.0 else 0
    piece = token * hash_tokens
    return Limits(
        ranks=d.parallelism.dp,
        stages=d.parallelism.pp,
        policy=POLICIES.index(e.policy),
        token_budget=e.token_budget,
        sequence_limit=min(e.sequence_limit, e.token_budget // (1 + draft.tokens)),
        chunks_prompts=int(e.chunks_prompts),
        blocks=blocks,
        block_tokens=e.block_tokens if token > 0.0 else ENDLESS,
        fixed_blocks=fixed_blocks,
        reserve=e.reserve,
        caches=int(hash_tokens > 0),
        hash_tokens=max(1, hash_tokens),
        hash_blocks=math.ceil(hash_tokens / e.block_tokens),
        host_pieces=int(host_bytes // piece) if piece else 0,
        host_piece=piece / d.chip.host_bandwidth if d.chip.host_bandwidth else 0.0,
        intake_steps=e.intake_steps,
        wait_steps=e.wait_steps,
        wait_share=e.wait_share,
        host_step=e.host_step,
        host_request=e.host_request,
        overlaps_host=int(e.overlaps_host),
        captured_tokens=e.captured_tokens,
        eager=e.eager_launch * kernels(d) if e.eager_launch else 0.0,
        prompt_step=e.prompt_step,
        prompt_slowdown=e.prompt_slowdown,
        compile_pieces=e.compile_pieces,
        plans_ahead=int(e.plans_ahead),
        client_delay=e.client_delay,
        intake_request=e.intake_request,
        intake_token=e.intake_token,
        emit_token=e.emit_token,
        stream_interval=e.stream_interval,
        streams_first=int(e.streams_first),
        verified=1 + draft.tokens,
        draft=draft.tokens * draft.draft_share,
    )


def kv_bytes(d: Deployment, longest: int) -> tuple[float, float]:
    """Return (bytes of a sequence whatever its length, bytes of each token) on the fullest chip of a rank.

    Layers that see all tokens grow without end; windows count in full as far as the longest sequence fills them, and
    recurrent states always.
    """
    far = 1 << 24  # beyond every window
    token = (sequence_bytes(d, 2 * far) - sequence_bytes(d, far)) / far
    return max(0.0, sequence_bytes(d, longest) - token * longest), token


def kernels(d: Deployment) -> int:
    """Return the kernels that a step of the longest stage launches: the operations of its graph."""
    return max(sum(repeats for _, repeats in graph.ops()) for graph in stages(d))
