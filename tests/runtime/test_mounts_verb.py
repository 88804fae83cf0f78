"""mounts add and remove: mounts of a container that runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, left_behind, mounts_at, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]


class Container:
    """One that runs, and what to mount in it."""

    def __init__(self, runtime: Runtime, bundle: Bundle, folder: Path) -> None:
        self.runtime = runtime
        self.file = folder / "mounts.json"
        self.source = folder / "source"
        self.source.mkdir()
        (self.source / "hello").write_text("from outside\n")
        self.id = runtime.new_id()
        runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), self.id)

    def change(self, what: str, *entries: dict[str, Any]) -> None:
        self.file.write_text(json.dumps(entries))
        self.runtime.ok("mounts", what, self.id, str(self.file))

    def refused(self, what: str, *entries: Any) -> str:
        self.file.write_text(json.dumps(entries))
        done = self.runtime("mounts", what, self.id, str(self.file))
        assert done.returncode == 1
        return done.stderr

    def bind(self, destination: str, *options: str, source: str = "") -> dict[str, Any]:
        source = source or str(self.source)
        return {"destination": destination, "type": "bind", "source": source, "options": ["bind", *options]}

    def sh(self, script: str) -> str:
        return self.runtime("exec", self.id, "sh", "-c", script).stdout


@pytest.fixture
def box(ours: Runtime, bundle: Bundle, tmp_path: Path) -> Container:
    """A running container."""
    return Container(ours, bundle, tmp_path)


def test_add_and_remove(box: Container, bundle: Bundle) -> None:
    before = len(mounts_at(bundle.rootfs))
    box.change(
        "add", box.bind("/mnt/in", "ro", "nosuid"), {"destination": "/fresh", "type": "tmpfs", "source": "tmpfs"}
    )
    assert box.sh("cat /mnt/in/hello") == "from outside\n"
    assert box.sh("touch /mnt/in/new 2>&1; grep ' /mnt/in ' /proc/self/mountinfo").count("ro,nosuid") == 1
    assert not (box.source / "new").exists()
    assert box.sh("echo x > /fresh/x; cat /fresh/x; stat -f -c %T /fresh") == "x\ntmpfs\n"
    assert len(mounts_at(bundle.rootfs)) == before  # nothing of it on the host
    box.change("remove", {"destination": "/fresh"}, {"destination": "/mnt/in"})
    assert box.sh("cat /mnt/in/hello /fresh/x 2>/dev/null") == ""
    assert box.sh("grep -c -e /mnt/in -e /fresh /proc/self/mountinfo") == "0\n"
    box.runtime.ok("delete", "--force", box.id)
    assert left_behind(box.runtime, box.id) == []


def test_a_single_file(box: Container, bundle: Bundle) -> None:
    box.change("add", box.bind("/etc/one", source=str(box.source / "hello")))
    assert box.sh("cat /etc/one") == "from outside\n"
    box.change("remove", {"destination": "/etc/one"})
    assert box.sh("cat /etc/one") == ""


def test_all_or_nothing(box: Container) -> None:
    said = box.refused("add", box.bind("/mnt"), box.bind("/opt", source="/does/not/exist"))
    assert f"{box.file} /1/source: open mount source /does/not/exist: no such file or directory" in said
    assert box.sh("grep -c -e ' /mnt ' -e ' /opt ' /proc/self/mountinfo") == "0\n"


def test_targets_stay_inside(box: Container, bundle: Bundle, tmp_path: Path) -> None:
    """A link in the container that leads out leads to the same path inside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    assert box.sh(f"ln -s {outside} /way; ln -s ../../../../..{outside} /back; echo done") == "done\n"
    box.change("add", box.bind("/way"), box.bind("/back/deeper"))
    assert list(outside.iterdir()) == []
    assert mounts_at(outside) == []
    assert box.sh(f"cat {outside}/hello") == "from outside\n"
    said = box.refused("add", box.bind("/proc/sys"))
    assert "/0/destination" in said or "lies in /proc" in said
    assert box.sh("ln -s /proc/1 /self; echo done") == "done\n"
    assert "not permitted" in box.refused("add", box.bind("/self/attr"))


def test_what_is_refused(box: Container) -> None:
    assert "mounting a proc in a container that runs" in box.refused("add", {"destination": "/p", "type": "proc"})
    maps = [{"containerID": 0, "hostID": 100000, "size": 1}]
    mapped = {**box.bind("/mnt", "idmap"), "uidMappings": maps, "gidMappings": maps}
    assert "an id-mapped mount" in box.refused("add", mapped)
    assert "destination" in box.refused("add", {"type": "tmpfs"})
    assert "each with a destination" in box.refused("remove", "x")
    assert "invalid argument" in box.refused("remove", {"destination": "/bin"})
    assert "neither add nor remove" in box.runtime("mounts", "change", box.id, str(box.file)).stderr
    assert box.runtime("mounts", "add", "nobody", str(box.file)).returncode == 1
    box.runtime.ok("kill", box.id, "KILL")
    box.runtime.wait_for(box.id, "stopped")
    assert "container not running" in box.refused("add", box.bind("/mnt"))


def test_without_pivot_root_and_while_paused(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """The container's root is not the root of its mount namespace then."""
    made = Container.__new__(Container)
    made.runtime, made.file, made.source, made.id = ours, tmp_path / "mounts.json", tmp_path / "source", ours.new_id()
    made.source.mkdir()
    (made.source / "hello").write_text("hello\n")
    ours.ok("run", "--no-pivot", "--detach", "--bundle", bundle.write("sleep", "1000"), made.id)
    ours.ok("pause", made.id)
    made.change("add", made.bind("/mnt"))
    ours.ok("resume", made.id)
    assert made.sh("cat /mnt/hello") == "hello\n"
