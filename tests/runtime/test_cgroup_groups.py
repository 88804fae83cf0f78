"""runtime/cgroup.py on the real thing: made, limited, joined, frozen, emptied, removed, and left alone.

The same file runs on v1, hybrid and v2 hosts; test_cgroup_v2.py runs it under user-mode Linux.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import Exists, InitError, InUse, KernelError, KnarrError, SafetyViolation, Unsupported
from knarr.kernel import bpf
from knarr.plan.cgroup import CgroupHost, CgroupMount, CgroupPlan, plan_cgroup
from knarr.plan.host import Host
from knarr.runtime import cgroup, cgroup_fs, cgroup_members, cgroup_probe, freezer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = cgroup_probe.probe()

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root"),
    pytest.mark.skipif(HOST is None, reason="no cgroups are mounted"),
]

ROOT = f"knarr-test-{secrets.token_hex(4)}"


def have(controller: str) -> bool:
    assert HOST is not None
    return controller in HOST.controllers or any(controller in mount.controllers for mount in HOST.mounts)


V2 = HOST is not None and HOST.mode == "v2"


def config(path: str = f"/{ROOT}/c", **resources: Any) -> dict[str, Any]:
    return {"linux": {"cgroupsPath": path, "resources": resources}}


def planned(path: str = f"/{ROOT}/c", *, devices: bool = False, **resources: Any) -> CgroupPlan:
    assert HOST is not None
    return plan_cgroup(config(path, **resources), HOST, "id", devices=devices)


def places(path: str) -> list[Path]:
    """The directory of a group in each hierarchy."""
    assert HOST is not None
    mounts = [mount.mountpoint for mount in HOST.mounts] + ([HOST.unified] if HOST.unified else [])
    return [Path(f"{mount}/{path}") for mount in mounts]


def file_of(controller: str, name: str, path: str = f"{ROOT}/c") -> Path:
    assert HOST is not None
    for mount in HOST.mounts:
        if controller in mount.controllers:
            return Path(mount.mountpoint, path, name)
    return Path(HOST.unified, path, name)


def there(path: str) -> set[bool]:
    return {place.exists() for place in places(path)}


def _empty(group: Path) -> None:
    for below in [entry for entry in group.iterdir() if entry.is_dir()] if group.exists() else []:
        _empty(below)
    for _ in range(200):
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
    raise AssertionError(f"{group} is still busy")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Nothing of ours is left, and a test that leaves something has failed; a test removes by hand what it makes so."""
    yield
    left = [str(place) for place in places(ROOT) if place.exists()]
    for place in places(ROOT):
        _empty(place)
    assert left == []


@pytest.fixture
def sleeper() -> Iterator[Callable[[], int]]:
    """Starts processes that sleep; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        started.append(subprocess.Popen(["sleep", "300"], start_new_session=True))
        return started[-1].pid

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def made(plan: CgroupPlan) -> cgroup.Intent:
    intent = cgroup.intent(plan)
    cgroup.create(plan)
    return intent


def enter(plan: CgroupPlan, pid: int) -> None:
    """As the runtime does: on v2 the process would have been born there."""
    if plan.clone_into:
        fd = cgroup.open_directory(plan)
        Path(f"/proc/self/fd/{fd}/cgroup.procs").write_text(str(pid))
        os.close(fd)
    else:
        cgroup.join(plan, pid)


def groups_of(pid: int) -> set[str]:
    return {line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}


def ends(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        time.sleep(0.005)
    return False


# Facts


def test_probe_finds_what_is_mounted() -> None:
    assert HOST is not None
    assert HOST.mode == ("v2" if not HOST.mounts else "hybrid" if HOST.unified else "v1")
    for place in places(""):
        assert (place / "cgroup.procs").exists()
    by_table = cgroup_probe._mounted(
        [
            (tuple(names.split(",")) if names else (), path)
            for _, names, path in (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
        ]
    )
    assert by_table is not None
    assert {mount.mountpoint: mount for mount in by_table.mounts} == {mount.mountpoint: mount for mount in HOST.mounts}
    assert by_table.replace(mounts=()) == HOST.replace(mounts=())


def test_a_mount_of_a_part_of_the_hierarchy() -> None:
    assert cgroup_probe._below("/docker/x/y", "/docker/x") == "/y"
    assert cgroup_probe._below("/docker/x", "/docker/x") == "/"
    assert cgroup_probe._below("/docker/xy", "/docker/x") == "/docker/xy"
    assert cgroup_probe._below("/", "/") == "/"


# Making and removing


def test_groups_come_and_go() -> None:
    plan = planned()
    intent = cgroup.intent(plan)
    assert all(parents == 1 for _, _, parents in intent["groups"])
    assert there(ROOT) == {False}
    cgroup.create(plan)
    assert there(f"{ROOT}/c") == {True}
    cgroup_members.remove(intent, 2)
    assert there(ROOT) == {False}
    cgroup_members.remove(intent, 2)  # once more does nothing


def test_the_intent_finds_what_a_crash_left() -> None:
    """Recorded, half made, removed: L-1."""
    plan = planned(f"/{ROOT}/a/b/c")
    intent = cgroup.intent(plan)
    os.mkdir(places(ROOT)[0])  # killed right after a mkdir, before the mark
    cgroup_members.remove(intent, 2)
    assert there(ROOT) == {False}
    half = CgroupPlan(plan.directories[:1], (), clone_into=plan.clone_into)
    cgroup.create(half)
    cgroup_members.remove(intent, 2)


def test_parents_go_with_the_last_container() -> None:
    first = made(planned(f"/{ROOT}/parent/one"))
    second = made(planned(f"/{ROOT}/parent/two"))
    assert all(parents == 0 for _, _, parents in second["groups"])
    cgroup_members.remove(first, 2)
    assert there(f"{ROOT}/parent/two") == {True}
    cgroup_members.remove(second, 2)
    assert there(ROOT) == {False}


def test_parents_of_others_stay() -> None:
    for place in places(ROOT):
        place.mkdir()
    intent = made(planned())
    cgroup_members.remove(intent, 2)
    assert there(ROOT) == {True}
    for place in places(ROOT):
        place.rmdir()


def test_a_group_of_others_is_refused_and_left_alone(sleeper: Callable[[], int]) -> None:
    for place in places(ROOT):
        (place / "c").mkdir(parents=True)
    pid = sleeper()
    place = next(place for place in places("") if not _needs_cpuset(place))
    (place / ROOT / "c/cgroup.procs").write_text(str(pid))
    with pytest.raises(Exists) as caught:
        cgroup.intent(planned())
    assert "knarr did not make it" in str(caught.value)
    with pytest.raises(Exists):
        cgroup.create(planned())
    # Even a record that names it does not make us kill what is inside.
    with pytest.raises(KernelError, match="not marked"):
        cgroup_members.remove({"v2": V2, "groups": [[str(place), f"/{ROOT}/c", 1]]}, 0.1)
    assert not ends(pid, 0.1)
    os.kill(pid, signal.SIGKILL)
    assert ends(pid)
    for place in places(ROOT):
        _empty(place)


def _needs_cpuset(place: Path) -> bool:
    return (place / "cpuset.cpus").exists() and not V2


def test_an_empty_group_of_ours_is_used_again(sleeper: Callable[[], int]) -> None:
    """A record was lost, a group was left: the mark says that it was ours."""
    made(planned())
    again = cgroup.intent(planned())
    cgroup.create(planned())
    pid = sleeper()
    enter(planned(), pid)
    with pytest.raises(InUse, match="processes"):
        cgroup.intent(planned())
    cgroup_members.remove(again, 3)
    assert ends(pid)
    assert there(ROOT) == {False}


def test_a_frozen_group_is_refused() -> None:
    intent = made(planned())
    cgroup_members.freeze(intent)
    with pytest.raises(InUse, match="frozen"):
        cgroup.intent(planned())
    cgroup_members.thaw(intent)
    cgroup_members.remove(intent, 2)


def test_links_and_mounts_in_the_way_are_refused(tmp_path: Path) -> None:
    """I15: BENEATH, NO_SYMLINKS, NO_XDEV. cgroupfs has no links, so a directory plays the hierarchy."""
    assert HOST is not None
    fake = tmp_path / "hierarchy"
    elsewhere = tmp_path / "elsewhere"
    fake.mkdir()
    elsewhere.mkdir()
    (fake / "absolute").symlink_to(elsewhere)
    (fake / "sibling").mkdir()
    (fake / "relative").symlink_to("sibling")
    host = CgroupHost("v1", (CgroupMount(("name=systemd",), str(fake), "/"),))
    for link in ("absolute", "relative"):
        plan = plan_cgroup({"linux": {"cgroupsPath": f"/{link}/c"}}, host, "id", devices=False)
        with pytest.raises((KernelError, SafetyViolation)):
            cgroup.create(plan)
    assert list(elsewhere.iterdir()) == []
    assert list((fake / "sibling").iterdir()) == []
    (fake / "mount").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", fake / "mount"], check=True)
    try:
        plan = plan_cgroup({"linux": {"cgroupsPath": "/mount/c"}}, host, "id", devices=False)
        with pytest.raises(KernelError):
            cgroup.create(plan)
        assert list((fake / "mount").iterdir()) == []
    finally:
        subprocess.run(["umount", fake / "mount"], check=True)


def test_many_at_once_under_one_parent() -> None:
    """One's end takes the shared parent away while another is being made."""
    errors: list[Exception] = []

    def life(number: int) -> None:
        try:
            for turn in range(8):
                cgroup_members.remove(made(planned(f"/{ROOT}/shared/{number}-{turn}")), 5)
        except (OSError, KnarrError) as error:
            errors.append(error)

    threads = [threading.Thread(target=life, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert there(f"{ROOT}/shared") == {False}


# Limits


@pytest.mark.skipif(not have("memory"), reason="no memory controller")
def test_memory_limits() -> None:
    intent = made(planned(memory={"limit": 64 << 20, "reservation": 32 << 20}))
    if V2:
        assert file_of("memory", "memory.max").read_text() == f"{64 << 20}\n"
        assert file_of("memory", "memory.low").read_text() == f"{32 << 20}\n"
    else:
        assert file_of("memory", "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
        assert file_of("memory", "memory.soft_limit_in_bytes").read_text() == f"{32 << 20}\n"
    cgroup_members.remove(intent, 2)


@pytest.mark.skipif(not have("memory"), reason="no memory controller")
def test_the_memory_limit_binds() -> None:
    limits = {"limit": 32 << 20, **({"swap": 32 << 20} if _swap_counts() else {})}
    intent = made(planned(memory=limits))
    eater = "import sys; sys.stdin.read(1); x = bytearray(200 << 20)"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", eater], stdin=subprocess.PIPE)
    enter(planned(), process.pid)
    process.communicate(b"x", timeout=60)
    assert process.returncode == -signal.SIGKILL
    cgroup_members.remove(intent, 2)


def _swap_counts() -> bool:
    assert HOST is not None
    return V2 or any(
        "memory" in mount.controllers and Path(mount.mountpoint, "memory.memsw.limit_in_bytes").exists()
        for mount in HOST.mounts
    )


@pytest.mark.skipif(not have("pids"), reason="no pids controller")
def test_the_pids_limit_binds() -> None:
    intent = made(planned(pids={"limit": 4}))
    bomb = "import os, sys, time\nsys.stdin.read(1)\nfor n in range(9):\n  if not os.fork(): time.sleep(1); os._exit(0)"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", bomb], stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    enter(planned(), process.pid)
    _, said = process.communicate(b"x", timeout=60)
    assert b"Resource temporarily unavailable" in said
    cgroup_members.remove(intent, 2)


@pytest.mark.skipif(not have("cpu"), reason="no cpu controller")
def test_cpu_limits() -> None:
    intent = made(planned(cpu={"shares": 512, "quota": 20000, "period": 50000}))
    if V2:
        assert file_of("cpu", "cpu.weight").read_text() == "59\n"
        assert file_of("cpu", "cpu.max").read_text() == "20000 50000\n"
    else:
        assert file_of("cpu", "cpu.shares").read_text() == "512\n"
        assert file_of("cpu", "cpu.cfs_quota_us").read_text() == "20000\n"
        assert file_of("cpu", "cpu.cfs_period_us").read_text() == "50000\n"
    cgroup_members.remove(intent, 2)


@pytest.mark.skipif(not have("cpuset"), reason="no cpuset controller")
def test_cpusets(sleeper: Callable[[], int]) -> None:
    """v1: every new group takes over its parent's, then the asked-for one is written; it must admit a process."""
    intent = made(planned(f"/{ROOT}/a/b", cpu={"cpus": "0", "mems": "0"}))
    assert file_of("cpuset", "cpuset.cpus", f"{ROOT}/a/b").read_text() == "0\n"
    if not V2:
        everything = file_of("cpuset", "cpuset.cpus", "").read_text()
        assert file_of("cpuset", "cpuset.cpus", f"{ROOT}/a").read_text() == everything
    pid = sleeper()
    enter(planned(f"/{ROOT}/a/b"), pid)
    assert os.sched_getaffinity(pid) == {0}
    os.kill(pid, signal.SIGKILL)
    ends(pid)
    cgroup_members.remove(intent, 2)


@pytest.mark.parametrize(
    ("controller", "resources", "file", "pointer"),
    [
        ("cpuset", {"cpu": {"cpus": "4000"}}, "cpuset.cpus", "/linux/resources/cpu/cpus"),
        ("cpuset", {"cpu": {"mems": "900"}}, "cpuset.mems", "/linux/resources/cpu/mems"),
        (
            "memory",
            {"memory": {"limit": 1 << 62, "swap": 5}},
            "memory.memsw.limit_in_bytes",
            "/linux/resources/memory/swap",
        ),
    ],
)
def test_what_the_kernel_refuses_is_told_with_field_file_and_value(
    controller: str, resources: dict[str, Any], file: str, pointer: str
) -> None:
    if not have(controller):
        pytest.skip(f"no {controller} controller")
    if V2 and controller == "memory":
        pytest.skip("v2 takes any numbers")
    plan = planned(**resources)
    intent = cgroup.intent(plan)
    with pytest.raises(InitError) as caught:
        cgroup.create(plan)
    text = str(caught.value)
    assert caught.value.pointer == pointer
    assert f"config.json {pointer}: write " in text
    assert f"/{ROOT}/c/{file}" in text
    cgroup_members.remove(intent, 2)


@pytest.mark.skipif(not V2, reason="unified needs cgroup v2")
def test_unified() -> None:
    if not have("memory"):
        pytest.skip("no memory controller")
    intent = made(planned(unified={"memory.high": "104857600", "cgroup.max.depth": "4"}))
    assert file_of("memory", "memory.high").read_text() == "104857600\n"
    assert file_of("memory", "cgroup.max.depth").read_text() == "4\n"
    cgroup_members.remove(intent, 2)
    with pytest.raises(InitError) as caught:
        made(planned(unified={"memory.nothing": "1"}))
    assert "does not offer that limit" in str(caught.value)
    for place in places(ROOT):
        _empty(place)


@pytest.mark.skipif(not V2, reason="v1 checks by itself")
def test_a_limit_below_what_is_in_use_is_refused_when_asked() -> None:
    if not have("memory"):
        pytest.skip("no memory controller")
    intent = made(planned())
    eater = "import sys; x = bytearray(32 << 20); sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read(1)"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read(1)\n" + eater],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    enter(planned(), process.pid)
    process.stdin.write(b"x")
    process.stdin.flush()
    process.stdout.read(1)
    fd = cgroup.open_directory(planned())
    plan = planned(memory={"limit": 1 << 20, "checkBeforeUpdate": True})
    with pytest.raises(InitError, match="in use already"):
        cgroup.write_limit(fd, plan.directories[0], plan.writes[-1])
    os.close(fd)
    process.kill()
    process.communicate()
    cgroup_members.remove(intent, 2)


# Devices

ASK_TWICE = """
import os, sys
for _ in range(2):
    sys.stdin.readline()
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
        print("yes", flush=True)
    except PermissionError:
        print("no", flush=True)
"""


def test_device_rules_bind() -> None:
    if not have("devices") and not (HOST and HOST.unified):
        pytest.skip("no way to restrict devices")
    plan = planned(devices=True)
    intent = made(plan)
    ask = (
        "import sys\nsys.stdin.read(1)\n"
        "for path in ('/dev/null', '/dev/zero', '/dev/mem', '/dev/kmsg', '/dev/vda', '/dev/loop-control'):\n"
        "  try: open(path).close(); print(path, 'yes')\n"
        "  except PermissionError: print(path, 'no')\n"
        "  except OSError: pass\n"
    )
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    enter(plan, process.pid)
    said = process.communicate(b"x", timeout=60)[0].decode()
    answers = dict(line.split() for line in said.splitlines())
    assert {path for path, answer in answers.items() if answer == "yes"} == {"/dev/null", "/dev/zero"}
    cgroup_members.remove(intent, 2)


def test_device_rules_can_wait_for_the_mounts() -> None:
    plan = planned(devices=True)
    intent = cgroup.intent(plan)
    cgroup.create(plan, devices=False)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", ASK_TWICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    enter(plan, process.pid)
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"yes\n"
    cgroup.restrict_devices(plan)
    process.stdin.write(b"\n")
    assert process.communicate()[0] == b"no\n"
    cgroup_members.remove(intent, 2)


def test_a_hybrid_without_the_devices_hierarchy_uses_the_program() -> None:
    assert HOST is not None
    if not HOST.unified:
        pytest.skip("no unified hierarchy")
    left = tuple(mount for mount in HOST.mounts if "devices" not in mount.controllers)
    plan = plan_cgroup(config(), HOST.replace(mounts=left), "id")
    intent = made(plan)
    fd = cgroup_fs.open_group(HOST.unified, f"/{ROOT}/c")
    assert len(bpf.device_programs(fd)) == 1
    os.close(fd)
    cgroup_members.remove(intent, 2)


def test_everything_allowed_needs_no_program() -> None:
    plan = planned(devices=True)
    assert HOST is not None
    free = plan_cgroup(
        {
            "linux": {
                "cgroupsPath": f"/{ROOT}/c",
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            }
        },
        HOST,
        "id",
    )
    intent = made(free)
    if plan.device_mount:
        fd = cgroup_fs.open_group(plan.device_mount, f"/{ROOT}/c")
        assert bpf.device_programs(fd) == []
        os.close(fd)
    else:
        assert file_of("devices", "devices.list").read_text() == "a *:* rwm\n"
    cgroup_members.remove(intent, 2)


# Members


def test_joining_and_listing(sleeper: Callable[[], int]) -> None:
    intent = made(planned())
    one, two = sleeper(), sleeper()
    enter(planned(), one)
    assert groups_of(one) == {f"/{ROOT}/c"}
    cgroup.join_recorded(intent, two)
    if V2:
        enter(planned(), two)
    assert cgroup_members.pids(intent) == sorted([one, two])
    # a group made inside, as a container with its own cgroup namespace may
    for place in places(f"{ROOT}/c/inner"):
        place.mkdir()
        if _needs_cpuset(place):
            for name in ("cpuset.cpus", "cpuset.mems"):
                (place / name).write_text((place.parent / name).read_text())
        (place / "cgroup.procs").write_text(str(two))
    assert cgroup_members.pids(intent) == sorted([one, two])
    cgroup_members.remove(intent, 5)
    assert ends(one)
    assert ends(two)
    assert there(ROOT) == {False}


def test_freezing(sleeper: Callable[[], int]) -> None:
    intent = made(planned())
    counter = "import sys, time\nwhile True:\n  sys.stdout.write('.'); sys.stdout.flush(); time.sleep(0.01)"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", counter], stdout=subprocess.PIPE)
    assert process.stdout is not None
    enter(planned(), process.pid)
    process.stdout.read(1)
    assert not freezer.frozen(intent)
    cgroup_members.freeze(intent)
    assert freezer.frozen(intent)
    os.set_blocking(process.stdout.fileno(), False)
    while process.stdout.read():
        pass
    time.sleep(0.1)
    assert not process.stdout.read()
    cgroup_members.thaw(intent)
    assert not freezer.frozen(intent)
    time.sleep(0.3)
    assert process.stdout.read()
    cgroup_members.freeze(intent)
    cgroup_members.signal_all(intent, signal.SIGKILL)  # also what is frozen
    assert process.wait(5) == -signal.SIGKILL
    process.stdout.close()
    cgroup_members.remove(intent, 2)
    cgroup_members.thaw(intent)  # of what is gone does nothing
    assert not freezer.frozen(intent)


def test_freezing_what_has_no_freezer() -> None:
    with pytest.raises(KernelError):
        cgroup_members.freeze({"v2": False, "groups": []})


def test_signals_reach_all_members(sleeper: Callable[[], int]) -> None:
    intent = made(planned())
    started = [sleeper() for _ in range(5)]
    outside = sleeper()
    for pid in started:
        enter(planned(), pid)
    cgroup_members.signal_all(intent, signal.SIGTERM)
    assert all(ends(pid) for pid in started)
    assert not ends(outside, 0.05)
    enter(planned(), sleeper())
    with pytest.raises(KernelError):
        cgroup_members.signal_all(intent, 99)
    cgroup_members.remove(intent, 5)


# The first process stays outside and takes the orphans: dead ones that nobody reaps would end the forking by themselves.
BOMB = """
import ctypes, os, signal
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
bomb = os.fork()
if bomb:
    os.write(1, b"%d" % bomb)
    signal.pause()
os.read(0, 1)
os.setsid()
while True:
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        pass
"""


@pytest.mark.parametrize("fast", [True, False])
def test_a_process_that_keeps_forking_is_killed(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cgroup.kill, and without it, as on kernels before 5.14 and plain v1."""
    if not fast:
        if not have("freezer") and not V2:
            pytest.skip("no freezer")
        write = cgroup_fs.write

        def without_kill(fd: int, file: str, value: str) -> None:
            if file == "cgroup.kill":
                raise FileNotFoundError(2, "no such file", file)
            write(fd, file, value)

        monkeypatch.setattr(cgroup_members, "write", without_kill)
        listed = cgroup_members.pids

        def slowly(recorded: cgroup.Intent) -> list[int]:
            found = listed(recorded)
            time.sleep(0.02)  # a generation or more: who is not held is gone when the signal comes
            return found

        monkeypatch.setattr(cgroup_members, "pids", slowly)
    intent = made(planned(pids={"limit": 40 if have("pids") else 0}))
    command = [sys.executable, "-I", "-S", "-c", BOMB]
    keepers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(3)]
    try:
        for keeper in keepers:
            assert keeper.stdin
            assert keeper.stdout
            enter(planned(), int(keeper.stdout.read(20)))
            keeper.stdin.write(b"x")
        time.sleep(0.05)
        before = set(cgroup_members.pids(intent))
        deadline = time.monotonic() + 90  # a guest of one processor on a busy machine
        while before & set(cgroup_members.pids(intent)):
            assert time.monotonic() < deadline, "they do not fork"
            time.sleep(0.05)
        cgroup_members.signal_all(intent, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while cgroup_members.pids(intent) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert cgroup_members.pids(intent) == []
    finally:
        monkeypatch.undo()
        cgroup_members.remove(intent, 5)
        for keeper in keepers:
            with keeper:
                keeper.kill()


def test_a_process_that_was_joined_in_part_is_killed(sleeper: Callable[[], int]) -> None:
    """The runtime died while it was joining: the process is in the first hierarchies only."""
    intent = made(planned())
    pid = sleeper()
    first = places(f"{ROOT}/c")[0]
    (first / "cgroup.procs").write_text(str(pid))
    threading.Timer(0.1, lambda: ends(pid)).start()
    cgroup_members.remove(intent, 5)
    assert ends(pid)
    assert there(ROOT) == {False}


def test_removing_kills_what_is_inside(sleeper: Callable[[], int]) -> None:
    intent = made(planned())
    pids = [sleeper() for _ in range(3)]
    for pid in pids:
        enter(planned(), pid)
    threading.Timer(0.1, lambda: [ends(pid) for pid in pids]).start()  # somebody reaps them
    cgroup_members.remove(intent, 5)
    assert there(ROOT) == {False}


# Who may


def facts(host: CgroupHost | None, *, privileged: bool) -> Host:
    return Host(0 if privileged else 1000, 0, os.uname().machine, (6, 1), not privileged, host)


@pytest.fixture
def readonly_host(tmp_path: Path) -> Iterator[CgroupHost]:
    """A hierarchy in which nobody can make anything: a read-only mount."""
    place = tmp_path / "cg"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], check=True)
    try:
        yield CgroupHost("v2", (), str(place), "/", ("memory", "pids"))
    finally:
        subprocess.run(["umount", place], check=True)


def test_rootless_without_permission(readonly_host: CgroupHost) -> None:
    """runc's rule: nothing asked for, nothing made; a limit or a path that cannot be had is an error."""
    host = facts(readonly_host, privileged=False)
    devices = {"devices": [{"allow": False, "access": "rwm"}]}
    assert cgroup.plan({"linux": {"resources": devices}}, host, "id") is None
    assert cgroup.plan({"linux": {"resources": {"cpu": {"shares": 0}}}}, host, "id") is None
    with pytest.raises(Unsupported) as caught:
        cgroup.plan({"linux": {"resources": {**devices, "pids": {"limit": 5}}}}, host, "id")
    assert caught.value.pointer == "/linux/resources/pids"
    with pytest.raises(Unsupported) as caught:
        cgroup.plan({"linux": {"cgroupsPath": "/x"}}, host, "id")
    assert caught.value.pointer == "/linux/cgroupsPath"
    # told to behave as for an ordinary user, root does
    assert cgroup.plan({"linux": {}}, facts(readonly_host, privileged=True), "id", rootless=True) is None
    # root is not spared the error
    plan = cgroup.plan({"linux": {}}, facts(readonly_host, privileged=True), "id")
    assert plan is not None
    with pytest.raises(KernelError):
        cgroup.create(plan)


def test_rootless_with_permission_has_no_device_rules() -> None:
    plan = cgroup.plan(config(), facts(HOST, privileged=False), "id")
    assert plan is not None
    assert plan.writes == ()
    assert plan.device_mount == ""


def test_no_cgroups_at_all() -> None:
    assert cgroup.plan({"linux": {}}, facts(None, privileged=True), "id") is None
    with pytest.raises(Unsupported) as caught:
        cgroup.plan({"linux": {"resources": {"pids": {"limit": 5}}}}, facts(None, privileged=True), "id")
    assert caught.value.pointer == "/linux/resources/pids"


@pytest.mark.skipif(not V2, reason="only v2 has types of groups")
def test_a_group_that_would_be_invalid_is_refused() -> None:
    top = places(ROOT)[0]
    top.mkdir()
    (top / "threads").mkdir()
    (top / "threads/cgroup.type").write_text("threaded")  # makes the parent a threaded domain
    with pytest.raises(Unsupported, match="domain invalid"):
        cgroup.create(planned())
    _empty(top)
