"""Containers as the engine keeps them: one directory each below ``<store>/containers``, and their names.

    <id>/container.json   the Record below; written before anything else is made, replaced by rename
    <id>/config.json      the configuration it ran with, for ``inspect``, unless it is removed at its end
    <id>/upper, work      the writable layer (overlay), or <id>/rootfs (a plain copy)
    <id>/root             the empty directory the init mounts the overlay on, in its own mount namespace
    <id>/etc, volumes     files and directories bound into the container

``<store>/names/<name>`` is a symbolic link to an id: exactly one container gets a name (docs/security.md I29).

Status is never stored: the runtime computes it from the kernel. What only the parent of a process learns, its exit
code, is stored when it is seen.
"""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, ENOENT, ENOTEMPTY

from knarr.base import fastjson
from knarr.base.errors import (
    Exists,
    FileError,
    KernelError,
    KnarrError,
    NotFound,
    SafetyViolation,
    SpecError,
    SpecFinding,
    UsageError,
)
from knarr.base.files import Lock, read_file, write_atomic
from knarr.base.ids import check_id
from knarr.base.record import Record
from knarr.engine.paths import make_private
from knarr.kernel.path import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from knarr.engine.paths import Places

FORMAT = 1
RECORD = "container.json"
CONFIG = "config.json"
_LIMIT = 16 << 20


class Container(Record):
    """What is recorded of one container. Times are RFC 3339; ``exit_code`` is None until the end was seen."""

    id: str
    name: str
    image: str  # the reference as it was given
    created: str
    command: tuple[str, ...] = ()
    image_digest: str = ""  # of the manifest; empty for host: and bundle:
    image_id: str = ""  # digest of the image configuration
    layers: tuple[str, ...] = ()  # chainIDs of the layers in use, bottom first
    labels: Mapping[str, str] = {}  # records are immutable
    remove: bool = False  # goes away when it ends (--rm)
    ids_first: int = 0  # with ids of its own: the first one on the host, and how many (engine/ids.py)
    ids_count: int = 0
    categories: str = ""  # SELinux categories of its own (engine/selinux.py)
    network: str = ""  # as --network has it, without options
    ports: tuple[tuple[str, int, int, str], ...] = ()  # published: address, port here, port inside, protocol
    owner_pid: int = 0  # who waits for it, and will remove it
    started: str = ""
    finished: str = ""
    exit_code: int | None = None
    out_of_memory: bool = False  # processes of it were killed for want of memory
    reason: str = ""  # why one in a guest ended, when that was not its program's doing


def directory(where: Places, id: str) -> str:
    """The container's own directory."""
    return f"{where.containers}/{id}"


def reserve(where: Places, record: Container) -> str:
    """Make the container's directory, take its name, write the record; return the directory.

    Of several callers with one name exactly one succeeds. Raises Exists, InvalidId, FileError; leaves nothing behind.
    """
    check_id(record.id)
    if record.name:
        check_id(record.name, "container name")
    path = directory(where, record.id)
    try:
        try:
            os.mkdir(path, 0o700)
        except FileNotFoundError:
            make_private(where.store)
            for missing in (where.names, where.containers):  # whoever sees the last one finds the others
                _make(missing)
            os.mkdir(path, 0o700)
    except FileExistsError:
        raise Exists("container", record.id) from None
    except OSError as error:
        raise FileError("make", path, error.errno or EINVAL) from None
    try:
        save(where, record)
        if record.name:
            _take_name(where, record.name, record.id)
    except BaseException:
        try:
            os.unlink(f"{path}/{RECORD}")
        except OSError:
            pass  # it was not written; the first error is the one to tell
        os.rmdir(path)
        raise
    return path


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass


def _take_name(where: Places, name: str, id: str) -> None:
    path = f"{where.names}/{name}"
    for _ in range(3):
        try:
            os.symlink(id, path)
            return
        except OSError as error:
            if error.errno != EEXIST:
                raise FileError("make", path, error.errno or EINVAL) from None
        # The name of a container that was half removed when something was killed is free again.
        holder = _read_name(where, name)
        if holder and os.path.isdir(directory(where, holder)):
            break
        _drop_name(where, name, holder)
    raise Exists("container name", name, hint=f"remove it with: knarr rm {name}")


def _read_name(where: Places, name: str) -> str:
    try:
        return os.readlink(f"{where.names}/{name}")
    except OSError:
        return ""


def _drop_name(where: Places, name: str, id: str) -> None:
    """Free a name if it is still ``id``'s."""
    if name and _read_name(where, name) == id:
        # Or, of two who find a stale name, the slower one would free what the quicker one has just taken.
        with Lock(where.names):
            if _read_name(where, name) == id:
                os.unlink(f"{where.names}/{name}")


def save(where: Places, record: Container) -> None:
    """Write the record into the container's directory. Raises FileError."""
    document = {"format": FORMAT, **dict(zip(Container._fields, record, strict=True))}  # type: ignore[attr-defined]
    write_atomic(f"{directory(where, record.id)}/{RECORD}", fastjson.dumps(document))


def save_config(where: Places, id: str, config: Mapping[str, Any]) -> None:
    """Keep the configuration a container runs with. Raises FileError."""
    write_atomic(f"{directory(where, id)}/{CONFIG}", fastjson.dumps(config))


def load_config(where: Places, id: str) -> dict[str, Any]:
    """The configuration kept of a container; empty if none was. Raises SpecError."""
    path = f"{directory(where, id)}/{CONFIG}"
    try:
        data = read_file(path, _LIMIT)
    except FileError:
        return {}
    document: dict[str, Any] = fastjson.loads(data, path)
    return document


def load(where: Places, id: str) -> Container:
    """Read one record by the full id. Raises NotFound, SpecError for a record that is damaged."""
    path = f"{directory(where, check_id(id))}/{RECORD}"
    try:
        document = fastjson.loads(read_file(path, _LIMIT), path)
    except FileError as error:
        if error.number == ENOENT:
            raise NotFound("container", id) from None
        raise
    try:
        if document.pop("format") != FORMAT or document["id"] != id:
            raise ValueError
        for field in ("command", "layers"):
            document[field] = tuple(document[field])
        document["ports"] = tuple(tuple(port) for port in document.get("ports", ()))
        return Container(**document)
    except (AttributeError, KeyError, TypeError, ValueError):
        hint = f"remove it with: knarr rm --force {id}"
        raise SpecError(path, [SpecFinding("", "it is not of this version of knarr")], hint=hint) from None


def ids(where: Places) -> list[str]:
    """The ids of all containers, damaged ones too, in no order."""
    try:
        found = os.listdir(where.containers)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError("read", where.containers, error.errno or EINVAL) from None
    return found


def all_records(where: Places) -> Iterator[Container]:
    """Every readable record; containers that are being made or removed at this moment are passed over."""
    for id in ids(where):
        try:
            yield load(where, id)
        except KnarrError:
            continue


def find(where: Places, text: str) -> str:
    """The full id for a name, a full id or the beginning of one. Raises NotFound, UsageError when ambiguous."""
    if not text:
        raise UsageError("the name of a container is empty")
    holder = _read_name(where, text) if "/" not in text and "\0" not in text and text not in (".", "..") else ""
    if holder and os.path.isdir(directory(where, holder)):
        return holder
    matches = [id for id in ids(where) if id.startswith(text)]
    if text in matches:
        return text
    if len(matches) > 1:
        raise UsageError(f"container {text} could be any of {len(matches)}", hint="give more of the id")
    if not matches:
        raise NotFound("container", text, hint="see: knarr ps --all")
    return matches[0]


def _remove_tree(parent: int, id: str) -> None:
    """``remove_tree`` beside another process that removes the same: what is gone already is fine."""
    for _ in range(100):
        try:
            remove_tree(parent, id)
            return
        except KernelError as error:
            if error.errno not in (ENOENT, ENOTEMPTY):
                raise
        except SafetyViolation:
            pass  # whoever waited for it writes its end down, or something is mounted there: the last try tells
    remove_tree(parent, id)


def remove_directory(where: Places, id: str, name: str, ids_first: int = 0, categories: str = "") -> None:
    """Remove everything of a container from disk, its name last. Missing parts are fine. Raises FileError.

    The tree below may be a container's work: it is walked by descriptor and no symbolic link is followed.
    """
    try:
        parent = os.open(where.containers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # The record goes first: a half-removed container must not look like one that can be started.
        try:
            os.unlink(f"{id}/{RECORD}", dir_fd=parent)
        except FileNotFoundError:
            pass
        if ids_first:
            from knarr.engine.ids import release

            # While the directory is there, so that nobody takes the range for one of a container that is gone.
            release(ids_first, directory(where, id))
        if categories:
            from knarr.engine import selinux

            selinux.release(where, categories, directory(where, id))
        _remove_tree(parent, id)
    except OSError as error:
        raise FileError("remove", directory(where, id), error.errno or EINVAL) from None
    finally:
        os.close(parent)
    _drop_name(where, name, id)
