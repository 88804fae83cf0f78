"""A microVM of real QEMU behind its wall, under its own emulation: what the guest has, what the host shows, how it ends.

One guest for most of it: its first program is busybox, with a shell on the channel.
"""

from __future__ import annotations

import os
import platform
import select
import shutil
import signal
import socket
import stat
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import KnarrError
from knarr.isolation import accel, kernels, qemu, vm
from knarr.isolation.initramfs import Entry, initramfs
from knarr.isolation.kinds import Share
from knarr.kernel.process import ended, reap, signal_pid

if TYPE_CHECKING:
    from collections.abc import Iterator

    Parts = tuple[qemu.Hypervisor, kernels.Kernel, str]

FILE, FOLDER = stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755
INIT = """#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules); do busybox insmod $module; done
busybox mkdir /s
busybox mount -t virtiofs knarr /s
until [ -e /dev/vport0p1 ]; do busybox usleep 1000; done
exec 3<>/dev/vport0p1
echo ready >&3
exec busybox sh <&3 >&3 2>&3
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """QEMU, the kernel, and an initramfs with busybox."""
    if os.geteuid() != 0:
        pytest.skip("confining QEMU is tried as root here; the black-box tests do it as an ordinary user")
    busybox = shutil.which("busybox")
    if busybox is None or platform.machine() != "x86_64":
        pytest.skip("needs busybox, on x86_64")
    try:
        hypervisor = qemu.find(os.environ)
        qemu.find_helper(os.environ)
        kernel = kernels.prepare(kernels.find(), accel.cache_directory(), kernels.BASE_MODULES)
    except KnarrError as error:
        pytest.skip(str(error))
    more = [Entry("bin", FOLDER), Entry("bin/busybox", FILE, Path(busybox).read_bytes())]
    path = tmp_path_factory.mktemp("initramfs") / "initramfs"
    path.write_bytes(initramfs(INIT.encode(), kernels.read_modules(kernel.modules), more))
    return hypervisor, kernel, str(path)


class Guest:
    """A launched guest: a shell by its channel, and an end to it."""

    def __init__(self, parts: Parts, **more: object) -> None:
        self.facts = vm.launch(parts[0], settings(parts).replace(**more))
        self.channel = socket.socket(fileno=self.facts.channel)
        self.channel.settimeout(60)
        self.said = b""

    def run(self, command: str) -> str:
        """What the shell prints."""
        self.channel.sendall(f"{command}\necho en''d-of-it $?\n".encode())
        said = b""
        while b"end-of-it" not in said or not said.endswith(b"\n"):
            data = self.channel.recv(65536)
            assert data, self.messages()
            said += data
        return said.decode().partition("end-of-it")[0].strip()

    def messages(self) -> str:
        """All that QEMU and the kernel said."""
        while select.select([self.facts.console], [], [], 0.1)[0] and (data := os.read(self.facts.console, 65536)):
            self.said += data
        return self.said.decode()

    def end(self) -> None:
        self.channel.close()
        os.close(self.facts.console)
        signal_pid(self.facts.pidfd, signal.SIGKILL)
        assert ended(self.facts.pidfd, 10)
        reap(self.facts.pidfd, wait=False)
        os.close(self.facts.pidfd)
        if self.facts.helper is not None:
            self.facts.helper.kill()
            self.facts.helper.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="knarr-vm-test-"))
    yield made
    shutil.rmtree(made)


@cache
def counter() -> int:
    return accel.tsc_khz()


def settings(parts: Parts) -> vm.Settings:
    return vm.Settings(kernel=parts[1].path, initramfs=parts[2], memory=200 << 20, accelerator=accel.TCG, tsc=counter())


@pytest.fixture(scope="module")
def guest(parts: Parts) -> Iterator[tuple[Guest, Path]]:
    """A guest with a share it may read, /s/0, and one it may write to, /s/1, and a file, /s/2/file."""
    made = Path(tempfile.mkdtemp(prefix="knarr-vm-test-"))
    for name in ("seen", "mine"):
        (made / name).mkdir()
    (made / "seen/file").write_text("from the host\n")
    (made / "outside").write_text("not for the guest\n")
    (made / "mine/link").symlink_to(made / "outside")
    shares = (Share(str(made / "seen")), Share(str(made / "mine"), writable=True), Share(str(made / "seen/file")))
    guest = Guest(parts, shares=shares)
    try:
        assert "ready" in guest.run("true")
        yield guest, made
    finally:
        guest.end()
        shutil.rmtree(made)


def test_it_is_another_machine(guest: tuple[Guest, Path], parts: Parts) -> None:
    shell, _ = guest
    assert shell.run("busybox uname -r") == parts[1].release != platform.release()
    total = int(shell.run("busybox sed -n 's/MemTotal: *//p' /proc/meminfo").split()[0])
    assert 100 << 10 < total < 200 << 10
    assert shell.run("busybox grep -c ^processor /proc/cpuinfo") == "1"
    devices = shell.run("busybox ls /sys/class/net /sys/block")
    assert "vda" not in devices
    assert "eth0" not in devices


def test_its_clock_is_right(guest: tuple[Guest, Path]) -> None:
    shell, _ = guest
    assert "tsc" in shell.run("busybox cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    begin = time.monotonic()
    shell.run("busybox sleep 1")
    assert 0.95 < time.monotonic() - begin < 5
    assert abs(int(shell.run("busybox date +%s")) - time.time()) < 5


def test_a_share_is_what_it_was_given_as(guest: tuple[Guest, Path]) -> None:
    shell, top = guest
    assert shell.run("busybox cat /s/0/file /s/2/file") == "from the host\nfrom the host"
    assert "Read-only file system" in shell.run("echo x >/s/0/new")
    assert not (top / "seen/new").exists()
    shell.run("cd /s/1; echo of the guest >new; busybox chown 1234:5678 new; busybox chmod 4750 new; cd /")
    facts = (top / "mine/new").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (1234, 5678, 0o4750)
    (top / "mine/later").write_text("seen at once\n")
    assert shell.run("busybox cat /s/1/later") == "seen at once"


def test_nothing_leads_out_of_the_shares(guest: tuple[Guest, Path]) -> None:
    shell, top = guest
    assert "No such file" in shell.run("busybox cat /s/1/link")  # it is followed in the guest
    assert "No such file" in shell.run(f"busybox cat /s/1/../..{top}/outside")
    assert "denied" in shell.run("busybox mknod /s/1/null c 1 3")
    assert not (top / "mine/null").exists()


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_programs_as_the_host_sees_them(guest: tuple[Guest, Path]) -> None:
    launched = guest[0].facts
    assert launched.helper is not None
    for pid in (launched.pid, launched.helper.pid):
        facts = status(pid)
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"
        for space in ("user", "mnt", "pid", "net", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{space}") != os.readlink(f"/proc/self/ns/{space}"), space
    assert int(status(launched.pid)["CapEff"], 16) == 0
    assert int(status(launched.helper.pid)["CapEff"], 16) & (1 << 21 | 1 << 27) == 0  # SYS_ADMIN, MKNOD
    root = f"/proc/{launched.pid}/root"
    assert not os.path.exists(f"{root}/etc")
    assert not os.path.exists(f"{root}/proc/1")
    assert sorted(os.listdir(f"{root}/dev")) == ["null"]
    assert sorted(os.listdir(f"/proc/{launched.helper.pid}/root")) == ["0", "1", "2"]  # it changed its root


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and status(pid).get("State", "Z")[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    return time.monotonic() < deadline


def test_a_killed_qemu_leaves_nothing(parts: Parts) -> None:
    guest = Guest(parts, shares=(Share("/usr"),))
    assert guest.facts.helper is not None
    helper = guest.facts.helper.pid
    os.kill(guest.facts.pid, signal.SIGKILL)
    assert gone(helper), "virtiofsd ends with its guest"
    assert guest.channel.recv(1) == b""
    guest.end()
    assert gone(guest.facts.pid)
    assert not list(Path(tempfile.gettempdir()).glob("knarr-" + "[0-9a-f]" * 16))


def test_it_dies_with_whoever_started_it(parts: Parts, folder: Path) -> None:
    """A child starts a guest and is killed."""
    word = folder / "pids"
    pid = os.fork()
    if pid == 0:
        guest = Guest(parts, shares=(Share("/usr"),))
        assert guest.facts.helper is not None
        word.with_suffix(".part").write_text(f"{guest.facts.pid} {guest.facts.helper.pid}")
        word.with_suffix(".part").rename(word)
        signal.pause()
    deadline = time.monotonic() + 30
    while not word.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for each in word.read_text().split():
        assert gone(int(each))


def test_a_panic_ends_it_with_its_last_words(parts: Parts, folder: Path) -> None:
    path = folder / "empty"
    path.write_bytes(initramfs(b"#!/none\n", ()))
    guest = Guest(parts, initramfs=str(path))
    try:
        begin = time.monotonic()
        assert guest.channel.recv(1) == b""
        assert time.monotonic() - begin < 30, "nobody reads the console meanwhile"
        assert "Kernel panic" in guest.messages()
    finally:
        guest.end()


def test_a_kernel_that_is_none_is_said(parts: Parts, folder: Path) -> None:
    wrong = folder / "wrong"
    wrong.write_text("no kernel")
    guest = Guest(parts, kernel=str(wrong))
    try:
        assert guest.channel.recv(1) == b""
        assert "qemu" in guest.messages()
    finally:
        guest.end()


def test_a_share_that_is_not_there_is_said(parts: Parts, folder: Path) -> None:
    with pytest.raises(KnarrError, match="no such file"):
        Guest(parts, shares=(Share(str(folder / "none")),))


def test_shares_can_come_after_the_boot(parts: Parts, folder: Path) -> None:
    (folder / "file").write_text("later\n")
    guest = Guest(parts, shares=None)
    try:
        assert guest.run("busybox ls /s") in ("ready", "")
        assert guest.facts.helper is not None
        vm.show(guest.facts.helper.pidfd, (Share(str(folder)), Share(str(folder / "file"))))
        assert guest.run("busybox cat /s/0/file /s/1/file") == "later\nlater"
        assert "Read-only" in guest.run("echo x >/s/0/new")
    finally:
        guest.end()


def test_kvm_is_believed_when_a_guest_booted(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial with emulation in the place of KVM: it finds a guest that says something, and one that does not."""
    monkeypatch.setattr(accel, "PATIENCE", 30.0)
    assert accel.why_not(parts[0], settings(parts), "/dev/null") == ""
    monkeypatch.setattr(accel, "PATIENCE", 0.3)
    assert "did not begin within" in accel.why_not(parts[0], settings(parts), "/dev/null")
    assert "there is no" in accel.why_not(parts[0], settings(parts), "/none")


def test_kvm_itself_is_tried(parts: Parts) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/kvm")
    begin = time.monotonic()
    why = accel.why_not(parts[0], settings(parts).replace(accelerator="kvm", tsc=0), accel.DEVICE)
    assert time.monotonic() - begin < accel.PATIENCE + 3
    assert why == "" or "QEMU ended" in why or "did not begin" in why
