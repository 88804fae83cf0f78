"""``knarr image index``: image indexes, one image for several platforms."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.group import Group
from knarr.cli.image.common import finish, pairs

_ABOUT = "a name in the store, oci:DIR[:TAG], …; docker://NAME asks a registry"

COMMANDS = {
    "create": ("index", "make an index of images"),
    "add": ("index", "add images to an index"),
    "remove": ("index", "take entries out of an index"),
    "annotate": ("index", "set annotations of an index or one of its entries"),
}

GROUP = Group(
    "image index",
    "knarr.cli.image",
    "Make and change image indexes.",
    COMMANDS,
    "  knarr image index create app:1 app:1-amd64 app:1-arm64\n  knarr image index add app:1 oci:./riscv64:v1",
)


def parse_index() -> Parser:
    """The parser of ``knarr image index`` itself."""
    return GROUP.parser()


def do_index(arguments: list[str]) -> int:
    """Run one of its commands."""
    return GROUP.run(arguments)


def parse_create() -> Parser:
    """The parser of ``knarr image index create``."""
    parser = Parser(
        "image index create",
        "Make an index of images, its platforms taken from their configs. Prints the digest of the index.",
        "[--annotation NAME=VALUE…] DEST IMAGE…",
        "  knarr image index create oci:./layout:v1 app:1-amd64 app:1-arm64",
    )
    parser.add_argument("-a", "--annotation", action="append", default=[], metavar="NAME=VALUE",
                        help="an annotation of the index")  # fmt: skip
    parser.add_argument("destination", metavar="DEST", help="a name for the store, or oci:DIR[:TAG]")
    parser.add_argument("images", metavar="IMAGE", nargs="*", help=_ABOUT)
    return parser


def do_create(arguments: list[str]) -> int:
    """Make an index."""
    given = parse_create().parse_args(arguments)
    from knarr.engine.imaging.image import Index
    from knarr.engine.imaging.opening import open_any

    images = [open_any(text) for text in given.images]
    try:
        made = Index.of(images, annotations=pairs(given.annotation, "--annotation"))
        return finish(made, "", given.destination)
    finally:
        for image in images:
            image.close()


def parse_add() -> Parser:
    """The parser of ``knarr image index add``."""
    parser = Parser(
        "image index add",
        "Add images to an index; one that it has already is replaced where it stands. Prints the new digest.",
        "[--platform OS/ARCH] [--to DEST] INDEX IMAGE…",
        "  knarr image index add app:1 app:1-riscv64\n"
        "  knarr image index add --platform linux/arm/v7 --to app:2 app:1 oci:./armhf",
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="what it is for, if its config does not say")
    parser.add_argument("--to", default="", metavar="DEST", help="the new index's name; INDEX itself if not given")
    parser.add_argument("index", metavar="INDEX", help=_ABOUT)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=_ABOUT)
    return parser


def do_add(arguments: list[str]) -> int:
    """Add."""
    given = parse_add().parse_args(arguments)
    from knarr.engine.imaging.image import Index
    from knarr.engine.imaging.opening import open_any

    with Index.open(given.index) as index:
        made = index
        for text in given.images:
            with open_any(text) as image:
                made = made.add(image, platform=given.platform).save(given.to or given.index)
        return finish(made, given.index, given.to)


def parse_remove() -> Parser:
    """The parser of ``knarr image index remove``."""
    parser = Parser(
        "image index remove",
        "Take entries out of an index, by digest or platform. Prints the new digest.",
        "[--to DEST] INDEX DIGEST|OS/ARCH…",
        "  knarr image index remove app:1 linux/s390x",
    )
    parser.add_argument("--to", default="", metavar="DEST", help="the new index's name; INDEX itself if not given")
    parser.add_argument("index", metavar="INDEX", help=_ABOUT)
    parser.add_argument("entries", metavar="ENTRY", nargs="+", help="a digest, or a platform")
    return parser


def do_remove(arguments: list[str]) -> int:
    """Take entries out."""
    given = parse_remove().parse_args(arguments)
    from knarr.engine.imaging.image import Index

    with Index.open(given.index) as index:
        digests = [digest for text in given.entries for digest in index.matching(text)]
        return finish(index.remove(*digests), given.index, given.to)


def parse_annotate() -> Parser:
    """The parser of ``knarr image index annotate``."""
    parser = Parser(
        "image index annotate",
        "Set or remove annotations of an index, or of one entry. Prints the new digest.",
        "[--entry DIGEST|OS/ARCH] [--set NAME=VALUE…] [--unset NAME…] [--to DEST] INDEX",
        "  knarr image index annotate --set org.opencontainers.image.version=1.2 app:1",
    )
    parser.add_argument(
        "--entry", default="", metavar="ENTRY", help="a digest or platform; the index itself if not given"
    )
    parser.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="set an annotation")
    parser.add_argument("-u", "--unset", action="append", default=[], metavar="NAME", help="take one away")
    parser.add_argument("--to", default="", metavar="DEST", help="the new index's name; INDEX itself if not given")
    parser.add_argument("index", metavar="INDEX", help=_ABOUT)
    return parser


def do_annotate(arguments: list[str]) -> int:
    """Annotate."""
    given = parse_annotate().parse_args(arguments)
    changes: dict[str, str | None] = {**pairs(given.set, "--set"), **dict.fromkeys(given.unset)}
    if not changes:
        raise UsageError("say what to --set or --unset", hint="see: knarr image index annotate --help")
    from knarr.engine.imaging.image import Index

    with Index.open(given.index) as index:
        made = index
        for digest in index.matching(given.entry) if given.entry else [""]:
            made = made.with_annotations(changes, entry=digest)
        return finish(made, given.index, given.to)
