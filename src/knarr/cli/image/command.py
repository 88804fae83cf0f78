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
    "delete": ("delete", "remove images from a registry"),
    "save": ("save", "write images of the store into an archive"),
    "load": ("load", "take the images of an archive into the store"),
    "inspect": ("inspect", "show all that an image's documents say"),
    "ls": ("ls", "list the files of an image"),
    "cat": ("cat", "write a file of an image to standard output"),
    "tree": ("tree", "draw the files of an image as a tree"),
    "history": ("history", "show what made an image, layer by layer"),
    "which-layer": ("which_layer", "say which layer set or removed a path"),
    "du": ("du", "show the bytes of each layer, and those wasted"),
    "diff": ("diff", "show every difference between two images"),
    "validate": ("validate", "check images, layouts and archives against the specification"),
    "df": ("store", "show what takes how much room in the store"),
    "prune": ("store", "remove images nobody needs, and what is left of them"),
    "fsck": ("store", "compare everything in the store with its digests"),
    "sync": ("sync", "copy all images a list names"),
    "create": ("create", "make an image from programs of this machine"),
    "unpack": ("unpack", "unpack an image to a bundle or directory, to be packed again"),
    "mount": ("mount", "mount an image read-only, with nothing extracted"),
    "repack": ("repack", "make a layer of what changed in an unpacked image"),
    "add": ("add", "put files of this machine into an image"),
    "remove": ("remove", "hide paths of an image"),
    "append": ("append", "put a tar on top of an image as a layer"),
    "config": ("config", "change an image's config and history"),
    "annotate": ("annotate", "set or remove annotations of an image"),
    "squash": ("squash", "make several layers one"),
    "rebase": ("rebase", "move an image onto another base"),
    "index": ("index", "make and change image indexes"),
    "artifact": ("artifact", "push, attach and pull files that are no image"),
    "referrers": ("referrers", "list what refers to an image"),
    "key": ("sign", "make a key pair to sign with"),
    "sign": ("sign", "sign an image with a key"),
    "verify": ("sign", "check an image's signatures, by key or policy"),
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
