"""Text that is known before: a model that says what it is told to, as fast as it is let to; and the assistant."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from running import MODEL
from small_fleets import bounds, setup_of, step_tables, traffic

from taygeta import api
from taygeta.endpoint.clock import FREE, Clock
from taygeta.endpoint.executed import Executed
from taygeta.endpoint.runners import Extend, Runner, runner, said_of
from taygeta.endpoint.service import Bounds, Service
from taygeta.endpoint.text import TextSource
from taygeta.endpoint.worker import Worker
from taygeta.frontend.assistant import assistant_directory
from taygeta.frontend.tokenizer import Tokenizer, load_tokenizer
from taygeta.machine.generate import Sampling
from taygeta.machine.session import checkpoint_weights
from taygeta.serving.live import Live
from taygeta.spec.deployment import Deployment

ASSISTANT = assistant_directory()
VOCAB, CONTEXT, END = 3072, 256, 3
STEP = 0.01


@cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(ASSISTANT)


class Scripted:
    """Says a script after every prompt. gate: waited for before every token; wrong: raised at the script's end."""

    def __init__(
        self,
        script: Sequence[int],
        gate: threading.Semaphore | None = None,
        wrong: Exception | None = None,
        delay: float = 0.0,
        bytes_each: int = 1,
    ) -> None:
        self.script, self.gate, self.wrong = list(script), gate, wrong
        self.delay, self.bytes_each = delay, bytes_each
        self.begun = 0
        self.most = 0

    def begin(self, tokens: int) -> Extend:
        self.begun += 1
        left = iter(self.script)

        def extend(new: Sequence[int]) -> np.ndarray:
            if self.gate is not None:
                self.gate.acquire()
            time.sleep(self.delay)
            token = next(left, None)
            if token is None and self.wrong is not None:
                raise self.wrong
            logits = np.zeros(VOCAB, np.float32)
            logits[END if token is None else token] = 50.0
            return logits

        return extend

    def size(self, tokens: int) -> int:
        return self.bytes_each * tokens


def words(text: str) -> list[int]:
    return tokenizer().encode(text, special=False)


def source_of(found: Runner, worker: Worker, how: Sampling | None = None, said: str = "a script") -> Executed:
    return Executed(found, said, tokenizer(), VOCAB, how or Sampling(), worker)


def service_of(source: TextSource, speed: float = FREE, step: float = STEP, **bound: Any) -> Service:
    """A fleet whose every step takes `step` seconds, with this text."""
    live = Live(setup_of(traffic([0.0], 1, 1), step_tables(step), bounds()))
    return Service(live, source, Clock(speed), [MODEL], Bounds(CONTEXT, **bound))


@cache
def deployed(chip: str, **formats: str) -> Deployment:
    return api.deploy(str(ASSISTANT), chip, **formats)


@cache
def assistant(chip: str = "maia-100") -> tuple[Runner, str]:
    """What executes the assistant on a chip, in this thread, and what is said of it."""
    d = deployed(chip)
    return runner(d, checkpoint_weights(ASSISTANT, d)), said_of(d)
