"""How right a model stays in a chip's formats: logits against a reference, and operation by operation.

The reference is PyTorch's eager model in fp32 where torch and transformers are installed, else taygeta.graph.execute,
the plain definition in fp32. Operations are always compared with the latter.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from taygeta.compiler.program import Item, Loop, Phase
from taygeta.graph import execute
from taygeta.graph.meaning import Route
from taygeta.graph.ops import Block, Graph, Op
from taygeta.graph.step import Cache
from taygeta.machine.session import Session, Weights

Windows = Sequence[Sequence[int]]
Progress = Callable[[int, int], None]

DIVERGES = 0.05
"""Relative error from which an operation counts as diverged: mean square of the difference over that of the values."""


@dataclass(frozen=True)
class Quality:
    """Logits against the reference's, over all predictions of a text.

    perplexity: exp of the mean negative log-likelihood of the next token. kl, kl_max: Kullback-Leibler divergence of
    the reference's distribution from this one, in nats, mean and largest. agreement: share of predictions whose
    likeliest token is the reference's. error_max, error_mean: of the logits, absolute.
    """

    predictions: int
    perplexity: float
    kl: float
    kl_max: float
    agreement: float
    error_max: float
    error_mean: float


@dataclass(frozen=True)
class OpError:
    """One value of one operation against the plain definition: absolute errors, and the relative one (see DIVERGES)."""

    layer: int | None
    operation: str
    value: str
    part: str
    relative: float
    mean: float
    largest: float


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last axis, in fp64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def quality(logits: Sequence[np.ndarray], reference: Sequence[np.ndarray], windows: Windows) -> Quality:
    """Compare logits (tokens, vocab) of every window with the reference's."""
    losses, divergences, same, largest, total, count = [], [], [], 0.0, 0.0, 0
    for ours, theirs, tokens in zip(logits, reference, windows, strict=True):
        p, q = log_softmax(theirs), log_softmax(ours)
        divergences.append((np.exp(p) * (p - q)).sum(axis=-1))
        same.append(ours.argmax(axis=-1) == theirs.argmax(axis=-1))
        losses.append(-q[np.arange(len(tokens) - 1), list(tokens[1:])])
        error = np.abs(ours.astype(np.float64) - theirs)
        largest, total, count = max(largest, float(error.max())), total + float(error.sum()), count + error.size
    kl, agree, loss = np.concatenate(divergences), np.concatenate(same), np.concatenate(losses)
    perplexity = float(np.exp(min(loss.mean(), 700.0))) if len(loss) else float("nan")
    return Quality(
        len(agree), perplexity, max(0.0, float(kl.mean())), max(0.0, float(kl.max())), float(agree.mean()), largest,
        total / count,
    )  # fmt: skip


def chip_logits(session: Session, windows: Windows, progress: Progress | None = None) -> list[np.ndarray]:
    """Return the logits after every token of each window, each a sequence of its own. The session has `every`."""
    out: list[np.ndarray] = []
    for number, tokens in enumerate(windows):
        session.context = [0]
        parts = []
        for start in range(0, len(tokens), session.chunk):
            parts.append(session.step([tokens[start : start + session.chunk]], [start]))
            session.context = [min(start + session.chunk, len(tokens))]
        out.append(np.concatenate(parts))
        if progress is not None:
            progress(number + 1, len(windows))
    return out


def graph_logits(graph: Graph, weights: Weights, windows: Windows) -> list[np.ndarray]:
    """Return the same by the plain definition in fp32. graph: one whose head gives logits after every token."""
    return [execute.run(graph, weights, {0: list(tokens)}, Cache()) for tokens in windows]


def has_torch() -> bool:
    """Whether PyTorch and transformers are installed."""
    return find_spec("torch") is not None and find_spec("transformers") is not None


def torch_logits(directory: str | Path, windows: Windows, dtype: str) -> list[np.ndarray]:
    """Return the same by PyTorch's eager model of the checkpoint, computed in fp32 or bf16; logits in fp32.

    Only safetensors are read, and no code of the checkpoint is run.
    """
    import torch
    import transformers

    with _quiet():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(directory), dtype=getattr(torch, dtype), attn_implementation="eager", use_safetensors=True,
            trust_remote_code=False, local_files_only=True,
        )  # fmt: skip
        model.eval()
        with torch.no_grad():
            out = [model(torch.tensor([list(tokens)])).logits[0].float().numpy() for tokens in windows]
    del model
    gc.collect()
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remarks and progress bars, which are not about the result."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers.utils.logging import disable_progress_bar, enable_progress_bar

            disable_progress_bar()
            yield
            enable_progress_bar()
    finally:
        logger.setLevel(level)


def op_errors(session: Session, weights: Weights, tokens: Sequence[int]) -> list[OpError]:
    """Return the error of every value that the program keeps, in the order in which they are computed.

    tokens: at most one chunk. Values that live only inside a phase (sums before their gate, the cache) are not there.
    """
    reference = _reference(session, weights, tokens)
    out: list[OpError] = []
    session.context = [0]
    compiled = session.program(len(tokens), 0)
    numbers = {id(phase): n for n, phase in enumerate(_phases(compiled.program.body), 1)}
    after = {f.phase: [g for g in compiled.finished if g.phase == f.phase] for f in compiled.finished}
    running: list[tuple[int, dict[str, int]]] = []

    def observe(phase: Phase | None, loops: Mapping[str, int]) -> None:
        for number, turn in running:
            for finished in after.get(number, ()):
                visits = finished.visits
                visit = visits.first + visits.each * turn.get("layer", 0)
                layer = compiled.layers[visits.block][visit]
                for name, held in finished.values:
                    known = reference.get((layer, visits.block, name))
                    if known is None or not held.buffers or session.machine is None:
                        continue
                    op, wanted = known
                    ours = (
                        session.machine.logits(len(tokens)) if name == "logits"
                        else session.machine.value(held, len(tokens))
                    )  # fmt: skip
                    if ours.shape == wanted.shape:
                        out.append(_op_error(layer, op, name, ours, wanted))
        running[:] = [] if phase is None else [(numbers[id(phase)], dict(loops))]

    session.observe = observe
    try:
        session.step([tokens], [0])
    finally:
        session.observe = None
    return out


def _reference(
    session: Session, weights: Weights, tokens: Sequence[int]
) -> dict[tuple[int | None, int, str], tuple[Op, np.ndarray]]:
    """The plain definition's values (tokens, elements) by layer, block and name."""
    out: dict[tuple[int | None, int, str], tuple[Op, np.ndarray]] = {}
    blocks = {id(block): n for n, block in enumerate(session.graph.blocks)}

    def observe(layer: int | None, block: Block, op: Op, values: Mapping[str, list[np.ndarray]]) -> None:
        for name, ranks in values.items():
            value = ranks[0]
            if isinstance(op.meaning, Route) and name == op.outputs[0]:
                chosen, value = values[op.outputs[1]][0], np.zeros((len(value), op.reads[0].row_elements), np.float32)
                np.put_along_axis(value, chosen, ranks[0], axis=1)
            out[layer, blocks[id(block)], name] = (op, value.reshape(len(value), -1) if len(value) else value)

    execute.run(session.graph, weights, {0: list(tokens)}, Cache(), observe)
    return out


def _op_error(layer: int | None, op: Op, name: str, ours: np.ndarray, wanted: np.ndarray) -> OpError:
    error = ours.astype(np.float64) - wanted
    size = float(np.sqrt(np.mean(wanted.astype(np.float64) ** 2)))
    rms = float(np.sqrt(np.mean(error**2)))
    relative = rms / size if size else (0.0 if rms == 0.0 else float("inf"))
    return OpError(layer, op.name, name, op.part, relative, float(np.abs(error).mean()), float(np.abs(error).max()))


def _phases(body: Sequence[Item]) -> Iterator[Phase]:
    for item in body:
        if isinstance(item, Phase):
            yield item
        elif isinstance(item, Loop):
            yield from _phases(item.body)


def first_divergence(errors: Sequence[OpError], bound: float = DIVERGES) -> OpError | None:
    """Return the first value whose relative error exceeds the bound (or is no number), None where none does."""
    return next((e for e in errors if not e.relative <= bound), None)
