"""The page is tested before servers of this process, as the endpoint is: its helpers are those of tests/endpoint."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("serving", "endpoint"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
