"""Runs a setup: compiled where everything is built in, in plain Python where a function of a user's own takes part."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from taygeta.base.errors import InputError
from taygeta.serving.fleet import ROUTERS
from taygeta.serving.outcome import Outcome
from taygeta.serving.request import Flight
from taygeta.serving.routers import Router
from taygeta.serving.schedulers import BUILT_IN, Plan, Scheduler
from taygeta.serving.setup import Setup

SLICE, PLAIN_SLICE = 1 << 16, 1 << 10  # moments between two reports of progress: some tens of milliseconds


class Run(Protocol):
    """A run that goes on in slices."""

    @property
    def left(self) -> int:
        """Requests that have not ended."""
        ...

    def advance(self, moments: int) -> bool:
        """Let so many moments pass; return whether the run has ended."""
        ...

    def outcome(self) -> Outcome:
        """Return what the run has given so far."""
        ...


def run(
    setup: Setup,
    progress: Callable[[float], None] | None = None,
    log: bool = False,
    router: Router | None = None,
    scheduler: Scheduler | None = None,
) -> Outcome:
    """Run a setup to its end and return what it gave.

    progress: called now and then with the share of the requests that have ended. log: keep every step, not some rows
    of each replica. router, scheduler: functions of a user's own; those that the fleet names are imported.

    A KeyboardInterrupt ends the run: what it gave until then is returned, marked as interrupted.

    Raises InputError for a router or a scheduler that is not there, or that returns what it may not.
    """
    current = _prepared(setup, log, router, scheduler)
    moments = SLICE if not hasattr(current, "replicas") else PLAIN_SLICE
    interrupted = False
    try:
        while not current.advance(moments):
            if progress is not None:
                progress(1.0 - current.left / len(setup.traffic.isl))
    except KeyboardInterrupt:
        interrupted = True
    outcome = current.outcome()
    outcome.interrupted = interrupted
    return outcome


def _prepared(setup: Setup, log: bool, router: Router | None, scheduler: Scheduler | None) -> Run:
    fleet = setup.fleet
    if router is None and fleet.router not in ROUTERS:
        router = imported(fleet.router, "router", f"one of {', '.join(ROUTERS)}")
    if scheduler is None and fleet.scheduler:
        names = [function.__name__ for function in BUILT_IN]
        if fleet.scheduler in names:
            setup = with_policy(setup, names.index(fleet.scheduler))
        else:
            scheduler = imported(fleet.scheduler, "scheduler", f"one of {', '.join(names)}")
    if router is None and scheduler is None:
        from taygeta.serving.fast import Fast  # imports Numba

        return Fast(setup, log)
    from taygeta.serving.plain import Plain

    return Plain(setup, router and checked_router(router), scheduler and checked_scheduler(scheduler), log)


def with_policy(setup: Setup, policy: int) -> Setup:
    """Return a run with a built-in scheduler instead of the engines' own."""
    kinds = tuple(replace(kind, limits=kind.limits._replace(policy=policy)) for kind in setup.kinds)
    return replace(setup, kinds=kinds)


def imported(name: str, role: str, known: str) -> Callable[..., Any]:
    """Return a user's function by its name, "package.module:function". Raises InputError where it is not there."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"A {role} is {known}, or a function of yours as package.module:function, not {name!r}.")
    try:
        place = importlib.import_module(module)
    except Exception as error:  # whatever a user's module does when it is imported
        raise InputError(
            f"The {role} {name} cannot be imported: {type(error).__name__}: {error}. The module {module} must be on"
            " Python's path (PYTHONPATH)."
        ) from error
    found = getattr(place, function, None)
    if not callable(found):
        given = "none" if found is None else f"a {type(found).__name__}"
        raise InputError(f"The {role} {name} must be a function of {module}; there is {given} of that name.")
    return found


def _called(function: Callable[..., Any], role: str, *given: Any) -> Any:
    """Return what a user's function returns. Raises InputError for whatever it raises: it is no defect of the run."""
    try:
        return function(*given)
    except Exception as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise InputError(f"The {role} {name} failed: {type(error).__name__}: {error}.") from error


def checked_router(router: Router) -> Router:
    """Return a user's router whose every choice is checked; it raises InputError for what it may not return."""

    def route(request: Flight, replicas: Any) -> int:
        choice = _called(router, "router", request, replicas)
        if isinstance(choice, bool) or not hasattr(choice, "__index__") or not 0 <= choice < len(replicas):
            raise InputError(
                f"The router must return a position of 0 to {len(replicas) - 1} in the replicas it was given,"
                f" not {choice!r}."
            )
        return int(choice)

    return route


def checked_scheduler(scheduler: Scheduler) -> Scheduler:
    """Return a user's scheduler whose every plan is checked; it raises InputError for what it may not return."""

    def schedule(rank: Any, limits: Any) -> Plan:
        plan = _called(scheduler, "scheduler", rank, limits)
        good = isinstance(plan, list) and all(
            isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Flight) and type(item[1]) is int
            for item in plan
        )
        if not good:
            raise InputError(f"The scheduler must return a list of (request, new tokens), not {plan!r:.80}.")
        return plan

    return schedule
