"""Read a Parquet file in another process first, because a damaged one can abort the reader instead of failing.

polars allocates what a corrupt header asks for, and an allocation that fails ends its process. One child reads every
file before this process does; when it dies, or takes too long, the file is refused and the next file gets a new child.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taygeta.base.errors import InputError, require

if TYPE_CHECKING:
    import polars

LIMIT = 120.0  # seconds for one file; the largest public table takes a tenth of one
_CHILD = """
import json, sys
import polars
for line in sys.stdin:
    try:
        polars.read_parquet(json.loads(line), glob=False)
    except BaseException:
        pass
    print("alive", flush=True)
"""


class _Reader:
    """The child, started when it is first needed and again when it died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def survives(self, path: Path) -> bool:
        with self._lock:
            child = self._child or self._start()
            watchdog = threading.Timer(LIMIT, child.kill)
            watchdog.start()
            try:
                answer = self._ask(child, path)
            finally:
                watchdog.cancel()
            if answer != "alive":
                self._stop()
            return answer == "alive"

    def _start(self) -> subprocess.Popen[str]:
        self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and program
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupt is for this process; the child ends with its standard input
        )
        return self._child

    @staticmethod
    def _ask(child: subprocess.Popen[str], path: Path) -> str:
        if child.stdin is None or child.stdout is None:
            return ""
        try:
            child.stdin.write(json.dumps(str(path.absolute())) + "\n")
            child.stdin.flush()
        except OSError:  # it died before it was asked
            return ""
        return child.stdout.readline().strip()

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()


_READER = _Reader()
atexit.register(_READER.close)


def survives(path: Path) -> bool:
    """Return whether reading a Parquet file to its end leaves the reader alive, whatever it says of the file."""
    return _READER.survives(path)


@contextlib.contextmanager
def _refusing(path: Path, pl: Any) -> Iterator[None]:
    """Turn what the reader says of a file into one sentence."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, ValueError, OverflowError) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise InputError(f"{path} is not a Parquet file that can be read: {first}.") from None
    except BaseException as error:  # a damaged file can panic inside the reader, which is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{path} is not a Parquet file that can be read: it is damaged.") from None


def read_parquet(
    path: Path,
    purpose: str,
    max_bytes: int,
    max_rows: int,
    instead: str,
    choose: Callable[[list[str]], Sequence[str]] | None = None,
) -> polars.DataFrame:
    """Read a Parquet file; one without rows is refused.

    purpose: what needs polars, for the message when it is missing; instead: what to do with a file that exceeds
    `max_bytes` or `max_rows`; choose: returns the columns to read from the names there are; without it, all of them.
    Raises InputError or MissingExtraError.
    """
    pl = require("polars", "tables", purpose)
    with _refusing(path, pl):
        if not path.is_file():
            raise InputError(f"{path} is not a file.")
        if path.stat().st_size > max_bytes:
            raise InputError(f"{path} is larger than {max_bytes // 2**20} MiB: {instead}.")
        if not survives(path):
            raise InputError(f"{path} is not a Parquet file that can be read: it is damaged.")
        scan = pl.scan_parquet(path, glob=False)
        count = scan.select(pl.len()).collect().item()  # from the footer, before any page
        if count > max_rows:
            raise InputError(f"{path} has {count:,} rows, more than {max_rows:,}: {instead}.")
        columns = list(choose(scan.collect_schema().names())) if choose else None
        frame = pl.read_parquet(path, glob=False, columns=columns)
    if frame.height == 0:
        raise InputError(f"{path} has no rows.")
    return frame
