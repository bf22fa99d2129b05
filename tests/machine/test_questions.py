"""Questions with right answers: their file, and what a checkpoint on a chip says to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taygeta.api import deploy_checkpoint
from taygeta.base.errors import InputError
from taygeta.frontend.assistant import assistant_directory
from taygeta.frontend.tokenizer import load_tokenizer
from taygeta.machine.answer import answer
from taygeta.machine.questions import Question, answers, dialogues, prompt_ids, read_questions, right_answers
from taygeta.machine.session import checkpoint_weights

ASKED = (
    Question("How much memory does Maia 100 have?", "Maia 100 has 64 GiB of memory."),
    Question("Who makes H100?", " H100 is made by NVIDIA.\n"),
    Question("What is 288 - 80?", "It is 42."),
)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"question": q.question, "answer": q.answer, "more": 1}) + "\n" for q in ASKED))
    assert read_questions(path) == ASKED


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must hold 1 to 10,000 questions, one a line, not 0"),
        (b"\xff", "cannot be read as UTF-8"),
        (b'{"question": "a", "answer": "b"}\n[1]', r"line 2: a question is a JSON object"),
        (b'{"question": "a", "answer": ""}', "line 1: a question"),
        (b'{"question": 5, "answer": "b"}', "line 1: a question"),
        (b"[" * 100_000, "line 1: a question"),
        (b'{"question": "a", "answer": "b"}\n' * 10_001, "not 10,001"),
    ],
)
def test_what_is_no_file_of_questions(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_questions(path)
    with pytest.raises(InputError, match="must be a file"):
        read_questions(tmp_path)


@given(content=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "asked.jsonl"
    path.write_bytes(content)
    try:
        found = read_questions(path)
    except InputError:
        return
    assert all(q.question.strip() and q.answer.strip() for q in found)


def test_answers_together_are_those_of_each_alone() -> None:
    """Batches change nothing, white space around an answer does not count, and a wrong answer is not right."""
    directory, d = deploy_checkpoint(None, "maia-100", weights="mx9", activations="mx9")
    weights, tokenizer = checkpoint_weights(directory, d), load_tokenizer(directory)
    found = answers(d, weights, tokenizer, ASKED)
    assert found == [answer(d, directory, q.question, 40, chat=True).text for q in ASKED]
    assert right_answers(d, weights, tokenizer, ASKED) == 2


def test_dialogues_are_as_many_as_tokens_hold() -> None:
    directory, d = deploy_checkpoint(None, "maia-100")
    tokenizer = load_tokenizer(directory)
    each = [[*prompt_ids(tokenizer, q.question), *tokenizer.encode(q.answer, special=False)] for q in ASKED]
    assert dialogues(d, tokenizer, ASKED, sum(map(len, each))) == each
    assert dialogues(d, tokenizer, ASKED, sum(map(len, each)) - 1) == each[:2]
    assert dialogues(d, tokenizer, ASKED, 2) == each[:1]
    with pytest.raises(InputError, match=r"and its answer have .* tokens, and the context of assistant is 256"):
        dialogues(d, tokenizer, [Question("word " * 300, "x")], 512)


def test_those_of_the_assistant_ship() -> None:
    assert len(read_questions(assistant_directory() / "questions.jsonl")) == 500
