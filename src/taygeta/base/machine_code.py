"""Machine code that Numba keeps on disk, beside the source or where it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def kept(function: Any) -> bool:
    """Return whether machine code of a function, compiled by Numba under cache=True, lies on this disk."""
    name = f"{Path(function.py_func.__code__.co_filename).stem}.{function.py_func.__qualname__}-*.nbi"
    return any(Path(function.stats.cache_path).glob(name))
