"""``knarr template`` as the tests call it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Templates:
    """``knarr template`` with a keeper of the test's own."""

    def __init__(self, kind: str, place: Path, knarr: str) -> None:
        self.kind = kind
        self._knarr = knarr
        self._environment = {**os.environ, "KNARR_TEMPLATES": str(place)}

    def __call__(self, *words: str) -> str:
        command = [self._knarr, "template", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=self._environment).stdout

    def listed(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self("list", "--format", "json"))
        return sorted(rows, key=lambda row: row["State"])

    def expect(self, *states: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 60
        while [row["State"] for row in self.listed()] != list(states):
            assert time.monotonic() < deadline, self.listed()
            time.sleep(0.05)
        return self.listed()
