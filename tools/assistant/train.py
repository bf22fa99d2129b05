"""Train the assistant: `python -m tools.assistant.train --out DIRECTORY`, from the repository root.

One thread, fp32, AdamW, examples drawn from the seed as they are needed and seen about once each; the loss is over the
tokens of answers. The same seed, steps and library versions give the same weights on the same kind of processor.
A checkpoint in bf16 is written every `--save` steps and at the end, with the training record beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch.nn import functional

from tools.assistant.data import Draw
from tools.assistant.network import CONFIG, Assistant
from tools.assistant.tokenizer import END, SAMPLES, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Training:
    """One run. tokens: of a batch; peak: the highest rate; every: steps between checkpoints; samples: examples that
    the tokenizer is trained on.
    """

    seed: int
    steps: int
    tokens: int
    peak: float
    every: int
    samples: int = SAMPLES


Batch = tuple[torch.Tensor, torch.Tensor]
POOL = 512
"""Examples that are sorted by length together, so that those of a batch are about as long as each other."""


def batches(tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[Batch]:
    """Yield batches of about `tokens` tokens: ids and targets, (batch, length), a target of -100 where none counts."""
    draw, end = Draw(seed), tokenizer.token_to_id(END)
    while True:
        pool = []
        for _ in range(POOL):
            example = draw.example()
            asked = tokenizer.encode(example.question).ids
            answer = [*tokenizer.encode(example.answer, add_special_tokens=False).ids, end]
            pool.append((asked, answer))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        groups, group = [], []
        for pair in pool:
            if group and (len(group) + 1) * (len(pair[0]) + len(pair[1])) > tokens:
                groups.append(group)
                group = []
            group.append(pair)
        groups.append(group)
        draw.random.shuffle(groups)
        yield from map(_batch, groups)


def _batch(group: list[tuple[list[int], list[int]]]) -> Batch:
    length = max(len(asked) + len(answer) for asked, answer in group) - 1
    ids = torch.zeros(len(group), length, dtype=torch.long)
    targets = torch.full((len(group), length), -100)
    for row, (asked, answer) in enumerate(group):
        both = asked + answer
        ids[row, : len(both) - 1] = torch.tensor(both[:-1])
        targets[row, len(asked) - 1 : len(both) - 1] = torch.tensor(answer)
    return ids, targets


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: 100 steps up, constant, and down to nothing over the last 45 %."""
    if step < 100:
        return peak * (step + 1) / 100
    left = (steps - step) / (0.45 * steps)
    return peak * min(1.0, left)


def train(given: Training, out: Path) -> None:
    """Train and write the checkpoint into `out`."""
    torch.manual_seed(given.seed)
    tokenizer = train_tokenizer(given.seed, given.samples)
    network = Assistant(tokenizer.get_vocab_size())
    matrices = [p for p in network.parameters() if p.ndim == 2]
    rest = [p for p in network.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given.peak, betas=(0.9, 0.98), fused=True)
    begin, losses, examples = time.perf_counter(), [], 0
    source = batches(tokenizer, given.seed + 1000, given.tokens)
    for step in range(1, given.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step - 1, given.steps, given.peak)
        ids, targets = next(source)
        chosen = targets >= 0
        loss = functional.cross_entropy(network.logits(network(ids)[chosen]), targets[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        examples += len(ids)
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"The loss of step {step} is {losses[-1]}: train with a smaller --rate than {given.peak}.")
        seconds, mean = round(time.perf_counter() - begin), sum(losses[-100:]) / len(losses[-100:])
        if step % 100 == 0:
            print(f"{step:6d} {mean:.4f} {examples} examples {seconds} s", flush=True)
        if step % given.every == 0 or step == given.steps:
            now = {"step": step, "examples": examples, "seconds": seconds, "loss": mean}
            write(out, network, tokenizer, {**asdict(given), **now})


def write(out: Path, network: Assistant, tokenizer: Tokenizer, record: dict[str, Any]) -> None:
    """Write the checkpoint: weights in bf16, configuration, tokenizer, and the record of the training."""
    save_tokenizer(tokenizer, out)
    weights = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in network.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    end = tokenizer.token_to_id(END)
    config = {**CONFIG, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": end}
    generation = {"do_sample": False, "eos_token_id": end, "max_new_tokens": 128}
    for name, table in (("config", config), ("generation_config", generation), ("training", record)):
        (out / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train the assistant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a batch")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--save", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(Training(given.seed, given.steps, given.tokens, given.rate, given.save), given.out)


if __name__ == "__main__":
    main()
