"""A prepared container and its process: begin, let a driver run the session, end. Shared by all faces.

    session = begin(prepared, stdio, pumps)     # the process is being made
    run_to_end(session) or add_reader …         # session.py
    end(prepared, session)                      # cgroups, state and, with --rm, files are gone

Whoever calls ``begin`` calls ``end`` or, after an error, ``abort``.
"""

from __future__ import annotations

import os
from errno import ENOENT

from knarr.base.clock import now_rfc3339
from knarr.base.errors import FileError, KnarrError
from knarr.engine import host, records
from knarr.engine.containers import remove_files
from knarr.engine.create import Prepared, discard
from knarr.engine.selinux import label_stdio
from knarr.engine.session import Session
from knarr.isolation.choose import begin as begin_runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.engine.session import Pump
    from knarr.runtime.create import Created, Stdio


class Run:
    """One container's process. ``session`` is driven by the caller."""

    __slots__ = ("created", "prepared", "record", "session")

    def __init__(self, prepared: Prepared, created: Created, pumps: Sequence[Pump]) -> None:
        self.prepared = prepared
        self.record = prepared.record
        self.created = created
        self.session = Session(created, pumps, self._started)

    def _started(self) -> None:
        """The program runs."""
        self.created.finish()
        self.created.poststart()
        if not self.record.remove:
            self.record = self.record.replace(started=now_rfc3339())
            records.save(self.prepared.where, self.record)

    def end(self) -> None:
        """After ``session.done``: remove cgroups and state, and files or record the exit code. Raises KnarrError."""
        self.session.close()
        where = self.prepared.where
        if not self.record.remove:
            self._note_end()
        self.created.delete()
        if self.record.remove:
            remove_files(where, self.record)
        else:
            finished = now_rfc3339()
            self.record = self.record.replace(finished=finished, exit_code=self.session.exit_code)
            try:
                records.save(where, self.record)
            except FileError as error:
                if error.number != ENOENT:  # else somebody removed the container meanwhile
                    raise

    def _note_end(self) -> None:
        """Put into the record what the container's state and cgroups tell, before they are removed."""
        state = self.created.state
        if state.isolation is None:
            from knarr.runtime.oom import kills

            self.record = self.record.replace(out_of_memory=kills(state.cgroup) > 0)
        else:
            from knarr.runtime import record
            from knarr.runtime.monitored import OUT_OF_MEMORY

            told = record.reason(self.created.fd)
            self.record = self.record.replace(out_of_memory=told.startswith(OUT_OF_MEMORY), reason=told)

    def abort(self, error: BaseException) -> None:
        """After an error: end the process, remove everything. Further trouble is noted on ``error``."""
        self.session.close()
        try:
            self.created.undo()
        except KnarrError as trouble:
            error.add_note(f"and while undoing it: {trouble}")
        discard(self.prepared.where, self.record, error)


def begin(prepared: Prepared, stdio: Stdio, pumps: Sequence[Pump] = (), theirs: Sequence[int] = ()) -> Run:
    """Start to make the container's process. The pumps become the run's.

    ``theirs`` are descriptors in ``stdio`` that were made for the process: they are closed here, once it has them or
    when it cannot be made. Raises what the runtime raises; everything prepared is removed then.
    """
    try:
        if prepared.config["process"].get("selinuxLabel"):
            label_stdio(stdio, str((prepared.config.get("linux") or {}).get("mountLabel") or ""))
        network = None
        if prepared.network is not None:
            from knarr.engine.usernet import Running  # only where a program is to be one

            network = Running(prepared.network, prepared.ports)
        created = begin_runtime(
            prepared.where.state,
            prepared.record.id,
            prepared.bundle,
            prepared.config,
            io=stdio,
            root=prepared.root,
            wait_start=False,
            host=host.host(),
            network=network,
        )
    except BaseException as error:
        # First the descriptors: removing needs some, and their lack may be what went wrong.
        for pump in pumps:
            pump.close()
        close_all(theirs)
        discard(prepared.where, prepared.record, error)
        raise
    close_all(theirs)
    return Run(prepared, created, pumps)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in descriptors:
        os.close(fd)
