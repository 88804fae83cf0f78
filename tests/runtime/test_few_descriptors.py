"""Out of descriptors at any point: one sentence, and nothing left (every limit from too few to enough)."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import TYPE_CHECKING

from blackbox import Bundle, Runtime, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [needs_busybox, needs_root]


def limited(number: int) -> Callable[[], None]:
    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))

    return set_limit


def test_run_with_too_few_descriptors(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["process"].pop("rlimits", None)  # they would be above ours
    path = bundle.write("true")
    codes = set()
    for number in range(4, 44):
        id = ours.new_id()
        done = subprocess.run(
            [*ours.command, "run", "--bundle", path, id],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=limited(number),
        )
        codes.add(done.returncode == 0)
        if number >= 8:  # below, the interpreter itself cannot start or import
            assert "Traceback" not in done.stderr, (number, done.stderr)
        assert left_behind(ours, id) == [], number
        assert not os.path.exists(ours.root / id), number
    assert codes == {True, False}, "the limits tried must reach from too few to enough"
