"""``knarr image``: the table of its commands, one file each beside this one."""

from __future__ import annotations

from knarr.cli.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.cli.command import Parser

# command -> (module beside this one, one line for the overview); the order is the overview's
COMMANDS = {
    "copy": ("copy", "copy an image from anywhere to anywhere"),
    "pull": ("pull", "fetch images into the store, for one platform or all"),
    "push": ("push", "send an image of the store to a registry"),
    "save": ("save", "write images of the store into an archive"),
    "load": ("load", "take the images of an archive into the store"),
    "create": ("create", "make an image from programs of this machine"),
}

GROUP = Group(
    "image",
    "knarr.cli.image",
    "Copy, look into, change and make images.",
    COMMANDS,
    "  knarr image copy alpine:3.20 oci:./layout:3.20\n  knarr image create tools:1 --from-host /bin/sh,/bin/ls",
)


def parse_image() -> Parser:
    """The parser of ``knarr image`` itself."""
    return GROUP.parser()


def do_image(arguments: list[str]) -> int:
    """Run one of its commands."""
    return GROUP.run(arguments)
