"""A monitor with a guest that has booted, which waits for its container (cold).

The keeper of templates forks it. What takes it gets a connection to it, over which come first the container's set-up
with the descriptors, then the pidfd of the process that stands for the container on the host (stand.c), a child of who
made the container: this one is the keeper's. From then on it is the container's monitor as any other, and no matter of
the keeper's.
"""

from __future__ import annotations

import _signal as signal
import os
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET, socket
from select import POLLIN, poll
from struct import pack
from time import monotonic

from knarr.base import fastjson
from knarr.base.errors import Interrupted, KnarrError
from knarr.isolation import answers, confine, kinds, network, watchers
from knarr.isolation.guest import Guest
from knarr.isolation.monitor import LIMIT, Ends, content, stay, tell_code
from knarr.isolation.taking import opened, settle
from knarr.isolation.template import HANDED, MESSAGE
from knarr.kernel.ffi import syscall
from knarr.kernel.passed import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.isolation.kinds import Booting, Settings, Share
    from knarr.isolation.template import Shape

LOADED = (answers, confine, network, watchers)
"""What a monitor loads when it needs it; those that wait have it from the keeper."""
INITRAMFS = "initramfs-"
"""In the keeper's folder, with the number of the process whose guest boots."""
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_KEEPER = 3


def main(keeper: socket, parent: int, shape: Shape, place: str) -> None:
    """Boot, wait, be a monitor, in a process forked from the keeper ``parent``; never returns."""
    code = 1
    try:
        code = _Waiting(_alone(keeper), parent, shape, place).run()
    finally:
        os._exit(code)


def _alone(keeper: socket) -> socket:
    """Give up all descriptors of the keeper's but the connection to it."""
    if keeper.fileno() != _KEEPER:
        os.dup2(keeper.detach(), _KEEPER, inheritable=False)
    os.closerange(_KEEPER + 1, os.sysconf("SC_OPEN_MAX"))
    return socket(fileno=_KEEPER)


class _Waiting:
    """One guest, from its boot on."""

    def __init__(self, keeper: socket, parent: int, shape: Shape, place: str) -> None:
        self._keeper = keeper
        self._parent = parent
        self._shape = shape
        self._place = place
        self._stand = -1  # the pidfd of what stands for the container, once it is there
        self._guest: Guest
        self._booting: Booting
        self._taker: socket  # who took it may wait for its end, which is that of all there was

    def run(self) -> int:
        """Until the container has ended, or who keeps or wanted it is gone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        syscall("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._parent:
            return 1
        os.setsid()
        try:
            found = kinds.find(self._shape.kind, {})
            self._boot(found)
        except KnarrError as error:
            self._keeper.send(fastjson.dumps({"failed": str(error)[: MESSAGE // 8]}))
            return 1
        self._keeper.send(fastjson.dumps({"ready": True}))
        if not self._wait():
            return 1
        syscall("prctl", _PR_SET_PDEATHSIG, 0)
        self._keeper.close()
        try:
            self._say_what_it_is(found)
            return self._serve()
        except OSError:
            return 1  # who took it is gone

    def _say_what_it_is(self, found: dict[str, Any]) -> None:
        """To who takes it, with the user namespace it is in: an ordinary user's container enters that."""
        space = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        self._taker.sendmsg([fastjson.dumps({"found": found})], [(SOL_SOCKET, SCM_RIGHTS, pack("i", space))])
        os.close(space)

    def _boot(self, found: dict[str, Any]) -> None:
        # Of its own: others boot at this moment, and a file that is replaced can no longer be bound.
        initramfs = f"{self._place}/{INITRAMFS}{os.getpid()}"
        try:
            self._boot_from(initramfs, found)
        finally:
            if os.path.exists(initramfs):
                os.unlink(initramfs)

    def _boot_from(self, initramfs: str, found: dict[str, Any]) -> None:
        settings = kinds.Settings(
            kind=self._shape.kind,
            memory=self._shape.memory,
            cpus=self._shape.cpus,
            shares=None,
            initramfs=initramfs,
            found=found,
            filters=f"{self._place}/.seccomp",
        )
        self._booting = kinds.boot(settings)
        self._guest = Guest(self._booting.channel, self._booting.window, self._booting.ring)
        self._guest.wait(lambda: bool(self._guest.release), monotonic() + self._booting.patience)

    def _wait(self) -> bool:
        """Until it is taken; False when there is no keeper or no guest any more."""
        poller = poll()
        poller.register(self._keeper.fileno(), POLLIN)
        poller.register(self._booting.pidfd, POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._booting.pidfd in ready:
                return False
            data, rights, _, _ = self._keeper.recvmsg(64, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
            given = descriptors(rights)
            if not data:
                return False
            if given:
                self._taker = socket(fileno=given[0])
                self._taker.setblocking(True)
                return True

    # -- the container's -----------------------------------------------------------------------------------------------

    def _serve(self) -> int:
        data, rights, _, _ = self._taker.recvmsg(64, CMSG_SPACE(4 * len(HANDED)), MSG_CMSG_CLOEXEC)
        given = dict(zip(HANDED, descriptors(rights), strict=False))
        if not data or len(given) < len(HANDED) - 1:
            return 1  # who took it thought better of it
        setup = fastjson.loads(content(given["setup"]), "set-up", limit=LIMIT)
        ends = Ends(socket(fileno=given["control"]), given["plan"], socket(fileno=given["listener"]))
        ends.stand = socket(fileno=given["stand"])
        ends.streams = (given["stdin"], given["stdout"], -1 if setup["own_terminal"] else given["stderr"])
        ends.start = socket(fileno=given["start"]) if "start" in given else None
        self._guest.bound = given["stand"]
        code = stay(setup, ends, lambda settings: self._begin(setup, settings, ends))
        tell_code(ends.stand, code)
        return code

    def _begin(self, setup: dict[str, Any], settings: Settings, ends: Ends) -> tuple[Booting, Guest]:
        """The guest, on its way into the container's cgroups."""
        settled = settle(self._booting, setup["groups"])
        booting = self._booting.replace(
            settled=settled,
            shown=lambda: self._show_shares(setup, settings),
            joined=lambda: self._join(setup, settings, ends),
        )
        return booting, self._guest

    def _show_shares(self, setup: dict[str, Any], settings: Settings) -> None:
        if setup["own_mounts"]:
            self._stand = self._stands()
        self._show((*(settings.shares or ()), *settings.drivers), self._stand)

    def _join(self, setup: dict[str, Any], settings: Settings, ends: Ends) -> None:
        """Enter the container's network, whose namespace took milliseconds to be made, beside the guest's work."""
        stands = self._stand if self._stand >= 0 else self._stands()
        syscall("setns", stands, _CLONE_NEWNET, operand="the container's network namespace")
        if setup["network"] is not None:
            setup["network"]["stand"] = _pid(stands)
        if setup["keep"] and settings.shares:
            ends.root = opened(settings.shares[0].source, stands)
        os.close(stands)

    def _show(self, shares: tuple[Share, ...], of: int) -> None:
        kinds.show(self._shape.kind, self._booting, shares, of)

    def _stands(self) -> int:
        """The pidfd of what stands for the container. Raises Interrupted when it was not made."""
        _, rights, _, _ = self._taker.recvmsg(64, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
        given = descriptors(rights)
        if len(given) != 1:
            raise Interrupted("the container is not made")
        return given[0]


def _pid(pidfd: int) -> int:
    """The process of a pidfd (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
