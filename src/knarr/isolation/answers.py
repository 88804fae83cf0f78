"""What the monitor is asked about its container, and asks the guest (cold); by whom: runtime/monitored.py."""

from __future__ import annotations

from time import monotonic

from knarr.base.errors import InitError, KnarrError, UsageError
from knarr.isolation import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.isolation.guest import Guest

_PATIENCE = 5.0
"""Seconds one question may take in all."""
_MOST = 4096
"""Processes and groups that are looked at."""


def answer(who: Guest, first: int, group: str, message: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question about the container in ``group``, whose first process is ``first``.

    Raises KnarrError, also when the guest does not answer.
    """
    do = message["do"]
    asked = _Asked(who, group)
    if do in ("pause", "resume"):
        asked.freeze(frozen=do == "pause")
        return {}
    if do == "signal":
        number = int(message["number"])
        if message["all"]:
            for pid in asked.processes():
                asked.signal(pid, number)
        else:
            who.send(frames.SIGNAL, first, number)
        return {}
    if do == "cares":
        return {"cares": asked.cares(int(message["number"]))}
    if do == "ps":
        return {"processes": [asked.described(pid) for pid in asked.processes()[:500]]}
    if do == "read":
        name = str(message["file"])
        if "/" in name:
            raise UsageError(f"{name} is no file of a cgroup")
        return {"text": asked.read(f"{group}/{name}", missing="")}
    if do == "write":
        asked.demand(frames.write(f"{group}/{message['file']}", str(message["value"])), f"write {message['file']}")
        return {}
    raise UsageError(f"{do!r} is not known")


class _Asked:
    """Questions to the guest that wait for their answers, together so long as one may take."""

    def __init__(self, who: Guest, group: str) -> None:
        self._guest = who
        self._group = group
        self._deadline = monotonic() + _PATIENCE

    def demand(self, request: tuple[int, int, bytes], doing: str) -> bytes:
        """The bytes of an answer. Raises InitError."""
        error, data = self._guest.call(*request, self._deadline)
        if error:
            raise InitError("", f"{doing} in the guest", error)
        return data

    def read(self, path: str, *, missing: str | None = None) -> str:
        """The text of a file; ``missing`` when there is none to be read, if that is given."""
        try:
            data = self.demand((frames.READ, frames.REPLY_LIMIT, frames.texts(path)), f"read {path}")
        except InitError as error:
            if missing is None or not error.number:
                raise
            return missing
        return data.decode("utf-8", "replace")

    def freeze(self, *, frozen: bool) -> None:
        """Stop all processes, or let them go on, and see that it happened (cgroup-v2.rst, cgroup.freeze)."""
        self.demand(frames.write(f"{self._group}/cgroup.freeze", "1" if frozen else "0"), "write cgroup.freeze")
        while f"frozen {int(frozen)}" not in self.read(f"{self._group}/cgroup.events"):
            if monotonic() > self._deadline:
                raise KnarrError("its processes do not stop" if frozen else "its processes do not go on")

    def processes(self) -> list[int]:
        """The guest's numbers of the container's processes, those in groups of its own making too."""
        waiting, pids = [self._group], set[int]()
        looked_at = 0
        while waiting and looked_at < _MOST and len(pids) < _MOST:
            path = waiting.pop()
            looked_at += 1
            pids.update(int(word) for word in self.read(f"{path}/cgroup.procs", missing="").split() if word.isdecimal())
            below = self.demand((frames.LIST, 0, frames.texts(path)), f"list {path}")
            waiting += [f"{path}/{name}" for name in below.decode("utf-8", "replace").split("\0") if name]
        return sorted(pids)

    def cares(self, number: int) -> bool:
        """Whether the container's first process, whose number is the lowest, catches or ignores a signal."""
        pids = self.processes()
        masks = 0
        for line in self.read(f"/proc/{pids[0]}/status", missing="").splitlines() if pids else ():
            name, _, value = line.partition(":")
            if name in ("SigCgt", "SigIgn"):
                try:
                    masks |= int(value, 16)
                except ValueError:
                    return True  # a guest may call anything a mask
        return bool(masks >> (number - 1) & 1) if masks else False

    def signal(self, pid: int, number: int) -> None:
        """Signal one of them."""
        self._guest.send(frames.SIGNAL, 0, number, pid.to_bytes(4, "little"))

    def described(self, pid: int) -> list[str]:
        """Pid, parent, user and command of a process."""
        facts = dict.fromkeys(("PPid", "Uid", "Name"), "")
        for line in self.read(f"/proc/{pid}/status", missing="").splitlines():
            key, _, value = line.partition(":")
            if key in facts:
                facts[key] = value.split()[0] if value.split() else ""
        words = self.read(f"/proc/{pid}/cmdline", missing="").replace("\0", " ").strip()
        command = "".join(char if char.isprintable() else "?" for char in words or f"[{facts['Name']}]")
        return [str(pid), facts["PPid"], facts["Uid"], command[:4000]]
