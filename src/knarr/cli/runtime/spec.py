"""``knarr-runtime spec`` (hot)."""

from __future__ import annotations

import os
from errno import EEXIST

from knarr.base import fastjson
from knarr.base.errors import Exists, FileError
from knarr.base.files import write_all
from knarr.spec.defaults import default_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], _operands: list[str], _context: Context) -> int:
    """Write a config.json to start from; one that is there stays."""
    path = os.path.join(options.get("bundle") or ".", options.get("file") or "config.json")
    ids = (os.geteuid(), os.getegid()) if options.get("rootless") else None
    document = default_config(rootless_ids=ids, cgroup_namespace=os.path.exists("/sys/fs/cgroup/cgroup.controllers"))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == EEXIST:
            raise Exists("file", path, hint="remove it first") from None
        raise FileError("write", path, error.errno or 0) from None
    try:
        write_all(fd, fastjson.dumps(document, indent=True) + b"\n")
    except OSError as error:
        os.unlink(path)
        raise FileError("write", path, error.errno or 0) from None
    finally:
        os.close(fd)
    return 0
