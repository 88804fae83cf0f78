"""The library: ``knarr.run``, ``knarr.pull``, ``knarr.Container``. Blocking; usable from many threads at once.

No process but the container's own is started, no thread is made, nothing of the calling program changes (no signal
handlers, no working directory). ``knarr.aio`` is the same for asyncio.
"""

from __future__ import annotations

import os
from time import monotonic

from knarr.base.errors import FileError, KnarrError, TimedOut, UsageError
from knarr.base.record import Record
from knarr.bundle.options import RunOptions, VolumeMount
from knarr.bundle.selinux import parse_words
from knarr.engine import options as texts
from knarr.engine.create import Request, discard, prepare
from knarr.engine.paths import places
from knarr.engine.run import Run, begin, close_all
from knarr.engine.session import Capture, Feed, Session, pipe, run_to_end
from knarr.runtime.create import Stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Any, Self, TypedDict, Unpack

    from knarr.engine.containers import Seen
    from knarr.engine.images import Watcher
    from knarr.engine.paths import Places
    from knarr.engine.session import Pump
    from knarr.isolation.exec import GuestExeced
    from knarr.runtime.exec import Execed

    class Options(TypedDict, total=False):
        """What ``run`` and ``Container`` take beside image and command; the words of ``knarr run --help``.

        Sizes are bytes or texts such as "512m".
        """

        env: Mapping[str, str]
        workdir: str
        user: str
        entrypoint: Sequence[str]
        hostname: str
        network: str
        publish: Sequence[str]
        dns: Sequence[str]
        dns_search: Sequence[str]
        add_hosts: Mapping[str, str]
        userns: str
        volumes: Sequence[str | VolumeMount]
        tmpfs: Sequence[str]
        memory: int | str
        cpus: float
        pids_limit: int
        read_only: bool
        shm_size: int | str
        cap_add: Sequence[str]
        cap_drop: Sequence[str]
        allow_new_privs: bool
        privileged: bool
        seccomp: str | Mapping[str, Any]
        apparmor: str
        selinux_label: str | Sequence[str]
        ulimits: Sequence[str]
        sysctls: Mapping[str, str]
        labels: Mapping[str, str]
        annotations: Mapping[str, str]
        isolation: str
        name: str
        platform: str
        pull: str
        host_show: Sequence[str]
        store: str
        state_dir: str


PATIENCE = 10.0
"""Seconds a killed process may take to end."""


class Timings(Record):
    """Seconds that each part took.

    ``prepare`` until all but the process was there, ``start`` until the program ran, ``run`` until it ended,
    ``remove`` until nothing was left; ``total`` is their sum.
    """

    prepare: float = 0.0
    start: float = 0.0
    run: float = 0.0
    remove: float = 0.0

    @property
    def total(self) -> float:
        """All together, in seconds."""
        return self.prepare + self.start + self.run + self.remove


class Result(Record):
    """How a program ended: its exit code (128 + the signal that ended it) and what it wrote.

    ``truncated`` says that more than ``output_limit`` bytes came on one of the two; the rest was dropped.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    timings: Timings = Timings()
    truncated: bool = False


def request_of(image: str, argv: Sequence[str] | str | None, given: Options, *, remove: bool = True) -> Request:
    """The request for an image, a command and keyword options. Raises UsageError."""
    left: dict[str, Any] = dict(given)

    def take(name: str, otherwise: Any) -> Any:
        value = left.pop(name, None)
        return otherwise if value is None else value

    for place in ("store", "state_dir"):
        left.pop(place, None)
    memory, shm = take("memory", 0), take("shm_size", 64 << 20)
    entrypoint = take("entrypoint", None)
    mounts = [texts.parse_volume(one) if isinstance(one, str) else one for one in take("volumes", ())]
    mounts += [texts.parse_tmpfs(one) for one in take("tmpfs", ())]
    options = RunOptions(
        command=command_of(argv),
        entrypoint=None if entrypoint is None else tuple(entrypoint),
        env=tuple(f"{name}={value}" for name, value in take("env", {}).items()),
        workdir=take("workdir", ""),
        user=str(take("user", "")),
        hostname=take("hostname", ""),
        network=take("network", "none"),
        userns=take("userns", ""),
        memory=texts.parse_size(memory, "memory") if isinstance(memory, str) else memory,
        cpus=take("cpus", 0.0),
        pids_limit=take("pids_limit", 2048),
        readonly=take("read_only", False),
        shm_size=texts.parse_size(shm, "shm size") if isinstance(shm, str) else shm,
        cap_add=tuple(take("cap_add", ())),
        cap_drop=tuple(take("cap_drop", ())),
        allow_new_privs=take("allow_new_privs", False),
        privileged=take("privileged", False),
        seccomp=take("seccomp", "default"),
        apparmor=take("apparmor", ""),
        selinux=_words(take("selinux_label", ())),
        mounts=tuple(mounts),
        ulimits=tuple(texts.parse_ulimit(one) for one in take("ulimits", ())),
        sysctls=tuple(take("sysctls", {}).items()),
        annotations=tuple(take("annotations", {}).items()),
        labels=tuple(take("labels", {}).items()),
    )
    asked = (take("publish", ()), take("dns", ()), take("dns_search", ()), take("add_hosts", {}))
    if any(asked) or options.network not in ("none", "host"):
        from knarr.engine.networks import requested  # only where something is asked for

        publish, dns, search, hosts = asked
        if any(isinstance(each, str) for each in (publish, dns, search)):
            raise UsageError("publish, dns and dns_search should be lists of texts")
        lines = [f"{name}:{address}" for name, address in hosts.items()]
        options = requested(options, options.network, publish, dns, search, lines)
    request = Request(
        image,
        options,
        name=take("name", ""),
        platform=take("platform", ""),
        pull=take("pull", "missing"),
        remove=remove,
        isolation=take("isolation", ""),
        host_show=tuple(take("host_show", ())),
    )
    if left:
        raise UsageError(f"option {next(iter(left))!r} is not known")
    return request


def _words(given: str | Sequence[str]) -> tuple[str, ...]:
    """One or several values of ``--security-opt label=``."""
    return tuple(parse_words(word) for word in ((given,) if isinstance(given, str) else given) if word)


def command_of(argv: Sequence[str] | str | None) -> tuple[str, ...]:
    """The words of a command; one text alone would be ambiguous and is refused."""
    if isinstance(argv, (str, bytes)):
        raise UsageError(f"the command should be a list of words, not the text {argv!r}")
    return tuple(argv or ())


def where_of(given: Options) -> Places:
    """The places in force for keyword options."""
    return places(given.get("store"), given.get("state_dir"))


def pull(image: str, *, platform: str = "", store: str | None = None, watcher: Watcher | None = None) -> str:
    """Fetch an image into the store and unpack it; return the digest of its manifest.

    ``image`` is any reference: a registry's name, ``oci:DIR[:TAG]``, ``oci-archive:FILE``, ``docker-archive:FILE``.
    Raises InvalidReference, NotFound, RegistryError, AuthError, DigestMismatch and others below KnarrError.
    """
    from knarr.engine.images import find_and_unpack

    return find_and_unpack(places(store), image, platform=platform, pull="always", watcher=watcher)[0].digest


def run(
    image: str,
    argv: Sequence[str] | None = None,
    *,
    input: bytes | None = None,
    timeout: float | None = None,
    output_limit: int | None = None,
    **options: Unpack[Options],
) -> Result:
    """Run a program in a fresh container, wait for it, remove the container, return what it wrote.

    ``image`` is any reference, ``host:`` (this machine's own root, throw-away), or ``bundle:DIR``. ``argv`` replaces
    the image's command. ``input`` is given on standard input (None: /dev/null). After ``timeout`` seconds the container
    is killed and TimedOut raised, with the output so far. What comes after ``output_limit`` bytes of either output is
    dropped.

    Raises CommandNotFound, CommandNotExecutable, UsageError, NotFound, Unsupported and others below KnarrError.
    """
    begun = monotonic()
    deadline = None if timeout is None else begun + timeout
    container, out, err, prepared_at = begin_captured(
        where_of(options), request_of(image, argv, options), input, output_limit
    )
    try:
        in_time = run_to_end(container.session, deadline=deadline)
        if not in_time:
            kill_session(container.session, TimedOut(f"the container of {image}", timeout or 0.0))
    except BaseException as error:
        container.abort(error)
        raise
    ended = monotonic()
    started = container.session.started_at or ended
    container.end()
    if not in_time and timeout is not None:
        raise TimedOut(f"the container of {image}", timeout, stdout=out.value(), stderr=err.value())
    timings = Timings(prepared_at - begun, started - prepared_at, ended - started, monotonic() - ended)
    return result_of(container.session, out, err, timings)


def begin_captured(
    where: Places, request: Request, input: bytes | None, limit: int | None
) -> tuple[Run, Capture, Capture, float]:
    """Prepare and begin a container with pipes for its output and input; also the moment it was prepared."""
    # The pipes come first: should there be no descriptors left, nothing has to be removed, which takes some.
    stdio, out, err, pumps, theirs = captured(input, limit)
    try:
        prepared = prepare(where, request)
    except BaseException:
        for pump in pumps:
            pump.close()
        close_all(theirs)
        raise
    prepared_at = monotonic()
    return begin(prepared, stdio, pumps, theirs), out, err, prepared_at


def captured(input: bytes | None, limit: int | None) -> tuple[Stdio, Capture, Capture, list[Pump], list[int]]:
    """Descriptors for a process whose output is kept; the two captures; all pumps; what was made for the process."""
    theirs: list[int] = []
    pumps: list[Pump] = []
    captures: list[Capture] = []
    try:
        for _ in range(2):
            ours, end = pipe()
            theirs.append(end)
            captures.append(Capture(ours, limit))
            pumps.append(captures[-1])
        theirs.append(_source(input, pumps))
    except BaseException:
        for pump in pumps:
            pump.close()
        close_all(theirs)
        raise
    return Stdio(theirs[2], theirs[0], theirs[1]), captures[0], captures[1], pumps, theirs


def _source(input: bytes | None, pumps: list[Pump]) -> int:
    """What a process reads: a pipe that ``input`` is fed into, or /dev/null."""
    try:
        if not input:
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open", "/dev/null", error.errno or 0) from None
    theirs, ours = pipe()
    pumps.append(Feed(ours, input))
    return theirs


def kill_session(session: Session, late: TimedOut) -> None:
    """Kill a process that took too long and take its end; raises ``late`` at once when its program did not run yet."""
    if session.launching:
        raise late
    session.signal(9)
    if not run_to_end(session, deadline=monotonic() + PATIENCE):
        raise KnarrError(f"process {session.process.pid} was killed and does not end")


def result_of(session: Session, out: Capture, err: Capture, timings: Timings) -> Result:
    """The result of a session that is done."""
    code = -1 if session.exit_code is None else session.exit_code
    return Result(code, out.value(), err.value(), timings, out.truncated or err.truncated)


class Container:
    """A container that outlives one call: start it, run programs in it, signal it, wait for it.

        with knarr.Container("docker.io/library/debian", ["sleep", "inf"]) as box:
            print(box.exec(["cat", "/etc/os-release"]).stdout)

    Leaving the ``with`` block kills and removes it. What its main program writes goes to two files in the container's
    directory and is returned by ``wait``. An object is for one thread at a time; many objects may be used at once.
    """

    def __init__(
        self, image: str, argv: Sequence[str] | None = None, *, input: bytes | None = None, **options: Unpack[Options]
    ) -> None:
        self._where = where_of(options)
        self._request = request_of(image, argv, options)
        self._input = input
        self._run: Run | None = None
        self._result: Result | None = None
        self._begun = 0.0
        self._prepared = 0.0
        self._files: list[int] = []

    @property
    def id(self) -> str:
        """The container's id; empty before ``start``."""
        return self._run.record.id if self._run else ""

    @property
    def name(self) -> str:
        """The container's name, if it was given one."""
        return self._run.record.name if self._run else self._request.name

    @property
    def pid(self) -> int:
        """The main program's pid as this program sees it; 0 when there is none."""
        return self._run.created.pid if self._run and self._result is None else 0

    @property
    def state(self) -> str:
        """``new``, ``running``, ``paused`` or ``exited``."""
        if self._run is None:
            return "new"
        if self._result is not None:
            return "exited"
        return self._seen().status

    @property
    def ports(self) -> dict[str, tuple[str, int]]:
        """Published ports by the one inside, as ``"80/tcp"``: the address and port here that lead there."""
        rows = self._run.record.ports if self._run else ()
        return {f"{inside}/{protocol}": (ip, here) for ip, here, inside, protocol in reversed(rows)}

    @property
    def session(self) -> Session:
        """What drives the main program (knarr.aio needs it)."""
        return self._running().session

    def _seen(self) -> Seen:
        from knarr.engine.containers import look

        return look(self._where, self._running().record)

    def _running(self) -> Run:
        if self._run is None:
            raise UsageError("the container was not started yet", hint="call start(), or use it in a with statement")
        return self._run

    def start(self) -> Self:
        """Make the container and return when its program runs. Raises as ``run``."""
        if self._run is not None:
            raise UsageError("the container was started already")
        container = self.begin()
        try:
            while container.session.launching:
                step(container.session)
        except BaseException as error:
            self.failed(error)
            raise
        return self

    def begin(self) -> Run:
        """The part of ``start`` before anything has to be waited for (knarr.aio drives the rest)."""
        self._begun = monotonic()
        prepared = prepare(self._where, self._request)
        self._prepared = monotonic()
        pumps: list[Pump] = []
        try:
            folder = f"{self._where.containers}/{prepared.record.id}"
            for name in ("stdout", "stderr"):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._files.append(os.open(f"{folder}/{name}", flags, 0o600))
                if prepared.owner is not None:
                    os.fchown(self._files[-1], *prepared.owner)  # programs open /dev/stdout anew
            source = _source(self._input, pumps)
        except BaseException as error:
            self._close()
            discard(self._where, prepared.record, error)
            raise
        try:
            self._run = begin(prepared, Stdio(source, self._files[0], self._files[1]), pumps, [source])
        except BaseException:
            self._close()
            raise
        return self._run

    def failed(self, error: BaseException) -> None:
        """Undo a start that did not come to its end."""
        run, self._run = self._run, None
        if run is not None:
            run.abort(error)
        self._close()

    def wait(self, timeout: float | None = None, *, output_limit: int | None = None) -> Result:
        """Wait for the main program's end, remove the container, return how it ended. May be called again.

        Raises TimedOut after ``timeout`` seconds; the container goes on then.
        """
        if self._result is None:
            container = self._running()
            deadline = None if timeout is None else monotonic() + timeout
            if not run_to_end(container.session, deadline=deadline) and timeout is not None:
                raise StillRunning(f"container {self.name or self.id[:12]}", timeout)
            return self.ended(output_limit)
        return self._result

    def ended(self, output_limit: int | None = None) -> Result:
        """Take the result of a session that is done, and remove the container."""
        container = self._running()
        ended = monotonic()
        texts_read = [_content(fd, output_limit) for fd in self._files]
        container.end()
        self._close()
        started = container.session.started_at
        timings = Timings(self._prepared - self._begun, started - self._prepared, ended - started, monotonic() - ended)
        code = -1 if container.session.exit_code is None else container.session.exit_code
        (out, more), (err, also) = texts_read
        self._result = Result(code, out, err, timings, more or also)
        return self._result

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        privileged: bool = False,
    ) -> Result:
        """Run a further program in the container and wait for it. Raises WrongStatus when the container has ended."""
        begun = monotonic()
        session, out, err, process = self.begin_exec(
            argv, input, output_limit, env=env or {}, workdir=workdir, user=user, privileged=privileged
        )
        try:
            deadline = None if timeout is None else begun + timeout
            in_time = run_to_end(session, deadline=deadline)
            if not in_time:
                kill_session(session, TimedOut(self._of(argv), timeout or 0.0))
        except BaseException:
            session.close()
            process.undo()
            raise
        process.close()
        ended = monotonic()
        if not in_time and timeout is not None:
            raise TimedOut(self._of(argv), timeout, stdout=out.value(), stderr=err.value())
        started = session.started_at or ended
        return result_of(session, out, err, Timings(0.0, started - begun, ended - started))

    def _of(self, argv: Sequence[str]) -> str:
        return f"{argv[0]} in container {self.name or self.id[:12]}"

    def begin_exec(
        self, argv: Sequence[str], input: bytes | None, limit: int | None, **wishes: Any
    ) -> tuple[Session, Capture, Capture, Execed | GuestExeced]:
        """The part of ``exec`` before anything has to be waited for."""
        from knarr.engine.containers import ExecRequest, exec_process, mount_label
        from knarr.engine.host import host
        from knarr.engine.selinux import label_stdio
        from knarr.isolation.choose import begin_exec

        command = command_of(argv)
        env = tuple(f"{name}={value}" for name, value in wishes.pop("env").items())
        process = exec_process(self._where, self._seen(), ExecRequest(command, env, **wishes))
        stdio, out, err, pumps, theirs = captured(input, limit)
        try:
            label_stdio(stdio, mount_label(self._where, self.id, process))
            execed = begin_exec(self._where.state, self.id, process, io=stdio, host=host())
        except BaseException:
            for pump in pumps:
                pump.close()
            raise
        finally:
            close_all(theirs)
        return Session(execed, pumps, _nothing), out, err, execed

    def kill(self, signal: str | int = "KILL") -> bool:
        """Send a signal to the main program; False when it has ended already."""
        number = texts.parse_signal(str(signal))
        return self._result is None and self._running().session.signal(number)

    def remove(self) -> None:
        """Kill what still runs and remove the container. Safe to call again."""
        if self._run is None or self._result is not None:
            return
        self._run.session.signal(9)
        self.wait(30.0, output_limit=0)

    def stdout(self) -> bytes:
        """What the main program has written so far; the whole of it after ``wait``."""
        return self._result.stdout if self._result else _content(self._files[0], None)[0] if self._files else b""

    def stderr(self) -> bytes:
        """As ``stdout``, of its standard error."""
        return self._result.stderr if self._result else _content(self._files[1], None)[0] if self._files else b""

    def _close(self) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = []

    def __enter__(self) -> Self:
        return self if self._run is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class StillRunning(TimedOut):
    """A wait that ended before the container did."""

    def sentence(self) -> str:
        return f"{self.what} did not end within {self.seconds:g} seconds; it goes on"


def _nothing() -> None:
    """An exec'ed process has nothing to be recorded when it runs."""


def _content(fd: int, limit: int | None) -> tuple[bytes, bool]:
    """The file behind a descriptor from its start: at most ``limit`` bytes, and whether there was more."""
    size = os.fstat(fd).st_size
    wanted = size if limit is None else min(size, limit)
    parts: list[bytes] = []
    at = 0
    while at < wanted:
        part = os.pread(fd, min(wanted - at, 1 << 20), at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts), size > wanted


def step(session: Session, timeout: float | None = None) -> None:
    """Wait for the next thing that happens to a session, and handle it."""
    from select import poll

    poller = poll()
    for fd, events in session.wanted().items():
        poller.register(fd, events)
    session.handle(dict(poller.poll(None if timeout is None else timeout * 1000)))
