"""Files that appear as a whole: a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taygeta.base.errors import InputError

DEVICES = Path("/dev")  # also names standard output and other open files, which no new file can take the place of


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new file that takes the place of `path` when the block ends, and is removed when the block fails.

    A symbolic link stays, and what it points to is replaced. What is there and is no regular file (a pipe, a device)
    stays too: the bytes go into it. Raises InputError where it cannot be written.
    """
    name = ""
    try:
        place = Path(os.path.realpath(path)) if replaceable(path) else None
        beside = place.parent if place else None  # the same file system, so that it can be moved
        handle, name = tempfile.mkstemp(dir=beside, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        yield Path(name)
        if place:
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, place)
        else:
            with open(name, "rb") as made, open(path, "wb") as out:
                shutil.copyfileobj(made, out)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)


def replaceable(path: Path) -> bool:
    """Return whether a new file can take the place of a path: it is a regular file, or nothing is there."""
    try:
        there = path.stat()
    except OSError:
        return True
    return stat.S_ISREG(there.st_mode) and DEVICES not in path.absolute().parents


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole. Raises InputError."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _umask() -> int:
    """The permissions that the user keeps from new files; reading them means setting them for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
