"""Hand a seccomp filter's listener to who decides on the calls: linux.seccomp.listenerPath (cold).

runtime-spec config-linux.md "The Container Process State": one JSON document over a stream socket, the descriptor with
it (seccomp_unotify(2), unix(7) SCM_RIGHTS).
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket
from errno import ETIMEDOUT
from struct import pack

from knarr.base import fastjson
from knarr.base.errors import InitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATIENCE = 10.0
"""Seconds that whoever listens may take to accept and to read."""
_POINTER = "/linux/seccomp/listenerPath"


def container_process_state(profile: dict[str, Any], pid: int, state: dict[str, Any]) -> dict[str, Any]:
    """The document for the process ``pid`` of the container whose state document is ``state`` (pure)."""
    document = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid}
    if profile.get("listenerMetadata"):
        document["metadata"] = profile["listenerMetadata"]
    return {**document, "state": state}


def send_listener(fd: int, config: dict[str, Any], pid: int, state: dict[str, Any]) -> None:
    """Send the listener ``fd`` of process ``pid`` and forget it. Raises InitError when nobody takes it."""
    profile = config["linux"]["seccomp"]
    path = profile["listenerPath"]
    document = fastjson.dumps(container_process_state(profile, pid, state))
    folder, _, name = path.rpartition("/")
    sock = socket(AF_UNIX, SOCK_STREAM, 0)
    try:
        sock.settimeout(PATIENCE)
        # By the directory, since a socket's name holds 107 bytes and a path may be longer.
        directory = os.open(folder or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.close(directory)
        rights = [(SOL_SOCKET, SCM_RIGHTS, pack("i", fd))]
        sent = sock.sendmsg([document], rights)
        while sent < len(document):  # a large document goes in pieces, the descriptor went with the first
            sent += sock.send(document[sent:])
    except OSError as error:
        hint = "start who decides on the calls before the container"
        raise InitError(_POINTER, f"send the listener to {path}", error.errno or ETIMEDOUT, hint=hint) from None
    finally:
        sock.close()
