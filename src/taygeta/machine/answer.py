"""A prompt answered by a checkpoint that is executed on a chip: its text, and what its steps take there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taygeta.base.errors import InputError
from taygeta.base.machine_code import kept
from taygeta.frontend.tokenizer import Tokenizer, load_tokenizer
from taygeta.machine.checks import Checker
from taygeta.machine.core_timed import go
from taygeta.machine.generate import Sampling, generate
from taygeta.machine.price import Pricer, StepPrice
from taygeta.machine.session import Ran, Session, check_deployment, checkpoint_weights
from taygeta.numerics.dot import narrow
from taygeta.numerics.wide import tree_products, tree_sums
from taygeta.spec.deployment import Deployment

MOST_TOKENS = 1 << 20
CHECK_EVERY = 16
"""One of so many multiplies is checked in whole numbers while it runs."""

Said = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What a model said on a chip, and what that would have cost there.

    prompt, tokens: ids; the last of tokens is one that ends a text where `ended`. text: of tokens, without what ends
    it; None where the prompt was ids. prices: of the steps of the "prompt", and of those of "decode" where there were
    any. checked: sums that were computed again in whole numbers, with equal bits. seconds: of this computer, until the
    first token and after it.
    """

    deployment: Deployment
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str | None
    ended: bool
    prices: Mapping[str, StepPrice]
    checked: int
    seconds: tuple[float, float]

    def __str__(self) -> str:
        return " ".join(map(str, self.tokens)) if self.text is None else self.text


def answer(
    d: Deployment, checkpoint: str | Path, prompt: str | Sequence[int], max_tokens: int = 64,
    sampling: Sampling | None = None, chat: bool = False, said: Said | None = None,
) -> Answer:  # fmt: skip
    """Execute a local checkpoint of a deployment's model on a prompt, in the formats of the deployment.

    prompt: a text, or token ids, for which no tokenizer is needed. chat: the prompt is a message, put in the chat
    template. said: called with "" when execution begins, then with pieces of text as they come (ids and blanks for a
    prompt of ids). Raises InputError, UnsupportedError (a chip without tiles, a checkpoint that is not understood),
    DoesNotFitError and MissingExtraError.
    """
    check_deployment(d)
    if not 1 <= max_tokens <= MOST_TOKENS:
        raise InputError(f"max-tokens must be 1 to {MOST_TOKENS:,}, not {max_tokens:,}.")
    tokenizer = load_tokenizer(checkpoint) if isinstance(prompt, str) else None
    ids = prompt_ids(d, prompt, tokenizer, chat)
    count = min(max_tokens, d.model.max_context - len(ids))
    checker = Checker(CHECK_EVERY)
    session = Session(d, checkpoint_weights(checkpoint, d), len(ids) + count, checker=checker)
    tokens, text, seconds = _generated(session, ids, count, sampling or Sampling(), tokenizer, said or (lambda _: None))
    eos = tokenizer.eos if tokenizer else ()
    pricer, first = Pricer(d), _prompt_steps(session.steps, len(ids))
    prices = {"prompt": pricer.price(session.steps[:first])}
    if len(session.steps) > first:
        prices["decode"] = pricer.price(session.steps[first:])
    return Answer(d, tuple(ids), tuple(tokens), text, tokens[-1] in eos, prices, checker.checked, seconds)


def compiled_before() -> bool:
    """Return whether the machine code that executes and times programs lies on this disk."""
    return kept(go) and any(map(kept, (narrow, tree_products, tree_sums)))


def prompt_ids(d: Deployment, prompt: str | Sequence[int], tokenizer: Tokenizer | None, chat: bool) -> list[int]:
    """Return the ids of a prompt. Raises InputError for one that is empty, or longer than the model's context."""
    if tokenizer is None or not isinstance(prompt, str):
        found = [int(i) for i in prompt]
    elif chat:
        message = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        found = tokenizer.encode(message, special=False)
    else:
        found = tokenizer.encode(prompt)
    if not found:
        raise InputError("The prompt has no tokens: give a text to go on from.")
    check_ids(d, found)
    if len(found) >= d.model.max_context:
        raise InputError(
            f"The prompt has {len(found):,} tokens, and the context of {d.model.name} is"
            f" {d.model.max_context:,}: give a prompt of at most {d.model.max_context - 1:,} tokens."
        )
    return found


def check_ids(d: Deployment, ids: Sequence[int]) -> None:
    """Refuse token ids that are not in the vocabulary of a model. Raises InputError."""
    wrong = next((i for i in ids if not 0 <= i < d.model.vocab), None)
    if wrong is not None:
        raise InputError(f"Token {wrong} is not in the vocabulary of {d.model.vocab:,} tokens of {d.model.name}.")


def _generated(
    session: Session, ids: list[int], count: int, sampling: Sampling, tokenizer: Tokenizer | None, said: Said
) -> tuple[list[int], str | None, tuple[float, float]]:
    """Tokens, their text, and the seconds until the first and after it."""
    eos = tokenizer.eos if tokenizer else ()
    stream = tokenizer.stream(ids) if tokenizer else None
    tokens: list[int] = []
    pieces: list[str] = []

    def say(piece: str) -> None:
        if piece:
            pieces.append(piece)
            said(piece)

    said("")
    begin = time.perf_counter()
    first = begin
    for (token,) in generate(session, [ids], count, sampling, eos):
        if not tokens:
            first = time.perf_counter()
        if token is not None:
            tokens.append(token)
            if token not in eos:
                say(stream.push(token) if stream else f"{token} ")
    end = time.perf_counter()
    say(stream.finish() if stream else "")
    return tokens, "".join(pieces) if stream else None, (first - begin, end - first)


def _prompt_steps(steps: Sequence[Ran], prompt: int) -> int:
    """How many steps the prompt took."""
    done = 0
    for number, step in enumerate(steps):
        done += step.new
        if done >= prompt:
            return number + 1
    return len(steps)
