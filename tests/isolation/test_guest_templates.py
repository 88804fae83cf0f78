"""Guests kept ready: handed out once, ended with whoever took them, bounded, and gone with their keeper."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import Unsupported, UsageError
from knarr.isolation import keeping, template
from knarr.isolation.keeper import Keeper
from knarr.isolation.template import Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SMALL = Shape("kernel", 64 << 20)


class Running:
    """A keeper in a thread of its own, whose guests are processes that sleep and have said that they are ready."""

    def __init__(self, place: Path, idle: float = 60) -> None:
        self.place = str(place)
        self.pids: list[int] = []
        self.pidfds: list[int] = []
        self.monitors: list[socket.socket] = []
        self.quiet = False
        self.fails = False
        self.broken = False
        self.keeper = Keeper(self.place, self.launch, idle)
        self.thread = threading.Thread(target=self.keeper.run, daemon=True)
        self.thread.start()

    def launch(self, _: Shape) -> tuple[int, socket.socket]:
        if self.broken:
            raise Unsupported("isolation kernel", "it is not installed")
        pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self.fails:
            theirs.send(b'{"failed":"it panicked"}')
        elif not self.quiet:
            theirs.send(b'{"ready":true}')
        self.pids.append(pid)
        self.pidfds.append(os.pidfd_open(pid))
        self.monitors.append(theirs)
        return pid, ours

    def take(self, number: int) -> template.Taken:
        """Take a guest, whose monitor is that one, and answers."""
        answers = threading.Thread(target=self._answer, args=[number])
        answers.start()
        taken = template.take(SMALL, self.place)
        answers.join(10)
        assert taken is not None
        return taken

    def _answer(self, number: int) -> None:
        word, given, _, _ = socket.recv_fds(self.monitors[number], 100, 1)
        assert (word, len(given)) == (b"take", 1)
        with socket.socket(fileno=given[0]) as taker:
            taker.setblocking(True)
            with open("/proc/self/ns/user", "rb", buffering=0) as space:
                socket.send_fds(taker, [b'{"found":{"number":%d}}' % number], [space.fileno()])

    def stop(self) -> None:
        template.stop(self.place)
        for pidfd in self.pidfds:  # those that were taken live on
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, 9)
            os.close(pidfd)
        self.thread.join(10)
        assert not self.thread.is_alive()
        for each in self.monitors:
            each.close()

    def states(self) -> list[str]:
        found = template.kept(self.place)
        return [] if found is None else sorted(guest["state"] for guest in found)

    def expect(self, states: list[str]) -> None:
        wait_until(lambda: self.states() == states, f"{self.states()} does not become {states}")


def wait_until(reached: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline, why
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-template-"))
    yield folder / "templates"
    shutil.rmtree(folder)


@pytest.fixture
def running(place: Path) -> Iterator[Running]:
    made = Running(place)
    yield made
    made.stop()


def test_without_a_keeper_there_is_none(place: Path) -> None:
    assert template.take(SMALL, str(place)) is None
    assert template.kept(str(place)) is None
    assert not template.keep(SMALL, 1, str(place))
    assert not template.stop(str(place))


def test_one_is_handed_out_once_and_replaced(running: Running) -> None:
    assert template.keep(SMALL, 1, running.place)
    running.expect(["ready"])
    taken = running.take(0)
    assert taken.found == {"number": 0}
    running.expect(["ready", "taken"])
    other = running.take(1)
    assert other.found == {"number": 1}
    for number, each in enumerate((taken, other)):
        each.connection.close()
        assert alive(running.pids[number])  # it is its monitor's matter when to end
        os.kill(running.pids[number], 9)
    running.expect(["ready"])
    assert not alive(running.pids[0])


def test_one_whose_monitor_is_gone_is_none(running: Running) -> None:
    template.keep(SMALL, 1, running.place)
    running.expect(["ready"])
    running.monitors[0].close()
    assert template.take(SMALL, running.place) is None


def test_a_monitor_that_does_not_answer_is_none(running: Running) -> None:
    template.keep(SMALL, 1, running.place)
    running.expect(["ready"])
    ends = threading.Timer(0.2, running.monitors[0].close)
    ends.start()
    assert template.take(SMALL, running.place) is None
    ends.join()


def test_another_shape_is_another_template(running: Running) -> None:
    template.keep(SMALL, 1, running.place)
    running.expect(["ready"])
    assert template.take(Shape("kernel", 65 << 20), running.place) is None
    assert template.take(Shape("kernel", 64 << 20, 2), running.place) is None
    assert running.states() == ["ready"]


def test_one_that_boots_is_not_given_away(running: Running) -> None:
    running.quiet = True
    template.keep(SMALL, 1, running.place)
    running.expect(["booting"])
    assert template.take(SMALL, running.place) is None


def test_how_many_and_how_large_is_bounded(running: Running) -> None:
    with pytest.raises(UsageError, match="16 guests at most"):
        template.keep(SMALL, 17, running.place)
    with pytest.raises(UsageError, match="4096 MiB altogether"):
        template.keep(Shape("kernel", 3 << 30), 2, running.place)
    template.keep(SMALL, 3, running.place)
    running.expect(["ready"] * 3)
    with pytest.raises(UsageError, match="4096 MiB altogether"):
        template.keep(Shape("kernel", 4 << 30), 1, running.place)
    template.keep(SMALL, 1, running.place)
    running.expect(["ready"])
    wait_until(lambda: sum(map(alive, running.pids)) == 1, "what is not wanted any more stays")


def test_one_that_dies_is_replaced(running: Running) -> None:
    template.keep(SMALL, 1, running.place)
    running.expect(["ready"])
    os.kill(running.pids[0], 9)
    wait_until(lambda: len(running.pids) == 2, "it is not replaced")
    running.expect(["ready"])


def test_what_cannot_boot_is_not_tried_for_ever(running: Running) -> None:
    running.broken = True
    template.keep(SMALL, 2, running.place)
    wait_until(lambda: running.keeper._wanted[SMALL] == 0, "it goes on trying")
    assert running.states() == []


def test_what_ends_while_it_boots_is_not_booted_for_ever(running: Running) -> None:
    running.quiet = True
    template.keep(SMALL, 1, running.place)
    running.expect(["booting"])
    os.kill(running.pids[0], 9)
    running.expect([])
    assert template.status(running.place)["failed"] == ["it ended before it said hello"]
    time.sleep(0.2)
    assert len(running.pids) == 1


def test_it_tells_why_one_does_not_boot(running: Running) -> None:
    running.fails = True
    template.keep(SMALL, 1, running.place)
    wait_until(lambda: template.status(running.place)["failed"] == ["it panicked"], "nobody hears why")
    os.kill(running.pids[0], 9)
    running.expect([])
    assert template.status(running.place)["failed"] == ["it panicked"]
    assert len(running.pids) == 1


def test_stopping_lets_those_in_use_end_first(running: Running) -> None:
    template.keep(SMALL, 2, running.place)
    running.expect(["ready", "ready"])
    running.take(0).connection.close()
    assert template.stop(running.place)
    wait_until(lambda: sum(map(alive, running.pids)) == 1, "the waiting ones stay")
    assert alive(running.pids[0])
    assert running.thread.is_alive()
    os.kill(running.pids[0], 9)
    running.thread.join(10)
    assert not running.thread.is_alive()
    assert not alive(running.pids[0])


def test_an_idle_keeper_ends(place: Path) -> None:
    made = Running(place, idle=0.3)
    template.keep(SMALL, 1, made.place)
    made.thread.join(10)
    assert not made.thread.is_alive()
    assert not any(map(alive, made.pids))
    assert os.listdir(place) == []
    made.stop()


def test_one_keeper_only_and_a_killed_ones_socket_is_no_hindrance(running: Running, place: Path) -> None:
    with pytest.raises(UsageError, match="there is a keeper"):
        Keeper(running.place, running.launch)
    other = place.parent / "other"
    other.mkdir(0o700)
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.bind(str(other / "keeper"))
    left.close()
    made = Running(other)
    assert made.states() == []
    made.stop()


def test_a_folder_that_others_can_enter_is_refused(place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(UsageError, match="directory of one's own"):
        Keeper(str(place), lambda _: (0, socket.socket()))


@pytest.mark.parametrize(
    "words", [b"", b"{", b"[]", b"{}", b'{"do":"take"}', b'{"do":"keep","shape":7}', b'{"do":"x"}']
)
def test_nonsense_is_no_hindrance(running: Running, words: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(f"{running.place}/keeper")
        if words:
            stranger.send(words)
    assert running.states() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be somebody else for a moment")
def test_another_users_keeper_gets_no_container() -> None:
    """Who may make the directory before us could be it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own are not for others
    child = 0
    try:
        folder.chmod(0o777)
        heard, hearing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setresuid(65534, 65534, 65534)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            listener.bind(f"{folder}/{template.SOCKET}")
            listener.listen(4)
            os.write(hearing, b"x")
            signal.pause()
            os._exit(0)
        assert os.read(heard, 1) == b"x"
        with pytest.raises(UsageError, match="is another user's"):
            template.connect(str(folder))
        assert template.take(SMALL, str(folder)) is None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        shutil.rmtree(folder)


def test_a_place_that_another_could_exchange_is_refused(tmp_path: Path) -> None:
    keeping.demand_own(str(tmp_path / "not" / "there" / "yet"))
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match="another user's to change"):
        keeping.demand_own(str(tmp_path / "templates"))
    tmp_path.chmod(0o1777)
    keeping.demand_own(str(tmp_path / "templates"))
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
        with pytest.raises(UsageError, match="another user's to change"):
            keeping.demand_own(str(tmp_path / "templates"))
