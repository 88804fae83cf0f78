"""The black-box kits of tests/runtime and tests/engine, here too."""

from __future__ import annotations

import sys
from pathlib import Path

for room in ("runtime", "engine"):
    sys.path.insert(0, str(Path(__file__).parents[1] / room))
