"""The next token by the rules of an ask, and the probabilities behind it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from taygeta.endpoint.text import Ask
from taygeta.machine.generate import Sampling, choose

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON has no word for; vLLM writes the same."""


class Drawing:
    """Draws the tokens of one answer, from a stream of its own. eos: tokens that end a text.

    The order is vLLM's: penalties and bias on the logits, then temperature, min_p, top_k, top_p.
    """

    def __init__(self, ask: Ask, how: Sampling, eos: Collection[int]) -> None:
        self.ask, self.how, self.eos = ask, how, list(eos)
        self.random = np.random.default_rng(np.random.SeedSequence(how.seed).spawn(1)[0])  # as machine.generate
        self.counts: dict[int, int] = {}
        self.seen = np.unique(np.asarray(ask.prompt, dtype=np.int64)) if ask.repetition_penalty != 1.0 else None

    def next(self, logits: np.ndarray) -> int:
        """Return the next token after a row of logits (vocab,). Raises InputError for logits that are NaN."""
        token = choose(self._shaped(logits), self.how, self.random)
        self.counts[token] = self.counts.get(token, 0) + 1
        return token

    def _shaped(self, logits: np.ndarray) -> np.ndarray:
        ask, made = self.ask, np.fromiter(self.counts, dtype=np.int64)
        values = logits.astype(np.float64)
        if self.seen is not None:
            told = np.union1d(self.seen, made)
            factor = ask.repetition_penalty
            values[told] = np.where(values[told] > 0, values[told] / factor, values[told] * factor)
        if len(made) and (ask.presence_penalty or ask.frequency_penalty):
            counts = np.fromiter(self.counts.values(), dtype=np.float64)
            values[made] -= ask.presence_penalty + ask.frequency_penalty * counts
        for token, added in ask.bias.items():
            values[token] += added
        if self.eos and sum(self.counts.values()) < ask.least:
            values[self.eos] = -math.inf
        if ask.min_p > 0.0 and self.how.temperature > 0.0:
            values[values < values.max() + self.how.temperature * math.log(ask.min_p)] = -math.inf
        return values


def likeliest(logits: np.ndarray, token: int, count: int) -> list[tuple[int, float]]:
    """Return (id, natural logarithm of its probability) of a token, then of the `count` likeliest, the first first.

    Probabilities are the softmax of the logits as the model gives them, before temperature and penalties.
    """
    values = logits.astype(np.float64)
    top = values.max()
    values -= top + math.log(float(np.exp(values - top).sum()))
    order: Sequence[int] = np.argsort(-values, kind="stable")[:count].tolist() if count else []
    return [(i, max(float(values[i]), LEAST_LOGPROB)) for i in (token, *order)]
