"""What if: vary one or two numbers of a chip or a model, and see what 10 % more of each resource would buy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from taygeta.base import units
from taygeta.base.errors import DoesNotFitError, InputError
from taygeta.base.units import Dimension
from taygeta.cost.predict import Predictor, bound_of
from taygeta.cost.result import Service
from taygeta.cost.service import Load, decode_batch, prefill_seconds, service, tpot_seconds
from taygeta.cost.steps import StepModel
from taygeta.explore.plan import Progress
from taygeta.explore.recipe import Recipe, split_settings
from taygeta.spec.deployment import Deployment
from taygeta.spec.fields import FIELDS
from taygeta.spec.sheet import Entry

MAX_STEPS = 200
MORE = 1.1  # what "10 % more" means


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep: the values in SI units, and the service there or why there is none."""

    values: tuple[float, ...]
    service: Service | None
    refused: str = ""


@dataclass(frozen=True)
class Sweep:
    """One or two fields varied over their ranges, the last field fastest."""

    fields: tuple[str, ...]
    points: tuple[SweepPoint, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What 10 % more of one resource does: relative changes of TPOT and of prefill time (negative: faster), what
    binds a decode step then.
    """

    field: str
    meaning: str
    tpot_change: float
    prefill_change: float
    binds_next: str


def sweep(
    recipe: Recipe,
    load: Load,
    ranges: Mapping[str, str],
    steps: int = 9,
    price: tuple[float, float, float] | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Predict a load over one or two fields, each given as "low..high" with units; values are evenly spaced.

    The deployment stays the one that the recipe gives. Raises InputError.
    """
    if not 1 <= len(ranges) <= 2:
        raise InputError(f"A sweep varies one or two fields, not {len(ranges)}: write --set FIELD=LOW..HIGH.")
    if not 2 <= steps <= MAX_STEPS:
        raise InputError(f"A sweep has 2 to {MAX_STEPS} steps, not {steps}.")
    axes = [_axis(path, text, steps) for path, text in ranges.items()]
    points: list[SweepPoint] = []
    total = steps ** len(axes)
    for index, values in enumerate(itertools.product(*axes)):
        settings = {path: _text(path, value) for path, value in zip(ranges, values, strict=True)}
        try:
            found = service(Predictor(recipe.with_settings(settings).build()), load, price)
            points.append(SweepPoint(values, found))
        except DoesNotFitError as error:
            points.append(SweepPoint(values, None, str(error)))
        if progress:
            progress(index + 1, total)
    return Sweep(tuple(ranges), tuple(points))


def explain(recipe: Recipe, load: Load, progress: Progress | None = None) -> tuple[Sensitivity, ...]:
    """Return what 10 % more of each resource of the chip buys, the most useful first. A latency gets 10 % less.

    Only numbers that speed depends on and that describe hardware are varied: not the calibration.
    """
    base = recipe.build()
    tpot, prefill, _ = _rates(base, load)
    sheet = recipe.sheet()
    paths = [
        p
        for p, f in FIELDS.items()
        if f.more is not None and p in sheet.entries and not p.startswith(("calibration.", "error."))
    ]
    out: list[Sensitivity] = []
    for index, path in enumerate(paths):
        changed = recipe.with_settings({path: _text(path, _more(path, sheet.entries[path]))}).build()
        t, p, bound = _rates(changed, load)
        out.append(Sensitivity(path, FIELDS[path].meaning, t / tpot - 1.0, p / prefill - 1.0, bound))
        if progress:
            progress(index + 1, len(paths))
    return tuple(sorted(out, key=lambda s: (s.tpot_change, s.prefill_change)))


def _rates(d: Deployment, load: Load) -> tuple[float, float, str]:
    model = StepModel(d)
    batch = load.per_rank(d)
    prefill = prefill_seconds(model, d, load.isl)
    return tpot_seconds(model, d, load, batch), prefill, bound_of(model.cost(decode_batch(d, load, batch)))


def _more(path: str, entry: Entry) -> float:
    value = entry.nominal * MORE if FIELDS[path].more else entry.nominal / MORE
    return float(round(value)) if FIELDS[path].dimension is units.COUNT else value


def _axis(path: str, text: str, steps: int) -> tuple[float, ...]:
    low, dots, high = text.partition("..")
    if not dots:
        raise InputError(f"--set {path} must be a range LOW..HIGH in a sweep, such as 1TB/s..6TB/s, not {text!r}.")
    dimension = _dimension(path)
    first, last = (
        units.parse(t if dimension not in units.UNITLESS else float_or(t), dimension, f"--set {path}")
        for t in (low, high)
    )
    if not first < last:
        raise InputError(f"--set {path} must be a range from low to high, not {text!r}.")
    values = [first + (last - first) * i / (steps - 1) for i in range(steps)]
    if dimension is units.COUNT:
        values = sorted({float(round(v)) for v in values})
    return tuple(values)


def float_or(text: str) -> float | str:
    """Return a number where the text is one, else the text, for a parser that says what is wrong with it."""
    try:
        return float(text)
    except ValueError:
        return text


def _dimension(path: str) -> Dimension:
    chip, _ = split_settings({path: ""})
    if not chip:
        return units.COUNT  # the fields of a model are counts
    name = next(iter(chip))
    if name not in FIELDS:
        raise InputError(f"--set {path}: {name} is not a field of a chip; `taygeta show --fields` lists them.")
    return FIELDS[name].dimension


def _text(path: str, value: float) -> str:
    dimension = _dimension(path)
    if dimension in units.UNITLESS:
        return repr(int(value)) if dimension is units.COUNT else repr(value)
    return f"{value!r} {dimension.unit}"
