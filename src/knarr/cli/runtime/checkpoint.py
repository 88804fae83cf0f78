"""``knarr-runtime checkpoint``, and what it shares with ``restore`` (cold)."""

from __future__ import annotations

import os
from errno import EBADF
from fcntl import F_GETFL, fcntl

from knarr.base.errors import UsageError
from knarr.plan.criu import CriuOptions
from knarr.runtime.checkpoint import checkpoint
from knarr.runtime.criu import directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Write a container's processes to a directory."""
    for warning in checkpoint(context.root, operands[0], criu_options(options, context)):
        context.log.warning(warning)
    return 0


def criu_options(options: dict[str, Any], context: Context) -> CriuOptions:
    """The options of either verb. Raises UsageError."""
    images = os.path.abspath(options.get("image-path") or "checkpoint")
    parent = options.get("parent-path") or ""
    if parent.startswith("/"):
        raise UsageError("option --parent-path must be relative to the image path")
    if parent:
        os.close(directory(images, make=True))
    if parent and not os.path.isdir(f"{images}/{parent}"):
        raise UsageError(f"option --parent-path: {images}/{parent} is not a directory")
    for kind in options.get("empty-ns") or ():
        if kind != "network":
            raise UsageError(f"option --empty-ns: {kind!r} is not network")
    return CriuOptions(
        images=images,
        program=os.path.abspath(context.criu) if "/" in context.criu else context.criu,
        work=os.path.abspath(options["work-path"]) if options.get("work-path") else "",
        parent=parent,
        leave_running=bool(options.get("leave-running")),
        tcp_established=bool(options.get("tcp-established")),
        tcp_skip_in_flight=bool(options.get("tcp-skip-in-flight")),
        link_remap=bool(options.get("link-remap")),
        ext_unix_sk=bool(options.get("ext-unix-sk")),
        shell_job=bool(options.get("shell-job")),
        lazy_pages=bool(options.get("lazy-pages")),
        status_fd=_status_fd(options.get("status-fd")),
        page_server=_page_server(options.get("page-server") or ""),
        file_locks=bool(options.get("file-locks")),
        pre_dump=bool(options.get("pre-dump")),
        auto_dedup=bool(options.get("auto-dedup")),
        cgroups_mode=options.get("manage-cgroups-mode") or "",
        tcp_close=bool(options.get("tcp-close")),
        network_lock=options.get("network-lock") or "",
        lsm_profile=options.get("lsm-profile") or "",
        lsm_mount_context=options.get("lsm-mount-context") or "",
    )


def _page_server(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    address, _, port = text.rpartition(":")
    if not address or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"option --page-server: {text!r} is not ADDRESS:PORT")
    return address.removeprefix("[").removesuffix("]"), int(port)


def _status_fd(fd: int | None) -> int:
    if fd is None:
        return -1
    try:
        flags = fcntl(fd, F_GETFL)
    except OSError as error:
        why = os.strerror(error.errno or EBADF).lower()
        raise UsageError(f"option --status-fd: descriptor {fd}: {why}") from None
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise UsageError(f"option --status-fd: descriptor {fd} cannot be written to")
    return fd
