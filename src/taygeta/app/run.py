"""taygeta run: a checkpoint executed in the chip's formats, its text streamed, then what it would have cost there."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Json, Settings, parse_settings
from taygeta.app.output import emit
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from taygeta.frontend.tokenizer import Tokenizer
    from taygeta.machine.price import StepPrice
    from taygeta.machine.session import Session
    from taygeta.spec.deployment import Deployment

MOST_TOKENS = 1 << 20
CHECK_EVERY = 16
"""One of so many multiplies is checked in whole numbers while it runs."""

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
Prompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="The text to go on from.", show_default=False)
]
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


@dataclass
class Answer:
    """What a run gave. text is None where there is no tokenizer."""

    prompt: list[int]
    tokens: list[int]
    text: str | None
    ended: bool
    seconds: tuple[float, float]


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
    from taygeta.machine.checks import Checker
    from taygeta.machine.generate import Sampling, generate
    from taygeta.machine.price import Pricer
    from taygeta.machine.session import Session, check_deployment, checkpoint_weights

    if prompt is None:
        checkpoint, prompt = str(assistant_directory()), checkpoint
    d = deployed(checkpoint, chip, weights, activations, kv, settings)
    check_deployment(d)
    sampling = Sampling(temperature, top_k, top_p, seed)
    if not 1 <= max_tokens <= MOST_TOKENS:
        raise InputError(f"--max-tokens must be 1 to {MOST_TOKENS:,}, not {max_tokens:,}.")
    tokenizer = None if ids else _tokenizer(checkpoint)
    asked = encoded(prompt, tokenizer, chat, d)
    count = min(max_tokens, d.model.max_context - len(asked))
    parameters = checkpoint_weights(checkpoint, d)
    checker = Checker(CHECK_EVERY)
    session = Session(d, parameters, len(asked) + count, checker=checker)
    said = _Screen(tokenizer, asked, not as_json)
    if not as_json:
        sys.stderr.write(f"{_where(d)}: every value below is computed in these formats, not by PyTorch\n")
    eos = tokenizer.eos if tokenizer else ()
    answer = _answer(generate(session, [asked], count, sampling, eos), said, asked, eos)
    pricer, prefill = Pricer(d), _prompt_steps(session, len(asked))
    prices = {"prompt": pricer.price(session.steps[:prefill])}
    if len(session.steps) > prefill:
        prices["decode"] = pricer.price(session.steps[prefill:])
    emit(
        lambda: _view(d, answer, prices, checker.checked),
        lambda: _document(d, answer, prices, checker.checked),
        as_json,
    )


def assistant_directory() -> Path:
    """Return where the built-in assistant's checkpoint lies in the package."""
    from importlib import resources
    from pathlib import Path

    return Path(str(resources.files("taygeta") / "data" / "assistant"))


def deployed(
    checkpoint: str, chip: str, weights: str | None, activations: str | None, kv: str | None,
    settings: Sequence[str] | None,
) -> Deployment:  # fmt: skip
    """Return the deployment of a local checkpoint. Raises InputError for a model that is no directory."""
    from pathlib import Path

    from taygeta import api

    if not Path(checkpoint).is_dir():
        raise InputError(
            f"{checkpoint} is no directory: running needs a checkpoint on disk, a directory with config.json,"
            " model.safetensors and tokenizer.json."
        )
    found = parse_settings(settings or ())
    return api.deploy(checkpoint, chip, weights=weights, activations=activations, kv=kv, settings=found)


def encoded(prompt: str, tokenizer: Tokenizer | None, chat: bool, d: Deployment) -> list[int]:
    """Return the ids of a prompt. Raises InputError for one that is empty, not ids, or longer than the context."""
    if tokenizer is None:
        words = [w for w in prompt.replace(",", " ").split() if w]
        if not words or not all(w.isdecimal() and len(w) < 10 for w in words):
            raise InputError(f"With --ids the prompt is token ids such as 1,2,3, not {prompt[:40]!r}.")
        found = [int(w) for w in words]
    elif chat:
        message = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        found = tokenizer.encode(message, special=False)
    else:
        found = tokenizer.encode(prompt)
    if not found:
        raise InputError("The prompt has no tokens: give a text to go on from.")
    wrong = next((i for i in found if i >= d.model.vocab), None)
    if wrong is not None:
        raise InputError(f"Token {wrong} is not in the vocabulary of {d.model.vocab:,} tokens of {d.model.name}.")
    if len(found) >= d.model.max_context:
        raise InputError(
            f"The prompt has {len(found):,} tokens, and the context of {d.model.name} is"
            f" {d.model.max_context:,}: give a prompt of at most {d.model.max_context - 1:,} tokens."
        )
    return found


def _tokenizer(checkpoint: str) -> Tokenizer:
    from taygeta.frontend.tokenizer import load_tokenizer

    return load_tokenizer(checkpoint)


class _Screen:
    """Text as it comes: pieces on standard output, or kept."""

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int], shows: bool) -> None:
        self.stream = tokenizer.stream(prompt) if tokenizer else None
        self.shows, self.pieces = shows, list[str]()

    def push(self, token: int) -> None:
        self._show(self.stream.push(token) if self.stream else f"{token} ")

    def finish(self) -> str | None:
        if self.stream:
            self._show(self.stream.finish())
        if self.shows:
            sys.stdout.write("\n\n")
            sys.stdout.flush()
        return "".join(self.pieces) if self.stream else None

    def _show(self, piece: str) -> None:
        self.pieces.append(piece)
        if self.shows and piece:
            sys.stdout.write("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in piece))
            sys.stdout.flush()


def _answer(
    found: Iterator[list[int | None]], said: _Screen, prompt: list[int], eos: Sequence[int]
) -> Answer:  # fmt: skip
    tokens: list[int] = []
    begin = time.perf_counter()
    first = begin
    for (token,) in found:
        if not tokens:
            first = time.perf_counter()
        if token is not None:
            tokens.append(token)
            if token not in eos:
                said.push(token)
    end = time.perf_counter()
    text = said.finish()
    return Answer(prompt, tokens, text, tokens[-1] in eos, (first - begin, end - first))


def _prompt_steps(session: Session, prompt: int) -> int:
    """How many steps the prompt took."""
    done = 0
    for number, step in enumerate(session.steps):
        done += step.new
        if done >= prompt:
            return number + 1
    return len(session.steps)


def _where(d: Deployment) -> str:
    from taygeta.report.words import chips_of, formats_of

    return f"{d.model.name} on {chips_of(d)}, {formats_of(d)}"


def _view(d: Deployment, answer: Answer, prices: dict[str, StepPrice], checked: int) -> Any:
    from taygeta.report.view import Column, Fact, Grid, View, cells
    from taygeta.report.words import chips_of, count, formats_of, percent, seconds, seconds_range

    facts: list[Fact] = []
    for name, p in prices.items():
        what = "prompt" if name == "prompt" else "per token"
        share = 1.0 if name == "prompt" else 1.0 / p.steps
        modelled = p.modelled.scaled(share)
        facts.append(Fact(what, seconds(p.seconds * share), "timed on the chip's engines"))
        facts.append(Fact("", seconds(modelled.nominal), f"modelled, {seconds_range(modelled)}"))
        if p.joules is not None:
            facts.append(Fact("", f"{p.joules * share:.3g} J", "at most: at the chip's full power"))
    facts.append(Fact("checked", count(checked, "sum"), "recomputed in whole numbers: equal bits"))
    facts.append(Fact("executed here", seconds(answer.seconds[0]), "for the prompt, on this computer"))
    if len(answer.tokens) > 1:
        speed = (len(answer.tokens) - 1) / max(answer.seconds[1], 1e-9)
        facts.append(Fact("", f"{speed:.1f}/s", "tokens, on this computer"))
    p = prices.get("decode", prices["prompt"])
    rows = [
        cells(part, seconds(value / p.steps), percent(value / p.seconds))
        for part, value in sorted(p.parts.items(), key=lambda item: -item[1])
        if value > 0.0
    ]
    title = "Where the time of a token goes" if "decode" in prices else "Where the time of the prompt goes"
    grid = Grid(title, (Column("part", numeric=False), Column("time"), Column("share")), tuple(rows))
    length = f"{count(len(answer.prompt), 'token')} in, {count(len(answer.tokens), 'token')} out"
    notes = (
        "Text, times and the order of every sum come from one program, compiled for this chip; the times of a chip"
        " with unpublished numbers hold for the assumptions that `taygeta show` lists.",
    )
    return View(f"{d.model.name} on {chips_of(d)}", (length, formats_of(d)), "", tuple(facts), (grid,), notes)


def _document(d: Deployment, answer: Answer, prices: dict[str, StepPrice], checked: int) -> dict[str, Any]:
    from taygeta.report.words import chips_of

    return {
        "model": d.model.name, "chips": chips_of(d), "formats": formats_document(d), "text": answer.text,
        "prompt_tokens": answer.prompt, "tokens": answer.tokens, "ended": answer.ended,
        "checked_sums": checked, "executed_prompt_s": answer.seconds[0], "executed_decode_s": answer.seconds[1],
        **{name: price_document(p) for name, p in prices.items()},
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
        "parts_s": dict(p.parts), "busy": dict(p.busy), "joules_at_full_power": p.joules,
    }  # fmt: skip
