"""Questions with their only right answers, asked of a checkpoint on a chip: what a format costs in right answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from taygeta.base.errors import InputError
from taygeta.frontend.tokenizer import Tokenizer
from taygeta.machine.generate import generate
from taygeta.machine.session import Session, Weights
from taygeta.spec.deployment import Deployment

MOST_BYTES = 16 << 20
MOST_QUESTIONS = 10_000
TOGETHER = 16
"""Questions that are answered side by side; the bits of an answer do not depend on its neighbours."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """A message, and the text that is its only right answer."""

    question: str
    answer: str


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """Return the questions of a file: in every line a JSON object with the texts "question" and "answer".

    Raises InputError, with the line.
    """
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} must be a file of at most {MOST_BYTES:,} bytes.")
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as UTF-8: {getattr(error, 'strerror', None) or error}.") from None
    if not 1 <= len(lines) <= MOST_QUESTIONS:
        raise InputError(f"{path} must hold 1 to {MOST_QUESTIONS:,} questions, one a line, not {len(lines):,}.")
    return tuple(_question(path, number, line) for number, line in enumerate(lines, 1))


def _question(path: Path, number: int, line: str) -> Question:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    texts = [found.get(key) for key in ("question", "answer")] if isinstance(found, dict) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(
            f'{path}, line {number}: a question is a JSON object such as {{"question": "Who?", "answer": "I."}}, not'
            f" {line[:60]!r}."
        )
    return Question(*(str(text) for text in texts))


def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """Return the tokens of a question in the chat template. Raises InputError."""
    return tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": question}]), special=False)


def dialogues(d: Deployment, tokenizer: Tokenizer, questions: Sequence[Question], tokens: int) -> list[list[int]]:
    """Return questions with their right answers as sequences of tokens, as many as `tokens` hold, at least one.

    Raises InputError for one that is longer than the model's context.
    """
    out: list[list[int]] = []
    for q in questions:
        ids = [*prompt_ids(tokenizer, q.question), *tokenizer.encode(q.answer, special=False)]
        _check_length(d, ids, q.question)
        if out and sum(map(len, out)) + len(ids) > tokens:
            break
        out.append(ids)
    return out


def answers(
    d: Deployment, weights: Weights, tokenizer: Tokenizer, questions: Sequence[Question],
    progress: Progress | None = None,
) -> list[str]:  # fmt: skip
    """Return the greedy answers of a checkpoint executed in the formats of a deployment, each to one question alone.

    An answer is cut where it is longer than every right answer of its batch. Raises what Session raises.
    """
    advance = progress or (lambda done, total: None)
    prompts = [prompt_ids(tokenizer, q.question) for q in questions]
    longest = [len(tokenizer.encode(q.answer, special=False)) + 2 for q in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + longest[i])
    out = [""] * len(prompts)
    for start in range(0, len(order), TOGETHER):
        part = order[start : start + TOGETHER]
        most, room = max(longest[i] for i in part), max(len(prompts[i]) for i in part)
        for i in part:
            _check_length(d, [0] * (len(prompts[i]) + most), questions[i].question)
        session = Session(d, weights, room + most, len(part))
        texts: list[list[int]] = [[] for _ in part]
        for found in generate(session, [prompts[i] for i in part], most, eos=tokenizer.eos):
            for text, token in zip(texts, found, strict=True):
                if token is not None:
                    text.append(token)
        for i, text in zip(part, texts, strict=True):
            out[i] = tokenizer.decode(text)
        advance(min(start + TOGETHER, len(order)), len(order))
    return out


def right_answers(
    d: Deployment, weights: Weights, tokenizer: Tokenizer, questions: Sequence[Question],
    progress: Progress | None = None,
) -> int:  # fmt: skip
    """Return how many answers are right: the text is the right one to the letter, but for white space around it."""
    given = answers(d, weights, tokenizer, questions, progress)
    return sum(text.strip() == q.answer.strip() for text, q in zip(given, questions, strict=True))


def _check_length(d: Deployment, ids: Sequence[int], question: str) -> None:
    if len(ids) > d.model.max_context:
        raise InputError(
            f"The question {question[:40]!r} and its answer have {len(ids):,} tokens, and the context of"
            f" {d.model.name} is {d.model.max_context:,}."
        )
