"""The record of a container: one winner per id (I29), status from facts (I23), damage and strangers."""

from __future__ import annotations

import os
import posix
import stat
import subprocess
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

from knarr.base import fastjson
from knarr.base.errors import (
    Exists,
    FileError,
    InvalidId,
    KnarrError,
    NotFound,
    SpecError,
    UsageError,
    WrongStatus,
)
from knarr.kernel.process import boot_id, open_pid, process_stat
from knarr.runtime import record
from knarr.runtime.delete import delete
from knarr.runtime.kill import kill
from knarr.runtime.record import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def state(**changes: object) -> State:
    made = State(id="x", bundle="/b", rootfs="/b/r", version="1.3.0", created="now", boot=boot_id(), annotations={})
    result: State = made.replace(**changes)
    return result


@pytest.mark.parametrize(
    ("changes", "facts", "status"),
    [
        ({}, {}, "stopped"),
        ({"pid": 5, "starttime": 7}, {"process": ("S", 7)}, "creating"),
        ({"pid": 5, "starttime": 7, "complete": True}, {"process": ("S", 7), "startable": True}, "created"),
        ({"pid": 5, "starttime": 7, "complete": True}, {"process": ("S", 7)}, "running"),
        ({"pid": 5, "starttime": 7, "complete": True}, {"process": ("S", 7), "frozen": True}, "paused"),
        (
            {"pid": 5, "starttime": 7, "complete": True},
            {"process": ("S", 7), "startable": True, "frozen": True},
            "paused",
        ),
        ({"pid": 5, "starttime": 7, "complete": True}, {"process": ("Z", 7)}, "stopped"),
        ({"pid": 5, "starttime": 7, "complete": True}, {"process": ("X", 7)}, "stopped"),
        ({"pid": 5, "starttime": 7, "complete": True}, {"process": ("S", 8)}, "stopped"),  # the pid is another's
        ({"pid": 5, "starttime": 7, "complete": True}, {"process": None}, "stopped"),
        ({"pid": 5, "starttime": 7, "complete": True, "boot": "old"}, {"process": ("S", 7)}, "stopped"),
    ],
)
def test_status_is_computed(changes: dict[str, object], facts: dict[str, object], status: str) -> None:
    known: dict[str, object] = {"boot": boot_id(), "process": None, "startable": False, "frozen": False, **facts}
    assert record.computed(state(**changes), **known) == status  # type: ignore[arg-type]


def test_a_record_survives_the_round_trip(tmp_path: Path) -> None:
    root_fd = record.open_root(str(tmp_path / "root"), make=True)
    fd, lock = record.make(root_fd, "x")
    kept = state(pid=7, annotations={"ä": "\U0001f600"}, tail=[["exec", "/process/args", "sh"]], cgroup={"a": [1]})
    record.save(fd, kept)
    assert fastjson.dumps([*record.load(fd, "x")]) == fastjson.dumps([*kept])
    lock.release()
    for modes, path in (
        (0o700, tmp_path / "root"),
        (0o700, tmp_path / "root/x"),
        (0o600, tmp_path / "root/x/state.json"),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == modes
    record.remove(root_fd, fd, "x")
    assert [*(tmp_path / "root").iterdir()] == [tmp_path / "root/.locks"]
    os.close(fd)
    os.close(root_fd)


def test_exactly_one_of_many_makers_wins(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for round_number in range(30):
        won: list[int] = []
        lost: list[KnarrError] = []
        gate = threading.Barrier(4)

        def contend(
            id: str, won: list[int] = won, lost: list[KnarrError] = lost, gate: threading.Barrier = gate
        ) -> None:
            root_fd = record.open_root(root, make=True)
            gate.wait()
            try:
                fd, lock = record.make(root_fd, id)
            except Exists as error:
                lost.append(error)
            else:
                won.append(fd)
                lock.release()
                os.close(fd)
            os.close(root_fd)

        threads = [threading.Thread(target=contend, args=(f"r{round_number}",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "x" * 129, "-x", "\n", "ß", ".locks"])
def test_ids_that_are_no_file_names(id: str, tmp_path: Path) -> None:
    root_fd = record.open_root(str(tmp_path), make=True)
    with pytest.raises(InvalidId):
        record.make(root_fd, id)
    with pytest.raises(InvalidId):
        record.open_container(str(tmp_path), id)
    os.close(root_fd)
    assert [*tmp_path.iterdir()] == []


def test_a_root_that_others_can_write_is_refused(tmp_path: Path) -> None:
    for mode in (0o777, 0o1777, 0o720):
        tmp_path.chmod(mode)
        with pytest.raises(UsageError, match="writable by others"):
            record.open_root(str(tmp_path))
    tmp_path.chmod(0o755)
    os.close(record.open_root(str(tmp_path)))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two other users")
@pytest.mark.parametrize(("owner", "mode", "fine"), [(1234, 0o777, False), (1234, 0o755, False), (4321, 0o711, True)])
def test_a_root_in_a_directory_of_somebody_else_is_refused(owner: int, mode: int, fine: bool) -> None:
    """/tmp/knarr-4321, made by 1234 before 4321 came: what is in it can be exchanged at any time."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o1777)
        os.mkdir(f"{top}/knarr-4321")
        os.mkdir(f"{top}/knarr-4321/knarr", 0o700)
        os.chown(f"{top}/knarr-4321/knarr", 4321, 4321)
        os.chown(f"{top}/knarr-4321", owner, owner)
        os.chmod(f"{top}/knarr-4321", mode)
        child = os.fork()
        if not child:
            code = 3
            try:
                os.setresuid(4321, 4321, 4321)
                record.open_root(f"{top}/knarr-4321/knarr", make=True)
                code = 0
            except UsageError as error:
                code = 1 if "writable by others" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if fine else 1)


@pytest.mark.parametrize(
    ("euid", "inside", "user", "root"),
    [
        (0, False, "", "/run/knarr"),
        (0, True, "tester", "/run/user/7/knarr"),  # rootless Podman
        (0, True, "root", "/run/knarr"),  # an engine in a container, where root is all there is
        (7, False, "tester", "/run/user/7/knarr"),
    ],
)
def test_where_state_lives(euid: int, inside: bool, user: str, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "geteuid", lambda: euid)
    monkeypatch.setattr(record, "in_user_namespace", lambda: inside)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("USER", user)
    assert record.default_root() == root


def test_a_planted_link_is_no_container(tmp_path: Path) -> None:
    os.close(record.open_root(str(tmp_path / "root"), make=True))
    (tmp_path / "root/x").symlink_to("/etc")
    (tmp_path / "root/f").write_text("")
    for id in ("x", "f", "missing"):
        with pytest.raises(NotFound):
            record.open_container(str(tmp_path / "root"), id)


def make_damaged(root: str, content: bytes | None) -> None:
    root_fd = record.open_root(root, make=True)
    fd, lock = record.make(root_fd, "x")
    record.save(fd, state())
    if content is None:
        os.unlink("state.json", dir_fd=fd)
    else:
        with open(f"{root}/x/state.json", "wb") as file:
            file.write(content)
    lock.release()
    os.close(fd)
    os.close(root_fd)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\0" * 300, b"null", b"[]", b'{"format":99}', b'{"format":1,"id":"y"}', None]
)
def test_a_damaged_record_is_named_and_can_be_removed(content: bytes | None, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    make_damaged(root, content)
    fd = record.open_container(root, "x")
    with pytest.raises((SpecError, FileError), match="state"):
        record.load(fd, "x")
    os.close(fd)
    if content is not None:  # a creation that was cut short at once needs no force
        with pytest.raises(SpecError, match="--force removes it"):
            delete(root, "x")
    warnings = delete(root, "x", force=True)
    assert [warning.partition(":")[0] for warning in warnings] == (
        [] if content is None else ["state of container x was damaged"]
    )
    assert sorted(os.listdir(root)) == [".locks"]
    assert os.listdir(f"{root}/.locks") == []


def test_deleting_what_is_not_there(tmp_path: Path) -> None:
    for root in (tmp_path / "none", tmp_path):
        assert delete(str(root), "x", force=True) == []
        with pytest.raises(NotFound):
            delete(str(root), "x")
    assert not (tmp_path / "none").exists()


@pytest.fixture
def bystander() -> Iterator[tuple[int, int]]:
    """(pid, start time) of a process that must not be harmed, and is looked at in the end."""
    with subprocess.Popen(["sleep", "60"]) as process:
        facts = process_stat(process.pid)
        assert facts
        yield process.pid, facts[1]
        alive = process.poll() is None
        process.kill()
    assert alive


def test_a_reused_pid_is_not_touched(tmp_path: Path, bystander: tuple[int, int]) -> None:
    """A record whose pid belongs to somebody else by now: kill and delete must leave that process alone."""
    root = str(tmp_path / "root")
    root_fd = record.open_root(root, make=True)
    fd, lock = record.make(root_fd, "x")
    pid, starttime = bystander
    record.save(fd, state(pid=pid, starttime=starttime + 1, complete=True))
    assert record.status(fd, record.load(fd, "x")) == "stopped"
    lock.release()
    with pytest.raises(WrongStatus):
        kill(root, "x", 9)
    assert delete(root, "x", force=True) == []
    os.close(fd)
    os.close(root_fd)


def test_a_pid_reused_while_we_look_is_not_opened(bystander: tuple[int, int]) -> None:
    """The pidfd is compared with the start time after it was opened, so it is that process or none."""
    pid, starttime = bystander
    assert open_pid(pid, starttime + 1) is None
    fd = open_pid(pid, starttime)
    assert fd is not None
    os.close(fd)


def test_a_record_of_another_boot_is_stopped_and_its_pid_safe(tmp_path: Path, bystander: tuple[int, int]) -> None:
    root = str(tmp_path / "root")
    root_fd = record.open_root(root, make=True)
    fd, lock = record.make(root_fd, "x")
    pid, starttime = bystander
    record.save(fd, state(pid=pid, starttime=starttime, complete=True, boot="another"))
    assert record.status(fd, record.load(fd, "x")) == "stopped"
    lock.release()
    assert delete(root, "x") == []
    os.close(fd)
    os.close(root_fd)


def test_the_state_document_is_the_specifications() -> None:
    full = state(pid=7, annotations={"a": "b"})
    assert fastjson.dumps(record.document(full, "created")) == (
        b'{"ociVersion":"1.3.0","id":"x","status":"created","pid":7,"bundle":"/b","annotations":{"a":"b"}}'
    )
    assert "pid" not in record.document(full, "stopped")
