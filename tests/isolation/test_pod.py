"""Two containers in one guest, by frames alone: what a pod in one machine needs of the agent, which it has."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

import pytest
from behind import GUESTS, need
from blackbox import Bundle, default_config, needs_busybox, needs_root

from knarr.isolation import frames, kinds, steps
from knarr.isolation.create import guest_host
from knarr.isolation.guest import Guest, Work
from knarr.isolation.kinds import Settings, Share
from knarr.kernel.process import ended, reap, signal_pid
from knarr.plan.container import Options, plan_container
from knarr.plan.root import Root
from knarr.runtime import cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMORY = 128 << 20
GO, SYNC, ERROR = 1, 2, 3


class Container:
    """A process of the guest's with a root, a cgroup and namespaces of its own."""

    def __init__(self, who: Guest, number: int, script: str) -> None:
        self.said = b""
        self.errors: list[tuple[int, int, bytes]] = []
        self._guest = who
        root, layer = f"/run/root{number}", f"/run/layer{number}"
        data = f"lowerdir=/run/share{number},upperdir={layer}/upper,workdir={layer}/work"
        for request in (
            frames.mkdir(layer),
            frames.mount("tmpfs", layer, "tmpfs"),
            frames.mkdir(f"{layer}/upper"),
            frames.mkdir(f"{layer}/work"),
            frames.mkdir(root),
            frames.mount("overlay", root, "overlay", 0, data),
        ):
            assert who.call(*request, time.monotonic() + 10)[0] == 0, request
        config = default_config()
        config["process"]["args"] = ["sh", "-c", script]
        config["hostname"] = f"box{number}"
        config["root"]["path"] = root
        host = guest_host()
        groups = cgroup.plan(config, host, f"pod{number}")
        assert groups is not None
        for step in steps.of_cgroup(groups):
            error, _ = who.call(step["kind"], step["value"], bytes.fromhex(step["payload"]), time.monotonic() + 10)
            assert error == 0 or error in step["fine"], step
        plan = plan_container(
            config, host, id=f"pod{number}", bundle="/", options=Options(), root=Root("bind", root), cgroup=groups
        )
        assert plan.slots == ("cgroup",)
        slots = frames.slot(frames.SLOT_DIRECTORY, 0, f"/sys/fs/cgroup{groups.directories[0].path}")
        begun: list[int] = []
        self.work: Work = who.plan(plan.encode(), terminal=False, stdin=True)
        who.spawn(self.work, slots, begun.append)
        self.work.on_control = self._answer
        self.work.on_data = self._hear
        who.wait(lambda: bool(begun), time.monotonic() + 10)
        assert begun == [0]

    def _answer(self, packet: bytes) -> None:
        kind, index, value, _ = struct.unpack_from("<IIiI", packet)
        if kind == SYNC:
            self._guest.control(self.work, struct.pack("<II", GO, 0))
        elif kind == ERROR:
            self.errors.append((index, value, packet[16:]))

    def _hear(self, stream: int, data: bytes) -> None:
        self.said += data
        self._guest.took(self.work, stream, len(data))

    def until(self, text: bytes) -> None:
        self._guest.wait(lambda: text in self.said or bool(self.errors), time.monotonic() + 20)
        assert self.errors == []

    def tell(self, line: str) -> None:
        self._guest.input(self.work, f"{line}\n".encode())

    def ask(self, line: str) -> list[str]:
        """What a command says."""
        self.said = b""
        self.tell(f"{line}; echo e''nd")
        self.until(b"end\n")
        return self.said.decode().split()[:-1]


@pytest.fixture(params=GUESTS)
def who(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    """A guest that shows two roots."""
    kind: str = request.param
    need(kind)
    shares = []
    for number in range(2):
        made = Bundle(tmp_path / f"bundle{number}")
        (made.rootfs / f"own{number}").write_text("")
        shares.append(Share(str(made.rootfs)))
    settings = Settings(kind, MEMORY, 1, tuple(shares), str(tmp_path / "initramfs"), kinds.find(kind, {}))
    booting = kinds.boot(settings)
    try:
        made_guest = Guest(booting.channel, booting.window, booting.ring)
        made_guest.wait(lambda: bool(made_guest.release), time.monotonic() + booting.patience)
        for step in steps.of_shares(tuple(shares), kind):
            answer = made_guest.call(step["kind"], step["value"], bytes.fromhex(step["payload"]), time.monotonic() + 10)
            assert answer[0] == 0, step
        yield made_guest
    finally:
        signal_pid(booting.pidfd, 9)
        ended(booting.pidfd, 10.0)
        reap(booting.pidfd, wait=False)
        for fd in (booting.pidfd, booting.channel, booting.console):
            os.close(fd)


def members(who: Guest, number: int) -> int:
    """How many processes a container's group has."""
    path = frames.texts(f"/sys/fs/cgroup/pod{number}/cgroup.procs")
    return len(who.call(frames.READ, 100, path, time.monotonic() + 10)[1].split())


@needs_busybox
@needs_root
def test_two_containers_side_by_side(who: Guest) -> None:
    """Each has files, processes, a name, memory of its own; the end of one is not the other's."""
    shell = 'while read -r line; do eval "$line"; done; exit 9'
    one, two = Container(who, 0, shell), Container(who, 1, shell)
    for number, box in enumerate((one, two)):
        assert box.ask("ls -d /own*") == [f"/own{number}"]
        assert box.ask("cat /proc/sys/kernel/hostname") == [f"box{number}"]
        assert box.ask("echo mine > /tmp/file; cat /tmp/file") == ["mine"]
    assert one.ask("sleep 1000 & echo $!") != []
    deadline = time.monotonic() + 10
    while "sleep" not in " ".join(one.ask("ps")):  # until then it is a copy of the shell
        assert time.monotonic() < deadline
    assert "sleep" not in " ".join(two.ask("ps"))
    assert two.ask("ls /dev/shm /tmp") == ["/dev/shm:", "/tmp:", "file"]
    one.ask("echo other > /tmp/file; echo secret > /dev/shm/it")
    assert two.ask("cat /tmp/file; ls /dev/shm") == ["mine"]
    assert two.ask("kill -9 2 2>&1 | wc -l; kill -9 -1 2>/dev/null; echo still") == ["1", "still"]
    assert [members(who, number) for number in (0, 1)] == [2, 1]
    who.end_input(one.work)
    who.wait(lambda: one.work.status is not None, time.monotonic() + 10)
    assert one.work.status == 9 << 8
    assert two.ask("echo alone") == ["alone"]
    who.send(frames.SIGNAL, two.work.id, 9)
    who.wait(lambda: two.work.status is not None, time.monotonic() + 10)
    assert two.work.status == 9
