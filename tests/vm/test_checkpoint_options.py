"""The options of checkpoint and restore, each by its effect: what fails without it, or looks different with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blackbox import Bundle, Runtime
from guest import needs_criu

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_criu


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime("knarr", tmp_path)
    yield made
    made.clean()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle")
    made.config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})
    for applet in ("nc", "ip"):
        (made.rootfs / "bin" / applet).symlink_to("busybox")
    return made


def quiet(runtime: Runtime, *words: str) -> None:
    log = runtime.root.parent / "log"
    null = subprocess.DEVNULL
    command = [*runtime.command, "--log", str(log), *words]
    done = subprocess.run(command, stdin=null, stdout=null, stderr=null, check=False, timeout=120)
    assert done.returncode == 0, log.read_text()


def start(runtime: Runtime, bundle: Bundle, script: str) -> str:
    id = runtime.new_id()
    bundle.write("sh", "-c", script)
    quiet(runtime, "run", "--detach", "--bundle", str(bundle.path), id)
    time.sleep(2)
    return id


def refused(runtime: Runtime, id: str, images: Path, says: str) -> None:
    """Without the option CRIU names it, and the container goes on."""
    done = runtime("checkpoint", "--image-path", str(images), id, timeout=120)
    assert done.returncode == 1
    assert says in done.stderr
    assert runtime.state(id)["status"] == "running"


def checkpoint(runtime: Runtime, id: str, images: Path, *words: str) -> None:
    runtime.ok("checkpoint", "--image-path", str(images), *words, id, timeout=120)


def restore(runtime: Runtime, bundle: Bundle, id: str, images: Path, *words: str) -> None:
    quiet(runtime, "restore", "--detach", "--bundle", str(bundle.path), "--image-path", str(images), *words, id)


def test_file_locks(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    # busybox has no flock: the machine's own, and what it needs.
    for name in ("usr", "lib", "lib64"):
        if Path(f"/{name}").is_symlink():
            (bundle.rootfs / name).symlink_to(os.readlink(f"/{name}"))
        else:
            (bundle.rootfs / name).mkdir()
            bundle.config["mounts"].append(
                {"destination": f"/{name}", "type": "bind", "source": f"/{name}", "options": ["bind", "ro"]}
            )
    id = start(runtime, bundle, "exec 9> /tmp/lock; flock 9; while :; do sleep 0.2; done")
    assert runtime("exec", id, "flock", "-n", "/tmp/lock", "true").returncode == 1
    refused(runtime, id, tmp_path / "refused", "--file-locks")
    checkpoint(runtime, id, tmp_path / "images", "--file-locks")
    restore(runtime, bundle, id, tmp_path / "images", "--file-locks")
    assert runtime("exec", id, "flock", "-n", "/tmp/lock", "true").returncode == 1


def test_tcp_established(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """A connection over the container's own loopback, which is up again before it is restored."""
    script = "nc -l -p 4000 -e cat & sleep 0.5; mkfifo /tmp/in; exec 8<>/tmp/in; nc 127.0.0.1 4000 < /tmp/in > /tmp/out & wait"
    (bundle.rootfs / "bin/mkfifo").symlink_to("busybox")
    id = start(runtime, bundle, script)
    runtime.ok("exec", id, "sh", "-c", "echo one > /tmp/in; sleep 1; grep one /tmp/out")
    refused(runtime, id, tmp_path / "refused", "tcp-established")
    checkpoint(runtime, id, tmp_path / "images", "--tcp-established")
    restore(runtime, bundle, id, tmp_path / "images", "--tcp-established")
    runtime.ok("exec", id, "sh", "-c", "echo two > /tmp/in; sleep 1; grep two /tmp/out")
    assert "LOOPBACK,UP" in runtime.ok("exec", id, "ip", "link", "show", "lo")


def test_link_remap(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """A file that is open by a name it has no more, while it has another one."""
    script = "echo text > /tmp/a; ln /tmp/a /tmp/b; exec 9< /tmp/a; rm /tmp/a; while :; do sleep 0.2; done"
    id = start(runtime, bundle, script)
    refused(runtime, id, tmp_path / "refused", "link-remap")
    checkpoint(runtime, id, tmp_path / "images", "--link-remap")
    restore(runtime, bundle, id, tmp_path / "images")
    assert runtime.ok("exec", id, "sh", "-c", "cat /proc/1/fd/9; ls /tmp").split() == ["text", "b"]


def test_tcp_skip_in_flight(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """A connection that the listener has not accepted, since it was stopped before, is left out of the images."""
    (bundle.rootfs / "bin/mkfifo").symlink_to("busybox")
    script = "mkfifo /tmp/in; exec 8<>/tmp/in; nc -l -p 4000 & sleep 1; kill -STOP $!; nc 127.0.0.1 4000 < /tmp/in & wait"
    id = start(runtime, bundle, script)
    time.sleep(2)
    words = ("checkpoint", "--image-path", str(tmp_path / "refused"), "--tcp-established", id)
    done = runtime(*words, timeout=120)
    assert done.returncode == 1
    assert "n-flight" in done.stderr
    assert runtime.state(id)["status"] == "running"
    checkpoint(runtime, id, tmp_path / "images", "--tcp-established", "--tcp-skip-in-flight")
    restore(runtime, bundle, id, tmp_path / "images", "--tcp-established")
    assert runtime.state(id)["status"] == "running"


def test_tcp_close(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """The connection that was open is one that the other side has left: what reads from it hears the end."""
    script = "nc -l -p 4000 -e sleep 1000 & sleep 0.5; nc 127.0.0.1 4000 < /tmp/in; echo over > /tmp/said; wait"
    (bundle.rootfs / "bin/mkfifo").symlink_to("busybox")
    id = start(runtime, bundle, f"mkfifo /tmp/in; exec 8<>/tmp/in; {script}")
    assert runtime("exec", id, "cat", "/tmp/said").returncode == 1
    checkpoint(runtime, id, tmp_path / "images", "--tcp-established")
    restore(runtime, bundle, id, tmp_path / "images", "--tcp-close")
    runtime.ok("exec", id, "sh", "-c", "sleep 2; grep over /tmp/said")


@pytest.mark.skipif(
    "KNARR_VM" not in os.environ, reason="puts a program into /usr/local/sbin of the guest of make test-vm"
)
def test_network_lock(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """CRIU runs iptables-restore for one method alone; a method that this CRIU does not know is refused, not passed over."""
    wrapper = Path("/usr/local/sbin/iptables-restore")
    wrapper.write_text(f'#!/bin/sh\necho called >> {tmp_path}/called\nexec /usr/sbin/iptables-restore "$@"\n')
    wrapper.chmod(0o755)
    try:
        id = start(
            runtime, bundle, "nc -l -p 4000 -e cat & sleep 0.5; nc 127.0.0.1 4000 < /dev/zero > /dev/null & wait"
        )
        for method, called in (("nftables", False), ("iptables", True)):
            more = ("--tcp-established", "--leave-running", "--network-lock", method)
            checkpoint(runtime, id, tmp_path / method, *more)
            assert (tmp_path / "called").exists() == called, method
    finally:
        wrapper.unlink()
    done = runtime("checkpoint", "--image-path", str(tmp_path / "skip"), "--network-lock", "skip", id, timeout=120)
    assert done.returncode == 1
    assert "--network-lock skip is not supported: this CRIU is 3.17, it takes 3.18" in done.stderr
    assert runtime.state(id)["status"] == "running"


def test_another_criu(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    wrapper = tmp_path / "my-criu"
    real = shutil.which("criu", path="/usr/sbin:/usr/bin")
    wrapper.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/called\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    id = start(runtime, bundle, "sleep 1000")
    images = ("--image-path", str(tmp_path / "images"))
    runtime.ok("--criu", str(wrapper), "checkpoint", *images, id, timeout=120)
    assert (tmp_path / "called").read_text() == "swrk\n"
    quiet(runtime, "--criu", str(wrapper), "restore", "--detach", "--bundle", str(bundle.path), *images, id)
    assert (tmp_path / "called").read_text() == "swrk\nswrk\n"


def test_ext_unix_sk(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """Standard input is a datagram socket whose other end is outside."""
    id = runtime.new_id()
    # CRIU knows a socket by its network namespace, and this one is the host's.
    spaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [each for each in spaces if each["type"] != "network"]
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["destination"] != "/sys"]
    bundle.write("sleep", "1000")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        server.bind(str(tmp_path / "socket"))
        client.connect(str(tmp_path / "socket"))
        null = subprocess.DEVNULL
        command = [*runtime.command, "run", "--detach", "--bundle", str(bundle.path), id]
        subprocess.run(command, stdin=client.fileno(), stdout=null, stderr=null, check=True)
        refused(runtime, id, tmp_path / "refused", "ext-unix-sk")
        checkpoint(runtime, id, tmp_path / "images", "--ext-unix-sk")


def test_page_server(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = start(runtime, bundle, "while :; do sleep 0.2; done")
    (tmp_path / "pages").mkdir()
    port = 27000 + os.getpid() % 1000
    server = [
        "criu",
        "page-server",
        "--images-dir",
        str(tmp_path / "pages"),
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(3)
        checkpoint(runtime, id, tmp_path / "images", "--page-server", f"127.0.0.1:{port}")
        process.wait(30)
    assert not list((tmp_path / "images").glob("pages-*.img"))
    sent = list((tmp_path / "pages").glob("page*.img"))
    assert sent
    for image in sent:
        shutil.copy(image, tmp_path / "images")
    restore(runtime, bundle, id, tmp_path / "images")
    assert runtime.state(id)["status"] == "running"


def test_lazy_pages(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """Memory goes over when it is asked for; --status-fd says when that can begin."""
    id = start(runtime, bundle, "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.2; done")
    port = 28000 + os.getpid() % 1000
    images = tmp_path / "images"
    reading, writing = os.pipe()
    words = ["checkpoint", "--lazy-pages", "--page-server", f"127.0.0.1:{port}", "--status-fd", str(writing)]
    words += ["--manage-cgroups-mode", "ignore", "--image-path", str(images), "--work-path", str(tmp_path / "work"), id]
    with runtime.popen(*words, pass_fds=[writing], stdin=subprocess.DEVNULL) as dump:
        os.close(writing)
        assert os.read(reading, 1) == b"\0"
        os.close(reading)
        daemon = [
            "criu",
            "lazy-pages",
            "--page-server",
            "--address",
            "127.0.0.1",
            "--port",
            str(port),
            "-D",
            str(images),
        ]
        with subprocess.Popen(daemon, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as pages:
            time.sleep(3)
            again = runtime.new_id()
            more = ["--work-path", str(images), "--lazy-pages", "--manage-cgroups-mode", "ignore"]
            restore(runtime, bundle, again, images, *more)
            first = int(runtime.ok("exec", again, "cat", "/tmp/count") or 0)
            time.sleep(1)
            assert int(runtime.ok("exec", again, "cat", "/tmp/count") or 0) > first
            dump.wait(60)
            pages.wait(60)
        assert dump.returncode == 0


def test_auto_dedup(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """What the second checkpoint has is cut out of the first."""
    used = []
    for name, more in (("plain", []), ("dedup", ["--auto-dedup"])):
        id = start(runtime, bundle, "x=x; while :; do x=$x$x; [ ${#x} -lt 1000000 ] || x=y; done")
        first, second = tmp_path / name / "first", tmp_path / name / "second"
        checkpoint(runtime, id, first, "--pre-dump")
        time.sleep(1)
        checkpoint(runtime, id, second, "--parent-path", "../first", *more)
        used.append(sum(image.stat().st_blocks / (image.stat().st_size / 512) for image in first.glob("pages-*.img")))
    assert used[1] < used[0]


def test_lsm_profile(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    if shutil.which("apparmor_parser") is None or not Path("/sys/kernel/security/apparmor").is_dir():
        pytest.skip("needs AppArmor (make test-vm has it)")
    for name in ("knarr-vm-one", "knarr-vm-two"):
        text = f"profile {name} flags=(attach_disconnected,mediate_deleted) {{ file, signal, ptrace, capability, unix, network, }}\n"
        subprocess.run(["apparmor_parser", "--replace"], input=text, text=True, check=True)
    bundle.config["process"]["apparmorProfile"] = "knarr-vm-one"
    id = start(runtime, bundle, "while :; do sleep 0.2; done")

    def label() -> str:
        return Path(f"/proc/{runtime.state(id)['pid']}/attr/current").read_text().strip()

    assert label() == "knarr-vm-one (enforce)"
    checkpoint(runtime, id, tmp_path / "images")
    restore(runtime, bundle, id, tmp_path / "images", "--lsm-profile", "apparmor:knarr-vm-two")
    assert label() == "knarr-vm-two (enforce)"
