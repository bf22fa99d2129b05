"""The verbs: deploy, predict, serve_rate, compare, plan, sweep, explain, run, check. The command line has the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict, Unpack

from taygeta.base import units
from taygeta.base.errors import InputError
from taygeta.cost.predict import Predictor
from taygeta.cost.result import Prediction, Service
from taygeta.cost.service import Load, service
from taygeta.explore import plan as _plan
from taygeta.explore import sweep as _sweep
from taygeta.explore.plan import Comparison, Plan, Progress
from taygeta.explore.recipe import Recipe
from taygeta.explore.sweep import Sensitivity, Sweep
from taygeta.frontend.assistant import assistant_directory
from taygeta.spec.deployment import Batch, Deployment
from taygeta.spec.model import Model

if TYPE_CHECKING:
    from taygeta.machine.agreement import Agreement
    from taygeta.machine.answer import Answer


class Options(TypedDict, total=False):
    """How a deployment is spread and stored; the same words as on the command line. settings: fields of chip or model
    set to texts.
    """

    tp: int | None
    pp: int
    ep: int | None
    dp: int
    cp: int
    sequence: bool
    weights: str | None
    activations: str | None
    kv: str | None
    engine: str
    skew: float
    settings: Mapping[str, str]


def recipe(model: str | PathLike[str] | Model, on: str = "h100", **options: Unpack[Options]) -> Recipe:
    """Return a deployment in words, not built yet.

    model: a name, a config.json, a directory, or a Model such as `export_model` finds; on: "chip" or "chip:count".
    """
    settings = MappingProxyType(dict(options.pop("settings", {})))
    return Recipe(model if isinstance(model, Model) else str(model), on, **options, settings=settings)  # type: ignore[misc]


def deploy(model: str | PathLike[str] | Model, on: str = "h100", **options: Unpack[Options]) -> Deployment:
    """Return a checked deployment of a model on chips; tensor parallelism over all chips unless told otherwise.

    Raises InputError, UnknownNameError or UnsupportedError with one sentence that says what would work.
    """
    return recipe(model, on, **options).build()


def predict(deployment: Deployment, batch: Batch | Sequence[Batch]) -> Prediction:
    """Return the time of one step with its interval, bounds, what binds it and its operations.

    batch: the work of each attention-DP rank, or one batch per rank.
    """
    return Predictor(deployment).predict(batch)


def serve_rate(deployment: Deployment, isl: int, osl: int, concurrency: int, price: str | None = None) -> Service:
    """Return TPOT, prefill time and throughput of a closed loop in its steady state.

    concurrency: requests in flight over all replicas. price: of a chip-hour, such as "2.50 $/h", instead of the
    chip's own. Raises DoesNotFitError.
    """
    return service(Predictor(deployment), Load(isl, osl, concurrency), price_of(price))


def compare(
    model: str | PathLike[str],
    chips: Sequence[str],
    isl: int = 1024,
    osl: int = 1024,
    concurrency: int = 16,
    prices: Sequence[str | None] | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> tuple[Comparison, ...]:
    """Return the best deployment of each chip ("name" or "name:count") for a load, most tokens/s per chip first."""
    found = recipe(model, chips[0] if chips else "h100", **options)
    costs = [price_of(p) for p in prices] if prices else None
    return _plan.compare(found, chips, Load(isl, osl, concurrency), costs, progress)


def plan(
    model: str | PathLike[str],
    on: str,
    isl: int = 1024,
    osl: int = 1024,
    tpot: float | None = None,
    prefill: float | None = None,
    price: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Plan:
    """Search deployment and batch for the most tokens/s under limits on TPOT and prefill time (seconds)."""
    Load(isl, osl, 1)
    return _plan.plan(recipe(model, on, **options), isl, osl, tpot, prefill, price_of(price), progress)


def sweep(
    model: str | PathLike[str],
    on: str,
    ranges: Mapping[str, str],
    isl: int = 1024,
    osl: int = 1024,
    concurrency: int = 16,
    steps: int = 9,
    price: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Sweep:
    """Predict a load over one or two fields of chip or model: {"hbm.bandwidth": "1TB/s..6TB/s"}."""
    found = recipe(model, on, **options)
    return _sweep.sweep(found, Load(isl, osl, concurrency), ranges, steps, price_of(price), progress)


def explain(
    model: str | PathLike[str],
    on: str,
    isl: int = 1024,
    osl: int = 1024,
    concurrency: int = 16,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> tuple[Sensitivity, ...]:
    """Return what 10 % more of each resource of the chip buys, the most useful first, and what binds then."""
    return _sweep.explain(recipe(model, on, **options), Load(isl, osl, concurrency), progress)


def run(
    prompt: str | Sequence[int],
    checkpoint: str | PathLike[str] | None = None,
    on: str = "maia-100",
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
    said: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> Answer:
    """Execute a checkpoint on a chip in the chip's number formats, and price every step there.

    prompt: a text, or token ids. checkpoint: a local directory with config.json, safetensors and tokenizer.json; None:
    the built-in assistant, which knows the catalogue. on: "chip" or "chip:count", a chip with tiles. temperature 0:
    the likeliest token; top_k 0: from all. chat: the prompt is a message, put in the chat template. said: called with
    "" when execution begins, then with pieces of text as they come. Raises InputError, UnsupportedError,
    DoesNotFitError and MissingExtraError with one sentence that says what would work.
    """
    from taygeta.machine.answer import answer
    from taygeta.machine.generate import Sampling

    directory, d = deploy_checkpoint(checkpoint, on, **options)
    return answer(d, directory, prompt, max_tokens, Sampling(temperature, top_k, top_p, seed), chat, said)


def check(
    text: str | Sequence[int],
    checkpoint: str | PathLike[str] | None = None,
    on: str = "maia-100",
    tokens: int = 512,
    window: int | None = None,
    diverges: float = 0.05,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Agreement:
    """Compare a text as a checkpoint computes it in a chip's formats with PyTorch in fp32, logits and operations.

    text: to predict, or token ids; its first `tokens`, in sequences of `window` (None: 256, or the model's context).
    checkpoint, on: as in `run`. diverges: relative error from which an operation has diverged. Where PyTorch is not
    installed, or weights are stored quantised, the reference is the plain definition in fp32. Raises what `run` raises.
    """
    from taygeta.machine import agreement as a
    from taygeta.machine.session import check_deployment, checkpoint_weights

    directory, d = deploy_checkpoint(checkpoint, on, **options)
    check_deployment(d)
    a.check_bound(diverges)
    windows = a.sequences(d, a.text_ids(d, directory, text), tokens, window)
    weights = checkpoint_weights(directory, d)
    reference = a.reference_logits(directory, d, weights, windows, progress)
    return a.agreement(d, weights, windows, reference, diverges, progress)


def deploy_checkpoint(
    checkpoint: str | PathLike[str] | None, on: str, **options: Unpack[Options]
) -> tuple[Path, Deployment]:
    """Return the directory of a local checkpoint, and its deployment. checkpoint: None is the built-in assistant's.

    Raises InputError for what is no directory, and what `deploy` raises.
    """
    directory = assistant_directory() if checkpoint is None else Path(checkpoint)
    try:
        there = directory.is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        raise InputError(
            f"{directory} is no directory: running needs a checkpoint on disk, a directory with config.json,"
            " model.safetensors and tokenizer.json."
        )
    return directory, deploy(directory, on, **options)


def price_of(text: str | None) -> tuple[float, float, float] | None:
    """Return a price per chip-hour from a text such as "2.50 $/h"; None stays None. Raises InputError."""
    if text is None:
        return None
    value = units.parse(text, units.DOLLARS_PER_HOUR, "the price")
    return value, value, value
