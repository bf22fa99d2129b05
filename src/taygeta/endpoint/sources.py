"""A checkpoint whose text is executed for several fleets, each in its own chip and formats."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from taygeta.endpoint.executed import Executed, default_sampling
from taygeta.endpoint.runners import VALUE_BYTES, Runner, deployment_of, has_tiles, longest, runner, said_of
from taygeta.endpoint.worker import Worker
from taygeta.frontend.tokenizer import load_tokenizer
from taygeta.machine.constants import BUDGET
from taygeta.machine.session import Weights, checkpoint_weights
from taygeta.serving.fleet import Fleet
from taygeta.spec.deployment import Deployment

CONTEXT = 4096
"""Tokens of a prompt and its answer where nothing is said: every answer sets a KV cache aside for as many as it may
have."""


class Checkpoint:
    """The tokenizer and the weights of a directory, and what executes them. worker: in whose thread.

    Raises InputError, UnsupportedError and MissingExtraError.
    """

    def __init__(self, directory: str, worker: Worker) -> None:
        self.directory, self.worker = Path(directory), worker
        self.tokenizer = load_tokenizer(directory)
        self.how = default_sampling(self.directory)
        self._weights: tuple[Deployment, Weights] | None = None
        self._runners: dict[Hashable, Runner] = {}
        self._left = BUDGET  # bytes for prepared weights, which several fleets share

    def source(self, fleet: Fleet) -> Executed:
        """Return the text of a fleet. Fleets that compute the same bits share what computes them.

        It takes seconds. Raises InputError and UnsupportedError where the model cannot be executed so.
        """
        d = deployment_of(fleet)
        found = self.worker.call(lambda: self._runner(d))
        return Executed(found, said_of(d), self.tokenizer, d.model.vocab, self.how, self.worker)

    def context(self, fleet: Fleet) -> tuple[int, int]:
        """Return the tokens of a prompt and its answer: where nothing is said, and at most. Raises InputError."""
        most = longest(deployment_of(fleet), self.worker.room)
        return min(CONTEXT, most), most

    def _runner(self, d: Deployment) -> Runner:
        own = (repr(d.chip), d.formats, d.parallelism) if has_tiles(d.chip) else ()
        key = (d.model, *own)
        if key not in self._runners:
            self._runners[key] = runner(d, self._weights_of(d), self._left)
            self._left = max(0, self._left - VALUE_BYTES * d.model.parameters())
        return self._runners[key]

    def _weights_of(self, d: Deployment) -> Weights:
        """The weights of a model; they are checked against it, and read as they are used."""
        if self._weights is None or self._weights[0].model != d.model:
            self._weights = (d, checkpoint_weights(self.directory, d))
        return self._weights[1]
