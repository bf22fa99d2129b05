"""The fewest chips that hold an SLO on a traffic, found by simulating it.

1. Screen. Every deployment (tp, pp, ep, dp, chip) is held against bounds that no schedule beats, and its replicas are
   estimated in closed form (explore.screen). Those with at most SLACK times the chips of the cheapest estimate go on,
   KEPT at most.
2. Search. Each of them, the cheapest estimate first, is simulated on the first PREFIX requests: scheduler settings
   are compared at the estimate where the engine's own do not hold there, and the least replicas are bracketed
   (explore.least). No more chips are tried than the best deployment so far has needed.
3. Prove. The FINALISTS with the fewest chips are searched on the whole traffic, and every setting is tried with one
   replica less.
4. Doubt. The winner's least replicas are searched again with steps at the fast and at the slow end of what the chip
   leaves open, and the share of the requests that hold the SLO gets an interval.

Fewest chips win, then the lower price, then the larger share. The same traffic and seed give the same plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from taygeta.base.errors import DoesNotFitError, InputError
from taygeta.explore.confidence import Confidence, share_interval
from taygeta.explore.least import least
from taygeta.explore.plan import base_deployment, parallelisms
from taygeta.explore.recipe import Recipe, split_count
from taygeta.explore.screen import Screened, screen
from taygeta.explore.trial import Runner, Settings, Slo, Trial
from taygeta.serving.metrics import ServingReport, kept, report
from taygeta.serving.run import run as run_setup
from taygeta.serving.simulate import step_ranges
from taygeta.serving.traffic import Traffic
from taygeta.spec.deployment import Deployment
from taygeta.spec.engine import policies

SLACK = 2.0  # times the least estimate: the closed form knows no queues, and is not that far off
KEPT = 6  # deployments that are simulated
PREFIX = 4_000  # requests of the first search
FINALISTS = 2
ROUNDS = 3  # of settings that save a replica
LARGEST_REPLICA = 16  # chips of a replica that the search tries: two nodes of eight
MOST_CHIPS = 4_096  # where a chip comes without a count
LEAST_BUDGET = 256  # tokens of a step; below it prompts starve


@dataclass(frozen=True)
class Candidate:
    """A deployment that was simulated, with its replicas and settings.

    deployment: with all its chips and its settings. share: of the requests that hold the SLO. requests: how many of
    the traffic it was simulated on. dollars_per_hour: of all its chips (low, nominal, high); None without a price.
    """

    deployment: Deployment
    settings: Settings
    holds: bool
    share: float
    requests: int
    report: ServingReport
    dollars_per_hour: tuple[float, float, float] | None

    @property
    def replicas(self) -> int:
        """Replicas of the deployment."""
        return self.deployment.replicas

    @property
    def chips(self) -> int:
        """Chips of all replicas."""
        return self.deployment.chips


@dataclass(frozen=True)
class SloPlan:
    """The outcome of a search.

    best: None where nothing tried holds the SLO. candidates: what was simulated, the best first. curve: the best with
    more and fewer replicas. screened: deployments that the closed form looked at. refused: why some were left out,
    and how many. simulations: runs.
    """

    slo: Slo
    traffic: Traffic
    best: Candidate | None
    candidates: tuple[Candidate, ...]
    confidence: Confidence | None
    curve: tuple[Candidate, ...]
    screened: int
    refused: tuple[tuple[str, int], ...]
    simulations: int


Progress = Callable[[int, int], None]


def plan_slo(
    recipes: Recipe | Sequence[Recipe],
    traffic: Traffic,
    ttft: float | None = None,
    tpot: float | None = None,
    share: float = 0.99,
    *,
    settings: Mapping[str, object] | None = None,
    price: tuple[float, float, float] | None = None,
    seed: int = 0,
    router: str = "least_loaded",
    tune: bool = True,
    progress: Progress | None = None,
    run: Runner = run_setup,
) -> SloPlan:
    """Return the fewest chips that hold an SLO on a traffic, and how.

    recipes: one for each chip to choose from; "chip:count" bounds its chips, and a parallelism that is given is kept.
    ttft, tpot: limits in seconds. share: of the requests that must keep both. settings: fields of the engine that are
    fixed, in SI units. tune: try other scheduler settings too. run: what runs a setup.

    Raises InputError for limits that are none, or for recipes that cannot be built.
    """
    slo = _checked(Slo(ttft, tpot, share))
    search = _Search(traffic, slo, dict(settings or {}), price, seed, router, tune, run)
    given = [recipes] if isinstance(recipes, Recipe) else list(recipes)
    survivors = search.survivors(given)
    total = len(survivors) + FINALISTS + 1
    step = progress or (lambda done, of: None)
    for index, (screened, most) in enumerate(survivors):
        search.first(screened, most)
        step(index + 1, total)
    for index in range(FINALISTS):
        search.prove(index)
        step(len(survivors) + index + 1, total)
    found = search.result()
    step(total, total)
    return found


@dataclass
class _Found:
    """What is known of a deployment: its trial, the least replicas that hold, how many are there to take.

    cap: replicas that the chips allow. most: those that are tried, no more chips than the best so far has needed.
    """

    trial: Trial
    cap: int
    most: int
    settings: Settings
    replicas: int
    holds: bool
    requests: int

    @property
    def chips(self) -> int:
        return self.replicas * self.trial.deployment.parallelism.chips


class _Search:
    """The state of a search; its steps are those of the module."""

    def __init__(
        self,
        traffic: Traffic,
        slo: Slo,
        fixed: dict[str, object],
        price: tuple[float, float, float] | None,
        seed: int,
        router: str,
        tune: bool,
        run: Runner,
    ) -> None:
        self.traffic, self.slo, self.fixed, self.price = traffic, slo, fixed, price
        self.seed, self.router, self.tune, self.run = seed, router, tune, run
        self.refused: Counter[str] = Counter()
        self.screened = self.simulations = 0
        self.found: list[_Found] = []
        self.shares: dict[tuple[int, Settings, int, int, float], float] = {}

    def survivors(self, recipes: Sequence[Recipe]) -> list[tuple[Screened, int]]:
        """Screen all deployments; return those worth simulating with the replicas they may have, cheapest first."""
        good: list[tuple[Screened, int]] = []
        for recipe in recipes:
            cap = split_count(recipe.on)[1] or MOST_CHIPS
            for d in self._deployments(recipe, cap):
                self.screened += 1
                screened = screen(d, self.traffic, self.slo)
                if screened.refused:
                    self.refused[screened.refused] += 1
                else:
                    good.append((screened, cap // d.parallelism.chips))
        good.sort(key=lambda pair: (pair[0].chips, pair[0].deployment.parallelism.chips, str(pair[0].deployment)))
        bound = SLACK * max((good[0][0].chips, 1.0)) if good else 0.0
        best = [pair for pair in good if pair[0].chips <= bound or pair[0].deployment.parallelism.chips <= bound]
        if len(best[:KEPT]) < len(good):
            self.refused["more chips than others by the closed form"] += len(good) - len(best[:KEPT])
        return best[:KEPT]

    def _deployments(self, recipe: Recipe, cap: int) -> Iterator[Deployment]:
        """Yield the deployments of a replica that a recipe leaves open."""
        name = recipe.chip_name
        if recipe.given:
            count = split_count(recipe.on)[1]
            d = recipe.build() if count is None else replace(recipe, on=name).build()
            if d.parallelism.chips > cap:
                raise InputError(f"{d.parallelism} needs {d.parallelism.chips} chips, and {recipe.on} has {cap}.")
            yield self._fixed(d)
            return
        largest = 1 << (min(cap, LARGEST_REPLICA).bit_length() - 1)
        base = self._fixed(base_deployment(replace(recipe, on=f"{name}:{largest}")))
        for p in parallelisms(base, largest):
            yield replace(base, parallelism=p, chips=p.chips)

    def _fixed(self, d: Deployment) -> Deployment:
        return replace(d, engine=replace(d.engine, **self.fixed)) if self.fixed else d  # type: ignore[arg-type]

    def first(self, screened: Screened, most: int) -> None:
        """Find the least replicas of a deployment on the first requests, within what the best so far needs."""
        d = screened.deployment
        bound = min((f.chips for f in self.found if f.holds), default=None)
        if bound is not None and bound < d.parallelism.chips:
            self.refused["more chips than others by simulation"] += 1
            return
        cap, most = most, most if bound is None else min(most, bound // d.parallelism.chips)
        try:
            trial = Trial(d, self.traffic, self.router, self.seed, self.run)
        except DoesNotFitError:
            self.refused["weights do not fit"] += 1
            return
        found = _Found(trial, cap, most, Settings.of(d), 1, False, min(len(self.traffic), PREFIX))
        start = min(most, max(1, math.ceil(screened.replicas)))
        found.settings = self._settings_at(found, start)
        self._least(found, start)
        self.found.append(found)

    def prove(self, index: int) -> None:
        """Search the whole traffic for the finalist of a rank, and try to save a replica by other settings."""
        for found in self._ranked()[index : index + 1]:
            proven = [f.chips for f in self.found if f.holds and f.requests == len(self.traffic) and f is not found]
            of = found.trial.deployment.parallelism.chips
            found.most = min([found.cap, *(max(1, chips // of) for chips in proven)])
            found.requests = len(self.traffic)
            self._least(found, min(found.replicas, found.most))
            for _ in range(ROUNDS):
                if not (found.holds and found.replicas > 1):
                    return
                below = found.replicas - 1
                better = next((s for s in self._choices(found) if self._share(found, s, below) >= self.slo.share), None)
                if better is None:
                    return
                found.settings = better
                self._least(found, below)

    def result(self) -> SloPlan:
        """Return the plan: the ranked candidates, and how sure the best of them is."""
        ranked = self._ranked()
        best = ranked[0] if ranked and ranked[0].holds else None
        if best and best.requests < len(self.traffic):  # finalists that failed on the whole traffic fell behind it
            best.requests, best.most = len(self.traffic), best.cap
            self._least(best, best.replicas)
            return self.result()
        candidates = tuple(self._candidate(f, f.replicas) for f in ranked)
        return SloPlan(
            slo=self.slo,
            traffic=self.traffic,
            best=candidates[0] if best else None,
            candidates=candidates,
            confidence=self._confidence(best, candidates[0]) if best else None,
            curve=self._curve(best) if best else (),
            screened=self.screened,
            refused=tuple(self.refused.most_common()),
            simulations=self.simulations,
        )

    def _least(self, found: _Found, start: int) -> None:
        replicas = self._least_at(found, start, 1.0, found.most)
        found.holds = replicas is not None
        found.replicas = found.most if replicas is None else replicas

    def _least_at(self, found: _Found, start: int, factor: float, most: int) -> int | None:
        return least(lambda n: self._share(found, found.settings, n, factor) >= self.slo.share, start, most)

    def _share(self, found: _Found, settings: Settings, replicas: int, factor: float = 1.0) -> float:
        key = (id(found.trial), settings, replicas, found.requests, factor)
        if key not in self.shares:
            self.simulations += 1
            self.shares[key] = found.trial.share(self.slo, settings, replicas, found.requests, factor)
        return self.shares[key]

    def _settings_at(self, found: _Found, replicas: int) -> Settings:
        """The engine's own settings where they hold; else those with the largest share."""
        own = found.settings
        if not self.tune or self._share(found, own, replicas) >= self.slo.share:
            return own
        return max((own, *self._choices(found)), key=lambda s: self._share(found, s, replicas))

    def _choices(self, found: _Found) -> list[Settings]:
        """Other settings than the present ones that the engine has: budgets of a step, sequences, the policy."""
        if not self.tune:
            return []
        own = Settings.of(found.trial.deployment)
        budgets = [own.token_budget]
        if "token_budget" not in self.fixed:
            budgets += [own.token_budget * 2, *(own.token_budget >> i for i in (1, 2, 3))]
        policy = [own.policy]
        if "policy" not in self.fixed:
            policy += [p for p in policies(found.trial.deployment.engine) if p != own.policy]
        out = [Settings(b, own.sequence_limit, p) for p in policy for b in budgets if b >= LEAST_BUDGET]
        if "sequence_limit" not in self.fixed:
            out += [replace(own, sequence_limit=own.sequence_limit >> i) for i in (2, 4) if own.sequence_limit >> i]
        fits = [s for s in out if s != found.settings and _fits(s, found.trial.deployment)]
        return list(dict.fromkeys(fits))

    def _ranked(self) -> list[_Found]:
        def key(f: _Found) -> tuple[bool, int, float, float]:
            dollars = self._dollars(f.trial.deployment, f.chips)
            cost = dollars[1] if dollars else math.inf
            share = self._share(f, f.settings, f.replicas)
            return (not f.holds, f.chips if f.holds else 0, cost if f.holds else 0.0, -share)

        return sorted(self.found, key=key)

    def _candidate(self, found: _Found, replicas: int) -> Candidate:
        self.simulations += 1
        outcome = found.trial.outcome(found.settings, replicas, found.requests)
        share = float(kept(outcome, self.slo.ttft, self.slo.tpot).mean())
        d = outcome.setup.kinds[0].pool.deployment
        made = report(outcome, self.price)
        dollars = self._dollars(d, d.chips)
        return Candidate(d, found.settings, share >= self.slo.share, share, found.requests, made, dollars)

    def _dollars(self, d: Deployment, chips: int) -> tuple[float, float, float] | None:
        price = self.price or d.chip.price
        return None if price is None else (price[0] * chips, price[1] * chips, price[2] * chips)

    def _confidence(self, found: _Found, best: Candidate) -> Confidence:
        low, high = step_ranges(best.report.outcome)[0]
        of = best.deployment.parallelism.chips
        fast, slow = (self._least_at(found, found.replicas, factor, found.cap) for factor in (low, high))
        good = kept(best.report.outcome, self.slo.ttft, self.slo.tpot)
        return Confidence(
            *share_interval(good, self.seed),
            factors=(low, high),
            fast=None if fast is None else fast * of,
            slow=None if slow is None else slow * of,
            chips=best.chips,
        )

    def _curve(self, found: _Found) -> tuple[Candidate, ...]:
        """The best with fewer and more replicas than it needs."""
        n = found.replicas
        around = {n + round(n * x) for x in (-0.5, -0.25, 0.25, 0.5, 1.0)} | {n - 1, n, n + 1}
        return tuple(self._candidate(found, m) for m in sorted(around) if 1 <= m <= found.cap)


def _checked(slo: Slo) -> Slo:
    if slo.ttft is None and slo.tpot is None:
        raise InputError("A plan on a traffic needs a limit: a TTFT, a TPOT or both.")
    for name, limit in (("TTFT", slo.ttft), ("TPOT", slo.tpot)):
        if limit is not None and not 0.0 < limit < math.inf:
            raise InputError(f"The limit on {name} must be more than 0 s and finite, not {limit:g}.")
    if not 0.0 < slo.share <= 1.0:
        raise InputError(f"The share of requests within the limits must be above 0 and at most 1, not {slo.share:g}.")
    return slo


def _fits(settings: Settings, d: Deployment) -> bool:
    """Whether a KV cache is left beside the activations of steps of this size."""
    from taygeta.graph.memory import memory

    return memory(settings.on(d)).fits
