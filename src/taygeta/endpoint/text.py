"""The seam for text: who counts the tokens of prompts and makes those of answers.

The fleet decides when a token leaves, the source what it says. `taygeta.endpoint.synthetic` is one; a model that is
executed is another: it has the prompt as soon as the request has come, and a token that is not there in time leaves
late and is counted as late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """The text of one token. last: the answer ends with it of its own accord."""

    text: str
    last: bool = False


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted.

    prompt: token ids. limit: most tokens of the answer; least: fewest. endless: it goes on to the limit, whatever it
    says. seed: of what is drawn; two answers with all of this equal are equal. temperature, top_p: of sampling.
    """

    prompt: Sequence[int]
    limit: int
    least: int = 0
    endless: bool = False
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0


class Answer(Protocol):
    """An answer on its way. Pieces are asked for in order, from 0, each once."""

    @property
    def tokens(self) -> int:
        """How many tokens it has, or where that is not known before, may have at most: the ask's limit or fewer."""
        ...

    def ahead(self) -> Sequence[int]:
        """Return ids of its first tokens as far as they are known before they are made: what a cache will hold."""
        ...

    async def piece(self, index: int) -> Piece:
        """Return the text of a token, as soon as it is there."""
        ...

    def close(self) -> None:
        """No more of it is wanted."""
        ...


class TextSource(Protocol):
    """Where the text comes from."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the tokens of a text."""
        ...

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Return the tokens of a conversation of (role, text), with those that invite the next answer."""
        ...

    def answer(self, ask: Ask) -> Answer:
        """Begin an answer."""
        ...
