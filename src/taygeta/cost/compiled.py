"""Kernels compiled: the very functions of the kernel modules, through Numba, for work that calls them often.

A kernel module is plain Python and is its own reference. Here every function of those modules is cloned into a
namespace in which the functions it calls are the compiled ones, so that there is one text and two ways to run it. A
single prediction runs the plain text and never imports Numba; a search, a sweep or a validation compiles once.
Machine code is cached on disk under a key made of the kernels' sources, because Numba's own key sees the caller's
file only.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from taygeta.cost import (
    attention,
    collective,
    experts,
    fused,
    loops,
    masked,
    matmul,
    protocol,
    routing,
    scan,
    sparse,
    step,
    striped,
    vector,
)

KERNELS: tuple[ModuleType, ...] = (
    vector, matmul, attention, sparse, scan, routing, experts, fused, striped, masked,
    protocol, collective, step, loops,
)  # fmt: skip


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled twin of a kernel function. Raises KeyError for a function of another module."""
    return _namespace()[f"{function.__module__}.{function.__qualname__}"]


@cache
def _namespace() -> dict[str, Callable[..., Any]]:
    return compile_modules(KERNELS)


def compile_modules(
    modules: Sequence[ModuleType], entries: Collection[str] | None = None
) -> dict[str, Callable[..., Any]]:
    """Return the compiled twins of the functions of modules, by their qualified names; each module before its users.

    entries: those that Python calls, by name; the others then have no entry of their own, which compiles faster.
    """
    import importlib

    import numba

    config: Any = importlib.import_module("numba.core.config")  # its names are set at run time

    twins: dict[FunctionType, Any] = {}
    inner: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    old, config.CACHE_DIR = config.CACHE_DIR, str(_made(_cache_folder(modules)))
    try:
        for module in modules:
            names = dict(vars(module))
            for name, value in names.items():  # imported kernels become their compiled twins
                if isinstance(value, FunctionType) and value in twins:
                    names[name] = twins[value]
            own = [f for f in names.values() if isinstance(f, FunctionType) and f.__module__ == module.__name__]
            for function in own:
                clone = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
                clone.__qualname__, clone.__module__ = function.__qualname__, module.__name__
                how: dict[str, Any] = {"cache": True} if entries is None or function.__name__ in entries else inner
                twins[function] = numba.njit(clone, error_model="numpy", nogil=True, **how)
            for function in own:
                names[function.__name__] = twins[function]
    finally:
        config.CACHE_DIR = old
    return {f"{function.__module__}.{function.__qualname__}": twin for function, twin in twins.items()}


def compiled_before(modules: Sequence[ModuleType] = KERNELS) -> bool:
    """Return whether machine code of modules lies on this disk: without any, the first call takes half a minute."""
    return any(_cache_folder(modules).rglob("*.nbi"))


def _cache_folder(modules: Sequence[ModuleType]) -> Path:
    """A folder named by the content of the modules, so that an edited kernel can never run old machine code."""
    key = hashlib.sha256()
    for module in modules:
        key.update(inspect.getsource(module).encode())
    key.update(sys.version.encode())
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or str(Path.home() / ".cache")
    return Path(base) / "taygeta" / "kernels" / key.hexdigest()[:16]


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: compile into a folder that can
        folder = Path(tempfile.mkdtemp(prefix="taygeta-"))
    return folder
