"""Search for deployments: the best under limits, the front of tokens/s per chip against tokens/s per user, the best
of each chip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from taygeta.base.errors import DoesNotFitError, InputError, TaygetaError
from taygeta.cost.predict import Predictor
from taygeta.cost.result import Service
from taygeta.cost.service import Load, quick_rates, service
from taygeta.cost.steps import StepModel
from taygeta.explore.recipe import Recipe, split_count
from taygeta.graph.memory import largest_batch, memory
from taygeta.graph.partition import stages
from taygeta.spec.deployment import Deployment, Parallelism, check_parallelism
from taygeta.spec.model import MoeFfn

COMPILE_FROM = 400  # evaluations from which compiling the kernels is repaid
MAX_TP = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Comparison:
    """One chip of a comparison: its best deployment, or why it has none."""

    chip: str
    best: Service | None
    refused: str = ""


@dataclass(frozen=True)
class Plan:
    """The outcome of a search. front: no other deployment is better for both chip and user, fastest first."""

    best: Service | None
    front: tuple[Service, ...]
    tried: int
    refused: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Point:
    deployment: Deployment
    load: Load
    tpot: float
    prefill: float
    per_chip: float


def parallelisms(found: Deployment, chips: int) -> Iterator[Parallelism]:
    """Yield every parallelism of a replica that uses some or all of `chips` evenly: tp x pp x dp, with and without
    expert parallelism.
    """
    model = found.model
    moe = any(isinstance(layer.ffn, MoeFfn) for layer, _ in model.kinds())
    for world in _divisors(chips):
        for pp in _divisors(world):
            for dp in _divisors(world // pp) if moe else (1,):
                tp = world // pp // dp
                for ep in sorted({1, tp * dp} if moe else {1}):
                    if dp > 1 and ep == 1:
                        continue  # attention data parallelism exists to spread experts
                    p = Parallelism(tp=tp, pp=pp, ep=ep, dp=dp)
                    if tp <= MAX_TP and _allowed(found, p, chips):
                        yield p


def plan(
    recipe: Recipe,
    isl: int,
    osl: int,
    tpot: float | None = None,
    prefill: float | None = None,
    price: tuple[float, float, float] | None = None,
    progress: Progress | None = None,
    concurrency: int | None = None,
) -> Plan:
    """Search tp x pp x ep x dp x batch for the most tokens/s under limits on TPOT and prefill time, in seconds.

    concurrency: fixes the requests in flight instead of searching them. Raises InputError for a recipe that cannot be
    read; a deployment that the search meets and refuses is counted, with its reason.
    """
    base = base_deployment(recipe)
    refused: Counter[str] = Counter()
    points: list[_Point] = []
    tried = 0
    spreads = [replace(base.parallelism)] if recipe.given else list(parallelisms(base, base.chips))
    todo = len(spreads)
    compiled = todo * (1 if concurrency else 12) * 2 > COMPILE_FROM
    for index, p in enumerate(spreads):
        d = replace(base, parallelism=p)
        for point in _points(d, isl, osl, concurrency, compiled, refused):
            tried += 1
            if (tpot and point.tpot > tpot) or (prefill and point.prefill > prefill):
                refused["slower than the limit"] += 1
            else:
                points.append(point)
        if progress:
            progress(index + 1, todo)
    if not points:
        return Plan(None, (), tried, tuple(refused.most_common()))
    best = max(points, key=lambda point: (point.per_chip, -point.tpot))
    front = [_service(point, price, compiled) for point in _front(points)]
    return Plan(_service(best, price, compiled), tuple(front), tried, tuple(refused.most_common()))


def best_of(recipe: Recipe, load: Load, price: tuple[float, float, float] | None = None) -> Service:
    """Return the deployment with the most tokens/s for a load, or the one the recipe gives.

    Raises DoesNotFitError or InputError with the reason when there is none.
    """
    if recipe.given:
        return service(Predictor(recipe.build()), load, price)
    found = plan(recipe, load.isl, load.osl, price=price, concurrency=load.concurrency)
    if found.best is None:
        return service(Predictor(recipe.build()), load, price)  # says why, with what would fit
    return found.best


def compare(
    recipe: Recipe, chips: Sequence[str], load: Load, prices: Sequence[tuple[float, float, float] | None] | None = None,
    progress: Progress | None = None,
) -> tuple[Comparison, ...]:  # fmt: skip
    """Return the best deployment of each chip for a load, most tokens/s per chip first; a chip that cannot is listed
    with its reason.
    """
    out: list[Comparison] = []
    for index, chip in enumerate(chips):
        try:
            price = prices[index] if prices else None
            out.append(Comparison(chip, best_of(replace(recipe, on=chip), load, price)))
        except DoesNotFitError as error:
            out.append(Comparison(chip, None, str(error)))
        if progress:
            progress(index + 1, len(chips))
    return tuple(sorted(out, key=lambda c: -(c.best.per_chip.nominal if c.best else 0.0)))


def base_deployment(recipe: Recipe) -> Deployment:
    """Return the recipe's deployment; where its parallelism is left to a search, on all its chips and not yet spread.

    Raises InputError.
    """
    if recipe.given:
        return recipe.build()
    model, chip, corners = recipe.parts()
    count = split_count(recipe.on)[1] or 1
    return recipe.spread(model, chip, corners, count, Parallelism())


def _points(
    d: Deployment, isl: int, osl: int, fixed: int | None, compiled: bool, refused: Counter[str]
) -> Iterator[_Point]:
    graphs = stages(d)
    use = memory(d, graphs)
    if not use.fits:
        refused["weights do not fit"] += 1
        return
    room = largest_batch(d, isl + osl, use) * d.replicas
    model = StepModel(d, compiled, graphs)
    if fixed is not None:
        sizes = [fixed] if fixed <= room else []
    else:
        sizes = [
            d.replicas * d.parallelism.dp << i
            for i in range(20)
            if d.replicas * d.parallelism.dp << i <= min(room, 1 << 16)
        ]
    if not sizes:
        refused["KV cache does not fit"] += 1
    for size in sizes:
        load = Load(isl, osl, size)
        tpot, prefill, tokens = quick_rates(model, d, load)
        yield _Point(d, load, tpot, prefill, tokens / d.chips)


def _service(point: _Point, price: tuple[float, float, float] | None, compiled: bool) -> Service:
    return service(Predictor(point.deployment, compiled), point.load, price)


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Points that no other beats in both tokens/s per chip and tokens/s per user."""
    out: list[_Point] = []
    for point in sorted(points, key=lambda q: (q.tpot, -q.per_chip)):
        if not out or point.per_chip > out[-1].per_chip:
            out.append(point)
    return out


def _allowed(found: Deployment, p: Parallelism, chips: int) -> bool:
    try:
        check_parallelism(found.model, p, chips)
    except TaygetaError:
        return False
    return True


def _divisors(n: int) -> tuple[int, ...]:
    if n < 1:
        raise InputError(f"A deployment needs 1 chip or more, not {n}.")
    return tuple(i for i in range(1, n + 1) if n % i == 0)
