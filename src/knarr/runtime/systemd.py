"""Have systemd keep a container's cgroup: a transient scope, over D-Bus (cold: only for the systemd driver).

org.freedesktop.systemd1(5). The scope is made around the container's first process while that waits; afterwards the
group is ours (Delegate=yes), is marked, and is used like any other. Whatever is stopped here is marked.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from errno import EINVAL
from time import monotonic

from knarr.base.errors import Exists, InitError, KnarrError, Unsupported
from knarr.runtime.cgroup import enable_controllers, make_group
from knarr.runtime.cgroup_fs import enter, mark, marked, members, open_group, tree, write
from knarr.runtime.cgroup_members import signal_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from knarr.plan.cgroup import CgroupPlan
    from knarr.plan.cgroup_systemd import Property, Scope

PATIENCE = 30.0
"""Seconds systemd may take for an answer, or for a unit."""
_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{_NAME}.Manager"
_LARGEST = 1 << 20
_DRIVER = "the systemd cgroup driver"


class _Refused(Exception):
    """An error answer of D-Bus: ``name`` and a message."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Manager:
    """A connection to systemd's manager, the system's or the user's. Raises Unsupported where there is none."""

    __slots__ = ("_parser", "_serial", "_signals", "_sock")

    def __init__(self, *, user: bool) -> None:
        try:
            from jeepney.low_level import Parser  # 15 ms
        except ImportError:
            raise Unsupported(_DRIVER, "the Python package jeepney is not installed") from None
        if not user and not os.path.isdir("/run/systemd/system"):
            raise Unsupported(_DRIVER, "systemd does not run on this machine", hint="use the cgroupfs driver")
        self._parser = Parser()
        self._serial = 0
        self._signals: list[Any] = []
        self._sock = _connect(_address(user=user))
        try:
            self._call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._sock.close()

    def property(self, name: str) -> Any:
        """A property of the manager. Raises InitError."""
        (signature_value,) = self._ask(
            f"read systemd's {name}", "Get", "ss", (_MANAGER, name), interface="org.freedesktop.DBus.Properties"
        )
        return signature_value[1]

    def version(self) -> int:
        """Systemd's version; 0 when it does not look like one."""
        digits = ""
        for char in str(self.property("Version")).removeprefix("v"):
            if not char.isdigit():
                break
            digits += char
        return int(digits or 0)

    def start(self, scope: Scope, pid: int) -> None:
        """Make the scope around a process and wait until it is there. Raises InitError, Exists."""
        properties = [*self._wanted(scope.properties), ("PIDs", ("au", [pid]))]
        doing = f"start systemd unit {scope.name}"
        # Subscribe makes systemd send signals, the match makes the bus pass them on.
        self._ask(doing, "Subscribe", "", ())
        rule = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'"
        self._call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", (rule,))
        body: tuple[Any, ...] = (scope.name, "replace", properties, [])
        try:
            job = self._manager("StartTransientUnit", "ssa(sv)a(sa(sv))", body)[0]
        except _Refused as refused:
            if not refused.name.endswith(".UnitExists"):
                raise InitError("/linux/cgroupsPath", doing, EINVAL, why=f"systemd: {refused}") from None
            # Perhaps the rest of one that failed, which nobody has cleared away.
            self.reset(scope.name)
            try:
                job = self._manager("StartTransientUnit", "ssa(sv)a(sa(sv))", body)[0]
            except _Refused:
                raise Exists("systemd unit", scope.name, hint="choose another cgroupsPath") from None
        result = self._job_result(job)
        if result != "done":
            self.reset(scope.name)
            raise InitError("/linux/cgroupsPath", doing, EINVAL, why=f"systemd says {result!r}")

    def stop(self, unit: str) -> None:
        """Stop a unit, which may be gone, and forget that it failed. Raises InitError."""
        try:
            self._manager("StopUnit", "ss", (unit, "replace"))
        except _Refused as refused:
            if not refused.name.endswith(".NoSuchUnit"):
                raise InitError("", f"stop systemd unit {unit}", EINVAL, why=f"systemd: {refused}") from None
            return
        self.reset(unit)

    def reset(self, unit: str) -> None:
        """Have a failed unit forgotten; one that did not fail is left alone."""
        try:
            self._manager("ResetFailedUnit", "s", (unit,))
        except _Refused:
            pass

    def set(self, unit: str, properties: Iterable[Property]) -> None:
        """Change properties of a unit until it ends. Raises InitError."""
        body = (unit, True, self._wanted(properties))
        self._ask(f"change systemd unit {unit}", "SetUnitProperties", "sba(sv)", body)

    def attach(self, unit: str, subgroup: str, pid: int) -> None:
        """Have systemd move a process into a group of the unit. Raises InitError."""
        body = (unit, f"/{subgroup}", [pid])
        self._ask(f"join systemd unit {unit}", "AttachProcessesToUnit", "ssau", body)

    def _wanted(self, properties: Iterable[Property]) -> list[tuple[str, tuple[str, Any]]]:
        """Properties as D-Bus has them, without those that this systemd does not know."""
        listed = list(properties)
        version = self.version() if any(each.since for each in listed) else 0
        return [(each.name, (each.signature, each.value)) for each in listed if each.since <= version]

    def _ask(self, doing: str, member: str, signature: str, body: tuple[Any, ...], *, interface: str = _MANAGER) -> Any:
        try:
            return self._manager(member, signature, body, interface=interface)
        except _Refused as refused:
            raise InitError("/linux/cgroupsPath", doing, EINVAL, why=f"systemd: {refused}") from None

    def _manager(self, member: str, signature: str, body: tuple[Any, ...], *, interface: str = _MANAGER) -> Any:
        return self._call(_NAME, _PATH, interface, member, signature, body)

    def _call(
        self, to: str, path: str, interface: str, member: str, signature: str = "", body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """One method call; what it returns. Raises _Refused, InitError."""
        from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType

        fields: dict[Any, Any] = {
            HeaderFields.path: path,
            HeaderFields.destination: to,
            HeaderFields.interface: interface,
            HeaderFields.member: member,
        }
        if signature:
            fields[HeaderFields.signature] = signature
        self._serial += 1
        header = Header(Endianness.little, MessageType.method_call, 0, 1, -1, self._serial, fields)
        try:
            self._sock.sendall(Message(header, body).serialise(self._serial))
        except OSError as error:
            raise InitError("", f"call {member} over D-Bus", error.errno or EINVAL) from None
        deadline = monotonic() + PATIENCE
        while True:
            message = self._receive(deadline, member)
            kind, answered = message.header.message_type, message.header.fields.get(HeaderFields.reply_serial)
            if kind == MessageType.signal:
                self._signals.append(message)
            elif answered != self._serial:
                continue
            elif kind == MessageType.error:
                text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
                name = str(message.header.fields.get(HeaderFields.error_name, ""))
                raise _Refused(name, text or name)
            else:
                result: tuple[Any, ...] = message.body
                return result

    def _receive(self, deadline: float, doing: str) -> Any:
        while (message := self._parser.get_next_message()) is None:
            self._sock.settimeout(max(deadline - monotonic(), 0.001))
            try:
                data = self._sock.recv(4096)
            except TimeoutError:
                raise InitError("", f"call {doing} over D-Bus", 0, why="systemd does not answer") from None
            except OSError as error:
                raise InitError("", f"call {doing} over D-Bus", error.errno or EINVAL) from None
            if not data:
                raise InitError("", f"call {doing} over D-Bus", 0, why="the connection was closed")
            self._parser.add_data(data)
        return message

    def _job_result(self, job: str) -> str:
        """Wait for the end of a job; its result, "done" when all went well."""
        from jeepney.low_level import HeaderFields

        deadline = monotonic() + PATIENCE
        while True:
            while self._signals:
                message = self._signals.pop(0)
                # JobRemoved(id, job, unit, result)
                if message.header.fields.get(HeaderFields.member) == "JobRemoved" and message.body[1] == job:
                    return str(message.body[3])
            self._signals.append(self._receive(deadline, "JobRemoved"))


def _address(*, user: bool) -> str:
    """The path of the bus's socket; one in the abstract namespace begins with NUL. dbus-daemon(1), "addresses"."""
    variable = "DBUS_SESSION_BUS_ADDRESS" if user else "DBUS_SYSTEM_BUS_ADDRESS"
    for address in os.environ.get(variable, "").split(";"):
        if address.startswith("unix:"):
            for pair in address[5:].split(","):
                key, _, value = pair.partition("=")
                if key in ("path", "abstract"):
                    from urllib.parse import unquote  # cold: only where somebody set the variable

                    return ("\0" if key == "abstract" else "") + unquote(value)
    if not user:
        return "/run/dbus/system_bus_socket"
    return f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'}/bus"


def _connect(address: str) -> socket:
    """Connect and authenticate as whom the kernel says we are: a uid of ours would be wrong in a user namespace."""
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\n")
        answer = b""
        while answer.count(b"\r\n") < 2:
            data = sock.recv(4096)
            if not data or len(answer) > 4096 or b"REJECTED" in answer:
                raise Unsupported(_DRIVER, f"D-Bus at {address!r} does not let us in")
            answer += data
        if not answer.split(b"\r\n")[1].startswith(b"OK "):
            raise Unsupported(_DRIVER, f"D-Bus at {address!r} does not let us in")
        sock.sendall(b"BEGIN\r\n")
    except OSError as error:
        sock.close()
        why = os.strerror(error.errno).lower() if error.errno else "it does not answer"
        hint = "an ordinary user needs a session of systemd's (loginctl enable-linger)" if "/bus" in address else ""
        raise Unsupported(_DRIVER, f"D-Bus at {address!r}: {why}", hint=hint) from None
    except BaseException:
        sock.close()
        raise
    return sock


# -- a container's scope -----------------------------------------------------------------------------------------------


def unit_root(*, user: bool) -> str:
    """The group below which the manager keeps its units, without a slash at its end: empty for the system's."""
    if not user:
        return ""
    manager = Manager(user=True)
    try:
        return str(manager.property("ControlGroup")).rstrip("/")
    finally:
        manager.close()


def make_scope(planned: CgroupPlan, scope: Scope, pid: int) -> None:
    """Make the scope around ``pid``, mark its groups, and put the process into the group of the container.

    Raises InitError, Exists, Unsupported, KernelError.
    """
    manager = Manager(user=scope.user)
    try:
        manager.start(scope, pid)
    finally:
        manager.close()
    for directory in planned.directories:
        if scope.v2:
            fd = open_group(directory.mountpoint, directory.path.removesuffix(f"/{scope.subgroup}"))
        else:
            fd = make_group(directory, v2=False, adopt=True)  # systemd makes one only where it has a use for it
        try:
            mark(fd)
            if not scope.v2:
                write(fd, "cgroup.procs", str(pid))
            elif scope.subgroup:
                _enter_subgroup(fd, scope.subgroup, directory.controllers, pid)
        except OSError as error:
            doing = f"join cgroup {directory.mountpoint}{directory.path}"
            raise InitError("/linux/cgroupsPath", doing, error.errno or EINVAL) from None
        finally:
            os.close(fd)


def _enter_subgroup(fd: int, subgroup: str, controllers: tuple[str, ...], pid: int) -> None:
    """Make a group in the scope's own on v2 and put the process there: only then may the scope hand controllers on."""
    opened: list[int] = []
    try:
        at = fd
        for part in subgroup.split("/"):
            os.mkdir(part, 0o755, dir_fd=at)
            at = enter(at, part)
            opened.append(at)
            mark(at)
        write(at, "cgroup.procs", str(pid))
        for above in (fd, *opened[:-1]):
            enable_controllers(above, controllers)
    finally:
        for each in opened:
            os.close(each)


def stop_scope(recorded: dict[str, Any]) -> None:
    """Kill what is in the scope and have systemd stop it, if its group is there and ours; one that is empty, too.

    What goes wrong is not told: without systemd the group is removed like any other.
    """
    for mountpoint, path, _ in recorded["groups"]:
        try:
            fd = open_group(mountpoint, path)
        except OSError:
            continue
        try:
            if marked(fd):
                signal_all(recorded, 9)  # systemd would send SIGTERM first, and wait
            elif any(members(group) for group in tree(fd)):
                continue  # not ours; or a creation that was killed before it could mark it, and then it is empty by now
        finally:
            os.close(fd)
        try:
            manager = Manager(user=recorded["user"])
            try:
                manager.stop(recorded["unit"])
            finally:
                manager.close()
        except KnarrError:
            pass
        return


def set_properties(recorded: dict[str, Any], properties: list[Property]) -> None:
    """Change the limits that systemd knows of. Raises InitError, Unsupported."""
    manager = Manager(user=recorded["user"])
    try:
        manager.set(recorded["unit"], properties)
    finally:
        manager.close()


def attach(recorded: dict[str, Any], pid: int) -> None:
    """Put a further process into a user's scope, also from a group that the user may not move it out of."""
    manager = Manager(user=recorded["user"])
    try:
        manager.attach(recorded["unit"], recorded["subgroup"], pid)
    finally:
        manager.close()
