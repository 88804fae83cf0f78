"""The kinds of isolation, and what a guest of each is given (hot)."""

from __future__ import annotations

from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAMESPACE, KERNEL, VM = "namespace", "kernel", "vm"
KINDS = (NAMESPACE, KERNEL, VM)
"""On the host's kernel; under a Linux kernel of its own as a process (user-mode Linux); in a microVM."""


class Share(Record):
    """A file or directory of the host's that the guest may see; only what is ``writable`` may it change.

    ``name`` is a path below the directory that the guest mounts: ``0`` for the first share, ``1/hosts`` for a file.
    """

    source: str
    name: str
    writable: bool = False


class Settings(Record):
    """What a guest is to be.

    ``memory`` in bytes, its kernel's included. ``shares``: the first one is the container's root, never writable.
    ``work`` is an empty directory of the guest's own, ``initramfs`` a file that may be made. ``found`` is what the kind
    found out before: its kernel and so on.
    """

    id: str
    kind: str
    memory: int
    cpus: int
    shares: tuple[Share, ...]
    work: str
    initramfs: str
    found: dict[str, Any]


class Booting(Record):
    """A guest that was begun: a child of this process, which it dies with.

    ``channel``: a non-blocking descriptor of the frames' byte stream. ``window``: bytes that may be under way to the
    guest at one time, 0 for a channel that holds the writer up by itself; not below 2048. ``messages()``: what its kernel
    said. ``end()``: kill what still runs, let all go. ``patience``: seconds it may take to say hello.
    """

    pidfd: int
    channel: int
    messages: Callable[[], str]
    end: Callable[[], None]
    window: int = 0
    patience: float = 20.0


class Mounted(Record):
    """How the guest mounts a share: mount(2)'s source, type and data."""

    source: str
    fstype: str
    data: str


def find(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """What is needed to boot a guest for a config.json, found before anything is made.

    Raises Unsupported, with advice, when something is missing.
    """
    found: dict[str, Any] = _module(kind).find_guest(config)
    return found


def mounted(kind: str, share: Share) -> Mounted:
    """How a guest of this kind mounts what holds the share (pure)."""
    how: Mounted = _module(kind).mounted(share)
    return how


def boot(settings: Settings) -> Booting:
    """Begin a guest. Raises KnarrError; nothing is left then."""
    begun: Booting = _module(settings.kind).boot(settings)
    return begun


def overhead(kind: str) -> int:
    """Bytes of the guest's memory that are its kernel's and not the container's."""
    count: int = _module(kind).OVERHEAD
    return count


def _module(kind: str) -> Any:
    """The module of a kind, with these four; only the one in use is loaded."""
    if kind == KERNEL:
        from knarr.isolation import guest_uml

        return guest_uml
    from knarr.base.errors import Unsupported

    raise Unsupported(f"isolation {kind}", "knarr has no such guest yet")
