"""Daemons that are restarted, or killed, while containers of knarr-runtime run; many containers at once; nothing is left."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from engine import Engine, same_with_each
from engine_containerd import Containerd
from engine_docker import Docker
from enginebox import box
from scripts_containerd import gone, run_words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transcript import Recorder


@contextlib.contextmanager
def pair(
    kind: type[Docker | Containerd], folders: pytest.TempPathFactory, runtimes: dict[str, str], archive: Path
) -> Iterator[dict[str, Engine]]:
    with contextlib.ExitStack() as stack:
        made: dict[str, Engine] = {}
        for name, path in runtimes.items():
            made[name] = kind(stack.enter_context(box(folders.mktemp(name))), path, archive)
        yield made


@pytest.fixture
def dockers(
    tmp_path_factory: pytest.TempPathFactory, runtimes: dict[str, str], docker_archive: Path
) -> Iterator[dict[str, Engine]]:
    with pair(Docker, tmp_path_factory, runtimes, docker_archive) as made:
        yield made


@pytest.fixture
def containerds(
    tmp_path_factory: pytest.TempPathFactory, runtimes: dict[str, str], docker_archive: Path
) -> Iterator[dict[str, Engine]]:
    with pair(Containerd, tmp_path_factory, runtimes, docker_archive) as made:
        yield made


def test_dockers_live_restore_and_many_at_once(dockers: dict[str, Engine]) -> None:
    engines = dict(dockers)

    def script(d: Recorder) -> None:
        (docker,) = [engine for engine in engines.values() if engine.box is d.box]
        assert isinstance(docker, Docker)
        (docker.box.folder / "daemon.json").write_text('{"live-restore": true}')
        docker.stop()
        docker.start()
        d(
            "run",
            "-d",
            "--name",
            "lives",
            "small",
            "sh",
            "-c",
            "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done",
        )
        d("run", "-d", "--name", "ends", "small", "sh", "-c", "sleep 2; exit 6")
        pid = d.quiet("inspect", "lives", "--format", "{{.State.Pid}}").stdout
        docker.stop("KILL")
        docker.start()
        assert d.quiet("inspect", "lives", "--format", "{{.State.Pid}}").stdout == pid
        d("exec", "lives", "echo", "alive", out="alive\n")
        d("pause", "lives")
        d("unpause", "lives")
        d("stop", "-t", "0", "lives")
        d("wait", "ends", out="6\n")
        d("rm", "lives", "ends")
        with ThreadPoolExecutor(10) as pool:
            done = list(pool.map(lambda n: d.quiet("run", "--rm", "small", "echo", str(n), timeout=300), range(20)))
        d.note("of twenty at once", [(each.returncode, each.stdout) for each in done])

    same_with_each(engines, script)


def test_containerd_is_killed_and_comes_back(containerds: dict[str, Engine]) -> None:
    engines = dict(containerds)

    def script(d: Recorder) -> None:
        (daemon,) = [engine for engine in engines.values() if engine.box is d.box]
        assert isinstance(daemon, Containerd)
        d(*run_words(d, "lives", "-d"), "sleep", "1000")
        d(*run_words(d, "ends", "-d"), "sh", "-c", "sleep 1; exit 6")
        daemon.stop("KILL")
        daemon.start()
        # ctr loses the output of a program that has ended before its pipes are open, runc's too.
        d("task", "exec", "--exec-id", "e1", "lives", "sh", "-c", "echo alive; sleep 1", out="alive\n")
        d.wait_for("the end of the other", "task", "ls", until=lambda out: "STOPPED" in out)
        d("task", "rm", "ends")
        gone(d, "lives")
        d("task", "rm", "lives")
        d("container", "rm", "lives", "ends")

    same_with_each(engines, script)
