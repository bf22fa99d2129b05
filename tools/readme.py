"""Run the commands of README.md and write what they print below them: `python tools/readme.py`.

A console block starts with `$ command`; the lines after it are replaced by its output at 80 columns. Between the
lines <!-- accuracy --> and <!-- /accuracy --> stands what docs/accuracy.md has between <!-- short --> and
<!-- /short -->; `python tools/readme.py accuracy` copies that and runs nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
ACCURACY = README.parent / "docs" / "accuracy.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>taygeta [^\n]*)\n(?P<output>.*?)```", re.DOTALL)


def run(command: str) -> str:
    """Return what a command of the README prints on a terminal of 80 columns."""
    words = [sys.executable, "-m", "taygeta.app.cli", *shlex.split(command)[1:]]
    done = subprocess.run(
        words, check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def blocks() -> list[tuple[str, str]]:
    """Return (command, output as written) of every console block."""
    return [(m["command"], m["output"]) for m in BLOCK.finditer(README.read_text(encoding="utf-8"))]


def between(path: Path, name: str) -> str:
    """Return what a file has between <!-- name --> and <!-- /name -->. Raises ValueError without these lines."""
    text = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    return text[text.index(start) + len(start) : text.index(end)]


def main() -> None:
    """Rewrite the outputs and the accuracy, or the accuracy alone."""
    old, new = between(README, "accuracy"), between(ACCURACY, "short")
    text = README.read_text(encoding="utf-8")
    text = text.replace(f"<!-- accuracy -->\n{old}", f"<!-- accuracy -->\n{new}")
    if sys.argv[1:] != ["accuracy"]:
        text = BLOCK.sub(lambda m: f"```console\n$ {m['command']}\n{run(m['command'])}```", text)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
