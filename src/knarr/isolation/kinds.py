"""The kinds of isolation, and what a guest of each is given (cold)."""

from __future__ import annotations

from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KERNEL, VM = "kernel", "vm"
"""Under a Linux kernel of its own as a process (user-mode Linux); in a microVM."""

LAYER = "/run/layer"
UPPER = f"{LAYER}/upper"
"""Where the guest keeps what is written to the root."""


class Share(Record):
    """A file or directory of the host's that the guest may see; only what is ``writable`` may it change.

    The guest mounts a directory with it: the directory itself, or one with the file alone.
    """

    source: str
    writable: bool = False


class Settings(Record):
    """What a guest is to be.

    ``memory`` in bytes, its kernel's included. ``shares``: the first one is the container's root, never writable; None
    for a template, which is given them later. ``initramfs`` is the path of a file that may be made. ``found`` is what
    the kind found out before: its kernel and so on. ``drivers`` are what its network may want, which it need not use.
    ``filters`` is a directory that keeps compiled filters ("": none).
    """

    kind: str
    memory: int
    cpus: int
    shares: tuple[Share, ...] | None
    initramfs: str
    found: dict[str, Any]
    drivers: tuple[Share, ...] = ()
    filters: str = ""


class Booting(Record):
    """A guest that was begun: a child of this process, which it dies with.

    ``channel``: a non-blocking descriptor of the frames' byte stream. ``console``: one to read what its kernel says, -1
    without. ``window``: bytes that may be under way to the guest at one time, 0 for a channel that holds the writer up
    by itself; not below 2048. ``ring``: a file of frames.RING_BYTES, which the guest has as the block device that the
    word knarr.ring= names; frames for it go there, and by the channel how long they are. -1 without. ``patience``:
    seconds it may take to say hello. ``settled()`` blocks until it is in the cgroups it belongs to, None for one that
    was begun there; nothing foreign may run before. Raises KnarrError.
    ``shown()`` blocks until it has its shares, None for one that was begun with them. Raises KnarrError.
    ``joined()`` blocks until this process is in the container's network, None for one that was begun there; the same.
    ``helpers``: pids of further children of this process that it does not live without. ``nics``: our ends of its
    network devices (nic.py).
    """

    pid: int
    pidfd: int
    channel: int
    console: int
    window: int = 0
    ring: int = -1
    patience: float = 20.0
    settled: Callable[[], None] | None = None
    shown: Callable[[], None] | None = None
    joined: Callable[[], None] | None = None
    helpers: tuple[int, ...] = ()
    nics: tuple[int, ...] = ()


class Mounted(Record):
    """How the guest mounts a share: mount(2)'s source, type, data, and flags beside those for what it may do there."""

    source: str
    fstype: str
    data: str
    flags: int = 0


def find(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """What is needed to boot a guest for a config.json, found before anything is made.

    Raises Unsupported, with advice, when something is missing.
    """
    found: dict[str, Any] = _module(kind).find_guest(config)
    return found


def described(kind: str) -> str:
    """What a guest of this kind would run on here, in a few words, or why it cannot be had. Nothing is booted."""
    from knarr.base.errors import KnarrError

    try:
        text: str = _module(kind).described()
    except KnarrError as error:
        return f"no: {error}"
    return text


def before(kind: str) -> tuple[tuple[str, Mounted], ...]:
    """Where a guest of this kind mounts what, before its shares (pure)."""
    how: tuple[tuple[str, Mounted], ...] = _module(kind).before()
    return how


def mounted(kind: str, number: int) -> Mounted:
    """How a guest of this kind mounts share ``number`` (pure)."""
    how: Mounted = _module(kind).mounted(number)
    return how


def drivers(kind: str, found: dict[str, Any]) -> tuple[Share, ...]:
    """What a guest of this kind is shown beside its shares, after them, for the drivers of its network (pure)."""
    more: tuple[Share, ...] = _module(kind).drivers(found)
    return more


def network(
    kind: str, found: dict[str, Any], share: int, *, ipv6: bool
) -> tuple[str, bool, list[tuple[int, int, bytes]]]:
    """How a guest of this kind gets its network devices.

    Their name without the number, whether its kernel has IPv6 then, and requests that load what is wanted for that.
    ``share`` is the number of the first of ``drivers``. Raises Unsupported, FileError.
    """
    how: tuple[str, bool, list[tuple[int, int, bytes]]] = _module(kind).network(found, share, ipv6=ipv6)
    return how


def boot(settings: Settings) -> Booting:
    """Begin a guest. Raises KnarrError; nothing is left then."""
    begun: Booting = _module(settings.kind).boot(settings)
    return begun


def show(kind: str, begun: Booting, shares: tuple[Share, ...], of: int = -1) -> None:
    """Show a guest that was begun without them its shares, whose paths are those that the process of pidfd ``of`` sees.

    Takes root. Raises KnarrError.
    """
    _module(kind).show(begun, shares, of)


def templated(kind: str, config: dict[str, Any]) -> bool:
    """Whether a container with that config.json may have a guest that was not booted for it (pure)."""
    fits: bool = _module(kind).templated(config)
    return fits


def overhead(kind: str) -> int:
    """Bytes of the guest's memory that are its kernel's and not the container's."""
    count: int = _module(kind).OVERHEAD
    return count


def beside(kind: str) -> int:
    """Bytes that the program which runs the guest takes beside the guest's memory."""
    count: int = _module(kind).BESIDE
    return count


def _module(kind: str) -> Any:
    """The module of a kind, with these; only the one in use is loaded."""
    if kind == KERNEL:
        from knarr.isolation import guest_uml

        return guest_uml
    if kind == VM:
        from knarr.isolation import guest_vm

        return guest_vm
    from knarr.base.errors import Unsupported

    raise Unsupported(f"isolation {kind}", "knarr has no such guest yet")
