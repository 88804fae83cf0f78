"""The suite's runner is a program, not a package: let its tests import it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
