from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import FileError, UsageError
from knarr.bundle.options import Ulimit, VolumeMount
from knarr.engine import options

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("100", 100), ("100b", 100), ("64k", 65536), ("64K", 65536), ("512m", 512 << 20), ("512MB", 512 << 20),
     ("2g", 2 << 30), ("2GiB", 2 << 30), ("1.5g", 3 << 29), ("1t", 1 << 40)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert options.parse_size(text, "memory") == size


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "1x", "1 g", "1e3", "+1", "0x10", "1.", "1.5.5", "٣", "1_000", "9" * 30]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        options.parse_size(text, "memory")


def test_cpus() -> None:
    assert options.parse_cpus("0.5") == 0.5
    assert options.parse_cpus("2") == 2.0
    for bad in ("", "x", "-1", "0", "1e3", "inf", "nan", "1.", "1_0", "٢"):
        with pytest.raises(UsageError):
            options.parse_cpus(bad)


def test_ulimits() -> None:
    assert options.parse_ulimit("nofile=1024") == Ulimit("nofile", 1024, 1024)
    assert options.parse_ulimit("NOFILE=1:2") == Ulimit("nofile", 1, 2)
    assert options.parse_ulimit("RLIMIT_CORE=0") == Ulimit("core", 0, 0)
    assert options.parse_ulimit("memlock=-1:unlimited") == Ulimit("memlock", -1, -1)
    for bad in ("", "nofile", "nofile=", "x=1", "nofile=2:1", "nofile=a", "nofile=-2", "nofile=unlimited:5"):
        with pytest.raises(UsageError):
            options.parse_ulimit(bad)


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    here = str(tmp_path)
    assert options.parse_volume(f"{here}:/a") == VolumeMount("bind", "/a", here)
    assert options.parse_volume(f"{here}:/a:ro") == VolumeMount("bind", "/a", here, readonly=True)
    assert options.parse_volume("./src:/a:rw,noexec") == VolumeMount("bind", "/a", f"{here}/src", options=("noexec",))
    assert options.parse_volume(".:/a:z") == VolumeMount("bind", "/a", here, relabel="shared")
    assert options.parse_volume(".:/a:ro,Z,noexec") == VolumeMount(
        "bind", "/a", here, readonly=True, options=("noexec",), relabel="private"
    )
    for bad in ("", "a", "/a", "/tmp:", "name:/x", "/a:/b:/c:/d"):
        with pytest.raises(UsageError):
            options.parse_volume(bad)
    with pytest.raises(FileError, match="no such file"):
        options.parse_volume("/nonexistent-x:/a")
    with pytest.raises(UsageError, match="name of a volume"):
        options.parse_volume("data:/a")
    with pytest.raises(UsageError, match="this one alone"):
        options.parse_volume(".:/a:z,Z")


def test_mounts(tmp_path: Path) -> None:
    here = str(tmp_path)
    bind = options.parse_mount(f"type=bind,src={here},dst=/a,readonly,bind-propagation=rslave")
    assert bind == VolumeMount("bind", "/a", here, readonly=True, options=("rslave",))
    assert options.parse_mount("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=700") == VolumeMount(
        "tmpfs", "/t", options=("size=67108864", "mode=700")
    )
    assert options.parse_mount(f"source={here},target=/a,ro=false").readonly is False
    assert options.parse_mount(f"source={here},target=/a,relabel=private").relabel == "private"
    assert options.parse_mount(f"source={here},target=/a,relabel=shared").relabel == "shared"
    for bad in (f"source={here},target=/a,relabel=Z", "type=tmpfs,target=/a,relabel=shared"):
        with pytest.raises(UsageError, match="relabel"):
            options.parse_mount(bad)
    for bad in ("", "type=bind", "type=volume,target=/x", "type=tmpfs,source=/a,target=/b", "type=bind,x=y,target=/a"):
        with pytest.raises(UsageError):
            options.parse_mount(bad)


def test_tmpfs() -> None:
    assert options.parse_tmpfs("/run") == VolumeMount("tmpfs", "/run")
    assert options.parse_tmpfs("/run:size=1k,exec") == VolumeMount("tmpfs", "/run", options=("size=1024", "exec"))


def test_environment(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\n  B=x=y \nFROM_HOST\nUNSET\n")
    host = {"FROM_HOST": "h", "ALSO": "a", "SECRET_TOKEN": "s"}
    got = options.environment(["ALSO", "UNSET", "A=2", "EMPTY="], [str(file)], host)
    assert got == ("A=1", "B=x=y ", "FROM_HOST=h", "ALSO=a", "A=2", "EMPTY=")
    for bad in ("", "=x", "SECRET*", "A B=1", "A\0=1"):
        with pytest.raises(UsageError):
            options.environment([bad], [], host)
    with pytest.raises(FileError):
        options.environment([], [str(tmp_path / "none")], host)
    file.write_text("SECRET*\n")
    with pytest.raises(UsageError, match="line 1"):
        options.environment([], [str(file)], host)
    file.write_bytes(b"A=\xff\n")
    with pytest.raises(UsageError, match="UTF-8"):
        options.environment([], [str(file)], host)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no-new-privileges", {"allow_new_privs": False}),
        ("no-new-privileges:true", {"allow_new_privs": False}),
        ("no-new-privileges=false", {"allow_new_privs": True}),
        ("seccomp=unconfined", {"seccomp": "unconfined"}),
        ("seccomp=/a/b.json", {"seccomp": "/a/b.json"}),
        ("landlock=/a/rules.json", {"landlock": "/a/rules.json"}),
        ("apparmor=mine", {"apparmor": "mine"}),
        ("apparmor=unconfined", {"apparmor": "unconfined"}),
        ("label=disable", {"selinux": ("disable",)}),
        ("label=a:b:c:s0", {"selinux": ("a:b:c:s0",)}),
        ("label:type:x_t", {"selinux": ("type:x_t",)}),
        ("label=level:s0:c1,c2", {"selinux": ("level:s0:c1,c2",)}),
    ],
)
def test_security_options(text: str, wanted: dict[str, Any]) -> None:
    assert options.parse_security([text]) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "seccomp",
        "seccomp=",
        "landlock=",
        "no-new-privileges=maybe",
        "label=",
        "label=type:",
        "label=x",
        "label=x:y",
        "label=nested",
        "label=type:a b",
        "label=:a:b:c",
        "x=y",
    ],
)
def test_unknown_security_options(text: str) -> None:
    with pytest.raises(UsageError, match="security option"):
        options.parse_security([text])


def test_signals() -> None:
    assert [options.parse_signal(text) for text in ("TERM", "sigterm", "15", "KILL", "9")] == [15, 15, 15, 9, 9]
    for bad in ("", "FOO", "0", "65", "-1"):
        with pytest.raises(UsageError):
            options.parse_signal(bad)


def test_integers() -> None:
    assert options.parse_integer("-1", "x") == -1
    for bad in ("", "+1", "1.0", "٣", "1_0", " 1"):
        with pytest.raises(UsageError):
            options.parse_integer(bad, "x")
