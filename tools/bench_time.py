"""CPU seconds of calls and of processes, for the tables of `make bench`."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

for library in ("OPENBLAS", "OMP", "MKL"):  # before NumPy loads: waiting threads of a BLAS would count as work
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

MISSED = ", **missed**"  # beside a ratio: the goal is not met


def cpu() -> float:
    """Return the CPU seconds, user and system, of all threads of this process and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the least CPU seconds of several runs of a call."""
    best = float("inf")
    for _ in range(repeats):
        start = cpu()
        call()
        best = min(best, cpu() - start)
    return best


def process(*code: str, repeats: int = 3) -> float:
    """Return the least CPU seconds of fresh Python processes."""
    return seconds(lambda: subprocess.run([sys.executable, *code], check=True, capture_output=True), repeats)


def command(*words: str) -> float:
    """Return the least CPU seconds of three fresh runs of the command line."""
    return process("-m", "taygeta.app.cli", *words)


def times(measured: float, least: float) -> str:
    """Return a rate over a goal that it should not be below, marked where it is."""
    return f"{measured / least:.2f} x{'' if measured >= least else MISSED}"


def share(measured: float, most: float) -> str:
    """Return a figure as a share of a limit that it should not exceed, marked where it does."""
    return f"{measured / most:.0%}{'' if measured <= most else MISSED}"


def first_time(*words: str) -> float:
    """Return the CPU seconds of a run of the command line whose machine code is not yet on disk."""
    with tempfile.TemporaryDirectory() as folder:
        own = {**os.environ, "XDG_CACHE_HOME": folder, "NUMBA_CACHE_DIR": folder}
        line = [sys.executable, "-m", "taygeta.app.cli", *words]
        return seconds(lambda: subprocess.run(line, check=True, capture_output=True, env=own), 1)
