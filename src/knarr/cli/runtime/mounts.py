"""``knarr-runtime mounts`` (hot): crun's, which calls it experimental."""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import UsageError
from knarr.base.files import read_file
from knarr.runtime.mounts import add_mounts, remove_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(_options: dict[str, Any], operands: list[str], context: Context) -> int:
    """``add ID FILE`` and ``remove ID FILE``: the file has mounts as config.json has them."""
    what, id, path = operands
    change = {"add": add_mounts, "remove": remove_mounts}.get(what)
    if change is None:
        raise UsageError(f"mounts {what}: it is neither add nor remove", hint="see knarr-runtime mounts --help")
    entries = fastjson.loads(read_file(path, 1 << 20), path)
    if type(entries) is dict and "mounts" in entries:
        entries = entries["mounts"]
    change(context.root, id, entries, path)
    return 0
