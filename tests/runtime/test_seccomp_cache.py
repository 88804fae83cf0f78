"""runtime/seccomp_cache.py: found, refreshed, never believed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import SpecError
from knarr.plan import seccomp
from knarr.plan.seccomp import compile_filter
from knarr.runtime import seccomp_cache
from knarr.runtime.seccomp_cache import cached_filter, filter_key, known_filter
from knarr.spec.seccomp_default import default_profile

if TYPE_CHECKING:
    import pathlib

PROFILE = default_profile([], "x86_64")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the compiler really ran."""
    calls: list[str] = []

    def counting(profile: dict[str, Any], arch: str) -> bytes:
        calls.append(arch)
        return compile_filter(profile, arch)

    monkeypatch.setattr(seccomp, "compile_filter", counting)
    return calls


def test_a_process_remembers_its_last_filters(
    tmp_path: pathlib.Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp_cache, "_known", {})
    folder = str(tmp_path / "seccomp")
    profiles = [default_profile([], "x86_64"), {"defaultAction": "SCMP_ACT_ALLOW"}]
    for _ in range(2):
        for profile in profiles:
            assert known_filter(folder, profile, "x86_64") == compile_filter(profile, "x86_64")
    assert len(compiled) == 2
    for entry in (tmp_path / "seccomp").iterdir():
        entry.unlink()
    profiles[0]["defaultErrnoRet"] = 7  # another one by then
    assert known_filter(folder, profiles[0], "x86_64") == compile_filter(profiles[0], "x86_64")
    assert len(compiled) == 3
    for number in range(100):
        known_filter(folder, {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": number}, "x86_64")
    assert len(seccomp_cache._known) <= seccomp_cache._KNOWN


def test_a_filter_is_compiled_once(tmp_path: pathlib.Path, compiled: list[str]) -> None:
    folder = tmp_path / "seccomp"
    wanted = compile_filter(PROFILE, "x86_64")
    assert cached_filter(str(folder), PROFILE, "x86_64") == wanted
    assert cached_filter(str(folder), default_profile([], "x86_64"), "x86_64") == wanted
    assert compiled == ["x86_64"]
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_another_profile_machine_or_compiler_is_another_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        filter_key(PROFILE, "x86_64"),
        filter_key(PROFILE, "aarch64"),
        filter_key({**PROFILE, "defaultErrnoRet": 1}, "x86_64"),
        filter_key({**PROFILE, "syscalls": PROFILE["syscalls"][1:]}, "x86_64"),
    }
    monkeypatch.setattr(seccomp_cache, "COMPILER_VERSION", 999)
    keys.add(filter_key(PROFILE, "x86_64"))
    assert len(keys) == 5


@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "magic", "empty", "mode", "link", "fifo", "directory"])
def test_a_file_that_is_not_as_we_wrote_it_is_replaced(tmp_path: pathlib.Path, compiled: list[str], harm: str) -> None:
    wanted = cached_filter(str(tmp_path), PROFILE, "x86_64")
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    if harm == "mode":
        file.chmod(0o622)
    elif harm in ("link", "fifo", "directory"):
        file.unlink()
        other = tmp_path / "elsewhere"
        other.write_bytes(data)
        if harm == "link":
            file.symlink_to(other)
        elif harm == "fifo":
            os.mkfifo(file)
        else:
            file.mkdir()
    else:
        changed = {
            "flip": data[:-1] + bytes([data[-1] ^ 1]),
            "cut": data[:-8],
            "grow": data + bytes(8),
            "magic": b"x" + data[1:],
            "empty": b"",
        }
        file.write_bytes(changed[harm])
    assert cached_filter(str(tmp_path), PROFILE, "x86_64") == wanted
    assert len(compiled) == 2
    assert cached_filter(str(tmp_path), PROFILE, "x86_64") == wanted
    assert len(compiled) == (3 if harm == "directory" else 2)  # a directory cannot be replaced; it only costs time


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_belongs_to_others_is_ignored(tmp_path: pathlib.Path, compiled: list[str]) -> None:
    cached_filter(str(tmp_path), PROFILE, "x86_64")
    (file,) = tmp_path.iterdir()
    os.chown(file, 1000, 1000)
    cached_filter(str(tmp_path), PROFILE, "x86_64")
    os.chown(tmp_path, 1000, 1000)
    cached_filter(str(tmp_path), PROFILE, "x86_64")
    assert len(compiled) == 3


@pytest.mark.parametrize("kind", ["missing parent", "file", "link", "others may write"])
def test_a_directory_that_cannot_be_used_costs_only_time(
    tmp_path: pathlib.Path, compiled: list[str], kind: str
) -> None:
    folder = tmp_path / "cache"
    if kind == "missing parent":
        folder = folder / "below"
    elif kind == "file":
        folder.write_bytes(b"")
    elif kind == "link":
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    for _ in range(2):
        assert cached_filter(str(folder), PROFILE, "x86_64") == compile_filter(PROFILE, "x86_64")
    assert len(compiled) == 2
    assert not list(tmp_path.rglob("?" * 64))


def test_old_filters_go(tmp_path: pathlib.Path, compiled: list[str]) -> None:
    for number in range(70):
        cached_filter(str(tmp_path), {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": number}, "x86_64")
    assert len(list(tmp_path.iterdir())) == 64
    cached_filter(str(tmp_path), {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 69}, "x86_64")
    assert len(compiled) == 70


def test_errors_are_not_cached(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with pytest.raises(SpecError):
            cached_filter(str(tmp_path), {"defaultAction": "SCMP_ACT_NO"}, "x86_64")
    assert list(tmp_path.iterdir()) == []
