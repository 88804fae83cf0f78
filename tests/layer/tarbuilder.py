"""Tar archives byte by byte, as no library would write them: for what a layer must not do, and what it may."""

from __future__ import annotations

import io
import tarfile

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes,
    kind: bytes,
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_000_000_000,
    link: bytes = b"",
    device: tuple[int | bytes, int | bytes] = (0, 0),
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    tail: bytes | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header block; a field given as bytes goes in as it is. ``tail``: what follows byte 345."""

    def number(value: int | bytes, width: int) -> bytes:
        if isinstance(value, bytes):
            return value.ljust(width, b"\0")[:width]
        return b"%0*o\0" % (width - 1, value)

    block = (
        name[:100].ljust(100, b"\0")
        + number(mode, 8)
        + number(uid, 8)
        + number(gid, 8)
        + number(size, 12)
        + number(mtime, 12)
        + b" " * 8
        + kind
        + link[:100].ljust(100, b"\0")
        + magic.ljust(8, b"\0")
        + b"root".ljust(32, b"\0")
        + b"root".ljust(32, b"\0")
        + number(device[0], 8)
        + number(device[1], 8)
        + (prefix[:155] if tail is None else tail).ljust(167, b"\0")
    )
    total = b"%06o\0 " % sum(block) if checksum is None else checksum.ljust(8, b"\0")
    return block[:148] + total + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def f(name: str | bytes, data: bytes = b"", **more: object) -> bytes:
    """A regular file."""
    more.setdefault("size", len(data))
    return header(raw(name), b"0", **more) + padded(data)  # type: ignore[arg-type]


def d(name: str | bytes, mode: int = 0o755, **more: object) -> bytes:
    return header(raw(name), b"5", mode=mode, **more)  # type: ignore[arg-type]


def s(name: str | bytes, target: str | bytes, **more: object) -> bytes:
    return header(raw(name), b"2", mode=0o777, link=raw(target), **more)  # type: ignore[arg-type]


def h(name: str | bytes, target: str | bytes, **more: object) -> bytes:
    return header(raw(name), b"1", link=raw(target), **more)  # type: ignore[arg-type]


def c(name: str | bytes, major: int | bytes, minor: int | bytes, kind: bytes = b"3", **more: object) -> bytes:
    return header(raw(name), kind, device=(major, minor), **more)  # type: ignore[arg-type]


def record(key: str | bytes, value: str | bytes) -> bytes:
    """One PAX record; its length counts itself."""
    body = b" " + raw(key) + b"=" + raw(value) + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return b"%d" % length + body


def x(*records: tuple[str | bytes, str | bytes], kind: bytes = b"x", data: bytes | None = None) -> bytes:
    """A PAX header for the next entry (or, kind g, for all)."""
    data = b"".join(record(key, value) for key, value in records) if data is None else data
    return header(b"./PaxHeaders/x", kind, size=len(data)) + padded(data)


def gnu(kind: bytes, text: bytes) -> bytes:
    """A GNU long name (L) or long link (K)."""
    return header(b"././@LongLink", kind, size=len(text) + 1, magic=b"ustar  \0") + padded(text + b"\0")


def raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def tar(*parts: bytes) -> bytes:
    return b"".join(parts) + END


def base256(value: int, width: int) -> bytes:
    """A number in GNU's binary form."""
    if value < 0:
        return (value & ((1 << 8 * width) - 1)).to_bytes(width, "big")
    made = bytearray(value.to_bytes(width, "big"))
    made[0] |= 0x80
    return bytes(made)


def members(data: bytes) -> list[tarfile.TarInfo]:
    """What the standard library reads in an archive: a second opinion."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()
