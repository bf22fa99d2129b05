"""taygeta check: how right a checkpoint stays in a chip's formats, and what each choice of formats costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Json, Settings
from taygeta.app.output import emit, progress
from taygeta.app.run import (
    CHECK_EVERY,
    ActivationFormat,
    CacheFormat,
    CheckpointDirectory,
    ChipOfTiles,
    Format,
    deployed,
)
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.machine.quality import OpError, Quality
    from taygeta.machine.session import Weights
    from taygeta.machine.sweep import Row
    from taygeta.report.view import Grid, View
    from taygeta.spec.deployment import Deployment

MOST_TEXT = 64 << 20
MOST_TOKENS = 1 << 20
INTERRUPTED = 130
WINDOW = 256


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
Bound = Annotated[float, typer.Option("--diverges", help="Relative error from which an operation has diverged.")]


@dataclass(frozen=True)
class _Reference:
    """What logits are compared with. bf16: the same model in bf16, where PyTorch is installed."""

    name: str
    logits: list[Any]
    bf16: Quality | None


def check(
    checkpoint: CheckpointDirectory,
    chip: ChipOfTiles = "maia-100",
    text: TextFile = None,
    ids: IdsFile = None,
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

    Example: taygeta check ./my-checkpoint --chip maia-100 --text corpus.txt --sweep formats
    """
    from taygeta.machine.session import check_deployment, checkpoint_weights

    d = deployed(checkpoint, chip, weights, activations, kv, settings)
    check_deployment(d)
    if not 0.0 < diverges < 1e6:
        raise InputError(f"--diverges must be a relative error above 0 such as 0.05, not {diverges:g}.")
    windows = _windows(d, _ids(checkpoint, d, text, ids), tokens, window)
    parameters = checkpoint_weights(checkpoint, d)
    reference = _reference(checkpoint, d, parameters, windows)
    if sweep is not None:
        if weights or activations:
            raise InputError("--sweep formats tries formats itself: leave out --weights and --activations.")
        _sweep(checkpoint, chip, kv, settings, parameters, windows, reference, as_json)
        return
    _check(d, parameters, windows, reference, diverges, as_json)


def _ids(checkpoint: str, d: Deployment, text: Path | None, ids: Path | None) -> list[int]:
    """The tokens to predict. Raises InputError."""
    if (text is None) == (ids is None):
        raise InputError("Give what is to be predicted: --text corpus.txt, or token ids in a file with --ids.")
    path = text or ids
    assert path is not None  # noqa: S101
    try:
        if not path.is_file() or path.stat().st_size > MOST_TEXT:
            raise InputError(f"{path} must be a file of at most {MOST_TEXT:,} bytes.")
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as UTF-8: {getattr(error, 'strerror', None) or error}.") from None
    if ids is not None:
        words = content.replace(",", " ").split()
        if not all(w.isdecimal() and len(w) < 10 for w in words):
            raise InputError(f"{path} must hold token ids, whole numbers with blanks or commas between them.")
        found = [int(w) for w in words]
    else:
        from taygeta.frontend.tokenizer import load_tokenizer

        found = load_tokenizer(checkpoint).encode(content[: MOST_TOKENS * 16])
    wrong = next((i for i in found if i >= d.model.vocab), None)
    if wrong is not None:
        raise InputError(f"{path}: token {wrong} is not in the vocabulary of {d.model.vocab:,} of {d.model.name}.")
    return found


def _windows(d: Deployment, ids: Sequence[int], tokens: int, asked: int | None) -> list[list[int]]:
    """The text in sequences of at most `window` tokens; a rest of a single token is left out. Raises InputError."""
    limit = d.model.max_context
    window = min(limit, WINDOW) if asked is None else asked
    if not 2 <= window <= min(limit, 1024):
        raise InputError(f"--window must be 2 to {min(limit, 1024):,} tokens for {d.model.name}, not {window:,}.")
    if not 2 <= tokens <= MOST_TOKENS:
        raise InputError(f"--tokens must be 2 to {MOST_TOKENS:,}, not {tokens:,}.")
    found = list(ids[:tokens])
    parts = [found[i : i + window] for i in range(0, len(found), window)]
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        raise InputError("The text has fewer than two tokens: there is nothing to predict.")
    return parts


def _reference(checkpoint: str, d: Deployment, parameters: Weights, windows: list[list[int]]) -> _Reference:
    from taygeta.machine import quality as q
    from taygeta.machine.session import everywhere

    with progress("reference") as advance:
        if q.has_torch():
            advance(0, 2)
            logits = q.torch_logits(checkpoint, windows, "float32")
            advance(1, 2)
            half = q.quality(q.torch_logits(checkpoint, windows, "bfloat16"), logits, windows)
            return _Reference("PyTorch, eager, fp32", logits, half)
        from taygeta.graph.build import build

        graph = everywhere(build(d.model, d.formats))
        name = "the plain definition in fp32 (PyTorch is not installed)"
        return _Reference(name, q.graph_logits(graph, parameters, windows), None)


def _check(
    d: Deployment, parameters: Weights, windows: list[list[int]], reference: _Reference, bound: float, as_json: bool
) -> None:
    from taygeta.machine import quality as q
    from taygeta.machine.checks import Checker
    from taygeta.machine.session import Session

    checker = Checker(CHECK_EVERY)
    longest = max(map(len, windows))
    session = Session(d, parameters, longest, every=True, checker=checker)
    with progress("executing") as advance:
        found = q.quality(q.chip_logits(session, windows, advance), reference.logits, windows)
        first = windows[0][: session.chunk]
        errors = q.op_errors(session, parameters, first)
    plain = q.quality(q.graph_logits(session.graph, parameters, windows[:1]), reference.logits[:1], windows[:1])
    own = q.quality(reference.logits, reference.logits, windows)
    rows = {"chip": found} | ({"PyTorch bf16": reference.bf16} if reference.bf16 else {}) | {"reference": own}
    at = q.first_divergence(errors, bound)
    document = {
        "model": d.model.name, "chip": d.chip.id, "chips": d.chips, "formats": asdict(d.formats),
        "reference": reference.name, "tokens": sum(map(len, windows)), "windows": len(windows),
        "quality": {name: asdict(row) for name, row in rows.items()},
        "plain_definition_error_max": plain.error_max, "diverges": bound,
        "first_divergence": None if at is None else asdict(at), "operations": [asdict(e) for e in errors],
        "checked_sums": checker.checked,
    }  # fmt: skip
    emit(lambda: _view(d, document, rows, errors, at), lambda: document, as_json)


def _view(
    d: Deployment, document: Mapping[str, Any], rows: Mapping[str, Quality], errors: Sequence[OpError],
    at: OpError | None,
) -> View:  # fmt: skip
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
        for name, r in rows.items()
    )  # fmt: skip
    columns = tuple(Column(h, numeric=bool(h), drop=1 if h in ("KL max", "mean") else 0) for h in head)
    where = "none" if at is None else _place(at)
    what = "" if at is None else f"{at.operation} ({at.value}): relative error {at.relative:.2g}"
    facts = (
        Fact("first divergence", where, what or f"no operation is beyond {document['diverges']:g}"),
        Fact("plain definition", f"{document['plain_definition_error_max']:.2g}", "its largest logit error"),
        Fact("checked", count(document["checked_sums"], "sum"), "recomputed in whole numbers: equal bits"),
    )
    text = f"{count(document['tokens'], 'token')} in {count(document['windows'], 'sequence')}"
    lines = (formats_of(d), f"{text}, against {document['reference']}")
    grids = (Grid("Logits", columns, table), _operations(errors))
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
    checkpoint: str, chip: str, kv: str | None, settings: Sequence[str] | None, parameters: Weights,
    windows: list[list[int]], reference: _Reference, as_json: bool,
) -> None:  # fmt: skip
    """The co-design table; an interrupt shows the rows that there are."""
    from taygeta.machine.sweep import format_pairs, measure

    base = deployed(checkpoint, chip, None, None, kv, settings)
    pairs = format_pairs(base.chip)
    rows: list[Row] = []
    stopped = False
    with progress("formats") as advance:
        advance(0, len(pairs))
        try:
            for number, (weights, activations) in enumerate(pairs):
                d = deployed(checkpoint, chip, weights, activations, kv, settings)
                rows.append(measure(d, parameters, windows, reference.logits))
                advance(number + 1, len(pairs))
        except KeyboardInterrupt:
            stopped = True
            if not rows:
                raise
    emit(
        lambda: _sweep_view(base, rows, len(pairs), reference),
        lambda: _sweep_document(base, rows, len(pairs), reference),
        as_json,
    )
    if stopped:
        raise typer.Exit(INTERRUPTED)


def _sweep_document(d: Deployment, rows: Sequence[Row], pairs: int, reference: _Reference) -> dict[str, Any]:
    from taygeta.machine.sweep import pareto

    best = pareto(rows)
    return {
        "model": d.model.name, "chip": d.chip.id, "chips": d.chips, "kv": d.formats.kv, "reference": reference.name,
        "pairs": pairs, "bf16": None if reference.bf16 is None else asdict(reference.bf16),
        "rows": [
            {k: v for k, v in asdict(r).items() if k != "quality"} | asdict(r.quality) | {"pareto": i in best}
            for i, r in enumerate(rows)
        ],
    }  # fmt: skip


def _sweep_view(d: Deployment, rows: Sequence[Row], pairs: int, reference: _Reference) -> View:
    from taygeta.machine.sweep import pareto
    from taygeta.report.view import Column, Grid, View, cells
    from taygeta.report.words import chips_of, percent, size

    best = pareto(rows)
    order = sorted(range(len(rows)), key=lambda i: (rows[i].quality.kl, rows[i].seconds))
    table = tuple(
        cells(
            "*" if i in best else "", rows[i].weights, rows[i].activations, rows[i].mode,
            f"{rows[i].quality.perplexity:.4g}", f"{rows[i].quality.kl:.3g}", percent(rows[i].quality.agreement),
            f"{rows[i].seconds * 1e3:.3g}", size(rows[i].bytes),
        )
        for i in order
    )  # fmt: skip
    columns = (
        Column("", numeric=False), Column("weights", numeric=False), Column("activations", numeric=False),
        Column("multiplied in", numeric=False, drop=1), Column("perplexity"), Column("KL"), Column("top-1"),
        Column("ms per token"), Column("size"),
    )  # fmt: skip
    caption = "* Pareto-optimal: no other pair has a lower KL, fewer ms per token and fewer bytes at once."
    lines = [f"KV cache {d.formats.kv}, against {reference.name}"]
    if reference.bf16 is not None:
        lines.append(f"PyTorch in bf16: KL {reference.bf16.kl:.3g}, perplexity {reference.bf16.perplexity:.4g}")
    notes = () if len(rows) == pairs else (f"Interrupted: {len(rows)} of {pairs} pairs were tried.",)
    grid = Grid("Formats", columns, table, None, caption)
    return View(f"{d.model.name} on {chips_of(d)}: formats", tuple(lines), "", (), (grid,), notes)
