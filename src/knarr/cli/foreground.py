"""A container or a further program in the foreground of a terminal: signals, terminal, pipes, exit code.

Ctrl-C at any time ends it cleanly. A signal the container's first process does not care about ends it: the kernel
would not deliver it to a pid 1, and people would wait in vain.
"""

from __future__ import annotations

import os
import stat
import sys
from select import POLLIN

from knarr.base.errors import Interrupted, KnarrError, UsageError
from knarr.engine.run import begin, close_all
from knarr.engine.session import Relay, Session, Typed, pipe, run_to_end
from knarr.kernel import tty
from knarr.runtime.create import Created, Stdio
from knarr.runtime.foreground import SIGWINCH, Signals, Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.engine.containers import Seen
    from knarr.engine.create import Request
    from knarr.engine.paths import Places
    from knarr.engine.session import Pump
    from knarr.runtime.create import Process

_SIGINT, _SIGKILL = 2, 9
_FATAL = frozenset((1, 2, 3, 15))  # SIGHUP, SIGINT, SIGQUIT, SIGTERM: meant to end the program


class Attended:
    """Descriptors, signals and terminal of one process in the foreground.

    ``foreign``: its ids are not ours, so that it may not open anew (``/dev/stdout``) a file of ours that it was given.
    ``labelled``: it has an SELinux label, with which it may not even use one, nor a pipe of others: the kernel puts
    /dev/null there.
    """

    def __init__(self, *, interactive: bool, terminal: bool, foreign: bool = False, labelled: bool = False) -> None:
        if terminal and interactive and not os.isatty(0):
            raise UsageError("--tty with --interactive wants a terminal as standard input", hint="leave out -t")
        self.terminal = Terminal() if terminal else None
        self.interactive = interactive
        self.foreign = foreign
        self.labelled = labelled
        self.pumps: list[Pump] = []
        self.theirs: list[int] = []
        self.asked_to_end = 0
        self.killed_for = 0
        self._raw: list[Any] | None = None

    def stdio(self) -> Stdio:
        """The descriptors for the process. A terminal of ours is never handed over, only files and pipes are."""
        if self.terminal is not None:
            null = self._null(os.O_RDWR)
            return Stdio(null, null, null, self.terminal.slot)
        return Stdio(self._input(), self._output(1), self._output(2))

    def _null(self, flags: int) -> int:
        fd = os.open("/dev/null", flags | os.O_CLOEXEC)
        self.theirs.append(fd)
        return fd

    def _input(self) -> int:
        if not self.interactive:
            return self._null(os.O_RDONLY)
        if not os.isatty(0) and not self.labelled:
            return 0
        theirs, ours = pipe()
        self.theirs.append(theirs)
        self.pumps.append(Typed(ours, pipe=True))
        return theirs

    def _output(self, fd: int) -> int:
        if not self.labelled and not os.isatty(fd) and not (self.foreign and _is_file(fd)):
            return fd
        ours, theirs = pipe()
        self.theirs.append(theirs)
        self.pumps.append(Relay(ours, fd))
        return theirs

    def handed_over(self) -> list[int]:
        """The descriptors made for the process; whoever takes them closes them."""
        theirs, self.theirs = self.theirs, []
        return theirs

    def attach(self, session: Session) -> None:
        """Once the program runs: take its terminal, put ours into raw mode."""
        if self.terminal is None:
            return
        master = self.terminal.master()
        typed = Typed(master, pipe=False) if self.interactive else None
        # The session closes the master; the Terminal must not do it again.
        self.terminal.fd = -1
        self.master = master
        session.pumps.append(Relay(master, 1, typed))
        if typed is not None:
            session.pumps.append(typed)
            self._raw = tty.make_raw(0)

    master = -1

    def passed_on(self, numbers: bytes, session: Session) -> None:
        """Signals that came to us go to the process."""
        for number in numbers:
            if number == SIGWINCH:
                size = tty.window_size(0) if self.master >= 0 else None
                if size is not None and any(pump.fd == self.master for pump in session.pumps):
                    tty.resize(self.master, size)
                continue
            if session.launching and number in _FATAL:
                session.handle({session.control: POLLIN})  # its program may run by now, and have said so
            if session.launching:
                if number in _FATAL:
                    raise Interrupted("stopped before the program ran")
                continue
            if number in _FATAL:
                self.asked_to_end += 1
                if self.asked_to_end >= 3 or not _cares(session.process, number):
                    self.killed_for = self.killed_for or number
                    number = _SIGKILL
            if number == _SIGKILL and self.asked_to_end < 3 and _ended(session.process):
                continue
            session.signal(number)

    def code(self, session: Session) -> int:
        """The exit code: of a process that we killed because of a signal, that signal's."""
        code = 255 if session.exit_code is None else session.exit_code
        return 128 + self.killed_for if self.killed_for and code == 128 + _SIGKILL else code

    def close(self) -> None:
        """Restore the terminal, close what is open."""
        if self._raw is not None:
            tty.restore(0, self._raw)
            self._raw = None
        if self.terminal is not None:
            self.terminal.close()
        close_all(self.handed_over())


def _is_file(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False  # it is closed


def _in_guest(process: Process) -> Created | None:
    """The container, if it is in a guest: a monitor stands for its first process."""
    return process if isinstance(process, Created) and process.state.isolation is not None else None


def _ended(process: Process) -> bool:
    """Have the monitor kill a container in a guest; False when it is none, or the monitor does not answer."""
    from knarr.runtime.monitored import end

    container = _in_guest(process)
    return container is not None and end(container.fd, container.id)


def _cares(process: Process, number: int) -> bool:
    """Whether a process catches or ignores a signal (SigCgt, SigIgn): if neither, a pid 1 would never notice it."""
    container = _in_guest(process)
    if container is not None:
        from knarr.runtime.monitored import ask

        try:
            answer = ask(container.fd, container.id, "cares", patience=2.0, number=number)
        except KnarrError:
            return True
        return bool(answer["cares"])
    try:
        with open(f"/proc/{process.pid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        masks = int(fields[b"SigCgt"], 16) | int(fields[b"SigIgn"], 16)
    except (OSError, KeyError, ValueError):
        return True
    return bool(masks >> (number - 1) & 1)


def run_foreground(where: Places, request: Request, *, interactive: bool, terminal: bool) -> int:
    """Run a container to its end; returns its exit code. Raises KnarrError; nothing is left then."""
    from knarr.cli.output import colour, say
    from knarr.cli.progress import watching
    from knarr.engine.create import discard, prepare

    with watching() as watcher:
        prepared = prepare(where, request, watcher)
    attended = None
    try:
        for note in prepared.notes:
            say(f"knarr run: {note}")
        alone = request.options.network == "none" and not request.image.startswith("bundle:")
        if interactive and terminal and alone and colour(sys.stderr):
            # Whoever types in there expects the network of other engines; programs and logs are spared.
            say("\033[2mno network in here; --network private gives it one, host shares this machine's\033[0m")
        foreign, labelled = prepared.owner is not None, bool(prepared.config["process"].get("selinuxLabel"))
        attended = Attended(interactive=interactive, terminal=terminal, foreign=foreign, labelled=labelled)
        stdio = attended.stdio()
    except BaseException as error:
        discard(where, prepared.record, error)
        if attended is not None:
            attended.close()
        raise
    with Signals() as signals:
        signals.catch_all()
        try:
            run = begin(prepared, stdio, attended.pumps, attended.handed_over())
            try:
                _stay(attended, run.session, signals)
            except BaseException as error:
                run.abort(error)
                raise
        finally:
            attended.close()
        run.end()
    return attended.code(run.session)


def exec_foreground(where: Places, seen: Seen, process: dict[str, object], *, interactive: bool, terminal: bool) -> int:
    """Run a further program in a container to its end; returns its exit code."""
    from knarr.engine.containers import mount_label
    from knarr.engine.host import host
    from knarr.engine.selinux import label_stdio
    from knarr.isolation.choose import begin_exec

    foreign, labelled = seen.container.ids_first > 0, bool(process.get("selinuxLabel"))
    attended = Attended(interactive=interactive, terminal=terminal, foreign=foreign, labelled=labelled)
    with Signals() as signals:
        signals.catch_all()
        try:
            stdio = attended.stdio()
            label_stdio(stdio, mount_label(where, seen.container.id, process))
            execed = begin_exec(where.state, seen.container.id, process, io=stdio, host=host())
            close_all(attended.handed_over())
            session = Session(execed, attended.pumps, lambda: None)
            try:
                _stay(attended, session, signals)
            except BaseException:
                session.close()
                execed.undo()
                raise
        finally:
            attended.close()
        execed.close()
    return attended.code(session)


def _stay(attended: Attended, session: Session, signals: Signals) -> None:
    """Until the process has ended."""

    def came() -> None:
        try:
            attended.passed_on(signals.read(), session)
        except OSError as error:
            if isinstance(error, KnarrError):
                return  # a set-uid program of another user: its signals are its own affair
            raise

    extra = {signals.fd: came}
    while session.launching:
        _once(session, extra)
    attended.attach(session)
    run_to_end(session, extra=extra)


def _once(session: Session, extra: dict[int, Callable[[], None]]) -> None:
    from select import poll

    poller = poll()
    for fd, events in session.wanted().items():
        poller.register(fd, events)
    for fd in extra:
        poller.register(fd, 1)
    ready = dict(poller.poll())
    for fd, function in extra.items():
        if fd in ready:
            function()
    session.handle(ready)
