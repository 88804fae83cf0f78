"""QEMU found and asked, the command lines of both architectures, KVM by trying."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import FileError, SafetyViolation, Unsupported
from knarr.isolation import accel, qemu, vm
from knarr.kernel.process import boot_id

if TYPE_CHECKING:
    from pathlib import Path

X86 = qemu.Hypervisor("/qemu", (7, 2, 22), "x86_64")
ARM = qemu.Hypervisor("/qemu", (8, 0), "aarch64")
MACHINE = qemu.Machine(
    "/kernel", "/initramfs", 200_000_000, 2, accel.TCG, channel=3, console=4, shares=5, tsc=2_596_094
)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def value(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_it_is_found_by_name_variable_and_path(tmp_path: Path) -> None:
    arch = os.uname().machine
    program = script(tmp_path / f"qemu-system-{arch}", "echo QEMU emulator version 9.1.0")
    other = script(tmp_path / "other", "echo 'QEMU emulator version 7.2.22 (Debian 1:7.2)'")
    assert qemu.find({"PATH": str(tmp_path)}) == qemu.Hypervisor(program, (9, 1, 0), arch)
    assert qemu.find({"PATH": str(tmp_path), "KNARR_QEMU": other}).version == (7, 2, 22)
    assert qemu.find({"PATH": "/none", "KNARR_QEMU": "/none"}, other).path == other


def test_a_missing_one_is_said_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "_FOLDERS", ())
    with pytest.raises(Unsupported, match="apt-get install"):
        qemu.find({"PATH": "/none"})
    monkeypatch.setattr(qemu, "_HELPERS", ())
    with pytest.raises(Unsupported, match="apt-get install virtiofsd"):
        qemu.find_helper({})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("echo firecracker 1.0", "does not answer as QEMU does"),
        ("exit 1", "does not answer as QEMU does"),
        ("echo QEMU emulator version 4.2.1", "older than 5.2"),
    ],
)
def test_what_is_none_or_too_old_is_refused(tmp_path: Path, answer: str, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        qemu.check(script(tmp_path / "qemu", answer), "x86_64")


def test_one_that_is_not_there_or_hangs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="no such file"):
        qemu.check(str(tmp_path / "none"), "x86_64")
    monkeypatch.setattr(qemu, "_PATIENCE", 0.2)
    with pytest.raises(Unsupported, match="does not end"):
        qemu.check(script(tmp_path / "qemu", "exec sleep 60"), "x86_64")


def test_the_machine_on_x86_64() -> None:
    words = qemu.command(X86, MACHINE)
    assert value(words, "-M") == "microvm,acpi=on,rtc=on,pit=off,pic=off,memory-backend=memory"
    assert value(words, "-m") == "191M"  # rounded up
    assert value(words, "-object") == "memory-backend-memfd,id=memory,size=191M,share=on"
    assert value(words, "-smp") == "2"
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert value(words, "-sandbox") == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    devices = [words[at + 1] for at, word in enumerate(words) if word == "-device"]
    assert devices == [
        *("virtio-serial-device", "virtserialport,chardev=channel", "vhost-user-fs-device,chardev=shares,tag=knarr")
    ]
    line = value(words, "-append").split()
    assert {"tsc_early_khz=2596094", "tsc=reliable", "console=ttyS0", "rdinit=/init", "knarr.channel=vport0p1"} <= set(
        line
    )


def test_the_machine_on_arm64() -> None:
    words = qemu.command(ARM, MACHINE.replace(device_tree="/devicetree"))
    assert value(words, "-M") == "virt,memory-backend=memory"
    assert value(words, "-dtb") == "/devicetree"
    line = value(words, "-append")
    assert "console=ttyAMA0" in line
    assert "tsc" not in line
    assert "vhost-user-fs-device,chardev=shares,tag=knarr" in words


def test_under_kvm_the_clock_is_left_alone() -> None:
    line = qemu.kernel_line("x86_64", MACHINE.replace(accelerator="kvm"))
    assert "tsc" not in line


def test_what_is_asked_for_stands_where_it_counts() -> None:
    machine = MACHINE.replace(words=("loglevel=7", "rdinit=/bin/sh"), parameters=("-name", "it"), shares=-1)
    words = qemu.command(X86, machine)
    line = value(words, "-append").split()
    assert line.index("loglevel=7") > line.index("quiet")
    assert line.index("rdinit=/init") > line.index("rdinit=/bin/sh")  # the last one counts
    assert words[-2:] == ["-name", "it"]
    assert not [word for word in words if "vhost-user-fs" in word]


def test_both_kinds_of_virtiofsd() -> None:
    assert not qemu.is_rust("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)")
    assert qemu.is_rust("virtiofsd 1.13.2")
    in_c = qemu.helper_command("/v", rust=False, listener=3, directory="/shares")
    assert in_c[:3] == ["/v", "--fd=3", "--rlimit-nofile=0"]
    assert "modcaps=-mknod" in in_c[-1]
    assert "--shared-dir=/shares" in qemu.helper_command("/v", rust=True, listener=3, directory="/shares")


# -- KVM by trying -----------------------------------------------------------------------------------------------------


SMALL = vm.Settings("/none", "/none", 128 << 20, accelerator="kvm")


def test_without_the_device_nothing_is_tried(tmp_path: Path) -> None:
    found = accel.find(X86, str(tmp_path), SMALL, str(tmp_path / "kvm"))
    assert (found.name, found.why) == (accel.TCG, f"there is no {tmp_path}/kvm")
    assert accel.remembered(X86, str(tmp_path)) == found


def test_the_answer_is_kept_for_this_boot_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "why_not", lambda *_: "")
    (tmp_path / "accel-another-boot-7.2-0").touch()
    (tmp_path / "vmlinux-1").touch()
    assert accel.remembered(X86, str(tmp_path)) is None
    assert accel.find(X86, str(tmp_path), SMALL) == accel.Acceleration("kvm")
    assert accel.remembered(X86, str(tmp_path)) == accel.Acceleration("kvm")
    assert accel.remembered(ARM, str(tmp_path)) is None
    assert not (tmp_path / "accel-another-boot-7.2-0").exists()
    assert (tmp_path / "vmlinux-1").exists()
    kept = next(tmp_path.glob(f"accel-{boot_id()}-7.2.22-*"))
    kept.write_text("kvm\n")  # not as it is written
    assert accel.remembered(X86, str(tmp_path)) is None
    assert accel.find(X86, "", SMALL).name == "kvm"
    assert accel.remembered(X86, "") is None


def test_the_cache_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNARR_CACHE", str(tmp_path / "a/b"))
    assert accel.cache_directory() == str(tmp_path / "a/b")
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "a/b").chmod(0o777)
    with pytest.raises(SafetyViolation, match="another user"):
        accel.cache_directory()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the counter is x86's")
def test_the_time_stamp_counter_is_measured() -> None:
    found = [accel.tsc_khz() for _ in range(3)]
    assert max(found) - min(found) < found[0] // 1000, "a thousandth is more than a clock may be wrong by"
    assert 100_000 < found[0] < 10_000_000
