"""Containers in a microVM that config.json's section ``vm`` describes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from behind import ISOLATION, need
from blackbox import left_behind, needs_busybox
from disks import ext4, qcow2

from knarr.isolation import accel, guest_vm, kernels

if TYPE_CHECKING:
    from blackbox import Bundle, Runtime

pytestmark = needs_busybox


@pytest.fixture
def machine(bundle: Bundle) -> Bundle:
    """The bundle, for a microVM of the host's kernel, named."""
    need("vm")
    bundle.config["annotations"] = {ISOLATION: "vm"}
    bundle.config["vm"] = {"kernel": {"path": kernels.find()}}
    return bundle


def test_all_of_it_is_honoured(runtime: Runtime, machine: Bundle, tmp_path: Path) -> None:
    """Hypervisor, kernel, their parameters, an initrd, processors and memory."""
    section = machine.config["vm"]
    qemu = f"/usr/bin/qemu-system-{os.uname().machine}"
    section["hypervisor"] = {"path": qemu, "parameters": ["-name", "a-name-of-its-own"]}
    section["kernel"]["parameters"] = ["a.word=1", "two words"]
    (tmp_path / "initrd").write_bytes(b"")
    section["kernel"]["initrd"] = str(tmp_path / "initrd")
    section["hwConfig"] = {"vcpus": 2, "memory": 300 << 20}
    script = "cat /proc/cmdline; grep -c ^processor /proc/cpuinfo; head -n 1 /proc/meminfo"
    id = runtime.new_id()
    done = runtime("run", "-b", machine.write("sh", "-c", script), id)
    assert done.returncode == 0, done.stderr
    line, cpus, memory = done.stdout.splitlines()
    assert "a.word=1 two words" in line
    assert cpus == "2"
    assert 230 << 10 < int(memory.split()[1]) < 300 << 10
    assert left_behind(runtime, id) == []


def test_what_qemu_says_of_its_parameters_is_told(runtime: Runtime, machine: Bundle) -> None:
    qemu = f"/usr/bin/qemu-system-{os.uname().machine}"
    machine.config["vm"]["hypervisor"] = {"path": qemu, "parameters": ["-no-such-option"]}
    done = runtime("run", "-b", machine.write("true"), runtime.new_id())
    assert done.returncode != 0
    assert "-no-such-option: invalid option" in done.stderr


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hwConfig": {"irqs": [5]}}, "config.json /vm/hwConfig/irqs"),
    ({"hwConfig": {"dtdevs": ["/soc/uart"]}}, "config.json /vm/hwConfig/dtdevs"),
    ({"image": {"path": "/root.img", "format": "vmdk"}}, "config.json /vm/image/format"),
    ({"image": {"path": "/none/root.img", "format": "raw"}}, "/none/root.img: no such file"),
    ({"image": {"path": "/dev/null", "format": "raw"}}, "config.json /vm/image/path"),
    ({"hypervisor": {"path": "/bin/true"}}, "config.json /vm/hypervisor/path"),
    ({"hypervisor": {"path": "/none/qemu"}}, "/none/qemu: no such file"),
    ({"kernel": {"path": "/bin/true"}}, "config.json /vm/kernel/path"),
    ({"kernel": {"path": "/none/vmlinuz"}}, "/none/vmlinuz: no such file"),
    ({"kernel": {"path": "/vmlinuz", "parameters": ["--", "sh"]}}, "config.json /vm/kernel/parameters/0"),
]


@pytest.mark.parametrize(("change", "told"), REFUSED)
def test_what_cannot_be_had_is_refused_and_named(
    runtime: Runtime, machine: Bundle, change: dict[str, Any], told: str
) -> None:
    machine.config["vm"].update(change)
    id = runtime.new_id()
    done = runtime("run", "-b", machine.write("true"), id)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(runtime, id) == []


def test_an_image_is_the_root(runtime: Runtime, machine: Bundle, tmp_path: Path) -> None:
    """Written to, the next container finds it; read-only, and with a disk format of QEMU's, it stays as it is."""
    machine.config["vm"]["image"] = {"path": str(ext4(machine.rootfs, tmp_path / "raw")), "format": "raw"}
    shutil.rmtree(machine.rootfs)
    machine.rootfs.mkdir()
    volume = {"destination": "/v", "type": "bind", "source": str(tmp_path / "v"), "options": ["bind"]}
    (tmp_path / "v").mkdir()
    machine.config["mounts"].append(volume)
    script = "echo first > /made; grep -w / /proc/mounts; echo out > /v/out; exit 3"
    done = runtime("run", "-b", machine.write("sh", "-c", script), runtime.new_id())
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.split()[:3] == ["/dev/vda", "/", "ext4"]
    assert (tmp_path / "v/out").read_text() == "out\n"
    assert list(machine.rootfs.iterdir()) == []
    packed = qcow2((tmp_path / "raw").read_bytes())
    (tmp_path / "qcow2").write_bytes(packed)
    machine.config["vm"]["image"] = {"path": str(tmp_path / "qcow2"), "format": "qcow2"}
    machine.config["root"]["readonly"] = True
    script = "cat /made; stat -c %u /made; echo second > /made; ls /v"
    id = runtime.new_id()
    done = runtime("run", "-b", machine.write("sh", "-c", script), id)
    assert done.stdout.split() == ["first", "0", "out"], done.stderr
    assert "Read-only file system" in done.stderr
    assert (tmp_path / "qcow2").read_bytes() == packed
    assert left_behind(runtime, id) == []


def test_memory_and_processors_follow_the_limits(runtime: Runtime, machine: Bundle) -> None:
    machine.config["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "cpu": {"quota": 150000, "period": 100000}}
    if os.geteuid():
        pytest.skip("limits take root, or a delegated cgroup")
    id = runtime.new_id()
    script = "grep -c ^processor /proc/cpuinfo; head -n 1 /proc/meminfo"
    done = runtime("run", "-b", machine.write("sh", "-c", script), id)
    assert done.returncode == 0, done.stderr
    cpus, memory = done.stdout.splitlines()
    assert cpus == "2"
    assert 64 << 10 < int(memory.split()[1]) < 160 << 10


def test_kvm_is_tried_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself, with emulation in the place of KVM and a device that can be opened."""
    need("vm")
    monkeypatch.setenv("KNARR_CACHE", str(tmp_path))
    monkeypatch.setattr(accel, "TRIED", accel.TCG.replace("128", "64"))
    monkeypatch.setattr(accel, "DEVICE", "/dev/null")
    monkeypatch.setattr(accel, "PATIENCE", 60.0)
    assert guest_vm.find_guest({})["accelerator"] == accel.TRIED
    monkeypatch.setattr(accel, "find", None)  # not asked again
    assert guest_vm.find_guest({})["accelerator"] == accel.TRIED
    assert "KVM" in guest_vm.described()


def test_it_tells_why_kvm_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("vm")
    monkeypatch.setenv("KNARR_CACHE", str(tmp_path))
    assert "KVM is tried at the first use" in guest_vm.described()
    found = guest_vm.find_guest({})
    told = guest_vm.described()
    if found["accelerator"] == accel.TCG:
        reasons = ("there is no /dev/kvm", "may not be opened", "QEMU ended: ", "did not begin within")
        assert any(reason in told for reason in reasons), told
    else:
        assert told.endswith(", KVM")


def helpers_of(pid: int) -> list[int]:
    """The processes below it that are a virtiofsd."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if Path(f"/proc/{child}/comm").read_text().startswith("virtiofsd"):
                found.append(child)
            found += helpers_of(child)
    return found


def test_without_virtiofsd_the_container_ends(runtime: Runtime, machine: Bundle) -> None:
    """Its files are gone: a true state, and nothing left."""
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", machine.write("sleep", "100"), id)
    assert runtime.state(id)["status"] == "running"
    (helper,) = helpers_of(runtime.state(id)["pid"])
    os.kill(helper, signal.SIGKILL)
    runtime.wait_for(id, "stopped", 5)
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []
