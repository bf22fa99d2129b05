"""Text from logits: greedy and sampled decoding of several sequences at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from taygeta.base.errors import InputError
from taygeta.machine.session import Session


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0: the likeliest, the lowest id among equals.

    top_k: of the k likeliest only, 0 for all; top_p: of the fewest whose probability is top_p together. Raises
    InputError.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise InputError(f"temperature must be 0 (the likeliest token) to 100, not {self.temperature:g}.")
        if self.top_k < 0:
            raise InputError(f"top-k must be 0 (all tokens) or more, not {self.top_k}.")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top-p must be above 0 and at most 1, not {self.top_p:g}.")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, not {self.seed}.")


def choose(logits: np.ndarray, how: Sampling, random: np.random.Generator) -> int:
    """Return the next token after one row of logits, in fp64 arithmetic. Raises InputError for logits that are NaN."""
    values = logits.astype(np.float64)
    if np.isnan(values).any() or not np.isfinite(values.max()):
        raise InputError(
            "The logits are not numbers: a value left the range of the formats; wider weights, activations or KV"
            " cache would hold it."
        )
    if how.temperature == 0.0:
        return int(values.argmax())
    order = np.argsort(-values, kind="stable")
    order = order[: how.top_k] if how.top_k else order
    weights = np.exp((values[order] - values[order[0]]) / how.temperature)
    weights /= weights.sum()
    kept = int(np.searchsorted(np.cumsum(weights), how.top_p)) + 1 if how.top_p < 1.0 else len(order)
    weights = weights[:kept] / weights[:kept].sum()
    return int(order[random.choice(len(weights), p=weights)])


def generate(
    session: Session, prompts: Sequence[Sequence[int]], count: int, how: Sampling | None = None,
    eos: Collection[int] = (),
) -> Iterator[list[int | None]]:  # fmt: skip
    """Yield the next token of every sequence, None for those that have ended, until all have.

    prompts: ids, one list a sequence. count: most new tokens of each. A sequence ends with a token of `eos`, which is
    still given. Each sequence draws from a stream of its own. Raises InputError.
    """
    sampling = how or Sampling()
    if count < 1:
        raise InputError(f"At least one token must be asked for, not {count}.")
    seeds = np.random.SeedSequence(sampling.seed).spawn(len(prompts))
    random = [np.random.default_rng(seed) for seed in seeds]
    done, last = [False] * len(prompts), [0] * len(prompts)
    logits = session.extend(prompts)
    for number in range(count):
        found = [None if done[s] else choose(logits[s], sampling, random[s]) for s in range(len(prompts))]
        yield found
        done = [d or token in eos for d, token in zip(done, found, strict=True)]
        if all(done) or number == count - 1:
            return
        for s, token in enumerate(found):
            if token is None:  # it has ended: its last token again, in its place
                session.context[s] -= 1
            else:
                last[s] = token
        logits = session.extend([[token] for token in last])
