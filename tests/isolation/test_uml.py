"""User-mode Linux found, checked, and its command line."""

from __future__ import annotations

import os
import platform
import shutil
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import FileError, Unsupported
from knarr.isolation import uml

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="user-mode Linux runs on x86_64 only")


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_found_in_path_and_by_its_variable(tmp_path: Path) -> None:
    script(tmp_path / "linux.uml", "echo 6.1.5")
    named = script(tmp_path / "mine", "echo 5.12.0-rc1")
    assert uml.find({"PATH": f"relative:{tmp_path}"}) == uml.Kernel(str(tmp_path / "linux.uml"), "6.1.5")
    assert uml.find({"PATH": str(tmp_path), "KNARR_UML": named}) == uml.Kernel(named, "5.12.0-rc1")


def test_a_missing_one_is_said_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uml, "_FOLDERS", ())
    (tmp_path / "linux.uml").mkdir()
    with pytest.raises(Unsupported, match=r"there is no user-mode Linux.*apt-get install user-mode-linux"):
        uml.find({"PATH": str(tmp_path)})
    with pytest.raises(FileError, match=f"{tmp_path}/gone.*KNARR_UML"):
        uml.find({"KNARR_UML": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("echo 4.19.0", "is Linux 4.19.0, older than 5.12"),
        ("echo hello", "does not answer as user-mode Linux does"),
        ("head -c 1000000 /dev/zero", "does not answer as user-mode Linux does"),
    ],
)
def test_what_is_none_or_too_old_is_refused(tmp_path: Path, answer: str, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        uml.check(script(tmp_path / "linux.uml", answer))


def test_one_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uml, "_PATIENCE", 0.2)
    with pytest.raises(Unsupported, match="does not answer"):
        uml.check(script(tmp_path / "linux.uml", "exec sleep 60"))


def test_the_installed_one_and_its_libraries() -> None:
    if shutil.which("linux.uml") is None:
        pytest.skip("user-mode-linux is not installed")
    kernel = uml.find(os.environ)
    assert tuple(map(int, kernel.release.split(".")[:2])) >= (5, 12)
    assert all(os.path.isfile(file) for _, file in kernel.libraries)
    assert any("libc.so" in inside for inside, _ in kernel.libraries)
    (overlay,) = uml.modules(kernel, ["overlay"])
    assert overlay.endswith("/overlay.ko")
    with pytest.raises(Unsupported, match="has no module nothing"):
        uml.modules(kernel, ["overlay", "nothing"])


def test_the_modules_of_a_package_that_was_only_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/uml/modules/6.12.1"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n")
    found = uml.modules(uml.Kernel(str(tmp_path / "usr/bin/linux.uml"), "6.12.1"), ["a"])
    assert found == [f"{folder}/kernel/b.ko", f"{folder}/kernel/a.ko"]


def test_a_module_that_the_kernel_has_built_in_is_not_loaded(tmp_path: Path) -> None:
    """IPv6, from Linux 7 on."""
    folder = tmp_path / "usr/lib/uml/modules/7.2.7"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/a.ko:\n")
    (folder / "modules.builtin.modinfo").write_text("sit.license=GPL\0ipv6.parm=disable:Disable it\0")
    kernel = uml.Kernel(str(tmp_path / "usr/bin/linux.uml"), "7.2.7")
    assert uml.modules(kernel, ["ipv6", "a"]) == [f"{folder}/kernel/a.ko"]
    with pytest.raises(Unsupported, match="has no module v6"):
        uml.modules(kernel, ["v6"])


@pytest.mark.parametrize(
    ("release", "later"), [("6.1.141", False), ("6.9.0", False), ("6.12.113", True), ("7.2", True)]
)
def test_the_filter_lets_pass_what_that_kernel_needs(release: str, *, later: bool) -> None:
    rules = uml.calls(release)
    names = {name for rule in rules for name in rule["names"]}
    assert ({"memfd_create", "execveat", "prctl", "personality"} <= names) == later
    asked = {name: [rule.get("args") for rule in rules if name in rule["names"]] for name in ("prctl", "personality")}
    assert all(args for each in asked.values() for args in each)  # these only with the arguments it needs


def test_the_command_line() -> None:
    words = uml.command_line(
        "/linux", memory=64 << 20, initramfs="/i", run="/tmp", channel=3, shares="/s", words=("debug",)
    )
    assert words[0] == "/linux"
    assert {"mem=65536k", "initrd=/i", "uml_dir=/tmp", "con1=fd:3", "hostfs=/s", "debug"} <= set(words)
    assert words[-1] == "knarr.channel=tty1"
