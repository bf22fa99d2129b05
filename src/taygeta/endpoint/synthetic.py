"""Text without a model: plausible words, one to a token, the same for the same seed.

Tokens of a prompt are counted by a rule (`split`) or by a tokenizer.json. A conversation costs 3 tokens for each
message beside its role and its text, and 3 for the answer that it invites: OpenAI's rule for its chat models (OpenAI
Cookbook, "How to count tokens with tiktoken").
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taygeta.base.errors import InputError, require
from taygeta.endpoint.text import Answer, Ask, Piece

if TYPE_CHECKING:
    from taygeta.serving.lengths import Lengths

MAX_TOKENIZER_BYTES = 64 << 20
AHEAD = 1 << 14  # tokens of an answer that a prefix cache is told of before they are made
SPLIT = re.compile(r"\s*(?:\w{1,8}|[^\w\s])|\s+")
"""A token by rule: up to 8 letters or digits, or one other sign, with the space before it; or space at the end."""

_START, _TEXT, _END = -1, -2, -3  # the signs around a message; no token of a text has a number below 0
_STRIDE = 0x9E3779B97F4A7C15  # of splitmix64 (Steele et al., OOPSLA 2014), which mixes the seed with the position
_MASK = (1 << 64) - 1

_WORDS = """
the a of and to in is that for it as with on by this be are from at or an which have not more can one each other
when their all its than these time only two first step then new over model chip weight token layer cache memory
batch request answer prompt queue network head matrix vector number format block length context latency clock
bound peak rate power heat cost price engine kernel tile core link server client stream order place point part
side line end start work load store read write move wait run hold keep give take make find show tell ask know
see think mean need want help turn grow fall rise pass meet reach change follow leave begin small large long
short fast slow early late high low full empty wide deep near far same next last few many most least even still
often never always again here there now soon once while after before between under above across around through
without against because where how why what who people world day night hour year light water earth air fire stone
river road house door window table paper letter word name sound voice hand eye mind heart body life art law idea
fact reason cause result sense value sign form shape size plan test proof rule case kind way set group pair half
whole
"""
WORDS = tuple(_WORDS.split())


def split(text: str) -> list[int]:
    """Return the tokens of a text by the rule SPLIT, as numbers that are equal for equal tokens of one process."""
    return [value & _MASK for value in map(hash, SPLIT.findall(text))]


class Synthetic:
    """A source of synthetic text.

    lengths: of answers that end of their own accord. seed: of everything drawn. tokenizer: a tokenizer.json that
    counts the tokens of prompts instead of the rule; answers then use words that it knows as one token each.

    Raises InputError for a tokenizer that cannot be used, MissingExtraError without the library that reads it.
    """

    def __init__(self, lengths: Lengths, seed: int = 0, tokenizer: Path | None = None) -> None:
        self.lengths, self.seed = lengths, seed
        self._encode = split if tokenizer is None else _tokenizer(tokenizer)
        self.words: Sequence[str] = WORDS
        if tokenizer is not None:
            known = [w for w in WORDS if len(self._encode(f" {w}")) == len(self._encode(w.capitalize())) == 1]
            self.words = known or WORDS

    @property
    def said(self) -> str:
        """What it is, for people."""
        return "synthetic text"

    @property
    def real(self) -> bool:
        """Words that are drawn have no probabilities."""
        return False

    def encode(self, text: str) -> Sequence[int]:
        """Return the tokens of a text; nothing said still begins a sequence."""
        return self._encode(text) or (0,)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Return the tokens of a conversation, with those that invite the next answer."""
        out: list[int] = []
        for role, text in messages:
            out += [_START, _role(role), _TEXT, *self._encode(text), _END]
        return [*out, _START, _role("assistant"), _TEXT]

    def answer(self, ask: Ask) -> Answer:
        """Begin an answer: its length is drawn, and cut by the ask's limit."""
        import numpy as np

        key = hashlib.blake2b(f"{self.seed}/{ask.seed}/{len(ask.prompt)}".encode(), digest_size=8).digest()
        number = int.from_bytes(key, "little")
        tokens = ask.limit
        if not ask.endless:
            draw = np.random.Generator(np.random.PCG64(number))
            tokens = max(1, ask.least, int(self.lengths.draw(draw, 1)[0]))
        return SyntheticAnswer(self, number, min(tokens, ask.limit), ends=tokens < ask.limit and not ask.endless)


class SyntheticAnswer:
    """Words in sentences. ends: the last token is the answer's own end, not the ask's limit."""

    def __init__(self, source: Synthetic, number: int, tokens: int, ends: bool) -> None:
        self.source, self.number, self.tokens, self.ends = source, number, tokens, ends
        self.sentence = 8 + number % 9  # tokens of each, its full stop included

    def ahead(self) -> Sequence[int]:
        """Return the ids of its tokens, up to AHEAD of them."""
        text = "".join(self.text(i) for i in range(min(self.tokens, AHEAD)))
        return self.source.encode(text)

    @property
    def made(self) -> int:
        """All of it is there at once."""
        return self.tokens

    @property
    def ended(self) -> bool:
        """All of it is there at once."""
        return True

    @property
    def problem(self) -> str:
        """Nothing can go wrong."""
        return ""

    def start(self, told: Callable[[], None]) -> None:
        """It is there."""

    def want(self, tokens: int) -> None:
        """It is there."""

    def piece(self, index: int) -> Piece:
        """Return the text of a token."""
        return Piece(self.text(index), self.ends and index == self.tokens - 1)

    def text(self, index: int) -> str:
        """Return the word, or the full stop, at a place."""
        place, left = index % self.sentence, self.tokens - 1 - index if self.ends else -1
        if (index and left == 0) or (place == self.sentence - 1 and left != 1):  # one full stop ends it
            return "."
        words = self.source.words
        word = words[_mixed(self.number + index * _STRIDE) % len(words)]
        if place == 0:
            word = word.capitalize()
        return f" {word}" if index else word

    def close(self) -> None:
        """Nothing is held."""


def _role(name: str) -> int:
    """Return the one token of a role."""
    return -4 - zlib.crc32(name.encode())


def _mixed(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _tokenizer(path: Path) -> Callable[[str], Sequence[int]]:
    """Return the function of a tokenizer.json from a text to its tokens."""
    tokenizers = require("tokenizers", "server", "--tokenizer")
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise InputError(f"{path} is larger than {MAX_TOKENIZER_BYTES >> 20} MiB: it is no tokenizer.")
        found = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except InputError:
        raise
    except Exception as error:  # the library raises a plain Exception for whatever it cannot read
        raise InputError(f"{path} is no tokenizer.json: {error}.") from None
    return lambda text: found.encode(text, add_special_tokens=False).ids
