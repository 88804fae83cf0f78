"""The kinds of isolation that are tested, and whether this machine has them."""

from __future__ import annotations

import os
import platform
import shutil

import pytest

from knarr.base.errors import KnarrError
from knarr.isolation import kernels, qemu

KINDS = ("namespace", "kernel", "vm")
GUESTS = ("kernel", "vm")
ISOLATION = "org.knarr.isolation"


def need(kind: str) -> None:
    """Skip the test where this kind cannot be had."""
    if kind == "kernel" and platform.machine() != "x86_64":
        pytest.skip("user-mode Linux runs on x86_64 only")
    if kind == "kernel" and shutil.which("linux.uml") is None:
        pytest.skip("user-mode-linux is not installed")
    if kind == "vm":
        try:
            qemu.find(os.environ)
            qemu.find_helper(os.environ)
            kernel = kernels.find()
        except KnarrError as error:
            pytest.skip(str(error))
        if not os.access(kernel, os.R_OK):
            pytest.skip(f"{kernel} is root's")
