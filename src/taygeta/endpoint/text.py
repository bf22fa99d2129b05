"""The seam for text: who counts the tokens of prompts and makes those of answers.

The fleet decides when a token leaves, the source what it says. `taygeta.endpoint.synthetic` has every word at once; a
model that is executed (`taygeta.endpoint.executed`) makes tokens ahead of the fleet's clock as well as it can: a token
that is not there in time leaves late and is counted as late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol


class Chance(NamedTuple):
    """A token that could stand at a place: its text, and the natural logarithm of its probability."""

    text: str
    logprob: float


class Piece(NamedTuple):
    """The text of one token. last: the answer ends with it of its own accord.

    chances: where the ask wants them, the token itself, then the likeliest ones from the likeliest on.
    """

    text: str
    last: bool = False
    chances: tuple[Chance, ...] = ()


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted.

    prompt: token ids. limit: most tokens of the answer; least: fewest. endless: it goes on to the limit, whatever it
    says. seed: of what is drawn; two answers with all of this equal are equal. chances: how many likely tokens are
    wanted with each piece, None for no probabilities at all.

    The rest shapes what is drawn, by the names and rules of OpenAI and vLLM; None: as the source thinks best. bias: by
    token id, added to its logit.
    """

    prompt: Sequence[int]
    limit: int
    least: int = 0
    endless: bool = False
    seed: int = 0
    chances: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))


class Answer(Protocol):
    """An answer on its way. All of it is called in the event loop."""

    @property
    def tokens(self) -> int:
        """How many tokens it has, or where that is not known before, may have at most: the ask's limit or fewer."""
        ...

    @property
    def made(self) -> int:
        """How many tokens are there."""
        ...

    @property
    def ended(self) -> bool:
        """Whether no token comes after those that are there."""
        ...

    @property
    def problem(self) -> str:
        """Why it cannot go on, in a sentence; empty where it can."""
        ...

    def ahead(self) -> Sequence[int]:
        """Return ids of its first tokens as far as they are known before they are made: what a cache will hold."""
        ...

    def start(self, told: Callable[[], None]) -> None:
        """Begin to make it. told: called whenever there is more of it, or a problem."""
        ...

    def want(self, tokens: int) -> None:
        """Say that the fleet has emitted so many of its tokens: those that wait go first."""
        ...

    def piece(self, index: int) -> Piece:
        """Return a token that is there."""
        ...

    def close(self) -> None:
        """No more of it is wanted."""
        ...


class TextSource(Protocol):
    """Where the text comes from."""

    @property
    def said(self) -> str:
        """How it is made, in a few words, for people."""
        ...

    @property
    def real(self) -> bool:
        """Whether its tokens have probabilities."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Return the tokens of a text, at least one. Raises InputError where it has none, or is no text."""
        ...

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Return the tokens of a conversation of (role, text), with those that invite the next answer.

        Raises InputError for a conversation that the model has no form for.
        """
        ...

    def answer(self, ask: Ask) -> Answer:
        """Return an answer that has not begun. Raises InputError for a prompt that it cannot go on from."""
        ...
