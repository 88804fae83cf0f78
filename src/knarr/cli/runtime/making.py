"""What create, run and exec have in common: bundle, console socket, preserved descriptors, pid file (hot)."""

from __future__ import annotations

import posix
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket
from errno import EBADF, ENOENT, EPIPE
from fcntl import F_GETFD, fcntl

from knarr.base.errors import FileError, NotFound, SpecError, SpecFinding, UsageError
from knarr.base.fastjson import pointer_token
from knarr.base.files import read_file, write_atomic
from knarr.base.paths import abspath, dirname, isdir, variable
from knarr.isolation.choose import ANNOTATION, GUESTS, in_guest, kind_of
from knarr.plan.container import Options
from knarr.spec.validate import parse_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from knarr.base.log import Log
    from knarr.cli.runtime.command import Context
    from knarr.isolation.exec import GuestExeced
    from knarr.runtime.create import Created
    from knarr.runtime.exec import Execed

PIDFD_RECEIVER = "run.oci.pidfd_receiver"
CONSOLE_PATIENCE = 10.0
"""Seconds the listener of a console socket may take to accept."""


def read_bundle(options: dict[str, Any]) -> tuple[str, dict[str, Any], bytes]:
    """The bundle's absolute path, its validated config.json and the bytes of that.

    Raises NotFound, FileError, SpecError.
    """
    bundle = abspath(options.get("bundle") or ".")
    own = options.get("config")
    path = own or f"{bundle}/config.json"
    try:
        raw = read_file(path, 16 << 20)
    except FileError as error:
        if error.number != ENOENT:
            raise
        if not isdir(bundle):
            raise NotFound("bundle", bundle) from None
        if own:
            raise
        raise NotFound("config.json in bundle", bundle, hint="knarr-runtime spec writes one") from None
    return bundle, parse_config(raw, path if own else "config.json"), raw


def isolation(config: dict[str, Any]) -> str:
    """The kind of isolation: of the name this program was called by, or of the annotation; "" for the host's kernel.

    Raises SpecError for an annotation that is no kind, or another than the name's: whoever writes config.json may not
    weaken what the engine was told to use.
    """
    name = sys.argv[0].rpartition("/")[2]
    named = next((kind for kind in GUESTS if name.endswith(f"-{kind}")), "")
    asked = (config.get("annotations") or {}).get(ANNOTATION, "")
    if named and asked not in ("", named):
        why = f"{asked!r} is not the {named} of {name}"
        raise SpecError("config.json", [SpecFinding(f"/annotations{pointer_token(ANNOTATION)}", why)])
    kind = named or kind_of(config)
    return kind if kind in GUESTS else ""


def makers(config: dict[str, Any]) -> tuple[Callable[..., Created], Callable[..., Created]]:
    """The functions ``create`` and ``run`` for its kind of isolation."""
    kind = isolation(config)
    if not kind:
        from knarr.runtime.create import create, run

        return create, run
    from functools import partial  # cold: only for a guest

    from knarr.isolation.create import create as create_in_guest  # cold: only for a guest
    from knarr.isolation.create import run as run_in_guest  # cold: only for a guest

    return partial(create_in_guest, kind), partial(run_in_guest, kind)


def executor(root: str, id: str) -> Callable[..., Execed | GuestExeced]:
    """The function ``exec_process`` for the container."""
    if in_guest(root, id):
        from knarr.isolation.exec import exec_process as exec_in_guest  # cold: only for a guest

        return exec_in_guest
    from knarr.runtime.exec import exec_process

    return exec_process


def wishes(options: dict[str, Any], context: Context) -> Options:
    """What the command line, not config.json, decides about a container."""
    return Options(
        no_pivot=bool(options.get("no-pivot")),
        no_new_keyring=bool(options.get("no-new-keyring")),
        cgroup_manager=context.cgroup_manager,
        notify=variable("NOTIFY_SOCKET"),
    )


def preserved(options: dict[str, Any]) -> tuple[int, ...]:
    """The descriptors to hand down: 3 and up, those of LISTEN_FDS first (sd_listen_fds(3)) and --preserve-fds more.

    To be called before this program opens any: a number that is free would be taken by one of our own.
    """
    listening = variable("LISTEN_FDS")
    count = int(listening) if listening.isascii() and listening.isdigit() and len(listening) < 6 else 0
    count += options.get("preserve-fds", 0)
    for fd in range(3, 3 + count):
        try:
            fcntl(fd, F_GETFD)
        except OSError as error:
            number = error.errno or EBADF
            raise UsageError(f"cannot preserve descriptor {fd}: {posix.strerror(number).lower()}") from None
    return tuple(range(3, 3 + count))


def add_listen_fds(process: dict[str, Any]) -> None:
    """Tell the program of the sockets it inherits, as sd_listen_fds(3) expects it."""
    listening = variable("LISTEN_FDS")
    if listening.isascii() and listening.isdigit() and listening != "0":
        process["env"] = [*(process.get("env") or ()), f"LISTEN_FDS={listening}", "LISTEN_PID=1"]


def with_notify(config: dict[str, Any], root: str, id: str) -> dict[str, Any]:
    """What makes sd_notify(3) work inside, if a service manager outside waits for it."""
    if not variable("NOTIFY_SOCKET"):
        return config
    from knarr.runtime.notify import add_mount  # only as a service of systemd's

    return add_mount(config, f"{root}/{id}")


def console_socket(path: str) -> socket:
    """Connect to the socket that wants the terminal. Raises FileError."""
    return _connect(path, "console socket")


def pidfd_socket(options: dict[str, Any]) -> socket | None:
    """Connect to the socket of --pidfd-socket, if there is one. Raises FileError."""
    path = options.get("pidfd-socket")
    return _connect(path, "pidfd socket") if path else None


def send_pidfd(sock: socket | None, word: bytes, pidfd: int) -> None:
    """Send a process's descriptor with the word that runc sends along, and close the socket. Raises FileError."""
    if sock is None:
        return
    try:
        sock.sendmsg([word], [(SOL_SOCKET, SCM_RIGHTS, pidfd.to_bytes(4, sys.byteorder))])
    except OSError as error:
        raise FileError("send the process's descriptor to", "the pidfd socket", error.errno or EPIPE) from None
    finally:
        sock.close()


def tell_receiver(config: dict[str, Any], pidfd: int) -> None:
    """Send the process's descriptor to the socket that crun's annotation names, if there is one. Raises FileError."""
    path = (config.get("annotations") or {}).get(PIDFD_RECEIVER)
    if path:
        send_pidfd(_connect(path, f"config.json /annotations/{PIDFD_RECEIVER}"), b" ", pidfd)


def _connect(path: str, what: str) -> socket:
    """By a path of any length. Raises FileError."""
    folder, name = dirname(path), path.rpartition("/")[2]
    sock = socket(AF_UNIX, SOCK_STREAM, 0)
    try:
        sock.settimeout(CONSOLE_PATIENCE)
        directory = posix.open(folder or ".", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{name}")
        finally:
            posix.close(directory)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        number = error.errno
        if number is None:  # a timeout has none
            from errno import ETIMEDOUT

            number = ETIMEDOUT
        raise FileError(f"connect to {what}", path, number) from None
    return sock


def check_terminal(process: dict[str, Any], options: dict[str, Any], *, detach: bool, document: str = "") -> None:
    """Raise UsageError when the terminal that is asked for and the console socket do not go together.

    ``document`` is the config.json with that process; none for ``exec``.
    """
    where = f"{document} /process/terminal: " if document else ""
    terminal, has_socket = bool(process.get("terminal")), bool(options.get("console-socket"))
    if terminal and detach and not has_socket:
        raise UsageError(
            f"{where}the process wants a terminal, but there is no console socket to send it to",
            hint="add --console-socket",
        )
    if has_socket and not terminal:
        raise UsageError(
            f"{where}there is a console socket, but the process wants no terminal", hint="set process.terminal"
        )
    if has_socket and not detach:
        raise UsageError("a console socket is of use only with --detach")


def write_pid(options: dict[str, Any], pid: int) -> None:
    """Write --pid-file in one step; a link planted at its place is replaced, not followed (I18). Raises FileError."""
    path = options.get("pid-file")
    if path:
        write_atomic(path, b"%d" % pid, mode=0o644)


def warn(config: dict[str, Any], log: Log) -> None:
    """Log what a runtime should mention about a valid config.json."""
    from knarr.spec.validate import config_warnings

    found = config_warnings(config)
    if "vm" in config and isolation(config) == "vm":
        found = [each for each in found if each.pointer != "/vm"]
    log_findings("config.json", found, log)


def log_findings(document: str, findings: Iterable[SpecFinding], log: Log) -> None:
    """Log what a document asks for and does not get."""
    for finding in findings:
        # Old `runc spec` asks for ambient capabilities that cannot be; nobody else mentions it.
        say = log.debug if "/capabilities/ambient/" in finding.pointer else log.warning
        say(f"{document} {finding}")
