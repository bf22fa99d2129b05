"""How far a text as a chip computes it agrees with a reference: sequences, reference logits, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taygeta.base.errors import InputError
from taygeta.frontend.config import read_json
from taygeta.frontend.tokenizer import load_tokenizer
from taygeta.graph.build import build
from taygeta.machine import quality as q
from taygeta.machine.answer import CHECK_EVERY, MOST_TOKENS, check_ids
from taygeta.machine.checks import Checker
from taygeta.machine.quality import OpError, Quality
from taygeta.machine.session import Session, Weights, everywhere
from taygeta.spec.deployment import Deployment

WINDOW = 256
MOST_WINDOW = 1024
_CHARACTERS = 16  # read of a text for each token that can be asked for

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """What logits are compared with: one array (tokens, vocab) a sequence. half: PyTorch in bf16, where it is there."""

    name: str
    logits: list[Any]
    half: Quality | None


@dataclass(frozen=True)
class Agreement:
    """A text as a chip computes it, against a reference.

    rows: logits of the "chip", of "PyTorch bf16" where that is there, and of the "reference" itself. operations:
    errors of the first sequence by operation, in the order of the program; first_divergence: the first beyond
    `diverges`. definition_error: largest logit error of the plain definition. checked: sums computed again in whole
    numbers, with equal bits.
    """

    deployment: Deployment
    reference: str
    tokens: int
    sequences: int
    rows: Mapping[str, Quality]
    definition_error: float
    diverges: float
    first_divergence: OpError | None
    operations: tuple[OpError, ...]
    checked: int


def text_ids(d: Deployment, checkpoint: str | Path, text: str | Sequence[int]) -> list[int]:
    """Return the ids of a text, by the checkpoint's tokenizer, or ids as they are. Raises InputError."""
    if isinstance(text, str):
        found = load_tokenizer(checkpoint).encode(text[: MOST_TOKENS * _CHARACTERS])
    else:
        found = [int(i) for i in text]
    check_ids(d, found)
    return found


def sequences(d: Deployment, ids: Sequence[int], tokens: int, window: int | None) -> list[list[int]]:
    """Return the first `tokens` ids in sequences of at most `window` (None: 256, or the model's context).

    A rest of a single token is left out. Raises InputError.
    """
    limit = d.model.max_context
    size = min(limit, WINDOW) if window is None else window
    if not 2 <= size <= min(limit, MOST_WINDOW):
        raise InputError(f"window must be 2 to {min(limit, MOST_WINDOW):,} tokens for {d.model.name}, not {size:,}.")
    if not 2 <= tokens <= MOST_TOKENS:
        raise InputError(f"tokens must be 2 to {MOST_TOKENS:,}, not {tokens:,}.")
    found = list(ids[:tokens])
    parts = [part for i in range(0, len(found), size) if len(part := found[i : i + size]) > 1]
    if not parts:
        raise InputError("The text has fewer than two tokens: there is nothing to predict.")
    return parts


def check_bound(diverges: float) -> None:
    """Refuse what is no relative error to compare with. Raises InputError."""
    if not 0.0 < diverges < 1e6:
        raise InputError(f"diverges must be a relative error above 0 such as 0.05, not {diverges:g}.")


def reference_logits(
    checkpoint: str | Path, d: Deployment, weights: Weights, windows: list[list[int]], progress: Progress | None = None
) -> Reference:
    """Return the logits of PyTorch in fp32; of the plain definition where PyTorch is not installed.

    A checkpoint with a quantization_config is compared with the plain definition too: PyTorch's libraries would compute
    on its codes, or need a GPU for them.
    """
    advance = progress or (lambda done, total: None)
    stored = read_json(Path(checkpoint) / "config.json").get("quantization_config") is not None
    if q.has_torch() and not stored:
        advance(0, 2)
        logits = q.torch_logits(checkpoint, windows, "float32")
        advance(1, 2)
        half = q.quality(q.torch_logits(checkpoint, windows, "bfloat16"), logits, windows)
        return Reference("PyTorch, eager, fp32", logits, half)
    why = "weights are stored quantised" if stored else "PyTorch is not installed"
    graph = everywhere(build(d.model, d.formats))
    return Reference(f"the plain definition in fp32 ({why})", q.graph_logits(graph, weights, windows), None)


def agreement(
    d: Deployment, weights: Weights, windows: list[list[int]], reference: Reference, diverges: float = q.DIVERGES,
    progress: Progress | None = None,
) -> Agreement:  # fmt: skip
    """Execute a text on the chip and compare logits and operations. Raises what Session raises, and InputError."""
    check_bound(diverges)
    checker = Checker(CHECK_EVERY)
    session = Session(d, weights, max(map(len, windows)), every=True, checker=checker)
    found = q.quality(q.chip_logits(session, windows, progress), reference.logits, windows)
    errors = q.op_errors(session, weights, windows[0][: session.chunk])
    plain = q.quality(q.graph_logits(session.graph, weights, windows[:1]), reference.logits[:1], windows[:1])
    own = q.quality(reference.logits, reference.logits, windows)
    rows = {"chip": found} | ({"PyTorch bf16": reference.half} if reference.half else {}) | {"reference": own}
    return Agreement(
        d, reference.name, sum(map(len, windows)), len(windows), rows, plain.error_max, diverges,
        q.first_divergence(errors, diverges), tuple(errors), checker.checked,
    )  # fmt: skip
