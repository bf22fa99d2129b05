"""Compiled kernels on several threads: each takes a range of independent tasks, so the bits do not depend on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba

from taygeta.base.errors import InputError

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def thread_count(threads: int | None) -> int:
    """Return how many threads to use: what was asked for, or what Numba may use in this process. Raises InputError."""
    if threads is None:
        return numba.get_num_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise InputError(f"threads must be a whole number from 1 to 1024, not {threads!r}.")
    return threads


def spread(kernel: Callable[..., Any], args: tuple[Any, ...], tasks: int, work: float, threads: int | None) -> None:
    """Call kernel(*args, first, last) over ranges that cover `tasks`; work: elementary steps in all.

    A thread is worth its start, tens of microseconds, from some hundred thousand steps on.
    """
    count = min(thread_count(threads), tasks, int(work // 300_000) + 1)
    if count <= 1:
        if tasks:
            kernel(*args, 0, tasks)
        return
    key = (os.getpid(), count)  # a forked child inherits the pool's object and none of its threads
    pool = _pools.get(key)
    if pool is None:
        pool = _pools[key] = ThreadPoolExecutor(count - 1, thread_name_prefix="taygeta-numerics")
    edges = [tasks * i // count for i in range(count + 1)]
    waiting = [pool.submit(kernel, *args, edges[i], edges[i + 1]) for i in range(1, count)]
    kernel(*args, 0, edges[1])
    for future in waiting:
        future.result()
