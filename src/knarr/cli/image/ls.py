"""``knarr image ls``: the files of an image, of this machine or of a registry, without unpacking it."""

from __future__ import annotations

import os
import time

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_json, add_platform, add_whole, fetched, opened, shown, wants_json
from knarr.cli.output import put, put_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.layer.tarball import Entry


def parse_ls() -> Parser:
    """The parser of ``knarr image ls``."""
    parser = Parser(
        "image ls",
        "List the files of an image. All its layers are read, and verified, or a registry's tables of contents;"
        " nothing is unpacked.",
        "[-l] [-R] [--whole] [--json] IMAGE [PATH]",
        "  knarr image ls alpine /etc\n  knarr image ls -lR docker://docker.io/library/busybox /bin",
    )
    parser.add_argument("-l", "--long", action="store_true", help="mode, owner, size, time and target, too")
    parser.add_argument("-R", "--recursive", action="store_true", help="directories below, too")
    add_whole(parser)
    add_json(parser)
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default="/", help="a directory or file in it; / if not given"
    )
    return parser


def do_ls(arguments: list[str]) -> int:
    """List."""
    given = parse_ls().parse_args(arguments)
    as_json = wants_json(given)
    from knarr.engine.imaging.look import described, files

    with opened(given.image, given.platform) as image:
        found = files(image, given.path, recursive=given.recursive, whole=given.whole)
        if as_json:
            put_json([{**described(path, node.entry), "layer": node.layer} for path, node in found])
        else:
            for path, node in found:
                put(long_line(path, node.entry) if given.long else shown(path))
        fetched(image, given.image)
    return 0


def long_line(path: bytes, entry: Entry) -> str:
    """A line as ``ls -l`` has it, times in UTC."""
    from knarr.engine.imaging.look import mode_text
    from knarr.kernel.path import printable
    from knarr.layer.tarball import BLOCK, CHAR, SYMLINK

    many = f"{entry.device[0]}, {entry.device[1]}" if entry.kind in (CHAR, BLOCK) else str(entry.size)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(min(max(entry.mtime // 1_000_000_000, -(1 << 35)), 1 << 37)))
    target = f" -> {printable(os.fsdecode(entry.link))}" if entry.kind == SYMLINK else ""
    return f"{mode_text(entry)} {entry.uid:>5} {entry.gid:>5} {many:>12} {when} {shown(path)}{target}"
