"""``knarr-runtime list`` (hot)."""

from __future__ import annotations

import posix

from knarr.base import fastjson
from knarr.base.errors import FileError, InvalidId, KnarrError, NotFound, UsageError
from knarr.kernel.process import boot_id
from knarr.runtime import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context

_COLUMNS = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def run(options: dict[str, Any], _operands: list[str], context: Context) -> int:
    """Print the containers below the state root: a table, JSON, or with --quiet the ids alone."""
    form = options.get("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"option --format: {form!r} is neither table nor json")
    found = _containers(context)
    if options.get("quiet"):
        text = "".join(f"{entry['id']}\n" for entry in found).encode()
    elif form == "json":
        text = fastjson.dumps(found or None) + b"\n"
    else:
        text = _table(found).encode()
    if text:
        posix.write(1, text)
    return 0


def _containers(context: Context) -> list[dict[str, Any]]:
    root = context.root
    try:
        root_fd = record.open_root(root)
    except FileError:
        return []  # nothing was ever created there
    boot = boot_id()
    found = []
    for name in sorted(posix.listdir(root_fd)):
        if name.startswith("."):
            continue
        try:
            fd = record.open_below(root_fd, name)
        except (NotFound, InvalidId):
            continue  # gone meanwhile, or not ours
        try:
            state = record.load(fd, name)
            found.append(record.shown(state, record.status(fd, state, root_fd, boot=boot), _owner(fd)))
        except KnarrError as error:
            if not (isinstance(error, FileError) and record.being_made(root_fd, name)):
                warning = f"container {name}: {error}"
                context.log.warning(warning)
        finally:
            posix.close(fd)
    posix.close(root_fd)
    return found


def _owner(fd: int) -> str:
    uid = posix.fstat(fd).st_uid
    if uid == 0:
        return "root"
    import pwd  # cold: another user's containers

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _table(found: list[dict[str, Any]]) -> str:
    """As runc prints it: columns at least 12 wide, at least 3 blanks between."""
    rows = [_COLUMNS, *(tuple(str(entry[name.lower()]) for name in _COLUMNS) for entry in found)]
    widths = [max(12, 3 + max(len(row[column]) for row in rows)) for column in range(len(_COLUMNS) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("".join(cells) + row[-1])
    return "\n".join(lines) + "\n"
