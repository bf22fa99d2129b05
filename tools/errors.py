"""Write the error constants of chips and families from measured tables: `python tools/errors.py DIRECTORY`.

Prints each with what told it, and replaces the lines calibration.error.* of data/chips and data/families. The rule is
taygeta.validate.intervals.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from taygeta.spec.fields import ERROR_KINDS
from taygeta.validate.intervals import KERNELS, OTHERS, STRANGERS, ErrorConstant, Residuals, constants
from taygeta.validate.run import validate
from taygeta.validate.systems import Systems

DATA = Path(str(resources.files("taygeta") / "data"))
# The kernel of each constant's name: attention_decode is of attention.
FIELDS_OF = {
    name: kernel
    for kernel in KERNELS
    for name in (kernel, *(f"{kernel}_{kind}" for kind in ERROR_KINDS.get(kernel, {})))
}
TABLES = "tables of AIConfigurator (commit 095f58a8) and Vidur (7d475133)"


def rewritten(text: str, found: Mapping[str, ErrorConstant], ranged: bool) -> str:
    """Return the text of a chip or family file with its error constants replaced: those of a kernel's kinds stand below
    the kernel's, which the text has. ranged: as an assumption.
    """
    out: list[str] = []
    for line in text.splitlines(keepends=True):
        name = re.match(r"error\.(\w+) = ", line)
        if name is None or name[1] not in FIELDS_OF:
            out.append(line)
        elif name[1] == FIELDS_OF[name[1]]:
            kinds = [n for n, kernel in FIELDS_OF.items() if kernel == name[1] and n in found]
            out += [f"error.{n} = {entry(found[n], ranged)}\n" for n in kinds] or [line]
    return "".join(out)


def entry(c: ErrorConstant, ranged: bool) -> str:
    """Return a constant with what told it as a chip file has it. ranged: as an assumption."""
    told = f"computed by tools/errors.py on {TABLES}: {c.source}"
    told += f"; {c.rows:,} rows, {c.inside:.0%} inside, high / low {c.width:.2f}" if c.rows else ""
    if ranged:
        return f'{{ low = {c.value}, nominal = {c.value}, high = {c.value}, reason = "{told}" }}'
    return f'{{ value = {c.value}, source = "{told}" }}'


def main(directory: Path) -> None:
    """Compute, print and write."""
    systems = Systems()
    found = constants(Residuals(list(validate(directory, systems)), systems))
    for name, kernels in found.items():
        for c in kernels.values():
            print(c.line(name))
    write(found)


def write(found: Mapping[str, Mapping[str, ErrorConstant]]) -> None:
    """Replace the constants in the files of chips and families."""
    for path in sorted((DATA / "chips").glob("*.toml")):
        if path.stem in found:
            path.write_text(rewritten(path.read_text(encoding="utf-8"), found[path.stem], False), encoding="utf-8")
    files = {path: path.read_text(encoding="utf-8") for path in sorted((DATA / "families").glob("*.toml"))}
    makers = {path: tomllib.loads(text).get("vendor") for path, text in files.items()}
    measured = {maker for path, maker in makers.items() if f"family:{path.stem}" in found}
    for path, text in files.items():
        default = found[OTHERS if makers[path] in measured else STRANGERS]
        path.write_text(rewritten(text, found.get(f"family:{path.stem}", default), True), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
