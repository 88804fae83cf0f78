"""A guest that waited becomes a container's: brought into its cgroups, shown its files (hot)."""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread

from knarr.base.errors import KnarrError
from knarr.base.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.isolation.kinds import Settings
    from knarr.isolation.template import Taken


def taken(settings: Settings, show: Callable[[Taken], None]) -> tuple[Taken, Callable[[], None]] | None:
    """A guest of the settings' shape, and what blocks until it is in its cgroups; None when none waits.

    ``show`` gives it the shares. Raises KnarrError.
    """
    from knarr.isolation.template import Shape, take

    guest = (
        take(Shape(settings.kind, settings.memory, settings.cpus), settings.templates) if settings.templates else None
    )
    if guest is None:
        return None
    from knarr.runtime import cgroup

    failed: list[KnarrError] = []
    moved = allocate_lock()

    def move() -> None:
        # On v1 each group waits for RCU, 7 to 13 ms: beside the rest, and over before anything foreign runs.
        try:
            for pid in (guest.pid, *guest.helpers):
                for each in (pid, *_children(pid)):
                    cgroup.join_recorded(settings.groups, each)
        except KnarrError as error:
            failed.append(error)
        finally:
            moved.release()

    def settled() -> None:
        moved.acquire()
        if failed:
            raise failed[0]

    moved.acquire()
    start_new_thread(move, ())
    show(guest)
    guest.life.detach()  # open until this process ends, and then the keeper ends the guest
    return guest, settled


def _children(pid: int) -> list[int]:
    """The processes of a guest that waits: all are its own children, and none comes or goes."""
    return [int(word) for word in read_file(f"/proc/{pid}/task/{pid}/children", 1 << 16).split()]
