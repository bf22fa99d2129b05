"""docs/reference.md is what the program says of itself."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import reference  # noqa: E402 - beside the package, not in it


def test_reference_is_current():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python tools/reference.py"
