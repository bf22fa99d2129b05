"""Probabilities of tokens in the forms of OpenAI's two operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taygeta.endpoint.text import Chance

Chances = Sequence[tuple[Chance, ...]]
"""For each token: itself, then the likeliest ones."""


def of_chat(found: Chances) -> dict[str, Any]:
    """Return the log probabilities of a chat's tokens."""
    content = [{**_entry(own), "top_logprobs": [_entry(other) for other in others]} for own, *others in found]
    return {"content": content, "refusal": None}


def of_text(found: Chances, letters: int = 0) -> dict[str, Any]:
    """Return the log probabilities of a completion's tokens; letters: of the tokens before them.

    The likeliest tokens of a place are by their text, with its own token among them.
    """
    offsets = []
    for own, *_ in found:
        offsets.append(letters)
        letters += len(own.text)
    return {
        "text_offset": offsets,
        "token_logprobs": [own.logprob for own, *_ in found],
        "tokens": [own.text for own, *_ in found],
        "top_logprobs": [{c.text: c.logprob for c in (*others, own)} for own, *others in found],
    }


def _entry(chance: Chance) -> dict[str, Any]:
    return {"token": chance.text, "logprob": chance.logprob, "bytes": list(chance.text.encode())}
