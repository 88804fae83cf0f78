"""Add mounts to a container that runs, and take them away (hot)."""

from __future__ import annotations

import posix

from knarr.base.errors import InitError, KnarrError, SpecError, SpecFinding, Unsupported, WrongStatus
from knarr.kernel.process import open_pid
from knarr.plan.mount_change import encode, plan_add, plan_remove
from knarr.runtime import record
from knarr.runtime.exec import root_of
from knarr.runtime.launch import Control, spawn, wait_child
from knarr.runtime.monitored import refuse
from knarr.runtime.probe import probe
from knarr.spec.validate import config_findings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from knarr.plan.host import Host
    from knarr.plan.ops import Op


def add_mounts(state_root: str, id: str, entries: Any, document: str) -> None:
    """Mount the entries, as config.json's ``mounts`` has them, all or on an error none.

    ``document`` names where they come from. Raises NotFound, WrongStatus, SpecError, Unsupported, InitError.
    """
    with _Container(state_root, id) as container:
        bad = [SpecFinding("", "is not a list of mounts")] if type(entries) is not list else []
        if not bad:
            found = config_findings({**container.config, "mounts": entries})
            bad = [
                SpecFinding(finding.pointer.removeprefix("/mounts"), finding.why)
                for finding in found
                if finding.pointer.startswith("/mounts")
            ]
        if bad:
            raise SpecError(document, bad)
        bundle = container.state.bundle
        plans = [
            plan_add(entry, f"/{number}", container.config, container.host, bundle)
            for number, entry in enumerate(entries)
        ]
        for number, plan in enumerate(plans):
            try:
                container.carry_out(plan, document)
            except KnarrError as error:
                for done in reversed(entries[:number]):
                    try:
                        container.carry_out(plan_remove(done["destination"], ""), document)
                    except KnarrError as trouble:
                        error.add_note(f"and while undoing it: {trouble}")
                raise


def remove_mounts(state_root: str, id: str, entries: Any, document: str) -> None:
    """Take the uppermost mount off the destination of each entry. Raises as ``add_mounts``."""
    with _Container(state_root, id) as container:
        if type(entries) is not list or not all(
            type(entry) is dict and type(entry.get("destination")) is str for entry in entries
        ):
            raise SpecError(document, [SpecFinding("", "is not a list of mounts, each with a destination")])
        for number, entry in enumerate(entries):
            container.carry_out(plan_remove(entry["destination"], f"/{number}"), document)


class _Container:
    """A container that runs, held while its mounts change."""

    __slots__ = ("_fds", "_held", "config", "host", "state")

    def __init__(self, state_root: str, id: str) -> None:
        fd = record.open_container(state_root, id)
        root_fd = record.open_root(state_root)
        self._fds = [fd, root_fd]
        self._held = None
        try:
            self._held = record.hold(root_fd, fd, id)
            self.state = record.load(fd, id)
            refuse(self.state.isolation, "a mount into the root")
            status = record.status(fd, self.state)
            if status not in ("created", "running", "paused"):
                raise WrongStatus(id, "change the mounts of", status, hint="container not running")
            self.config = record.config(fd)
            self.host: Host = probe()
            spaces = (self.config.get("linux") or {}).get("namespaces") or ()
            if not self.host.privileged or not any(space["type"] == "mount" for space in spaces):
                why = "it takes root, and a container with a mount namespace"
                raise Unsupported("changing the mounts of this container", why)
            pidfd = open_pid(self.state.pid, self.state.starttime)
            if pidfd is None:
                raise WrongStatus(id, "change the mounts of", "stopped", hint="container not running")
            self._fds.insert(0, pidfd)
            self._fds.insert(1, root_of(self.state, pidfd))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            self._held.release()
        for fd in self._fds:
            posix.close(fd)
        self._fds = []

    def carry_out(self, plan: list[Op], document: str) -> None:
        """Have knarr-init do it. Raises InitError and its kin."""

        def failed(index: int, number: int, detail: bytes) -> KnarrError:
            from knarr.runtime.explain import init_error  # cold: only for an error

            op = plan[index - 1] if 0 < index <= len(plan) else None
            if op is None:
                return InitError("", "change the mounts", number)
            error = init_error(op.kind, op.arguments(), "", number, detail, machine=self.host.arch)
            if isinstance(error, InitError) and op.pointer:
                error.doing = f"{document} {op.pointer}: {error.doing}"
            return error

        pid, sock = spawn(encode(plan), self._fds[:2], (0, 1, 2), self.state.id)
        control = Control(sock, failed=failed)
        try:
            control.run()
        finally:
            control.close()
            code = wait_child(pid)
        if code:
            raise InitError("", "change the mounts", 0, why=f"knarr-init ended with {code}")
