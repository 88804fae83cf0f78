"""Trees described entry by entry, so that two can be compared; scratch directories; overlay mounts for root."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from knarr.base.errors import KernelError
from knarr.kernel.mount import MNT_DETACH, mount, umount2
from knarr.layer.unpack import remove_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")


class Item(NamedTuple):
    """What is compared of one entry."""

    kind: str
    mode: int
    owner: tuple[int, int]
    size: int
    mtime: int
    link: str
    links: int
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: str


KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFSOCK: "socket",
}


def item(path: str) -> Item:
    facts = os.lstat(path)
    kind = KINDS[stat.S_IFMT(facts.st_mode)]
    names = sorted(name for name in os.listxattr(path, follow_symlinks=False) if ".overlay." not in name)
    xattrs = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    content = ""
    if kind == "file":
        with open(path, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    return Item(
        kind,
        stat.S_IMODE(facts.st_mode),
        (facts.st_uid, facts.st_gid),
        0 if kind == "directory" else facts.st_size,
        facts.st_mtime_ns,
        os.readlink(path) if kind == "link" else "",
        0 if kind == "directory" else facts.st_nlink,
        facts.st_rdev if kind in {"char", "block"} else 0,
        tuple(xattrs),
        content,
    )


def tree(root: str) -> dict[str, Item]:
    """Every entry below ``root`` by relative path, itself as "."."""
    found = {".": item(root)}
    todo = [""]
    while todo:
        folder = todo.pop()
        for entry in os.scandir(f"{root}/{folder}"):
            path = f"{folder}/{entry.name}" if folder else entry.name
            found[path] = item(f"{root}/{path}")
            if entry.is_dir(follow_symlinks=False):
                todo.append(path)
    return found


def differences(left: dict[str, Item], right: dict[str, Item], ignore: Sequence[str] = ()) -> list[str]:
    """What differs, in words, the first twenty."""
    wrong = [f"only left: {path}" for path in left.keys() - right.keys()]
    wrong += [f"only right: {path}" for path in right.keys() - left.keys()]
    for path in left.keys() & right.keys():
        for field in Item._fields:
            a, b = getattr(left[path], field), getattr(right[path], field)
            if a != b and field not in ignore:
                wrong.append(f"{path}: {field} {a!r} != {b!r}")
    return sorted(wrong)[:20]


@contextmanager
def scratch() -> Iterator[str]:
    """A fresh directory, removed at the end whatever is in it; root's is in memory, which spares the disk."""
    path = tempfile.mkdtemp(prefix="knarr-test-")
    try:
        if ROOT:
            try:
                mount("tmpfs", path, "tmpfs", 0, "mode=0700")
            except KernelError:
                pass  # no right to mount: on disk then
        yield path
    finally:
        if os.path.ismount(path):
            umount2(path, MNT_DETACH)
        remove_path(path)


@contextmanager
def overlay(lowers: Sequence[str], place: str) -> Iterator[str]:
    """Layers mounted together, read-only, top first; at least two directories as overlayfs wants it."""
    target = tempfile.mkdtemp(prefix="mnt-", dir=place)
    empty = tempfile.mkdtemp(prefix="empty-", dir=place)
    directories = [*lowers, empty] if len(lowers) == 1 else list(lowers)
    mount("overlay", target, "overlay", 1, "lowerdir=" + ":".join(directories))
    try:
        yield target
    finally:
        umount2(target, MNT_DETACH)


@contextmanager
def directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
