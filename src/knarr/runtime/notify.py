"""sd_notify(3) from inside a container to the service manager outside (hot).

Whoever runs us as a service of type notify sets NOTIFY_SOCKET. The container gets a socket of its own, in a directory
beside its state that is mounted at /run/notify, and what it says there is passed on, as far as it speaks of the
service and not of our processes and descriptors: READY, STATUS, WATCHDOG and the like.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, socket
from errno import EEXIST, ENOENT
from select import POLLIN, poll
from struct import pack

from knarr.base.errors import FileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIRECTORY = "notify"
NAME = "notify.sock"
INSIDE = "/run/notify"
PATIENCE = 30.0
"""Seconds the service manager may take to say that it has seen everything, as in sd_notify_barrier(3)."""
_PASSED = (b"READY=", b"RELOADING=", b"STOPPING=", b"STATUS=", b"ERRNO=", b"WATCHDOG", b"EXTEND_TIMEOUT_USEC=")
_LARGEST = 65536


def add_mount(config: dict[str, Any], container: str) -> dict[str, Any]:
    """A copy of config.json with the directory mounted and NOTIFY_SOCKET set; ``container``: the state's directory."""
    mount = {
        "destination": INSIDE,
        "source": f"{container}/{DIRECTORY}",
        "type": "bind",
        "options": ["bind", "nosuid", "noexec", "nodev", "ro"],
    }
    process = config["process"]
    env = [entry for entry in process.get("env") or () if not entry.startswith("NOTIFY_SOCKET=")]
    process = {**process, "env": [*env, f"NOTIFY_SOCKET={INSIDE}/{NAME}"]}
    return {**config, "mounts": [*(config.get("mounts") or ()), mount], "process": process}


def make_directory(fd: int) -> None:
    """Make the directory beside the state behind ``fd``. Raises FileError."""
    try:
        os.mkdir(DIRECTORY, 0o755, dir_fd=fd)
        os.chmod(DIRECTORY, 0o755, dir_fd=fd)  # whatever the umask is
    except OSError as error:
        raise FileError("make", DIRECTORY, error.errno or EEXIST) from None


def remove_directory(fd: int) -> None:
    """Remove the directory and its socket, if they are there."""
    try:
        os.unlink(f"{DIRECTORY}/{NAME}", dir_fd=fd)
    except OSError:
        pass
    try:
        os.rmdir(DIRECTORY, dir_fd=fd)
    except OSError:
        pass


class Notify:
    """The container's socket and the service manager's; ``ready`` once the container said so.

    ``main`` becomes the service's main process then; 0: we stay it.
    """

    __slots__ = ("_host", "_socket", "main", "ready")

    def __init__(self, ours: socket, host: socket, main: int) -> None:
        self._socket = ours
        self._host = host
        self.main = main
        self.ready = False

    def fileno(self) -> int:
        """Readable when the container has said something."""
        return self._socket.fileno()

    def step(self) -> None:
        """Pass on what has come."""
        while True:
            try:
                data = self._socket.recv(_LARGEST)
            except OSError:
                return
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        lines = [line for line in data.split(b"\n") if line.startswith(_PASSED)]
        if not lines:
            return
        became_ready = not self.ready and any(line.startswith(b"READY=") for line in lines)
        if became_ready and self.main:
            lines.append(b"MAINPID=%d" % self.main)
        try:
            self._host.send(b"\n".join(lines) + b"\n")
            if became_ready:
                self._barrier()
        except OSError:
            pass  # nobody listens any more
        self.ready = self.ready or became_ready

    def _barrier(self) -> None:
        """Wait until the service manager has taken note, since we may end right after: it closes what we send."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._host.sendmsg([b"BARRIER=1"], [(SOL_SOCKET, SCM_RIGHTS, pack("i", writer))])
            finally:
                os.close(writer)
            poller = poll()
            poller.register(reader, POLLIN)
            poller.poll(PATIENCE * 1000)
        finally:
            os.close(reader)

    def wait(self, pidfd: int, stop: int = -1) -> bool:
        """Pass on until the container is ready or has ended; False when ``stop`` became readable before."""
        poller = poll()
        for fd in (self.fileno(), pidfd, stop):
            if fd >= 0:
                poller.register(fd, POLLIN)
        while not self.ready:
            events = poller.poll()
            self.step()
            ready = [fd for fd, _ in events]
            if pidfd in ready:
                return True
            if stop in ready and not self.ready:
                return False
        return True

    def close(self) -> None:
        """Close both sockets."""
        self._socket.close()
        self._host.close()


def connect(address: str) -> socket:
    """Connect to the service manager: a path, or ``@`` and an abstract name. Raises FileError."""
    host = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    try:
        host.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        host.close()
        raise FileError("notify the service manager at", address, error.errno or ENOENT) from None
    return host


def listen(fd: int, address: str, main: int = 0) -> Notify | None:
    """Make the container's socket in the state directory ``fd``; None for one that has no directory for it.

    Raises FileError.
    """
    place = f"/proc/self/fd/{fd}/{DIRECTORY}"
    if not os.path.isdir(place):
        return None
    host = connect(address)
    ours = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    try:
        try:
            os.unlink(f"{place}/{NAME}")
        except FileNotFoundError:
            pass
        ours.bind(f"{place}/{NAME}")
        os.chmod(f"{place}/{NAME}", 0o777)  # the container's user is somebody else
    except OSError as error:
        ours.close()
        host.close()
        raise FileError("make", f"{DIRECTORY}/{NAME}", error.errno or 0) from None
    return Notify(ours, host, main)
