"""Groups of the resctrl file system: made, filled, removed (cold: only with linux.intelRdt).

The kernel's Documentation/filesystems/resctrl.rst. What it says of a refused write is in info/last_cmd_status.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOENT

from knarr.base.errors import InitError, Unsupported
from knarr.plan.resctrl import differing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.resctrl import RdtPlan

_AT = "/linux/intelRdt"


def mount_point() -> str:
    """Where resctrl is mounted. Raises Unsupported when it is not, as on every machine without such a CPU."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.split(" ", 1)[0] == "resctrl":
                return before.split(" ")[4].encode().decode("unicode_escape")
    hint = "on a machine that has it: mount -t resctrl resctrl /sys/fs/resctrl"
    raise Unsupported("linux.intelRdt", "no resctrl file system is mounted", pointer=_AT, hint=hint)


def intent(plan: RdtPlan, top: str) -> dict[str, Any]:
    """What is to be recorded before anything is made, so that ``remove`` finds it."""
    return {"top": top, "group": plan.group if plan.own else "", "monitor": monitor_of(plan)}


def monitor_of(plan: RdtPlan) -> str:
    """The monitoring group's path below the top; "" for none."""
    return f"{plan.group}/mon_groups/{plan.monitor}".lstrip("/") if plan.monitor else ""


def make(plan: RdtPlan, top: str) -> None:
    """Make the group if it is to be made, and set or compare its schemata. Raises InitError."""
    path = f"{top}/{plan.group}".rstrip("/")
    made = False
    try:
        if plan.make:
            os.mkdir(path, 0o755)
            made = True
    except OSError as error:
        if error.errno != EEXIST:
            raise _trouble(f"{_AT}/closID", f"make group {plan.group}", error, top) from None
    if not made and not os.path.isdir(path):
        why = "there is no such group, and no schemata to make it with"
        raise InitError(f"{_AT}/closID", f"use group {plan.group} of resctrl", ENOENT, why=why)
    for line, pointer in plan.schemata:
        try:
            if made:
                _write(f"{path}/schemata", f"{line}\n")
                continue
            with open(f"{path}/schemata", encoding="ascii", errors="replace") as file:
                other = differing(line, file.read())
        except OSError as error:
            raise _trouble(pointer, f"set {line}", error, top) from None
        if other:
            why = f"group {plan.group or '/'} is there, and its schemata are not {other}"
            raise InitError(pointer, "use a group of resctrl", EEXIST, why=why)


def join(plan: RdtPlan, top: str, pid: int) -> None:
    """Put a process into the group, and into its monitoring group. Raises InitError."""
    places = [plan.group] + ([monitor_of(plan)] if plan.monitor else [])
    try:
        if plan.monitor:
            os.mkdir(f"{top}/{places[1]}", 0o755)
        for place in places:
            _write(f"{top}/{place}/tasks", str(pid))
    except OSError as error:
        raise _trouble(_AT, "put the process into a group of resctrl", error, top) from None


def remove(recorded: dict[str, Any]) -> None:
    """Remove what was the container's alone; what is gone, or never came to be, is fine. Raises InitError."""
    for place in (recorded["monitor"], recorded["group"]):
        if place:
            try:
                os.rmdir(f"{recorded['top']}/{place}")
            except OSError as error:
                if error.errno != ENOENT:
                    raise _trouble(_AT, f"remove group {place}", error, recorded["top"]) from None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _trouble(pointer: str, doing: str, error: OSError, top: str) -> InitError:
    said = ""
    try:
        with open(f"{top}/info/last_cmd_status", encoding="utf-8", errors="replace") as file:
            said = file.read(1000).strip()
    except OSError:
        pass  # the errno has to do
    number = error.errno or 0
    why = f"{os.strerror(number).lower()}: {said}" if said and said != "ok" else ""
    return InitError(pointer, f"resctrl: {doing}", number, why=why)
