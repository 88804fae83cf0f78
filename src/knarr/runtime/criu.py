"""Talk to the ``criu`` program (cold): its RPC over a socket that it inherits (``criu swrk``), its log when it fails.

https://criu.org/RPC. The process that CRIU restores becomes a child of this program, as if it had been spawned here.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, CMSG_SPACE, SOCK_SEQPACKET, socket, socketpair
from errno import ENOENT
from fcntl import F_DUPFD_CLOEXEC, fcntl

from knarr.base.errors import FileError, InitError, Unsupported
from knarr.kernel.passed import descriptors
from knarr.plan import criu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from knarr.plan.criu import CriuOptions

_PACKET = 64 << 10
_LOG_MAX = 16 << 20
_FIRST_EXTRA = 4
"""The number of the first extra descriptor in CRIU: 0, 1, 2 are the container's, 3 is the socket."""


class Criu:
    """One ``criu swrk``: makes one request. ``extra`` become descriptors 4, 5, … in it."""

    __slots__ = ("pid", "sock")

    def __init__(
        self, doing: str, program: str, stdio: tuple[int, int, int] = (0, 1, 2), extra: Sequence[int] = ()
    ) -> None:
        program = _found(doing, program)
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
        self.sock: socket = ours
        moved: list[int] = []
        try:
            actions = []
            low = _FIRST_EXTRA + len(extra)
            for target, source in enumerate((*stdio, theirs.fileno(), *extra)):
                if source < low and source != target:
                    source = fcntl(source, F_DUPFD_CLOEXEC, low)
                    moved.append(source)
                actions.append((os.POSIX_SPAWN_DUP2, source, target))
            environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
            self.pid = os.posix_spawn(program, ["criu", "swrk", "3"], environment, file_actions=actions)
        except OSError as error:
            ours.close()
            raise FileError("start", program, error.errno or ENOENT) from None
        finally:
            theirs.close()
            for fd in moved:
                os.close(fd)

    def request(
        self, message: dict[str, Any], on_notify: Callable[[str, int, int], None] | None = None
    ) -> dict[int, Any] | None:
        """Make a request and answer what CRIU tells meanwhile; its last response, None when there was none.

        ``on_notify(what, pid, descriptor)`` may raise; CRIU is told to give up then.
        """
        kind = message["type"]
        try:
            self.sock.send(criu.encode(message, criu.REQUEST))
            while True:
                data, control, _, _ = self.sock.recvmsg(_PACKET, CMSG_SPACE(4 * 8))
                if not data:
                    return None
                response = criu.decode(data)
                if response.get(1) != criu.NOTIFY:
                    return response
                self._notified(criu.decode(response.get(5, b"")), control, on_notify)
        except ConnectionError:
            return None
        except ValueError as error:
            raise InitError("", "understand CRIU", 0, why=f"its answer to request {kind} is damaged: {error}") from None

    def _notified(self, told: dict[int, Any], control: Any, on_notify: Callable[[str, int, int], None] | None) -> None:
        fds = descriptors(control)
        answer = {"type": criu.NOTIFY, "notify_success": True}
        try:
            if on_notify is not None:
                on_notify(told.get(1, b"").decode(), told.get(2, 0), fds[0] if fds else -1)
        except BaseException:
            self.sock.send(criu.encode({**answer, "notify_success": False}, criu.REQUEST))
            raise
        finally:
            for fd in fds:
                os.close(fd)
        self.sock.send(criu.encode(answer, criu.REQUEST))

    def close(self) -> None:
        """End the conversation and reap CRIU; what it restored goes on."""
        self.sock.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass


def _found(doing: str, program: str) -> str:
    if "/" in program:
        return program  # what is wrong with it shows when it is started
    for folder in (*os.environ.get("PATH", os.defpath).split(":"), "/usr/sbin", "/sbin"):
        if folder.startswith("/") and os.access(f"{folder}/{program}", os.X_OK):
            return f"{folder}/{program}"
    raise Unsupported(doing, f"the program {program} is not installed")


def demand(options: CriuOptions, doing: str) -> None:
    """Raise Unsupported unless CRIU, and the kernel, have what the options need."""
    for wanted, option, feature in (
        (options.pre_dump, "--pre-dump", "mem_track"),
        (options.lazy_pages, "--lazy-pages", "lazy_pages"),
    ):
        if wanted:
            _demand_feature(option, feature, options.program)
    method = options.network_lock
    _, least = criu.NETWORK_LOCKS.get(method, (0, (0, 0)))
    if least > (0, 0):
        process = Criu(doing, options.program)
        try:
            response = process.request({"type": criu.VERSION})
        finally:
            process.close()
        said = criu.decode((response or {}).get(10, b""))
        there = (said.get(1, 0), said.get(2, 0))
        if there < least:
            why = f"this CRIU is {there[0]}.{there[1]}, it takes {least[0]}.{least[1]}"
            raise Unsupported(f"--network-lock {method}", why)


def _demand_feature(doing: str, feature: str, program: str) -> None:
    """``mem_track`` or ``lazy_pages``."""
    process = Criu(doing, program)
    try:
        response = process.request({"type": criu.FEATURE_CHECK, "features": {feature: True}})
    finally:
        process.close()
    number = {"mem_track": 1, "lazy_pages": 2}[feature]
    if response is None or not criu.decode(response.get(8, b"")).get(number):
        raise Unsupported(doing, f"CRIU or the kernel lacks {feature.replace('_', ' ')}")


def failed(doing: str, response: dict[int, Any] | None, log: str) -> InitError:
    """The error for a request that did not succeed, with the first complaint of CRIU's log."""
    why = "CRIU ended without an answer" if response is None else ""
    if response is not None:
        number = response.get(7, 0)
        why = response.get(9, b"").decode("utf-8", "replace") or (
            os.strerror(number).lower() if number else "it failed"
        )
    complaints = []
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            complaints = [line.strip() for line in file.read(_LOG_MAX).splitlines() if "Error (" in line]
    except OSError:
        return InitError("", doing, 0, why=f"CRIU: {why}", hint="criu check says whether it can work on this kernel")
    # The first complaint is the cause, unless a later one names an option that helps.
    first = next(
        (line for line in complaints if "--" in line or "onsider" in line), complaints[0] if complaints else ""
    )
    said = first.partition("Error ")[2].replace("): ", ") ") or why
    return InitError("", doing, 0, why=f"CRIU: {said}", hint=f"the whole story: {log}")


def real(path: str) -> str:
    """The path as the kernel calls it, all links followed: mountinfo has only such. Raises FileError."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("look at", path, error.errno or ENOENT) from None
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def directory(path: str, *, make: bool) -> int:
    """A descriptor of a directory for CRIU's files. Raises FileError."""
    try:
        if make:
            os.makedirs(path, 0o700, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open directory", path, error.errno or ENOENT) from None
