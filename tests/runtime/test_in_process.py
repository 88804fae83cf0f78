"""The runtime as a library: from many threads, from asyncio, with nothing of the calling program changed or shown."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from blackbox import Bundle, left_behind, needs_busybox, needs_root

from knarr.base.errors import CommandNotFound, Exists, InitError, Interrupted, KnarrError, WrongStatus
from knarr.base.ids import new_id
from knarr.kernel.process import ended
from knarr.runtime import record
from knarr.runtime.create import Created, Stdio, begin, create, run, undo
from knarr.runtime.delete import delete
from knarr.runtime.exec import exec_process
from knarr.runtime.launch import init_path

pytestmark = [
    needs_busybox,
    needs_root,
    pytest.mark.skipif(not os.path.exists(init_path()), reason="knarr-init is not built (make build)"),
]


class Place:
    """A state root and a bundle, and what ``left_behind`` wants of a runtime."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        self.root = root
        self.bundle = bundle

    def run(self, *args: str, out: int | None = None) -> Created:
        self.bundle.config["process"]["args"] = [*args]
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            stdio = Stdio(null, null if out is None else out, null)
            return run(str(self.root), f"t{new_id()[:12]}", str(self.bundle.path), self.bundle.config, io=stdio)
        finally:
            os.close(null)


@pytest.fixture
def place(tmp_path: Path, bundle: Bundle) -> Place:
    bundle.write()
    return Place(tmp_path / "state", bundle)


def open_files() -> list[str]:
    return sorted(
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    )


def test_run_wait_delete(place: Place) -> None:
    place.run("true").delete()  # knarr-init's sealed memory stays open from here on
    before = open_files()
    reader, writer = os.pipe()
    made = place.run("sh", "-c", "echo hello; exit 6", out=writer)
    os.close(writer)
    with open(reader, "rb") as said:
        assert said.read() == b"hello\n"
    assert made.wait() == 6
    assert ended(made.pidfd)
    assert made.delete() == []
    assert left_behind(place, made.id) == []  # type: ignore[arg-type]
    assert open_files() == before


def test_create_and_start(place: Place) -> None:
    place.bundle.config["process"]["args"] = ["sh", "-c", "exit 9"]
    id = f"t{new_id()[:12]}"
    made = create(str(place.root), id, str(place.bundle.path), place.bundle.config)
    with pytest.raises(Exists):
        create(str(place.root), id, str(place.bundle.path), place.bundle.config)
    assert record.status(made.fd, made.state) == "created"
    made.start()
    assert made.wait() == 9
    with pytest.raises(WrongStatus):
        made.start()
    made.delete()
    assert left_behind(place, id) == []  # type: ignore[arg-type]


def test_twenty_threads(place: Place) -> None:
    """Nothing of the process changes meanwhile: directory, umask, signals, limits; every exit code is the right one."""
    wrong: list[object] = []
    stop = threading.Event()
    before = (os.getcwd(), signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, []))

    def watch() -> None:
        seen = os.umask(0o022)
        while not stop.is_set():
            if os.getcwd() != before[0]:
                wrong.append("the directory changed")
            time.sleep(0.001)
        os.umask(seen)

    def work(number: int) -> None:
        config = json.loads(json.dumps(place.bundle.config))
        config["process"]["args"] = ["sh", "-c", f"exit {number}"]
        try:
            for _ in range(3):
                made = run(str(place.root), f"t{new_id()[:12]}", str(place.bundle.path), config)
                code = made.wait()
                made.delete()
                if code != number:
                    wrong.append((number, code))
        except KnarrError as error:
            wrong.append((number, str(error)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    stop.set()
    watcher.join()
    assert wrong == []
    assert before == (os.getcwd(), signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, []))
    assert sorted(os.listdir(place.root)) == [".locks"]
    assert os.listdir(place.root / ".locks") == []


def test_asyncio_without_a_thread(place: Place) -> None:
    """``Launch`` driven by add_reader: thirty containers in one thread."""

    async def one(number: int) -> int:
        loop = asyncio.get_running_loop()
        config = json.loads(json.dumps(place.bundle.config))
        config["process"]["args"] = ["sh", "-c", f"sleep 0.1; exit {number}"]
        made = begin(str(place.root), f"t{new_id()[:12]}", str(place.bundle.path), config, wait_start=False)
        assert made.launch is not None
        launch = made.launch
        done = loop.create_future()

        def ready() -> None:
            try:
                if launch.step():
                    loop.remove_reader(launch.fileno())
                    done.set_result(None)
            except KnarrError as error:
                loop.remove_reader(launch.fileno())
                done.set_exception(error)

        loop.add_reader(launch.fileno(), ready)
        try:
            await done
        except KnarrError as error:
            undo(made, error)
            raise
        made.finish()
        over = loop.create_future()
        loop.add_reader(made.pidfd, over.set_result, None)
        await over
        loop.remove_reader(made.pidfd)
        code = made.wait()
        made.delete()
        return code

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(one(number) for number in range(30)))

    threads = threading.active_count()
    assert asyncio.run(all_of_them()) == [*range(30)]
    assert threading.active_count() <= threads  # those of other tests may have ended meanwhile
    assert sorted(os.listdir(place.root)) == [".locks"]


def test_an_error_leaves_nothing(place: Place) -> None:
    place.run("true").delete()
    before = open_files()
    with pytest.raises(CommandNotFound):
        place.run("no-such-program")
    place.bundle.config["mounts"].append({"destination": "/x", "type": "no-such-fs", "source": "x"})
    with pytest.raises(InitError, match="/mounts/5"):
        place.run("true")
    assert open_files() == before
    assert sorted(os.listdir(place.root)) == [".locks"]


def test_a_deadline(place: Place) -> None:
    place.bundle.config["hooks"] = {"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 600"]}]}
    id = f"t{new_id()[:12]}"
    begun = time.monotonic()
    with pytest.raises(InitError, match="took too long"):
        create(str(place.root), id, str(place.bundle.path), place.bundle.config, deadline=begun + 0.5)
    assert time.monotonic() - begun < 3
    assert left_behind(place, id) == []  # type: ignore[arg-type]


def test_a_stop_descriptor(place: Place) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    id = f"t{new_id()[:12]}"
    try:
        with pytest.raises(Interrupted):
            create(str(place.root), id, str(place.bundle.path), place.bundle.config, stop=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert left_behind(place, id) == []  # type: ignore[arg-type]


def test_exec_in_process(place: Place) -> None:
    made = place.run("sleep", "1000")
    try:
        process = {**place.bundle.config["process"], "args": ["sh", "-c", "exit 3"]}
        inside = exec_process(str(place.root), made.id, process)
        assert inside.wait() == 3
        inside.close()
        with pytest.raises(CommandNotFound):
            exec_process(str(place.root), made.id, {**process, "args": ["no-such"]})
    finally:
        made.delete()
    assert left_behind(place, made.id) == []  # type: ignore[arg-type]


def test_a_program_that_ignores_sigchld(place: Place) -> None:
    """The kernel reaps for it: exit codes are lost, but nothing hangs and nothing stays."""
    code = """
import json, os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from knarr.runtime.create import run
made = run(sys.argv[1], sys.argv[2], sys.argv[3], json.load(open(sys.argv[3] + "/config.json")))
from knarr.kernel.process import ended
assert ended(made.pidfd, 10)
assert made.wait() == -1
made.delete()
"""
    import subprocess
    import sys

    path = place.bundle.write("true")
    id = f"t{new_id()[:12]}"
    subprocess.run(
        [sys.executable, "-c", code, str(place.root), id, path],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(record.__file__).parents[2])},
    )
    assert left_behind(place, id) == []  # type: ignore[arg-type]


def test_delete_by_name_of_what_another_thread_made(place: Place) -> None:
    made = place.run("sleep", "1000")
    assert delete(str(place.root), made.id, force=True) == []
    assert made.wait() in {137, -1}
    made.close()
    assert left_behind(place, made.id) == []  # type: ignore[arg-type]


def test_the_memory_of_the_program_is_not_in_the_container(place: Place) -> None:
    """The child is spawned, not forked: a secret of the interpreter is not in a created container's memory."""
    secret = ctypes.create_string_buffer(b"knarr-secret-" + os.urandom(8).hex().encode())
    place.bundle.config["process"]["args"] = ["true"]
    id = f"t{new_id()[:12]}"
    made = create(str(place.root), id, str(place.bundle.path), place.bundle.config)
    try:
        found = False
        with open(f"/proc/{made.pid}/maps", encoding="ascii") as maps, open(f"/proc/{made.pid}/mem", "rb", 0) as memory:
            for line in maps:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                if "[v" in line:
                    continue
                memory.seek(start)
                found = found or secret.value in memory.read(end - start)
        assert not found
        smaps = Path(f"/proc/{made.pid}/smaps_rollup").read_text()
        private = sum(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Private"))
        assert private <= 300  # KiB
    finally:
        made.delete()


def test_delete_of_what_is_being_made_waits_and_removes_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete that finds a directory without a state yet waits for the creation, whose process must not stay."""
    id = f"t{new_id()[:12]}"
    save, slow = record.save, threading.Event()

    def saved_late(fd: int, state: record.State) -> None:
        if not slow.is_set():
            slow.set()
            time.sleep(0.5)
        save(fd, state)

    monkeypatch.setattr(record, "save", saved_late)
    path = place.bundle.write("sleep", "100")
    config = json.loads(Path(path, "config.json").read_text())
    made: list[Created] = []
    thread = threading.Thread(target=lambda: made.append(create(str(place.root), id, path, config)))
    thread.start()
    assert slow.wait(10)
    assert delete(str(place.root), id, force=True) == []
    thread.join()
    pid = made[0].pid
    made[0].close()
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    assert left_behind(place, id) == []  # type: ignore[arg-type]
