"""Malformed and hostile config.json, each once: refused with its place and nothing left, or run as the specification has it."""

from __future__ import annotations

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root
from config_corpus import CASES, Case, verdict

pytestmark = [needs_busybox, needs_root]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_config(case: Case, ours: Runtime, bundle: Bundle) -> None:
    assert verdict(ours, bundle, case) == ""
