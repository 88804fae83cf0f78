"""Compiled seccomp filters, kept by the content of their profile (hot).

Compiling Docker's profile takes a millisecond or two, and the import of the compiler and of the system call tables;
finding it here a tenth of that. A file is named by the digest of (profile, architecture, compiler version) and carries
the digest of its program. Whatever is not as this module writes it (another owner, writable by others, a wrong digest)
is ignored and replaced; a directory that cannot be used costs time, never a failure.
"""

from __future__ import annotations

import posix
import stat
import sys
from marshal import dumps

from knarr.base.errors import FileError
from knarr.base.files import write_atomic
from knarr.plan.seccomp_filter import COMPILER_VERSION, MAX_INSTRUCTIONS

if sys.version_info >= (3, 12):
    from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # hashlib costs OpenSSL
else:
    from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAGIC = b"KNARRBPF"
_HEADER = len(_MAGIC) + 32
_LARGEST = _HEADER + 8 * MAX_INSTRUCTIONS
_KEPT = 64
_KNOWN = 8
_known: dict[bytes, bytes] = {}
_OPEN_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_OPEN = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC


def known_filter(directory: str, profile: dict[str, Any], arch: str) -> bytes:
    """The same as ``cached_filter``, without a file for one of the last that this process asked for."""
    key = dumps((arch, profile), 2)
    program = _known.get(key)
    if program is None:
        program = cached_filter(directory, profile, arch)
        if len(_known) >= _KNOWN:
            _known.clear()
        _known[key] = program
    return program


def cached_filter(directory: str, profile: dict[str, Any], arch: str) -> bytes:
    """Return ``compile_filter(profile, arch)``, from ``directory`` if it is there, and keep it there if not.

    ``directory`` is made with mode 0700 if only its last part is missing. Raises what compile_filter raises.
    """
    name = filter_key(profile, arch)
    directory_fd = _open_directory(directory)
    if directory_fd < 0:
        return _compiled(profile, arch)
    try:
        program = _read(directory_fd, name)
        if program is None:
            program = _compiled(profile, arch)
            _write(directory_fd, name, program)
        return program
    finally:
        posix.close(directory_fd)


def _compiled(profile: dict[str, Any], arch: str) -> bytes:
    from knarr.plan.seccomp import compile_filter  # cold: once for each profile

    return compile_filter(profile, arch)


def filter_key(profile: dict[str, Any], arch: str) -> str:
    """The name of a profile's file. Equal profiles with differently ordered keys may get two."""
    # marshal is the fastest way from a document to bytes; version 2 knows no references and no interned strings, so
    # equal documents give equal bytes. Another Python's format would only mean another name.
    return str(sha256(dumps((COMPILER_VERSION, arch, profile), 2)).hexdigest())


def _open_directory(path: str) -> int:
    """A descriptor of a directory that only we can write to, or -1."""
    try:
        try:
            fd = posix.open(path, _OPEN_DIRECTORY)
        except FileNotFoundError:
            posix.mkdir(path, 0o700)
            fd = posix.open(path, _OPEN_DIRECTORY)
    except OSError:
        return -1
    if _ours(posix.fstat(fd)):
        return fd
    posix.close(fd)
    return -1


def _ours(facts: posix.stat_result) -> bool:
    return facts.st_uid == posix.geteuid() and not facts.st_mode & 0o022


def _read(directory_fd: int, name: str) -> bytes | None:
    """The program in a file that is as we wrote it."""
    try:
        fd = posix.open(name, _OPEN, dir_fd=directory_fd)
    except OSError:
        return None
    try:
        facts = posix.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or not _ours(facts) or not _HEADER < facts.st_size <= _LARGEST:
            return None
        data = posix.read(fd, facts.st_size)
    except OSError:
        return None
    finally:
        posix.close(fd)
    program = data[_HEADER:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : _HEADER] != sha256(program).digest():
        return None
    return program


def _write(directory_fd: int, name: str, program: bytes) -> None:
    try:
        write_atomic(name, _MAGIC + sha256(program).digest() + program, dir_fd=directory_fd)
        _prune(directory_fd)
    except (OSError, FileError):
        pass  # a full or read-only disk: the filter is compiled again next time


def _prune(directory_fd: int) -> None:
    """Keep the newest files only."""
    names = posix.listdir(directory_fd)
    if len(names) <= _KEPT:
        return
    aged = sorted((posix.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mtime_ns, name) for name in names)
    for _, name in aged[: len(names) - _KEPT]:
        posix.unlink(name, dir_fd=directory_fd)
