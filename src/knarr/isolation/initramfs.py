"""The first root of a guest: a cpio archive of knarr-init, the modules its kernel wants, and what a kind names (hot).

Pure: the same files, the same bytes. Format: "newc", Documentation/driver-api/early-userspace/buffer-format.rst of
Linux; not compressed, since unpacking costs an emulated processor more than copying.

    /init             knarr-init, in guest mode
    /modules          the modules to load, a path a line, in this order
    /lib/NAME         a module each
    /dev/console, /dev/null, and empty /proc, /sys, /dev
"""

from __future__ import annotations

from stat import S_IFCHR, S_IFDIR, S_IFMT, S_IFREG

from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST = 0xFFFFFFFF  # of a field: eight hexadecimal digits
_ALIGNED = 512  # some boot loaders read whole sectors


class Entry(Record):
    """One file of the archive: a path without a leading slash, type and permissions, content, a device's numbers."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def initramfs(init: bytes, modules: Iterable[tuple[str, bytes]] = (), more: Iterable[Entry] = ()) -> bytes:
    """The archive. ``modules``: name and content of each, in the order they are loaded. ``more``: further files.

    Raises ValueError on a name that cannot be, which is a mistake of the caller.
    """
    named = list(modules)
    entries = [Entry(name, S_IFDIR | 0o755) for name in ("dev", "lib", "proc", "sys")]
    entries += [Entry("dev/console", S_IFCHR | 0o600, device=(5, 1)), Entry("dev/null", S_IFCHR | 0o666, device=(1, 3))]
    entries.append(Entry("init", S_IFREG | 0o755, init))
    if named:
        if any("\n" in name or "/" in name for name, _ in named):
            raise ValueError("a module's name is one line of a list")
        lines = "".join(f"/lib/{name}\n" for name, _ in named)
        entries.append(Entry("modules", S_IFREG | 0o644, lines.encode()))
        entries += [Entry(f"lib/{name}", S_IFREG | 0o644, data) for name, data in named]
    return archive([*entries, *more])


def archive(entries: Iterable[Entry]) -> bytes:
    """These entries as a newc archive, in this order: a directory before what is in it. Raises ValueError."""
    seen: set[str] = set()
    directories = {""}
    parts: list[bytes] = []
    for number, entry in enumerate(entries, 1):
        parent, _, last = entry.name.rpartition("/")
        if last in ("", ".", "..") or entry.name.startswith("/") or "\0" in entry.name or entry.name in seen:
            raise ValueError(f"{entry.name!r} cannot be the name of an entry")
        if parent not in directories:
            raise ValueError(f"{entry.name!r} comes before its directory")
        seen.add(entry.name)
        if S_IFMT(entry.mode) == S_IFDIR:
            directories.add(entry.name)
        parts.append(_member(number, entry))
    parts.append(_member(0, Entry("TRAILER!!!", 0)))
    packed = b"".join(parts)
    return packed + bytes(-len(packed) % _ALIGNED)


def _member(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if S_IFMT(entry.mode) == S_IFDIR else 1
    # inode, mode, uid, gid, links, time, size, the disk's device, the node's device, name, no checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    if max(fields) > _LONGEST:
        raise ValueError(f"{entry.name!r} is too large for an entry")
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)
