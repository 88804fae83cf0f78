"""The AppArmor profile of ``knarr run``, in a kernel that has it: each wall is seen, and seen to be gone without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import enginekit
import pytest
from blackbox import Bundle, Runtime

from knarr.bundle.apparmor_profile import NAME, profile_text
from knarr.content.digest import sha256_of
from knarr.engine.apparmor import ABI, MARKER
from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.defaults import default_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Policy is the whole machine's: these load it, replace it, and take it out.
pytestmark = pytest.mark.skipif(
    "KNARR_VM" not in os.environ, reason="loads AppArmor policy: in the guest of make test-vm"
)

PROGRAM = [sys.executable, "-c", "import sys; from knarr.cli.main import main; sys.exit(main())"]
LABEL = ("cat", "/proc/self/attr/current")
OURS = f"{NAME} (enforce)"
USER = 1000
OPEN_FOR_WRITING = ("sh", "-c", ": >> /proc/loadavg")
MOUNT = ("mount", "-t", "tmpfs", "none", "/tmp")
ALG = ("/usr/bin/python3", "-c", "import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)")
VSOCK = ("/usr/bin/python3", "-c", "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("image")
    for above in (folder, *folder.parents):
        if str(above).startswith("/tmp/"):
            above.chmod(0o755)
    yield enginekit.layout(folder / "layout")
    parser("--remove", f"profile {NAME} {{}}\n", check=False)
    Path(MARKER).unlink(missing_ok=True)


def parser(option: str, text: str, *, check: bool = True) -> None:
    subprocess.run(["/usr/sbin/apparmor_parser", option, "--skip-cache"], input=text, text=True, check=check)


def knarr(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*PROGRAM, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=240, **more
    )


def said(*words: str, **more: object) -> str:
    done = knarr("run", "--rm", *words, **more)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.strip()


@pytest.mark.parametrize("options", [(), ("--network", "host"), ("--userns", "host"), ("--user", "app")], ids=str)
def test_every_container_has_it(image: str, options: tuple[str, ...]) -> None:
    assert said(*options, image, *LABEL) == OURS


def test_so_has_exec_and_it_can_be_stopped(image: str) -> None:
    with subprocess.Popen([*PROGRAM, "run", "--rm", "--name", "label", image, "sleep", "600"]) as running:
        for _ in range(300):
            done = knarr("exec", "label", *LABEL)
            if done.returncode == 0:
                break
            time.sleep(0.2)
        assert done.stdout.strip() == OURS, done
        # A signal within the container, and one from outside.
        assert knarr("exec", "label", "sh", "-c", "sleep 99 & kill -9 $! && wait $!").returncode == 137
        assert knarr("kill", "label").returncode == 0
        assert running.wait(60) == 137


@pytest.mark.parametrize("options", [("--security-opt", "apparmor=unconfined"), ("--privileged",)], ids=str)
def test_without_it(image: str, options: tuple[str, ...]) -> None:
    assert said(*options, image, *LABEL) == "unconfined"


@pytest.mark.parametrize("network", ["none", "host"])
@pytest.mark.parametrize(
    ("options", "command"),
    [
        pytest.param(("--userns", "host"), OPEN_FOR_WRITING, id="write"),
        pytest.param(("--cap-add", "SYS_ADMIN"), MOUNT, id="mount"),
        pytest.param(("--cap-add", "SYS_ADMIN"), ("busybox", "umount", "/proc/keys"), id="umount"),
        pytest.param(("--userns", "host", "--security-opt", "seccomp=unconfined"), ALG, id="AF_ALG"),
        pytest.param(("--userns", "host", "--security-opt", "seccomp=unconfined"), VSOCK, id="AF_VSOCK"),
    ],
)
def test_what_only_the_profile_forbids(
    image: str, network: str, options: tuple[str, ...], command: tuple[str, ...]
) -> None:
    words = ["run", "--rm", "--network", network, *options]
    where = "host:" if "python3" in command[0] else image
    refused = knarr(*words, where, "--", *command)
    assert refused.returncode != 0
    assert "ermission denied" in refused.stderr
    allowed = knarr(*words, "--security-opt", "apparmor=unconfined", where, "--", *command)
    assert (allowed.returncode, allowed.stderr) == (0, "")


@pytest.mark.parametrize("path", ["/proc/kcore", "/sys/firmware/acpi/tables/DSDT"])
def test_what_only_the_profile_keeps_from_being_read(image: str, path: str) -> None:
    said(image, "true")
    words = ("run", "--rm", "--privileged", "--security-opt")  # else masks are in the way
    refused = knarr(*words, f"apparmor={NAME}", image, "head", "-c", "1", path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "ermission denied" in refused.stderr
    assert len(said("--privileged", image, "sh", "-c", f"head -c 4 {path} | wc -c")) == 1


@pytest.mark.parametrize(
    ("kind", "place"),
    [("securityfs", "/sys/kernel/security"), ("debugfs", "/sys/kernel/debug"), ("tracefs", "/sys/kernel/tracing")],
)
def test_nor_are_these_where_they_are_mounted(image: str, tmp_path: Path, kind: str, place: str) -> None:
    said(image, "true")
    file = next(path for path in sorted(Path(place).glob("*")) if path.is_file() and path.stat().st_mode & 0o400)
    mounts = [{"destination": place, "type": kind, "source": kind, "options": []}]
    script = f"busybox head -c 1 {file} > /dev/null"
    assert "ermission denied" in bundled(tmp_path, script, NAME, mounts=mounts).stderr
    assert bundled(tmp_path, script, "", mounts=mounts).returncode == 0


def test_only_its_like_may_be_looked_into(image: str, tmp_path: Path) -> None:
    """What of another process takes ptrace's rights to read, with the capability for it and no pid namespace."""
    said(image, "true")
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            script = f"busybox cat /proc/{other.pid}/maps"
            refused = bundled(tmp_path, script, NAME)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "ermission denied" in refused.stderr
            assert "stack" in bundled(tmp_path, script, "").stdout
        finally:
            other.kill()
    script = "busybox sleep 9 & busybox sleep 1; busybox cat /proc/$!/maps; kill $!"
    assert "stack" in bundled(tmp_path, script, NAME).stdout


def bundled(
    folder: Path, script: str, profile: str, *, mounts: Sequence[Mapping[str, object]] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a bundle with all capabilities and in the host's pid namespace."""
    (folder / "rootfs/bin").mkdir(parents=True, exist_ok=True)
    for name in ("busybox", "sh"):
        shutil.copy("/bin/busybox", folder / "rootfs/bin" / name)
    config = default_config()
    config["process"].update(args=["/bin/sh", "-c", script], terminal=False, apparmorProfile=profile)
    config["process"]["capabilities"] = {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")}
    spaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]
    config["mounts"] += mounts
    (folder / "config.json").write_text(json.dumps(config))
    words = [os.environ["KNARR_TEST_RUNTIME"], "run", "--bundle", str(folder), f"a{os.urandom(4).hex()}"]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)


def test_another_profile(image: str) -> None:
    parser("--replace", "profile knarr-vm-other flags=(attach_disconnected) { file, signal, network, capability, }\n")
    assert said("--security-opt", "apparmor=knarr-vm-other", image, *LABEL) == "knarr-vm-other (enforce)"
    parser("--remove", "profile knarr-vm-other {}\n")
    done = knarr("run", "--rm", "--security-opt", "apparmor=knarr-vm-other", image, "true")
    assert done.returncode == 125
    assert "knarr-vm-other" in done.stderr


def test_exec_in_a_profile_of_its_own(tmp_path: Path) -> None:
    """The option of the runtime's, which `docker exec` passes in a process document."""
    parser("--replace", "profile knarr-vm-other flags=(attach_disconnected) { file, signal, network, capability, }\n")
    runtime, bundle = Runtime("knarr", tmp_path), Bundle(tmp_path / "bundle")
    id = runtime.new_id()
    try:
        runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
        assert runtime.ok("exec", id, *LABEL).strip() == "unconfined"
        assert runtime.ok("exec", "--apparmor", "knarr-vm-other", id, *LABEL).strip() == "knarr-vm-other (enforce)"
        refused = runtime("exec", "--apparmor", "knarr-vm-none", id, "true")
        assert refused.returncode == 255
        assert "knarr-vm-none" in refused.stderr
    finally:
        runtime.clean()
        parser("--remove", "profile knarr-vm-other {}\n")


def test_a_privileged_exec_stays_in_profile_and_filter_as_with_podman(image: str) -> None:
    look = ("sh", "-c", "cat /proc/self/attr/current; grep -E 'CapEff|Seccomp:' /proc/self/status | tr '\\n' ' '")
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")

    def podman(*words: str) -> str:
        command = ["podman", "--log-level=error", "--cgroup-manager", "cgroupfs", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout

    pulled = podman("pull", "-q", image).strip()
    podman("run", "-d", "--rm", "--network", "none", "--name", "beside", pulled, "sleep", "600")
    try:
        theirs = podman("exec", "--privileged", "beside", *look).splitlines()
    finally:
        podman("rm", "-f", "-t", "0", "beside")
    with subprocess.Popen([*PROGRAM, "run", "--rm", "--name", "label", image, "sleep", "600"]) as running:
        for _ in range(300):
            done = knarr("exec", "--privileged", "label", *look)
            if done.returncode == 0:
                break
            time.sleep(0.2)
        assert knarr("kill", "label").returncode == 0
        running.wait(60)
    ours = done.stdout.splitlines()
    assert "containers-default" in theirs[0]
    assert ours[0] == OURS
    assert theirs[1].split() == ours[1].split()
    assert "Seccomp: 2" in " ".join(ours[1].split())


def test_the_text_of_another_version_is_replaced(image: str) -> None:
    said(image, "true")
    today = sha256_of(profile_text(abi=os.path.exists(ABI)).encode())
    assert Path(MARKER).read_text() == today
    parser("--replace", f"profile {NAME} flags=(complain) {{ file, }}\n")
    Path(MARKER).write_text("sha256:0")
    assert said(image, *LABEL) == OURS
    assert Path(MARKER).read_text() == today


def test_an_administrators_profile_of_that_name_stays(image: str) -> None:
    said(image, "true")
    Path(MARKER).unlink()
    parser(
        "--replace", f"profile {NAME} flags=(attach_disconnected,complain) {{ file, signal, network, capability, }}\n"
    )
    assert said(image, *LABEL) == f"{NAME} (complain)"
    assert not Path(MARKER).exists()
    parser("--remove", f"profile {NAME} {{}}\n")
    assert said(image, *LABEL) == OURS


def test_without_a_parser_a_note_says_so(image: str) -> None:
    said(image, "true")
    parser("--remove", f"profile {NAME} {{}}\n")
    hide = 'mount --bind /dev/null /usr/sbin/apparmor_parser && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", hide, "sh", *PROGRAM, "run", "--rm", image, *LABEL]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout.strip()) == (0, "unconfined")
    assert "apparmor_parser" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_ordinary_users_container_has_it_once_it_is_loaded(image: str) -> None:
    env = {**os.environ, "HOME": "/home/tester", "XDG_RUNTIME_DIR": f"/run/user/{USER}", "USER": "tester"}
    as_user = {"user": USER, "group": USER, "extra_groups": [], "env": env, "cwd": "/"}
    parser("--remove", f"profile {NAME} {{}}\n", check=False)
    assert said(image, *LABEL, **as_user) == "unconfined"
    said(image, "true")
    assert said(image, *LABEL, **as_user) == OURS
