"""Unpacking as an ordinary user: with subordinate ids through newuidmap, and with one id only; for real.

Root's test run becomes the user in a child process (ordinary_user.py). Run as an ordinary user, the tests of this
room do the same with that user's own ids.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tarbuilder import c, d, f, h, header, tar, x
from trees import ROOT, directory, needs_root, scratch

import knarr
from knarr.base import fastjson
from knarr.base.errors import FormatError, Unsupported
from knarr.kernel.userns import IdMap, default_map, subordinate_ids
from knarr.layer.apply import apply_layer
from knarr.layer.frames import rebuilt, told

if TYPE_CHECKING:
    from collections.abc import Sequence

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
SOURCE = Path(knarr.__file__).parents[1]
FIRST = tar(
    d("./"),
    d("etc"),
    f("etc/passwd", b"root:x:0:0\n"),
    d("private", 0o700, uid=7),
    f("private/x", b"1", uid=8, gid=9, mode=0o4755),
    d("gone"),
    f("gone/y", b"1"),
    c("null", 1, 3),
    header(b"fifo", b"6", mode=0o620),
    f("user", b"1", uid=1000),
    d("opaque"),
    f("opaque/hidden"),
)
SECOND = tar(
    f(".wh.gone"),
    h("etc/pw", "etc/passwd"),
    x(("SCHILY.xattr.security.capability", CAPABILITY)),
    f("cap", b"1"),
    f("private/z", b"2", uid=8),
    d("closed", 0, uid=3),
    f("closed/in", b"1", uid=3),
    f("opaque/.wh..wh..opq"),
    f("opaque/new"),
)


def as_user(first: int, layers: Sequence[bytes]) -> dict[str, Any]:
    """Unpack as the user ``nobody`` whose subordinate ids start at ``first``; what the script reports."""
    for needed in ("/etc/subuid", "/etc/subgid"):
        if not os.path.exists(needed):
            pytest.skip(f"{needed} is missing (package uidmap)")
    if first and not shutil.which("newuidmap"):
        pytest.skip("newuidmap is not installed (package uidmap)")
    with scratch() as top:
        os.chmod(top, 0o755)
        paths = []
        for number, layer in enumerate(layers):
            paths.append(f"{top}/{number}.tar")
            Path(paths[-1]).write_bytes(layer)
        # A copy that the user can read: the checkout may lie below /root.
        shutil.copytree(SOURCE / "knarr", f"{top}/src/knarr", ignore=shutil.ignore_patterns("__pycache__", "*.c"))
        work = f"{top}/work"
        os.mkdir(work, 0o755)
        script = str(Path(__file__).with_name("ordinary_user.py"))
        done = subprocess.run(
            [python_for_all(), script, f"{top}/src", work, str(first), *paths],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        report: dict[str, Any] = fastjson.loads(done.stdout, "report")
        return report


def python_for_all() -> str:
    """A Python that an ordinary user can start: not one below /root."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path):
            probe = [path, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            try:
                if subprocess.run(probe, check=False, user=65534, group=65534, extra_groups=[]).returncode == 0:
                    return path
            except OSError:
                continue
    pytest.skip("no Python that an ordinary user can start")


@needs_root
def test_with_subordinate_ids() -> None:
    report = as_user(300_000, [FIRST, SECOND])
    assert "error" not in report
    plain = report["plain"]
    assert plain["private"] == [stat.S_IFDIR | 0o700, 300_006, 65534, 2]
    assert plain["user"][1] == 300_999
    assert plain["fifo"][0] == stat.S_IFIFO | 0o620
    assert plain["etc/passwd"][1:] == [65534, 65534, 2]
    assert plain["closed"][0] == stat.S_IFDIR
    # The kernel wrote down whose namespace the capability counts in: revision 3, with its root.
    stored = bytes.fromhex(report["capability"])
    assert (len(stored), stored[3], int.from_bytes(stored[20:], "little")) == (24, 3, 65534)
    assert "null" not in plain
    assert "gone" not in plain
    assert report["passwd"] == "root:x:0:0\n"
    assert report["warnings"][0] == [] or "device nodes" in report["warnings"][0][0]
    # The upper layer as it lies on disk: a whiteout, and no file that it did not need.
    assert report["owners"]["gone"][0] == stat.S_IFCHR
    assert "opaque/hidden" not in report["owners"]
    assert report["left"] == ["l", "lock", "locks", "map.json", "tmp"]
    seen = report["mounted"]
    assert seen["private/x"] == [stat.S_IFREG | 0o4755, 8, 9, 1]
    assert seen["private/z"][1] == 8
    assert seen["user"][1] == 1000
    assert seen["closed/in"][1] == 3
    assert sorted(path for path in seen if path.startswith("opaque")) == ["opaque", "opaque/new"]
    assert "gone" not in seen
    assert "null" not in seen


@needs_root
def test_with_one_id() -> None:
    report = as_user(0, [FIRST, SECOND])
    assert "error" not in report
    assert {owner for _mode, owner, _group, _links in report["plain"].values()} == {65534}
    assert report["plain"]["private/x"][0] == stat.S_IFREG | 0o4755
    assert {owner for _mode, owner, _group, _links in report["mounted"].values()} == {0}
    assert "gone" not in report["mounted"]


@needs_root
def test_an_unmapped_owner_is_named() -> None:
    report = as_user(300_000, [tar(f("ok"), f("far", uid=70_000))])
    assert report["error"][0] == "Unsupported"
    assert "user id 70000, owner of far" in report["error"][1]
    assert "only 65537 ids are mapped, 4464 too few" in report["error"][1]
    assert "/etc/subuid" in report["error"][1]
    assert report["left"] == []


@needs_root
def test_a_refusal_comes_back_whole() -> None:
    report = as_user(300_000, [FIRST, tar(f("a"), f("../evil"), f("big", bytes(4 << 20)))])
    assert report["error"][0] == "FormatError"
    assert "entry '../evil': its name goes up with '..'" in report["error"][1]
    assert report["left"] == []


@needs_root
def test_a_truncated_layer_comes_back_whole() -> None:
    report = as_user(0, [FIRST[:-2000]])
    assert report["error"][0] == "FormatError"
    assert "ends in the middle" in report["error"][1]
    assert report["left"] == []


@needs_root
def test_root_stores_mapped_ids() -> None:
    """For a namespace to come: owners are shifted, capabilities get their root user, access lists are mapped."""
    ids = IdMap(((0, 100_000, 65536),), ((0, 200_000, 65536),))
    acl = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + b"\x06\0" + number.to_bytes(4, "little")
        for tag, number in ((1, 2**32 - 1), (2, 5), (4, 2**32 - 1), (8, 6), (16, 2**32 - 1), (32, 2**32 - 1))
    )
    layer = tar(
        x(("SCHILY.xattr.security.capability", CAPABILITY)),
        f("cap", uid=1, gid=2),
        x(("SCHILY.xattr.system.posix_acl_access", acl)),
        f("acl", mode=0o660),
        c("null", 1, 3),
        d("dir", uid=3),
    )
    with scratch() as top, directory(top) as fd:
        done = apply_layer(io.BytesIO(layer), fd, ids=ids, fresh=True)
        assert "device nodes" in done.warnings[0]
        facts = os.stat(f"{top}/cap")
        assert (facts.st_uid, facts.st_gid) == (100_001, 200_002)
        assert os.getxattr(f"{top}/cap", "security.capability")[-4:] == (100_000).to_bytes(4, "little")
        stored = os.getxattr(f"{top}/acl", "system.posix_acl_access")
        assert (100_005).to_bytes(4, "little") in stored
        assert (200_006).to_bytes(4, "little") in stored
        assert os.stat(f"{top}/dir").st_uid == 100_003
        assert not os.path.lexists(f"{top}/null")


def test_unmapped_ids_are_refused_or_squashed() -> None:
    own = (os.geteuid(), os.getegid())
    narrow = IdMap(((0, own[0], 1),), ((0, own[1], 1),))
    with scratch() as top, directory(top) as fd:
        with pytest.raises(Unsupported, match="group id 3, owner of n"):
            apply_layer(io.BytesIO(tar(f("n", gid=3))), fd, ids=narrow, fresh=True)
        apply_layer(io.BytesIO(tar(f("n", uid=9, gid=3))), fd, ids=narrow.replace(squash=True))
        assert (os.stat(f"{top}/n").st_uid, os.stat(f"{top}/n").st_gid) == own


def test_the_default_map(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("# a comment\nsomebody:1:2\n1234:100000:10\n1234:200000:5\n1234:x:5\n1234:7\n1234:4294967290:9\n")
    assert subordinate_ids(str(table), "", 1234) == ((100_000, 10), (200_000, 5))
    assert subordinate_ids(str(table), "somebody", 1) == ((1, 2),)
    assert subordinate_ids(str(tmp_path / "none"), "somebody", 1) == ()
    if shutil.which("newuidmap"):
        assert default_map(1234, 5, subuid=str(table), subgid=str(table)) == IdMap(
            ((0, 1234, 1), (1, 100_000, 10), (11, 200_000, 5)), ((0, 5, 1), (1, 100_000, 10), (11, 200_000, 5))
        )
    assert default_map(1, 2, subuid=str(table), subgid=str(table)) == IdMap(((0, 1, 1),), ((0, 2, 1),), squash=True)


def test_errors_travel() -> None:
    error = FormatError("layer", "entry 'x'", "odd")
    again = rebuilt(fastjson.loads(fastjson.dumps(told(error)), "frame"))
    assert isinstance(again, FormatError)
    assert str(again) == str(error)
    hinted = Unsupported("a", "b", hint="c")
    assert str(rebuilt(told(hinted))) == "a is not supported: b (c)"


@pytest.mark.skipif(ROOT, reason="for an ordinary user")
def test_as_the_user_who_runs_the_tests() -> None:
    from knarr.layer.unpack import unpacker

    with scratch() as top:
        os.mkdir(f"{top}/t")
        worker = unpacker()
        try:
            worker.apply(
                io.BytesIO(FIRST), f"{top}/t", mode="merge", userxattr=True, below=None, fresh=True, what="layer"
            )
            assert sorted(os.listdir(f"{top}/t")) == ["etc", "fifo", "gone", "opaque", "private", "user"]
            worker.remove(f"{top}/t")
            assert not os.path.lexists(f"{top}/t")
        finally:
            worker.close()
