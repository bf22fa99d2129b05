"""taygeta check: how right a checkpoint stays in a chip's formats, and what each choice of formats costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Json, Settings, parse_settings
from taygeta.app.output import emit, progress
from taygeta.app.run import ActivationFormat, CacheFormat, ChipOfTiles, Format, RunCheckpoint
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.machine.agreement import Agreement, Reference
    from taygeta.machine.quality import OpError
    from taygeta.machine.questions import Question
    from taygeta.machine.session import Weights
    from taygeta.machine.sweep import Row
    from taygeta.report.view import Grid, View
    from taygeta.spec.deployment import Deployment

MOST_TEXT = 64 << 20
INTERRUPTED = 130


class Sweep(StrEnum):
    """What is swept."""

    formats = "formats"


TextFile = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="A text to predict, in UTF-8.", show_default=False)
]
IdsFile = Annotated[
    Path | None,
    typer.Option("--ids", metavar="FILE", help="Token ids instead of a text.", show_default=False),
]  # fmt: skip
Tokens = Annotated[int, typer.Option(help="Tokens of the text that are predicted, from its start.")]
Window = Annotated[
    int | None,
    typer.Option(help="Tokens of each sequence of the text; by default 256.", show_default=False),
]  # fmt: skip
SweepOption = Annotated[
    Sweep | None, typer.Option("--sweep", help="Compare weight and activation formats that the chip computes.")
]
QuestionsFile = Annotated[
    Path | None,
    typer.Option(
        "--questions", metavar="FILE", show_default=False,
        help='Ask these too and count right answers: {"question": ..., "answer": ...} in every line.',
    ),
]  # fmt: skip
Asked = Annotated[int, typer.Option("--ask", help="Questions that are asked, from the first.")]
Bound = Annotated[float, typer.Option("--diverges", help="Relative error from which an operation has diverged.")]


def check(
    checkpoint: RunCheckpoint = "",
    chip: ChipOfTiles = "maia-100",
    text: TextFile = None,
    ids: IdsFile = None,
    questions: QuestionsFile = None,
    ask: Asked = 64,
    weights: Format = None,
    activations: ActivationFormat = None,
    kv: CacheFormat = None,
    sweep: SweepOption = None,
    tokens: Tokens = 512,
    window: Window = None,
    diverges: Bound = 0.05,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Compare a checkpoint in a chip's formats with PyTorch, or sweep the formats.

    Without a checkpoint the built-in assistant is checked, on questions of its held-out test.

    Example: taygeta check ./my-checkpoint --chip maia-100 --text corpus.txt --sweep formats
    """
    from taygeta.machine import agreement as a
    from taygeta.machine.session import check_deployment, checkpoint_weights

    given = _Given(checkpoint or None, chip, kv, settings)
    directory, d = given.deployed(weights, activations)
    check_deployment(d)
    a.check_bound(diverges)
    if sweep is not None and (weights or activations):
        raise InputError("--sweep formats tries formats itself: leave out --weights and --activations.")
    asked = _questions(questions, ask, not checkpoint)
    if text is None and ids is None and asked:
        windows = _dialogues(directory, d, asked, tokens)
    else:
        windows = a.sequences(d, a.text_ids(d, directory, _content(text, ids)), tokens, window)
    parameters = checkpoint_weights(directory, d)
    with progress("reference") as advance:
        reference = a.reference_logits(directory, d, parameters, windows, advance)
    right = _counter(directory, parameters, asked)
    if sweep is not None:
        _sweep(given, parameters, windows, reference, right, len(asked), as_json)
        return
    with progress("executing") as advance:
        found = a.agreement(d, parameters, windows, reference, diverges, advance)
    answered = None if right is None else right(d)
    emit(lambda: _view(found, answered, len(asked)), lambda: _document(found, answered, len(asked)), as_json)


@dataclass(frozen=True)
class _Given:
    """What all deployments of a command share."""

    checkpoint: str | None
    chip: str
    kv: str | None
    settings: Sequence[str] | None

    def deployed(self, weights: str | None = None, activations: str | None = None) -> tuple[Path, Deployment]:
        """Return the checkpoint's directory, and a deployment in these formats."""
        from taygeta import api

        found = parse_settings(self.settings or ())
        return api.deploy_checkpoint(
            self.checkpoint, self.chip, weights=weights, activations=activations, kv=self.kv, settings=found
        )


def _questions(path: Path | None, count: int, assistant: bool) -> Sequence[Question]:
    """The first questions of a file; by default those of the assistant, where it is checked."""
    from taygeta.frontend.assistant import assistant_directory
    from taygeta.machine.questions import MOST_QUESTIONS, read_questions

    if not 1 <= count <= MOST_QUESTIONS:
        raise InputError(f"--ask must be 1 to {MOST_QUESTIONS:,}, not {count:,}.")
    if path is None and not assistant:
        return ()
    return read_questions(path or assistant_directory() / "questions.jsonl")[:count]


def _dialogues(directory: Path, d: Deployment, asked: Sequence[Question], tokens: int) -> list[list[int]]:
    from taygeta.frontend.tokenizer import load_tokenizer
    from taygeta.machine.agreement import MOST_TOKENS
    from taygeta.machine.questions import dialogues

    if not 2 <= tokens <= MOST_TOKENS:
        raise InputError(f"tokens must be 2 to {MOST_TOKENS:,}, not {tokens:,}.")
    return dialogues(d, load_tokenizer(directory), asked, tokens)


def _counter(directory: Path, parameters: Weights, asked: Sequence[Question]) -> Callable[[Deployment], int] | None:
    """What counts the right answers of a deployment; None where nothing is asked."""
    from taygeta.frontend.tokenizer import load_tokenizer
    from taygeta.machine.questions import right_answers

    if not asked:
        return None
    tokenizer = load_tokenizer(directory)
    return lambda d: right_answers(d, parameters, tokenizer, asked)


def _content(text: Path | None, ids: Path | None) -> str | list[int]:
    """The text to predict, or its ids. Raises InputError."""
    if (text is None) == (ids is None):
        raise InputError(
            "Give what is to be predicted: --text corpus.txt, token ids in a file with --ids, or --questions with"
            " answers."
        )
    path = text or ids
    assert path is not None  # noqa: S101
    try:
        if not path.is_file() or path.stat().st_size > MOST_TEXT:
            raise InputError(f"{path} must be a file of at most {MOST_TEXT:,} bytes.")
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as UTF-8: {getattr(error, 'strerror', None) or error}.") from None
    if ids is None:
        return content
    words = content.replace(",", " ").split()
    if not all(w.isdecimal() and len(w) < 10 for w in words):
        raise InputError(f"{path} must hold token ids, whole numbers with blanks or commas between them.")
    return [int(w) for w in words]


def _document(a: Agreement, right: int | None, asked: int) -> dict[str, Any]:
    d = a.deployment
    return {
        "model": d.model.name, "chip": d.chip.id, "chips": d.chips, "formats": asdict(d.formats),
        "reference": a.reference, "tokens": a.tokens, "windows": a.sequences,
        "quality": {name: asdict(row) for name, row in a.rows.items()},
        "plain_definition_error_max": a.definition_error, "diverges": a.diverges,
        "first_divergence": None if a.first_divergence is None else asdict(a.first_divergence),
        "operations": [asdict(e) for e in a.operations], "checked_sums": a.checked, "questions": asked,
        "right_answers": right,
    }  # fmt: skip


def _view(a: Agreement, right: int | None, asked: int) -> View:
    from taygeta.report.view import Column, Fact, Grid, View, cells
    from taygeta.report.words import chips_of, count, formats_of, percent

    head = (
        "", "perplexity", "KL mean", "KL max", "top-1", "logit error max", "mean"
    )  # fmt: skip
    table = tuple(
        cells(
            name, f"{r.perplexity:.4g}", f"{r.kl:.3g}", f"{r.kl_max:.3g}", percent(r.agreement),
            f"{r.error_max:.3g}", f"{r.error_mean:.3g}",
        )
        for name, r in a.rows.items()
    )  # fmt: skip
    columns = tuple(Column(h, numeric=bool(h), drop=1 if h in ("KL max", "mean") else 0) for h in head)
    d, at = a.deployment, a.first_divergence
    where = "none" if at is None else _place(at)
    what = "" if at is None else f"{at.operation} ({at.value}): relative error {at.relative:.2g}"
    facts = (
        Fact("first divergence", where, what or f"no operation is beyond {a.diverges:g}"),
        Fact("plain definition", f"{a.definition_error:.2g}", "its largest logit error"),
        Fact("checked", count(a.checked, "sum"), "recomputed in whole numbers: equal bits"),
    )
    if right is not None:
        facts = (Fact("right answers", f"{right} of {asked}", "to the letter, greedy, in these formats"), *facts)
    text = f"{count(a.tokens, 'token')} in {count(a.sequences, 'sequence')}"
    lines = (formats_of(d), f"{text}, against {a.reference}")
    grids = (Grid("Logits", columns, table), _operations(a.operations))
    return View(f"{d.model.name} on {chips_of(d)}", lines, "", facts, grids)


def _place(e: OpError) -> str:
    return "outside of layers" if e.layer is None else f"layer {e.layer}"


def _operations(errors: Sequence[OpError]) -> Grid:
    """Errors by operation, all layers together: the first layer, the last, and the largest."""
    from taygeta.report.view import Column, Grid, cells

    groups: dict[tuple[str, str], list[OpError]] = {}
    for e in errors:
        groups.setdefault((e.operation, e.value), []).append(e)
    rows = tuple(
        cells(
            operation, value, f"{found[0].relative:.2g}", f"{found[-1].relative:.2g}",
            f"{sum(e.mean for e in found) / len(found):.2g}", f"{max(e.largest for e in found):.2g}",
        )
        for (operation, value), found in groups.items()
    )  # fmt: skip
    columns = (
        Column("operation", numeric=False), Column("value", numeric=False), Column("first layer"),
        Column("last layer"), Column("mean", drop=1), Column("max", drop=1),
    )  # fmt: skip
    caption = "Relative error against the plain definition in fp32 on the first sequence; mean and max are absolute."
    return Grid("Operations", columns, rows, None, caption)


def _sweep(
    given: _Given, parameters: Weights, windows: list[list[int]], reference: Reference,
    right: Callable[[Deployment], int] | None, asked: int, as_json: bool,
) -> None:  # fmt: skip
    """The co-design table; an interrupt shows the rows that there are."""
    from taygeta.machine.sweep import format_pairs, measure

    _, base = given.deployed()
    pairs = format_pairs(base.chip)
    rows: list[Row] = []
    stopped = False
    with progress("formats") as advance:
        advance(0, len(pairs))
        try:
            for number, (weights, activations) in enumerate(pairs):
                _, d = given.deployed(weights, activations)
                rows.append(measure(d, parameters, windows, reference.logits, right))
                advance(number + 1, len(pairs))
        except KeyboardInterrupt:
            stopped = True
            if not rows:
                raise
    emit(
        lambda: _sweep_view(base, rows, len(pairs), asked, reference),
        lambda: _sweep_document(base, rows, len(pairs), asked, reference),
        as_json,
    )
    if stopped:
        raise typer.Exit(INTERRUPTED)


def _sweep_document(
    d: Deployment, rows: Sequence[Row], pairs: int, asked: int, reference: Reference
) -> dict[str, Any]:
    from taygeta.machine.sweep import pareto

    best = pareto(rows)
    return {
        "model": d.model.name, "chip": d.chip.id, "chips": d.chips, "kv": d.formats.kv, "reference": reference.name,
        "pairs": pairs, "questions": asked, "bf16": None if reference.half is None else asdict(reference.half),
        "rows": [
            {k: v for k, v in asdict(r).items() if k != "quality"} | asdict(r.quality) | {"pareto": i in best}
            for i, r in enumerate(rows)
        ],
    }  # fmt: skip


def _sweep_view(d: Deployment, rows: Sequence[Row], pairs: int, asked: int, reference: Reference) -> View:
    from taygeta.machine.sweep import pareto
    from taygeta.report.view import Column, Grid, View, cells
    from taygeta.report.words import chips_of, percent, size

    best = pareto(rows)
    order = sorted(range(len(rows)), key=lambda i: (rows[i].quality.kl, rows[i].seconds))
    table = tuple(
        cells(
            "*" if i in best else "", rows[i].weights, rows[i].activations, rows[i].mode,
            *([f"{rows[i].right} of {asked}"] if asked else ()), f"{rows[i].quality.perplexity:.4g}",
            f"{rows[i].quality.kl:.3g}", percent(rows[i].quality.agreement), f"{rows[i].seconds * 1e3:.3g}",
            size(rows[i].bytes),
        )
        for i in order
    )  # fmt: skip
    columns = (
        Column("", numeric=False), Column("weights", numeric=False), Column("activations", numeric=False),
        Column("multiplied in", numeric=False, drop=2), *([Column("right")] if asked else ()),
        Column("perplexity", drop=1), Column("KL"), Column("top-1"),
        Column("ms per token"), Column("size"),
    )  # fmt: skip
    caption = "* Pareto-optimal: no other pair has a lower KL, fewer ms per token and fewer bytes at once."
    lines = [f"KV cache {d.formats.kv}, against {reference.name}"]
    if reference.half is not None:
        lines.append(f"PyTorch in bf16: KL {reference.half.kl:.3g}, perplexity {reference.half.perplexity:.4g}")
    if asked:
        lines.append("Right: greedy answers that are the right text to the letter")
    notes = () if len(rows) == pairs else (f"Interrupted: {len(rows)} of {pairs} pairs were tried.",)
    grid = Grid("Formats", columns, table, None, caption)
    return View(f"{d.model.name} on {chips_of(d)}: formats", tuple(lines), "", (), (grid,), notes)
