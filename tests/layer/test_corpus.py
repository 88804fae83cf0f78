"""Hostile and odd layers, row by row: what is refused, what stays inside the root, what is ordinary.

Each row is applied over ``base`` in both modes. Whatever the verdict, the sentinel directory outside every root
must be untouched: no inode added, removed or changed in content, mode, owner, link count or mtime.
"""

from __future__ import annotations

import io
import os
import stat
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import pytest
from tarbuilder import base256, c, d, f, gnu, h, header, padded, record, s, tar, x
from trees import ROOT, directory, scratch, tree

from knarr.base.errors import FormatError
from knarr.kernel.userns import IdMap
from knarr.layer.apply import Applied, apply_layer
from knarr.layer.view import MergedView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REF, IN, OK = "refused", "inside", "ok"
OWN = None if ROOT else IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),), True)
UP = "../" * 12
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


class Place(NamedTuple):
    """Where a row is applied: ``look`` sees the whole tree."""

    root: str
    base: str
    sentinel: str
    mode: str
    look: MergedView

    def kind(self, path: str) -> str:
        found = self.look.lookup(os.fsencode(path))
        if found is None:
            return ""
        mode = found.facts.st_mode
        return "dir" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "file" if stat.S_ISREG(mode) else "?"

    def mode_of(self, path: str) -> int:
        found = self.look.lookup(os.fsencode(path))
        assert found is not None, path
        return stat.S_IMODE(found.facts.st_mode)

    def read(self, path: str | bytes) -> bytes:
        return self.look.read_file(path, 1 << 20)


class Row(NamedTuple):
    """``make`` gets the sentinel's absolute path and gives the layer; ``check`` looks at an accepted result."""

    number: int
    name: str
    verdict: str
    make: Callable[[str], bytes]
    check: Callable[[Place], bool] | None = None
    why: str = ""


def base_layer(sentinel: str) -> bytes:
    return tar(
        d("./"),
        d("etc"),
        f("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
        d("low"),
        f("low/a", b"a"),
        f("low/b", b"b"),
        s("lowlink", sentinel),
    )


def chain(sent: str, length: int = 45) -> bytes:
    return tar(*(s(f"c{i}", f"c{i + 1}") for i in range(length)), s(f"c{length}", sent), f("c0/pwn", b"x"))


def inner(name: str) -> bytes:
    """A header hidden in another file's data."""
    return f(name, b"")


ROWS = [
    # 2.1 names and links
    Row(1, "abs-name", IN, lambda _: tar(f("/abs.txt", b"1")), lambda p: p.read("abs.txt") == b"1"),
    Row(1, "abs-sent", IN, lambda t: tar(f(f"{t}/pwn", b"1")), lambda p: p.read(f"{p.sentinel}/pwn") == b"1"),
    Row(2, "dotdot-name", REF, lambda t: tar(f(f"{UP}{t}/pwn")), why="'..'"),
    Row(2, "dotdot-middle", REF, lambda _: tar(f("low/../../x")), why="'..'"),
    Row(2, "dotdot-last", REF, lambda _: tar(d("low/..")), why="'..'"),
    Row(4, "prefix-dotdot", REF, lambda _: tar(f("pwn", prefix=b"../../..")), why="'..'"),
    Row(5, "gnu-long-out", REF, lambda t: tar(gnu(b"L", f"{UP}{t}/pwn".encode()), f("x")), why="'..'"),
    Row(6, "pax-path-dup", REF, lambda _: tar(x(("path", "ok"), ("path", "../x")), f("y")), why="twice"),
    Row(7, "sym-abs-write", IN, lambda t: tar(s("l", t), f("l/pwn", b"1")), lambda p: p.read("l/pwn") == b"1"),
    Row(8, "sym-rel-write", IN, lambda t: tar(s("l", UP + t), f("l/pwn", b"1")), lambda p: p.read("l/pwn") == b"1"),
    Row(
        8,
        "sym-deep-write",  # a parent of two components: the link is not the last of them
        IN,
        lambda t: tar(s("l", os.path.dirname(t)), f("l/sentinel/pwn", b"1")),
        lambda p: p.read("l/sentinel/pwn") == b"1",
    ),
    Row(
        8,
        "sym-missing-parents",
        IN,
        lambda t: tar(s("l", t), f("l/a/b/c", b"1")),
        lambda p: p.read("l/a/b/c") == b"1",
    ),
    Row(9, "sym-chain", IN, lambda t: tar(s("a", "."), s("b", f"a/../{UP}{t}"), f("b/pwn", b"1"))),
    Row(10, "sym-long-chain", REF, chain, why="symbolic links"),
    Row(11, "sym-loop", REF, lambda _: tar(s("x", "y"), s("y", "x"), f("x/pwn")), why="symbolic links"),
    Row(13, "sym-dir-chmod", IN, lambda t: tar(s("l", t), d("l", 0o777)), lambda p: p.kind("l") == "dir"),
    Row(13, "sym-dir-over", IN, lambda t: tar(s("l", t), d("l", 0o777), f("l/pwn")), lambda p: p.kind("l") == "dir"),
    Row(13, "lowlink-dir", IN, lambda _: tar(d("lowlink"), f("lowlink/x")), lambda p: p.kind("lowlink") == "dir"),
    Row(14, "flip", IN, lambda t: tar(d("n"), s("n", t), f("n", b"1")), lambda p: p.read("n") == b"1"),
    Row(15, "root-sym", REF, lambda t: tar(s(".", t), f("pwn")), why="root entry"),
    Row(15, "root-sym2", REF, lambda t: tar(s("./", t), f("pwn")), why="root entry"),
    Row(15, "slash-dot-sym", REF, lambda t: tar(s("/.", t), f("pwn")), why="root entry"),
    Row(15, "slash-sym", REF, lambda t: tar(s("/", t), f("pwn")), why="root entry"),
    Row(15, "empty-name-sym", REF, lambda t: tar(s("", t), f("pwn")), why="empty"),
    Row(15, "dotdot-sym", REF, lambda t: tar(s("..", t), f("pwn")), why="'..'"),
    Row(16, "etc-to-sym", IN, lambda t: tar(s("etc", t), f("etc/pwn", b"1")), lambda p: p.read("etc/pwn") == b"1"),
    Row(17, "sym-then-file", IN, lambda t: tar(s("t", f"{t}/f"), f("t", b"PWN")), lambda p: p.read("t") == b"PWN"),
    Row(18, "hl-abs-out", REF, lambda t: tar(h("h", f"{t}/f"), f("h", b"PWN")), why="does not exist"),
    Row(18, "hl-rel-out", REF, lambda t: tar(h("h", f"{UP}{t}/f"), f("h", b"PWN")), why="'..'"),
    Row(18, "hl-via-sym", REF, lambda t: tar(s("l", t), h("h", "l/f")), why="does not exist"),
    Row(18, "hl-cwd", REF, lambda _: tar(h("h", "f"), f("h", b"PWN")), why="does not exist"),
    Row(18, "pax-link-out", REF, lambda t: tar(x(("linkpath", f"{t}/f")), h("h", "x")), why="does not exist"),
    Row(18, "gnu-longlink-out", REF, lambda t: tar(gnu(b"K", f"{t}/f".encode()), h("h", "x")), why="does not exist"),
    Row(18, "hl-to-dir", REF, lambda _: tar(h("h", "low")), why="directory"),
    Row(18, "hl-to-whiteout", REF, lambda _: tar(h("h", "low/.wh.a")), why="links to"),
    Row(
        19,
        "hl-to-symlink",
        IN,
        lambda t: tar(s("l", f"{t}/f"), h("h", "l", mode=0o777), f("other")),
        lambda p: p.kind("h") == "link",
    ),
    Row(19, "hl-to-symlink-file", IN, lambda t: tar(s("l", f"{t}/f"), h("h", "l"), f("h", b"x"))),
    Row(21, "hl-lower", OK, lambda _: tar(h("h", "low/a")), lambda p: p.read("h") == p.read("low/a") == b"a"),
    Row(22, "file-to-dir", REF, lambda _: tar(f("n"), f("n/x")), why="not a directory"),
    Row(22, "dir-to-file", IN, lambda _: tar(d("n"), f("n/y"), f("n", b"1")), lambda p: p.read("n") == b"1"),
    Row(
        22, "lower-file-to-dir", OK, lambda _: tar(d("low/a"), f("low/a/x", b"1")), lambda p: p.read("low/a/x") == b"1"
    ),
    Row(22, "lower-dir-to-file", OK, lambda _: tar(f("low", b"1")), lambda p: p.read("low") == b"1"),
    Row(23, "dup-entries", IN, lambda _: tar(f("n", b"1"), f("n", b"2")), lambda p: p.read("n") == b"2"),
    Row(23, "case-dup", OK, lambda _: tar(f("A", b"1"), f("a", b"2")), lambda p: p.read("A") == b"1"),
    Row(24, "name-256", REF, lambda _: tar(x(("path", "n" * 256)), f("x")), why="256 bytes"),
    Row(24, "parent-256", REF, lambda _: tar(x(("path", "ok/" + "n" * 256 + "/f")), f("x")), why="256 bytes"),
    Row(24, "path-5000", REF, lambda _: tar(x(("path", "d/" * 2500 + "f")), f("x")), why="bytes"),
    Row(24, "depth-4000", REF, lambda _: tar(x(("path", "d/" * 4000 + "f")), f("x")), why="bytes"),
    Row(24, "depth-2000", REF, lambda _: tar(x(("path", "d/" * 2000 + "f")), f("x", b"1")), why="deep"),
    Row(24, "depth-900", OK, lambda _: tar(x(("path", "d/" * 900 + "f")), f("x", b"1"))),
    Row(25, "nonutf8-name", OK, lambda _: tar(f(b"n\xff\xfe", b"1")), lambda p: p.read(b"n\xff\xfe") == b"1"),
    Row(25, "pax-nonutf8", OK, lambda _: tar(x((b"path", b"n\xff")), f("x", b"1")), lambda p: p.read(b"n\xff") == b"1"),
    Row(26, "newline-name", OK, lambda _: tar(f("a\nb", b"1")), lambda p: p.read("a\nb") == b"1"),
    Row(26, "ctrl-name", OK, lambda _: tar(f("a\x1b[31m", b"1")), lambda p: p.read("a\x1b[31m") == b"1"),
    Row(26, "bidi", OK, lambda _: tar(f("a\u202eb", b"1")), lambda p: p.read("a\u202eb") == b"1"),
    Row(26, "backslash", OK, lambda _: tar(f("a\\b", b"1")), lambda p: p.read("a\\b") == b"1"),
    Row(26, "trailing-slash-file", OK, lambda _: tar(f("n/", b"1")), lambda p: p.read("n") == b"1"),
    Row(26, "dot-components", OK, lambda _: tar(f("./low/./y//z", b"1")), lambda p: p.read("low/y/z") == b"1"),
    Row(28, "pax-path-nul", REF, lambda _: tar(x(("path", "a\0b")), f("x")), why="NUL"),
    Row(28, "pax-path-empty", REF, lambda _: tar(x(("path", "")), f("x")), why="empty"),
    # 2.2 whiteouts
    Row(29, "wh-dotdot", REF, lambda _: tar(f(".wh...")), why="whiteout"),
    Row(29, "wh-dotdot-low", REF, lambda _: tar(f("low/.wh...")), why="whiteout"),
    Row(30, "wh-dot", REF, lambda _: tar(f(".wh..")), why="whiteout"),
    Row(31, "wh-empty", REF, lambda _: tar(f("low/.wh.")), why="whiteout"),
    Row(32, "wh-lowlink-in", IN, lambda _: tar(f("lowlink/.wh.f")), lambda p: p.kind("low/a") == "file"),
    Row(32, "wh-sym", IN, lambda t: tar(s("l", t), f("l/.wh.f"))),
    Row(33, "opq-sym", IN, lambda _: tar(f("lowlink/.wh..wh..opq")), lambda p: p.kind("lowlink") == "link"),
    Row(34, "wh-root-sym", IN, lambda _: tar(f(".wh.lowlink")), lambda p: p.kind("lowlink") == ""),
    Row(
        35,
        "opq-root",
        OK,
        lambda _: tar(f(".wh..wh..opq"), f("new", b"1")),
        lambda p: p.read("new") == b"1" and not p.kind("low") and not p.kind("etc"),
    ),
    Row(
        35,
        "opq-late",
        OK,
        lambda _: tar(d("low"), f("low/c", b"1"), f("low/.wh..wh..opq")),
        lambda p: p.read("low/c") == b"1" and not p.kind("low/a"),
    ),
    Row(35, "wh-late", OK, lambda _: tar(f("low/a", b"new"), f("low/.wh.a")), lambda p: p.read("low/a") == b"new"),
    Row(37, "wh-missing", OK, lambda _: tar(f("none/such/.wh.x")), lambda p: p.kind("none") == ""),
    Row(38, "wh-slash", REF, lambda _: tar(f(".wh.a/b")), why="whiteout"),
    Row(39, "wh-as-dir", OK, lambda _: tar(d("low/.wh.a")), lambda p: not p.kind("low/a") and not p.kind("low/.wh.a")),
    Row(39, "wh-as-sym", OK, lambda t: tar(s("low/.wh.a", t)), lambda p: not p.kind("low/a")),
    Row(40, "wh-wh", OK, lambda _: tar(f(".wh..wh.x", b"1")), lambda p: not p.kind(".wh..wh.x")),
    Row(40, "aufs-plnk", OK, lambda _: tar(d(".wh..wh.plnk"), f(".wh..wh.plnk/1.2", b"1"))),
    Row(40, "aufs-hardlink", REF, lambda _: tar(f(".wh..wh.plnk/1", b"1"), h("h", ".wh..wh.plnk/1")), why="links to"),
    Row(41, "wh-charin", REF, lambda _: tar(c("low/a", 0, 0)), why="0:0"),
    # 2.3 types, modes, attributes
    Row(45, "dev-huge", REF, lambda _: tar(c("n", 1 << 20, 1)), why="out of range"),
    Row(45, "dev-huge-minor", REF, lambda _: tar(c("n", 1, 1 << 20)), why="out of range"),
    Row(46, "setuid", OK, lambda _: tar(f("n", b"1", mode=0o4755)), lambda p: p.mode_of("n") == 0o4755),
    Row(46, "sticky-dir", OK, lambda _: tar(d("n", 0o1777)), lambda p: p.mode_of("n") == 0o1777),
    Row(47, "sock-type", REF, lambda _: tar(header(b"n", b"s")), why="type"),
    Row(47, "type-unknown", REF, lambda _: tar(header(b"n", b"Z")), why="type"),
    Row(48, "type-contig", OK, lambda _: tar(header(b"n", b"7", size=1) + padded(b"1")), lambda p: p.read("n") == b"1"),
    Row(
        48, "type-oldreg", OK, lambda _: tar(header(b"n", b"\0", size=1) + padded(b"1")), lambda p: p.read("n") == b"1"
    ),
    Row(48, "type-olddir", OK, lambda _: tar(header(b"n/", b"\0", magic=b"")), lambda p: p.kind("n") == "dir"),
    Row(49, "dir-with-size", OK, lambda _: tar(d("n", size=512), f("m", b"1")), lambda p: p.read("m") == b"1"),
    Row(49, "sym-with-size", OK, lambda _: tar(s("n", "x", size=512), f("m", b"1")), lambda p: p.read("m") == b"1"),
    Row(49, "hl-with-size", OK, lambda _: tar(h("n", "low/a", size=512), f("m", b"1")), lambda p: p.read("m") == b"1"),
    Row(51, "xattr-selinux", OK, lambda _: tar(x(("SCHILY.xattr.security.selinux", "a:b")), f("n"))),
    Row(53, "xattr-nul", REF, lambda _: tar(x((b"SCHILY.xattr.user.a\0b", "v")), f("n")), why="NUL"),
    Row(53, "xattr-64k", REF, lambda _: tar(x(("SCHILY.xattr.user.a", "v" * 70000)), f("n")), why="70000"),
    Row(53, "xattr-10k", REF, lambda _: tar(x(*((f"SCHILY.xattr.user.{i}", "v") for i in range(10000))), f("n"))),
    Row(54, "pax-uid-neg", REF, lambda _: tar(x(("uid", "-1")), f("n")), why="user id"),
    Row(54, "pax-uid-2^32", REF, lambda _: tar(x(("uid", str(1 << 32))), f("n")), why="owner"),
    Row(54, "pax-gid-2^31", REF, lambda _: tar(x(("gid", str(1 << 31))), f("n")), why="owner"),
    Row(54, "uid-base256-neg", REF, lambda _: tar(f("n", uid=base256(-1, 8))), why="owner"),
    Row(56, "pax-mtime-huge", REF, lambda _: tar(x(("mtime", "-100000000000000")), f("n")), why="time"),
    Row(56, "pax-mtime-1e400", REF, lambda _: tar(x(("mtime", "1e400")), f("n")), why="time"),
    Row(56, "pax-mtime-2^63", REF, lambda _: tar(x(("mtime", str(1 << 63))), f("n")), why="time"),
    Row(56, "pax-mtime-negative", OK, lambda _: tar(x(("mtime", "-1.25")), f("n"))),
    Row(57, "fflags", OK, lambda _: tar(x(("SCHILY.fflags", "immutable")), f("n"))),
    # 2.4 the format
    Row(
        58,
        "pax-size-0-smuggle",
        OK,
        lambda _: tar(x(("size", "1536")), f("sm", inner("evil").ljust(1536, b"\0"), size=0), f("after")),
        lambda p: len(p.read("sm")) == 1536 and not p.kind("evil") and p.kind("after") == "file",
    ),
    Row(
        59,
        "pax-size-nonzero-smuggle",
        OK,
        lambda _: tar(x(("size", "0")), header(b"sm2", b"0", size=512), inner("smug2"), f("after2")),
        lambda p: p.read("sm2") == b"" and p.kind("smug2") == p.kind("after2") == "file",
    ),
    Row(60, "pax-size-neg", REF, lambda _: tar(x(("size", "-1")), f("n")), why="size"),
    Row(60, "pax-size-huge", REF, lambda _: tar(x(("size", "1" + "0" * 30)), f("n")), why="size"),
    Row(61, "pax-badlen", REF, lambda _: tar(x(data=b"99 path=a\n"), f("n")), why="PAX record"),
    Row(61, "pax-shortlen", REF, lambda _: tar(x(data=b"5 path=a\n"), f("n")), why="PAX record"),
    Row(61, "pax-nolen", REF, lambda _: tar(x(data=b"path=a\n"), f("n")), why="PAX record"),
    Row(61, "pax-no-newline", REF, lambda _: tar(x(data=b"9 path=ab"), f("n")), why="PAX record"),
    Row(61, "pax-trailing-nuls", REF, lambda _: tar(x(data=record("path", "a") + bytes(20)), f("n")), why="PAX record"),
    Row(63, "gnu-long-then-pax", REF, lambda _: tar(gnu(b"L", b"a"), x(("path", "b")), f("n")), why="twice"),
    Row(63, "pax-then-gnu-long", REF, lambda _: tar(x(("path", "b")), gnu(b"L", b"a"), f("n")), why="twice"),
    Row(63, "link-twice", REF, lambda _: tar(gnu(b"K", b"a"), x(("linkpath", "b")), s("n", "c")), why="twice"),
    Row(64, "pax-orphan", REF, lambda _: tar(f("n"), x(("path", "b"))), why="followed by no entry"),
    Row(64, "gnu-orphan", REF, lambda _: tar(f("n"), gnu(b"L", b"b")), why="followed by no entry"),
    Row(64, "pax-pax", REF, lambda _: tar(x(("path", "a")), x(("path", "b")), f("n")), why="follow each other"),
    Row(65, "pax-global-path", REF, lambda _: tar(x(("path", "b"), kind=b"g"), f("n")), why="global"),
    Row(65, "pax-global-comment", OK, lambda _: tar(x(("comment", "b"), kind=b"g"), f("n", b"1"))),
    Row(66, "pax-bomb", REF, lambda _: tar(x(data=bytes(64 << 20)), f("n")), why="at most"),
    Row(67, "gnu-long-1g", REF, lambda _: header(b"x", b"L", size=1 << 30) + bytes(2048), why="at most"),
    Row(
        69,
        "pax-sparse-bomb",
        REF,
        lambda _: tar(
            x(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(1 << 40))),
            f("n", b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)),
        ),
        why="at most",
    ),
    Row(71, "size-neg-base256", REF, lambda _: tar(f("n", size=base256(-1, 12))), why="size"),
    Row(71, "size-base256-huge", REF, lambda _: tar(f("n", size=base256(1 << 63, 12))), why="size"),
    Row(71, "size-junk", REF, lambda _: tar(f("n", size=b"0o17")), why="octal"),
    Row(71, "size-junk-digits", REF, lambda _: tar(f("n", size=b"1_0")), why="octal"),
    Row(71, "size-8", REF, lambda _: tar(f("n", size=b"00000000008")), why="octal"),
    Row(73, "chksum-bad", REF, lambda _: tar(f("n", checksum=b"000000\0 ")), why="checksum"),
    Row(73, "trunc-body", REF, lambda _: f("n", bytes(2048))[:1000], why="ends in the middle"),
    # All of the content is there; umoci insert 0.4.7 ends its layers so, and Go's reader takes them.
    Row(73, "trunc-padding", OK, lambda _: f("n", b"x")[:600], lambda p: p.read("n") == b"x"),
    Row(73, "trunc-hdr", REF, lambda _: f("n")[:300], why="ends in the middle"),
    Row(73, "trunc-hdr-zeros", REF, lambda _: f("n") + bytes(100), why="ends in the middle"),
    Row(74, "no-eof", OK, lambda _: f("n", b"1"), lambda p: p.read("n") == b"1"),
    Row(74, "empty", OK, lambda _: b"", lambda p: p.kind("low/a") == "file"),
    Row(74, "all-zero", OK, lambda _: bytes(10240), lambda p: p.kind("low/a") == "file"),
    Row(75, "one-zero-block", REF, lambda _: f("n") + bytes(512) + f("m") + bytes(1024), why="block of zeros"),
    Row(76, "trailing-junk", OK, lambda _: tar(f("n", b"1")) + b"junk" * 1000, lambda p: p.read("n") == b"1"),
    Row(77, "not-tar-zip", REF, lambda _: b"PK\x03\x04" + bytes(1020), why="checksum"),
    Row(77, "not-tar-elf", REF, lambda _: b"\x7fELF" + bytes(2000), why="checksum"),
]
if ROOT:
    ROWS += [
        Row(50, "xattr-cap", OK, lambda _: tar(x(("SCHILY.xattr.security.capability", CAPABILITY)), f("n", b"1"))),
        Row(43, "dev-blk", OK, lambda _: tar(c("n", 8, 0, b"4")), lambda p: p.kind("n") == "?"),
        Row(43, "dev-chr", OK, lambda _: tar(c("n", 1, 1)), lambda p: p.kind("n") == "?"),
    ]


@pytest.fixture
def sentinel() -> Iterator[str]:
    with scratch() as path:
        place = f"{path}/sentinel"
        os.mkdir(place)
        for name in ("f", "ptmx"):
            with open(f"{place}/{name}", "wb") as stream:
                stream.write(b"keep")
            os.chmod(f"{place}/{name}", 0o600)
            os.utime(f"{place}/{name}", (1e9, 1e9))
        os.utime(place, (1e9, 1e9))
        before = (tree(path), [os.lstat(f"{place}/{name}").st_ino for name in sorted(os.listdir(place))])
        yield place
        assert (tree(path), [os.lstat(f"{place}/{name}").st_ino for name in sorted(os.listdir(place))]) == before


def put(
    layer: bytes, path: str, mode: Literal["merge", "overlay"], below: str | None = None, ids: IdMap | None = OWN
) -> Applied:
    """Apply a layer to a directory; with ``below`` upon another one."""
    with directory(path) as fd:
        if below is None:
            return apply_layer(
                io.BytesIO(layer),
                fd,
                mode=mode,
                fresh=mode == "overlay" or not os.listdir(fd),
                ids=ids,
                userxattr=not ROOT,
            )
        with directory(below) as lower:
            view = MergedView([lower])
            try:
                return apply_layer(io.BytesIO(layer), fd, mode=mode, below=lambda: view, ids=ids, userxattr=not ROOT)
            finally:
                view.close()


@pytest.mark.parametrize("mode", ["merge", "overlay"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.name}")
def test_row(row: Row, mode: Literal["merge", "overlay"], sentinel: str) -> None:
    with scratch() as top:
        base, root = f"{top}/base", f"{top}/layer"
        os.mkdir(base)
        put(base_layer(sentinel), base, mode)
        if mode == "merge":
            root = base
        else:
            os.mkdir(root)
        before = sorted(os.listdir(top))
        layer = row.make(sentinel)
        start = time.monotonic()
        if row.verdict == REF:
            with pytest.raises(FormatError) as caught:
                put(layer, root, mode, base if mode == "overlay" else None)
            text = str(caught.value)
            assert "\n" not in text
            assert text.isprintable()
            assert row.why in text, text
        else:
            put(layer, root, mode, base if mode == "overlay" else None)
            roots = [root] if mode == "merge" else [root, base]
            with MergedView.of_paths(roots) as look:
                place = Place(root, base, sentinel, mode, look)
                assert row.check is None or row.check(place)
        assert time.monotonic() - start < 10
        assert sorted(os.listdir(top)) == before
        assert not any(name.startswith(".wh.") for path in tree(root) for name in path.split("/"))
