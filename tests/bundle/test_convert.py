from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from knarr.base import fastjson
from knarr.base.errors import UsageError
from knarr.bundle.convert import RESERVED_PREFIXES, to_runtime_spec, volume_paths
from knarr.bundle.options import Facts, RunOptions, Ulimit, VolumeMount
from knarr.bundle.users import ContainerUser
from knarr.spec.validate import config_findings

GOLDEN = Path(__file__).parent / "golden" / "busybox.json"
ROOT = ContainerUser(0, 0, (0,), "root", "/root")
FACTS = Facts(thermal_paths=("/sys/devices/system/cpu/cpu0/thermal_throttle",))
BUSYBOX: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-02T03:04:05Z",
    "config": {"Cmd": ["sh"]},
    "rootfs": {"type": "layers", "diff_ids": []},
}


def image(**config: Any) -> dict[str, Any]:
    return {**BUSYBOX, "config": {"Cmd": ["sh"], **config}}


def convert(
    document: dict[str, Any] | None = None,
    *,
    user: ContainerUser = ROOT,
    facts: Facts = FACTS,
    **options: Any,
) -> dict[str, Any]:
    config = to_runtime_spec(document or BUSYBOX, RunOptions(**options), user, facts).config
    assert config_findings(config) == []
    return config


def test_the_posture_is_the_golden_one() -> None:
    # P-1: the whole config.json of `run busybox` without flags. A change of it is a change of the posture: review it.
    files = [
        ("/etc/hosts", "/c/etc/hosts"),
        ("/etc/hostname", "/c/etc/hostname"),
        ("/etc/resolv.conf", "/c/etc/resolv.conf"),
    ]
    own = ((0, 0x70000000, 65536),)  # as the engine gives each of root's containers a range
    facts = FACTS.replace(uid_map=own, gid_map=own)
    config = to_runtime_spec(BUSYBOX, RunOptions(hostname="0123456789ab"), ROOT, facts, files=files).config
    assert config_findings(config) == []
    assert fastjson.dumps(config, indent=True) + b"\n" == GOLDEN.read_bytes()


def test_posture_in_words() -> None:
    config = convert()
    process, linux = config["process"], config["linux"]
    assert process["noNewPrivileges"] is True
    assert process["user"] == {"uid": 0, "gid": 0, "umask": 0o022, "additionalGids": [0]}
    caps = process["capabilities"]
    assert caps["inheritable"] == caps["ambient"] == []  # CVE-2022-24769
    assert len(caps["bounding"]) == 10
    assert not {"CAP_MKNOD", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_AUDIT_WRITE"} & set(caps["bounding"])
    assert {entry["type"] for entry in linux["namespaces"]} == {
        "mount", "network", "uts", "pid", "ipc", "cgroup", "time",
    }  # fmt: skip
    assert linux["resources"] == {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 2048}}
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {"/proc/kcore", "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap"} <= set(
        linux["maskedPaths"]
    )


def test_entrypoint_and_cmd() -> None:
    both = image(Entrypoint=["/entry", "-v"], Cmd=["a", "b"])
    assert convert(both)["process"]["args"] == ["/entry", "-v", "a", "b"]
    assert convert(both, command=("c",))["process"]["args"] == ["/entry", "-v", "c"]
    # An entrypoint of the user's makes the image's Cmd void, as docker and podman do.
    assert convert(both, entrypoint=("/mine",))["process"]["args"] == ["/mine"]
    assert convert(both, entrypoint=(), command=("c",))["process"]["args"] == ["c"]
    with pytest.raises(UsageError, match="no command"):
        convert(image(Cmd=None))
    with pytest.raises(UsageError, match="no command"):
        convert(both, entrypoint=())


def test_environment() -> None:
    env = convert(image(Env=["PATH=/p", "A=1", "B=", "A=2"]), env=("A=3", "NEW=x=y"))["process"]["env"]
    assert env == ["PATH=/p", "A=3", "B=", "NEW=x=y", "HOME=/root", "container=knarr"]
    assert "HOME=/h" in convert(image(Env=["HOME=/h"]))["process"]["env"]
    assert "TERM=xterm" in convert(terminal=True)["process"]["env"]
    assert not any(entry.startswith("TERM=") for entry in convert()["process"]["env"])
    with pytest.raises(UsageError, match="NAME=VALUE"):
        convert(env=("BROKEN",))


def test_environment_never_takes_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    # E-8, CVE-2026-57231: entries without "=" or with a pattern copied the host's variables.
    monkeypatch.setenv("SECRET_TOKEN", "x")
    document = image(Env=["SECRET*", "SECRET_TOKEN", "HOME", "*", "=x", ""])
    conversion = to_runtime_spec(document, RunOptions(), ROOT, FACTS)
    assert not any("SECRET" in entry for entry in conversion.config["process"]["env"])
    assert len(conversion.notes) == 6


def test_labels_become_annotations_but_not_control() -> None:
    # I16, R-25: what runtimes and engines act on is left out, and it is said.
    reserved = {f"{prefix}x": "evil" for prefix in RESERVED_PREFIXES}
    conversion = to_runtime_spec(
        {**image(Labels={**reserved, "com.example": "kept", "org.opencontainers.image.os": "mine"}), "author": "A"},
        RunOptions(labels=(("own", "1"), ("run.oci.handler", "krun")), annotations=(("run.oci.keep", "yes"),)),
        ROOT,
        FACTS,
    )
    annotations = conversion.config["annotations"]
    assert annotations["com.example"] == "kept"
    assert annotations["own"] == "1"
    assert annotations["org.opencontainers.image.os"] == "mine"  # an explicit label goes before the implicit value
    assert annotations["org.opencontainers.image.author"] == "A"
    assert annotations["run.oci.keep"] == "yes"  # the operator's own word counts
    assert "evil" not in annotations.values()
    assert "run.oci.handler" not in annotations
    assert len(conversion.notes) == len(RESERVED_PREFIXES) + 1


def test_implicit_annotations() -> None:
    document = {
        **image(StopSignal="SIGQUIT", ExposedPorts={"80/tcp": {}, "443/tcp": {}}),
        "variant": "v8",
        "os.version": "1",
        "os.features": ["a", "b"],
    }
    annotations = convert(document)["annotations"]
    prefix = "org.opencontainers.image."
    assert {key.removeprefix(prefix): value for key, value in annotations.items()} == {
        "os": "linux",
        "architecture": "amd64",
        "variant": "v8",
        "os.version": "1",
        "os.features": "a,b",
        "created": "2026-01-02T03:04:05Z",
        "stopSignal": "SIGQUIT",
        "exposedPorts": "443/tcp,80/tcp",
    }


def test_workdir() -> None:
    assert convert(image(WorkingDir="/srv"))["process"]["cwd"] == "/srv"
    assert convert(image(WorkingDir="/srv"), workdir="/x")["process"]["cwd"] == "/x"
    for bad in ("srv", "../x"):
        with pytest.raises(UsageError, match="absolute"):
            convert(image(WorkingDir=bad))


@pytest.mark.parametrize("name", ["a b", "a\n10.0.0.1 evil", "-a", ".a", "a:b", "é", "x" * 65, "a\0"])
def test_host_names_are_one_word(name: str) -> None:
    with pytest.raises(UsageError, match="host name"):
        convert(hostname=name)


def test_no_nul_anywhere() -> None:
    for options in (
        {"labels": (("a", "\0"),)},
        {"annotations": (("a\0", ""),)},
        {"command": ("\0",)},
        {"env": ("A=\0",)},
    ):
        with pytest.raises(UsageError):
            convert(**options)


def test_user() -> None:
    config = convert(user=ContainerUser(1000, 100, (100, 7), "app", "/home/app"))
    process = config["process"]
    assert process["user"] == {"uid": 1000, "gid": 100, "umask": 0o022, "additionalGids": [100, 7]}
    assert "HOME=/home/app" in process["env"]
    caps = process["capabilities"]  # an ordinary user has none, whatever the bounding set
    assert caps["effective"] == caps["permitted"] == caps["ambient"] == caps["inheritable"] == []
    assert len(caps["bounding"]) == 10


def test_privileged_user_has_no_capabilities() -> None:
    caps = convert(user=ContainerUser(1000, 1000, (1000,)), privileged=True)["process"]["capabilities"]
    assert caps["effective"] == caps["permitted"] == caps["ambient"] == []


def test_capabilities() -> None:
    def bounding(**options: Any) -> set[str]:
        caps = convert(**options)["process"]["capabilities"]
        assert caps["effective"] == caps["permitted"] == caps["bounding"]
        return set(caps["bounding"])

    default = bounding()
    assert bounding(cap_add=("net_raw",)) == default | {"CAP_NET_RAW"}
    assert bounding(cap_drop=("CAP_CHOWN", "kill")) == default - {"CAP_CHOWN", "CAP_KILL"}
    assert bounding(cap_drop=("ALL",)) == set()
    assert bounding(cap_drop=("all",), cap_add=("CHOWN",)) == {"CAP_CHOWN"}
    assert len(bounding(cap_add=("ALL",))) == 41
    assert len(bounding(cap_add=("ALL",), cap_drop=("SYS_ADMIN",))) == 40
    with pytest.raises(UsageError, match="not known"):
        convert(cap_add=("FLY",))
    with pytest.raises(UsageError, match="not this process' own"):
        convert(cap_add=("SYS_RESOURCE",), facts=FACTS.replace(capabilities=("CAP_CHOWN",)))
    ambient = convert(user=ContainerUser(5, 5, (5,)), cap_add=("NET_BIND_SERVICE",))["process"]["capabilities"]
    assert ambient["ambient"] == ambient["effective"] == ["CAP_NET_BIND_SERVICE"]


def test_the_filter_follows_the_capabilities() -> None:
    def allowed(config: dict[str, Any]) -> set[str]:
        rules = config["linux"]["seccomp"]["syscalls"]
        return {
            name
            for rule in rules
            if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
            for name in rule["names"]
        }

    assert "mount" not in allowed(convert())
    assert "mount" in allowed(convert(cap_add=("SYS_ADMIN",)))
    assert "seccomp" not in convert(seccomp="unconfined")["linux"]
    own = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": []}
    assert convert(seccomp=own)["linux"]["seccomp"] == own


def test_privileged_lifts_what_the_documentation_lists() -> None:
    device = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0}
    config = convert(privileged=True, facts=FACTS.replace(devices=(device,)))
    linux = config["linux"]
    assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    assert "seccomp" not in linux
    assert linux["devices"] == [device]
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert config["process"]["noNewPrivileges"] is False
    by_place = {mount["destination"]: mount["options"] for mount in config["mounts"]}
    assert "ro" not in by_place["/sys"]
    assert "ro" not in by_place["/sys/fs/cgroup"]
    # and keeps: namespaces, the process limit, nosuid on /proc
    assert len(linux["namespaces"]) == 7
    assert linux["resources"]["pids"] == {"limit": 2048}
    assert "nosuid" in by_place["/proc"]


def test_limits() -> None:
    resources = convert(memory=64 << 20, cpus=1.5, pids_limit=10)["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20, "swap": 128 << 20}
    assert resources["cpu"] == {"period": 100_000, "quota": 150_000}
    assert resources["pids"] == {"limit": 10}
    no_swap = FACTS.replace(swap_limit=False)
    assert convert(memory=64 << 20, facts=no_swap)["linux"]["resources"]["memory"] == {"limit": 64 << 20}
    assert "pids" not in convert(pids_limit=-1)["linux"]["resources"]
    for bad in ({"pids_limit": 0}, {"pids_limit": -2}, {"memory": 4096}, {"cpus": 0.001}):
        with pytest.raises(UsageError):
            convert(**bad)


@pytest.mark.parametrize("asked", [{"memory": 1 << 30}, {"cpus": 1.0}, {"pids_limit": 5}])
def test_a_limit_that_cannot_be_kept_is_refused(asked: dict[str, Any]) -> None:
    facts = FACTS.replace(cgroup_limits=False)
    assert "pids" not in convert(facts=facts)["linux"]["resources"]  # the default one is left out
    with pytest.raises(UsageError, match="cannot be kept"):
        convert(facts=facts, **asked)


def test_rlimits() -> None:
    limits = convert(ulimits=(Ulimit("core", 0, 0), Ulimit("memlock", -1, -1)))["process"]["rlimits"]
    assert {"type": "RLIMIT_CORE", "soft": 0, "hard": 0} in limits
    assert {"type": "RLIMIT_MEMLOCK", "soft": 2**64 - 1, "hard": 2**64 - 1} in limits
    assert limits[0] == {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 524288}
    assert convert(facts=FACTS.replace(nofile_hard=512))["process"]["rlimits"][0]["soft"] == 512


def test_host_network() -> None:
    config = convert(network="host")
    assert "network" not in {entry["type"] for entry in config["linux"]["namespaces"]}
    assert "sysctl" not in config["linux"]  # E-11: they would be the host's
    with pytest.raises(UsageError, match="host's network"):
        convert(network="host", sysctls=(("net.ipv4.ip_forward", "1"),))
    with pytest.raises(UsageError, match="there are none and host"):
        convert(network="bridge")


ROOTLESS = FACTS.replace(rootless=True, uid_map=((0, 1000, 1),), gid_map=((0, 1000, 1),), cgroup_limits=False)


def test_without_root() -> None:
    config = convert(facts=ROOTLESS)
    linux = config["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    devpts = next(mount for mount in config["mounts"] if mount["type"] == "devpts")
    assert "gid=5" not in devpts["options"]
    assert linux["sysctl"]["net.ipv4.ping_group_range"] == "0 0"
    many = ROOTLESS.replace(uid_map=((0, 1000, 1), (1, 100000, 65536)), gid_map=((0, 1000, 1), (1, 100000, 65536)))
    config = convert(facts=many)
    assert "gid=5" in next(mount for mount in config["mounts"] if mount["type"] == "devpts")["options"]
    assert config["linux"]["sysctl"]["net.ipv4.ping_group_range"] == "0 65536"


def test_without_root_on_the_hosts_network() -> None:
    config = convert(facts=ROOTLESS, network="host")
    sys = [mount for mount in config["mounts"] if mount["destination"].startswith("/sys")]
    assert [mount["destination"] for mount in sys] == ["/sys"]
    assert sys[0]["source"] == "/sys"
    assert {"rbind", "rro"} <= set(sys[0]["options"])


def test_no_cgroup_namespace_no_cgroup_mount() -> None:
    # CVE-2023-25809: the host's whole tree would show
    config = convert(facts=FACTS.replace(cgroup_namespace=False))
    assert not any(mount["type"] == "cgroup" for mount in config["mounts"])


def test_image_volumes() -> None:
    document = image(Volumes={"/data": {}, "/var//log/": {}})
    assert volume_paths(document) == ["/data", "/var/log"]
    own = {"destination": "/data", "type": "bind", "source": "/s", "options": ["rbind"]}
    config = to_runtime_spec(document, RunOptions(), ROOT, FACTS, volumes={"/data": own}).config
    assert own in config["mounts"]
    log = next(mount for mount in config["mounts"] if mount["destination"] == "/var/log")
    assert (log["type"], log["options"]) == ("tmpfs", ["nosuid", "nodev", "mode=755"])
    left = to_runtime_spec(document, RunOptions(), ROOT, FACTS, volumes={"/data": None, "/var/log": None}).config
    assert not any(mount["destination"] in ("/data", "/var/log") for mount in left["mounts"])
    mine = to_runtime_spec(
        document, RunOptions(mounts=(VolumeMount("bind", "/data", "/mine"),)), ROOT, FACTS, volumes={"/data": own}
    ).config
    assert [mount["source"] for mount in mine["mounts"] if mount["destination"] == "/data"] == ["/mine"]


@pytest.mark.parametrize("path", ["/", "//", "/proc", "/proc/sys", "/sys/fs", "/dev", "relative", "/a/../etc", ""])
def test_image_volumes_cover_nothing_dangerous(path: str) -> None:
    with pytest.raises(UsageError):
        convert(image(Volumes={path: {}}))
