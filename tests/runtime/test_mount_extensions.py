"""Symbolic links at either end of a bind mount, attributes of all that is mounted below, the caller's groups.

The options about links are those of newer cruns: 1.8.1 and runc do not know them.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]


def bind(bundle: Bundle, source: Path, destination: str, *options: str) -> None:
    bundle.config["mounts"].append(
        {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", *options]}
    )


def seen(runtime: Runtime, bundle: Bundle, script: str) -> list[str]:
    return runtime.ok("run", "--bundle", bundle.write("sh", "-c", script), runtime.new_id()).splitlines()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_text("of the host\n")
    (folder / "link").symlink_to("file")
    (folder / "dangling").symlink_to("/no/such")
    return folder


@pytest.mark.parametrize("user_namespace", [False, True])
def test_copy_symlink(user_namespace: bool, ours: Runtime, bundle: Bundle, source: Path) -> None:
    if user_namespace:
        bundle.config["linux"]["namespaces"].append({"type": "user"})
        for side in ("uidMappings", "gidMappings"):
            bundle.config["linux"][side] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    bind(bundle, source / "link", "/a", "copy-symlink")
    bind(bundle, source / "dangling", "/sub/b", "copy-symlink")
    bind(bundle, source / "file", "/c", "copy-symlink")
    script = "readlink /a; readlink /sub/b; cat /c; grep -c ' /a \\| /sub/b ' /proc/mounts; grep -c ' /c ' /proc/mounts; true"
    wanted = ["file", "/no/such", "of the host", "0", "1"]
    assert seen(ours, bundle, script) == wanted
    assert seen(ours, bundle, script) == wanted, "the links are there already, and as they should be"


def test_copy_symlink_over_something_else(ours: Runtime, bundle: Bundle, source: Path) -> None:
    (bundle.rootfs / "a").write_text("of the image\n")
    bind(bundle, source / "link", "/a", "copy-symlink")
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode != 0
    assert "config.json /mounts/5: bind" in done.stderr
    assert "file exists" in done.stderr
    assert (bundle.rootfs / "a").read_text() == "of the image\n"


def test_src_nofollow(ours: Runtime, bundle: Bundle, source: Path) -> None:
    bind(bundle, source / "dangling", "/a", "src-nofollow")
    assert seen(ours, bundle, "readlink /a; grep -c ' /a ' /proc/mounts") == ["/no/such", "1"]


def test_dest_nofollow(ours: Runtime, bundle: Bundle, source: Path) -> None:
    (bundle.rootfs / "a").symlink_to("/etc/target")
    (bundle.rootfs / "etc/target").write_text("of the image\n")
    bind(bundle, source / "file", "/a", "dest-nofollow")
    assert seen(ours, bundle, "cat /a /etc/target") == ["of the host", "of the image"]


def test_both_ends(ours: Runtime, bundle: Bundle, source: Path) -> None:
    (bundle.rootfs / "a").symlink_to("/etc/target")
    bind(bundle, source / "link", "/a", "src-nofollow", "dest-nofollow")
    bind(bundle, source / "link", "/new/place", "src-nofollow", "dest-nofollow")
    assert seen(ours, bundle, "readlink /a; readlink /new/place") == ["file", "file"]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (["bind", "copy-symlink", "src-nofollow"], "bind", "copy-symlink excludes src-nofollow and dest-nofollow"),
        (["copy-symlink"], "tmpfs", "are for bind mounts only"),
        (["remount", "dest-nofollow"], "none", "are for bind mounts only"),
    ],
)
def test_combinations_that_mean_nothing(
    options: list[str], kind: str, words: str, ours: Runtime, bundle: Bundle, source: Path
) -> None:
    bundle.config["mounts"].append({"destination": "/a", "type": kind, "source": str(source), "options": options})
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert f"/mounts/5/options: {words}" in done.stderr or "/mounts/5/options: src-nofollow" in done.stderr


@pytest.fixture
def nested(source: Path) -> Iterator[Path]:
    """A folder with another mount in it."""
    (source / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(source / "below")], check=True)
    try:
        (source / "below/link").symlink_to("/bin")
        yield source
    finally:
        subprocess.run(["umount", "-l", str(source / "below")], check=True)


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("rro", "ro"),
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        ("rnoexec", "noexec"),
        ("rnoatime", "noatime"),
        ("rnosymfollow", "nosymfollow"),
    ],
)
def test_recursive_attributes(option: str, wanted: str, runtime: Runtime, bundle: Bundle, nested: Path) -> None:
    bind(bundle, nested, "/data", option)
    (bundle.rootfs / "bin/cut").symlink_to("busybox")
    words: dict[str, Any] = {}
    done = runtime(
        "run",
        "--bundle",
        bundle.write("sh", "-c", "grep ' /data' /proc/self/mountinfo | cut -d' ' -f5,6"),
        runtime.new_id(),
    )
    for line in done.stdout.splitlines():
        place, options = line.split()
        words[place] = options.split(",")
    if runtime.name != "knarr" and (done.returncode != 0 or wanted not in words.get("/data/below", ())):
        pytest.skip(f"this {runtime.name} does not know {option}")
    assert wanted in words["/data"]
    assert wanted in words["/data/below"]


def test_recursive_and_plain_attributes_together(ours: Runtime, bundle: Bundle, nested: Path) -> None:
    bind(bundle, nested, "/data", "rro", "rnosymfollow")
    bind(bundle, nested, "/other", "rro", "rnosymfollow", "rsymfollow")
    script = "touch /data/below/x; ls /data/below/link/; touch /other/below/x; ls /other/below/link/ | head -n 1"
    done = ours("run", "--bundle", bundle.write("sh", "-c", script), ours.new_id())
    assert done.stderr.count("Read-only file system") == 2, done
    assert done.stderr.count("Too many levels of symbolic links") == 1, done
    assert done.stdout.split()[-1] == "busybox"


def test_the_groups_of_the_caller_are_kept(runtime: Runtime, bundle: Bundle) -> None:
    """crun's annotation, as podman's --group-add keep-groups sets it."""
    if runtime.name == "runc":
        pytest.skip("runc has no such annotation")
    bundle.config["annotations"] = {"run.oci.keep_original_groups": "1"}
    bundle.config["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7]}
    script = ["sh", "-c", "grep Groups /proc/self/status"]
    done = runtime("run", "--bundle", bundle.write(*script), runtime.new_id(), extra_groups=[1234, 5678])
    assert done.stdout.split() == ["Groups:", "1234", "5678"], done
    del bundle.config["annotations"]
    done = runtime("run", "--bundle", bundle.write(*script), runtime.new_id(), extra_groups=[1234, 5678])
    assert done.stdout.split() == ["Groups:", "7"]
    assert os.getgroups() != [1234, 5678]
