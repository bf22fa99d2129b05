"""Servers in this process, on a free port, before fleets made by hand: steps of known seconds, no chip behind them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "serving"))
