"""Bind mounts shown with other ids, and time offsets beside a new user namespace. runc 1.1.5 has neither."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]
FIRST = 100000
MAPS = [{"containerID": 0, "hostID": FIRST, "size": 65536}]
LOOK = "stat -c %u:%g /v/roots /v/theirs; touch /v/new; stat -c %u /v/new"


@pytest.fixture
def source(bundle: Bundle, tmp_path: Path) -> Path:
    """A directory of 1000's with a file of root's and one of 1001's; the bundle can be entered by everybody."""
    made = tmp_path / "source"
    (made / "below").mkdir(parents=True)
    for name, uid in (("roots", 0), ("theirs", 1001), ("", 1000)):
        (made / name).touch()
        os.chown(made / name, uid, uid)
    made.chmod(0o777)
    (bundle.rootfs / "v").mkdir()
    for folder in (bundle.path, *bundle.path.parents):
        if not folder.stat().st_mode & 1 and str(folder).startswith(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o711)
    return made


@pytest.fixture
def submount(source: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "knarr-test", source / "below"], check=True)
    yield source / "below"
    subprocess.run(["umount", source / "below"], check=True)


def in_user_namespace(bundle: Bundle) -> None:
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    bundle.config["linux"]["uidMappings"] = bundle.config["linux"]["gidMappings"] = MAPS


def volume(bundle: Bundle, path: Path, *options: str, **more: Any) -> None:
    entry = {"destination": "/v", "type": "bind", "source": str(path), "options": [*options], **more}
    bundle.config["mounts"].append(entry)


def seen(runtime: Runtime, bundle: Bundle, script: str) -> list[str]:
    id = runtime.new_id()
    done = runtime("run", "--bundle", bundle.write("sh", "-c", script), id)
    assert done.returncode == 0, done.stderr
    assert left_behind(runtime, id) == []
    return done.stdout.split()


def test_with_the_containers_ids(runtime: Runtime, bundle: Bundle, source: Path) -> None:
    if runtime.name == "runc":
        pytest.skip("runc has idmap since 1.2")
    in_user_namespace(bundle)
    volume(bundle, source, "bind", "idmap")
    assert seen(runtime, bundle, LOOK) == ["0:0", "1001:1001", "0"]
    assert (source / "new").stat().st_uid == 0, "root inside writes root's files"


def test_without_it_they_are_nobodys(runtime: Runtime, bundle: Bundle, source: Path) -> None:
    in_user_namespace(bundle)
    volume(bundle, source, "bind")
    assert seen(runtime, bundle, LOOK) == ["65534:65534", "65534:65534", "0"]
    assert (source / "new").stat().st_uid == FIRST


def test_with_a_map_of_its_own(ours: Runtime, bundle: Bundle, source: Path) -> None:
    """As runc 1.2; crun 1.8.1 does not know a mount's mappings."""
    maps = [{"containerID": 0, "hostID": 5, "size": 10}, {"containerID": 1000, "hostID": 7000, "size": 10}]
    for options in (["bind", "idmap"], ["bind"]):
        (source / "new").unlink(missing_ok=True)
        bundle.config["mounts"] = [entry for entry in bundle.config["mounts"] if entry["destination"] != "/v"]
        volume(bundle, source, *options, uidMappings=maps, gidMappings=maps)
        bundle.config["process"]["user"] = {"uid": 7001, "gid": 7001}
        assert seen(ours, bundle, LOOK) == ["5:5", "7001:7001", "7001"]
        assert (source / "new").stat().st_uid == 1001


def test_in_a_map_that_crun_has_its_own_words_for(runtime: Runtime, bundle: Bundle, source: Path) -> None:
    if runtime.name == "runc":
        pytest.skip("an extension of crun's")
    volume(bundle, source, "bind", "idmap=uids=0-5-10#1000-7000-10;gids=0-6-2000")
    assert seen(runtime, bundle, "stat -c %u:%g /v/roots /v/theirs") == ["5:6", "7001:1007"]


def test_in_a_map_relative_to_the_containers(ours: Runtime, bundle: Bundle, source: Path) -> None:
    in_user_namespace(bundle)
    volume(bundle, source, "bind", "idmap=uids=@0-7-2#@1000-20-10;gids=@0-0-2000")
    assert seen(ours, bundle, "stat -c %u:%g /v/roots /v/theirs") == ["7:0", "21:1001"]


def test_with_the_ids_of_a_namespace_that_is_joined(ours: Runtime, bundle: Bundle, source: Path) -> None:
    other = Bundle(bundle.path.parent / "other")
    in_user_namespace(other)
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", other.write("sleep", "60"), id)
    pid = ours.state(id)["pid"]
    bundle.config["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{pid}/ns/user"})
    volume(bundle, source, "bind", "idmap")
    assert seen(ours, bundle, LOOK) == ["0:0", "1001:1001", "0"]


@pytest.mark.parametrize(("word", "below"), [("idmap", "65534"), ("ridmap", "0")])
def test_what_is_mounted_below(
    ours: Runtime, bundle: Bundle, source: Path, submount: Path, word: str, below: str
) -> None:
    assert submount.is_mount()
    in_user_namespace(bundle)
    volume(bundle, source, "rbind", word)
    assert seen(ours, bundle, "stat -c %u /v/roots /v/below") == ["0", below]


@pytest.mark.parametrize(
    ("options", "more", "says"),
    [
        (["bind", "idmap"], {}, "idmap needs uidMappings and gidMappings"),
        (["bind", "idmap=uids=0-1-2"], {}, "/mounts/5/options: idmap='uids=0-1-2' should name uids and gids"),
        (["bind", "idmap=uids=0-1;gids=0-1-2"], {}, "'0-1' should be three numbers"),
        (["bind", "idmap=users=0-1-2"], {}, "should be idmap=uids=ID-ID-COUNT"),
        (["bind", "idmap=uids=@0-1-2;gids=0-0-1"], {}, "does not have these ids"),
        (["bind", "remount", "idmap=uids=0-1-2;gids=0-1-2"], {}, "cannot be changed once it is there"),
        (["bind"], {"source": "/proc", "uidMappings": MAPS, "gidMappings": MAPS}, "the file system cannot shift ids"),
    ],
)
def test_refused(
    ours: Runtime, bundle: Bundle, source: Path, options: list[str], more: dict[str, Any], says: str
) -> None:
    volume(bundle, source, *options, **more)
    id = ours.new_id()
    done = ours("run", "--bundle", bundle.write("true"), id)
    assert done.returncode == 1
    assert says in done.stderr
    assert "/mounts/5" in done.stderr
    assert left_behind(ours, id) == []


def test_time_offsets_in_a_new_user_namespace(ours: Runtime, bundle: Bundle, source: Path) -> None:
    """As runc 1.2 and crun 1.9 have them."""
    assert source.is_dir()
    in_user_namespace(bundle)
    bundle.config["linux"]["namespaces"].append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000}, "monotonic": {"secs": -1}}
    words = seen(ours, bundle, "cat /proc/uptime /proc/self/timens_offsets")
    assert float(words[0]) > 1_000_000
    assert words[2:] == ["monotonic", "-1", "0", "boottime", "1000000", "0"]
