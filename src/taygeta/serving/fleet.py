"""The nouns of a fleet: pools of replicas, how requests reach them, what fails, how many run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from taygeta.base.errors import InputError
from taygeta.serving.limits import Speculation
from taygeta.spec.deployment import Deployment

ROLES = ("both", "prefill", "decode")
ROUTERS = ("round_robin", "least_loaded", "prefix_affinity")
MAX_REPLICAS = 1 << 14
NO_SPECULATION = Speculation()


@dataclass(frozen=True)
class Autoscale:
    """How many replicas of a pool run: as many as keep `target` requests on each, looked at every `interval`.

    least: replicas that always run. startup: seconds until a new one takes requests. One that is no longer wanted
    takes no more of them and stops when it is empty.
    """

    target: float
    least: int = 1
    interval: float = 10.0
    startup: float = 60.0

    def __post_init__(self) -> None:
        if not (self.target > 0 and math.isfinite(self.target)):
            raise InputError(f"Autoscaling needs a target of more than 0 requests on a replica, not {self.target:g}.")
        if self.least < 1 or not self.interval > 0 or not self.startup >= 0:
            raise InputError(
                "Autoscaling needs 1 replica at least, an interval of more than 0 s and a startup of 0 s or more,"
                f" not {self.least}, {self.interval:g} s and {self.startup:g} s."
            )


@dataclass(frozen=True)
class Pool:
    """Replicas of one deployment. role: what they do of a request: "both", or "prefill" or "decode" alone."""

    deployment: Deployment
    replicas: int
    role: str = "both"
    autoscale: Autoscale | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(f"A pool's role is {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {self.role!r}.")
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise InputError(f"A pool needs 1 to {MAX_REPLICAS:,} replicas, not {self.replicas}.")
        if self.autoscale and self.autoscale.least > self.replicas:
            raise InputError(f"Autoscaling keeps {self.autoscale.least} replicas; the pool has {self.replicas}.")


@dataclass(frozen=True)
class Failure:
    """A replica, by its number over all pools, that is lost at a time and back at another (infinity: never)."""

    replica: int
    at: float
    until: float = math.inf

    def __post_init__(self) -> None:
        if self.replica < 0 or not 0.0 <= self.at < self.until:
            raise InputError(
                f"A failure needs a replica of 0 or more and times 0 <= at < until, not {self.replica}, {self.at:g}"
                f" and {self.until:g}."
            )


@dataclass(frozen=True)
class Fleet:
    """Everything that serves: pools, the router before them, failures, speculation, the hosts' memory for prefixes.

    router, scheduler: names of built-in functions, or "package.module:function" of a user's own; "" takes the
    engine's own scheduler. host_bytes: memory behind each chip that keeps evicted pieces of prefixes.
    """

    pools: tuple[Pool, ...]
    router: str = "least_loaded"
    scheduler: str = ""
    failures: tuple[Failure, ...] = ()
    speculation: Speculation = NO_SPECULATION
    host_bytes: float = 0.0

    def __post_init__(self) -> None:
        roles = {pool.role for pool in self.pools}
        if not self.pools:
            raise InputError("A fleet needs one pool at least.")
        if roles not in ({"both"}, {"prefill", "decode"}):
            raise InputError("A fleet is of pools that do both, or of pools for prefill and pools for decode.")
        if len({pool.deployment.model.name for pool in self.pools}) > 1:
            raise InputError("All pools of a fleet serve one model.")
        for failure in self.failures:
            if failure.replica >= self.replicas:
                last = self.replicas - 1
                raise InputError(f"Replica {failure.replica} fails, but the fleet has replicas 0 to {last}.")

    @property
    def replicas(self) -> int:
        """Replicas of all pools."""
        return sum(pool.replicas for pool in self.pools)

    @property
    def chips(self) -> int:
        """Chips of all replicas."""
        return sum(pool.replicas * pool.deployment.parallelism.chips for pool in self.pools)

    @property
    def disaggregated(self) -> bool:
        """Whether prompts and answers are made on replicas of their own."""
        return self.pools[0].role != "both"


def fleet(d: Deployment, router: str = "least_loaded") -> Fleet:
    """Return the fleet of a deployment alone: all its replicas."""
    return Fleet((Pool(d, d.replicas),), router)
