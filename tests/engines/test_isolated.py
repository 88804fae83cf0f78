"""Docker, containerd's ctr and Podman, unmodified, with knarr-runtime-kernel: each container on a Linux of its own."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_containerd import IMAGE, Containerd
from engine_docker import Docker
from engine_podman import Podman
from enginebox import box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transcript import Recorder

CODE = "cat /proc/sys/kernel/osrelease; cat; echo err >&2; exit 7"


@pytest.fixture(scope="module")
def runtime() -> str:
    path = Path(sys.prefix, "bin", "knarr-runtime-kernel")
    if platform.machine() != "x86_64" or shutil.which("linux.uml") is None:
        pytest.skip("user-mode-linux is not installed (x86_64 only)")
    if not path.exists():
        pytest.skip(f"knarr is not installed in {sys.prefix} (make build)")
    return str(path)


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, runtime: str, docker_archive: Path) -> Iterator[Docker]:
    with box(tmp_path_factory.mktemp("docker-kernel")) as inside:
        yield Docker(inside, runtime, docker_archive)


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory, runtime: str, docker_archive: Path) -> Iterator[Containerd]:
    with box(tmp_path_factory.mktemp("containerd-kernel")) as inside:
        yield Containerd(inside, runtime, docker_archive)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, runtime: str, docker_archive: Path) -> Iterator[Podman]:
    with box(tmp_path_factory.mktemp("podman-kernel")) as inside:
        yield Podman(inside, runtime, docker_archive)


def another_kernel(out: str) -> bool:
    return out.splitlines()[0] != os.uname().release


def life(d: Recorder, folder: Path) -> None:
    """What Docker and Podman say alike."""
    (folder / "seed").write_text("from the host\n")
    none = ("--network", "none")
    done = d.quiet("run", "--rm", "-i", *none, "small", "sh", "-c", CODE, stdin="through\n")
    assert another_kernel(done.stdout), done
    assert (done.stdout.splitlines()[1:], done.stderr, done.returncode) == (["through"], "err\n", 7)
    words = ("sh", "-c", "cat /v/seed; id; echo made > /v/made; hostname")
    done = d.quiet("run", "--rm", *none, "-v", f"{folder}:/v", "--hostname", "box", "-u", "0", "small", *words)
    assert done.stdout.splitlines()[0] == "from the host", done
    assert done.stdout.splitlines()[-1] == "box"
    assert (folder / "made").read_text() == "made\n"
    done = d.quiet("run", "-d", "--name", "stays", *none, "--memory", "64m", "small", "sleep", "1000")
    assert done.returncode == 0, done
    done = d.quiet("exec", "stays", "sh", "-c", "cat /proc/sys/kernel/osrelease; exit 4")
    assert (another_kernel(done.stdout), done.returncode) == (True, 4), done
    done = d.quiet("exec", "-i", "stays", "cat", stdin="x" * 100_000)
    assert len(done.stdout) == 100_000
    assert d.quiet("pause", "stays").returncode == 0
    assert d.quiet("unpause", "stays").returncode == 0
    assert d.quiet("inspect", "--format", "{{.State.Status}}", "stays").stdout == "running\n"
    assert d.quiet("kill", "stays").returncode == 0
    assert d.quiet("wait", "stays").stdout.strip() == "137"
    assert d.quiet("rm", "stays").returncode == 0
    done = d.quiet("run", "--rm", *none, "small", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_docker(docker: Docker, tmp_path: Path) -> None:
    d = docker.recorder()
    try:
        life(d, tmp_path)
        for network in ("host", "bridge"):
            done = d.quiet("run", "--rm", "--network", network, "small", "true")
            assert done.returncode == 125, done
            assert "cannot use the host's network" in done.stderr, done
    finally:
        d.close()
        docker.clear()
    docker.check_nothing_left()


def test_podman(podman: Podman, tmp_path: Path) -> None:
    d = podman.recorder()
    try:
        life(d, tmp_path)
    finally:
        d.close()
        podman.clear()
    podman.check_nothing_left()


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
