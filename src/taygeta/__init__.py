"""Taygeta: a design lab for AI accelerators that run large language models.

    import taygeta as tg
    d = tg.deploy("meta-llama/Llama-3.1-70B", on="h100:8", weights="fp8")
    print(tg.predict(d, tg.Batch.decode(requests=32, context=4096)).seconds)

Names load on first use, so that importing the package stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taygeta.api import check, compare, deploy, explain, plan, predict, run, serve_rate, sweep
    from taygeta.base.errors import DoesNotFitError, InputError, TaygetaError
    from taygeta.base.interval import Interval
    from taygeta.cost.result import Prediction, Service
    from taygeta.explore.fleet_file import load_fleet
    from taygeta.frontend.catalog import model, model_names
    from taygeta.frontend.export_module import export_module
    from taygeta.frontend.exported import export_model
    from taygeta.report.frames import frame
    from taygeta.serving.fleet import Fleet, Pool
    from taygeta.serving.metrics import ServingReport
    from taygeta.serving.simulate import simulate
    from taygeta.serving.trace import load_trace
    from taygeta.serving.traffic import Traffic, make_traffic
    from taygeta.serving.workloads import workload_traffic
    from taygeta.spec.catalog import chip, chip_names
    from taygeta.spec.deployment import Batch, Deployment, Group, Parallelism

__version__ = "0.1.0"

_HOME = {
    "taygeta.api": ("check", "compare", "deploy", "explain", "plan", "predict", "run", "serve_rate", "sweep"),
    "taygeta.base.errors": ("DoesNotFitError", "InputError", "TaygetaError"),
    "taygeta.base.interval": ("Interval",),
    "taygeta.cost.result": ("Prediction", "Service"),
    "taygeta.explore.fleet_file": ("load_fleet",),
    "taygeta.frontend.catalog": ("model", "model_names"),
    "taygeta.frontend.export_module": ("export_module",),
    "taygeta.frontend.exported": ("export_model",),
    "taygeta.report.frames": ("frame",),
    "taygeta.serving.fleet": ("Fleet", "Pool"),
    "taygeta.serving.metrics": ("ServingReport",),
    "taygeta.serving.simulate": ("simulate",),
    "taygeta.serving.trace": ("load_trace",),
    "taygeta.serving.traffic": ("Traffic", "make_traffic"),
    "taygeta.serving.workloads": ("workload_traffic",),
    "taygeta.spec.catalog": ("chip", "chip_names"),
    "taygeta.spec.deployment": ("Batch", "Deployment", "Group", "Parallelism"),
}
_OWNER = {name: home for home, names in _HOME.items() for name in names}

__all__ = [
    "Batch",
    "Deployment",
    "DoesNotFitError",
    "Fleet",
    "Group",
    "InputError",
    "Interval",
    "Parallelism",
    "Pool",
    "Prediction",
    "Service",
    "ServingReport",
    "TaygetaError",
    "Traffic",
    "check",
    "chip",
    "chip_names",
    "compare",
    "deploy",
    "explain",
    "export_model",
    "export_module",
    "frame",
    "load_fleet",
    "load_trace",
    "make_traffic",
    "model",
    "model_names",
    "plan",
    "predict",
    "run",
    "serve_rate",
    "simulate",
    "sweep",
    "workload_traffic",
]


def __getattr__(name: str) -> Any:
    home = _OWNER.get(name)
    if home is None:
        raise AttributeError(f"module 'taygeta' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
