"""Bad input to knarr-runtime: one sentence that names the field or the file, exit code 1, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
from pathlib import Path
from typing import Any

import pytest
from blackbox import BUSYBOX, Bundle, Runtime, left_behind, mounts_at, needs_busybox, needs_root

pytestmark = [needs_busybox, needs_root]


def refused(runtime: Runtime, bundle: Path | str, *words: str) -> str:
    """Create and run it; both must refuse, alike, and leave nothing. Returns the message."""
    said = ""
    for verb in ("create", "run"):
        id = runtime.new_id()
        done = runtime(verb, "--bundle", str(bundle), *words, id)
        assert done.returncode == 1, done
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert left_behind(runtime, id, 1) == []
        assert mounts_at(runtime.root.parent) == []
        said = done.stderr
    assert not runtime.root.exists() or set(os.listdir(runtime.root)) <= {".locks", ".seccomp"}
    return said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "config.json"),
        ("{", "line 1"),
        ("null", "object"),
        ("[]", "object"),
        ('{"ociVersion": "1.0.2"} trailing', "config.json"),
        ('{"ociVersion": "1.0.2", "ociVersion": "1.0.2"}', "ociVersion"),
        ("\ufeff{}", "config.json"),
        ("[" * 200_000, "config.json"),
        ('{"ociVersion": "99.0.0"}', "/ociVersion"),
    ],
)
def test_documents(content: str, words: str, ours: Runtime, bundle: Bundle) -> None:
    (bundle.path / "config.json").write_text(content, encoding="utf-8")
    assert words in refused(ours, bundle.path)


@pytest.mark.parametrize(
    ("path", "value", "pointer"),
    [
        (("process", "args"), [], "/process/args"),
        (("process", "cwd"), "relative", "/process/cwd"),
        (("process", "user", "uid"), True, "/process/user/uid"),
        (("process", "env"), ["=x"], "/process/env/0"),
        (("process", "rlimits"), [{"type": "RLIMIT_FOO", "soft": 1, "hard": 1}], "/process/rlimits/0/type"),
        (("root",), None, "/root"),
        (("linux", "namespaces"), [{"type": "foo"}], "/linux/namespaces/0/type"),
        (("linux", "namespaces"), [{"type": "pid"}, {"type": "pid"}], "/linux/namespaces"),
        (("linux", "sysctl"), {"kernel.core_pattern": "x"}, "/linux/sysctl"),
        (("linux", "uidMappings"), [{"containerID": 0, "hostID": 0, "size": 1}], "/linux"),
        (("linux", "maskedPaths"), ["relative"], "/linux/maskedPaths/0"),
        (("linux", "seccomp"), {"defaultAction": "SCMP_ACT_FOO"}, "/linux/seccomp/defaultAction"),
        (("linux", "resources"), {"memory": {"limit": -5}}, "/linux/resources/memory/limit"),
        (("hooks",), {"prestart": [{"path": "relative"}]}, "/hooks/prestart/0/path"),
        (("hooks",), {"poststop": [{"path": "/x", "timeout": 0}]}, "/hooks/poststop/0/timeout"),
        (("hostname",), "x" * 65, "/hostname"),
        (("mounts",), [{"destination": "/x", "type": "tmpfs", "source": 3}], "/mounts/0/source"),
    ],
)
def test_fields(path: tuple[str, ...], value: Any, pointer: str, ours: Runtime, bundle: Bundle) -> None:
    place = bundle.config
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    said = refused(ours, bundle.write())
    assert 'msg="config.json /' in said
    assert f" {pointer}" in said


def test_all_findings_at_once(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["process"]["cwd"] = "x"
    bundle.config["hostname"] = "x" * 65
    said = refused(ours, bundle.write())
    assert "/process/cwd" in said
    assert "/hostname" in said


def test_bundles_that_are_none(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    assert "bundle /no/such does not exist" in refused(ours, "/no/such")
    (tmp_path / "empty").mkdir()
    assert f"config.json in bundle {tmp_path}/empty does not exist" in refused(ours, tmp_path / "empty")
    for make in (os.mkfifo, os.mkdir):
        place = tmp_path / make.__name__
        place.mkdir()
        make(place / "config.json")
        assert "cannot read" in refused(ours, place)
    shutil.rmtree(bundle.rootfs)
    assert "config.json /root/path: open root directory" in refused(ours, bundle.write())


def test_what_the_kernel_refuses_is_told_with_its_field(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"})
    assert "config.json /mounts/5: mount nosuchfs on /x: no such device" in refused(ours, bundle.write())
    bundle.config["mounts"][5] = {"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}
    assert "config.json /mounts/5: bind /no/such on /x: no such file or directory" in refused(ours, bundle.write())
    del bundle.config["mounts"][5]
    bundle.config["linux"]["namespaces"][1]["path"] = "/no/such/ns"
    assert "config.json /linux/namespaces/1: join namespace /no/such/ns" in refused(ours, bundle.write())
    bundle.config["linux"]["namespaces"][1]["path"] = "/proc/self/ns/uts"
    assert "it is not a namespace of that type" in refused(ours, bundle.write())
    fifo = bundle.path / "fifo"
    os.mkfifo(fifo)
    bundle.config["linux"]["namespaces"][1]["path"] = str(fifo)
    assert "/linux/namespaces/1" in refused(ours, bundle.write())  # runc 1.1 and crun 1.8 hang for ever


def dynamic_elf(loader: bytes) -> bytes:
    """The smallest program for this machine that asks for a loader."""
    machine = Path(BUSYBOX).read_bytes()[18:20]
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<H", 3) + machine
    head += struct.pack("<IQQQIHHHHHH", 1, 0x100, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    end = 64 + 2 * 56
    loaded = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0x1000, 0x1000, 0x1000)
    interpreter = struct.pack("<IIQQQQQQ", 3, 4, end, end, end, len(loader) + 1, len(loader) + 1, 1)
    return (head + interpreter + loaded + loader + b"\0").ljust(0x1000, b"\0")


def elf_for_another_machine() -> bytes:
    with open(BUSYBOX, "rb") as file:
        data = bytearray(file.read(4096))
    struct.pack_into("<H", data, 18, 243 if data[18] != 243 else 62)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "mode", "words"),
    [
        ("tool", None, 0, "executable file not found in $PATH"),
        ("/tool", None, 0, "no such file or directory"),
        ("/etc", None, 0, "permission denied: /etc is a directory"),
        ("/tool", b"#!/bin/sh\n", 0o644, "permission denied: /tool has no execute permission (mode 0644)"),
        ("/tool", b"#!/no/such\n", 0o755, "no such file or directory: /tool needs the interpreter /no/such"),
        ("/tool", b"#!/bin/sh\r\nexit\r\n", 0o755, "ends with a carriage return"),
        ("/tool", b"", 0o755, "exec format error: /tool is empty"),
        ("/tool", b"garbage", 0o755, "exec format error: /tool is neither"),
        ("/tool", "elf", 0o755, "exec format error: /tool is made for"),
        ("/tool", b"garbage", 0o755, "(give it a first line such as #!/bin/sh)"),
        ("/tool", b"#!/no/such\n", 0o755, "(add it to the image, or change the first line)"),
        ("/tool", b"#! /tool\n", 0o755, "the interpreter of /tool is a script with an interpreter"),
        ("/tool", b"\xef\xbb\xbf#!/bin/sh\n", 0o755, "starts with a byte order mark"),
        (
            "/tool",
            "link",
            0o755,
            "no such file or directory: /tool is a symbolic link to /nowhere, which does not exist",
        ),
        ("linked", "link", 0o755, "executable file not found in $PATH: /bin/linked is a symbolic link to /nowhere"),
        ("/tool", "dynamic", 0o755, "/tool needs the loader /lib64/ld-linux-x86-64.so.2, which does not exist"),
        ("/tool", "musl", 0o755, "/tool needs the loader /lib/ld-musl-x86_64.so.1, which does not exist"),
        ("/tool", "musl", 0o755, "it was built for musl, as Alpine has it"),
    ],
)
def test_programs_that_cannot_run(
    name: str, content: Any, mode: int, words: str, ours: Runtime, bundle: Bundle
) -> None:
    tool = bundle.rootfs / "tool"
    made = {
        "elf": elf_for_another_machine(),
        "dynamic": dynamic_elf(b"/lib64/ld-linux-x86-64.so.2"),
        "musl": dynamic_elf(b"/lib/ld-musl-x86_64.so.1"),
    }
    if content == "link":
        tool = tool if name == "/tool" else bundle.rootfs / "bin/linked"
        tool.symlink_to("/nowhere")
    elif content is not None:
        tool.write_bytes(made.get(content, content))
        tool.chmod(mode)
    path = bundle.write(name)
    id = ours.new_id()
    done = ours("run", "--bundle", path, id)
    assert done.returncode == 1
    assert words in done.stderr
    assert f'exec \\"{name}\\"' in done.stderr
    assert left_behind(ours, id) == []
    # What can be known before the start is known at create; the kernel's own refusals come with start.
    id = ours.new_id()
    done = ours("create", "--bundle", path, id)
    if done.returncode == 0:
        done = ours("start", id)
        assert ours.wait_for(id, "stopped")
    assert done.returncode == 1
    assert words in done.stderr


def test_a_program_on_a_mount_with_noexec(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    shutil.copy(BUSYBOX, tmp_path / "volume/true")
    bundle.config["mounts"].append(
        {"destination": "/v", "type": "bind", "source": str(tmp_path / "volume"), "options": ["bind", "noexec"]}
    )
    assert "permission denied: /v/true lies on a mount with noexec" in refused(ours, bundle.write("/v/true"))


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs here")
def test_the_systemd_driver_without_systemd(ours: Runtime, bundle: Bundle) -> None:
    done = ours("--systemd-cgroup", "create", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert "the systemd cgroup driver is not supported: systemd does not run on this machine" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["--frob"], ["frob"], ["create"], ["create", "a", "b"], ["state", "--json", "x"], ["--rootless", "maybe", "list"]],
)
def test_usage(words: list[str], ours: Runtime) -> None:
    done = ours(*words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_is_runcs(form: str, tmp_path: Path) -> None:
    said = {}
    for name in ("knarr", "runc"):
        runtime = Runtime(name, tmp_path)
        log = tmp_path / f"{name}.log"
        log.write_text("before\n")
        done = runtime("--log", str(log), "--log-format", form, "state", "nobody")
        assert done.returncode == 1
        assert done.stderr.strip().endswith("does not exist")  # plain, for people
        first, line = log.read_text().splitlines()
        assert first == "before"
        said[name] = line
        bare = runtime("--log-format", form, "state", "nobody").stderr
        assert bare.count("\n") == 1
        assert ("level=error" in bare) is (form == "text")
    if form == "json":
        documents = {name: json.loads(line) for name, line in said.items()}
        assert [*documents["knarr"]] == [*documents["runc"]]
        assert documents["knarr"]["level"] == "error"
    else:
        shapes = {name: [word.partition("=")[0] for word in line.split(" ")[:3]] for name, line in said.items()}
        assert shapes["knarr"] == shapes["runc"] == ["time", "level", "msg"]


def test_a_root_that_others_own(ours: Runtime, bundle: Bundle) -> None:
    ours.root.mkdir(mode=0o777)
    ours.root.chmod(0o777)
    done = ours("create", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert "writable by others" in done.stderr
    ours.root.chmod(0o700)


def test_warnings_do_not_stop_the_container(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["process"]["capabilities"]["bounding"].append("CAP_FROB")
    done = ours("--log", str(tmp_path / "log"), "run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 0
    assert "CAP_FROB" in (tmp_path / "log").read_text()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o644


@pytest.mark.skipif(" resctrl " in Path("/proc/self/mountinfo").read_text(), reason="resctrl is mounted here")
def test_intel_rdt_without_resctrl(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["intelRdt"] = {"closID": "gold", "l3CacheSchema": "L3:0=f"}
    said = refused(ours, bundle.write())
    assert "config.json /linux/intelRdt: linux.intelRdt is not supported: no resctrl file system is mounted" in said
