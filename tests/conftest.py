"""What all tests share: where the installed programs are, hypothesis' profile, the list of skips at the end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

# A loaded two-core machine must not fail a property for its speed; CI tries the same examples every time.
settings.register_profile("knarr", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("knarr")

# A shell that starts the tests in its background ignores SIGINT for them, and so for all that they start; knarr keeps
# what its caller ignored (nohup). The tests want what a person at a terminal has.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor is their output unbuffered for people.
os.environ.pop("PYTHONUNBUFFERED", None)

ROOT = Path(__file__).parents[1]


def installed(program: str) -> str:
    """Path of a program of ours in the environment that runs the tests; skips the test when it is not there."""
    path = Path(sys.prefix, "bin", program)
    if not path.exists():
        pytest.skip(f"{program} is not installed in {sys.prefix} (make build)")
    return str(path)


@pytest.fixture(scope="session")
def knarr() -> str:
    """Path of the installed ``knarr``."""
    return installed("knarr")


@pytest.fixture(scope="session")
def knarr_runtime() -> str:
    """Path of the installed ``knarr-runtime``."""
    return installed("knarr-runtime")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every skip with its reason, each reason once, with the tests it kept from running."""
    reasons: dict[str, set[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reasons.setdefault(reason_of(report), set()).add(report.nodeid)
    if not reasons:
        return
    total = sum(map(len, reasons.values()))
    terminalreporter.section(f"{total} skipped, and why")
    for reason, tests in sorted(reasons.items()):
        terminalreporter.write_line(f"{len(tests):4} × {reason}")
        terminalreporter.write_line(f"       {names(tests)}")


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the reason given to skip(), on one line."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(text.removeprefix("Skipped: ").split())


def names(tests: Iterable[str]) -> str:
    """Name test functions, a file's together, without their parameters: ``layer/test_a.py: one, two``."""
    files: dict[str, set[str]] = {}
    for test in tests:
        file, _, name = test.removeprefix("tests/").partition("::")
        files.setdefault(file, set()).add(name.partition("[")[0].removeprefix("test_"))
    return "; ".join(f"{file}: {', '.join(sorted(found))}".removesuffix(": ") for file, found in sorted(files.items()))
