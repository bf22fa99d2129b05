"""Read a file in another process first, because a damaged Parquet file can abort the reader instead of failing.

polars allocates what a corrupt header asks for, and an allocation that fails ends its process. One child reads every
file before this process does; when it dies, or takes too long, the file is refused and the next file gets a new child.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from pathlib import Path

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
