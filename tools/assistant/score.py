"""Score an assistant on the held-out questions: `python -m tools.assistant.score DIRECTORY --count 500`.

An answer is right when its text is, to the letter, the only right one. Greedy decoding in bf16 by transformers; with
`--chip maia-100` by the chip's machine instead, in the formats that are given.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.assistant.data import KINDS, Example, held_out

SHIPPED = Path(__file__).parents[2] / "src" / "taygeta" / "data" / "assistant"
LONGEST = 128
"""New tokens after which an answer is cut: the longest right one has under 100."""


def by_transformers(directory: Path, questions: Sequence[str], together: int = 64) -> list[str]:
    """Return the greedy answers of transformers in bf16, through the chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    out = [""] * len(questions)
    for start in range(0, len(order), together):
        part = order[start : start + together]
        talks = [[{"role": "user", "content": questions[i]}] for i in part]
        given = tokenizer.apply_chat_template(
            talks, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        with torch.no_grad():
            found = model.generate(**given, max_new_tokens=LONGEST, do_sample=False)
        width = given["input_ids"].shape[1]
        for i, tokens in zip(part, found, strict=True):
            out[i] = tokenizer.decode(tokens[width:], skip_special_tokens=True)
    return out


def by_machine(
    directory: Path, examples: Sequence[Example], chip: str, weights: str | None, activations: str | None,
    kv: str | None,
) -> list[str]:  # fmt: skip
    """Return the greedy answers of a chip's machine in the formats given."""
    from taygeta import api
    from taygeta.frontend.tokenizer import load_tokenizer
    from taygeta.machine.questions import Question, answers
    from taygeta.machine.session import checkpoint_weights

    deployment = api.deploy(str(directory), chip, weights=weights, activations=activations, kv=kv)
    asked = [Question(example.question, example.answer) for example in examples]
    return answers(deployment, checkpoint_weights(directory, deployment), load_tokenizer(directory), asked)


def table(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return (right, asked) by kind of question, and of all."""
    asked, right = Counter[str](), Counter[str]()
    for example, answer in zip(examples, answers, strict=True):
        asked.update((example.kind, "all"))
        if answer == example.answer:
            right.update((example.kind, "all"))
    return {kind: (right[kind], asked[kind]) for kind in (*(k for k, _, _ in KINDS), "all") if asked[kind]}


def main() -> None:
    """Print the score by kind, and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--chip", default=None)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--activations", default=None)
    parser.add_argument("--kv", default=None)
    parser.add_argument("--wrong", type=int, default=20, help="wrong answers to print")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    examples = held_out(given.count, given.seed)
    questions = [example.question for example in examples]
    if given.chip is None:
        answers = by_transformers(given.directory, questions)
    else:
        formats = (given.weights, given.activations, given.kv)
        answers = by_machine(given.directory, examples, given.chip, *formats)
    scores = table(examples, answers)
    for kind, (right, asked) in scores.items():
        print(f"| {kind} | {right} of {asked} | {100 * right / asked:.1f} % |")
    wrong = [(e, a) for e, a in zip(examples, answers, strict=True) if e.answer != a]
    for example, answer in wrong[: given.wrong]:
        print(f"[{example.kind}] {example.question}\n    right: {example.answer}\n    given: {answer}")
    if given.json:
        given.json.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
