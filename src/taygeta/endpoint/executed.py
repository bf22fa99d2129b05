"""Text of a real model that is executed here, while the simulated fleet says when each token leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from taygeta.base.errors import InputError, TaygetaError
from taygeta.endpoint.drawing import Drawing, likeliest
from taygeta.endpoint.runners import Extend, Runner
from taygeta.endpoint.text import Ask, Chance, Piece
from taygeta.endpoint.worker import Worker
from taygeta.frontend.config import read_json
from taygeta.frontend.tokenizer import Tokenizer
from taygeta.machine.generate import Sampling
from taygeta.machine.session import CHUNK

LOG = logging.getLogger("taygeta.endpoint")
TEXTS = 1 << 14  # tokens whose text is kept at hand
SEEDS = 1 << 127
ROLES = {"developer": "system"}
"""Roles that templates do not know, by those that they do: OpenAI's newer name for the same."""


class Executed:
    """A source of executed text.

    said: how, for people. vocab: ids that the model knows. how: of drawing, where an ask does not say it.
    """

    def __init__(
        self, runner: Runner, said: str, tokenizer: Tokenizer, vocab: int, how: Sampling, worker: Worker
    ) -> None:
        self.runner, self.said, self.vocab = runner, said, vocab
        self.tokenizer, self.how, self.worker = tokenizer, how, worker
        self.text_of = lru_cache(TEXTS)(self._text_of)
        self._before = tokenizer.encode("a", special=False)[-1:]

    @property
    def real(self) -> bool:
        """Its tokens have probabilities."""
        return True

    def encode(self, text: str) -> Sequence[int]:
        """Return the tokens of a text, with those that the tokenizer puts around it. Raises InputError."""
        found = self.tokenizer.encode(text)
        if not found:
            raise InputError("The prompt has no tokens: give a text to go on from.")
        return found

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Return the tokens of a conversation by the checkpoint's chat template. Raises InputError."""
        turns = [{"role": ROLES.get(role, role), "content": text} for role, text in messages]
        found = self.tokenizer.encode(self.tokenizer.apply_chat_template(turns), special=False)
        if not found:
            raise InputError("The conversation has no tokens: say something.")
        return found

    def answer(self, ask: Ask) -> ExecutedAnswer:
        """Return an answer that has not begun. Raises InputError for tokens that the model does not know."""
        for what, ids in (("Token", ask.prompt), ("Token of logit_bias,", ask.bias)):
            wrong = next((i for i in ids if not 0 <= i < self.vocab), None)
            if wrong is not None:
                raise InputError(f"{what} {wrong} is not in the vocabulary of {self.vocab:,} tokens.")
        return ExecutedAnswer(self, ask)

    def sampling(self, ask: Ask) -> Sampling:
        """Return how the tokens of an ask are drawn."""
        return Sampling(
            self.how.temperature if ask.temperature is None else ask.temperature,
            self.how.top_k if ask.top_k is None else ask.top_k,
            self.how.top_p if ask.top_p is None else ask.top_p,
            ask.seed % SEEDS,
        )

    def _text_of(self, token: int) -> str:
        """Return the text of a token within a text, so that a space before it is seen; part of a letter is U+FFFD."""
        stream = self.tokenizer.stream(self._before, skip_special=False)
        return stream.push(token) or stream.finish()


class ExecutedAnswer:
    """An answer that the worker makes. What is there is read in the event loop, and grows in the worker's thread."""

    def __init__(self, source: Executed, ask: Ask) -> None:
        self.source, self.ask = source, ask
        self.closed = self.ended = False
        self.problem = ""
        self.size = source.runner.size(len(ask.prompt) + ask.limit)
        self._pieces: list[Piece] = []
        self._wanted = 0
        self._tell: Callable[[], None] | None = None
        self._drawing = Drawing(ask, source.sampling(ask), source.tokenizer.eos)
        self._stream = source.tokenizer.stream(ask.prompt)
        self._extend: Extend | None = None
        self._rest = list(ask.prompt)  # tokens that are to be read next

    @property
    def tokens(self) -> int:
        """Where it ends is not known before: at most the limit."""
        return self.ask.limit

    @property
    def made(self) -> int:
        """How many tokens are there."""
        return len(self._pieces)

    @property
    def spare(self) -> int:
        """How many more are there than the fleet has emitted."""
        return len(self._pieces) - self._wanted

    def ahead(self) -> Sequence[int]:
        """What it will say is not known before it is made."""
        return ()

    def start(self, told: Callable[[], None]) -> None:
        """Hand it to the worker."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens
                loop.call_soon_threadsafe(told)

        self._tell = tell
        self.source.worker.submit(self)

    def want(self, tokens: int) -> None:
        """Note how many tokens the fleet has emitted."""
        self._wanted = tokens

    def piece(self, index: int) -> Piece:
        """Return a token that is there."""
        return self._pieces[index]

    def close(self) -> None:
        """Let the worker drop it."""
        if not self.closed:
            self.closed = True
            self.source.worker.wake()

    def step(self) -> bool:
        """Read a part of the prompt, or make one token; in the worker's thread."""
        if self._extend is None:
            self._extend = self.source.runner.begin(len(self.ask.prompt) + self.ask.limit)
        part, self._rest = self._rest[:CHUNK], self._rest[CHUNK:]
        logits = self._extend(part)
        if self._rest:
            return True
        token = self._drawing.next(logits)
        last = token in self.source.tokenizer.eos and not self.ask.endless
        text = self._stream.push(token) if not last else self._stream.finish()
        full = len(self._pieces) + 1 == self.ask.limit
        if full and not last:
            text += self._stream.finish()
        self._pieces.append(Piece(text, last, self._chances(logits, token)))
        self._rest = [token]
        self.ended = last or full
        self._told()
        return not self.ended

    def fail(self, error: Exception) -> None:
        """Say why it cannot go on; in the worker's thread."""
        self.problem = str(error)
        if not isinstance(error, TaygetaError):
            self.problem = "This is a defect of Taygeta; the server's log says where it is."
            LOG.error("a defect of Taygeta, in an answer that was executed", exc_info=error)
        self._told()

    def release(self) -> None:
        """Drop the KV cache."""
        self._extend = None

    def _told(self) -> None:
        if self._tell is not None:
            self._tell()

    def _chances(self, logits: np.ndarray, token: int) -> tuple[Chance, ...]:
        if self.ask.chances is None:
            return ()
        found = likeliest(logits, token, self.ask.chances)
        return tuple(Chance(self.source.text_of(i), value) for i, value in found)


def default_sampling(directory: Path) -> Sampling:
    """Return how a checkpoint's generation_config.json draws where nothing is said; without one, temperature 1.

    Raises InputError.
    """
    path = directory / "generation_config.json"
    table: Mapping[str, object] = read_json(path) if path.is_file() else {}
    if table.get("do_sample") is False:
        return Sampling()
    values: dict[str, float] = {}
    for name, plain in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
        value = table.get(name)
        value = plain if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{path}: {name} must be a number, not {value!r:.40}.")
        values[name] = value
    return Sampling(values["temperature"], int(values["top_k"]), values["top_p"])
