"""The tar reader: every format GNU tar writes, numbers and names in all their forms, and only FormatError for rubbish."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tarbuilder import END, base256, c, d, f, gnu, h, header, padded, raw, record, s, tar, x
from trees import directory, scratch, tree

from knarr.base.errors import FormatError
from knarr.kernel.userns import IdMap
from knarr.layer import paxheader
from knarr.layer.apply import apply_layer
from knarr.layer.tarball import BLOCK, CHAR, DIR, FIFO, FILE, HARDLINK, SYMLINK, Entry, Limits, Reader, entries

TYPES = {
    tarfile.REGTYPE: FILE,
    tarfile.AREGTYPE: FILE,
    tarfile.CONTTYPE: FILE,
    tarfile.GNUTYPE_SPARSE: FILE,
    tarfile.LNKTYPE: HARDLINK,
    tarfile.SYMTYPE: SYMLINK,
    tarfile.CHRTYPE: CHAR,
    tarfile.BLKTYPE: BLOCK,
    tarfile.DIRTYPE: DIR,
    tarfile.FIFOTYPE: FIFO,
}


def read(data: bytes) -> list[Entry]:
    return list(entries(io.BytesIO(data)))


def one(*parts: bytes) -> Entry:
    found = read(tar(*parts))
    assert len(found) == 1
    return found[0]


def contents(data: bytes) -> dict[bytes, bytes]:
    reader = Reader(io.BytesIO(data))
    return {entry.name: b"".join(reader.chunks()) for entry in reader}


def gnu_tar(folder: str, *options: str) -> bytes:
    program = shutil.which("tar")
    if (
        program is None
        or b"GNU tar" not in subprocess.run([program, "--version"], capture_output=True, check=True).stdout
    ):
        pytest.skip("GNU tar is not installed")
    command = [program, "-C", folder, "--sort=name", "-cf", "-", *options, "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


def furnish(folder: str) -> None:
    root = Path(folder)
    (root / "plain").write_bytes(b"hello" * 1000)
    (root / "empty").touch()
    (root / ("n" * 99)).write_text("99")
    (root / ("n" * 150)).write_text("150")
    deep = root / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    (deep / "inner").write_text("deep")
    (deep / ("i" * 200)).write_text("deeper")
    os.link(deep / "inner", root / "linked")
    (root / "short").symlink_to("plain")
    (root / "long").symlink_to("t" * 180)
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"odd\xff")).write_text("odd")
    for path in root.rglob("*"):
        os.utime(path, ns=(1_700_000_000_123456789, 1_700_000_000_123456789), follow_symlinks=False)


@pytest.mark.parametrize("kind", ["v7", "ustar", "oldgnu", "gnu", "pax"])
def test_what_gnu_tar_writes(kind: str) -> None:
    with scratch() as folder:
        furnish(folder)
        if kind in {"v7", "ustar"}:  # these cannot hold it all
            for name in ("n" * 150, "long", "linked"):
                os.unlink(f"{folder}/{name}")
            deep = f"{folder}/{'d' * 90}/{'e' * 90}"
            os.unlink(f"{deep}/{'i' * 200}")
            if kind == "v7":
                shutil.rmtree(f"{folder}/{'d' * 90}")
                os.unlink(f"{folder}/fifo")
                os.unlink(f"{folder}/{'n' * 99}")
        data = gnu_tar(folder, f"--format={kind}")
    ours = read(data)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        theirs = archive.getmembers()
    assert len(ours) == len(theirs) > 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.name.rstrip(b"/") == raw(other.name).rstrip(b"/")
        assert mine.kind == TYPES[other.type]
        assert (mine.mode, mine.uid, mine.gid) == (other.mode, other.uid, other.gid)
        assert mine.mtime // 1_000_000_000 == int(other.mtime)
        assert mine.link == raw(other.linkname)
        if mine.kind == FILE:
            assert mine.size == other.size
        if kind == "pax" and mine.name != b"./":
            assert mine.mtime == 1_700_000_000_123456789 or mine.kind == DIR


@pytest.mark.parametrize("options", [["gnu"], ["oldgnu"], ["pax", "0.0"], ["pax", "0.1"], ["pax", "1.0"]])
@pytest.mark.parametrize("holes", [1, 3, 30, 200])
def test_sparse_files(options: list[str], holes: int) -> None:
    with scratch() as folder:
        os.mkdir(f"{folder}/in")
        with open(f"{folder}/in/sparse", "wb") as stream:
            for number in range(holes):
                stream.seek((number + 1) * 64 * 1024)
                stream.write(b"%d" % number * 300)
            stream.truncate((holes + 3) * 64 * 1024)
        with open(f"{folder}/in/sparse", "rb") as stream:
            want = stream.read()
        version = [f"--sparse-version={options[1]}"] if len(options) > 1 else []
        data = gnu_tar(f"{folder}/in", "--sparse", "--hole-detection=raw", f"--format={options[0]}", *version)
        found = {entry.name: entry for entry in read(data)}
        assert found[b"./sparse"].size == len(want)
        assert found[b"./sparse"].extents
        os.mkdir(f"{folder}/out")
        with directory(f"{folder}/out") as fd:
            apply_layer(io.BytesIO(data), fd, fresh=True, ids=None if os.geteuid() == 0 else own())
        with open(f"{folder}/out/sparse", "rb") as stream:
            assert stream.read() == want
        if holes == 1:
            assert os.stat(f"{folder}/out/sparse").st_blocks * 512 < len(want)  # the holes are holes again
        # Every cut and every change of a byte in the headers is refused or read, never anything else.
        for at in range(0, min(len(data), 6000), 97):
            for broken in (data[:at], data[:at] + b"\xff" + data[at + 1 :]):
                try:
                    contents(broken)
                except FormatError:
                    pass


def own() -> IdMap:
    return IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),), squash=True)


def test_numbers_and_times() -> None:
    assert one(f("n", uid=base256(70_000, 8), gid=b"  1234 \0")).gid == 0o1234
    assert one(f("n", uid=base256(70_000, 8))).uid == 70_000
    assert one(f("n", mtime=base256(-5, 12))).mtime == -5_000_000_000
    assert one(x(("mtime", "12.5")), f("n")).mtime == 12_500_000_000
    assert one(x(("mtime", "12.0000000019")), f("n")).mtime == 12_000_000_001
    assert one(x(("mtime", "-0.25")), f("n")).mtime == -250_000_000
    assert one(x(("mtime", "-1.0000000001")), f("n")).mtime == -1_000_000_001
    assert one(x(("mtime", "")), f("n", mtime=7)).mtime == 7_000_000_000
    assert one(x(("uid", "70000"), ("gid", "70001")), f("n")).gid == 70_001
    assert one(c("n", 5, 1)).device == (5, 1)
    assert one(f("n", mode=b"0107755")).mode == 0o7755
    assert one(f("n", b"x", size=base256(1, 12))).size == 1


def test_names() -> None:
    assert one(f("name", prefix=b"a/b")).name == b"a/b/name"
    assert one(f("name", magic=b"ustar  \0", prefix=b"12345")).name == b"name"  # GNU keeps times there
    assert one(f("name", magic=b"", prefix=b"junk")).name == b"name"
    star = b"a/b".ljust(131, b"\0") + bytes(32) + b"tar\0"
    assert one(f("name", tail=star)).name == b"a/b/name"
    assert one(gnu(b"L", b"l" * 300), f("x")).name == b"l" * 300
    assert one(gnu(b"K", b"l" * 300), gnu(b"L", b"n" * 200), s("x", "y")).link == b"l" * 300
    assert one(x(("path", "ü")), f("x")).name == "ü".encode()
    assert one(x(("linkpath", "t" * 200)), s("x", "y")).link == b"t" * 200
    assert one(x(("linkpath", "ignored")), f("x")).link == b""
    assert one(f("n" * 100)).name == b"n" * 100


def test_attributes_keep_their_bytes() -> None:
    value = bytes(range(256))
    entry = one(x((b"SCHILY.xattr.user.a", value)), f("x"))
    assert entry.xattrs == {b"user.a": value}
    assert one(f("x")).xattrs is None


def test_the_checksum_may_be_signed() -> None:
    block = f("n\xff\xfe".encode("latin-1"))
    blanked = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blanked)
    assert one(block[:148] + b"%06o\0 " % signed + block[156:]).name == b"n\xff\xfe"
    with pytest.raises(FormatError, match="checksum"):
        one(block[:148] + b"%06o\0 " % (signed + 1) + block[156:])


@pytest.mark.parametrize("fill", [b"\xff", b"\x7f", b"\x00"])
def test_the_checksum_is_exact(fill: bytes) -> None:
    """The sum is taken by a faster function; it must be the same sum, also where it is large."""
    block = header(fill * 100, b"2", link=fill * 100, tail=fill * 155)
    read(block + END)
    for change in (1, 65521, -65521, 65536):
        total = sum(block[:148] + b" " * 8 + block[156:]) + change
        if total >= 0:
            with pytest.raises(FormatError, match="checksum"):
                read(block[:148] + b"%07o\0" % total + block[156:] + END)


def test_chunks_are_the_content_whatever_the_reads() -> None:
    class Trickle(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            return super().read(random.Random(self.tell()).randint(1, 700))

    data = tar(
        *(f(f"n{size}", bytes([size % 251]) * size) for size in (0, 1, 511, 512, 513, 5000)), d("d"), h("h", "n1")
    )
    reader = Reader(Trickle(data))
    found = {entry.name: b"".join(reader.chunks()) for entry in reader}
    assert {name: len(content) for name, content in found.items() if name[:1] == b"n"} == {
        b"n%d" % size: size for size in (0, 1, 511, 512, 513, 5000)
    }
    assert found[b"n5000"] == bytes([5000 % 251]) * 5000
    assert [entry.name for entry in read(data)][-2:] == [b"d", b"h"]


def test_a_sparse_map_must_make_sense() -> None:
    def sparse(text: bytes, real: int = 2048, stored: bytes = b"x" * 512) -> bytes:
        body = text.ljust(-(-len(text) // 512) * 512, b"\0") + stored
        keys = (("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "real"))
        return tar(x(*keys, ("GNU.sparse.realsize", str(real))), f("GNUSparseFile.1/real", body))

    entry = read(sparse(b"1\n512\n512\n"))[0]
    assert (entry.name, entry.size, entry.extents) == (b"real", 2048, [(512, 512)])
    for text in (
        b"2\n512\n512\n0\n1\n",  # not in order
        b"1\n1800\n512\n",  # past the end
        b"1\n512\n511\n",  # not what is stored
        b"1\n512\n",  # too short
        b"x\n",
        b"999999999\n",
        b"1\n-512\n512\n",
        b"9" * 600,
    ):
        with pytest.raises(FormatError):
            read(sparse(text))
    old = header(b"n", b"S", size=512, magic=b"ustar  \0", tail=bytes(41) + b"%011o\0%011o\0" % (1 << 20, 512))
    with pytest.raises(FormatError, match="past the file's end"):
        read(tar(old, b"x" * 512))


def test_limits() -> None:
    data = tar(*(f(str(number)) for number in range(20)))
    with pytest.raises(FormatError, match="more than 10 entries"):
        list(entries(io.BytesIO(data), limits=Limits(entries=10)))
    with pytest.raises(FormatError, match="more than"):
        list(entries(io.BytesIO(bytes(8 << 20)), limits=Limits(total=1 << 20)))
    with pytest.raises(FormatError, match="at most 10"):
        list(entries(io.BytesIO(tar(f("n", bytes(11)))), limits=Limits(file=10)))


def test_a_bomb_costs_neither_time_nor_memory() -> None:
    class Zeros:
        """A PAX header that says it has 8 GiB, and has."""

        def __init__(self) -> None:
            self.first = header(b"x", b"x", size=(8 << 30) - 1)
            self.given = 0

        def read(self, size: int) -> bytes:
            self.given += size
            first, self.first = self.first, b""
            return first or bytes(size)

        def close(self) -> None:
            pass

    source = Zeros()
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(FormatError, match="at most 1048576"):
        list(entries(source))
    assert time.monotonic() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert source.given < 4 << 20


def test_many_entries_are_quick() -> None:
    data = tar(*(f(f"d/{number}") for number in range(20_000)))
    start = time.process_time()
    assert len(read(data)) == 20_000
    assert time.process_time() - start < 3


SEEDS = [
    tar(d("./"), f("a/b", b"hello"), s("l", "a"), h("h", "a/b"), c("c", 1, 3), header(b"p", b"6")),
    tar(x(("path", "long" * 60), ("mtime", "1.5"), ("SCHILY.xattr.user.a", "v"), ("size", "5")), f("x", b"hello")),
    tar(gnu(b"L", b"l" * 300), gnu(b"K", b"k" * 200), s("x", "y"), f("big", bytes(3000))),
    tar(
        x(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "r"), ("GNU.sparse.realsize", "9")),
        f("q", b"1\n0\n9\n".ljust(512, b"\0") + b"123456789"),
    ),
    tar(
        x(("GNU.sparse.size", "2048"), ("GNU.sparse.map", "0,512,1024,512"), ("GNU.sparse.numblocks", "2")),
        f("q", bytes(1024)),
    ),
    tar(
        header(
            b"n",
            b"S",
            size=512,
            magic=b"ustar  \0",
            tail=bytes(41) + b"%011o\0%011o\0" % (0, 512) + bytes(72) + b"\0" + b"%011o\0" % 4096,
        ),
        bytes(512),
    ),
    tar(x(("comment", "c"), kind=b"g"), f("n", b"x")),
]


def resummed(data: bytes) -> bytes:
    """Make the checksum of the first header right again, so that a change gets past it."""
    block = data[:512]
    if len(block) < 512:
        return data
    total = sum(block[:148] + b" " * 8 + block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:] + data[512:]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=0, max_size=12)), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 6000),
)
def test_rubbish_is_only_ever_a_format_error(
    seed: bytes, changes: list[tuple[int, bytes]], again: bool, cut: int
) -> None:
    data = seed
    for at, new in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + len(new) :]
    if again:
        data = resummed(data)
    if cut < len(data) and cut % 3 == 0:
        data = data[:cut]
    said = ""
    try:
        total = 0
        reader = Reader(io.BytesIO(data), limits=Limits(file=1 << 30))
        for entry in reader:
            assert isinstance(entry.name, bytes)
            total += sum(map(len, reader.chunks()))
        reader.drain()
        assert total <= len(data)
    except FormatError as error:
        said = str(error)
    assert said.isprintable()


@given(st.binary(max_size=3000))
def test_records_are_strict(data: bytes) -> None:
    def fail(why: str) -> FormatError:
        return FormatError("archive", "header", why)

    try:
        records = paxheader.parse(data, fail)
    except FormatError:
        return
    if not any(key.startswith(b"GNU.sparse.") for key in records):
        assert b"".join(record(key, value) for key, value in records.items()) == data


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=9).filter(lambda key: not set(key) & {61, 0}),
        st.binary(max_size=120),
        max_size=6,
    )
)
def test_records_round_trip(records: dict[bytes, bytes]) -> None:
    data = b"".join(record(key, value) for key, value in records.items())

    def fail(why: str) -> FormatError:
        raise AssertionError(why)

    assert paxheader.parse(data, fail) == records


def test_padding_is_not_content() -> None:
    assert contents(tar(f("a", b"1"), f("b", padded(b"2")[:600]))) == {b"a": b"1", b"b": padded(b"2")[:600]}


def test_the_tree_of_gnu_tar() -> None:
    """What GNU tar packs comes out as it went in."""
    with scratch() as top:
        os.mkdir(f"{top}/in")
        os.mkdir(f"{top}/out")
        furnish(f"{top}/in")
        data = gnu_tar(f"{top}/in", "--format=pax")
        with directory(f"{top}/out") as fd:
            apply_layer(io.BytesIO(data), fd, fresh=True, ids=None if os.geteuid() == 0 else own())
        assert tree(f"{top}/out") == tree(f"{top}/in")


@pytest.mark.parametrize("cut", [0, 1, 300])
def test_the_last_entry_may_lack_its_padding(cut: int) -> None:
    # umoci insert 0.4.7 writes layers so; Go's reader, and so every other tool, takes them.
    data = f("a", b"1" * 200) + f("b", b"2" * 211)
    found = list(entries(io.BytesIO(data[: len(data) - 301 + cut])))
    assert [entry.name for entry in found] == [b"a", b"b"]
    with pytest.raises(FormatError, match="middle of an entry"):
        list(entries(io.BytesIO(data[: len(data) - 302])))
