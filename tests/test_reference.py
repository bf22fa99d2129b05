"""docs/reference.md and the table of docs/chips.md are what the program says of itself."""

from __future__ import annotations

import sys
from pathlib import Path

from taygeta.report.catalogue import chips_view
from taygeta.spec.catalog import chip, sheet
from taygeta.spec.chip import fastest_mode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import chip_table  # noqa: E402 - beside the package, not in it
import reference  # noqa: E402


def test_reference_is_current():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python tools/reference.py"


def test_the_table_of_chips_is_current():
    assert chip_table.PAGE.read_text(encoding="utf-8") == chip_table.page(), "run python tools/chip_table.py"


def test_of_modes_as_fast_as_each_other_every_list_names_the_same():
    """H100 multiplies fp8 and int8 at the same peak: `taygeta chips` and docs/chips.md say fp8."""
    h100, gaudi3 = chip("h100"), chip("gaudi3")
    assert h100.peaks["fp8"] == h100.peaks["int8"]
    assert fastest_mode(h100) == fastest_mode(h100, chip_table.NARROW) == "fp8"
    assert (fastest_mode(gaudi3), fastest_mode(gaudi3, chip_table.NARROW)) == ("bf16", "fp8")
    assert fastest_mode(chip("tpu-v2"), chip_table.NARROW) is None
    assert "\n| h100 | NVIDIA H100 SXM5 80GB | 132 | 1.83 GHz | 989 TFLOP/s | fp8 1.98 PFLOP/s |" in chip_table.table()
    (row,) = (r for r in chips_view([(sheet("h100"), h100)]).grids[0].rows)
    assert "fp8 1.98 PFLOP/s" in [cell.text for cell in row]
