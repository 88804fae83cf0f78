"""``knarr unpack`` and ``knarr bundle``: an image as plain files, for looking at or for any OCI runtime."""

from __future__ import annotations

import os

from knarr.cli.command import Parser
from knarr.cli.output import put, say
from knarr.cli.progress import watching


def parse_unpack() -> Parser:
    """The parser of ``knarr unpack``."""
    parser = Parser(
        "unpack",
        "Write the files of an image into a directory: all layers, merged. The directory must be new or empty.",
        "[--platform OS/ARCH] [--pull WHEN] IMAGE DIR",
        "  knarr unpack alpine ./rootfs\n  knarr unpack oci:./layout:v1 /srv/tree",
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="for another platform, as linux/arm64")
    parser.add_argument("--pull", default="missing", metavar="WHEN", help="always, missing (default), never or newer")
    parser.add_argument("image", metavar="IMAGE", help="a registry's image, oci:, oci-archive: or docker-archive:")
    parser.add_argument("directory", metavar="DIR", help="a new or empty directory")
    return parser


def do_unpack(arguments: list[str]) -> int:
    """Unpack an image."""
    given = parse_unpack().parse_args(arguments)
    from knarr.engine.bundles import unpack
    from knarr.engine.images import find
    from knarr.engine.paths import places

    where = places()
    with watching() as watcher:
        image = find(where, given.image, platform=given.platform, pull=given.pull, watcher=watcher)
    for warning in unpack(where, image, given.directory):
        say(f"knarr unpack: {warning}")
    put(os.path.abspath(given.directory))
    return 0


def parse_bundle() -> Parser:
    """The parser of ``knarr bundle``."""
    from knarr.cli.run import add_container_options

    parser = Parser(
        "bundle",
        "Write an OCI runtime bundle: the image's files in DIR/rootfs, and DIR/config.json for any runtime.",
        "[OPTION…] IMAGE DIR [--] [COMMAND [ARGUMENT…]]",
        "  knarr bundle alpine ./b\n  knarr-runtime run --bundle ./b test1\n"
        "  knarr bundle --read-only -u 1000 alpine ./b sleep 100",
        add_help=False,
    )
    parser.add_argument("--pull", default="missing", metavar="WHEN", help="always, missing (default), never or newer")
    parser.add_argument("image", metavar="IMAGE", help="a registry's image, oci:, oci-archive: or docker-archive:")
    parser.add_argument("directory", metavar="DIR", help="a new or empty directory")
    parser.add_command("instead of the image's own command")
    add_container_options(parser)
    return parser


def do_bundle(arguments: list[str]) -> int:
    """Write a bundle."""
    given = parse_bundle().parse_args(arguments)
    from knarr.cli.run import options_of
    from knarr.engine.bundles import write_bundle
    from knarr.engine.images import find
    from knarr.engine.paths import places

    where = places()
    options = options_of(given)
    if options.network not in ("none", "host"):
        from knarr.base.errors import UsageError

        hint = "whoever runs the bundle makes its network"
        raise UsageError(f"network {options.network!r}: a bundle says none or host", hint=hint)
    with watching() as watcher:
        image = find(where, given.image, platform=given.platform, pull=given.pull, watcher=watcher)
    folder = os.path.abspath(given.directory)
    for note in write_bundle(where, image, folder, options):
        say(f"knarr bundle: {note}")
    put(folder)
    return 0
