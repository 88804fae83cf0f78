"""Malformed and hostile config.json: what each is, and what must come of it. Data for test_config_corpus.py.

    python tests/runtime/config_corpus.py --runtime runc     what another runtime makes of them: docs/security.md

The numbers group the cases; docs/security.md has the list.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blackbox import Bundle, Runtime, cgroups_named, default_config, left_behind, mounts_at

GONE = object()
Prepare = Callable[[Bundle], None]


class Case:
    """One config.json. ``wanted``: the pointer that a refusal must name, or None when the container must run.

    ``script`` is what runs in it, ``code`` its exit code (139: the kernel ended it, nobody else can say a word), ``says`` what it must print (a line each); ``either``: it may also be refused, but
    then with that pointer.
    """

    def __init__(
        self,
        number: int,
        name: str,
        what: dict[str, Any] | bytes | Prepare,
        wanted: str | None = None,
        *,
        script: str = "",
        says: str | None = None,
        warns: str = "",
        either: bool = False,
        code: int = 0,
    ) -> None:
        self.number, self.name, self.what, self.wanted = number, name, what, wanted
        self.script, self.says, self.warns, self.either, self.code = script, says, warns, either, code

    def __str__(self) -> str:
        return f"{self.number} {self.name}"

    def make(self, bundle: Bundle) -> str:
        """Write the bundle; its path."""
        args = ("sh", "-c", self.script) if self.script else ()
        if isinstance(self.what, dict):
            for pointer, value in self.what.items():
                put(bundle.config, pointer, value)
            if args:
                put(bundle.config, "/process/args", [*args])
            (bundle.path / "config.json").write_text(json.dumps(bundle.config))
            return str(bundle.path)
        if isinstance(self.what, bytes):
            path = bundle.write(*args)
            (bundle.path / "config.json").write_bytes(self.what)
            return path
        path = bundle.write(*args)
        self.what(bundle)
        return path


def put(config: dict[str, Any], pointer: str, value: Any) -> None:
    """Set, append (``-``) or remove (GONE) what a JSON pointer names."""
    *places, last = [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]
    place: Any = config
    for token in places:
        place = place[int(token)] if isinstance(place, list) else place.setdefault(token, {})
    if last == "-":
        place.append(value)
    elif value is GONE:
        del place[int(last) if isinstance(place, list) else last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value


def text_of(old: str, new: bytes) -> bytes:
    """The default config.json with one text replaced by bytes that no JSON writer makes."""
    return json.dumps(default_config()).encode().replace(old.encode(), new)


def patched(change: dict[str, Any], *, before: Prepare) -> Prepare:
    """A change of the config together with one of the bundle."""

    def prepare(bundle: Bundle) -> None:
        before(bundle)
        for pointer, value in change.items():
            put(bundle.config, pointer, value)
        bundle.write()

    return prepare


def spaces(*kinds: str) -> list[dict[str, str]]:
    return [{"type": kind} for kind in kinds]


def without(kind: str) -> list[dict[str, str]]:
    return spaces(*(each for each in ("pid", "network", "ipc", "uts", "mount") if each != kind))


def tmpfs(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": [*options]}


def bind(source: str, destination: str, *options: str, kind: str | None = "bind") -> dict[str, Any]:
    made = {"destination": destination, "type": kind, "source": source, "options": ["rbind", *options]}
    return made if kind else {name: value for name, value in made.items() if name != "type"}


def namespace(kind: str, path: str) -> list[dict[str, str]]:
    return [*without(kind), {"type": kind, "path": path}]


def fifo(bundle: Bundle) -> None:
    path = bundle.path / "fifo"
    os.mkfifo(path)
    bundle.config["linux"]["namespaces"] = namespace("uts", str(path))
    bundle.write()


def config_is(make: Callable[[Path], None]) -> Prepare:
    def prepare(bundle: Bundle) -> None:
        (bundle.path / "config.json").unlink()
        make(bundle.path / "config.json")

    return prepare


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


def elsewhere(path: Path) -> None:
    other = path.parent / "other.json"
    other.write_text(json.dumps(default_config()))
    path.symlink_to(other)


def link_root(bundle: Bundle) -> None:
    (bundle.path / "link").symlink_to("rootfs")


def link(name: str, target: str) -> Prepare:
    def prepare(bundle: Bundle) -> None:
        place = bundle.rootfs / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.symlink_to(target)

    return prepare


def file(name: str, content: str = "seen", mode: int = 0o644) -> Prepare:
    def prepare(bundle: Bundle) -> None:
        (bundle.rootfs / name).write_text(content)
        (bundle.rootfs / name).chmod(mode)

    return prepare


def setuid_busybox(bundle: Bundle) -> None:
    (bundle.rootfs / "suid").mkdir()
    shutil.copy(bundle.rootfs / "bin/busybox", bundle.rootfs / "suid/id")
    (bundle.rootfs / "suid/id").chmod(0o4755)
    bundle.rootfs.chmod(0o755)


def many_dirs(bundle: Bundle) -> None:
    for number in range(1000):
        (bundle.rootfs / f"d{number}").mkdir()
        (bundle.rootfs / f"d{number}/x").touch()


def outside(bundle: Bundle) -> Path:
    path = bundle.path.parent / "outside"
    path.mkdir(exist_ok=True)
    (path / "f").write_text("keep")
    return path


def dest_through_link(how: str) -> Prepare:
    def prepare(bundle: Bundle) -> None:
        target = str(outside(bundle))
        (bundle.rootfs / "l").symlink_to(target if how == "absolute" else "../" * 12 + target[1:])
        bundle.config["mounts"].append(tmpfs("/l/x"))
        bundle.write()

    return prepare


def node(bundle: Bundle) -> None:
    os.mknod(bundle.rootfs / "dev/own", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    bundle.config["mounts"] = [
        entry for entry in bundle.config["mounts"] if not entry["destination"].startswith("/dev")
    ]
    bundle.config["linux"]["devices"] = [{**CHAR, "path": "/dev/own"}]
    bundle.write()


def hooks(kind: str, **hook: Any) -> dict[str, Any]:
    return {"/hooks": {kind: [hook]}}


def seccomp(*calls: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"/linux/seccomp": {"defaultAction": default, "syscalls": [*calls], **more}}


def call(name: str = "getcwd", action: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": action, **more}


def rlimit(kind: str, soft: Any, hard: Any) -> dict[str, Any]:
    return {"/process/rlimits": [{"type": kind, "soft": soft, "hard": hard}]}


def memory(**limits: Any) -> dict[str, Any]:
    return {"/linux/resources/memory": limits}


MAP = {"containerID": 0, "hostID": 0, "size": 65536}
USER = {"/linux/namespaces/-": {"type": "user"}}
CHAR = {"path": "/dev/x", "type": "c", "major": 1, "minor": 3}
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart")

CASES: list[Case] = [
    # the document
    Case(1, "empty", b"", "config.json"),
    Case(1, "an open brace", b"{", "line 1"),
    Case(1, "no JSON", b"hello", "line 1"),
    Case(1, "NaN", text_of('"uid": 0', b'"uid": NaN'), "config.json"),
    Case(1, "an endless number", text_of('"uid": 0', b'"uid": 1' + b"0" * 400), "/process/user/uid"),
    Case(1, "a byte order mark", b"\xef\xbb\xbf" + text_of("x", b"x"), "config.json"),
    Case(2, "null", b"null", "object"),
    Case(2, "an array", b"[]", "object"),
    Case(3, "text after it", text_of("x", b"x") + b" x", "config.json"),
    Case(4, "a name twice", b'{"ociVersion":"1.0.2",' + text_of("x", b"x")[1:], "ociVersion"),
    Case(5, "200,000 levels", b"[" * 200_000, "config.json"),
    Case(6, "invalid UTF-8", text_of('"box"', b'"b\xff"'), "config.json"),
    Case(6, "half a surrogate pair", text_of('"box"', b'"b\\ud800"'), "config.json"),
    Case(7, "a boolean for a number", {"/process/user/uid": True}, "/process/user/uid"),
    *(Case(8, f"uid {uid}", {"/process/user/uid": uid}, "/process/user/uid") for uid in (0.5, -1, 1 << 32, "0")),
    *(Case(10, f"version {v}", {"/ociVersion": v}, "/ociVersion") for v in ("99.0.0", "abc", "")),
    Case(10, "no version", {"/ociVersion": GONE}, "/ociVersion"),
    Case(11, "no process", {"/process": GONE}, "/process"),
    Case(11, "no root", {"/root": GONE}, "/root"),
    Case(11, "no linux", {"/linux": GONE, "/hostname": GONE}, script="echo fine", says="fine", warns="chroot"),
    Case(
        12,
        "unknown fields",
        {"/foo": 1, "/process/bar": None, "/linux/foo": {"x": []}, "/mounts/0/foo": True, "/linux/resources/foo": 0},
        script="echo fine",
        says="fine",
    ),
    Case(13, "an object for a list", {"/mounts": {}}, "/mounts"),
    Case(13, "a list for an object", {"/linux/resources": []}, "/linux/resources"),
    Case(13, "a text for a list", {"/process/args": "true"}, "/process/args"),
    Case(14, "a FIFO", config_is(os.mkfifo), "config.json"),
    Case(14, "a directory", config_is(os.mkdir), "config.json"),
    Case(14, "1 GiB", config_is(huge), "config.json"),
    Case(14, "a link", config_is(elsewhere)),
    # process
    Case(17, "no arguments", {"/process/args": []}, "/process/args"),
    Case(18, "a missing program", {"/process/args": ["nosuch"]}, "/process/args/0"),
    Case(18, "a directory", {"/process/args": ["/etc"]}, "/process/args/0"),
    Case(18, "an empty name", {"/process/args": [""]}, "/process/args/0"),
    Case(18, "no execute permission", patched({"/process/args": ["/tool"]}, before=file("tool")), "/process/args/0"),
    Case(20, "an empty directory", {"/process/cwd": ""}, "/process/cwd"),
    Case(20, "a relative directory", {"/process/cwd": "tmp"}, "/process/cwd"),
    Case(21, "a missing directory", {"/process/cwd": "/new/dir"}, script="pwd", says="/new/dir"),
    Case(21, "a directory above the root", {"/process/cwd": "/../../tmp"}, script="pwd", says="/tmp"),
    Case(21, "a file", patched({"/process/cwd": "/f"}, before=file("f")), "/process/cwd"),
    *(
        Case(22, f"a magic directory: {path}", patched({"/process/cwd": path}, before=link("w", target)), "/process/cwd")
        for path, target in (
            ("/proc/self/fd/7", "x"),
            ("/proc/self/cwd/x", "x"),
            ("/w", "/proc/self/fd/7"),
            ("/w/../..", "/proc/self/fd/7"),
        )
    ),
    Case(23, "no equals sign", {"/process/env": ["NOEQ"]}, "/process/env/0"),
    Case(23, "no name", {"/process/env": ["=x"]}, "/process/env/0"),
    Case(23, "NUL", {"/process/env": ["A=\0"]}, "/process/env/0"),
    Case(25, "a user name", {"/process/user/username": "bob"}, script="id -u", says="0", warns="/process/user/username"),
    Case(26, "groups twice", {"/process/user/additionalGids": [5, 5, 6]}, script="id -G", says="0 5 6"),
    Case(26, "100,000 groups", {"/process/user/additionalGids": [*range(100_000)]}, "/process/user/additionalGids"),
    Case(27, "umask 07777", {"/process/user/umask": 0o7777}, "/process/user/umask"),
    Case(27, "umask -1", {"/process/user/umask": -1}, "/process/user/umask"),
    Case(29, "height -1", {"/process/consoleSize": {"height": -1, "width": 1}}, "/process/consoleSize/height"),
    Case(30, "an unknown limit", rlimit("RLIMIT_FOO", 1, 1), "/process/rlimits/0/type"),
    Case(30, "soft above hard", rlimit("RLIMIT_CORE", 2, 1), "/process/rlimits/0"),
    Case(30, "a negative limit", rlimit("RLIMIT_CORE", -1, 1), "/process/rlimits/0/soft"),
    Case(30, "2^64", rlimit("RLIMIT_CORE", 1, 1 << 64), "/process/rlimits/0/hard"),
    Case(31, "a limit twice", {"/process/rlimits": [{"type": "RLIMIT_CORE", "soft": n, "hard": n} for n in (1, 2)]}, "/process/rlimits/1"),
    Case(32, "3 files", rlimit("RLIMIT_NOFILE", 3, 3), script="ulimit -n", says="3"),
    Case(32, "1 process", rlimit("RLIMIT_NPROC", 1, 1), script="echo fine", says="fine"),
    Case(32, "no file size", rlimit("RLIMIT_FSIZE", 0, 0), script="exit 0"),
    Case(32, "no data", rlimit("RLIMIT_DATA", 0, 0), script="echo fine", code=139),
    Case(32, "1 MiB of addresses", rlimit("RLIMIT_AS", 1 << 20, 1 << 20), script="echo fine", code=139),
    Case(33, "an unknown capability", {"/process/capabilities/bounding/-": "CAP_FOO"}, script="echo fine", says="fine", warns="CAP_FOO"),
    Case(33, "lower case", {"/process/capabilities/bounding/-": "cap_chown"}, script="echo fine", says="fine", warns="cap_chown"),
    Case(34, "ambient alone", {"/process/capabilities/ambient": ["CAP_KILL"]}, script="grep CapAmb /proc/self/status", says="CapAmb:\t0000000000000000"),
    Case(34, "effective beyond permitted", {"/process/capabilities/effective/-": "CAP_CHOWN"}, "/process/capabilities/effective"),
    Case(35, "score 9999", {"/process/oomScoreAdj": 9999}, "/process/oomScoreAdj"),
    Case(35, "score -1000", {"/process/oomScoreAdj": -1000}, "/process/oomScoreAdj", script="cat /proc/self/oom_score_adj", says="-1000", either=True),
    *(Case(36, f"AppArmor {word!r}", {"/process/apparmorProfile": word}, "/process/apparmorProfile") for word in ("nosuch", "a\nb", "a\0b")),
    *(Case(36, f"SELinux {word!r}", {"/process/selinuxLabel": word}, "/process/selinuxLabel") for word in ("a:b:c:d", "a\nb", "a\0b")),
    Case(37, "set-user-ID with no_new_privs", patched({"/process/user": {"uid": 1000, "gid": 1000}, "/process/args": ["/suid/id", "-u"]}, before=setuid_busybox), says="1000"),
    Case(37, "a filter without CAP_SYS_ADMIN", {"/process/noNewPrivileges": False, "/process/capabilities": {}, **seccomp(call())}, script="grep Seccomp: /proc/self/status", says="Seccomp:\t2"),
    Case(38, "an unknown policy", {"/process/scheduler": {"policy": "SCHED_FOO"}}, "/process/scheduler/policy"),
    Case(38, "nice with FIFO", {"/process/scheduler": {"policy": "SCHED_FIFO", "nice": 3, "priority": 1}}, "/process/scheduler/nice"),
    Case(38, "runtime above period", {"/process/scheduler": {"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 4000, "period": 4000}}, "/process/scheduler"),
    Case(38, "I/O class", {"/process/ioPriority": {"class": "X", "priority": 1}}, "/process/ioPriority/class"),
    Case(38, "I/O level 9", {"/process/ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 9}}, "/process/ioPriority/priority"),
    Case(38, "affinity of letters", {"/process/execCPUAffinity": {"initial": "a"}}, "/process/execCPUAffinity/initial"),
    Case(39, "personality", {"/linux/personality": {"domain": "FOO"}}, "/linux/personality/domain"),
    Case(39, "personality with flags", {"/linux/personality": {"domain": "LINUX", "flags": ["x"]}}, "/linux/personality/flags"),
    # root, namespaces, ids, sysctl
    Case(41, "the root is a link", patched({"/root/path": "link"}, before=link_root), "/root/path"),
    Case(41, "the root by way of ..", {"/root/path": "rootfs/../rootfs"}, script="echo fine", says="fine"),
    Case(43, "propagation foo", {"/linux/rootfsPropagation": "foo"}, "/linux/rootfsPropagation"),
    Case(43, "a shared root", {"/linux/rootfsPropagation": "shared"}, script="echo fine", says="fine"),
    Case(44, "an unknown namespace", {"/linux/namespaces/-": {"type": "foo"}}, "/linux/namespaces/5/type"),
    Case(45, "a namespace twice", {"/linux/namespaces/-": {"type": "pid"}}, "/linux/namespaces/5/type"),
    *(
        Case(46, f"namespace {path}", {"/linux/namespaces": namespace("uts", path), "/hostname": GONE}, "/linux/namespaces/4")
        for path in ("/no/such", "relative", "/etc/passwd", "/proc/self/ns/net", "/proc/self/ns")
    ),
    Case(46, "a path of 5,000 bytes", {"/linux/namespaces": namespace("uts", "/" + "x" * 5000)}, "/linux/namespaces/4/path"),
    Case(47, "namespace by a FIFO", fifo, "/linux/namespaces/4"),
    Case(49, "masks without a mount namespace", {"/linux/namespaces": without("mount")}, "/linux/maskedPaths"),
    Case(49, "mounts without a mount namespace", {"/linux/namespaces": without("mount"), "/linux/maskedPaths": GONE, "/linux/readonlyPaths": GONE}, script="echo fine", says="fine", warns="chroot"),
    Case(50, "a host name without uts", {"/linux/namespaces": without("uts")}, "/hostname"),
    Case(50, "a domain name without uts", {"/linux/namespaces": without("uts"), "/hostname": GONE, "/domainname": "x"}, "/domainname"),
    Case(50, "65 characters", {"/hostname": "x" * 65}, "/hostname"),
    Case(50, "NUL", {"/hostname": "a\0b"}, "/hostname"),
    Case(51, "user namespace without maps", USER, "/linux/uidMappings"),
    Case(52, "maps without user namespace", {"/linux/uidMappings": [MAP]}, "/linux/uidMappings"),
    Case(53, "maps overlap", {**USER, "/linux/uidMappings": [MAP, MAP], "/linux/gidMappings": [MAP]}, "/linux/uidMappings/1"),
    Case(53, "size 0", {**USER, "/linux/uidMappings": [{**MAP, "size": 0}], "/linux/gidMappings": [MAP]}, "/linux/uidMappings/0/size"),
    Case(53, "341 lines", {**USER, "/linux/uidMappings": [{"containerID": n, "hostID": n, "size": 1} for n in range(341)], "/linux/gidMappings": [MAP]}, "/linux/uidMappings"),
    Case(53, "past the last id", {**USER, "/linux/uidMappings": [{**MAP, "hostID": (1 << 32) - 2}], "/linux/gidMappings": [MAP]}, "/linux/uidMappings/0/hostID"),
    Case(54, "a user that is not mapped", {**USER, "/linux/uidMappings": [MAP], "/linux/gidMappings": [MAP], "/process/user/uid": 70_000}, "/process/user/uid"),
    Case(54, "a group that is not mapped", {**USER, "/linux/uidMappings": [MAP], "/linux/gidMappings": [MAP], "/process/user/additionalGids": [70_000]}, "/process/user/additionalGids/0"),
    Case(57, "offsets without a time namespace", {"/linux/timeOffsets": {"monotonic": {"secs": 1}}}, "/linux/timeOffsets"),
    Case(57, "a second of nanoseconds", {"/linux/namespaces/-": {"type": "time"}, "/linux/timeOffsets": {"monotonic": {"nanosecs": 10**9}}}, "/linux/timeOffsets/monotonic/nanosecs"),
    Case(57, "an unknown clock", {"/linux/namespaces/-": {"type": "time"}, "/linux/timeOffsets": {"realtime": {"secs": 1}}}, "/linux/timeOffsets/realtime"),
    Case(58, "the namespace of nobody", {"/linux/namespaces": namespace("pid", "/proc/4194305/ns/pid")}, "/linux/namespaces/4"),
    *(Case(59, f"sysctl {key}", {"/linux/sysctl": {key: "1"}}, "/linux/sysctl") for key in ("kernel.core_pattern", "vm.swappiness", "fs.suid_dumpable")),
    Case(60, "a network setting of the host", {"/linux/namespaces": without("network"), "/mounts/4": GONE, "/linux/sysctl": {"net.ipv4.ip_forward": "1"}}, "/linux/sysctl"),
    Case(60, "and with the host's namespace by path", {"/linux/namespaces": namespace("network", "/proc/1/ns/net"), "/linux/sysctl": {"net.ipv4.ip_forward": "1"}}, "/linux/"),
    Case(60, "and with our own", {"/linux/namespaces": namespace("network", "/proc/self/ns/net"), "/linux/sysctl": {"net.ipv4.ip_forward": "1"}}, "/linux/sysctl"),
    Case(61, "kernel.msgmax without ipc", {"/linux/namespaces": without("ipc"), "/linux/sysctl": {"kernel.msgmax": "1"}}, "/linux/sysctl"),
    Case(61, "kernel.hostname", {"/linux/sysctl": {"kernel.hostname": "x"}}, "/linux/sysctl"),
    Case(61, "user settings without user namespace", {"/linux/sysctl": {"user.max_user_namespaces": "0"}}, "/linux/sysctl"),
    *(Case(62, f"sysctl {key}", {"/linux/sysctl": {key: "1"}}, "/linux/sysctl") for key in ("net.../../kernel/core_pattern", "net/../../kernel/core_pattern", "net.ipv4./..", "net", "net.ipv4.ip_forward/../../../kernel/core_pattern")),
    Case(63, "a value with a second key", {"/linux/sysctl": {"net.ipv4.ip_forward": "0+kernel.core_pattern=|/x"}}, "/linux/sysctl"),
    *(Case(64, f"a value {name}", {"/linux/sysctl": {"net.ipv4.ip_forward": value}}, "/linux/sysctl") for name, value in (("with NUL", "1\0"), ("of two lines", "1\n2"), ("of 1 MiB", "1" * (1 << 20)))),
    Case(64, "an absent sysctl", {"/linux/sysctl": {"net.ipv4.nosuch": "1"}}, "/linux/sysctl"),
    # mounts
    Case(65, "a relative destination", {"/mounts/-": tmpfs("rel")}, script="grep -c ' /rel ' /proc/mounts", says="1", warns="/mounts/5/destination"),
    *(Case(66, f"destination {path!r}", {"/mounts/-": tmpfs(path)}, "/mounts/5/destination") for path in ("", "/", "/.", "//", "/x/..")),
    Case(67, "a destination above the root", {"/mounts/-": tmpfs("/../../x")}, script="grep -c ' /x ' /proc/mounts", says="1"),
    Case(68, "a destination behind a link", dest_through_link("absolute"), script="grep -c outside/x /proc/mounts", says="1"),
    Case(68, "and behind one that climbs", dest_through_link("relative"), script="grep -c outside/x /proc/mounts", says="1"),
    *(Case(69, f"magic: {path}", {"/mounts/-": tmpfs(path)}, "/mounts/5") for path in ("/proc/1/root/x", "/proc/self/fd/3/x", "/proc/self/cwd/x")),
    Case(72, "rbind without a type", {"/mounts/-": bind("/etc", "/m", kind=None)}, script="test -e /m/passwd && echo fine", says="fine"),
    Case(72, "type none", {"/mounts/-": bind("/etc", "/m", kind="none")}, script="test -e /m/passwd && echo fine", says="fine"),
    Case(72, "neither type nor bind", {"/mounts/-": {"destination": "/m", "source": "/etc"}}, "/mounts/5"),
    Case(72, "no source", {"/mounts/-": {"destination": "/m", "type": "bind", "options": ["bind"]}}, "/mounts/5/source"),
    Case(73, "an unknown option", {"/mounts/-": tmpfs("/m", "frob=1")}, "/mounts/5"),
    Case(73, "64 KiB of options", {"/mounts/-": tmpfs("/m", "x" * 65_536)}, "/mounts/5"),
    Case(74, "an unknown file system", {"/mounts/-": {"destination": "/m", "type": "nosuchfs", "source": "x"}}, "/mounts/5"),
    Case(75, "bind with a file system's option", {"/mounts/-": bind("/etc", "/m", "size=1")}, script="echo fine", says="fine", warns="/mounts/5/options"),
    *(Case(76, f"tmpfs on {path}", {"/mounts/-": tmpfs(path)}, "/mounts/5") for path in ("/proc/sys/net", "/proc/self/attr", "/proc/self/exe", "/proc/sysrq-trigger")),
    Case(77, "tmpfs on /proc", {"/mounts/0": tmpfs("/proc")}, "/mounts/0"),
    Case(77, "tmpfs over /proc", {"/mounts/-": tmpfs("/proc")}, "/mounts/5"),
    Case(77, "proc elsewhere", {"/mounts/-": {"destination": "/foo", "type": "proc", "source": "proc"}}, script="test -e /foo/self/exe && echo fine", says="fine"),
    Case(78, "/proc is a link", link("proc", "/tmp"), "/mounts/0"),
    Case(78, "/sys is a link", link("sys", "/tmp"), "/mounts/4"),
    Case(80, "a file on a directory", {"/mounts/-": bind("/etc/passwd", "/etc", "ro")}, "/mounts/5"),
    Case(80, "a directory on a file", patched({"/mounts/-": bind("/etc", "/f", "ro")}, before=file("f")), "/mounts/5"),
    Case(80, "below a file", patched({"/mounts/-": tmpfs("/f/x")}, before=file("f")), "/mounts/5"),
    Case(81, "300 mounts, 100 on one place", {"/mounts": [*default_config()["mounts"], *(tmpfs(f"/m{n}") for n in range(200)), *(tmpfs("/same") for _ in range(100))]}, script="grep -c ' /same ' /proc/mounts", says="100"),
    Case(81, "a cycle", {"/mounts/-": tmpfs("/a/b"), "/linux/readonlyPaths": ["/a"]}, script="echo fine", says="fine"),
    Case(82, "a shared bind", {"/mounts/-": bind("/etc", "/m", "rshared", "ro")}, script="echo fine", says="fine"),
    Case(83, "ids mapped on a tmpfs", {"/mounts/-": {**tmpfs("/m"), "uidMappings": [MAP], "gidMappings": [MAP]}}, "/mounts/5"),
    Case(83, "a mapping of one kind", {"/mounts/-": {**bind("/etc", "/m"), "uidMappings": [MAP]}}, "/mounts/5"),
    Case(85, "tmpfs of unknown size", {"/mounts/-": tmpfs("/m", "size=many")}, "/mounts/5"),
    Case(85, "tmpfs mode", {"/mounts/-": tmpfs("/m", "mode=1777", "size=0")}, script="stat -c %a /m", says="1777"),
    Case(87, "a relative mask", {"/linux/maskedPaths": ["etc/passwd"]}, "/linux/maskedPaths/0"),
    *(Case(88, f"mask {path}", {"/linux/maskedPaths": [path]}, "/linux/maskedPaths/0") for path in ("/", "/..", "/.")),
    Case(89, "a mask behind a link", patched({"/linux/maskedPaths": ["/l"]}, before=lambda b: (file("etc/secret")(b), link("l", "/etc/secret")(b))[0]), script="wc -c </etc/secret", says="0"),
    Case(89, "a mask behind a link to nothing", patched({"/linux/maskedPaths": ["/l"]}, before=link("l", "/nowhere")), script="echo fine", says="fine"),
    Case(89, "a mask in a loop", patched({"/linux/maskedPaths": ["/l"]}, before=link("l", "l")), "/linux/maskedPaths/0"),
    Case(91, "1,000 masked directories", patched({"/linux/maskedPaths": [f"/d{n}" for n in range(1000)]}, before=many_dirs), script="cat /d0/x /d999/x 2>/dev/null || echo hidden", says="hidden"),
    # devices
    Case(92, "a bad type", {"/linux/devices": [{**CHAR, "type": "z"}]}, "/linux/devices/0/type"),
    Case(92, "no path", {"/linux/devices": [{**CHAR, "path": ""}]}, "/linux/devices/0/path"),
    Case(92, "a relative path", {"/linux/devices": [{**CHAR, "path": "dev/x"}]}, "/linux/devices/0/path"),
    Case(92, "above the root", {"/linux/devices": [{**CHAR, "path": "/../../dev/x"}]}, script="stat -c %t:%T /dev/x", says="1:3"),
    Case(93, "another device is there", node, "/linux/devices/0"),
    Case(93, "two devices of one path", {"/linux/devices": [CHAR, {**CHAR, "minor": 5}]}, "/linux/devices/1/path"),
    Case(95, "mode 06777", {"/linux/devices": [{**CHAR, "fileMode": 0o6777}]}, "/linux/devices/0/fileMode"),
    Case(95, "an owner that is not mapped", {**USER, "/linux/uidMappings": [MAP], "/linux/gidMappings": [MAP], "/linux/devices": [{**CHAR, "uid": 70_000}]}, "/linux/devices/0/uid"),
    Case(95, "major 2^32", {"/linux/devices": [{**CHAR, "major": 1 << 32}]}, "/linux/devices/0/major"),
    Case(96, "rule type z", {"/linux/resources/devices/-": {"allow": True, "type": "z", "access": "r"}}, "/linux/resources/devices/1/type"),
    Case(96, "rule access x", {"/linux/resources/devices/-": {"allow": True, "type": "c", "access": "x"}}, "/linux/resources/devices/1/access"),
    Case(96, "rule without access", {"/linux/resources/devices/-": {"allow": True, "type": "c", "access": ""}}, "/linux/resources/devices/1/access"),
    Case(96, "rule major -2", {"/linux/resources/devices/-": {"allow": True, "type": "c", "major": -2, "access": "r"}}, "/linux/resources/devices/1/major"),
    Case(97, "lo", {"/linux/netDevices": {"lo": {}}}, "/linux/netDevices/lo"),
    Case(97, "a name with a slash", {"/linux/netDevices": {"../x": {}}}, "/linux/netDevices"),
    Case(97, "a missing device", {"/linux/netDevices": {"nosuch0": {}}}, "/linux/netDevices"),
    # cgroups
    Case(98, "a cgroup above its parent", {"/linux/cgroupsPath": "../../x"}, "/linux/cgroupsPath", script="echo fine", says="fine", either=True),
    Case(98, "5,000 characters", {"/linux/cgroupsPath": "/" + "x" * 5000}, "/linux/cgroupsPath"),
    Case(98, "NUL", {"/linux/cgroupsPath": "/a\0b"}, "/linux/cgroupsPath"),
    Case(100, "memory -2", memory(limit=-2), "/linux/resources/memory/limit"),
    Case(100, "swap below the limit", memory(limit=1 << 26, swap=1 << 25), "/linux/resources/memory/swap"),
    Case(100, "swap alone", memory(swap=1 << 25), "/linux/resources/memory/swap"),
    Case(100, "reservation above the limit", memory(limit=1 << 26, reservation=1 << 27), "/linux/resources/memory/reservation"),
    Case(101, "pids 2^63", {"/linux/resources/pids": {"limit": 1 << 63}}, "/linux/resources/pids/limit"),
    Case(101, "pids -2", {"/linux/resources/pids": {"limit": -2}}, "/linux/resources/pids/limit"),
    Case(101, "quota -2", {"/linux/resources/cpu": {"quota": -2}}, "/linux/resources/cpu/quota"),
    Case(101, "period 10", {"/linux/resources/cpu": {"period": 10}}, "/linux/resources/cpu/period"),
    Case(101, "shares 1", {"/linux/resources/cpu": {"shares": 1}}, "/linux/resources/cpu/shares"),
    Case(101, "weight 5,001", {"/linux/resources/blockIO": {"weight": 5001}}, "/linux/resources/blockIO/weight"),
    *(Case(101, f"cpus {cpus}", {"/linux/resources/cpu": {"cpus": cpus}}, "/linux/resources/cpu/cpus") for cpus in ("0-99999", "a", "9-1")),
    Case(101, "processors that are not there", {"/linux/resources/cpu": {"cpus": "8000"}}, "/linux/resources/cpu/cpus"),
    Case(104, "a block device that is not there", {"/linux/resources/blockIO": {"throttleReadBpsDevice": [{"major": 4000, "minor": 1, "rate": 1}]}}, "/linux/resources/blockIO"),
    Case(104, "huge pages of 3 bytes", {"/linux/resources/hugepageLimits": [{"pageSize": "3B", "limit": 1}]}, "/linux/resources/hugepageLimits/0"),
    Case(104, "a class of /..", {"/linux/intelRdt": {"closID": "../x"}}, "/linux/intelRdt/closID"),
    # seccomp
    Case(105, "a bad action", seccomp(default="SCMP_ACT_FOO"), "/linux/seccomp/defaultAction"),
    Case(105, "a bad architecture", seccomp(architectures=["SCMP_ARCH_FOO"]), "/linux/seccomp/architectures/0"),
    Case(105, "a bad operator", seccomp(call(args=[{"index": 0, "value": 1, "op": "X"}])), "/linux/seccomp/syscalls/0/args/0/op"),
    Case(105, "a bad flag", seccomp(flags=["X"]), "/linux/seccomp/flags/0"),
    Case(105, "argument 9", seccomp(call(args=[{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}])), "/linux/seccomp/syscalls/0/args/0/index"),
    Case(105, "an empty name", seccomp(call("")), "/linux/seccomp/syscalls/0/names/0"),
    Case(105, "an errno for KILL", seccomp(call(action="SCMP_ACT_KILL", errnoRet=1)), "/linux/seccomp/syscalls/0/errnoRet"),
    Case(105, "errno 70,000", seccomp(call(errnoRet=70_000)), "/linux/seccomp/syscalls/0/errnoRet"),
    Case(106, "an unknown call", seccomp(call("nosuchcall")), script="echo fine", says="fine"),
    Case(107, "NOTIFY by default", seccomp(default="SCMP_ACT_NOTIFY", listenerPath="/run/nosuch"), "/linux/seccomp/defaultAction"),
    Case(108, "NOTIFY without a listener", seccomp(call(action="SCMP_ACT_NOTIFY")), "/linux/seccomp"),
    Case(108, "NOTIFY on write", seccomp(call("write", "SCMP_ACT_NOTIFY"), listenerPath="/run/nosuch"), "/linux/seccomp"),
    Case(108, "a dead listener", seccomp(call(action="SCMP_ACT_NOTIFY"), listenerPath="/run/nosuch"), "/linux/seccomp"),
    Case(109, "execve denied", seccomp(call("execve")), "/linux/seccomp", script="echo fine"),
    Case(109, "everything denied", seccomp(default="SCMP_ACT_ERRNO"), "/linux/seccomp", script="echo fine"),
    Case(109, "everything killed", seccomp(default="SCMP_ACT_KILL_PROCESS"), "/linux/seccomp", script="echo fine"),
    Case(111, "60,000 comparisons", seccomp(*(call(args=[{"index": i, "value": (i << 40) + n, "op": "SCMP_CMP_EQ"} for i in range(6)]) for n in range(10_000))), "/linux/seccomp"),
    # hooks
    *(Case(112, f"a missing {kind} hook", hooks(kind, path="/no/such"), f"/hooks/{kind}/0", script="echo fine") for kind in HOOKS),
    *(Case(112, f"a failing {kind} hook", hooks(kind, path="/bin/false"), f"/hooks/{kind}/0", script="echo fine") for kind in HOOKS),
    Case(112, "a missing poststop hook", hooks("poststop", path="/no/such"), script="echo fine", says="fine", warns="/hooks/poststop/0"),
    *(Case(113, f"a relative {kind} hook", hooks(kind, path="bin/x"), f"/hooks/{kind}/0/path") for kind in (*HOOKS, "poststop")),
    *(Case(114, f"a timeout of {seconds}", hooks("createRuntime", path="/bin/true", timeout=seconds), "/hooks/createRuntime/0/timeout") for seconds in (0, -1)),
    Case(115, "a hook that sleeps", hooks("createRuntime", path="/bin/sh", args=["sh", "-c", "sleep 600"], timeout=1), "/hooks/createRuntime/0"),
    Case(115, "a grandchild that sleeps", hooks("createRuntime", path="/bin/sh", args=["sh", "-c", "sleep 9 & exit 0"], timeout=2), script="echo fine", says="fine"),
    Case(116, "a hook that says much", hooks("createRuntime", path="/bin/sh", args=["sh", "-c", "head -c 200000000 /dev/zero; exit 3"], timeout=20), "/hooks/createRuntime/0"),
    Case(116, "a hook that dies", hooks("createRuntime", path="/bin/sh", args=["sh", "-c", "kill -9 $$"]), "/hooks/createRuntime/0"),
    Case(116, "a hook that closes its input", hooks("createRuntime", path="/bin/sh", args=["sh", "-c", "exec <&-"]), script="echo fine", says="fine"),
    Case(118, "annotations other runtimes act on", {"/annotations": {"run.oci.handler": "krun", "run.oci.hooks.stdout": "/etc/x", "org.criu.config": "/x", "x": "y" * (1 << 20)}}, script="echo fine", says="fine"),
    Case(118, "and a hook inside that is told of them", {"/annotations": {"x": "y" * (1 << 20)}, **hooks("startContainer", path="/bin/true")}, "/annotations", script="echo fine"),
    Case(118, "an empty key", {"/annotations": {"": "x"}}, "/annotations"),
]  # fmt: skip


def verdict(runtime: Runtime, bundle: Bundle, case: Case) -> str:
    """What is wrong with what a runtime makes of a case; empty if nothing. Removes the container."""
    path = case.make(bundle)
    before = mounts_at(bundle.path.parent)
    id = runtime.new_id()
    done = runtime("run", "--bundle", path, id, timeout=60)
    wrong = _said(done.returncode, done.stdout, done.stderr, case, ours=runtime.name == "knarr")
    if done.returncode and left_behind(runtime, id, 1):
        wrong.append(f"left {left_behind(runtime, id, 0)}")
    runtime("delete", "--force", id)
    if cgroups_named(id):
        wrong.append(f"left {cgroups_named(id)}")
    if mounts_at(bundle.path.parent) != before:
        wrong.append("left mounts")
    keep = bundle.path.parent / "outside/f"
    if keep.exists() and (keep.read_text() != "keep" or sorted(os.listdir(keep.parent)) != ["f"]):
        wrong.append("changed what lies outside")
    return "; ".join(wrong)


def _said(code: int, out: str, err: str, case: Case, *, ours: bool) -> list[str]:
    refused = case.wanted is not None
    if refused and case.either and code == 0:
        refused = False
    if not refused:
        if code != case.code:
            return [f"exit code {code}: {err.strip()[:300]}"]
        wrong = [] if case.says is None or out.strip() == case.says else [f"says {out.strip()[:200]!r}"]
        return wrong + ([] if case.warns in err or not ours else [f"no warning of {case.warns}: {err[:200]}"])
    if code == 0:
        return ["accepted"]
    wrong = [] if code == 1 or not ours else [f"exit code {code}"]
    if "Traceback" in err or "panic" in err or code > 128 or code < 0:
        wrong.append(f"crashed: {code} {err[:300]}")
    if ours and (err.count("\n") != 1 or (case.wanted or "") not in err):
        wrong.append(f"does not name {case.wanted}: {err.strip()[:300]}")
    return wrong


def main() -> int:
    name = sys.argv[sys.argv.index("--runtime") + 1]
    failed: dict[int, list[str]] = {}
    for case in CASES:
        scratch = Path(tempfile.mkdtemp(prefix="corpus-"))
        runtime = Runtime(name, scratch)
        try:
            wrong = verdict(runtime, Bundle(scratch / "bundle"), case)
        except Exception as error:  # noqa: BLE001  # a runtime that hangs is a verdict, too
            wrong = f"{type(error).__name__}"
        if wrong:
            failed.setdefault(case.number, []).append(case.name)
            print(f"{case}: {wrong}", flush=True)
        runtime.clean()
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{name}: {sum(len(names) for names in failed.values())} of {len(CASES)} wrong, rows {sorted(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
