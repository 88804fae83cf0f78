"""Docker, containerd's ctr and Podman, unmodified, with knarr-runtime-kernel and -vm: each container on its own Linux.

A boot of a microVM without KVM takes seconds, so that one container does as much as it can.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_containerd import IMAGE, Containerd
from engine_docker import Docker
from engine_podman import Podman, RootlessPodman
from enginebox import box
from enginebox import need as need_programs
from scripts_docker import SHELL

sys.path.insert(0, str(Path(__file__).parents[1] / "isolation"))
from behind import GUESTS, need  # pyright: ignore[reportMissingImports]  # it lies in tests/isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transcript import Recorder

CODE = "cat /proc/sys/kernel/osrelease; cat /v/seed; cat; echo made > /v/made; hostname; id -u; echo err >&2; exit 7"
NONE = ("--network", "none")


@pytest.fixture(scope="module", params=GUESTS)
def runtime(request: pytest.FixtureRequest) -> str:
    need(request.param)
    path = Path(sys.prefix, "bin", f"knarr-runtime-{request.param}")
    if not path.exists():
        pytest.skip(f"knarr is not installed in {sys.prefix} (make build)")
    return str(path)


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, runtime: str, docker_archive: Path) -> Iterator[Docker]:
    with box(tmp_path_factory.mktemp("docker-guest")) as inside:
        yield Docker(inside, runtime, docker_archive)


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory, runtime: str, docker_archive: Path) -> Iterator[Containerd]:
    with box(tmp_path_factory.mktemp("containerd-guest")) as inside:
        yield Containerd(inside, runtime, docker_archive)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, runtime: str, docker_archive: Path) -> Iterator[Podman]:
    with box(tmp_path_factory.mktemp("podman-guest")) as inside:
        yield Podman(inside, runtime, docker_archive)


def another_kernel(out: str) -> bool:
    return out.splitlines()[0] != os.uname().release


def life(d: Recorder, folder: Path) -> None:
    """What Docker and Podman say alike."""
    (folder / "seed").write_text("from the host\n")
    more = ("-v", f"{folder}:/v", "--hostname", "box", "-u", "1000")
    folder.chmod(0o777)
    done = d.quiet("run", "--rm", "-i", *NONE, *more, "small", "sh", "-c", CODE, stdin="through\n")
    assert another_kernel(done.stdout), done
    lines = done.stdout.splitlines()[1:]
    assert (lines, done.stderr, done.returncode) == (["from the host", "through", "box", "1000"], "err\n", 7), done
    assert (folder / "made").read_text() == "made\n"
    done = d.quiet(
        "run", "-d", "--name", "stays", *NONE, "--memory", "64m", "small", "sh", "-c", "echo up | tee /made; sleep 1000"
    )
    assert done.returncode == 0, done
    done = d.quiet("exec", "stays", "sh", "-c", "cat /proc/sys/kernel/osrelease; exit 4")
    assert (another_kernel(done.stdout), done.returncode) == (True, 4), done
    done = d.quiet("exec", "-i", "stays", "cat", stdin="x" * 100_000)
    assert len(done.stdout) == 100_000
    assert d.quiet("logs", "stays").stdout == "up\n"
    assert d.quiet("pause", "stays").returncode == 0
    assert d.quiet("unpause", "stays").returncode == 0
    assert d.quiet("inspect", "--format", "{{.State.Status}}", "stays").stdout == "running\n"
    done = d.quiet("stop", "-t", "1", "stays")  # the first process of a pid namespace does not hear SIGTERM
    assert done.returncode == 0, done
    assert d.quiet("wait", "stays").stdout.strip() == "137"
    assert "A /made\n" in d.quiet("diff", "stays").stdout
    assert d.quiet("cp", "stays:/made", f"{folder}/copied").returncode == 0
    assert (folder / "copied").read_text() == "up\n"
    assert d.quiet("rm", "stays").returncode == 0
    done = d.quiet("run", "--rm", *NONE, "small", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def bridges(d: Recorder, docker: Docker) -> None:
    """Containers that talk: by address, by name, from outside by a published port."""
    assert d.quiet("network", "create", "talk").returncode == 0
    serve = ("--name", "web", "-p", "127.0.0.1:8099:80", "small", "httpd", "-f", "-h", "/data")
    done = d.quiet("run", "-d", "--network", "talk", *serve)
    assert done.returncode == 0, done
    done = d.quiet("run", "--rm", "--network", "talk", "small", "sh", "-c", "wget -qO- http://web/seed; ping -c 1 web")
    assert "from the image\n" in done.stdout, done
    assert "1 packets received" in done.stdout, done
    assert docker.box.run("busybox", "wget", "-qO-", "http://127.0.0.1:8099/seed") == "from the image\n"
    if "kernel" in docker.runtime:  # one boot less of an emulated machine
        done = d.quiet("run", "--rm", "--network", "container:web", "small", "true")
        assert "would be left without" in done.stderr, done
    assert d.quiet("rm", "-f", "web").returncode == 0
    assert d.quiet("network", "rm", "talk").returncode == 0


def terminal(d: Recorder) -> None:
    """A person at a keyboard: size, its change, Ctrl-C, the exit code."""
    talk = d.terminal("run", "-it", "--rm", *NONE, "small", *SHELL, size=(33, 101))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty")
    talk.until("33 101\r\n/dev/pts/0\r\n")
    talk.resize(44, 99)
    talk.ask("> ", "until stty size | grep '^44'; do sleep 0.1; done")
    talk.until("44 99\r\n")
    talk.ask("> ", "sh -c 'echo re\"\"ady; exec sleep 100'; echo $?")
    talk.until("ready\r\n")
    talk.send("\x03")
    talk.ask("> ", "exit 5")
    talk.end(5)


def writes(d: Recorder) -> None:
    """What a container wrote is in the next start of it, in images made of it, and in a build's steps."""
    words = ("sh", "-c", "echo line >> /data/log; cat /data/log; rm -f /etc/group")
    assert d.quiet("run", "--name", "writes", *NONE, "small", *words).stdout == "line\n"
    changed = set(d.quiet("diff", "writes").stdout.splitlines())
    assert {"A /data/log", "D /etc/group"} <= changed, changed
    assert d.quiet("start", "-a", "writes").stdout == "line\nline\n"
    assert d.quiet("commit", "writes", "written").returncode == 0
    assert d.quiet("rm", "writes").returncode == 0
    steps = "FROM written\nRUN wc -l < /data/log > /lines && chown 1000:1001 /lines\nRUN [ $(stat -c %u:%g%s /lines) = 1000:10012 ]\n"
    done = d.quiet("build", "-q", *NONE, "-", stdin=steps)
    assert done.returncode == 0, done


def test_docker(docker: Docker, tmp_path: Path, runtime: str) -> None:
    d = docker.recorder()
    try:
        life(d, tmp_path)
        if runtime.endswith("kernel"):  # for the other kind it is the same, and takes long without KVM
            writes(d)
        terminal(d)
        done = d.quiet("run", "--rm", "--network", "host", "small", "true")
        assert done.returncode == 125, done
        assert "cannot use the host's network" in done.stderr, done
        bridges(d, docker)
    finally:
        d.close()
        docker.clear()
    docker.check_nothing_left()


def test_podman(podman: Podman, tmp_path: Path) -> None:
    d = podman.recorder()
    try:
        life(d, tmp_path)
        done = d.quiet("run", "-d", "--name", "web", "-p", "127.0.0.1:8098:80", "small", "httpd", "-f", "-h", "/data")
        assert done.returncode == 0, done
        address = d.quiet("inspect", "web", "--format", "{{.NetworkSettings.IPAddress}}").stdout.strip()
        done = d.quiet("run", "--rm", "small", "wget", "-qO-", f"http://{address}/seed")
        assert done.stdout == "from the image\n", done
        assert podman.box.run("busybox", "wget", "-qO-", "http://127.0.0.1:8098/seed") == "from the image\n"
        assert d.quiet("rm", "-f", "-t", "0", "web").returncode == 0
    finally:
        d.close()
        podman.clear()
    podman.check_nothing_left()


def test_rootless_podman(tmp_path: Path, runtime: str, docker_archive: Path) -> None:
    """An ordinary user's network: slirp4netns, outbound and with a published port."""
    if "kernel" not in runtime:
        pytest.skip("one kind will do: the way is the same")
    need_programs("newuidmap", "slirp4netns")
    with box(tmp_path) as inside:
        podman = RootlessPodman(inside, runtime, docker_archive, subids=True)
        podman.daemons = (*podman.daemons, "busybox httpd")  # the one outside
        d = podman.recorder()
        try:
            inside.spawn("busybox", "httpd", "-f", "-p", "127.0.0.1:8097", "-h", "/usr/share", log=tmp_path / "log")
            network = ("--network", "slirp4netns:allow_host_loopback=true,port_handler=slirp4netns")
            words = ("sh", "-c", "cat /proc/sys/kernel/osrelease; wget -qO- http://10.0.2.2:8097/common-licenses/BSD")
            done = d.quiet("run", "--rm", *network, "small", *words)
            assert another_kernel(done.stdout), done
            assert "Regents" in done.stdout, done
            serve = ("-p", "127.0.0.1:8096:80", "small", "httpd", "-f", "-h", "/data")
            done = d.quiet("run", "-d", "--name", "web", *network, *serve)
            assert done.returncode == 0, done
            assert inside.run("busybox", "wget", "-qO-", "http://127.0.0.1:8096/seed") == "from the image\n"
        finally:
            d.close()
            podman.clear()
        podman.check_nothing_left()


CNI = """{"cniVersion": "0.4.0", "name": "box", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
"ipam": {"type": "host-local", "subnet": "10.88.7.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}"""


def test_ctr_and_plugins(containerd: Containerd, runtime: str, tmp_path: Path) -> None:
    """CNI's bridge is made between create and start; the guest has its device."""
    if not all(os.path.isdir(place) for place in ("/usr/lib/cni", "/etc/cni/net.d", "/opt")):
        pytest.skip("CNI's plugins (package containernetworking-plugins) and their folders are not here")
    inside, d = containerd.box, containerd.recorder()
    inside.run("mount", "-t", "tmpfs", "tmpfs", "/opt")  # where ctr looks for them
    try:
        inside.run("mkdir", "/opt/cni")
        inside.run("ln", "-s", "/usr/lib/cni", "/opt/cni/bin")
        inside.run("sh", "-c", 'echo "$1" > /etc/cni/net.d/10-box.conflist', "sh", CNI)
        which = ("--cni", "--runc-binary", runtime)
        words = ("sh", "-c", "cat /proc/sys/kernel/osrelease; exec httpd -f -h /data")
        done = d.quiet("run", "-d", *which, IMAGE, "web", *words)
        assert done.returncode == 0, done
        # Not wget: busybox's crashes where there is no resolv.conf.
        asks = "until printf 'GET /seed HTTP/1.0\\r\\n\\r\\n' | busybox nc 10.88.7.2 80; do sleep 0.2; done"
        done = d.quiet("run", "--rm", *which, IMAGE, "one", "timeout", "20", "sh", "-c", asks)
        assert done.stdout.endswith("from the image\n"), done
        assert inside.run("busybox", "wget", "-qO-", "http://10.88.7.2/seed") == "from the image\n"
        assert d.quiet("task", "kill", "-s", "KILL", "web").returncode == 0
    finally:
        d.close()
        containerd.clear()
        inside.run("rm", "/etc/cni/net.d/10-box.conflist")
        inside.run("umount", "/opt")
    containerd.check_nothing_left()


def test_ctr(containerd: Containerd, runtime: str) -> None:
    d = containerd.recorder()
    which = ("--runc-binary", runtime)
    try:
        done = d.quiet("run", "--rm", *which, IMAGE, "one", "sh", "-c", "cat /proc/sys/kernel/osrelease; exit 7")
        assert (another_kernel(done.stdout), done.returncode) == (True, 7), done
        assert d.quiet("run", "-d", *which, IMAGE, "two", "sleep", "1000").returncode == 0
        done = d.quiet("task", "exec", "--exec-id", "e", "two", "sh", "-c", "echo inside; exit 5")
        assert (done.stdout, done.returncode) == ("inside\n", 5), done
        assert d.quiet("task", "pause", "two").returncode == 0
        assert d.quiet("task", "resume", "two").returncode == 0
        assert d.quiet("task", "kill", "-s", "KILL", "two").returncode == 0
    finally:
        d.close()
        containerd.clear()
    containerd.check_nothing_left()
