"""``knarr.aio``: run containers from asyncio; its images are in aio_images.py.

No thread per container: descriptors are watched by the event loop.

What the kernel may hold up for milliseconds (joining v1 cgroups, removing them, unpacking) goes to the loop's default
executor, a small pool that all containers share. Cancelling a call kills its container and removes it.
"""

from __future__ import annotations

import asyncio
from select import POLLERR, POLLHUP, POLLIN, POLLOUT
from time import monotonic

from knarr.base.errors import TimedOut
from knarr.engine import api
from knarr.engine.aio_images import Image, Index, Layer, Store, copy, diff, pull, validate
from knarr.engine.api import Result, Timings, begin_captured, request_of, result_of, where_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Self, TypeVar, Unpack

    from knarr.engine.api import Options
    from knarr.engine.registries import Document
    from knarr.engine.session import Session
    from knarr.spec.image import Descriptor

    T = TypeVar("T")

__all__ = ["Container", "Image", "Index", "Layer", "Registry", "Store", "copy", "diff", "pull", "run", "validate"]


class _Driver:
    """Drives one session by the event loop until it is done, or until its program runs."""

    def __init__(self, session: Session) -> None:
        self.loop = asyncio.get_running_loop()
        self.session = session
        self.finished: asyncio.Future[None] = self.loop.create_future()
        self.until_started = False
        self._watched: dict[int, int] = {}
        self._stepping: asyncio.Future[None] | None = None

    async def run(self, *, until_started: bool = False) -> None:
        """Return when the session is done (or its program runs). Raises what it raises."""
        self.until_started = until_started
        self._watch()
        try:
            await self.finished
        finally:
            self._unwatch()
            if self._stepping is not None:
                # A step in another thread still uses the session: nobody may close it under its hands.
                await asyncio.wait([self._stepping])

    def _over(self) -> bool:
        return self.session.done or (self.until_started and not self.session.launching)

    def _watch(self) -> None:
        """Tell the loop what the session waits for now."""
        if self._over():
            if not self.finished.done():
                self.finished.set_result(None)
            return
        want = {} if self._stepping is not None else self.session.wanted()
        for fd in self._watched:
            if fd not in want:
                self._forget(fd)
        for fd, events in want.items():
            before = self._watched.get(fd, 0)
            if events & POLLIN and not before & POLLIN:
                self.loop.add_reader(fd, self._ready, fd, POLLIN)
            elif before & POLLIN and not events & POLLIN:
                self.loop.remove_reader(fd)
            if events & POLLOUT and not before & POLLOUT:
                self.loop.add_writer(fd, self._ready, fd, POLLOUT)
            elif before & POLLOUT and not events & POLLOUT:
                self.loop.remove_writer(fd)
        self._watched = want

    def _unwatch(self) -> None:
        for fd in self._watched:
            self._forget(fd)
        self._watched = {}

    def _forget(self, fd: int) -> None:
        self.loop.remove_reader(fd)
        self.loop.remove_writer(fd)

    def _ready(self, fd: int, events: int) -> None:
        if self.finished.done() or self._stepping is not None:
            return
        if fd == self.session.control:
            # Answering the init joins cgroups, which on v1 can take milliseconds each.
            self._unwatch()
            self._stepping = self.loop.run_in_executor(None, self.session.handle, {fd: events})
            self._stepping.add_done_callback(self._stepped)
            return
        # The loop must not watch a descriptor that is closed below; at the end all of them are.
        if fd == self.session.process.pidfd:
            self._unwatch()
        else:
            self._forget(fd)
            self._watched.pop(fd, None)
        try:
            self.session.handle({fd: events | POLLHUP | POLLERR})
        except BaseException as error:  # noqa: BLE001  # handed to whoever awaits
            self.finished.set_exception(error)
            return
        self._watch()

    def _stepped(self, step: asyncio.Future[None]) -> None:
        self._stepping = None
        error = None if step.cancelled() else step.exception()
        if self.finished.done():
            return
        if error is not None:
            self.finished.set_exception(error)
            return
        self._watch()


async def _in_pool(function: Callable[..., T], *arguments: Any) -> T:
    """Run something that may block for milliseconds in the shared pool, to its end even when we are cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not future.done():
            await asyncio.wait([future])
        raise


async def run(
    image: str,
    argv: Sequence[str] | None = None,
    *,
    input: bytes | None = None,
    timeout: float | None = None,  # the twin of the blocking call
    output_limit: int | None = None,
    **options: Unpack[Options],
) -> Result:
    """As ``knarr.run``. Cancelling kills and removes the container."""
    begun = monotonic()
    request = request_of(image, argv, options)
    made: list[Any] = []

    def make() -> None:
        made.append(begin_captured(where_of(options), request, input, output_limit))

    try:
        await _in_pool(make)
    except BaseException as error:
        if made:
            await _in_pool(made[0][0].abort, error)
        raise
    container, out, err, prepared_at = made[0]
    late = False
    try:
        left = None if timeout is None else max(timeout - (prepared_at - begun), 0.0)
        try:
            async with asyncio.timeout(left):
                await _Driver(container.session).run()
        except TimeoutError:
            late = True
            if container.session.launching:
                raise TimedOut(f"the container of {image}", timeout or 0.0) from None
            container.session.signal(9)
            await _Driver(container.session).run()
    except BaseException as error:
        await _in_pool(container.abort, error)
        raise
    ended = monotonic()
    started = container.session.started_at or ended
    await _in_pool(container.end)
    if late:
        raise TimedOut(f"the container of {image}", timeout or 0.0, stdout=out.value(), stderr=err.value())
    timings = Timings(prepared_at - begun, started - prepared_at, ended - started, monotonic() - ended)
    return result_of(container.session, out, err, timings)


class Registry:
    """As ``knarr.Registry``, with awaitable methods, in the shared pool."""

    def __init__(self, host: str, user: str = "", password: str = "", *, insecure: bool = False) -> None:
        from knarr.engine import registries

        self._registry = registries.Registry(host, user, password, insecure)

    async def tags(self, repository: str, *, limit: int = 100_000) -> list[str]:
        """Return the tags of a repository."""
        return await _in_pool(lambda: self._registry.tags(repository, limit=limit))

    async def repositories(self, *, limit: int = 100_000) -> list[str]:
        """Return the names of all repositories, where the registry tells them."""
        return await _in_pool(lambda: self._registry.repositories(limit=limit))

    async def manifest(self, repository: str, reference: str) -> Document:
        """Return a manifest or index by tag or digest."""
        return await _in_pool(lambda: self._registry.manifest(repository, reference))

    async def referrers(self, repository: str, digest: str, *, artifact_type: str = "") -> list[Descriptor]:
        """Return descriptors of what refers to a manifest."""
        return await _in_pool(lambda: self._registry.referrers(repository, digest, artifact_type=artifact_type))

    async def delete(self, repository: str, reference: str, *, tag_only: bool = False) -> str:
        """Remove a manifest, or a tag alone; return what is gone."""
        return await _in_pool(lambda: self._registry.delete(repository, reference, tag_only=tag_only))

    def __repr__(self) -> str:
        return f"aio.{self._registry!r}"


class Container:
    """As ``knarr.Container``, with ``async with`` and awaitable methods."""

    def __init__(
        self, image: str, argv: Sequence[str] | None = None, *, input: bytes | None = None, **options: Unpack[Options]
    ) -> None:
        self._box = api.Container(image, argv, input=input, **options)
        self._waiting: asyncio.Task[Result] | None = None

    @property
    def id(self) -> str:
        """The container's id; empty before ``start``."""
        return self._box.id

    @property
    def name(self) -> str:
        """The container's name, if it was given one."""
        return self._box.name

    @property
    def pid(self) -> int:
        """The main program's pid; 0 when there is none."""
        return self._box.pid

    @property
    def ports(self) -> dict[str, tuple[str, int]]:
        """As ``knarr.Container.ports``."""
        return self._box.ports

    @property
    def state(self) -> str:
        """``new``, ``running``, ``paused`` or ``exited``."""
        return self._box.state

    async def start(self) -> Self:
        """Make the container and return when its program runs."""
        try:
            container = await _in_pool(self._box.begin)
            await _Driver(container.session).run(until_started=True)
        except BaseException as error:
            await _in_pool(self._box.failed, error)
            raise
        return self

    async def wait(
        self,
        timeout: float | None = None,  # as above
        *,
        output_limit: int | None = None,
    ) -> Result:
        """Wait for the main program's end and remove the container. Several tasks may wait.

        Raises TimedOut after ``timeout`` seconds; the container goes on then, also when this call is cancelled.
        """
        if self._waiting is None:
            self._waiting = asyncio.ensure_future(self._wait(output_limit))
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._waiting)
        except TimeoutError:
            raise api.StillRunning(f"container {self.name or self.id[:12]}", timeout or 0.0) from None

    async def _wait(self, output_limit: int | None) -> Result:
        await _Driver(self._box.session).run()
        return await _in_pool(self._box.ended, output_limit)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float | None = None,  # as above
        output_limit: int | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        privileged: bool = False,
    ) -> Result:
        """Run a further program in the container and wait for it. Cancelling kills it."""
        begun = monotonic()
        made: list[Any] = []

        def make() -> None:
            wishes = {"env": env or {}, "workdir": workdir, "user": user, "privileged": privileged}
            made.append(self._box.begin_exec(argv, input, output_limit, **wishes))

        try:
            await _in_pool(make)
        except BaseException:
            if made:
                made[0][0].close()
                made[0][3].undo()
            raise
        session, out, err, process = made[0]
        late = False
        try:
            try:
                async with asyncio.timeout(timeout):
                    await _Driver(session).run()
            except TimeoutError:
                late = True
                if session.launching:
                    raise TimedOut(str(argv[0]), timeout or 0.0) from None
                session.signal(9)
                await _Driver(session).run()
        except BaseException:
            session.close()
            process.undo()
            raise
        process.close()
        if late:
            raise TimedOut(str(argv[0]), timeout or 0.0, stdout=out.value(), stderr=err.value())
        ended = monotonic()
        started = session.started_at or ended
        return result_of(session, out, err, Timings(0.0, started - begun, ended - started))

    def kill(self, signal: str | int = "KILL") -> bool:
        """Send a signal to the main program; False when it has ended already."""
        return self._box.kill(signal)

    async def remove(self) -> None:
        """Kill what still runs and remove the container. Safe to call again."""
        if self._box.state in ("new", "exited"):
            return
        self._box.kill(9)
        await self.wait(output_limit=0)

    def stdout(self) -> bytes:
        """What the main program has written so far; the whole of it after ``wait``."""
        return self._box.stdout()

    def stderr(self) -> bytes:
        """As ``stdout``, of its standard error."""
        return self._box.stderr()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self.remove())
