"""Make an image of this machine's own programs, with the libraries they need. ``knarr image create --from-host``."""

from __future__ import annotations

import os
import shutil
import tempfile

from knarr.base import fastjson
from knarr.base.clock import rfc3339
from knarr.base.errors import FileError, NotFound, UsageError
from knarr.engine.imaging.layers import epoch
from knarr.engine.paths import open_store
from knarr.image.catalog import load
from knarr.image.platform import host_platform
from knarr.image.reference import parse_reference
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.engine.paths import Places
    from knarr.image.catalog import Image

_SHELLS = ("/bin/sh", "/bin/bash", "/usr/bin/sh", "/usr/bin/bash", "/bin/busybox")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def create_from_host(
    where: Places, name: str, programs: Sequence[str], *, command: Sequence[str] = (), env: Sequence[str] = ()
) -> Image:
    """Put an image ``name`` into the store that holds ``programs`` and what they need to start; return it.

    Programs are absolute paths or names looked up in PATH. Without ``command`` the image runs a shell if there is one
    among them, else the first. The image depends on the files and words alone. Raises InvalidReference, UsageError,
    NotFound, Unsupported, FileError.
    """
    from knarr.layer.hostimage import host_layer

    reference = parse_reference(name)
    if reference.transport != "docker" or not reference.tag:
        raise UsageError(f"{name!r} cannot be the name of a new image", hint="as myimage:1")
    if not programs:
        raise UsageError("name at least one program to put into the image")
    paths = [_found(program) for program in programs]
    words = list(command) or [next((path for path in paths if path in _SHELLS), paths[0])]
    store = open_store(where)
    with store.lock(shared=True):
        try:
            with tempfile.TemporaryFile(dir=where.store) as file:
                host_layer(paths, file)
                file.seek(0)
                # A second descriptor: the store closes what it reads, and this file vanishes with its own.
                with os.fdopen(os.dup(file.fileno()), "rb") as stream:
                    layer = store.put(stream, media_type=mediatypes.LAYER)
        except OSError as error:
            raise FileError("write to", where.store, error.errno or 0) from None
        config = _config(paths, words, [f"PATH={PATH}", *env], layer["digest"])
        described = store.put(fastjson.dumps(config), media_type=mediatypes.CONFIG)
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": mediatypes.MANIFEST,
            "config": described,
            "layers": [layer],
        }
        entry = store.put(fastjson.dumps(manifest), media_type=mediatypes.MANIFEST)
        entry["platform"] = {"os": "linux", "architecture": config["architecture"]}
        store.tag(reference.name, entry)
        return load(store, entry, reference.name)


def _found(program: str) -> str:
    """The absolute path of a program; a bare name is looked up in PATH."""
    if "/" in program:
        return os.path.abspath(program)
    path = shutil.which(program)
    if path is None:
        raise NotFound("program", program, hint="it is not in PATH")
    return path


def _config(paths: list[str], words: list[str], env: list[str], diff_id: str) -> dict[str, Any]:
    """The image's config; it says when it was made only if SOURCE_DATE_EPOCH does: the same input, the same digest."""
    fixed = epoch()
    created = {"created": rfc3339(fixed)} if fixed is not None else {}
    platform = host_platform()
    document: dict[str, Any] = {
        **created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {"Env": env, "Cmd": words},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{**created, "created_by": f"knarr image create --from-host {','.join(paths)}"}],
    }
    if platform.variant:
        document["variant"] = platform.variant
    return document
