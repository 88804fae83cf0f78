"""``knarr image repack``: what changed in an unpacked image, as a layer on top of it."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import finish
from knarr.cli.output import say


def parse_repack() -> Parser:
    """The parser of ``knarr image repack``."""
    parser = Parser(
        "image repack",
        "Make a layer of what changed in a directory since knarr image unpack. Prints the digest of the new image.",
        "[OPTION…] DIR [DEST]",
        "  knarr image repack ./bundle app:2\n  knarr image repack --strict --mask /var/log ./bundle oci:./layout:v2\n"
        "  knarr image repack --base app:1 ./rootfs-from-elsewhere app:2",
    )
    parser.add_argument("--strict", action="store_true",
                        help="compare contents; else a file is changed when its inode or change time is")  # fmt: skip
    parser.add_argument("--base", default="", metavar="IMAGE",
                        help="compare with this image, strictly; no record of unpacking is needed")  # fmt: skip
    parser.add_argument("--mask", action="append", default=[], metavar="PATH", help="leave what is below it alone")
    parser.add_argument("--no-mask-volumes", action="store_true", help="the image's volumes are not left alone")
    parser.add_argument("--refresh", action="store_true", help="write the record anew, to go on from the new image")
    parser.add_argument("--compress", default="gzip", metavar="HOW", help="gzip[:LEVEL], zstd[:LEVEL] or none")
    parser.add_argument("--created-by", default="", metavar="TEXT", help="what the history says of the new layer")
    parser.add_argument("directory", metavar="DIR", help="what knarr image unpack made")
    parser.add_argument("destination", metavar="DEST", nargs="?", default="",
                        help="a name for the store or oci:DIR[:TAG]; the image it came from if not given")  # fmt: skip
    return parser


def do_repack(arguments: list[str]) -> int:
    """Pack again."""
    given = parse_repack().parse_args(arguments)
    from knarr.engine.imaging.pack import repack

    done = repack(
        given.directory,
        base=given.base,
        strict=given.strict,
        masks=given.mask,
        mask_volumes=not given.no_mask_volumes,
        compression=given.compress,
        created_by=given.created_by,
        refresh=given.refresh,
    )
    for warning in done.warnings:
        say(f"knarr image repack: {warning}")
    name = done.image.name
    if not given.destination and (not name or name.startswith(("docker", "oci-archive"))):
        raise UsageError(f"{name} cannot be changed in place", hint="name the new image as DEST")
    say(f"{done.made} added or changed, {done.hidden} removed")
    return finish(done.image, name, given.destination)
