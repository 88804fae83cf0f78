"""The index of an archive: offsets of members, PAX and GNU names, and everything odd refused (docs/security.md I10)."""

from __future__ import annotations

import io
import os
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import FormatError, KnarrError
from knarr.image import tarindex
from knarr.image.tarindex import TarIndex, index_tar


def index(data: bytes) -> TarIndex:
    fd = os.memfd_create("archive")
    try:
        os.write(fd, data)
        return index_tar(fd, "a.tar")
    finally:
        os.close(fd)


def header(
    name: bytes, size: int | bytes, kind: bytes = b"0", *, link: bytes = b"", magic: bytes = b"ustar\x0000"
) -> bytes:
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    head = bytearray(512)
    head[: len(name)] = name
    head[100:124] = b"0000644\x000000000\x000000000\0"
    head[124:136] = field
    head[136:148] = b"00000000000\0"
    head[148:156] = b" " * 8
    head[156:157] = kind
    head[157 : 157 + len(link)] = link
    head[257:265] = magic
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def member(name: bytes, data: bytes, kind: bytes = b"0", size: int | None = None) -> bytes:
    return header(name, len(data) if size is None else size, kind) + data + bytes(-len(data) % 512)


def pax(**records: str) -> bytes:
    data = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + len(str(len(body)))
        length = len(body) + len(str(length))
        data += str(length).encode() + body
    return member(b"pax", data, b"x")


END = bytes(1024)
A = member(b"a", b"data of a")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tar_put_them(form: int) -> None:
    names = ["a", "./b", "dir/" + "c" * 80, "d/" * 40 + "e", "blobs/sha256/" + "f" * 64]
    if form != tarfile.USTAR_FORMAT:
        names += ["g" * 300, "ü/" + "h" * 120]
    contents = {name: random.Random(name).randbytes(len(name) * 7) for name in names}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        directory = tarfile.TarInfo("dir")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../x"
        tar.addfile(link)
    whole = buffer.getvalue()
    found = index(whole)
    for name, data in contents.items():
        there = found.get(name.removeprefix("./"))
        assert there is not None
        assert there.kind == "file"
        assert whole[there.offset : there.offset + there.size] == data
    link_there, directory_there = found.get("link"), found.get("dir")
    assert link_there is not None
    assert (link_there.kind, link_there.target) == ("link", "../x")
    assert directory_there is not None
    assert directory_there.kind == "other"
    assert found.get("nothing") is None


def test_pax_size_wins_over_the_header() -> None:
    found = index(
        pax(size="1536") + header(b"sm", 0) + member(b"inner", b"") + bytes(1024) + member(b"after", b"x") + END
    )
    there = found.get("sm")
    assert there is not None
    assert there.size == 1536
    assert found.get("inner") is None
    assert found.get("after") is not None


def test_trailing_bytes_after_the_end_do_not_count() -> None:
    assert index(A + END + b"junk" * 1000).get("a") is not None
    assert index(A).get("a") is not None  # no end blocks at all
    assert index(A + bytes(512)).get("a") is not None


REFUSED = {
    "empty": (b"", "not a tar archive, or an empty one"),
    "zeros": (bytes(4096), "an empty one"),
    "text": (b"hello, I am no tar archive\n" * 100, "not a tar archive"),
    "elf": (b"\x7fELF" + bytes(2000), "not a tar archive"),
    "checksum": (A + A[:148] + b"0000000\0" + A[156:], "checksum is wrong"),
    "cut header": (A + A[:300], "middle of a header"),
    "cut body": (A + header(b"b", 5000) + b"x" * 100, "ends after 100 of 5000 bytes"),
    "huge": (header(b"b", b"\x80" + b"\xff" * 11), "negative or too large"),
    "negative": (header(b"b", b"\xff" * 12), "negative or too large"),
    "bad octal": (A + header(b"b", b"0000000009\0 "), "bad number"),
    "one zero block": (A + bytes(512) + A, "block of zeros stands between"),
    "orphan pax": (A + pax(path="x"), "after an extension header"),
    "pax bomb": (header(b"x", 64 << 20, b"x"), "extension header of 67108864"),
    "gnu bomb": (header(b"x", 1 << 30, b"L"), "extension header of 1073741824"),
    "pax negative": (pax(size="-1") + A, "PAX size of '-1'"),
    "pax huge": (pax(size="1" * 30) + A, "PAX size"),
    "pax unicode": (pax(size="١") + A, "PAX size"),
    "pax length": (member(b"p", b"99 path=x\n", b"x") + A, "record is malformed"),
    "pax no length": (member(b"p", b"path=x\n", b"x") + A, "record is malformed"),
    "pax no newline": (member(b"p", b"9 path=xy", b"x") + A, "record is malformed"),
    "pax zero": (member(b"p", b"0 path=x\n", b"x") + A, "record is malformed"),
    "global path": (member(b"p", b"10 path=x\n", b"g") + A, "a global header sets path"),
    "cut pax": (header(b"x", 5000, b"x") + b"12 path=abc\n", "middle of an extension header"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_odd_archives_are_refused(case: str) -> None:
    data, why = REFUSED[case]
    with pytest.raises(FormatError, match=why):
        index(data)


def test_a_global_comment_is_harmless() -> None:
    assert index(member(b"p", b"13 comment=x\n", b"g") + A + END).get("a") is not None


def test_a_name_twice_is_refused_when_asked_for() -> None:
    found = index(A + A + member(b"b", b"") + END)
    assert found.get("b") is not None
    with pytest.raises(FormatError, match="a: is in the archive twice"):
        found.get("a")


def test_sparse_members_are_no_plain_files() -> None:
    found = index(pax(GNU__sparse__major="1") + A + member(b"s", b"x", b"S") + END)
    for name in ("a", "s"):
        there = found.get(name)
        assert there is not None
        assert there.kind == "other"


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarindex, "MEMBER_LIMIT", 1000)
    assert index(header(b"x", 0) * 1000 + END).get("y") is None
    with pytest.raises(FormatError, match="more than 1000 members"):
        index(header(b"x", 0) * 1001 + END)


@given(
    st.binary(max_size=3000), st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=3)), max_size=5)
)
def test_random_damage_raises_only_our_error(noise: bytes, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(pax(path="long" * 30) + A + member(b"b", b"x" * 700) + END)
    for at, value in changes:
        data[at : at + len(value)] = value
    for archive in (bytes(data), noise):
        try:
            index(archive)
        except KnarrError:
            continue
