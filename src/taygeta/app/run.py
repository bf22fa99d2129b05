"""taygeta run: a checkpoint executed in the chip's formats, its text streamed, then what it would have cost there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Json, Settings, parse_settings
from taygeta.app.output import COMPILING, emit
from taygeta.base.errors import InputError

if TYPE_CHECKING:

    from taygeta.machine.answer import Answer
    from taygeta.machine.price import StepPrice
    from taygeta.spec.deployment import Deployment

CheckpointDirectory = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="A local directory with config.json, safetensors and tokenizer.json.",
        show_default=False,
    ),
]  # fmt: skip
RunCheckpoint = Annotated[
    str,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="A local directory with config.json, safetensors and tokenizer.json; without one, the built-in assistant.",
        show_default=False,
    ),
]
Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="The text to go on from.", show_default=False)]
ChipOfTiles = Annotated[
    str,
    typer.Option("--chip", metavar="NAME[:COUNT]", help="A chip with tiles of the catalogue or a .toml file."),
]
Format = Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of the weights.")]
ActivationFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of the activations.")]
CacheFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of the KV cache.")]
MaxTokens = Annotated[int, typer.Option(help="Most new tokens.")]
Temperature = Annotated[float, typer.Option(help="0: the likeliest token; higher draws.")]
TopK = Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the fewest tokens that have this probability together.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
Ids = Annotated[bool, typer.Option("--ids", help="The prompt is token ids, 1,2,3: no tokenizer is needed.")]
Chat = Annotated[bool, typer.Option("--chat", help="The prompt is a message, put in the chat template.")]


def run(
    checkpoint: RunCheckpoint,
    prompt: Prompt = None,
    chip: ChipOfTiles = "maia-100",
    weights: Format = None,
    activations: ActivationFormat = None,
    kv: CacheFormat = None,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    ids: Ids = False,
    chat: Chat = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Run a checkpoint in a chip's number formats, and price every step on the chip.

    With a prompt alone the built-in assistant answers, which knows the catalogue: no download is needed.

    Example: taygeta run ./my-checkpoint "Once upon a time" --chip maia-100 --weights mx6 --activations mx9
    """
    from taygeta import api
    from taygeta.machine.answer import answer, compiled_before
    from taygeta.machine.generate import Sampling

    named, words = (None, checkpoint) if prompt is None else (checkpoint, prompt)
    found = parse_settings(settings or ())
    directory, d = api.deploy_checkpoint(
        named, chip, weights=weights, activations=activations, kv=kv, settings=found
    )  # fmt: skip
    asked = token_ids(words) if ids else words
    if not compiled_before():
        sys.stderr.write(f"{COMPILING}\n")
    said = _Screen(d, not as_json)
    result = answer(d, directory, asked, max_tokens, Sampling(temperature, top_k, top_p, seed), chat, said.show)
    said.finish()
    emit(lambda: _view(result), lambda: _document(result), as_json)


def token_ids(text: str) -> list[int]:
    """Return the ids in a text such as 1,2,3. Raises InputError."""
    words = text.replace(",", " ").split()
    if not words or not all(w.isdecimal() and len(w) < 10 for w in words):
        raise InputError(f"With --ids the prompt is token ids such as 1,2,3, not {text[:40]!r}.")
    return [int(w) for w in words]


class _Screen:
    """Text on standard output as it comes, after one line on standard error that says where it is computed."""

    def __init__(self, d: Deployment, shows: bool) -> None:
        self.deployment, self.shows = d, shows

    def show(self, piece: str) -> None:
        """Show a piece of text; an empty one says that execution begins."""
        if not self.shows:
            return
        if not piece:
            sys.stderr.write(
                f"{_where(self.deployment)}: every value below is computed in these formats, not by PyTorch\n"
            )
        sys.stdout.write("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in piece))
        sys.stdout.flush()

    def finish(self) -> None:
        """End the text with an empty line."""
        self.show("\n\n")


def _where(d: Deployment) -> str:
    from taygeta.report.words import chips_of, formats_of

    return f"{d.model.name} on {chips_of(d)}, {formats_of(d)}"


def _view(answer: Answer) -> Any:
    from taygeta.report.timed import difference
    from taygeta.report.view import Column, Fact, Grid, View, cells
    from taygeta.report.words import chips_of, count, formats_of, percent, seconds, seconds_range

    d, prices = answer.deployment, answer.prices
    facts: list[Fact] = []
    for name, p in prices.items():
        what = "prompt" if name == "prompt" else "per token"
        share = 1.0 if name == "prompt" else 1.0 / p.steps
        modelled = p.modelled.scaled(share)
        facts.append(Fact(what, seconds(p.seconds * share), "timed on the chip's engines"))
        facts.append(Fact("", seconds(modelled.nominal), f"modelled, {seconds_range(modelled)}"))
        if p.joules is not None:
            facts.append(Fact("", f"{p.joules * share:.3g} J", "at most: at the chip's full power"))
    facts.append(Fact("checked", count(answer.checked, "sum"), "recomputed in whole numbers: equal bits"))
    facts.append(Fact("executed here", seconds(answer.seconds[0]), "for the prompt, on this computer"))
    if len(answer.tokens) > 1:
        speed = (len(answer.tokens) - 1) / max(answer.seconds[1], 1e-9)
        facts.append(Fact("", f"{speed:.1f}/s", "tokens, on this computer"))
    p = prices.get("decode", prices["prompt"])
    rows = [
        cells(part, seconds(timed / p.steps), seconds(modelled / p.steps), percent(timed / p.seconds))
        for part, (timed, modelled) in p.parts.items()
        if max(timed, modelled) > 0.0
    ]
    title = "Where the time of a token goes" if "decode" in prices else "Where the time of the prompt goes"
    columns = (Column("part", numeric=False), Column("timed"), Column("modelled", drop=1), Column("share"))
    grid = Grid(title, columns, tuple(rows))
    length = f"{count(len(answer.prompt), 'token')} in, {count(len(answer.tokens), 'token')} out"
    notes = (
        *difference({part: (a / p.steps, b / p.steps) for part, (a, b) in p.parts.items()}),
        "Text, times and the order of every sum come from one program, compiled for this chip; the times of a chip"
        " with unpublished numbers hold for the assumptions that `taygeta show` lists.",
    )
    return View(f"{d.model.name} on {chips_of(d)}", (length, formats_of(d)), "", tuple(facts), (grid,), notes)


def _document(answer: Answer) -> dict[str, Any]:
    from taygeta.report.words import chips_of

    d = answer.deployment
    return {
        "model": d.model.name, "chips": chips_of(d), "formats": formats_document(d), "text": answer.text,
        "prompt_tokens": list(answer.prompt), "tokens": list(answer.tokens), "ended": answer.ended,
        "checked_sums": answer.checked, "executed_prompt_s": answer.seconds[0], "executed_decode_s": answer.seconds[1],
        **{name: price_document(p) for name, p in answer.prices.items()},
    }  # fmt: skip


def formats_document(d: Deployment) -> dict[str, str]:
    """Return the formats of a deployment by part."""
    from dataclasses import asdict

    return asdict(d.formats)


def price_document(p: StepPrice) -> dict[str, Any]:
    """Return the price of steps in SI units."""
    return {
        "steps": p.steps, "tokens": p.tokens, "timed_s": p.seconds, "timed_s_per_step": p.seconds / p.steps,
        "modelled_s": {"low": p.modelled.low, "nominal": p.modelled.nominal, "high": p.modelled.high},
        "parts_s": {part: timed for part, (timed, _) in p.parts.items()},
        "modelled_parts_s": {part: modelled for part, (_, modelled) in p.parts.items()},
        "busy": dict(p.busy), "joules_at_full_power": p.joules,
    }  # fmt: skip
