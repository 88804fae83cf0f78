"""``knarr image mount``: an image's files at a directory, read-only, with nothing extracted."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.output import put
from knarr.cli.progress import watching


def parse_mount() -> Parser:
    """The parser of ``knarr image mount``."""
    parser = Parser(
        "image mount",
        "Mount an image read-only at a directory, from its layers as they are stored: nothing is extracted. It is"
        " pulled when it is not there. For root, on Linux 6.12; umount(8) ends it. Prints the digest.",
        "[--platform OS/ARCH] IMAGE DIR",
        "  mkdir /mnt/alpine && knarr image mount alpine /mnt/alpine && umount /mnt/alpine",
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="for another platform")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("image", metavar="IMAGE", help="a name, as for knarr run")
    parser.add_argument("directory", metavar="DIR", help="a directory that is there")
    return parser


def do_mount(arguments: list[str]) -> int:
    """Mount."""
    given = parse_mount().parse_args(arguments)
    from knarr.engine.mounting import mount
    from knarr.engine.paths import places

    with watching(quiet=given.quiet) as watcher:
        digest = mount(places(), given.image, given.directory, platform=given.platform, watcher=watcher)
    put(digest)
    return 0
