"""fs-verity by its ioctls. Where a file system has it, tests/vm/test_verity.py shows what it does."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest

from knarr.kernel import verity

if TYPE_CHECKING:
    from pathlib import Path


def answers(monkeypatch: pytest.MonkeyPatch, number: int) -> list[tuple[int, bytes]]:
    asked: list[tuple[int, bytes]] = []

    def ioctl(_fd: int, request: int, argument: bytes) -> bytes:
        asked.append((request, argument))
        if number:
            raise OSError(number, os.strerror(number))
        return argument

    monkeypatch.setattr(verity, "ioctl", ioctl)
    return asked


def test_here(tmp_path: Path) -> None:
    """Whatever this file system can do, asking is harmless, and both answers agree."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    done = verity.seal_file(str(path))
    with path.open("rb") as file:
        assert bool(verity.sealed(file.fileno())) == done
        assert file.read() == b"content"
    if not done:
        path.write_bytes(b"other")


def test_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    asked = answers(monkeypatch, 0)
    assert verity.seal_file(str(path))
    ((request, argument),) = asked
    assert request >> 16 & 0x3FFF == len(argument) == 128  # the size is part of an ioctl's number
    assert struct.unpack_from("=IIII", argument) == (1, 1, 4096, 0)  # version, SHA-256, block, no salt
    assert not any(argument[16:])


@pytest.mark.parametrize(
    "number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EACCES, errno.ETXTBSY]
)
def test_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    answers(monkeypatch, number)
    (tmp_path / "file").touch()
    assert not verity.seal_file(str(tmp_path / "file"))


def test_once_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, errno.EEXIST)
    (tmp_path / "file").touch()
    assert verity.seal_file(str(tmp_path / "file"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    answers(monkeypatch, number)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=os.strerror(number)):
        verity.seal_file(str(tmp_path / "file"))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        verity.seal_file(str(tmp_path / "link"))
