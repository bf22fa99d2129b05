"""Write the table of docs/chips.md from the sheets of the catalogue: `python tools/chip_table.py`."""

from __future__ import annotations

from pathlib import Path

from taygeta.base import units
from taygeta.spec.catalog import chip_names, sheet
from taygeta.spec.chip import Chip, build_chip, fastest_mode
from taygeta.spec.fields import MODES
from taygeta.spec.sheet import Sheet

PAGE = Path(__file__).parents[1] / "docs" / "chips.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
NARROW = MODES[MODES.index("fp8") :]
GIB = 1 << 30
COLUMNS = (
    "chip", "product", "cores", "clock", "bf16", "best narrow", "main memory", "its bandwidth",
    "numbers, of them assumed",
)  # fmt: skip


def page() -> str:
    """Return the page as it is, with the table of the sheets."""
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:start] + table() + text[end:]


def table() -> str:
    """Return the table, a row for each chip of the catalogue."""
    head, *rows = (f"| {' | '.join(line)} |\n" for line in (COLUMNS, *(_row(sheet(name)) for name in chip_names())))
    return head + "|---" * len(COLUMNS) + "|\n" + "".join(rows)


def _row(found: Sheet) -> tuple[str, ...]:
    chip = build_chip(found)
    narrow = fastest_mode(chip, NARROW)
    entries = found.entries.items()
    own = [e for path, e in entries if e.origin != "family" and not path.startswith("calibration.")]
    return (
        found.id,
        chip.name,
        f"{found.entries['cores.count'].nominal:,.0f}" + _mark(found, "cores.count"),
        units.show(found.entries["clock"].nominal, units.HERTZ, 3) + _mark(found, "clock"),
        _peak(found, chip, "bf16"),
        f"{narrow} {_peak(found, chip, narrow)}" if narrow else "-",
        _capacity(chip.hbm.capacity) + _mark(found, "hbm.capacity"),
        units.show(chip.hbm.bandwidth, units.BYTES_PER_S, 4) + _mark(found, "hbm.bandwidth"),
        f"{len(own)}, {sum(e.assumed for e in own)}",
    )


def _peak(found: Sheet, chip: Chip, mode: str) -> str:
    """A peak, marked where it, or the multipliers it follows from, are assumed."""
    path = next((p for p in (f"tensor.peak.{mode}", f"tensor.macs.{mode}") if p in found.entries), "")
    return units.show(chip.peaks[mode], units.FLOP_PER_S, 3) + (_mark(found, path) if path else "")


def _capacity(size: float) -> str:
    """Whole GiB as such, else as a driver or vendor gives it."""
    whole, rest = divmod(size, GIB)
    return units.show(size, units.BYTES, 3) if rest else f"{whole:.0f} GiB"


def _mark(found: Sheet, path: str) -> str:
    return "~" if found.entries[path].assumed else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
