"""Where knarr keeps things: the store (images, layers, containers) and the state of running containers.

root: /var/lib/knarr and /run/knarr; a user: $XDG_DATA_HOME/knarr and $XDG_RUNTIME_DIR/knarr. KNARR_STORE and KNARR_RUN,
or an argument, name other places. The directories are 0700: layers hold set-uid programs and secrets of images
(docs/security.md I18).
"""

from __future__ import annotations

import os
import stat

from knarr.base.errors import FileError, UsageError
from knarr.base.record import Record
from knarr.runtime.record import default_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.content.store import Store


class Places(Record):
    """The two directories everything is in: absolute paths, not yet made."""

    store: str
    state: str

    @property
    def containers(self) -> str:
        """One directory per container: record, config.json, writable layer."""
        return f"{self.store}/containers"

    @property
    def names(self) -> str:
        """One symbolic link per container that has a name."""
        return f"{self.store}/names"

    @property
    def snapshots(self) -> str:
        """One directory per unpacked layer; the layer room's."""
        return f"{self.store}/snapshots"

    @property
    def tars(self) -> str:
        """The plain tars of layers, and an index over them for each image; the layer room's."""
        return f"{self.store}/tars"


def places(store: str | None = None, state: str | None = None) -> Places:
    """Return the places in force: the argument, the environment, or the user's usual one."""
    store = store or os.environ.get("KNARR_STORE") or _default_store()
    state = state or os.environ.get("KNARR_RUN") or default_root()
    return Places(os.path.abspath(store), os.path.abspath(state))


def _default_store() -> str:
    if os.geteuid() == 0:
        return "/var/lib/knarr"
    data = os.environ.get("XDG_DATA_HOME")
    if not data:
        home = os.environ.get("HOME")
        if not home:
            raise UsageError("there is no HOME in the environment to keep images in", hint="set HOME or KNARR_STORE")
        data = f"{home}/.local/share"
    return f"{data}/knarr"


def open_store(where: Places) -> Store:
    """Open the image store, made if it is not there yet. Raises FileError, UsageError when it is another user's."""
    from knarr.content.store import Store

    make_private(where.store)
    return Store.open(where.store, create=True)


def make_private(path: str) -> None:
    """Make a directory 0700 with its parents, or check that an existing one is ours and no one else's to write.

    Raises FileError, UsageError.
    """
    try:
        os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            facts = os.stat(path)
            if not stat.S_ISDIR(facts.st_mode):
                raise UsageError(f"{path} is not a directory") from None
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
                raise UsageError(
                    f"{path} belongs to or is writable by others", hint="set KNARR_STORE to a directory of your own"
                ) from None
    except OSError as error:
        raise FileError("make directory", path, error.errno or 0) from None
