"""Disk images for the tests: a file system made by mke2fs, and QCOW2 around it, written here."""

from __future__ import annotations

import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = 1 << 16


def ext4(folder: Path, image: Path, megabytes: int = 16) -> Path:
    """A raw image of an ext4 with what is in a folder."""
    program = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    if program is None:
        pytest.skip("mke2fs (e2fsprogs) is not installed")
    words = [program, "-q", "-t", "ext4", "-d", str(folder), str(image), f"{megabytes}M"]
    subprocess.run(words, check=True, capture_output=True)
    return image


def qcow2(raw: bytes, *, backing: str = "", features: int = 0, encrypted: int = 0, version: int = 3) -> bytes:
    """The same as a QCOW2 image: header, refcount table and block, both tables, then the clusters that are not zero."""
    count = -(-len(raw) // CLUSTER)
    clusters: list[bytes] = []
    entries: list[int] = []
    for number in range(count):
        data = raw[number * CLUSTER : (number + 1) * CLUSTER].ljust(CLUSTER, b"\0")
        if data.count(0) == CLUSTER:
            entries.append(0)
            continue
        entries.append((5 + len(clusters)) * CLUSTER | 1 << 63)
        clusters.append(data)
    name = backing.encode()
    place = 200 if backing else 0
    head = struct.pack(">4sIQIIQII", b"QFI\xfb", version, place, len(name), 16, len(raw), encrypted, 1)
    head += struct.pack(">QQIIQ", 3 * CLUSTER, CLUSTER, 1, 0, 0)
    head += struct.pack(">QQQII", features, 0, 0, 4, 104) if version == 3 else b""
    head = head.ljust(200, b"\0") + name
    blocks = [
        head,
        struct.pack(">Q", 2 * CLUSTER),
        struct.pack(">H", 1) * (5 + len(clusters)),
        struct.pack(">Q", 4 * CLUSTER | 1 << 63),
        b"".join(struct.pack(">Q", entry) for entry in entries),
    ]
    return b"".join(block.ljust(CLUSTER, b"\0") for block in (*blocks, *clusters))
