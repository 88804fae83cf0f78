"""Vulnerabilities of other runtimes whose test needs no hostile bundle: identities, capabilities, devices, cgroups, sockets.

As test_hostile_bundles.py, whose numbers these go on with: docs/security.md says what each is and how it was seen to fail.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from blackbox import Bundle, Runtime, left_behind, mounts_at, needs_busybox, needs_root
from test_hostile_bundles import Sentinel, Swapper, bind, sentinel, without

from knarr.bundle.posture import EXTRA_MASKED

pytestmark = [needs_busybox, needs_root]
__all__ = ["sentinel"]  # the fixture
FIVE = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
DOCKERS = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
           "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"]  # fmt: skip


def masks(text: str) -> dict[str, int]:
    return {name: int(value, 16) for name, value in re.findall(r"^(Cap\w+):\s+(\w+)$", text, re.MULTILINE)}


# -- capabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["CAP_KILL"], DOCKERS, []], ids=["one", "Docker's", "none"])
def test_r15_an_ordinary_user_has_none(names: list[str], runtime: Runtime, bundle: Bundle) -> None:
    """CVE-2018-10856, CVE-2021-20188, CVE-2016-8867: capabilities that survive for a user who is not root."""
    bundle.config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    path = bundle.write("cat", "/proc/self/status", user={"uid": 1000, "gid": 1000})
    found = masks(runtime.ok("run", "--bundle", path, runtime.new_id()))
    assert {name: found[name] for name in FIVE if name != "CapBnd"} == dict.fromkeys(set(FIVE) - {"CapBnd"}, 0)
    assert found["CapBnd"].bit_count() == len(names)


def test_r15_an_exec_has_the_containers_five_sets(runtime: Runtime, bundle: Bundle) -> None:
    """CVE-2025-27612: youki's exec had more than its container."""
    bundle.config["process"]["capabilities"] = {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    pid = runtime.state(id)["pid"]
    first = masks(Path(f"/proc/{pid}/status").read_text())
    assert masks(runtime.ok("exec", id, "cat", "/proc/self/status")) == first
    as_user = masks(runtime.ok("exec", "--user", "1000", id, "cat", "/proc/self/status"))
    assert {name: as_user[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {
        "CapPrm": 0,
        "CapEff": 0,
        "CapInh": 0,
        "CapAmb": 0,
    }


# -- a number is never a name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_r16_a_number_is_not_looked_up(verb: str, runtime: Runtime, bundle: Bundle) -> None:
    """CVE-2016-3697: a user called 1000 with the uid 0."""
    (bundle.rootfs / "etc/passwd").write_text("1000:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n")
    (bundle.rootfs / "etc/group").write_text("1000:x:0:\n")
    id = runtime.new_id()
    if verb == "run":
        path = bundle.write("sh", "-c", "id -u; id -g; id -G", user={"uid": 1000, "gid": 1000})
        said = runtime.ok("run", "--bundle", path, id)
    else:
        runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
        said = runtime.ok("exec", "--user", "1000:1000", id, "sh", "-c", "id -u; id -g; id -G")
    assert said.split() == ["1000"] * 3


# -- paths longer than a message --------------------------------------------------------------------------------------


def test_r19_namespace_paths_beyond_sixteen_bits(ours: Runtime, bundle: Bundle) -> None:
    """CVE-2021-43784: their lengths together are above 65,535; nothing of one is taken for another message."""
    kinds = ("network", "ipc", "uts", "pid", "cgroup", "time", "user")
    deep = "/" + "/".join("x" * 200 for _ in range(50))
    bundle.config["linux"]["namespaces"] = [{"type": kind, "path": deep} for kind in kinds] + [{"type": "mount"}]
    done = ours("run", "--bundle", bundle.write("true"), id := ours.new_id())
    assert done.returncode == 1
    assert "/linux/namespaces/0/path" in done.stderr
    assert left_behind(ours, id) == []


# -- what a cgroup allows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules", [[], [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]], ids=["none", "null"]
)
def test_r20_devices_are_denied_unless_allowed(rules: list[dict[str, Any]], runtime: Runtime, bundle: Bundle) -> None:
    """GHSA-g54h-m393-cpwq: an empty list, or one that allows something, still denies the rest."""
    for kind in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind] = DOCKERS
    bundle.config["linux"]["resources"] = {"devices": rules}
    script = "mknod /x b 8 0; cat </x; mknod /kmsg c 1 11; head -c 1 /kmsg; echo ok >/dev/null && echo fine"
    done = runtime("run", "--bundle", bundle.write("sh", "-c", script), runtime.new_id())
    assert done.stdout.split() == ["fine"], done
    if runtime.name == "knarr":
        assert done.stderr.count("not permitted") >= 2, done.stderr


def test_r18_cgroups_without_a_namespace_cannot_be_written(runtime: Runtime, bundle: Bundle) -> None:
    """CVE-2023-25809: a user namespace without a cgroup namespace."""
    linux = bundle.config["linux"]
    linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")]
    linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 200_000, "size": 65_536}]
    del linux["resources"]
    bundle.config["mounts"][4] = bind("/sys", "/sys", "nosuid", "noexec", "nodev", "ro")
    bundle.config["mounts"].append(
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
        }
    )
    for folder in (bundle.path, *bundle.path.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(folder.stat().st_mode | 0o055)
    script = (
        "find /sys/fs/cgroup -maxdepth 2 -type d | while read d; do mkdir $d/x 2>/dev/null && echo $d; done; echo done"
    )
    (bundle.rootfs / "bin/find").symlink_to("busybox")
    done = runtime("run", "--bundle", bundle.write("sh", "-c", script), runtime.new_id())
    if runtime.name != "knarr" and "/sys/fs/cgroup\n" in done.stdout:
        pytest.skip(f"{runtime.name} fails: the container may write into /sys/fs/cgroup")
    assert done.stdout.split() == ["done"], done


# -- what of the kernel is hidden ----------------------------------------------------------------------------------------------


def test_r21_what_is_masked_is_empty_and_stays(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2017-16539, CVE-2018-10892 and their kin: what `spec` masks cannot be read, written or unmounted."""
    spec = tmp_path / "spec"
    spec.mkdir()
    ours.ok("spec", "--bundle", str(spec))
    written = json.loads((spec / "config.json").read_text())["linux"]
    masked, readonly = [*written["maskedPaths"], *EXTRA_MASKED], written["readonlyPaths"]
    assert {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/proc/scsi", "/sys/firmware"} <= set(masked)
    bundle.config["linux"].update(maskedPaths=masked, readonlyPaths=readonly)
    script = "\n".join(
        [
            'for p in "$@"; do [ -e $p ] || continue',
            '  if [ -d $p ]; then [ -z "$(ls $p)" ] || echo seen $p; touch $p/x 2>/dev/null && echo wrote $p',
            '  else [ "$(head -c 9 $p | wc -c)" = 0 ] || echo seen $p; fi',
            "  umount $p 2>/dev/null && echo unmounted $p; done",
            # opened only: what is written to some of these ends the machine
            f"for p in {' '.join(readonly)}; do",
            '  if [ -d $p ]; then grep -q " $p [a-z]* ro" /proc/mounts || echo writable $p',
            "  elif [ -f $p ]; then (: >>$p) 2>/dev/null && echo writable $p; fi; done; echo done",
        ]
    )  # fmt: skip
    done = ours("run", "--bundle", bundle.write("sh", "-c", script, "sh", *masked), ours.new_id())
    assert done.stdout.split() == ["done"], done


# -- a container that changed its root before it is started again -------------------------------------------------------------------


def test_r22_a_root_changed_by_its_container(ours: Runtime, bundle: Bundle, sentinel: Sentinel) -> None:
    """CVE-2015-3627, -3629, -3631: /etc, /dev, /proc and the program's directory lead to the host at the second start."""
    ours.ok("run", "--bundle", bundle.write("true"), ours.new_id())
    for name in ("etc", "dev", "proc", "sys", "tmp", "new"):
        place = bundle.rootfs / name
        if place.is_dir():
            subprocess.run(["rm", "-rf", str(place)], check=True)
        place.symlink_to(sentinel.path)
    for drop in ([], ["/proc"], ["/proc", "/sys"], ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm"]):
        without(bundle, *drop)
        ours("run", "--bundle", bundle.write("true", cwd="/new/dir"), ours.new_id())
        assert sentinel.ok(), drop


# -- a value is one value --------------------------------------------------------------------------------------------------------


def test_r26_a_sysctl_value_is_not_split(runtime: Runtime, bundle: Bundle) -> None:
    """CVE-2022-0811: `0+kernel.core_pattern=…` was two settings for the program that cri-o called."""
    place = Path("/proc/sys/kernel/core_pattern")
    before = place.read_text()
    bundle.config["linux"]["sysctl"] = {"kernel.domainname": f"0+kernel.core_pattern={before.strip()}.split"}
    runtime("run", "--bundle", bundle.write("true"), runtime.new_id())
    after = place.read_text()
    if after != before:
        place.write_text(before)
    assert after == before


# -- sockets have a path that others cannot reach -------------------------------------------------------------------------------------


def test_r27_no_socket_without_a_path(ours: Runtime, bundle: Bundle) -> None:
    """CVE-2020-15257: an abstract socket is open to whoever shares the network namespace."""
    bundle.config["linux"]["namespaces"] = [
        entry for entry in bundle.config["linux"]["namespaces"] if entry["type"] != "network"
    ]
    del bundle.config["mounts"][4]
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "1000"), id)
    pid = ours.state(id)["pid"]
    inodes = {
        target[8:-1]
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if (target := os.readlink(entry)).startswith("socket:[")
    }
    assert inodes, "a created container waits on its start socket"
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    bound = {row[6]: row[7] for row in rows if row[6] in inodes and len(row) > 7}
    assert all(not path.startswith("@") for path in bound.values()), bound
    assert ours.root.stat().st_mode & 0o777 == 0o700
    assert (ours.root / id).stat().st_mode & 0o777 == 0o700


# -- the root itself, swapped for a link ---------------------------------------------------------------------------------------------------


def test_a_root_swapped_for_a_link(ours: Runtime, bundle: Bundle, sentinel: Sentinel) -> None:
    """What was opened is what is used, whatever the name leads to by then; a link is refused."""
    other = bundle.path / "other"
    other.symlink_to(sentinel.path)
    path = bundle.write("true")
    swapper = Swapper(bundle.rootfs, other)
    swapper.start()
    codes = []
    try:
        for _ in range(3000 if os.environ.get("KNARR_TEST_FULL") else 40):
            codes.append(ours("run", "--bundle", path, ours.new_id()).returncode)
            assert sentinel.ok()
    finally:
        swapper.done.set()
        swapper.join()
    assert {0, 1} <= set(codes), "both must have happened: the race was on"
    assert mounts_at(bundle.path) == []
