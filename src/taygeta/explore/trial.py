"""One deployment made ready to serve a traffic many times: replicas, scheduler settings and step times vary, its tables
of step times are made once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.limits import limits
from taygeta.serving.metrics import kept
from taygeta.serving.outcome import Outcome
from taygeta.serving.run import run as run_setup
from taygeta.serving.setup import Kind, Setup, prepare
from taygeta.serving.simulate import scaled
from taygeta.serving.traffic import Traffic
from taygeta.spec.deployment import Deployment

Runner = Callable[[Setup], Outcome]


@dataclass(frozen=True)
class Slo:
    """What users are promised: `share` of the requests with at most this TTFT and TPOT (seconds, None: no limit)."""

    ttft: float | None
    tpot: float | None
    share: float = 0.99


@dataclass(frozen=True)
class Settings:
    """What a scheduler may be set to: as the fields of spec.engine.Engine."""

    token_budget: int
    sequence_limit: int
    policy: str

    @classmethod
    def of(cls, d: Deployment) -> Settings:
        """Return those of a deployment's engine."""
        return cls(d.engine.token_budget, d.engine.sequence_limit, d.engine.policy)

    def on(self, d: Deployment) -> Deployment:
        """Return a deployment whose engine has these settings."""
        return replace(
            d,
            engine=replace(
                d.engine,
                token_budget=self.token_budget,
                sequence_limit=self.sequence_limit,
                policy=self.policy,
            ),
        )


class Trial:
    """A replica's deployment under a traffic. The deployment's count of chips is ignored: `replicas` says it.

    run: what runs a setup. Raises DoesNotFitError where a replica has no room for a KV cache.
    """

    def __init__(
        self, d: Deployment, traffic: Traffic, router: str = "least_loaded", seed: int = 0, run: Runner = run_setup
    ) -> None:
        self.deployment = replace(d, chips=d.parallelism.chips)
        self.traffic = traffic
        self._fleet = Fleet((Pool(self.deployment, 1),), router)
        self._seed, self._run = seed, run
        self._whole = prepare(self._fleet, traffic, seed)
        self._own = Settings.of(d)
        self._kinds: dict[Settings, Kind] = {self._own: self._whole.kinds[0]}
        self._setups: dict[int, Setup] = {len(traffic): self._whole}

    def setup(self, settings: Settings, replicas: int, requests: int, factor: float = 1.0) -> Setup:
        """Return a run of the first `requests` of the traffic, with steps that take `factor` times as long."""
        if requests not in self._setups:
            first = self.traffic.take(requests)
            self._setups[requests] = replace(self._whole, traffic=first, steps=self._whole.steps[: len(first)])
        kind = self._kind(settings)
        d = kind.pool.deployment
        pool = Pool(replace(d, chips=replicas * d.parallelism.chips), replicas)
        made = replace(
            self._setups[requests], fleet=replace(self._fleet, pools=(pool,)), kinds=(replace(kind, pool=pool),)
        )
        return made if factor == 1.0 else scaled(made, (factor,))

    def outcome(self, settings: Settings, replicas: int, requests: int, factor: float = 1.0) -> Outcome:
        """Return what a run leaves. Raises KeyboardInterrupt where the user ended it: a part would mislead a search."""
        found = self._run(self.setup(settings, replicas, requests, factor))
        if found.interrupted:
            raise KeyboardInterrupt
        return found

    def share(self, slo: Slo, settings: Settings, replicas: int, requests: int, factor: float = 1.0) -> float:
        """Return the share of the requests that keep both limits; refused ones do not."""
        return float(kept(self.outcome(settings, replicas, requests, factor), slo.ttft, slo.tpot).mean())

    def _kind(self, settings: Settings) -> Kind:
        """The replica under settings; the tables serve all that need no larger steps."""
        if settings not in self._kinds:
            d, known = settings.on(self.deployment), self._kinds[self._own]
            if settings.token_budget > self._own.token_budget or settings.sequence_limit > self._own.sequence_limit:
                fleet = replace(self._fleet, pools=(Pool(d, 1),))
                self._kinds[settings] = prepare(fleet, self.traffic, self._seed).kinds[0]
            else:
                t = self.traffic
                hashed = t.prefixes.block if t.prefixes is not None else 0
                bounds = limits(d, int((t.isl + t.osl).max()), hashed)
                self._kinds[settings] = replace(known, pool=Pool(d, 1), limits=bounds)
        return self._kinds[settings]
